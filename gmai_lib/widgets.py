"""What can be clicked in JupyterLab: browse samples, watch a stage train, chat with a model.

Under papermill the same calls show a static picture of it (the chain sets GMAI_LIB_STATIC=1), so
that notebooks have one code path and the saved HTML shows everything.
"""

import base64
import html
import io
import os
import time

from gmai_lib import grounding, report

STATIC = "GMAI_LIB_STATIC"
_BUBBLE = "margin:3px 0;padding:4px 9px;border-radius:8px;max-width:60em;white-space:pre-wrap"
_ROLE_STYLES = {
    "user": f"{_BUBBLE};background:#eef2f7;color:#111",
    "assistant": f"{_BUBBLE};background:#e3f4ec;color:#111;margin-left:2em",
}


def is_static() -> bool:
    """Whether widgets are drawn once instead of being live."""
    return os.environ.get(STATIC) == "1"


def card(sample: dict, *, width: int = 224) -> str:
    """Return one sample (a row of the Parquet shards, or the like) as HTML.

    The picture carries the annotated boxes; below the title come the turns.
    """
    pictures = "".join(
        f'<img width="{width}" src="data:image/png;base64,{_png(image, sample.get("boxes", []))}">'
        for image in sample.get("images", [])
    )
    keys = ("subset", "language", "modality", "source", "license", "split", "problems")
    about = " &middot; ".join(html.escape(str(sample[k])) for k in keys if sample.get(k))
    turns = "".join(
        f'<div style="{_ROLE_STYLES[turn["role"]]}">'
        f"{html.escape(turn['content'].replace('<image>', '').strip())}</div>"
        for turn in sample["conversations"]
    )
    return (
        '<div style="display:flex;gap:14px;margin:8px 0 16px;align-items:flex-start">'
        f"<div>{pictures}</div><div><small>{about}</small>{turns}</div></div>"
    )


def show(samples: list[dict]):
    """Return the samples as one block of HTML for display."""
    from IPython.display import HTML

    return HTML("".join(card(sample) for sample in samples))


def browse(samples: list[dict], *, first: int = 4):
    """Return a browser over `samples` with a slider; static: the `first` ones."""
    if not samples:
        raise ValueError("no samples to browse; loosen the filter")
    if is_static():
        return show(samples[:first])
    import ipywidgets

    slider = ipywidgets.IntSlider(0, 0, len(samples) - 1, description="sample")
    page = ipywidgets.HTML(card(samples[0]))
    slider.observe(lambda change: setattr(page, "value", card(samples[change["new"]])), "value")
    return ipywidgets.VBox([slider, page])


class TrainingView:
    """Shows a training while it runs: call it with every row of metrics (step, loss, ...).

    Live: a curve that redraws once a second. Static: one printed line per tenth of the steps.
    `max_steps` is needed where the rows do not say it themselves.
    """

    def __init__(self, title: str, max_steps: int = 0):
        self.title, self.max_steps, self.rows = title, max_steps, []
        self.drawn, self.printed, self.handle = 0.0, -1, None

    def __call__(self, row: dict):
        self.rows.append(row)
        self.max_steps = row.get("max_steps", self.max_steps)
        tenth = 10 * row["step"] // self.max_steps
        if is_static():
            if tenth > self.printed:
                self.printed = tenth
                print(self._line(), flush=True)
        elif time.monotonic() - self.drawn > 1 or row["step"] == self.max_steps:
            self._draw()

    def _line(self) -> str:
        row = self.rows[-1]
        speed = f", {row['tokens_per_s']:,.0f} tokens/s" if "tokens_per_s" in row else ""
        return (
            f"{self.title}: step {row['step']} of {self.max_steps}, loss {row['loss']:.3f}{speed}"
        )

    def _draw(self):
        from IPython.display import HTML, display

        curve = _curve(self.rows, self.max_steps)
        page = HTML(f"<pre>{html.escape(self._line())}</pre>{curve}")
        if self.handle is None:
            self.handle = display(page, display_id=True)
        else:
            self.handle.update(page)
        self.drawn = time.monotonic()


def chat(model, processor, image: bytes, questions: list[str]):
    """Return a chat about `image`; static: the answers to `questions`, one conversation.

    The picture carries the boxes of the last answer; malformed ones are named above the turns.
    """
    from gmai_lib import lens

    turns: list[dict] = []

    def ask(question: str):
        first = "<image>\n" if not turns else ""
        turns.append({"role": "user", "content": first + question})
        answer = lens.reply(model, processor, [image], turns)
        # A small model may write its own end-of-turn text; it must not end the turn it is in.
        turns.append({"role": "assistant", "content": answer.replace("<|", "< |")})
        sample.update(_grounded(answer))

    sample = {"images": [image], "conversations": turns}
    if is_static():
        for question in questions:
            ask(question)
        return show([sample])
    import ipywidgets

    box = ipywidgets.Text(placeholder=questions[0], layout={"width": "40em"})
    button, page = ipywidgets.Button(description="ask"), ipywidgets.HTML(card(sample))

    def on_click(_):
        ask(box.value or questions[0])
        page.value, box.value = card(sample), ""

    button.on_click(on_click)
    return ipywidgets.VBox([page, ipywidgets.HBox([box, button])])


def audit_form(drawn: list[dict], path, *, by: str):
    """Return a form that scores the rows of `audit.draw` one by one; static: the first of them.

    Every "save" appends to `path` (JSON lines), so an interrupted audit goes on where it was: rows
    that `path` holds are not shown again.
    """
    from pathlib import Path

    from gmai_lib.dataset import audit

    done = {mark["id"] for mark in audit.read_marks(path)} if Path(path).exists() else set()
    left = [row for row in drawn if row["id"] not in done]
    if is_static():
        return show(left[:1])
    import ipywidgets

    page, status = ipywidgets.HTML(), ipywidgets.HTML()
    sliders = {
        scale: ipywidgets.IntSlider(
            audit.BEST,
            audit.BEST,
            audit.WORST,
            description=scale,
            style={"description_width": "7em"},
        )
        for scale in audit.SCALES
    }
    comment = ipywidgets.Text(placeholder="comment", layout={"width": "40em"})
    button = ipywidgets.Button(description="save")

    def turn():
        button.disabled = not left
        page.value = card(left[0]) if left else ""
        status.value = f"{len(drawn) - len(left)} of {len(drawn)} scored, 1 is best, 5 is worst"
        comment.value = ""
        for slider in sliders.values():
            slider.value = audit.BEST

    def on_click(_):
        row = left.pop(0)
        mark = {"id": row["id"], "source": row["source"], "by": by, "comment": comment.value}
        audit.save_mark(mark | {scale: s.value for scale, s in sliders.items()}, path)
        turn()

    button.on_click(on_click)
    turn()
    return ipywidgets.VBox([status, page, *sliders.values(), comment, button])


def _grounded(answer: str) -> dict:
    """What `card` draws and names of an answer: its boxes, and what is malformed."""
    read = grounding.parse(answer)
    corners = ("x1", "y1", "x2", "y2")
    boxes = [dict(zip(corners, box, strict=True)) for box in read.boxes]
    return {"boxes": boxes, "problems": "; ".join(read.problems)}


def _png(image, boxes) -> str:
    """Encode bytes (or {"bytes": ...}) with boxes drawn on, enlarged without smoothing."""
    from PIL import Image, ImageDraw

    data = image["bytes"] if isinstance(image, dict) else image
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    scale = max(1, round(448 / max(picture.size)))
    resampling = Image.Resampling.NEAREST
    picture = picture.resize((picture.width * scale, picture.height * scale), resampling)
    pen = ImageDraw.Draw(picture)
    for box in boxes:
        box = box if isinstance(box, dict) else vars(box)
        corners = [box["x1"] * picture.width, box["y1"] * picture.height]
        corners += [box["x2"] * picture.width, box["y2"] * picture.height]
        pen.rectangle(corners, outline=report.ORANGE, width=2)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _curve(rows: list[dict], last: int, width: int = 560, height: int = 160) -> str:
    """Return the loss over steps as inline SVG."""
    top = max(row["loss"] for row in rows) or 1.0
    points = " ".join(
        f"{width * row['step'] / last:.1f},{height * (1 - row['loss'] / top):.1f}" for row in rows
    )
    return (
        f'<svg width="{width}" height="{height}" style="border:1px solid #ccc;background:white">'
        f'<polyline points="{points}" fill="none" stroke="{report.BLUE}"/></svg>'
    )
