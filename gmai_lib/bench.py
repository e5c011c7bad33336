"""How fast this machine builds, trains and evaluates: `python -m gmai_lib.bench build`.

Reads phantoms of every format with the readers, beside a plain loop that only decodes the same
files, and writes pairs with the template writer, by one process and by several. `train OUTPUTS` and
`evaluate OUTPUTS` are those of bench_train and bench_evaluate. Prints one table and, with --out, a
JSON file with machine and versions.

The images read are as large as those of many public datasets; `--size 112` shows what a record
costs where decoding is nearly free. Files lie in the page cache: this measures the processor, not
the disk. Per-core numbers are in processor seconds, so that other work on the machine disturbs them
little; the speed-up of several processes is in seconds of the clock, of records with small images,
and means something on an idle machine only.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from PIL import Image

from gmai_lib import config, doctor
from gmai_lib.outputs import write_json
from gmai_lib.schema import Ledger, Record

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

_SMALL = 112  # pixels of the records whose build is timed
_BUILDS = 2  # with each number of processes; the faster one counts
# What stands beside the speed of a row.
_BESIDE = {
    "share of decoding": "of decoding alone",
    "share of decoding and encoding": "of decoding and encoding",
    "speed-up": "times one process",
    "busy": "of the processors busy",
    "more work": "times the processor seconds of one",
}


def build(
    number: int, folder: Path, *, size: int = 512, processes: int = 2, scaled: int = 20000
) -> list[dict]:
    """Return one row per source, of all images and all slices, of the writer and of processes.

    `number` phantom images of `size` pixels per modality are written to `folder` first. "share of
    decoding" is the reader's speed over that of a loop that decodes the same files and does nothing
    else; of volumes the loop loads the whole volume, of which the reader keeps some slices. Where
    the source is no plain PNG or JPEG, "share of decoding and encoding" adds the time in which the
    PNG files that the records hold are encoded. The fastest of many runs counts, alternately of
    reader and loop. "speed-up" is one process over `processes` for about `scaled` records. What it
    lacks is waiting (the start of the processes, the last shard) as far as "busy" is below 1, and
    processor seconds that take longer side by side (shared caches, two threads of one core) as far
    as "more work" is above 1.
    """
    # Imported here, as every process of the timed build imports this module again.
    from gmai_lib.dataset import images, phantom_files, readers, recipes, writers
    from gmai_lib.dataset.facts import extract

    phantom_files.write_sources(folder / "sources", seed=0, images_per_modality=number, size=size)
    rows, records = [], []
    together = {"images": [], "slices": []}  # n of each source, seconds of the three loops
    for recipe, root in recipes.find(folder / "sources"):
        made = list(readers.read(recipe, root, Ledger()))
        records += made
        paths, others = _decodable(root), _encoded(root, made)
        read, decoded, encoded = _fastest(
            lambda r=recipe, f=root: list(readers.read(r, f, Ledger())),
            lambda p=paths: [decode(path) for path in p],
            lambda o=others: [images.to_png(array) for array in o],
        )
        decoded, encoded = decoded if paths else 0.0, encoded if others else 0.0
        rows.append(_read_row(f"read {recipe.name}", len(made), read, decoded, encoded))
        if paths:
            kind = "slices" if made[0].dimension == "3d" else "images"
            together[kind].append((len(made), read, decoded, encoded))
    for kind, parts in together.items():
        rows.append(_read_row(f"read all {kind}", *map(sum, zip(*parts, strict=True))))
    writer = writers.TemplateWriter(0)
    shown = [(record, extract(record)) for record in records if record.image is not None]
    pairs = [s for r, f in shown for s in writer.write(r, f, language="en")]
    (seconds,) = _fastest(lambda: [writer.write(r, f, language="en") for r, f in shown])
    turns = sum(len(sample.conversations) // 2 for sample in pairs)
    rows.append({"what": "write pairs", "n": len(pairs), "per_second": len(pairs) / seconds})
    rows.append({"what": "write questions", "n": turns, "per_second": turns / seconds})
    rows.append(_scaling(number, folder, processes, scaled))
    return rows


def _read_row(what: str, n: int, read: float, decoded: float, encoded: float) -> dict:
    row = {"what": what, "n": n, "per_second": n / read}
    if decoded:
        row["share of decoding"] = decoded / read
    if encoded:
        row["share of decoding and encoding"] = (decoded + encoded) / read
    return row


def _scaling(number: int, folder: Path, processes: int, scaled: int) -> dict:
    """Records per second, by the clock, of whole builds; the start of the processes counts."""
    from gmai_lib.dataset import build as builder
    from gmai_lib.dataset import phantom_files, readers, recipes, writers

    small = folder / "small"
    phantom_files.write_sources(small, seed=0, images_per_modality=number, size=_SMALL)
    records = list(readers.read_all(recipes.find(small), Ledger()))
    copies = max(1, scaled // len(records))
    measured = {1: [], processes: []}  # seconds, and those of all processors, of each build
    for turn, number in enumerate([1] + [1, processes] * _BUILDS):
        # Other ids, other texts: none is remembered from the build before. The first warms up.
        many = [
            replace(r, id=f"{r.id}#{turn}#{i}", split="train")
            for i in range(copies if turn else 1)
            for r in records
        ]
        start, before = time.perf_counter(), sum(os.times()[:4])  # with those of ended children
        builder.write_pairs(
            many,
            folder / "pairs",
            writer=writers.TemplateWriter(0),
            seed=0,
            chinese_fraction=0.3,
            processes=number,
            shard_records=500,
        )
        if turn:
            measured[number].append((time.perf_counter() - start, sum(os.times()[:4]) - before))
    (alone, worked_alone), (seconds, worked) = min(measured[1]), min(measured[processes])
    row = {"what": f"build, {processes} processes", "n": len(many)}
    row |= {"per_second": len(many) / seconds, "speed-up": alone / seconds}
    return row | {"busy": worked / (processes * seconds), "more work": worked / worked_alone}


def rates(
    sources: Path, records: list[Record], *, chinese_fraction: float, seed: int
) -> dict[str, float]:
    """Time reader and template writer on one core, on a part of the data, to scale them up.

    Reads as many images of the datasets under `sources` as there are `records`, evenly over them,
    and writes the pairs of `records`. Returns images_read and pairs_written (per processor second),
    pairs_per_image and bytes_per_pair (on disk, with the image).
    """
    from gmai_lib.dataset import build as builder
    from gmai_lib.dataset import readers, recipes, writers

    found = recipes.find(sources)
    each, count, start = max(1, len(records) // len(found)), 0, time.process_time()
    for recipe, root in found:
        count += sum(1 for _ in islice(readers.read(recipe, root, Ledger()), each))
    read = count / (time.process_time() - start)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        built = builder.write_pairs(
            records,
            Path(folder) / "pairs",
            writer=writers.TemplateWriter(seed),
            seed=seed,
            chinese_fraction=chinese_fraction,
        )
        seconds = time.process_time() - start
    pairs = built["num_samples"]
    return {
        "images_read": read,
        "pairs_written": pairs / seconds,
        "pairs_per_image": pairs / len(records),
        "bytes_per_pair": sum(shard["bytes"] for shard in built["shards"]) / pairs,
    }


def decode(path: Path):
    """Decode one image, or load one volume, and nothing else."""
    from gmai_lib.dataset import planes

    if path.suffix in _PICTURES:
        with Image.open(path) as image:
            image.load()
    elif path.name.endswith((".nii.gz", ".nii")):
        planes.load_volume(path)
    else:
        planes.dicom_pixels(path, 0)


def _decodable(root: Path) -> list[Path]:
    """Images and volumes of a dataset folder; masks are as much work as what they mask.

    Files of the phantoms' DICOM series are called CT.1.2.3, as many archives call theirs.
    """
    endings = (*_PICTURES, ".dcm", ".nii.gz", ".nii")
    return sorted(
        p
        for p in root.rglob("*")
        if p.is_file() and (p.name.endswith(endings) or p.name.startswith("CT."))
    )


def _encoded(root: Path, records: list[Record]) -> list:
    """Pixels of the records whose image is not a file of the source as it is."""
    from gmai_lib.dataset import images

    files = {p.read_bytes() for p in root.rglob("*") if p.suffix in _PICTURES}
    return [images.decode(r.image) for r in records if r.image and r.image not in files]


def _fastest(*works: Callable) -> list[float]:
    """The least processor seconds of each, run in turn so that none has a better time of it.

    Three times at least, and short ones for seconds: one run in a tenth of a second says little.
    """
    best = [float("inf")] * len(works)
    began, times = time.perf_counter(), 0
    while times < 3 or (times < 25 and time.perf_counter() - began < 3):
        times += 1
        for i, work in enumerate(works):
            start = time.process_time()
            work()
            best[i] = min(best[i], time.process_time() - start)
    return best


def main(arguments: list[str] | None = None):
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_subparsers(dest="what", required=True)
    built = what.add_parser("build", help="readers and writer of the dataset builder")
    built.add_argument("--images", type=int, default=12, help="phantom images per modality")
    built.add_argument("--size", type=int, default=512, help="pixels of their sides")
    built.add_argument("--processes", type=int, default=2, help="of the build that is timed")
    built.add_argument("--scaled", type=int, default=20000, help="records of that build")
    trained = what.add_parser("train", help="a stage beside Hugging Face's Trainer")
    trained.add_argument("outputs", type=Path, help="a finished run, such as outputs/mini")
    trained.add_argument("--steps", type=int, default=40, help="optimizer steps that are timed")
    asked = what.add_parser("evaluate", help="answers in batches beside one by one, and scoring")
    asked.add_argument("outputs", type=Path, help="a finished run, such as outputs/mini")
    asked.add_argument("--questions", type=int, default=800, help="that are answered both ways")
    asked.add_argument("--answers", type=int, default=100_000, help="that are scored")
    climbed = what.add_parser("gpu", help="the rungs of training on one GPU, and its MFU")
    climbed.add_argument("--model", default="0.5b", help="0.5b or 7b")
    climbed.add_argument("--steps", type=int, default=2, help="optimizer steps that are timed")
    climbed.add_argument("--only", default="", help="rows whose names hold one of these: a;b")
    for command in (built, trained, asked, climbed):
        command.add_argument("--out", type=Path, help="write the rows to this JSON file as well")
    parsed = parser.parse_args(arguments)
    print(doctor.banner(config.load("mini"), ""))
    work = {"build": _build_rows, "train": _train_rows, "evaluate": _evaluate_rows}
    work["gpu"] = _gpu_rows
    rows = work[parsed.what](parsed)
    if parsed.out:
        write_json(parsed.out, {"machine": doctor.banner(config.load("mini"), ""), "rows": rows})


def _build_rows(parsed) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        rows = build(
            parsed.images,
            Path(folder),
            size=parsed.size,
            processes=parsed.processes,
            scaled=parsed.scaled,
        )
    for row in rows:
        beside = [f"{row[name]:.2f} {text}" for name, text in _BESIDE.items() if name in row]
        line = f"{row['what']:28} {row['n']:6,}  {row['per_second']:9,.0f} per second"
        print("  ".join([line, ", ".join(beside)]).rstrip())
    return rows


def _train_rows(parsed) -> list[dict]:
    from gmai_lib import bench_train

    rows = bench_train.train(parsed.outputs, steps=parsed.steps)
    for row in rows:
        print(
            f"{row['what']:28} {row['tokens_per_s']:9,.0f} real tokens per second, "
            f"{row['samples_per_s']:.0f} samples, {row['padding']:.0%} padding, "
            f"{row['speed-up']:.2f} times Trainer"
        )
    return rows


def _gpu_rows(parsed) -> list[dict]:
    from gmai_lib import bench_gpu

    rows = bench_gpu.gpu(parsed.model, steps=parsed.steps, only=parsed.only)
    for row in rows:
        if "error" in row:
            print(f"{row['what']:48} {row['error']}")
            continue
        beside = f", {row['speed-up']:.2f} times Trainer" if "speed-up" in row else ""
        print(
            f"{row['what']:48} {row['tokens_per_s']:9,.0f} real tokens per second, "
            f"MFU {row['mfu']:.1%}, {row['peak_gib']:.1f} GiB{beside}"
        )
    return rows


def _evaluate_rows(parsed) -> list[dict]:
    from gmai_lib import bench_evaluate

    rows = bench_evaluate.evaluate(parsed.outputs, number=parsed.questions, answers=parsed.answers)
    for row in rows:
        beside = f"  {row['speed-up']:.1f} times one by one" if "speed-up" in row else ""
        beside += f", {row['same']:.1%} of the responses the same" if "same" in row else ""
        line = f"{row['what']:28} {row['n']:7,} in {row['seconds']:7.1f} s"
        print(f"{line}  {row['per_second']:9,.0f} per second{beside}")
    return rows


if __name__ == "__main__":
    main()
