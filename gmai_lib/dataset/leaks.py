"""Decontamination: which test items does the training data already hold, and how is it known.

    rows = find_leaks(training_records, test_records)     # one row per test record and reason
    clean = without(training_records, rows)               # what may be trained on
    print(summary(rows, test_records))                    # one row per benchmark
    python -m gmai_lib.dataset.leaks DATA                 # the sources' splits as published
    python -m gmai_lib.dataset.leaks DATA --training outputs/mini/02_curate/records

Every source with test records is a benchmark; test records of datasets that are never trained on
are passed in the same way.

Four ways to leak, from sure to likely: the same bytes; the same patient or volume of one source;
an image that looks the same (copied, resized, JPEG-compressed, windowed, cropped at the border or
flipped); a text item whose words are nearly all in one training text. Templates repeat questions
by design, so the text of items with an image is not compared.

Paper: section 3.1 compares MD5 of images with two benchmarks. Departs: MD5 misses every copy that
was encoded again, and says nothing of patients.
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from gmai_lib import pool
from gmai_lib.dataset import curate, images, readers, recipes
from gmai_lib.schema import Ledger, Record

REASONS = ("same bytes", "same patient", "same volume", "looks the same", "same text")
MAX_DISTANCE = 10  # of 64 bits: a candidate, to be compared pixel by pixel
MIN_CORRELATION = 0.95  # of 32 x 32 grey values, which decides
_CHUNK = 500  # images decoded by one process at a time
_SIDE = 32  # the size that the perceptual hash is computed at
_EXAMPLES = 2  # named per benchmark in its row of the summary
# A border of this share is cut off on every side: test images may be crops, or be cropped.
_CROPS = (0.0, 0.05, 0.1)
NGRAM = 8  # words
MIN_OVERLAP = 0.8  # of an item's n-grams in one training text


def find_leaks(
    training: Iterable[Record], tested: Iterable[Record], *, processes: int = 1
) -> list[dict]:
    """Return rows {"benchmark", "item", "trained", "reason", "detail"}.

    `benchmark` is the tested record's source. One row per tested record, training record and
    reason; a record with the same bytes is not also said to look the same. `processes` decode.
    """
    training, tested = list(training), list(tested)
    alike = _alike(training, tested, processes)
    rows = [*_keys(training, tested), *alike, *_texts(training, tested)]
    return sorted(rows, key=lambda row: (row["benchmark"], row["item"], row["trained"]))


def without(training: Iterable[Record], rows: list[dict]) -> list[Record]:
    """Return the training records that no row names."""
    named = {row["trained"] for row in rows}
    return [record for record in training if record.id not in named]


def summary(rows: list[dict], tested: Iterable[Record]) -> list[dict]:
    """Return one row per benchmark.

    Its items (images or texts), how many of them leak, how many by each reason (an item may have
    several), how many training records `without` removes for it, and the first few pairs as
    "test item < training item".
    """
    sizes = Counter(record.source for record in tested)
    named = defaultdict(list)
    for row in rows:
        named[row["benchmark"]].append(row)
    return [
        {"benchmark": name, "items": size, "leaking": len({row["item"] for row in named[name]})}
        | {
            reason: len({row["item"] for row in named[name] if row["reason"] == reason})
            for reason in REASONS
        }
        | {
            "removed from training": len({row["trained"] for row in named[name]}),
            "examples": "; ".join(
                f"{row['item']} < {row['trained']} ({row['reason']})"
                for row in named[name][:_EXAMPLES]
            ),
        }
        for name, size in sorted(sizes.items())
    ]


def as_published(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """Return training and test side of the sources' own splits; call it before `assign_splits`.

    A record whose questions stand on both sides (VQA-RAD) is returned on both, with the questions
    of that side; ids end with "@train" or "@test". What is on no side or on that of validation is
    left out.
    """
    sides = {"train": [], "test": []}
    for record in records:
        stated = curate.stated_splits(record)
        for side in stated & set(sides):
            qa = record.qa
            if not record.split and len(stated) > 1:
                qa = tuple(pair for pair in qa if pair.item.startswith(f"{side}/"))
            sides[side].append(replace(record, id=f"{record.id}@{side}", qa=qa))
    return sides["train"], sides["test"]


def _row(test: Record, train: Record, reason: str, detail: str) -> dict:
    return {"benchmark": test.source, "item": test.id, "trained": train.id} | {
        "reason": reason,
        "detail": detail,
    }


def _keys(training: list[Record], tested: list[Record]) -> list[dict]:
    """Bytes, patients and volumes."""
    index = defaultdict(list)
    for record in training:
        for key in _keys_of(record):
            index[key].append(record)
    return [
        _row(test, train, f"same {key[0]}", key[-1])
        for test in tested
        for key in _keys_of(test)
        for train in index[key]
        if train.id != test.id
    ]


def _keys_of(record: Record) -> list[tuple[str, ...]]:
    return curate.linking_keys(record, record.digest if record.image is not None else "")


def _alike(training: list[Record], tested: list[Record], processes: int) -> list[dict]:
    """Images that look the same, though their bytes differ."""
    jobs = [(record.image, False) for record in training] + [(r.image, True) for r in tested]
    jobs = [jobs[start : start + _CHUNK] for start in range(0, len(jobs), _CHUNK)]
    views = [seen for part in pool.ordered(_views_of, jobs, processes=processes) for seen in part]
    known = [
        (record, *view) for record, seen in zip(training, views, strict=False) for view in seen
    ]
    if not known:
        return []
    hashes = np.array([value for _, value, _ in known], np.uint64)
    rows, seen = [], set()
    for test, mirrored in zip(tested, views[len(training) :], strict=True):
        for value, pixels in mirrored:
            for place in np.flatnonzero(np.bitwise_count(hashes ^ value) <= MAX_DISTANCE):
                train, _, other = known[place]
                if (test.id, train.id) in seen or train.id == test.id or train.image == test.image:
                    continue
                correlation = float(np.corrcoef(pixels, other)[0, 1])
                if correlation >= MIN_CORRELATION:
                    seen.add((test.id, train.id))
                    rows.append(_row(test, train, "looks the same", f"r = {correlation:.3f}"))
    return rows


def _views_of(jobs: list[tuple[bytes | None, bool]]) -> list[list]:
    return [_views(image, flips) if image is not None else [] for image, flips in jobs]


def _views(image: bytes, flips: bool) -> list[tuple[np.uint64, np.ndarray]]:
    """Perceptual hash and 32 x 32 grey values of an image, its crops and mirror images."""
    grey = Image.fromarray(images.decode(image)).convert("L")
    views = []
    for crop in _CROPS:
        across, down = (round(crop * side) for side in grey.size)
        box = (across, down, grey.width - across, grey.height - down)
        small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, box))
        if small.std() < 1:  # a flat picture resembles every other
            continue
        for view in (small, small[:, ::-1], small[::-1]) if flips else (small,):
            bits = imagehash.phash(Image.fromarray(np.ascontiguousarray(view))).hash
            views.append((np.packbits(bits).view(np.uint64)[0], view.ravel()))
    return views


def _texts(training: list[Record], tested: list[Record]) -> list[dict]:
    """Text items nearly all of whose n-grams stand in one training text."""
    index = defaultdict(set)
    texts = [(record, _ngrams(record)) for record in training if record.image is None]
    for number, (_, grams) in enumerate(texts):
        for gram in grams:
            index[gram].add(number)
    rows = []
    for test in tested:
        grams = _ngrams(test) if test.image is None else set()
        found = Counter(number for gram in grams for number in index.get(gram, ()))
        for number, count in found.items():
            if count >= MIN_OVERLAP * len(grams) and texts[number][0].id != test.id:
                share = f"{100 * count / len(grams):.0f} % of its {NGRAM}-grams"
                rows.append(_row(test, texts[number][0], "same text", share))
    return rows


def _ngrams(record: Record) -> set[int]:
    """Hashes of the n-grams of questions, answers and report; short texts are one n-gram."""
    said = " ".join([record.report, *(f"{pair.question} {pair.answer}" for pair in record.qa)])
    words = re.findall(r"\w+", said.lower())
    if not words:
        return set()
    starts = range(max(1, len(words) - NGRAM + 1))
    return {hash(tuple(words[start : start + NGRAM])) for start in starts}


def main(arguments: list[str] | None = None):
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder of datasets; their test sides are checked")
    parser.add_argument("--training", type=Path, help="folder of training records, as Parquet")
    parsed = parser.parse_args(arguments)
    ledger = Ledger()
    read = (readers.read(recipe, root, ledger) for recipe, root in recipes.find(parsed.data))
    records = curate.apply((r for part in read for r in part), ledger)
    training, tested = as_published(records)
    if parsed.training:
        training = [r for r in curate.read_records(parsed.training) if r.split == "train"]
    if not tested:
        parser.error(f"{parsed.data} holds no dataset with a test side of its own")
    print(f"{len(training):,} training records against {len(tested):,} test records")
    for row in summary(find_leaks(training, tested), tested):
        print(", ".join(f"{name}: {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
