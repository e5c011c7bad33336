"""Score the stored answers of notebook 10 again and compare with its results.json.

    python -m gmai_lib.evaluation.recompute outputs/mini/10_evaluate

No model is asked. The questions are made anew from the records and must be those of items.jsonl
and of the answers' headers; the answers are read from responses/, scored, and every row of
results.json (number of items, score, interval, blind and majority score, all other columns) is
computed again. Prints the rows that hold, then every difference; exits 1 if there is one.

The records (02_curate/records beside the folder) are needed because the majority answer is that of
training questions, which items.jsonl does not hold.
"""

import argparse
import json
import math
import sys
import warnings
from pathlib import Path

from gmai_lib.dataset.curate import read_records
from gmai_lib.evaluation.benchmarks import phantom_benchmark, source_benchmarks
from gmai_lib.evaluation.items import Item
from gmai_lib.evaluation.results import summarise
from gmai_lib.evaluation.run import items_sha256, read_responses
from gmai_lib.outputs import read_json
from gmai_lib.schema import Record

KEY = ("checkpoint", "benchmark", "kind", "language", "subset", "metric")  # names a row
TOLERANCE = 1e-9  # other processors may round the last digits of a mean differently


def recompute(folder: Path, records: list[Record]) -> tuple[list[dict], list[str]]:
    """Return (the rows computed again, one sentence per difference to what `folder` holds).

    Raises FileNotFoundError or ValueError, with the path, where something is missing, an answer is
    missing or surplus, or results.json is not one that can be computed again.
    """
    printed = _printed_rows(folder / "results.json")
    seed, draws = printed[0]["seed"], printed[0]["draws"]
    number = read_json(_existing(folder / "result.json"))["benchmark_images"]
    items = phantom_benchmark(records, seed=seed, num_images=number)
    prior = phantom_benchmark(records, seed=seed, num_images=number, split="train")
    for own in source_benchmarks(records, seed=seed).values():
        items += own
    differences = _other_items(_existing(folder / "items.jsonl"), items)
    said = {path.stem: path for path in sorted((folder / "responses").glob("*.jsonl"))}
    checkpoints = sorted(n.removesuffix("-image") for n in said if n.endswith("-image"))
    rows, blind = [], None
    for checkpoint in checkpoints:
        # Where the language model was not trained, the blind answers are those of the one before.
        if (path := said.get(f"{checkpoint}-none")) is not None:
            blind = _answers(path, items, "none", differences)
        answers = _answers(said[f"{checkpoint}-image"], items, "image", differences)
        rows += summarise(
            items,
            answers,
            blind,
            checkpoint=checkpoint,
            prior_items=prior,
            draws=draws,
            seed=seed,
        )
    return rows, differences + _differences(printed, rows)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run notebook 10, which writes it")
    return path


def _printed_rows(path: Path) -> list[dict]:
    rows = read_json(_existing(path))
    drawn = {(row.get("seed"), row.get("draws")) for row in rows}
    if len(drawn) != 1 or None in next(iter(drawn)):
        raise ValueError(
            f"{path}: rows of (seed, draws) {sorted(map(str, drawn))}, not of one seed and one "
            "number of draws; run notebook 10 again"
        )
    return rows


def _other_items(path: Path, items: list[Item]) -> list[str]:
    """A sentence for every item of the file that differs from those made anew."""
    made = {i.id: json.loads(json.dumps({**vars(i), "images": None})) for i in items}
    with path.open(encoding="utf-8") as file:
        kept = {row["id"]: {**row, "images": None} for row in map(json.loads, file)}
    found = [f"{path.name}: {name} is no question of the records" for name in kept.keys() - made]
    found += [f"{path.name}: {name} is missing" for name in made.keys() - kept]
    for name in made.keys() & kept:
        found += [
            f"{path.name}: {name}: {column} {kept[name].get(column)!r}, of the records {value!r}"
            for column, value in made[name].items()
            if kept[name].get(column) != value
        ]
    return sorted(found)


def _answers(path: Path, items: list[Item], mode: str, differences: list[str]) -> list[dict]:
    """The answers as they stand in the file; another header goes to `differences`."""
    header, by_id = read_responses(path)
    wanted = {"items_sha256": items_sha256(items), "num_items": len(items), "image_mode": mode}
    differences += [
        f"{path.name}: {name} {header.get(name)}, of the records {value}"
        for name, value in wanted.items()
        if header.get(name) != value
    ]
    return list(by_id.values())


def _differences(printed: list[dict], rows: list[dict]) -> list[str]:
    """A sentence for every number that differs, and for every row that only one side has."""
    old, new = ({tuple(row[k] for k in KEY): row for row in side} for side in (printed, rows))
    found = [] if len(old) == len(printed) else ["results.json: rows occur twice"]
    found += [
        f"results.json: {', '.join(key)}: no answers give this row" for key in old - new.keys()
    ]
    found += [f"results.json: {', '.join(key)}: the row is missing" for key in new - old.keys()]
    for key in old.keys() & new.keys():
        found += [
            f"results.json: {', '.join(key)}: {column} is {old[key].get(column)}, computed again "
            f"{new[key].get(column)}"
            for column in sorted(old[key].keys() | new[key].keys())
            if not _same(old[key].get(column), new[key].get(column))
        ]
    return sorted(found)


def _same(a, b) -> bool:
    numbers = all(isinstance(x, int | float) for x in (a, b))
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) if numbers else a == b


def _table(rows: list[dict]) -> str:
    """The whole benchmarks of every checkpoint, in percent, as the README prints them."""
    lines = []
    for row in rows:
        if (row["kind"], row["language"], row["subset"]) != ("overall", "all", "all"):
            continue
        if row["metric"] == "accuracy":
            low, high = 100 * row["ci_low"], 100 * row["ci_high"]
            blind = "-" if row["blind_score"] is None else f"{100 * row['blind_score']:.1f}"
            lines.append(
                f"{row['checkpoint']:24} {row['benchmark']:16} n {row['num_items']:6,}  "
                f"{100 * row['score']:5.1f} % ({low:.1f} to {high:.1f})  without the image "
                f"{blind}  majority {100 * row['majority_score']:.1f}"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m gmai_lib.evaluation.recompute")
    parser.add_argument("folder", type=Path, help="outputs/<profile>/10_evaluate")
    parser.add_argument("--records", type=Path, help="default: 02_curate/records beside it")
    parsed = parser.parse_args(arguments)
    records = parsed.records or parsed.folder.resolve().parent / "02_curate" / "records"
    try:
        with warnings.catch_warnings():  # a file that was cut is no basis, and is left as it is
            warnings.filterwarnings("error", message=".*half-written last line")
            rows, differences = recompute(parsed.folder, list(read_records(records)))
    except (FileNotFoundError, ValueError, UserWarning) as error:
        print(error, file=sys.stderr)
        return 1
    print(_table(rows))
    for sentence in differences:
        print(sentence, file=sys.stderr)
    print(f"{len(rows):,} rows computed again, {len(differences):,} differences")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
