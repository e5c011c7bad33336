"""Whole-slide images in, tiles of tissue out, by OpenSlide.

A slide is cut into a grid of square tiles at a declared resolution; what is left at the right and
lower edge is not cut. Every tile is an item: background and tiles that are not selected are drops.
A tile is tissue if enough of it is coloured (saturation in HSV), as seen on an overview level; pen
marks are coloured too. One overview and one tile at a time are in memory.

A label of a slide is not one of its tiles: a slide with a tumour is mostly without. Only the labels
in option `tile_labels` hold for every tile, others are counted drops; outlines of regions say which
tiles show them.

Options:
    slides       glob of the slides
    path         regular expression with named groups: label, split, patient, if the layout has them
    table, key   CSV with finding, patient, split of each slide, and the column of its file stem
    mpp, size    micrometres per pixel of a tile (default 0.5), pixels along its side (512)
    tiles        tiles per slide (default 8): half with most outlined area, the rest evenly spread
    tissue       smallest fraction of a tile that is tissue (default 0.5)
    outlines     path of an ASAP XML file with {groups} of `path`
    regions      its PartOfGroup -> label; a group called "" is cut out of the others

References: https://openslide.org/formats/, https://camelyon16.grand-challenge.org/Data/.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from defusedxml.ElementTree import parse
from PIL import Image

from gmai_lib.dataset import annotations, images
from gmai_lib.dataset.records import (
    STEP,
    boxes_of_mask,
    drop_annotation,
    is_file,
    label_name,
    new_record,
    others,
)
from gmai_lib.dataset.volumes import select_slices
from gmai_lib.schema import Ledger, Recipe, Record

_COLOURED = 20  # saturation from which a pixel is tissue, of 255; glass and fat are below
_CELL = 8  # pixels of the overview along a tile's side
_MAX_OVERVIEW = 2**24  # pixels; a slide that has no level below it is not a pyramid

_MAX_OUTLINE = 2e6  # pixels of the finest level along an outline: half a metre at 0.25 um


@dataclass(kw_only=True)
class _Grid:
    """Where the tiles of a slide lie: `span` pixels of the finest level along each side."""

    columns: int
    rows: int
    span: int
    size: int  # pixels of a tile's side in the record

    def corner(self, number: int) -> tuple[int, int]:
        return number % self.columns * self.span, number // self.columns * self.span


@dataclass(kw_only=True)
class _Region:
    label: str  # "" is cut out of the others
    points: np.ndarray  # (N, 2) x, y in pixels of the finest level


def slides(recipe: Recipe, root: Path, ledger: Ledger) -> Iterator[Record]:
    """Yield the selected tiles of every slide."""
    rows = annotations.read_table(recipe, root, ledger)
    paths = annotations.files(root, recipe.options["slides"])
    for key in sorted(rows.keys() - {PurePosixPath(path).stem for path in paths}):
        drop_annotation(recipe, "table row about an unknown slide", key, ledger)
    for path in paths:
        match = re.fullmatch(recipe.options.get("path", ".*"), path)
        if not match:
            ledger.drop(recipe.name, STEP, "path does not fit the slides", path)
            continue
        said = match.groupdict() | rows.get(PurePosixPath(path).stem, {})
        yield from _slide(recipe, root, path, said, ledger)


def _slide(
    recipe: Recipe, root: Path, path: str, said: dict[str, str], ledger: Ledger
) -> Iterator[Record]:
    from openslide import OpenSlide, OpenSlideError

    label = label_name(recipe, said.get("label") or said.get("finding") or "")
    regions = _regions(recipe, root, said, ledger)
    count = len(regions) + bool(label)
    try:
        with OpenSlide(root / path) as slide:
            grid, reason = _grid(recipe, slide)
            if not reason:
                yield from _tiles(recipe, slide, grid, path, (label, regions, said), ledger)
                return
    # OpenSlideError is what it raises for broken files, OSError for missing ones.
    except (OpenSlideError, OSError):
        reason = "slide cannot be read"
    ledger.drop(recipe.name, STEP, reason, path)
    drop_annotation(recipe, f"item dropped: {reason}", path, ledger, count)


def _grid(recipe: Recipe, slide) -> tuple[_Grid | None, str]:
    """The tiles of a slide, or the reason why it has none."""
    size = recipe.options.get("size", 512)
    try:
        stated = float(slide.properties.get("openslide.mpp-x", "nan"))
    except ValueError:
        stated = float("nan")
    if not 0.01 < stated < 100:
        return None, "slide states no resolution"
    span = round(size * recipe.options.get("mpp", 0.5) / stated)
    if span < 0.9 * size:
        return None, "slide is coarser than its tiles should be"
    columns, rows = (pixels // span for pixels in slide.dimensions)
    if not columns * rows:
        return None, "slide is smaller than a tile"
    width, height = slide.level_dimensions[slide.get_best_level_for_downsample(span / _CELL)]
    if width * height > _MAX_OVERVIEW:
        return None, "slide has no overview level"
    return _Grid(columns=columns, rows=rows, span=span, size=size), ""


def _tiles(
    recipe: Recipe, slide, grid: _Grid, path: str, about: tuple, ledger: Ledger
) -> Iterator[Record]:
    label, regions, said = about
    vocabulary = {region.label for region in regions} | {*recipe.options.get("names", {}).values()}
    usual = (label,) if label in recipe.options.get("tile_labels", ()) else ()
    tissue = _tissue(slide, grid)
    there = np.flatnonzero(tissue >= recipe.options.get("tissue", 0.5)).tolist()
    scores = _drawn(regions, (0, 0), grid.span / _CELL, grid.columns * _CELL, grid.rows * _CELL)
    area = _shrunk(scores > 0, grid)
    picked = select_slices([float(area[n]) for n in there], recipe.options.get("tiles", 8))
    if grid.columns * grid.rows > len(there):
        n = grid.columns * grid.rows - len(there)
        ledger.drop(recipe.name, STEP, "tile of background", path, n)
    if len(there) > len(picked):
        ledger.drop(recipe.name, STEP, "tile not selected", path, len(there) - len(picked))
    shown: set[int] = set()
    for number in (there[i] for i in picked):
        corner = grid.corner(number)
        pixels = _pixels(slide, corner, grid)
        drawn = _drawn(regions, corner, grid.span / grid.size, grid.size, grid.size)
        least = recipe.options.get("min_pixels", 1)
        boxes, values = [], np.unique(drawn[drawn > 0]).tolist()
        for value in values:
            boxes += boxes_of_mask(drawn == value, regions[value - 1].label, "label")
        large = [box for box in boxes if box.area * drawn.size >= least]
        shown |= {v for v, box in zip(values, boxes, strict=True) if box in large}
        lost = len(boxes) - len(large)
        name = f"{path}#{corner[0]}-{corner[1]}"
        drop_annotation(recipe, "region below the minimum size", name, ledger, lost)
        labels = tuple(dict.fromkeys([*usual, *(box.label for box in large)]))
        ledger.keep(recipe.name, STEP)
        yield new_record(
            recipe,
            name,
            dimension="2d",
            modality=recipe.modality,
            image=images.to_png(pixels),
            width=grid.size,
            height=grid.size,
            labels=labels,
            absent=others(vocabulary, labels) if usual else (),
            boxes=tuple(large),
            patient=said.get("patient", ""),
            volume=path,
            split=annotations.split_name(recipe, said.get("split") or ""),
        )
    if label and usual and picked:
        ledger.keep(recipe.name, STEP, level="annotation")
    elif label:
        drop_annotation(recipe, "label of a slide, not of its tiles", path, ledger)
    outlined = {v for v, region in enumerate(regions, start=1) if region.label}
    if shown:
        ledger.keep(recipe.name, STEP, len(shown), level="annotation")
    unseen = len(outlined - shown)
    drop_annotation(recipe, "region on no selected tile", path, ledger, unseen)


def _pixels(slide, corner: tuple[int, int], grid: _Grid) -> np.ndarray:
    """One tile, (size, size, 3) uint8, from the next finer level."""
    level = slide.get_best_level_for_downsample(grid.span / grid.size)
    side = max(1, round(grid.span / slide.level_downsamples[level]))
    return np.array(_opaque(slide, corner, level, (side, side)).resize((grid.size, grid.size)))


def _opaque(slide, corner: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
    """A region on white: what was not scanned is transparent."""
    region = slide.read_region(corner, level, size)
    page = Image.new("RGB", region.size, "white")
    page.paste(region, mask=region.getchannel("A"))
    return page


def _tissue(slide, grid: _Grid) -> np.ndarray:
    """Fraction of each tile that is tissue, row by row."""
    level = slide.get_best_level_for_downsample(grid.span / _CELL)
    page = _opaque(slide, (0, 0), level, slide.level_dimensions[level])
    coloured = np.array(page.convert("HSV").getchannel("S")) > _COLOURED
    width, height = (
        n * grid.span / slide.level_downsamples[level] for n in (grid.columns, grid.rows)
    )
    return _shrunk(coloured, grid, (0, 0, min(width, page.width), min(height, page.height)))


def _shrunk(mask: np.ndarray, grid: _Grid, box: tuple | None = None) -> np.ndarray:
    """Covered fraction of each tile, row by row."""
    image = Image.fromarray(mask.astype(np.float32))
    small = image.resize((grid.columns, grid.rows), Image.Resampling.BOX, box=box)
    return np.asarray(small).ravel()


def _drawn(
    regions: list[_Region], corner: tuple[int, int], scale: float, width: int, height: int
) -> np.ndarray:
    """Number of the region, from 1, at each pixel; 0 outside."""
    from pycocotools import mask

    page = np.zeros((height, width), np.int64)
    for value, region in sorted(enumerate(regions, start=1), key=lambda r: not r[1].label):
        points = (region.points - corner) / scale
        if (points.max(axis=0) > 0).all() and (points.min(axis=0) < (width, height)).all():
            coded = mask.frPyObjects([points.ravel().tolist()], height, width)
            page[mask.decode(coded)[..., 0] > 0] = value if region.label else 0
    return page


def _regions(recipe: Recipe, root: Path, said: dict[str, str], ledger: Ledger) -> list[_Region]:
    """Outlines of an ASAP XML file; [] if the slide has none."""
    if "outlines" not in recipe.options:
        return []
    path = recipe.options["outlines"].format_map(said)
    if not is_file(root, path):
        return []
    try:
        found = list(parse(root / path).iter("Annotation"))
    except annotations.XML_ERRORS:
        drop_annotation(recipe, "malformed XML", path, ledger)
        return []
    regions = []
    for number, item in enumerate(found):
        label = recipe.options["regions"].get(item.get("PartOfGroup"))
        corners = sorted(item.iter("Coordinate"), key=lambda c: float(c.get("Order") or 0))
        try:
            points = np.array([(float(c.get("X")), float(c.get("Y"))) for c in corners])
        except (TypeError, ValueError):
            points = np.empty((0, 2))
        # A longer one is no lesion's, and would fill the memory when it is drawn.
        usable = len(points) >= 3 and np.abs(np.diff(points, axis=0)).sum() < _MAX_OUTLINE
        if label is None or not usable:
            reason = "outline of an unknown group" if usable else "outline without an area"
            drop_annotation(recipe, reason, f"{path} annotation {number}", ledger)
        else:
            regions.append(_Region(label=label, points=points))
    return regions
