"""How fast the builder is on this machine: `python -m gmai_lib.bench build`.

Reads phantoms of every format with the readers, beside a plain loop that only decodes the same
files, and writes pairs with the template writer. Prints one table and, with --out, a JSON file
with machine and versions. Files lie in the page cache: this measures the processor, not the disk.
"""

import argparse
import tempfile
import time
from pathlib import Path

from PIL import Image

from gmai_lib import config, doctor
from gmai_lib.dataset import phantom_files, planes, readers, recipes, writers
from gmai_lib.dataset.facts import extract
from gmai_lib.outputs import write_json
from gmai_lib.schema import Ledger

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif")


def build(number: int, folder: Path, repeats: int = 3) -> list[dict]:
    """Return one row per source and one for the writer: what, how many, per second, share.

    `number` phantom images per modality are written to `folder` first. "share of decoding" is the
    reader's speed over that of a loop that decodes the same files and does nothing else; of
    volumes the loop loads the whole volume, of which the reader keeps some slices. The best of
    `repeats` runs counts.
    """
    phantom_files.write_sources(folder, seed=0, images_per_modality=number, size=112)
    rows, records = [], []
    for recipe, root in recipes.find(folder):
        made, seconds = _fastest(
            repeats, lambda r=recipe, f=root: list(readers.read(r, f, Ledger()))
        )
        records += made
        row = {"what": f"read {recipe.name}", "n": len(made), "per_second": len(made) / seconds}
        paths = _decodable(root)
        if paths:
            _, plain = _fastest(repeats, lambda p=paths: [decode(path) for path in p])
            row["share of decoding"] = plain / seconds
        rows.append(row)
    writer = writers.TemplateWriter(0)
    shown = [(record, extract(record)) for record in records if record.image is not None]
    pairs, seconds = _fastest(
        repeats, lambda: [s for r, f in shown for s in writer.write(r, f, language="en")]
    )
    turns = sum(len(sample.conversations) // 2 for sample in pairs)
    rows.append({"what": "write pairs", "n": len(pairs), "per_second": len(pairs) / seconds})
    rows.append({"what": "write questions", "n": turns, "per_second": turns / seconds})
    return rows


def decode(path: Path):
    """Decode one image, or load one volume, and nothing else."""
    if path.suffix in _PICTURES:
        with Image.open(path) as image:
            image.load()
    elif path.name.endswith((".nii.gz", ".nii")):
        planes.load_volume(path)
    else:
        planes.dicom_pixels(path, 0)


def _decodable(root: Path) -> list[Path]:
    """Images and volumes of a dataset folder; masks are as much work as what they mask."""
    endings = (*_PICTURES, ".dcm", ".nii.gz", ".nii")
    return sorted(p for p in root.rglob("*") if p.is_file() and p.name.endswith(endings))


def _fastest(repeats: int, work):
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - start)
    return result, best


def main(arguments: list[str] | None = None):
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["build"])
    parser.add_argument("--images", type=int, default=60, help="phantom images per modality")
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file as well")
    parsed = parser.parse_args(arguments)
    print(doctor.banner(config.load("mini"), ""))
    with tempfile.TemporaryDirectory() as folder:
        rows = build(parsed.images, Path(folder))
    for row in rows:
        share = row.get("share of decoding")
        beside = f"  {share:5.2f} of decoding alone" if share else ""
        print(f"{row['what']:28} {row['n']:6,}  {row['per_second']:9,.0f} per second{beside}")
    if parsed.out:
        write_json(parsed.out, {"machine": doctor.banner(config.load("mini"), ""), "rows": rows})


if __name__ == "__main__":
    main()
