"""Which stage and which data are worth what: `python -m gmai_lib.ablate outputs/mini ablation`.

Trains the courses of the paper's table 7 (stages 1, 1+2, 1+3, 1+2+3), with `--subsets` also the
whole course in English only and without each of the five subsets, from several seeds, asks each
the same phantom questions, and prints mean and range over the seeds. Every course has the optimizer
steps of the profile, whatever it is trained on: less data is seen more often, not shorter. What is
trained or answered already is not done again.

`--equal-size` trains two other courses on equally many samples: what the sources bring themselves
(question-answer pairs, reports), and half of that beside pairs that the builder wrote from
annotation. They are asked the sources' own questions as well as the phantom questions, because the
latter are worded as the built pairs are.

All seeds share the records, the pairs and the stand-ins of the finished run in OUTPUTS; a seed
sets the order of the samples, and which are drawn where not all are. So the range is that of
training alone.

Paper: tables 7 and 8, one run each; its rows with and without its own pairs differ in size.
[NOT IMPLEMENTED] with and without the fidelity gate: that needs pairs of its own.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from random import Random

import numpy as np

from gmai_lib import config
from gmai_lib.dataset.curate import read_records
from gmai_lib.evaluation import benchmarks, run
from gmai_lib.evaluation.items import Item
from gmai_lib.outputs import atomic, write_json
from gmai_lib.schema import SUBSETS, Record
from gmai_lib.training import launch

WHOLE, MIXED = "1+2+3", "own and built pairs"
EQUAL_SIZE = {"own pairs": 1.0, MIXED: 0.5}  # course -> share of what the sources bring


def courses(profile: config.Profile, *, subsets: bool, equal_size: bool = False) -> dict:
    """Return name -> (profile, names of the stages).

    `subsets` adds the whole course in English only, and those that leave one subset out;
    `equal_size` are the courses of EQUAL_SIZE and no others.
    """
    if equal_size:
        return dict.fromkeys(EQUAL_SIZE, (profile, config.STAGES))
    found = {name: (profile, names) for name, names in config.ABLATIONS.items()}
    if not subsets:
        return found
    changed = {"English only": [replace(s, languages=("en",)) for s in profile.stages]}
    for left_out in SUBSETS:
        changed[f"without {left_out}"] = [
            replace(stage, subsets=tuple(s for s in stage.subsets if s != left_out))
            for stage in profile.stages
        ]
    return found | {
        name: (replace(profile, stages=tuple(stages)), config.STAGES)
        for name, stages in changed.items()
    }


def equal_pairs(pairs: Path, records: list[Record], out: Path, *, share: float, seed: int) -> Path:
    """Write to the folder `out` as many training samples as the sources of `records` brought.

    `share` of them are drawn from those, the others from what was written from annotation
    (also about images of the same sources). Returns `out`; ValueError if there are too few.
    """
    from pyarrow import dataset, parquet

    brought = {
        (record.id, subset, record.language)
        for record in records
        for subset, said in (
            ("caption", record.report),
            ("text_single" if record.image is None else "instruct", record.qa),
        )
        if said
    }
    samples = dataset.dataset(sorted(map(str, Path(pairs).glob("train-*.parquet"))))
    own, built = [], []
    for row in samples.to_table(columns=["id", "subset", "language"]).to_pylist():
        record, _, _ = row["id"].rpartition(f"#{row['subset']}#{row['language']}")
        known = (record, row["subset"], row["language"]) in brought
        (own if known else built).append(row["id"])
    number = round(share * len(own))
    if not own or len(own) - number > len(built):
        raise ValueError(
            f"{pairs}: the sources brought {len(own)} training samples themselves and {len(built)} "
            f"were built; {number} and {len(own) - number} are wanted"
        )
    rng = Random(f"{seed}|equal size")
    drawn = [*rng.sample(own, number), *rng.sample(built, len(own) - number)]
    table = samples.to_table(filter=dataset.field("id").isin(drawn))
    Path(out).mkdir(parents=True, exist_ok=True)
    with atomic(Path(out) / "train-00000-of-00001.parquet") as partial:
        parquet.write_table(table, partial)
    return Path(out)


def ablate(
    outputs: Path,
    out: Path,
    *,
    profile: config.Profile,
    seeds: tuple[int, ...] = (0, 1, 2),
    subsets: bool = False,
    equal_size: bool = False,
    train: Callable = launch.run_stages,
    ask: Callable | None = None,
) -> list[dict]:
    """Return the overall rows of `run.summarise` for every course and seed; write `out`/rows.json.

    Three of each benchmark: all questions, the English and the Chinese ones.

    `outputs` is a finished run of `profile`. `ask(checkpoint, items, out_jsonl)` returns the
    responses (default: `run.evaluate_jobs`). Rows have "course" and "training_seed" beside the
    columns of results.json.
    """
    outputs, out, ask = Path(outputs), Path(out), ask or _ask
    records = list(read_records(outputs / "02_curate" / "records"))
    sizes = {"seed": 0, "num_images": profile.benchmark_images}
    items = benchmarks.phantom_benchmark(records, **sizes)
    if equal_size:
        items += chain.from_iterable(benchmarks.source_benchmarks(records).values())
    prior = benchmarks.phantom_benchmark(records, split="train", **sizes)
    files = {"pairs": outputs / "03_write_pairs" / "pairs"}
    files |= {"init": outputs / "05_model" / "initial", "cache": outputs / "06_loader" / "cache"}
    planned, rows = courses(profile, subsets=subsets, equal_size=equal_size), []
    for seed in seeds:
        for course, (changed, names) in planned.items():
            # The courses of the stages begin alike and share what they have in common.
            folder = out / f"seed_{seed}" / ("stages" if course in config.ABLATIONS else course)
            own = {}
            if equal_size:
                drawn = {"share": EQUAL_SIZE[course], "seed": seed}
                own["pairs"] = equal_pairs(files["pairs"], records, folder / "pairs", **drawn)
                own["cache"] = folder / "cache"
            train(changed, names, out=folder, seed=seed, **files | own)
            checkpoint = folder / f"{len(names)}_{names[-1]}" / "checkpoint"
            said = ask(checkpoint, items, folder / f"{course}.jsonl")
            rows += [
                {"course": course, "training_seed": seed} | row
                for row in run.summarise(items, said, None, checkpoint=course, prior_items=prior)
                if (row["kind"], row["metric"], row["subset"]) == ("overall", "accuracy", "all")
            ]
            write_json(out / "rows.json", rows)
    return rows


def _ask(checkpoint: Path, items: list[Item], out_jsonl: Path) -> list[dict]:
    (said,) = run.evaluate_jobs([run.Job(checkpoint, items, out_jsonl)], if_stale="restart")
    return said


def over_seeds(
    rows: list[dict], language: str = "all", *, benchmark: str = "phantom"
) -> list[dict]:
    """Return per course mean, lowest and highest score, and in how many seeds the whole beat it.

    `language`: of the questions, "all", "en" or "zh".
    """
    scores = defaultdict(dict)
    for row in rows:
        if (row["language"], row["benchmark"]) == (language, benchmark):
            scores[row["course"]][row["training_seed"]] = row["score"]
    whole = scores.get(_whole(scores))
    return [
        {
            "course": course,
            "seeds": len(own),
            "mean": float(np.mean(list(own.values()))),
            "lowest": min(own.values()),
            "highest": max(own.values()),
            "below_the_whole": sum(score < whole[seed] for seed, score in own.items()),
        }
        for course, own in scores.items()
    ]


def _whole(names: Iterable[str]) -> str:
    """The course that the others are compared with: WHOLE, or MIXED among those of equal size."""
    return WHOLE if WHOLE in names else MIXED


def main(arguments: list[str] | None = None):
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m gmai_lib.ablate")
    parser.add_argument("outputs", type=Path, help="a finished run, such as outputs/mini")
    parser.add_argument("out", type=Path, help="where checkpoints, answers and rows.json go")
    parser.add_argument("--seeds", type=int, default=3, help="that each course is trained from")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--subsets", action="store_true", help="English only and each subset left out as well"
    )
    which.add_argument(
        "--equal-size", action="store_true", help="the sources' own pairs, and half of them built"
    )
    parsed = parser.parse_args(arguments)
    options = {"seeds": tuple(range(parsed.seeds)), "subsets": parsed.subsets}
    options |= {"equal_size": parsed.equal_size}
    rows = ablate(parsed.outputs, parsed.out, profile=config.load("mini"), **options)
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        _print(rows, benchmark)


def _print(rows: list[dict], benchmark: str):
    names = {"en": "English", "zh": "Chinese"}
    means = {
        key: {row["course"]: row["mean"] for row in over_seeds(rows, key, benchmark=benchmark)}
        for key in names
    }
    whole = _whole({row["course"] for row in rows})
    for row in over_seeds(rows, benchmark=benchmark):
        course = row["course"]
        asked = [f"; {n} {100 * means[k][course]:.1f}" for k, n in names.items() if means[k]]
        print(
            f"{benchmark:12} {course:22} {100 * row['mean']:5.1f} % ({100 * row['lowest']:.1f} to "
            f"{100 * row['highest']:.1f} over {row['seeds']} seeds), below {whole} in "
            f"{row['below_the_whole']}{''.join(asked)}"
        )


if __name__ == "__main__":
    main()
