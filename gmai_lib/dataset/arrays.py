"""Images inside one array file: NumPy .npz with a label per image (MedMNIST's layout).

    <split>_images.npy  (N, H, W) grey, (N, H, W, 3) RGB or (N, D, H, W) volumes, uint8
    <split>_labels.npy  (N, 1) class numbers, or (N, C) zeros and ones, one column per finding

Arrays are streamed image by image out of the zip archive: the 224-pixel files are larger than
memory. Options: `files`, globs tried in turn (the first that matches is read), `labels`, names in
the order of the numbers; `severity`, likewise, where numbers are grades; `axis` 1: volumes, of
which `slices` (default 3) evenly spaced ones are kept.

Source: MedMNIST v2 (Yang et al., Scientific Data 2023; info.py and dataset.py of its package).
"""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gmai_lib.dataset import images
from gmai_lib.dataset.annotations import split_name
from gmai_lib.dataset.records import STEP, drop_item, new_record, others
from gmai_lib.dataset.volumes import select_slices
from gmai_lib.schema import NO_FINDING, Ledger, Recipe, Record

_SPLITS = ("train", "val", "test")
# An array of more than _LARGE bytes that unpacks to more than _MOST_EXPANSION times its size in the
# archive is no picture: a few bytes would keep the reader busy for hours.
_LARGE, _MOST_EXPANSION = 2**26, 200
_ERRORS = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, KeyError)


def npz(recipe: Recipe, root: Path, ledger: Ledger) -> Iterator[Record]:
    """Yield the records of the first file that option `files` finds.

    Raises ValueError that names the file if it is no .npz archive of images and labels.
    """
    path = next((p for glob in recipe.options["files"] for p in sorted(root.glob(glob))), None)
    if path is None:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            splits = [split for split in _SPLITS if f"{split}_images" in names]
            if not splits:
                raise ValueError(f"it holds {sorted(names)} but no train_images")
            for split in splits:
                yield from _split(recipe, archive, path.name, split, ledger)
    except _ERRORS as error:
        raise ValueError(
            f"{path} is no readable .npz of images and labels ({error}); download it again"
        ) from error


def _split(recipe: Recipe, archive, name: str, split: str, ledger: Ledger) -> Iterator[Record]:
    labels = np.stack(list(_rows(archive, f"{split}_labels.npy")))
    known, number = recipe.options["labels"], 0
    for number, picture in enumerate(_rows(archive, f"{split}_images.npy"), 1):
        path = f"{name}/{split}/{number - 1}"
        if number > len(labels):
            ledger.drop(recipe.name, STEP, "image without a label", path)
            continue
        said, grade = _said(recipe, labels[number - 1])
        if said is None:
            drop_item(recipe, "label number is not in the list", path, ledger, 1)
            continue
        more = {"labels": said, "severity": grade, "split": split_name(recipe, split)}
        more["absent"] = others(known, said)
        planes = {"": picture}
        if recipe.options.get("axis"):
            chosen = select_slices([0.0] * len(picture), recipe.options.get("slices", 3))
            planes = {f"#{i}": picture[i] for i in chosen}
            more["volume"] = path
        for suffix, plane in planes.items():
            yield new_record(
                recipe,
                path + suffix,
                dimension="3d" if suffix else "2d",
                modality=recipe.modality,
                image=images.to_png(plane),
                width=plane.shape[1],
                height=plane.shape[0],
                **more,
            )
            ledger.keep(recipe.name, STEP)
            ledger.keep(recipe.name, STEP, len(said), level="annotation")
    for lost in range(number, len(labels)):
        ledger.drop(recipe.name, STEP, "label without an image", f"{name}/{split}/{lost}")


def _said(recipe: Recipe, row: np.ndarray) -> tuple[tuple[str, ...] | None, str]:
    """The labels and the severity that one row of numbers stands for; None if out of range."""
    names = recipe.options["labels"]
    if len(row) > 1:  # one column per finding
        if len(row) != len(names) or not np.isin(row, (0, 1)).all():
            return None, ""
        found = tuple(name for name, there in zip(names, row, strict=True) if there)
        return found or (NO_FINDING,), ""
    value = int(row[0])
    if not 0 <= value < len(names):
        return None, ""
    return (names[value],), recipe.options.get("severity", [""] * len(names))[value]


def _rows(archive: zipfile.ZipFile, name: str) -> Iterator[np.ndarray]:
    """Stream the first axis of one array; pickled objects and zip bombs are refused."""
    info = archive.getinfo(name)
    if info.file_size > max(_LARGE, _MOST_EXPANSION * info.compress_size):
        raise ValueError(
            f"{name} unpacks to {info.file_size:,} bytes, {_MOST_EXPANSION} times its size or more"
        )
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(stream)
        if dtype.hasobject or fortran or len(shape) < 2:
            raise ValueError(f"{name} is a {dtype} array of shape {shape}")
        size = int(np.prod(shape[1:])) * dtype.itemsize
        if np.prod(shape[1:3]) > images.MAX_PIXELS:
            raise ValueError(f"{name} holds images of {shape[1:]} pixels")
        for number in range(shape[0]):
            data = stream.read(size)
            if len(data) < size:
                raise ValueError(f"{name} ends after {number} of {shape[0]} images")
            yield np.frombuffer(data, dtype).reshape(shape[1:])
