"""Readers: a dataset folder in, one `Record` per image, slice or document out.

One reader per *format*, named by a recipe; what a format looks like and which options it
takes is said in `annotations.py` (images, tables), `question_files.py` (questions), `arrays.py`
(.npz), `videos.py`, `slides.py` (whole slides) and `volumes.py` (DICOM, NIfTI, MHA, NRRD).

    ledger = Ledger()
    for record in read(recipe, root, ledger): ...
    ledger.check()   # kept + dropped = seen, for items and for annotations

Nothing is lost silently: every file that would become a record is counted as an item, every
box, mask, label and question as an annotation, each kept or dropped with a reason under step
"read". Broken files are drops; only an unreadable index stops with a ValueError.

Paper: section 3.1, steps 2 and 3 (standardise images; extract labels and boxes).
Departs: the annotation stays with the image as typed columns.
"""

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from gmai_lib.dataset import (
    annotations,
    arrays,
    images,
    question_files,
    released,
    slides,
    videos,
    volumes,
)
from gmai_lib.dataset.recipes import Recipe
from gmai_lib.dataset.records import (
    STEP,
    Entry,
    box_of,
    boxes_of_mask,
    drop_annotation,
    drop_entry,
    is_file,
    is_inside,
    new_record,
    others,
    person,
)
from gmai_lib.pool import counted
from gmai_lib.schema import IMAGE_MODALITIES, NO_FINDING, Box, Ledger, Record

_DICOM = (".dcm", ".dicom")  # images of a table or an index, one per file
# How sources write the modality of a single image; lower case.
_MODALITIES = {
    "x-ray": "X-ray",
    "xray": "X-ray",
    "ct": "CT",
    "mr": "MR",
    "mri": "MR",
    "pet": "PET",
    "oct": "OCT",
    "computed tomography": "CT",
    "magnetic resonance imaging": "MR",
    "microscopy images": "microscopy",
    "optical coherence tomography": "OCT",
    "fundus photography": "fundus",
    "histology": "histopathology",
    "endoscopy": "endoscopy",
    "ultrasound": "ultrasound",
}

_JOB = 32  # images that a process opens at a time
_SMALL = "region below the minimum size"

# Formats whose image files are their own index; they have counted what does not fit.
_OWN_INDEX = ("class_folders", "mask_pairs")


def read(recipe: Recipe, root: Path, ledger: Ledger, *, processes: int = 1) -> Iterator[Record]:
    """Yield the records of the dataset at `root`, counting everything in `ledger`.

    With `processes` > 1 images and volumes are opened by that many new processes: the same records
    in the same order. Starting them takes seconds; annotation files, and the formats of
    IN_ONE_PROCESS (one file or a few, most of them), are read here.

    Raises ValueError if the recipe names no known format, an index file is unreadable, or
    nothing at all was found.
    """
    if recipe.reader not in READERS:
        raise ValueError(f"recipe {recipe.name}: no reader {recipe.reader!r}; have {list(READERS)}")
    key = (recipe.name, STEP, "item")
    before = ledger.seen[key]
    reader = READERS[recipe.reader]
    if recipe.reader in IN_ONE_PROCESS:
        yield from reader(recipe, Path(root), ledger)
    else:
        yield from reader(recipe, Path(root), ledger, processes=processes)
    if ledger.seen[key] == before:
        raise ValueError(
            f"{root} looks like {recipe.name} but holds no item of it; check that it is unpacked "
            f"completely ({recipe.reader}: {recipe.options})"
        )


def read_all(found, ledger: Ledger, *, processes: int = 1) -> Iterator[Record]:
    """Yield the records of all datasets in `found`, (recipe, root) pairs as of recipes.find.

    With `processes` > 1 each process reads one whole dataset at a time, which pays for many small
    ones; `read` shares the work on a large one.
    """
    yield from counted(_read_one, found, ledger, processes=processes)


def _read_one(ledger: Ledger, dataset: tuple[Recipe, Path]) -> Iterator[Record]:
    yield from read(*dataset, ledger)


def _image_reader(parse: Callable) -> Callable:
    """Reader of a 2D format: parse the annotation files, then open the images one by one."""

    def reader(recipe: Recipe, root: Path, ledger: Ledger, processes: int = 1) -> Iterator[Record]:
        entries = _merged(parse(recipe, root, ledger))
        _drop_unlisted(recipe, root, entries, ledger)
        vocabulary = defaultdict(set)
        if recipe.options.get("exhaustive"):
            for entry in entries:
                vocabulary[entry.modality, entry.organ].update(_stated(entry))
        jobs = (
            [(entry, vocabulary[entry.modality, entry.organ]) for entry in entries[i : i + _JOB]]
            for i in range(0, len(entries), _JOB)
        )
        work = partial(_image_records, recipe, root)
        yield from counted(work, jobs, ledger, processes=processes)

    return reader


def _image_records(
    recipe: Recipe, root: Path, ledger: Ledger, job: list[tuple[Entry, set[str]]]
) -> Iterator[Record]:
    for entry, known in job:
        record = _image_record(recipe, root, entry, known, ledger)
        if record:
            yield record


def _text_reader(recipe: Recipe, root: Path, ledger: Ledger) -> Iterator[Record]:
    for entry in question_files.question_xml(recipe, root, ledger):
        if not entry.qa:
            ledger.drop(recipe.name, STEP, "no usable question", entry.path)
            continue
        ledger.keep(recipe.name, STEP)
        ledger.keep(recipe.name, STEP, len(entry.qa), level="annotation")
        qa = tuple(entry.qa)
        yield new_record(recipe, entry.path, dimension="text", modality=recipe.modality, qa=qa)


READERS: dict[str, Callable[..., Iterator[Record]]] = {
    "class_folders": _image_reader(annotations.class_folders),
    "table": _image_reader(annotations.table),
    "voc": _image_reader(annotations.voc),
    "coco": _image_reader(annotations.coco),
    "mask_files": _image_reader(annotations.mask_files),
    "mask_pairs": _image_reader(annotations.mask_pairs),
    "instance_folders": _image_reader(annotations.instance_folders),
    "vqa_json": _image_reader(question_files.vqa_json),
    "captions": _image_reader(released.captions),
    "image_questions": _image_reader(released.image_questions),
    "dialogues": _image_reader(released.dialogues),
    "text_dialogues": released.text_dialogues,
    "yolo": _image_reader(annotations.yolo),
    "question_xml": _text_reader,
    "question_rows": question_files.question_rows,
    "parquet_vqa": question_files.parquet_vqa,
    "npz": arrays.npz,
    "video_table": videos.video_table,
    "slides": slides.slides,
    "dicom_files": volumes.dicom_files,
    "dicom_series": volumes.dicom_series,
    "dicom_tree": volumes.dicom_tree,
    "nnunet": volumes.nnunet,
    "volumes": volumes.volumes,
    "volume_pairs": volumes.volume_pairs,
}

IN_ONE_PROCESS = {
    "question_xml", "question_rows", "text_dialogues", "parquet_vqa", "npz", "video_table",
    "dicom_files", "dicom_tree", "slides",
}  # fmt: skip


def _merged(entries: list[Entry]) -> list[Entry]:
    """One entry per image: what a second one says of the same path is added to the first."""
    by_path: dict[str, Entry] = {}
    for entry in entries:
        if is_inside(entry.path):
            entry.path = posixpath.normpath(entry.path.replace("\\", "/"))
        first = by_path.setdefault(entry.path, entry)
        if first is not entry:
            for name in ("labels", "absent", "boxes", "masks", "qa"):
                getattr(first, name).extend(getattr(entry, name))
            if entry.split and entry.split != first.split:
                first.split = ""  # an image in two splits has none of its own
            if entry.report not in first.report:
                first.report = f"{first.report} {entry.report}".strip()
    return list(by_path.values())


def _drop_unlisted(recipe: Recipe, root: Path, entries: list[Entry], ledger: Ledger):
    """Count image and mask files that no annotation names."""
    if "images" in recipe.options and recipe.reader not in _OWN_INDEX:
        listed = {entry.path for entry in entries}
        for path in annotations.files(root, recipe.options["images"]):
            if path not in listed:
                ledger.drop(recipe.name, STEP, "no annotation names this image", path)
    if "masks" in recipe.options:
        listed = {mask for entry in entries for _, mask in entry.masks}
        for path in annotations.files(root, recipe.options["masks"]):
            if path not in listed:
                drop_annotation(recipe, "no annotation names this mask", path, ledger)


def _stated(entry: Entry) -> set[str]:
    """All labels that an entry states, also those whose box or mask turns out unusable."""
    return {*entry.labels, *(b[0] for b in entry.boxes), *(m[0] for m in entry.masks)}


def _image_record(
    recipe: Recipe, root: Path, entry: Entry, vocabulary: set[str], ledger: Ledger
) -> Record | None:
    """Open the image and make its record; None, counted, if it cannot be used."""
    modality = _MODALITIES.get(entry.modality.lower(), entry.modality) or recipe.modality
    if recipe.modality == "unstated" and modality not in IMAGE_MODALITIES:
        modality = recipe.modality  # "digital photography", "not mentioned"
    if not is_inside(entry.path):
        return drop_entry(recipe, entry, "path leads outside the dataset folder", ledger)
    # No question before the reading whether the file is there: it costs as much as the reading.
    try:
        with open(os.path.join(root, entry.path), "rb") as file:
            data = file.read()
    except (OSError, ValueError):
        data = b""  # not there, or no image
        if not is_file(root, entry.path):
            return drop_entry(recipe, entry, "image missing", ledger)
    if modality not in (*IMAGE_MODALITIES, recipe.modality):
        return drop_entry(recipe, entry, "modality is not stated or unknown", ledger)
    is_dicom = entry.path.lower().endswith(_DICOM)
    try:
        data = volumes.dicom_image(Path(root, entry.path)) if is_dicom else data
        data, (height, width) = images.standard(data)
    except ValueError as error:
        reason = str(error) if is_dicom else "image cannot be decoded"
        return drop_entry(recipe, entry, reason, ledger)
    boxes, unusable = _boxes(recipe, root, entry, (height, width), ledger)
    labels = dict.fromkeys([*entry.labels, *(box.label for box in boxes)])
    if not _stated(entry) and "no_annotation" in recipe.options:
        labels = {recipe.options["no_annotation"]: None}
    ledger.keep(recipe.name, STEP)
    kept = len(entry.labels) + len(entry.qa)
    if kept:
        ledger.keep(recipe.name, STEP, kept, level="annotation")
    return new_record(
        recipe,
        entry.path,
        dimension="2d",
        modality=modality,
        image=data,
        width=width,
        height=height,
        labels=tuple(labels),
        absent=tuple(dict.fromkeys([*entry.absent, *others(vocabulary, _stated(entry))])),
        boxes=tuple(boxes),
        # A count is only known if no box of the image had to be dropped.
        complete=bool(recipe.options.get("complete") and not unusable),
        organ=entry.organ,
        patient=entry.patient,
        **person(recipe, entry.path, entry.sex, entry.age, ledger),
        volume=_volume_of(recipe, entry.path),
        split=entry.split,
        severity=entry.severity,
        report=entry.report,
        license=entry.license.replace(" ", "-"),
        qa=tuple(entry.qa),
    )


def _boxes(
    recipe: Recipe, root: Path, entry: Entry, shape: tuple[int, int], ledger: Ledger
) -> tuple[list[Box], int]:
    """Usable boxes of an entry, from its boxes and masks, and how many were unusable."""
    height, width = shape
    found: list[tuple[list[Box] | str, str]] = []  # boxes or the reason why none, example
    for label, *corners in entry.boxes:
        box = box_of(label, corners, width, height)
        found.append(([box] if isinstance(box, Box) else box, f"{entry.path} {label} {corners}"))
    for label, path in entry.masks:
        found.append((_mask_boxes(recipe, root, label, path, shape), path))
    boxes, unusable = [], 0
    for result, example in found:
        least = recipe.options.get("min_pixels", 0)
        if not isinstance(result, str) and least:
            large = [b for b in result if b.area is None or b.area * width * height >= least]
            small = len(result) - len(large)
            unusable += small
            if large or not small:
                drop_annotation(recipe, _SMALL, example, ledger, small)
            result = large if large or not small else _SMALL
        if isinstance(result, str):
            drop_annotation(recipe, result, example, ledger)
            unusable += 1
        else:
            ledger.keep(recipe.name, STEP, level="annotation")
            boxes += result
    return boxes, unusable


def _mask_boxes(
    recipe: Recipe, root: Path, label: str, path: str, shape: tuple[int, int]
) -> list[Box] | str:
    if not is_inside(path):
        return "path leads outside the dataset folder"
    if not is_file(root, path):
        return "mask missing"
    try:
        pixels, corner, size = images.decode_marked(root / path)
    except (OSError, ValueError):
        return "mask cannot be decoded"
    if size != shape:
        return "mask of another size than its image"
    # 0/255, also from a JPEG, or 0/1, where the recipe does not say more
    usual = 128 if pixels.max(initial=0) > 1 else 1
    mask = pixels >= recipe.options.get("mask_from", usual)
    if not mask.any():
        return [] if label == NO_FINDING else "mask is empty"
    if label in ("", NO_FINDING):
        return "mask without a finding"
    instances = recipe.options.get("instances", "label")
    return boxes_of_mask(mask, label, instances, corner=corner, shape=shape)


def _volume_of(recipe: Recipe, path: str) -> str:
    match = re.fullmatch(recipe.options.get("volume", ""), posixpath.basename(path))
    return match[1] if match and match.groups() else ""
