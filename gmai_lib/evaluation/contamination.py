"""Which benchmark items the training data already holds, as a subset of the results table.

    items = flag_contaminated(items, training_records)     # subset "contaminated=yes" or "=no"
    rows = summarise(items, responses, ...)                # has a row for each

What counts as the same image or text is decided by the builder (`dataset.leaks`): same bytes, looks
the same, or a text whose words nearly all stand in one training text.
"""

from collections.abc import Iterable
from dataclasses import replace

from gmai_lib.dataset.leaks import find_leaks
from gmai_lib.evaluation.items import Item
from gmai_lib.schema import QuestionAnswer, Record


def flag_contaminated(
    items: list[Item], training: Iterable[Record], *, processes: int = 1
) -> list[Item]:
    """Return the items, each with the subset "contaminated=yes" or "contaminated=no".

    Every distinct image is compared once; an item with several is contaminated if one of them is.
    """
    shown = {image: f"benchmark image {n}" for n, image in enumerate(_images(items))}
    tested = [_record(name, image=image) for image, name in shown.items()]
    for item in items:
        if not item.images:
            pair = QuestionAnswer(question=item.question, answer=item.answer)
            tested.append(_record(item.id, dimension="text", modality="text", qa=(pair,)))
    known = {row["item"] for row in find_leaks(training, tested, processes=processes)}

    def is_known(item: Item) -> bool:
        names = [shown[image] for image in item.images] or [item.id]
        return any(name in known for name in names)

    return [
        replace(item, subsets=(*item.subsets, f"contaminated={'yes' if is_known(item) else 'no'}"))
        for item in items
    ]


def _images(items: list[Item]) -> dict[bytes, None]:
    return dict.fromkeys(image for item in items for image in item.images)


def _record(name: str, **values) -> Record:
    values = {"dimension": "2d", "modality": "unstated"} | values
    return Record(
        id=name,
        source="benchmark",
        path=name,
        department="unstated",
        task="attribute recognition",
        license="unstated",
        access="open",
        **values,
    )
