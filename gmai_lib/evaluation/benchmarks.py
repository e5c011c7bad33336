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

from collections import defaultdict
from random import Random

from gmai_lib.dataset import writers
from gmai_lib.dataset.lexicon import is_structure
from gmai_lib.evaluation.items import (
    KINDS,
    Draft,
    Item,
    Vocabulary,
    choice_draft,
    drafts_of,
    evenly,
    group_of,
    held_out,
    person_of,
)
from gmai_lib.schema import Record


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
    shown = held_out(phantoms, split)
    if not shown:
        raise ValueError(f"no phantom image of split {split!r} among {len(records)} records")
    rng = Random(f"{seed}|phantom")
    chosen = evenly(shown, lambda r: (r.modality, r.organ, r.labels), num_images, rng)
    vocabulary = Vocabulary(phantoms)
    drafts = [draft for record in chosen for draft in drafts_of(record)]
    drafts += [d for record in chosen for d in choice_draft(record, vocabulary, seed)]
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

    Sources with question-answer pairs of their own are asked exactly those, as "yes/no" or
    "open", with subsets by answer type and question type; every one ends with "Answer briefly.",
    whatever its answer. Of the others: the
    finding in records for disease diagnosis, presence of every label (yes/no), counts, and
    location, side and box of what is not normal anatomy; modality and organ where they differ
    between images. Phantom sources come in only for their own question-answer pairs.
    """
    by_source = defaultdict(list)
    for record in records:
        by_source[record.source].append(record)
    everything = Vocabulary(records)
    benchmarks = {}
    for source, same in sorted(by_source.items()):
        shown = held_out(same, split)
        if any(record.qa for record in shown):
            items = [item for record in shown for item in _qa_items(record)]
        elif source.startswith("phantom_"):
            continue
        else:
            vocabulary = Vocabulary(same)
            if len(vocabulary.findings) < 2:  # one class: read the answer from all known findings
                vocabulary.findings = everything.findings
            drafts = _informative(shown, vocabulary)
            drafts = _select(drafts, most_per_kind, Random(f"{seed}|{source}"))
            items = [d.item(source, lang, vocabulary, seed) for lang in languages for d in drafts]
        if items:
            benchmarks[source] = items
    return benchmarks


def _informative(records: list[Record], vocabulary: "Vocabulary") -> list["Draft"]:
    """Drafts worth asking of a real source: no constant modality, no place of normal anatomy."""
    kept = []
    for record in records:
        for draft in drafts_of(record, name_labels=True):
            if draft.kind in ("modality", "organ"):
                useful = len(vocabulary.used(draft.kind)) > 1
            elif draft.kind == "finding":
                useful = record.task == "disease diagnosis"
            else:
                useful = draft.kind == "yes/no" or not is_structure(draft.about)
            kept += [draft] if useful else []
    return kept


def _select(drafts: list[Draft], most: int, rng: Random) -> list[Draft]:
    """At most `most` drafts per kind: yes/no in pairs per label, others evenly over answers."""
    selected = []
    for kind in KINDS:
        same = [draft for draft in drafts if draft.kind == kind]
        if kind == "yes/no":
            pairs = _yes_no_pairs(same, rng)
            kept = evenly(pairs, lambda p: (p[0].record.modality, p[0].about), most // 2, rng)
            selected += [draft for pair in kept for draft in pair]
        elif kind in ("box", "multiple choice"):
            selected += evenly(same, lambda d: d.record.modality, most, rng)
        elif kind == "finding":  # "no finding" is as frequent as a finding in every modality
            selected += evenly(same, lambda d: (d.record.modality, d.fact.value), most, rng)
        else:
            selected += evenly(same, lambda d: (d.about, d.fact.value), most, rng)
    return selected


def _yes_no_pairs(drafts: list[Draft], rng: Random) -> list[tuple[Draft, Draft]]:
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


def _qa_items(record: Record) -> list[Item]:
    """The source's own questions, unchanged but for white space and the wish for a brief answer."""
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
                question=writers.ask_briefly(asked, record.language),
                answer=said,
                answers=(said,),
                kind="yes/no" if closed else "open",
                language=record.language,
                group=group_of(record),
                modality=record.modality,
                source=record.source,
                subsets=(*subsets, *person_of(record)),
            )
        )
    return items
