"""Questions: what can be asked about a record, and one question with all that scoring it takes.

A `Draft` is a question before wording and language; `Draft.item` words it. `Vocabulary` knows the
closed sets that answers are read from. `benchmarks` and `builder` choose among drafts.
"""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gmai_lib.dataset import writers
from gmai_lib.dataset.facts import extract
from gmai_lib.dataset.lexicon import NEGATIVE_LABELS, is_structure, translate
from gmai_lib.outputs import atomic
from gmai_lib.schema import IMAGE_MODALITIES, PLACES, Fact, Record

KINDS = (
    "modality", "organ", "finding", "yes/no", "side", "location", "count", "box",
    "multiple choice", "open",
)  # fmt: skip
EXACT_COUNT = 10  # up to here a count must be exact
COUNT_TOLERANCE = 0.1  # beyond, this relative error is accepted
MOST_CHOICES = 4
_CLOSED_KINDS = frozenset(KINDS) - {"yes/no", "count", "box", "open"}  # need `options`
_FACT_KIND = {"finding": "label", "location": "place"}  # the others are named alike


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question about one or more images, with everything needed to score it."""

    id: str  # unique over all benchmarks
    benchmark: str
    images: tuple[bytes, ...]  # encoded; the question does not mention them
    question: str
    answer: str  # the reference; a capital letter for multiple choice
    answers: tuple[str, ...] = ()  # everything that is accepted; () = only `answer`
    kind: str
    language: str
    options: tuple[str, ...] = ()  # the closed set an answer is read from; by letter order
    group: str  # items of one group are not independent: the volume, or the image
    modality: str
    source: str
    subsets: tuple[str, ...] = ()  # further rows this item counts in, "question_type=PRES"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"item {self.id}: kind {self.kind!r} is not one of {KINDS}")
        if "<image>" in self.question or not self.question or not self.answer:
            raise ValueError(
                f"item {self.id}: question {self.question!r} and answer {self.answer!r} must not "
                "be empty nor hold <image>"
            )
        if self.kind in _CLOSED_KINDS and not self.options:
            raise ValueError(f"item {self.id}: kind {self.kind!r} needs options")


def question_ids_sha256(items: list[Item]) -> str:
    """Return the digest of the sorted item ids: equal digests mean the same questions."""
    return hashlib.sha256("\n".join(sorted(item.id for item in items)).encode()).hexdigest()


def write_items(items: list[Item], path: Path) -> Path:
    """Write the questions as JSON lines, without their images; return `path`."""
    with atomic(Path(path)) as partial, partial.open("w", encoding="utf-8") as file:
        for item in items:
            row = {k: v for k, v in vars(item).items() if k != "images"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return Path(path)


def held_out(records: list[Record], split: str) -> list[Record]:
    """Records of `split` with an image; ValueError if such an image is in another split too."""
    chosen = [r for r in records if r.split == split and r.image is not None]
    others = {r.digest: r for r in records if r.split not in (split, "") and r.image is not None}
    for record in chosen:
        if other := others.get(record.digest):
            raise ValueError(
                f"{record.id} is in split {split!r}, but the same image is {other.id} in split "
                f"{other.split!r}: assign the splits anew (dataset.curate)"
            )
    return sorted(chosen, key=lambda r: r.id)


def group_of(record: Record) -> str:
    """Slices of one volume show the same thing; other images stand for themselves."""
    return f"{record.source}#{record.volume}" if record.volume else record.id


def person_of(record: Record) -> tuple[str, ...]:
    """The further rows an item counts in for the person shown: "sex=female", "age=65+"."""
    said = (("sex", record.sex), ("age", record.age_group))
    return tuple(f"{name}={value}" for name, value in said if value)


class Vocabulary:
    """The closed sets that answers are read from: every value that the records use."""

    def __init__(self, records: list[Record]):
        self.modalities, self.organs, self.findings = set(), set(), set()
        self.of_organ = defaultdict(set)  # (modality, organ) -> findings named there
        for record in records:
            facts = extract(record)
            self.modalities |= {f.value for f in facts if f.kind == "modality"}
            self.organs |= {f.value for f in facts if f.kind == "organ"}
            labels = {f.value for f in facts if f.kind in ("label", "absent")}
            findings = {label for label in labels if not is_structure(label)}
            self.findings |= findings
            self.of_organ[record.modality, record.organ] |= findings

    def options(self, kind: str) -> list[str]:
        """English names in a fixed order; all the paper's modalities, not only those used."""
        fixed = {"modality": IMAGE_MODALITIES, "side": ("left", "right"), "location": PLACES}
        return list(fixed[kind]) if kind in fixed else sorted(self.used(kind))

    def used(self, kind: str) -> set[str]:
        """Values of modality, organ or finding that occur."""
        return {"modality": self.modalities, "organ": self.organs, "finding": self.findings}[kind]

    def distractors(self, draft: "Draft") -> list[str]:
        """Wrong options; findings of the same organ and modality, so that the image decides."""
        if draft.kind == "finding":
            pool = self.of_organ[draft.record.modality, draft.record.organ]
        else:
            pool = set(PLACES) if draft.kind == "location" else self.used(draft.kind)
        return sorted(pool - {draft.fact.value})


@dataclass(frozen=True)
class Draft:
    """A question that could be asked about a record, before wording and language."""

    record: Record
    kind: str
    fact: Fact
    about: str = ""  # label named in the question; "" = "the finding" or nothing
    choices: tuple[str, tuple[str, ...]] | None = None  # multiple choice: kind asked, options

    def item(self, benchmark: str, language: str, vocabulary: Vocabulary, seed: int) -> Item:
        record = self.record
        identifier = "#".join((benchmark, language, self.kind, self.about, record.id))
        rng = Random(f"{seed}|{identifier}")
        asked_kind = self.choices[0] if self.choices else self.kind
        brief = not self.choices
        text = writers.question(asked_kind, language, label=self.about, rng=rng, brief=brief)
        if self.kind == "yes/no":
            said, accepted, options = writers.answer("present", self.fact, language), (), ()
        elif self.kind == "count":
            said, accepted, options = self.fact.value, accepted_counts(int(self.fact.value)), ()
        elif self.kind == "box":
            said, accepted, options = writers.answer("box", self.fact, language), (), ()
        else:
            names = self.choices[1] if self.choices else vocabulary.options(self.kind)
            # Two names may share one translation; the set is what a reader can tell apart.
            options = tuple(dict.fromkeys(translate(name, language) for name in names))
            said, accepted = translate(self.fact.value, language), ()
            if self.choices:
                # The text of an option: to name its letter is a skill the mini model lacks.
                text = writers.choices(text, list(options), language, by_letter=False)
                said = "ABCDEFGH"[options.index(said)]
        return Item(
            id=identifier,
            benchmark=benchmark,
            images=(record.image,),
            question=text,
            answer=said,
            answers=accepted or (said,),
            kind=self.kind,
            language=language,
            options=options,
            group=group_of(record),
            modality=record.modality,
            source=record.source,
            subsets=person_of(record),
        )


def accepted_counts(count: int) -> tuple[str, ...]:
    """Return the numbers accepted for `count`: itself, or +-10 % where it is more than 10."""
    slack = int(count * COUNT_TOLERANCE) if count > EXACT_COUNT else 0
    return tuple(str(n) for n in range(count - slack, count + slack + 1))


def drafts_of(record: Record, *, name_labels: bool = False) -> list[Draft]:
    """Every question whose answer the annotation of `record` holds, but multiple choice.

    An image with one label is asked about "the finding", which gives nothing away, unless
    `name_labels`.
    """
    facts = extract(record)
    by_kind = defaultdict(list)
    for fact in facts:
        by_kind[fact.kind].append(fact)
    labels, boxes = by_kind["label"], by_kind["box"]
    drafts = [Draft(record, kind, f) for kind in ("modality", "organ") for f in by_kind[kind]]
    if len(labels) == 1 and not is_structure(labels[0].value):
        drafts.append(Draft(record, "finding", labels[0]))
    for fact in (*labels, *by_kind["absent"]):
        if fact.value not in NEGATIVE_LABELS:
            drafts.append(Draft(record, "yes/no", fact, fact.value))
    for kind in ("side", "location", "count"):
        for fact in by_kind[_FACT_KIND.get(kind, kind)]:
            anonymous = len(labels) == 1 and not is_structure(fact.label) and not name_labels
            drafts.append(Draft(record, kind, fact, "" if anonymous else fact.label))
    named = [box.label for box in boxes]
    return drafts + [Draft(record, "box", b, b.label) for b in boxes if named.count(b.label) == 1]


def choice_draft(record: Record, vocabulary: Vocabulary, seed: int) -> list[Draft]:
    """One four-option question on finding, organ, location or modality, or none."""
    rng = Random(f"{seed}|choice|{record.id}")
    drafts = [
        d for d in drafts_of(record) if d.kind in ("finding", "organ", "location", "modality")
    ]
    possible = [(d, vocabulary.distractors(d)) for d in drafts]
    possible = [(d, wrong) for d, wrong in possible if len(wrong) >= MOST_CHOICES - 1]
    if not possible:
        return []
    draft, wrong = rng.choice(possible)
    options = [*rng.sample(wrong, MOST_CHOICES - 1), draft.fact.value]
    rng.shuffle(options)
    chosen = (draft.kind, tuple(options))
    return [Draft(record, "multiple choice", draft.fact, draft.about, chosen)]


def evenly(things: list, key, most: int, rng: Random) -> list:
    """Draw up to `most`, one of each key in turn, in random order within a key."""
    by_key = defaultdict(list)
    for thing in things:
        by_key[key(thing)].append(thing)
    for same in by_key.values():
        rng.shuffle(same)
    # A random order of keys per round: which keys get one more does not follow the alphabet.
    ranked = [(i, rng.random(), thing) for same in by_key.values() for i, thing in enumerate(same)]
    ranked.sort(key=lambda entry: entry[:2])
    return [thing for _, _, thing in ranked[:most]]
