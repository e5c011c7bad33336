"""report: every figure is written with its numbers, and shows what it was given."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gmai_lib import config, outputs, report
from gmai_lib.evaluation import protocols
from gmai_lib.schema import MODALITIES


def rows_of(out, name):
    with (out / "figures" / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def result_rows():
    kinds, checkpoints = ("overall", "finding"), ("05_model", "09_instruction_tuning")
    return [
        {
            "benchmark": "phantom",
            "kind": kind,
            "what": kind,
            "checkpoint": checkpoint,
            "metric": "accuracy",
            "num_items": 40,
            "score": 0.5,
            "ci_low": 0.4,
            "ci_high": 0.65,
            "blind_score": blind,
            "majority_score": 0.3,
        }
        for kind in kinds
        for checkpoint, blind in zip(checkpoints, (None, 0.2), strict=True)
    ]


def picture(**more):
    return {"image": np.full((16, 16), 90, np.uint8), "caption": "CT, lung", **more}


CALIBRATED = protocols.calibration([0.3, 0.8, 0.9], [1, 0, 1], bins=4)
FIGURES = {
    "contact_sheet": lambda out: report.contact_sheet(
        [picture(boxes=[(0.1, 0.1, 0.5, 0.5)]), picture(), picture()],
        out,
        "contact_sheet",
        title="t",
        columns=2,
        note="n",
    ),
    "plot_counts": lambda out: report.plot_counts(
        [{"modality": "CT", "n": 3}, {"modality": "MR", "n": 5}],
        out,
        "plot_counts",
        label="modality",
        value="n",
        title="t",
        unit="records",
        colours=report.MODALITY_COLOURS,
    ),
    "plot_stacked": lambda out: report.plot_stacked(
        [{"name": "a", "x": 1, "y": 2}, {"name": "b", "x": 2}],
        out,
        "plot_stacked",
        label="name",
        parts={"x": report.BLUE, "y": report.RED},
        title="t",
        unit="GB",
    ),
    "plot_shares": lambda out: report.plot_shares(
        [{"m": "CT", "ours": 10.0, "paper": 26.8}, {"m": "text", "ours": None, "paper": None}],
        out,
        "plot_shares",
        label="m",
        title="t",
        unit="%",
    ),
    "plot_curves": lambda out: report.plot_curves(
        [{"step": i, "loss": 5 - i / 10, "rate": None if i else 1.0} for i in range(30)],
        out,
        "plot_curves",
        x="step",
        y=("loss", "rate"),
        title="t",
        x_label="step",
        y_labels=("loss", "rate"),
        smooth=5,
    ),
    "plot_forest": lambda out: report.plot_forest(result_rows(), out, "plot_forest", title="t"),
    "plot_blind": lambda out: report.plot_blind(
        [r for r in result_rows() if r["blind_score"]], out, "plot_blind", title="t"
    ),
    "plot_confusion": lambda out: report.plot_confusion(
        [("cyst", "cyst"), ("cyst", "nodule"), ("nodule", "a poem")],
        out,
        "plot_confusion",
        title="t",
    ),
    "plot_coverage": lambda out: report.plot_coverage(
        [
            pd.crosstab(pd.Series(["CT", "CT", "MR"], name="m"), pd.Series([*kinds], name=name))
            for name, kinds in (("organ", "aab"), ("task", "xyz"))
        ],
        out,
        "plot_coverage",
        title="t",
    ),
    "plot_token_strip": lambda out: report.plot_token_strip(
        ["<image>", "What", "$x$", "\n", "yes"],
        [False] * 4 + [True],
        out,
        "plot_token_strip",
        title="t",
    ),
    "plot_packs": lambda out: report.plot_packs([[3, 4], [7]], 8, out, "plot_packs", title="t"),
    "plot_mask": lambda out: report.plot_mask(
        np.tril(np.ones((6, 6), bool)), out, "plot_mask", title="t"
    ),
    "plot_calibration": lambda out: report.plot_calibration(
        {"a": CALIBRATED, "b": CALIBRATED}, out, "plot_calibration", title="t"
    ),
    "plot_anatomy": lambda out: report.plot_anatomy(
        config.load("paper"), dict.fromkeys(config.PARTS, 2_000_000), out, "plot_anatomy"
    ),
    "plot_attention": lambda out: report.plot_attention(
        [picture(weights=np.eye(4)), picture(weights=np.zeros((4, 4)))],
        out,
        "plot_attention",
        title="t",
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_written_as_png_with_its_numbers(name, tmp_path):
    shown = FIGURES[name](tmp_path)
    png = tmp_path / "figures" / f"{name}.png"
    assert Path(shown.filename) == png and rows_of(tmp_path, name)
    with Image.open(png) as opened:
        pixels = np.asarray(opened.convert("L"))
        assert round(opened.info["dpi"][0]) == report.DPI
    assert (pixels < 128).sum() > 50  # something is drawn


def test_every_public_plot_is_covered_here():
    plots = {name for name in vars(report) if name.startswith("plot_")} | {"contact_sheet"}
    assert plots == set(FIGURES)


def test_calibration_writes_every_bin_of_every_panel(tmp_path):
    FIGURES["plot_calibration"](tmp_path)
    rows = rows_of(tmp_path, "plot_calibration")
    assert [row["panel"] for row in rows] == ["a"] * 4 + ["b"] * 4
    assert [row["num_items"] for row in rows[:4]] == ["0", "1", "0", "2"]
    assert {float(row["ece"]) for row in rows} == {CALIBRATED["ece"]}
    assert rows[0]["accuracy"] == "" and rows[3]["accuracy"] == "0.5"


def test_confusion_counts_answers_outside_the_references_as_other(tmp_path):
    FIGURES["plot_confusion"](tmp_path)
    rows = {
        (r["reference"], r["prediction"]): int(r["count"])
        for r in rows_of(tmp_path, "plot_confusion")
    }
    assert rows["nodule", "other"] == 1 and rows["cyst", "nodule"] == 1
    assert sum(rows.values()) == 3


def test_coverage_counts_every_cell_of_every_table(tmp_path):
    FIGURES["plot_coverage"](tmp_path)
    rows = {
        (r["table"], r["m"], r["value"]): r["count"] for r in rows_of(tmp_path, "plot_coverage")
    }
    assert len(rows) == 2 * 2 + 2 * 3 and rows["organ", "CT", "a"] == "2"
    assert rows["organ", "MR", "a"] == "0" and rows["task", "MR", "z"] == "1"


def test_boxes_are_drawn_where_they_are(tmp_path):
    """An orange frame around the lower right quarter colours that quarter only."""
    report.contact_sheet(
        [{"image": np.zeros((40, 40), np.uint8), "caption": "", "boxes": [(0.5, 0.5, 1.0, 1.0)]}],
        tmp_path,
        "box",
        title="",
        columns=1,
    )
    with Image.open(tmp_path / "figures/box.png") as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    black = (pixels.sum(2) < 30).nonzero()
    orange = ((pixels[..., 0] > 180) & (pixels[..., 2] < 60)).nonzero()
    middle_y, middle_x = (
        (black[0].min() + black[0].max()) / 2,
        (black[1].min() + black[1].max()) / 2,
    )
    assert len(orange[0]) and orange[0].min() > middle_y - 4 and orange[1].min() > middle_x - 4


def test_every_modality_has_a_colour_of_its_own():
    assert set(report.MODALITY_COLOURS) == set(MODALITIES)
    assert len(set(report.MODALITY_COLOURS.values())) == len(MODALITIES)


def test_csv_holds_the_union_of_columns_and_refuses_nothing(tmp_path):
    path = outputs.write_csv(tmp_path / "x.csv", [{"a": 1}, {"b": "two, three"}])
    assert path.read_text().splitlines() == ["a,b", "1,", ',"two, three"']
    with pytest.raises(ValueError, match="nothing to write"):
        outputs.write_csv(tmp_path / "y.csv", [])


def test_main_rows_keep_one_measure_per_kind_of_whole_benchmarks():
    def row(kind, metric, language="all", subset="all"):
        return {"kind": kind, "metric": metric, "language": language, "subset": subset}

    kept = [row("overall", "accuracy"), row("box", "iou"), row("open", "exact_match")]
    others = [row("overall", "exact_match"), row("box", "accuracy_at_0.5")]
    others += [row("overall", "accuracy", "zh"), row("overall", "accuracy", subset="modality=CT")]
    assert report.main_rows([*kept, *others]) == kept
