"""Facts -> conversations about images that are made of words: what a language stand-in reads.

    lessons = write_lessons(rows, steps=500, seed=0)
    documents = reading_practice(mostly_placed(rows, 8000), seed=0) + with_slots(others, seed=0)

`<image>` stands for slots, each a list of terms whose embeddings are later added into one
(model.standins): what is everywhere (modality, organ), and for every box its label, place, side
and count. That is what a projector can make of one patch. A sum has no order: "upper left" on the
right side must not become "upper right" on the left, so every term is one token (`terms`).

Lessons come before whole conversations. To tell whether the term of a question is among those of
the image, two terms have to be compared, and a fresh model attends to all tokens alike: in a
conversation of a hundred tokens the two are a ten-thousandth of what it sees, and 36,000 yes/no
questions taught nothing. Two terms alone are learned in 40 steps, and the skill then carries over
to ever longer texts.

Paper: none; InternLM2.5 can read. Only the `mini` profile uses this file.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass

from gmai_lib.dataset.describe import Page
from gmai_lib.dataset.facts import box_of, place_of
from gmai_lib.dataset.lexicon import NEGATIVE_LABELS, translate
from gmai_lib.dataset.turns import IMAGE, conversation, reading_turns
from gmai_lib.schema import PLACES, Box, Fact

MOST_BOXED = 6  # boxes of an image that are asked about
MOST_SLOTS = 60  # of the background: with the boxes, about as many as an image has patches
PLACED_SHARE = 0.75  # of the images that practice describes: as many as of the phantoms
# Kinds of facts whose values are terms.
_NAMED = (
    "modality", "organ", "department", "label", "absent", "side", "place", "size", "severity",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One lesson: short lists of notes about a small image, in the order of growing length."""

    name: str
    share: float  # of the steps of the language stand-in
    per_step: int  # documents that are written for every such step
    kinds: dict[str, float]  # of notes, with how often they come
    notes: int  # per document
    findings: tuple[int, ...]  # how many the image has, one is drawn
    background: int  # at most so many slots that show no finding


_ALL_KINDS = {
    "present": 5, "place": 3, "side": 1, "count": 1.5, "label": 1, "organ": 0.7, "modality": 0.7,
}  # fmt: skip
LESSONS = (
    Lesson(
        name="the same word, or not", share=0.085, per_step=1000, kinds={"present": 1},
        notes=1, findings=(1,), background=0,
    ),
    Lesson(
        name="a finding, or not", share=0.16, per_step=100, kinds={"present": 1},
        notes=3, findings=(1,), background=5,
    ),
    Lesson(
        name="everything, few slots", share=0.18, per_step=100, kinds=_ALL_KINDS,
        notes=4, findings=(1, 1, 1, 2, 3), background=6,
    ),
    Lesson(
        name="everything, many slots", share=0.03, per_step=400, kinds=_ALL_KINDS,
        notes=10, findings=(1, 1, 1, 2, 3), background=40,
    ),
)  # fmt: skip
CHINESE_SHARE = 0.3  # of the lessons' documents, as of the conversations
_NOTES = {
    "en": {
        "present": "{x} is there:", "place": "{x} where:", "side": "{x} which side:",
        "count": "{x} how many:", "label": "what:", "organ": "organ:", "modality": "modality:",
    },
    "zh": {
        "present": "{x} 有吗:", "place": "{x} 哪里:", "side": "{x} 哪侧:",
        "count": "{x} 几个:", "label": "什么:", "organ": "器官:", "modality": "模态:",
    },
}  # fmt: skip


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


def write_lessons(rows, *, steps: int, seed: int) -> list[tuple[float, list[dict]]]:
    """Return (share of `steps`, documents {"notes", "slots"}) for each of LESSONS.

    A note is (what is asked, what is said): ("cyst where:", "upper left"). The images are made
    up from the labels and from the pairs of modality and organ that `rows` name, so that nothing
    but the slots tells the answer. The first lesson has no slots; its notes are two words.

    `rows`: as for `reading_practice`. Fewer labels than one image may show give no lessons.
    """
    labels, everywhere = set(), set()
    for row in rows:
        named = [f["value"] for f in row["facts"] if f["kind"] in ("label", "absent")]
        labels.update(named)
        shown = {f["kind"]: f["value"] for f in row["facts"] if f["kind"] in ("modality", "organ")}
        if len(shown) == 2:
            everywhere.add((shown["modality"], shown["organ"]))
    labels, everywhere = sorted(labels - set(NEGATIVE_LABELS)), sorted(everywhere)
    if len(labels) < max(max(lesson.findings) for lesson in LESSONS) or not everywhere:
        return []
    lessons = []
    for lesson in LESSONS:
        rng = random.Random(f"{seed}|{lesson.name}")
        write = _word_pair if lesson is LESSONS[0] else _small_image
        number = math.ceil(lesson.share * steps * lesson.per_step)
        documents = [write(lesson, labels, everywhere, rng) for _ in range(number)]
        lessons.append((lesson.share, documents))
    return lessons


def _language(rng) -> str:
    return "zh" if rng.random() < CHINESE_SHARE else "en"


def _word_pair(lesson, labels, everywhere, rng) -> dict:
    """Two labels and whether they are the same; half of the time they are."""
    language, seen = _language(rng), rng.choice(labels)
    asked = seen if rng.random() < 0.5 else rng.choice(labels)
    said = translate("yes" if asked == seen else "no", language)
    return {"slots": [], "notes": [((seen, translate(asked, language)), said)]}


def _small_image(lesson, labels, everywhere, rng) -> dict:
    """An image of a few slots, and notes on what they show."""
    language = _language(rng)
    modality, organ = rng.choice(everywhere)
    background, facts = rng.randint(0, lesson.background), {}
    slots = [[modality, organ]] * background
    for label in rng.sample(labels, rng.choice(lesson.findings)):
        place = rng.choice(PLACES)
        side = next((side for side in ("left", "right") if side in place), "")
        facts[label] = {"place": place, "side": side, "count": str(rng.randint(1, 4))}
        shown = list(filter(None, (label, *facts[label].values())))
        slots += [shown] * rng.randint(1, 4)
    rng.shuffle(slots)
    kinds = dict(lesson.kinds)
    if not background:
        kinds = {k: w for k, w in kinds.items() if k not in ("organ", "modality")}
    if len(facts) > 1:
        kinds.pop("label", None)
    notes = []
    for kind in rng.choices(list(kinds), list(kinds.values()), k=lesson.notes):
        label = rng.choice(list(facts))
        if kind == "present":
            label = label if rng.random() < 0.5 else rng.choice(labels)
            said = "yes" if label in facts else "no"
        else:
            said = {"label": label, "organ": organ, "modality": modality}.get(kind)
            said = said or facts[label][kind]
        if said:  # what lies in the middle has no side
            asked = _NOTES[language][kind].format(x=translate(label, language))
            notes.append(((asked,), translate(said, language)))
    return {"slots": slots, "notes": notes}


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


def regions(facts) -> tuple[list[str], list[tuple[Box, list[str]]]]:
    """Return the terms of the whole image and, for every box, its terms: what a slot may say.

    Modality and organ are everywhere, and so are the labels of an image without boxes. A box has
    its label, place, side and count.
    """
    everywhere = [f.value for f in facts if f.kind in ("modality", "organ")]
    boxes = [f for f in facts if f.kind == "box"]
    if not boxes:
        everywhere += [f.value for f in facts if f.kind == "label"]
    counts = {f.label: f.value for f in facts if f.kind == "count"}
    boxed = []
    for fact in boxes:
        box = box_of(fact)
        named = (fact.label, place_of(box), box.side, counts.get(fact.label))
        boxed.append((box, list(filter(None, named))))
    return everywhere, boxed


def _slots(facts: tuple[Fact, ...], rng: random.Random) -> list[list[str]]:
    """Terms that stand for patches: a few for every box among those of the background."""
    everywhere, boxed = regions(facts)
    slots = []
    for _, named in boxed[:MOST_BOXED]:
        slots += [named] * rng.randint(1, 4)
    slots += [everywhere] * round(MOST_SLOTS ** rng.random())
    rng.shuffle(slots)
    return slots
