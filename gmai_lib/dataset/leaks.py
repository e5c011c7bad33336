"""Decontamination: which test items does the training data already hold, and how is it known.

    rows = find_leaks(training_records, test_records)     # one row per test record and reason
    clean = without(training_records, rows)               # what may be trained on
    print(summary(rows, test_records))                    # per benchmark

Four ways to leak, from sure to likely: the same bytes; the same patient or volume of one source;
an image that looks the same (copied, resized, JPEG-compressed, windowed, cropped at the border or
flipped); a text item whose words are nearly all in one training text. Templates repeat questions
by design, so the text of items with an image is not compared.

Paper: section 3.1 compares MD5 of images with two benchmarks. Departs: MD5 misses every copy that
was encoded again, and says nothing of patients.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
from PIL import Image

from gmai_lib.dataset import images
from gmai_lib.dataset.curate import linking_keys
from gmai_lib.schema import Record

REASONS = ("same bytes", "same patient", "same volume", "looks the same", "same text")
MAX_DISTANCE = 10  # of 64 bits: a candidate, to be compared pixel by pixel
MIN_CORRELATION = 0.95  # of 32 x 32 grey values, which decides
_SIDE = 32
# A border of this share is cut off on every side: test images may be crops, or be cropped.
_CROPS = (0.0, 0.05, 0.1)
NGRAM = 8  # words
MIN_OVERLAP = 0.8  # of an item's n-grams in one training text


def find_leaks(training: Iterable[Record], tested: Iterable[Record]) -> list[dict]:
    """Return rows {"benchmark", "item", "trained", "reason", "detail"}.

    `benchmark` is the tested record's source. One row per tested record, training record and
    reason; a record with the same bytes is not also said to look the same.
    """
    training, tested = list(training), list(tested)
    rows = [*_keys(training, tested), *_alike(training, tested), *_texts(training, tested)]
    return sorted(rows, key=lambda row: (row["benchmark"], row["item"], row["trained"]))


def without(training: Iterable[Record], rows: list[dict]) -> list[Record]:
    """Return the training records that no row names."""
    named = {row["trained"] for row in rows}
    return [record for record in training if record.id not in named]


def summary(rows: list[dict], tested: Iterable[Record]) -> list[dict]:
    """Return one row per benchmark: its items, how many leak, and how many by each reason."""
    sizes = Counter(record.source for record in tested)
    leaking = defaultdict(set)
    for row in rows:
        leaking[row["benchmark"], ""].add(row["item"])
        leaking[row["benchmark"], row["reason"]].add(row["item"])
    return [
        {"benchmark": name, "items": size, "leaking": len(leaking[name, ""])}
        | {reason: len(leaking[name, reason]) for reason in REASONS}
        for name, size in sorted(sizes.items())
    ]


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
    return linking_keys(record, record.digest if record.image is not None else "")


def _alike(training: list[Record], tested: list[Record]) -> list[dict]:
    """Images that look the same, though their bytes differ."""
    known = [(record, *view) for record in training for view in _views(record, flips=False)]
    if not known:
        return []
    hashes = np.array([value for _, value, _ in known], np.uint64)
    rows, seen = [], set()
    for test in tested:
        for value, pixels in _views(test, flips=True):
            for place in np.flatnonzero(np.bitwise_count(hashes ^ value) <= MAX_DISTANCE):
                train, _, other = known[place]
                if (test.id, train.id) in seen or train.id == test.id or train.image == test.image:
                    continue
                correlation = float((pixels * other).mean())
                if correlation >= MIN_CORRELATION:
                    seen.add((test.id, train.id))
                    rows.append(_row(test, train, "looks the same", f"r = {correlation:.3f}"))
    return rows


def _views(record: Record, *, flips: bool) -> list[tuple[np.uint64, np.ndarray]]:
    """Perceptual hash and standardised 32 x 32 pixels of an image, its crops and mirror images."""
    if record.image is None:
        return []
    pixels = images.decode(record.image)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    views = []
    for crop in _CROPS:
        rows, columns = (round(crop * side) for side in grey.shape)
        cut = grey[rows : grey.shape[0] - rows, columns : grey.shape[1] - columns]
        for view in (cut, cut[:, ::-1], cut[::-1]) if flips else (cut,):
            small = Image.fromarray(np.ascontiguousarray(view)).resize((_SIDE, _SIDE))
            values = np.asarray(small, np.float32)
            spread = values.std()
            if spread < 1:  # a flat picture resembles every other
                continue
            value = np.uint64(int(images.phash(np.ascontiguousarray(view)), 16))
            views.append((value, (values - values.mean()) / spread))
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
