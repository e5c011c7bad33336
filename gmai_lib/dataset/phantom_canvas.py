"""Drawing tools of the phantoms: posed coordinates, soft shapes, smooth noise, curves.

Everything is a float32 array over the whole image. Anatomy coordinates (x right, y down) span
about -1..1; a `View` turns them into pixels with a random pose, so an anatomy function is
written once for a standard body and drawn in many positions.

Departs: the paper has no such data; phantoms stand in for the 219 sources nobody may pass on.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How far a body may be moved in the image; `draw` picks one pose per body."""

    scale: tuple[float, float] = (0.95, 1.2)  # zoom range
    shift: float = 0.12  # the anchor lands within +- this of the image centre
    anchor: tuple[float, float] = (0.0, 0.0)  # anatomy point that is moved
    rotation: float = 0.12  # radians, either way
    flip: bool = False  # mirror left-right in half of the images
    warp: float = 0.03  # smooth deformation, anatomy units


@dataclass(frozen=True, kw_only=True)
class Look:
    """Grey value (CT: Hounsfield unit) or RGB of each part of the three kinds of lesion."""

    solid: object = None  # filling of a solid blob
    centre: object = None  # inside of a ring
    rim: object = None  # wall of a ring
    speck: object = None  # dots of a cluster
    halo: object = None  # free zone around a solid, for cells lying on bare glass
    host: object = None  # disc that carries a ring: the red cell around a parasite
    dome: bool = False  # a solid is shaded like a bump


@dataclass
class Scene:
    """Normal anatomy before lesions and noise."""

    image: np.ndarray  # (H, W) or (H, W, 3) float32; 0..1, CT in Hounsfield units
    allowed: np.ndarray  # (H, W) bool: where a lesion may lie
    look: Look
    organ: np.ndarray | None = None  # (H, W) bool: the organ, where it has a border


class View:
    """Coordinates of one posed image: `x`, `y` (H, W) in anatomy units, `z` -1..1 the slice."""

    def __init__(self, size: int, pose: Pose, rng: np.random.Generator, z: float = 0.0):
        self.size, self.z = size, z
        x, y = grid(size)
        angle, scale = rng.uniform(-pose.rotation, pose.rotation), rng.uniform(*pose.scale)
        shift = rng.uniform(-pose.shift, pose.shift, 2)
        cos, sin = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
        x, y = x - np.float32(shift[0]), y - np.float32(shift[1])
        side = -1 if pose.flip and rng.random() < 0.5 else 1
        self.x = side * (cos * x + sin * y) + np.float32(pose.anchor[0])
        self.y = cos * y - sin * x + np.float32(pose.anchor[1])
        if pose.warp:
            self.x += np.float32(pose.warp) * noise(rng, size, 5)
            self.y += np.float32(pose.warp) * noise(rng, size, 5)

    def ellipse(self, cx, cy, rx, ry, angle=0.0, soft=0.04):
        """Return (H, W) coverage 0..1 of an ellipse with an edge `soft` wide."""
        return edge(self.radius(cx, cy, rx, ry, angle), min(rx, ry) / soft)

    def radius(self, cx, cy, rx, ry, angle=0.0):
        """Return (H, W) elliptical radius: 0 at the centre, 1 on the ellipse."""
        dx, dy = self.x - np.float32(cx), self.y - np.float32(cy)
        if angle:
            cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
        dx *= np.float32(1 / rx)
        dy *= np.float32(1 / ry)
        dx *= dx
        dy *= dy
        dx += dy
        return np.sqrt(dx, out=dx)

    def capsule(self, start, end, width):
        """Return (H, W) distance to the segment start-end divided by `width`."""
        ax, ay = np.float32(start[0]), np.float32(start[1])
        bx, by = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
        dx, dy = self.x - ax, self.y - ay
        t = np.clip((dx * bx + dy * by) * np.float32(1 / (bx * bx + by * by)), 0, 1)
        dx -= t * bx
        dy -= t * by
        return np.sqrt(dx * dx + dy * dy) * np.float32(1 / width)


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x, y (size, size) float32 of pixel centres in -1..1."""
    line = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    x, y = np.meshgrid(line, line)
    return x, y


@lru_cache(maxsize=128)
def _spline(size: int, cells: int) -> np.ndarray:
    """Cubic B-spline weights (size, cells + 3), scaled so that unit noise stays unit noise."""
    at = (np.arange(size) + 0.5) / size * cells
    distance = np.abs(at[:, None] - np.arange(-1, cells + 2)[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    weights = np.where(distance < 1, near, far)
    return (weights / np.sqrt((weights**2).sum(1).mean())).astype(np.float32)


def noise(rng: np.random.Generator, size: int, cells: int, across: int | None = None):
    """Return (size, size) smooth noise, mean 0, deviation about 1.

    `cells` waves fit down the image and `across` (default the same) fit from left to right.
    """
    down, along = _spline(size, cells), _spline(size, across or cells)
    values = rng.standard_normal((down.shape[1], along.shape[1]), dtype=np.float32)
    return down @ values @ along.T


def edge(radius, sharpness):
    """Return coverage 0..1 that falls from 1 inside `radius` 1 to 0 outside, in place."""
    np.subtract(np.float32(1), radius, out=radius)
    radius *= np.float32(sharpness)
    radius += np.float32(0.5)
    return np.clip(radius, 0, 1, out=radius)


def paint(image, cover, value):
    """Blend `value` (scalar, (H, W) or RGB) into `image` where `cover` (H, W) is 1; in place."""
    if image.ndim == 2:
        image += cover * (value - image)
    else:
        value = np.asarray(value, dtype=np.float32)
        image += cover[..., None] * (value - image)
    return image


def colour(cover, low, high):
    """Return (H, W, 3): RGB `low` where `cover` is 0, `high` where it is 1."""
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return low + cover[..., None] * (high - low)


def dots(rng: np.random.Generator, size: int, count: int, sigma: float, where=None):
    """Return (H, W) 0..1: `count` random soft dots of `sigma` pixels, each with its own peak."""
    canvas = np.zeros((size, size), dtype=np.float32)
    at = rng.integers(0, size, (2, count))
    canvas[at[0], at[1]] = rng.uniform(0.5, 1.0, count)
    if where is not None:
        canvas *= where
    canvas = ndimage.gaussian_filter(canvas, sigma, truncate=2.5)
    return np.clip(canvas * np.float32(2 * np.pi * sigma**2 * 1.3), 0, 1)


def curves(size: int, lines: list[np.ndarray], width: float):
    """Return (H, W) 0..1 coverage of polylines (k, 2) of image x, y in -1..1, `width` pixels."""
    canvas = np.zeros((size, size), dtype=np.float32)
    steps = np.linspace(0, 1, 8, endpoint=False)[:, None, None]
    for line in lines:
        dense = (line[:-1] + steps * (line[1:] - line[:-1])).reshape(-1, 2)
        pixel = ((dense + 1) * (size / 2)).astype(int)
        pixel = pixel[((pixel >= 0) & (pixel < size)).all(axis=1)]
        canvas[pixel[:, 1], pixel[:, 0]] = 1
    sigma = max(width, 1.3) / 2  # thinner than a pixel would look jagged
    canvas = ndimage.gaussian_filter(canvas, sigma, truncate=2.5)
    return np.clip(canvas * np.float32(2.6 * sigma), 0, 1)


def lattice(view: View, rng: np.random.Generator, step: float, reach: float, missing=0.0):
    """Return (H, W) radius of round cells on a shaken lattice: 0 in a centre, 1 on its border.

    Cells of radius `reach` stay whole if reach < step / 2; a part `missing` is left out.
    """
    row = np.round(view.y / step)
    column = view.x / step + 0.5 * (row % 2)
    key = (np.round(column) * 57 + row * 131).astype(np.int32) % 512
    play = max(step / 2 - 1.06 * reach, 0)
    shake = rng.uniform(-play, play, (2, 512)).astype(np.float32)[:, key]
    dx, dy = (column - np.round(column)) * step - shake[0], view.y - row * step - shake[1]
    radius = np.sqrt(dx * dx + dy * dy) * np.float32(1 / reach)
    if missing:
        radius[(rng.random(512) < missing)[key]] = 9
    return radius


def wander(rng: np.random.Generator, start, angle, length, bend=0.5, points=14):
    """Return a (points, 2) random smooth path from `start`, for vessels, hairs and fibres."""
    turns = angle + np.cumsum(rng.normal(0, bend / points, points)) * 3
    step = length / points
    path = np.stack([np.cos(turns), np.sin(turns)], axis=1) * step
    return np.asarray(start) + np.cumsum(path, axis=0)


def tree(rng: np.random.Generator, start, angle, length, depth=3):
    """Return [(depth, path), ...] of a branching vessel that starts at `start`."""
    path = wander(rng, start, angle, length)
    parts = [(depth, path)]
    if depth:
        for turn in (-1, 1):
            fork = path[rng.integers(6, len(path))]
            parts += tree(
                rng,
                fork,
                angle + turn * rng.uniform(0.3, 0.8),
                length * rng.uniform(0.5, 0.8),
                depth - 1,
            )
    return parts
