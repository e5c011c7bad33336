"""Registry of public annotated datasets: what there is to build from, and how one gets it.

    table = catalog.load()                                  # pandas, one row per dataset
    catalog.find(table, modality="fundus", access="open", annotation="segmentation")
    catalog.coverage(table, "modalities", "department")     # how many datasets per pair
    python -m gmai_lib.dataset.catalog --modality fundus --access open

`catalog.csv` holds facts from public lists (Project Imaging-X, Awesome-Medical-Dataset, MedMNIST)
and the datasets' own pages: a dataset is in it only if its modality, kind of annotation, access and
homepage are known. A licence nobody states is "unstated", never guessed. Department and clinical
task are not stated by the lists; they follow from organ and annotation by the rules below.

Paper: section 3.1 (219 sources, whose names are not public), figures 2 and 3 (vocabularies).
"""

import argparse
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from gmai_lib.schema import ACCESS, DEPARTMENTS, MODALITIES, TASKS

# Beyond the paper's thirteen, named as the datasets name them.
OTHER_MODALITIES = (
    "angiography", "clinical photography", "colposcopy", "confocal endomicroscopy", "fluoroscopy",
    "mammography", "nuclear medicine", "surgical microscopy",
)  # fmt: skip
ANNOTATIONS = (
    "classification", "segmentation", "detection", "registration", "reconstruction", "tracking",
    "prognosis", "estimation", "captioning", "synthesis", "VQA", "QA", "action recognition",
    "image quality", "landmarks", "depth",
)  # fmt: skip
DIMENSIONS = ("2D", "3D", "video", "text")
# The department that looks after an organ; the phantoms have the same (recipes_phantom.py).
DEPARTMENT_OF_ORGAN = {
    "abdomen": "general surgery",
    "blood": "hematology",
    "bones and joints": "orthopedic surgery",
    "brain": "neurosurgery",
    "breast": "general surgery",
    "cells and tissue": "laboratory medicine and pathology",
    "gallbladder": "general surgery",
    "gastrointestinal tract": "gastroenterology and hepatology",
    "head and neck": "otolaryngology",
    "heart and vessels": "cardiovascular surgery",
    "instruments": "general surgery",
    "kidney": "nephrology and hypertension",
    "liver": "general surgery",
    "lung": "pulmonary medicine",
    "pancreas": "gastroenterology and hepatology",
    "prostate": "urology",
    "retina": "ophthalmology",
    "skin": "dermatology",
    "thyroid": "endocrinology",
    "unstated": "unstated",
    "uterus and ovary": "obstetrics and gynecology",
    "whole body": "unstated",
}
# What a label says about the clinical task, tried from top to bottom; the rest goes by annotation.
_TASK_WORDS = (
    ("severity grading", r"\bgrading\b|\bseverity\b"),
    ("surgical workflow recognition", r"\bphases?\b|workflow|surgical step"),
    ("surgical instrument recognition", r"instrument|surgical tool|forceps|grasper"),
    ("disease diagnosis", r"tumou?r|lesion|cancer|nodule|polyp|carcinoma|metasta|disease|covid"),
    ("disease diagnosis", r"hemorrhage|stroke|glioma|aneurysm|effusion|fracture|pneumonia"),
    ("blood vessels recognition", r"\bvessels?\b|vasculature|\barter(?:y|ies)\b"),
    ("bone", r"bone|vertebra|rib|skull|pelvi|teeth|tooth"),
    ("muscle", r"muscle"),
    ("nervous tissue", r"nerve|white matter|gr[ae]y matter|hippocamp"),
    ("microorganism recognition", r"bacteria|malaria|parasite|fung"),
    ("cell recognition", r"cell|nucle(?:us|i)|mitochond"),
)
_TASK_OF_ANNOTATION = {
    "action recognition": "surgeon action recognition",
    "image quality": "image quality grading",
    "segmentation": "organ recognition",
    "detection": "organ recognition",
    "landmarks": "organ recognition",
    "classification": "disease diagnosis",
    "prognosis": "disease diagnosis",
    "VQA": "attribute recognition",
    "captioning": "attribute recognition",
    "QA": "text QA",
}
# Percent of records; arXiv:2411.14522 v2, figure 3. The other eleven cannot be read off it.
PAPER_DEPARTMENT_SHARES = {
    "orthopedic surgery": 12.9,
    "general surgery": 10.3,
    "gastroenterology and hepatology": 9.7,
    "hematology": 9.2,
    "pulmonary medicine": 9.0,
    "sports medicine": 8.2,
    "endocrinology": 1.3,
}
LISTS = ("modalities", "annotations", "dimensions")  # columns that hold several values


def load() -> pd.DataFrame:
    """Return the registry, one row per dataset.

    name; modalities, annotations and dimensions (tuples over MODALITIES + OTHER_MODALITIES,
    ANNOTATIONS, DIMENSIONS); organ; labels as the list words them; size (images, volumes or cases
    as the source counts them; NA where unknown); license (SPDX or "unstated"); access (one of
    schema.ACCESS); obtained (how); homepage; year; recipe (of RECIPES, or ""); department;
    task (clinical, "unstated" where annotation serves none, such as registration).
    """
    path = Path(__file__).with_name("catalog.csv")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in LISTS:
        table[column] = table[column].map(lambda text: tuple(text.split(";")))
    for column in ("size", "year"):
        table[column] = pd.to_numeric(table[column]).astype("Int64")
    table["department"] = table.organ.map(DEPARTMENT_OF_ORGAN)
    table["task"] = [_task(row) for row in table.itertuples()]
    return table


def _task(row) -> str:
    known = [_TASK_OF_ANNOTATION.get(name, "unstated") for name in row.annotations]
    if set(known) == {"unstated"}:
        return "unstated"
    for task, pattern in _TASK_WORDS:
        if re.search(pattern, f"{row.name} {row.labels}", re.IGNORECASE):
            return task
    return next(task for task in known if task != "unstated")


def find(
    table: pd.DataFrame,
    *,
    modality: str = "",
    department: str = "",
    task: str = "",
    annotation: str = "",
    dimension: str = "",
    access: str = "",
    recipe: bool | None = None,
) -> pd.DataFrame:
    """Return the rows that have all of these; "" or None means any.

    Raises ValueError that lists the vocabulary for a word outside it.
    """
    wanted = {
        "modalities": (modality, MODALITIES + OTHER_MODALITIES),
        "department": (department, DEPARTMENTS),
        "task": (task, (*TASKS, "unstated")),
        "annotations": (annotation, ANNOTATIONS),
        "dimensions": (dimension, DIMENSIONS),
        "access": (access, ACCESS),
    }
    for column, (value, known) in wanted.items():
        if not value:
            continue
        if value not in known:
            raise ValueError(f"unknown {column} {value!r}; known: {', '.join(known)}")
        if column in LISTS:
            table = table[[value in values for values in table[column]]]
        else:
            table = table[table[column] == value]
    if recipe is not None:
        table = table[(table.recipe != "") == recipe]
    return table


def coverage(table: pd.DataFrame, rows: str, columns: str) -> pd.DataFrame:
    """Count datasets per pair of values of two columns; lists count once for every value."""
    plain = table
    for column in (rows, columns):
        plain = plain.explode(column) if column in LISTS else plain
    return pd.crosstab(plain[rows], plain[columns])


def shares(table: pd.DataFrame, column: str, paper: dict[str, float]) -> list[dict]:
    """Return rows {column, "datasets", "ours", "paper"}: percent of datasets beside the paper's.

    The paper's percentages are of records, ours of datasets; a dataset of two modalities counts
    half for each.
    """
    counts: Counter = Counter()
    for values in table[column]:
        values = values if isinstance(values, tuple) else (values,)
        for value in values:
            counts[value] += 1 / len(values)
    return [
        {
            column: name,
            "datasets": round(counts[name], 1),
            "ours": round(100 * counts[name] / len(table), 1),
            "paper": paper.get(name),
        }
        for name in dict.fromkeys((*paper, *(name for name, _ in counts.most_common())))
    ]


def main(arguments: list[str] | None = None):
    """Command line; prints what `find` returns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("modality", "department", "task", "annotation", "dimension", "access"):
        parser.add_argument(f"--{name}", default="")
    parsed = vars(parser.parse_args(arguments))
    try:
        found = find(load(), **parsed)
    except ValueError as error:
        parser.error(str(error))
    columns = ["name", "size", "license", "access", "obtained", "homepage"]
    print(found[columns].to_string(index=False, max_colwidth=60) if len(found) else "none")
    print(f"{len(found)} datasets")


if __name__ == "__main__":
    main()
