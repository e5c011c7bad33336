"""Facts -> conversations about images that are made of words: what a language stand-in reads.

    documents = reading_practice(mostly_placed(rows, 8000), seed=0) + with_slots(others, seed=0)

`<image>` stands for slots, each a list of terms whose embeddings are later added into one
(model.standins): what is everywhere (modality, organ), and for every box its label, place, side
and count. That is what a projector can make of one patch. A sum has no order: "upper left" on the
right side must not become "upper right" on the left, so every term is one token (`terms`).

Paper: none; InternLM2.5 can read. Only the `mini` profile uses this file.
"""

import random
from collections import Counter

from gmai_lib.dataset.describe import Page
from gmai_lib.dataset.facts import box_of, place_of
from gmai_lib.dataset.lexicon import translate
from gmai_lib.dataset.turns import IMAGE, conversation, reading_turns
from gmai_lib.schema import Fact

MOST_BOXED = 6  # boxes of an image that are asked about
MOST_SLOTS = 60  # of the background: with the boxes, about as many as an image has patches
PLACED_SHARE = 0.75  # of the images that practice describes: as many as of the phantoms
# Kinds of facts whose values are terms.
_NAMED = (
    "modality", "organ", "department", "label", "absent", "side", "place", "size", "severity",
)  # fmt: skip


def terms(rows, *, most: int = 600) -> list[str]:
    """Return the terms that the facts of `rows` name, in English and Chinese, the commonest first.

    `rows`: lists of facts as in the Parquet shards. Single Chinese characters are left out: they
    are parts of other words.
    """
    counts = Counter(f["value"] for facts in rows for f in facts if f["kind"] in _NAMED)
    english = ["yes", "no", *(term for term, _ in counts.most_common())][:most]
    chinese = [translate(term, "zh") for term in english]
    return list(dict.fromkeys(english + [term for term in chinese if len(term) > 1]))


def mostly_placed(rows: list[dict], number: int) -> list[dict]:
    """Return `number` of `rows`, PLACED_SHARE of them with the place of something, in their order.

    Where a thing lies takes longest to read, and sources of labels without boxes cannot teach it.
    Fewer rows of either kind are made up for by the other; fewer rows in all are all returned.
    """
    placed, others = [], []
    for index, row in enumerate(rows):
        has_place = any(fact["kind"] == "place" for fact in row["facts"])
        (placed if has_place else others).append(index)
    most = max(round(PLACED_SHARE * number), number - len(others))
    chosen = placed[:most]
    return [rows[index] for index in sorted(chosen + others[: number - len(chosen)])]


def reading_practice(rows, *, seed: int) -> list[dict]:
    """Return conversations about images that are made of words: {"conversations", "slots"}.

    A language model that has read the web answers questions about what it is shown; one trained
    on answers alone never looks back at what precedes the question, and a projector then has
    nothing to talk to.

    `rows`: dicts with id, language and facts, as in the Parquet shards. Half of the conversations
    are long and repeat kinds of questions (turns.reading_turns).
    """
    documents = []
    for row in rows:
        rng = random.Random(f"{seed}|practice|{row['id']}")
        page = Page(tuple(Fact(**fact) for fact in row["facts"]), row["language"], rng)
        repeat = rng.random() < 0.5
        turns = reading_turns(page, number=10 if repeat else 5, repeat=repeat)
        if turns:
            messages = conversation(turns, pictured=True)
            documents.append({"conversations": messages, "slots": _slots(page.facts, rng)})
    return documents


def with_slots(rows, *, seed: int) -> list[dict]:
    """Return the conversations of sample rows with slots for their image, as `reading_practice`.

    One in ten loses its image, so that the model also learns what can be guessed without looking.
    Text-only rows have no slots.
    """
    documents = []
    for row in rows:
        rng, turns, slots = random.Random(f"{seed}|{row['id']}"), row["conversations"], []
        if any(IMAGE in turn["content"] for turn in turns):
            if rng.random() < 0.9:
                slots = _slots(tuple(Fact(**fact) for fact in row["facts"]), rng)
            else:
                turns = [t | {"content": t["content"].replace(f"{IMAGE}\n", "")} for t in turns]
        documents.append({"conversations": turns, "slots": slots})
    return documents


def _slots(facts: tuple[Fact, ...], rng: random.Random) -> list[list[str]]:
    """Terms that stand for patches: a few for every box among those of the background."""
    everywhere = [f.value for f in facts if f.kind in ("modality", "organ")]
    boxes, slots = [f for f in facts if f.kind == "box"], []
    if not boxes:
        everywhere += [f.value for f in facts if f.kind == "label"]
    counts = {f.label: f.value for f in facts if f.kind == "count"}
    for fact in boxes[:MOST_BOXED]:
        box = box_of(fact)
        named = (fact.label, place_of(box), box.side, counts.get(fact.label))
        slots += [list(filter(None, named))] * rng.randint(1, 4)
    slots += [everywhere] * round(MOST_SLOTS ** rng.random())
    rng.shuffle(slots)
    return slots
