"""SLAKE, PathVQA, MedMCQA, PubMedQA, MedQA and YOLO, each in exactly the published layout."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmai_lib.dataset import images, readers, recipes
from gmai_lib.schema import Ledger


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60), dtype=np.uint8)
    return images.to_png(pixels)


def read(root):
    ((recipe, found),) = recipes.find(root.parent)
    ledger = Ledger()
    records = list(readers.read(recipe, found, ledger))
    ledger.check()
    dropped = {key[3]: n for key, n in ledger.dropped.items()}
    return recipe.name, records, dropped


def slake(root, **changes):
    """The keys of a question of SLAKE's JSON, as published."""
    for number in (0, 1, 2):
        folder = root / "imgs" / f"xmlab{number}"
        folder.mkdir(parents=True)
        (folder / "source.jpg").write_bytes(png(number))
    question = {
        "img_id": 0, "img_name": "xmlab0/source.jpg", "question": "What modality is this?",
        "answer": "MRI", "q_lang": "en", "location": "Brain_Tissue", "modality": "MRI",
        "answer_type": "OPEN", "base_type": "vqa", "content_type": "Modality",
        "triple": ["vhead", "_", "_"], "qid": 7,
    }  # fmt: skip
    chinese = question | {"q_lang": "zh", "question": "这是什么模态?", "answer": "核磁共振"}
    second = question | {"img_name": "xmlab1/source.jpg", "modality": "X-Ray", "qid": 8}
    third = question | {"img_name": "xmlab2/source.jpg", "modality": "CT", "answer": ""}
    lists = {"train": [question, chinese], "validate": [second], "test": [third]}
    for name, questions in (lists | changes).items():
        (root / f"{name}.json").write_text(json.dumps(questions), "utf-8")


def test_slake_is_read_in_english_with_its_modalities(tmp_path):
    slake(tmp_path / "SLAKE")
    name, records, dropped = read(tmp_path / "SLAKE")
    assert name == "slake" and [r.modality for r in records] == ["MR", "X-ray", "CT"]
    assert [r.split for r in records] == ["train", "validation", "test"]
    first = records[0]
    assert first.organ == "brain tissue" and first.qa[0].answer == "MRI"
    assert (first.qa[0].question_type, first.qa[0].answer_type) == ("Modality", "open")
    assert first.qa[0].item == "train/7" and first.license == "CC-BY-4.0"
    assert dropped == {"q_lang is not en": 1, "empty question or answer": 1}


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def pathvqa_row(seed, question, answer, data=None):
    image = {"bytes": png(seed) if data is None else data, "path": f"img_{seed}.jpg"}
    return {"image": image, "question": question, "answer": answer}


def test_an_image_of_several_parquet_rows_becomes_one_record(tmp_path):
    root = tmp_path / "path-vqa"
    rows = [
        pathvqa_row(0, "where are liver stem cells located?", "in the canals of hering"),
        pathvqa_row(1, "is there a nucleus?", "yes"),
        pathvqa_row(0, "are they shown?", "yes"),
        pathvqa_row(2, "what?", None),
        pathvqa_row(3, "broken?", "yes", b"no image"),
        {"image": None, "question": "which?", "answer": "none"},
    ]
    parquet(root / "data" / "train-00000-of-00002.parquet", rows[:2])
    parquet(root / "data" / "train-00001-of-00002.parquet", rows[2:])
    again = [pathvqa_row(1, "seen twice?", "yes"), pathvqa_row(5, "new?", "no")]
    parquet(root / "data" / "test-00000-of-00001.parquet", again)
    name, records, dropped = read(root)
    assert name == "path_vqa"
    assert [len(r.qa) for r in records] == [2, 2, 1]
    assert [r.split for r in records] == ["train", "", "test"], "in two splits: in none of its own"
    assert records[0].qa[0].answer == "in the canals of hering"
    assert (records[0].width, records[0].height) == (60, 40)
    assert records[0].path == "data/train-00000-of-00002.parquet/0"
    assert dropped == {
        "empty question or answer": 1,
        "question without an image": 1,
        "image cannot be decoded": 1,
        "item dropped: image cannot be decoded": 1,
    }


@pytest.mark.parametrize("fault", ["truncated", "columns"])
def test_a_broken_parquet_file_is_named(tmp_path, fault):
    path = tmp_path / "path-vqa" / "data" / "train-00000-of-00001.parquet"
    parquet(path, [pathvqa_row(0, "a?", "b")])
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        parquet(path, [{"picture": 1}])
    with pytest.raises(ValueError, match=r"train-00000-of-00001\.parquet is no readable Parquet"):
        read(tmp_path / "path-vqa")


def mcqa(number, **changes):
    row = {
        "id": f"id-{number}", "question": "Which vitamin prevents scurvy?", "opa": "A", "opb": "B1",
        "opc": "C", "opd": "D", "cop": 2, "choice_type": "single", "exp": None,
        "subject_name": "Biochemistry", "topic_name": None,
    }  # fmt: skip
    return row | changes


def test_medmcqa_answers_by_the_number_of_the_option(tmp_path):
    root = tmp_path / "medmcqa"
    parquet(root / "data" / "train-00000-of-00001.parquet", [mcqa(0), mcqa(1, cop=7)])
    parquet(root / "data" / "test-00000-of-00001.parquet", [mcqa(2, cop=-1)])
    name, records, dropped = read(root)
    assert name == "medmcqa" and dropped == {"no usable answer": 2}
    (pair,) = records[0].qa
    asked = "Which vitamin prevents scurvy?\nA. A\nB. B1\nC. C\nD. D"
    assert (pair.question, pair.answer, pair.item) == (asked, "C", "id-0")
    assert (records[0].modality, records[0].dimension, records[0].split) == (
        "text",
        "text",
        "train",
    )


def test_pubmedqa_is_a_dict_of_questions(tmp_path):
    folder = tmp_path / "pubmedqa" / "data"
    folder.mkdir(parents=True)
    paper = {"QUESTION": "Do mitochondria play a role?", "CONTEXTS": ["..."], "YEAR": None}
    papers = {"1": paper | {"LONG_ANSWER": "They do.", "final_decision": "yes"}, "2": "broken"}
    papers["3"] = {"QUESTION": "", "LONG_ANSWER": "x"}
    (folder / "ori_pqal.json").write_text(json.dumps(papers))
    name, records, dropped = read(tmp_path / "pubmedqa")
    assert name == "pubmedqa" and [r.qa[0].answer for r in records] == ["They do."]
    assert dropped == {"malformed question": 1, "no usable question": 1}


def test_medqa_options_are_a_dict_and_its_lines_json(tmp_path):
    root = tmp_path / "medqa"
    root.mkdir()
    row = {"question": "Which?", "answer": "Nitrofurantoin", "answer_idx": "D"}
    row["options"] = {
        "A": "Ampicillin",
        "B": "Ceftriaxone",
        "C": "Doxycycline",
        "D": "Nitrofurantoin",
    }
    lines = json.dumps(row) + "\nhalf {\n\n" + json.dumps(row) + "\n"
    (root / "phrases_no_exclude_train.jsonl").write_text(lines)
    (root / "phrases_no_exclude_test.jsonl").write_text(json.dumps(row))
    name, records, dropped = read(root)
    assert name == "medqa_usmle" and [r.split for r in records] == ["train", "train", "test"]
    assert records[0].qa[0].question.endswith("D. Nitrofurantoin")
    assert dropped == {"malformed question": 1}


HEADER = (
    "filestem,patient_id,study_number,timehash,gender,age,laterality,projection,initial_exam,"
    "ao_classification,cast,diagnosis_uncertain,osteopenia,fracture_visible,metal,pixel_spacing,"
    "device_manufacturer"
)


def test_yolo_boxes_are_centres_and_sizes(tmp_path):
    root = tmp_path / "GRAZPEDWRI-DX"
    labels = root / "folder_structure" / "yolov5" / "labels"
    labels.mkdir(parents=True)
    for part, stem in (("1", "0001_a"), ("2", "0002_b"), ("2", "0003_c")):
        (root / f"images_part{part}").mkdir(exist_ok=True)
        (root / f"images_part{part}" / f"{stem}.png").write_bytes(png(int(stem[3])))
    (labels / "0001_a.txt").write_text(
        "3 0.5 0.5 0.2 0.5\n8 0.1 0.1 0.1 0.1\n3 0.5 0.5\n42 0 0 1 1\n"
    )
    (labels / "0002_b.txt").write_text("")
    (labels / "0009_x.txt").write_text("3 0.5 0.5 0.2 0.4\n")
    cells = ["0001_a", "17", *[""] * 15]
    (root / "dataset.csv").write_text(f"{HEADER}\n{','.join(cells)}\n")
    name, records, dropped = read(root)
    assert name == "grazpedwri_dx" and [r.path[-10:] for r in records] == [
        "0001_a.png",
        "0002_b.png",
    ]
    (box,) = records[0].boxes
    assert (box.label, box.x1, box.x2) == ("fracture", pytest.approx(0.4), pytest.approx(0.6))
    assert (box.y1, box.y2) == (pytest.approx(0.25), pytest.approx(0.75))
    assert records[0].patient and records[1].boxes == ()
    assert dropped == {
        "class that is no finding": 1,
        "malformed annotation": 2,
        "boxes of an unknown image": 1,
        "no annotation names this image": 1,
    }
