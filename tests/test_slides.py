"""Whole slides: a small pyramidal TIFF is cut into tiles of tissue, with outlines and reasons."""

import dataclasses

import numpy as np
import pytest
import tifffile
import tiny_datasets as tiny
from tiny_datasets import reasons

from gmai_lib.dataset import images, readers, recipes
from gmai_lib.schema import NO_FINDING, Ledger

GLASS, TISSUE, NEST = (245, 245, 247), (205, 130, 190), (90, 40, 140)
# A tile of 64 pixels at 0.5 micrometres is 128 pixels of the finest level.


def slide(path, tissue=(slice(0, 512), slice(0, 384)), nest=None, mpp=0.25, levels=4):
    """Write a tiled pyramid of 1024 x 640 pixels; rows and columns of what is tissue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.empty((640, 1024, 3), np.uint8)
    pixels[:] = GLASS
    pixels[tissue] = TISSUE
    if nest:
        pixels[nest] = NEST
    resolution = {"resolution": (1e4 / mpp,) * 2, "resolutionunit": "CENTIMETER"} if mpp else {}
    with tifffile.TiffWriter(path) as tif:
        for level in range(levels):
            part = pixels[:: 2**level, :: 2**level]
            more = {"subfiletype": 1} if level else resolution
            tif.write(part, tile=(128, 128), photometric="rgb", metadata=None, **more)
    return path


def outline(name: str, corners, group="_0") -> str:
    points = "".join(
        f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(corners)
    )
    return (
        f'<Annotation Name="{name}" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{points}</Coordinates></Annotation>"
    )


def square(x1, y1, x2, y2):
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def camelyon(tmp_path, *outlines):
    root = tmp_path / "CAMELYON16"
    slide(root / "training/normal/normal_001.tif")
    nest = (slice(128, 256), slice(128, 192))
    slide(root / "training/tumor/tumor_001.tif", nest=nest)
    outlines = outlines or (outline("Annotation 0", square(128, 128, 192, 256)),)
    text = f"<ASAP_Annotations><Annotations>{''.join(outlines)}</Annotations></ASAP_Annotations>"
    tiny.text(root / "training/lesion_annotations/tumor_001.xml", f'<?xml version="1.0"?>{text}')
    return root


def read(root, ledger=None, name="camelyon16", **options):
    recipe = recipes.get(name)
    options = recipe.options | {"size": 64, "tiles": 99} | options
    recipe = dataclasses.replace(recipe, options=options)
    ledger = Ledger() if ledger is None else ledger
    records = list(readers.read(recipe, root, ledger))
    ledger.check()
    return records


def corners(record) -> tuple[int, int]:
    return tuple(int(n) for n in record.path.split("#")[1].split("-"))


def test_tiles_of_tissue_with_the_outlines_that_they_show(tmp_path):
    root, ledger = camelyon(tmp_path), Ledger()
    assert [r.name for r, _ in recipes.find(tmp_path)] == ["camelyon16"]
    found = read(root, ledger)
    normal = [r for r in found if "normal" in r.path]
    tumor = [r for r in found if "tumor_" in r.path]
    # 512 x 384 pixels of tissue are 4 x 3 tiles; the slide has 5 x 8.
    expected = {(x, y) for x in (0, 128, 256) for y in (0, 128, 256, 384)}
    assert {corners(r) for r in normal} == {corners(r) for r in tumor} == expected
    assert {r.labels for r in normal} == {(NO_FINDING,)}
    assert {r.absent for r in normal} == {("metastasis",)}
    assert {corners(r): r.labels for r in tumor if r.labels} == {(128, 128): ("metastasis",)}
    assert all(r.absent == () for r in tumor)  # beside an outline nothing is called normal
    (box,) = next(r.boxes for r in tumor if r.boxes)
    assert (box.x1, box.y1, box.y2) == (0, 0, 1) and box.x2 == pytest.approx(0.5, abs=0.02)
    assert {r.volume for r in found} == {
        "training/normal/normal_001.tif",
        "training/tumor/tumor_001.tif",
    }
    assert reasons(ledger, "camelyon16", "item") == {"tile of background": 2 * (40 - 12)}
    assert reasons(ledger, "camelyon16", "annotation") == {"label of a slide, not of its tiles": 1}
    assert ledger.kept["camelyon16", "read", "annotation"] == 2


def test_the_pixels_are_those_of_the_slide_at_the_wanted_resolution(tmp_path):
    root = camelyon(tmp_path)
    (record,) = (r for r in read(root) if r.boxes)
    pixels = images.decode(record.image)
    assert pixels.shape == (64, 64, 3)
    assert tuple(pixels[32, 10]) == NEST and tuple(pixels[32, 50]) == TISSUE
    (record,) = (r for r in read(root, mpp=0.25) if corners(r) == (128, 128) and "tumor_" in r.path)
    assert (images.decode(record.image) == NEST).all()  # 64 pixels of the finest level


def test_the_richest_tiles_are_among_the_few_that_are_kept(tmp_path):
    ledger = Ledger()
    found = read(camelyon(tmp_path), ledger, tiles=2)
    tumor = [r for r in found if "tumor_" in r.path]
    assert len(tumor) == 2 and sum(bool(r.boxes) for r in tumor) == 1
    assert reasons(ledger, "camelyon16", "item")["tile not selected"] == 2 * (12 - 2)


def test_what_is_cut_out_of_an_outline_is_not_in_it(tmp_path):
    root = camelyon(
        tmp_path,
        outline("Annotation 1", square(128, 128, 256, 192), "_2"),
        outline("Annotation 0", square(128, 128, 256, 256)),
    )
    (box,) = next(r.boxes for r in read(root) if r.boxes)
    assert box.y1 == pytest.approx(0.5, abs=0.03) and box.area == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (outline("a", square(128, 128, 192, 256), "Vessels"), "outline of an unknown group"),
        (outline("a", [(128, 128), (192, 256)]), "outline without an area"),
        (outline("a", [(128, 128), ("x", 0), (192, 256)]), "outline without an area"),
        (outline("a", square(0, 0, 1e30, 1e30)), "outline without an area"),
        (outline("a", square(900, 500, 1000, 600)), "region on no selected tile"),  # on glass
        ("<Annotation", "malformed XML"),
    ],
)
def test_outlines_that_cannot_be_used_have_a_reason(tmp_path, bad, reason):
    ledger = Ledger()
    found = read(camelyon(tmp_path, bad), ledger)
    assert not any(r.boxes for r in found)
    assert reasons(ledger, "camelyon16", "annotation")[reason] == 1


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"mpp": None}, "slide states no resolution"),
        ({"mpp": 2.0}, "slide is coarser than its tiles should be"),
        ({"mpp": 0.02}, "slide is smaller than a tile"),
        ("cut", "slide cannot be read"),
        ("text", "slide cannot be read"),
    ],
)
def test_slides_that_cannot_be_used_have_a_reason(tmp_path, more, reason):
    root = camelyon(tmp_path)
    path = root / "training/normal/normal_001.tif"
    if more == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif more == "text":
        path.write_text("no slide")
    else:
        slide(path, **more)
    ledger = Ledger()
    assert all("tumor" in r.path for r in read(root, ledger))
    assert reasons(ledger, "camelyon16", "item")[reason] == 1
    assert reasons(ledger, "camelyon16", "annotation")[f"item dropped: {reason}"] == 1


def test_a_slide_without_an_overview_is_not_read_as_a_whole(tmp_path, monkeypatch):
    from gmai_lib.dataset import slides

    root = camelyon(tmp_path)
    slide(root / "training/normal/normal_001.tif", levels=1)
    monkeypatch.setattr(slides, "_MAX_OVERVIEW", 512 * 320)
    ledger = Ledger()
    read(root, ledger)
    assert reasons(ledger, "camelyon16", "item")["slide has no overview level"] == 1


def test_labels_and_patients_of_slides_may_come_from_a_table(tmp_path):
    root = tmp_path / "slides"
    slide(root / "a1.tif")
    slide(root / "b1.tif")
    table = "slide,finding,patient,split\na1,normal,A,train\nz,tumor,Z,test\n"
    tiny.text(root / "slides.csv", table)
    ledger = Ledger()
    options = {"slides": "*.tif", "path": r"[^/]+\.tif", "table": "slides.csv", "key": "slide"}
    recipe = recipes.get("camelyon16")
    kept = {k: recipe.options[k] for k in ("names", "tile_labels", "mpp")}
    recipe = dataclasses.replace(recipe, options=kept | options | {"size": 64})
    found = list(readers.read(recipe, root, ledger))
    ledger.check()
    said = {(r.volume, r.labels, r.split, bool(r.patient)) for r in found}
    assert said == {("a1.tif", (NO_FINDING,), "train", True), ("b1.tif", (), "", False)}
    assert reasons(ledger, "camelyon16", "annotation") == {"table row about an unknown slide": 1}
