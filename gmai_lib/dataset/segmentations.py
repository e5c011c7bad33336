"""DICOM SEG and RTSTRUCT files as masks of a DICOM series.

Both name the series that they belong to and lie in its patient space; a file about another series,
or drawn in another frame of reference, is a counted drop. Every segment or ROI is one structure,
named by its label, or by its description or coded type where only those are in option `names`; an
empty name there leaves it out.

SEG is decoded by highdicom, whatever its type: binary, labelmap, or fractional, which is
thresholded at half with a warning. RTSTRUCT: closed planar contours are rasterised by pycocotools
on the slice that they name, or on the nearest one if they name none. Several contours of a
structure on one slice combine by even-odd: one inside another is a hole. A contour that cannot be
used (a point, an open line, off every slice) is counted as one annotation more.

References: DICOM PS3.3 A.51 and C.8.20 (Segmentation), A.19 and C.8.8.5-6 (RT Structure Set).
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom

from gmai_lib.dataset.planes import (
    DICOM_ERRORS,
    MAX_VOXELS,
    Plane,
    dicom_header,
    text_of,
)
from gmai_lib.dataset.recipes import Recipe
from gmai_lib.dataset.records import drop_annotation, label_name
from gmai_lib.dataset.stacks import Mask, Volume, position, redacted, run_affine, runs
from gmai_lib.schema import NO_FINDING, Ledger

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ELSEWHERE = "mask in another frame of reference than its series"
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")

# What a structure is made of: boolean arrays (X, Y, Z) and their affines to RAS+ millimetres,
# or the reason why it is nothing.
_Parts = list[tuple[np.ndarray, np.ndarray]] | str


def is_dicom_mask(header: pydicom.Dataset | None) -> bool:
    return text_of(header, "Modality") in ("SEG", "RTSTRUCT")


def referenced_series(header: pydicom.Dataset | None, instances: dict[str, str]) -> set[str]:
    """Series Instance UIDs that a SEG or RTSTRUCT is about.

    Where it names no series, `instances` (SOP Instance UID -> series) says where its source
    images or those of its contours lie.
    """
    stated = {text_of(item, "SeriesInstanceUID") for item in _items(header, _SERIES)}
    for frame in _items(header, ("ReferencedFrameOfReferenceSequence",)):
        stated |= {text_of(item, "SeriesInstanceUID") for item in _items(frame, _RT_SERIES)}
    if stated - {""}:
        return stated - {""}
    images = [*_items(header, _CONTOUR_IMAGES), *_items(header, _FRAME_IMAGES)]
    found = {instances.get(text_of(image, "ReferencedSOPInstanceUID"), "") for image in images}
    return found - {""}


_SERIES = ("ReferencedSeriesSequence",)
_RT_SERIES = ("RTReferencedStudySequence", "RTReferencedSeriesSequence")
_IMAGES = ("ContourImageSequence",)
_CONTOUR_IMAGES = ("ROIContourSequence", "ContourSequence", "ContourImageSequence")
_FRAME_IMAGES = (
    "PerFrameFunctionalGroupsSequence",
    "DerivationImageSequence",
    "SourceImageSequence",
)


def add_dicom_mask(recipe: Recipe, root: Path, volume: Volume, path: str, ledger: Ledger) -> bool:
    """Add the structures of a SEG or RTSTRUCT to the volume and count those that are unusable.

    False if no structure can be used.
    """
    shown = redacted(recipe, path, volume.patient.split("+") if volume.patient else [])
    header = dicom_header(root / path)
    listed = (_items(header, (n,)) for n in ("SegmentSequence", "StructureSetROISequence"))
    count = max(map(len, listed))
    reason = _unfit(header, volume)
    found: list[tuple[list[str], _Parts]] = []
    if not reason:
        try:
            if text_of(header, "Modality") == "SEG":
                found = list(_segments(recipe, root / path))
            else:
                found = list(_rois(recipe, header, volume, shown, ledger))
        except DICOM_ERRORS:
            reason = "mask cannot be read"
        if not reason and not found:
            reason = "mask without structures"
    if reason:
        drop_annotation(recipe, reason, shown, ledger, count or 1)
        volume.is_complete = False
        return False
    taken = {name for mask in volume.masks for name in mask.names.values()}
    usable = 0
    for value, (raw, parts) in enumerate(found, start=1):
        name = _name(recipe, raw)
        example = f"{shown} {raw[0] or value}"
        if name in taken:
            reason = "structure already given by another mask"
            drop_annotation(recipe, reason, example, ledger)
        elif not name and recipe.options.get("names", {}).keys() & set(raw):
            drop_annotation(recipe, "structure the recipe leaves out", example, ledger)
        elif isinstance(parts, str) or name in ("", NO_FINDING):
            reason = parts if isinstance(parts, str) else "structure without a name"
            drop_annotation(recipe, reason, example, ledger)
            volume.is_complete = False
        else:
            usable += 1
            dtype = np.min_scalar_type(len(found))
            volume.masks += [
                Mask(
                    path=shown,
                    values=part.astype(dtype) * dtype.type(value),
                    affine=affine,
                    names={value: name},
                    searched=frozenset((name,)),
                )
                for part, affine in parts
            ]
    return usable > 0


def _unfit(header: pydicom.Dataset | None, volume: Volume) -> str:
    """Why a file is no mask of this volume, "" if it is."""
    if not is_dicom_mask(header):
        return "mask is neither DICOM SEG nor RTSTRUCT"
    instances = {plane.uid: volume.series for plane in volume.slices if plane.uid}
    if volume.series not in referenced_series(header, instances):
        return "mask of another series"
    is_seg = text_of(header, "Modality") == "SEG"  # in an RTSTRUCT each ROI has its own
    if is_seg and _is_elsewhere(volume, header, "FrameOfReferenceUID"):
        return _ELSEWHERE
    return ""


def _is_elsewhere(volume: Volume, item: pydicom.Dataset, name: str) -> bool:
    """Whether an item states a frame of reference that is not its series'.

    Old files leave it out, then only the series is known to be the same.
    """
    stated = text_of(item, name)
    return bool(stated and volume.frame_of_reference and stated != volume.frame_of_reference)


def _name(recipe: Recipe, raw: list[str]) -> str:
    """Label, or the first of the other words that the recipe knows."""
    known = [text for text in raw if text in recipe.options.get("names", {})]
    return label_name(recipe, (known or raw)[0])


# ---- SEG -----------------------------------------------------------------------------------


def _segments(recipe: Recipe, path: Path) -> Iterator[tuple[list[str], _Parts]]:
    """Yield names and voxels of every segment; one at a time is in memory uncropped."""
    from highdicom.seg import segread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd values of the header
        seg = segread(path)
    frames = int(seg.get("NumberOfFrames", 1))
    if seg.Rows * seg.Columns * frames > MAX_VOXELS:
        raise ValueError(f"{path}: more than {MAX_VOXELS} voxels")
    if seg.segmentation_type.value == "FRACTIONAL":
        warnings.warn(
            f"{recipe.name}: fractional segmentations are thresholded at half", stacklevel=2
        )
    is_even = seg.get_volume_geometry() is not None
    for number in seg.segment_numbers:
        if number == 0:  # the background of a labelmap
            continue
        segment = seg.get_segment_description(number)
        kind = segment.segmented_property_type
        raw = [segment.segment_label, text_of(segment, "SegmentDescription"), kind.meaning]
        try:
            voxels = seg.get_volume(segment_numbers=[number], combine_segments=False)
        except DICOM_ERRORS:
            yield raw, "segment cannot be decoded" if is_even else "mask is no evenly spaced volume"
            continue
        parts = _cropped(voxels.array[..., 0] >= 0.5, _LPS_TO_RAS @ voxels.affine)
        yield raw, parts or "structure is empty"


def _cropped(voxels: np.ndarray, affine: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """What is True and its affine, [] if nothing is."""
    corners = []
    for axis in range(3):
        there = np.flatnonzero(voxels.any(axis=tuple({0, 1, 2} - {axis})))
        if not there.size:
            return []
        corners.append((there[0], there[-1] + 1))
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [low for low, _ in corners]
    return [(voxels[tuple(slice(*c) for c in corners)].copy(), moved)]


# ---- RTSTRUCT ------------------------------------------------------------------------------


def _rois(
    recipe: Recipe, header: pydicom.Dataset, volume: Volume, shown: str, ledger: Ledger
) -> Iterator[tuple[list[str], _Parts]]:
    """Yield name and rasterised contours of every region of interest."""
    contours = defaultdict(list)
    places = np.array([position(plane) for plane in volume.slices])
    reach = (runs(volume.slices)[1] or 1.0) / 2  # of a slice, up and down its normal
    for item in _items(header, ("ROIContourSequence",)):
        contours[text_of(item, "ReferencedROINumber")] += _items(item, ("ContourSequence",))
    for roi in _items(header, ("StructureSetROISequence",)):
        name = text_of(roi, "ROIName")
        if _is_elsewhere(volume, roi, "ReferencedFrameOfReferenceUID"):
            yield [name], _ELSEWHERE
            continue
        slices: dict[int, np.ndarray] = {}
        for number, contour in enumerate(contours[text_of(roi, "ROINumber")]):
            reason = _draw(contour, volume.slices, places, reach, slices)
            if reason:
                drop_annotation(recipe, reason, f"{shown} {name} contour {number}", ledger)
                volume.is_complete = False
        if not contours[text_of(roi, "ROINumber")]:
            yield [name], "structure without contours"
        elif not slices:
            yield [name], "structure without a usable contour"
        else:
            yield [name], _stacked(slices, volume.slices) or "structure is empty"


def _draw(
    contour: pydicom.Dataset,
    planes: list[Plane],
    places: np.ndarray,
    reach: float,
    slices: dict[int, np.ndarray],
) -> str:
    """Add the pixels inside a contour to those of its slice, or say why not.

    `places` and `reach` are millimetres along the normal: of each slice, and how far off it a
    point may lie.
    """
    if text_of(contour, "ContourGeometricType") not in _CLOSED:
        return "contour is a point or an open line"
    try:
        points = np.array(_numbers(contour), np.float64).reshape(-1, 3)
    except DICOM_ERRORS:
        return "contour data is malformed"
    if not np.isfinite(points).all():
        return "contour data is malformed"
    if len(points) < 3:
        return "contour of fewer than three points"
    points = np.c_[points, np.ones(len(points))] @ _LPS_TO_RAS
    off = np.abs(places[:, None] - points[:, :3] @ planes[0].affine[:3, 2]).max(axis=1)
    images = {text_of(i, "ReferencedSOPInstanceUID") for i in _items(contour, _IMAGES)} - {""}
    if images:
        off[[plane.uid not in images for plane in planes]] = np.inf
    k = int(off.argmin())
    if not off[k] <= reach:
        return "contour lies on no slice of its series"
    rows, columns = planes[k].shape
    pixels = (np.linalg.inv(planes[k].affine) @ points.T)[:2].T  # column, row of pixel centres
    if (np.abs(pixels - [columns / 2, rows / 2]) > [2 * columns, 2 * rows]).any():
        return "contour leaves the image"  # a wild number would also fill the memory
    inside = _polygon(pixels, rows, columns)
    if not inside.any():
        return "contour covers no pixel"
    slices[k] = slices[k] ^ inside if k in slices else inside
    return ""


def _numbers(contour: pydicom.Dataset) -> list:
    """The values of ContourData, as text where they still are: objects would take seconds."""
    if "ContourData" not in contour:
        return []
    value = contour.get_item("ContourData").value or []
    if isinstance(value, bytes):
        text = value.decode("ascii").strip(" \0")
        return text.split("\\") if text else []
    return list(value)


def _polygon(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Pixels (rows, columns) inside a polygon of (column, row); pixel centres are integers."""
    from pycocotools import mask

    # pycocotools has them at halves.
    coded = mask.frPyObjects([(pixels + 0.5).ravel().tolist()], rows, columns)
    return mask.decode(coded)[..., 0].astype(bool)


def _stacked(slices: dict[int, np.ndarray], planes: list[Plane]) -> _Parts:
    """Drawn slices as volumes: one, or several where slices are missing in between."""
    parts = []
    drawn = np.logical_or.reduce(list(slices.values()))
    if not drawn.any():
        return []
    (top, bottom), (left, right) = (
        (used[0], used[-1] + 1) for used in (np.flatnonzero(drawn.any(axis=a)) for a in (1, 0))
    )
    window = (slice(top, bottom), slice(left, right))
    empty = np.zeros((bottom - top, right - left), bool)
    stretches, usual = runs(planes)
    for run in stretches:
        within = [k for k in run if k in slices]
        if within:
            run = range(within[0], within[-1] + 1)
            affine = run_affine(planes, run, usual)
            affine[:3, 3] += affine[:3, :2] @ (left, top)
            voxels = [slices[k][window].T if k in slices else empty.T for k in run]
            parts.append((np.stack(voxels, axis=2), affine))
    return parts


def _items(header: pydicom.Dataset | None, way: tuple[str, ...]) -> list[pydicom.Dataset]:
    """Items of a sequence, or of a sequence in a sequence; [] where the file has none."""
    found = [] if header is None else [header]
    for name in way:
        below = []
        for item in found:
            try:
                below += list(item.get(name) or [])
            except DICOM_ERRORS:
                continue
        found = [item for item in below if isinstance(item, pydicom.Dataset)]
    return found
