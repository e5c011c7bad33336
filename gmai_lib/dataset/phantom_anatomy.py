"""Normal anatomy of the six grey modalities, one function per organ.

Each `scene(view, rng)` returns a `Scene`: the clean image (CT in Hounsfield units, the others
0..1), where lesions may lie, and what lesions look like there. `view.z` moves through the body,
so calling a function with the same seed and another z gives the neighbouring slice.
"""

import numpy as np

from gmai_lib.dataset.phantom_canvas import (
    Look,
    Pose,
    Scene,
    View,
    curves,
    dots,
    edge,
    grid,
    noise,
    paint,
    tree,
)


def ct_lung(view: View, rng: np.random.Generator) -> Scene:
    """Axial chest: lungs, heart, aorta, spine, ribs, airways."""
    size, z = view.size, view.z
    radius = view.radius(0, 0, 0.98, 0.8)
    image = np.full((size, size), -1000, np.float32)
    paint(image, edge(radius.copy(), 20), -90)  # fat
    paint(image, edge(radius * np.float32(1.07), 18), 40)  # muscle
    angle = np.arctan2(view.y, view.x)
    wall = np.clip(1 - np.abs(radius - 0.88) * 22, 0, 1)
    ribs = np.clip(np.sin(angle * 9 + rng.uniform(0, 6) + 2 * z) * 4 - 0.5, 0, 1)
    paint(image, wall * ribs, 420)
    wide = rng.uniform(0.33, 0.37) * (1 - 0.12 * z)
    left = view.ellipse(-0.44, -0.02, wide, 0.62 * (1 - 0.1 * z), 0.12, 0.05)
    right = view.ellipse(0.44, -0.02, wide, 0.62 * (1 - 0.1 * z), -0.12, 0.05)
    heart_size = 0.34 + 0.1 * z
    heart = view.ellipse(0.1, -0.12, heart_size, heart_size * 0.85, 0.5, 0.04)
    lungs = np.maximum(left, right) * (1 - heart)
    paint(image, lungs, -860 + 25 * noise(rng, size, 9))
    vessels = dots(rng, size, 40, size / 112, lungs > 0.8)
    lines = [p for side in (-1, 1) for _, p in tree(rng, (side * 0.15, 0), (side < 0) * np.pi, 0.4)]
    vessels = np.maximum(vessels * 0.5, curves(size, lines, size / 90) * 0.4 * lungs)
    paint(image, vessels * lungs, -150)
    paint(image, heart, 45 + 60 * view.ellipse(0.12, -0.1, heart_size * 0.6, heart_size * 0.5))
    paint(image, view.ellipse(0.02, 0.1, 0.05, 0.06), -950)  # trachea, bronchi
    paint(image, view.ellipse(0.13, 0.36, 0.08, 0.08), 150)  # descending aorta
    paint(image, view.ellipse(0, 0.52, 0.14, 0.13), 380 + 90 * noise(rng, size, 20))
    paint(image, view.ellipse(0, 0.7, 0.05, 0.1), 400)
    paint(image, view.ellipse(0, 0.64, 0.035, 0.03), 30)  # spinal canal
    look = Look(solid=80, centre=-1010, rim=70, speck=500)
    return Scene(image=image, allowed=lungs > 0.7, look=look, organ=lungs > 0.5)


def ct_liver(view: View, rng: np.random.Generator) -> Scene:
    """Axial upper abdomen: liver, stomach, spleen, kidneys, aorta, spine."""
    size, z = view.size, view.z
    radius = view.radius(0, 0, 0.98, 0.8)
    image = np.full((size, size), -1000, np.float32)
    paint(image, edge(radius.copy(), 20), -100)
    paint(image, edge(radius * np.float32(rng.uniform(1.07, 1.14)), 18), 45)
    inside = edge(radius * np.float32(1.2), 18)
    paint(image, inside, -25 + 15 * noise(rng, size, 8))  # bowel and fat, averaged
    ribs = np.clip(np.sin(np.arctan2(view.y, view.x) * 11 + z) * 4 - 1.5, 0, 1)
    paint(image, np.clip(1 - np.abs(radius - 0.87) * 24, 0, 1) * ribs, 350)
    paint(image, view.ellipse(0.52, -0.2, 0.24, 0.26, 0.4), 30)  # stomach with air and fluid
    air = view.ellipse(0.52, -0.27, 0.18, 0.14, 0.4)
    paint(image, air * np.clip((-0.2 - view.y) * 30, 0, 1), -900)
    paint(image, view.ellipse(0.62, 0.25, 0.16, 0.26 * (1 - 0.3 * z), -0.4), 110)  # spleen
    kidney = 0.15 * (1 + 0.3 * z)
    for side in (-1, 1):
        paint(image, view.ellipse(side * 0.42, 0.4, kidney, kidney * 0.85, side * 0.5), 150)
        paint(image, view.ellipse(side * 0.37, 0.4, kidney * 0.4, kidney * 0.3), 10)
    paint(image, view.ellipse(0.05, 0.25, 0.085, 0.085), 180)  # aorta
    paint(image, view.ellipse(-0.14, 0.2, 0.09, 0.07), 130)  # vena cava
    lobe = view.ellipse(-0.4, -0.1, 0.42 * (1 - 0.1 * z), 0.56 * (1 - 0.1 * z), 0.15)
    liver = np.maximum(lobe, view.ellipse(0.0, -0.28, 0.44 * (1 - 0.25 * z), 0.26, -0.15))
    liver *= inside
    paint(image, liver, rng.uniform(80, 105) + 6 * noise(rng, size, 14))
    lines = [p for _, p in tree(rng, (-0.1, 0.0), 3.4, 0.4)]
    paint(image, curves(size, lines, size / 50) * liver * 0.5, 150)
    paint(image, view.ellipse(0, 0.5, 0.16, 0.15), 320 + 80 * noise(rng, size, 20))
    paint(image, view.ellipse(0, 0.7, 0.05, 0.11), 380)
    paint(image, view.ellipse(0, 0.65, 0.045, 0.04), 25)
    look = Look(solid=205, centre=-10, rim=190, speck=600)
    return Scene(image=image, allowed=liver > 0.7, look=look, organ=liver > 0.5)


def mr_brain(view: View, rng: np.random.Generator) -> Scene:
    """Axial head, T1-weighted after contrast medium: scalp, skull, cortex, ventricles."""
    size, z = view.size, view.z
    wide = rng.uniform(0.74, 0.8) * (1 - 0.1 * abs(z))
    radius = view.radius(0, 0, wide, 0.95 * (1 - 0.1 * abs(z)))
    image = np.zeros((size, size), np.float32)
    paint(image, edge(radius * np.float32(0.98), 16), 0.78)  # scalp fat
    paint(image, edge(radius * np.float32(1.07), 18), 0.06)  # skull
    brain = edge(radius * np.float32(1.15), 18)
    folds = noise(rng, size, 13)
    rim = np.clip((radius * np.float32(1.15) - 0.72) * 4, 0, 1)
    cortex = np.clip(rim + 0.25 * folds * rim, 0, 1)
    level = rng.uniform(0.5, 0.58)
    tissue = level - 0.16 * cortex + 0.02 * noise(rng, size, 20)
    sulci = np.clip(1 - np.abs(folds) * 5, 0, 1) * np.clip((radius - 0.55) * 5, 0, 1)
    tissue -= 0.22 * sulci
    paint(image, brain, tissue)
    falx = np.clip(1 - np.abs(view.x) * 40, 0, 1) * (np.abs(view.y) > 0.32)
    paint(image, falx * brain, 0.2)
    opening = 1 - 0.5 * abs(z)
    ventricles = np.zeros_like(image)
    for side in (-1, 1):
        front = view.ellipse(side * 0.1, -0.2, 0.07 * opening, 0.2 * opening, side * -0.35)
        back = view.ellipse(side * 0.17, 0.22, 0.07 * opening, 0.2 * opening, side * 0.45)
        ventricles = np.maximum(ventricles, np.maximum(front, back))
        paint(image, view.ellipse(side * 0.24, -0.02, 0.09, 0.17, side * 0.3) * 0.7, level - 0.1)
    paint(image, ventricles, 0.1)
    allowed = (radius < 0.8) & (ventricles < 0.1)
    look = Look(solid=0.97, centre=0.05, rim=0.95, speck=0.0)
    return Scene(image=image, allowed=allowed, look=look, organ=brain > 0.5)


def mr_knee(view: View, rng: np.random.Generator) -> Scene:
    """Sagittal knee, fat-suppressed after contrast medium: femur, tibia, patella, menisci."""
    size, z = view.size, view.z
    image = np.zeros((size, size), np.float32)
    leg = np.clip((0.86 + 0.06 * np.sin(view.y * 3) - np.abs(view.x)) * 20, 0, 1)
    paint(image, leg, 0.2 + 0.02 * noise(rng, size, 9))
    muscle = np.clip((view.x - 0.42 + 0.1 * np.cos(view.y * 3)) * 9, 0, 1) * leg
    fibres = 0.4 + 0.04 * noise(rng, size, 4, 26)
    paint(image, muscle, fibres)
    paint(image, np.clip((-view.x - 0.62 + 0.2 * np.abs(view.y)) * 9, 0, 1) * leg * 0.8, 0.34)
    marrow = rng.uniform(0.44, 0.52) + 0.03 * noise(rng, size, 14)
    condyle = 0.44 - 0.08 * abs(z)
    femur = np.minimum(
        view.radius(0.02, -0.34, condyle, 0.36), view.capsule((-0.08, -1.6), (-0.06, -0.5), 0.28)
    )
    tibia = np.minimum(
        view.radius(0.02, 0.36, condyle * 0.98, 0.26),
        view.capsule((-0.06, 0.5), (-0.04, 1.7), 0.26),
    )
    patella = view.radius(-0.6, -0.36, 0.12, 0.24 - 0.15 * abs(z), 0.1)
    bones = np.zeros_like(image)
    for bone in (femur, tibia, patella):
        if bone is not patella:
            cartilage = edge(bone * np.float32(0.9), 9)
            paint(image, cartilage * 0.6 * (np.abs(view.y) < 0.5), 0.62)
        paint(image, edge(bone * np.float32(0.96), 5 if bone is patella else 12), 0.05)  # cortex
        inner = edge(
            bone * np.float32(1.12 if bone is patella else 1.06), 5 if bone is patella else 14
        )
        paint(image, inner, marrow)
        bones = np.maximum(bones, inner)
    for side in (-1, 1):  # menisci
        paint(image, view.ellipse(side * 0.3, 0.055, 0.1 + 0.06 * abs(z), 0.045, side * 0.2), 0.04)
    tendon = np.minimum(
        view.capsule((-0.62, -0.1), (-0.42, 0.5), 0.04),
        view.capsule((-0.62, -1.4), (-0.64, -0.6), 0.05),
    )
    paint(image, edge(tendon, 3), 0.05)
    ligament = view.capsule((0.12, -0.05), (-0.12, 0.16), 0.03)
    paint(image, edge(ligament, 2), 0.06)
    allowed = leg > 0.9
    look = Look(solid=0.97, centre=0.03, rim=0.95)
    return Scene(image=image, allowed=allowed, look=look, organ=leg > 0.5)


def xray_lung(view: View, rng: np.random.Generator) -> Scene:
    """Frontal chest: lungs, ribs, clavicles, heart, spine, diaphragm."""
    size = view.size
    image = np.full((size, size), 0.04, np.float32)
    body = np.clip((0.96 + 0.08 * view.y - np.abs(view.x)) * 12, 0, 1)
    shoulder = np.clip((view.y + 1.0 - 0.28 * np.abs(view.x) ** 2) * 12, 0, 1)
    paint(image, body * shoulder, 0.56)
    level = rng.uniform(0.16, 0.26)
    top = np.abs(view.x)
    dome = np.clip((0.62 - 0.16 * np.clip(np.abs(top - 0.42) * 3, 0, 1.5) ** 2 - view.y) * 16, 0, 1)
    left = view.ellipse(-0.44, 0.06, 0.37, 0.86, 0.09, 0.06)
    right = view.ellipse(0.44, 0.06, 0.37, 0.86, -0.09, 0.06)
    lungs = np.maximum(left, right) * dome
    paint(image, lungs, level + 0.02 * noise(rng, size, 10))
    hilum = [
        p
        for s in (-1, 1)
        for a in (-0.7, 0.1, 0.8)
        for _, p in tree(rng, (s * 0.18, 0.0), a if s > 0 else np.pi - a, 0.42, 2)
    ]
    image += 0.13 * curves(size, hilum, size / 60) * lungs
    spacing = rng.uniform(0.2, 0.24)
    curve = view.y - 0.42 * (top - 0.1) ** 2 + 0.12 * top
    posterior = np.clip(np.cos(curve * (2 * np.pi / spacing)) * 2.2 - 0.9, 0, 1)
    chest = np.clip((0.9 - top) * 12, 0, 1) * np.clip((top - 0.08) * 12, 0, 1)
    image += 0.13 * posterior * chest * np.clip((0.75 - view.y) * 6, 0, 1)
    width = rng.uniform(0.2, 0.3)
    heart = view.ellipse(0.14, 0.34, width + 0.1, width, 0.55, 0.06)
    heart = np.maximum(heart, view.ellipse(0.02, -0.2, 0.16, 0.5, 0, 0.08)) * dome
    paint(image, heart * 0.9, 0.6)
    spine = np.clip((0.11 - top) * 16, 0, 1)
    image += spine * (0.08 + 0.05 * np.cos(view.y * 32))
    paint(image, spine * np.clip((-0.45 - view.y) * 5, 0, 1) * 0.6, 0.25)  # trachea
    for side in (-1, 1):
        clavicle = view.capsule((side * 0.08, -0.72), (side * 0.85, -0.86), 0.045)
        image += 0.16 * edge(clavicle, 2)
    allowed = (np.maximum(lungs, heart) > 0.7) & (view.y > -0.85)
    look = Look(solid=0.9, centre=0.02, rim=0.92, speck=1.0)
    return Scene(image=image, allowed=allowed, look=look, organ=lungs > 0.5)


def xray_hand(view: View, rng: np.random.Generator) -> Scene:
    """Hand from above: carpals, metacarpals and phalanges in soft tissue."""
    size = view.size
    soft = np.full((size, size), 9, np.float32)
    bones = np.full((size, size), 9, np.float32)
    spread = rng.uniform(0.8, 1.15)
    for finger, reach in enumerate((0.62, 1.02, 1.1, 1.02, 0.82)):
        fan = (finger - 2.2) * 0.24 * spread
        if finger == 0:
            fan = -0.95 * spread
        foot = np.array([(finger - 2) * 0.14, 0.62 - 0.05 * (finger == 0)])
        step = np.array([np.sin(fan), -np.cos(fan)]) * reach * 1.42
        joints = (0, 0.42, 0.7, 0.88, 1.0) if finger else (0, 0.45, 0.76, 1.0)
        soft = np.minimum(soft, view.capsule(foot, foot + step * 1.02, 0.125))
        for k in range(len(joints) - 1):
            a, b = foot + step * (joints[k] + 0.02), foot + step * (joints[k + 1] - 0.02)
            bones = np.minimum(bones, view.capsule(a, b, 0.062 - 0.009 * k))
    soft = np.minimum(soft, view.radius(0, 0.4, 0.5, 0.52))
    soft = np.minimum(soft, view.capsule((0, 0.7), (0, 2), 0.34))
    for k in range(7):
        at = (-0.2 + 0.14 * (k % 4), 0.72 + 0.14 * (k // 4))
        bones = np.minimum(bones, view.radius(*at, 0.075, 0.07))
    for side in (-1, 1):
        bones = np.minimum(bones, view.capsule((side * 0.13, 1.05), (side * 0.12, 2), 0.1))
    flesh = edge(soft.copy(), 8)
    image = 0.05 + flesh * np.float32(0.24) * (1 + 0.06 * noise(rng, size, 6))
    bone = edge(bones.copy(), 3)
    shaft = np.clip(bones, 0, 1)  # cortex brighter than marrow
    paint(image, bone, 0.5 + 0.14 * shaft * shaft + 0.03 * noise(rng, size, 22))
    look = Look(solid=0.98, centre=0.02, rim=0.92, speck=1.0)
    return Scene(image=image, allowed=soft < 0.9, look=look, organ=soft < 1)


def ultrasound_breast(view: View, rng: np.random.Generator) -> Scene:
    """Skin, fat lobules, glandular tissue, pectoral muscle, ribs with shadows."""
    size = view.size
    wave = 0.06 * np.sin(view.x * rng.uniform(1, 3) + rng.uniform(0, 6))
    depth = view.y + wave
    fat, gland = rng.uniform(-0.7, -0.4), rng.uniform(0.25, 0.6)
    image = 0.24 + 0.04 * noise(rng, size, 5)
    septa = np.clip(1 - np.abs(noise(rng, size, 4, 5)) * 5, 0, 1)
    image += 0.22 * septa
    texture = 0.4 + 0.06 * noise(rng, size, 12, 5)
    paint(image, np.clip((depth - fat) * 8, 0, 1), texture)
    muscle = 0.26 + 0.09 * np.sin(depth * 46 + noise(rng, size, 4))
    paint(image, np.clip((depth - gland) * 10, 0, 1), muscle)
    paint(image, np.clip(1 - np.abs(depth - gland) * 28, 0, 1), 0.8)
    paint(image, np.clip((-0.88 - depth) * 16, 0, 1), 0.85)  # skin
    for at in (rng.uniform(-0.8, -0.3), rng.uniform(0.3, 0.8)):
        rib = view.ellipse(at, gland + 0.4, 0.2, 0.09)
        shadow = np.clip((0.2 - np.abs(view.x - at)) * 12, 0, 1) * (depth > gland + 0.42)
        paint(image, shadow, 0.06)
        paint(image, rib * (depth < gland + 0.4), 0.85)
    allowed = _probe(image, rng) & (view.y < 0.95)
    look = Look(solid=0.03, centre=0.0, rim=1.0, speck=1.0)
    return Scene(image=image, allowed=allowed, look=look)


def _probe(image, rng):
    """Blacken what lies outside the field of a curved probe, in half of the images; return it."""
    size = len(image)
    if rng.random() < 0.5:
        return np.ones((size, size), bool)
    x, y = grid(size)
    apex = np.float32(rng.uniform(-2.3, -1.7))
    distance = np.sqrt(x * x + (y - apex) ** 2)
    opening = np.abs(x) / (y - apex)
    inside = (
        (distance > -apex - 0.98) & (distance < 0.97 - apex) & (opening < rng.uniform(0.42, 0.5))
    )
    image *= inside
    return inside


def ultrasound_thyroid(view: View, rng: np.random.Generator) -> Scene:
    """Neck across: two lobes on the trachea, carotid arteries, strap muscles."""
    size = view.size
    image = 0.28 + 0.04 * noise(rng, size, 6)
    paint(image, np.clip((-0.45 - view.y) * 9, 0, 1), 0.24 + 0.07 * np.sin(view.y * 50))
    paint(image, np.clip((-0.85 - view.y) * 16, 0, 1), 0.8)
    lobes = np.maximum(
        view.ellipse(-0.42, 0.08, 0.42, 0.5, 0.2), view.ellipse(0.42, 0.08, 0.42, 0.5, -0.2)
    )
    lobes = np.maximum(lobes, view.ellipse(0, -0.18, 0.4, 0.14))
    paint(image, lobes, rng.uniform(0.42, 0.5) + 0.03 * noise(rng, size, 16))
    capsule = np.clip(1 - np.abs(lobes - 0.5) * 2, 0, 1)
    paint(image, capsule * 0.6, 0.8)
    paint(image, np.clip((view.y - 0.62) * 9, 0, 1), 0.2 + 0.05 * noise(rng, size, 9))
    airway = view.radius(0, 0.32, 0.2, 0.36)
    paint(image, edge(airway * np.float32(0.9), 9), 0.85)
    air = edge(airway * np.float32(1.05), 9)
    paint(image, air, np.clip(0.22 + 0.2 * np.sin(view.y * 40), 0, 1))  # reverberation
    for side in (-1, 1):
        carotid = view.radius(side * 1.0, 0.2, 0.12, 0.11)
        paint(image, edge(carotid * np.float32(0.85), 6), 0.6)
        paint(image, edge(carotid * np.float32(1.1), 6), 0.16)
    lobes *= 1 - air
    allowed = (lobes > 0.8) & _probe(image, rng)
    look = Look(solid=0.03, centre=0.0, rim=1.0, speck=1.0)
    return Scene(image=image, allowed=allowed, look=look, organ=lobes > 0.5)


def pet_torso(view: View, rng: np.random.Generator) -> Scene:
    """Coronal body with FDG: brain, heart, liver, kidneys, bladder."""
    size, z = view.size, view.z
    deep = 1 - 0.1 * abs(z)
    trunk = np.maximum(
        view.ellipse(0, 0.0, 0.66 * deep, 0.62), view.ellipse(0, 0.62, 0.6 * deep, 0.55)
    )
    trunk = np.maximum(trunk, view.ellipse(0, -0.4, 0.78 * deep, 0.26))
    head = view.ellipse(0, -0.95, 0.21, 0.27)
    neck = edge(view.capsule((0, -0.8), (0, -0.4), 0.12), 5)
    body = np.maximum(np.maximum(trunk, head), neck)
    arms = np.minimum(
        view.capsule((-0.82, -0.4), (-0.92, 0.7), 0.11),
        view.capsule((0.82, -0.4), (0.92, 0.7), 0.11),
    )
    arms = edge(arms, 4)
    image = np.maximum(body * 0.17, arms * 0.13) + 0.02 * noise(rng, size, 8) * body
    lungs = np.maximum(
        view.ellipse(-0.32, -0.22, 0.22, 0.33), view.ellipse(0.32, -0.22, 0.22, 0.33)
    )
    paint(image, lungs, 0.08)
    paint(image, view.ellipse(-0.26, 0.24, 0.34, 0.2, 0.2), 0.36)  # liver
    paint(image, view.ellipse(0.38, 0.24, 0.13, 0.17), 0.28)  # spleen
    hot = np.zeros_like(image)
    hot = np.maximum(hot, view.ellipse(0, -0.98, 0.16, 0.17, soft=0.06))
    heart = view.radius(0.14, -0.06, 0.15 + 0.04 * z, 0.13 + 0.04 * z, 0.6)
    wall = np.clip(1 - np.abs(heart - 0.75) * 3, 0, 1) * rng.uniform(0.3, 0.8)
    for side in (-1, 1):
        kidney = view.ellipse(side * 0.26, 0.5, 0.09, 0.14, soft=0.07)
        paint(image, kidney * np.float32(0.6 + 0.4 * z), 0.5)
    hot = np.maximum(hot, view.ellipse(0, 1.0, 0.16, 0.12, soft=0.06))
    paint(image, np.maximum(wall, hot), 0.85)
    allowed = (
        (np.maximum(body, arms) > 0.7) & (hot < 0.05) & (heart > 1.1) & (np.abs(view.y) < 1.05)
    )
    look = Look(solid=1.0)
    return Scene(image=image, allowed=allowed, look=look, organ=np.maximum(body, arms) > 0.5)


# Depth in the retina (0 inner surface, 1 pigment epithelium) -> reflectivity.
_LAYERS = (
    (-0.04, 0.05), (0.0, 0.55), (0.1, 0.5), (0.14, 0.4), (0.28, 0.42), (0.31, 0.22), (0.4, 0.24),
    (0.43, 0.4), (0.52, 0.4), (0.55, 0.2), (0.8, 0.18), (0.82, 0.5), (0.85, 0.28), (0.92, 0.3),
    (0.94, 0.74), (1.03, 0.74), (1.08, 0.36), (1.5, 0.3), (2.2, 0.1), (3.0, 0.03),
)  # fmt: skip


def oct_retina(view: View, rng: np.random.Generator) -> Scene:
    """B-scan: vitreous, retinal layers with the foveal pit, choroid."""
    size = view.size
    fovea = rng.uniform(-0.5, 0.5)
    pit = np.exp(-(((view.x - fovea) / np.float32(rng.uniform(0.16, 0.26))) ** 2))
    bend = 0.12 * rng.uniform(-1, 1) * (view.x - fovea) ** 2
    thick = np.float32(rng.uniform(0.62, 0.85))
    base = thick / 2 + bend  # pigment epithelium
    top = base - thick * (1 + 0.12 * np.abs(view.x - fovea)) + thick * 0.5 * pit
    depth = (view.y - top) / (base - top)
    knots, values = zip(*_LAYERS, strict=True)
    image = np.interp(depth, knots, values).astype(np.float32)
    choroid = np.clip((depth - 1.1) * 6, 0, 1) * np.clip((2.3 - depth) * 2, 0, 1)
    image *= 1 + 0.35 * choroid * noise(rng, size, 14, 9)
    image *= 1 + 0.1 * noise(rng, size, 3, 8)
    allowed = (depth > 0.1) & (depth < 1.1)
    look = Look(solid=1.0, centre=0.0, rim=0.95, speck=1.0)
    return Scene(image=image, allowed=allowed, look=look, organ=(depth > 0) & (depth < 1.03))


SCENES = {
    ("CT", "lung"): (ct_lung, Pose(scale=(1.0, 1.25), shift=0.14)),
    ("CT", "liver"): (ct_liver, Pose(scale=(1.02, 1.4), shift=0.32, anchor=(-0.25, -0.08))),
    ("MR", "brain"): (mr_brain, Pose(scale=(1.0, 1.2), shift=0.08, rotation=0.2)),
    ("MR", "knee"): (mr_knee, Pose(scale=(0.95, 1.25), shift=0.15)),
    ("X-ray", "lung"): (xray_lung, Pose(scale=(0.98, 1.25), shift=0.12, rotation=0.08)),
    ("X-ray", "hand"): (
        xray_hand,
        Pose(scale=(1.05, 1.45), shift=0.42, anchor=(0.0, 0.1), rotation=0.5, flip=True, warp=0.01),
    ),
    ("ultrasound", "breast"): (ultrasound_breast, Pose(flip=True, rotation=0.08, warp=0.05)),
    ("ultrasound", "thyroid"): (
        ultrasound_thyroid,
        Pose(scale=(1.1, 1.7), shift=0.35, rotation=0.1, flip=True, warp=0.04),
    ),
    ("PET", "torso"): (pet_torso, Pose(scale=(0.92, 1.2), shift=0.12, rotation=0.06)),
    ("OCT", "retina"): (
        oct_retina,
        Pose(scale=(1.0, 1.2), shift=0.42, rotation=0.15, flip=True, warp=0.02),
    ),
}
