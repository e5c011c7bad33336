"""Image-text pairs that others have released: captions, questions, dialogues.

`captions` and `image_questions` read rows (CSV, text with `|`, or JSON lines); `dialogues` and
`text_dialogues` what LLaVA's layout holds: a list of {"image", "conversations": [{"from": "human",
"value"}, {"from": "gpt", "value"}]}, as one JSON list or as JSON lines.

Options of all: `indexes`: glob of an index file -> split; `fields`: our name -> theirs, where it
differs; `header`: the names of the columns of a text file, which has none itself. Of those with
images: `image`: the path of an image with {name} for what the row says,
"**/{name}" to look the base name up anywhere among `images`; `path`: regular expression for what
the name in the row says, such as (?P<modality>...).
"""

import csv
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath

from gmai_lib.dataset.annotations import files, read_index, split_name
from gmai_lib.dataset.question_files import lines_of
from gmai_lib.dataset.records import STEP, Entry, drop_annotation, new_record
from gmai_lib.schema import Ledger, QuestionAnswer, Recipe, Record

_LETTERS = "ABCDEFGH"
_IMAGE_TOKEN = "<image>"


def captions(recipe: Recipe, root: Path, ledger: Ledger) -> list[Entry]:
    """Rows of an image and its caption; the captions of one image are joined."""
    entries = []
    for entry, row, where in _image_rows(recipe, root, ledger):
        entry.report = " ".join(_said(recipe, row, "caption").split())
        if entry.report:
            entries.append(entry)
        else:
            drop_annotation(recipe, "empty caption", where, ledger)
    return entries


def image_questions(recipe: Recipe, root: Path, ledger: Ledger) -> list[Entry]:
    """Rows of an image, a question and an answer.

    Option `choices`: the fields of the options; the answer is then the letter of one. A letter
    before an option (" A:Focal uptake ") is the file's own and is written as "A. Focal uptake".
    """
    entries, fields = [], recipe.options.get("choices", ())
    letters = _LETTERS[: len(fields)]
    for entry, row, where in _image_rows(recipe, root, ledger):
        question, answer = (_said(recipe, row, name).strip() for name in ("question", "answer"))
        shown = [str(row.get(field) or "").strip() for field in fields]
        if not question or not answer or not all(shown):
            drop_annotation(recipe, "empty question, option or answer", where, ledger)
            continue
        if fields:
            pairs = zip(letters, shown, strict=True)
            lines = [f"{x}. {re.sub(rf'^{x}[ :.)]+', '', text)}" for x, text in pairs]
            if len(answer) != 1 or answer.upper() not in letters:
                drop_annotation(recipe, "answer is no letter of an option", where, ledger)
                continue
            question = "\n".join([question, *lines])
            answer = lines[letters.index(answer.upper())]
        entry.qa = [QuestionAnswer(question=question, answer=answer, item=where)]
        entries.append(entry)
    return entries


def dialogues(recipe: Recipe, root: Path, ledger: Ledger) -> list[Entry]:
    """Conversations about one image; text-only ones and those about several are counted drops."""
    entries = []
    for row, split, where in _rows(recipe, root, ledger):
        shown = row.get(_name(recipe, "image")) or []
        shown = [shown] if isinstance(shown, str) else shown
        pairs = _pairs(row, where)
        if not pairs:
            drop_annotation(recipe, "no usable turn", where, ledger)
        elif len(shown) != 1 or not isinstance(shown[0], str):
            reason = "several images in one conversation" if shown else "conversation without image"
            drop_annotation(recipe, reason, where, ledger, len(pairs))
        else:
            entry = _entry(recipe, row, shown[0], split)
            entry.qa = pairs
            entries.append(entry)
    return _located(recipe, root, entries)


def text_dialogues(recipe: Recipe, root: Path, ledger: Ledger) -> Iterator[Record]:
    """Conversations without an image, one record each."""
    for row, split, where in _rows(recipe, root, ledger, level="item"):
        pairs = _pairs(row, where)
        if not pairs:
            ledger.drop(recipe.name, STEP, "no usable turn", where)
            continue
        ledger.keep(recipe.name, STEP)
        ledger.keep(recipe.name, STEP, len(pairs), level="annotation")
        yield new_record(
            recipe, where, dimension="text", modality="text", split=split, qa=tuple(pairs)
        )


def _image_rows(recipe, root, ledger) -> list[tuple[Entry, dict, str]]:
    found = []
    for row, split, where in _rows(recipe, root, ledger):
        name = _said(recipe, row, "image").strip()
        if name:
            found.append((_entry(recipe, row, name, split), row, where))
        else:
            drop_annotation(recipe, "row without an image", where, ledger)
    _located(recipe, root, [entry for entry, _, _ in found])
    return found


def _entry(recipe: Recipe, row: dict, name: str, split: str) -> Entry:
    entry = Entry(path=recipe.options["image"].format(name=name))
    entry.split = split_name(recipe, split or str(row.get(_name(recipe, "split")) or ""))
    parts = re.match(recipe.options.get("path", ""), name)
    said = {"modality": _said(recipe, row, "modality")} | (parts.groupdict() if parts else {})
    entry.modality = said["modality"] or ""
    return entry


def _located(recipe: Recipe, root: Path, entries: list[Entry]) -> list[Entry]:
    """Give entries whose image may lie anywhere the path of the file with its base name."""
    if recipe.options["image"].startswith("**/"):
        paths = {PurePosixPath(path).name: path for path in files(root, recipe.options["images"])}
        for entry in entries:
            entry.path = paths.get(PurePosixPath(entry.path).name, entry.path.removeprefix("**/"))
    return entries


def _pairs(row: dict, where: str) -> list[QuestionAnswer]:
    """Every question with the answer that follows it; what stands alone is left out."""
    turns, pairs = row.get("conversations"), []
    turns = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    for asked, said in pairwise(turns):
        if asked.get("from") in ("human", "user") and said.get("from") in ("gpt", "assistant"):
            question = str(asked.get("value") or "").replace(_IMAGE_TOKEN, "").strip()
            answer = str(said.get("value") or "").strip()
            if question and answer:
                item = f"{where}/{len(pairs)}"
                pairs.append(QuestionAnswer(question=question, answer=answer, item=item))
    return pairs


def _name(recipe: Recipe, name: str) -> str | tuple[str, ...]:
    return recipe.options.get("fields", {}).get(name, name)


def _said(recipe: Recipe, row: dict, name: str) -> str:
    """What the row says in the first of the fields that this release, or an earlier one, has."""
    fields = _name(recipe, name)
    fields = (fields,) if isinstance(fields, str) else fields
    return next((str(row[field]) for field in fields if row.get(field) is not None), "")


def _rows(recipe, root, ledger, *, level="annotation") -> Iterator[tuple[dict, str, str]]:
    """Yield (row, split, where it stands) of every index; a malformed row is a counted drop."""
    for glob, split in recipe.options["indexes"].items():
        for path in files(root, glob):
            for number, row in enumerate(rows_of(root / path, recipe.options.get("header", ()))):
                where = f"{path}/{number}"
                if isinstance(row, dict):
                    yield row, split, where
                else:
                    ledger.drop(recipe.name, STEP, "malformed row", where, level=level)


def rows_of(path: Path, header: tuple[str, ...]) -> Iterator[dict | None]:
    """Stream the rows of an index file, by its ending; None for a broken one."""
    if path.suffix == ".jsonl":
        yield from lines_of(path)
    elif path.suffix == ".csv":
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                for row in csv.DictReader(file, strict=True):
                    yield None if None in row or None in row.values() else row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a readable CSV file ({error}); repair it") from error
    elif path.suffix == ".txt":
        for line in filter(None, path.read_bytes().decode("utf-8", "replace").splitlines()):
            cells = line.split("|")
            yield dict(zip(header, cells, strict=True)) if len(cells) == len(header) else None
    else:
        rows = read_index(path)
        if not isinstance(rows, list):
            raise ValueError(f"{path} is not a JSON list of conversations")
        yield from rows
