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

`--gate` asks what the fidelity gate is worth. It refuses nothing of what the templates write, so
here the writer errs: in half of the records it reads one fact wrong (`MistakenWriter`). One course
is trained on what the gate lets through, one on as many samples of all that was written, and one on
as many of the finished run, where nothing is wrong.

All seeds share the records, the pairs and the stand-ins of the finished run in OUTPUTS; a seed
sets the order of the samples, and which are drawn where not all are. So the range is that of
training alone.

Paper: tables 7 and 8, one run each; its rows with and without its own pairs differ in size. It
checks 30 pairs of a source by hand and has no row without a check.
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
from gmai_lib.dataset import build, planted, writers
from gmai_lib.dataset.curate import read_records
from gmai_lib.evaluation import benchmarks, run
from gmai_lib.evaluation.items import Item
from gmai_lib.outputs import atomic, read_json, write_json
from gmai_lib.schema import SUBSETS, Fact, Record, Sample
from gmai_lib.training import launch

WHOLE, MIXED = "1+2+3", "own and built pairs"
EQUAL_SIZE = {"own pairs": 1.0, MIXED: 0.5}  # course -> share of what the sources bring
GATED = "errors, gated"
GATE = ("no errors", GATED, "errors, not gated")
KINDS = ("stages", "subsets", "equal size", "gate")
MISREAD = 0.5  # of the records of GATE


def courses(profile: config.Profile, kind: str) -> dict:
    """Return name -> (profile, names of the stages).

    "subsets" adds to "stages" the whole course in English only, and those that leave one subset
    out; the courses of EQUAL_SIZE and of GATE differ in their pairs alone.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not one of {list(KINDS)}")
    if kind in ("equal size", "gate"):
        return dict.fromkeys(EQUAL_SIZE if kind == "equal size" else GATE, (profile, config.STAGES))
    found = {name: (profile, names) for name, names in config.ABLATIONS.items()}
    if kind == "stages":
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


class MistakenWriter:
    """The template writer after reading one fact of some records wrong.

    Its samples hold the facts as they are, which is what the gate compares their text with.
    """

    def __init__(self, seed: int, share: float = MISREAD):
        self.seed, self.share = seed, share
        self.name = f"misread-{share}"
        self.templates = writers.TemplateWriter(seed)

    def write(self, record: Record, facts: tuple[Fact, ...], *, language: str) -> list[Sample]:
        """Return the samples of `record`, as `TemplateWriter.write` does."""
        rng = Random(f"{self.seed}|misread|{record.id}")  # wrong alike in both languages
        read = planted.misread(facts, rng) if rng.random() < self.share else facts
        written = self.templates.write(record, read, language=language)
        return [replace(sample, facts=facts, writer=self.name) for sample in written]


def gate_pairs(pairs: Path, records: list[Record], out: Path) -> dict[str, Path]:
    """Write what a MistakenWriter writes of the training records, gated and not, below `out`.

    With seed and share of Chinese of the finished build in `pairs`. Returns course -> folder.
    """
    made = read_json(Path(pairs) / "manifest.json")
    train = [record for record in records if record.split == "train"]
    same = {name: made[name] for name in ("seed", "chinese_fraction", "use", "shard_records")}
    found = {"no errors": Path(pairs)}
    for course in GATE[1:]:
        found[course] = Path(out) / course
        writer = MistakenWriter(made["seed"])
        build.write_pairs(train, found[course], writer=writer, gate=course == GATED, **same)
    return found


def _training_samples(pairs: Path):
    """The training shards of `pairs` as one table on disk."""
    from pyarrow import dataset

    return dataset.dataset(sorted(map(str, Path(pairs).glob("train-*.parquet"))))


def _write_drawn(samples, ids: list[str], out: Path) -> Path:
    """Write the samples of these ids to one training shard in the folder `out`; return it."""
    from pyarrow import dataset, parquet

    table = samples.to_table(filter=dataset.field("id").isin(ids))
    Path(out).mkdir(parents=True, exist_ok=True)
    with atomic(Path(out) / "train-00000-of-00001.parquet") as partial:
        parquet.write_table(table, partial)
    return Path(out)


def as_many(pairs: Path, number: int, out: Path, *, seed: int) -> Path:
    """Write `number` training samples of `pairs`, drawn by `seed`, to `out`; return `out`."""
    samples = _training_samples(pairs)
    ids = samples.to_table(columns=["id"])["id"].to_pylist()
    if len(ids) < number:
        raise ValueError(f"{pairs} has {len(ids)} training samples; {number} are wanted")
    return _write_drawn(samples, Random(f"{seed}|as many").sample(ids, number), out)


def equal_pairs(pairs: Path, records: list[Record], out: Path, *, share: float, seed: int) -> Path:
    """Write to the folder `out` as many training samples as the sources of `records` brought.

    `share` of them are drawn from those, the others from what was written from annotation
    (also about images of the same sources). Returns `out`; ValueError if there are too few.
    """
    brought = {
        (record.id, subset, record.language)
        for record in records
        for subset, said in (
            ("caption", record.report),
            ("text_single" if record.image is None else "instruct", record.qa),
        )
        if said
    }
    samples = _training_samples(pairs)
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
    return _write_drawn(samples, drawn, out)


def ablate(
    outputs: Path,
    out: Path,
    *,
    profile: config.Profile,
    seeds: tuple[int, ...] = (0, 1, 2),
    kind: str = "stages",
    train: Callable = launch.run_stages,
    ask: Callable | None = None,
) -> list[dict]:
    """Return the overall rows of `run.summarise` for every course and seed.

    `kind`: one of KINDS, see the module docstring. They are also written to `out`/rows.json, of
    another kind than "stages" to `out`/rows_gate.json and the like.

    Three of each benchmark: all questions, the English and the Chinese ones.

    `outputs` is a finished run of `profile`. `ask(checkpoint, items, out_jsonl)` returns the
    responses (default: `run.evaluate_jobs`). Rows have "course" and "training_seed" beside the
    columns of results.json.
    """
    outputs, out, ask = Path(outputs), Path(out), ask or _ask
    records = list(read_records(outputs / "02_curate" / "records"))
    sizes = {"seed": 0, "num_images": profile.benchmark_images}
    items = benchmarks.phantom_benchmark(records, **sizes)
    if kind == "equal size":
        items += chain.from_iterable(benchmarks.source_benchmarks(records).values())
    prior = benchmarks.phantom_benchmark(records, split="train", **sizes)
    files = {"pairs": outputs / "03_write_pairs" / "pairs"}
    files |= {"init": outputs / "05_model" / "initial", "cache": outputs / "06_loader" / "cache"}
    written = gate_pairs(files["pairs"], records, out / "pairs") if kind == "gate" else {}
    passed = _training_samples(written[GATED]).count_rows() if written else 0
    planned, rows = courses(profile, kind), []
    for seed in seeds:
        for course, (changed, names) in planned.items():
            # The courses of the stages begin alike and share what they have in common.
            folder = out / f"seed_{seed}" / ("stages" if course in config.ABLATIONS else course)
            own = {}
            if kind == "equal size":
                drawn = {"share": EQUAL_SIZE[course], "seed": seed}
                own["pairs"] = equal_pairs(files["pairs"], records, folder / "pairs", **drawn)
            elif kind == "gate":
                own["pairs"] = as_many(written[course], passed, folder / "pairs", seed=seed)
            if own:
                own["cache"] = folder / "cache"
            train(changed, names, out=folder, seed=seed, **files | own)
            checkpoint = folder / f"{len(names)}_{names[-1]}" / "checkpoint"
            said = ask(checkpoint, items, folder / f"{course}.jsonl")
            rows += [
                {"course": course, "training_seed": seed} | row
                for row in run.summarise(items, said, None, checkpoint=course, prior_items=prior)
                if (row["kind"], row["metric"], row["subset"]) == ("overall", "accuracy", "all")
            ]
            name = "rows" if kind == "stages" else f"rows_{kind.replace(' ', '_')}"
            write_json(out / f"{name}.json", rows)
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
    """The course that the others are compared with."""
    return next((name for name in (WHOLE, MIXED, GATED) if name in names), WHOLE)


def main(arguments: list[str] | None = None):
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m gmai_lib.ablate")
    parser.add_argument("outputs", type=Path, help="a finished run, such as outputs/mini")
    parser.add_argument("out", type=Path, help="where checkpoints, answers and rows.json go")
    parser.add_argument("--seeds", type=int, default=3, help="that each course is trained from")
    which = parser.add_mutually_exclusive_group()
    for kind, said in {
        "subsets": "English only and each subset left out as well",
        "equal size": "the sources' own pairs, and half of them built",
        "gate": "pairs of a writer that errs, with and without the fidelity gate",
    }.items():
        flag = "--" + kind.replace(" ", "-")
        which.add_argument(flag, dest="kind", action="store_const", const=kind, help=said)
    parsed = parser.parse_args(arguments)
    options = {"seeds": tuple(range(parsed.seeds)), "kind": parsed.kind or "stages"}
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
