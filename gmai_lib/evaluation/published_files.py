"""From the files of a published benchmark to items, with the count of everything lost.

A `Benchmark` declares what is published; a `Layout` names the files and has a function from one
row to what is `Asked`. Rows that cannot be asked are counted with their reason, and numbers that
differ from the published ones are named. The declarations: `evaluation.published_benchmarks`.
"""

import base64
import binascii
import csv
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gmai_lib.dataset import images as image_files
from gmai_lib.dataset import writers
from gmai_lib.dataset.annotations import files
from gmai_lib.dataset.question_files import parquet_rows
from gmai_lib.dataset.records import is_inside
from gmai_lib.dataset.released import rows_of
from gmai_lib.evaluation.extraction import LETTERS, extract_yes_no
from gmai_lib.evaluation.items import Item

UNKNOWN = "UNKNOWN"  # the answer of a test item whose key is kept back; `score` refuses it


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question as a row of a file states it."""

    id: str
    question: str
    answer: str  # a letter where there are options
    options: tuple[str, ...] = ()
    images: tuple[str | bytes, ...] = ()  # names, or the encoded image itself
    group: str = ""  # "" = its images
    language: str = "en"
    modality: str = "unstated"
    subsets: dict[str, str] = field(default_factory=dict)
    by_letter: bool = True  # what a multiple-choice question asks for: the letter or the text


@dataclass(frozen=True)
class Layout:
    """One form in which the files come."""

    rows: str  # glob of the files that hold the questions
    asked: Callable[[dict, str], Asked | None]  # row, where it stands -> question; None = another's
    images: tuple[str, ...] = ()  # where an image may lie; {} is its name
    read: Callable[[Path], Iterator] | None = None  # file -> rows, where it is no list of rows


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is published about one benchmark."""

    name: str
    title: str
    folder: str  # glob for the name of its folder, which `recognise` wants
    layouts: tuple[Layout, ...]
    split: str
    expected: dict[str, int]  # subset ("all", or "key=value") -> published number of items
    files: dict[str, str]  # name -> size as the hub prints it, "" where it does not
    hub_files: tuple[str, ...] = ()  # globs of what it needs of its repository on the hub
    homepage: str
    license: str
    access: str = "open"
    citation: str
    protocol: str


@dataclass
class Read:
    """What `read` found: items, and what was lost for which reason (with the first example)."""

    items: list[Item]
    lost: Counter
    examples: dict[str, str]
    unexpected: dict[str, tuple[int, int]]  # subset -> (found, published), where they differ

    def problems(self) -> str:
        """One sentence per problem, "" if there is none."""
        lines = [f"{n} x {why} (first: {self.examples[why]})" for why, n in self.lost.items()]
        lines += [
            f"{found} items of {subset}, published are {published}"
            for subset, (found, published) in self.unexpected.items()
        ]
        return "; ".join(lines)


class Unusable(Exception):
    """A row that cannot be asked, and why."""

    def __init__(self, reason: str, value: str = ""):
        super().__init__(reason)
        self.reason, self.value = reason, value


def read_benchmark(benchmark: Benchmark, folder: Path) -> Read:
    """Return the items of a benchmark in `folder`, with the counts of what is wrong.

    Raises FileNotFoundError if the folder has none of the benchmark's files.
    """
    layout = next((x for x in benchmark.layouts if files(folder, x.rows)), None)
    if layout is None:
        wanted = " or ".join(layout.rows for layout in benchmark.layouts)
        raise FileNotFoundError(
            f"{folder} has no {wanted}; get {benchmark.name} from {benchmark.homepage}"
        )
    found, seen, pictures = Read([], Counter(), {}, {}), set(), {}
    for path in files(folder, layout.rows):
        for number, row in enumerate((layout.read or _rows)(folder / path)):
            where = f"{path}/{number}"
            try:
                if not isinstance(row, dict):
                    raise Unusable("broken row")
                asked = _asked(layout, row, where)
                if asked is None:
                    continue
                if asked.id in seen:
                    raise Unusable("repeated id")
                item = _item(benchmark, layout, folder, asked, pictures)
            except (Unusable, KeyError) as error:
                named = isinstance(error, Unusable)
                reason = error.reason if named else f"no field {error}"
                found.lost[reason] += 1
                example = f"{where}: {error.value}" if named and error.value else where
                found.examples.setdefault(reason, example)
            else:
                seen.add(asked.id)
                found.items.append(item)
    sizes = Counter(subset for item in found.items for subset in item.subsets)
    sizes["all"] = len(found.items)
    kinds = {subset.split("=")[0] for subset in sizes}
    for subset, published in benchmark.expected.items():
        # A layout that does not say the answer type cannot miss any closed answer.
        if sizes[subset] != published and subset.split("=")[0] in kinds:
            found.unexpected[subset] = (sizes[subset], published)
    return found


def _asked(layout: Layout, row: dict, where: str) -> Asked | None:
    try:
        return layout.asked(row, where)
    except (TypeError, AttributeError, ValueError, SyntaxError) as error:
        raise Unusable("malformed row", str(error)) from error


def _item(benchmark, layout, folder: Path, asked: Asked, pictures: dict) -> Item:
    question, answer = " ".join(asked.question.split()), asked.answer.strip()
    if not question or not answer:
        raise Unusable("empty question or answer", asked.id)
    if asked.options and answer != UNKNOWN and answer not in LETTERS[: len(asked.options)]:
        raise Unusable("answer not among the options", f"{answer!r} of {asked.options}")
    shown = [_picture(layout, folder, image, pictures) for image in asked.images]
    kind = "multiple choice" if asked.options else _kind(answer, asked.language)
    if asked.options:
        text = writers.choices(
            question, list(asked.options), asked.language, by_letter=asked.by_letter
        )
    else:
        text = writers.ask_briefly(question, asked.language)
    names = [image for image in asked.images if isinstance(image, str)]
    subsets = dict(asked.subsets)
    if not asked.options:
        subsets["closed"] = "yes/no" if kind == "yes/no" else "no"
    return Item(
        id=f"{benchmark.name}#{asked.id}",
        benchmark=benchmark.name,
        images=tuple(shown),
        question=text,
        answer=answer,
        kind=kind,
        language=asked.language,
        options=asked.options,
        group=asked.group or "|".join(names) or asked.id,
        modality=asked.modality,
        source=benchmark.name,
        subsets=tuple(f"{key}={value}" for key, value in subsets.items() if value),
    )


def _kind(answer: str, language: str) -> str:
    """A bare yes or no, in SLAKE's Chinese also 包含 (contains) and the like."""
    bare = answer.lower().rstrip(".")
    short = bare in ("yes", "no") if language == "en" else len(answer) <= 4
    return "yes/no" if short and extract_yes_no(answer) else "open"


def _picture(layout: Layout, folder: Path, image: str | bytes, pictures: dict) -> bytes:
    """The encoded image, 8-bit grey or RGB; each file is read once."""
    name = image
    if isinstance(image, str):
        places = [place.format(image) for place in layout.images if is_inside(image)]
        name = next((place for place in places if (folder / place).is_file()), None)
        if name is None:
            raise Unusable("missing image", image)
    if name not in pictures:
        data = image if isinstance(image, bytes) else (folder / name).read_bytes()
        try:
            pictures[name] = image_files.standard(data)[0]
        except ValueError as error:
            raise Unusable("image cannot be decoded", str(name)[:80]) from error
    return pictures[name]


def _rows(path: Path) -> Iterator[dict | None]:
    if path.suffix == ".tsv":
        yield from _tsv_rows(path)
    elif path.suffix == ".parquet":
        yield from parquet_rows(path)
    else:
        yield from rows_of(path, ())


def _tsv_rows(path: Path) -> Iterator[dict | None]:
    """Rows of a VLMEvalKit table, streamed, with decoded images (None where there is none).

    The header is in lower case but for the option letters.
    """
    csv.field_size_limit(sys.maxsize)  # an image is one cell
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t")
        header = [x if len(x) == 1 else x.lower() for x in next(reader, [])]
        pictures = {}  # index -> image
        for cells in reader:
            if len(cells) != len(header):
                yield None
                continue
            row = dict(zip(header, cells, strict=True))
            # A short cell names the row that has the image.
            cell = row.get("image", "")
            row["image"] = pictures.get(cell) or _decoded(cell)
            pictures[row.get("index")] = row["image"]
            yield row


def _decoded(cell: str) -> bytes | None:
    try:
        return base64.b64decode(cell, validate=True) or None
    except (binascii.Error, ValueError):
        return None


def text_of(row: dict, name: str) -> str:
    """What a row says in a field, without blanks around it; KeyError if it has no such field."""
    return "" if row[name] is None else str(row[name]).strip()


def embedded(row: dict, name: str, where: str) -> bytes:
    """The image in a column of Parquet, which the hub stores as {bytes, path}."""
    data = (row[name] or {}).get("bytes")
    if not data:
        raise Unusable("missing image", where)
    return data


def letter_of(text: str, options: tuple[str, ...]) -> str:
    """The letter of the option with this text, but for case and a final full stop."""
    plain = [option.strip().lower().rstrip(".") for option in options]
    said = text.strip().lower().rstrip(".")
    if said not in plain:
        raise Unusable("answer not among the options", f"{text!r} of {options}")
    return LETTERS[plain.index(said)]


def digest(data: bytes) -> str:
    """Sixteen hexadecimal digits that name an image without a file name."""
    return hashlib.sha256(data).hexdigest()[:16]
