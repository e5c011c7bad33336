"""Recipes of the phantom sources (phantom_formats.py writes their layouts)."""

from gmai_lib.schema import NO_FINDING, Recipe

_DEPARTMENTS = {
    "lung": "pulmonary medicine",
    "liver": "general surgery",
    "brain": "neurosurgery",
    "knee": "orthopedic surgery",
    "hand": "orthopedic surgery",
    "breast": "general surgery",
    "thyroid": "endocrinology",
}


def _phantom(name: str, reader: str, mark: str, modality: str, department: str, **more) -> Recipe:
    """One procedural source: its findings are known, so all others of the organ are absent."""
    options = {"names": {"NORMAL": NO_FINDING}, "readable": True}
    if department == "unstated":
        options["departments"] = _DEPARTMENTS
    if name not in ("vqa", "reports", "text"):  # those say it in words only
        options |= {"exhaustive": True, "complete": True, "no_annotation": NO_FINDING}
    options |= more.pop("options")
    fields = {"task": "disease diagnosis", "license": "CC0-1.0"} | more
    return Recipe(
        name=f"phantom_{name}",
        reader=reader,
        marks=(f"phantom_{name}/{mark}",),
        modality=modality,
        department=department,
        citation="GMAI-VL Workbook, gmai_lib/dataset/phantoms.py (procedural, no person)",
        options=options,
        **fields,
    )


PHANTOMS = (
    _phantom(
        "ct",
        "dicom_series",
        "*/CT.*",
        "CT",
        "unstated",
        options={
            "table": "labels.csv",
            "key": "series",
            "mask": "seg.nii.gz",
            "instances": "values",
        },
    ),
    _phantom(
        "mr",
        "nnunet",
        "imagesTr/*",
        "MR",
        "unstated",
        options={"table": "cases.csv", "key": "case", "instances": "components"},
    ),
    _phantom(
        "pet",
        "nnunet",
        "imagesTr/*",
        "PET",
        "oncology",
        options={"table": "cases.csv", "key": "case", "instances": "components"},
    ),
    _phantom(
        "xray",
        "coco",
        "annotations.json",
        "X-ray",
        "unstated",
        options={"index": "annotations.json", "folder": "images", "images": "images/*"},
    ),
    _phantom(
        "ultrasound",
        "mask_files",
        "image2label.json",
        "ultrasound",
        "unstated",
        options={
            "indexes": {"image2label.json": ""},
            "images": "images/*",
            "masks": "masks/*",
            "table": "patients.csv",
            "key": "image",
        },
    ),
    _phantom(
        "oct",
        "class_folders",
        "boxes.csv",
        "OCT",
        "ophthalmology",
        organ="retina",
        options={
            "images": "*/*",
            "boxes": "boxes.csv",
            "path": r"(?P<label>[^/]+)/(?P<patient>[^/]+)-\d+\.jpeg",
        },
    ),
    _phantom(
        "fundus",
        "table",
        "labels.csv",
        "fundus",
        "ophthalmology",
        organ="retina",
        options={
            "table": "labels.csv",
            "file": "images/{file}",
            "images": "images/*",
            "boxes": "boxes.csv",
        },
    ),
    _phantom(
        "dermoscopy",
        "table",
        "metadata.csv",
        "dermoscopy",
        "dermatology",
        organ="skin",
        options={
            "table": "metadata.csv",
            "file": "images/{image_id}.jpg",
            "images": "images/*",
            "mask": "masks/{image_id}_segmentation.png",
            "masks": "masks/*",
            "instances": "components",
        },
    ),
    _phantom(
        "endoscopy",
        "voc",
        "Annotations/*.xml",
        "endoscopy",
        "gastroenterology and hepatology",
        options={
            "annotations": "Annotations/*.xml",
            "folder": "JPEGImages",
            "images": "JPEGImages/*",
            "table": "patients.csv",
            "key": "file",
        },
    ),
    _phantom(
        "histopathology",
        "class_folders",
        "boxes.csv",
        "histopathology",
        "laboratory medicine and pathology",
        options={
            "images": "*/*/*",
            "boxes": "boxes.csv",
            "path": r"(?P<organ>[^/]+)/(?P<label>[^/]+)/(?P<patient>[^/]+)_\d+\.png",
        },
    ),
    _phantom(
        "microscopy",
        "instance_folders",
        "classes.csv",
        "microscopy",
        "hematology",
        organ="blood",
        task="cell recognition",
        options={"folders": "*", "table": "classes.csv", "key": "id"},
    ),
    _phantom(
        "vqa",
        "vqa_json",
        "trainset.json",
        "X-ray",
        "unstated",
        options={
            "indexes": {"trainset.json": "train", "testset.json": "test"},
            "folder": "images",
            "images": "images/*",
        },
    ),
    _phantom(
        "reports",
        "table",
        "metadata.csv",
        "X-ray",
        "unstated",
        options={
            "table": "metadata.csv",
            "file": "**/{filename}",
            "images": "images/**/*",
            "columns": {"patient": "patientid", "report": "clinical notes"},
        },
    ),
    _phantom(
        "text",
        "question_xml",
        "1_Phantom_QA/*.xml",
        "text",
        "unstated",
        task="text QA",
        options={"files": "*/*.xml"},
    ),
)
