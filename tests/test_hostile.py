"""A thousand mutated files: every format, broken in every way, and nothing crashes or is lost."""

import random
import shutil
import time

import pytest
import test_layouts as layouts
import test_question_files as questions
import test_released as released
import test_segmentations as segmentations
import test_slides as slides
import test_videos as films
import test_volume_recipes as volumes
import tiny_datasets as tiny

from gmai_lib.dataset import readers, recipes
from gmai_lib.schema import Ledger

ROUNDS = 28  # of every dataset, several files each
SECONDS = 10  # at most, for one file
TEXT = (".json", ".csv", ".xml", ".txt", ".jsonl")


def question_sets(root):
    """SLAKE, PathVQA, MedMCQA and MedQA in small."""
    questions.slake(root / "SLAKE")
    rows = [questions.pathvqa_row(n, "what is this?", "a cell") for n in range(6)]
    questions.parquet(root / "path-vqa" / "data" / "train-00000-of-00001.parquet", rows)
    rows = [questions.mcqa(n) for n in range(6)]
    questions.parquet(root / "medmcqa" / "data" / "train-00000-of-00001.parquet", rows)
    line = '{"question": "Which?", "answer": "x", "options": {"A": "x", "B": "y"}}\n'
    tiny.text(root / "medqa" / "phrases_no_exclude_train.jsonl", line * 5)


def film_sets(root):
    """Cholec80 and nnU-Net folders of MetaImage and NRRD in small."""
    films.film(root / "cholec80" / "videos" / "video01.mp4", frames=60)
    rows = [f"{frame}\t1\t0\t0\t0\t0\t0\t0" for frame in (0, 25, 50)]
    films.table(root / "cholec80" / "tool_annotations" / "video01-tool.txt", rows)


def old_sets(root):
    """The eight datasets of shared/data in small."""
    for make in (
        tiny.bccd, tiny.brain_tumor, tiny.covid, tiny.dsb2018, tiny.medquad, tiny.sam_med2d,
        tiny.vqa_rad, tiny.totalsegmentator,
    ):  # fmt: skip
        make(root / make.__name__)


def archive_sets(root):
    """A CT series with an RTSTRUCT and one with a DICOM SEG."""
    segmentations.hcc(root)
    segmentations.nsclc(root)


def released_sets(root):
    """PMC-VQA, PMC-OA, PubMedVision and the paper's own release in small."""
    released.pmc_vqa(root / "PMC-VQA")
    row = {"image": "PMC1_fig_1.jpg", "caption": "An axial CT slice."}
    released.lines(root / "pmc_oa" / "pmc_oa.jsonl", [row] * 3)
    turns = released.said("<image>\nWhich plane?", "axial")
    talk = {"image": ["images/a.jpg"], "conversations": turns, "id": "1"}
    tiny.text(root / "PubMedVision" / "PubMedVision_Alignment_VQA.json", [talk] * 3)
    annotations = root / "GMAI-VL-5.5M" / "annotations"
    talk = {"image": "images/2d/s/CT/a.jpg", "conversations": turns}
    released.lines(annotations / "GMAI-MM-Caption-1.7M.jsonl", [talk] * 3)
    released.lines(annotations / "GMAI_Text_single.jsonl", [{"conversations": turns}] * 3)
    for name in ("pmc_oa/PMC1_fig_1.jpg", "PubMedVision/images/a.jpg"):
        released.image(root, name)
    released.image(root, "GMAI-VL-5.5M/images/2d/s/CT/a.jpg")


def slide_sets(root):
    """Camelyon16 in small: two slides and their outlines."""
    slides.camelyon(root)


def volume_sets(root):
    """Volumes beside their masks: NIfTI, with a table of splits, and MetaImage."""
    for name in ("acdc", "promise12", "kits23"):
        volumes.plant(root, name)
    case = root / "Totalsegmentator_dataset_v2"
    volumes.save(case / "s0000" / "ct.nii.gz", volumes.VOLUME)
    volumes.save(case / "s0000" / "segmentations" / "spleen.nii.gz", volumes.block([1]))
    tiny.text(case / "meta.csv", "image_id;age;split\ns0000;72;train\n")


def table_sets(root):
    """CheXpert and the NIH's table of a finding in every column or cell."""
    for name in ("chexpert", "nih_chestxray14"):
        folder, files, tables = layouts.TREES[name]
        layouts.plant(root / folder, files, tables)


MAKERS = {
    "released": released_sets,
    "slides": slide_sets,
    "volumes": volume_sets,
    "tables": table_sets,
    "old": old_sets,
    "questions": question_sets,
    "films": film_sets,
    "archive": archive_sets,
}


# Files broken, at least 1,900 in all.
LEAST = {"old": 700, "questions": 300, "films": 90, "archive": 200}
LEAST |= {"released": 250, "slides": 60, "volumes": 200, "tables": 100}


def mutate(path, rng, others):
    """Break one file in one of ten ways; return which."""
    data = path.read_bytes()
    ways = ["flip", "cut", "empty", "zeros", "swap", "double", "noise", "huge number"]
    ways += ["traversal", "shift"] if path.suffix in TEXT else []
    way = rng.choice(ways)
    if way == "flip" and data:
        broken = bytearray(data)
        for _ in range(rng.choice((1, 8, 64))):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        data = bytes(broken)
    elif way == "cut":
        data = data[: rng.randrange(len(data) + 1)]
    elif way == "empty":
        data = b""
    elif way == "zeros":
        data = bytes(len(data))
    elif way == "swap":
        data = rng.choice(others).read_bytes()
    elif way == "double":
        data = data * 2
    elif way == "noise":
        data = rng.randbytes(min(len(data), 4096))
    elif way == "huge number":
        for digit in (b"1", b"2", b"0"):
            data = data.replace(digit, b"999999999999", 1)
    elif way == "traversal":
        for ending in (b".jpg", b".png", b".jpeg"):
            data = data.replace(b"images/", b"../../../etc/").replace(ending, b"/../../x" + ending)
    elif way == "shift":
        data = data.replace(b",", b"", 1).replace(b'"', b"", 1).replace(b"<", b"", 1)
    path.write_bytes(data)
    return way


def listing(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("made", sorted(MAKERS))
def test_mutated_files_are_counted_or_named_and_nothing_else_happens(tmp_path, made):
    whole, copy = tmp_path / "whole", tmp_path / "work" / "copy"
    MAKERS[made](whole)
    broken, refused, ways = 0, 0, set()
    for recipe, folder in recipes.find(whole):
        names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        for turn in range(ROUNDS * (4 if made in ("questions", "films") else 1)):
            rng = random.Random(f"{folder.name}{turn}")
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy / folder.name)
            chosen = rng.sample(names, min(len(names), rng.choice((1, 3, 12))))
            others = [whole / folder.name / name for name in names]
            ways |= {mutate(copy / folder.name / name, rng, others) for name in chosen}
            broken += len(chosen)
            before, start = listing(tmp_path), time.monotonic()
            ledger = Ledger()
            try:
                for record in readers.read(recipe, copy / folder.name, ledger):
                    assert record.image is None or record.width > 0
                    assert all(0 <= b.x1 < b.x2 <= 1 for b in record.boxes)
                ledger.check()
            except ValueError as error:
                refused += 1
                assert folder.name in str(error), f"{error!r} names no path"
            assert time.monotonic() - start < SECONDS * len(chosen)
            assert listing(tmp_path) == before, "a reader wrote or changed a file"
    assert broken >= LEAST[made], broken
    assert len(ways) >= 8 and refused < broken
