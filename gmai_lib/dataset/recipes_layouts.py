"""Recipes of public datasets known by their published layout; tested on file trees made in it.

Licences and access are those that the owners state; "unstated" where they state none or only a
competition's rules. A grouping that the layout offers (patient, lesion, both eyes of a person)
is used; where it offers none, near-copies may cross a split by image; notebook 02 reports them.

Folders of The Cancer Imaging Archive are those that the NBIA Data Retriever writes with descriptive
names: <collection>/<patient>/<date-study>/<number-series>/1-001.dcm
(https://wiki.cancerimagingarchive.net/display/NBIA/Downloading+TCIA+Images).

Sources of the layouts: the owners' pages, and where these are silent, what several independent
public loaders agree on (torchxrayvision, torch-em, TensorFlow Datasets, eva, PyHealth).
"""

from dataclasses import fields

from gmai_lib.schema import NO_FINDING, Recipe

_KERMANY = "Kermany et al., Cell 2018, 10.1016/j.cell.2018.02.010"
_MSD = "Antonelli et al., The Medical Segmentation Decathlon, 10.1038/s41467-022-30695-9"
# Grades of diabetic retinopathy as the scale's numbers.
_RETINOPATHY = {"0": NO_FINDING} | dict.fromkeys("1234", "diabetic retinopathy")
_GRADES = {"1": "mild", "2": "moderate", "3": "severe", "4": "proliferative"}


_FIELDS = {field.name for field in fields(Recipe)}


def declare(reader: str, name: str, marks: tuple[str, ...], modality, department, organ, **more):
    """A recipe in which what is no field of it is an option of its reader."""
    stated = {"task": "disease diagnosis", "license": "unstated"}
    stated |= {key: value for key, value in more.items() if key in _FIELDS}
    return Recipe(
        name=name,
        reader=reader,
        marks=marks,
        modality=modality,
        department=department,
        organ=organ,
        options={key: value for key, value in more.items() if key not in _FIELDS},
        **stated,
    )


def _folders(name, mark, path, modality, department, organ, names, **more) -> Recipe:
    """A dataset whose folders (or file names) are its classes; `path` says which part is which."""
    more |= {"path": path, "names": names, "exhaustive": True}
    return declare("class_folders", name, (f"*/{mark}",), modality, department, organ, **more)


def _rows(name, mark, table, file, modality, department, organ, columns, **more) -> Recipe:
    """A dataset with one table row per image."""
    marks = (f"*/{mark}", f"*/{table}")
    more |= {"table": table, "file": file, "columns": columns}
    return declare("table", name, marks, modality, department, organ, **more)


def _pairs(name, mark, path, pairs, modality, department, organ, **more) -> Recipe:
    """A dataset of images and mask files; `pairs` says which file holds the mask of which label."""
    more |= {"path": path, "pairs": pairs}
    return declare("mask_pairs", name, (f"*/{mark}",), modality, department, organ, **more)


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


PATHOLOGY = "laboratory medicine and pathology"
CLASSES = (
    _folders(
        "oct2017",
        "train/CNV/*.jpeg",
        r"(?P<split>train|val|test)/(?P<label>[^/]+)/[A-Z]+-(?P<patient>\d+)-\d+\.jpeg",
        "OCT",
        "ophthalmology",
        "retina",
        {
            "CNV": "choroidal neovascularization",
            "DME": "diabetic macular edema",
            "DRUSEN": "drusen",
            "NORMAL": NO_FINDING,
        },
        images="*/*/*.jpeg",
        citation=_KERMANY,
        homepage="https://data.mendeley.com/datasets/rscbjbr9sj",
    ),
    _folders(
        "chest_xray_pneumonia",
        "train/PNEUMONIA/*.jpeg",
        r"(?P<split>train|val|test)/(?P<label>NORMAL|PNEUMONIA)/[^/]+",
        "X-ray",
        "pulmonary medicine",
        "lung",
        {"NORMAL": NO_FINDING, "PNEUMONIA": "pneumonia"},
        images="*/*/*.jpeg",
        citation=_KERMANY,
        homepage="https://data.mendeley.com/datasets/rscbjbr9sj",
    ),
    _folders(
        "covid19_radiography",
        "Lung_Opacity/images/*.png",
        r"(?P<label>[^/]+)/images/[^/]+\.png",
        "X-ray",
        "pulmonary medicine",
        "lung",
        {
            "COVID": "COVID-19",
            "Lung_Opacity": "lung opacity",
            "Normal": NO_FINDING,
            "Viral Pneumonia": "viral pneumonia",
        },
        images="*/images/*.png",
        citation="Chowdhury et al., IEEE Access 2020, 10.1109/ACCESS.2020.3010287",
        homepage="https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database",
    ),
    _folders(
        "shenzhen_tb",
        "CXR_png/CHNCXR_*.png",
        r"CXR_png/CHNCXR_(?P<patient>\d+)_(?P<label>[01])\.png",
        "X-ray",
        "infectious diseases",
        "lung",
        {"0": NO_FINDING, "1": "tuberculosis"},
        images="CXR_png/*.png",
        citation="Jaeger et al., 2014, 10.3978/j.issn.2223-4292.2014.11.20",
        homepage="https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html",
    ),
    _folders(
        "montgomery_tb",
        "CXR_png/MCUCXR_*.png",
        r"CXR_png/MCUCXR_(?P<patient>\d+)_(?P<label>[01])\.png",
        "X-ray",
        "infectious diseases",
        "lung",
        {"0": NO_FINDING, "1": "tuberculosis"},
        images="CXR_png/*.png",
        citation="Jaeger et al., 2014, 10.3978/j.issn.2223-4292.2014.11.20",
        homepage="https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html",
    ),
    _folders(
        "nct_crc_he",
        "NCT-CRC-HE-100K/ADI/*.tif",
        # The copy without colour normalisation (NONORM) shows the same patches and is left out.
        r"(?P<split>NCT-CRC-HE-100K|CRC-VAL-HE-7K)/(?P<label>[A-Z]+)/[^/]+\.tif",
        "histopathology",
        PATHOLOGY,
        "colon",
        {
            "ADI": "adipose tissue",
            "BACK": "background",
            "DEB": "debris",
            "LYM": "lymphocytes",
            "MUC": "mucus",
            "MUS": "smooth muscle",
            "NORM": "normal colon mucosa",
            "STR": "cancer-associated stroma",
            "TUM": "colorectal adenocarcinoma",
        },
        images="[NC]*[K]/*/*.tif",
        split_names={"NCT-CRC-HE-100K": "train", "CRC-VAL-HE-7K": "test"},
        license="CC-BY-4.0",
        citation="Kather et al., PLOS Medicine 2019, 10.1371/journal.pmed.1002730",
        homepage="https://zenodo.org/record/1214456",
    ),
    _folders(
        "lc25000",
        "lung_image_sets/lung_aca/*.jpeg",
        # Augmented from 1,250 originals that are not named: no split of it is clean.
        r"(?P<organ>lung|colon)_image_sets/(?P<label>[^/]+)/[^/]+\.jpeg",
        "histopathology",
        PATHOLOGY,
        "",
        {
            "lung_aca": "lung adenocarcinoma",
            "lung_n": NO_FINDING,
            "lung_scc": "lung squamous cell carcinoma",
            "colon_aca": "colon adenocarcinoma",
            "colon_n": NO_FINDING,
        },
        images="*_image_sets/*/*.jpeg",
        citation="Borkowski et al., LC25000, arXiv:1912.12142",
        homepage="https://github.com/tampapath/lung_colon_image_set",
    ),
    _folders(
        "breakhis",
        "histology_slides/breast/malignant/SOB/*",
        r"histology_slides/breast/[^/]+/SOB/[^/]+/[^/]+/\d+X/"
        r"SOB_[BM]_(?P<label>[A-Z]+)-\d+-(?P<patient>[^-]+)-\d+-\d+\.png",
        "histopathology",
        PATHOLOGY,
        "breast",
        {
            "A": "adenosis",
            "F": "fibroadenoma",
            "PT": "phyllodes tumor",
            "TA": "tubular adenoma",
            "DC": "ductal carcinoma",
            "LC": "lobular carcinoma",
            "MC": "mucinous carcinoma",
            "PC": "papillary carcinoma",
        },
        images="histology_slides/breast/*/SOB/*/*/*X/*.png",
        license="CC-BY-4.0",
        citation="Spanhol et al., IEEE TBME 2016, 10.1109/TBME.2015.2496264",
        homepage="https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/",
    ),
    _folders(
        "bach",
        "Photos/InSitu/*.tif",
        r"Photos/(?P<label>[^/]+)/[^/]+\.tif",
        "histopathology",
        PATHOLOGY,
        "breast",
        {
            "Normal": NO_FINDING,
            "Benign": "benign breast lesion",
            "InSitu": "carcinoma in situ",
            "Invasive": "invasive carcinoma",
        },
        images="Photos/*/*.tif",
        license="CC-BY-NC-ND-4.0",
        citation="Aresta et al., Medical Image Analysis 2019, 10.1016/j.media.2019.05.010",
        homepage="https://iciar2018-challenge.grand-challenge.org/",
    ),
    _folders(
        "bracs_roi",
        "train/0_N/*.png",
        r"(?P<split>train|val|test)/(?P<label>\d_[A-Z]+)/[^/]+\.png",
        "histopathology",
        PATHOLOGY,
        "breast",
        {
            "0_N": NO_FINDING,
            "1_PB": "pathological benign lesion",
            "2_UDH": "usual ductal hyperplasia",
            "3_FEA": "flat epithelial atypia",
            "4_ADH": "atypical ductal hyperplasia",
            "5_DCIS": "ductal carcinoma in situ",
            "6_IC": "invasive carcinoma",
        },
        images="*/*/*.png",
        citation="Brancati et al., Database 2022, 10.1093/database/baac093",
        homepage="https://www.bracs.icar.cnr.it/",
    ),
    _folders(
        "malaria_cells",
        "Parasitized/*.png",
        r"(?P<label>Parasitized|Uninfected)/(?P<patient>C\d+P\d+)[^/]*\.png",
        "microscopy",
        "infectious diseases",
        "blood",
        {"Parasitized": "malaria parasite", "Uninfected": NO_FINDING},
        images="*/*.png",
        task="microorganism recognition",
        citation="Rajaraman et al., PeerJ 2018, 10.7717/peerj.4568",
        homepage="https://lhncbc.nlm.nih.gov/LHC-research/LHC-projects/image-processing/malaria-datasheet.html",
    ),
    _folders(
        "mura",
        "train/XR_WRIST/patient*",
        r"(?P<split>train|valid)/XR_(?P<organ>[A-Z]+)/(?P<patient>patient\d+)/"
        r"study\d+_(?P<label>positive|negative)/[^/]+\.png",
        "X-ray",
        "orthopedic surgery",
        "",
        {"positive": "abnormality", "negative": NO_FINDING},
        images="*/XR_*/patient*/study*/*.png",
        access="registration",
        citation="Rajpurkar et al., MURA, arXiv:1712.06957",
        homepage="https://stanfordmlgroup.github.io/competitions/mura/",
    ),
    _folders(
        "hyperkvasir_labelled",
        "labeled-images/lower-gi-tract/*/polyps/*.jpg",
        r"labeled-images/(?:upper|lower)-gi-tract/[^/]+/(?P<label>[^/]+)/[^/]+\.jpg",
        "endoscopy",
        "gastroenterology and hepatology",
        "gastrointestinal tract",
        {
            "barretts": "Barrett's esophagus",
            "barretts-short-segment": "Barrett's esophagus",
            "cecum": "cecum",
            "dyed-lifted-polyps": "dyed lifted polyp",
            "dyed-resection-margins": "dyed resection margin",
            "esophagitis-a": "esophagitis",
            "esophagitis-b-d": "esophagitis",
            "hemorrhoids": "hemorrhoids",
            "ileum": "ileum",
            "impacted-stool": "impacted stool",
            "polyps": "polyp",
            "pylorus": "pylorus",
            "z-line": "z-line",
        },
        images="labeled-images/*/*/*/*.jpg",
        citation="Borgli et al., Scientific Data 2020, 10.1038/s41597-020-00622-y",
        homepage="https://datasets.simula.no/hyper-kvasir/",
    ),
    _folders(
        "fracatlas",
        "images/Non_fractured/*.jpg",
        r"images/(?P<label>Fractured|Non_fractured)/[^/]+\.jpg",
        "X-ray",
        "orthopedic surgery",
        "",
        {"Fractured": "fracture", "Non_fractured": NO_FINDING},
        images="images/*/*.jpg",
        citation="Abedeen et al., Scientific Data 2023, 10.1038/s41597-023-02432-4",
        homepage="https://figshare.com/articles/dataset/The_dataset/22363012",
    ),
    _folders(
        "unitopatho",
        "800/TA.HG/*.png",
        r"800/(?P<label>[^/]+)/[^/]+\.png",
        "histopathology",
        PATHOLOGY,
        "colon",
        {
            "HP": "hyperplastic polyp",
            "NORM": NO_FINDING,
            "TA.HG": "tubular adenoma with high-grade dysplasia",
            "TA.LG": "tubular adenoma with low-grade dysplasia",
            "TVA.HG": "tubulo-villous adenoma with high-grade dysplasia",
            "TVA.LG": "tubulo-villous adenoma with low-grade dysplasia",
        },
        images="800/*/*.png",
        license="CC-BY-4.0",
        access="registration",
        citation="Barbano et al., UniToPatho, ICIP 2021, 10.1109/ICIP42928.2021.9506198",
        homepage="https://ieee-dataport.org/open-access/unitopatho",
    ),
    _folders(
        "refuge_training",
        "Training400/Non-Glaucoma/*.jpg",
        r"Training400/(?P<label>Glaucoma|Non-Glaucoma)/[^/]+\.jpg",
        "fundus",
        "ophthalmology",
        "retina",
        {"Glaucoma": "glaucoma", "Non-Glaucoma": NO_FINDING},
        images="Training400/*/*.jpg",
        access="registration",
        citation="Orlando et al., Medical Image Analysis 2020, 10.1016/j.media.2019.101570",
        homepage="https://refuge.grand-challenge.org/",
    ),
)

TABLES = (
    _rows(
        "ham10000",
        "HAM10000_images_part_1/*.jpg",
        "HAM10000_metadata.csv",
        "**/{image_id}.jpg",
        "dermoscopy",
        "dermatology",
        "skin",
        {"finding": "dx", "patient": "lesion_id"},  # several images of one lesion
        images="HAM10000_images_part_*/*.jpg",
        names={
            "akiec": "actinic keratosis",
            "bcc": "basal cell carcinoma",
            "bkl": "benign keratosis",
            "df": "dermatofibroma",
            "mel": "melanoma",
            "nv": "melanocytic nevus",
            "vasc": "vascular lesion",
        },
        exhaustive=True,
        citation="Tschandl et al., Scientific Data 2018, 10.1038/sdata.2018.161",
        homepage="https://doi.org/10.7910/DVN/DBW86T",
    ),
    _rows(
        "isic2020",
        "train/ISIC_*.jpg",
        "train.csv",
        "train/{image_name}.jpg",
        "dermoscopy",
        "dermatology",
        "skin",
        {"finding": "benign_malignant", "patient": "patient_id"},
        images="train/*.jpg",
        names={"benign": "benign skin lesion", "malignant": "melanoma"},
        exhaustive=True,
        license="CC-BY-NC-4.0",
        access="registration",
        citation="ISIC 2020, 10.34970/2020-ds01",
        homepage="https://challenge2020.isic-archive.com/",
    ),
    _rows(
        "nih_chestxray14",
        "**/0000*.png",
        "Data_Entry_2017_v2020.csv",
        "**/{image index}",
        "X-ray",
        "pulmonary medicine",
        "lung",
        {"finding": "finding labels", "patient": "patient id"},
        images="**/*.png",
        separator="|",
        names={
            "No Finding": NO_FINDING,
            "Pleural_Thickening": "pleural thickening",
            **{
                name: name.lower()
                for name in (
                    "Atelectasis",
                    "Cardiomegaly",
                    "Consolidation",
                    "Edema",
                    "Effusion",
                    "Emphysema",
                    "Fibrosis",
                    "Hernia",
                    "Infiltration",
                    "Mass",
                    "Nodule",
                    "Pneumonia",
                    "Pneumothorax",
                )
            },
        },
        exhaustive=True,
        citation="Wang et al., CVPR 2017, 10.1109/CVPR.2017.369",
        homepage="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    ),
    _rows(
        "aptos2019",
        "train_images/*.png",
        "train.csv",
        "train_images/{id_code}.png",
        "fundus",
        "ophthalmology",
        "retina",
        {"finding": "diagnosis"},
        images="train_images/*.png",
        names=_RETINOPATHY,
        grades=_GRADES,
        task="severity grading",
        access="registration",
        citation="APTOS 2019 Blindness Detection",
        homepage="https://www.kaggle.com/competitions/aptos2019-blindness-detection",
    ),
    _rows(
        "eyepacs",
        "train/*_left.jpeg",
        "trainLabels.csv",
        "train/{image}.jpeg",
        "fundus",
        "ophthalmology",
        "retina",
        {"finding": "level"},
        images="train/*.jpeg",
        names=_RETINOPATHY,
        grades=_GRADES,
        volume=r"(\d+)_(?:left|right)\.jpeg",  # both eyes of one person stay together
        task="severity grading",
        access="registration",
        citation="EyePACS, Kaggle Diabetic Retinopathy Detection, 2015",
        homepage="https://www.kaggle.com/competitions/diabetic-retinopathy-detection",
    ),
    _rows(
        "mhist",
        "images/MHIST_*.png",
        "annotations.csv",
        "images/{image name}",
        "histopathology",
        PATHOLOGY,
        "colon",
        {"finding": "majority vote label", "split": "partition"},
        images="images/*.png",
        names={"HP": "hyperplastic polyp", "SSA": "sessile serrated adenoma"},
        exhaustive=True,
        access="registration",
        citation="Wei et al., A Petri Dish for Histopathology, AIME 2021",
        homepage="https://bmirds.github.io/MHIST/",
    ),
    _rows(
        "bus_bra",
        "Images/bus_*.png",
        "bus_data.csv",
        "Images/{id}.png",
        "ultrasound",
        "general surgery",
        "breast",
        {"finding": "pathology", "patient": "case"},
        images="Images/*.png",
        names={"benign": "benign breast lesion", "malignant": "malignant breast lesion"},
        exhaustive=True,
        citation="Gomez-Flores et al., Medical Physics 2024, 10.1002/mp.16812",
        homepage="https://zenodo.org/record/8231412",
    ),
)


MASKS = (
    _pairs(
        "kvasir_seg",
        "masks/*.jpg",
        r"images/(?P<name>[^/]+)\.jpg",
        {"polyp": "masks/{name}.jpg"},
        "endoscopy",
        "gastroenterology and hepatology",
        "gastrointestinal tract",
        images="images/*.jpg",
        masks="masks/*.jpg",
        instances="components",
        citation="Jha et al., Kvasir-SEG, MMM 2020, 10.1007/978-3-030-37734-2_37",
        homepage="https://datasets.simula.no/kvasir-seg/",
    ),
    _pairs(
        "cvc_clinicdb",
        "Ground Truth/*.tif",
        r"Original/(?P<name>\d+)\.tif",
        {"polyp": "Ground Truth/{name}.tif"},
        "endoscopy",
        "gastroenterology and hepatology",
        "colon",
        images="Original/*.tif",
        masks="Ground Truth/*.tif",
        instances="components",
        citation="Bernal et al., CMIG 2015, 10.1016/j.compmedimag.2015.02.007",
        homepage="https://polyp.grand-challenge.org/CVCClinicDB/",
    ),
    _pairs(
        "drive",
        "training/1st_manual/*.gif",
        r"(?P<split>training)/images/(?P<name>\d+)_training\.tif",
        {"retinal vessels": "training/1st_manual/{name}_manual1.gif"},
        "fundus",
        "ophthalmology",
        "retina",
        images="training/images/*.tif",
        masks="training/1st_manual/*.gif",
        task="blood vessels recognition",
        access="registration",
        citation="Staal et al., IEEE TMI 2004, 10.1109/TMI.2004.825627",
        homepage="https://drive.grand-challenge.org/",
    ),
    _pairs(
        "isic2018_task1",
        "ISIC2018_Task1_Training_GroundTruth/*_segmentation.png",
        r"ISIC2018_Task1-2_(?P<split>Training|Validation|Test)_Input/(?P<name>ISIC_\d+)\.jpg",
        {"skin lesion": "ISIC2018_Task1_{split}_GroundTruth/{name}_segmentation.png"},
        "dermoscopy",
        "dermatology",
        "skin",
        images="ISIC2018_Task1-2_*_Input/*.jpg",
        masks="ISIC2018_Task1_*_GroundTruth/*.png",
        citation="Codella et al., ISIC 2018, arXiv:1902.03368",
        homepage="https://challenge.isic-archive.com/data/#2018",
    ),
    _pairs(
        "busi",
        "benign/benign (*)_mask.png",
        r"(?P<label>benign|malignant|normal)/(?P<name>[a-z]+ \(\d+\))\.png",
        {"{label}": "{label}/{name}_mask*.png"},  # _mask_1.png, ... are further lesions
        "ultrasound",
        "general surgery",
        "breast",
        images="*/*.png",
        masks="*/*_mask*.png",
        names={
            "benign": "benign breast lesion",
            "malignant": "malignant breast lesion",
            "normal": NO_FINDING,
        },
        exhaustive=True,
        no_annotation=NO_FINDING,
        citation="Al-Dhabyani et al., Data in Brief 2020, 10.1016/j.dib.2019.104863",
        homepage="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
    ),
    _pairs(
        "tn3k",
        "trainval-mask/*.jpg",
        r"(?P<split>trainval|test)-image/(?P<name>\d+)\.jpg",
        {"thyroid nodule": "{split}-mask/{name}.jpg"},
        "ultrasound",
        "endocrinology",
        "thyroid",
        images="*-image/*.jpg",
        masks="*-mask/*.jpg",
        split_names={"trainval": "train"},
        instances="components",
        citation="Gong et al., Comput Biol Med 2023, 10.1016/j.compbiomed.2022.106389",
        homepage="https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation",
    ),
    _pairs(
        "idrid_segmentation",
        "1. Original Images/a. Training Set/*.jpg",
        r"1\. Original Images/(?P<set>[ab])\. (?P<split>Training|Testing) Set/"
        r"(?P<name>IDRiD_\d+)\.jpg",
        {
            label: "2. All Segmentation Groundtruths/{set}. {split} Set/"
            f"{folder}/{{name}}_{suffix}.tif"
            for label, folder, suffix in (
                ("microaneurysm", "1. Microaneurysms", "MA"),
                ("hemorrhage", "2. Haemorrhages", "HE"),
                ("hard exudate", "3. Hard Exudates", "EX"),
                ("soft exudate", "4. Soft Exudates", "SE"),
                ("optic disc", "5. Optic Disc", "OD"),
            )
        },
        "fundus",
        "ophthalmology",
        "retina",
        images="1. Original Images/*/*.jpg",
        masks="2. All Segmentation Groundtruths/*/*/*.tif",
        sparse=True,  # no file, no such lesion
        instances="components",
        access="registration",
        citation="Porwal et al., IDRiD, Data 2018, 10.3390/data3030025",
        homepage="https://idrid.grand-challenge.org/",
    ),
    _pairs(
        "dsad",
        "liver/*/mask*.png",
        r"(?P<label>(?!multilabel)[a-z_]+)/(?P<patient>\d+)/image(?P<name>\d+)\.png",
        {"{label}": "{label}/{patient}/mask{name}.png"},
        "endoscopy",
        "general surgery",
        "abdomen",
        images="*/*/*.png",
        masks="*/*/mask*.png",
        names={
            "abdominal_wall": "abdominal wall",
            "colon": "colon",
            "inferior_mesenteric_artery": "inferior mesenteric artery",
            "intestinal_veins": "intestinal veins",
            "liver": "liver",
            "pancreas": "pancreas",
            "small_intestine": "small bowel",
            "spleen": "spleen",
            "stomach": "stomach",
            "ureter": "ureter",
            "vesicular_glands": "vesicular glands",
        },
        task="organ recognition",
        citation="Carstens et al., Scientific Data 2023, 10.1038/s41597-022-01719-2",
        homepage="https://doi.org/10.6084/m9.figshare.21702600",
    ),
)


# The three-dimensional tasks; tasks 1 and 5 have several channels in one file.
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

DETECTION = (
    declare(
        "yolo",
        "grazpedwri_dx",
        ("*/folder_structure/yolov5/labels/*.txt", "*/dataset.csv", "*/images_part1/*"),
        "X-ray",
        "orthopedic surgery",
        "hand",
        task="bone",
        license="CC-BY-4.0",
        citation="Nagy et al., Scientific Data 2022, 10.1038/s41597-022-01328-z",
        homepage="https://doi.org/10.6084/m9.figshare.14825193",
        images="images_part*/*.png",
        annotations="folder_structure/yolov5/labels/*.txt",
        table="dataset.csv",
        key="filestem",
        columns={"patient": "patient_id"},
        labels=(
            "bone anomaly", "bone lesion", "foreign body", "fracture", "metal",
            "periosteal reaction", "pronator sign", "soft tissue", None,
        ),
    ),
)  # fmt: skip

SLIDES = (
    declare(
        "slides",
        "camelyon16",
        ("*/training/normal/normal_*.tif", "*/training/tumor/tumor_*.tif"),
        "histopathology",
        PATHOLOGY,
        "lymph node",
        license="CC0-1.0",
        citation="Ehteshami Bejnordi et al., JAMA 2017, 10.1001/jama.2017.14585",
        homepage="https://camelyon16.grand-challenge.org/Data/",
        slides="training/*/*.tif",
        path=r"training/(?P<label>normal|tumor)/(?P<name>[^/]+)\.tif",
        names={"normal": NO_FINDING, "tumor": "metastasis"},
        tile_labels=(NO_FINDING,),
        outlines="training/lesion_annotations/{name}.xml",
        # _2 is what the pathologists cut out of a lesion. Some slides are not drawn completely, so
        # a tile beside the outlines is not called normal.
        regions={"_0": "metastasis", "_1": "metastasis", "Tumor": "metastasis", "_2": ""},
        mpp=0.5,
        size=512,
    ),
)

VIDEOS = (
    declare(
        "video_table",
        "cholec80",
        ("*/videos/video*.mp4", "*/tool_annotations/video*-tool.txt"),
        "endoscopy",
        "general surgery",
        "gallbladder",
        task="surgical instrument recognition",
        access="registration",
        citation="Twinanda et al., EndoNet, IEEE TMI 2017, arXiv 1602.03012",
        homepage="http://camma.u-strasbg.fr/datasets",
        videos="videos/video*.mp4",
        table="tool_annotations/{stem}-tool.txt",
        names={
            "Grasper": "grasper", "Bipolar": "bipolar forceps", "Hook": "hook",
            "Scissors": "scissors", "Clipper": "clipper", "Irrigator": "irrigator",
            "SpecimenBag": "specimen bag",
        },
    ),
)  # fmt: skip

LAYOUTS = CLASSES + TABLES + MASKS + DECATHLON + ARCHIVE + DETECTION + SLIDES + VIDEOS
