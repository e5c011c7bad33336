"""The fidelity gate: whatever a writer says about an image is checked against its facts.

    for problem in check("A mass in the left lung.", facts, "en"): print(problem)

The checker reads text, not templates: it finds the terms of the lexicon in every sentence and asks
whether a fact says so. It catches another modality, organ, department, side, place, count, size or
severity than annotated, a finding that the annotation does not name, and a finding said to be
absent that is there (or the other way round). What it does not know it cannot check: a disease
outside the lexicon, or a cause ("due to"), passes unseen.

Paper: section 3.1, step 5 ties text to the annotation and checks 30 pairs of a source by hand.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from gmai_lib.dataset.describe import Page, describe
from gmai_lib.dataset.facts import box_of, place_of
from gmai_lib.dataset.lexicon import (
    CHINESE_NUMBERS,
    LEXICON,
    NEGATIVE_LABELS,
    NOT_AN_ORGAN,
    NUMBERS,
    STRUCTURES,
    is_structure,
    one,
    plural,
    translate,
)
from gmai_lib.schema import DEPARTMENTS, MODALITIES, PLACES, SIZES, Fact

SEVERITIES = ("mild", "moderate", "severe", "proliferative")
KINDS = (
    "modality", "organ", "department", "label", "absent", "side", "place", "count", "size",
    "severity",
)  # fmt: skip
_WORDS = {"yes", "no", "finding", "left", "right"}  # of the lexicon that are no terms by themselves
_NOT_A_FINDING = {
    NOT_AN_ORGAN,
    *MODALITIES,
    *DEPARTMENTS,
    *PLACES,
    *SIZES,
    *SEVERITIES,
    *_WORDS,
    "background",
}
FINDINGS = tuple(
    term
    for term in LEXICON
    if term not in _NOT_A_FINDING and not term.startswith("no ") and not is_structure(term)
)
_SIDES = ("left", "right")
_SPINE = {"C": 7, "T": 12, "L": 5, "S": 5}  # vertebrae
# Words that belong to a finding or organ although the fact names only the whole.
_PART_OF = {"lung": ("chest",), "retina": ("eye",), "torso": ("chest", "abdomen")}
# Where a statement ends: what is denied in one clause may be there in the next.
_CLAUSE = {
    "en": re.compile(r"(?<=[.!?])\s+|\n|;|,\s+(?=(?:but|while|there|with|which)\b)"),
    "zh": re.compile("(?<=[。！？；，])|\n"),
}
# What denies the terms after it, and what denies those before it, too.
_DENIES_NEXT = {
    "en": re.compile(r"\b(?:no|without|neither|nor|absence of|free of)\b"),
    "zh": re.compile("(?!)"),
}
_DENIES_ALL = {
    "en": re.compile(r"\b(?:not|cannot|absent)\b"),
    "zh": re.compile("未|没有|不可见|不存在|看不到|无(?!恶性)"),
}
_NOTHING = {
    "en": re.compile(r"\bno (?:abnormal )?(?:findings?|abnormalit(?:y|ies)|lesions?)\b(?! #)"),
    "zh": re.compile("(?:未见|无|没有)(?:明显)?异常"),
}


@dataclass(frozen=True)
class Problem:
    """One thing a text says and the facts do not."""

    kind: str  # one of KINDS: what is wrong
    said: str  # in readable English
    sentence: str

    def __str__(self):
        return f"{self.kind} {self.said!r} is not in the annotation: {self.sentence.strip()}"


def check(text: str, facts: tuple[Fact, ...], language: str) -> list[Problem]:
    """Return every contradiction of `text` and `facts`; [] for a faithful text.

    Markup (`<ref>`, `<box>`) is ignored: boxes are compared where they are written.
    """
    text = re.sub(r"<box>.*?</box>|</?\w+>", " ", text)
    known = _Known(facts)
    problems = []
    for clause in filter(str.strip, _CLAUSE[language].split(text)):
        problems += _clause(clause, known, language)
    return problems


class _Known:
    """What the facts allow a sentence to say."""

    def __init__(self, facts: tuple[Fact, ...]):
        self.facts = facts
        values = {kind: {f.value for f in facts if f.kind == kind} for kind in KINDS}
        self.values = values
        boxes = [f for f in facts if f.kind == "box"]
        self.labels = values["label"] | {f.label for f in boxes}
        # Sides and places of every box, also where there are several of one label.
        self.sides = {(f.label, f.value) for f in facts if f.kind == "side"}
        self.sides |= {(f.label, box_of(f).side) for f in boxes}
        self.places = {(f.label, f.value) for f in facts if f.kind == "place"}
        self.places |= {(f.label, place_of(box_of(f))) for f in boxes}
        self.counts = {f.label: f.value for f in facts if f.kind == "count"}
        self.sizes = {(f.label, f.value) for f in facts if f.kind == "size"}
        self.everything = {f.value for f in facts} | self.labels
        self.organs = values["organ"] | {p for o in values["organ"] for p in _PART_OF.get(o, ())}


def _clause(sentence: str, known: _Known, language: str) -> list[Problem]:
    low = sentence.lower() if language == "en" else sentence
    found, problems = [], []

    def wrong(kind: str, said: str):
        problems.append(Problem(kind, said, sentence))

    if _NOTHING[language].search(low):
        if not known.values["label"] & NEGATIVE_LABELS:
            wrong("label", "no finding")
        low = _NOTHING[language].sub("#", low)
    all_denied = _DENIES_ALL[language].search(low) is not None
    # Each vocabulary takes its terms out, so that "upper left" is no "left" and "OCT" no "CT".
    for kind in ("department", "modality", "place", "thing"):
        terms, low = _take(low, kind, language, known.everything)
        found += [(kind, *term) for term in terms]
    labels = [said for kind, said, *_ in found if kind == "thing" and said in known.labels]
    for kind, said, number, size, before in found:
        negative = all_denied or _DENIES_NEXT[language].search(before) is not None
        if kind in ("department", "modality") and said not in known.values[kind]:
            wrong(kind, said)
        elif kind == "thing" and (is_structure(said) or said == NOT_AN_ORGAN):
            if said not in known.organs | known.labels | known.values["absent"]:
                wrong("organ", said)
            elif negative and said in known.labels:
                wrong("absent", said)
        elif kind == "thing":
            if negative:
                none = said == "tumor" and known.values["label"] & NEGATIVE_LABELS
                if said not in known.values["absent"] and not none:
                    wrong("absent", said)
                continue
            if said not in known.labels:
                wrong("label", said)
                continue
            if number and known.counts.get(said) != number:
                wrong("count", f"{number} {said}")
            if size and (said, size) not in known.sizes:
                wrong("size", f"{size} {said}")
        elif kind == "place" and not _holds(known.places, labels, said):
            wrong("place", said)
    for side in _sides(low, language):
        if not _holds(known.sides, labels, side):
            wrong("side", side)
    for severity in _severities(low, language):
        if severity not in known.values["severity"]:
            wrong("severity", severity)
    for size in _sizes(low, language):
        if not _holds(known.sizes, labels, size):
            wrong("size", size)
    return problems


def _holds(pairs: set, labels: list[str], value: str) -> bool:
    """Whether one of the named labels has the value; without a name, whether any label has it."""
    return any(v == value and (not labels or label in labels) for label, v in pairs)


@lru_cache
def _spellings(kind: str, language: str) -> tuple[re.Pattern, dict[str, tuple[str, ...]]]:
    """A pattern of all spellings of a vocabulary, the longest first, and what each may mean."""
    names = {
        "department": DEPARTMENTS[:-1],
        "modality": MODALITIES[:-1],
        "place": PLACES,
        "thing": (*FINDINGS, *_structures()),
    }[kind]
    means: dict[str, list[str]] = {}
    for name in names:
        if language == "zh":
            spelled = {translate(name, "zh")}
        else:
            spelled = {name.lower(), one(name).lower()}
            if kind == "thing":
                spelled |= {plural(name).lower(), plural(one(name)).lower()}
            if kind == "place" and name == "center":
                spelled |= {"centre"}
        for word in spelled:
            means.setdefault(word, []).append(name)
    words = "|".join(re.escape(word) for word in sorted(means, key=len, reverse=True))
    if language == "en":
        number = "|".join((*NUMBERS, r"\d+"))
        size = "small|medium-sized|medium|large"
        pattern = rf"(?:\b({number})\s+)?(?:\b({size})\s+)?(?<![\w-])({words})(?![\w-])"
    else:
        number = "|".join((*CHINESE_NUMBERS, r"\d+"))
        pattern = rf"(?:({number})\s*[个处])?(较小的|中等大小的|较大的)?({words})"
    return re.compile(pattern), {word: tuple(meant) for word, meant in means.items()}


def _structures() -> tuple[str, ...]:
    sided = [f"{side} {name}" for name in STRUCTURES for side in _SIDES]
    lobes = [
        f"{lobe} lobe of the {side} lung"
        for lobe in ("upper", "middle", "lower")
        for side in _SIDES
    ]
    ribs = [f"{side} rib {number}" for number in range(1, 13) for side in _SIDES]
    spine = [f"vertebra {part}{n + 1}" for part, last in _SPINE.items() for n in range(last)]
    return (*STRUCTURES, *sided, *lobes, *ribs, *spine, NOT_AN_ORGAN)


def _take(low: str, kind: str, language: str, annotated: set[str]):
    """Find the terms of one vocabulary; return them and the text without them.

    A term is (term, number, size, the text before it).

    A word with two meanings (甲状腺 is "thyroid" and "thyroid gland") has the annotated one.
    """
    pattern, means = _spellings(kind, language)
    found = []
    for match in pattern.finditer(low):
        number, size, word = match.groups(default="")
        value = _number(number, language)
        meant = next((name for name in means[word] if name in annotated), means[word][0])
        found.append((meant, value, _size(size), low[: match.start()]))
    return found, pattern.sub(" # ", low)


def _number(word: str, language: str) -> str:
    if not word or word.isdecimal():
        return word
    return str((NUMBERS if language == "en" else CHINESE_NUMBERS).index(word))


def _size(word: str) -> str:
    chinese = {"较小的": "small", "中等大小的": "medium", "较大的": "large"}
    return chinese.get(word, word.removesuffix("-sized"))


def _sides(low: str, language: str) -> list[str]:
    if language == "zh":
        return [
            {"左": "left", "右": "right"}[word] for word in re.findall("([左右])(?:侧|半)", low)
        ]
    return re.findall(r"\b(left|right)\b(?!\s*#)", low)


def _severities(low: str, language: str) -> list[str]:
    return [name for name in SEVERITIES if _has(low, translate(name, language), language)]


def _sizes(low: str, language: str) -> list[str]:
    """Sizes that stand alone: "the nodule is small", 大小为小."""
    if language == "zh":
        words = {translate(name, "zh"): name for name in SIZES}
        return [words[word] for word in re.findall("(?:为|属于|是|：)(小|中等|大)(?=。|，|$)", low)]
    return [name for name in SIZES if re.search(rf"\b{name}\b", low)]


def _has(low: str, word: str, language: str) -> bool:
    return word in low if language == "zh" else re.search(rf"\b{word}\b", low) is not None


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
            stated = _has(text.lower(), words, language)
        if stated:
            planted.append((kind, text))
    return planted


def _changes(facts: tuple[Fact, ...], rng: Random):
    """Yield (kind, all facts, the changed ones) with one thing changed at a time."""
    organs = ("lung", "liver", "brain", "knee", "breast", "retina", "skin", "colon")
    choices = {"modality": MODALITIES[:-1], "organ": organs, "department": DEPARTMENTS[:-1]}
    choices |= {"side": _SIDES, "place": PLACES, "size": SIZES, "severity": SEVERITIES[:3]}
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
