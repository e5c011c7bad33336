"""Curation: steps, license gate, copies, splits by group, storage."""

import dataclasses
import random
import time
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import tiny_datasets as tiny

from gmai_lib.dataset import curate, images, readers, recipes
from gmai_lib.schema import NO_FINDING, Box, Ledger, QuestionAnswer, Record

FRACTIONS = {"validation_fraction": 0.1, "test_fraction": 0.2}


def _png(seed: int = 0, size: int = 40) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    return images.to_png(noise)


def _record(number: int = 0, **changes) -> Record:
    made = Record(
        id=f"2d#cls#CT#a#{number}",
        source="a",
        path=str(number),
        dimension="2d",
        modality="CT",
        department="unstated",
        task="disease diagnosis",
        license="MIT",
        access="open",
        image=b"",
        labels=("nodule",),
    )
    return dataclasses.replace(made, **changes)


def _text(number: int, **changes) -> Record:
    more = {"image": None, "labels": (), "modality": "text", "task": "text QA"} | changes
    return _record(number, **more)


# ---- steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image, reason",
    [
        (_png(), None),
        (_png()[:200], "image cannot be decoded"),
        (_png(size=31), "image side is below 32 pixels"),
        (images.to_png(np.full((40, 40), 9, np.uint8)), "image is constant"),
    ],
)
def test_quality(image, reason):
    assert curate.quality(_record(image=image)) == reason


def test_quality_of_text():
    asked = QuestionAnswer(question="What?", answer="That.")
    assert curate.quality(_text(0, qa=(asked,))) is None
    assert curate.quality(_text(0)) == "text item without text"


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({}, None),
        ({"labels": ()}, "no label"),
        ({"labels": (), "task": "attribute recognition"}, None),
        ({"labels": (), "report": "Clear."}, None),
        ({"absent": ("nodule",)}, "a label is both present and absent"),
        ({"labels": (NO_FINDING, "nodule")}, "a finding beside no finding"),
        (
            {"labels": (NO_FINDING,), "boxes": (Box(label="x", x1=0, y1=0, x2=1, y2=1),)},
            "a finding beside no finding",
        ),
    ],
)
def test_missing_and_contradicting_labels(changes, reason):
    assert curate.clear_labels(_record(**changes)) == reason


@pytest.mark.parametrize(
    "license, access, reason",
    [
        ("MIT", "open", None),
        ("CC-BY-4.0", "open", None),
        ("CC-BY-NC-SA", "open", "license CC-BY-NC-SA is non-commercial"),
        ("CC BY-NC 4.0", "open", "license CC BY-NC 4.0 is non-commercial"),
        ("CC-BY-ND-4.0", "open", "license CC-BY-ND-4.0 forbids derivatives"),
        ("unstated", "open", "license is unstated"),
        ("CC-BY", "open", "license CC-BY is not on the SPDX list"),
        ("C-UDA-1.0", "open", "license C-UDA-1.0 restricts its use"),
        ("MIT", "credentialed", "access is credentialed"),
    ],
)
def test_license_gate_opens_only_for_what_a_commercial_build_may_use(license, access, reason):
    record = _record(license=license, access=access)
    assert curate.license_gate(True)(record) == reason
    assert curate.license_gate(False)(record) is None


def test_apply_counts_every_step_and_fills_the_hashes():
    records = [
        _record(0, image=_png(0)),
        _record(1, image=_png(1), license="CC-BY-NC-4.0"),
        _record(2, image=_png(0)),
        _record(3, image=_png(0), labels=("cyst",)),
        _record(4, image=b"junk"),
        _record(5, image=_png(5), labels=()),
        _text(6, report="A report."),
    ]
    ledger = Ledger()
    kept = list(curate.apply(iter(records), ledger, commercial=True))
    assert [r.path for r in kept] == ["0", "6"]
    assert len(kept[0].sha256) == 64 and len(kept[0].phash) == 16
    assert kept[1].sha256 == kept[1].phash == ""
    steps = {step: tiny.totals(ledger, "a", step)["item"] for step in curate.STEPS}
    assert steps == {"quality": (6, 1), "license": (5, 1), "labels": (4, 1), "duplicates": (2, 2)}
    assert tiny.reasons(ledger, "a", "item", "duplicates") == {
        "exact copy": 1,
        "exact copy with other labels": 1,
    }
    assert ledger.examples["a", "quality", "item", "image cannot be decoded"] == records[4].id


def test_apply_starts_every_run_with_an_empty_memory():
    records = [_record(0, image=_png(0))]
    for _ in range(2):
        assert len(list(curate.apply(records, Ledger()))) == 1


def test_apply_takes_own_steps_under_their_names():
    def only_even(record):
        return None if int(record.path) % 2 == 0 else "odd"

    ledger = Ledger()
    records = [_record(i, image=_png(i)) for i in range(4)]
    assert [r.path for r in curate.apply(records, ledger, steps=[only_even])] == ["0", "2"]
    assert tiny.totals(ledger, "a", "only_even")["item"] == (2, 2)


def test_near_duplicates_are_reported_with_their_splits_but_not_within_a_group():
    hashes = {0: "ff00ff00ff00ff00", 1: "ff00ff00ff00ff03", 2: "00ff00ff00ff00ff"}
    records = [_record(i, phash=h, split="train") for i, h in hashes.items()]
    records.append(_record(3, phash=hashes[0], split="test"))
    records += [_record(i, phash="0123456789abcdef", patient="p") for i in (4, 5)]
    pairs = {(p["a"][-1], p["b"][-1]): p for p in curate.near_duplicates(records)}
    assert set(pairs) == {("0", "1"), ("0", "3"), ("1", "3")}
    assert pairs["0", "1"]["distance"] == 2 and not pairs["0", "1"]["crosses_splits"]
    assert pairs["0", "3"]["distance"] == 0 and pairs["0", "3"]["crosses_splits"]
    assert curate.near_duplicates(records, max_distance=1)[0]["distance"] == 0
    assert curate.near_duplicates([]) == []


# ---- splits --------------------------------------------------------------------------------


def _random_records(seed: int) -> list[Record]:
    """Records with shared patients, volumes and copies, some with a split of their source."""
    rng = random.Random(seed)
    made = []
    for i in range(80):
        source = rng.choice("abc")
        changes = {"id": f"2d#cls#CT#{source}#{i}", "source": source}
        changes["patient"] = rng.choice(["", f"p{rng.randrange(15)}"])
        changes["volume"] = rng.choice(["", f"v{rng.randrange(15)}"])
        changes["sha256"] = f"{rng.randrange(200):064x}"
        if source == "b":
            changes["split"] = rng.choice(["train", "train", "test", ""])
        made.append(_record(i, **changes))
    return made


@pytest.mark.parametrize("seed", range(25))
def test_no_group_is_ever_divided(seed):
    records = _random_records(seed)
    split = curate.assign_splits(records, seed=seed, **FRACTIONS)
    assert [r.id for r in split] == [r.id for r in records]
    assert {r.split for r in split} <= {"train", "validation", "test"}
    for a, b in combinations(split, 2):
        linked = a.sha256 == b.sha256
        linked |= a.source == b.source and "" != a.patient == b.patient
        linked |= a.source == b.source and "" != a.volume == b.volume
        assert not linked or a.split == b.split, (a.id, b.id)
    # Nothing but the order may change when the input is shuffled.
    shuffled = random.Random(seed).sample(records, len(records))
    again = curate.assign_splits(shuffled, seed=seed, **FRACTIONS)
    assert {r.id: r.split for r in again} == {r.id: r.split for r in split}


def test_groups_are_drawn_by_seed_and_fraction():
    records = [_record(i, patient=f"p{i // 2}") for i in range(200)]
    first, second = (curate.assign_splits(records, seed=s, **FRACTIONS) for s in (0, 1))
    for split in (first, second):
        assert Counter(r.split for r in split) == {"train": 140, "validation": 20, "test": 40}
    assert first != second
    assert first == curate.assign_splits(records, seed=0, **FRACTIONS)


@pytest.mark.parametrize("groups, expected", [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (1, 1, 1))])
def test_small_sources_reach_every_split_from_three_groups_on(groups, expected):
    records = [_record(i) for i in range(groups)]
    fractions = {"validation_fraction": 0.05, "test_fraction": 0.1}
    counts = Counter(r.split for r in curate.assign_splits(records, seed=0, **fractions))
    assert tuple(counts[s] for s in ("train", "validation", "test")) == expected
    nothing = {"validation_fraction": 0.0, "test_fraction": 0.0}
    assert {r.split for r in curate.assign_splits(records, seed=0, **nothing)} == {"train"}


def test_a_sources_own_split_is_kept_and_its_rest_is_train():
    own = ["train", "train", "validation", "test", ""]
    records = [_record(i, split=s) for i, s in enumerate(own)]
    split = [r.split for r in curate.assign_splits(records, seed=0, **FRACTIONS)]
    assert split == ["train", "train", "validation", "test", "train"]
    assert curate.split_conflicts(records) == []


def test_a_torn_group_goes_to_train_and_is_reported():
    records = [
        _record(0, split="train", patient="p"),
        _record(1, split="test", patient="p"),
        _record(2, split="test", patient="q"),
    ]
    split = [r.split for r in curate.assign_splits(records, seed=0, **FRACTIONS)]
    assert split == ["train", "train", "test"]
    (conflict,) = curate.split_conflicts(records)
    assert conflict == {
        "source": "a",
        "group": records[0].id,
        "splits": ["test", "train"],
        "records": 2,
        "resolution": "train",
    }


def test_a_source_split_by_question_is_split_anew_by_image():
    def asked(*items):
        return tuple(QuestionAnswer(question="?", answer="!", item=item) for item in items)

    records = [_record(i, qa=asked(f"train/{i}", f"test/{i + 50}")) for i in range(20)]
    records += [_record(i, split="train", qa=asked(f"train/{i}")) for i in range(20, 30)]
    conflicts = curate.split_conflicts(records)
    assert len(conflicts) == 20
    assert {c["resolution"] for c in conflicts} == {"source is split anew"}
    split = curate.assign_splits(records, seed=0, **FRACTIONS)
    assert Counter(r.split for r in split) == {"train": 21, "validation": 3, "test": 6}


def test_a_copy_in_another_source_follows_the_held_out_image():
    same = {"sha256": "c" * 64}
    records = [
        _record(0, split="test", **same),
        _record(1, split="train", sha256="d" * 64),
        *(_record(i, source="b", id=f"b{i}", **(same if i == 2 else {})) for i in range(2, 6)),
    ]
    split = {r.id: r.split for r in curate.assign_splits(records, seed=0, **FRACTIONS)}
    assert split["b2"] == "test"


@pytest.mark.parametrize("validation, test", [(0.5, 0.5), (-0.1, 0.1)])
def test_impossible_fractions_are_refused(validation, test):
    with pytest.raises(ValueError, match=f"validation fraction {validation}"):
        curate.assign_splits([], seed=0, validation_fraction=validation, test_fraction=test)


# ---- on datasets ---------------------------------------------------------------------------


def _curated(name: str, root) -> tuple[list[Record], Ledger]:
    ledger = Ledger()
    kept = list(curate.apply(readers.read(recipes.get(name), root, ledger), ledger))
    ledger.check()
    return kept, ledger


def test_vqa_rad_is_split_anew_by_image_twin(tmp_path):
    kept, _ = _curated("vqa_rad", tiny.vqa_rad(tmp_path))
    assert len(curate.split_conflicts(kept)) == 3
    split = curate.assign_splits(kept, seed=0, **FRACTIONS)
    assert Counter(r.split for r in split) == {"train": 3, "validation": 1, "test": 1}


def test_vqa_rad_is_split_anew_by_image():
    kept, _ = _curated("vqa_rad", tiny.real_data() / "vqa_rad")
    conflicts = curate.split_conflicts(kept)
    assert len(conflicts) == 64
    assert {c["resolution"] for c in conflicts} == {"source is split anew"}
    split = curate.assign_splits(kept, seed=0, validation_fraction=0.05, test_fraction=0.1)
    assert Counter(r.split for r in split) == {"train": 80, "validation": 5, "test": 9}


def test_exact_copies_across_a_split_do_not_leak_twin(tmp_path):
    kept, ledger = _curated("brain_tumor_mri_folders", tiny.brain_tumor(tmp_path))
    name = "brain_tumor_mri_folders"
    assert tiny.reasons(ledger, name, "item", "duplicates") == {"exact copy": 1}
    assert len({r.sha256 for r in kept}) == len(kept) == 8


def test_exact_copies_across_a_split_do_not_leak():
    name = "brain_tumor_mri_folders"
    kept, ledger = _curated(name, tiny.real_data() / name)
    assert tiny.reasons(ledger, name, "item", "duplicates") == {"exact copy": 73}
    assert len({r.sha256 for r in kept}) == len(kept) == 1080 - 73


def test_commercial_builds_drop_the_non_commercial_images_twin(tmp_path):
    ledger = Ledger()
    read = readers.read(recipes.get("covid_kjr_notes"), tiny.covid(tmp_path), ledger)
    assert list(curate.apply(read, ledger, commercial=True)) == []
    assert tiny.reasons(ledger, "covid_kjr_notes", "item", "license") == {
        "license CC-BY-NC-SA is non-commercial": 2
    }


# ---- storage -------------------------------------------------------------------------------


def test_records_survive_storage_unchanged(tmp_path):
    records = [
        _record(
            0,
            image=_png(),
            boxes=(Box(label="nodule", x1=0.1, y1=0.2, x2=0.3, y2=0.4, area=0.01),),
            boxes_are_complete=True,
            absent=("cyst", "mass"),
            width=40,
            height=40,
        ),
        _text(1, qa=(QuestionAnswer(question="什么？", answer="结节"),), language="zh"),
        *(_record(i, image=_png(i)) for i in range(2, curate.ROW_GROUP + 9)),
    ]
    path = curate.write_records(iter(records), tmp_path / "records")
    assert path == tmp_path / "records" / "records.parquet"
    assert list(curate.read_records(tmp_path / "records")) == records


def test_an_empty_list_of_records_can_be_stored(tmp_path):
    curate.write_records([], tmp_path)
    assert list(curate.read_records(tmp_path)) == []


def test_a_broken_run_leaves_the_old_records(tmp_path):
    old = [_record(0, image=_png())]
    curate.write_records(old, tmp_path)

    def failing():
        yield _record(1, image=_png(1))
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        curate.write_records(failing(), tmp_path)
    assert list(curate.read_records(tmp_path)) == old
    assert [p.name for p in tmp_path.iterdir()] == ["records.parquet"]


def test_missing_and_damaged_records_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no records; run the notebook"):
        list(curate.read_records(tmp_path))
    (tmp_path / "records.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(ValueError, match=r"records\.parquet is no file of records"):
        list(curate.read_records(tmp_path))


@pytest.mark.slow
def test_eleven_thousand_small_images_take_well_below_90_seconds(tmp_path):
    for i in range(1100):
        tiny.picture(tmp_path / f"Training/glioma_tumor/{i}.jpg", seed=i, size=(112, 112))
    start = time.perf_counter()
    kept, _ = _curated("brain_tumor_mri_folders", tmp_path)
    assert len(kept) == 1100
    assert (time.perf_counter() - start) * 10 < 60
