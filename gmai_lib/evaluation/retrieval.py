"""Image-text retrieval with a generative model: which image does a caption belong to?

    found = retrieval(model, processor, captioned(test_rows, 16, seed=0))
    found["text to image"], found["image to text"], found["chance"]

A caption is scored by its likelihood given an image, so the same number can be taken of a model
before and after any stage of training; nothing of the answers' form is needed.

Paper: none of this is in it. CLIP's zero-shot retrieval (Radford et al., arXiv 2103.00020, 3.1.5)
compares embeddings, which a language model has none of.
"""

from random import Random

import torch

from gmai_lib.model import chat

PROMPT = f"{chat.IMAGE_TOKEN}\nDescribe this image."


def captioned(rows, number: int, *, seed: int) -> list[tuple[bytes, str]]:
    """Return up to `number` (image, English caption) pairs, evenly over the modalities.

    `rows`: samples of the Parquet shards, as dictionaries. Captions of a region are left out, and
    no two of the pairs share a caption.
    """
    by_modality: dict[str, dict[str, bytes]] = {}
    for row in rows:
        if row["subset"] == "caption" and row["language"] == "en" and len(row["images"]) == 1:
            asked, said = (turn["content"] for turn in row["conversations"][:2])
            if "<box>" in asked:
                continue
            by_modality.setdefault(row["modality"], {})[said] = row["images"][0]["bytes"]
    rng, queues = Random(seed), []
    for _, pairs in sorted(by_modality.items()):
        queue = [(image, said) for said, image in pairs.items()]
        rng.shuffle(queue)
        queues.append(queue)
    turns = range(max(map(len, queues), default=0))
    return [queue[turn] for turn in turns for queue in queues if turn < len(queue)][:number]


@torch.inference_mode()
def retrieval(model, processor, pairs: list[tuple[bytes, str]]) -> dict[str, float]:
    """Return recall at 1 in both directions, and chance, for (image, caption) `pairs`.

    "text to image": the share of captions that are likeliest given their own image. "image to
    text": the share of images whose own caption gains most by them; the gain is over the mean of
    all images, since a short caption is likely whatever is shown.

    N * N forward passes of one caption. Raises ValueError for fewer than two pairs.
    """
    if len(pairs) < 2:
        raise ValueError(f"retrieval needs at least two pairs, not {len(pairs)}")
    pixels = chat.pixel_values([image for image, _ in pairs], model.config.vision_config)
    pixels = pixels.to(model.device, model.dtype)  # (N, 3, S, S)
    scores = torch.stack([_log_likelihoods(model, processor, pixels, said) for _, said in pairs])
    own = torch.arange(len(pairs), device=scores.device)  # scores: (captions, images)
    gain = scores - scores.mean(1, keepdim=True)
    return {
        "text to image": (scores.argmax(1) == own).float().mean().item(),
        "image to text": (gain.argmax(0) == own).float().mean().item(),
        "chance": 1 / len(pairs),
    }


def _log_likelihoods(model, processor, pixels, caption: str) -> torch.Tensor:
    """Log-probability of a caption given each of N images, (N,) float32."""
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": caption}]
    encoded = chat.encode(turns, processor.tokenizer, model.config.tokens_per_image)
    ids = torch.tensor([encoded["input_ids"]], device=model.device)
    targets = torch.tensor(encoded["labels"], device=model.device)[1:]
    said = targets != chat.IGNORE_INDEX
    logits = model(input_ids=ids.expand(len(pixels), -1), pixel_values=pixels).logits
    words = logits[:, :-1][:, said].float().log_softmax(-1)  # (N, caption tokens, vocabulary)
    return words.gather(2, targets[said].expand(len(pixels), -1)[..., None]).sum((1, 2))
