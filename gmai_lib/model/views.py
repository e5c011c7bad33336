"""Several views instead of one: a large image as thumbnail and tiles, a volume as numbered slices.

    images, turns = expand(images, turns, processor)   # as the checkpoint says
    images, turns, frames = with_tiles(images, turns, size=336, max_tiles=6)
    turns = number_slices(turns)

All rewrite one sample before anything else sees it, so training, inference and plain transformers
treat the result as any conversation with several images. Off in the paper's profile: its images
are one view each, its volumes single slices (GMAIVLConfig.max_tiles = 1, number_slices = False).

Paper: none; tiles as in LLaVA-NeXT and InternVL 1.5 (https://arxiv.org/abs/2404.16821, 3.2).
"""

import math

from gmai_lib.grounding import Box
from gmai_lib.model.chat import IMAGE_TOKEN, decode_image

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def expand(images, conversations, processor):
    """Return the images and conversation that the model of this processor gets of one sample.

    The store, the evaluation and the chat call this and nothing else. Raises ValueError if
    `<image>` and images are not equally many, or an image that may need tiles cannot be read.
    """
    made = processor.image_processor
    if getattr(made, "number_slices", False):
        conversations = number_slices(conversations)
    if getattr(made, "max_tiles", 1) > 1:
        images, conversations, _ = with_tiles(
            images, conversations, size=made.size["height"], max_tiles=made.max_tiles
        )
    return images, conversations


def tile_grid(width: int, height: int, size: int, max_tiles: int) -> tuple[int, int]:
    """Return (rows, columns) of the tiles; (1, 1) for an image no larger than the tower's `size`.

    Of all grids with at most `max_tiles` tiles the one whose tiles are nearest to squares; of
    equal ones the finer.
    """
    if max(width, height) <= size:
        return 1, 1
    grids = [
        (rows, columns)
        for rows in range(1, max_tiles + 1)
        for columns in range(1, max_tiles // rows + 1)
    ]

    def unlike_a_square(grid):
        rows, columns = grid
        return round(abs(math.log((width / columns) / (height / rows))), 6), -rows * columns

    return min(grids, key=unlike_a_square)


def tile_frames(rows: int, columns: int, width: int, height: int) -> list[Box]:
    """Return the tiles' frames in fractions of the image, row by row, on whole pixels."""
    ys = [round(height * row / rows) / height for row in range(rows + 1)]
    xs = [round(width * column / columns) / width for column in range(columns + 1)]
    return [(xs[c], ys[r], xs[c + 1], ys[r + 1]) for r in range(rows) for c in range(columns)]


def with_tiles(images, conversations, *, size: int, max_tiles: int):
    """Replace every image by itself and, where it is large, its tiles.

    Returns (images, conversations, frames): the frame of every view is what part of its image it
    shows, the whole first; `grounding.out_of` maps a box that is given inside a tile. Boxes in
    the text stay those of the whole image.

    Raises ValueError if `<image>` and images are not equally many.
    """
    text = "".join(turn["content"] for turn in conversations)
    if text.count(IMAGE_TOKEN) != len(images):
        raise ValueError(f"{len(images)} images but {text.count(IMAGE_TOKEN)} {IMAGE_TOKEN}")
    views, counts, frames = [], [], []
    for image in images:
        pixels = decode_image(image)
        height, width = pixels.shape[:2]
        grid = tile_grid(width, height, size, max_tiles)
        tiles = tile_frames(*grid, width, height) if grid != (1, 1) else []
        views.append(image)
        for x1, y1, x2, y2 in tiles:
            rows = slice(round(y1 * height), round(y2 * height))
            views.append(pixels[rows, round(x1 * width) : round(x2 * width)])
        counts.append(1 + len(tiles))
        frames += [WHOLE, *tiles]
    numbers = iter(counts)
    tiled = []
    for turn in conversations:
        first, *others = turn["content"].split(IMAGE_TOKEN)
        content = first + "".join(IMAGE_TOKEN * next(numbers) + other for other in others)
        tiled.append(turn | {"content": content})
    return views, tiled, frames


def number_slices(conversations) -> list[dict]:
    """Say before each of several images of a turn which slice it is: "slice 2 of 5: <image>".

    The order of the images is the order of the slices. One image alone stays as it is.
    """
    numbered = []
    for turn in conversations:
        first, *others = turn["content"].split(IMAGE_TOKEN)
        content = first
        for number, other in enumerate(others, start=1):
            name = f"slice {number} of {len(others)}: " if len(others) > 1 else ""
            content += f"{name}{IMAGE_TOKEN}{other}"
        numbered.append(turn | {"content": content})
    return numbered
