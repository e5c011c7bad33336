"""Volumes as stacks of slices: one file or a DICOM series, and the masks that belong to it.

Masks are matched to slices in patient space, so they may lie on another grid than their image.
Everything that cannot be used is a counted drop.

Option `axes` (any of axial, coronal, sagittal) cuts a volume across each of them. A plane whose
pixels would be more than MAX_RATIO times as high as wide is not taken: it shows mostly
interpolation.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path, PurePosixPath

import nibabel
import numpy as np
import pydicom
from defusedxml.ElementTree import fromstring

from gmai_lib.dataset.annotations import XML_ERRORS
from gmai_lib.dataset.planes import (
    MAX_VOXELS,
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

AXES = ("sagittal", "coronal", "axial")  # planes across x, y and z of RAS+ space
# nnU-Net calls a volume anisotropic from this ratio of spacings on (Isensee et al., Nature
# Methods 2021, 10.1038/s41592-020-01008-z).
MAX_RATIO = 3.0


@dataclass(kw_only=True)
class Mask:
    """A label volume and what its values mean.

    A structure is one value of one file: the masks of a file that lies in several parts share
    their path.
    """

    path: str
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
        index, inside = [], []
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
            inside.append((i >= 0) & (i < size))
            index.append(np.clip(i, 0, size - 1))
        if not all(i.any() for i in inside):  # most planes miss a small structure's mask
            return np.broadcast_to(self.values.dtype.type(0), plane.shape)
        everywhere = all(i.all() for i in inside)
        if everywhere and (same := _as_view(self.values, index, plane.shape)) is not None:
            return same
        valid = inside[0] & inside[1] & inside[2]
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
    slices: list[Plane] = field(default_factory=list)  # of a DICOM series, by file
    masks: list[Mask] = field(default_factory=list)
    is_complete: bool = True  # no structure of a mask had to be dropped
    window: tuple[float, float] | None = None
    organ: str = ""
    patient: str = ""
    sex: str = ""  # as the source writes it, like age (`records.person`)
    age: str = ""
    split: str = ""
    vocabulary: set[str] = field(default_factory=set)  # absent where no mask shows it
    report: str = ""  # measurements, for the slices that show `measured`
    measured: str = ""
    series: str = ""  # Series Instance UID
    frame_of_reference: str = ""  # its UID


def file_volume(
    recipe: Recipe, root: Path, path: str, modality: str, ledger: Ledger
) -> Volume | None:
    """Cut a volume across the declared axes; without any across its coarsest one, or axially if
    the voxels are about cubes."""
    if not (root / path).is_file():
        return ledger.drop(recipe.name, STEP, "image missing", path)
    try:
        image, values = load_volume(root / path)
    except ValueError:
        return ledger.drop(recipe.name, STEP, "volume cannot be read", path)
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    volume = Volume(path=path, modality=modality, planes=[])
    if declared := _axes(recipe):
        _cut_declared(recipe, volume, lambda: values, image.affine, values.shape, declared, ledger)
        return volume
    axis = int(np.abs(image.affine[2, :3] / spacing).argmax())
    if spacing.max() > 1.5 * np.median(spacing):
        axis = int(spacing.argmax())
    volume.planes = _cut(path, lambda: values, image.affine, values.shape, axis)
    return volume


def _cut(
    path: str, load: Callable, affine: np.ndarray, shape: tuple, axis: int, name: str = ""
) -> list[Plane]:
    """Planes across one voxel axis of the array (X, Y, Z) that `load` returns."""
    row, column = (a for a in range(3) if a != axis)
    planes = []
    for k in range(shape[axis]):
        placed = affine[:, [column, row, axis, 3]].copy()
        placed[:, 3] += k * placed[:, 2]
        planes.append(
            Plane(
                path=f"{path}#{name}-{k}" if name else f"{path}#{k}",
                affine=placed,
                shape=(shape[row], shape[column]),
                load=lambda k=k: np.moveaxis(load(), axis, 0)[k],  # a view: copied once, as uint8
                axis=name,
            )
        )
    return planes


def _axes(recipe: Recipe) -> tuple[str, ...]:
    declared = tuple(recipe.options.get("axes", ()))
    if isinstance(recipe.options.get("axes"), str) or not {*declared} <= {*AXES}:
        raise ValueError(
            f"recipe {recipe.name}: axes {recipe.options['axes']!r} is no list of {list(AXES)}"
        )
    return declared


def _cut_declared(
    recipe: Recipe,
    volume: Volume,
    load: Callable,
    affine: np.ndarray,
    shape: tuple,
    names: tuple[str, ...],
    ledger: Ledger,
    reason: str = "",
):
    """Add the planes across the named axes; if there is a reason against it, count them."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    across = nibabel.io_orientation(affine)[:, 0]  # RAS axis along each voxel axis
    for name in names:
        axis = int(np.flatnonzero(across == AXES.index(name))[0])
        low, high = sorted(spacing[a] for a in range(3) if a != axis)
        against = reason or ("reformatted plane of thick slices" if high > MAX_RATIO * low else "")
        if against:
            ledger.drop(recipe.name, STEP, against, f"{volume.path} {name}", shape[axis])
        else:
            volume.planes += _cut(volume.path, load, affine, shape, axis, name)


def dicom_headers(root: Path, paths: list[str]) -> dict[str, pydicom.Dataset | None]:
    return {path: dicom_header(root / path) for path in paths}


def dicom_volume(
    recipe: Recipe, root: Path, headers: dict[str, pydicom.Dataset | None], ledger: Ledger
) -> Volume | None:
    """Sort the files of one series along its normal; what does not belong to it is a drop.

    `headers` are those of `dicom_headers`, by path.
    """
    patients = all_said(headers, "PatientID")
    planes, first, uids = [], None, ("", "")
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
            if first is None:
                first = kind
                uids = (
                    text_of(header, "SeriesInstanceUID"),
                    text_of(header, "FrameOfReferenceUID"),
                )
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
                uid=text_of(header, "SOPInstanceUID"),
            )
        )
    if not planes:
        return None
    planes.sort(key=position)
    volume = Volume(
        path=str(PurePosixPath(planes[0].path).parent),
        modality=MODALITIES[first[1]],
        planes=planes,
        patient="+".join(patients),
        sex="+".join(all_said(headers, "PatientSex")),
        age="+".join(all_said(headers, "PatientAge")),
        series=uids[0],
        frame_of_reference=uids[1],
    )
    volume.slices = planes
    if declared := _axes(recipe):
        _reformat(recipe, volume, declared, ledger)
    return volume


def all_said(headers: dict[str, pydicom.Dataset | None], name: str) -> list[str]:
    """Return what the files say in one field, sorted, each value once."""
    return sorted({text_of(header, name) for header in headers.values()} - {""})


def position(plane: Plane) -> float:
    """Millimetres along the normal of the plane."""
    return float(plane.affine[:3, 2] @ plane.affine[:3, 3])


def runs(planes: list[Plane]) -> tuple[list[range], float]:
    """Stretches of sorted planes that lie equally far apart, and that distance in millimetres.

    A series without a missing or doubled slice is one stretch. The distance of a single plane
    is 0.
    """
    gaps = np.diff([position(plane) for plane in planes])
    usual = float(np.median(gaps[gaps > 1e-3])) if (gaps > 1e-3).any() else 0.0
    breaks = np.flatnonzero(np.abs(gaps - usual) > 0.1 * usual) + 1
    edges = [0, *breaks.tolist(), len(planes)]
    return [range(a, b) for a, b in pairwise(edges)], usual


def run_affine(planes: list[Plane], run: range, usual: float) -> np.ndarray:
    """(column, row, index in the run, 1) -> RAS+ millimetres; a tilted gantry makes it sheared."""
    affine = planes[run[0]].affine.copy()
    if len(run) > 1:
        way = planes[run[-1]].affine[:3, 3] - affine[:3, 3]
        affine[:3, 2] = way / (len(run) - 1)
    else:
        affine[:3, 2] *= usual or 1.0
    return affine


def _reformat(recipe: Recipe, volume: Volume, names: tuple[str, ...], ledger: Ledger):
    """Replace the slices of a series by the planes across the named axes, its own as they are."""
    own = AXES[int(np.abs(volume.slices[0].affine[:3, 2]).argmax())]
    slices = [replace(plane, axis=own) for plane in volume.slices]
    stretches, usual = runs(slices)
    shape = (slices[0].shape[1], slices[0].shape[0], len(slices))
    reason = ""
    if len(stretches) > 1:
        reason = "plane across a series with missing or doubled slices"
    elif np.prod(shape, dtype=np.float64) > MAX_VOXELS / 4:  # a GiB as float32
        reason = "plane across a series that is too large"

    @cache
    def stack() -> np.ndarray:
        return np.stack([plane.load().T.astype(np.float32) for plane in slices], axis=2)

    volume.planes = list(slices) if own in names else []
    if own not in names:
        ledger.drop(recipe.name, STEP, "slice across an axis not declared", volume.path, shape[2])
    others = tuple(name for name in names if name != own)
    affine = run_affine(slices, stretches[0], usual)
    _cut_declared(recipe, volume, stack, affine, shape, others, ledger, reason)
    for plane in volume.planes:
        if plane.axis != own:
            plane.voi, plane.inverted = slices[0].voi, slices[0].inverted


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
    present = counted_values(values)[0].tolist()
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
        Mask(
            path=path,
            values=values,
            affine=image.affine,
            names=usable,
            searched=frozenset(named.values()),
        )
    )
    return True


def counted_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positive values of a mask or one plane of it, ascending, and how often each occurs."""
    values = np.ravel(values, order="K")  # in the order of the memory: several times as fast
    inside = values[values > 0]  # most of a mask is 0
    if not inside.size or inside.max() >= 2**16:
        return np.unique(inside, return_counts=True)
    counts = np.bincount(inside)  # several times as fast, too
    present = np.flatnonzero(counts)
    return present, counts[present]


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
