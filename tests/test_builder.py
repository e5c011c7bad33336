"""New benchmarks: balanced, on held-out images only, hard to guess, readable elsewhere."""

import importlib.util
import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_benchmarks import phantoms

from gmai_lib.dataset import images
from gmai_lib.evaluation import builder
from gmai_lib.evaluation.items import MOST_CHOICES
from gmai_lib.evaluation.scoring import score
from gmai_lib.schema import NO_FINDING


@pytest.fixture(scope="module")
def records():
    return phantoms(500) + phantoms(100, split="train", start=1000)


@pytest.fixture(scope="module")
def made(records):
    return builder.build(records, seed=0, per_leaf=12)


def choices(made):
    return [item for item in made.items if item.kind == "multiple choice"]


def test_every_leaf_of_the_tree_is_filled_and_none_is_too_full(made):
    tree = builder.cut(made.items, *builder.AXES)
    assert len(tree) > 5 and {key[3] for key in tree} == {"image", "box"}
    for leaf, items in tree.items():
        forms = Counter(
            "choice" if i.kind == "multiple choice" else "box" if i.kind == "box" else "open"
            for i in items
        )
        assert max(forms.values()) <= 12, leaf
    assert len({item.id for item in made.items}) == len(made.items)
    by_modality = builder.cut(made.items, "modality")
    assert sum(map(len, by_modality.values())) == len(made.items)
    with pytest.raises(ValueError, match="no axis"):
        builder.cut(made.items, "colour")


def test_only_held_out_images_are_asked_about(made, records):
    held_out = {r.image for r in records if r.split == "test"}
    assert all(item.images[0] in held_out for item in made.items)
    leaked = replace(records[0], id="x", split="train")
    with pytest.raises(ValueError, match="same image"):
        builder.build([*records, leaked], seed=0)
    with pytest.raises(ValueError, match="no annotated image of split 'validation'"):
        builder.build(records, seed=0, split="validation")


def test_answers_stand_at_every_letter_equally_often(made):
    counts = Counter(item.answer for item in choices(made))
    assert set(counts) == set("ABCD") and max(counts.values()) - min(counts.values()) <= 1
    for item in choices(made):
        assert len(set(item.options)) == MOST_CHOICES
        line = item.question.split("\n")["ABCD".index(item.answer) + 1]
        assert line == f"{item.answer}. {item.options['ABCD'.index(item.answer)]}"


def test_every_item_is_right_with_its_answer_and_wrong_with_another(made):
    for item in made.items:
        assert score(item, item.answer)["correct"] if item.kind != "box" else True
        if item.kind == "multiple choice":
            wrong = "ABCD".replace(item.answer, "")[0]
            assert not score(item, wrong)["correct"]


def test_wrong_options_are_of_the_modality_and_none_is_true(records):
    made = builder.build(records, seed=0, per_leaf=1000)
    named = {}
    for r in records:
        named.setdefault(r.modality, set()).update([*r.labels, *r.absent])
    by_image = {r.image: r for r in records}
    asked = 0
    for item in choices(made):
        record = by_image[item.images[0]]
        if record.labels[0] in item.options:  # asks for the finding
            asked += 1
            assert set(item.options) <= named[item.modality]
            assert sum(option in record.labels for option in item.options) == 1
    assert asked > 100 and NO_FINDING in named["CT"]
    assert made.dropped["finding: too few wrong options"] > 0, "PET names a single finding"


def test_an_organ_and_what_it_is_part_of_are_never_two_options():
    some = [replace(r, organ="lung") for r in phantoms(60)]
    rest = phantoms(200, start=500)
    chest = [replace(r, organ="chest" if n % 2 else r.organ) for n, r in enumerate(rest)]
    made = builder.build(some + chest, seed=0, per_leaf=1000)
    organs = [i.options for i in choices(made) if "brain" in i.options and "lung" in i.options]
    assert organs
    for item in choices(made):
        right = item.options["ABCD".index(item.answer)]
        assert {right, *item.options} & {"lung", "chest"} != {"lung", "chest"} or right not in (
            "lung",
            "chest",
        )


def test_the_same_seed_gives_the_same_benchmark(records, made):
    assert builder.build(records, seed=0, per_leaf=12) == made
    assert builder.build(records, seed=1, per_leaf=12).items != made.items


def test_what_a_blind_model_knows_is_taken_out(made):
    def always_first_option(items):
        assert all(item.images == () for item in items)
        return [i.options[0] if i.options else "" for i in items]

    kept, lost = builder.without_guessable(made.items, always_first_option)
    assert lost == [], "a fixed place is right in one order and wrong in the next"

    def knows(items):
        return [
            i.options["ABCD".index(i.answer)] if i.kind == "multiple choice" else "" for i in items
        ]

    kept, lost = builder.without_guessable(made.items, knows)
    assert lost == choices(made) and len(kept) + len(lost) == len(made.items)
    with pytest.raises(ValueError, match="1 answers to"):
        builder.without_guessable(made.items, lambda items: ["x"])


def test_chinese_items_are_chinese(records):
    made = builder.build(records, seed=0, per_leaf=3, language="zh")
    assert all(any("\u4e00" <= c <= "\u9fff" for c in item.question) for item in made.items)


def test_an_lmms_eval_task_carries_its_images_and_scores_by_itself(tmp_path, records):
    picture = images.to_png(np.full((8, 8), 7, np.uint8))
    made = builder.build(records, seed=0, per_leaf=5)
    items = [replace(item, images=(picture,)) for item in made.items]
    folder = builder.lmms_eval_task(items, "made", tmp_path / "task")
    rows = pq.read_table(folder / "test.parquet").to_pylist()
    assert len(rows) == len(choices(made)) and rows[0]["department"] == "unstated"
    text = (folder / "made.yaml").read_text()
    assert "doc_to_text: !function utils.doc_to_text" in text and "test.parquet" in text
    spec = importlib.util.spec_from_file_location("task_utils", folder / "utils.py")
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    doc = rows[0]
    assert utils.doc_to_visual(doc)[0].size == Image.open(io.BytesIO(picture)).size
    asked = {item.id: item.question for item in items}
    assert utils.doc_to_text(doc) == asked[doc["id"]]
    right = doc["options"]["ABCD".index(doc["answer"])]
    wrong = "ABCD".replace(doc["answer"], "")[0]
    for said, worth in (
        (doc["answer"], 1.0), (f"The answer is ({doc['answer']}).", 1.0), (f"{right}.", 1.0),
        (wrong, 0.0), ("", 0.0), (f"{doc['answer']} or {wrong}", 0.0), ("I cannot say", 0.0),
    ):  # fmt: skip
        assert utils.process_results(doc, [said]) == {"accuracy": worth}, said
    with pytest.raises(ValueError, match="no multiple-choice item"):
        builder.lmms_eval_task([], "none", tmp_path / "none")


def test_what_is_saved_adds_up(tmp_path, made):
    folder = builder.save(made, tmp_path / "made")
    counts = json.loads((folder / "benchmark.json").read_text())
    assert counts["items"] == len((folder / "items.jsonl").read_text().splitlines())
    for axis in builder.AXES:
        assert sum(counts[axis].values()) == counts["items"]
