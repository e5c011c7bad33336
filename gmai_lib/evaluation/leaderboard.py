"""A model on the published benchmarks of a folder, beside what others have printed.

    python -m gmai_lib.evaluation.leaderboard MODEL path/to/benchmarks out/
    python -m gmai_lib.evaluation.leaderboard NAME path/to/benchmarks out/ --base-url http://...:8000/v1

MODEL is a checkpoint of this project, or a folder or hub name that AutoModelForImageTextToText
loads; with `--base-url`, what an OpenAI-compatible endpoint calls it. Every benchmark is asked with
and without the images (`--controls` adds a grey image and another item's). Answers go to
out/<benchmark>/<mode>.jsonl, one line each, and are not asked again; all scores to
out/results.json, after every benchmark; one that cannot be asked does not end the others. A folder
`out` is that of one model. Where the answers are kept back (GMAI-MMBench TEST), the form for its
owners is written instead.

A printed score stands beside ours only where it is of the same part and counts as many items; all
others are listed apart, because the paper's own tables mix denominators.

Paper: tables 4 to 8. Departs: prompts and scorer are this project's.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from gmai_lib.dataset.curate import read_records
from gmai_lib.evaluation import askers, endpoint, results, run
from gmai_lib.evaluation.contamination import flag_contaminated
from gmai_lib.evaluation.items import Item, write_items
from gmai_lib.evaluation.published_benchmarks import get, load, recognise, write_submission
from gmai_lib.evaluation.published_files import UNKNOWN
from gmai_lib.llm import Asker, Endpoint
from gmai_lib.outputs import read_json, write_csv, write_json
from gmai_lib.schema import Record

MODES = ("image", "none")
CONTROLS = ("blank", "shuffled")
_TITLES = {  # benchmark -> how published.csv calls it
    "vqa_rad": "VQA-RAD",
    "slake_en": "SLAKE",
    "path_vqa": "PathVQA",
    "pmc_vqa": "PMC-VQA",
    "pmc_vqa_clean": "PMC-VQA",
    "omnimedvqa": "OmniMedVQA",
    "gmai_mmbench": "GMAI-MMBench",
    "mmmu_health": "MMMU Health & Medicine",
}

Ask = Callable[[list[Item], Path, str], list[dict]]  # items, file, image mode -> responses


def present(folder: Path, only: Iterable[str] = ()) -> dict[str, Path]:
    """Return name -> root of every published benchmark in `folder`, or of those in `only`.

    Raises FileNotFoundError if there is no such folder, no benchmark in it or one of `only` is
    missing, ValueError for a name that no benchmark has, and for one that lies there twice.
    """
    roots: dict[str, Path] = {}
    for name, root in recognise(Path(folder)):
        if name in roots:
            raise ValueError(f"{name} lies in {roots[name]} and in {root}; take one of them away")
        roots[name] = root
    missing = [name for name in only if get(name).name not in roots]
    if missing or not roots:
        raise FileNotFoundError(
            f"{folder} holds {', '.join(sorted(roots)) or 'no published benchmark'}"
            f"{', not ' + ', '.join(missing) if missing else ''}; "
            "python -m gmai_lib.evaluation.fetch says where each is obtained"
        )
    return {name: roots[name] for name in only or roots}


def local(model, processor, **options) -> Ask:
    """Return who asks a loaded model; `options` are those of `run.evaluate`."""

    def ask(items: list[Item], out_jsonl: Path, image_mode: str) -> list[dict]:
        about = {"out_jsonl": out_jsonl, "image_mode": image_mode}
        return run.evaluate(model, processor, items, **about, **options)

    return ask


def remote(served: Endpoint, *, seed: int = 0) -> Ask:
    """Return who asks a model behind an endpoint, as `endpoint.ask` does."""

    def ask(items: list[Item], out_jsonl: Path, image_mode: str) -> list[dict]:
        # Every published benchmark can be had without an agreement; keys that are kept back are
        # not in the items.
        access = {item.benchmark: "open" for item in items}
        asker = Asker(served, out_jsonl.with_suffix(".journal.jsonl"))
        said = endpoint.ask(items, asker, access=access, image_mode=image_mode, seed=seed)
        header = run.header_of(items, image_mode, seed) | {"model": served.model}
        run.write_responses(out_jsonl, header, said)
        return said

    return ask


def stored(items: list[Item], out_jsonl: Path, image_mode: str) -> list[dict]:
    """Return the answers that an earlier run left; nothing is asked.

    Raises FileNotFoundError if there are none, ValueError if some are missing, or if they are to
    other items.
    """
    header, said = run.read_responses(out_jsonl)
    if header.get("items_sha256") != run.items_sha256(items):
        raise ValueError(
            f"{out_jsonl} has answers to other items than the {len(items):,} of "
            f"{items[0].benchmark}; ask again, or bring back the files they were asked from"
        )
    if len(said) < len(items):
        raise ValueError(
            f"{out_jsonl} has {len(said):,} of {len(items):,} answers: run without --stored"
        )
    return list(said.values())


def measure(
    ask: Ask,
    roots: dict[str, Path],
    out: Path,
    *,
    model: dict,
    modes: tuple[str, ...] = MODES,
    incomplete: bool = False,
    training: Iterable[Record] = (),
    draws: int = 1000,
    seed: int = 0,
) -> tuple[list[dict], dict[str, str]]:
    """Ask every benchmark of `roots`; return the rows of out/results.json, and what failed and why.

    `model` says who answers: {"name", and if it matters "base_url", ...}; it is kept in
    out/model.json. Rows are those of `results.summarise` and "image_mode"; the blind score comes
    from mode "none", which rows of mode "image" carry. Items without an image are asked once, those
    whose answer is kept back with their images only. A mode "shuffled" has none of the benchmarks
    of a single image group. Rows of benchmarks that were asked before stay.

    `incomplete` as in `published_benchmarks.load`. With `training`, records that the model has
    seen, items are marked "contaminated=yes" or "=no" (`contamination.flag_contaminated`).

    Raises ValueError if `out` is another model's; PermissionError and ConnectionError end the run.
    """
    out, failed, training = Path(out), {}, list(training)
    _claim(out, model)
    written = out / "results.json"
    rows = read_json(written) if written.is_file() else []
    for name, root in roots.items():
        try:
            items = load(name, root, incomplete=incomplete)
            if not items:
                raise ValueError(f"{name} in {root}: no item can be asked")
            items = flag_contaminated(items, training) if training else items
            own = _rows(ask, items, out / name, model["name"], modes, draws, seed)
        except (ConnectionError, PermissionError):
            raise  # for every other benchmark, too
        except (OSError, ValueError, RuntimeError) as error:
            failed[name] = str(error)
            continue
        rows = [row for row in rows if row["benchmark"] != name] + own
        write_json(written, rows)
    return rows, failed


def _claim(out: Path, model: dict):
    """Write out/model.json; ValueError if it names another model."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.json"
    if path.is_file() and (found := read_json(path)) != model:
        raise ValueError(
            f"{out} holds answers of {found}, not of {model}; give every model a folder of its own"
        )
    write_json(path, model)


def _rows(
    ask: Ask, items: list[Item], folder: Path, name: str, modes: tuple, draws: int, seed: int
) -> list[dict]:
    folder.mkdir(parents=True, exist_ok=True)
    write_items(items, folder / "items.jsonl")
    kept_back = any(item.answer == UNKNOWN for item in items)
    if kept_back or not any(item.images for item in items):
        modes = ("image",)
    elif run.without_exchange(items):
        modes = tuple(mode for mode in modes if mode != "shuffled")
    said = {mode: ask(items, folder / f"{mode}.jsonl", mode) for mode in modes}
    if kept_back:
        write_submission(items, said["image"], folder / "submission.tsv")
        return []
    rows = []
    for mode, responses in said.items():
        blind = said.get("none") if mode == "image" else None
        options = {"checkpoint": name, "draws": draws, "seed": seed}
        scored = results.summarise(items, responses, blind, **options)
        rows += [{"image_mode": mode} | row for row in scored]
    return rows


def beside(rows: list[dict], printed: list[dict]) -> list[dict]:
    """Return own scores, each followed by the printed ones of as many items, then all others.

    Rows: benchmark, subset, model, score (percent), ci_low, ci_high and blind (the score without
    the images; None where printed), num_items, items ("ours", "as many", "not stated" or "other
    items"), protocol and note. Own rows are those of whole benchmarks, and of subsets that a
    printed row counts as many items of.
    """
    table, used = [], set()
    whole = {"image_mode": "image", "metric": "accuracy", "language": "all", "kind": "overall"}
    chosen = [row for row in rows if whole.items() <= row.items()]
    for row in chosen:
        title = _TITLES.get(row["benchmark"], row["benchmark"])
        same = [
            n
            for n, other in enumerate(printed)
            if other["benchmark"] == title and _fits(row, other)
        ]
        if row["subset"] != "all" and not same:
            continue
        used |= set(same)
        own = {"benchmark": title, "subset": row["subset"], "model": row["checkpoint"]}
        own |= {key: 100 * row[key] for key in ("score", "ci_low", "ci_high")}
        blind = row["blind_score"]
        own |= {"blind": None if blind is None else 100 * blind}
        own |= {"num_items": row["num_items"], "items": "ours", "protocol": row["protocol"]}
        table.append(own | {"note": ""})
        table += [_printed(printed[n], "as many") for n in same]
    titles = {_TITLES.get(row["benchmark"], row["benchmark"]) for row in chosen}
    for n, other in enumerate(printed):
        if other["benchmark"] in titles and n not in used:
            table.append(_printed(other, "other items" if other["num_items"] else "not stated"))
    return table


# What is called a whole in print, and our subsets that a printed whole may be.
_WHOLE = ("", "val", "test", "overall", "average")
_WHOLES = ("all", "closed=yes/no", "answer_type=closed", "question_type=multiple-choice")


def _fits(own: dict, printed: dict) -> bool:
    """Whether a printed score is of the same questions, as far as names and numbers say."""
    if printed["num_items"] != own["num_items"]:
        return False
    if printed["subset"] in _WHOLE:
        return own["subset"] in _WHOLES
    return own["subset"].partition("=")[2].replace("_", " ").lower() == printed["subset"]


def _printed(row: dict, items: str) -> dict:
    shared = {key: row[key] for key in ("benchmark", "subset", "model", "score", "num_items")}
    shared |= {"ci_low": None, "ci_high": None, "blind": None, "items": items}
    return shared | {"protocol": f"{row['protocol']}; {row['source']}", "note": row["note"]}


def _lines(table: list[dict]) -> Iterable[str]:
    for row in table:
        if row["items"] == "ours":
            yield (
                f"{row['benchmark']} ({row['subset']}), {row['num_items']:,} items: {row['model']} "
                f"{row['score']:.1f} % ({row['ci_low']:.1f} to {row['ci_high']:.1f})"
            )
        elif row["items"] == "as many":
            note = f" [{row['note']}]" if row["note"] else ""
            yield f"    as many items: {row['model']} {row['score']:.1f}, {row['protocol']}{note}"
    if left := sum(row["items"] in ("not stated", "other items") for row in table):
        yield f"{left} printed scores count other items or do not say how many: not compared"


def _asker(parsed: argparse.Namespace) -> Ask:
    if parsed.stored:
        return stored
    if parsed.base_url:
        tokens = askers.OTHER_MODELS_MAX_NEW_TOKENS
        served = {"base_url": parsed.base_url, "model": parsed.model, "max_tokens": tokens}
        return remote(Endpoint(**served, temperature=0.0))
    return local(*askers.load_model(parsed.model), batch_size=parsed.batch_size)


def main(arguments: list[str] | None = None) -> int:
    """Command line; see the module docstring. Returns 1 if something could not be asked."""
    parser = argparse.ArgumentParser(prog="python -m gmai_lib.evaluation.leaderboard")
    parser.add_argument("model", help="checkpoint, hub folder or name, or name at the endpoint")
    parser.add_argument("benchmarks", type=Path, help="folder with the published benchmarks")
    parser.add_argument("out", type=Path, help="where answers and scores of this model go")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these benchmarks")
    parser.add_argument("--incomplete", action="store_true", help="warn of lost rows, do not stop")
    parser.add_argument("--controls", action="store_true", help="a grey and another image as well")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--base-url", default="", help="of an OpenAI-compatible endpoint (.../v1)")
    parser.add_argument("--stored", action="store_true", help="score stored answers; ask no model")
    parser.add_argument(
        "--training-records", type=Path, help="02_curate/records: flag items that it holds"
    )
    parsed = parser.parse_args(arguments)
    model, known = {"name": parsed.model, "base_url": parsed.base_url}, parsed.out / "model.json"
    try:
        if parsed.stored and known.is_file():
            model["base_url"] = read_json(known)["base_url"]
        roots = present(parsed.benchmarks, parsed.only)
        seen = read_records(parsed.training_records) if parsed.training_records else ()
        rows, failed = measure(
            _asker(parsed),
            roots,
            parsed.out,
            model=model,
            modes=MODES + (CONTROLS if parsed.controls else ()),
            incomplete=parsed.incomplete,
            training=(record for record in seen if record.split == "train"),
        )
        if table := beside(rows, results.published()):
            write_csv(parsed.out / "beside.csv", table)
    except (OSError, ValueError, RuntimeError) as error:  # ConnectionError is an OSError
        print(error, file=sys.stderr)
        return 1
    print("\n".join(_lines(table)))
    for form in sorted(parsed.out.glob("*/submission.tsv")):
        print(f"{form.parent.name}: no score, its answers are kept back; {form} is for its owners")
    for name, reason in failed.items():
        print(f"{name} was not asked: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
