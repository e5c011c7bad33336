"""Volumes: DICOM and NIfTI in, windowed and oriented slices with their annotation out.

Every slice of a volume is an item; up to option `slices` (default 4) of them are kept. A structure
(one value of one mask file) is one annotation, kept if a kept slice shows it. Masks are matched to
slices in patient space, so they may lie on another grid than their image; a mask may be a NIfTI,
MetaImage or NRRD file, a DICOM SEG or an RTSTRUCT (`segmentations.py`). Display: `images.py`.

Options:
    slices       slices per volume, or per axis where `axes` is declared
    select       which: "mixed" (default) half by most annotated structures, then area, the rest
                 evenly spaced; "richest" all by structures and area, none without; "even"
    axes         axial, coronal, sagittal: the planes to cut (`stacks.py`); default: the file's own
    min_mm2      smallest region of a structure on a slice, in square millimetres; a smaller one
                 is a counted drop, and the slice then says neither that the structure is there
                 nor that it is absent. `min_pixels` is the same for flat images, in pixels
    window       name of a CT window, where the file itself has no VOI window
    instances    "components": every connected part on a slice is one instance; "values": every
                 mask value is; "label": one box around all of a structure
    table, key   CSV with patient, sex, age, organ and finding of each volume; `columns` says which
                 of its headers they are (see `annotations.py`)
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from glob import escape
from pathlib import Path, PurePosixPath

import numpy as np

from gmai_lib.dataset import annotations, images
from gmai_lib.dataset.planes import (
    MODALITIES,
    Plane,
    body_part,
    dicom_header,
    dicom_pixels,
    is_inverted,
    not_an_image,
    text_of,
    voi_window,
)
from gmai_lib.dataset.recipes import Recipe
from gmai_lib.dataset.records import (
    STEP,
    boxes_of_mask,
    drop_annotation,
    label_name,
    new_record,
    others,
    person,
)
from gmai_lib.dataset.segmentations import add_dicom_mask, is_dicom_mask, referenced_series
from gmai_lib.dataset.stacks import (
    Volume,
    add_mask,
    all_said,
    counted_values,
    dicom_headers,
    dicom_volume,
    file_volume,
    redacted,
)
from gmai_lib.outputs import read_json
from gmai_lib.pool import counted
from gmai_lib.schema import NO_FINDING, Box, Ledger, Record

_PERCENTILES = (0.5, 99.5)  # grey range of slices without a declared window (MR, PET)

# ---- formats -------------------------------------------------------------------------------


def volumes(recipe: Recipe, root: Path, ledger: Ledger, processes: int = 1) -> Iterator[Record]:
    """Listed volumes; option `cases` under `base`: image (NIfTI file or DICOM folder), masks
    (globs) and, where they are needed, modality, window, measurements (JSON), measured (label).

    A mask's label table is the Caret XML in its NIfTI header extension; without one the mask
    holds one structure, named by its file. A mask that ends in .dcm is a DICOM SEG or RTSTRUCT.
    """
    work = partial(_listed_volume, recipe, root)
    yield from counted(work, recipe.options["cases"], ledger, processes=processes)


def _listed_volume(recipe: Recipe, root: Path, ledger: Ledger, case: dict) -> Iterator[Record]:
    base = recipe.options["base"]
    path = f"{base}/{case['image']}"
    if (root / path).is_dir():
        headers = dicom_headers(root, annotations.files(root, f"{path}/*"))
        volume = dicom_volume(recipe, root, headers, ledger)
    else:
        modality = case.get("modality", recipe.modality)
        volume = file_volume(recipe, root, path, modality, ledger)
    if volume is None:
        return
    volume.window = _named_window(recipe, case.get("window"))
    for pattern in case["masks"]:
        found = annotations.files(root, f"{base}/{pattern}")
        for mask in found or [f"{base}/{pattern}"]:
            if mask.endswith(".dcm"):
                add_dicom_mask(recipe, root, volume, mask, ledger)
                continue
            stem = PurePosixPath(mask).name.removesuffix(".nii.gz")
            add_mask(recipe, root, volume, mask, {1: label_name(recipe, stem)}, ledger)
    volume.vocabulary = {name for mask in volume.masks for name in mask.searched}
    if "measurements" in case:
        volume.measured = case["measured"]
        volume.report = _measurements(recipe, root / base / case["measurements"], ledger)
    yield from _slices(recipe, volume, ledger)


def nnunet(recipe: Recipe, root: Path, ledger: Ledger, processes: int = 1) -> Iterator[Record]:
    """nnU-Net or Medical Segmentation Decathlon folder: dataset.json, imagesTr, labelsTr."""
    path = root / "dataset.json"
    index = annotations.read_index(path)
    labels = index.get("labels") if isinstance(index, dict) else None
    if not isinstance(labels, dict):
        raise ValueError(f"{path} has no table of labels; it is no nnU-Net or MSD dataset.json")
    # nnU-Net writes name: number, the Decathlon "number": name.
    pairs = [(v, k) if isinstance(v, int) else (k, v) for k, v in labels.items()]
    names = {int(v): label_name(recipe, str(k)) for v, k in pairs if str(v).isdigit() and int(v)}
    ending = index.get("file_ending", ".nii.gz")
    cases = {}
    for image in annotations.files(root, f"imagesTr/*{ending}"):
        cases[PurePosixPath(image).name.removesuffix(ending).removesuffix("_0000")] = image
    for mask in annotations.files(root, f"labelsTr/*{ending}"):
        if PurePosixPath(mask).name.removesuffix(ending) not in cases:
            drop_annotation(recipe, "mask without an image", mask, ledger)
    rows, findings = _table(recipe, root, set(cases), ledger)
    work = partial(_nnunet_case, recipe, root, names, findings)
    jobs = (
        (image, f"labelsTr/{case}{ending}", rows.get(case, {})) for case, image in cases.items()
    )
    yield from counted(work, jobs, ledger, processes=processes)


def _nnunet_case(
    recipe: Recipe,
    root: Path,
    names: dict[int, str],
    findings: dict[str, set[str]],
    ledger: Ledger,
    job: tuple[str, str, dict[str, str]],
) -> Iterator[Record]:
    image, mask, row = job
    volume = file_volume(recipe, root, image, recipe.modality, ledger)
    if volume is None:
        return
    _say(recipe, volume, row, findings)
    volume.window = _named_window(recipe, recipe.options.get("window"))
    if add_mask(recipe, root, volume, mask, names, ledger):
        yield from _slices(recipe, volume, ledger)
    else:
        ledger.drop(recipe.name, STEP, "volume without its mask", image, len(volume.planes))


def volume_pairs(
    recipe: Recipe, root: Path, ledger: Ledger, processes: int = 1
) -> Iterator[Record]:
    """Volumes beside their masks; option `path`: regular expression of an image's path.

    Option `pairs`: glob of mask files with the expression's {groups} filled in -> what they show:
    value -> name, or one name for all values ("{stem}": the file's own). Groups split and patient:
    as in class folders; the table is found by the patient. What the mask files of a volume could
    show and do not is absent.
    """
    jobs, masks = [], set()
    if "masks" in recipe.options:
        masks.update(annotations.files(root, recipe.options["masks"]))
    for path in annotations.files(root, recipe.options["images"]):
        if match := re.fullmatch(recipe.options["path"], path):
            jobs.append((path, match.groupdict()))
        elif path not in masks:
            ledger.drop(recipe.name, STEP, "path does not fit the pairs", path)
    known = {said.get("patient") or path for path, said in jobs}
    rows, findings = _table(recipe, root, known, ledger)
    jobs = [(path, said, rows.get(said.get("patient") or path, {})) for path, said in jobs]
    work = partial(_paired_volume, recipe, root, findings)
    yield from counted(work, jobs, ledger, processes=processes)


def _paired_volume(
    recipe: Recipe,
    root: Path,
    findings: dict[str, set[str]],
    ledger: Ledger,
    job: tuple[str, dict[str, str | None], dict[str, str]],
) -> Iterator[Record]:
    path, said, row = job
    volume = file_volume(recipe, root, path, recipe.modality, ledger)
    if volume is None:
        return
    _say(recipe, volume, row, findings)
    volume.patient = said.get("patient") or volume.patient
    volume.split = annotations.split_name(recipe, said.get("split") or row.get("split", ""))
    volume.window = _named_window(recipe, recipe.options.get("window"))
    used = False
    for template, shown in recipe.options["pairs"].items():
        filled = {key: escape(value or "") for key, value in said.items()}
        for mask in annotations.files(root, template.format_map(filled)):
            stem = PurePosixPath(mask).name.partition(".")[0]
            names = shown
            if isinstance(names, str):
                names = {1: label_name(recipe, names.format(stem=stem))}
            used = add_mask(recipe, root, volume, mask, names, ledger) or used
    if used:
        volume.vocabulary |= {name for mask in volume.masks for name in mask.searched}
        yield from _slices(recipe, volume, ledger)
    else:
        ledger.drop(recipe.name, STEP, "volume without its mask", path, len(volume.planes))


def dicom_series(
    recipe: Recipe, root: Path, ledger: Ledger, processes: int = 1
) -> Iterator[Record]:
    """One folder per DICOM series (files need no suffix) with a NIfTI mask called `mask` in it.

    The table names the finding of the series; every value of the mask is one instance of it.
    """
    folders = {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and p.name[0] != "."}
    rows, findings = _table(recipe, root, set(folders), ledger)
    work = partial(_series, recipe, root, findings)
    jobs = ((series, rows.get(series, {})) for series in folders)
    yield from counted(work, jobs, ledger, processes=processes)


def _series(
    recipe: Recipe,
    root: Path,
    findings: dict[str, set[str]],
    ledger: Ledger,
    job: tuple[str, dict[str, str]],
) -> Iterator[Record]:
    series, row = job
    mask = f"{series}/{recipe.options['mask']}"
    paths = annotations.files(root, f"{escape(series)}/*")
    headers = dicom_headers(root, [p for p in paths if p != mask])
    volume = dicom_volume(recipe, root, headers, ledger)
    if volume is None:
        return
    finding = label_name(recipe, annotations.cell(recipe, row, "finding"))
    _say(recipe, volume, row, findings)
    volume.window = _named_window(recipe, recipe.options.get("window"))
    usable = bool(finding)
    if finding not in ("", NO_FINDING) or mask in paths:
        usable = add_mask(recipe, root, volume, mask, finding, ledger) and usable
    if usable:
        yield from _slices(recipe, volume, ledger)
    else:
        reason = "volume without its mask" if finding else "volume without a table row"
        ledger.drop(recipe.name, STEP, reason, volume.path, len(volume.planes))


def dicom_tree(recipe: Recipe, root: Path, ledger: Ledger) -> Iterator[Record]:
    """Series with DICOM SEG and RTSTRUCT files, one folder per patient (Cancer Imaging Archive).

    Option `files`: glob of all DICOM files, the first part of a path is the patient's. Which file
    belongs to which series is said by their UIDs, not by folders. Option `exhaustive`: what the
    masks of a series name is absent on its slices that do not show it. Option `split`: regular
    expression whose group finds the split in a path.
    """
    by_patient = defaultdict(list)
    for path in annotations.files(root, recipe.options["files"]):
        by_patient[path.partition("/")[0]].append(path)
    for paths in by_patient.values():  # the headers of one patient at a time
        headers, series, masks = dicom_headers(root, paths), defaultdict(dict), {}
        patients = all_said(headers, "PatientID")
        for path, header in headers.items():
            if is_dicom_mask(header):
                masks[path] = header
            else:
                series[text_of(header, "SeriesInstanceUID")][path] = header
        instances = {
            text_of(header, "SOPInstanceUID"): uid
            for uid, members in series.items()
            for header in members.values()
        }
        about = {path: referenced_series(header, instances) for path, header in masks.items()}
        for path, uids in about.items():
            if not uids & set(series):
                reason = "mask of a series that is not there" if uids else "mask names no series"
                drop_annotation(recipe, reason, redacted(recipe, path, patients), ledger)
        for uid, members in series.items():
            volume = dicom_volume(recipe, root, members, ledger)
            if volume is None:
                continue
            volume.window = _named_window(recipe, recipe.options.get("window"))
            said = re.match(recipe.options.get("split", ""), paths[0])
            if said and said.groups():
                volume.split = annotations.split_name(recipe, said[1])
            mine = [path for path in masks if uid in about[path]]
            used = [add_dicom_mask(recipe, root, volume, path, ledger) for path in mine]
            if any(used):
                if recipe.options.get("exhaustive"):
                    volume.vocabulary = {n for mask in volume.masks for n in mask.searched}
                yield from _slices(recipe, volume, ledger)
            else:
                reason = "series without a usable mask"
                ledger.drop(recipe.name, STEP, reason, volume.path, len(volume.planes))


def dicom_files(recipe: Recipe, root: Path, ledger: Ledger) -> Iterator[Record]:
    """Any DICOM files, each on its own; one with several frames is a video.

    Only what the header says becomes annotation: modality, and the body part as organ. Files
    that hold no image, cannot be decoded, have text burned in, or whose modality is outside the
    vocabulary are drops. Displayed as stored, as the standard asks for.
    """
    paths = [p for p in annotations.files(root, "**/*") if not p.endswith((".py", ".pyc"))]
    headers = {path: dicom_header(root / path) for path in paths}
    patients = all_said(headers, "PatientID")
    fallback = _named_window(recipe, recipe.options.get("window"))
    for path, header in headers.items():
        shown = redacted(recipe, path, patients)
        reason = not_an_image(header)
        if reason:
            ledger.drop(recipe.name, STEP, reason, shown)
            continue
        frames = int(text_of(header, "NumberOfFrames") or 1)
        chosen = select_slices([0.0] * frames, recipe.options.get("slices", 4))
        if frames > len(chosen):
            ledger.drop(recipe.name, STEP, "frame not selected", shown, frames - len(chosen))
        modality = MODALITIES[text_of(header, "Modality")]
        for frame in chosen:
            name = f"{shown}#{frame}" if frames > 1 else shown
            try:
                pixels = dicom_pixels(root / path, frame)
            except ValueError as error:
                ledger.drop(recipe.name, STEP, str(error), name)
                continue
            if pixels.ndim == 2:
                voi = voi_window(header) or (fallback if modality == "CT" else None)
                pixels = _grey([pixels], [voi], [is_inverted(header)])[0]
            ledger.keep(recipe.name, STEP)
            said = (text_of(header, "PatientSex"), text_of(header, "PatientAge"))
            yield _record(
                recipe,
                name,
                pixels,
                dimension="video" if frames > 1 else "2d",
                modality=modality,
                organ=body_part(header),
                patient=text_of(header, "PatientID"),
                **person(recipe, name, *said, ledger),
                volume=shown if frames > 1 else "",
            )


def dicom_image(path: Path) -> bytes:
    """Return the PNG of a DICOM file that holds one image, as `dicom_files` displays it.

    Raises ValueError with the reason why it cannot be a record.
    """
    header = dicom_header(path)
    if reason := not_an_image(header):
        raise ValueError(reason)
    pixels = dicom_pixels(path, 0)
    if pixels.ndim == 2:
        pixels = _grey([pixels], [voi_window(header)], [is_inverted(header)])[0]
    return images.to_png(pixels)


# ---- from planes to records ----------------------------------------------------------------


def select_slices(scores: list[float], count: int, select: str = "mixed") -> list[int]:
    """Return up to `count` indices, ascending, by option `select` of the module docstring.

    Neighbours of a rich slice look almost the same and are passed over.
    """
    n = len(scores)
    by_score = {"mixed": (count + 1) // 2, "richest": count, "even": 0}[select]
    if n <= count:
        return [i for i in range(n) if select != "richest" or scores[i] > 0]
    chosen: list[int] = []
    for i in sorted(range(n), key=lambda i: (-scores[i], i)):
        if len(chosen) == by_score or scores[i] <= 0:
            break
        if all(abs(i - other) > n // (2 * count) for other in chosen):
            chosen.append(i)
    evenly = 0 if select == "richest" else count - len(chosen)
    for part in range(evenly):
        center = (part + 0.5) * n / evenly
        free = (i for i in range(n) if i not in chosen)
        chosen.append(min(free, key=lambda i: (abs(i + 0.5 - center), i)))
    return sorted(chosen)


def _chosen(recipe: Recipe, volume: Volume, ledger: Ledger) -> list[Plane]:
    """The planes to keep of each axis; the others are drops."""
    select, count = recipe.options.get("select", "mixed"), recipe.options.get("slices", 4)
    if select not in ("mixed", "richest", "even"):
        raise ValueError(f"recipe {recipe.name}: select {select!r} is not mixed, richest or even")
    by_axis, chosen = defaultdict(list), []
    for plane in volume.planes:
        by_axis[plane.axis].append(plane)
    for planes in by_axis.values():
        scores = [_score(recipe, volume, plane) for plane in planes]
        chosen += [planes[i] for i in select_slices(scores, count, select)]
    if len(volume.planes) > len(chosen):
        unused = len(volume.planes) - len(chosen)
        ledger.drop(recipe.name, STEP, "slice not selected", volume.path, unused)
    return chosen


def _slices(recipe: Recipe, volume: Volume, ledger: Ledger) -> Iterator[Record]:
    planes, loaded = [], []
    for plane in _chosen(recipe, volume, ledger):
        try:
            loaded.append(plane.load())
            planes.append(plane)
        except ValueError as error:
            ledger.drop(recipe.name, STEP, str(error), plane.path)
    windows = [plane.voi or volume.window for plane in planes]
    if volume.modality == "CT" and None in windows:
        raise ValueError(
            f"{volume.path} states no CT window; give recipe {recipe.name} the option window, "
            f"one of {list(images.CT_WINDOWS)}"
        )
    shown: set[tuple[str, int]] = set()  # structures: file of the mask and value
    pixels = _grey(loaded, windows, [plane.inverted for plane in planes])
    shown_person = person(recipe, volume.path, volume.sex, volume.age, ledger)
    for plane, array in zip(planes, pixels, strict=True):
        array, affine = images.radiological(array, plane.affine)
        boxes: list[Box] = []
        too_small: dict[str, int] = defaultdict(int)  # label -> regions
        for mask in volume.masks:
            values, _ = images.radiological(mask.on(plane), plane.affine)
            present, _ = counted_values(values)
            for value in sorted({*present.tolist()} & {*mask.names}):
                region, instances = values == value, recipe.options["instances"]
                regions = boxes_of_mask(region, mask.names[value], instances)
                large = [r for r in regions if r.area * values.size >= _least(recipe, plane)]
                if large:
                    shown.add((mask.path, value))
                if len(large) < len(regions):
                    too_small[mask.names[value]] += len(regions) - len(large)
                boxes += large
        lost = sum(too_small.values())
        drop_annotation(recipe, "region below the minimum size", plane.path, ledger, lost)
        labels = tuple(dict.fromkeys(box.label for box in boxes))
        certain = volume.is_complete and not too_small
        if not labels and certain and "no_annotation" in recipe.options:
            labels = (recipe.options["no_annotation"],)
        column_mm, row_mm = np.linalg.norm(affine[:3, :2], axis=0)
        ledger.keep(recipe.name, STEP)
        yield _record(
            recipe,
            plane.path,
            images.square_pixels(array, row_mm, column_mm),
            dimension="3d",
            modality=volume.modality,
            organ=volume.organ,
            patient=volume.patient,
            **shown_person,
            volume=volume.path,
            split=volume.split,
            labels=labels,
            absent=others(volume.vocabulary, {*labels, *too_small}) if volume.is_complete else (),
            boxes=tuple(boxes),
            complete=bool(recipe.options.get("complete") and certain),
            report=volume.report if volume.measured in labels else "",
        )
    structures = {(mask.path, value) for mask in volume.masks for value in mask.names}
    if shown:
        ledger.keep(recipe.name, STEP, len(shown), level="annotation")
    unseen = len(structures - shown)
    drop_annotation(recipe, "structure on no selected slice", volume.path, ledger, unseen)


def _score(recipe: Recipe, volume: Volume, plane: Plane) -> float:
    """Structures on a plane, plus the covered fraction to tell equal ones apart."""
    found, covered, least = 0, 0, _least(recipe, plane)
    for mask in volume.masks:
        values = mask.on(plane)
        _, counts = counted_values(values)
        found += int((counts >= least).sum())
        covered += int(counts[counts >= least].sum())
    return found + covered / (plane.shape[0] * plane.shape[1] * (1 + len(volume.masks)))


def _least(recipe: Recipe, plane: Plane) -> float:
    """Pixels of a plane that the smallest region has."""
    pixel_mm2 = np.linalg.norm(np.cross(plane.affine[:3, 0], plane.affine[:3, 1]))
    return max(1.0, recipe.options.get("min_mm2", 0.0) / pixel_mm2)


def _record(recipe: Recipe, path: str, pixels: np.ndarray, **more) -> Record:
    height, width = pixels.shape[:2]
    more |= {"image": images.to_png(pixels), "width": width, "height": height}
    return new_record(recipe, path, **more)


def _grey(loaded: list, windows: list, inverted: list[bool]) -> list[np.ndarray]:
    """Slices as uint8, by their windows; those without one share a range of percentiles."""
    undeclared = [p for p, w in zip(loaded, windows, strict=True) if w is None]
    if undeclared:
        # Copied once, and sorted in place: slices are large.
        values = np.concatenate([np.ravel(p, order="K") for p in undeclared])
        if not (finite := np.isfinite(values)).all():
            values = values[finite]
        low, high = (0.0, 0.0)
        if values.size:
            low, high = np.percentile(values, _PERCENTILES, overwrite_input=True)
    grey = []
    for pixels, declared, invert in zip(loaded, windows, inverted, strict=True):
        array = images.window(pixels, *declared) if declared else images.stretch(pixels, low, high)
        grey.append(255 - array if invert else array)
    return grey


def _named_window(recipe: Recipe, name: str | None) -> tuple[float, float] | None:
    if name and name not in images.CT_WINDOWS:
        raise ValueError(
            f"recipe {recipe.name}: window {name!r} is not one of {list(images.CT_WINDOWS)}"
        )
    return images.CT_WINDOWS[name] if name else None


# ---- tables and masks ----------------------------------------------------------------------


def _table(
    recipe: Recipe, root: Path, known: set[str], ledger: Ledger
) -> tuple[dict[str, dict], dict[str, set[str]]]:
    """Rows by volume, and the findings that the table uses for each organ."""
    rows = annotations.read_table(recipe, root, ledger)
    findings = defaultdict(set)
    for key, row in rows.items():
        organ, finding = (annotations.cell(recipe, row, name) for name in ("organ", "finding"))
        findings[organ.lower()].add(label_name(recipe, finding))
        if key not in known:
            drop_annotation(recipe, "table row about an unknown volume", key, ledger)
    return rows, findings


def _say(recipe: Recipe, volume: Volume, row: dict[str, str], findings: dict[str, set[str]]):
    volume.organ = annotations.cell(recipe, row, "organ").lower()
    for name in ("patient", "sex", "age"):
        said = annotations.cell(recipe, row, name)
        setattr(volume, name, said or getattr(volume, name))
    volume.vocabulary = set(findings.get(volume.organ, ()))


def _measurements(recipe: Recipe, path: Path, ledger: Ledger) -> str:
    """One text about the landmarks of a pulmonary_report.json, each one an annotation.

    The file names no units. They are cm and cm2: the distance of a landmark's end points,
    which are in mm, is ten times its diameter.
    """
    try:
        landmarks = read_json(path)["landmarks"].values()
        parts = [
            f"{mark['name']}: area {float(mark['area']):.1f} cm2, diameter "
            f"{float(mark['diameter']):.1f} cm, perpendicular {float(mark['diameter_pd']):.1f} cm"
            for mark in landmarks
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        drop_annotation(recipe, "measurements cannot be read", path.name, ledger)
        return ""
    ledger.keep(recipe.name, STEP, len(parts), level="annotation")
    return f"Measured landmarks of the pulmonary artery. {'; '.join(parts)}."
