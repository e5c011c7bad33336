"""Annotation files of the world's formats, parsed to one `Entry` per image (pixels unread).

Each public function reads one *format*. What it cannot use is a counted drop; an index that
cannot be read at all is a ValueError that names the file. XML goes through defusedxml.

Options that several formats share:
    images      glob of all image files; one that no annotation names is a counted drop
    masks       glob of all mask files, likewise
    mask_from   smallest value of a pixel that belongs to the structure, where it is not half of 255
    table, key  CSV with more about each image (patient, sex, age, organ, ...), and the
                column that names the image: its path, file name or stem
    columns     where headers differ: our field -> header (lower case, blanks stripped), or several
                whose cells are joined by blanks
    delimiter   of the columns, where it is no comma
    split_names how a layout calls its splits -> train, validation, test (the usual words are known)
    names       source label -> readable label; `readable`: True turns FOREIGN_BODY into words
    boxes       CSV of boxes: filename (or its stem), label, xmin, ymin, xmax, ymax in pixels; a row
                without corners says that there is none
    box_columns where its headers differ: our field -> header; width and height instead of xmax
                and ymax are known; `box_label`: the label, where no column says it
"""

import csv
import gzip
import re
import zlib
from collections import defaultdict
from collections.abc import Iterator
from glob import escape
from os.path import isfile
from pathlib import Path, PurePosixPath

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, parse
from PIL import Image

from gmai_lib.dataset.images import MAX_PIXELS
from gmai_lib.dataset.recipes import Recipe
from gmai_lib.dataset.records import (
    STEP,
    Entry,
    drop_annotation,
    drop_entry,
    is_file,
    is_inside,
    label_name,
)
from gmai_lib.outputs import read_json
from gmai_lib.schema import NO_FINDING, Ledger

XML_ERRORS = (ParseError, DefusedXmlException, UnicodeDecodeError, LookupError, ValueError)
SPLIT_WORDS = {"training": "train", "testing": "test", "val": "validation", "valid": "validation"}


def files(root: Path, pattern: str) -> list[str]:
    """Sorted POSIX paths of the files under `root` that match the glob; hidden ones left out."""
    start = len(str(root / "_")) - 1
    found = (path.as_posix() for path in root.glob(pattern) if path.name[0] != ".")
    return sorted(path[start:] for path in found if isfile(path))


# ---- formats -------------------------------------------------------------------------------


def class_folders(recipe: Recipe, root: Path, ledger: Ledger) -> list[Entry]:
    """Images sorted into folders; option `path`: regular expression with named groups.

    Groups: label, and if the layout has them split, organ, patient.
    """
    entries = []
    for path in files(root, recipe.options["images"]):
        match = re.fullmatch(recipe.options["path"], path)
        if not match:
            ledger.drop(recipe.name, STEP, "path does not fit the class folders", path)
            continue
        said = match.groupdict()
        entry = Entry(path=path, labels=[label_name(recipe, said["label"])])
        entry.split = split_name(recipe, said.get("split", ""))
        entry.organ = said.get("organ", "").lower()
        entry.patient = said.get("patient", "")
        entries.append(entry)
    _add_boxes(recipe, root, entries, ledger)
    return entries


def table(recipe: Recipe, root: Path, ledger: Ledger) -> list[Entry]:
    """One CSV row per image; option `file`: its path with {columns} to fill in.

    "**/{filename}" looks the base name up anywhere among `images`. Option `mask`: path of one
    binary mask of the finding. The finding column may list several, separated by option
    `separator` (a comma). Option `grades`: finding -> severity, where the finding is a grade.
    Option `findings`: header -> finding, where each has a column of its own: 1 is there, 0 is not,
    any other number (CheXpert's -1) is a counted drop, a blank says nothing. Option `table` may be
    path -> split. Option `path`: regular expression of what `file` gives, with the groups file
    (which part of it is the path), patient and split. Option `joins`: (other table, headers) pairs;
    the first row of that table with the same cells under these headers fills in what the row lacks.
    Option `report_file`: path of a text file with the report, with {columns} to fill in.
    """
    template, mask = recipe.options["file"], recipe.options.get("mask")
    paths_of = defaultdict(list)
    for path in files(root, recipe.options["images"]):
        paths_of[PurePosixPath(path).name].append(path)
    needed = set(re.findall(r"{([^{}:]+)", template + (mask or "")))
    separator = recipe.options.get("separator", ",")
    entries = []
    rows = (
        (row, split)
        for path, split in _split_of(recipe.options["table"]).items()
        for row in _rows(recipe, root / path, needed, ledger)
    )
    joins = recipe.options.get("joins", ())
    joined = [(on, _first_rows(recipe, root / path, on, ledger)) for path, on in joins]
    for row, split in rows:
        for on, others in joined:
            row = others.get(tuple(row.get(header, "") for header in on), {}) | row
        entry = Entry(path=template.format_map(row), split=split)
        _say(recipe, entry, row)
        _add_report(recipe, root, entry, row, ledger)
        if said := re.fullmatch(recipe.options.get("path", "(?!)"), entry.path):
            groups = said.groupdict()
            entry.path = groups.get("file") or entry.path
            entry.patient = groups.get("patient") or entry.patient
            entry.split = split_name(recipe, groups.get("split") or entry.split)
        finding = cell(recipe, row, "finding")
        parts = [label_name(recipe, part) for part in finding.split(separator) if part.strip()]
        entry.labels = [part for part in parts if part]
        _say_findings(recipe, entry, row, ledger)
        entry.severity = recipe.options.get("grades", {}).get(finding, entry.severity)
        if template.startswith("**/"):
            candidates = paths_of[PurePosixPath(entry.path).name]
            entry.path = candidates[0] if candidates else entry.path.removeprefix("**/")
            if len(candidates) > 1:
                drop_annotation(recipe, "several files have this base name", entry.path, ledger)
                continue
        mask_path = mask.format_map(row) if mask else ""
        has_finding = entry.labels not in ([], [NO_FINDING])
        if mask and (has_finding or (is_inside(mask_path) and is_file(root, mask_path))):
            entry.masks = [(label, mask_path) for label in entry.labels[:1]]
        entries.append(entry)
    _add_boxes(recipe, root, entries, ledger)
    return entries


def _split_of(files: str | dict[str, str]) -> dict[str, str]:
    """Path -> split of an option that names one file without a split, or several with theirs."""
    return files if isinstance(files, dict) else {files: ""}


def _first_rows(
    recipe: Recipe, path: Path, on: tuple[str, ...], ledger: Ledger
) -> dict[tuple[str, ...], dict[str, str]]:
    """Rows of a table that is joined, by their cells under the headers `on`."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for row in _rows(recipe, path, set(on), ledger):
        rows.setdefault(tuple(row[header] for header in on), row)
    return rows


def _add_report(recipe: Recipe, root: Path, entry: Entry, row: dict[str, str], ledger: Ledger):
    """Read the report that option `report_file` names; an image without one is kept."""
    if "report_file" not in recipe.options:
        return
    path = recipe.options["report_file"].format_map(row)
    if not is_inside(path):
        drop_annotation(recipe, "path leads outside the dataset folder", path, ledger)
    elif is_file(root, path):
        said = (root / path).read_bytes().decode("utf-8", "replace")
        entry.report = " ".join(said.split())


def _say_findings(recipe: Recipe, entry: Entry, row: dict[str, str], ledger: Ledger):
    """What the columns of option `findings` say is there, and what is not."""
    for header, label in recipe.options.get("findings", {}).items():
        cell = row.get(header, "")
        value = float(cell) if re.fullmatch(r"-?\d+(\.\d*)?", cell) else None
        if value == 1:
            entry.labels.append(label)
        elif value == 0 and label != NO_FINDING:
            entry.absent.append(label)
        elif cell and value != 0:
            where = f"{entry.path} {header} {cell}"
            drop_annotation(recipe, "finding that the source is not sure of", where, ledger)


def voc(recipe: Recipe, root: Path, ledger: Ledger) -> list[Entry]:
    """Pascal VOC XML, one per image in `folder`; option `splits`: folder of train/val/test.txt."""
    entries = []
    for path in files(root, recipe.options["annotations"]):
        try:
            tree = parse(root / path).getroot()
        except XML_ERRORS:
            drop_annotation(recipe, "malformed XML", path, ledger)
            continue
        name = text_of(tree, "filename") or f"{PurePosixPath(path).stem}.jpg"
        entry = Entry(path=f"{recipe.options['folder']}/{name}")
        for thing in tree.findall("object"):
            corners = [text_of(thing, f"bndbox/{c}") for c in ("xmin", "ymin", "xmax", "ymax")]
            entry.boxes.append((label_name(recipe, text_of(thing, "name")), *corners))
        entries.append(entry)
    _add_table(recipe, root, entries, ledger)
    if "splits" in recipe.options:
        split_of = _split_lists(root / recipe.options["splits"])
        for entry in entries:
            entry.split = split_of.get(PurePosixPath(entry.path).stem, "")
    return entries


def coco(recipe: Recipe, root: Path, ledger: Ledger) -> list[Entry]:
    """COCO JSON `index` (a path, or path -> split): images in `folder`, categories, annotations
    with bbox x, y, w, h.

    Without a bbox, the segmentation (polygons, or RLE compressed or not) gives it.
    """
    return [
        entry
        for path, split in _split_of(recipe.options["index"]).items()
        for entry in _coco_entries(recipe, root / path, split, ledger)
    ]


def _coco_entries(recipe: Recipe, path: Path, split: str, ledger: Ledger) -> list[Entry]:
    index = read_index(path)
    try:
        names = {str(c["id"]): label_name(recipe, c["name"]) for c in index["categories"]}
        images, annotations = list(index["images"]), list(index["annotations"])
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not a COCO index ({error!r}); it needs images, annotations, categories"
        ) from error
    entries, sizes = {}, {}
    for i, image in enumerate(images):
        if not (isinstance(image, dict) and image.get("file_name") and "id" in image):
            drop_annotation(recipe, "malformed index entry", f"{path.name} images[{i}]", ledger)
            continue
        entry = Entry(path=f"{recipe.options['folder']}/{image['file_name']}", split=split)
        _say(recipe, entry, {k.lower(): str(v) for k, v in image.items()})
        entries[str(image["id"])] = entry
        size = image.get("height"), image.get("width")
        sizes[str(image["id"])] = size if all(isinstance(n, int) for n in size) else (0, 0)
    for i, thing in enumerate(annotations):
        where = f"{path.name} annotations[{i}]"
        thing = thing if isinstance(thing, dict) else {}
        bbox, image, name = (thing.get(k) for k in ("bbox", "image_id", "category_id"))
        if not bbox and thing.get("segmentation"):
            bbox = _bbox_of(thing["segmentation"], sizes.get(str(image), (0, 0)))
        if not (isinstance(bbox, list) and len(bbox) == 4):
            drop_annotation(recipe, "malformed annotation", where, ledger)
        elif str(image) not in entries:
            drop_annotation(recipe, "annotation of an unknown image", where, ledger)
        elif str(name) not in names:
            drop_annotation(recipe, "unknown category", where, ledger)
        else:
            entries[str(image)].boxes.append((names[str(name)], *_corners(bbox)))
    return list(entries.values())


def mask_files(recipe: Recipe, root: Path, ledger: Ledger) -> list[Entry]:
    """Binary PNG masks named <image>_<structure>_<instance>.png (SAM-Med2D).

    Option `indexes`: JSON file -> split; each maps an image to its masks, or a mask to its image.
    """
    entries: dict[str, Entry] = {}
    for name, split in recipe.options["indexes"].items():
        index = read_index(root / name)
        if not isinstance(index, dict):
            raise ValueError(f"{root / name} is not a JSON object of image paths and mask paths")
        for key, value in index.items():
            pairs = [(key, mask) for mask in value] if isinstance(value, list) else [(value, key)]
            if isinstance(value, list):
                entries.setdefault(key, Entry(path=key, split=split))
            for image, mask in pairs:
                if not (isinstance(image, str) and isinstance(mask, str)):
                    drop_annotation(recipe, "malformed index entry", f"{name}: {key}", ledger)
                    continue
                entry = entries.setdefault(image, Entry(path=image, split=split))
                stem = re.escape(PurePosixPath(image).stem)
                match = re.fullmatch(rf"{stem}_(.+)_\d+", PurePosixPath(mask).stem)
                if match:
                    entry.masks.append((label_name(recipe, match[1]), mask))
                else:
                    drop_annotation(recipe, "mask name does not fit its image", mask, ledger)
    _add_table(recipe, root, list(entries.values()), ledger)
    return list(entries.values())


def mask_pairs(recipe: Recipe, root: Path, ledger: Ledger) -> list[Entry]:
    """Images beside their masks; option `path`: regular expression of an image's path.

    Option `pairs`: label -> glob of its mask files with the expression's {groups} filled in; the
    label "{label}" is the group itself, and a label of the whole image. Where no file matches, the
    mask is missing, unless option `sparse` says that a structure without a file is not there.
    Groups split and patient: as in class folders.
    """
    entries, masks = [], set(files(root, recipe.options["masks"]))
    for path in files(root, recipe.options["images"]):
        match = re.fullmatch(recipe.options["path"], path)
        if not match:
            if path not in masks:
                ledger.drop(recipe.name, STEP, "path does not fit the pairs", path)
            continue
        said = match.groupdict()
        entry = Entry(path=path, split=split_name(recipe, said.get("split", "")))
        entry.patient = said.get("patient", "")
        if "label" in said:
            entry.labels = [label_name(recipe, said["label"])]
        for label, template in recipe.options["pairs"].items():
            name = label_name(recipe, label.format_map(said))
            pattern = template.format_map({key: escape(value) for key, value in said.items()})
            found = files(root, pattern)
            if not found and not recipe.options.get("sparse"):
                found = [pattern]  # counted as missing when the image is opened
            entry.masks += [(name, mask) for mask in found]
        entries.append(entry)
    return entries


def instance_folders(recipe: Recipe, root: Path, ledger: Ledger) -> list[Entry]:
    """<id>/images/<id>.png with one binary mask per instance in <id>/masks (DSB2018).

    Options: `folders`, glob of the <id> folders; `label`, or a table whose finding it is.
    """
    entries = []
    for folder in sorted(p for p in root.glob(recipe.options["folders"]) if p.is_dir()):
        inside = folder.relative_to(root).as_posix()
        paths = files(root, f"{escape(inside)}/images/*")
        masks = files(root, f"{escape(inside)}/masks/*")
        if masks and not paths:
            entry = Entry(path=f"{inside}/images")
            entry.masks = [("", mask) for mask in masks]
            drop_entry(recipe, entry, "image missing", ledger)
        for extra in paths[1:]:
            ledger.drop(recipe.name, STEP, "more than one image in the folder", extra)
        for path in paths[:1]:
            label = recipe.options.get("label", "")
            entries.append(Entry(path=path, masks=[(label, mask) for mask in masks]))
    findings = _add_table(recipe, root, entries, ledger)
    for entry in entries:
        if entry.path in findings:
            label = label_name(recipe, findings[entry.path])
            entry.masks = [(label, mask) for _, mask in entry.masks]
            entry.labels = [label] if label and not entry.masks else []
    return entries


def yolo(recipe: Recipe, root: Path, ledger: Ledger) -> list[Entry]:
    """YOLO text files: per line class number, centre x and y, width, height as fractions.

    Option `annotations`: glob of the text files, each named as its image; `labels`: names in the
    order of the numbers, None for a class that is no finding. An empty file is an image
    without any box.
    """
    by_stem = defaultdict(list)
    for path in files(root, recipe.options["images"]):
        by_stem[PurePosixPath(path).stem].append(path)
    classes, entries = recipe.options["labels"], []
    for path in files(root, recipe.options["annotations"]):
        images = by_stem.get(PurePosixPath(path).stem, [])
        lines = (root / path).read_bytes().decode("utf-8", "replace").splitlines()
        lines = [line.split() for line in lines if line.strip()]
        if len(images) != 1:
            reason = "boxes of an ambiguous file name" if images else "boxes of an unknown image"
            drop_annotation(recipe, reason, path, ledger, max(len(lines), 1))
            continue
        entry = Entry(path=images[0])
        with_size = None
        for number, cells in enumerate(lines, 1):
            where = f"{path} line {number}"
            try:
                kind, x, y, width, height = int(cells[0]), *map(float, cells[1:])
                label = classes[kind] if kind >= 0 else None
            except (ValueError, IndexError):
                drop_annotation(recipe, "malformed annotation", where, ledger)
                continue
            if label is None:
                drop_annotation(recipe, "class that is no finding", where, ledger)
                continue
            with_size = with_size or image_size(root / entry.path)
            w, h = with_size
            corners = (
                (x - width / 2) * w,
                (y - height / 2) * h,
                (x + width / 2) * w,
                (y + height / 2) * h,
            )
            entry.boxes.append((label, *corners))
        entries.append(entry)
    _add_table(recipe, root, entries, ledger)
    return entries


# ---- helpers -------------------------------------------------------------------------------


def read_index(path: Path):
    """Read a JSON index; ValueError names the file if it is missing or malformed."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; the dataset cannot be read without it")
    return read_json(path)


def _split_lists(folder: Path) -> dict[str, str]:
    """Image stem -> split, from train.txt, val.txt, test.txt as far as they exist."""
    split_of = {}
    for name in ("train", "val", "test"):  # trainval.txt is train and val once more
        path = folder / f"{name}.txt"
        if path.is_file():
            stems = path.read_bytes().decode("utf-8", "replace").split()
            split_of |= dict.fromkeys(stems, SPLIT_WORDS.get(name, name))
    return split_of


def read_table(recipe: Recipe, root: Path, ledger: Ledger) -> dict[str, dict[str, str]]:
    """Rows of option `table` by the value of option `key`; {} if the recipe has no table."""
    if "table" not in recipe.options:
        return {}
    key = recipe.options["key"]
    path = root / recipe.options["table"]
    rows: dict[str, dict[str, str]] = {}
    for row in _rows(recipe, path, {key}, ledger):
        if rows.setdefault(row[key], row) is not row:
            drop_annotation(recipe, "second table row of the same item", row[key], ledger)
    return rows


def _rows(
    recipe: Recipe, path: Path, needed: set[str], ledger: Ledger, present: set[str] = frozenset()
) -> Iterator[dict[str, str]]:
    """Yield CSV rows with lower-case, stripped headers; a row that lacks a cell is a drop.

    The image of such a row is counted where it is found that no annotation names it. A column of
    `needed` has to be there and filled in, one of `present` has to be there.
    """
    try:
        with _text(path) as file:
            reader = csv.reader(file, strict=True, delimiter=recipe.options.get("delimiter", ","))
            header = [name.strip().lower() for name in next(reader, [])]
            if missing := sorted({*needed, *present} - set(header)):
                raise ValueError(f"{path} has no column {missing}; it has {header}")
            for cells in reader:
                row = dict(zip(header, (c.strip() for c in cells), strict=False))
                if cells and len(cells) == len(header) and all(row[name] for name in needed):
                    yield row
                elif cells:
                    where = f"{path.name} line {reader.line_num}"
                    drop_annotation(recipe, "malformed table row", where, ledger)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; the dataset cannot be read without it") from error
    except (csv.Error, UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable CSV file ({error}); repair it") from error


def _text(path: Path):
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def cell(recipe: Recipe, row: dict[str, str], name: str) -> str:
    """Return what a table row says under `name`, by option `columns`; "" if nothing."""
    headers = recipe.options.get("columns", {}).get(name, name)
    headers = (headers,) if isinstance(headers, str) else headers
    return " ".join(" ".join(row.get(header, "") for header in headers).split())


def split_name(recipe: Recipe, said: str) -> str:
    """Return train, validation or test for what a layout calls a split; "" stays ""."""
    own = recipe.options.get("split_names", {})
    return own[said] if said in own else SPLIT_WORDS.get(said.lower(), said.lower())


def _say(recipe: Recipe, entry: Entry, row: dict[str, str]):
    """Copy what a table row or index entry says about the image, where it says it."""
    names = ("patient", "sex", "age", "organ", "severity", "report", "license", "modality")
    for name in names:
        value = cell(recipe, row, name)
        if value:
            setattr(entry, name, value.lower() if name == "organ" else value)
    if "split" in recipe.options.get("columns", {}):
        entry.split = split_name(recipe, cell(recipe, row, "split"))


def _add_table(recipe: Recipe, root: Path, entries: list[Entry], ledger: Ledger) -> dict[str, str]:
    """Tell each entry what its table row says; return path -> finding of the rows with one."""
    rows = read_table(recipe, root, ledger)
    unused, findings = set(rows), {}
    for entry in entries:
        pure = PurePosixPath(entry.path)
        for key in (entry.path, pure.name, pure.stem):
            if key in rows:
                unused.discard(key)
                _say(recipe, entry, rows[key])
                findings[entry.path] = cell(recipe, rows[key], "finding")
                break
    for key in sorted(unused):
        drop_annotation(recipe, "table row about an unknown image", key, ledger)
    return findings


def _add_boxes(recipe: Recipe, root: Path, entries: list[Entry], ledger: Ledger):
    """Hang the rows of option `boxes` on their entries, by path or by unambiguous base name."""
    if "boxes" not in recipe.options:
        return
    by_name = {entry.path: [entry] for entry in entries}
    for entry in entries:
        pure = PurePosixPath(entry.path)
        for name in {pure.name, pure.stem} - {entry.path}:
            by_name.setdefault(name, []).append(entry)
    header = {name: name for name in ("filename", "label", "xmin", "ymin", "xmax", "ymax")}
    header |= recipe.options.get("box_columns", {})
    sized = "width" in header
    far = ("width", "height") if sized else ("xmax", "ymax")
    corners = [header[name] for name in ("xmin", "ymin", *far)]
    label = recipe.options.get("box_label", "")
    needed = {header["filename"]} | (set() if label else {header["label"]})
    for row in _rows(recipe, root / recipe.options["boxes"], needed, ledger, {*corners}):
        cells = [row[name] for name in corners]
        if not any(cells):
            continue  # the row says that the image has no box
        owners = by_name.get(row[header["filename"]], [])
        if len({owner.path for owner in owners}) == 1:
            cells = _corners(cells) if sized else cells
            name = label or label_name(recipe, row[header["label"]])
            owners[0].boxes.append((name, *cells))
        else:
            reason = "box of an ambiguous file name" if owners else "box of an unknown image"
            drop_annotation(recipe, reason, row[header["filename"]], ledger)


def _bbox_of(segmentation, size: tuple[int, int]) -> list[float] | None:
    """x, y, width, height of polygons or an RLE mask; None if it is neither or empty."""
    from pycocotools import mask

    height, width = size
    if not segmentation or not isinstance(segmentation, list | dict):
        return None
    if isinstance(segmentation, dict):
        said = segmentation.get("size")
        height, width = said if isinstance(said, list) and len(said) == 2 else (0, 0)
    if not (isinstance(height, int) and isinstance(width, int)):
        return None
    if not 0 < height * width <= MAX_PIXELS:
        return None
    try:
        if isinstance(segmentation, list):
            shapes = [[float(n) for n in polygon] for polygon in segmentation]
            if any(len(shape) < 6 or len(shape) % 2 for shape in shapes):
                return None
            coded = mask.merge(mask.frPyObjects(shapes, height, width))
        elif isinstance(segmentation.get("counts"), list):
            counts = [int(n) for n in segmentation["counts"]]
            if min(counts, default=-1) < 0 or sum(counts) != height * width:
                return None
            coded = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        else:
            # The C code trusts compressed counts: what does not decode to the size is refused.
            coded = {"size": [height, width], "counts": str(segmentation["counts"]).encode("ascii")}
            if sum(_run_lengths(coded["counts"])) != height * width:
                return None
        box = [float(n) for n in mask.toBbox(coded)]
    except (TypeError, ValueError, KeyError, IndexError, UnicodeEncodeError):
        return None
    return box if box[2] > 0 and box[3] > 0 else None


def _run_lengths(coded: bytes) -> list[int]:
    """The run lengths of COCO's compressed RLE; ValueError where it is none.

    Source: the format's own description in cocoapi's maskApi.h (LEB128-like, six bits a byte, each
    run from the third on stored as the difference to the one two before).
    """
    runs, value, shift = [], 0, 0
    for byte in coded:
        digit = byte - 48
        if not 0 <= digit < 64:
            raise ValueError("no run-length code")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            if runs[-1] < 0:
                raise ValueError("negative run")
            value, shift = 0, 0
    if shift:
        raise ValueError("the code ends within a run")
    return runs


def _corners(bbox: list) -> list:
    """x, y, width, height -> x1, y1, x2, y2; what is not a number is left for the box check."""
    try:
        x, y, width, height = map(float, bbox)
    except (TypeError, ValueError):
        return bbox
    return [x, y, x + width, y + height]


def text_of(tree, path: str) -> str:
    return " ".join((tree.findtext(path) or "").split())


def image_size(path: Path) -> tuple[int, int]:
    """Width and height from an image's header; (1, 1) where it cannot be read.

    The image itself is opened later, and counted there if it is broken.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return 1, 1
