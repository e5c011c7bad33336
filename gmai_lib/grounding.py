"""Grounded text: `<ref>` and `<box>` read and checked, boxes mapped between image, square and tile.

    answer = parse("<ref>nodule</ref><box>[[0.18, 0.16, 0.50, 0.43]]</box>")
    answer.regions[0].label, answer.regions[0].boxes, answer.problems
    into(box, square_frame(width, height))     # what the vision tower sees; out_of goes back

A box is x1, y1, x2, y2 as fractions of the image's width and height, origin top left. What a model
writes may be anything: malformed parts are reported in words and never raise. This module imports
no torch.

Paper: figure 1 (`<ref>label</ref>`, `<box>[[x1, y1, x2, y2]]</box>` with two decimals).
"""

import re
from dataclasses import dataclass

Box = tuple[float, float, float, float]

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_QUAD = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_BARE = re.compile(rf"{_NUMBER} {_NUMBER} {_NUMBER} {_NUMBER}")
_TAG = re.compile(r"<ref>(?P<ref>[^<]*)</ref>|<box>(?P<box>[^<]*)</box>|</?(?:ref|box)>")
_END = "<|im_end|>"


@dataclass(frozen=True)
class Region:
    """A label and where it is; "" where a box has no label, no boxes where none was said."""

    label: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Grounding:
    """What `parse` found: regions in the order of the text, and what was malformed."""

    regions: tuple[Region, ...]
    problems: tuple[str, ...]

    @property
    def boxes(self) -> list[Box]:
        """All boxes of all regions."""
        return [box for region in self.regions for box in region.boxes]


def parse(text: str) -> Grounding:
    """Read the tagged regions of an answer; a box belongs to the last label before it."""
    found: list[tuple[str, list[Box]]] = []
    problems = []
    for tag in _TAG.finditer(text.split(_END)[0]):
        if tag["ref"] is not None:
            found.append((tag["ref"].strip(), []))
        elif tag["box"] is not None:
            boxes, wrong = _read(tag["box"])
            found = found or [("", [])]
            found[-1][1].extend(boxes)
            problems += wrong
        else:
            problems.append(f"{tag[0]} without its other half: {text[tag.start() :][:60]!r}")
    regions = tuple(Region(label, tuple(boxes)) for label, boxes in found)
    return Grounding(regions, tuple(problems))


def extract_boxes(text: str) -> list[Box]:
    """Return the valid boxes of a text, tagged or not: every [x1, y1, x2, y2], or four numbers.

    Values beyond 0..1 or corners in the wrong order are no box: another scale is not guessed.
    """
    found = _QUAD.findall(text)
    bare = _BARE.fullmatch(text.split(_END)[0])
    found += [bare.groups()] if bare else []
    boxes = [tuple(map(float, numbers)) for numbers in found]
    return [box for box in boxes if not _wrong(box)]


def _read(content: str) -> tuple[list[Box], list[str]]:
    """Valid boxes of what stands between <box> and </box>, and what is wrong with the rest."""
    boxes, problems = [], []
    for numbers in _QUAD.findall(content):
        box = tuple(map(float, numbers))
        if wrong := _wrong(box):
            problems.append(f"box [{', '.join(numbers)}]: {wrong}")
        else:
            boxes.append(box)
    rest = _QUAD.sub("", content)
    if re.sub(r"[\[\],\s]", "", rest) or not _QUAD.search(content):
        problems.append(f"box {content.strip()!r} is no list of [x1, y1, x2, y2]")
    return boxes, problems


def _wrong(box: Box) -> str:
    """Why four numbers are no box; "" if they are one."""
    if not all(0 <= value <= 1 for value in box):
        return "beyond 0..1, fractions of width and height"
    if not (box[0] < box[2] and box[1] < box[3]):
        return "x1 < x2 and y1 < y2 do not hold"
    return ""


def square_frame(width: int, height: int) -> Box:
    """The square that `chat.square_image` pads an image to, in fractions of the image.

    Reaches beyond 0..1 on the shorter side. Resizing changes no fraction.
    """
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return -left / width, -top / height, (side - left) / width, (side - top) / height


def into(box: Box, frame: Box) -> Box:
    """A box in fractions of `frame` (of a tile, of the padded square), itself one of the image."""
    width, height = frame[2] - frame[0], frame[3] - frame[1]
    x, y = frame[:2]
    return (
        (box[0] - x) / width,
        (box[1] - y) / height,
        (box[2] - x) / width,
        (box[3] - y) / height,
    )


def out_of(box: Box, frame: Box) -> Box:
    """A box that is given in fractions of `frame`, in fractions of the image: undoes `into`."""
    width, height = frame[2] - frame[0], frame[3] - frame[1]
    x, y = frame[:2]
    return box[0] * width + x, box[1] * height + y, box[2] * width + x, box[3] * height + y
