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
    "en": re.compile(
        r"\bno (?:abnormal )?(?:findings?|abnormalit(?:y|ies)|lesions?)\b(?! #| without)"
    ),
    "zh": re.compile("(?:未见|无|没有)(?:明显)?异常"),
}

# What begins a question that takes for granted what it names, unless it offers a choice.
_OPEN = {
    "en": re.compile(r"^(?!.*\bor\b).*\b(?:where|which|what|how|why)\b"),
    "zh": re.compile("^(?!.*(?:还是|或|是否|有没有|有无|吗)).*(?:哪|什么|多少|几|如何|怎)"),
}
_TAG = re.compile(r"<box>.*?</box>|</?\w+>")
_YES = {"yes", "是", "是的", "有", "有的", "存在"}
_VERDICT = re.compile(r"(?:yes|no)\b|(?:是的?|有的?|存在|否|不是|没有|不存在|无)(?=$|[，。！,.! ])")
_COUNT = re.compile("(?i)how many|number of|count|[几多少]|数量")
_NUMBER_WORDS = {"en": NUMBERS, "zh": (*CHINESE_NUMBERS, "二")}
_FINDING = {"en": re.compile(r"\bfindings?\b|\babnormalit"), "zh": re.compile("异常|目标|病变")}
# All that may stand beside the thing that is asked for.
_PLAIN = {
    "en": re.compile(
        r"(?:[^\w#]|#|\b(?:is|are|was|were|does|do|did|can|could|be|has|have|this|that|these|it|the"
        r"|an?|any|images?|picture|scan|photo|study|modality|technique|organ|body|part|region|area"
        r"|imaged|imaging|shown|seen|visible|present|identified|detected|found|made|located"
        r"|acquired|produced|show|contain|include|depict|lie|see|say|you|we|one|there|in|of|on|by"
        r"|with|to|true|correct|here|how|many|much|what|where|which|number|count|name|state|size"
        r"|side|place|findings?|abnormalit(?:y|ies))\b)*"
    ),
    "zh": re.compile(
        "(?:[^\\w#]|#|大小|多少|[是否有吗不为这该幅张图像片中里的能可以见到看出现存在显示含包括由获得拍摄病变器官部"
        "位模态成像方式检查采用使用种几个处数量请一说何什么位置哪侧如任何异常目标于与在])*"
    ),
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
    the place of what it names. Judged are plain questions about one thing; whatever qualifies it
    ("larger than", "on the right", "calcified") makes the question one that is left alone. What
    the answer says by itself is `check`'s.
    """
    known, asked = _known(facts), _asked(question, language)
    clause, said = _parse(asked, language), _TAG.sub(" ", answer).strip().lower()
    if not _is_plain(asked, clause, language):
        return []
    terms = [(term, term.read(known.everything)) for term in clause.terms]
    if len(terms) > 1:  # "a nodule in this CT": of which image is no question
        terms = [(term, name) for term, name in terms if name not in known.settings]
    if len(terms) > 1:  # "the nodule in the upper left": only "yes" says all of it
        verdict = _VERDICT.match(said)
        return _judge(asked, known, language) if verdict and verdict[0] in _YES else []
    about = terms[0] if terms else None
    if verdict := _VERDICT.match(said):
        wrong = _wrong_verdict(asked, about, verdict[0] in _YES, known, language)
    elif number := re.fullmatch(rf"({'|'.join(_NUMBER_WORDS[language])}|\d+) ?[个处]?[.。]?", said):
        wrong = _wrong_count(asked, about, _number(number[1].replace("二", "两"), language), known)
    elif about and about[1] in known.labels:
        clause = _parse(said, language)
        named = any(term.kind == "thing" for term in clause.terms)
        wrong = [] if named else _wrong_values(clause, [about[1]], known)
    else:
        wrong = []
    return [Problem(kind, value, f"{asked} {answer}") for kind, value in wrong]


def _wrong_verdict(
    asked: str, about: "tuple[_Term, str] | None", yes: bool, known: "_Known", language: str
) -> list[tuple[str, str]]:
    """What is wrong with "yes" or "no" to the question whether there is such a thing."""
    healthy = known.values["label"] & NEGATIVE_LABELS
    if about is None or about[1] == "abnormality":
        if not _FINDING[language].search(asked.lower()):
            return []
        if yes:  # there is some finding
            return [] if known.findings else [("label", "finding")]
        return [] if healthy else [("label", NO_FINDING)]
    term, name = about
    if any(name != label and name in label for label in known.everything):
        return []  # "tumor", of a malignant tumor
    if yes:
        return _judge_term(term, name, known, [], region=False)
    if term.kind in ("modality", "department"):
        return [(term.kind, name)] if name in known.values[term.kind] else []
    if term.kind == "place":
        return []
    if is_structure(name) or name == NOT_AN_ORGAN:
        return [("absent", name)] if name in known.organs | known.labels else []
    return _judge_thing(replace(term, denied=True), name, known, region=False)


def _wrong_count(
    asked: str, about: "tuple[_Term, str] | None", number: str, known: "_Known"
) -> list[tuple[str, str]]:
    if not _COUNT.search(asked):
        return []
    name = about[1] if about else ""
    if not about and known.findings == set(known.counts) and len(known.counts) == 1:
        (name,) = known.counts  # "how many findings", of the only one
    return [("count", f"{number} {name}")] if known.counts.get(name, number) != number else []


def _wrong_values(clause: "_Clause", labels: list[str], known: "_Known") -> list[tuple[str, str]]:
    places = [t.read(known.everything) for t in clause.terms if t.kind == "place" and not t.denied]
    wrong = [("place", v) for v in places if not _holds(known.places, labels, v)]
    wrong += [("side", v) for v in clause.sides if not _holds(known.sides, labels, v)]
    return wrong + [("size", v) for v in clause.sizes if not _holds(known.sizes, labels, v)]


def check_turns(
    turns: Iterable[tuple[str, str]],
    facts: tuple[Fact, ...],
    language: str,
    *,
    quoted: Container[str | tuple[str, str]] = (),
) -> list[Problem]:
    """Return every problem of a conversation of (question, answer) turns.

    A report that stands before a question is checked like an answer. `quoted` are the source's own
    reports, and its own (question, answer) pairs: they are nobody's invention.
    """
    problems = []
    for asked, said in turns:
        told, _, question = asked.rpartition(f"\n{QUESTION_PREFIX[language]}")
        told = told.removeprefix(REPORT_PREFIX[language])
        if told not in quoted:
            problems += check(told, facts, language)
        if said not in quoted and (asked, said) not in quoted:
            problems += check_question(question, facts, language)
            # Once: a place may be wrong by itself and for the label that is asked about.
            own = check(said, facts, language)
            problems += own or check_answer(question, said, facts, language)
    return problems


def _asked(question: str, language: str) -> str:
    """The clause that asks."""
    question = _TAG.sub(" ", question).replace("有没有", "有")
    clauses = list(_clauses(question, language))
    asking = [clause for clause in clauses if clause.rstrip().endswith(("?", "？"))]
    return (asking or clauses or [""])[0]


def _is_plain(asked: str, clause: "_Clause", language: str) -> bool:
    """Whether nothing but function words stands beside the terms of the lexicon."""
    if clause.nothing or clause.region or any(t.denied or t.number or t.size for t in clause.terms):
        return False
    return _PLAIN[language].fullmatch(_without_terms(asked.lower(), language)) is not None


def _without_terms(low: str, language: str) -> str:
    for kind in ("department", "modality", "place", "thing"):
        low = _spellings(kind, language)[0].sub(" # ", low)
    return low


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
        self.settings = values["modality"] | values["department"] | self.organs
        self.findings = {v for v in self.labels - NEGATIVE_LABELS if not is_structure(v)}


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
    terms = []
    # Each vocabulary takes its terms out, so that "upper left" is no "left" and "OCT" no "CT".
    for kind in ("department", "modality", "place", "thing"):
        pattern, means = _spellings(kind, language)
        for match in pattern.finditer(low):
            number, size, word = match.groups(default="")
            denied = _DENIES_NEXT[language].search(low[: match.start()]) is not None
            number, size = _number(number, language), _size(size)
            terms.append(_Term(kind, means[word], number, size, denied))
        low = pattern.sub(" # ", low)
    # Only now: 未成熟粒细胞 (immature granulocyte) begins like a denial and is none.
    if _DENIES_ALL[language].search(low):
        terms = [replace(term, denied=True) for term in terms]
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
        wrong += _judge_term(term, said, known, labels, region=clause.region)
    wrong += [("side", s) for s in clause.sides if not _holds(known.sides, labels, s)]
    wrong += [("size", s) for s in clause.sizes if not _holds(known.sizes, labels, s)]
    wrong += [("severity", s) for s in clause.severities if s not in known.values["severity"]]
    return [Problem(kind, said, sentence) for kind, said in wrong]


def _judge_term(
    term: _Term, said: str, known: _Known, labels: list[str], *, region: bool
) -> list[tuple[str, str]]:
    """What is wrong with one term of a statement that names these labels."""
    if term.kind == "thing":
        return _judge_thing(term, said, known, region)
    if term.kind == "place":
        return [] if _holds(known.places, labels, said) else [("place", said)]
    return [] if said in known.values[term.kind] else [(term.kind, said)]


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
