"""Look into a trained model: its answer, where it attends, and which patches change its mind.

    answer = reply(model, processor, [image_bytes], "Where is the nodule? Answer briefly.")
    attention = answer_attention(model, processor, image_bytes, question)  # (rows, columns)
    effect = occlusion(model, processor, image_bytes, question, answer)    # (rows, columns)
    places, similarity = nearest(image_features(model, asked), image_features(model, trained))

Attention says where information is read from, not that it decided the answer; occlusion measures
an effect, but of an image the model has never seen the like of. Neither explains a diagnosis.
The nearest training image is near to the model's own tower, which need not be near to a reader.

Paper: none of this is in it. Shape letters: L layers, N heads or images, T tokens, P patches,
D features of the tower.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from gmai_lib.dataset import writers
from gmai_lib.dataset.lexicon import is_finding, readable
from gmai_lib.evaluation.extraction import LETTERS
from gmai_lib.evaluation.items import drafts_of
from gmai_lib.model import chat, kernels, views
from gmai_lib.schema import IMAGE_MODALITIES, PLACES


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


def image_features(model, images, batch_size: int = 64):
    """Return what the tower makes of each image, (N, D) float32 of length 1.

    The mean over the patches of what the projector reads. Of an image that the model gets in
    tiles, it is the whole that counts.
    """
    vision = model.config.vision_config

    def pooled(start: int) -> np.ndarray:
        with torch.inference_mode():  # which every thread enters for itself
            pixels = chat.pixel_values(images[start : start + batch_size], vision)
            patches = model.patch_features(pixels.to(model.device, model.dtype))  # (N, P, D)
            return torch.nn.functional.normalize(patches.float().mean(1)).cpu().numpy()

    # Threads inside the products of a small tower wait for one another, and on two busy cores
    # take four times as long; batches side by side do not. On a GPU a few threads decode ahead.
    workers = torch.get_num_threads() if model.device.type == "cpu" else 4
    with kernels.threads_of(1), ThreadPoolExecutor(workers) as threads:
        rows = list(threads.map(pooled, range(0, len(images), batch_size)))
    width = vision.hidden_size * model.config.pixel_shuffle**2  # D
    return np.concatenate([np.zeros((0, width), np.float32), *rows])


def nearest(features, training):
    """Return for each of `features` (N, D) the place of the most similar of `training` (M, D).

    And its cosine similarity: two arrays (N,). Rows have length 1, as `image_features` gives
    them; of equally similar ones the first counts. Raises ValueError if `training` is empty.
    """
    if not len(training):
        raise ValueError(f"no training images to compare {len(features)} images with")
    similarity = features @ training.T  # (N, M)
    places = similarity.argmax(1)
    return places, similarity[np.arange(len(features)), places]


def asked(item) -> tuple[str, str]:
    """Return the kind of a question and the label that it names, "" for none.

    Of an item that `evaluation.items.Draft.item` made: both stand in its id.
    """
    kind, about = item.id.split("#")[2:4]
    return kind, about


def spelled(item, answer: str | None) -> str:
    """Return a reference or a scored prediction as text: of a letter, the option it stands for."""
    if not answer:
        return "nothing readable"
    if item.kind == "multiple choice":
        return item.options[LETTERS.index(answer)]
    return answer


def told(record, item) -> str:
    """Return what the annotation of a training `record` answers to the kind of question of `item`.

    About the label that the question names, if it names one (see `asked`), and in English. Where
    the annotation does not say, its labels, or else the answers that came with the image.
    """
    kind, about = asked(item)
    if kind == "multiple choice":
        kind = _kind_of(item.options)
    drafts = [d for d in drafts_of(record, name_labels=True) if d.kind == kind]
    facts = [d.fact for d in drafts if about in ("", d.about)]
    if facts:
        kind = "present" if kind == "yes/no" else kind  # "absent" facts answer it with no
        return ", ".join(dict.fromkeys(writers.answer(kind, fact, "en") for fact in facts))
    if record.labels:
        return f"labelled {', '.join(map(readable, record.labels))}"
    return "; ".join(pair.answer for pair in record.qa) or "nothing"


def _kind_of(options) -> str:
    """What a multiple choice lets choose among."""
    for kind, names in (("modality", IMAGE_MODALITIES), ("location", PLACES)):
        if set(options) <= set(names):
            return kind
    return "finding" if any(map(is_finding, options)) else "organ"


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
