"""What all readers share: entries, names, ids, pseudonyms and counted drops.

An `Entry` is what annotation files say about one image; a `Record` is the image with it.
"""

import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from gmai_lib.dataset.recipes import Recipe
from gmai_lib.schema import AGE_GROUPS, NO_FINDING, SEXES, Box, Ledger, QuestionAnswer, Record

STEP = "read"  # of every ledger row that a reader writes
UNKNOWN = ("", "u", "o", "unknown", "n/a", "na", "nan", "none", "?", "-")  # sex or age
OLDEST = 120  # years
_IN_A_YEAR = {"": 1, "y": 1, "m": 12, "w": 52, "d": 365}
# Second part of a record's id, by reader.
_KINDS = {
    "class_folders": "cls",
    "table": "cls",
    "voc": "det",
    "coco": "det",
    "vqa_json": "vqa",
    "image_questions": "vqa",
    "captions": "cap",
    "dialogues": "chat",
    "text_dialogues": "chat",
    "parquet_vqa": "vqa",
    "question_xml": "qa",
    "question_rows": "qa",
    "yolo": "det",
    "dicom_files": "meta",
    "npz": "cls",
    "video_table": "cls",
}


@dataclass(kw_only=True)
class Entry:
    """What the annotation files say about one image or document."""

    path: str  # POSIX path inside the dataset folder, as the annotation gives it
    labels: list[str] = field(default_factory=list)  # of the whole image
    absent: list[str] = field(default_factory=list)  # said not to be there
    boxes: list[tuple] = field(default_factory=list)  # label, x1, y1, x2, y2 in pixels
    masks: list[tuple[str, str]] = field(default_factory=list)  # label, path
    qa: list[QuestionAnswer] = field(default_factory=list)
    patient: str = ""  # as the source writes it; the record gets a salted hash
    sex: str = ""  # as the source writes it, like age (`person`)
    age: str = ""
    organ: str = ""
    split: str = ""
    severity: str = ""
    report: str = ""
    license: str = ""
    modality: str = ""

    @property
    def annotations(self) -> int:
        """How many annotations hang on this entry."""
        return len(self.labels) + len(self.boxes) + len(self.masks) + len(self.qa)


def new_record(recipe: Recipe, path: str, *, dimension: str, modality: str, **more) -> Record:
    """Build a record with the recipe's provenance; `patient` is hashed, "" stays "".

    The id is dimension#task#modality#source#path, path parts joined by "#".
    """
    parts = [dimension, _KINDS.get(recipe.reader, "seg"), modality, recipe.name]
    organ = more.pop("organ", "") or recipe.organ
    return Record(
        id="#".join([*parts, *path.split("/")]),
        source=recipe.name,
        path=path,
        dimension=dimension,
        modality=modality,
        department=recipe.options.get("departments", {}).get(organ, recipe.department),
        task=recipe.task,
        license=more.pop("license", "") or recipe.license,
        access=recipe.access,
        patient=pseudonym(recipe.name, more.pop("patient", "")),
        organ=organ,
        boxes_are_complete=more.pop("complete", False),
        **more,
    )


def pseudonym(source: str, patient: str) -> str:
    """Return a salted hash that groups one person's items, "" for an unknown person.

    The salt is the environment variable GMAI_SALT. Set it to a secret for data that is not
    public: with the built-in salt a short identifier can be found by trying them all.
    """
    if not patient:
        return ""
    salt = os.environ.get("GMAI_SALT", "gmai-vl-workbook")
    return hashlib.blake2b(f"{salt}\0{source}\0{patient}".encode(), digest_size=8).hexdigest()


def person(recipe: Recipe, path: str, sex: str, age: str, ledger: Ledger) -> dict[str, str]:
    """Return "sex" and "age_group" of a record from what a table or a DICOM header writes.

    "F", "male", "54", "54.0", "054Y", "008M" (months), "054Y+055Y" (two files of a series), ...; ""
    where the source does not know. What is not understood is a counted drop.
    """
    sex, age = sex.strip().lower(), age.strip().lower()
    found = {"sex": "", "age_group": ""}
    if sex not in UNKNOWN:
        found["sex"] = next((name for name in SEXES if sex in (name, name[0])), "")
    groups = {_age_group(one) for one in age.split("+")}
    if len(groups) == 1:
        (found["age_group"],) = groups
    for name, said in (("sex", sex), ("age_group", age)):
        if said not in UNKNOWN and not found[name]:
            reason = f"{name.replace('_', ' ')} not understood"
            drop_annotation(recipe, reason, f"{path} {said}", ledger)
    return found


def _age_group(age: str) -> str:
    number = re.fullmatch(r"(\d{1,3}(?:\.\d+)?) ?([ymwd]?)", age)
    years = float(number[1]) / _IN_A_YEAR[number[2]] if number else OLDEST + 1
    youngest = [int(re.match(r"\d+", group)[0]) for group in AGE_GROUPS]
    return AGE_GROUPS[bisect_right(youngest, years) - 1] if years <= OLDEST else ""


def label_name(recipe: Recipe, raw: str) -> str:
    """Return the readable label for the source's `raw` one."""
    raw = raw.strip()
    names = recipe.options.get("names", {})
    if raw in names:
        return names[raw]
    return raw.replace("_", " ").lower() if recipe.options.get("readable") else raw


def others(vocabulary: Iterable[str], present: Iterable[str]) -> tuple[str, ...]:
    """Labels of the vocabulary that are not present, sorted; "no finding" is never absent."""
    return tuple(sorted(set(vocabulary) - set(present) - {NO_FINDING, ""}))


def box_of(label: str, corners: Iterable, width: int, height: int) -> Box | str:
    """Return the box in fractions, clipped to the image, or the reason why it is none."""
    try:
        x1, y1, x2, y2 = (float(c) for c in corners)
    except (TypeError, ValueError):
        return "box is not four numbers"
    if not label:
        return "box without label"
    x1, x2 = (min(max(x / width, 0.0), 1.0) for x in (x1, x2))
    y1, y2 = (min(max(y / height, 0.0), 1.0) for y in (y1, y2))
    if not (x2 > x1 and y2 > y1):  # also catches NaN
        return "box without area"
    return Box(label=label, x1=x1, y1=y1, x2=x2, y2=y2)


def boxes_of_mask(
    mask: np.ndarray,
    label: str,
    instances: str,
    *,
    corner: tuple[int, int] = (0, 0),
    shape: tuple[int, int] | None = None,
) -> list[Box]:
    """Return boxes of a boolean (H, W) mask, each with the covered fraction of the image.

    `instances` "components": one box per connected component (8 neighbours), else one box
    around everything. A mask may be a part of its image, of height and width `shape`, that begins
    at row and column `corner`.
    """
    height, width = shape or mask.shape
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return []
    # Only what lies around the mask is searched: most masks cover little of their image.
    top, left = int(rows[0]), int(columns[0])
    inside = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    top, left = top + corner[0], left + corner[1]
    if instances == "components" and not _is_one_region(inside):
        parts, _ = ndimage.label(inside, structure=np.ones((3, 3)))
        found = ndimage.find_objects(parts)
        covered = [np.count_nonzero(parts[part] == i) for i, part in enumerate(found, start=1)]
    else:
        found = [tuple(slice(0, length) for length in inside.shape)]
        covered = [np.count_nonzero(inside)]
    return [
        Box(
            label=label,
            x1=(left + across.start) / width,
            y1=(top + down.start) / height,
            x2=(left + across.stop) / width,
            y2=(top + down.stop) / height,
            area=float(pixels / (height * width)),
        )
        for (down, across), pixels in zip(found, covered, strict=True)
    ]


def _is_one_region(mask: np.ndarray) -> bool:
    """Whether every row of a boolean mask is one run that touches the one above it.

    Most lesions are drawn like this, and this is seen in a fraction of the time in which their
    pixels are labelled. False says nothing.
    """
    first, length = mask.argmax(axis=1), np.count_nonzero(mask, axis=1)
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    if not (last - first + 1 == length).all():  # also of an empty row
        return False
    return bool((first[1:] <= last[:-1] + 1).all() and (first[:-1] <= last[1:] + 1).all())


def is_inside(path: str) -> bool:
    """Whether a relative path taken from an annotation stays inside the dataset folder.

    Judged by its text: links that a user put into the folder are the user's business.
    """
    if path.startswith(("/", "\\")) or "\0" in path or re.match(r"[A-Za-z]:", path):
        return False
    depth = 0
    for part in path.replace("\\", "/").split("/"):
        if part not in ("", "."):
            depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return True


def is_file(root: Path, path: str) -> bool:
    """Whether the file exists; False also for names that no file can have."""
    return os.path.isfile(os.path.join(root, path))


def drop_entry(recipe: Recipe, entry: Entry, reason: str, ledger: Ledger):
    """Count an item as dropped, and with it the annotations that hang on it."""
    drop_item(recipe, reason, entry.path, ledger, entry.annotations)


def drop_item(recipe: Recipe, reason: str, path: str, ledger: Ledger, annotations: int):
    """Count one item as dropped, and so many annotations with it."""
    ledger.drop(recipe.name, STEP, reason, path)
    drop_annotation(recipe, f"item dropped: {reason}", path, ledger, annotations)


def drop_annotation(recipe: Recipe, reason: str, example: str, ledger: Ledger, n: int = 1):
    """Count `n` annotations as dropped."""
    if n:
        ledger.drop(recipe.name, STEP, reason, example, n, level="annotation")
