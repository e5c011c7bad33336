"""Recipes of public volumes known by their published layout; tested on file trees made in it.

Folders of The Cancer Imaging Archive are those that the NBIA Data Retriever writes with descriptive
names: <collection>/<patient>/<date-study>/<number-series>/1-001.dcm
(https://wiki.cancerimagingarchive.net/display/NBIA/Downloading+TCIA+Images).

Licences, access, sources and the same images under two names: as in recipes_layouts.py. LiTS and
Task 3 of the Decathlon are the same scans.
"""

from gmai_lib.dataset.recipes_layouts import declare
from gmai_lib.schema import Recipe

_MSD = "Antonelli et al., The Medical Segmentation Decathlon, 10.1038/s41467-022-30695-9"
# Every dataset numbers the organs of the abdomen in its own order.
_ABDOMEN_13 = (
    "spleen", "kidney_right", "kidney_left", "gallbladder", "esophagus", "liver", "stomach",
    "aorta",
    "inferior_vena_cava", "portal_vein_and_splenic_vein", "pancreas", "adrenal_gland_right",
    "adrenal_gland_left",
)  # fmt: skip
_ABDOMEN_15 = (
    "spleen", "kidney_right", "kidney_left", "gallbladder", "esophagus", "liver", "stomach",
    "aorta",
    "inferior_vena_cava", "pancreas", "adrenal_gland_right", "adrenal_gland_left", "duodenum",
    "urinary_bladder", "prostate or uterus",
)  # fmt: skip
_GLIOMA = {1: "necrotic tumor core", 2: "peritumoral edema", 4: "enhancing tumor"}
_VERTEBRAE = (
    *(f"vertebrae_C{n}" for n in range(1, 8)),
    *(f"vertebrae_T{n}" for n in range(1, 13)),
    *(f"vertebrae_L{n}" for n in range(1, 7)),
)


def _decathlon(task, modality, department, organ, names, window, purpose="disease diagnosis"):
    return declare(
        "nnunet",
        f"msd_{task.lower()}",
        (f"{task}/imagesTr/*", f"{task}/dataset.json"),
        modality,
        department,
        organ,
        task=purpose,
        license="CC-BY-SA-4.0",
        citation=_MSD,
        homepage="http://medicaldecathlon.com/",
        instances="components",
        names=names,
        window=window,
    )


def _archive(name, folder, patients, department, organ, names, window, **more) -> Recipe:
    """A CT collection of The Cancer Imaging Archive with DICOM SEG or RTSTRUCT files."""
    more |= {"files": "*/*/*/*.dcm", "names": names, "window": window, "instances": "label"}
    marks = (f"{folder}/{patients}/*/*/*.dcm",)
    return declare("dicom_tree", name, marks, "CT", department, organ, **more)


def _paired(name, marks, images, path, pairs, modality, department, organ, **more) -> Recipe:
    """Volumes beside their masks; `pairs` says which file holds the mask of which structures."""
    more = {"task": "organ recognition", "instances": "label"} | more
    more |= {"images": images, "path": path, "pairs": pairs}
    return declare("volume_pairs", name, marks, modality, department, organ, **more)


def _numbered(names) -> dict[int, str]:
    return dict(enumerate(names, 1))


def _amos(modality: str, numbers: str, window: str) -> Recipe:
    """CT has the numbers below 500, MR those from 500 on."""
    return _paired(
        f"amos22_{modality.lower()}",
        (f"*/imagesTr/amos_{numbers}.nii.gz", "*/dataset.json"),
        f"images[TV][ra]/amos_{numbers}.nii.gz",
        r"images(?P<split>Tr|Va)/(?P<patient>amos_\d+)\.nii\.gz",
        {"labels{split}/{patient}.nii.gz": _numbered(_ABDOMEN_15)},
        modality,
        "general surgery",
        "abdomen",
        split_names={"Tr": "train", "Va": "validation"},
        window=window,
        license="CC-BY-4.0",
        citation="Ji et al., AMOS, arXiv 2206.08023",
        homepage="https://zenodo.org/records/7155725",
    )


def _glioma(name: str, marks: tuple[str, ...], case: str, **more) -> Recipe:
    """Four sequences of a brain on one grid; each is a volume of its own."""
    return _paired(
        name,
        marks,
        "*/*.nii*",
        rf"(?P<patient>{case}_\d+)/(?P=patient)_(?:flair|t1|t1ce|t2)\.nii(?:\.gz)?",
        {"{patient}/{patient}_seg.nii*": _GLIOMA},
        "MR",
        "neurosurgery",
        "brain",
        masks="*/*_seg.nii*",
        task="disease diagnosis",
        access="registration",
        **more,
    )


DECATHLON = (
    _decathlon(
        "Task02_Heart", "MR", "cardiovascular surgery", "heart", {}, None, "organ recognition"
    ),
    _decathlon(
        "Task03_Liver", "CT", "general surgery", "liver", {"cancer": "liver tumor"}, "liver"
    ),
    _decathlon(
        "Task04_Hippocampus",
        "MR",
        "neurosurgery",
        "brain",
        {"Anterior": "anterior hippocampus", "Posterior": "posterior hippocampus"},
        None,
        "organ recognition",
    ),
    _decathlon("Task06_Lung", "CT", "pulmonary medicine", "lung", {"cancer": "lung tumor"}, "lung"),
    _decathlon(
        "Task07_Pancreas",
        "CT",
        "gastroenterology and hepatology",
        "pancreas",
        {"cancer": "pancreatic tumor"},
        "soft tissue",
    ),
    _decathlon(
        "Task08_HepaticVessel",
        "CT",
        "general surgery",
        "liver",
        {"Vessel": "hepatic vessel", "Tumour": "liver tumor"},
        "liver",
    ),
    _decathlon(
        "Task09_Spleen", "CT", "general surgery", "abdomen", {}, "soft tissue", "organ recognition"
    ),
    _decathlon(
        "Task10_Colon",
        "CT",
        "gastroenterology and hepatology",
        "colon",
        {"colon cancer primaries": "colon tumor"},
        "soft tissue",
    ),
)

# Contours of organs may end with the treated region: what is not drawn is not called absent.
ARCHIVE = (
    _archive(
        "nsclc_radiomics",
        "NSCLC-Radiomics",
        "LUNG1-*",
        "oncology",
        "lung",
        {
            "GTV-1": "lung tumor",
            "Lung-Left": "lung_left",
            "Lung-Right": "lung_right",
            "Lungs-Total": "",  # both at once
            "Heart": "heart",
            "Esophagus": "esophagus",
            "Spinal-Cord": "spinal cord",
        },
        "mediastinum",
        license="CC-BY-NC-3.0",
        citation="Aerts et al., Nature Communications 2014, 10.1038/ncomms5006",
        homepage="https://www.cancerimagingarchive.net/collection/nsclc-radiomics/",
    ),
    _archive(
        "lctsc",
        "LCTSC",
        "LCTSC-*",
        "oncology",
        "chest",
        {
            "Esophagus": "esophagus",
            "Heart": "heart",
            "Lung_L": "lung_left",
            "Lung_R": "lung_right",
            "SpinalCord": "spinal cord",
        },
        "mediastinum",
        split=r"LCTSC-(Train|Test)-",
        task="organ recognition",
        license="CC-BY-3.0",
        citation="Yang et al., Lung CT Segmentation Challenge 2017, 10.7937/K9/TCIA.2017.3R3FVZ08",
        homepage="https://www.cancerimagingarchive.net/collection/lctsc/",
    ),
    _archive(
        "hcc_tace_seg",
        "HCC-TACE-Seg",
        "HCC_*",
        "oncology",
        "liver",
        {
            "Liver": "liver",
            "Mass": "liver tumor",
            "Portal vein": "portal vein",
            "Abdominal aorta": "aorta",
        },
        "liver",
        license="unstated",
        citation="Moawad et al., Scientific Data 2023, 10.1038/s41597-023-01928-3",
        homepage="https://www.cancerimagingarchive.net/collection/hcc-tace-seg/",
    ),
)

PAIRED = (
    _paired(
        "totalsegmentator_v2",
        ("*/s[0-9]*/ct.nii.gz", "*/s[0-9]*/segmentations/*.nii.gz"),
        "*/ct.nii.gz",
        r"(?P<patient>s\d+)/ct\.nii\.gz",
        {"{patient}/segmentations/*.nii.gz": "{stem}"},
        "CT",
        "unstated",
        "",
        window="soft tissue",
        table="meta.csv",
        key="image_id",
        delimiter=";",
        columns={"sex": "gender"},
        citation="Wasserthal et al., Radiology AI 2023, 10.1148/ryai.230024",
        homepage="https://zenodo.org/records/10047292",
    ),
    _paired(
        "totalsegmentator_mri",
        ("*/*/mri.nii.gz", "*/*/segmentations/*.nii.gz"),
        "*/mri.nii.gz",
        r"(?P<patient>[^/]+)/mri\.nii\.gz",
        {"{patient}/segmentations/*.nii.gz": "{stem}"},
        "MR",
        "unstated",
        "",
        citation="D'Antonoli et al., TotalSegmentator MRI, arXiv 2405.19492",
        homepage="https://zenodo.org/records/14710732",
    ),
    _amos("CT", "0[0-4]*", "soft tissue"),
    _amos("MR", "0[5-9]*", None),
    _paired(
        "btcv_abdomen",
        ("*/RawData/Training/img/img*.nii.gz",),
        "RawData/Training/img/*.nii.gz",
        r"RawData/Training/img/img(?P<patient>\d+)\.nii\.gz",
        {"RawData/Training/label/label{patient}.nii.gz": _numbered(_ABDOMEN_13)},
        "CT",
        "general surgery",
        "abdomen",
        window="soft tissue",
        access="registration",
        citation="Landman et al., MICCAI 2015 multi-atlas labeling beyond the cranial vault",
        homepage="https://www.synapse.org/#!Synapse:syn3193805",
    ),
    _paired(
        "lits",
        ("*/Training Batch 1/volume-*.nii",),
        "Training Batch [12]/volume-*.nii",
        r"Training Batch (?P<batch>[12])/volume-(?P<patient>\d+)\.nii",
        {"Training Batch {batch}/segmentation-{patient}.nii": _numbered(("liver", "liver tumor"))},
        "CT",
        "general surgery",
        "liver",
        task="disease diagnosis",
        instances="components",
        window="liver",
        license="CC-BY-NC-ND-4.0",
        access="registration",
        citation="Bilic et al., LiTS, arXiv 1901.04056",
        homepage="https://competitions.codalab.org/competitions/17094",
    ),
    _paired(
        "kits23",
        ("*/dataset/case_*/imaging.nii.gz",),
        "dataset/*/imaging.nii.gz",
        r"dataset/(?P<patient>case_\d+)/imaging\.nii\.gz",
        {
            "dataset/{patient}/segmentation.nii.gz": _numbered(
                ("kidney", "kidney tumor", "kidney cyst")
            )
        },
        "CT",
        "nephrology and hypertension",
        "kidney",
        task="disease diagnosis",
        instances="components",
        window="soft tissue",
        citation="Heller et al., KiTS21 and its successor, arXiv 2307.01984",
        homepage="https://github.com/neheller/kits23",
    ),
    _glioma(
        "brats2020",
        ("*/BraTS20_Training_*/BraTS20_Training_*_flair.nii*",),
        "BraTS20_Training",
        homepage="https://www.med.upenn.edu/cbica/brats2020/data.html",
        citation="Menze et al., IEEE TMI 2015, 10.1109/TMI.2014.2377694",
    ),
    _glioma(
        "brats2021",
        ("*/BraTS2021_*/BraTS2021_*_flair.nii.gz",),
        "BraTS2021",
        homepage="https://www.synapse.org/#!Synapse:syn25829067",
        citation="Baid et al., arXiv 2107.02314",
    ),
    _paired(
        "acdc",
        ("*/database/training/patient*/patient*_frame*.nii.gz",),
        "database/*/*/*_frame*.nii.gz",
        r"database/(?P<split>training|testing)/(?P<patient>patient\d+)/(?P<frame>(?P=patient)_frame\d+)"
        r"\.nii\.gz",
        {
            "database/{split}/{patient}/{frame}_gt.nii.gz": _numbered(
                ("heart_ventricle_right", "heart_myocardium", "heart_ventricle_left")
            )
        },
        "MR",
        "cardiovascular surgery",
        "heart",
        masks="database/*/*/*_gt.nii.gz",
        access="registration",
        citation="Bernard et al., IEEE TMI 2018, 10.1109/TMI.2018.2837502",
        homepage="https://www.creatis.insa-lyon.fr/Challenge/acdc/",
    ),
    _paired(
        "verse",
        ("*/rawdata/sub-*/sub-*_ct.nii.gz", "*/derivatives/sub-*/*_seg-vert_msk.nii.gz"),
        "rawdata/sub-*/*_ct.nii.gz",
        r"rawdata/(?P<patient>sub-[^/]+)/(?P<scan>[^/]+)_ct\.nii\.gz",
        {
            "derivatives/{patient}/{scan}_seg-vert_msk.nii.gz": _numbered(_VERTEBRAE)
            | {28: "vertebrae_T13"}
        },
        "CT",
        "orthopedic surgery",
        "spine",
        window="bone",
        license="CC-BY-SA-4.0",
        citation="Sekuboyina et al., VerSe, 10.1016/j.media.2021.102166",
        homepage="https://github.com/anjany/verse",
    ),
    _paired(
        "promise12",
        ("*/training_data/Case*_segmentation.mhd",),
        "training_data/*.mhd",
        r"training_data/(?P<patient>Case\d+)\.mhd",
        {"training_data/{patient}_segmentation.mhd": "prostate"},
        "MR",
        "urology",
        "prostate",
        masks="training_data/*_segmentation.mhd",
        citation="Litjens et al., PROMISE12, 10.1016/j.media.2013.12.002",
        homepage="https://zenodo.org/records/8026660",
    ),
)

VOLUMES = DECATHLON + ARCHIVE + PAIRED
