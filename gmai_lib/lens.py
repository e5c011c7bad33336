"""Look into a trained model: its answer, where it attends, and which patches change its mind.

    answer = reply(model, processor, [image_bytes], "Where is the nodule? Answer briefly.")
    attention = answer_attention(model, processor, image_bytes, question)  # (rows, columns)
    effect = occlusion(model, processor, image_bytes, question, answer)    # (rows, columns)

Attention says where information is read from, not that it decided the answer; occlusion measures
an effect, but of an image the model has never seen the like of. Neither explains a diagnosis.

Paper: none of this is in it. Shape letters: L layers, N heads, T tokens, P patches.
"""

import numpy as np
import torch

from gmai_lib.model import chat, views


def reply(model, processor, images, conversation, max_new_tokens: int = 64) -> str:
    """Return the greedy answer to a question, or to a list of {"role", "content"} turns.

    A question given as text gets one `<image>` per image in front.
    """
    conversation = _turns(conversation, len(images))
    inputs = _inputs(model, processor, images, conversation)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def first_answers(model, processor, samples: list[dict], max_new_tokens: int = 24) -> list[str]:
    """Return the answer to the first question of each sample (rows of the Parquet shards)."""
    return [
        reply(
            model,
            processor,
            [image["bytes"] for image in sample["images"]],
            [sample["conversations"][0]],
            max_new_tokens,
        )
        for sample in samples
    ]


def answer_attention(model, processor, image, question: str):
    """Return attention from the position that says the first answer token to the patches.

    A (rows, columns) array: the mean over heads and layers, scaled to sum 1 over the patches.
    Runs once with the "eager" implementation, the only one that returns weights, and puts the
    model's own back. Of an image in tiles, it is the attention to the whole.
    """
    inputs = _inputs(model, processor, [image], _turns(question, 1))
    weights: list[torch.Tensor] = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda _, __, output: weights.append(output[1]))
        for layer in model.language_model.model.layers
    ]
    own = model.language_model.config._attn_implementation
    model.language_model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            model(**inputs)
    finally:
        model.language_model.set_attn_implementation(own)
        for hook in hooks:
            hook.remove()
    last = torch.stack([w[0, :, -1] for w in weights]).float().mean((0, 1))  # (L, N, T) -> (T,)
    patches = last[inputs["input_ids"][0] == model.config.image_token_id]
    patches = patches[: model.config.tokens_per_image]  # (P,)
    return (patches / patches.sum()).view(_grid(model), -1).cpu().numpy()


def occlusion(model, processor, image, question: str, answer: str):
    """Return how much the log-probability of `answer` falls when a patch is greyed out.

    A (rows, columns) array in nats; positive where the patch supports the answer. P + 1 forward
    passes, as one batch.
    """
    turns = [*_turns(question, 1), {"role": "assistant", "content": answer}]
    encoded = chat.encode(turns, processor.tokenizer, model.config.tokens_per_image)
    ids = torch.tensor([encoded["input_ids"]], device=model.device)
    labels = torch.tensor(encoded["labels"], device=model.device)
    pixels = chat.pixel_values([image], model.config.vision_config).to(model.device, model.dtype)
    side = _grid(model)
    patch = model.config.vision_config.image_size // side  # pixels of one token
    covered = pixels.repeat(side * side + 1, 1, 1, 1)
    for index in range(side * side):
        row, column = divmod(index, side)
        area = covered[index, :, row * patch : (row + 1) * patch]
        area[..., column * patch : (column + 1) * patch] = 0  # the mean colour after normalising
    with torch.inference_mode():
        logits = model(input_ids=ids.expand(len(covered), -1), pixel_values=covered).logits
    targets = labels[1:]
    said = targets != chat.IGNORE_INDEX
    log_probabilities = logits[:, :-1][:, said].float().log_softmax(-1)  # (P + 1, S, V)
    total = log_probabilities[:, torch.arange(int(said.sum())), targets[said]].sum(1)
    return (total[-1] - total[:-1]).view(side, side).cpu().numpy()


def share_inside(weights, boxes) -> tuple[float, float]:
    """Return the share of positive `weights` (rows, columns) in `boxes`, and the boxes' area.

    Boxes are x1, y1, x2, y2 as fractions; a patch belongs to a box that covers its centre. Equal
    shares mean that the boxes matter no more than the rest of the image.
    """
    weights = np.maximum(weights, 0)
    rows, columns = weights.shape
    y, x = (np.mgrid[:rows, :columns] + 0.5) / np.array([rows, columns])[:, None, None]
    inside = np.zeros(weights.shape, bool)
    for x1, y1, x2, y2 in boxes:
        inside |= (x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)
    return float(weights[inside].sum() / max(weights.sum(), 1e-12)), float(inside.mean())


def _turns(conversation, num_images: int) -> list[dict]:
    if not isinstance(conversation, str):
        return list(conversation)
    text = f"{chat.IMAGE_TOKEN}\n" * num_images + conversation
    return [{"role": "user", "content": text}]


def _inputs(model, processor, images, conversation) -> dict:
    images, conversation = views.expand(images, conversation, processor)
    ids = chat.encode_prompt(conversation, processor.tokenizer, model.config.tokens_per_image)
    inputs = {"input_ids": torch.tensor([ids], device=model.device)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if len(images):
        pixels = chat.pixel_values(images, model.config.vision_config)
        inputs["pixel_values"] = pixels.to(model.device, model.dtype)
    return inputs


def _grid(model) -> int:
    """Image tokens along one side."""
    return int(model.config.tokens_per_image**0.5)
