"""Questions with known answers, built from held-out records by what their annotation holds.

    items = phantom_benchmark(records, seed=0, num_images=400)       # balanced, English + Chinese
    real = source_benchmarks(records)                                # {"vqa_rad": [...], ...}
    prior = phantom_benchmark(records, seed=0, num_images=400, split="train")  # majority answers

Questions and answers come from `dataset.writers`, in the brief form, one question at a time, so
that no question gives away the answer of another. Answers come from the annotation only. Records
of other splits may be passed along: they name the vocabulary, and an image that is also among
them raises.

Paper: section 4 (VQA-RAD and others), which reports neither boxes nor Chinese.
Departs: yes/no questions are half yes and half no for every label; the other kinds are drawn
evenly over their answers; Chinese items ask the same of a third of the same images.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from random import Random

from gmai_lib.dataset import writers
from gmai_lib.dataset.facts import extract
from gmai_lib.dataset.lexicon import NEGATIVE_LABELS, is_structure, translate
from gmai_lib.schema import MODALITIES, PLACES, Fact, Record

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


def phantom_benchmark(
    records: list[Record],
    *,
    seed: int,
    num_images: int,
    languages: tuple[str, ...] = ("en", "zh"),
    split: str = "test",
    most_per_kind: int | None = None,
) -> list[Item]:
    """Return the balanced benchmark of up to `num_images` phantom images of `split`.

    Images are drawn evenly over modality, organ and finding; per kind at most `most_per_kind`
    (default a third of `num_images`) questions in the first of `languages`. Each further language
    asks the same about every third image (of yes/no: every third pair of questions).
    """
    phantoms = [r for r in records if r.source.startswith("phantom_") and not r.qa]
    held_out = _held_out(phantoms, split)
    if not held_out:
        raise ValueError(f"no phantom image of split {split!r} among {len(records)} records")
    rng = Random(f"{seed}|phantom")
    chosen = _evenly(held_out, lambda r: (r.modality, r.organ, r.labels), num_images, rng)
    vocabulary = _Vocabulary(phantoms)
    drafts = [draft for record in chosen for draft in _drafts(record)]
    drafts += [d for record in chosen for d in _choice_draft(record, vocabulary, seed)]
    most = num_images // 3 if most_per_kind is None else most_per_kind
    drafts = _select(drafts, most, rng)
    third = {record.id for record in chosen[::3]}
    # Yes/no questions come in pairs about two images; a pair stays together in every language.
    pairs = [draft for draft in drafts if draft.kind == "yes/no"]
    repeated = {id(draft) for i, draft in enumerate(pairs) if i // 2 % 3 == 0}
    repeated |= {id(d) for d in drafts if d.kind != "yes/no" and d.record.id in third}
    items = []
    for number, language in enumerate(languages):
        asked = [draft for draft in drafts if number == 0 or id(draft) in repeated]
        items += [draft.item("phantom", language, vocabulary, seed) for draft in asked]
    return items


def source_benchmarks(
    records: list[Record],
    *,
    seed: int = 0,
    split: str = "test",
    languages: tuple[str, ...] = ("en",),
    most_per_kind: int = 150,
) -> dict[str, list[Item]]:
    """Return one benchmark per source of `split`, by what its records hold.

    Sources with question-answer pairs of their own are asked exactly those (no phrase is added),
    as "yes/no" or "open", with subsets by answer type and question type. Of the others: the
    finding in records for disease diagnosis, presence of every label (yes/no), counts, and
    location, side and box of what is not normal anatomy; modality and organ where they differ
    between images. Phantom sources come in only for their own question-answer pairs.
    """
    by_source = defaultdict(list)
    for record in records:
        by_source[record.source].append(record)
    everything = _Vocabulary(records)
    benchmarks = {}
    for source, same in sorted(by_source.items()):
        held_out = _held_out(same, split)
        if any(record.qa for record in held_out):
            items = [item for record in held_out for item in _qa_items(record)]
        elif source.startswith("phantom_"):
            continue
        else:
            vocabulary = _Vocabulary(same)
            if len(vocabulary.findings) < 2:  # one class: read the answer from all known findings
                vocabulary.findings = everything.findings
            drafts = _informative(held_out, vocabulary)
            drafts = _select(drafts, most_per_kind, Random(f"{seed}|{source}"))
            items = [d.item(source, lang, vocabulary, seed) for lang in languages for d in drafts]
        if items:
            benchmarks[source] = items
    return benchmarks


def _informative(records: list[Record], vocabulary: "_Vocabulary") -> list["_Draft"]:
    """Drafts worth asking of a real source: no constant modality, no place of normal anatomy."""
    kept = []
    for record in records:
        for draft in _drafts(record, name_labels=True):
            if draft.kind in ("modality", "organ"):
                useful = len(vocabulary.used(draft.kind)) > 1
            elif draft.kind == "finding":
                useful = record.task == "disease diagnosis"
            else:
                useful = draft.kind == "yes/no" or not is_structure(draft.about)
            kept += [draft] if useful else []
    return kept


def _held_out(records: list[Record], split: str) -> list[Record]:
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


def _group(record: Record) -> str:
    """Slices of one volume show the same thing; other images stand for themselves."""
    return f"{record.source}#{record.volume}" if record.volume else record.id


class _Vocabulary:
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
        fixed = {"modality": MODALITIES[:-1], "side": ("left", "right"), "location": PLACES}
        return list(fixed[kind]) if kind in fixed else sorted(self.used(kind))

    def used(self, kind: str) -> set[str]:
        """Values of modality, organ or finding that occur."""
        return {"modality": self.modalities, "organ": self.organs, "finding": self.findings}[kind]

    def distractors(self, draft: "_Draft") -> list[str]:
        """Wrong options; findings of the same organ and modality, so that the image decides."""
        if draft.kind == "finding":
            pool = self.of_organ[draft.record.modality, draft.record.organ]
        else:
            pool = set(PLACES) if draft.kind == "location" else self.used(draft.kind)
        return sorted(pool - {draft.fact.value})


@dataclass(frozen=True)
class _Draft:
    """A question that could be asked about a record, before wording and language."""

    record: Record
    kind: str
    fact: Fact
    about: str = ""  # label named in the question; "" = "the finding" or nothing
    choices: tuple[str, tuple[str, ...]] | None = None  # multiple choice: kind asked, options

    def item(self, benchmark: str, language: str, vocabulary: _Vocabulary, seed: int) -> Item:
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
            group=_group(record),
            modality=record.modality,
            source=record.source,
        )


def accepted_counts(count: int) -> tuple[str, ...]:
    """Return the numbers accepted for `count`: itself, or +-10 % where it is more than 10."""
    slack = int(count * COUNT_TOLERANCE) if count > EXACT_COUNT else 0
    return tuple(str(n) for n in range(count - slack, count + slack + 1))


def _drafts(record: Record, *, name_labels: bool = False) -> list[_Draft]:
    """Every question whose answer the annotation of `record` holds, but multiple choice.

    An image with one label is asked about "the finding", which gives nothing away, unless
    `name_labels`.
    """
    facts = extract(record)
    by_kind = defaultdict(list)
    for fact in facts:
        by_kind[fact.kind].append(fact)
    labels, boxes = by_kind["label"], by_kind["box"]
    drafts = [_Draft(record, kind, f) for kind in ("modality", "organ") for f in by_kind[kind]]
    if len(labels) == 1 and not is_structure(labels[0].value):
        drafts.append(_Draft(record, "finding", labels[0]))
    for fact in (*labels, *by_kind["absent"]):
        if fact.value not in NEGATIVE_LABELS:
            drafts.append(_Draft(record, "yes/no", fact, fact.value))
    for kind in ("side", "location", "count"):
        for fact in by_kind[_FACT_KIND.get(kind, kind)]:
            anonymous = len(labels) == 1 and not is_structure(fact.label) and not name_labels
            drafts.append(_Draft(record, kind, fact, "" if anonymous else fact.label))
    named = [box.label for box in boxes]
    return drafts + [_Draft(record, "box", b, b.label) for b in boxes if named.count(b.label) == 1]


def _choice_draft(record: Record, vocabulary: _Vocabulary, seed: int) -> list[_Draft]:
    """One four-option question on finding, organ, location or modality, or none."""
    rng = Random(f"{seed}|choice|{record.id}")
    drafts = [d for d in _drafts(record) if d.kind in ("finding", "organ", "location", "modality")]
    possible = [(d, vocabulary.distractors(d)) for d in drafts]
    possible = [(d, wrong) for d, wrong in possible if len(wrong) >= MOST_CHOICES - 1]
    if not possible:
        return []
    draft, wrong = rng.choice(possible)
    options = [*rng.sample(wrong, MOST_CHOICES - 1), draft.fact.value]
    rng.shuffle(options)
    chosen = (draft.kind, tuple(options))
    return [_Draft(record, "multiple choice", draft.fact, draft.about, chosen)]


def _select(drafts: list[_Draft], most: int, rng: Random) -> list[_Draft]:
    """At most `most` drafts per kind: yes/no in pairs per label, others evenly over answers."""
    selected = []
    for kind in KINDS:
        same = [draft for draft in drafts if draft.kind == kind]
        if kind == "yes/no":
            pairs = _yes_no_pairs(same, rng)
            kept = _evenly(pairs, lambda p: (p[0].record.modality, p[0].about), most // 2, rng)
            selected += [draft for pair in kept for draft in pair]
        elif kind in ("box", "multiple choice"):
            selected += _evenly(same, lambda d: d.record.modality, most, rng)
        elif kind == "finding":  # "no finding" is as frequent as a finding in every modality
            selected += _evenly(same, lambda d: (d.record.modality, d.fact.value), most, rng)
        else:
            selected += _evenly(same, lambda d: (d.about, d.fact.value), most, rng)
    return selected


def _yes_no_pairs(drafts: list[_Draft], rng: Random) -> list[tuple[_Draft, _Draft]]:
    """Pair a "yes" with a "no" about the same label, modality and source; drop the unpaired."""
    by_label = defaultdict(lambda: ([], []))
    for draft in drafts:
        key = (draft.record.source, draft.record.modality, draft.about)
        by_label[key][draft.fact.kind == "absent"].append(draft)
    pairs = []
    for _, (yes, no) in sorted(by_label.items()):
        rng.shuffle(yes)
        rng.shuffle(no)
        pairs += zip(yes, no, strict=False)
    return pairs


def _evenly(things: list, key, most: int, rng: Random) -> list:
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


def _qa_items(record: Record) -> list[Item]:
    """The source's own questions, unchanged but for white space."""
    items = []
    for number, qa in enumerate(record.qa):
        asked, said = " ".join(qa.question.split()), " ".join(qa.answer.split())
        if not asked or not said:
            continue  # curation counts these; there is nothing to ask or to compare with
        closed = said.lower().rstrip(".") in ("yes", "no") or said in ("是", "否", "有", "没有")
        types = [part.strip() for part in qa.question_type.split(",")]
        subsets = [f"question_type={part}" for part in types if part]
        subsets += [f"answer_type={qa.answer_type.lower()}"] if qa.answer_type else []
        items.append(
            Item(
                id=f"{record.source}#{record.id}#{number}#{qa.item}",
                benchmark=record.source,
                images=(record.image,),
                question=asked,
                answer=said,
                answers=(said,),
                kind="yes/no" if closed else "open",
                language=record.language,
                group=_group(record),
                modality=record.modality,
                source=record.source,
                subsets=tuple(subsets),
            )
        )
    return items
