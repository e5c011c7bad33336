"""The phantoms' files: one `Layout` per folder, each in a format the world uses.

A layout's `unit` writes the files of one patient and returns a row per image; its `index` then
writes the tables that cover the whole folder. Boxes are pixels x1, y1, x2, y2 from 0 with x2,
y2 exclusive, in every format. No time, no random identifier: a seed fixes every byte.

References: nnU-Net dataset.json, COCO, Pascal VOC, BCCD, DSB2018 stage1_train, SAM-Med2D
data_demo, VQA-RAD, covid-chestxray metadata.csv, MedQuAD.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from gmai_lib.dataset import phantom_words
from gmai_lib.dataset.phantom_volumes import nifti_affine, write_dicom_series, write_nifti
from gmai_lib.dataset.phantoms import FINDINGS, Phantom, draw, draw_volume
from gmai_lib.outputs import write_json
from gmai_lib.schema import NO_FINDING

SLICES = 4  # per volume


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What one unit of work draws: `images` images (or one volume) of one invented patient."""

    number: int  # from 1
    first: int  # number of its first image in the folder, from 1
    images: int
    size: int  # pixels

    @property
    def name(self) -> str:
        return f"P{self.number:05d}"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one folder is written."""

    about: str  # a sentence for SOURCE.md
    unit: Callable[[Path, np.random.Generator, Patient], list[dict]]
    index: Callable[[Path, list[dict]], None]
    share: float = 1.0  # of images_per_modality
    images_per_patient: tuple[int, int] = (1, 3)


# ---- volumes -------------------------------------------------------------------------------


def _write_ct(root: Path, rng: np.random.Generator, patient: Patient) -> list[dict]:
    volume = draw_volume("CT", rng, size=patient.size, slices=SLICES)
    series = f"series_{patient.number:04d}"
    write_dicom_series(root / series, volume, patient.name, rng)
    row = {"series": series, "patient": patient.name}
    return [row | {"organ": volume.organ, "finding": volume.finding}]


def _nifti_unit(modality: str) -> Callable:
    classes = _class_numbers(modality)

    def unit(root: Path, rng: np.random.Generator, patient: Patient) -> list[dict]:
        volume = draw_volume(modality, rng, size=patient.size, slices=SLICES)
        case = f"{modality.lower()}_{patient.number:04d}"
        affine = nifti_affine(volume)
        write_nifti(root / "imagesTr" / f"{case}_0000.nii.gz", volume.voxels, affine)
        labels = (volume.masks > 0) * np.uint8(classes.get(volume.finding, 0))
        write_nifti(root / "labelsTr" / f"{case}.nii.gz", labels, affine)
        row = {"case": case, "patient": patient.name}
        return [row | {"organ": volume.organ, "finding": volume.finding}]

    return unit


def _nifti_index(modality: str) -> Callable:
    def index(root: Path, rows: list[dict]):
        _write_csv(root / "cases.csv", rows)
        about = {
            "name": f"phantom_{modality.lower()}",
            "description": "Procedural phantom; label values are findings",
            "licence": "CC0-1.0",
            "channel_names": {"0": {"MR": "T1", "PET": "FDG"}[modality]},
            "labels": {"background": 0} | _class_numbers(modality),
            "numTraining": len(rows),
            "file_ending": ".nii.gz",
        }
        write_json(root / "dataset.json", about)

    return index


def _class_numbers(modality: str) -> dict[str, int]:
    names = dict.fromkeys(n for kinds in FINDINGS[modality].values() for n in kinds.values())
    return {name: number for number, name in enumerate(names, start=1)}


# ---- pictures ------------------------------------------------------------------------------


def _pictures(modality: str, rng: np.random.Generator, patient: Patient) -> Iterable:
    """Yield (name, Phantom) of one patient, all of the same organ."""
    organ = str(rng.choice(list(FINDINGS[modality])))
    for k in range(patient.images):
        yield f"{patient.name}-{k + 1}", draw(modality, rng, size=patient.size, organ=organ)


def _write_xray(root: Path, rng: np.random.Generator, patient: Patient) -> list[dict]:
    rows = []
    for name, picture in _pictures("X-ray", rng, patient):
        _save(root / "images" / f"{name}.png", picture.image)
        boxes = [
            {"name": picture.finding, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            | {"area": int((picture.mask == i).sum())}
            for i, (x1, y1, x2, y2) in enumerate(picture.boxes, start=1)
        ]
        image = {"file_name": f"{name}.png", "width": patient.size, "height": patient.size}
        image |= {"patient": patient.name, "organ": picture.organ}
        rows.append({"image": image, "boxes": boxes})
    return rows


def _index_xray(root: Path, rows: list[dict]):
    kinds = FINDINGS["X-ray"].values()
    names = list(dict.fromkeys(name for organ in kinds for name in organ.values()))
    images, annotations = [], []
    for number, row in enumerate(rows, start=1):
        images.append({"id": number} | row["image"])
        for box in row["boxes"]:
            entry = {"id": len(annotations) + 1, "image_id": number}
            entry |= {"category_id": names.index(box["name"]) + 1, "iscrowd": 0}
            annotations.append(entry | {"bbox": box["bbox"], "area": box["area"]})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(coco) + "\n", "utf-8")


def _write_ultrasound(root: Path, rng: np.random.Generator, patient: Patient) -> list[dict]:
    rows = []
    for name, picture in _pictures("ultrasound", rng, patient):
        _save(root / "images" / f"{name}.png", picture.image)
        finding = picture.finding.replace(" ", "_")
        masks = [f"masks/{name}_{finding}_{i:03d}.png" for i in range(len(picture.boxes))]
        for i, path in enumerate(masks, start=1):
            _save(root / path, (picture.mask == i) * np.uint8(255))
        row = {"image": f"images/{name}.png", "patient": patient.name, "organ": picture.organ}
        rows.append(row | {"masks": masks})
    return rows


def _index_ultrasound(root: Path, rows: list[dict]):
    write_json(root / "image2label.json", {row["image"]: row["masks"] for row in rows})
    _write_csv(root / "patients.csv", rows, ("image", "patient", "organ"))


def _write_oct(root: Path, rng: np.random.Generator, patient: Patient) -> list[dict]:
    rows = []
    for name, picture in _pictures("OCT", rng, patient):
        _save(root / _class_folder(picture) / f"{name}.jpeg", picture.image)
        rows += _box_rows(f"{name}.jpeg", picture)
    return rows


def _write_histopathology(root: Path, rng: np.random.Generator, patient: Patient) -> list[dict]:
    rows = []
    for name, picture in _pictures("histopathology", rng, patient):
        name = name.replace("-", "_")
        _save(root / picture.organ / _class_folder(picture) / f"{name}.png", picture.image)
        rows += _box_rows(f"{name}.png", picture)
    return rows


def _index_boxes(root: Path, rows: list[dict]):
    _write_csv(root / "boxes.csv", rows, ("filename", "label", "xmin", "ymin", "xmax", "ymax"))


def _write_fundus(root: Path, rng: np.random.Generator, patient: Patient) -> list[dict]:
    rows = []
    for name, picture in _pictures("fundus", rng, patient):
        _save(root / "images" / f"{name}.jpg", picture.image)
        row = {"file": f"{name}.jpg", "patient": patient.name, "organ": picture.organ}
        row |= {"finding": picture.finding, "severity": picture.severity}
        rows.append(row | {"boxes": _box_rows(f"{name}.jpg", picture)})
    return rows


def _index_fundus(root: Path, rows: list[dict]):
    _write_csv(root / "labels.csv", rows, ("file", "patient", "organ", "finding", "severity"))
    _index_boxes(root, [box for row in rows for box in row["boxes"]])


def _write_dermoscopy(root: Path, rng: np.random.Generator, patient: Patient) -> list[dict]:
    rows = []
    for k, (_, picture) in enumerate(_pictures("dermoscopy", rng, patient)):
        name = f"ISIC_{patient.first + k:07d}"
        _save(root / "images" / f"{name}.jpg", picture.image)
        if picture.boxes:
            _save(root / "masks" / f"{name}_segmentation.png", (picture.mask > 0) * np.uint8(255))
        row = {"image_id": name, "patient": patient.name}
        rows.append(row | {"finding": picture.finding, "severity": picture.severity})
    return rows


def _write_endoscopy(root: Path, rng: np.random.Generator, patient: Patient) -> list[dict]:
    rows = []
    (root / "Annotations").mkdir(exist_ok=True)
    for name, picture in _pictures("endoscopy", rng, patient):
        _save(root / "JPEGImages" / f"{name}.jpg", picture.image)
        tree = ElementTree.Element("annotation")
        ElementTree.SubElement(tree, "folder").text = "JPEGImages"
        ElementTree.SubElement(tree, "filename").text = f"{name}.jpg"
        size = ElementTree.SubElement(tree, "size")
        for tag, value in (("width", patient.size), ("height", patient.size), ("depth", 3)):
            ElementTree.SubElement(size, tag).text = str(value)
        for box in picture.boxes:
            thing = ElementTree.SubElement(tree, "object")
            ElementTree.SubElement(thing, "name").text = picture.finding
            corners = ElementTree.SubElement(thing, "bndbox")
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
                ElementTree.SubElement(corners, tag).text = str(value)
        ElementTree.indent(tree)
        text = ElementTree.tostring(tree, encoding="unicode")
        (root / "Annotations" / f"{name}.xml").write_text(text + "\n", "utf-8")
        rows.append({"file": f"{name}.jpg", "patient": patient.name, "organ": picture.organ})
    return rows


def _write_microscopy(root: Path, rng: np.random.Generator, patient: Patient) -> list[dict]:
    rows = []
    for name, picture in _pictures("microscopy", rng, patient):
        id_ = hashlib.sha256(f"{name} {rng.integers(2**63)}".encode()).hexdigest()[:32]
        opaque = np.full((*picture.mask.shape, 1), 255, np.uint8)
        _save(root / id_ / "images" / f"{id_}.png", np.concatenate([picture.image, opaque], axis=2))
        (root / id_ / "masks").mkdir()
        for i in range(1, len(picture.boxes) + 1):
            path = root / id_ / "masks" / f"{id_}_{i}.png"
            _save(path, (picture.mask == i) * np.uint8(255))
        rows.append({"id": id_, "patient": patient.name, "finding": picture.finding})
    return rows


# ---- pictures with words -------------------------------------------------------------------


def _write_vqa(root: Path, rng: np.random.Generator, patient: Patient) -> list[dict]:
    picture = draw(str(rng.choice(("X-ray", "CT", "MR"))), rng, size=patient.size)
    name = f"synpic{patient.number:05d}.jpg"
    _save(root / "images" / name, picture.image)
    common = {"image_name": name, "image_organ": picture.organ.upper()}
    return [common | said for said in phantom_words.questions(picture, rng)]


def _index_vqa(root: Path, rows: list[dict]):
    """Every fifth image is a test image: split by image, not by question."""
    names = list(dict.fromkeys(row["image_name"] for row in rows))
    test = set(names[::5])
    rows = [{"qid": i} | row for i, row in enumerate(rows, start=1)]
    write_json(root / "trainset.json", [r for r in rows if r["image_name"] not in test])
    write_json(root / "testset.json", [r for r in rows if r["image_name"] in test])


def _write_reports(root: Path, rng: np.random.Generator, patient: Patient) -> list[dict]:
    picture = draw(str(rng.choice(("X-ray", "CT", "MR"))), rng, size=patient.size)
    view = phantom_words.VIEWS[picture.modality, picture.organ]
    name = f"case-{patient.number:05d}.png"
    folder = root / "images" / picture.modality.replace("-", "").upper() / view
    _save(folder / name, picture.image)
    row = {"patientid": patient.number, "finding": picture.finding, "view": view}
    row |= {"modality": picture.modality, "organ": picture.organ, "filename": name}
    row |= {" url": "", "license": "CC0-1.0"}
    return [row | {"clinical notes": phantom_words.report(picture, rng), "": ""}]


def _write_text(root: Path, rng: np.random.Generator, patient: Patient) -> list[dict]:
    folder = root / "1_Phantom_QA"
    folder.mkdir(exist_ok=True)
    for number, (focus, pairs) in enumerate(phantom_words.lessons(), start=1):
        tree = ElementTree.Element("Document", id=f"{number:07d}", source="Phantom", url="")
        ElementTree.SubElement(tree, "Focus").text = focus
        pairs_tag = ElementTree.SubElement(tree, "QAPairs")
        for k, (kind, question, answer) in enumerate(pairs, start=1):
            pair = ElementTree.SubElement(pairs_tag, "QAPair", pid=str(k))
            asked = ElementTree.SubElement(pair, "Question", qid=f"{number:07d}-{k}", qtype=kind)
            asked.text = question
            ElementTree.SubElement(pair, "Answer").text = answer
        ElementTree.indent(tree)
        text = ElementTree.tostring(tree, encoding="unicode")
        path = folder / f"{number:07d}.xml"
        path.write_text(f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n', "utf-8")
    return []


# ---- helpers -------------------------------------------------------------------------------


def _class_folder(picture: Phantom) -> str:
    return "NORMAL" if picture.finding == NO_FINDING else picture.finding.replace(" ", "_").upper()


def _box_rows(name: str, picture: Phantom) -> list[dict]:
    keys = ("filename", "label", "xmin", "ymin", "xmax", "ymax")
    label = _class_folder(picture)
    return [dict(zip(keys, (name, label, *box), strict=True)) for box in picture.boxes]


def _save(path: Path, pixels: np.ndarray):
    """Write PNG or JPEG by suffix; PNG fast rather than small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"compress_level": 1} if path.suffix == ".png" else {"quality": 92}
    Image.fromarray(pixels).save(path, **options)


def _write_csv(path: Path, rows: list[dict], columns: tuple[str, ...] | None = None):
    with path.open("w", encoding="utf-8", newline="") as file:
        columns = columns or tuple(rows[0])
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _csv_index(name: str) -> Callable:
    return lambda root, rows: _write_csv(root / name, rows)


_VOLUME = {"share": 1 / SLICES, "images_per_patient": (1, 1)}
_WORDS = {"share": 1 / 4, "images_per_patient": (1, 1)}

LAYOUTS: dict[str, Layout] = {
    "phantom_ct": Layout(
        about="DICOM CT series without file suffix, lesion instances in seg.nii.gz, labels.csv",
        unit=_write_ct,
        index=_csv_index("labels.csv"),
        **_VOLUME,
    ),
    "phantom_mr": Layout(
        about="NIfTI in nnU-Net layout: brain (axial) and knee (sagittal), cases.csv",
        unit=_nifti_unit("MR"),
        index=_nifti_index("MR"),
        **_VOLUME,
    ),
    "phantom_pet": Layout(
        about="NIfTI in nnU-Net layout: torso (coronal), cases.csv",
        unit=_nifti_unit("PET"),
        index=_nifti_index("PET"),
        **_VOLUME,
    ),
    "phantom_xray": Layout(
        about="PNG with COCO boxes in annotations.json", unit=_write_xray, index=_index_xray
    ),
    "phantom_ultrasound": Layout(
        about="PNG with one mask PNG per lesion, in SAM-Med2D naming, image2label.json",
        unit=_write_ultrasound,
        index=_index_ultrasound,
    ),
    "phantom_oct": Layout(
        about="JPEG in class folders, boxes.csv", unit=_write_oct, index=_index_boxes
    ),
    "phantom_fundus": Layout(
        about="JPEG with labels.csv and boxes.csv", unit=_write_fundus, index=_index_fundus
    ),
    "phantom_dermoscopy": Layout(
        about="JPEG with one mask PNG per image in ISIC naming, metadata.csv",
        unit=_write_dermoscopy,
        index=_csv_index("metadata.csv"),
    ),
    "phantom_endoscopy": Layout(
        about="Pascal VOC: JPEGImages, Annotations, patients.csv; no official split",
        unit=_write_endoscopy,
        index=_csv_index("patients.csv"),
    ),
    "phantom_histopathology": Layout(
        about="PNG in folders organ/class, boxes.csv",
        unit=_write_histopathology,
        index=_index_boxes,
    ),
    "phantom_microscopy": Layout(
        about="DSB2018: a folder per image with RGBA PNG and instance masks, classes.csv",
        unit=_write_microscopy,
        index=_csv_index("classes.csv"),
    ),
    "phantom_vqa": Layout(
        about="VQA-RAD: images, trainset.json, testset.json (split by image)",
        unit=_write_vqa,
        index=_index_vqa,
        **_WORDS,
    ),
    "phantom_reports": Layout(
        about="Images in nested folders, a report for each in metadata.csv",
        unit=_write_reports,
        index=_csv_index("metadata.csv"),
        **_WORDS,
    ),
    "phantom_text": Layout(
        about="MedQuAD XML: teaching questions about the findings and modalities, no image",
        unit=_write_text,
        index=lambda root, rows: None,
        share=0.0,  # one unit writes everything
    ),
}
