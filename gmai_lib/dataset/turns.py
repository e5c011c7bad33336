"""Facts -> question-answer turns of the percept, instruct and text subsets.

Yes/no questions come in pairs, one for each answer, and ask for the absent labels that the
annotation names; half of the questions about the only finding call it "the finding", so that the
conversation does not give its name away.

Paper: section 3.1 and table 9 (GMAI-MM-Percept, GMAI-MM-Instruct, GMAI-Text).
Departs: the text subsets are written from the facts of the image records; how the paper made
its own is not described.
"""

import re

from gmai_lib.dataset import phrases
from gmai_lib.dataset.describe import Page, describe
from gmai_lib.dataset.lexicon import NEGATIVE_LABELS, NOT_AN_ORGAN, is_finding, is_structure
from gmai_lib.dataset.questions import answer, ask, choices, ref
from gmai_lib.schema import IMAGE_MODALITIES, NO_FINDING, PLACES, Fact

MOST_BOXES = 6  # boxes that one answer lists; where there are more, only counts are asked
MOST_LABELS = 4  # labels that one answer lists
# Organs of which one image shows only one, so that another one is a safe wrong answer.
DISTINCT_ORGANS = (
    "lung", "liver", "brain", "knee", "hand", "breast", "thyroid", "retina", "skin", "colon",
    "stomach",
)  # fmt: skip
LETTER_SHARE = 0.5  # of the questions with options; the others want the option's text
# How often practice asks for a value; what is harder to find comes more often.
READING_WEIGHTS = {"modality": 0.5, "organ": 0.5, "side": 2.0, "place": 6.0, "count": 1.5}

IMAGE = "<image>"  # where the image goes

Turn = tuple[str, str]  # what the user asks, what the assistant answers


def conversation(turns: list[Turn], *, pictured: bool) -> list[dict]:
    """Return `turns` as messages {"role", "content"}; `pictured` puts an image before the first."""
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    if pictured and messages:
        messages[0]["content"] = f"{IMAGE}\n{messages[0]['content']}"
    return messages


def percept_turns(page: Page) -> list[Turn]:
    """Return up to five short turns answered with `<ref>label</ref>`, or a box where one exists."""
    rng, turns = page.rng, []
    for kind in ("modality", "organ"):
        turns += [(_ask(page, kind, "", "label"), ref(page, [f])) for f in _askable(page, kind)]
    labels = page.of("label")
    if 0 < len(labels) <= MOST_LABELS:
        turns.append((_ask(page, _label_kind(labels), "", "label"), ref(page, labels)))
    for label in rng.sample(labels, min(3, len(labels))):
        boxes = page.of("box", label.value)
        if 0 < len(boxes) <= MOST_BOXES:
            kind = "box" if len(boxes) == 1 else "boxes"
            asked = _ask(page, kind, _called(page, label.value), "box")
            turns.append((asked, answer(kind, boxes, page.language, unknown=page.unknown)))
    if boxes := page.of("box"):
        box = rng.choice(boxes)
        turns.append((_ask_region(page, box, "label"), ref(page, [box], by="label")))
    rng.shuffle(turns)
    return turns[:5]


def instruct_turns(page: Page) -> list[Turn]:
    """Return 4 to 8 turns, most of them brief; fewer where the facts say less."""
    rng = page.rng
    blocks = _fact_turns(page)
    if pair := _yes_no_pair(page):
        blocks.append((3.0, pair))
    if boxes := page.of("box"):
        box = rng.choice(boxes)
        turn = (_ask_region(page, box, "brief"), page.term(box.label))
        blocks.append((2.0 if is_structure(box.label) else 0.5, [turn]))
    most, turns = rng.randint(6, 8), []
    if rng.random() < 0.4 and (special := _long_turn(page)):
        turns.append(special)
    # The kinds that need a closer look come more often.
    for block in _weighted_order(blocks, rng):
        if len(turns) + len(block) <= most:
            turns += block
    rng.shuffle(turns)
    return turns


def reading_turns(page: Page, *, number: int, repeat: bool) -> list[Turn]:
    """Return up to `number` brief turns whose answers have to be looked up in the facts.

    Practice for a language model. With `repeat` kinds come again, in other words: to find the
    earlier question is the easiest use of looking back, and a model that has learned it soon
    compares a question with the facts, too. Without, no answer gives another away.
    """
    rng, labels = page.rng, page.of("label")
    kinds = {kind: weight for kind, weight in READING_WEIGHTS.items() if _askable(page, kind)}
    if 0 < len(labels) <= MOST_LABELS:
        kinds[_label_kind(labels)] = 2.0
    yes_no = dict(zip(("yes", "no"), _yes_no_candidates(page), strict=True))
    if all(yes_no.values()):
        kinds |= {"yes": 1.5, "no": 1.5}
    kinds["choice"] = 1.0
    if repeat:
        drawn = rng.choices(list(kinds), list(kinds.values()), k=number)
    else:
        drawn = _weighted_order([(weight, kind) for kind, weight in kinds.items()], rng)
    turns = []
    for kind in drawn[:number]:
        if kind in yes_no:
            turns.append(_yes_no_turn(page, yes_no[kind], kind))
        elif kind == "choice":
            if turn := _choice_turn(page, letters=0):
                turns.append(turn)
        elif kind in ("label", "labels"):
            turns.append(_brief(page, kind, labels))
        else:
            fact = rng.choice(_askable(page, kind))
            called = _called(page, fact.label) if fact.label else ""
            turns.append(_brief(page, kind, fact, called))
    return turns


def _weighted_order(weighted: list, rng) -> list:
    """Return the second of (weight, item) pairs as if drawn by weight without replacement."""
    drawn = sorted(weighted, key=lambda pair: rng.random() ** (1 / pair[0]), reverse=True)
    return [item for _, item in drawn]


def report_turns(page: Page, report: str, *, single: bool) -> list[Turn]:
    """Return brief questions about a written report, which the first turn carries.

    `report` is the source's own; without one it is written from the facts. Only what the report
    states is asked.
    """
    language, rng = page.language, page.rng
    if report:
        stated = tuple(f for f in page.facts if _is_stated(f, report))
    else:
        statements = describe(page, most=6)
        report = page.text(statements)
        stated = tuple(fact for s in statements for fact in s.facts)
    about = Page(stated, language, rng, page.unknown)
    blocks = [block for _, block in _fact_turns(about, listing=_has_all_labels(page, stated))]
    if pair := _yes_no_pair(about):
        blocks += [[turn] for turn in pair]
    rng.shuffle(blocks)
    turns = [turn for block in blocks for turn in block][: 1 if single else rng.randint(4, 8)]
    if not turns:
        return []
    asked, said = turns[0]
    head = f"{phrases.REPORT_PREFIX[language]}{report}\n{phrases.QUESTION_PREFIX[language]}{asked}"
    return [(head, said), *turns[1:]]


def _has_all_labels(page: Page, stated: tuple[Fact, ...]) -> bool:
    """Whether `stated` has every label of the page, so that one may ask for the list."""
    return all(f in stated for f in page.of("label"))


def _is_stated(fact: Fact, report: str) -> bool:
    """Whether a source's report names the value of a fact that can be asked about."""
    if fact.kind not in ("modality", "organ", "label", "place"):
        return False
    return re.search(rf"\b{re.escape(fact.value)}\b", report, re.I) is not None


def _ask(page: Page, kind: str, label: str = "", ending: str = "brief") -> str:
    return ask(kind, page.language, label, ending, rng=page.rng)


def _askable(page: Page, kind: str) -> list[Fact]:
    return [f for f in page.of(kind) if f.value != NOT_AN_ORGAN]


def _brief(page: Page, kind: str, facts, label: str = "") -> Turn:
    said = answer(kind, facts, page.language, unknown=page.unknown)
    return _ask(page, kind, label), said


def _ask_region(page: Page, box: Fact, ending: str) -> str:
    kind = "region_organ" if is_structure(box.label) else "region"
    return _ask(page, kind, ", ".join(box.value.split()), ending)


def _label_kind(labels: list[Fact]) -> str:
    return "label" if len(labels) == 1 and is_finding(labels[0].value) else "labels"


def _called(page: Page, label: str) -> str:
    """How a question names `label`: half of the time "" ("the finding") if it is the only one."""
    only = len(page.of("label")) == 1 and is_finding(label)
    return "" if only and page.rng.random() < 0.5 else label


def _fact_turns(page: Page, *, listing: bool = True) -> list[tuple[float, list[Turn]]]:
    """Blocks of brief turns with their weights, one for each fact that can be asked about."""
    blocks = []
    for kind, weight in (("modality", 1), ("organ", 1), ("department", 0.15), ("severity", 0.5)):
        blocks += [(weight, [_brief(page, kind, f)]) for f in _askable(page, kind)]
    labels = page.of("label")
    if listing and 0 < len(labels) <= MOST_LABELS:
        blocks.append((3, [_brief(page, _label_kind(labels), labels)]))
    chosen = {f.value for f in page.rng.sample(labels, min(2, len(labels)))}
    for kind, weight in (("side", 1.5), ("place", 3), ("count", 2), ("size", 0.5)):
        for fact in page.of(kind):
            if fact.label in chosen:
                blocks.append((weight, [_brief(page, kind, fact, _called(page, fact.label))]))
    return blocks


def _yes_no_pair(page: Page) -> list[Turn]:
    """Return one question whose answer is yes and one whose answer is no, or nothing."""
    yes, no = _yes_no_candidates(page)
    if not yes or not no:
        return []
    return [_yes_no_turn(page, yes, "yes"), _yes_no_turn(page, no, "no")]


def _yes_no_candidates(page: Page) -> tuple[list, list]:
    """Return what may be asked so that the answer is yes, and so that it is no."""
    rng = page.rng
    labels, absent = page.of("label"), page.of("absent")
    positive = [f for f in labels if f.value not in NEGATIVE_LABELS]
    negative = [f for f in labels if f.value in NEGATIVE_LABELS]
    # Candidates as (weight, kind, fact): most questions name a label.
    yes = [(4, "present", f) for f in rng.sample(positive, min(1, len(positive)))]
    no = [(4, "present", f) for f in rng.sample(absent, min(1, len(absent)))]
    if len(labels) == 1 and positive and is_finding(positive[0].value):
        yes.append((1, "any", positive[0]))
        no.append((1, "none", positive[0]))
    yes += [(4, "none", f) for f in negative]
    no += [(2, "any", f) for f in negative]
    for kind, values in (("modality", IMAGE_MODALITIES), ("organ", DISTINCT_ORGANS)):
        for fact in page.of(kind):
            if fact.value in values:
                other = rng.choice([value for value in values if value != fact.value])
                yes.append((0.5 if yes else 4, f"is_{kind}", fact))
                no.append((0.5 if no else 4, f"is_{kind}", Fact(id="", kind=kind, value=other)))
    return yes, no


def _yes_no_turn(page: Page, candidates: list, said: str) -> Turn:
    weights = [weight for weight, _, _ in candidates]
    _, kind, fact = page.rng.choices(candidates, weights)[0]
    return _ask(page, kind, fact.value), page.term(said)


def _long_turn(page: Page) -> Turn | None:
    """A question answered in a full sentence, or one with four options."""
    rng = page.rng
    if rng.random() < 0.5 and (turn := _choice_turn(page)):
        return turn
    kinds = [
        k for k in ("modality", "organ", "place", "side", "count", "size") if _askable(page, k)
    ]
    labels = page.of("label")
    if 0 < len(labels) <= MOST_LABELS:
        kinds += [_label_kind(labels)] * 2
    positive = [f for f in labels if f.value not in NEGATIVE_LABELS]
    if positive and page.of("absent"):
        kinds += ["present"] * 2
    if not kinds:
        return None
    kind = rng.choice(kinds)
    if kind == "present":
        facts = [rng.choice(positive if rng.random() < 0.5 else page.of("absent"))]
        asked = _ask(page, kind, facts[0].value, "sentence")
    elif kind in ("label", "labels"):
        facts = [*labels, *page.of("count")]
        asked = _ask(page, kind, "", "sentence")
    else:
        facts = [rng.choice(page.of(kind))]
        asked = _ask(page, kind, facts[0].label, "sentence")
    return asked, answer(kind, facts, page.language, False, rng=rng, unknown=page.unknown)


def _choice_turn(page: Page, letters: float = LETTER_SHARE) -> Turn | None:
    """A four-option question on modality, organ, place or finding; `letters` want the letter."""
    rng, labels, pools = page.rng, page.of("label"), []
    if len(labels) == 1 and is_finding(labels[0].value):
        others = [NO_FINDING] if labels[0].value not in NEGATIVE_LABELS else []
        pools.append(("label", labels[0], [*(f.value for f in page.of("absent")), *others]))
    values = {"modality": IMAGE_MODALITIES, "organ": DISTINCT_ORGANS, "place": PLACES}
    for kind, known in values.items():
        facts = [f for f in page.of(kind) if f.value in known]
        pools += [(kind, f, [v for v in known if v != f.value]) for f in facts[:1]]
    pools = [pool for pool in pools if len(pool[2]) >= 3]
    if not pools:
        return None
    kind, fact, wrong = rng.choice(pools)
    options = [*rng.sample(wrong, 3), fact.value]
    rng.shuffle(options)
    asked = _ask(page, kind, fact.label, "sentence")
    shown = [page.term(option) for option in options]
    by_letter = rng.random() < letters
    said = "ABCD"[options.index(fact.value)] if by_letter else page.term(fact.value)
    return choices(asked, shown, page.language, by_letter=by_letter), said
