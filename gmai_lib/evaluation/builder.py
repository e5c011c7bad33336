"""New benchmarks from records that no training has seen: multiple choice, open questions, boxes.

    made = build(records, seed=0, per_leaf=20)      # records of the split "test"
    for path, items in cut(made.items, "department", "task").items(): ...
    kept, lost = without_guessable(made.items, blind)   # what a model knows without the image
    vlmeval_tsv(kept, out / "made.tsv"); lmms_eval_task(kept, "made", out / "made")

Every item lies in a tree of modality x department x clinical task x granularity (image or box),
which `cut` reads along any axis. Wrong options come from the same organ and modality, then from
the same modality, so that the image has to be looked at; the right one is as often A as B, C or D.

Paper: its third contribution names new benchmarks and does not say how they are made; the axes
are those of GMAI-MMBench.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from gmai_lib.dataset import writers
from gmai_lib.dataset.facts import extract
from gmai_lib.dataset.lexicon import PART_OF, translate
from gmai_lib.evaluation.items import (
    MOST_CHOICES,
    Draft,
    Item,
    Vocabulary,
    drafts_of,
    evenly,
    held_out,
    question_ids_sha256,
    write_items,
)
from gmai_lib.evaluation.scoring import score
from gmai_lib.outputs import atomic, write_json
from gmai_lib.schema import Record

AXES = ("modality", "department", "task", "granularity")
LETTERS = "ABCDEFGH"
_CHOICE_KINDS = ("finding", "organ", "modality", "location")
_BOX_KINDS = ("location", "side", "box")  # what a box, and not the whole image, answers


@dataclass(frozen=True)
class Made:
    """A benchmark and, for every question that could not be asked, the reason."""

    items: list[Item]
    dropped: Counter


def build(
    records: list[Record],
    *,
    name: str = "made",
    seed: int = 0,
    split: str = "test",
    per_leaf: int = 20,
    language: str = "en",
) -> Made:
    """Return up to `per_leaf` items of each form (choice, open, box) for every leaf of the tree.

    Raises ValueError without a record of `split`, or if one of its images is in another split.
    Records of other splits only widen the pool of wrong options.
    """
    shown = [r for r in held_out(records, split) if not r.qa]
    if not shown:
        raise ValueError(f"no annotated image of split {split!r} among {len(records)} records")
    if per_leaf < 1:
        raise ValueError(f"per_leaf {per_leaf} is not positive")
    rng, dropped = Random(f"{seed}|{name}"), Counter()
    vocabulary, findings = Vocabulary(records), defaultdict(set)
    for (modality, _), named in vocabulary.of_organ.items():
        findings[modality] |= named
    forms = {"choice": [], "open": [], "box": []}
    for record in shown:
        for draft in drafts_of(record, name_labels=True):
            if draft.kind == "box":
                forms["box"].append(draft)
            elif draft.kind in _CHOICE_KINDS:
                options = _options(draft, vocabulary, findings, rng, language)
                if options is None:
                    dropped[f"{draft.kind}: too few wrong options"] += 1
                else:
                    choices = (draft.kind, options)
                    more = {"kind": "multiple choice", "choices": choices}
                    forms["choice"].append(replace(draft, **more))
            if draft.kind in ("finding", "side", "count"):
                forms["open"].append(draft)
    items = []
    for same in forms.values():
        by_leaf = defaultdict(list)
        for draft in same:
            by_leaf[_leaf(draft)].append(draft)
        for leaf in sorted(by_leaf):
            chosen = evenly(by_leaf[leaf], lambda d: (d.kind, d.fact.value), per_leaf, rng)
            dropped["more than its leaf takes"] += len(by_leaf[leaf]) - len(chosen)
            named = tuple(f"{axis}={value}" for axis, value in zip(AXES, leaf, strict=True))
            for draft in chosen:
                item = draft.item(name, language, vocabulary, seed)
                if draft.choices:  # one image may be asked for its finding, organ and modality
                    asked = f"#{draft.kind}: {draft.choices[0]}#"
                    item = replace(item, id=item.id.replace(f"#{draft.kind}#", asked, 1))
                items.append(replace(item, subsets=(*named, *item.subsets)))
    return Made(_balanced(items, rng), +dropped)


def cut(items: Iterable[Item], *axes: str) -> dict[tuple[str, ...], list[Item]]:
    """Return the items by their values along `axes` of AXES, in that order; a tree's level."""
    if unknown := set(axes) - set(AXES):
        raise ValueError(f"no axis {sorted(unknown)}; the axes are {AXES}")
    parts = defaultdict(list)
    for item in items:
        said = dict(subset.split("=", 1) for subset in item.subsets)
        parts[tuple(said[axis] for axis in axes)].append(item)
    return dict(sorted(parts.items()))


def without_guessable(
    items: list[Item], answer: Callable[[list[Item]], list[str]], *, orders: int = 2
) -> tuple[list[Item], list[Item]]:
    """Return (items kept, items that can be answered without their image).

    `answer` gets the items without images and returns one text each; a model that was never shown
    an image, or the trained one with nothing to look at. A multiple-choice item goes if it is
    answered right under each of `orders` rotations of its options: once may be luck. Other kinds
    stay: a model that always says "left" is no reason to ask for the right side only.
    """
    right = [item.kind == "multiple choice" for item in items]
    for turn in range(orders):
        turned = [replace(_rotated(item, turn), images=()) for item in items]
        said = answer(turned)
        if len(said) != len(items):
            raise ValueError(f"{len(said)} answers to {len(items)} items")
        for place, (item, text) in enumerate(zip(turned, said, strict=True)):
            right[place] = right[place] and bool(score(item, text)["correct"])
    kept = [item for item, known in zip(items, right, strict=True) if not known]
    return kept, [item for item, known in zip(items, right, strict=True) if known]


def lmms_eval_task(items: list[Item], name: str, folder: Path) -> Path:
    """Write the multiple-choice items as a task of lmms-eval; return the folder.

    `<name>.yaml`, `utils.py` and `test.parquet`, which holds the images, so that
    `lmms_eval --include_path <folder> --tasks <name>` needs nothing else.
    Source: lmms-eval's task guide (docs/task_guide.md).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    rows = [_row(item) for item in items if item.kind == "multiple choice"]
    if not rows:
        raise ValueError(f"{name}: no multiple-choice item to write")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "test.parquet") as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)
    task = {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str((folder / "test.parquet").resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "generation_kwargs": {"max_new_tokens": 16, "temperature": 0, "do_sample": False},
        "metric_list": [{"metric": "accuracy", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    functions = ("doc_to_visual", "doc_to_text", "doc_to_target", "process_results")
    lines = [f"{name}: !function utils.{name}" for name in functions]
    text = yaml.safe_dump(task, sort_keys=False) + "\n".join(lines) + "\n"
    with atomic(folder / f"{name}.yaml") as partial:
        partial.write_text(text, "utf-8")
    with atomic(folder / "utils.py") as partial:
        partial.write_text(_UTILS, "utf-8")
    return folder


_UTILS = '''"""Functions of an lmms-eval task made by gmai_lib.evaluation.builder."""

import io
import re

from PIL import Image


def doc_to_visual(doc):
    return [Image.open(io.BytesIO(doc["image"]["bytes"])).convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]  # with its options, as gmai_lib asks it


def doc_to_target(doc):
    return doc["answer"]


def process_results(doc, results):
    """One letter that stands alone, or the text of exactly one option; else wrong."""
    said = results[0].strip()
    letters = set(re.findall(r"(?<![A-Za-z])([A-H])(?![A-Za-z])", said))
    if len(letters) != 1:
        texts = [text.lower() for text in doc["options"]]
        named = [n for n, text in enumerate(texts) if text == said.lower().rstrip(".")]
        letters = {"ABCDEFGH"[named[0]]} if len(named) == 1 else set()
    return {"accuracy": float(letters == {doc["answer"]})}
'''


def _row(item: Item) -> dict:
    return {
        "id": item.id,
        "image": {"bytes": item.images[0], "path": None},
        "question": item.question,
        "options": list(item.options),
        "answer": item.answer,
    } | dict(subset.split("=", 1) for subset in item.subsets)


def _leaf(draft: Draft) -> tuple[str, ...]:
    asked = draft.choices[0] if draft.choices else draft.kind
    granularity = "box" if asked in _BOX_KINDS else "image"
    record = draft.record
    return record.modality, record.department, record.task, granularity


def _options(draft: Draft, vocabulary, findings, rng, language) -> tuple[str, ...] | None:
    """The right option and the hardest wrong ones; None where there are too few.

    No option may be true of the image, nor read like another one in the language.
    """
    facts = extract(draft.record)
    true = {f.value for f in facts if f.kind in (draft.fact.kind, "label")}
    true |= {whole for part in true for whole in PART_OF.get(part, ())}
    true |= {part for part, wholes in PART_OF.items() if true & set(wholes)}
    near = [v for v in vocabulary.distractors(draft) if v not in true]
    far = []
    if draft.kind == "finding":
        far = sorted(findings[draft.record.modality] - set(near) - true)
    rng.shuffle(near)
    rng.shuffle(far)
    options, read = [draft.fact.value], {translate(draft.fact.value, language)}
    for value in near + far:
        if translate(value, language) not in read and len(options) < MOST_CHOICES:
            options.append(value)
            read.add(translate(value, language))
    return tuple(options) if len(options) == MOST_CHOICES else None


def _balanced(items: list[Item], rng: Random) -> list[Item]:
    """Put the right option of the multiple-choice items at A, B, C and D equally often."""
    places = []
    balanced = []
    for item in items:
        if item.kind != "multiple choice":
            balanced.append(item)
            continue
        if not places:
            places = list(range(len(item.options)))
            rng.shuffle(places)
        turn = (LETTERS.index(item.answer) - places.pop()) % len(item.options)
        balanced.append(_rotated(item, turn))
    return balanced


def _rotated(item: Item, turn: int) -> Item:
    """The item with its options moved `turn` places to the front; others unchanged."""
    if item.kind != "multiple choice" or not turn % len(item.options):
        return item
    turn %= len(item.options)
    options = (*item.options[turn:], *item.options[:turn])
    answer = LETTERS[(LETTERS.index(item.answer) - turn) % len(options)]
    asked = item.question.split("\n")[0]
    text = writers.choices(asked, list(options), item.language, by_letter=False)
    return replace(item, options=options, answer=answer, answers=(answer,), question=text)


def save(made: Made, folder: Path) -> Path:
    """Write the questions as JSON lines, without images, and the counts; return the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_items(made.items, folder / "items.jsonl")
    counts = {axis: {k[0]: len(v) for k, v in cut(made.items, axis).items()} for axis in AXES}
    write_json(
        folder / "benchmark.json",
        {
            "items": len(made.items),
            "kinds": dict(Counter(item.kind for item in made.items)),
            "answers": dict(Counter(i.answer for i in made.items if i.kind == "multiple choice")),
            "dropped": dict(made.dropped),
            "question_ids_sha256": question_ids_sha256(made.items),
            **counts,
        },
    )
    return folder
