"""Retrieval by likelihood: a model that reads its image finds the caption, a blind one does not."""

import pytest
import torch
from tiny_model import picture, tiny_model, tiny_tokenizer

from gmai_lib.dataset import images
from gmai_lib.evaluation import retrieval
from gmai_lib.model import chat

PAIRS = [(images.to_png(picture(n)), f"A nodule in the {side}.") for n, side in enumerate("abcd")]


@pytest.fixture
def parts():
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    return model, chat.build_processor(tokenizer, model.config.vision_config)


def sample(image, caption, modality, **more):
    turns = [{"content": "<image>\nDescribe."}, {"content": caption}]
    row = {"subset": "caption", "language": "en", "images": [{"bytes": image}]}
    return row | {"conversations": turns, "modality": modality} | more


def test_pairs_are_even_over_modalities_and_no_caption_comes_twice():
    rows = [sample(b"1", "x", "CT"), sample(b"2", "x", "CT"), sample(b"3", "y", "CT")]
    rows += [sample(b"4", "z", "MR"), sample(b"5", "w", "MR", language="zh")]
    rows += [sample(b"6", "v", "MR", subset="instruct")]
    region = sample(b"7", "u", "MR")
    region["conversations"][0]["content"] += "<box>[[0.1, 0.1, 0.2, 0.2]]</box>"
    rows += [region]
    pairs = retrieval.captioned(rows, 2, seed=0)
    assert {said for _, said in pairs} & {"x", "y"} and (b"4", "z") in pairs and len(pairs) == 2
    assert len(retrieval.captioned(rows, 9, seed=0)) == 3
    assert retrieval.captioned([], 9, seed=0) == []


def test_a_model_that_memorised_the_pairs_finds_them(parts):
    model, processor = parts
    before = retrieval.retrieval(model, processor, PAIRS)
    assert before["chance"] == 0.25 and 0 <= before["text to image"] <= 1
    pixels = chat.pixel_values([image for image, _ in PAIRS], model.config.vision_config)
    rows = [
        chat.encode(
            [
                {"role": "user", "content": retrieval.PROMPT},
                {"role": "assistant", "content": said},
            ],
            processor.tokenizer,
            model.config.tokens_per_image,
        )
        for _, said in PAIRS
    ]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        for row, shown in zip(rows, pixels, strict=True):
            ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
            model(input_ids=ids, pixel_values=shown[None], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = retrieval.retrieval(model, processor, PAIRS)
    assert after["text to image"] == after["image to text"] == 1.0


def test_the_likelihood_is_minus_the_summed_loss(parts):
    model, processor = parts
    pixels = chat.pixel_values([PAIRS[0][0]], model.config.vision_config)
    (score,) = retrieval._log_likelihoods(model, processor, pixels, "A nodule.")
    turns = [{"role": "user", "content": retrieval.PROMPT}]
    turns += [{"role": "assistant", "content": "A nodule."}]
    row = chat.encode(turns, processor.tokenizer, model.config.tokens_per_image)
    ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
    with torch.no_grad():
        output = model(input_ids=ids, pixel_values=pixels, labels=labels, num_items_in_batch=1)
    torch.testing.assert_close(-score, output.loss)


def test_one_pair_is_no_retrieval(parts):
    with pytest.raises(ValueError, match="at least two pairs, not 1"):
        retrieval.retrieval(*parts, PAIRS[:1])
