"""Turn a record's annotation into typed facts; generated text may say nothing else.

`extract(record)` returns `Fact`s with ids f0, f1, ... Positions are those of the image frame as
displayed. Nothing is inferred from pixels: a count needs complete boxes, a negation needs the
annotation to say "absent".

Paper: section 3.1, steps 3 and 4 (extract labels and external boxes; form the tuple
image, modality, label, department, box).
Departs: side, place, count, size, severity and negation are facts too, so that text about
them can be checked against the annotation.
"""

from collections import Counter

from gmai_lib.dataset.lexicon import NEGATIVE_LABELS, readable
from gmai_lib.schema import IMAGE_MODALITIES, PLACES, SIZES, Box, Fact, Record

# Tasks whose labels name normal anatomy. Connected components of an organ are no "count".
ANATOMY_TASKS = frozenset(
    ("organ recognition", "bone", "muscle", "blood vessels recognition", "nervous tissue")
)
# A box wider or higher than this covers cells of all three rows or columns: it has no place.
WIDEST_PLACED = 2 / 3
# Upper limits of "small" and "medium": box area as a fraction of the image area. A lesion whose
# box is 12 % of the width and height is just small, one of 17 % just medium.
SIZE_LIMITS = (0.015, 0.03)


def extract(record: Record) -> tuple[Fact, ...]:
    """Return what the annotation of `record` says, in a fixed order of kinds.

    Kinds: modality, department, organ, label, absent, box, side, place, size, count, severity.
    `box` values are "x1 y1 x2 y2" with two decimals. `side`, `place` and `size` exist only for a
    label with exactly one box, `count` only where every instance is boxed.
    """
    found: list[tuple[str, str, str]] = []  # (kind, value, label)
    if record.modality in IMAGE_MODALITIES:
        found.append(("modality", record.modality, ""))
    if record.department != "unstated":
        found.append(("department", record.department, ""))
    if record.organ:
        found.append(("organ", readable(record.organ), ""))
    labels = dict.fromkeys(readable(label) for label in record.labels)
    found += [("label", label, "") for label in labels]
    for label in dict.fromkeys(readable(label) for label in record.absent):
        if label not in labels and label not in NEGATIVE_LABELS:
            found.append(("absent", label, ""))
    found += _box_facts(record)
    if record.severity:
        found.append(("severity", record.severity, ""))
    return tuple(
        Fact(id=f"f{i}", kind=kind, value=value, label=label)
        for i, (kind, value, label) in enumerate(found)
    )


def place_of(box: Box) -> str | None:
    """Return the cell of the 3 x 3 grid that holds the centre, None for a box spanning all."""
    if box.x2 - box.x1 > WIDEST_PLACED or box.y2 - box.y1 > WIDEST_PLACED:
        return None
    return PLACES[box.place]


def size_of(box: Box) -> str:
    """Return small, medium or large by the box's share of the image area (`SIZE_LIMITS`)."""
    area = (box.x2 - box.x1) * (box.y2 - box.y1)
    return SIZES[sum(area >= limit for limit in SIZE_LIMITS)]


def box_of(fact: Fact) -> Box:
    """Return the box of a box fact, as rounded as the text shows it."""
    x1, y1, x2, y2 = map(float, fact.value.split())
    return Box(label=fact.label, x1=x1, y1=y1, x2=x2, y2=y2)


def _box_facts(record: Record) -> list[tuple[str, str, str]]:
    named = [(readable(box.label), box) for box in record.boxes]
    found = [
        ("box", f"{box.x1:.2f} {box.y1:.2f} {box.x2:.2f} {box.y2:.2f}", label)
        for label, box in named
    ]
    counts = Counter(label for label, _ in named)
    anatomy = record.task in ANATOMY_TASKS
    for label, box in named:
        if counts[label] != 1:
            continue
        side, place = box.side, place_of(box)
        found += [("side", side, label)] if side else []
        found += [("place", place, label)] if place else []
        found += [] if anatomy else [("size", size_of(box), label)]
    if record.boxes_are_complete and not anatomy:
        found += [("count", str(n), label) for label, n in counts.items()]
    return found
