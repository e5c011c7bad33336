"""Pixels: decode, window, orient, hash. One code path for building, training and inference.

Every function returns NumPy arrays of its own; shapes are (H, W) grey or (H, W, 3) RGB, uint8.

Display convention of slices (radiological): axial and coronal slices show the patient's right
at the left of the image; axial rows run from anterior (top) to posterior, coronal and sagittal
rows from superior to inferior, sagittal columns from anterior (left) to posterior. Sides in
labels ("kidney_left") are the patient's, sides in facts are the image's.

Paper: section 3.1, step 2 (volumes become 2D slices with a window).
Departs: 16-bit files without a declared window are scaled from their own minimum and maximum.
"""

import io
import struct
import warnings
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from gmai_lib.config import CT_WINDOWS as CT_WINDOWS  # named in every checkpoint, too

MAX_PIXELS = 89_478_485  # Pillow's own decompression-bomb limit (a quarter GiB of RGB)

# What Pillow raises for broken files, found by flipping bytes of PNG, JPEG and TIFF files.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_PLAIN = {("PNG", "L"), ("PNG", "RGB"), ("JPEG", "L"), ("JPEG", "RGB")}


def decode(data: bytes | Path) -> np.ndarray:
    """Decode an image file to uint8 (H, W) or (H, W, 3); alpha is dropped, 16 bit is scaled.

    The array is read-only: Pillow's pixels are not copied a second time. Raises ValueError, with
    the path where one was given, if the file is broken, is no image, or is larger than Pillow's
    decompression-bomb limit.
    """
    return _read_only(_load(data)[0])


def decode_marked(path: Path) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """Decode the part of a mask file that holds its pixels above 0.

    Returns this part, uint8 (h, w), the maximum of its channels; its first row and column; height
    and width of the file's image. Most masks are nearly empty, and what is left out here need not
    be copied. Raises ValueError like `decode`.
    """
    loaded, _ = _load(path)
    image = loaded if isinstance(loaded, Image.Image) else Image.fromarray(loaded)
    left, top, right, bottom = image.getbbox() or (0, 0, 0, 0)
    part = np.asarray(image.crop((left, top, right, bottom)))
    part = part.max(axis=2, initial=0) if part.ndim == 3 else part
    return part, (top, left), (image.height, image.width)


def standard(data: bytes) -> tuple[bytes, tuple[int, int]]:
    """Return bytes that any viewer opens, and the height and width of the image.

    8-bit grey or RGB PNG and JPEG files come back unchanged; everything else (alpha, palette,
    16 bit, CMYK, other formats) is encoded again as PNG. Raises ValueError like `decode`.
    """
    loaded, is_plain = _load_once(data)
    if is_plain:
        return data, (loaded.height, loaded.width)
    return to_png(loaded), loaded.shape[:2]


@lru_cache(maxsize=1)
def decode_once(data: bytes) -> tuple[np.ndarray, bool]:
    """Decode like `decode`, but remember the last file.

    Reader and curation look at the same bytes one after the other. The second value says
    whether the file is a plain 8-bit PNG or JPEG.
    """
    loaded, is_plain = _load_once(data)
    return _read_only(loaded), is_plain


def _read_only(loaded: Image.Image | np.ndarray) -> np.ndarray:
    pixels = np.asarray(loaded)
    pixels.setflags(write=False)
    return pixels


def _load(data: bytes | Path) -> tuple[Image.Image | np.ndarray, bool]:
    """Load a plain file as Pillow has it, pixels of any other, and which of the two it is."""
    name = data if isinstance(data, Path) else f"image of {len(data)} bytes"
    source = data if isinstance(data, Path) else io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            # Pillow only warns between one and two times its limit: too large is too large.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                is_plain = (image.format, image.mode) in _PLAIN
                image.load()
                return (image if is_plain else _to_uint8(image)), is_plain
    except _PILLOW_ERRORS as error:
        raise ValueError(
            f"{name}: cannot decode ({type(error).__name__}: {error}); replace or delete the file"
        ) from error


_last: list[tuple] = []  # bytes of the file decoded last, and what `_load` made of them


def _load_once(data: bytes) -> tuple[Image.Image | np.ndarray, bool]:
    """Load like `_load`, but remember the last file.

    It is forgotten before the next one is loaded, which then takes its memory: an image in new
    memory takes a seventh longer. So no lru_cache.
    """
    for known, result in _last:
        if known == data:
            return result
    _last.clear()
    result = _load(data)
    _last[:] = [(data, result)]
    return result


def _to_uint8(image: Image.Image) -> np.ndarray:
    if image.mode in ("L", "RGB"):
        return np.array(image)
    if image.mode in ("1", "LA", "La"):
        return np.array(image.convert("L"))
    if image.mode.startswith(("I", "F")):  # 16 or 32 bit, or float
        return stretch(np.asarray(image, dtype=np.float64))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    pixels = np.array(image.convert("RGB"))
    is_grey_palette = image.mode == "P" and (pixels == pixels[..., :1]).all()
    return pixels[..., 0].copy() if is_grey_palette else pixels


def stretch(pixels: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Scale linearly to uint8 from `low`..`high` (default: minimum..maximum); NaN becomes low."""
    pixels = np.asarray(pixels)
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2 and pixels.size:
        # Every grey value once and not every pixel: half the time.
        least = int(pixels.min())
        greys = stretch(np.arange(least, int(pixels.max()) + 1), low, high)
        steps = np.subtract(pixels, least, dtype=np.intp)
        # In the order of the memory, which is that of the volume's axes.
        turned = steps.T if steps.flags.f_contiguous else steps
        taken = np.take(greys, turned, mode="clip")
        return taken.T if turned is not steps else taken
    pixels = np.array(pixels, dtype=np.float64)
    finite = np.isfinite(pixels)
    if low is None or high is None:
        known = pixels[finite]
        low = (known.min() if known.size else 0.0) if low is None else low
        high = (known.max() if known.size else 0.0) if high is None else high
    if not finite.all():
        np.nan_to_num(pixels, copy=False, nan=low, posinf=high, neginf=low)
    # In place from here on: slices are large, and each pass over new memory costs as much again.
    pixels -= low
    pixels /= max(high - low, np.finfo(np.float32).tiny)
    np.clip(pixels, 0.0, 1.0, out=pixels)
    pixels *= 255
    return np.rint(pixels, out=pixels).astype(np.uint8)


def window(hu: np.ndarray, center: float, width: float) -> np.ndarray:
    """Map Hounsfield (or other stored) units to uint8: black below, white above the window.

    Raises ValueError if `width` is not positive.
    """
    if not width > 0:
        raise ValueError(f"window width {width} (center {center}) is not positive")
    return stretch(hu, center - width / 2, center + width / 2)


def to_png(array: np.ndarray) -> bytes:
    """Encode uint8 (H, W) or (H, W, 3) as PNG; the same pixels give the same bytes.

    Runs are the only repetitions that zlib looks for: medical images are noise between edges, and
    become no larger in less than half of the time.
    """
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(array))
    picture.save(buffer, "PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def phash(array: np.ndarray) -> str:
    """Return the 64-bit perceptual hash (16 hex digits) of uint8 pixels."""
    import imagehash

    return str(imagehash.phash(Image.fromarray(array)))


def radiological(pixels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn and flip one slice into the display convention of the module docstring.

    `pixels` is (rows, columns, ...). `affine` (4, 4) maps (column, row, 0, 1) to millimetres in
    RAS+ space (x to the right, y to anterior, z to superior), as NIfTI has it. Returns both for
    the turned slice. Oblique slices are turned to the nearest of the three planes.
    """
    column_axis, row_axis = _dominant_axes(affine)
    across, down = sorted({0, 1, 2} - {3 - column_axis - row_axis})
    # (0, 1) axial: across = x, down = y; (0, 2) coronal; (1, 2) sagittal: across = y, down = z.
    if (column_axis, row_axis) != (across, down):
        pixels = pixels.swapaxes(0, 1)
        affine = affine[:, [1, 0, 2, 3]]
    # In every plane both image directions run against RAS: right to left, anterior to
    # posterior, superior to inferior.
    affine = affine.copy()
    for axis, vector, ras in ((1, 0, across), (0, 1, down)):
        if affine[ras, vector] > 0:
            pixels = np.flip(pixels, axis)
            affine[:3, 3] += affine[:3, vector] * (pixels.shape[axis] - 1)
            affine[:3, vector] *= -1
    return np.ascontiguousarray(pixels), affine


def _dominant_axes(affine: np.ndarray) -> tuple[int, int]:
    """RAS axes (0, 1, 2) that columns and rows run along; the stronger one chooses first."""
    strength = np.abs(affine[:3, :2]) / np.maximum(
        np.linalg.norm(affine[:3, :2], axis=0, keepdims=True), 1e-12
    )
    first = int(strength.max(axis=0).argmax())
    axis = int(strength[:, first].argmax())
    rest = strength[:, 1 - first].copy()
    rest[axis] = -1.0
    other = int(rest.argmax())
    return (axis, other) if first == 0 else (other, axis)


def square_pixels(pixels: np.ndarray, row_mm: float, column_mm: float) -> np.ndarray:
    """Enlarge the coarser direction so that a pixel is as high as wide (uint8, bilinear).

    `row_mm` is the distance of two rows, `column_mm` of two columns. Less than 5 % is left.
    Boxes as fractions of the image stay valid.
    """
    ratio = row_mm / column_mm
    if abs(ratio - 1) < 0.05:
        return pixels
    height, width = pixels.shape[:2]
    size = (width, round(height * ratio)) if ratio > 1 else (round(width / ratio), height)
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
