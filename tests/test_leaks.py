"""Leaks: copies in every disguise are found, other images of the same kind are not."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_records import record

from gmai_lib.dataset import curate, images, leaks, phantoms, readers, recipes
from gmai_lib.schema import Ledger, QuestionAnswer

KINDS = [(m, organ) for m, organs in phantoms.FINDINGS.items() for organ in organs]
DATA = Path(__file__).parents[2] / "shared" / "data"


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    return [phantoms.draw(*(KINDS[i % len(KINDS)][:1]), rng).image for i in range(count)]


def a_record(name, pixels, source="a", **more):
    data = pixels if isinstance(pixels, bytes) else images.to_png(pixels)
    height, width = images.decode(data).shape[:2]
    made = record(source=source, image=data, width=width, height=height)
    return replace(
        made, id=name, labels=(), boxes=(), absent=(), patient="", volume="", sha256="", **more
    )


def resized(p):
    return np.asarray(Image.fromarray(p).resize((91, 77)))


def compressed(p):
    stream = io.BytesIO()
    Image.fromarray(p).save(stream, "JPEG", quality=40)
    return stream.getvalue()


def windowed(p):
    return np.clip((p.astype(float) - 20) * 1.25, 0, 255).astype(np.uint8)


def cropped(p):
    rows, columns = (round(0.05 * side) for side in p.shape[:2])
    return np.ascontiguousarray(p[rows:-rows, columns:-columns])


def mirrored(p):
    return np.ascontiguousarray(p[:, ::-1])


DISGUISES = {f.__name__: f for f in (resized, compressed, windowed, cropped, mirrored)}


@pytest.mark.parametrize("name", DISGUISES)
def test_a_disguised_copy_is_found(name):
    pictures = drawn(40)
    tested = [a_record(f"t{i}", p, "bench") for i, p in enumerate(pictures)]
    training = [a_record(f"r{i}", DISGUISES[name](p)) for i, p in enumerate(pictures)]
    rows = leaks.find_leaks(training, tested)
    own = {row["item"] for row in rows if row["item"][1:] == row["trained"][1:]}
    assert len(own) >= 38, f"{len(own)} of 40 {name} copies found"
    assert {row["reason"] for row in rows} == {"looks the same"}


def test_other_images_of_the_same_kind_are_not_leaks():
    tested = [a_record(f"t{i}", p, "bench") for i, p in enumerate(drawn(60))]
    training = [a_record(f"r{i}", p) for i, p in enumerate(drawn(60, seed=1))]
    assert len({row["item"] for row in leaks.find_leaks(training, tested)}) <= 3


def test_a_near_hash_alone_is_no_leak(monkeypatch):
    """PET phantoms hash alike, since all are one bright body; the pixels tell them apart."""
    seeds = [np.random.default_rng(seed) for seed in range(60)]
    pictures = [phantoms.draw("PET", rng).image for rng in seeds]
    tested = [a_record(f"t{i}", p, "bench") for i, p in enumerate(pictures[:30])]
    training = [a_record(f"r{i}", p) for i, p in enumerate(pictures[30:])]
    assert leaks.find_leaks(training, tested) == []
    monkeypatch.setattr(leaks, "MIN_CORRELATION", 0.0)
    assert len({row["item"] for row in leaks.find_leaks(training, tested)}) >= 3


def test_bytes_patients_and_volumes():
    one, two, three = drawn(3)
    tested = [
        replace(a_record("t0", one), patient="p1"),
        replace(a_record("t1", two), volume="v1"),
    ]
    training = [
        a_record("same", one, "b"),
        replace(a_record("sibling", three), patient="p1"),
        replace(a_record("slice", drawn(4)[3]), volume="v1"),
        replace(a_record("stranger", three, "other source"), patient="p1"),
    ]
    rows = leaks.find_leaks(training, tested)
    assert {(row["item"], row["trained"], row["reason"]) for row in rows} == {
        ("t0", "same", "same bytes"),
        ("t0", "sibling", "same patient"),
        ("t1", "slice", "same volume"),
    }
    assert [r.id for r in leaks.without(training, rows)] == ["stranger"]
    (row,) = leaks.summary(rows, tested)
    assert row["items"] == row["leaking"] == 2 and row["same patient"] == 1


def text(name, question, answer, source="a"):
    made = record(source=source, image=None)
    qa = (QuestionAnswer(question=question, answer=answer),)
    return replace(made, id=name, modality="text", task="text QA", labels=(), boxes=(), qa=qa)


def test_texts_are_compared_by_ngrams():
    answer = "Iron deficiency is the most common cause of anaemia in adults and in children alike."
    tested = [
        text("t0", "What causes anaemia?", answer, "bench"),
        text("t1", "What is asthma?", "A disease of the airways that comes and goes.", "bench"),
    ]
    training = [
        text("r0", "Note. What causes anaemia?", answer + " See a doctor."),
        text("r1", "Hi?", "No."),
    ]
    rows = leaks.find_leaks(training, tested)
    assert [(row["item"], row["trained"], row["reason"]) for row in rows] == [
        ("t0", "r0", "same text")
    ]


def test_nothing_to_compare_is_no_leak():
    flat = np.full((64, 64), 7, np.uint8)
    assert leaks.find_leaks([], [a_record("t", drawn(1)[0])]) == []
    assert leaks.find_leaks([a_record("r", flat + 1)], [a_record("t", flat)]) == []


def test_test_images_inside_the_training_set_are_found():
    """The pattern of MedTrinity-25M issue 26, by the phantom twin of VQA-RAD's row-wise split."""
    pictures = drawn(20)
    questions = [(i, "train" if i % 3 else "test") for i in range(20)] + [
        (0, "train"),
        (3, "train"),
    ]
    made = [
        (a_record(f"{split}{number}", pictures[i], "row_wise"), split)
        for number, (i, split) in enumerate(questions)
    ]
    rows = leaks.find_leaks(
        [r for r, split in made if split == "train"], [r for r, split in made if split == "test"]
    )
    assert {row["item"] for row in rows} == {"test0", "test3"}


@pytest.mark.skipif(not (DATA / "vqa_rad").is_dir(), reason="../shared/data/vqa_rad is absent")
def test_vqa_rads_own_split_leaks():
    """Its lists divide questions, not images: test images are also training images."""
    read = readers.read(recipes.get("vqa_rad"), DATA / "vqa_rad", Ledger())
    records = list(curate.apply(read, Ledger()))
    sides = {
        side: [
            replace(r, id=f"{side} {r.id}")
            for r in records
            if any(q.item.startswith(f"{side}/") for q in r.qa)
        ]
        for side in ("train", "test")
    }
    rows = leaks.find_leaks(sides["train"], sides["test"])
    (row,) = leaks.summary(rows, sides["test"])
    assert row["leaking"] == row["items"] > 0, "all test images of these files are also in train"
