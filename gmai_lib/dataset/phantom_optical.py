"""Normal anatomy of the five colour modalities, one function per organ.

As in `phantom_anatomy`: `scene(view, rng)` returns the clean RGB picture (0..1), where lesions
may lie and what they look like there. Lesions differ from their surroundings in brightness and
shape, never by hue alone.
"""

import numpy as np

from gmai_lib.dataset.phantom_canvas import (
    Look,
    Pose,
    Scene,
    View,
    colour,
    curves,
    dots,
    edge,
    grid,
    lattice,
    noise,
    paint,
    wander,
)


def fundus(view: View, rng: np.random.Generator) -> Scene:
    """Eye background: disc with cup, vessel arcades, macula, in a round field of view."""
    size = view.size
    tone = np.float32(rng.uniform(0.75, 1.1))
    mottle = 0.5 + 0.1 * noise(rng, size, 6) + 0.05 * noise(rng, size, 22)
    image = colour(
        mottle, np.float32([0.62, 0.24, 0.09]) * tone, np.float32([0.86, 0.46, 0.2]) * tone
    )
    macula = np.exp(-(view.radius(-0.12, 0.03, 0.2, 0.2) ** 2))
    paint(image, macula * 0.4, np.float32([0.45, 0.14, 0.05]) * tone)
    disc = view.radius(0.55, 0.0, 0.17, 0.19)
    thick, thin = [], []
    t = np.linspace(0, 1, 18)
    for up in (-1, 1):
        for reach, along, fall in ((0.62, 1.5, 0.45), (0.95, 0.75, -0.1), (0.6, -0.6, -0.5)):
            rise = (1 - np.exp(-5 * t)) * (1 - fall * t * t) if along > 0 else t
            wave = 0.02 * np.sin(t * rng.uniform(8, 14) + rng.uniform(0, 6))
            x = 0.55 - along * t**1.3 + wave
            y = up * reach * rng.uniform(0.85, 1.1) * rise + wave
            path = np.stack([x, y], axis=1)
            thick.append(path)
            for k in (5, 9, 12, 15):
                out = np.arctan2(*(path[k] - path[k - 1])[::-1]) + rng.choice((-0.6, 0.6))
                thin.append(wander(rng, path[k], out, rng.uniform(0.25, 0.5), 0.8))
    thick, thin = (_to_image(view, paths) for paths in (thick, thin))
    paint(image, curves(size, thin, size / 70) * 0.4, np.float32([0.4, 0.1, 0.04]) * tone)
    paint(image, curves(size, thick, size / 42) * 0.65, np.float32([0.36, 0.07, 0.03]) * tone)
    paint(image, edge(disc.copy(), 6) * 0.9, np.float32([0.98, 0.78, 0.45]))
    paint(image, edge(disc * np.float32(2.2), 2) * 0.8, np.float32([1.0, 0.93, 0.72]))
    x, y = grid(size)
    rho = np.sqrt(x * x + y * y) * np.float32(1 / rng.uniform(0.97, 1.2))
    image *= (1 - 0.3 * rho * rho)[..., None]
    image *= edge(rho.copy(), size / 4)[..., None]
    allowed = (rho < 0.96) & (disc > 1.25)
    look = Look(
        solid=(0.2, 0.02, 0.02),
        centre=(0.12, 0.05, 0.03),
        rim=(1.0, 0.9, 0.66),
        speck=(1.0, 0.97, 0.6),
    )
    return Scene(image=image, allowed=allowed, look=look)


def _to_image(view: View, paths):
    """Move anatomy paths into the image: the pose is affine but for the small warp."""
    n = view.size
    corner = np.array([view.x[n // 2, n // 2], view.y[n // 2, n // 2]])
    across = np.array(
        [view.x[n // 2, -1] - view.x[n // 2, 0], view.y[n // 2, -1] - view.y[n // 2, 0]]
    )
    down = np.array(
        [view.x[-1, n // 2] - view.x[0, n // 2], view.y[-1, n // 2] - view.y[0, n // 2]]
    )
    inverse = np.linalg.inv(np.stack([across, down], axis=1) / 2)
    return [(path - corner) @ inverse.T for path in paths]


def dermoscopy(view: View, rng: np.random.Generator) -> Scene:
    """Skin of any tone under a dermatoscope, with hairs, pores and a dark edge at times."""
    size = view.size
    fair, dark = np.float32([0.93, 0.75, 0.66]), np.float32([0.52, 0.34, 0.25])
    tone = dark + np.float32(rng.uniform(0, 1)) * (fair - dark)
    shade = 1 + 0.035 * noise(rng, size, 4) + 0.03 * noise(rng, size, 28)
    image = shade[..., None] * tone
    image[..., 1:] *= (1 + 0.035 * noise(rng, size, 7))[..., None]  # redness
    paint(image, dots(rng, size, 30, size / 150) * 0.25, tone * 0.7)  # pores
    hairs = [
        wander(rng, rng.uniform(-1.1, 1.1, 2), rng.uniform(0, 6.3), rng.uniform(0.8, 2), 1.2, 20)
        for _ in range(rng.integers(0, 9))
    ]
    if hairs:
        paint(image, curves(size, hairs, size / 100) * 0.75, tone * 0.3)
    x, y = grid(size)
    rho = np.sqrt(x * x + y * y)
    if rng.random() < 0.4:
        image *= np.clip((rng.uniform(1.1, 1.35) - rho) * 8, 0.03, 1)[..., None]
    allowed = rho < 1.08
    look = Look(
        solid=tone * 0.28,
        centre=np.minimum(tone * 1.3 + 0.12, 1),
        rim=tone * 0.25,
        speck=tone * 0.12,
    )
    return Scene(image=image, allowed=allowed, look=look)


def endoscopy_colon(view: View, rng: np.random.Generator) -> Scene:
    """View down the colon: dark lumen, rings of folds, fine vessels, wet highlights."""
    size = view.size
    rho = view.radius(0, 0, 1, rng.uniform(0.8, 1.1))
    angle = np.arctan2(view.y, view.x)
    triangle = 1 + 0.1 * np.cos(3 * angle + rng.uniform(0, 6))
    way = np.log(rho * triangle + 0.06) * rng.uniform(0.9, 1.3) + 0.09 * noise(rng, size, 4)
    fold = (way + np.float32(rng.uniform(0, 1))) % 1  # a ring rises slowly and drops at its edge
    drop = np.clip(fold * 9, 0, 1) * np.clip((1 - fold) * 30, 0, 1)
    light = np.clip(0.45 + 0.6 * rho, 0, 1) * (0.5 + 0.5 * drop * (0.75 + 0.25 * fold))
    light *= np.clip(rho * 5 - 0.45, 0.12, 1)
    return _mucosa(view, rng, light, (0.93, 0.53, 0.44), vessels=9, look_scale=1.0)


def endoscopy_stomach(view: View, rng: np.random.Generator) -> Scene:
    """Stomach wall: long winding folds (rugae), pooled mucus, wet highlights."""
    size = view.size
    along = view.x * rng.uniform(7, 10) + 1.1 * noise(rng, size, 3) + 0.5 * np.sin(view.y * 5)
    fold = 0.5 + 0.5 * np.sin(along)
    far = np.clip(1.05 - 0.35 * np.abs(view.y - rng.uniform(-0.5, 0.5)), 0.3, 1)
    light = (0.62 + 0.38 * np.sqrt(fold)) * far
    return _mucosa(view, rng, light, (0.95, 0.62, 0.42), vessels=0, look_scale=0.95)


def _mucosa(view, rng, light, tone, vessels, look_scale) -> Scene:
    """Colour a shaded wall, add vessels, highlights and the scope's dark frame."""
    size = view.size
    tone = np.float32(tone) * np.float32(rng.uniform(0.85, 1.05))
    image = light[..., None] * tone
    image[..., 1:] *= (1 + 0.05 * noise(rng, size, 8))[..., None]
    lines = [
        wander(rng, rng.uniform(-1, 1, 2), rng.uniform(0, 6.3), rng.uniform(0.3, 0.8))
        for _ in range(vessels)
    ]
    if lines:
        paint(image, curves(size, lines, size / 90) * 0.3, tone * np.float32([0.6, 0.25, 0.25]))
    wet = np.clip(noise(rng, size, 16, 20) * 1.5 - 3.1, 0, 1) * (light > 0.45)
    paint(image, wet, (1.0, 0.98, 0.95))
    x, y = grid(size)
    frame = np.maximum(
        np.maximum(np.abs(x), np.abs(y)) * 0.98, (np.abs(x) + np.abs(y)) * rng.uniform(0.58, 0.66)
    )
    image *= edge(frame.copy(), size / 4)[..., None]
    look = Look(
        solid=np.minimum(tone * 0.6 + 0.42, 1) * look_scale,
        centre=(1.0, 0.96, 0.78),
        rim=(0.3, 0.03, 0.04),
        speck=(0.28, 0.0, 0.02),
        dome=True,
    )
    return Scene(image=image, allowed=(frame < 0.94) & (light > 0.28), look=look)


_PINK, _PURPLE, _WHITE = (
    np.float32(c) for c in ((0.93, 0.68, 0.8), (0.45, 0.27, 0.58), (0.97, 0.94, 0.96))
)


def histopathology_colon(view: View, rng: np.random.Generator) -> Scene:
    """H&E mucosa: round crypts with a border of nuclei and a pale lumen, in pink stroma."""
    size = view.size
    image = _stroma(view, rng)
    gland = lattice(view, rng, rng.uniform(0.34, 0.42), 0.15) + 0.1 * noise(rng, size, 6)
    cells = np.clip((1.0 - gland) * 8, 0, 1)
    rows = np.clip(0.5 + 0.5 * noise(rng, size, 26), 0, 1)
    paint(image, cells * 0.85, colour(rows, (0.72, 0.5, 0.74), (0.58, 0.38, 0.66)))
    paint(image, np.clip((0.3 - gland) * 8, 0, 1), _WHITE * 0.97)
    return _slide(view, rng, image)


def histopathology_breast(view: View, rng: np.random.Generator) -> Scene:
    """H&E breast: wavy collagen, fat cells, small ducts."""
    size = view.size
    image = _stroma(view, rng, fibres=1.0)
    bubble = lattice(view, rng, 0.24, 0.118)
    fat = np.clip(noise(rng, size, 2) * 2 - 0.8, 0, 1)
    paint(image, np.clip(fat * 4, 0, 1) * edge(bubble, 9), _WHITE)
    for _ in range(rng.integers(3, 6)):
        duct = view.radius(*rng.uniform(-0.9, 0.9, 2), 0.11, 0.08, rng.uniform(0, 3))
        paint(image, edge(duct.copy(), 5) * 0.8, (0.62, 0.42, 0.7))
        paint(image, edge(duct * 2.6, 2), _WHITE)
    return _slide(view, rng, image)


def _stroma(view, rng, fibres=0.5):
    size = view.size
    wave = np.sin((view.y + 0.2 * noise(rng, size, 3)) * 34) * fibres
    shade = np.clip(0.5 + 0.18 * wave + 0.2 * noise(rng, size, 10), 0, 1)
    return colour(shade, _PINK * 0.92, np.float32([0.97, 0.84, 0.9]))


def _slide(view, rng, image) -> Scene:
    """Scatter nuclei, vary the stain."""
    size = view.size
    paint(image, dots(rng, size, size, size / 130) * 0.6, _PURPLE)
    image *= np.float32(rng.uniform(0.96, 1.03, 3) * rng.uniform(0.9, 1.03))
    look = Look(
        solid=(0.27, 0.11, 0.42),
        centre=(0.99, 0.9, 0.92),
        rim=(0.25, 0.1, 0.38),
        speck=(0.1, 0.04, 0.3),
    )
    return Scene(image=image, allowed=np.ones((size, size), bool), look=look)


def microscopy_blood(view: View, rng: np.random.Generator) -> Scene:
    """Stained smear: red cells with central pallor, now and then touching."""
    size = view.size
    back = np.float32([0.95, 0.92, 0.9]) * np.float32(rng.uniform(0.9, 1.02))
    image = np.empty((size, size, 3), np.float32)
    image[:] = back
    red = np.float32([0.84, 0.52, 0.5]) * np.float32(rng.uniform(0.9, 1.08))
    reach = rng.uniform(0.11, 0.14)
    for _ in range(2):  # two loose layers, so that cells overlap at times
        rho = lattice(view, rng, reach * 2.75, reach, missing=rng.uniform(0.4, 0.6))
        rho *= 1 + 0.05 * noise(rng, size, 9)
        view.x += np.float32(rng.uniform(0.1, 0.2))
        paint(image, edge(rho.copy(), 7), red)
        paint(image, np.exp(-((rho / np.float32(0.5)) ** 2)) * 0.7, back)
    look = Look(
        solid=(0.36, 0.16, 0.5),
        centre=red * 1.05,
        rim=(0.26, 0.08, 0.4),
        speck=(0.32, 0.1, 0.45),
        halo=back,
        host=red * 0.95,
    )
    return Scene(image=image, allowed=np.ones((size, size), bool), look=look)


SCENES = {
    ("fundus", "retina"): (
        fundus,
        Pose(scale=(0.9, 1.15), shift=0.15, rotation=0.25, flip=True, warp=0.01),
    ),
    ("dermoscopy", "skin"): (dermoscopy, Pose(flip=True)),
    ("endoscopy", "colon"): (endoscopy_colon, Pose(shift=0.5, rotation=3.1, scale=(0.8, 1.2))),
    ("endoscopy", "stomach"): (endoscopy_stomach, Pose(shift=0.3, rotation=3.1, scale=(0.9, 1.5))),
    ("histopathology", "colon"): (histopathology_colon, Pose(shift=0.3, rotation=3.1, warp=0.05)),
    ("histopathology", "breast"): (histopathology_breast, Pose(shift=0.3, rotation=3.1, warp=0.05)),
    ("microscopy", "blood"): (microscopy_blood, Pose(shift=0.3, rotation=3.1, warp=0.03)),
}
