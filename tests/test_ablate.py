"""Every course is trained as it is called, from every seed, and asked the same questions."""

import json
from dataclasses import replace
from functools import partial
from random import Random

import pyarrow.parquet as pq
import pytest
import tiny_run
from synthetic_records import png
from test_benchmarks import phantoms

from gmai_lib import ablate, config
from gmai_lib.dataset import build, curate, writers
from gmai_lib.model import weights
from gmai_lib.schema import SUBSETS, QuestionAnswer
from gmai_lib.training import store


@pytest.fixture
def finished(tmp_path):
    records = phantoms(40) + phantoms(80, split="train", start=1000)
    curate.write_records(records, tmp_path / "run" / "02_curate" / "records")
    return tmp_path / "run"


def test_a_course_leaves_out_the_subset_that_its_name_says():
    found = ablate.courses(config.load("mini"), "subsets")
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


# ---- equal size ----------------------------------------------------------------------------

BROUGHT = {"vqa": 12, "report": 7, "text": 5}  # training records of sources with own answers
NUMBER = 12 + 7 + 2 * 5  # samples of them: a text has one for each of its two questions


@pytest.fixture
def with_own(tmp_path):
    """A finished run: 40 annotated images, 12 with questions, 7 with a report, 5 texts."""
    asked = (QuestionAnswer(question="Is it ill?", answer="yes"),) * 2
    asked += (QuestionAnswer(question="What is it?", answer="a lung"),)
    made = phantoms(40, split="train", start=1000) + phantoms(40)
    for kind, number in BROUGHT.items():
        split = {"train": phantoms(number, split="train", start=2000), "test": phantoms(4)}
        for record in (record for same in split.values() for record in same):
            own = {"source": f"phantom_{kind}", "id": f"2d#x#{record.split}#{kind}#{record.path}"}
            own |= {"report": "A lung. It is ill."} if kind == "report" else {"qa": asked}
            own |= {"labels": (), "absent": (), "boxes": ()} if kind == "vqa" else {}
            made.append(replace(record, **own, **({"image": None} if kind == "text" else {})))
    made = [r if r.image is None else replace(r, image=png(n)) for n, r in enumerate(made)]
    folder = tmp_path / "run"
    curate.write_records(made, folder / "02_curate" / "records")
    pairs, writer = folder / "03_write_pairs" / "pairs", writers.TemplateWriter(0)
    build.write_pairs(made, pairs, writer=writer, seed=0, chinese_fraction=0.6, shard_records=30)
    return folder, made


def test_as_many_samples_are_drawn_as_the_sources_brought(with_own, tmp_path):
    folder, records = with_own
    pairs = folder / "03_write_pairs" / "pairs"

    def draw(share, seed, name):
        out = ablate.equal_pairs(pairs, records, tmp_path / name, share=share, seed=seed)
        rows = pq.read_table(out / "train-00000-of-00001.parquet").to_pylist()
        said = [{turn["content"] for turn in r["conversations"][1::2]} for r in rows]
        own = [bool(s & {"A lung. It is ill.", "a lung", "yes"}) for s in said]
        return {row["id"] for row in rows}, sum(own), rows

    ids, own, rows = draw(1.0, 0, "a")
    assert len(ids) == len(rows) == own == NUMBER
    assert {row["language"] for row in rows} == {"en"}, "translations are ours"
    assert {row["subset"] for row in rows} == {"caption", "instruct", "text_single"}
    mixed, own, rows = draw(0.5, 0, "b")
    assert len(mixed) == len(rows) == NUMBER and len(mixed & ids) == round(NUMBER / 2)
    assert {row["language"] for row in rows} == {"en", "zh"}
    assert draw(0.5, 0, "c")[0] == mixed != draw(0.5, 1, "d")[0]
    without = [replace(r, qa=(), report="") for r in records]
    with pytest.raises(ValueError, match="brought 0 training samples themselves and"):
        ablate.equal_pairs(pairs, without, tmp_path / "e", share=0.5, seed=0)


def test_courses_of_equal_size_are_trained_on_their_pairs_and_asked_both(
    with_own, tmp_path, monkeypatch, capsys
):
    folder, _ = with_own
    initial, counts = folder / "05_model" / "initial", []
    tiny_run.write_initial(initial, tiny_run.tiny_profile(), tiny_run.samples(9))
    processor = weights.load_checkpoint(initial)[1]

    def train(profile, names, *, out, seed, pairs, init, cache):
        assert names == config.STAGES and profile == config.load("mini") and init == initial
        made = store.prepare(pairs, cache, split="train", processor=processor)
        counts.append(len(made.lengths))

    def ask(checkpoint, items, out_jsonl):
        good = checkpoint.parts[-3] == ablate.MIXED
        return [
            {"id": i.id, "response": i.answer if good or n % 2 else "x", "finished": True}
            for n, i in enumerate(items)
        ]

    monkeypatch.setattr(ablate, "ablate", partial(ablate.ablate, train=train, ask=ask))
    ablate.main([str(folder), str(tmp_path / "out"), "--equal-size", "--seeds", "2"])
    assert counts == [NUMBER] * 4
    rows = json.loads((tmp_path / "out" / "rows_equal_size.json").read_text())
    assert {row["benchmark"] for row in rows} == {"phantom", "phantom_vqa"}
    for benchmark in ("phantom", "phantom_vqa"):
        own, mixed = ablate.over_seeds(rows, benchmark=benchmark)
        assert (own["course"], mixed["course"]) == ("own pairs", ablate.MIXED)
        assert own["below_the_whole"] == own["seeds"] == 2 and mixed["mean"] == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("phantom")]
    assert len(said) == 4 and "below own and built pairs in 2; English" in said[0]
    assert said[2].startswith("phantom_vqa  own pairs") and said[2].endswith("pairs in 2")


# ---- the fidelity gate ---------------------------------------------------------------------


@pytest.fixture
def annotated(tmp_path):
    """A finished run of 60 training records and 40 test records, all annotated."""
    made = phantoms(60, split="train", start=1000) + phantoms(40)
    made = [replace(record, image=png(n)) for n, record in enumerate(made)]
    folder = tmp_path / "run"
    curate.write_records(made, folder / "02_curate" / "records")
    pairs, writer = folder / "03_write_pairs" / "pairs", writers.TemplateWriter(0)
    build.write_pairs(made, pairs, writer=writer, seed=0, chinese_fraction=0.5)
    return folder, made


def test_the_gate_refuses_of_what_was_read_wrong_and_only_of_that(annotated, tmp_path):
    folder, records = annotated
    finished = folder / "03_write_pairs" / "pairs"
    found = ablate.gate_pairs(finished, records, tmp_path / "gate")
    assert tuple(found) == ablate.GATE and found["no errors"] == finished

    def samples(course):
        rows = ablate._training_samples(found[course]).to_table().to_pylist()
        return {row["id"]: row for row in rows}

    right, gated, free = (samples(course) for course in ablate.GATE)
    refused = fidelity(found[ablate.GATED])["refused"]
    assert refused and not {row["id"] for row in refused} & set(gated)
    assert len(gated) + len(refused) == len(free), "nothing else is left out"
    assert fidelity(found["errors, not gated"]) == {"checked": len(free), "refused": refused}
    texts = {key: row["conversations"] for key, row in right.items()}
    wrong = {key for key, row in free.items() if row["conversations"] != texts.get(key)}
    assert {row["id"] for row in refused} <= wrong
    chosen = {r.id for r in records if Random(f"0|misread|{r.id}").random() < ablate.MISREAD}
    about = {record for record in chosen if any(key.startswith(f"{record}#") for key in wrong)}
    assert all(key.rpartition("#")[0].rpartition("#")[0] in chosen for key in wrong)
    assert len(about) > 20, "nearly all that are read wrong say so"
    assert gated == {key: free[key] for key in gated}
    # The facts of a sample are the annotation's, whatever its text says.
    assert all(free[key]["facts"] == right[key]["facts"] for key in free if key in right)


def fidelity(pairs):
    return json.loads((pairs / "manifest.json").read_text())["fidelity"]


def test_courses_of_the_gate_have_as_many_samples_and_are_asked_the_same(annotated, tmp_path):
    folder, _ = annotated
    initial, counts = folder / "05_model" / "initial", []
    tiny_run.write_initial(initial, tiny_run.tiny_profile(), tiny_run.samples(9))
    processor = weights.load_checkpoint(initial)[1]

    def train(profile, names, *, out, seed, pairs, init, cache):
        assert names == config.STAGES and pairs.parent == cache.parent == out
        ids = pq.read_table(pairs, columns=["id"])["id"].to_pylist()
        made = store.prepare(pairs, cache, split="train", processor=processor)
        counts.append((len(made.lengths), ids))

    def ask(checkpoint, items, out_jsonl):
        return [{"id": i.id, "response": i.answer, "finished": True} for i in items]

    rows = ablate.ablate(
        folder, tmp_path / "out", profile=config.load("mini"), seeds=(0, 1), kind="gate",
        train=train, ask=ask,
    )  # fmt: skip
    numbers = {number for number, _ in counts}
    assert len(counts) == 6 and len(numbers) == 1 and numbers.pop() > 100
    assert set(counts[0][1]) != set(counts[3][1]), "another seed draws others"
    assert [row["course"] for row in ablate.over_seeds(rows)] == list(ablate.GATE)
    with pytest.raises(ValueError, match=r"has \d+ training samples; 100000 are wanted"):
        ablate.as_many(folder / "03_write_pairs" / "pairs", 100000, tmp_path / "x", seed=0)
    with pytest.raises(ValueError, match="'gates' is not one of"):
        ablate.courses(config.load("mini"), "gates")
