"""The fidelity gate: whatever a writer says about an image is checked against its facts.

    for problem in check("A mass in the left lung.", facts, "en"): print(problem)
    problems = check_turns([("How many nodules are there?", "3")], facts, "en")

The checker reads text, not templates: it finds the terms of the lexicon in every sentence and asks
whether a fact says so. It catches another modality, organ, department, side, place, count, size or
severity than annotated, a finding that the annotation does not name, and a finding said to be
absent that is there (or the other way round). What it does not know it cannot check: a disease
outside the lexicon, or a cause ("due to"), passes unseen.

Paper: section 3.1, step 5 ties text to the annotation and checks 30 pairs of a source by hand.
"""

import re
from collections.abc import Container, Iterable
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
    PART_OF,
    STRUCTURES,
    is_structure,
    one,
    plural,
    translate,
)
from gmai_lib.dataset.phrases import QUESTION_PREFIX, REPORT_PREFIX
from gmai_lib.schema import (
    DEPARTMENTS,
    IMAGE_MODALITIES,
    LANGUAGES,
    NO_FINDING,
    PLACES,
    SIZES,
    Fact,
)

SEVERITIES = ("mild", "moderate", "severe", "proliferative")
KINDS = (
    "modality", "organ", "department", "label", "absent", "side", "place", "count", "size",
    "severity",
)  # fmt: skip
_WORDS = {"yes", "no", "finding", "left", "right"}  # of the lexicon that are no terms by themselves
_NOT_A_FINDING = {
    NOT_AN_ORGAN,
    *IMAGE_MODALITIES,
    "text",
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

# What begins a question that takes for granted what it names, unless it offers a choice.
_OPEN = {
    "en": re.compile(r"^(?!.*\bor\b).*\b(?:where|which|what|how|why)\b"),
    "zh": re.compile("^(?!.*(?:还是|或|是否|有没有|有无|吗)).*(?:哪|什么|多少|几|如何|怎)"),
}
_TAG = re.compile(r"<box>.*?</box>|</?\w+>")
_YES, _NO = {"yes", "是", "有"}, {"no", "否", "不是", "没有", "无"}
_CHOICE = re.compile(r"\bor\b|还是|或")
_COUNT = re.compile("(?i)how many|number of|count|[几多少]|数量")
_FINDING = {
    "en": re.compile(r"\b(?:findings?|abnormalit(?:y|ies))\b"),
    "zh": re.compile("异常"),
}
_NO_FINDING = {
    "en": re.compile(r"\b(?:no|not|without|free of|clear of)\b"),
    "zh": re.compile("未|没有|看不到|无"),
}
_REGION = re.compile("\\bthis region\\b|该区域")


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
    text = _TAG.sub(" ", text)
    known = _known(facts)
    problems = []
    for clause in _clauses(text, language):
        problems += _judge(clause, known, language)
    return problems


def check_question(question: str, facts: tuple[Fact, ...], language: str) -> list[Problem]:
    """Return the findings that a question takes for granted although no fact names them.

    "Where is the nodule?" takes a nodule for granted; "Is there a nodule?" and "A nodule or a
    cyst?" do not. Only findings are judged: to ask about another organ or side is no claim.
    """
    known, problems = _known(facts), []
    for clause in _clauses(question, language):
        if _OPEN[language].search(clause.lower()):
            problems += [
                Problem("label", said, clause)
                for term in _parse(clause, language).terms
                for said in [term.read(known.everything)]
                if term.kind == "thing" and not term.denied and not is_structure(said)
                if said not in known.labels and said != NOT_AN_ORGAN
            ]
    return problems


def check_answer(question: str, answer: str, facts: tuple[Fact, ...], language: str):
    """Return the problems of a bare answer that only show beside its question.

    "yes" and "no" say what the question asks, a number counts what it names, and "upper left" is
    the place of what it names. Whatever the answer says by itself is `check`'s.
    """
    known, bare = _known(facts), _TAG.sub(" ", answer).strip().rstrip(".。").lower()
    asked = _asked(question, language)
    clause = _parse(asked, language)
    things = [t for t in clause.terms if t.kind == "thing"]
    if bare in _YES | _NO:
        if _CHOICE.search(asked.lower()):
            return []
        if (any_problem := _any_finding(asked, clause, bare in _YES, known, language)) is not None:
            return any_problem
        return _judge(asked, known, language) if bare in _YES else _denied(asked, clause, known)
    labels = [
        label for t in things for label in [t.read(known.everything)] if label in known.labels
    ]
    if (number := _bare_number(bare, language)) is not None:
        if not things and len(known.counts) == 1:  # "how many findings"
            labels = list(known.counts)
        counted = len(labels) == 1 >= len(things) and not clause.region and _COUNT.search(asked)
        wrong = counted and known.counts.get(labels[0]) not in (None, number)
        return [Problem("count", f"{number} {labels[0]}", asked)] if wrong else []
    said = _parse(_TAG.sub(" ", answer), language)
    if not labels or any(term.kind == "thing" for term in said.terms):
        return []
    places = [t.read(known.everything) for t in said.terms if t.kind == "place" and not t.denied]
    wrong = [("place", v) for v in places if not _holds(known.places, labels, v)]
    wrong += [("side", v) for v in said.sides if not _holds(known.sides, labels, v)]
    wrong += [("size", v) for v in said.sizes if not _holds(known.sizes, labels, v)]
    return [Problem(kind, value, f"{asked} {answer}") for kind, value in wrong]


def check_turns(
    turns: Iterable[tuple[str, str]],
    facts: tuple[Fact, ...],
    language: str,
    *,
    quoted: Container[str] = (),
) -> list[Problem]:
    """Return every problem of a conversation of (question, answer) turns.

    A report that stands before a question is checked like an answer. `quoted` are the source's own
    reports and answers: they, and questions with such an answer, are nobody's invention.
    """
    problems = []
    for asked, said in turns:
        told, _, question = asked.rpartition(f"\n{QUESTION_PREFIX[language]}")
        told = told.removeprefix(REPORT_PREFIX[language])
        if told not in quoted:
            problems += check(told, facts, language)
        if said not in quoted:
            problems += check_question(question, facts, language)
            # Once: a place may be wrong by itself and for the label that is asked about.
            own = check(said, facts, language)
            problems += own or check_answer(question, said, facts, language)
    return problems


def _asked(question: str, language: str) -> str:
    """The clause that asks."""
    question = _TAG.sub(" ", question).replace("有没有", "有").replace("有无", "有")
    clauses = list(_clauses(question, language))
    asking = [clause for clause in clauses if clause.rstrip().endswith(("?", "？"))]
    return (asking or clauses or [""])[0]


def _any_finding(
    asked: str, clause: "_Clause", yes: bool, known: "_Known", language: str
) -> list[Problem] | None:
    """What is wrong with an answer to "is there any finding?"; None if that is not asked."""
    named = {term.meanings[0] for term in clause.terms} - {"abnormality"}
    if named or not _FINDING[language].search(asked.lower()):
        return None
    denies = _NO_FINDING[language].search(asked.lower()) is not None
    if yes != denies:  # there is one
        found = {label for label in known.labels - NEGATIVE_LABELS if not is_structure(label)}
        return [] if found else [Problem("label", "finding", asked)]
    healthy = known.values["label"] & NEGATIVE_LABELS
    return [] if healthy else [Problem("label", NO_FINDING, asked)]


def _denied(asked: str, clause: "_Clause", known: "_Known") -> list[Problem]:
    """What is wrong with "no": what is asked is so, or nobody looked for it."""
    if len(clause.terms) != 1 or clause.terms[0].denied:
        return []
    (term,) = clause.terms
    said = term.read(known.everything)
    if term.kind in ("modality", "department"):
        wrong = said in known.values[term.kind]
    elif term.kind == "place":
        wrong = False
    elif is_structure(said) or said == NOT_AN_ORGAN:
        wrong = said in known.organs | known.labels
    else:
        wrong = bool(_judge_thing(replace(term, denied=True), said, known, clause.region))
    kind = "absent" if term.kind == "thing" else term.kind
    return [Problem(kind, said, asked)] if wrong else []


def _bare_number(bare: str, language: str) -> str | None:
    words = NUMBERS if language == "en" else CHINESE_NUMBERS
    return _number(bare, language) if bare.isdecimal() or bare in words else None


def claims(text: str, language: str) -> frozenset[tuple[str, str, bool]]:
    """Return what a text says as (kind, value, denied), whether or not any annotation says so."""
    said = set()
    for clause in _clauses(text, language):
        parsed = _parse(clause, language)
        said |= {(term.kind, term.meanings[0], term.denied) for term in parsed.terms}
        said |= {("count", f"{t.number} {t.meanings[0]}", False) for t in parsed.terms if t.number}
        said |= {("side", side, False) for side in parsed.sides}
        said |= {("severity", severity, False) for severity in parsed.severities}
        said |= {("label", NO_FINDING, False)} if parsed.nothing else set()
    return frozenset(said)


def _clauses(text: str, language: str) -> Iterable[str]:
    return filter(str.strip, _CLAUSE[language].split(text))


class _Known:
    """What the facts allow a sentence to say."""

    def __init__(self, facts: tuple[Fact, ...]):
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
        self.organs = values["organ"] | {p for o in values["organ"] for p in PART_OF.get(o, ())}


_known = lru_cache(maxsize=8)(_Known)  # question and answer of every sample of a record ask for it


@dataclass(frozen=True)
class _Term:
    """A word of the lexicon in a clause."""

    kind: str  # department, modality, place or thing (a finding or a structure)
    meanings: tuple[str, ...]  # 甲状腺 is "thyroid" and "thyroid gland"
    number: str  # "two nodules": "2"
    size: str  # "a small nodule": "small"
    denied: bool

    def read(self, annotated: set[str]) -> str:
        """The meaning that is annotated, else the first."""
        return next((name for name in self.meanings if name in annotated), self.meanings[0])


@dataclass(frozen=True)
class _Clause:
    """What one clause says, whatever the facts are."""

    terms: tuple[_Term, ...]
    sides: tuple[str, ...]
    severities: tuple[str, ...]
    sizes: tuple[str, ...]
    nothing: bool  # "no finding"
    region: bool  # "this region shows one nodule" counts no others


@lru_cache(maxsize=2**16)  # a writer says most clauses many times
def _parse(clause: str, language: str) -> _Clause:
    # 说出 + 血小板: "name" + "platelet", no 出血 (bleeding)
    low = clause.lower() if language == "en" else re.sub("(?<=[说别])出", "", clause)
    nothing = _NOTHING[language].search(low) is not None
    low = _NOTHING[language].sub("#", low)
    region = _REGION.search(low) is not None
    all_denied = _DENIES_ALL[language].search(low) is not None
    terms = []
    # Each vocabulary takes its terms out, so that "upper left" is no "left" and "OCT" no "CT".
    for kind in ("department", "modality", "place", "thing"):
        pattern, means = _spellings(kind, language)
        for match in pattern.finditer(low):
            number, size, word = match.groups(default="")
            denied = all_denied or _DENIES_NEXT[language].search(low[: match.start()]) is not None
            number, size = _number(number, language), _size(size)
            terms.append(_Term(kind, means[word], number, size, denied))
        low = pattern.sub(" # ", low)
    return _Clause(
        terms=tuple(terms),
        sides=tuple(_sides(low, language)),
        severities=tuple(_severities(low, language)),
        sizes=tuple(_sizes(low, language)),
        nothing=nothing,
        region=region,
    )


def _judge(sentence: str, known: _Known, language: str) -> list[Problem]:
    clause = _parse(sentence, language)
    wrong: list[tuple[str, str]] = []
    if clause.nothing and not known.values["label"] & NEGATIVE_LABELS:
        wrong.append(("label", "no finding"))
    terms = [(term, term.read(known.everything)) for term in clause.terms]
    labels = [said for term, said in terms if term.kind == "thing" and said in known.labels]
    for term, said in terms:
        if term.kind in ("department", "modality") and said not in known.values[term.kind]:
            wrong.append((term.kind, said))
        elif term.kind == "place" and not _holds(known.places, labels, said):
            wrong.append(("place", said))
        elif term.kind == "thing":
            wrong += _judge_thing(term, said, known, clause.region)
    wrong += [("side", s) for s in clause.sides if not _holds(known.sides, labels, s)]
    wrong += [("size", s) for s in clause.sizes if not _holds(known.sizes, labels, s)]
    wrong += [("severity", s) for s in clause.severities if s not in known.values["severity"]]
    return [Problem(kind, said, sentence) for kind, said in wrong]


def _judge_thing(term: _Term, said: str, known: _Known, region: bool) -> list[tuple[str, str]]:
    """What is wrong with naming a finding or a structure."""
    if is_structure(said) or said == NOT_AN_ORGAN:
        if said not in known.organs | known.labels | known.values["absent"]:
            return [("organ", said)]
        return [("absent", said)] if term.denied and said in known.labels else []
    if term.denied:
        no_tumor = said == "tumor" and known.values["label"] & NEGATIVE_LABELS
        return [] if said in known.values["absent"] or no_tumor else [("absent", said)]
    if said not in known.labels:
        return [("label", said)]
    wrong = []
    alone = term.number == "1" and region
    if term.number and known.counts.get(said) != term.number and not alone:
        wrong.append(("count", f"{term.number} {said}"))
    if term.size and (said, term.size) not in known.sizes:
        wrong.append(("size", f"{term.size} {said}"))
    return wrong


def _holds(pairs: set, labels: list[str], value: str) -> bool:
    """Whether one of the named labels has the value; without a name, whether any label has it."""
    return any(v == value and (not labels or label in labels) for label, v in pairs)


@lru_cache
def _spellings(kind: str, language: str) -> tuple[re.Pattern, dict[str, tuple[str, ...]]]:
    """A pattern of all spellings of a vocabulary, the longest first, and what each may mean."""
    names = {
        "department": DEPARTMENTS[:-1],
        "modality": IMAGE_MODALITIES,
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
            stated = _has(text.lower(), words, language)
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
