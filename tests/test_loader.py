"""training/loader: every sample once an epoch, the same order on any number of ranks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import samples, tiny_profile, write_initial, write_shards

from gmai_lib.model import chat
from gmai_lib.training import loader

PROFILE = tiny_profile()
INSTRUCT = PROFILE.stage("instruction_tuning")  # all subsets


@pytest.fixture(scope="module")
def made():
    return samples(60)


@pytest.fixture(scope="module")
def processor(tmp_path_factory, made):
    return write_initial(tmp_path_factory.mktemp("initial"), PROFILE, made)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, made):
    return write_shards(tmp_path_factory.mktemp("pairs"), made)


@pytest.fixture(scope="module")
def store(tmp_path_factory, pairs, processor):
    cache = tmp_path_factory.mktemp("cache")
    return loader.prepare(pairs, cache, split="train", processor=processor)


def _tokens(step):
    """The packs of a step, as comparable tuples of ids without padding."""
    return sorted(
        tuple(ids[sequence > 0].tolist())
        for batch in step.micro_batches
        for ids, sequence in zip(batch["input_ids"], batch["sequence_ids"], strict=True)
    )


def test_store_holds_what_chat_makes_of_each_sample(store, made, processor):
    in_order = made[0::2] + made[1::2]  # as write_shards deals them to two shards
    for index, sample in enumerate(in_order):
        expected = chat.encode(sample.conversations, processor.tokenizer, 4)
        stored = store.sample(index)
        assert stored["input_ids"].tolist() == expected["input_ids"]
        assert stored["labels"].tolist() == expected["labels"]
        assert store.label_tokens[index] == sum(np.array(expected["labels"]) != -100)
        for image, pixels in zip(sample.images, stored["pixels"], strict=True):
            assert torch.equal(torch.from_numpy(pixels), chat.square_image(image, 16))


@pytest.mark.parametrize(
    ("weighting", "power"), [("token", 1.0), ("square_root", 0.5), ("answer", 0.0)]
)
def test_an_answer_weighs_its_tokens_to_a_power(store, made, weighting, power):
    """With "answer" a long one weighs as much as a short one; a sample with three weighs three."""
    whole = store.label_weight(weighting)
    for index in range(len(store.lengths)):
        sample = store.sample(index, weighting)
        labels, weights = sample["labels"], sample["label_weights"]
        assert (weights[labels == -100] == 0).all()
        said = np.split(labels, np.flatnonzero(np.diff(labels != -100)) + 1)
        answers = [len(run) for run in said if run[0] != -100]
        assert weights.sum() == pytest.approx(sum(n**power for n in answers), rel=1e-5)
        assert whole[index] == pytest.approx(weights.sum(), rel=1e-5)
    assert len(made) == len(whole)
    stage = replace(INSTRUCT, loss_weighting=weighting)
    step = next(loader.PairLoader(store, stage, seed=0))
    given = sum(batch["label_weights"].sum().item() for batch in step.micro_batches)
    assert step.label_weight == pytest.approx(given, rel=1e-5)


def test_an_unknown_loss_weighting_is_named():
    with pytest.raises(ValueError, match="loss_weighting 'turn' not in"):
        replace(INSTRUCT, loss_weighting="turn")


def test_store_keeps_a_repeated_image_once_and_is_opened_again(tmp_path, processor, made):
    pairs = write_shards(tmp_path / "pairs", [made[0], made[0], made[1]])
    store = loader.prepare(pairs, tmp_path / "cache", split="train", processor=processor)
    assert len(store.pixels) == 2 and store.images.tolist() == [0, 1, 0]
    before = sorted(tmp_path.glob("cache/**/*"))
    loader.prepare(pairs, tmp_path / "cache", split="train", processor=processor)
    assert sorted(tmp_path.glob("cache/**/*")) == before
    write_shards(tmp_path / "pairs", [made[2]])
    changed = loader.prepare(pairs, tmp_path / "cache", split="train", processor=processor)
    assert len(changed.lengths) == 1  # other shards, other store


def test_epoch_contains_every_kept_sample_exactly_once(store):
    data = loader.PairLoader(store, INSTRUCT, seed=0)
    for epoch in (0, 1):
        assert sorted(np.concatenate(data.packs(epoch))) == data.kept.tolist()
    assert [p.tolist() for p in data.packs(0)] != [p.tolist() for p in data.packs(1)]
    assert data.counts == {"seen": 60, "other subset": 0, "too long": 0, "kept": 60}


def test_counts_of_dropped_samples_add_up(store):
    stage = replace(PROFILE.stage("shallow_alignment"), max_length=50)
    data = loader.PairLoader(store, stage, seed=0, languages=("en",), sources=("tiny_b",))
    counts = dict(data.counts)
    assert min(counts.values()) > 0  # every reason occurs
    assert counts.pop("seen") == sum(counts.values()) == 60
    wanted = {"subset": {"instruct"}, "language": {"en"}, "source": {"tiny_b"}}
    for column, values in wanted.items():
        assert set(store.categories[column][data.kept]) == values
    assert store.lengths[data.kept].max() <= 50


def test_nothing_left_raises_with_the_counts(store):
    with pytest.raises(ValueError, match=r"no sample to train on: .*'other language': 60"):
        loader.PairLoader(store, INSTRUCT, seed=0, languages=("fr",))


def test_ranks_share_one_order(store):
    alone = loader.PairLoader(store, INSTRUCT, seed=3)
    ranks = [loader.PairLoader(store, INSTRUCT, seed=3, rank=r, world_size=2) for r in (0, 1)]
    for _ in range(12):  # beyond the first epoch
        whole, *parts = next(alone), *(next(rank) for rank in ranks)
        assert whole.epoch == parts[0].epoch == parts[1].epoch
        assert _tokens(whole) == sorted(_tokens(parts[0]) + _tokens(parts[1]))
        assert [b["noise_seed"] for b in whole.micro_batches] == [
            part.micro_batches[0]["noise_seed"] for part in parts
        ]
        labels = sum((b["labels"] != -100).sum().item() for b in whole.micro_batches)
        assert whole.label_tokens == labels == parts[0].label_tokens
        assert whole.tokens == sum(len(pack) for pack in _tokens(whole))
        assert whole.images == sum(len(b["pixels"]) for b in whole.micro_batches)
    assert whole.epoch > 0


def test_resumed_order_equals_uninterrupted_order(store):
    reference = loader.PairLoader(store, INSTRUCT, seed=1)
    expected = [_tokens(next(reference)) for _ in range(14)]
    data = loader.PairLoader(store, INSTRUCT, seed=1)
    for step in range(14):
        if step in (5, 11):  # twice, the second time in a later epoch
            state = data.state_dict()
            data = loader.PairLoader(store, INSTRUCT, seed=1)
            data.load_state_dict(state)
        assert _tokens(next(data)) == expected[step]


def test_resume_with_another_order_raises(store):
    state = loader.PairLoader(store, INSTRUCT, seed=1).state_dict()
    with pytest.raises(ValueError, match="cannot resume: data order"):
        loader.PairLoader(store, INSTRUCT, seed=2).load_state_dict(state)


def test_device_batch_without_noise_is_what_inference_sees(store, made, processor):
    batch = next(loader.PairLoader(store, INSTRUCT, seed=0)).micro_batches[0]
    inputs = loader.to_device(batch, "cpu", torch.float32, noise=False)
    by_bytes = {chat.square_image(s.images[0], 16).numpy().tobytes(): s for s in made if s.images}
    images = [by_bytes[pixels.numpy().tobytes()].images[0] for pixels in batch["pixels"]]
    vision = type("Vision", (), {"image_size": 16})
    assert torch.equal(inputs["pixel_values"], chat.pixel_values(images, vision))
    length = batch["input_ids"].shape[1]
    assert inputs["attention_mask"].shape == (2, 1, length, length)
    assert inputs["dummy_image"] is False


def test_text_only_batch_asks_for_the_dummy_image(store):
    stage = replace(INSTRUCT, subsets=("text_single",))
    batch = next(loader.PairLoader(store, stage, seed=0)).micro_batches[0]
    inputs = loader.to_device(batch, "cpu", torch.bfloat16)
    assert inputs["dummy_image"] is True and inputs["pixel_values"].shape == (0, 3, 16, 16)


def test_noise_is_small_grey_and_set_by_its_seed():
    pixels = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    first, again, other = (loader.vary(pixels, seed) for seed in ((0, 1), (0, 1), (0, 2)))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first[:, 0], first[:, 1])  # a grey image stays grey
    assert 0 < (first - 100).abs().max() < 255 * (loader.BRIGHTNESS + 5 * loader.NOISE)
    assert first[0].mean() != first[1].mean()  # one draw per image


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ()}, "sample broken has 0 images but its conversation has 1 <image>"),
        ({"images": (b"not a picture",)}, "image of sample broken cannot be read"),
        ({"conversations": ({"role": "user", "content": "hello"},)}, "sample broken: a training"),
    ],
)
def test_broken_sample_is_named(tmp_path, processor, made, change, message):
    pairs = write_shards(tmp_path / "pairs", [made[1], replace(made[0], id="broken", **change)])
    with pytest.raises(ValueError, match=message):
        loader.prepare(pairs, tmp_path / "cache", split="train", processor=processor)
    assert not [path for path in (tmp_path / "cache").glob("train-*")]


def test_missing_split_raises(tmp_path, pairs, processor):
    with pytest.raises(FileNotFoundError, match=r"no test-\*.parquet"):
        loader.prepare(pairs, tmp_path, split="test", processor=processor)
