"""What formats look like: one function per format recognises a folder that no recipe knows.

Each yields (reader, options, mark, because): options that make the reader find its files, a glob
that tells the folder from others, and the reason in words. Nothing is opened that its name does not
suggest, and a broken file is passed over; the reader will count it.
"""

import csv
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from defusedxml.ElementTree import parse

from gmai_lib.dataset.annotations import SPLIT_WORDS, XML_ERRORS
from gmai_lib.dataset.planes import dicom_header, text_of
from gmai_lib.schema import SPLITS

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif")
SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".svslide", ".tif", ".tiff")
ASK = "?"  # what only a person can fill in
_SPLIT = re.compile("|".join((*SPLIT_WORDS, *SPLITS)), re.IGNORECASE)
# How tables call what the reader calls finding and patient, the surest first.
_COLUMNS = {
    "finding": ("finding", "finding labels", "diagnosis", "label", "dx", "class", "disease"),
    "patient": ("patient", "patient_id", "patientid", "patient id", "subject", "subject_id"),
    "report": ("report", "findings", "impression", "clinical notes", "clinical_notes", "caption"),
}
_BOX_COLUMNS = {"filename", "label", "xmin", "ymin", "xmax", "ymax"}
_MASK_FOLDERS = {
    "mask",
    "masks",
    "label",
    "labels",
    "gt",
    "groundtruth",
    "ground_truth",
    "annotations",
}
_IMAGE_FOLDERS = {"image", "images", "img", "imgs", "original"}
_HEAD = 2**20  # bytes of an index of lines that are looked at


def _nnunet(root: Path, paths: list[str]):
    index = _json(root / "dataset.json")
    labels = index.get("labels") if isinstance(index, dict) else None
    if isinstance(labels, dict) and any(path.startswith("imagesTr/") for path in paths):
        because = f"dataset.json names {len(labels)} labels, imagesTr holds volumes"
        yield "nnunet", {"instances": "components"}, "imagesTr/*", because


def _coco(root: Path, paths: list[str]):
    images = _by_name(paths)
    for path in (p for p in paths if p.endswith(".json")):
        index = _json(root / path)
        if not (isinstance(index, dict) and {"images", "annotations", "categories"} <= set(index)):
            continue
        named = [str(image.get("file_name", "")) for image in index["images"]]
        first = next(
            (images[Path(name).name][0] for name in named if Path(name).name in images), ""
        )
        name = next((name for name in named if first.endswith(name)), "")
        if not name:
            continue
        home = first.removesuffix(name).rstrip("/") or "."
        options = {"index": path, "folder": home, "images": f"{home}/**/*"}
        because = f"{path} is a COCO index of {len(named)} images, which lie in {home}"
        yield "coco", options, path, because


def _questions(root: Path, paths: list[str]):
    images = _by_name(paths)
    indexes, home = {}, ""
    for path in (p for p in paths if p.endswith(".json")):
        index = _json(root / path)
        first = index[0] if isinstance(index, list) and index else None
        if not (isinstance(first, dict) and {"image_name", "question", "answer"} <= set(first)):
            continue
        name = Path(str(first["image_name"])).name
        if name in images:
            home = images[name][0].rpartition("/")[0] or "."
            indexes[path] = _split_of(path)
    if indexes:
        options = {"indexes": indexes, "folder": home, "images": f"{home}/*"}
        because = f"{', '.join(indexes)}: lists of image_name, question, answer"
        yield "vqa_json", options, next(iter(indexes)), because


def _xml(root: Path, paths: list[str]):
    sheets = [path for path in paths if path.endswith(".xml")]
    if not sheets:
        return
    try:
        tree = parse(root / sheets[0]).getroot()
    except XML_ERRORS:
        return
    pattern = "*/" * sheets[0].count("/") + "*.xml"
    if tree.find(".//bndbox") is not None or tree.tag == "annotation":
        home = Path(sheets[0]).parent.as_posix()
        pictures = Counter(Path(path).parent.as_posix() for path in _pictures(paths))
        if pictures:
            folder = pictures.most_common(1)[0][0]
            options = {"annotations": f"{home}/*.xml", "folder": folder, "images": f"{folder}/*"}
            because = f"{len(sheets)} Pascal VOC files in {home}, images in {folder}"
            yield "voc", options, f"{home}/*.xml", because
    elif tree.find(".//QAPair") is not None:
        yield "question_xml", {"files": pattern}, pattern, f"{len(sheets)} files of QAPair"


def _instances(root: Path, paths: list[str]):
    homes = {path.split("/masks/")[0] for path in paths if "/masks/" in path}
    homes &= {path.split("/images/")[0] for path in paths if "/images/" in path}
    if len(homes) > 1:
        pattern = "*/" * min(homes).count("/") + "*"
        because = f"{len(homes)} folders with images/ and masks/ of one instance each"
        options = {"folders": pattern, "label": ASK}
        yield "instance_folders", options, f"{pattern}/masks/*", because


def _table(root: Path, paths: list[str]):
    """A table with a finding or a report per image; one of patients alone says too little."""
    pictures = _pictures(paths)
    names = {Path(path).name: path for path in pictures}
    stems = {Path(path).stem: path for path in pictures}
    for path, rows in _tables(root, paths):
        columns = _columns(list(rows[0]))
        if not {"finding", "report"} & set(columns) or set(rows[0]) >= _BOX_COLUMNS:
            continue
        for column in rows[0]:
            cells = {row[column] for row in rows}
            known = names if cells & set(names) else stems
            hits = sorted(cells & set(known))
            if len(hits) < max(1, len(cells) // 2):
                continue
            suffix = Path(known[hits[0]]).suffix
            ending = "" if known is names else suffix
            homes = {known[hit].rpartition("/")[0] for hit in hits}
            home = homes.pop() if len(homes) == 1 else "**"
            inside = f"{home}/" if home else ""
            options = {"table": path, "file": f"{inside}{{{column}}}{ending}"}
            options |= {"images": f"{inside}*{suffix}", "columns": columns} | _boxes(root, paths)
            because = f"{path}: column {column!r} names {len(hits)} of {len(pictures)} images"
            yield "table", options, path, because
            return


def _tables(root: Path, paths: list[str]):
    """Yield (path, up to 200 rows) of every CSV file, as the reader sees it: lower-case headers."""
    for path in (p for p in paths if p.endswith(".csv")):
        try:
            with (root / path).open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, strict=True)
                header = [name.strip().lower() for name in next(reader, [])]
                cells = [row for _, row in zip(range(200), reader, strict=False)]
        except (csv.Error, UnicodeDecodeError):
            continue
        rows = [dict(zip(header, map(str.strip, row), strict=False)) for row in cells]
        rows = [row for row in rows if len(row) == len(header)]
        if rows and header:
            yield path, rows


def _boxes(root: Path, paths: list[str]) -> dict[str, str]:
    """The option for a table of boxes, where there is one."""
    for path, rows in _tables(root, paths):
        if set(rows[0]) >= _BOX_COLUMNS:
            return {"boxes": path}
    return {}


def _columns(header: list[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for field, candidates in _COLUMNS.items():
        match = next((name for name in candidates if name in header), "")
        if match and match not in chosen.values():
            chosen[field] = match
    return chosen


def _class_folders(root: Path, paths: list[str]):
    pictures = _pictures(paths)
    depths = Counter(path.count("/") for path in pictures)
    if not depths or not depths.most_common(1)[0][0]:
        return
    depth = depths.most_common(1)[0][0]
    alike = [path.split("/") for path in pictures if path.count("/") == depth]
    classes = Counter(parts[-2] for parts in alike)
    generic = {"images", "image", "img", "masks", "mask", "jpegimages", "annotations", "labels"}
    if not 2 <= len(classes) <= 200 or generic & {name.lower() for name in classes}:
        return
    groups = []
    for level in range(depth - 1):
        values = sorted({parts[level] for parts in alike})
        split = all(_SPLIT.fullmatch(value) for value in values)
        groups.append(f"(?P<split>{'|'.join(values)})" if split else "[^/]+")
    pattern = "/".join([*groups, "(?P<label>[^/]+)", "[^/]+"])
    glob = "*/" * depth + "*"
    shown = ", ".join(f"{name} {n}" for name, n in classes.most_common(6))
    options = {"images": glob, "path": pattern} | _boxes(root, paths)
    yield "class_folders", options, glob, f"folders as classes: {shown}"


def _mask_files(root: Path, paths: list[str]):
    indexes, known = {}, set(paths)
    for path in (p for p in paths if p.endswith(".json")):
        index = _json(root / path)
        if isinstance(index, dict) and index:
            key, value = next(iter(index.items()))
            pair = [key, *(value if isinstance(value, list) else [value])]
            if all(isinstance(name, str) and name in known for name in pair[:2]) and pair[1:]:
                indexes[path] = ""
    if indexes:
        because = f"{', '.join(indexes)}: images and their mask files"
        yield "mask_files", {"indexes": indexes}, next(iter(indexes)), because


def _series(root: Path, paths: list[str]):
    masks = {Path(path).name for path in paths if path.endswith(".nii.gz") and path.count("/") == 1}
    if len(masks) != 1:
        return
    mask, series = masks.pop(), {path.split("/")[0] for path in paths if path.count("/") == 1}
    slices = [p for p in paths if p.count("/") == 1 and not p.endswith(mask)]
    if not slices or dicom_header(root / slices[0]) is None:
        return
    options = {"mask": mask, "instances": "values"}
    for path, rows in _tables(root, paths):
        key = next((c for c in rows[0] if {row[c] for row in rows} & series), "")
        if key:
            options |= {"table": path, "key": key}
    because = f"{len(series)} folders of a DICOM series each, with its mask in {mask}"
    yield "dicom_series", options, f"*/{Path(slices[0]).name}", because


def _dicom(root: Path, paths: list[str]):
    plain = [path for path in paths if Path(path).suffix.lower() in ("", ".dcm", ".dicom", ".ima")]
    if any(dicom_header(root / path) is not None for path in plain[:20]):
        because = f"{len(plain)} files, the first of them DICOM; annotation was not found"
        yield "dicom_files", {"window": "soft tissue"}, plain[0], because


def _yolo(root: Path, paths: list[str]):
    """Text files of five numbers a line, named as an image; no file names their classes."""
    stems = {Path(path).stem for path in _pictures(paths)}
    homes: Counter = Counter()
    most = -1
    for path in (p for p in paths if p.endswith(".txt") and Path(p).stem in stems):
        rows = [line.split() for line in _head(root / path).splitlines() if line.strip()]
        if not rows or not all(map(_is_yolo, rows)):
            continue
        homes[Path(path).parent.as_posix()] += 1
        most = max(most, *(int(row[0]) for row in rows))
    if homes:
        home = homes.most_common(1)[0][0]
        pattern = "*.txt" if home == "." else f"{home}/*.txt"
        folder = _common([p for p in _pictures(paths) if Path(p).stem in stems])
        options = {"images": f"{folder}*.*", "annotations": pattern}
        options["labels"] = tuple(f"class {number}" for number in range(most + 1))
        yield "yolo", options, pattern, f"{homes[home]} YOLO text files in {home}"


def _is_yolo(row: list[str]) -> bool:
    try:
        kind, *rest = int(row[0]), *map(float, row[1:])
    except (ValueError, IndexError):
        return False
    return kind >= 0 and len(rest) == 4 and all(0 <= value <= 1 for value in rest)


def _mask_pairs(root: Path, paths: list[str]):
    """A folder of images beside one of masks that are called alike."""
    by_folder: dict[str, dict[str, str]] = {}
    for path in _pictures(paths):
        by_folder.setdefault(Path(path).parent.as_posix(), {})[Path(path).stem] = path
    for home, shown in sorted(by_folder.items()):
        if Path(home).name.lower() not in _IMAGE_FOLDERS:
            continue
        for other, masks in sorted(by_folder.items()):
            same_parent = Path(other).parent == Path(home).parent
            if not same_parent or Path(other).name.lower() not in _MASK_FOLDERS:
                continue
            found = _ending(shown, masks)
            if found is None:
                continue
            ending, number = found
            suffixes = {Path(path).suffix for path in shown.values()}
            image = "|".join(sorted(re.escape(suffix) for suffix in suffixes))
            suffix = Path(next(iter(masks.values()))).suffix
            options = {
                "images": f"{home}/*", "masks": f"{other}/*",
                "path": rf"{re.escape(home)}/(?P<name>[^/]+)(?:{image})",
                "pairs": {"finding": f"{other}/{{name}}{ending}{suffix}"},
            }  # fmt: skip
            because = f"{number} of {len(shown)} images in {home} have a mask in {other}"
            yield "mask_pairs", options, f"{other}/*", because
            return


def _ending(shown: dict[str, str], masks: dict[str, str]) -> tuple[str, int] | None:
    """What most masks add to the stem of their image, and how many do; None for less than half."""
    endings: Counter = Counter()
    for stem in masks:
        endings.update(stem[len(name) :] for name in shown if stem.startswith(name))
    if not endings or endings.most_common(1)[0][1] * 2 < len(shown):
        return None
    return endings.most_common(1)[0]


def _released(root: Path, paths: list[str]):
    """Pairs as they are released: rows of an image and a caption or a question, or dialogues."""
    images = _by_name(paths)
    found: dict[tuple, dict[str, str]] = {}
    options_of: dict[tuple, dict] = {}
    for path in (p for p in paths if p.endswith((".json", ".jsonl", ".csv"))):
        row = _first_row(root / path)
        turns = row.get("conversations") if row else None
        if not row or not (turns is None or (isinstance(turns, list) and turns)):
            continue
        said = {name: value for name, value in row.items() if isinstance(value, str)}
        shown = row.get("image")
        shown = shown[0] if isinstance(shown, list) and shown else shown
        column = "image" if isinstance(shown, str) else ""
        if not column:
            column = next((c for c, value in said.items() if Path(value).name in images), "")
            shown = said.get(column, "")
        if turns is not None:
            reader, fields = ("dialogues" if column else "text_dialogues"), {}
        else:
            reader, fields = _row_reader(path, said, column)
            if not reader:
                continue
        options = {}
        if column:
            options["image"] = "{name}" if shown in paths else "**/{name}"
            if options["image"] != "{name}":
                known = images.get(Path(shown).name, [""])[0]
                options["images"] = f"**/*{Path(known or shown).suffix}"
        if fields := {name: field for name, field in fields.items() if name != field}:
            options["fields"] = fields
        key = (reader, json.dumps(options, sort_keys=True))
        found.setdefault(key, {})[path] = _split_of(path)
        options_of[key] = options
    for (reader, key), indexes in found.items():
        options = {"indexes": indexes} | options_of[reader, key]
        because = f"{', '.join(indexes)}: rows for the reader {reader}"
        yield reader, options, next(iter(indexes)), because


def _row_reader(path: str, said: dict[str, str], column: str) -> tuple[str, dict[str, str]]:
    """The reader of a row with an image, and which of our fields is called how."""
    lower = {name.lower(): name for name in said}
    caption = next((lower[name] for name in ("caption", "text", "report") if name in lower), "")
    if not column:
        return "", {}
    if {"question", "answer"} <= set(lower):
        fields = {"image": column, "question": lower["question"], "answer": lower["answer"]}
        return "image_questions", fields
    if caption and not path.endswith(".csv"):  # a table with a report is a table
        return "captions", {"image": column, "caption": caption}
    return "", {}


def _first_row(path: Path) -> dict:
    """The first row of an index, {} where there is none."""
    if path.suffix == ".csv":
        try:
            row = next(csv.DictReader(_head(path).splitlines(), strict=True), {})
        except csv.Error:
            return {}
        return {} if None in row or None in row.values() else row
    if path.suffix == ".jsonl":
        try:
            rows = [json.loads(_head(path).partition("\n")[0])]
        except ValueError:
            return {}
    else:
        rows = _json(path)
    return rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}


def _parquet(root: Path, paths: list[str]):
    """Parquet files of the hub with an image, a question and an answer in every row."""
    import pyarrow
    import pyarrow.parquet as pq

    splits = {}
    for path in (p for p in paths if p.endswith(".parquet")):
        try:
            names = set(pq.read_schema(root / path).names)
        except (pyarrow.ArrowException, OSError):
            continue
        if names >= {"image", "question", "answer"}:
            split = re.match("train|validation|val|test", Path(path).name.lower())
            home = Path(path).parent.as_posix()
            glob = f"{split[0]}-*.parquet" if split else Path(path).name
            glob = glob if home == "." else f"{home}/{glob}"
            splits[glob] = SPLIT_WORDS.get(split[0], split[0]) if split else ""
    if splits:
        because = f"{', '.join(splits)}: image, question and answer in every row"
        yield "parquet_vqa", {"splits": splits}, next(iter(splits)), because


def _npz(root: Path, paths: list[str]):
    """Arrays of images and labels in MedMNIST's layout; what the numbers mean is in no file."""
    import numpy as np

    for path in (p for p in paths if p.endswith(".npz")):
        try:
            with np.load(root / path) as arrays:
                if not {"train_images", "train_labels"} <= set(arrays.files):
                    continue
                labels = arrays["train_labels"]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            continue
        columns = labels.shape[1] if labels.ndim == 2 else 1
        number = columns if columns > 1 else int(labels.max()) + 1
        options = {"files": (path,), "labels": tuple(f"class {n}" for n in range(number))}
        yield "npz", options, path, f"{path}: images and labels of {number} classes"
        return


def _slides(root: Path, paths: list[str]):
    """Whole-slide images, as OpenSlide knows them."""
    import openslide

    for path in (p for p in paths if p.lower().endswith(SLIDES)):
        try:
            vendor = openslide.OpenSlide.detect_format(root / path)
        except openslide.OpenSlideError:
            continue
        if vendor is None:
            continue
        suffix = Path(path).suffix
        alike = [p for p in paths if p.endswith(suffix)]
        options = {"slides": f"**/*{suffix}", "mpp": 0.5, "size": 512, "tiles": 8}
        because = f"{len(alike)} {suffix} files, the first a slide of format {vendor}"
        yield "slides", options, path, because
        return


def _dicom_tree(root: Path, paths: list[str]):
    """Folders of patients with DICOM SEG or RTSTRUCT files among their series."""
    kinds: Counter = Counter()
    deep = [p for p in paths if p.count("/") and Path(p).suffix.lower() in ("", ".dcm")]
    firsts = {Path(path).parent: path for path in reversed(deep)}  # a header of every folder
    for path in [*firsts.values()][:500]:
        header = dicom_header(root / path)
        if header is not None:
            kinds[text_of(header, "Modality")] += 1
    masks = {name: kinds[name] for name in ("SEG", "RTSTRUCT") if kinds[name]}
    if masks and len(masks) < len(kinds):
        depth = Counter(path.count("/") for path in deep).most_common(1)[0][0]
        suffix = Counter(Path(path).suffix for path in deep).most_common(1)[0][0]
        glob = "*/" * depth + f"*{suffix}"
        options = {"files": glob, "window": "soft tissue", "instances": "label"}
        shown = ", ".join(f"{number} {name}" for name, number in masks.items())
        yield "dicom_tree", options, glob, f"DICOM series with masks: {shown}"


def _volume_pairs(root: Path, paths: list[str]):
    """A folder per case with a volume and a file that is called a mask or a segmentation."""
    kinds = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")
    held = [path for path in paths if path.endswith(kinds)]
    masks = [p for p in held if re.search(r"seg|mask|label|_gt\b|roi", Path(p).name.lower())]
    pairs: Counter = Counter()
    for mask in masks:
        case = mask.rpartition("/")[0]
        for path in held:
            if path.rpartition("/")[0] == case and path not in masks and case:
                name, shown = (
                    Path(p).name.replace(Path(case).name, "{case}") for p in (path, mask)
                )
                pairs[name, shown, case.count("/")] += 1
    if not pairs:
        return
    (image, mask, depth), number = pairs.most_common(1)[0]
    above = "[^/]+/" * depth
    pattern = re.escape(image).replace(re.escape("{case}"), "(?P=case)")
    globs = [f"{'*/' * depth}*/{name.replace('{case}', '*')}" for name in (image, mask)]
    options = {
        "images": globs[0],
        "masks": globs[1],
        "path": rf"(?P<above>{above})(?P<case>[^/]+)/{pattern}",
        "pairs": {f"{{above}}{{case}}/{mask}": "finding"},
        "instances": "label",
        "window": "soft tissue",
    }
    yield "volume_pairs", options, globs[1], f"{number} folders with {image} and its mask {mask}"


LOOKS: tuple[Callable, ...] = (
    _nnunet, _coco, _questions, _mask_files, _xml, _instances, _series, _dicom_tree, _npz, _parquet,
    _released, _table, _yolo, _mask_pairs, _volume_pairs, _slides, _class_folders, _dicom,
)  # fmt: skip


def _json(path: Path):
    """The content of a JSON file, or None where it is none."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _split_of(path: str) -> str:
    """The split that the name of an index says, "" where it says none."""
    split = re.search("train|val|test", Path(path).stem.lower())
    return SPLIT_WORDS.get(split[0], split[0]) if split else ""


def _head(path: Path) -> str:
    """The beginning of a text file, "" where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD).decode("utf-8-sig", "replace")
    except OSError:
        return ""


def _common(paths: list[str]) -> str:
    """The folder that holds all of `paths`, with a slash, or a glob of any depth."""
    homes = {path.rpartition("/")[0] for path in paths}
    home = homes.pop() if len(homes) == 1 else "**"
    return f"{home}/" if home else ""


def _by_name(paths: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in _pictures(paths):
        found.setdefault(Path(path).name, []).append(path)
    return found


def _pictures(paths: list[str]) -> list[str]:
    return [path for path in paths if path.lower().endswith(IMAGES)]
