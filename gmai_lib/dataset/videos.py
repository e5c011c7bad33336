"""Videos with a table of what every so many frames show (Cholec80's layout).

    videos/video01.mp4                    frames, decoded by PyAV
    tool_annotations/video01-tool.txt     header "Frame Grasper Bipolar ...", rows of 0 and 1

Options: `videos`, glob of the films; `table`, path of the table with {stem}; `names`, column ->
label; `frames`, how many annotated frames per video are kept (default 8), evenly spaced. A film is
never decoded as a whole: each wanted frame is reached from the key frame before it.
"""

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from gmai_lib.dataset import images
from gmai_lib.dataset.annotations import files
from gmai_lib.dataset.records import (
    STEP,
    drop_annotation,
    drop_item,
    is_file,
    label_name,
    new_record,
    others,
)
from gmai_lib.dataset.volumes import select_slices
from gmai_lib.schema import NO_FINDING, Ledger, Recipe, Record


def video_table(recipe: Recipe, root: Path, ledger: Ledger) -> Iterator[Record]:
    """Yield one record per kept frame; every annotated frame is an item.

    Raises ValueError that names a table which is none.
    """
    unused = set(files(root, recipe.options["table"].format(stem="*")))
    for path in files(root, recipe.options["videos"]):
        table = recipe.options["table"].format(stem=PurePosixPath(path).stem)
        if not is_file(root, table):
            ledger.drop(recipe.name, STEP, "video without its table", path)
            continue
        unused.discard(table)
        rows, columns = _rows(recipe, root / table, table, ledger)
        chosen = select_slices([0.0] * len(rows), recipe.options.get("frames", 8))
        if len(rows) > len(chosen):
            lost = len(rows) - len(chosen)
            ledger.drop(recipe.name, STEP, "frame not selected", path, lost)
        wanted = [rows[number] for number in chosen]
        decoded = _frames(root / path, [frame for frame, _ in wanted])
        for frame, labels in wanted:
            name = f"{path}#{frame}"
            pixels = decoded.get(frame)
            if pixels is None:
                drop_item(recipe, "frame cannot be decoded", name, ledger, len(labels))
                continue
            ledger.keep(recipe.name, STEP)
            if labels:
                ledger.keep(recipe.name, STEP, len(labels), level="annotation")
            yield new_record(
                recipe,
                name,
                dimension="video",
                modality=recipe.modality,
                image=images.to_png(pixels),
                width=pixels.shape[1],
                height=pixels.shape[0],
                labels=labels or (NO_FINDING,),
                absent=others(columns, labels),
                volume=path,
            )
    for table in sorted(unused):
        drop_annotation(recipe, "table without its video", table, ledger)


def _rows(recipe: Recipe, path: Path, shown: str, ledger: Ledger):
    """Return [(frame number, labels)] and all labels that the columns name."""
    rows = []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.reader(file, delimiter="\t")
        header = [cell.strip() for cell in next(reader, [])]
        if len(header) < 2 or header[0].lower() != "frame":
            raise ValueError(f"{path} has the header {header}, not Frame and one column per label")
        columns = [label_name(recipe, name) for name in header[1:]]
        for cells in reader:
            said = [cell.strip() for cell in cells]
            if len(said) != len(header) or not said[0].isdigit() or not {*said[1:]} <= {"0", "1"}:
                where = f"{shown} line {reader.line_num}"
                drop_annotation(recipe, "malformed table row", where, ledger)
                continue
            there = [name for name, cell in zip(columns, said[1:], strict=True) if cell == "1"]
            rows.append((int(said[0]), tuple(there)))
    return rows, columns


def _frames(path: Path, wanted: list[int]) -> dict[int, np.ndarray]:
    """Frame number -> (H, W, 3) uint8 for those of `wanted` that can be decoded."""
    import av

    found = {}
    try:
        with av.open(str(path)) as film:
            stream = film.streams.video[0]
            if stream.width * stream.height > images.MAX_PIXELS or not stream.average_rate:
                return {}
            first = stream.start_time or 0
            for number in wanted:
                time = first + round(number / stream.average_rate / stream.time_base)
                film.seek(time, stream=stream, backward=True)
                for frame in film.decode(stream):
                    # Rounding may put a frame one tick early.
                    if frame.pts is not None and frame.pts >= time - 1:
                        if abs(frame.pts - time) * stream.time_base * stream.average_rate < 1:
                            found[number] = frame.to_ndarray(format="rgb24")
                        break
    # A stream whose codec is unknown has no width: PyAV says so by an AttributeError.
    except (av.FFmpegError, OSError, IndexError, ValueError, AttributeError):
        return found
    return found
