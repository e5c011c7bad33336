"""Every course is trained as it is called, from every seed, and asked the same questions."""

import json

import pytest
from test_benchmarks import phantoms

from gmai_lib import ablate, config
from gmai_lib.dataset import curate
from gmai_lib.schema import SUBSETS


@pytest.fixture
def finished(tmp_path):
    records = phantoms(40) + phantoms(80, split="train", start=1000)
    curate.write_records(records, tmp_path / "run" / "02_curate" / "records")
    return tmp_path / "run"


def test_a_course_leaves_out_the_subset_that_its_name_says():
    found = ablate.courses(config.load("mini"), subsets=True)
    assert list(found) == [
        "1",
        "1+2",
        "1+3",
        "1+2+3",
        "English only",
        *(f"without {s}" for s in SUBSETS),
    ]
    english, _ = found["English only"]
    assert {stage.languages for stage in english.stages} == {("en",)}
    for subset in SUBSETS:
        profile, names = found[f"without {subset}"]
        assert names == config.STAGES
        for stage, own in zip(profile.stages, config.load("mini").stages, strict=True):
            assert set(own.subsets) - set(stage.subsets) == {subset} & set(own.subsets)
            assert stage.subsets and stage.max_steps == own.max_steps


def test_every_course_and_seed_is_trained_asked_and_kept(finished, tmp_path):
    trained, asked, out = [], [], tmp_path / "out"

    def train(profile, names, *, out, seed, pairs, init, cache):
        trained.append((len(names), out.name, seed))
        assert pairs == finished / "03_write_pairs" / "pairs" and cache.parent.name == "06_loader"

    def ask(checkpoint, items, out_jsonl):
        asked.append((checkpoint, out_jsonl.name))
        right = {"1_shallow_alignment": 2, "2_deep_alignment": 4}.get(checkpoint.parent.name, 7)
        return [
            {"id": i.id, "response": i.answer if n % 10 < right else "x", "finished": True}
            for n, i in enumerate(items)
        ]

    profile = config.load("mini")
    rows = ablate.ablate(finished, out, profile=profile, seeds=(0, 5), train=train, ask=ask)
    assert trained == [(n, "stages", seed) for seed in (0, 5) for n in (1, 2, 2, 3)]
    assert len(set(asked)) == 8 and json.loads((out / "rows.json").read_text()) == rows
    assert asked[2][0] == out / "seed_0" / "stages" / "2_instruction_tuning" / "checkpoint"
    for language in ("all", "en", "zh"):
        own = [row for row in rows if row["language"] == language]
        assert len(own) == 8 and len({row["question_ids_sha256"] for row in own}) == 1
    assert ablate.over_seeds(rows, "en") != ablate.over_seeds(rows, "zh")
    table = {row["course"]: row for row in ablate.over_seeds(rows)}
    assert table["1"]["mean"] < table["1+2"]["mean"] < table["1+2+3"]["mean"]
    assert table["1+3"]["below_the_whole"] == 0 and table["1"]["below_the_whole"] == 2
    assert table["1"]["seeds"] == 2 and table["1"]["lowest"] == table["1"]["highest"]
