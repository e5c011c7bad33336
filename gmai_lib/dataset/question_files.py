"""Questions and answers: JSON, XML, and Parquet as the Hugging Face hub stores it.

`vqa_json` and `question_xml` parse to entries as `annotations.py` does; `parquet_vqa` and
`question_rows` read files that hold everything and yield records themselves.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from defusedxml.ElementTree import parse

from gmai_lib.dataset import images
from gmai_lib.dataset.annotations import XML_ERRORS, files, read_index, split_name, text_of
from gmai_lib.dataset.records import STEP, Entry, drop_annotation, drop_item, label_name, new_record
from gmai_lib.schema import Ledger, QuestionAnswer, Recipe, Record

# Our name -> key of a question in VQA-RAD's JSON.
FIELDS = {
    "image": "image_name", "question": "question", "answer": "answer", "item": "qid",
    "question_type": "question_type", "answer_type": "answer_type", "organ": "image_organ",
    "modality": "modality",
}  # fmt: skip
_ROWS = 64  # rows of a Parquet file in memory at once


def vqa_json(recipe: Recipe, root: Path, ledger: Ledger) -> list[Entry]:
    """Lists of questions about images in `folder`; option `indexes`: JSON file -> split.

    All questions of an image are merged. A source may split by question and not by image, so
    each question's `item` is "<split>/<qid>" and an image in two lists has no split of its own;
    `curate.split_conflicts` reports them. Option `modalities`: organ -> modality, used where no
    question tells it. Option `fields`: where the keys are not VQA-RAD's (`FIELDS`); `only`: key
    -> value that a question must have, such as its language.
    """
    fields = FIELDS | recipe.options.get("fields", {})
    only = recipe.options.get("only", {})
    entries: dict[str, Entry] = {}
    splits = defaultdict(set)
    for name, split in recipe.options["indexes"].items():
        questions = read_index(root / name)
        if not isinstance(questions, list):
            raise ValueError(f"{root / name} is not a JSON list of questions")
        for i, said in enumerate(questions):
            if not (isinstance(said, dict) and isinstance(said.get(fields["image"]), str)):
                drop_annotation(recipe, "malformed question", f"{name}[{i}]", ledger)
                continue
            other = next((key for key, value in only.items() if said.get(key) != value), None)
            if other:
                drop_annotation(recipe, f"{other} is not {only[other]}", f"{name}[{i}]", ledger)
                continue
            path = f"{recipe.options['folder']}/{said[fields['image']]}"
            entry = entries.setdefault(path, Entry(path=path))
            entry.organ = label_name(recipe, str(said.get(fields["organ"], "")))
            entry.modality = str(said.get(fields["modality"], ""))
            splits[path].add(split)
            question, answer, kind, closed = (
                "" if said.get(fields[name]) is None else str(said[fields[name]]).strip()
                for name in ("question", "answer", "question_type", "answer_type")
            )
            if not question or not answer:
                drop_annotation(recipe, "empty question or answer", f"{name}[{i}]", ledger)
                continue
            entry.qa.append(
                QuestionAnswer(
                    question=question,
                    answer=answer,  # some are JSON integers
                    question_type=kind,
                    answer_type=closed.lower(),  # "CLOSED " occurs
                    item=f"{split}/{said.get(fields['item'], i)}",
                )
            )
    for entry in entries.values():
        entry.split = splits[entry.path].pop() if len(splits[entry.path]) == 1 else ""
        default = recipe.options.get("modalities", {}).get(entry.organ, "unstated")
        entry.modality = entry.modality or _modality_of_questions(entry.qa) or default
    return list(entries.values())


def question_xml(recipe: Recipe, root: Path, ledger: Ledger) -> list[Entry]:
    """MedQuAD XML: Document/QAPairs/QAPair/{Question qtype, Answer}; option `files`: glob."""
    entries = []
    for path in files(root, recipe.options["files"]):
        try:
            tree = parse(root / path).getroot()
        except XML_ERRORS:
            ledger.drop(recipe.name, STEP, "malformed XML", path)
            continue
        entry = Entry(path=path)
        for pair in tree.iter("QAPair"):
            asked = pair.find("Question")
            question, answer = (text_of(pair, tag) for tag in ("Question", "Answer"))
            if not question or not answer:
                reason = "empty answer" if question else "empty question"
                drop_annotation(recipe, reason, f"{path} {pair.get('pid', '')}", ledger)
                continue
            kind, item = asked.get("qtype", ""), asked.get("qid", "")
            entry.qa.append(
                QuestionAnswer(question=question, answer=answer, question_type=kind, item=item)
            )
        entries.append(entry)
    return entries


def parquet_vqa(recipe: Recipe, root: Path, ledger: Ledger) -> Iterator[Record]:
    """Rows with an embedded image, a question and an answer; one record per different image.

    Option `splits`: glob of Parquet files -> split. An image of several rows is stored again in
    each: a first pass collects its questions, a second one opens it once. An image in two splits
    has no split of its own. Columns image, question, answer, or as option `columns` says.
    """
    columns = {name: name for name in ("image", "question", "answer")}
    columns |= recipe.options.get("columns", {})
    asked, splits = defaultdict(list), defaultdict(set)
    for where, split, row in _parquet_rows(recipe, root, columns):
        data = (row[columns["image"]] or {}).get("bytes")
        said = [str(row[columns[name]] or "").strip() for name in ("question", "answer")]
        if not data or not all(said):
            reason = "empty question or answer" if data else "question without an image"
            drop_annotation(recipe, reason, where, ledger)
            continue
        digest = hashlib.sha256(data).digest()
        splits[digest].add(split)
        asked[digest].append(QuestionAnswer(question=said[0], answer=said[1], item=where))
    for _, _, row in _parquet_rows(recipe, root, columns):
        data = (row[columns["image"]] or {}).get("bytes")
        digest = hashlib.sha256(data).digest() if data else b""
        pairs = asked.pop(digest, None)
        if pairs is None:
            continue
        path = pairs[0].item
        try:
            encoded, (height, width) = images.standard(data)
        except (OSError, ValueError):
            drop_item(recipe, "image cannot be decoded", path, ledger, len(pairs))
            continue
        ledger.keep(recipe.name, STEP)
        ledger.keep(recipe.name, STEP, len(pairs), level="annotation")
        seen = splits[digest]
        yield new_record(
            recipe,
            path,
            dimension="2d",
            modality=recipe.modality,
            image=encoded,
            width=width,
            height=height,
            split=next(iter(seen)) if len(seen) == 1 else "",
            qa=tuple(pairs),
        )


def question_rows(recipe: Recipe, root: Path, ledger: Ledger) -> Iterator[Record]:
    """Questions without images, one record each: Parquet, JSON lines, or one JSON list or dict.

    Options: `splits`: glob -> split; `question`, `answer`: the fields; `choices`: the fields of the
    options, or the name of one dict; `number`: the field with the number of the right one, counted
    from `first` (0).
    """
    for where, split, row in _question_rows(recipe, root, ledger):
        question, answer = _question_of(recipe, row)
        if not question or not answer:
            reason = "no usable answer" if question else "no usable question"
            ledger.drop(recipe.name, STEP, reason, where)
            continue
        ledger.keep(recipe.name, STEP)
        ledger.keep(recipe.name, STEP, level="annotation")
        pair = QuestionAnswer(question=question, answer=answer, item=str(row.get("id", "")))
        yield new_record(
            recipe, where, dimension="text", modality=recipe.modality, split=split, qa=(pair,)
        )


def _question_of(recipe: Recipe, row: dict) -> tuple[str, str]:
    """The question with its options, and the answer; "" for what is missing."""
    options = recipe.options
    asked = str(row.get(options["question"]) or "").strip()
    fields, shown = options.get("choices", ()), []
    if isinstance(fields, str):
        inner = row.get(fields) if isinstance(row.get(fields), dict) else {}
        shown = [str(inner[key]) for key in sorted(inner)]
    else:
        shown = [str(row.get(field) or "") for field in fields]
    if "number" in options:
        number = row.get(options["number"])
        place = number - options.get("first", 0) if isinstance(number, int) else -1
        said = shown[place] if 0 <= place < len(shown) else ""
    else:
        said = str(row.get(options["answer"]) or "")
    lines = [f"{letter}. {text}" for letter, text in zip("ABCDEFGH", shown, strict=False)]
    return "\n".join([asked, *lines]) if asked else "", said.strip()


def _question_rows(recipe: Recipe, root: Path, ledger: Ledger) -> Iterator[tuple[str, str, dict]]:
    """Yield (path of the row, split, row) of every file that option `splits` names."""
    for glob, split in recipe.options["splits"].items():
        for path in files(root, glob):
            if path.endswith(".parquet"):
                rows = parquet_rows(root / path)
            elif path.endswith(".jsonl"):
                rows = lines_of(root / path)
            else:
                rows = read_index(root / path)
                rows = list(rows.values()) if isinstance(rows, dict) else rows
            for number, row in enumerate(rows):
                where = f"{path}/{number}"
                if isinstance(row, dict):
                    yield where, split_name(recipe, split), row
                else:
                    ledger.drop(recipe.name, STEP, "malformed question", where)


def _parquet_rows(recipe: Recipe, root: Path, columns: dict):
    """Yield (path of the row, split, row) of the Parquet files, all of which have `columns`."""
    for glob, split in recipe.options["splits"].items():
        for path in files(root, glob):
            for number, row in enumerate(parquet_rows(root / path, list(columns.values()))):
                yield f"{path}/{number}", split_name(recipe, split), row


def parquet_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict]:
    """Stream the rows of one Parquet file; ValueError names a file that is none."""
    try:
        with pq.ParquetFile(path) as file:
            if missing := set(columns or ()) - set(file.schema_arrow.names):
                raise ValueError(
                    f"it has no column {sorted(missing)}, only {file.schema_arrow.names}"
                )
            for batch in file.iter_batches(_ROWS, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is no readable Parquet file ({error})") from error


def lines_of(path: Path) -> Iterator[dict | None]:
    """Stream the objects of a JSON-lines file; None for a line that is no JSON."""
    with path.open("rb") as file:
        for line in filter(bytes.strip, file):
            try:
                yield json.loads(line)
            except ValueError:
                yield None


_MODALITY_WORDS = (
    ("MR", re.compile(r"\b(mri|mr|magnetic resonance|t1|t2|flair|dwi)\b")),
    ("CT", re.compile(r"\b(ct|cat scan|computed tomography)\b")),
    ("X-ray", re.compile(r"\b(x-?ray|x ray|xr|cxr|plain film|radiograph)")),
    ("ultrasound", re.compile(r"\b(ultrasound|sonogra)")),
)


def _modality_of_questions(qa: list[QuestionAnswer]) -> str:
    """The modality that the answers to questions about it agree on, "" where they do not."""
    votes = Counter()
    for pair in qa:
        if "MODALITY" not in pair.question_type or re.search(r"\bnot\b", pair.question):
            continue
        answer = pair.answer.lower()
        said = pair.question.lower() if answer == "yes" else answer
        votes.update(name for name, words in _MODALITY_WORDS if words.search(said))
    (best, count), (_, second) = (votes.most_common(2) + [("", 0), ("", 0)])[:2]
    return best if count > second else ""
