"""Pixel shuffle, tiles and slices: off they change nothing, on they lose and reorder nothing."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_run
import torch
from tiny_model import picture, talk, tiny_model, tiny_profile
from torch.nn import functional as F
from transformers import AutoProcessor

from gmai_lib import config, lens
from gmai_lib.dataset.images import to_png
from gmai_lib.evaluation import askers, run
from gmai_lib.evaluation.items import Item
from gmai_lib.model import chat, gmai_vl, views, weights
from gmai_lib.training.loader import PairLoader, prepare, to_device


def shuffling(tokenizer):
    profile = tiny_profile()
    return tiny_model(
        tokenizer, profile=replace(profile, vision=replace(profile.vision, pixel_shuffle=2))
    )


def test_all_three_are_off_in_every_profile(tokenizer):
    for name in ("mini", "single_gpu", "paper"):
        assert config.load(name).vision.pixel_shuffle == 1
    joined = tiny_model(tokenizer).config
    assert (joined.pixel_shuffle, joined.max_tiles, joined.number_slices) == (1, 1, False)


def test_join_patches_is_pixel_unshuffle():
    features = torch.randn((2, 36, 5))
    grid = features.transpose(1, 2).unflatten(2, (6, 6))  # (N, C, rows, columns)
    expected = F.pixel_unshuffle(grid, 3).unflatten(1, (5, 9)).transpose(1, 2)
    joined = gmai_vl.join_patches(features, 3)
    assert joined.shape == (2, 4, 45)
    assert torch.equal(joined, expected.flatten(1, 2).flatten(2).transpose(1, 2))
    assert torch.equal(gmai_vl.join_patches(features, 1), features)


def test_pixel_shuffle_gives_a_quarter_of_the_tokens_and_can_read_every_patch(tokenizer):
    plain, joined = tiny_model(tokenizer), shuffling(tokenizer)
    assert (plain.config.tokens_per_image, joined.config.tokens_per_image) == (16, 4)
    joined.vision_tower.load_state_dict(plain.vision_tower.state_dict())
    pixels = chat.pixel_values([picture(0), picture(1)], plain.config.vision_config)
    with torch.no_grad():
        every = plain.image_features(pixels).unflatten(1, (4, 4))  # (N, rows, columns, D)
        for row in range(2):
            for column in range(2):  # a projector that looks at one of the four patches only
                first = plain.multi_modal_projector.linear_1
                weight = torch.zeros_like(joined.multi_modal_projector.linear_1.weight)
                start = (2 * row + column) * first.in_features
                weight[:, start : start + first.in_features] = first.weight
                state = plain.multi_modal_projector.state_dict() | {"linear_1.weight": weight}
                joined.multi_modal_projector.load_state_dict(state)
                expected = every[:, row::2, column::2].flatten(1, 2)
                torch.testing.assert_close(
                    joined.image_features(pixels), expected, atol=1e-5, rtol=1e-5
                )


def test_a_model_with_pixel_shuffle_saves_loads_and_answers(tokenizer, tmp_path):
    model = shuffling(tokenizer)
    processor = chat.build_processor(tokenizer, model.config.vision_config, pixel_shuffle=2)
    path = weights.save_checkpoint(model, processor, tmp_path / "checkpoint")
    loaded, _ = weights.load_checkpoint(path)
    answers = [lens.reply(m, processor, [picture(0)], "Which organ?", 6) for m in (model, loaded)]
    assert answers[0] == answers[1]
    prompt = AutoProcessor.from_pretrained(path)(text="<image>", images=[picture(0)])
    assert prompt["input_ids"][0].count(model.config.image_token_id) == 4
    assert lens.answer_attention(model, processor, picture(0), "Which?").shape == (2, 2)
    assert lens.occlusion(model, processor, picture(0), "Which?", "liver").shape == (2, 2)
    with pytest.raises(ValueError, match=r"no pixel shuffle \(2 here\)"):
        weights.export_llava(model, processor, tmp_path / "llava")
    plain = chat.build_processor(tokenizer, model.config.vision_config)
    with pytest.raises(ValueError, match="patch size is 4, expected 8"):
        weights.load_checkpoint(weights.save_checkpoint(model, plain, tmp_path / "other"))


def test_a_pixel_shuffle_that_does_not_divide_is_refused(tokenizer):
    profile = tiny_profile()
    with pytest.raises(ValueError, match=r"patch_size 4 x pixel_shuffle 3 does not divide 16"):
        replace(profile.vision, pixel_shuffle=3)
    joined = tiny_model(tokenizer).config
    joined.pixel_shuffle = 3
    with pytest.raises(ValueError, match="pixel_shuffle 3 does not divide 4 patches"):
        _ = joined.tokens_per_image


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (16, 16, (1, 1)),  # no larger than the tower
        (10, 12, (1, 1)),
        (64, 64, (2, 2)),  # finer of equally square ones, at most 6
        (96, 64, (2, 3)),
        (64, 96, (3, 2)),
        (600, 100, (1, 6)),
        (100, 900, (6, 1)),
    ],
)
def test_the_grid_follows_the_shape_of_the_image(width, height, grid):
    assert views.tile_grid(width, height, 16, 6) == grid


@pytest.mark.parametrize("shape", [(64, 96), (97, 65), (41, 300)], ids=str)
def test_tiles_put_together_are_the_image_and_the_first_view_is_the_whole(shape):
    image = picture(0, *shape)
    pictures, turns, frames = views.with_tiles(
        [image], talk("Look: <image>\nWhich?"), size=16, max_tiles=6
    )
    assert pictures[0] is image and frames[0] == views.WHOLE
    rows, columns = views.tile_grid(shape[1], shape[0], 16, 6)
    assert len(pictures) == len(frames) == 1 + rows * columns > 1
    tiles = pictures[1:]
    bands = [np.concatenate(tiles[r * columns : (r + 1) * columns], axis=1) for r in range(rows)]
    assert np.array_equal(np.concatenate(bands), image), "every pixel once, in its place"
    assert turns == talk(f"Look: {'<image>' * len(pictures)}\nWhich?")


def test_small_images_and_one_tile_change_nothing():
    turns = talk("<image>\nWhich? <image>", "this", "And <image>?")
    images = [picture(n) for n in range(3)]
    for size, most in ((64, 6), (8, 1)):
        pictures, same, frames = views.with_tiles(images, turns, size=size, max_tiles=most)
        assert all(a is b for a, b in zip(pictures, images, strict=True)) and same == turns
        assert frames == [views.WHOLE] * 3


def test_tiles_of_several_images_stay_with_their_image():
    images = [picture(0, 64, 64), picture(1, 12, 12), picture(2, 32, 96)]
    turns = talk("<image> and <image>", "yes", "<image>?")
    pictures, tiled, _ = views.with_tiles(images, turns, size=16, max_tiles=4)
    assert [turn["content"].count("<image>") for turn in tiled] == [5 + 1, 0, 4]
    assert pictures[0] is images[0] and pictures[5] is images[1] and pictures[6] is images[2]
    with pytest.raises(ValueError, match="2 images but 3 <image>"):
        views.with_tiles(images[:2], turns, size=16, max_tiles=4)


def test_a_model_with_tiles_answers_as_to_the_same_views_one_by_one(tokenizer):
    model = tiny_model(tokenizer)
    processor = chat.build_processor(tokenizer, model.config.vision_config)
    image, question = picture(0, 64, 64), "<image>\nWhich organ?"
    plain = lens.reply(model, processor, [image], talk(question), 8)
    pictures, turns, _ = views.with_tiles([image], talk(question), size=16, max_tiles=4)
    expected = lens.reply(model, processor, pictures, turns, 8)
    processor = chat.build_processor(tokenizer, model.config.vision_config, max_tiles=4)
    assert lens.reply(model, processor, [image], talk(question), 8) == expected != plain
    assert lens.answer_attention(model, processor, image, "Which?").shape == (4, 4)


def test_slices_are_numbered_in_their_order_and_one_image_is_not():
    turns = talk("<image>\n<image>\n<image>\nWhich slice?", "slice 2", "<image>?")
    assert [turn["content"] for turn in views.number_slices(turns)] == [
        "slice 1 of 3: <image>\nslice 2 of 3: <image>\nslice 3 of 3: <image>\nWhich slice?",
        "slice 2",
        "<image>?",
    ]


def test_the_features_of_the_nth_slice_stand_after_its_number(tokenizer):
    model = tiny_model(tokenizer)
    turns = views.number_slices(talk("<image><image><image>?"))
    ids = torch.tensor(chat.encode_prompt(turns, tokenizer, model.config.tokens_per_image))
    pixels = chat.pixel_values([picture(n) for n in range(3)], model.config.vision_config)
    with torch.no_grad():
        features = model.image_features(pixels)
        embeds = model.get_input_embeddings()(ids[None])
        spliced = gmai_vl.splice_image_features(
            embeds, features, ids[None], model.config.image_token_id
        )[0]
    starts = (ids == model.config.image_token_id).nonzero().squeeze(1)[::16].tolist()
    for number, start in enumerate(starts):
        said = tokenizer.decode(ids[:start])
        assert said.endswith(f"slice {number + 1} of 3: ")
        assert torch.equal(spliced[start : start + 16], features[number])


@torch.no_grad()
def test_a_model_that_numbers_slices_sees_their_order(tokenizer):
    model = tiny_model(tokenizer)
    processor = chat.build_processor(tokenizer, model.config.vision_config)
    images = [picture(n) for n in range(3)]
    turns = talk("<image><image><image>\nWhich?")

    def logits(images, turns):
        return model(**lens._inputs(model, processor, images, turns)).logits[0, -1]

    expected, unnumbered = logits(images, views.number_slices(turns)), logits(images, turns)
    processor = chat.build_processor(tokenizer, model.config.vision_config, number_slices=True)
    assert torch.equal(logits(images, turns), expected)
    for other in (unnumbered, logits(images[::-1], turns)):
        assert (other - expected).abs().max() > 0.01


def several_views(tokenizer):
    """A model that numbers slices and cuts what is larger than its 16 pixels into up to 4 tiles."""
    vision = replace(tiny_profile().vision, max_tiles=4, number_slices=True)
    model = tiny_model(tokenizer, profile=replace(tiny_profile(), vision=vision))
    more = {"max_tiles": 4, "number_slices": True}
    return model, chat.build_processor(tokenizer, model.config.vision_config, **more)


def png(number, height, width):
    return to_png(picture(number, height, width))


def test_training_gets_the_views_that_the_chat_shows(tokenizer, tmp_path):
    """Tiles and numbered slices in the store, packed, and the loss of the views one by one."""
    model, processor = several_views(tokenizer)
    large, small = png(0, 32, 48), png(1, 16, 12)
    turns = talk("<image><image>\nWhich organ?", "liver", "And <image>?", "lung")
    made = [
        replace(sample, images=images, conversations=tuple(turns))
        for sample, images in zip(
            tiny_run.samples(2), [(large, small, large), (small, small, small)], strict=True
        )
    ]
    tiny_run.write_shards(tmp_path / "pairs", made, shards=1)
    store = prepare(tmp_path / "pairs", tmp_path / "cache", split="train", processor=processor)
    config = model.config
    assert store.pixels.shape[0] == 2 + 2, "two images and two tiles of the large one, each once"
    for index, sample in enumerate(made):
        images, seen = views.expand(sample.images, sample.conversations, processor)
        assert len(images) == (3 + 2 * 2, 3)[index]
        expected = chat.encode(seen, tokenizer, config.tokens_per_image)
        stored = store.sample(index)
        assert stored["input_ids"].tolist() == expected["input_ids"]
        assert stored["labels"].tolist() == expected["labels"]
        pixels = torch.stack([chat.square_image(image, 16) for image in images])
        assert np.array_equal(stored["pixels"], pixels.numpy())
        assert "slice 2 of 2: <image>" in "".join(turn["content"] for turn in seen)
    stage = replace(tiny_run.tiny_profile().stages[0], max_length=512, augment=False)
    step = next(PairLoader(store, stage, seed=0))
    inputs = to_device(step.micro_batches[0], "cpu", torch.float32)
    assert (inputs["input_ids"] == config.image_token_id).sum() == (
        len(inputs["pixel_values"]) * config.tokens_per_image
    )
    plain = chat.build_processor(tokenizer, config.vision_config)
    other = prepare(tmp_path / "pairs", tmp_path / "cache", split="train", processor=plain)
    assert len(other.pixels) == 2, "another store, though in the same cache"


def test_an_evaluated_model_gets_the_views_that_the_chat_shows(tokenizer, tmp_path):
    model, processor = several_views(tokenizer)
    images = (png(0, 32, 48), png(1, 16, 12))
    about = {"benchmark": "b", "kind": "yes/no", "language": "en", "options": ("yes", "no")}
    about |= {"group": "g", "modality": "CT", "source": "s"}
    asked = Item(id="a", images=images, question="Which organ?", answer="yes", **about)
    plain = chat.build_processor(tokenizer, model.config.vision_config)
    said = {}
    for name, used in (("views", processor), ("plain", plain)):
        (row,) = run.evaluate(model, used, [asked], out_jsonl=tmp_path / f"{name}.jsonl")
        said[name] = row["response"]
        limit = askers.MAX_NEW_TOKENS["yes/no"]
        expected = lens.reply(model, used, images, asked.question, limit)
        assert row["response"] == expected.strip()
    assert said["views"] != said["plain"]


def test_a_processor_that_shows_other_views_is_refused(tokenizer, tmp_path):
    model, processor = several_views(tokenizer)
    path = weights.save_checkpoint(model, processor, tmp_path / "views")
    loaded, again = weights.load_checkpoint(path)
    assert (loaded.config.max_tiles, again.image_processor.max_tiles) == (4, 4)
    assert again.image_processor.number_slices is True
    plain = chat.build_processor(tokenizer, model.config.vision_config)
    with pytest.raises(ValueError, match="tiles is 1, expected 4; numbered slices is False"):
        weights.load_checkpoint(weights.save_checkpoint(model, plain, tmp_path / "other"))
