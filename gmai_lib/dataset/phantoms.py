"""Procedural medical pictures with exact ground truth: the embedded default data.

`draw(modality, rng)` gives one picture, `draw_volume` a stack of slices of one body; both know
which finding they contain, where, and how many. Three kinds of lesion have the same structure
in every modality (`FINDINGS`): "solid" a filled blob, "ring" a centre with a wall, "specks" a
cluster of dots. A seed fixes every byte.

Sampling keeps blind guessing weak: organ, finding and place are uniform, a quarter of the
pictures shows nothing, and normal anatomy has vessels, folds and nuclei of its own.

Paper: section 3.1 (the 11 image modalities). Departs: no patient data; resemblance is schematic
and says nothing about how a model does on real pictures.
"""

from dataclasses import dataclass, field

import numpy as np

from gmai_lib.dataset import phantom_anatomy, phantom_optical
from gmai_lib.dataset.phantom_canvas import Look, View, noise, paint
from gmai_lib.schema import NO_FINDING

KINDS = ("solid", "ring", "specks")

# modality -> organ -> kind -> name of the finding
FINDINGS: dict[str, dict[str, dict[str, str]]] = {
    "CT": {
        "lung": {"solid": "nodule", "ring": "cyst", "specks": "calcification"},
        "liver": {"solid": "mass", "ring": "cyst", "specks": "calcification"},
    },
    "MR": {
        "brain": {"solid": "mass", "ring": "cyst", "specks": "microbleed"},
        "knee": {"solid": "mass", "ring": "cyst"},
    },
    "X-ray": {
        "lung": {"solid": "nodule", "ring": "cavity", "specks": "calcification"},
        "hand": {"solid": "foreign body", "ring": "cyst", "specks": "calcification"},
    },
    "ultrasound": {
        "breast": {"solid": "mass", "ring": "cyst", "specks": "calcification"},
        "thyroid": {"solid": "nodule", "ring": "cyst", "specks": "calcification"},
    },
    "PET": {"torso": {"solid": "hypermetabolic focus"}},
    "OCT": {"retina": {"solid": "drusen", "ring": "cyst", "specks": "exudate"}},
    "fundus": {"retina": {"solid": "hemorrhage", "ring": "laser scar", "specks": "exudate"}},
    "dermoscopy": {"skin": {"solid": "nodule", "ring": "ulcer", "specks": "globules"}},
    "endoscopy": {
        "colon": {"solid": "polyp", "ring": "ulcer", "specks": "bleeding"},
        "stomach": {"solid": "polyp", "ring": "ulcer", "specks": "bleeding"},
    },
    "histopathology": {
        "colon": {"solid": "tumor nest", "ring": "necrosis", "specks": "lymphocyte cluster"},
        "breast": {"solid": "tumor nest", "ring": "necrosis", "specks": "lymphocyte cluster"},
    },
    "microscopy": {
        "blood": {
            "solid": "white blood cell",
            "ring": "malaria parasite",
            "specks": "platelet clump",
        }
    },
}

# (modality, organ) -> department
DEPARTMENT = {
    ("CT", "lung"): "pulmonary medicine",
    ("CT", "liver"): "general surgery",
    ("MR", "brain"): "neurosurgery",
    ("MR", "knee"): "orthopedic surgery",
    ("X-ray", "lung"): "pulmonary medicine",
    ("X-ray", "hand"): "orthopedic surgery",
    ("ultrasound", "breast"): "general surgery",
    ("ultrasound", "thyroid"): "endocrinology",
    ("PET", "torso"): "oncology",
    ("OCT", "retina"): "ophthalmology",
    ("fundus", "retina"): "ophthalmology",
    ("dermoscopy", "skin"): "dermatology",
    ("endoscopy", "colon"): "gastroenterology and hepatology",
    ("endoscopy", "stomach"): "gastroenterology and hepatology",
    ("histopathology", "colon"): "laboratory medicine and pathology",
    ("histopathology", "breast"): "laboratory medicine and pathology",
    ("microscopy", "blood"): "hematology",
}

GREY = ("CT", "MR", "X-ray", "ultrasound", "PET", "OCT")
CT_WINDOW = {"lung": (-500, 1500), "liver": (90, 260)}  # centre, width in Hounsfield units

_SCENES = phantom_anatomy.SCENES | phantom_optical.SCENES
_NORMAL_IMAGES, _NORMAL_VOLUMES = 0.25, 0.1  # slices beside a lesion add to the normals
_COUNT_ODDS = (0.6, 0.2, 0.2)  # 1, 2, 3 lesions
_DIAMETER = {1: (0.1, 0.22), 2: (0.1, 0.18), 3: (0.1, 0.16)}  # fraction of the width, by count
_LEAST_CUT = 0.75  # a slice shows a lesion if its cut is at least this part of its full width


@dataclass
class Phantom:
    """One picture and its truth; boxes are pixels x1, y1, x2, y2 with x2, y2 exclusive."""

    image: np.ndarray  # (H, W) or (H, W, 3) uint8
    modality: str
    department: str
    organ: str
    finding: str  # a name of FINDINGS or "no finding"
    kind: str  # solid, ring, specks or ""
    boxes: list[tuple[int, int, int, int]]  # one per instance, the bounds of its mask
    mask: np.ndarray  # (H, W) uint8: 0 background, 1..n instances
    organ_mask: np.ndarray | None  # (H, W) bool
    severity: str  # "" | mild | moderate | severe: by the longest side of the largest box


@dataclass
class Volume:
    """A stack of slices of one body; CT in Hounsfield units, others 0..1000."""

    voxels: np.ndarray  # (Z, H, W) int16
    modality: str
    department: str
    organ: str
    finding: str
    kind: str
    masks: np.ndarray  # (Z, H, W) uint8: 0 background, 1..n instances
    severity: str

    @property
    def labels(self) -> list[str]:
        """The finding visible in each slice, or "no finding"."""
        return [self.finding if m.any() else NO_FINDING for m in self.masks]


@dataclass
class _Lesion:
    x: float  # pixels
    y: float
    radius: float  # pixels
    wobble: np.ndarray  # amplitude and phase of the 2nd and 3rd harmonic of the outline
    strength: float  # opacity
    soft: float = 1.0  # width of the edge, pixels
    specks: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))  # offsets / radius
    slice: float = 0.0  # centre, in slices
    reach: float = 1.0  # half height, in slices


def draw(
    modality: str,
    rng: np.random.Generator,
    *,
    size: int = 112,
    organ: str | None = None,
    finding: str | None = None,
) -> Phantom:
    """Draw one picture; organ and finding are drawn too unless given.

    Raises ValueError if the modality, organ or finding is not in FINDINGS.
    """
    organ, finding, kind = _choose(modality, organ, finding, _NORMAL_IMAGES, rng)
    function, pose = _SCENES[modality, organ]
    body = np.random.default_rng(rng.integers(2**63))
    scene = function(View(size, pose, body), body)
    lesions = _place(rng, scene.allowed, kind, _DIAMETER) if kind else []
    mask = np.zeros((size, size), np.uint8)
    for number, lesion in enumerate(lesions, start=1):
        _paint_lesion(scene.image, mask, number, lesion, kind, scene.look, lesion.radius)
    image = _acquire(modality, scene.image, body, rng)
    if modality == "CT":
        centre, width = CT_WINDOW[organ]
        image = (image - (centre - width / 2)) / width
    return Phantom(
        image=np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8),
        modality=modality,
        department=DEPARTMENT[modality, organ],
        organ=organ,
        finding=finding,
        kind=kind,
        boxes=boxes_of(mask),
        mask=mask,
        organ_mask=scene.organ,
        severity=severity_of(mask),
    )


def draw_volume(
    modality: str,
    rng: np.random.Generator,
    *,
    size: int = 112,
    slices: int = 4,
    organ: str | None = None,
    finding: str | None = None,
) -> Volume:
    """Draw `slices` neighbouring slices of one body; lesions are ellipsoids through some.

    Raises ValueError if the modality has no volumes or organ or finding is unknown.
    """
    if modality not in ("CT", "MR", "PET"):
        raise ValueError(f"modality {modality!r} has no volumes; use CT, MR or PET")
    organ, finding, kind = _choose(modality, organ, finding, _NORMAL_VOLUMES, rng)
    function, pose = _SCENES[modality, organ]
    seed = rng.integers(2**63)  # the same body in every slice
    scenes, bodies = [], []
    for z in np.linspace(-0.6, 0.6, slices) if slices > 1 else [0.0]:
        body = np.random.default_rng(seed)
        scenes.append(function(View(size, pose, body, z), body))
        bodies.append(body)
    allowed = np.logical_and.reduce([scene.allowed for scene in scenes])
    thick = {n: (low / _LEAST_CUT, high) for n, (low, high) in _DIAMETER.items()}
    lesions = _place(rng, allowed, kind, thick) if kind else []
    for lesion in lesions:
        lesion.slice = rng.uniform(0, slices - 1)
        lesion.reach = rng.uniform(1.6, 0.9 * slices)
    masks = np.zeros((slices, size, size), np.uint8)
    voxels = np.zeros((slices, size, size), np.int16)
    for k, (scene, body) in enumerate(zip(scenes, bodies, strict=True)):
        for number, lesion in enumerate(lesions, start=1):
            cut = np.sqrt(max(0.0, 1 - ((k - lesion.slice) / lesion.reach) ** 2))
            if cut >= _LEAST_CUT:
                radius = cut * lesion.radius
                _paint_lesion(scene.image, masks[k], number, lesion, kind, scene.look, radius)
        image = _acquire(modality, scene.image, body, rng)
        image = image if modality == "CT" else np.clip(image, 0, 1) * 1000
        voxels[k] = np.clip(np.round(image), -1024, 3071)
    return Volume(
        voxels=voxels,
        modality=modality,
        department=DEPARTMENT[modality, organ],
        organ=organ,
        finding=finding,
        kind=kind,
        masks=masks,
        severity=max((severity_of(m) for m in masks), key=_SEVERITIES.index),
    )


def boxes_of(mask: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Return x1, y1, x2, y2 (exclusive) of instances 1..n of `mask` (H, W), in order."""
    boxes = []
    for number in range(1, int(mask.max()) + 1):
        rows, columns = np.nonzero(mask == number)
        if len(rows):
            corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            boxes.append(tuple(int(c) for c in corners))
    return boxes


_SEVERITIES = ("", "mild", "moderate", "severe")


def severity_of(mask: np.ndarray) -> str:
    """Grade by the longest box side: under 14.5 % of the width mild, under 18 % moderate."""
    longest = max((max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes_of(mask)), default=0)
    if not longest:
        return ""
    part = longest / mask.shape[1]
    return "mild" if part < 0.145 else "moderate" if part < 0.18 else "severe"


def _choose(modality, organ, finding, normal_odds, rng) -> tuple[str, str, str]:
    """Return organ, finding, kind; every random draw happens whatever is given."""
    if modality not in FINDINGS:
        raise ValueError(f"modality {modality!r} has no phantom; known: {', '.join(FINDINGS)}")
    organs = FINDINGS[modality]
    chosen = str(rng.choice(list(organs)))
    organ = organ or chosen
    if organ not in organs:
        raise ValueError(f"{modality} phantom of {organ!r} unknown; known: {', '.join(organs)}")
    kinds = {name: kind for kind, name in organs[organ].items()} | {NO_FINDING: ""}
    chosen = str(rng.choice(list(organs[organ].values())))
    if rng.random() < normal_odds:
        chosen = NO_FINDING
    finding = finding or chosen
    if finding not in kinds:
        raise ValueError(f"{modality} {organ} phantom has no {finding!r}; known: {list(kinds)}")
    return organ, finding, kinds[finding]


def _place(rng, allowed, kind, diameters) -> list[_Lesion]:
    """Choose 1 to 3 separate lesions inside `allowed` (H, W); a single one picks a cell first."""
    size = len(allowed)
    count = int(rng.choice((1, 2, 3), p=_COUNT_ODDS))
    radii = rng.uniform(*diameters[count], count) * size / 2
    shrink = 1.0
    while True:
        centres = _centres(rng, allowed, radii * shrink)
        if centres is not None:
            break
        shrink *= 0.9
        if shrink < 0.8:  # no room for this many: fewer, at full size
            count, shrink = count - 1, 1.0
            radii = radii[:count]
            if not count:
                raise RuntimeError("anatomy leaves no room for a single lesion; widen `allowed`")
    lesions = []
    for (x, y), radius in zip(centres, radii * shrink, strict=True):
        wobble = np.array([rng.uniform(0, 0.13), rng.uniform(0, 6.3), rng.uniform(0, 0.09), 0.0])
        wobble[3] = rng.uniform(0, 6.3)
        lesion = _Lesion(x, y, radius, wobble, rng.uniform(0.82, 1.0))
        lesion.soft = rng.uniform(0.008, 0.02) * size
        if kind == "specks":
            lesion.specks = _specks(rng, radius)
        lesions.append(lesion)
    return lesions


def _centres(rng, allowed, radii):
    """Return a centre (x, y) in pixels per radius, lesions apart and inside, or None."""
    size = len(allowed)
    single = len(radii) == 1
    if single:  # uniform over the 3x3 cells, away from their borders: no doubtful place
        cells = rng.permutation(9).repeat(60)
        inside = rng.uniform(0.08, 0.92, (2, len(cells)))
        points = (np.stack([cells % 3, cells // 3]) + inside) * (size / 3)
    else:
        points = rng.uniform(0, size, (2, 400))
    widest = float(max(radii))
    angle = np.arange(8) * (np.pi / 4)
    ring = np.stack([np.cos(angle), np.sin(angle)]) * widest * 0.9
    around = np.concatenate([points[:, :, None], points[:, :, None] + ring[:, None, :]], axis=2)
    pixel = np.clip(around, 0, size - 1).astype(int)
    fits = allowed[pixel[1], pixel[0]].all(axis=1)
    fits &= ((points > widest * 1.15) & (points < size - widest * 1.15)).all(axis=0)
    points = points[:, fits].T
    chosen = []
    for radius in radii:
        gap = 0.05 * size
        for point in points:
            if all(
                np.abs(point - other).max() > 1.16 * (radius + r) + gap
                for other, r in zip(chosen, radii, strict=False)
            ):
                chosen.append(point)
                break
        else:
            return None
    return chosen


def _specks(rng, radius):
    """Return (n, 2) offsets of well separated dots in the unit disc."""
    angle, distance = rng.uniform(0, 2 * np.pi, 60), np.sqrt(rng.uniform(0, 0.62, 60))
    points = np.stack([np.cos(angle) * distance, np.sin(angle) * distance], axis=1)
    apart = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)) > 0.5
    chosen, free = [], np.ones(len(points), bool)
    while free.any():
        chosen.append(int(free.argmax()))
        free &= apart[chosen[-1]]
    return points[chosen]


def _paint_lesion(image, mask, number, lesion: _Lesion, kind, look: Look, radius: float):
    """Paint one lesion of `radius` pixels into image and mask, in place."""
    size = len(mask)
    half = int(radius * 1.6) + 3
    left, top = max(int(lesion.x) - half, 0), max(int(lesion.y) - half, 0)
    window = np.s_[top : int(lesion.y) + half, left : int(lesion.x) + half]
    patch, rows, columns = image[window], *mask[window].shape
    dx = (np.arange(left, left + columns) + 0.5 - lesion.x)[None, :]
    dy = (np.arange(top, top + rows) + 0.5 - lesion.y)[:, None]
    rho, angle = np.sqrt(dx * dx + dy * dy), np.arctan2(dy, dx)
    a, b, c, d = lesion.wobble
    border = radius * (1 + a * np.cos(2 * angle + b) + c * np.cos(3 * angle + d))
    mask[window][rho < border] = number
    cover = np.clip((border - rho) / lesion.soft + 0.5, 0, 1) * lesion.strength
    around = look.halo if kind == "solid" else look.host if kind == "ring" else None
    if around is not None:
        paint(patch, np.clip(border * 1.35 - rho, 0, 1).astype(np.float32), around)
    if kind == "solid":
        value = np.asarray(look.solid, np.float32)
        if look.dome:
            paint(patch, np.clip(border * 1.2 - rho, 0, 1).astype(np.float32) * 0.5, value * 0.2)
            bump = np.sqrt(np.clip(1 - (rho / (border * 1.05)) ** 2, 0, 1))
            shine = np.exp(-((dx / radius + 0.3) ** 2 + (dy / radius + 0.3) ** 2) * 14)
            value = value * (0.62 + 0.38 * bump)[..., None] + 0.35 * shine[..., None]
        patch += (cover if patch.ndim == 2 else cover[..., None]) * (value - patch)
    elif kind == "ring":
        paint(patch, cover.astype(np.float32), look.rim)
        inner = np.clip(border * 0.66 - rho + 0.5, 0, 1) * lesion.strength
        paint(patch, inner.astype(np.float32), look.centre)
    else:
        dot = max(0.011 * size, 0.17 * radius)
        nearest = np.full(rho.shape, np.inf)
        for u, v in lesion.specks * radius:
            np.minimum(nearest, (dx - u) ** 2 + (dy - v) ** 2, out=nearest)
        spots = np.clip(dot - np.sqrt(nearest) + 0.5, 0, 1) * lesion.strength
        paint(patch, spots.astype(np.float32), look.speck)


def _acquire(modality, image, body, grain):
    """Add what the machine adds. `body` is the same for all slices, `grain` differs."""
    size = len(image)
    shape = image.shape
    if modality == "CT":
        return image + np.float32(body.uniform(6, 14)) * grain.standard_normal(shape, np.float32)
    gain, lift = np.float32(body.uniform(0.8, 1.08)), np.float32(body.uniform(-0.03, 0.05))
    field_ = 1 + np.float32(0.05) * noise(body, size, 2)
    if modality in ("ultrasound", "OCT"):
        speckle = grain.standard_normal(shape, np.float32)
        speckle[:, 1:] += speckle[:, :-1]
        amount = np.float32(body.uniform(0.12, 0.24) if modality == "ultrasound" else 0.14)
        return image * (field_ * gain) * (1 + amount * speckle) + 0.02 * np.abs(speckle)
    if modality == "PET":
        blur = grain.standard_normal(shape, np.float32)
        return image * gain + np.float32(0.05) * np.sqrt(np.clip(image, 0, 1)) * blur
    level = np.float32(body.uniform(0.008, 0.03))
    if modality in ("MR", "X-ray"):
        return (
            image * (field_ * gain)
            + lift * (modality == "X-ray")
            + level * np.abs(grain.standard_normal(shape, np.float32))
        )
    tint = body.uniform(0.97, 1.03, 3).astype(np.float32)
    image = image * (field_[..., None] * (tint * gain))
    return image + level * grain.standard_normal(shape, np.float32)
