"""Drafts of recipes: every phantom source under another name, real folders, what is not known."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny_archive
import tiny_datasets as tiny

from gmai_lib.dataset import (
    build,
    curate,
    looks,
    new,
    phantom_files,
    readers,
    recipes,
    writers,
)
from gmai_lib.schema import Ledger


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    phantom_files.write_sources(folder, seed=0, images_per_modality=12, size=48, processes=1)
    return folder


@pytest.mark.parametrize("recipe", recipes.PHANTOMS, ids=lambda recipe: recipe.name)
def test_a_phantom_source_under_another_name_is_recognised(sources, tmp_path, recipe):
    """The drafted reader is the recipe's own, and it finds as many records and boxes."""
    folder = tmp_path / "something else"
    shutil.copytree(sources / recipe.name, folder)
    drafts = new.draft(folder)
    surest = drafts[0].recipe
    assert surest.reader == recipe.reader
    assert surest.license == "unstated" and surest.modality == surest.task == new.ASK
    stated = new.draft(folder, recipe.modality)[0].recipe
    assert stated == replace(surest, modality=recipe.modality)
    records, ledger = new.attempt(stated, folder)
    ledger.check()
    own = list(readers.read(recipe, sources / recipe.name, Ledger()))
    assert len(records) == len(own)
    if recipe.name != "phantom_dermoscopy":  # its masks are named by the table's column
        assert sum(len(r.boxes) for r in records) == sum(len(r.boxes) for r in own)


@pytest.mark.parametrize("recipe", recipes.PHANTOMS, ids=lambda recipe: recipe.name)
def test_the_draft_is_python(sources, tmp_path, recipe):
    folder = tmp_path / "mine"
    shutil.copytree(sources / recipe.name, folder)
    for draft in new.draft(folder):
        again = eval(draft.source(), {"Recipe": recipes.Recipe})
        assert again == draft.recipe
        assert recipes.matches(again, folder), "its marks find the folder it was drafted from"
        others = [other for other in sources.iterdir() if recipes.matches(again, other)]
        assert not others, "and no other one of the same format"


def test_a_split_in_the_path_is_a_split(tmp_path):
    for split in ("Training", "Testing"):
        for label in ("a", "b"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            (tmp_path / "set" / split / label / "1.png").write_bytes(b"x")
    (draft,) = new.draft(tmp_path / "set")
    assert draft.recipe.options["path"] == "(?P<split>Testing|Training)/(?P<label>[^/]+)/[^/]+"


def _lines(path, rows):
    tiny.text(path, "\n".join(json.dumps(row) for row in rows))


def _yolo(root):
    for name in "ab":
        tiny.picture(root / f"images/{name}.png")
        tiny.text(root / f"labels/{name}.txt", "0 0.5 0.5 0.25 0.25\n2 0.25 0.25 0.1 0.1\n")


def _mask_pairs(root):
    for name in "ab":
        tiny.picture(root / f"set/images/{name}.jpg")
        tiny.mask(root / f"set/masks/{name}_mask.png", (4, 4, 20, 20))


def _captions(root):
    for name in "ab":
        tiny.picture(root / f"figures/{name}.jpg")
    rows = [{"image": f"{name}.jpg", "text": f"A nodule, {name}."} for name in "ab"]
    _lines(root / "captions.jsonl", rows)


def _image_questions(root):
    tiny.picture(root / "pictures/a.png")
    tiny.text(root / "train.csv", "figure,Question,Answer\na.png,Which plane?,axial\n")


def _dialogues(root):
    tiny.picture(root / "images/a.png")
    turns = [{"from": "human", "value": "<image>\nWhich plane?"}, {"from": "gpt", "value": "axial"}]
    tiny.text(root / "train.json", json.dumps([{"image": "images/a.png", "conversations": turns}]))


def _text_dialogues(root):
    turns = [{"from": "human", "value": "What is a cyst?"}, {"from": "gpt", "value": "A sac."}]
    _lines(root / "chats.jsonl", [{"id": 1, "conversations": turns}])


def _parquet_vqa(root):
    import datasets

    png = tiny.picture(root / "a.png").read_bytes()
    row = {"image": {"bytes": png}, "question": "Which plane?", "answer": "axial"}
    (root / "data").mkdir()
    datasets.Dataset.from_list([row]).to_parquet(root / "data/train-00000-of-00001.parquet")
    (root / "a.png").unlink()


def _npz(root):
    shown = {f"{split}_images": np.zeros((2, 28, 28), np.uint8) for split in ("train", "test")}
    shown |= {f"{split}_labels": np.array([[0], [3]]) for split in ("train", "test")}
    root.mkdir(parents=True)
    np.savez(root / "cells.npz", **shown)


def _slides(root):
    import tifffile

    root.mkdir(parents=True)
    pixels = np.full((640, 1024, 3), (205, 130, 190), np.uint8)
    resolution = {"resolution": (20000.0, 20000.0), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(root / "one.tif") as tif:
        for level in range(4):
            more = {"subfiletype": 1} if level else resolution
            part = pixels[:: 2**level, :: 2**level]
            tif.write(part, tile=(128, 128), photometric="rgb", metadata=None, **more)


def _dicom_tree(root):
    study = root / "P1" / tiny_archive.STUDY
    slices = tiny_archive.ct(study / "1-CT", "P1")
    drawn = tiny_archive.rectangle(slices[2], 4, 4, 14, 14)
    masks = study / "2-RTSTRUCT" / "1-1.dcm"
    tiny_archive.rtstruct(masks, slices, {"Mass": [(slices[2], drawn)]})


def _volume_pairs(root):
    for case in ("c1", "c2"):
        values = np.zeros((20, 20, 4), np.uint8)
        tiny.nifti(root / case / f"{case}_t1.nii.gz", values.astype(np.int16) + 5)
        values[4:9, 4:9, 1:3] = 1
        tiny.nifti(root / case / f"{case}_seg.nii.gz", values)


MADE = {
    "yolo": (_yolo, 2, 4),
    "mask_pairs": (_mask_pairs, 2, 2),
    "captions": (_captions, 2, 0),
    "image_questions": (_image_questions, 1, 0),
    "dialogues": (_dialogues, 1, 0),
    "text_dialogues": (_text_dialogues, 1, 0),
    "parquet_vqa": (_parquet_vqa, 1, 0),
    "npz": (_npz, 4, 0),
    "slides": (_slides, 2, 0),
    "dicom_tree": (_dicom_tree, 4, 1),
    "volume_pairs": (_volume_pairs, 8, 4),
}


@pytest.mark.parametrize("reader", sorted(MADE))
def test_a_format_is_recognised_and_its_draft_reads_it(tmp_path, reader):
    make, records, boxes = MADE[reader]
    root = tmp_path / "a new set"
    make(root)
    surest = new.draft(root, "text" if reader.startswith("text") else "CT")[0]
    assert surest.recipe.reader == reader, surest.because
    found, ledger = new.attempt(surest.recipe, root)
    ledger.check()
    assert (len(found), sum(len(r.boxes) for r in found)) == (records, boxes)
    again = eval(surest.source(), {"Recipe": recipes.Recipe})
    assert again == surest.recipe and recipes.matches(again, root)


def test_every_format_is_looked_for():
    """What has no function yet is named here, so that a new reader is not forgotten."""
    source = (new.Path(looks.__file__)).read_text("utf-8")
    missing = {name for name in readers.READERS if f'"{name}"' not in source}
    # Listed cases; rows of text questions, and films whose table's columns only a person can name.
    assert missing == {"volumes", "question_rows", "video_table"}


def test_what_is_not_known_is_said(tmp_path):
    (tmp_path / "data.bin").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"in no format that a reader knows .* 1 files: 1 .bin"):
        new.draft(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        new.draft(tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="it holds 0 files: none"):
        new.draft(empty)


@pytest.mark.parametrize("broken", ["not json", "[]", "{}", "[1]", '{"a": [{}]}', "\x00"])
def test_broken_indexes_are_passed_over(tmp_path, broken):
    (tmp_path / "index.json").write_text(broken)
    (tmp_path / "sheet.xml").write_text(broken)
    (tmp_path / "table.csv").write_text(broken)
    with pytest.raises(ValueError, match="in no format"):
        new.draft(tmp_path)


def test_a_folder_nobody_knows_becomes_pairs_by_one_recipe(sources, tmp_path, monkeypatch):
    """What a user does: draft, fill in the questions, paste; notebooks 01 to 03 do the rest."""
    shutil.copytree(sources / "phantom_xray", tmp_path / "data" / "Ward 7 [chest]")
    with pytest.raises(ValueError, match="no dataset that a recipe recognises"):
        recipes.find(tmp_path / "data")
    draft = new.draft(tmp_path / "data" / "Ward 7 [chest]", "X-ray")[0].recipe
    filled = replace(draft, task="disease diagnosis", license="CC0-1.0", citation="nobody")
    monkeypatch.setattr(recipes, "RECIPES", (*recipes.RECIPES, filled))
    ledger = Ledger()
    records = list(readers.read_all(recipes.find(tmp_path / "data"), ledger))
    kept = curate.assign_splits(
        list(curate.apply(records, ledger)), seed=0, validation_fraction=0.1, test_fraction=0.1
    )
    ledger.check()
    writer = writers.TemplateWriter(0)
    made = build.write_pairs(kept, tmp_path / "pairs", writer=writer, seed=0, chinese_fraction=0.3)
    assert {row["source"] for row in made["counts"]} == {filled.name} == {"ward_7_chest_"}
    lost = {row["outcome"]: row["count"] for row in ledger.rows() if row["outcome"] != "kept"}
    assert made["num_records"] == 6 and lost == {"no label": 6}
    assert made["num_samples"] >= 3 * 6
    assert made["fidelity"]["checked"] and not made["fidelity"]["refused"]


def test_command_line(sources, tmp_path, capsys):
    folder = tmp_path / "chest"
    shutil.copytree(sources / "phantom_xray", folder)
    new.main([str(folder), "--modality", "X-ray"])
    said = capsys.readouterr().out
    assert "surest: annotations.json is a COCO index of 12 images" in said
    assert "Recipe(" in said and "tried on the first 12 records" in said
    assert "6 of these images have neither label nor question" in said
    new.main([str(sources / "phantom_xray")])
    assert "is recognised already: phantom_xray" in capsys.readouterr().out
    for wrong in ([str(tmp_path / "none")], [str(folder), "--modality", "xray"]):
        with pytest.raises(SystemExit):
            new.main(wrong)
