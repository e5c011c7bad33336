"""Captions, questions and dialogues that others released, in exactly their published layouts."""

import csv
import json

import pytest
from test_question_files import png, read

from gmai_lib.dataset import build, facts, writers
from gmai_lib.schema import Ledger

CHOICES = ("Choice A", "Choice B", "Choice C", "Choice D")
OPTIONS = (" A:Diffuse uptake pattern ", " B:Focal uptake pattern ", " C:No uptake ", " D:None ")
ASKED = "What is the uptake pattern?\nA. Diffuse uptake pattern\nB. Focal uptake pattern\n"
ASKED += "C. No uptake\nD. None"


def image(root, name, seed=0):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(png(seed))


def table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def said(*turns):
    speakers = ("human", "gpt") * len(turns)
    return [{"from": who, "value": text} for who, text in zip(speakers, turns, strict=False)]


def pmc_vqa(root):
    header = ("index", "Figure_path", "Caption", "Question", *CHOICES, "Answer", "split")
    row = ("Uptake.", "What is the uptake pattern?", *OPTIONS)
    rows = [
        (0, "PMC1_pbio-1_16.jpg", *row, "B", "train"),
        (1, "PMC1_pbio-1_16.jpg", "Uptake.", "", *OPTIONS, "B", "train"),
        (2, "PMC2_pbio-1_17.jpg", *row, "Focal uptake pattern", "train"),
        (3, "PMC9_missing.jpg", *row, "A", "train"),
    ]
    table(root / "train_2.csv", header, rows)
    table(root / "test_2.csv", header, [(0, "PMC3_pbio-1_18.jpg", *row, "d", "test")])
    for number, name in enumerate(("PMC1_pbio-1_16", "PMC2_pbio-1_17", "PMC3_pbio-1_18")):
        image(root, f"figures/{name}.jpg", number)


def test_pmc_vqa_has_its_options_once_and_the_answer_with_its_letter(tmp_path):
    pmc_vqa(tmp_path / "PMC-VQA")
    name, records, dropped = read(tmp_path / "PMC-VQA")
    assert name == "pmc_vqa" and [r.split for r in records] == ["train", "test"]
    (pair,) = records[0].qa
    assert (pair.question, pair.answer) == (ASKED, "B. Focal uptake pattern")
    assert records[1].qa[0].answer == "D. None" and records[0].modality == "unstated"
    assert records[0].path == "figures/PMC1_pbio-1_16.jpg"
    assert dropped == {
        "empty question, option or answer": 1, "answer is no letter of an option": 1,
        "image missing": 1, "item dropped: image missing": 1, "no annotation names this image": 1,
    }  # fmt: skip


@pytest.mark.parametrize("label", ["Answer_label", "Anwser_label"])
def test_the_first_version_of_pmc_vqa_has_the_letter_in_another_column(tmp_path, label):
    root = tmp_path / "PMC-VQA"
    header = ("Figure_path", "Question", "Answer", *CHOICES, label)
    row = ("PMC1_F1.jpg", "What is the uptake pattern?", "Focal uptake pattern", *OPTIONS, "B")
    for name in ("train.csv", "test_clean.csv"):
        table(root / name, header, [row])
    image(root, "images/PMC1_F1.jpg")
    name, (record,), dropped = read(root)
    assert name == "pmc_vqa_1" and not dropped and record.split == "train"
    assert (record.qa[0].question, record.qa[0].answer) == (ASKED, "B. Focal uptake pattern")


def test_vqa_med_2019_joins_the_categories_of_one_image(tmp_path):
    root = tmp_path / "ImageClef-2019-VQA-Med-Training"
    folder = root / "QAPairsByCategory"
    folder.mkdir(parents=True)
    lines_of = {
        "C1_Modality_train.txt": "synpic1|what is the modality?|xr - plain film\nsynpic2|mr?|yes",
        "C3_Organ_train.txt": "synpic1|what organ is this?|lung, mediastinum, pleura\nsynpic2|x",
    }
    for name, text in lines_of.items():
        (folder / name).write_text(text)  # without a newline at the end, as published
    for number in (1, 2):
        image(root, f"Train_images/synpic{number}.jpg", number)
    name, records, dropped = read(root)
    assert name == "vqa_med_2019" and [len(r.qa) for r in records] == [2, 1]
    assert records[0].qa[1].answer == "lung, mediastinum, pleura"
    assert dropped == {"malformed row": 1}


def test_rocov2_captions_are_descriptions_and_nothing_is_said_about_the_modality(tmp_path):
    root = tmp_path / "ROCOv2"
    for split, names in (("train", ("1", "2")), ("valid", ("3",)), ("test", ("4",))):
        rows = [(f"ROCOv2_2023_{split}_{n}", f"CT showing lesion {n}.") for n in names]
        table(root / f"{split}_captions.csv", ("ID", "Caption"), rows)
        for row in rows:
            image(root, f"{split}/{row[0]}.jpg", int(row[0][-1]))
    name, records, dropped = read(root)
    assert name == "rocov2" and not dropped
    assert [r.split for r in records] == ["train", "train", "validation", "test"]
    first = records[0]
    assert (first.report, first.modality) == ("CT showing lesion 1.", "unstated")
    assert first.license == "CC-BY-NC-SA-4.0"
    known = facts.extract(first)
    assert not known, "an image whose modality is unstated has no fact about it"
    (sample,) = writers.TemplateWriter(0).write(first, known, language="en")
    asked, answered = (turn["content"] for turn in sample.conversations)
    assert sample.subset == "caption" and answered == "CT showing lesion 1."
    assert "report" not in asked.lower()
    assert writers.TemplateWriter(0).write(first, known, language="zh") == []


def test_several_captions_of_one_image_are_joined(tmp_path):
    root = tmp_path / "quilt"
    header = ("", "caption", "image_path", "subset", "split", "pathology")
    rows = [
        (0, "Glands are seen.", "v1_image_a.jpg", "quilt", "train", "['x']"),
        (1, "Mitoses too.", "v1_image_a.jpg", "quilt", "train", "['x']"),
        (2, "Stroma.", "v1_image_b.jpg", "quilt", "val", "['x']"),
        (3, " ", "v1_image_b.jpg", "quilt", "val", "['x']"),
    ]
    table(root / "quilt_1M_lookup.csv", header, rows)
    image(root, "quilt_1m/v1_image_a.jpg", 1)
    image(root, "quilt_1m/v1_image_b.jpg", 2)
    name, records, dropped = read(root)
    assert name == "quilt_1m" and records[0].report == "Glands are seen. Mitoses too."
    assert [r.split for r in records] == ["train", "validation"]
    assert {r.modality for r in records} == {"histopathology"} and dropped == {"empty caption": 1}


def test_pmc_oa_is_read_line_by_line(tmp_path):
    root = tmp_path / "pmc_oa"
    rows = [{"image": "PMC212319_Fig3_4.jpg", "caption": "A."}, ["no", "row"], {"caption": "B."}]
    lines(root / "pmc_oa.jsonl", rows)
    with (root / "pmc_oa.jsonl").open("a") as file:
        file.write('{"image": "PMC\n')
    image(root, "images/PMC212319_Fig3_4.jpg")
    name, (record,), dropped = read(root)
    assert name == "pmc_oa" and record.report == "A."
    assert dropped == {"malformed row": 2, "row without an image": 1}


def test_dialogues_keep_every_answered_question_and_count_what_has_several_images(tmp_path):
    root = tmp_path / "PubMedVision"
    talk = said("Which plane?", "Axial.", "And the contrast?", "None.", "unanswered")
    rows = [
        {"id": "Alignment_VQA_0", "image": ["images/pmc_1_0.jpg"], "conversations": talk,
         "body_part": "Head", "modality": "Computed Tomography"},
        {"id": "Alignment_VQA_1", "image": ["images/pmc_1_0.jpg", "images/pmc_1_1.jpg"],
         "conversations": said("Compare.", "Alike."), "modality": "Digital Photography"},
        {"id": "Alignment_VQA_2", "image": ["images/pmc_2_0.jpg"],
         "conversations": said("<image>\nWhat?", "A hand."), "modality": "Digital Photography"},
        {"id": "Alignment_VQA_3", "image": ["images/pmc_9_0.jpg"],
         "conversations": said("Missing?", "Yes.")},
        {"id": "Alignment_VQA_4", "image": ["images/pmc_2_0.jpg"], "conversations": "none"},
    ]  # fmt: skip
    root.mkdir()
    (root / "PubMedVision_Alignment_VQA.json").write_text(json.dumps(rows))
    image(root, "images/pmc_1_0.jpg", 1)
    image(root, "images/pmc_2_0.jpg", 2)
    name, records, dropped = read(root)
    assert name == "pubmedvision" and [r.modality for r in records] == ["CT", "unstated"]
    pairs = [(pair.question, pair.answer) for pair in records[0].qa]
    assert pairs == [("Which plane?", "Axial."), ("And the contrast?", "None.")]
    assert records[1].qa[0].question == "What?"
    assert dropped == {
        "several images in one conversation": 1, "image missing": 1,
        "item dropped: image missing": 1, "no usable turn": 1,
    }  # fmt: skip


def test_llava_med_conversations_find_their_images_anywhere(tmp_path):
    root = tmp_path / "LLaVA-Med"
    rows = [{"id": "31821587_F1", "image": "31821587_F1.jpg", "domain": {"ct_scan": True},
             "conversations": said("What is it?\n<image>", "A CT.")}]  # fmt: skip
    path = root / "llava_med_instruct_60k_inline_mention.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows))
    image(root, "images/31821587_F1.jpg")
    name, (record,), dropped = read(root)
    assert name == "llava_med" and not dropped and record.qa[0].question == "What is it?"


def test_the_papers_own_release_is_read_images_and_text(tmp_path):
    from gmai_lib.dataset import readers, recipes

    root = tmp_path / "GMAI-VL-5.5M-OpenSource"
    path = "images/2d/cls/histopathology/crc100k/a.png"
    pair = said("<image>\nWhat tissue?", "<ref>adipose</ref>")
    lines(root / "annotations" / "GMAI-MM-Percept-1.3M.jsonl",
          [{"image": path, "conversations": pair}])  # fmt: skip
    lines(root / "annotations" / "GMAI-MM-Caption-1.7M.jsonl",
          [{"image": [path], "conversations": said("Describe.\n<image>", "Fat.")}])  # fmt: skip
    lines(root / "annotations" / "GMAI_Text_Single_1M.jsonl",
          [{"conversations": said("What is anemia?", "Too little hemoglobin.")}])  # fmt: skip
    image(root, path)
    found = recipes.find(tmp_path)
    assert [recipe.name for recipe, _ in found] == ["gmai_vl_5_5m", "gmai_vl_5_5m_text"]
    ledger = Ledger()
    pictured, text = list(readers.read_all(found, ledger))
    ledger.check()
    assert (pictured.modality, len(pictured.qa)) == ("histopathology", 2)
    assert {pair.answer for pair in pictured.qa} == {"<ref>adipose</ref>", "Fat."}
    assert (text.modality, text.dimension, text.split) == ("text", "text", "train")
    assert not ledger.dropped


def test_released_pairs_become_samples_with_their_licence(tmp_path):
    pmc_vqa(tmp_path / "data" / "PMC-VQA")
    _, records, _ = read(tmp_path / "data" / "PMC-VQA")
    out, writer = tmp_path / "pairs", writers.TemplateWriter(0)
    manifest = build.write_pairs(records, out, writer=writer, seed=0, chinese_fraction=0.3)
    assert list(out.glob("*.parquet")) and manifest


def test_a_list_that_is_none_is_named(tmp_path):
    root = tmp_path / "PubMedVision"
    root.mkdir()
    (root / "PubMedVision_Alignment_VQA.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"PubMedVision_Alignment_VQA\.json is not a JSON list"):
        read(root)
