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


def mistake(**more):
    """A wrong answer about an image without boxes, as `plot_mistakes` takes it."""
    dark = np.full((16, 16), 90, np.uint8)
    words = {"question": "finding", "said": "nodule", "reference": "cyst", "told": "no finding"}
    shown = {"image": dark, "boxes": [], "nearest": dark, "nearest_boxes": []}
    numbers = {"probability": 0.875, "similarity": 0.5, "weights": np.eye(2)}
    return words | shown | numbers | more


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
        {
            "CT": [("cyst", "cyst"), ("cyst", "nodule"), ("nodule", "a poem")],
            "MR": [("mass", "cyst")],
        },
        out,
        "plot_confusion",
        title="t",
        least=2,
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
    "plot_mistakes": lambda out: report.plot_mistakes(
        [mistake(), mistake(said="cyst", boxes=[(0.1, 0.1, 0.5, 0.5)], probability=0.25)],
        out,
        "plot_mistakes",
        title="t",
        note="n",
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


def test_confusion_counts_by_modality_and_answers_outside_its_references_as_other(tmp_path):
    FIGURES["plot_confusion"](tmp_path)
    rows = {
        (r["modality"], r["reference"], r["prediction"]): int(r["count"])
        for r in rows_of(tmp_path, "plot_confusion")
    }
    assert rows["CT", "nodule", "other"] == 1 and rows["CT", "cyst", "nodule"] == 1
    # A cyst is known in CT, but no reference in MR: another modality's finding.
    assert rows["MR", "mass", "other"] == 1 and ("MR", "mass", "cyst") not in rows
    assert sum(rows.values()) == 4


@pytest.fixture
def figure_of(monkeypatch):
    """Let the functions of `report` return the figure itself, laid out, and write nothing."""

    def laid_out(figure, rows, out, name):
        figure.draw_without_rendering()
        return figure

    monkeypatch.setattr(report, "save", laid_out)


def test_confusion_names_the_modalities_with_too_few_questions(figure_of):
    figure = FIGURES["plot_confusion"](None)
    assert [axis.get_title("left") for axis in figure.axes] == ["CT: 1 of 3 right"]
    assert "fewer than 2 questions: MR (1)" in figure.get_supxlabel()
    none = report.plot_confusion({"MR": [("mass", "cyst")]}, None, "x", title="t")
    assert none.axes[0].texts[0].get_text() == "no panel has 5 questions"


def test_mistakes_keep_their_order_and_their_numbers(tmp_path):
    FIGURES["plot_mistakes"](tmp_path)
    first, second = rows_of(tmp_path, "plot_mistakes")
    assert (first["rank"], first["said"], first["probability"]) == ("1", "nodule", "0.875")
    assert (second["rank"], second["said"], second["probability"]) == ("2", "cyst", "0.25")
    assert first["told"] == "no finding" and first["similarity"] == "0.5"
    assert first["rows"] == "2" and first["attention"] == "1.00000 0.00000 0.00000 1.00000"


def test_without_mistakes_the_figure_says_so(tmp_path, figure_of, monkeypatch):
    figure = report.plot_mistakes([], tmp_path, "none", title="t")
    assert [text.get_text() for axis in figure.axes for text in axis.texts] == ["no wrong answers"]
    monkeypatch.undo()
    report.plot_mistakes([], tmp_path, "none", title="t")
    assert rows_of(tmp_path, "none") == [{"rank": "no wrong answers"}]


def test_words_above_mistakes_stay_over_their_own_images(figure_of):
    """With the longest names, no caption reaches the next one, nor an image."""
    words = {"question": "location, hypermetabolic focus", "said": "no finding " * 9}
    words |= {
        "reference": "肺",
        "told": "labelled hypermetabolic focus, malaria parasite",
        "probability": 1.0,
    }
    wide = np.full((16, 40), 90, np.uint8)
    figure = report.plot_mistakes(
        [mistake(**words, image=wide, similarity=-0.123)] * 20, None, "x", title="t", note="n"
    )
    cells = [axis for axis in figure.axes if axis.get_title("left")]
    assert len(cells) == 20 and len(figure.axes) == 20
    assert "annotated: ?" in cells[0].get_title("left")
    boxes = [cell._left_title.get_window_extent() for cell in cells]
    for box, cell in zip(boxes, cells, strict=True):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
        assert all(box.y0 >= panel.get_window_extent().y1 for panel in cell.child_axes)
        assert not any(box.overlaps(other) for other in boxes if other is not box)


def test_only_boxes_that_are_given_are_drawn_beside_a_mistake(figure_of):
    box = [(0.1, 0.1, 0.5, 0.5)]
    figure = report.plot_mistakes(
        [mistake(), mistake(boxes=box), mistake(nearest_boxes=box)], None, "x", title="t"
    )
    counts = [[len(panel.patches) for panel in axis.child_axes] for axis in figure.axes]
    assert counts == [[0, 0, 0], [1, 1, 0], [0, 0, 1], []]


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
