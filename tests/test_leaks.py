"""Leaks: copies in every disguise are found, other images of the same kind are not."""

import io
from dataclasses import replace

import numpy as np
import pytest
import tiny_datasets as tiny
from PIL import Image
from synthetic_records import record

from gmai_lib.dataset import curate, images, leaks, phantoms, readers, recipes
from gmai_lib.schema import Ledger, QuestionAnswer

KINDS = [(m, organ) for m, organs in phantoms.FINDINGS.items() for organ in organs]


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


def test_processes_do_not_change_what_is_found(monkeypatch):
    monkeypatch.setattr(leaks, "_CHUNK", 3)
    pictures = drawn(8)
    training = [a_record(f"r{i}", resized(p)) for i, p in enumerate(pictures)]
    training.insert(4, replace(a_record("no image", pictures[0]), image=None))
    tested = [
        replace(a_record("without", pictures[0]), image=None),
        *(a_record(f"t{i}", p) for i, p in enumerate(pictures)),
    ]
    rows = leaks.find_leaks(training, tested)
    assert len(rows) >= 7
    assert leaks.find_leaks(training, tested, processes=2) == rows


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


def by_question(number, pixels, source, sides):
    """A record with one question for each of `sides`, as the reader of VQA-RAD yields it."""
    qa = tuple(QuestionAnswer(question="Where?", answer="Left.", item=f"{s}/q") for s in sides)
    return a_record(f"{source}{number}", pixels, source, qa=qa, split="")


def test_test_images_inside_the_training_set_are_found():
    """The pattern of MedTrinity-25M issue 26, by the phantom twin of VQA-RAD's row-wise split."""
    pictures = drawn(40)
    torn = [by_question(i, p, "row_wise", ("train", "test")) for i, p in enumerate(pictures[:15])]
    whole = [
        by_question(i, p, "image_wise", ("test",) if i % 5 == 0 else ("train",) * 2)
        for i, p in enumerate(pictures[15:35])
    ]
    training, tested = leaks.as_published([*torn, *whole])
    assert len(training) == 15 + 16 and len(tested) == 15 + 4
    assert all(q.item.startswith("test/") for r in tested for q in r.qa)
    rows = leaks.find_leaks(training, tested)
    clean, leaking = leaks.summary(rows, tested)
    assert clean["benchmark"] == "image_wise" and clean["leaking"] == 0 and not clean["examples"]
    assert leaking["items"] == leaking["leaking"] == leaking["same bytes"] == 15
    assert leaking["removed from training"] == 15
    assert leaking["examples"].startswith("row_wise0@test < row_wise0@train (same bytes); ")
    left = leaks.without(training, rows)
    assert {r.source for r in left} == {"image_wise"}
    assert leaks.find_leaks(left, tested) == []


def test_every_benchmark_is_compared_with_all_training_data():
    """One training set, three benchmarks, a different rule for each."""
    pictures = drawn(8)
    words = "Iron deficiency is the most common cause of anaemia in adults and children alike."
    training = [
        a_record("r0", mirrored(pictures[0])),
        replace(a_record("r1", pictures[1], "ward"), patient="p"),
        text("r2", "What causes anaemia?", words),
        a_record("r3", compressed(pictures[0])),
    ]
    tested = [
        a_record("t0", pictures[0], "external"),
        a_record("t1", pictures[5], "external"),
        replace(a_record("t2", pictures[2], "ward"), patient="p"),
        text("t3", "What causes anaemia?", words, "exam"),
    ]
    rows = {row["benchmark"]: row for row in _summary(training, tested)}
    assert [rows[name]["leaking"] for name in ("exam", "external", "ward")] == [1, 1, 1]
    assert rows["external"]["items"] == 2 and rows["external"]["looks the same"] == 1
    assert rows["ward"]["same patient"] == rows["exam"]["same text"] == 1
    assert rows["external"]["removed from training"] == 2
    said = "t0 < r0 (looks the same); t0 < r3 (looks the same)"
    assert rows["external"]["examples"] == said


def _summary(training, tested):
    return leaks.summary(leaks.find_leaks(training, tested), tested)


def test_vqa_rads_own_split_leaks(capsys):
    """Its lists divide questions, not images: test images are also training images."""
    root = tiny.real_data() / "vqa_rad"
    records = curate.apply(readers.read(recipes.get("vqa_rad"), root, Ledger()), Ledger())
    (row,) = _summary(*leaks.as_published(records))
    assert row["leaking"] == row["same bytes"] == row["items"] == 64
    leaks.main([str(root)])
    assert "benchmark: vqa_rad, items: 64, leaking: 64" in capsys.readouterr().out


def test_command_line_compares_other_training_data_with_a_benchmark(tmp_path, capsys):
    tiny.vqa_rad(tmp_path / "vqa_rad")
    read = readers.read(recipes.get("vqa_rad"), tmp_path / "vqa_rad", Ledger())
    records = list(curate.apply(read, Ledger()))
    renamed = enumerate(records)
    foreign = [replace(r, source="foreign", id=f"f{i}", split="train") for i, r in renamed]
    curate.write_records(foreign, tmp_path / "records")
    leaks.main([str(tmp_path / "vqa_rad"), "--training", str(tmp_path / "records")])
    said = capsys.readouterr().out
    tested = leaks.as_published(records)[1]
    assert f"items: {len(tested)}, leaking: {len(tested)}, same bytes: {len(tested)}" in said
    with pytest.raises(SystemExit):
        leaks.main([str(tiny.covid(tmp_path / "covid_kjr_notes"))])
    assert "no dataset with a test side" in capsys.readouterr().err
