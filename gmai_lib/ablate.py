"""Which stage and which subset is worth what: `python -m gmai_lib.ablate outputs/mini ablation`.

Trains the courses of the paper's table 7 (stages 1, 1+2, 1+3, 1+2+3), and with `--subsets` the
whole course in English only and without each of the five subsets, from several seeds, asks each
the same phantom questions, and prints mean and range over the seeds. Every course has the optimizer
steps of the profile, whatever it is trained on: less data is seen more often, not shorter. What is
trained or answered already is not done again.

All seeds share the records, the pairs and the stand-ins of the finished run in OUTPUTS; a seed
sets the order of the samples. So the range is that of training alone.

Paper: tables 7 and 8, one run each. [NOT IMPLEMENTED] with and without the project's own pairs,
with and without the fidelity gate: each needs pairs of its own.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from gmai_lib import config
from gmai_lib.dataset.curate import read_records
from gmai_lib.evaluation import benchmarks, run
from gmai_lib.evaluation.items import Item
from gmai_lib.outputs import write_json
from gmai_lib.schema import SUBSETS
from gmai_lib.training import launch

WHOLE = "1+2+3"


def courses(profile: config.Profile, *, subsets: bool) -> dict[str, tuple]:
    """Return name -> (profile, names of the stages).

    `subsets` adds the whole course in English only, and those that leave one subset out.
    """
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


def ablate(
    outputs: Path,
    out: Path,
    *,
    profile: config.Profile,
    seeds: tuple[int, ...] = (0, 1, 2),
    subsets: bool = False,
    train: Callable = launch.run_stages,
    ask: Callable | None = None,
) -> list[dict]:
    """Return the overall rows of `run.summarise` for every course and seed; write `out`/rows.json.

    Three of each: all questions, the English and the Chinese ones.

    `outputs` is a finished run of `profile`. `ask(checkpoint, items, out_jsonl)` returns the
    responses (default: `run.evaluate_jobs`). Rows have "course" and "training_seed" beside the
    columns of results.json.
    """
    outputs, out, ask = Path(outputs), Path(out), ask or _ask
    records = list(read_records(outputs / "02_curate" / "records"))
    sizes = {"seed": 0, "num_images": profile.benchmark_images}
    items = benchmarks.phantom_benchmark(records, **sizes)
    prior = benchmarks.phantom_benchmark(records, split="train", **sizes)
    files = {"pairs": outputs / "03_write_pairs" / "pairs"}
    files |= {"init": outputs / "05_model" / "initial", "cache": outputs / "06_loader" / "cache"}
    rows = []
    for seed in seeds:
        for course, (changed, names) in courses(profile, subsets=subsets).items():
            # The courses of the stages begin alike and share what they have in common.
            folder = out / f"seed_{seed}" / ("stages" if course in config.ABLATIONS else course)
            train(changed, names, out=folder, seed=seed, **files)
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


def over_seeds(rows: list[dict], language: str = "all") -> list[dict]:
    """Return per course mean, lowest and highest score, and in how many seeds the whole beat it.

    `language`: of the questions, "all", "en" or "zh".
    """
    scores = defaultdict(dict)
    for row in rows:
        if row["language"] == language:
            scores[row["course"]][row["training_seed"]] = row["score"]
    return [
        {
            "course": course,
            "seeds": len(own),
            "mean": float(np.mean(list(own.values()))),
            "lowest": min(own.values()),
            "highest": max(own.values()),
            "below_the_whole": sum(score < scores[WHOLE][seed] for seed, score in own.items()),
        }
        for course, own in scores.items()
    ]


def main(arguments: list[str] | None = None):
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m gmai_lib.ablate")
    parser.add_argument("outputs", type=Path, help="a finished run, such as outputs/mini")
    parser.add_argument("out", type=Path, help="where checkpoints, answers and rows.json go")
    parser.add_argument("--seeds", type=int, default=3, help="that each course is trained from")
    parser.add_argument(
        "--subsets", action="store_true", help="English only and each subset left out as well"
    )
    parsed = parser.parse_args(arguments)
    options = {"seeds": tuple(range(parsed.seeds)), "subsets": parsed.subsets}
    rows = ablate(parsed.outputs, parsed.out, profile=config.load("mini"), **options)
    languages = (over_seeds(rows, language) for language in ("all", "en", "zh"))
    for row, english, chinese in zip(*languages, strict=True):
        print(
            f"{row['course']:22} {100 * row['mean']:5.1f} % ({100 * row['lowest']:.1f} to "
            f"{100 * row['highest']:.1f} over {row['seeds']} seeds), below {WHOLE} in "
            f"{row['below_the_whole']}; English {100 * english['mean']:.1f}, "
            f"Chinese {100 * chinese['mean']:.1f}"
        )


if __name__ == "__main__":
    main()
