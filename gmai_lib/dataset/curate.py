"""Curation: which records go on, which split they belong to, and how they are stored.

    kept = list(apply(records, ledger))                # every drop has a reason
    conflicts = split_conflicts(kept)                  # before splits are assigned
    kept = assign_splits(kept, seed=0, validation_fraction=0.05, test_fraction=0.1)
    write_records(kept, folder)

A step looks at one record and returns None to keep it or the reason to drop it. Splits go by
group: a patient, a volume, or an image with its exact copies is never divided.

Paper: section 3.1 (quality filter). Departs: splits by group and the license gate are ours.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gmai_lib.dataset import images, licenses
from gmai_lib.outputs import atomic
from gmai_lib.schema import NO_FINDING, SPLITS, Ledger, Record

Step = Callable[[Record], str | None]

MIN_SIDE = 32  # pixels; smaller pictures show no anatomy
MIN_RANGE = 8  # grey levels between the darkest and the brightest pixel
ROW_GROUP = 512  # records that are in memory at once while reading and writing


# ---- steps ---------------------------------------------------------------------------------


def quality(record: Record) -> str | None:
    """Drop what cannot be decoded, is tiny or shows one flat color; text items without text."""
    if record.image is None:
        return None if record.qa or record.report else "text item without text"
    try:
        pixels, _ = images.decode_once(record.image)
    except ValueError:
        return "image cannot be decoded"
    if min(pixels.shape[:2]) < MIN_SIDE:
        return f"image side is below {MIN_SIDE} pixels"
    if int(pixels.max()) - int(pixels.min()) < MIN_RANGE:
        return "image is constant"
    return None


def clear_labels(record: Record) -> str | None:
    """Drop diagnosis records that say nothing, and records that contradict themselves.

    Records of other tasks may do with their modality and organ.
    """
    said = (record.labels, record.absent, record.boxes, record.qa, record.report)
    if record.task == "disease diagnosis" and not any(said):
        return "no label"
    if set(record.labels) & set(record.absent):
        return "a label is both present and absent"
    if NO_FINDING in record.labels and (len(record.labels) > 1 or record.boxes):
        return "a finding beside no finding"
    return None


def license_gate(commercial: bool) -> Step:
    """Make a step that drops what its license does not clearly allow in a commercial build."""

    use = "commercial" if commercial else "research"

    def license_step(record: Record) -> str | None:
        return licenses.refusal(record.license, record.access, use)

    return license_step


def exact_duplicates() -> Step:
    """Make a step that drops an image whose bytes came before; each run needs a fresh one."""
    first: dict[str, tuple[str, ...]] = {}

    def duplicates_step(record: Record) -> str | None:
        if record.image is None:
            return None
        digest = hashlib.sha256(record.image).hexdigest()
        if digest not in first:
            first[digest] = record.labels
            return None
        same = first[digest] == record.labels
        return "exact copy" if same else "exact copy with other labels"

    return duplicates_step


# Name -> maker of a step, in the order in which they run; copies are judged last, so that a
# dropped record does not take its copies with it.
STEPS: dict[str, Callable[[bool], Step]] = {
    "quality": lambda commercial: quality,
    "license": license_gate,
    "labels": lambda commercial: clear_labels,
    "duplicates": lambda commercial: exact_duplicates(),
}


def apply(
    records: Iterable[Record],
    ledger: Ledger,
    *,
    steps: Iterable[Step] | None = None,
    commercial: bool = False,
) -> Iterator[Record]:
    """Yield the records that pass all steps, with sha256 and phash filled in.

    `steps` replaces `STEPS`; they are then counted under their function names.
    """
    if steps is None:
        named = [(name, make(commercial)) for name, make in STEPS.items()]
    else:
        named = [(step.__name__, step) for step in steps]
    for record in records:
        for name, step in named:
            reason = step(record)
            if reason:
                ledger.drop(record.source, name, reason, record.id)
                break
            ledger.keep(record.source, name)
        else:
            yield _hashed(record)


def _hashed(record: Record) -> Record:
    if record.image is None:
        return record
    pixels, _ = images.decode_once(record.image)
    digest = hashlib.sha256(record.image).hexdigest()
    return replace(record, sha256=digest, phash=images.phash(pixels))


def near_duplicates(records: list[Record], max_distance: int = 4) -> list[dict]:
    """Return pairs of different groups whose 64-bit perceptual hashes nearly agree.

    Reported, not dropped: a pair across splits may be a leak, and may be two dark pictures.
    Slices of one volume and images of one patient are no pair.
    """
    pictures = [r for r in records if r.phash]
    group = np.array(_groups(pictures), dtype=np.int64)
    hashes = np.array([int(r.phash, 16) for r in pictures], dtype=np.uint64)
    pairs = []
    for i, value in enumerate(hashes[:-1]):
        distance = np.bitwise_count(hashes[i + 1 :] ^ value)
        near = np.flatnonzero((distance <= max_distance) & (group[i + 1 :] != group[i]))
        for j in near + i + 1:
            a, b = pictures[i], pictures[j]
            pairs.append(
                {
                    "a": a.id,
                    "b": b.id,
                    "distance": int(distance[j - i - 1]),
                    "crosses_splits": a.split != b.split,
                }
            )
    return pairs


# ---- splits --------------------------------------------------------------------------------


def assign_splits(
    records: list[Record], *, seed: int, validation_fraction: float, test_fraction: float
) -> list[Record]:
    """Return the records with `split` train, validation or test, never dividing a group.

    A source's own split is kept. A group on both of its sides goes to train, so that the test
    side loses it; a source none of whose test groups would be left (VQA-RAD, split by question)
    is split anew as a whole. Sources without a split are drawn by `seed`: fractions are of
    groups, and from three groups on each non-zero fraction gets at least one.
    """
    if min(validation_fraction, test_fraction) < 0 or validation_fraction + test_fraction >= 1:
        raise ValueError(
            f"validation fraction {validation_fraction} and test fraction {test_fraction} must "
            "not be negative and leave something to train on"
        )
    members = _members(records)
    void = _void_sources(members)
    chosen: dict[int, str] = {}
    free = defaultdict(list)
    for number, group in members.items():
        stated = {s for r in group if r.source not in void for s in stated_splits(r)}
        if len(stated) == 1:
            chosen[number] = stated.pop()
        elif stated:
            chosen[number] = "train" if "train" in stated else "validation"
        else:
            free[_first(group).source].append(number)
    has_split = {r.source for r in records if stated_splits(r)} - void
    for source, numbers in free.items():
        if source in has_split:  # what the authors put on no side is no test item of theirs
            chosen |= dict.fromkeys(numbers, "train")
            continue

        def order(number: int, source: str = source) -> str:
            key = _first(members[number]).id
            return hashlib.sha256(f"{seed}/{source}/{key}".encode()).hexdigest()

        numbers.sort(key=order)
        tests = _count(len(numbers), test_fraction)
        validations = _count(len(numbers), validation_fraction)
        for i, number in enumerate(numbers):
            where = 2 if i < tests else 1 if i < tests + validations else 0
            chosen[number] = SPLITS[where]
    splits = {r.id: chosen[number] for number, group in members.items() for r in group}
    return [replace(r, split=splits[r.id]) for r in records]


def split_conflicts(records: list[Record]) -> list[dict]:
    """Return the groups that a source's own split divides, and what is done about each.

    Call it before `assign_splits`. Looks at `split` and, where a source splits by question, at
    the "<split>/..." that readers put into the `item` of a question.
    """
    members = _members(records)
    void = _void_sources(members)
    return [
        {
            "source": _first(group).source,
            "group": _first(group).id,
            "splits": sorted(stated),
            "records": len(group),
            "resolution": "source is split anew" if _first(group).source in void else "train",
        }
        for group in members.values()
        if len(stated := {s for r in group for s in stated_splits(r)}) > 1
    ]


def stated_splits(record: Record) -> set[str]:
    """Return the sides of its source's own split that a record or its questions are on."""
    if record.split:
        return {record.split}
    return {q.item.partition("/")[0] for q in record.qa} & set(SPLITS)


def _members(records: list[Record]) -> dict[int, list[Record]]:
    members = defaultdict(list)
    for number, record in zip(_groups(records), records, strict=True):
        members[number].append(record)
    return members


def _groups(records: list[Record]) -> list[int]:
    """A group number per record: linked by patient, volume or identical bytes."""
    parent = list(range(len(records)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple, int] = {}
    for i, record in enumerate(records):
        for key in [("id", record.id), *linking_keys(record, record.sha256)]:
            parent[root(i)] = root(first.setdefault(key, i))
    return [root(i) for i in range(len(records))]


def linking_keys(record: Record, digest: str) -> list[tuple[str, ...]]:
    """Return what a record shares with those it must not be divided from.

    ("patient", source, patient), ("volume", source, volume) and ("bytes", digest), each only
    where it is known; `digest` is of the image, "" without one.
    """
    keys = [("patient", record.source, record.patient)] if record.patient else []
    keys += [("volume", record.source, record.volume)] if record.volume else []
    return keys + ([("bytes", digest)] if digest else [])


def _first(group: list[Record]) -> Record:
    """The record that stands for a group, whatever order the records came in."""
    return min(group, key=lambda record: record.id)


def _void_sources(members: dict[int, list[Record]]) -> set[str]:
    """Sources that state test groups, each of which is also on another side."""
    clean, torn = set(), set()
    for group in members.values():
        stated = {s for r in group for s in stated_splits(r)}
        if "test" in stated:
            (torn if len(stated) > 1 else clean).update(r.source for r in group)
    return torn - clean


def _count(groups: int, fraction: float) -> int:
    wanted = round(groups * fraction)
    return max(1, wanted) if groups >= 3 and fraction > 0 else wanted


# ---- storage -------------------------------------------------------------------------------


def write_records(records: Iterable[Record], folder: Path) -> Path:
    """Write records as `folder`/records.parquet, streaming and atomically; return the file."""
    path = Path(folder) / "records.parquet"
    schema = _schema()
    records = iter(records)
    with atomic(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        while rows := [record.to_row() for record in islice(records, ROW_GROUP)]:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return path


def read_records(folder: Path) -> Iterator[Record]:
    """Yield the records of every Parquet file in `folder`.

    Raises FileNotFoundError if there is none, ValueError if one is not a file of records.
    """
    paths = sorted(Path(folder).glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no records; run the notebook that writes them")
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(ROW_GROUP):
                    yield from map(Record.from_row, batch.to_pylist())
        except (pa.ArrowInvalid, OSError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no file of records ({error}); write it again") from error


def _schema() -> pa.Schema:
    types = {
        bytes | None: pa.binary(),
        int: pa.int64(),
        bool: pa.bool_(),
        tuple[str, ...]: pa.list_(pa.string()),
    }
    return pa.schema([(f.name, types.get(f.type, pa.string())) for f in fields(Record)])
