"""Synthetic Records of every kind the readers yield; the images are tiny noise."""

import io
import random

import numpy as np
from PIL import Image

from gmai_lib.schema import NO_FINDING, Box, QuestionAnswer, Record

# Modality -> department, then organ -> names of findings: the vocabulary of the phantoms.
PHANTOMS = {
    "CT": ("pulmonary medicine", {"lung": "nodule,cyst,calcification"}),
    "MR": ("neurosurgery", {"brain": "mass,cyst,microbleed", "knee": "mass,cyst"}),
    "X-ray": (
        "orthopedic surgery",
        {"lung": "nodule,cavity,calcification", "hand": "foreign body,cyst,calcification"},
    ),
    "ultrasound": ("endocrinology", {"thyroid": "nodule,cyst,calcification"}),
    "PET": ("oncology", {"torso": "hypermetabolic focus"}),
    "OCT": ("ophthalmology", {"retina": "drusen,cyst,exudate"}),
    "fundus": ("ophthalmology", {"retina": "hemorrhage,laser scar,exudate"}),
    "dermoscopy": ("dermatology", {"skin": "nodule,ulcer,globules"}),
    "endoscopy": (
        "gastroenterology and hepatology",
        {"colon": "polyp,ulcer,bleeding", "stomach": "polyp,ulcer,bleeding"},
    ),
    "histopathology": (
        "laboratory medicine and pathology",
        {"breast": "tumor nest,necrosis,lymphocyte cluster"},
    ),
    "microscopy": ("hematology", {"blood": "white blood cell,malaria parasite,platelet clump"}),
}

FINDINGS = sorted(
    {
        name
        for _, organs in PHANTOMS.values()
        for text in organs.values()
        for name in text.split(",")
    }
)
ORGANS = sorted({organ for _, organs in PHANTOMS.values() for organ in organs})


def png(seed: int = 0, size: int = 16) -> bytes:
    """Encoded grey noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PNG = png()


def record(name: str = "a", **changes) -> Record:
    """A CT record without labels; `changes` override fields."""
    fields = {
        "id": f"2d#cls#CT#made_up#{name}.png",
        "source": "made_up",
        "path": f"{name}.png",
        "dimension": "2d",
        "modality": "CT",
        "department": "pulmonary medicine",
        "task": "disease diagnosis",
        "license": "CC0-1.0",
        "access": "open",
        "patient": f"patient {name}",
        "split": "train",
        "image": PNG,
        "width": 16,
        "height": 16,
        "organ": "lung",
        "sha256": "00",
        "phash": "00",
    }
    return Record(**fields | changes)


def box(label: str, x1: float, y1: float, x2: float, y2: float) -> Box:
    """A Box without keywords."""
    return Box(label=label, x1=x1, y1=y1, x2=x2, y2=y2)


def phantom(number: int, **changes) -> Record:
    """Phantom-like record `number`: random modality, finding or none, and 0 to 3 boxes."""
    rng = random.Random(number)
    modality = rng.choice(sorted(PHANTOMS))
    department, organs = PHANTOMS[modality]
    organ = rng.choice(sorted(organs))
    names = organs[organ].split(",")
    finding = rng.choice([*names, NO_FINDING])
    boxes = []
    if finding != NO_FINDING:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            side = rng.uniform(0.09, 0.22)
            x, y = rng.uniform(0, 1 - side), rng.uniform(0, 1 - side)
            boxes.append(box(finding, x, y, x + side, y + side))
    fields = {
        "id": f"2d#cls#{modality}#phantom#{number}",
        "source": f"phantom_{modality.lower().replace('-', '')}",
        "modality": modality,
        "department": department,
        "organ": organ,
        "labels": (finding,),
        "absent": tuple(n for n in names if n != finding),
        "boxes": tuple(boxes),
        "boxes_are_complete": True,
        "severity": rng.choice(("mild", "moderate", "severe")) if boxes else "",
    }
    return record(str(number), **fields | changes)


def blood_cells() -> Record:
    """BCCD-like: many boxes of three kinds."""
    boxes = [box("red blood cell", 0.05 * i, 0.1, 0.05 * i + 0.1, 0.2) for i in range(12)]
    boxes += [box("white blood cell", 0.6, 0.6, 0.9, 0.9), box("platelet", 0.1, 0.8, 0.14, 0.85)]
    return record(
        "cells",
        modality="microscopy",
        department="hematology",
        task="cell recognition",
        organ="blood",
        labels=("red blood cell", "white blood cell", "platelet"),
        boxes=tuple(boxes),
        boxes_are_complete=True,
    )


def nuclei() -> Record:
    """DSB2018-like: 40 instances of one kind."""
    return record(
        "nuclei",
        modality="microscopy",
        department="laboratory medicine and pathology",
        task="cell recognition",
        organ="cell culture or tissue",
        labels=("nucleus",),
        boxes=tuple(box("nucleus", 0.02 * i, 0.4, 0.02 * i + 0.05, 0.5) for i in range(40)),
        boxes_are_complete=True,
    )


def organs() -> Record:
    """SAM-Med2D- or TotalSegmentator-like: structures with one or two boxes each."""
    return record(
        "organs",
        department="unstated",
        task="organ recognition",
        organ="",
        labels=("liver", "kidney_left", "rib_left_9", "vertebrae_T9", "lung_middle_lobe_right")
        + ("hip_left",),
        boxes=(
            box("liver", 0.1, 0.2, 0.4, 0.6),
            box("kidney_left", 0.7, 0.5, 0.8, 0.6),
            box("hip_left", 0.6, 0.6, 0.7, 0.7),
            box("hip_left", 0.75, 0.6, 0.8, 0.7),
        ),
        boxes_are_complete=True,
    )


def tumor() -> Record:
    """Brain tumor class folder."""
    return record(
        "tumor",
        modality="MR",
        department="neurosurgery",
        organ="brain",
        labels=("glioma",),
        absent=("meningioma", "pituitary tumor", NO_FINDING),
    )


def noted() -> Record:
    """COVID-notes-like: a label and a free-text report."""
    return record(
        "noted",
        modality="X-ray",
        labels=("COVID-19",),
        report="COVID-19 pneumonia. Anteroposterior chest radiograph shows multifocal patchy "
        "peripheral consolidations in bilateral lungs, except for left upper lung zone.",
    )


def asked(pairs: int = 11) -> Record:
    """VQA-RAD-like: question-answer pairs about an image."""
    qa = [QuestionAnswer(question=f"Is sign {i} seen?", answer="Yes") for i in range(pairs)]
    return record("asked", organ="chest", qa=(*qa, QuestionAnswer(question="Why?", answer=" ")))


def text_only(answer: str = "A nodule is a small round growth.", pairs: int = 2) -> Record:
    """MedQuAD-like: text QA without image."""
    qa = [QuestionAnswer(question=f"What is term {i} ?", answer=answer) for i in range(pairs)]
    return record(
        "text",
        id="text#qa#text#made_up#text.xml",
        dimension="text",
        modality="text",
        department="unstated",
        task="text QA",
        organ="",
        image=None,
        width=0,
        height=0,
        qa=tuple(qa),
    )


def bare() -> Record:
    """pydicom-sample-like: modality and organ only."""
    return record("bare", modality="MR", department="unstated", organ="knee")


def one_of_each() -> list[Record]:
    """Every kind of record."""
    made = [phantom(i) for i in range(12)]
    return [
        *made,
        blood_cells(),
        nuclei(),
        organs(),
        tumor(),
        noted(),
        asked(),
        text_only(),
        bare(),
    ]
