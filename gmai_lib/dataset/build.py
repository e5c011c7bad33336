"""Records -> Parquet shards of samples, streaming, with a manifest that counts everything.

`write_pairs(records, out, writer=TemplateWriter(0), seed=0, chinese_fraction=0.3)` writes
`<out>/{train,validation,test}-00000-of-00003.parquet` and `manifest.json`; the folder loads with
`datasets.load_dataset("parquet", data_dir=out)`, without gmai_lib.

Shards are written into a hidden folder and moved into place when all of them are complete, so a
killed run leaves nothing that loads. Same records, writer and seed: same bytes.

Paper: section 3.1, steps 5 and 6 (about 30 % of the image records also in Chinese).
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random

from gmai_lib.dataset import fidelity
from gmai_lib.dataset.facts import extract
from gmai_lib.outputs import write_json
from gmai_lib.schema import SPLITS, Ledger, Record, Sample, sample_features

# Columns of the counts in the manifest; every sample is in exactly one row.
COUNTED = ("source", "subset", "language", "split", "modality")
# Columns whose values are counted on their own, for the dataset card.
COMPOSITION = ("modality", "department", "task", "granularity", "license", "access", "writer")
# Rows and bytes that one split holds in memory before they go to disk as a row group.
_GROUP_ROWS, _GROUP_BYTES = 500, 32 * 2**20
STEP = "write_pairs"


def write_pairs(
    records: Iterable[Record],
    out: Path,
    *,
    writer,
    seed: int,
    chinese_fraction: float,
    shard_rows: int = 4000,
) -> dict:
    """Write the samples of `records` to `out`; return the manifest (also `manifest.json`).

    `writer` has `name` and `write(record, facts, *, language)`. Each record is written in its own
    language; of the English image records, `chinese_fraction` are written in Chinese as well.
    Shards of an earlier run in `out` are replaced. A record without samples is counted.

    Raises ValueError if a record has no split or two records (or samples of one) share an id.
    """
    if not 0 <= chinese_fraction <= 1:
        raise ValueError(f"chinese_fraction {chinese_fraction} is not within 0..1")
    if shard_rows < 1:
        raise ValueError(f"shard_rows {shard_rows} is not positive")
    out = Path(out)
    staging = out / ".partial"
    shutil.rmtree(staging, ignore_errors=True)  # of a killed run
    staging.mkdir(parents=True)
    shards = {split: _Shards(staging, split, shard_rows) for split in SPLITS}
    tally = _Tally()
    try:
        for record in records:
            if record.split not in SPLITS:
                raise ValueError(
                    f"record {record.id} has split {record.split!r}, not one of {SPLITS}: "
                    "run curate.assign_splits first"
                )
            written = _samples_of(record, writer, seed, chinese_fraction)
            samples = [sample for sample in written if tally.accepts(record, sample)]
            tally.add(record, samples, refused=len(written) - len(samples))
            for sample in samples:
                shards[sample.split].add(sample)
        names = [name for split in SPLITS for name in shards[split].close()]
        # What described the earlier shards goes with them.
        for old in (*out.glob("*-of-*.parquet"), out / "manifest.json", out / "croissant.json"):
            old.unlink(missing_ok=True)
        for name in names:
            (staging / name).rename(out / name)
    finally:
        for split in SPLITS:
            shards[split].abandon()
        shutil.rmtree(staging, ignore_errors=True)
    manifest = {
        "writer": writer.name,
        "seed": seed,
        "chinese_fraction": chinese_fraction,
        "shard_rows": shard_rows,
        **tally.summary(),
        "writer_counts": dict(getattr(writer, "counts", {})),
        "untranslated_terms": dict(getattr(writer, "unknown_terms", {})),
        "shards": [row for split in SPLITS for row in shards[split].rows],
    }
    write_json(out / "manifest.json", manifest)
    return manifest


def _samples_of(record: Record, writer, seed: int, chinese_fraction: float) -> list[Sample]:
    facts = extract(record)
    samples = writer.write(record, facts, language=record.language)
    chosen = Random(f"{seed}|zh|{record.id}").random() < chinese_fraction
    if chosen and record.language == "en" and record.image is not None:
        samples += writer.write(record, facts, language="zh")
    return samples


class _Shards:
    """The Parquet files of one split while they are written; holds one row group in memory."""

    def __init__(self, folder: Path, split: str, shard_rows: int):
        self.folder, self.split, self.shard_rows = folder, split, shard_rows
        self.schema = sample_features().arrow_schema
        self.pending: list[dict] = []
        self.pending_bytes = 0
        self.parquet = None  # the open file
        self.counts: list[int] = []  # rows of each file
        self.rows: list[dict] = []  # name, rows, bytes, sha256 of the finished files

    def add(self, sample: Sample):
        """Buffer one sample; write a row group or finish a file when it is full."""
        self.pending.append(sample.to_row())
        self.pending_bytes += sum(map(len, sample.images))
        written = self.counts[-1] if self.parquet else 0
        full = written + len(self.pending) >= self.shard_rows
        if full or len(self.pending) >= _GROUP_ROWS or self.pending_bytes >= _GROUP_BYTES:
            self._flush()
        if full:
            self.abandon()

    def close(self) -> list[str]:
        """Finish the last file, give all files their final names and return the names."""
        self._flush()
        self.abandon()
        for i, count in enumerate(self.counts):
            name = f"{self.split}-{i:05d}-of-{len(self.counts):05d}.parquet"
            path = self._path(i).rename(self.folder / name)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = path.stat().st_size
            self.rows.append({"name": name, "rows": count, "bytes": size, "sha256": digest})
        return [row["name"] for row in self.rows]

    def abandon(self):
        """Close the open file, if there is one."""
        if self.parquet:
            self.parquet.close()
            self.parquet = None

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:05d}.partial"

    def _flush(self):
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.pending:
            return
        if self.parquet is None:
            path = self._path(len(self.counts))
            # A dictionary page as large as a row group stores an image once for all its samples.
            self.parquet = pq.ParquetWriter(
                path, self.schema, compression="zstd", dictionary_pagesize_limit=2 * _GROUP_BYTES
            )
            self.counts.append(0)
        self.parquet.write_table(pa.Table.from_pylist(self.pending, schema=self.schema))
        self.counts[-1] += len(self.pending)
        self.pending, self.pending_bytes = [], 0


class _Tally:
    """Counts of records and samples."""

    def __init__(self):
        self.ledger = Ledger()
        self.counts: Counter = Counter()
        self.composition = {name: Counter() for name in COMPOSITION}
        self.records: Counter = Counter()  # (source, split)
        self.checked, self.refused = 0, []  # by the fidelity gate
        self.ids: set[bytes] = set()  # of records, as 8-byte digests: the only thing that grows

    def accepts(self, record: Record, sample: Sample) -> bool:
        """Whether the sample says only what its facts say; a refused one is remembered."""
        if record.report or record.qa:
            return True
        said = "\n".join(t["content"] for t in sample.conversations if t["role"] == "assistant")
        problems = fidelity.check(said, sample.facts, sample.language)
        self.checked += 1
        if problems:
            reasons = [{"kind": p.kind, "reason": str(p)} for p in problems]
            self.refused.append({"id": sample.id, "reasons": reasons})
        return not problems

    def add(self, record: Record, samples: list[Sample], *, refused: int):
        """Count one record, its samples and whether some of them were refused."""
        digest = hashlib.blake2b(record.id.encode(), digest_size=8).digest()
        if digest in self.ids or len({sample.id for sample in samples}) < len(samples):
            raise ValueError(
                f"two samples of record {record.id} have the same id, or two records do"
            )
        self.ids.add(digest)
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
        }


def _why_empty(record: Record) -> str:
    if record.image is None:
        return "text item without a question and answer"
    return "image without any annotation to write about"
