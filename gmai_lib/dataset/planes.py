"""Slices of DICOM and NIfTI files: geometry, pixels in rescaled units, header facts.

Geometry is kept per slice as an affine from pixels to patient space (RAS+ millimetres), so
that a series with a missing slice or a mask on another grid still fits. Headers lie and files
break: every function here says so by None, "" or a ValueError, never by another exception.
"""

import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

from gmai_lib.dataset import images

_ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
MAX_VOXELS = 2**30  # a header may claim anything; more than this is not allocated

# What the two libraries raise for broken files, found by flipping and cutting bytes.
_NIFTI_ERRORS = (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, KeyError)
_NIFTI_ERRORS += (TypeError, OverflowError, zlib.error, struct.error)
DICOM_ERRORS = (InvalidDicomError, OSError, EOFError, ValueError, LookupError, AttributeError)
DICOM_ERRORS += (TypeError, NotImplementedError, RuntimeError, OverflowError, struct.error)
DICOM_ERRORS += (zlib.error, BytesLengthException)

# DICOM Modality (0008,0060) -> the paper's vocabulary; everything else is a counted drop.
MODALITIES = {
    "CT": "CT",
    "MR": "MR",
    "PT": "PET",
    "US": "ultrasound",
    "CR": "X-ray",
    "DX": "X-ray",
    "MG": "X-ray",
    "RF": "X-ray",
    "XA": "X-ray",
    "OPT": "OCT",
    "ES": "endoscopy",
    "SM": "histopathology",
    "GM": "microscopy",
}
# These machines write names and dates into the picture; only an explicit NO in
# BurnedInAnnotation (0028,0301) clears them.
_PAINTED = {"US", "ES"}
_BODY_PARTS = {
    "CSPINE": "cervical spine",
    "TSPINE": "thoracic spine",
    "LSPINE": "lumbar spine",
    "PARTIALBODY": "",
    "WHOLEBODY": "whole body",
}


@dataclass(kw_only=True)
class Plane:
    """One slice as stored; `affine` maps (column, row, 0, 1) to RAS+ millimetres."""

    path: str
    affine: np.ndarray
    shape: tuple[int, int]  # rows, columns
    load: Callable[[], np.ndarray]  # (rows, columns) in rescaled units; ValueError says why not
    voi: tuple[float, float] | None = None  # center, width
    inverted: bool = False  # MONOCHROME1: low is white
    axis: str = ""  # axial, coronal or sagittal, where the recipe declares its axes
    uid: str = ""  # SOP Instance UID of a DICOM slice


# ---- NIfTI ---------------------------------------------------------------------------------


def load_volume(path: Path) -> tuple[nibabel.Nifti1Image, np.ndarray]:
    """Load a 3D volume: NIfTI, or MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr) by SimpleITK.

    The affine is RAS+ millimetres in every case. Raises ValueError if the file is broken, no grey
    volume, or implausibly large.
    """
    try:
        image = _load_itk(path) if path.suffix in _ITK_SUFFIXES else nibabel.load(path)
        if np.prod(image.shape, dtype=np.float64) > MAX_VOXELS:
            raise ValueError(f"{image.shape} is more than {MAX_VOXELS} voxels")
        values = np.asanyarray(image.dataobj)
    except _NIFTI_ERRORS as error:
        raise ValueError(f"{path}: cannot read the volume ({error})") from error
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3 or not values.size or values.dtype.kind not in "iufb":
        raise ValueError(f"{path}: shape {image.shape}, type {values.dtype} is no grey 3D volume")
    if not (np.isfinite(image.affine).all() and abs(np.linalg.det(image.affine)) > 1e-9):
        raise ValueError(f"{path}: its affine has no inverse")
    return image, values


def _load_itk(path: Path) -> nibabel.Nifti1Image:
    """Read a file by SimpleITK; its axes are LPS+ and its arrays (Z, Y, X)."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()  # the header only: it may claim any size
        size = reader.GetSize()
        if np.prod(size, dtype=np.float64) > MAX_VOXELS or reader.GetNumberOfComponents() != 1:
            raise ValueError(f"size {size}, {reader.GetNumberOfComponents()} values per voxel")
        if len(size) != 3:
            raise ValueError(f"size {size} is no 3D volume")
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError(str(error).strip().splitlines()[-1]) from error
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = directions * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    values = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    if values.dtype == np.int64:  # nibabel wants to be told that it is meant
        values = values.astype(np.int32)
    return nibabel.Nifti1Image(values, affine)


# ---- DICOM ---------------------------------------------------------------------------------


def dicom_header(path: Path) -> pydicom.Dataset | None:
    """The elements before the pixels, None if the file is not DICOM."""
    try:
        with warnings.catch_warnings():
            # pydicom warns about each odd value in a header; none of those is used here.
            warnings.simplefilter("ignore")
            return pydicom.dcmread(path, stop_before_pixels=True)
    except DICOM_ERRORS:
        return None


def not_an_image(header: pydicom.Dataset | None) -> str:
    """The reason why a file cannot become a record, "" if it can."""
    if header is None:
        return "not a readable DICOM file"
    rows, columns, frames = (text_of(header, n) for n in ("Rows", "Columns", "NumberOfFrames"))
    if not (rows.isdigit() and columns.isdigit() and int(rows) and int(columns)):
        return "DICOM file without an image"
    if not (frames or "1").isdigit() or not int(frames or 1):
        return "number of frames is not a number"
    if int(rows) * int(columns) > images.MAX_PIXELS:
        return "image is too large"
    modality = text_of(header, "Modality")
    if modality not in MODALITIES:
        return f"DICOM modality {modality or 'not stated'} is outside the vocabulary"
    burned_in = text_of(header, "BurnedInAnnotation").upper()
    if burned_in == "YES" or (modality in _PAINTED and burned_in != "NO"):
        return "text may be burned into the pixels"
    return ""


def dicom_slice(path: Path) -> np.ndarray:
    pixels = dicom_pixels(path, 0)
    if pixels.ndim != 2:
        raise ValueError("color slice in a series")
    return pixels


def dicom_pixels(path: Path, frame: int) -> np.ndarray:
    """One frame: grey (H, W) in rescaled units, or uint8 (H, W, 3).

    Raises ValueError with a reason that names the transfer syntax but no path.
    """
    syntax = "unknown transfer syntax"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path)
            syntax = dataset.file_meta.TransferSyntaxUID.name
            pixels = pixel_array(dataset, index=frame)  # YBR comes out as RGB
            if dataset.PhotometricInterpretation == "PALETTE COLOR":
                pixels = apply_color_lut(pixels, dataset)
            if pixels.ndim == 2:
                return _rescaled(pixels, dataset)
    except DICOM_ERRORS as error:
        raise ValueError(f"DICOM pixels cannot be decoded ({syntax})") from error
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"DICOM pixels have {pixels.ndim} dimensions")
    return pixels if pixels.dtype == np.uint8 else images.stretch(pixels)


def _rescaled(pixels: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """What apply_modality_lut gives; whole numbers stay whole, which are faster from here on."""
    slope, intercept = (_numbers(dataset, name, 1) for name in ("RescaleSlope", "RescaleIntercept"))
    small = pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2 and pixels.size
    if small and slope == [1.0] and intercept and "ModalityLUTSequence" not in dataset:
        shift = intercept[0]
        low, high = int(pixels.min()) + shift, int(pixels.max()) + shift
        if shift.is_integer() and low >= -(2**15) and high < 2**15:
            return np.add(pixels, int(shift), dtype=np.int32).astype(np.int16)
    return apply_modality_lut(pixels, dataset)


def dicom_affine(header: pydicom.Dataset) -> np.ndarray | None:
    """(column, row, slice, 1) -> RAS+ millimetres; None where the header does not say."""
    position = _numbers(header, "ImagePositionPatient", 3)
    cosines = _numbers(header, "ImageOrientationPatient", 6)
    spacing = _numbers(header, "PixelSpacing", 2)
    if not (position and cosines and spacing and min(spacing) > 0):
        return None
    along_row, along_column = np.array(cosines[:3]), np.array(cosines[3:])
    normal = np.cross(along_row, along_column)
    if not np.linalg.norm(normal) > 1e-3:
        return None
    affine = np.eye(4)
    affine[:3, 0] = along_row * spacing[1]  # PixelSpacing: distance of rows, then of columns
    affine[:3, 1] = along_column * spacing[0]
    affine[:3, 2] = normal
    affine[:3, 3] = position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's x, y run to left and posterior


def voi_window(header: pydicom.Dataset) -> tuple[float, float] | None:
    """Center and width of the file's first window, None if it has no usable one."""
    centers, widths = (_numbers(header, n) for n in ("WindowCenter", "WindowWidth"))
    return (centers[0], widths[0]) if centers and widths and widths[0] > 0 else None


def is_inverted(header: pydicom.Dataset) -> bool:
    return text_of(header, "PhotometricInterpretation") == "MONOCHROME1"


def body_part(header: pydicom.Dataset) -> str:
    part = text_of(header, "BodyPartExamined").upper()
    return _BODY_PARTS.get(part, part.lower())


def text_of(header: pydicom.Dataset | None, name: str) -> str:
    """Value of an element as text, "" where it is missing, malformed or there is no header."""
    value = _value(header, name)
    return "" if value is None else str(value).strip()


def _value(header: pydicom.Dataset | None, name: str):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return None if header is None else header.get(name)
    except DICOM_ERRORS:
        return None


def _numbers(header: pydicom.Dataset, name: str, count: int | None = None) -> list[float] | None:
    value = _value(header, name)
    try:
        value = [value] if isinstance(value, (int, float, str)) else list(value or [])
        numbers = [float(v) for v in value]
    except (TypeError, ValueError):
        return None
    usable = numbers and np.isfinite(numbers).all() and count in (None, len(numbers))
    return numbers if usable else None
