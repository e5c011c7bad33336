"""Dataset card and model card, generated from counts and results.

No number is typed here but the paper's own, which stand beside ours for comparison. Both cards
are Markdown with the metadata block that the Hugging Face hub reads.

Paper: section 3 (composition), tables 4 to 8 (results). Departs: the cards name sources, licences,
what was dropped and why, and what the numbers cannot show.

The README's tables come from here too, between its markers:

    python -m gmai_lib.cards README.md outputs/mini --data outputs_data/mini
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import yaml

from gmai_lib import outputs, report
from gmai_lib.dataset import licenses
from gmai_lib.dataset.croissant import LIMITS
from gmai_lib.schema import LANGUAGES, NOT_CLINICAL, SUBSETS

# Percent of image records; arXiv:2411.14522 v2, figure 2. OCT and infrared reflectance are 1.4
# and 2.0 in an order that the figure leaves unclear.
PAPER_MODALITY_SHARES = {
    "CT": 26.8,
    "MR": 24.7,
    "endoscopy": 12.6,
    "histopathology": 11.2,
    "X-ray": 6.7,
    "fundus": 5.3,
    "dermoscopy": 3.5,
    "ultrasound": 3.0,
    "microscopy": 2.4,
    "OCT": 1.4,
    "infrared reflectance": 2.0,
    "PET": 0.2,
    "ophthalmoscope": 0.1,
}
# Millions of samples; arXiv:2411.14522 v2, tables 9 and 10.
PAPER_SUBSETS = {
    "caption": 1.7,
    "percept": 1.3,
    "instruct": 0.9,
    "text_single": 1.0,
    "text_multi": 0.649,
}


def modality_shares(manifest: dict) -> list[dict]:
    """Return rows {"modality", "ours", "paper"}: percent of the image samples.

    Modalities that the paper does not name follow its thirteen, with None for the paper.
    """
    ours: Counter = Counter()
    for row in manifest["counts"]:
        if row["modality"] != "text":
            ours[row["modality"]] += row["samples"]
    total = sum(ours.values())
    return [
        {
            "modality": name,
            "ours": round(100 * ours[name] / total, 1),
            "paper": PAPER_MODALITY_SHARES.get(name),
        }
        for name in dict.fromkeys((*PAPER_MODALITY_SHARES, *sorted(ours)))
    ]


def subset_shares(manifest: dict) -> list[dict]:
    """Return rows {"subset", "samples", "ours", "paper"}: percent of all samples."""
    ours: Counter = Counter()
    for row in manifest["counts"]:
        ours[row["subset"]] += row["samples"]
    total, printed = sum(ours.values()), sum(PAPER_SUBSETS.values())
    return [
        {
            "subset": name,
            "samples": ours[name],
            "ours": round(100 * ours[name] / total, 1),
            "paper": round(100 * PAPER_SUBSETS[name] / printed, 1),
        }
        for name in SUBSETS
    ]


def source_rows(manifest: dict, records: list[dict], ledger: list[dict]) -> list[dict]:
    """Return one row per source: licence, access, modality, records, samples, drops by reason.

    `records` are rows of the curated records (source, license, access, modality), `ledger` the
    rows of all ledgers; drops are counted in items, not annotations.
    """
    rows = {}
    for name in sorted({row["source"] for row in records}):
        own = [row for row in records if row["source"] == name]
        dropped = Counter()
        for row in ledger:
            if row["source"] == name and row["outcome"] != "kept" and row["level"] == "item":
                dropped[row["outcome"]] += row["count"]
        rows[name] = {
            "source": name,
            "license": ", ".join(sorted({row["license"] for row in own})),
            "access": ", ".join(sorted({row["access"] for row in own})),
            "modality": ", ".join(sorted({row["modality"] for row in own})),
            "records": len(own),
            "samples": sum(r["samples"] for r in manifest["counts"] if r["source"] == name),
            "dropped": sum(dropped.values()),
            "reasons": "; ".join(f"{reason} ({n})" for reason, n in dropped.most_common()),
        }
    return list(rows.values())


def dataset_card(manifest: dict, sources: list[dict], measured: dict[str, int]) -> str:
    """Return README.md of the built dataset.

    `sources` are `source_rows`; `measured` is what planted.measure counted.
    """
    stated = [
        {"source": row["source"], "license": name, "access": row["access"]}
        for row in sources
        for name in row["license"].split(", ")
    ]
    names = {row["license"] for row in stated}
    binding = licenses.strictest(names)
    counts = Counter()
    for row in manifest["counts"]:
        for column in ("subset", "language", "split"):
            counts[column, row[column]] += row["samples"]
    meta = licenses.hub_metadata(binding) | {
        "language": [code for code in LANGUAGES if counts["language", code]],
        "task_categories": ["image-text-to-text", "visual-question-answering"],
        "tags": ["medical", "research-only"],
        "pretty_name": "GMAI-VL Workbook pairs",
    }
    split_rows = [
        {"split": split, "samples": n}
        for (column, split), n in sorted(counts.items())
        if column == "split"
    ]
    parts = [
        f"---\n{yaml.safe_dump(meta, sort_keys=False)}---\n",
        "# GMAI-VL Workbook: image-text pairs from expert annotation\n",
        f"{NOT_CLINICAL}\n",
        f"{manifest['num_samples']:,} samples from {manifest['num_records']:,} records of "
        f"{len(sources)} sources. Every sample keeps the annotation it was written from (`labels`, "
        "`boxes`, `facts`), its source, licence and split.\n",
        "```python\nfrom datasets import load_dataset\n\n"
        'pairs = load_dataset("parquet", data_dir="03_write_pairs/pairs")\n```\n',
        "## Composition\n",
        table(subset_shares(manifest)),
        table(split_rows),
        "## Sources\n",
        table(sources),
        "## Licences\n",
        f"Built for {manifest['use']} use. The strictest licence among the sources is "
        f"**{binding}** ({licenses.terms(binding)}); it binds the whole.{_beside(names)}\n",
        table(licenses.table(stated)),
        "## How the text was made\n",
        f"By `{manifest['writer']}` from the annotation alone: templates, no language model. "
        f"{100 * manifest['chinese_fraction']:.0f} % of the English image records are written in "
        "Chinese as well, from the same facts. Answers that a source brought along are used as "
        "they are.\n",
        "## Fidelity\n",
        f"{manifest['fidelity']['checked']:,} samples were checked against their facts, "
        f"{len(manifest['fidelity']['refused'])} of them refused; their reasons are in "
        f"`manifest.json`. The check caught {_percent(measured, 'caught', 'planted')} of "
        f"{measured['planted']:,} planted errors and refused "
        f"{_percent(measured, 'false_alarms', 'texts')} of {measured['texts']:,} right "
        "descriptions. It knows the words of the lexicon only.\n",
        "## Splits\n",
        "By patient, volume or image group, never by row; identical images share a split.\n",
        "## Known limits\n",
        "".join(f"- {limit}\n" for limit in LIMITS),
    ]
    return "\n".join(parts)


def _beside(names: set[str]) -> str:
    """What is said of licences whose conditions the strictest one lacks."""
    others = ", ".join(licenses.uncovered(names))
    return f" It does not carry all conditions of {others}, which hold beside it." if others else ""


def _percent(counts: dict[str, int], part: str, whole: str) -> str:
    return f"{100 * counts[part] / counts[whole]:.1f} %"


def model_card(profile, results: list[dict], parameters: list[dict], stages: list[dict]) -> str:
    """Return the model card: what was trained on what, and every score with its blind score.

    `results` are rows of results.json of the final checkpoint, `parameters` those of
    `parameter_table`, `stages` {"stage", "steps", "seconds", "final_loss"}.
    """
    meta = {
        "license": "apache-2.0",
        "pipeline_tag": "image-text-to-text",
        "library_name": "transformers",
        "tags": ["medical", "research-only"],
    }
    columns = ("benchmark", "kind", "metric", "num_items", "score", "ci_low", "ci_high")
    columns += ("blind_score", "majority_score")
    scores = [
        {c: f"{row[c]:.3f}" if isinstance(row[c], float) else row[c] for c in columns}
        for row in results
    ]
    backbones = (
        "Vision tower and language model are stand-ins trained from scratch."
        if not profile.vision.pretrained
        else f"Backbones: {profile.vision.pretrained}, {profile.text.pretrained}."
    )
    parts = [
        f"---\n{yaml.safe_dump(meta, sort_keys=False)}---\n",
        f"# GMAI-VL Workbook, profile `{profile.name}`\n",
        f"{NOT_CLINICAL}\n",
        "The architecture and the three training stages of GMAI-VL (arXiv:2411.14522): CLIP-layout "
        f"vision tower, two-layer projector, Llama-layout language model. {backbones} The paper's "
        "own results are not reproduced by this checkpoint.\n",
        "## Parts\n",
        table([{k: row[k] for k in ("part", "parameters")} for row in parameters]),
        "## Training\n",
        table(stages),
        "## Results\n",
        "`blind_score` is the same model without the image; `majority_score` always gives the most "
        "frequent answer. Intervals are 95 %, over images.\n",
        table(scores),
        "## Limits\n",
        "- Scores on phantoms say that the machinery works, nothing about clinical ability.\n"
        "- The model knows only the words of its training text.\n"
        "- It has not been tested for bias, safety or robustness.\n",
        "## Configuration\n",
        f"```json\n{json.dumps(_stages(profile), indent=1)}\n```\n",
    ]
    return "\n".join(parts)


def readme_tables(folder: Path) -> dict[str, str]:
    """Return the README's sections {"chain", "results"} from one finished run in `folder`."""
    environment = outputs.read_json(folder / "00_environment" / "environment.json")
    runs = list(outputs.read_json(folder / "chain.json").values())
    minutes = sum(run["seconds"] for run in runs) / 60
    chain = [
        {
            "notebook": run["notebook"],
            "seconds": round(run["seconds"]),
            "peak memory (GB)": f"{run['peak_memory_mb'] / 1000:.1f}",
        }
        for run in runs
    ]
    rows = report.main_rows(outputs.read_json(folder / "10_evaluate" / "results.json"))
    final = rows[-1]["checkpoint"]
    stages = [row for row in rows if row["benchmark"] == "phantom" and row["kind"] == "overall"]
    found = environment["machine"]
    seed = outputs.read_json(folder / "09_instruction_tuning" / "run.json")["seed"]
    machine = (
        f"{found['cores']} cores, {len(environment['devices'])} GPUs, Python {found['python']}, "
        f"torch {environment['packages']['torch']}, commit {environment['commit']}, seed {seed}"
    )
    parts = [
        f"Phantom benchmark, overall, after each stage ({machine}):\n",
        table([{"checkpoint": row["checkpoint"]} | _scores(row) for row in stages]),
        f"Every benchmark and kind of question, checkpoint {final}:\n",
        table(
            [
                {"benchmark": row["benchmark"], "kind": row["kind"], "metric": row["metric"]}
                | _scores(row)
                for row in rows
                if row["checkpoint"] == final
            ]
        ),
    ]
    heading = f"Measured: {minutes:.1f} minutes for all notebooks ({machine}).\n"
    return {"chain": f"{heading}\n{table(chain)}", "results": "\n".join(parts)}


def _scores(row: dict) -> dict:
    """Cells of one row of results.json: score, interval, blind and majority, in percent."""
    percent = {name: f"{100 * row[name]:.1f}" for name in ("score", "ci_low", "ci_high")}
    return {
        "n": row["num_items"],
        "score (%)": percent["score"],
        "95 % interval": f"{percent['ci_low']} to {percent['ci_high']}",
        "without the image (%)": f"{100 * row['blind_score']:.1f}",
        "majority answer (%)": f"{100 * row['majority_score']:.1f}",
    }


def fill_readme(readme: Path, sections: dict[str, str]):
    """Replace what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""
    text = readme.read_text("utf-8")
    for name, content in sections.items():
        marks = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if not all(mark in text for mark in marks):
            raise ValueError(f"{readme} has no markers {marks} to put the section between")
        pattern = re.escape(marks[0]) + ".*?" + re.escape(marks[1])
        filled = f"{marks[0]}\n{content.strip()}\n{marks[1]}"
        text = re.sub(pattern, lambda _, filled=filled: filled, text, flags=re.DOTALL)
    with outputs.atomic(readme) as partial:
        partial.write_text(text, "utf-8")


def table(rows: list[dict]) -> str:
    """Return rows as a Markdown table; ValueError if there are none."""
    if not rows:
        raise ValueError("a table needs at least one row")
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row[column]) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(value) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _stages(profile) -> list[dict]:
    names = ("name", "trainable", "learning_rates", "max_steps", "global_batch_size", "max_length")
    return [{name: getattr(stage, name) for name in names} for stage in profile.stages]


def main(arguments: list[str] | None = None):
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description="Fill the README's tables from finished runs.")
    parser.add_argument("readme", type=Path)
    parser.add_argument("folder", type=Path, help="outputs/mini of a run without DATA")
    parser.add_argument("--data", type=Path, help="outputs/mini of a run with DATA")
    parsed = parser.parse_args(arguments)
    sections = readme_tables(parsed.folder)
    if parsed.data:
        own = readme_tables(parsed.data)
        sections |= {f"data-{name}": content for name, content in own.items()}
    fill_readme(parsed.readme, sections)


if __name__ == "__main__":
    main()
