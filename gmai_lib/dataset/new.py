"""Look at a folder no recipe knows, say what is recognised, and draft a recipe for it.

    python -m gmai_lib.dataset.new path/to/folder --modality X-ray

The draft is Python to paste into recipes_public.py. What files cannot tell (licence, department,
citation) is left as "unstated" or a question, never guessed; the draft is then tried: the reader
runs over the folder and its books of kept and dropped items are printed.

Paper: none; section 3.1 normalises 219 sources by hand.
"""

import argparse
import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from defusedxml.ElementTree import parse

from gmai_lib.dataset import readers
from gmai_lib.dataset.annotations import SPLIT_WORDS, XML_ERRORS, files
from gmai_lib.dataset.planes import dicom_header
from gmai_lib.dataset.recipes import RECIPES, Recipe, matches
from gmai_lib.schema import MODALITIES, SPLITS, TASKS, Ledger

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif")
_SPLIT = re.compile("|".join((*SPLIT_WORDS, *SPLITS)), re.IGNORECASE)
ASK = "?"  # what only a person can fill in
# How tables call what the reader calls finding and patient, the surest first.
_COLUMNS = {
    "finding": ("finding", "finding labels", "diagnosis", "label", "dx", "class", "disease"),
    "patient": ("patient", "patient_id", "patientid", "patient id", "subject", "subject_id"),
    "report": ("report", "findings", "impression", "clinical notes", "clinical_notes", "caption"),
}
_BOX_COLUMNS = {"filename", "label", "xmin", "ymin", "xmax", "ymax"}


@dataclass(frozen=True)
class Draft:
    """One way to read a folder, and why."""

    recipe: Recipe
    because: str

    def source(self) -> str:
        """The recipe as Python, as it would stand in recipes_public.py."""
        recipe, lines = self.recipe, []
        shown = ("name", "reader", "marks", "modality", "department", "task", "license")
        for name in (*shown, "citation", "homepage", "options"):
            lines.append(f"    {name}={getattr(recipe, name)!r},")
        return "\n".join(("Recipe(", *lines, ")"))


def draft(folder: Path) -> list[Draft]:
    """Return a draft for every format that `folder` is recognised as, the surest first.

    Raises ValueError if `folder` is missing or nothing is recognised, with what lies in it.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise ValueError(f"{folder} is not a folder; pass the folder of one dataset")
    paths = files(root, "**/*")
    found = []
    for look in LOOKS:
        for reader, options, mark, because in look(root, paths):
            recipe = Recipe(
                name=re.sub(r"\W+", "_", root.name.lower()),
                reader=reader,
                marks=(f"*/{mark}",),
                modality=ASK,
                department="unstated",
                task=ASK,
                license="unstated",
                citation=ASK,
                homepage=ASK,
                options=options,
            )
            found.append(Draft(recipe, because))
    if not found:
        kinds = Counter(Path(path).suffix or "no suffix" for path in paths).most_common(6)
        held = ", ".join(f"{number} {kind}" for kind, number in kinds) or "none"
        raise ValueError(
            f"{folder} is in no format that a reader knows ({', '.join(readers.READERS)}); "
            f"it holds {len(paths)} files: {held}"
        )
    return found


def attempt(recipe: Recipe, root: Path, modality: str, most: int = 200) -> tuple[list, Ledger]:
    """Read up to `most` records of `root` with a draft; return them and the books."""
    ledger, records = Ledger(), []
    tried = replace(recipe, modality=modality, task=TASKS[0])  # both are asked for in the draft
    for record in readers.read(tried, Path(root).resolve(), ledger):
        records.append(record)
        if len(records) == most:
            break
    return records, ledger


# ---- one function per format: (reader, options, mark, because) -------------------------------


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
            split = re.search("train|val|test", Path(path).stem.lower())
            indexes[path] = SPLIT_WORDS.get(split[0], split[0]) if split else ""
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


LOOKS: tuple[Callable, ...] = (
    _nnunet, _coco, _questions, _mask_files, _xml, _instances, _series, _table, _class_folders,
    _dicom,
)  # fmt: skip


def _json(path: Path):
    """The content of a JSON file, or None where it is none."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _by_name(paths: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in _pictures(paths):
        found.setdefault(Path(path).name, []).append(path)
    return found


def _pictures(paths: list[str]) -> list[str]:
    return [path for path in paths if path.lower().endswith(IMAGES)]


def main(arguments: list[str] | None = None):
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of one dataset")
    parser.add_argument(
        "--modality", default="X-ray", help="for the trial; one of schema.MODALITIES"
    )
    parsed = parser.parse_args(arguments)
    if parsed.modality not in MODALITIES:
        parser.error(f"unknown modality {parsed.modality!r}; known: {', '.join(MODALITIES)}")
    try:
        known = [r.name for r in RECIPES if matches(r, parsed.folder.resolve())]
        if known:
            print(f"{parsed.folder} is recognised already: {', '.join(known)}")
            return
        drafts = draft(parsed.folder)
        for number, each in enumerate(drafts):
            print(f"{'surest' if not number else 'also possible'}: {each.because}\n")
            print(each.source(), "\n", sep="\n")
        records, ledger = attempt(drafts[0].recipe, parsed.folder, parsed.modality)
    except ValueError as error:
        parser.error(str(error))
    labels = Counter(label for record in records for label in record.labels)
    boxes = sum(len(record.boxes) for record in records)
    print(f"tried on the first {len(records)} records: {boxes} boxes, labels {dict(labels)}")
    for row in ledger.rows():
        print(f"  {row['level']}: {row['outcome']} {row['count']}  {row['example']}".rstrip())
    print(f'Fill in what stands as "{ASK}"; it belongs into gmai_lib/dataset/recipes_public.py.')


if __name__ == "__main__":
    main()
