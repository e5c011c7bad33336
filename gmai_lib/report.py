"""Every figure of the notebooks: one style, saved as PNG with its numbers as CSV beside it.

A function takes plain rows or arrays and `out`, the notebook's output folder, draws one figure
into `out/figures/<name>.png` (150 dpi) and `<name>.csv`, and returns it for display. Titles state
the finding and therefore come from the caller. Chinese text is shown as HTML (widgets), because
a plain machine has no font for it.

Colours: Okabe and Ito (2008) and Tol (2021), both safe for colour-blind readers; a modality has
the same colour everywhere.
"""

import textwrap
from pathlib import Path

import numpy as np

from gmai_lib.config import PARTS
from gmai_lib.outputs import write_csv
from gmai_lib.schema import MODALITIES

DPI = 150
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#888888",
)  # fmt: skip
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, "#56B4E9", "#332288", "#117733", "#999933", GREY)
MODALITY_COLOURS = dict(
    zip(
        MODALITIES,
        (
            "#0072B2", "#56B4E9", "#332288", "#44AA99", "#E69F00", "#CC79A7", "#D55E00",
            "#DDCC77", "#882255", "#009E73", "#999933", "#AA4499", "#117733", "#888888", "#bbbbbb",
        ),
        strict=True,
    )
)  # fmt: skip
PART_COLOURS = dict(zip(PARTS, (BLUE, ORANGE, GREEN), strict=True))
STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def save(figure, rows: list[dict], out: Path, name: str):
    """Write `out/figures/<name>.png` and `.csv`; return the picture for display."""
    from IPython.display import Image

    folder = Path(out) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=DPI)
    write_csv(folder / f"{name}.csv", rows)
    width = round(figure.get_size_inches()[0] * 96)
    return Image(filename=str(folder / f"{name}.png"), width=width)


def contact_sheet(pictures: list[dict], out: Path, name: str, *, title: str, columns: int, note=""):
    """Draw a grid of pictures; each is {"image", "caption"} and may have "boxes" and "colour".

    `image` is a uint8 array, `boxes` are x1, y1, x2, y2 as fractions. `note` names source,
    licence, window and orientation below the grid.
    """
    rows = -(-len(pictures) // columns)
    figure, axes = _subplots(rows, columns, (columns * 1.45, rows * 1.72 + 0.6))
    for axis, picture in zip(axes.flat, pictures, strict=False):
        _show_image(axis, picture["image"], picture.get("boxes", ()), picture.get("colour", ORANGE))
        caption = textwrap.fill(textwrap.shorten(picture["caption"], 60, placeholder=" ..."), 22)
        axis.set_title(caption, fontsize=6.5, weight="normal", loc="center")
    for axis in axes.flat[len(pictures) :]:
        axis.set_visible(False)
    _frame(figure, title, note)
    return save(figure, [{"caption": p["caption"]} for p in pictures], out, name)


def plot_counts(
    rows: list[dict],
    out: Path,
    name: str,
    *,
    label: str,
    value: str,
    title: str,
    unit: str,
    colours: dict | None = None,
):
    """Draw horizontal bars, the largest on top, each with its number."""
    rows = sorted(rows, key=lambda row: row[value])
    figure, axes = _subplots(1, 1, (6.4, 0.24 * len(rows) + 0.9))
    axis, values = axes.flat[0], [row[value] for row in rows]
    colour = [(colours or {}).get(row[label], BLUE) for row in rows]
    bars = axis.barh([str(row[label]) for row in rows], values, color=colour)
    axis.bar_label(bars, [f"{v:,}" for v in values], padding=3, fontsize=8)
    axis.set_xlim(0, max(values) * 1.12)
    axis.set_xlabel(unit)
    axis.grid(axis="y", visible=False)
    axis.set_title(title)
    return save(figure, rows, out, name)


def plot_stacked(
    rows: list[dict],
    out: Path,
    name: str,
    *,
    label: str,
    parts: dict[str, str],
    title: str,
    unit: str,
):
    """Draw stacked horizontal bars: one bar per row, one segment per key of `parts` (colours)."""
    figure, axes = _subplots(1, 1, (6.8, 0.28 * len(rows) + 1.2))
    axis, left = axes.flat[0], np.zeros(len(rows))
    names = [str(row[label]) for row in rows]
    for part, colour in parts.items():
        values = np.array([row.get(part, 0) for row in rows], float)
        axis.barh(names, values, left=left, color=colour, label=part.replace("_", " "))
        left += values
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    axis.grid(axis="y", visible=False)
    axis.set_title(title)
    _legend(figure, axis)
    return save(figure, rows, out, name)


def plot_shares(rows: list[dict], out: Path, name: str, *, label: str, title: str, unit: str):
    """Draw two bars per row, columns "ours" and "paper", in percent; None leaves a gap."""
    figure, axes = _subplots(1, 1, (6.4, 0.34 * len(rows) + 1.0))
    axis, positions = axes.flat[0], np.arange(len(rows))
    for offset, column, colour in ((-0.19, "ours", BLUE), (0.19, "paper", GREY)):
        values = [row[column] or 0 for row in rows]
        axis.barh(positions + offset, values, 0.36, color=colour, label=column)
    axis.set_yticks(positions, [row[label] for row in rows])
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    axis.grid(axis="y", visible=False)
    axis.set_title(title)
    _legend(figure, axis)
    return save(figure, rows, out, name)


def plot_curves(
    rows: list[dict],
    out: Path,
    name: str,
    *,
    x: str,
    y: tuple[str, ...],
    title: str,
    x_label: str,
    y_labels: tuple[str, ...],
    smooth: int = 0,
):
    """Draw one panel per column in `y` over `x`; `smooth` > 1 adds a running mean to the first."""
    figure, axes = _subplots(1, len(y), (3.6 * len(y) + 0.6, 2.9))
    for axis, column, y_label in zip(axes.flat, y, y_labels, strict=True):
        points = [(row[x], row[column]) for row in rows if row.get(column) is not None]
        steps, values = np.array(points, float).reshape(-1, 2).T
        smoothed = column == y[0] and 1 < smooth < len(values) / 2
        axis.plot(steps, values, color=BLUE, lw=0.8, alpha=0.4 if smoothed else 1)
        if smoothed:
            mean = np.convolve(values, np.ones(smooth) / smooth, "valid")
            axis.plot(steps[smooth - 1 :], mean, color=BLUE, lw=1.6, label=f"mean of {smooth}")
            axis.legend(loc="upper right")
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
    _frame(figure, title)
    return save(figure, rows, out, name)


def main_rows(rows: list[dict]) -> list[dict]:
    """Return, of the rows of results.json, those of whole benchmarks and kinds, one measure each.

    The measure is accuracy, for boxes the IoU, for open questions the exact match.
    """
    measure = {"box": "iou", "open": "exact_match"}
    return [
        row
        for row in rows
        if row["language"] == row["subset"] == "all"
        and row["metric"] == measure.get(row["kind"], "accuracy")
    ]


def plot_forest(rows: list[dict], out: Path, name: str, *, title: str):
    """Draw scores with 95 % intervals, blind and majority marks: a row per line, panels by kind.

    Rows are those of results.json; the y axis is the checkpoint, a panel is benchmark and kind.
    """
    panels = list(dict.fromkeys((r["benchmark"], r["kind"]) for r in rows))
    columns = min(4, len(panels))
    height = len({r["checkpoint"] for r in rows}) * 0.27 + 0.8
    lines = -(-len(panels) // columns)
    figure, axes = _subplots(lines, columns, (2.5 * columns + 0.8, lines * height + 0.7))
    for index, (axis, panel) in enumerate(zip(axes.flat, panels, strict=False)):
        chosen = [r for r in rows if (r["benchmark"], r["kind"]) == panel]
        for y, row in enumerate(chosen):
            score, low, high = (100 * row[k] for k in ("score", "ci_low", "ci_high"))
            axis.plot([low, high], [y, y], color=BLUE, lw=2.2, zorder=2)
            axis.plot(score, y, "o", color=BLUE, ms=5, zorder=3)
            if row["blind_score"] is not None:
                axis.plot(100 * row["blind_score"], y, "x", color=RED, ms=6, mew=1.6, zorder=3)
            axis.plot(100 * row["majority_score"], y, "|", color="black", ms=11, zorder=2)
        shown = [_checkpoint_label(r["checkpoint"]) for r in chosen]
        axis.set_yticks(range(len(chosen)), shown if index % columns == 0 else [""] * len(shown))
        axis.set_ylim(len(chosen) - 0.5, -0.5)
        axis.set_xlim(-3, 103)
        metric = chosen[0]["metric"].replace("_", " ")
        axis.set_title(f"{panel[1]}, n = {chosen[0]['num_items']}", weight="normal", fontsize=8.5)
        axis.set_xlabel(f"{metric} (%)", fontsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    marks = "dot: score with 95 % interval   x: same model without the image   |: majority answer"
    _frame(figure, title, marks)
    return save(figure, rows, out, name)


def plot_blind(rows: list[dict], out: Path, name: str, *, title: str):
    """Draw sighted against blind bars per row (column "what"), intervals on the sighted bar."""
    figure, axes = _subplots(1, 1, (6.6, 0.42 * len(rows) + 1.3))
    axis, y = axes.flat[0], np.arange(len(rows))
    scores = np.array([[100 * r[k] for k in ("score", "ci_low", "ci_high")] for r in rows])
    errors = np.abs(scores[:, 1:] - scores[:, :1]).T
    axis.barh(y - 0.19, scores[:, 0], 0.36, color=BLUE, label="with the image")
    axis.errorbar(scores[:, 0], y - 0.19, xerr=errors, fmt="none", ecolor="black", lw=1, capsize=2)
    axis.barh(y + 0.19, [100 * r["blind_score"] for r in rows], 0.36, color=RED, label="blind")
    axis.plot([100 * r["majority_score"] for r in rows], y, "|", color="black", ms=16, mew=1.4,
              label="majority answer")  # fmt: skip
    axis.set_yticks(y, [f"{r['what']} (n = {r['num_items']})" for r in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("accuracy (%), 95 % interval over images")
    axis.grid(axis="y", visible=False)
    axis.set_title(title)
    _legend(figure, axis)
    return save(figure, rows, out, name)


def plot_calibration(measured: dict[str, dict], out: Path, name: str, *, title: str):
    """Draw accuracy by confidence, one panel per entry: name -> what `protocols.calibration` says.

    Bins without an answer have no bar; the number of answers stands above each bar.
    """
    figure, axes = _subplots(1, len(measured), (3.1 * len(measured) + 0.4, 3.3))
    rows = []
    for axis, (panel, found) in zip(axes.flat, measured.items(), strict=True):
        axis.plot([0, 100], [0, 100], color=GREY, lw=1, ls="--")
        for row in found["bins"]:
            rows.append({"panel": panel, "ece": found["ece"]} | row)
            if not row["num_items"]:
                continue
            low, width = 100 * row["low"], 100 * (row["high"] - row["low"])
            height = 100 * row["accuracy"]
            axis.bar(low, height, width * 0.92, align="edge", color=BLUE, alpha=0.85)
            axis.text(
                low + width / 2, height + 2, row["num_items"], ha="center", fontsize=6.5,
                bbox={"fc": "white", "ec": "none", "pad": 0.6, "alpha": 0.8},
            )  # fmt: skip
        axis.set_xlim(0, 100)
        axis.set_ylim(0, 110)
        axis.set_yticks(range(0, 101, 20))
        axis.set_xlabel("confidence (%)", fontsize=8)
        axis.set_ylabel("right (%)", fontsize=8)
        about = f"{panel}, n = {found['num_items']}, ECE {100 * found['ece']:.1f} points"
        axis.set_title(about, weight="normal", fontsize=8.5)
    _frame(figure, title, "number above a bar: answers in it; dashed: right as often as it is sure")
    return save(figure, rows, out, name)


def plot_confusion(
    pairs: dict[str, list[tuple[str, str]]],
    out: Path,
    name: str,
    *,
    title: str,
    least: int = 5,
    columns: int = 4,
):
    """Draw counts of (reference, prediction) in one panel per key of `pairs`, the modality.

    Predictions outside the references of a panel share a column. A panel with fewer than `least`
    pairs is left out, and named below; its counts are in the CSV.
    """
    tables = {modality: _confusion(own) for modality, own in pairs.items()}
    drawn = [modality for modality, own in pairs.items() if len(own) >= least]
    columns = max(1, min(columns, len(drawn)))
    lines = max(1, -(-len(drawn) // columns))
    size = (max(4.0, 2.9 * columns), 2.6 * lines + 0.8)
    figure, axes = _subplots(lines, columns, size)
    for axis, modality in zip(axes.flat, drawn, strict=False):
        references, predictions, counts = tables[modality]
        shares = counts / counts.sum(axis=1, keepdims=True)
        _show_counts(axis, counts, shares, references, predictions)
        right, total = np.trace(counts), counts.sum()
        axis.set_title(f"{modality}: {right} of {total} right", fontsize=8)
    for axis in axes.flat[len(drawn) :]:
        axis.axis("off")
    if not drawn:
        _say(axes.flat[0], f"no panel has {least} questions")
    left_out = [f"{m} ({len(own)})" for m, own in pairs.items() if m not in drawn]
    note = "rows: reference; columns: answer of the model"
    note += f"; fewer than {least} questions: {', '.join(left_out)}" if left_out else ""
    _frame(figure, title, note)
    rows = [
        {"modality": modality, "reference": references[r], "prediction": predictions[c]}
        | {"count": int(n)}
        for modality, (references, predictions, counts) in tables.items()
        for (r, c), n in np.ndenumerate(counts)
    ]
    return save(figure, rows, out, name)


def _confusion(pairs) -> tuple[list[str], list[str], np.ndarray]:
    """References, predictions ("other" last) and the counts, (references, predictions)."""
    references = sorted({reference for reference, _ in pairs})
    predictions = [*references, "other"]
    counts = np.zeros((len(references), len(predictions)), int)
    for reference, prediction in pairs:
        column = predictions.index(prediction if prediction in references else "other")
        counts[references.index(reference), column] += 1
    return references, predictions, counts


def plot_coverage(tables: list, out: Path, name: str, *, title: str):
    """Draw tables of counts (pandas, of the same rows) side by side, dark where there are many.

    Index and columns need names; a cell without any stays blank, so that gaps are seen.
    """
    height = 0.24 * len(tables[0]) + 2.4
    figure, axes = _subplots(1, len(tables), (0.31 * sum(t.shape[1] for t in tables) + 2.6, height))
    for table, axis in zip(tables, axes.flat, strict=True):
        # The root, as single datasets stand beside hundreds.
        depth = np.sqrt(table.to_numpy() / table.to_numpy().max())
        _show_counts(axis, table.to_numpy(), depth, [*table.index], [*table.columns])
        axis.set_title(f"{table.index.name} by {table.columns.name}")
        if table is not tables[0]:
            axis.set_yticks([])
    _frame(figure, title)
    rows = [
        {"table": table.columns.name, table.index.name: r, "value": c, "count": int(n)}
        for table in tables
        for (r, c), n in table.stack().items()
    ]
    return save(figure, rows, out, name)


def plot_token_strip(
    tokens: list[str], learned: list[bool], out: Path, name: str, *, title: str, per_line: int = 16
):
    """Draw tokens in reading order; those that carry loss are filled, image tokens are grey."""
    lines = -(-len(tokens) // per_line)
    figure, axes = _subplots(1, 1, (8.4, 0.34 * lines + 0.8))
    axis = axes.flat[0]
    for index, (token, counts) in enumerate(zip(tokens, learned, strict=True)):
        x, y = index % per_line, index // per_line
        colour = GREEN if counts else "#d9d9d9" if token.startswith("<image") else "white"
        axis.barh(y, 0.94, 0.8, left=x, color=colour, edgecolor="#bbbbbb", lw=0.5)
        ink = "white" if counts else "black"
        shown = token.replace("\n", "\\n").replace("$", r"\$")[:11]
        axis.text(x + 0.47, y, shown, ha="center", va="center", fontsize=5.4, color=ink)
    axis.set_xlim(0, per_line)
    axis.set_ylim(lines - 0.4, -0.6)
    axis.axis("off")
    axis.set_title(title)
    rows = [
        {"position": i, "token": t, "learned": c}
        for i, (t, c) in enumerate(zip(tokens, learned, strict=True))
    ]
    return save(figure, rows, out, name)


def plot_packs(packs: list[list[int]], max_length: int, out: Path, name: str, *, title: str):
    """Draw packs as rows of samples; `packs` holds the token count of every sample."""
    figure, axes = _subplots(1, 1, (7.0, 0.19 * len(packs) + 1.0))
    axis = axes.flat[0]
    for y, lengths in enumerate(packs):
        for number, (start, length) in enumerate(
            zip(np.cumsum([0, *lengths]), lengths, strict=False)
        ):
            colour = CYCLE[number % len(CYCLE)]
            axis.barh(y, length, 0.8, left=start, color=colour, edgecolor="white", lw=0.8)
    axis.axvline(max_length, color="black", lw=1)
    axis.set_yticks([])
    axis.invert_yaxis()
    axis.set_xlabel("tokens")
    axis.set_ylabel(f"{len(packs)} packs")
    axis.grid(axis="y", visible=False)
    axis.set_title(title)
    rows = [
        {"pack": p, "sample": s, "tokens": int(n)}
        for p, lengths in enumerate(packs)
        for s, n in enumerate(lengths)
    ]
    return save(figure, rows, out, name)


def plot_mask(mask: np.ndarray, out: Path, name: str, *, title: str):
    """Draw which position (row) may look at which (column): a (T, T) bool array."""
    figure, axes = _subplots(1, 1, (3.6, 3.7))
    axis = axes.flat[0]
    axis.imshow(mask, cmap="Blues", vmin=0, vmax=1.3, interpolation="nearest")
    axis.set_xlabel("is looked at (token position)")
    axis.set_ylabel("looks (token position)")
    axis.grid(visible=False)
    axis.set_title(title)
    rows = [{"position": i, "may_look_at": int(row.sum())} for i, row in enumerate(mask)]
    return save(figure, rows, out, name)


def plot_anatomy(profile, counts: dict[str, int], out: Path, name: str):
    """Draw the three parts of `profile` as boxes; `counts` are its parameters per part."""
    vision, text = profile.vision, profile.text
    details = (
        f"ViT, {vision.num_hidden_layers} layers, width {vision.hidden_size}",
        "Linear, GELU, Linear",
        f"Llama layout, {text.num_hidden_layers} layers, width {text.hidden_size}",
    )
    shapes = [f"{vision.num_patches} x {width}" for width in (vision.hidden_size, text.hidden_size)]
    figure, axes = _subplots(1, 1, (8.6, 2.1))
    axis, rows = axes.flat[0], []
    for index, (part, detail) in enumerate(zip(PARTS, details, strict=True)):
        left, output = index * 1.25, (*shapes, "next token")[index]
        axis.add_patch(_rounded(left, 1.0, 0.62, PART_COLOURS[part]))
        title = part.replace("_", " ")
        axis.text(left + 0.5, 0.4, title, ha="center", color="white", weight="bold")
        axis.text(left + 0.5, 0.17, detail, ha="center", color="white", fontsize=7)
        size = f"{counts[part] / 1e6:,.2f} M parameters"
        axis.text(left + 0.5, -0.17, size, ha="center", fontsize=8)
        axis.annotate("", (left + 1.24, 0.31), (left + 1.01, 0.31), arrowprops={"arrowstyle": "->"})
        axis.text(left + 1.12, 0.7, output, ha="center", fontsize=7, color="#333333")
        rows.append({"part": part, "parameters": counts[part], "detail": detail, "output": output})
    axis.set_xlim(-0.05, 3.8)
    axis.set_ylim(-0.3, 0.85)
    axis.axis("off")
    axis.set_title(f"{profile.name}: {sum(counts.values()) / 1e6:,.1f} M parameters")
    return save(figure, rows, out, name)


def plot_attention(pictures: list[dict], out: Path, name: str, *, title: str, note: str = ""):
    """Draw image and attention side by side: {"image", "weights" (h, w), "caption", "boxes"}."""
    width = max(3.6, 1.75 * len(pictures) + 0.2)  # one picture still leaves room for the title
    figure, axes = _subplots(2, len(pictures), (width, 4.2))
    for column, picture in enumerate(pictures):
        image = picture["image"]
        for axis in axes[:, column]:
            _show_image(axis, image, picture.get("boxes", ()), GREEN)
        _show_weights(axes[1, column], image, picture["weights"])
        caption = textwrap.fill(textwrap.shorten(picture["caption"], 70, placeholder=" ..."), 26)
        axes[0, column].set_title(caption, fontsize=6.5, weight="normal", loc="center")
    _frame(figure, title, note)
    rows = [
        {"caption": p["caption"], "row": r, "column": c, "weight": float(w)}
        for p in pictures
        for (r, c), w in np.ndenumerate(np.asarray(p["weights"], float))
    ]
    return save(figure, rows, out, name)


def plot_mistakes(
    mistakes: list[dict], out: Path, name: str, *, title: str, note: str = "", columns: int = 4
):
    """Draw wrong answers, each as its image, the attention, and the nearest training image.

    Keys: "image" with "boxes"; "weights" (h, w); "nearest" with "nearest_boxes"; and in words or
    numbers "question", "said" with its "probability", "reference", "told" (of the nearest image)
    with its "similarity". Drawn in the order given. Without mistakes the figure says so.
    """
    lines = max(1, -(-len(mistakes) // columns))
    figure, axes = _subplots(lines, columns, (2.9 * columns, 1.38 * lines + 0.75))
    rows = []
    for number, (axis, mistake) in enumerate(zip(axes.flat, mistakes, strict=False), 1):
        panels = [axis.inset_axes((0.34 * n, 0, 0.32, 1), anchor="N") for n in range(3)]
        left, middle, right = panels
        for panel in (left, middle):
            _show_image(panel, mistake["image"], mistake["boxes"], GREEN)
        _show_weights(middle, mistake["image"], mistake["weights"])
        _show_image(right, mistake["nearest"], mistake["nearest_boxes"], GREEN)
        sure = f"{100 * mistake['probability']:.1f} %"
        words = (
            f"{number}. {mistake['question']}: {mistake['said']} ({sure})",
            f"annotated: {mistake['reference']}",
            f"nearest: {mistake['told']} (similarity {mistake['similarity']:.3f})",
        )
        words = "\n".join(textwrap.shorten(line, 50, placeholder=" ...") for line in words)
        words = words.encode("latin-1", "replace").decode("latin-1")  # the font has no Chinese
        axis.set_title(words, fontsize=7, weight="normal", parse_math=False)
        numbers = ("question", "said", "probability", "reference", "told", "similarity")
        weights = np.asarray(mistake["weights"], float)
        rows.append({"rank": number} | {key: mistake[key] for key in numbers})
        rows[-1] |= {"rows": len(weights), "attention": " ".join(f"{w:.5f}" for w in weights.flat)}
    for axis in axes.flat:
        axis.axis("off")
    if not mistakes:
        _say(axes.flat[0], "no wrong answers")
    _frame(figure, title, note)
    return save(figure, rows or [{"rank": "no wrong answers"}], out, name)


def _subplots(rows: int, columns: int, size: tuple[float, float]):
    """Return a figure outside pyplot's registry (nothing to close) and its axes as an array."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _frame(figure, title: str, note: str = ""):
    """Set the title above and the note below all panels."""
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=10)
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=7, color="#444444")


def _legend(figure, axis):
    """Put the legend below the axis, where no bar can be."""
    handles, labels = axis.get_legend_handles_labels()
    columns = min(3, len(labels))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)


def _show_counts(axis, counts: np.ndarray, depth: np.ndarray, rows: list[str], columns: list[str]):
    """Write each count that is not 0 into its cell, which is blue by `depth` (0 to 1)."""
    axis.imshow(depth, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        if count:
            ink = "white" if depth[row, column] > 0.5 else "black"
            axis.text(column, row, count, ha="center", va="center", fontsize=7, color=ink)
    axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
    axis.set_yticks(range(len(rows)), rows, fontsize=7)
    axis.grid(visible=False)


def _show_image(axis, image, boxes, colour):
    from matplotlib.patches import Rectangle

    axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    height, width = image.shape[:2]
    for x1, y1, x2, y2 in boxes:
        corner = (x1 * width - 0.5, y1 * height - 0.5)
        size = ((x2 - x1) * width, (y2 - y1) * height)
        axis.add_patch(Rectangle(corner, *size, fill=False, ec=colour, lw=1.2))
    axis.axis("off")


def _show_weights(axis, image, weights):
    """Lay `weights` (h, w) over an image that is already drawn, the largest brightest."""
    weights = np.asarray(weights, float)
    height, width = image.shape[:2]
    axis.imshow(
        weights / max(weights.max(), 1e-12), cmap="inferno", alpha=0.55, vmin=0, vmax=1,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest",
    )  # fmt: skip


def _say(axis, words: str):
    """Write `words` where a panel has nothing to show."""
    axis.axis("off")
    axis.text(0, 0.5, words, transform=axis.transAxes, va="center")


def _rounded(left, width, height, colour):
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch((left, 0), width, height, boxstyle="round,pad=0.0,rounding_size=0.06",
                          fc=colour, ec="none")  # fmt: skip


def _checkpoint_label(checkpoint: str) -> str:
    """Return "07 shallow alignment" for "07_shallow_alignment"."""
    return checkpoint.replace("_", " ")
