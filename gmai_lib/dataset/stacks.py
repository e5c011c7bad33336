"""Volumes as stacks of slices: one file or a DICOM series, and the masks that belong to it.

Masks are matched to slices in patient space, so they may lie on another grid than their image.
Everything that cannot be used is a counted drop.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import nibabel
import numpy as np
from defusedxml.ElementTree import fromstring

from gmai_lib.dataset.annotations import XML_ERRORS
from gmai_lib.dataset.planes import (
    MODALITIES,
    Plane,
    dicom_affine,
    dicom_header,
    dicom_slice,
    is_inverted,
    load_volume,
    not_an_image,
    text_of,
    voi_window,
)
from gmai_lib.dataset.recipes import Recipe
from gmai_lib.dataset.records import STEP, drop_annotation, label_name, pseudonym
from gmai_lib.schema import NO_FINDING, Ledger


@dataclass(kw_only=True)
class Mask:
    """A label volume and what its values mean."""

    values: np.ndarray  # (X, Y, Z) integers
    affine: np.ndarray
    names: dict[int, str]  # values in it that count
    searched: frozenset[str]  # all names it could show: one that no slice shows is absent there

    @cached_property
    def to_voxel(self) -> np.ndarray:
        """RAS+ millimetres to voxels of the mask."""
        return np.linalg.inv(self.affine)

    def on(self, plane: Plane) -> np.ndarray:
        """Values at the pixels of a plane by nearest neighbour, 0 outside the mask's grid."""
        to_voxel = self.to_voxel @ plane.affine
        rows, columns = np.arange(plane.shape[0])[:, None], np.arange(plane.shape[1])[None, :]
        index, valid = [], np.ones((1, 1), bool)
        for axis, size in enumerate(self.values.shape):
            by_column, by_row, _, start = to_voxel[axis]
            i = np.full((1, 1), start)
            # A direction that moves less than 1/100 voxel over the whole plane is left out:
            # on parallel grids (nearly all) the indices then broadcast instead of filling.
            if abs(by_column) * plane.shape[1] > 0.01:
                i = i + by_column * columns
            if abs(by_row) * plane.shape[0] > 0.01:
                i = i + by_row * rows
            i = np.rint(i).astype(np.int64)
            valid = valid & (i >= 0) & (i < size)
            index.append(np.clip(i, 0, size - 1))
        if valid.all() and (same := _as_view(self.values, index, plane.shape)) is not None:
            return same
        values = np.where(valid, self.values[tuple(index)], 0)
        return np.broadcast_to(values, plane.shape)


def _as_view(
    values: np.ndarray, index: list[np.ndarray], shape: tuple[int, int]
) -> np.ndarray | None:
    """Return values[index] without copying where image and mask share their grid, else None."""
    kinds = [i.shape for i in index]
    rows, columns = (shape[0], 1), (1, shape[1])
    if 1 in shape or sorted(kinds) != sorted([(1, 1), rows, columns]):
        return None
    flat = [i.ravel() for i in index]
    if any((np.diff(i) != 1).any() for i in flat):
        return None
    cut = [slice(i[0], i[-1] + 1) if len(i) > 1 else int(i[0]) for i in flat]
    plane = values[tuple(cut)]
    return plane.T if kinds.index(columns) < kinds.index(rows) else plane


@dataclass(kw_only=True)
class Volume:
    """The planes of one volume and what is known about all of them."""

    path: str
    modality: str
    planes: list[Plane]
    masks: list[Mask] = field(default_factory=list)
    is_complete: bool = True  # no structure of a mask had to be dropped
    window: tuple[float, float] | None = None
    organ: str = ""
    patient: str = ""
    vocabulary: set[str] = field(default_factory=set)  # absent where no mask shows it
    report: str = ""  # measurements, for the slices that show `measured`
    measured: str = ""


def file_volume(
    recipe: Recipe, root: Path, path: str, modality: str, ledger: Ledger
) -> Volume | None:
    """Cut a volume across its coarsest axis, or axially if the voxels are about cubes."""
    if not (root / path).is_file():
        return ledger.drop(recipe.name, STEP, "image missing", path)
    try:
        image, values = load_volume(root / path)
    except ValueError:
        return ledger.drop(recipe.name, STEP, "volume cannot be read", path)
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    axis = int(np.abs(image.affine[2, :3] / spacing).argmax())
    if spacing.max() > 1.5 * np.median(spacing):
        axis = int(spacing.argmax())
    row, column = (a for a in range(3) if a != axis)
    planes = []
    for k in range(values.shape[axis]):
        affine = image.affine[:, [column, row, axis, 3]].copy()
        affine[:, 3] += k * affine[:, 2]
        pixels = values.take(k, axis)
        planes.append(
            Plane(
                path=f"{path}#{k}",
                affine=affine,
                shape=pixels.shape,
                load=lambda pixels=pixels: pixels,
            )
        )
    return Volume(path=path, modality=modality, planes=planes)


def dicom_volume(recipe: Recipe, root: Path, paths: list[str], ledger: Ledger) -> Volume | None:
    """Sort the files of one series along its normal; what does not belong to it is a drop."""
    headers = {path: dicom_header(root / path) for path in paths}
    patients = sorted({text_of(header, "PatientID") for header in headers.values()} - {""})
    planes, first = [], None
    for path, header in headers.items():
        shown = redacted(recipe, path, patients)
        affine = None if header is None else dicom_affine(header)
        reason = not_an_image(header)
        if not reason and affine is None:
            reason = "DICOM slice without a position"
        if not reason and text_of(header, "NumberOfFrames") not in ("", "1"):
            reason = "several frames in a file of a series"
        if not reason:
            shape = (int(header.Rows), int(header.Columns))
            kind = (shape, text_of(header, "Modality"), affine[:3, :2].round(3).tolist())
            first = first or kind
            if kind != first:
                reason = "slice of another size or orientation than its series"
        if reason:
            ledger.drop(recipe.name, STEP, reason, shown)
            continue
        planes.append(
            Plane(
                path=shown,
                affine=affine,
                shape=shape,
                load=lambda path=path: dicom_slice(root / path),
                voi=voi_window(header),
                inverted=is_inverted(header),
            )
        )
    if not planes:
        return None
    planes.sort(key=lambda plane: float(plane.affine[:3, 2] @ plane.affine[:3, 3]))
    return Volume(
        path=str(PurePosixPath(planes[0].path).parent),
        modality=MODALITIES[first[1]],
        planes=planes,
        patient="+".join(patients),
    )


def redacted(recipe: Recipe, path: str, patients: list[str]) -> str:
    """Replace patient ids in a path by their hashes: some archives have a folder per patient."""
    for patient in sorted(patients, key=len, reverse=True):
        name = pseudonym(recipe.name, patient)
        path = re.sub(rf"(?<![0-9A-Za-z]){re.escape(patient)}(?![0-9A-Za-z])", name, path)
    return path


def add_mask(
    recipe: Recipe,
    root: Path,
    volume: Volume,
    path: str,
    names: dict[int, str] | str,
    ledger: Ledger,
) -> bool:
    """Load a mask and count its structures; a text as `names` is the name of every value.

    A label table in the NIfTI header replaces `names`. False if the mask cannot be used.
    """
    reason = "" if (root / path).is_file() else "mask missing"
    if not reason:
        try:
            image, values = load_volume(root / path)
            names = _label_table(recipe, image) or names
            if values.dtype.kind == "f":
                values = np.rint(np.nan_to_num(values)).astype(np.int64)
        except XML_ERRORS:  # ValueError is among them
            reason = "mask cannot be read"
    if reason:
        drop_annotation(recipe, reason, path, ledger)
        volume.is_complete = False
        return False
    present = [int(v) for v in np.unique(values) if v > 0]
    named = dict.fromkeys(present, names) if isinstance(names, str) else dict(names)
    taken = {name for mask in volume.masks for name in mask.names.values()}
    usable = {}
    for value in present:
        name = named.get(value, "")
        if name in ("", NO_FINDING):
            drop_annotation(recipe, "mask value without a name", f"{path} value {value}", ledger)
            volume.is_complete = False
        elif name in taken:
            reason = "structure already given by another mask"
            drop_annotation(recipe, reason, f"{path} {name}", ledger)
        else:
            usable[value] = name
    volume.masks.append(
        Mask(values=values, affine=image.affine, names=usable, searched=frozenset(named.values()))
    )
    return True


def _label_table(recipe: Recipe, image: nibabel.Nifti1Image) -> dict[int, str]:
    """Names by value from the Caret XML in the header extension, {} if there is none."""
    for extension in getattr(image.header, "extensions", ()):
        content = extension.get_content()
        content = content.encode() if isinstance(content, str) else bytes(content)
        if b"<CaretExtension" in content:
            tree = fromstring(content.rstrip(b"\0"))
            return {
                int(label.get("Key") or ""): label_name(recipe, label.text or "")
                for label in tree.iter("Label")
            }
    return {}
