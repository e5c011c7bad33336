"""Grounded answers: read, checked, mapped through padding, resizing and tiles; nothing crashes."""

import random

import numpy as np
import pytest

from gmai_lib import grounding
from gmai_lib.grounding import Region
from gmai_lib.model import chat, views

BOX = (0.18, 0.16, 0.5, 0.43)
TEXT = "[[0.18, 0.16, 0.50, 0.43]]"


@pytest.mark.parametrize(
    ("text", "regions"),
    [
        (f"<ref>nodule</ref><box>{TEXT}</box>", [Region("nodule", (BOX,))]),
        ("It is <ref> white blood cell </ref>.", [Region("white blood cell", ())]),
        (f"<box>{TEXT}</box>", [Region("", (BOX,))]),
        (
            "<ref>肺结节</ref><box>[[0, 0, 0.5, 1], [0.5, 0, 1, 1]]</box>，<ref>心</ref>",
            [Region("肺结节", ((0, 0, 0.5, 1), (0.5, 0, 1, 1))), Region("心", ())],
        ),
        (
            f"<ref>a</ref><box>{TEXT}</box> and <ref>b</ref> at <box>[0.1, 0.1, 0.2, 0.2]</box>",
            [Region("a", (BOX,)), Region("b", ((0.1, 0.1, 0.2, 0.2),))],
        ),
        (f"<ref>a</ref><box>{TEXT}</box><|im_end|><box>junk", [Region("a", (BOX,))]),
        ("no tags, 0.1 0.2 0.3 0.4", []),
        ("", []),
    ],
)
def test_regions_are_read(text, regions):
    read = grounding.parse(text)
    assert list(read.regions) == regions and read.problems == ()
    assert read.boxes == [box for region in regions for box in region.boxes]


@pytest.mark.parametrize(
    ("text", "problem", "boxes"),
    [
        ("<box>[[179, 164, 500, 434]]</box>", r"beyond 0..1", 0),
        ("<box>[[-0.1, 0.2, 0.3, 0.4]]</box>", "beyond 0..1", 0),
        ("<box>[[0.5, 0.1, 0.2, 0.3]]</box>", "x1 < x2 and y1 < y2 do not hold", 0),
        ("<box>[[0.5, 0.1, 0.5, 0.3]]</box>", "do not hold", 0),
        (f"<box>[{TEXT[1:-1]}, [0.1, 0.2]]</box>", "is no list of", 1),
        ("<box>the left lung</box>", "'the left lung' is no list of", 0),
        ("<box></box>", "box '' is no list of", 0),
        ("<box>[[nan, 0.1, 0.2, 0.3]]</box>", "is no list of", 0),
        ("<box>[[0.1, 0.2, 0.3", "<box> without its other half", 0),
        (f"{TEXT}</box>", "</box> without its other half", 0),
        ("<ref>nodule", "<ref> without its other half", 0),
        (f"<ref>a<box>{TEXT}</box>", "<ref> without its other half", 1),
    ],
)
def test_what_is_malformed_is_reported(text, problem, boxes):
    read = grounding.parse(text)
    assert len(read.problems) == 1 and problem in read.problems[0], read
    assert len(read.boxes) == boxes


def test_no_text_crashes_the_parser():
    draw = random.Random(0)
    parts = ["<ref>", "</ref>", "<box>", "</box>", "[[", "]]", ",", "0.5", "-1", "1e9", "肺", "\n"]
    parts += [
        "[0.1, 0.2, 0.3, 0.4]",
        "<|im_end|>",
        "<image>",
        "nan",
        " ",
        "<",
        "[",
        "\x00",
        "9" * 400,
    ]
    for _ in range(3000):
        text = "".join(draw.choices(parts, k=draw.randrange(14)))
        read = grounding.parse(text)
        for x1, y1, x2, y2 in (*read.boxes, *grounding.extract_boxes(text)):
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1


def test_parser_and_scorer_read_the_same_tagged_boxes():
    text = f"<ref>a</ref><box>{TEXT}</box> <box>[[0.1, 0.2, 3, 0.4]]</box>"
    assert grounding.parse(text).boxes == grounding.extract_boxes(text) == [BOX]


def marked(width, height, box):
    """A black image with a white rectangle on whole pixels, and the box it really has."""
    x1, x2 = round(box[0] * width), round(box[2] * width)
    y1, y2 = round(box[1] * height), round(box[3] * height)
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    return image, (x1 / width, y1 / height, x2 / width, y2 / height)


def seen(square):
    """The box of what is white in a (3, S, S) image, in fractions."""
    ys, xs = np.nonzero((square.numpy() > 200).all(0))
    size = square.shape[-1]
    return xs.min() / size, ys.min() / size, (xs.max() + 1) / size, (ys.max() + 1) / size


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (256, 256), (301, 90)])
def test_a_box_survives_square_padding_and_resizing(width, height):
    image, box = marked(width, height, (0.2, 0.3, 0.6, 0.7))
    size = 112
    found = seen(chat.square_image(image, size))
    frame = grounding.square_frame(width, height)
    assert found == pytest.approx(grounding.into(box, frame), abs=1.01 / size)
    back = grounding.out_of(found, frame)
    side = max(width, height)
    assert back[0::2] == pytest.approx(box[0::2], abs=1.01 * side / width / size)
    assert back[1::2] == pytest.approx(box[1::2], abs=1.01 * side / height / size)
    assert grounding.out_of(grounding.into(box, frame), frame) == pytest.approx(box, abs=1e-12)


@pytest.mark.parametrize(("width", "height"), [(600, 400), (401, 997)])
def test_a_box_in_a_tile_is_mapped_back_to_the_image(width, height):
    rows, columns = views.tile_grid(width, height, 112, 6)
    assert rows * columns > 1
    pictures, _, frames = views.with_tiles(
        [np.zeros((height, width, 3), np.uint8)],
        [{"role": "user", "content": "<image>"}],
        size=112,
        max_tiles=6,
    )
    for tile, frame in zip(pictures[1:], frames[1:], strict=True):
        inside, box_of_tile = marked(tile.shape[1], tile.shape[0], (0.25, 0.25, 0.75, 0.5))
        whole = np.zeros((height, width, 3), np.uint8)
        x, y = round(frame[0] * width), round(frame[1] * height)
        whole[y : y + tile.shape[0], x : x + tile.shape[1]] = inside
        ys, xs = np.nonzero(whole[..., 0])
        truth = (
            xs.min() / width,
            ys.min() / height,
            (xs.max() + 1) / width,
            (ys.max() + 1) / height,
        )
        assert grounding.out_of(box_of_tile, frame) == pytest.approx(truth, abs=1e-9)
        assert grounding.into(truth, frame) == pytest.approx(box_of_tile, abs=1e-9)
