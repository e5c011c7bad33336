"""training/loader: every sample once an epoch, the same order on any number of ranks."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import samples, tiny_profile, write_initial, write_shards

from gmai_lib import config
from gmai_lib.model import chat
from gmai_lib.training import loader, packing

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
    assert data.counts == {
        "seen": 60,
        "other subset": 0,
        "other language": 0,
        "too long": 0,
        "kept": 60,
    }


def test_counts_of_dropped_samples_add_up(store):
    stage = replace(PROFILE.stage("shallow_alignment"), max_length=50)
    stage = replace(stage, languages=("en",))
    data = loader.PairLoader(store, stage, seed=0)
    counts = dict(data.counts)
    assert min(counts.values()) > 0  # every reason occurs
    assert counts.pop("seen") == sum(counts.values()) == 60
    wanted = {"subset": {"instruct"}, "language": {"en"}}
    for column, values in wanted.items():
        assert set(store.categories[column][data.kept]) == values
    assert store.lengths[data.kept].max() <= 50


def _counted(data, epoch) -> dict:
    """Samples per (source, subset) that are in the packs of an epoch."""
    members = np.concatenate(data.packs(epoch))
    names = [data.store.categories[name][members] for name in ("source", "subset")]
    return Counter(zip(*names, strict=True))


def test_mixture_draws_exactly_its_ratios_in_every_epoch(store):
    """30 samples of each source; 24 of each are instruct, 6 text_single. Keys as in table 10."""
    mixture = {"Tiny-A": 0.25, "tiny b/instruct": 0.5, "*/text_single": 1 / 3}
    stage = replace(INSTRUCT, mixture=mixture)
    data = loader.PairLoader(store, stage, seed=0)
    share = {("tiny_a", "instruct"): 24, ("tiny_a", "text_single"): 6}
    total = Counter(zip(store.categories["source"], store.categories["subset"], strict=True))
    assert total == share | {("tiny_b", "instruct"): 24, ("tiny_b", "text_single"): 6}
    seen = Counter()
    for epoch in range(12):
        counted = _counted(data, epoch)
        of_a = counted["tiny_a", "instruct"] + counted["tiny_a", "text_single"]
        assert of_a in (7, 8)  # 7.5 on average
        assert counted["tiny_b", "instruct"] == 12 and counted["tiny_b", "text_single"] == 2
        rows = data.drawn(epoch)
        assert [row["drawn"] for row in rows] == [of_a, 12, 2]
        assert [row["available"] for row in rows] == [30, 24, 6]
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        members = np.concatenate(data.packs(epoch)).tolist()
        assert len(members) == len(set(members)), "a sample twice in one epoch"
        seen.update(members)
    # 90 of 12 x 7.5, 144 of 12 x 12, 24 of 12 x 2: every sample equally often.
    source = store.categories["source"]
    assert {seen[i] for i in np.flatnonzero(source == "tiny_a")} == {3}
    assert {seen[i] for i in data.rows[1]["members"]} == {6}
    assert {seen[i] for i in data.rows[2]["members"]} == {4}


def test_mixture_is_set_by_the_seed_and_not_by_the_ranks(store):
    stage = replace(INSTRUCT, mixture={"tiny_a": 0.3, "tiny_b": 0.6})
    first, again, other = (loader.PairLoader(store, stage, seed=s) for s in (1, 1, 2))
    rank = loader.PairLoader(store, stage, seed=1, rank=1, world_size=2)
    drawn = [[sorted(np.concatenate(d.packs(e))) for e in range(3)] for d in (first, again, rank)]
    assert (
        drawn[0] == drawn[1] == drawn[2] != [sorted(np.concatenate(other.packs(e))) for e in (0,)]
    )
    assert drawn[0][0] != drawn[0][1]
    with pytest.raises(ValueError, match="cannot resume: data order"):
        loader.PairLoader(store, INSTRUCT, seed=1).load_state_dict(first.state_dict())


def test_samples_outside_the_mixture_are_counted(store):
    stage = replace(INSTRUCT, mixture={"tiny_a/instruct": 1.0, "tiny_b/instruct": 0.0})
    counts = loader.PairLoader(store, stage, seed=0).counts
    assert counts["not in the mixture"] == 12 and counts["ratio zero"] == counts["kept"] == 24


def test_table_10_as_published_is_refused_with_the_absent_sources(store):
    mixture = config.paper_mixture("instruction_tuning")
    stage = replace(INSTRUCT, mixture=mixture)
    with pytest.raises(
        ValueError, match=r"45 of 47 sources of the mixture have no sample .*ALLaVA"
    ):
        loader.PairLoader(store, stage, seed=0)
    data = loader.PairLoader(store, replace(stage, missing_sources="reweigh"), seed=0)
    rows = {row["source"]: row for row in data.drawn(0)}
    assert (rows["*/instruct"]["drawn"], rows["*/text_single"]["drawn"]) == (48, 12)
    assert rows["*/instruct"]["share"] == 0.8 and rows["ALLaVA"]["drawn"] == 0


def test_two_rows_for_one_source_are_refused(store):
    stage = replace(INSTRUCT, mixture={"tiny_a": 1.0, "Tiny A": 0.5})
    with pytest.raises(ValueError, match="two rows of the mixture name the same source"):
        loader.PairLoader(store, stage, seed=0)


def test_captions_alone_can_be_trained_on(store):
    stage = replace(PROFILE.stage("shallow_alignment"), subsets=("text_single",))
    data = loader.PairLoader(store, stage, seed=0)
    assert set(store.categories["subset"][data.kept]) == {"text_single"}


def test_long_samples_are_cut_after_an_answer_or_dropped_and_counted(store, made):
    limit = 45  # tokens; conversations have one to three answers
    long = int((store.lengths > limit).sum())
    dropping = loader.PairLoader(store, replace(INSTRUCT, max_length=limit), seed=0)
    assert dropping.counts["too long"] == long > 0 and dropping.cut == 0
    cutting = loader.PairLoader(store, replace(INSTRUCT, max_length=limit, over_long="cut"), seed=0)
    assert cutting.cut > 0 and cutting.cut + cutting.counts["too long"] == long
    for index in cutting.kept:
        whole, sample = store.sample(index), cutting._sample(index)
        length = len(sample["input_ids"])
        assert length <= limit
        if length < len(whole["input_ids"]):
            labels = whole["labels"]
            assert labels[length - 1] != -100 and labels[length] == -100  # where an answer ends
            later = labels[length : limit + 1]
            assert not ((later[:-1] != -100) & (later[1:] == -100)).any(), "a later answer fits"
        assert cutting.images[index] == (sample["input_ids"] == store.image_token_id).sum() // 4
        assert len(sample["pixels"]) == cutting.images[index]
    step = next(cutting)
    given = sum((b["labels"] != -100).sum().item() for b in step.micro_batches)
    assert step.label_tokens == given
    weights = sum(b["label_weights"].sum().item() for b in step.micro_batches)
    assert step.label_weight == pytest.approx(weights, rel=1e-5)
    assert step.padded_tokens == sum(b["input_ids"].numel() for b in step.micro_batches)


def test_images_after_a_cut_leave_with_their_turn(tmp_path, processor, made):
    turns = (*made[0].conversations[:2], {"role": "user", "content": "<image>\nAnd this one?"})
    turns += ({"role": "assistant", "content": "lower left"},)
    both = replace(made[0], images=(made[0].images[0], made[1].images[0]), conversations=turns)
    pairs = write_shards(tmp_path / "pairs", [both], shards=1)
    store = loader.prepare(pairs, tmp_path / "cache", split="train", processor=processor)
    stage = replace(INSTRUCT, max_length=int(store.lengths[0]) - 1, over_long="cut")
    data = loader.PairLoader(store, stage, seed=0)
    assert data.cut == 1 and store.image_starts.tolist() == [0, 2]
    assert len(data._sample(0)["pixels"]) == 1 == next(data).images // stage.global_batch_size


def test_source_that_does_not_fit_is_named(store):
    shortest = int(store.lengths[store.categories["source"] == "tiny_a"].min())
    stage = replace(INSTRUCT, max_length=shortest - 1)
    with pytest.raises(
        ValueError, match=rf"of source tiny_. fits {shortest - 1} tokens \(the short"
    ):
        loader.PairLoader(store, stage, seed=0)


def test_more_ranks_than_samples_are_refused(store):
    stage = replace(INSTRUCT, global_batch_size=128, micro_batch_size=2)
    with pytest.raises(ValueError, match=r"fewer samples than ranks \(64\).*'kept': 60"):
        loader.PairLoader(store, stage, seed=0, rank=0, world_size=64)


def test_store_knows_the_ids_of_its_samples(store, made):
    ids = [sample.id for sample in made[0::2] + made[1::2]]
    assert [store.sample_id(i) for i in range(60)] == ids


def test_no_token_is_lost_or_doubled(store):
    """Property: over an epoch, the packs hold every token, label and image of every sample once."""
    for seed in range(5):
        stage = replace(INSTRUCT, max_length=80 + 16 * seed, max_images=2, global_batch_size=2)
        data = loader.PairLoader(store, stage, seed=seed)
        wanted = Counter(tuple(store.sample(i)["input_ids"].tolist()) for i in data.kept)
        found, images = Counter(), 0
        groups = data.packs(0)
        for start in range(0, len(groups), 2):
            rows = [[data._sample(i) for i in group] for group in groups[start : start + 2]]
            batch = packing.collate(rows, pad_token_id=store.pad_token_id)
            images += len(batch["pixels"])
            for ids, sequence in zip(batch["input_ids"], batch["sequence_ids"], strict=True):
                for number in range(1, int(sequence.max()) + 1):
                    found[tuple(ids[sequence == number].tolist())] += 1
        assert found == wanted
        assert images == data.images[data.kept].sum()
        assert max(data.images[group].sum() for group in groups) <= 2


def test_nothing_left_raises_with_the_counts(store):
    with pytest.raises(ValueError, match=r"no sample to train on: .*'other language': 60"):
        loader.PairLoader(store, replace(INSTRUCT, languages=("fr",)), seed=0)


def test_ranks_share_one_order(store):
    alone = loader.PairLoader(store, INSTRUCT, seed=3)
    ranks = [loader.PairLoader(store, INSTRUCT, seed=3, rank=r, world_size=2) for r in (0, 1)]
    for _ in range(12):  # beyond the first epoch
        whole, *parts = next(alone), *(next(rank) for rank in ranks)
        assert whole.epoch == parts[0].epoch == parts[1].epoch
        assert _tokens(whole) == sorted(_tokens(parts[0]) + _tokens(parts[1]))
        assert [b["noise_seeds"].tolist() for b in whole.micro_batches] == [
            part.micro_batches[0]["noise_seeds"].tolist() for part in parts
        ]
        labels = sum((b["labels"] != -100).sum().item() for b in whole.micro_batches)
        assert whole.label_tokens == labels == parts[0].label_tokens
        assert whole.tokens == sum(len(pack) for pack in _tokens(whole))
        assert whole.images == sum(len(b["pixels"]) for b in whole.micro_batches)
        cells = sum(b["input_ids"].numel() for b in whole.micro_batches)
        assert whole.padded_tokens == parts[0].padded_tokens == cells
    assert whole.epoch > 0


def test_ranks_are_closer_together_than_in_order(store):
    ranks = [loader.PairLoader(store, INSTRUCT, seed=3, rank=r, world_size=2) for r in (0, 1)]
    steps = [[next(rank) for rank in ranks] for _ in range(10)]
    assert all(one.rank_spread == other.rank_spread for one, other in steps)
    before, after = np.mean([one.rank_spread for one, _ in steps], axis=0)
    assert after < before
    assert next(loader.PairLoader(store, INSTRUCT, seed=3)).rank_spread == (0, 0)


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
    first, again, other = (loader.vary(pixels, seeds) for seeds in ((0, 1), (0, 1), (2, 3)))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first[:, 0], first[:, 1])  # a grey image stays grey
    assert 0 < (first - 100).abs().max() < 255 * (loader.BRIGHTNESS + 5 * loader.NOISE)
    assert first[0].mean() != first[1].mean()  # one draw per image
    assert torch.equal(first[1:], loader.vary(pixels[1:], (1,)))  # whatever lies beside it
    with pytest.raises(ValueError, match="argument"):
        loader.vary(pixels, (0,))


def _varied(step) -> dict[bytes, torch.Tensor]:
    """The pixel values of a step by the bytes of their images (which all differ here)."""
    found = {}
    for batch in step.micro_batches:
        values = loader.to_device(batch, "cpu", torch.float32)["pixel_values"]
        found |= {p.numpy().tobytes(): v for p, v in zip(batch["pixels"], values, strict=True)}
    return found


@pytest.mark.parametrize(("micro", "ranks"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 4)])
def test_noise_of_an_image_is_the_same_in_any_micro_batch_and_on_any_rank(store, micro, ranks):
    whole = replace(INSTRUCT, global_batch_size=8, micro_batch_size=8)
    stage = replace(whole, micro_batch_size=micro)
    reference = loader.PairLoader(store, whole, seed=4)
    parts = [
        loader.PairLoader(store, stage, seed=4, rank=r, world_size=ranks) for r in range(ranks)
    ]
    images = []
    for _ in range(9):  # into the next epoch
        expected, found = _varied(next(reference)), {}
        for part in parts:
            found |= _varied(next(part))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        images.append(expected)
    seen = [(key, value) for step in images for key, value in step.items()]
    again = {key: value for key, value in seen}  # the last time, in the next epoch
    repeated = [torch.equal(value, again[key]) for key, value in seen if value is not again[key]]
    assert repeated and not any(repeated)


def test_order_goes_on_with_another_number_of_ranks_and_another_micro_batch(store):
    stage = replace(INSTRUCT, global_batch_size=8)
    alone, data = (loader.PairLoader(store, stage, seed=1) for _ in range(2))
    for ranks, micro in ((1, 2), (2, 4), (4, 1), (1, 8)):
        changed = replace(stage, micro_batch_size=micro)
        parts = [
            loader.PairLoader(store, changed, seed=1, rank=r, world_size=ranks)
            for r in range(ranks)
        ]
        for part in parts:
            part.load_state_dict(data.state_dict())
        for _ in range(3):
            tokens = [row for part in parts for row in _tokens(next(part))]
            assert sorted(tokens) == _tokens(next(alone))
        data = parts[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ()}, "sample broken has 0 images but its conversation has 1 <image>"),
        ({"images": (b"not a picture",)}, "image of sample broken cannot be read"),
        (
            {"conversations": ({"role": "user", "content": "<image>hello"},)},
            "sample broken: a training",
        ),
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
