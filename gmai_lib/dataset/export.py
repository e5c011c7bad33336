"""Exports: the pairs as the original's LLaVA JSON, benchmark items as a VLMEvalKit TSV.

    python -m gmai_lib.dataset.export outputs/mini/03_write_pairs/pairs path/to/folder

The same command writes Croissant metadata beside the shards (`croissant.py`).

Source: the field names of the authors' released `example_data.json` (image, conversations with
from and value, id, width, height); VLMEvalKit's ImageMCQDataset (index, image as base64, question,
A to D, answer, category; a short `image` is the index of the row whose image it shares).
Departs: text-only samples have no image, width and height, which the example does not show.
"""

import argparse
import base64
import csv
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from gmai_lib.dataset import croissant
from gmai_lib.outputs import atomic

_SPEAKERS = {"user": "human", "assistant": "gpt"}
TSV_COLUMNS = (
    "index",
    "image",
    "question",
    "A",
    "B",
    "C",
    "D",
    "answer",
    "category",
    "l2-category",
)


def llava_json(pairs: Path, out: Path) -> dict[str, int]:
    """Write `<split>.json` and `images/` from the Parquet shards in `pairs`; return the counts.

    Every image is written once, named by its content. An earlier export in `out` is replaced file
    by file. Raises FileNotFoundError without shards.
    """
    import pyarrow.parquet as pq

    pairs, out = Path(pairs), Path(out)
    shards = sorted(pairs.glob("*-of-*.parquet"))
    if not shards:
        raise FileNotFoundError(f"{pairs} has no *.parquet shards; run notebook 03 first")
    counts: dict[str, int] = {}
    columns = ["id", "images", "conversations", "width", "height"]
    for split in dict.fromkeys(shard.name.split("-")[0] for shard in shards):
        with (
            atomic(out / f"{split}.json") as partial,
            partial.open("w", encoding="utf-8") as file,
        ):
            file.write("[")
            for shard in (s for s in shards if s.name.startswith(f"{split}-")):
                for batch in pq.ParquetFile(shard).iter_batches(500, columns=columns):
                    for row in batch.to_pylist():
                        file.write(",\n" if counts.get(split) else "\n")
                        json.dump(_llava_row(row, out), file, ensure_ascii=False)
                        counts[split] = counts.get(split, 0) + 1
            file.write("\n]\n")
    return counts


def _llava_row(row: dict, out: Path) -> dict:
    turns = [{"from": _SPEAKERS[t["role"]], "value": t["content"]} for t in row["conversations"]]
    names = [_save(image["bytes"], out) for image in row["images"]]
    shown = {"image": names[0] if len(names) == 1 else names} if names else {}
    size = {"width": row["width"], "height": row["height"]} if names else {}
    return shown | {"conversations": turns, "id": row["id"]} | size


def _save(data: bytes, out: Path) -> str:
    ending = "png" if data.startswith(b"\x89PNG") else "jpg"
    name = f"images/{hashlib.sha256(data).hexdigest()[:24]}.{ending}"
    if not (out / name).exists():
        with atomic(out / name) as partial:
            partial.write_bytes(data)
    return name


def vlmeval_tsv(items: Iterable, path: Path) -> int:
    """Write the multiple-choice items of one image as a TSV that VLMEvalKit loads; return how many.

    `items` are benchmarks.Item. Other kinds are left out: ImageMCQDataset has no place for them.
    Raises ValueError if there is none, or an item has more than four options.
    """
    path, rows, first = Path(path), [], {}
    for item in items:
        if item.kind != "multiple choice" or len(item.images) != 1:
            continue
        if len(item.options) > 4:
            raise ValueError(f"item {item.id} has {len(item.options)} options; the TSV holds four")
        number = len(rows)
        source = first.setdefault(item.images[0], number)
        shown = base64.b64encode(item.images[0]).decode() if source == number else str(source)
        row = {"index": number, "image": shown, "question": item.question.split("\n")[0]}
        row |= dict(zip("ABCD", item.options, strict=False))
        row |= {"answer": item.answer, "category": item.source, "l2-category": item.modality}
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no multiple-choice item with one image to write")
    with atomic(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, TSV_COLUMNS, delimiter="\t", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def main(arguments: list[str] | None = None):
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", type=Path, help="folder of Parquet shards")
    parser.add_argument("out", type=Path, help="folder for <split>.json and images/")
    parser.add_argument("--url", default="", help="web page of the dataset, for Croissant")
    parser.add_argument("--creator", default="", help="organisation, for Croissant")
    parser.add_argument("--date-published", default="", help="ISO date, for Croissant")
    parsed = parser.parse_args(arguments)
    stated = {"url": parsed.url, "creator": parsed.creator, "date_published": parsed.date_published}
    try:
        counts = llava_json(parsed.pairs, parsed.out)
        metadata = croissant.write(parsed.pairs, **stated)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{', '.join(f'{n:,} {split}' for split, n in counts.items())} samples in {parsed.out}")
    missing = [name for name in croissant.REQUIRED if name not in metadata]
    unknown = f"; not stated: {', '.join(missing)}" if missing else ""
    print(f"Croissant metadata in {parsed.pairs / croissant.NAME}{unknown}")


if __name__ == "__main__":
    main()
