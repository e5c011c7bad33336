"""Texts with one planted error, and a writer's misreading: what the fidelity gate is measured by.

    measure(extract(record) for record in records)      # how often `fidelity.check` is wrong
    for kind, text in plant(facts, "en", rng): ...      # descriptions with one thing changed
    writer.write(record, misread(facts, rng), language="en")

Every error is made of the lexicon's words, which is what the gate reads.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from random import Random

from gmai_lib.dataset.describe import Page, describe
from gmai_lib.dataset.fidelity import SEVERITIES, check
from gmai_lib.dataset.lexicon import CHINESE_NUMBERS, NEGATIVE_LABELS, NUMBERS, is_structure
from gmai_lib.schema import DEPARTMENTS, IMAGE_MODALITIES, LANGUAGES, PLACES, SIZES, Fact


def measure(facts_of: Iterable[tuple[Fact, ...]], seed: int = 0) -> dict[str, int]:
    """Count how well `check` does on descriptions of these facts, in both languages.

    Returns texts and false_alarms (right descriptions, and how many of them `check` refuses),
    planted and caught (descriptions with one error, and how many of them it refuses).
    """
    counts = dict.fromkeys(("texts", "false_alarms", "planted", "caught"), 0)
    for number, facts in enumerate(facts_of):
        for language in LANGUAGES:
            rng = Random(f"{seed}|{language}|{number}")
            page = Page(facts, language, rng)
            counts["texts"] += 1
            right = page.text(describe(page, most=6))
            counts["false_alarms"] += bool(check(right, facts, language))
            for _, wrong in plant(facts, language, rng):
                counts["planted"] += 1
                counts["caught"] += bool(check(wrong, facts, language))
    return counts


def plant(facts: tuple[Fact, ...], language: str, rng: Random) -> list[tuple[str, str]]:
    """Return (kind of error, text) pairs: descriptions written from facts with one thing changed.

    For measuring `check`: only texts that state what was changed are returned.
    """
    planted = []
    for kind, changed, new in _changes(facts, rng):
        page = Page(changed, language, rng)
        statements = describe(page, most=6)
        text = page.text(statements)
        stated = any(fact in new for statement in statements for fact in statement.facts)
        if kind == "count":  # a sentence with the place of one thing counts it as "a nodule"
            number = int(next(iter(new)).value)
            words = (NUMBERS if language == "en" else CHINESE_NUMBERS)[number]
            stated = re.search(rf"\b{words}\b" if language == "en" else words, text.lower())
        if stated:
            planted.append((kind, text))
    return planted


def misread(facts: tuple[Fact, ...], rng: Random) -> tuple[Fact, ...]:
    """Return the facts with one of them changed, as by a writer that read it wrong.

    Unchanged if there is none that could be (a text about no image). What is taken for absent has
    no place, side, size or number either.
    """
    changes = list(_changes(facts, rng))
    if not changes:
        return facts
    kind, changed, new = rng.choice(changes)
    unseen = {fact.value for fact in new} if kind == "negated" else set()
    return tuple(fact for fact in changed if fact.label not in unseen)


def _changes(facts: tuple[Fact, ...], rng: Random):
    """Yield (kind, all facts, the changed ones) with one thing changed at a time."""
    organs = ("lung", "liver", "brain", "knee", "breast", "retina", "skin", "colon")
    choices = {"modality": IMAGE_MODALITIES, "organ": organs, "department": DEPARTMENTS[:-1]}
    choices |= {
        "side": ("left", "right"),
        "place": PLACES,
        "size": SIZES,
        "severity": SEVERITIES[:3],
    }
    labels = [f.value for f in facts if f.kind == "label" and not is_structure(f.value)]
    for fact in facts:
        if fact.kind in choices:
            others = [v for v in choices[fact.kind] if v != fact.value]
            yield fact.kind, *_replaced(facts, {fact: replace(fact, value=rng.choice(others))})
        elif fact.kind == "count" and int(fact.value) < len(NUMBERS) - 1:
            value = rng.choice([n for n in ("2", "3", "4", "5") if n != fact.value])
            yield "count", *_replaced(facts, {fact: replace(fact, value=value)})
        elif fact.kind == "absent" and not is_structure(fact.value):
            yield "absent", *_replaced(facts, {fact: replace(fact, kind="label")})
        elif fact.kind == "label" and fact.value in labels:
            if fact.value not in NEGATIVE_LABELS:
                yield "negated", *_replaced(facts, {fact: replace(fact, kind="absent")})
            named = {f.value for f in facts if f.kind in ("label", "absent")}
            other = rng.choice([n for n in ("nodule", "cyst", "ulcer", "polyp") if n not in named])
            about = {f: replace(f, label=other) for f in facts if f.label == fact.value}
            yield "label", *_replaced(facts, about | {fact: replace(fact, value=other)})


def _replaced(facts, new: dict[Fact, Fact]):
    return tuple(new.get(fact, fact) for fact in facts), set(new.values())
