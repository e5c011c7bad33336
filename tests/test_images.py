"""Decoding, windows, orientation and hashes of `gmai_lib.dataset.images`."""

import contextlib
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from gmai_lib.dataset import images


def _encode(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def test_decode_drops_alpha_and_keeps_the_colors_below_it(rgb):
    alpha = np.zeros((40, 50, 1), np.uint8)
    data = _encode(Image.fromarray(np.concatenate([rgb, alpha], axis=2)), "PNG")
    assert np.array_equal(images.decode(data), rgb)
    grey = Image.merge("LA", [Image.fromarray(rgb[..., 0]), Image.fromarray(alpha[..., 0])])
    assert np.array_equal(images.decode(_encode(grey, "PNG")), rgb[..., 0])


def test_decode_scales_16_bit_to_the_full_range():
    data = np.array([[1000, 2000], [3000, 4000]], np.uint16).repeat(20, 0).repeat(20, 1)
    pixels = images.decode(_encode(Image.fromarray(data), "PNG"))
    assert pixels.dtype == np.uint8 and pixels.shape == (40, 40)
    assert sorted(np.unique(pixels)) == [0, 85, 170, 255]


@pytest.mark.parametrize("mode, ndim", [("L", 2), ("1", 2), ("P", 3), ("RGB", 3), ("RGBA", 3)])
def test_decode_gives_uint8_grey_or_rgb_for_every_png_mode(rgb, mode, ndim):
    pixels = images.decode(_encode(Image.fromarray(rgb).convert(mode), "PNG"))
    assert pixels.dtype == np.uint8 and pixels.shape == (40, 50, 3)[:ndim]


def test_grey_palette_becomes_grey(rgb):
    image = Image.fromarray(rgb[..., 0])
    image.putpalette([v for v in range(256) for _ in range(3)])
    assert np.array_equal(images.decode(_encode(image, "PNG")), rgb[..., 0])


def test_decode_reads_paths_and_cmyk(rgb, tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(rgb).convert("CMYK").save(path)
    assert images.decode(path).shape == (40, 50, 3)


def test_standard_keeps_plain_files_and_encodes_others_again(rgb):
    for mode, format in itertools.product(("L", "RGB"), ("PNG", "JPEG")):
        data = _encode(Image.fromarray(rgb).convert(mode), format)
        assert images.standard(data)[0] is data
        assert images.standard(data)[1] == (40, 50)
    for image, format in (
        (Image.fromarray(rgb).convert("RGBA"), "PNG"),
        (Image.fromarray(rgb), "BMP"),
    ):
        data, shape = images.standard(_encode(image, format))
        assert data.startswith(b"\x89PNG") and shape == (40, 50)
        assert np.array_equal(images.decode(data), rgb)


@pytest.mark.parametrize("keep", [0, 20, 60, 400])
def test_a_truncated_png_is_a_value_error_that_names_the_file(rgb, tmp_path, keep):
    path = tmp_path / "broken.png"
    path.write_bytes(_encode(Image.fromarray(rgb), "PNG")[:keep])
    with pytest.raises(ValueError, match=r"broken\.png: cannot decode .*replace or delete"):
        images.decode(path)
    with pytest.raises(ValueError, match=f"image of {keep} bytes"):
        images.decode(path.read_bytes())


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on odd TIFF tags
def test_flipped_bytes_never_raise_anything_but_value_error(rgb):
    rng = np.random.default_rng(1)
    seeds = [_encode(Image.fromarray(rgb), f) for f in ("PNG", "JPEG", "TIFF", "GIF", "BMP")]
    for _ in range(400):
        data = bytearray(seeds[rng.integers(len(seeds))])
        for where in rng.integers(0, min(len(data), 700), 4):
            data[where] = rng.integers(256)
        with contextlib.suppress(ValueError):
            images.decode(bytes(data))


@pytest.mark.parametrize("limit", [1500, 500])  # Pillow: warning up to twice the limit, then error
def test_pictures_above_the_decompression_bomb_limit_are_errors(rgb, monkeypatch, limit):
    data = _encode(Image.fromarray(rgb), "PNG")  # 2,000 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match="DecompressionBomb"):
        images.decode(data)


def test_window_maps_center_to_mid_grey_and_clips():
    hu = np.array([[-1000.0, -160.0, 40.0, 240.0, 3000.0]])
    assert images.window(hu, 40, 400).tolist() == [[0, 0, 128, 255, 255]]
    assert images.window(np.array([[np.nan]]), 40, 400).tolist() == [[0]]
    with pytest.raises(ValueError, match=r"width 0 \(center 40\)"):
        images.window(hu, 40, 0)


def test_stretch_survives_constant_and_empty_of_numbers():
    assert images.stretch(np.full((2, 2), 7.0)).tolist() == [[0, 0], [0, 0]]
    assert images.stretch(np.full((2, 2), np.nan)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, ">i2"])
@pytest.mark.parametrize("limits", [(None, None), (-40.5, 300.25), (90000, 90001)])
def test_whole_numbers_are_stretched_as_any_others_in_every_order_of_memory(dtype, limits):
    kind = np.iinfo(np.dtype(dtype))
    volume = np.random.default_rng(0).integers(kind.min, kind.max + 1, (9, 8, 7)).astype(dtype)
    volume = np.asfortranarray(volume)
    for pixels in (volume, volume[:, :, 3], volume[:, :, 3].T, volume[:, 2], volume[::2, 1:, ::-1]):
        grey = images.stretch(pixels, *limits)
        assert grey.dtype == np.uint8 and grey.shape == pixels.shape
        assert np.array_equal(grey, images.stretch(pixels.astype(np.float64), *limits))
    assert images.stretch(volume[:0, 0], *limits).shape == (0, 7)


def test_the_marked_part_of_a_mask_stands_where_it_was(tmp_path):
    mask = np.zeros((40, 50, 3), np.uint8)
    mask[5:9, 7:20, 1], mask[30, 31, 2] = 255, 1
    for page in (mask, mask[..., 1], mask * 0):
        (tmp_path / "mask.png").write_bytes(_encode(Image.fromarray(page), "PNG"))
        part, (top, left), size = images.decode_marked(tmp_path / "mask.png")
        again = np.zeros(size, np.uint8)
        again[top : top + part.shape[0], left : left + part.shape[1]] = part
        assert np.array_equal(again, page.max(axis=2) if page.ndim == 3 else page)
    assert part.shape == (0, 0)


def test_ct_windows_are_usable():
    for center, width in images.CT_WINDOWS.values():
        assert images.window(np.array([[center]]), center, width).tolist() == [[128]]


def test_png_and_phash_are_deterministic_and_phash_survives_jpeg(rgb):
    smooth = np.array(Image.fromarray(rgb[:8, :8]).resize((112, 112), Image.Resampling.BICUBIC))
    assert images.to_png(smooth) == images.to_png(smooth.copy())
    jpeg = images.decode(_encode(Image.fromarray(smooth), "JPEG"))
    a, b = images.phash(smooth), images.phash(jpeg)
    assert len(a) == 16 and (int(a, 16) ^ int(b, 16)).bit_count() <= 4
    assert (int(a, 16) ^ int(images.phash(255 - smooth), 16)).bit_count() > 16


def _positions(affine: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """RAS position of every pixel, (rows, columns, 3)."""
    rows, columns = np.indices(shape)
    flat = np.stack([columns, rows, 0 * rows, 0 * rows + 1], axis=-1)
    return (flat @ affine.T)[..., :3]


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_radiological_turns_every_orientation_to_the_display_convention(axes, signs):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for vector, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, vector] = sign * (vector + 1)
    affine[:3, 3] = (5, -3, 7)
    before = _positions(affine, (6, 4))
    pixels, turned = images.radiological(before, affine)
    # Pixel and affine move together: each pixel still knows its own position.
    assert np.allclose(_positions(turned, pixels.shape[:2]), pixels)
    right, down = pixels[0, 1] - pixels[0, 0], pixels[1, 0] - pixels[0, 0]
    plane = {2: "axial", 1: "coronal", 0: "sagittal"}[axes[2]]
    # RAS: x to the patient's right, y to anterior, z to superior.
    expected = {
        "axial": ([-1, 0, 0], [0, -1, 0]),
        "coronal": ([-1, 0, 0], [0, 0, -1]),
        "sagittal": ([0, -1, 0], [0, 0, -1]),
    }[plane]
    assert np.sign(right).tolist() == expected[0]
    assert np.sign(down).tolist() == expected[1]


def test_radiological_takes_oblique_slices_to_the_nearest_plane():
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pixels, turned = images.radiological(np.arange(12).reshape(3, 4), affine)
    assert pixels.tolist() == np.arange(12).reshape(3, 4)[::-1, ::-1].tolist()
    assert turned[0, 0] < 0 and turned[1, 1] < 0


def test_square_pixels_enlarges_the_coarser_direction(rgb):
    assert images.square_pixels(rgb, 3.0, 1.0).shape == (120, 50, 3)
    assert images.square_pixels(rgb, 1.0, 2.0).shape == (40, 100, 3)
    assert images.square_pixels(rgb, 1.0, 1.02) is rgb


def test_decode_once_returns_what_decode_returns_and_cannot_be_written(rgb):
    data = _encode(Image.fromarray(rgb), "PNG")
    pixels, is_plain = images.decode_once(data)
    assert is_plain and np.array_equal(pixels, images.decode(data))
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 0
