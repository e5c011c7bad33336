"""Records -> Parquet shards of samples, streaming, with a manifest that counts everything.

`write_pairs(records, out, writer=TemplateWriter(0), seed=0, chinese_fraction=0.3, processes=2)`
writes `<out>/{train,validation,test}-00000-of-00003.parquet` and `manifest.json`; the folder loads
with `datasets.load_dataset("parquet", data_dir=out)`, without gmai_lib.

A shard holds the samples of so many consecutive records of its split and is one job: one process
runs all steps on it, from facts to the finished file. So the bytes depend on records, writer and
seed, not on the number of processes, and memory on the size of a shard, not on their number.

Shards are written into a hidden folder and moved into place when all of them are complete: a
killed run leaves nothing that loads. The same call finds the finished ones again and writes only
those that were being written.

Paper: section 3.1, steps 5 and 6 (about 30 % of the image records also in Chinese).
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from random import Random

from gmai_lib.dataset import fidelity, licenses, writers
from gmai_lib.dataset.facts import extract
from gmai_lib.outputs import atomic, read_json, sha256_of, write_json
from gmai_lib.pool import on_cluster, ordered
from gmai_lib.schema import SPLITS, Ledger, Record, Sample, sample_features

# Columns of the counts in the manifest; every sample is in exactly one row.
COUNTED = ("source", "subset", "language", "split", "modality")
# Columns whose values are counted on their own, for the dataset card.
COMPOSITION = ("modality", "department", "task", "granularity", "license", "access", "writer")
# What a writer counts on the side, and its name in the manifest.
_WRITER_COUNTS = {"counts": "writer_counts", "unknown_terms": "untranslated_terms"}
# Rows and bytes of samples that are in memory before they go to disk as a row group.
_GROUP_ROWS, _GROUP_BYTES = 500, 32 * 2**20
# A shard of large images ends before its last record: this much is in memory for each split.
_SHARD_BYTES = 64 * 2**20
STEP = "write_pairs"


def write_pairs(
    records: Iterable[Record],
    out: Path,
    *,
    writer,
    seed: int,
    chinese_fraction: float,
    use: str = "research",
    gate: bool = True,
    shard_records: int = 1000,
    processes: int = 1,
    cluster: bool = False,
) -> dict:
    """Write the samples of `records` to `out`; return the manifest (also `manifest.json`).

    `writer` has `name` and `write(record, facts, *, language)`; with more than one process it must
    be picklable. Each record is written in its own language; of the English image records,
    `chinese_fraction` are written in Chinese as well. A shard holds the samples of at most
    `shard_records` records. Shards of an earlier run in `out` are replaced, finished ones of a
    killed run are used. A record without samples is counted.

    `gate=False` keeps what the fidelity gate refuses, to measure what that does; it is counted all
    the same, and the manifest says so.

    `use` is what the build is declared for, one of licenses.USES. With `cluster` the shards are
    written by the machines of a Ray cluster, which must share `out`: the same bytes.

    Raises ValueError if a record has no split, two records (or samples of one) share an id, or
    sources may not be in a build for `use`; all of those are named, and nothing is written.
    """
    if not 0 <= chinese_fraction <= 1:
        raise ValueError(f"chinese_fraction {chinese_fraction} is not within 0..1")
    if shard_records < 1:
        raise ValueError(f"shard_records {shard_records} is not positive")
    out = Path(out)
    staging = out / ".partial"
    staging.mkdir(parents=True, exist_ok=True)
    for leftover in staging.glob(".*"):  # half-written files of a killed run
        leftover.unlink()
    # The schema is made here: `datasets`, which it takes, is slow to import in every process.
    schema = sample_features().arrow_schema
    work = partial(_write_shard, staging, schema, writer, seed, chinese_fraction, gate)
    tally, shards = _Tally(), {split: [] for split in SPLITS}
    try:
        jobs = _jobs(_permitted(records, use), shard_records)
        shards_done = (
            on_cluster(work, jobs) if cluster else ordered(work, jobs, processes=processes)
        )
        for shard in shards_done:
            tally.merge(shard["tally"])
            if shard["rows"]:
                shards[shard["split"]].append(shard)
        # What described the earlier shards goes with them.
        for old in (*out.glob("*-of-*.parquet"), out / "manifest.json", out / "croissant.json"):
            old.unlink(missing_ok=True)
        published = [row for split in SPLITS for row in _publish(staging, out, shards[split])]
        shutil.rmtree(staging)
    finally:
        if staging.is_dir() and not any(staging.glob("*.json")):
            shutil.rmtree(staging)  # nothing finished that another run could use
    manifest = {
        "writer": writer.name,
        "use": use,
        "gate": gate,
        "seed": seed,
        "chinese_fraction": chinese_fraction,
        "shard_records": shard_records,
        **tally.summary(),
        "shards": published,
    }
    write_json(out / "manifest.json", manifest)
    return manifest


# ---- shards --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """The records of one shard: the `number`-th of its split."""

    split: str
    number: int
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


def _permitted(records, use: str):
    """Yield the records; once one may not be in the build, read on to name all such sources."""
    forbidden: set[tuple[str, str]] = set()
    for record in records:
        reason = licenses.refusal(record.license, record.access, use)
        if reason:
            forbidden.add((record.source, reason))
        elif not forbidden:
            yield record
    licenses.refuse(sorted(forbidden), use)


def _jobs(records: Iterable[Record], shard_records: int) -> Iterator[_Job]:
    """Deal the records out to shards of their splits, in order."""
    ids: set[bytes] = set()  # as 8-byte digests: the only thing that grows with the records
    pending: dict[str, list[Record]] = {split: [] for split in SPLITS}
    size, numbers = Counter(), Counter()
    for record in records:
        if record.split not in SPLITS:
            raise ValueError(
                f"record {record.id} has split {record.split!r}, not one of {SPLITS}: "
                "run curate.assign_splits first"
            )
        digest = hashlib.blake2b(record.id.encode(), digest_size=8).digest()
        if digest in ids:
            raise ValueError(f"two records have the same id {record.id}")
        ids.add(digest)
        split = record.split
        pending[split].append(record)
        size[split] += len(record.image or b"")
        if len(pending[split]) >= shard_records or size[split] >= _SHARD_BYTES:
            yield _Job(split, numbers[split], tuple(pending[split]))
            pending[split], size[split] = [], 0
            numbers[split] += 1
    for split in SPLITS:
        if pending[split]:
            yield _Job(split, numbers[split], tuple(pending[split]))


def _write_shard(
    staging: Path, schema, writer, seed: int, chinese_fraction: float, gate: bool, job: _Job
) -> dict:
    """Run all steps on the records of one shard; return its row of the manifest and its tally.

    Both are also kept as JSON beside the file. If they are there already, from a killed run with
    the same records, writer and code, nothing is written again.
    """
    wanted = _fingerprint(writer, seed, chinese_fraction, gate, job.records)
    file, state = staging / f"{job.name}.rows", staging / f"{job.name}.json"
    if state.is_file():
        done = read_json(state)
        if done["fingerprint"] == wanted and (not done["rows"] or _sha256(file) == done["sha256"]):
            return done
        state.unlink()
    tally = _Tally()
    before = {name: Counter(getattr(writer, name, {})) for name in _WRITER_COUNTS}
    with atomic(file) as path:
        rows = _RowGroups(path, schema)
        try:
            for record in job.records:
                written = _samples_of(record, writer, seed, chinese_fraction)
                samples = [s for s in written if tally.accepts(record, s) or not gate]
                tally.add(record, samples, refused=len(written) - len(samples))
                for sample in samples:
                    rows.add(sample)
        finally:
            rows.close()
        path.touch()  # a shard without samples has no file of its own
    for name, key in _WRITER_COUNTS.items():
        tally.said[key] = Counter(getattr(writer, name, {})) - before[name]
    done = {"fingerprint": wanted, "split": job.split, "file": file.name, "rows": rows.count}
    done |= {"bytes": file.stat().st_size, "sha256": _sha256(file), "tally": tally.to_json()}
    write_json(state, done)
    return done


def _publish(staging: Path, out: Path, shards: list[dict]) -> list[dict]:
    """Give the shards of one split their final names; return their rows of the manifest."""
    rows = []
    for number, shard in enumerate(shards):
        name = f"{shard['split']}-{number:05d}-of-{len(shards):05d}.parquet"
        (staging / shard["file"]).rename(out / name)
        rows.append({"name": name} | {key: shard[key] for key in ("rows", "bytes", "sha256")})
    return rows


def _fingerprint(
    writer, seed: int, chinese_fraction: float, gate: bool, records: tuple[Record, ...]
) -> str:
    """Hash of everything that the bytes of a shard depend on."""
    digest = hashlib.sha256(_code_sha256().encode())
    digest.update(repr((writer.name, getattr(writer, "seed", None))).encode())
    digest.update(repr((seed, chinese_fraction, gate, _GROUP_ROWS, _GROUP_BYTES)).encode())
    for record in records:
        row = record.to_row() | {"image": record.digest if record.image else ""}
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


@lru_cache
def _code_sha256() -> str:
    """Hash of the code that writes: what other code has written is written again."""
    digest = hashlib.sha256()
    for path in (
        *sorted(Path(__file__).parent.glob("*.py")),
        Path(__file__).parents[1] / "schema.py",
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    return sha256_of(path) if path.is_file() else ""


def _samples_of(record: Record, writer, seed: int, chinese_fraction: float) -> list[Sample]:
    facts = extract(record)
    samples = writer.write(record, facts, language=record.language)
    chosen = Random(f"{seed}|zh|{record.id}").random() < chinese_fraction
    if chosen and record.language == "en" and record.image is not None:
        samples += writer.write(record, facts, language="zh")
    return samples


class _RowGroups:
    """One Parquet file while it is written; holds one row group in memory."""

    def __init__(self, path: Path, schema):
        self.path, self.schema = path, schema
        self.pending: list[dict] = []
        self.pending_bytes = 0
        self.parquet = None  # the open file
        self.count = 0  # rows written

    def add(self, sample: Sample):
        """Buffer one sample; write a row group when it is full."""
        self.pending.append(sample.to_row())
        self.pending_bytes += sum(map(len, sample.images))
        if len(self.pending) >= _GROUP_ROWS or self.pending_bytes >= _GROUP_BYTES:
            self._flush()

    def close(self):
        """Write what is left and finish the file."""
        self._flush()
        if self.parquet:
            self.parquet.close()

    def _flush(self):
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.pending:
            return
        if self.parquet is None:
            # A dictionary page as large as a row group stores an image once for all its samples.
            self.parquet = pq.ParquetWriter(
                self.path,
                self.schema,
                compression="zstd",
                dictionary_pagesize_limit=2 * _GROUP_BYTES,
            )
        self.parquet.write_table(pa.Table.from_pylist(self.pending, schema=self.schema))
        self.count += len(self.pending)
        self.pending, self.pending_bytes = [], 0


# ---- counting ------------------------------------------------------------------------------


class _Tally:
    """Counts of records and samples, of one shard or of all."""

    def __init__(self):
        self.ledger = Ledger()
        self.counts: Counter = Counter()
        self.composition = {name: Counter() for name in COMPOSITION}
        self.records: Counter = Counter()  # (source, split)
        self.checked, self.refused = 0, []  # by the fidelity gate
        self.said = {key: Counter() for key in _WRITER_COUNTS.values()}  # by the writer itself

    def accepts(self, record: Record, sample: Sample) -> bool:
        """Whether the sample says only what its facts say; a refused one is remembered."""
        said = [turn["content"].removeprefix("<image>\n") for turn in sample.conversations]
        turns = zip(said[::2], said[1::2], strict=True)
        quoted = writers.quoted(record, sample.language)
        problems = fidelity.check_turns(turns, sample.facts, sample.language, quoted=quoted)
        self.checked += 1
        if problems:
            reasons = [{"kind": p.kind, "reason": str(p)} for p in problems]
            self.refused.append({"id": sample.id, "reasons": reasons})
        return not problems

    def add(self, record: Record, samples: list[Sample], *, refused: int):
        """Count one record, its samples and whether some of them were refused."""
        if len({sample.id for sample in samples}) < len(samples):
            raise ValueError(f"two samples of record {record.id} have the same id")
        if samples:
            self.ledger.keep(record.source, STEP)
            self.records[record.source, record.split] += 1
        else:
            reason = "every text was refused" if refused else _why_empty(record)
            self.ledger.drop(record.source, STEP, reason, record.id)
        for sample in samples:
            self.counts[tuple(getattr(sample, name) for name in COUNTED)] += 1
            for name, counter in self.composition.items():
                counter[getattr(sample, name)] += 1

    def merge(self, other: dict):
        """Add the counts of another tally, as its `to_json` gives them."""
        for row in other["ledger"]:
            what, n = (row["source"], row["step"]), row["count"]
            if row["outcome"] == "kept":
                self.ledger.keep(*what, n, level=row["level"])
            else:
                self.ledger.drop(*what, row["outcome"], row["example"], n, level=row["level"])
        for *key, n in other["counts"]:
            self.counts[tuple(key)] += n
        for source, split, n in other["records"]:
            self.records[source, split] += n
        for name in COMPOSITION:
            self.composition[name].update(other["composition"][name])
        for key in self.said:
            self.said[key].update(other["said"][key])
        self.checked += other["checked"]
        self.refused += other["refused"]

    def to_json(self) -> dict:
        """All counts as JSON holds them."""
        return {
            "ledger": self.ledger.rows(),
            "counts": [[*key, n] for key, n in sorted(self.counts.items())],
            "records": [[*key, n] for key, n in sorted(self.records.items())],
            "composition": self.composition,
            "said": self.said,
            "checked": self.checked,
            "refused": self.refused,
        }

    def summary(self) -> dict:
        """The counted part of the manifest."""
        self.ledger.check()
        return {
            "num_samples": sum(self.counts.values()),
            "num_records": sum(self.records.values()),
            "counts": [
                dict(zip(COUNTED, key, strict=True), samples=n)
                for key, n in sorted(self.counts.items())
            ],
            "records": [
                {"source": source, "split": split, "records": n}
                for (source, split), n in sorted(self.records.items())
            ],
            "composition": {
                name: dict(counter.most_common()) for name, counter in self.composition.items()
            },
            "ledger": self.ledger.rows(),
            "fidelity": {"checked": self.checked, "refused": self.refused},
            **{key: dict(sorted(counter.items())) for key, counter in self.said.items()},
        }


def _why_empty(record: Record) -> str:
    if record.image is None:
        return "text item without a question and answer"
    return "image without any annotation to write about"
