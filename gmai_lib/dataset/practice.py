"""Facts -> conversations about images that are made of words: what a language stand-in reads.

    documents = reading_practice(rows, seed=0) + with_slots(other_rows, seed=0)

`<image>` stands for a few slots, each a text whose tokens are later added into one embedding
(model.standins): what is everywhere (modality, organ), and for every box its label, place, side
and count. That is what a projector can make of one patch.

Paper: none; InternLM2.5 can read. Only the `mini` profile uses this file.
"""

import random

from gmai_lib.dataset.describe import Page
from gmai_lib.dataset.facts import box_of, place_of
from gmai_lib.dataset.turns import IMAGE, conversation, reading_turns
from gmai_lib.schema import Fact

MOST_BOXED = 6  # boxes of an image that are asked about


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


def _slots(facts: tuple[Fact, ...], rng: random.Random) -> list[str]:
    """Texts that stand for patches: a few for every box among those of the background."""
    everywhere = [f.value for f in facts if f.kind in ("modality", "organ")]
    boxes, slots = [f for f in facts if f.kind == "box"], []
    if not boxes:
        everywhere += [f.value for f in facts if f.kind == "label"]
    counts = {f.label: f.value for f in facts if f.kind == "count"}
    for fact in boxes[:MOST_BOXED]:
        box = box_of(fact)
        words = (fact.label, place_of(box), box.side, counts.get(fact.label))
        slots += [" ".join(filter(None, words))] * rng.randint(1, 3)
    slots += [" ".join(everywhere)] * rng.randint(4, 60)  # as many as an image has patches
    rng.shuffle(slots)
    return slots
