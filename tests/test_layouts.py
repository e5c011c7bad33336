"""Recipes of recipes_layouts.py, each on a small file tree in exactly the published layout."""

import csv
import gzip
import json

import numpy as np
import pytest

from gmai_lib.dataset import images, readers, recipes, recipes_layouts
from gmai_lib.schema import NO_FINDING, Ledger

PNG = images.to_png(np.arange(48 * 32, dtype=np.uint32).reshape(48, 32).astype(np.uint8))
NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
SMALL = "CheXpert-v1.0-small"
CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
    "Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,"
    "Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
)
PAD_HEADER = (
    "patient_id,lesion_id,smoke,drink,background_father,background_mother,age,pesticide,gender,"
    "skin_cancer_history,cancer_history,has_piped_water,has_sewage_system,fitspatrick,region,"
    "diameter_1,diameter_2,diagnostic,itch,grew,hurt,changed,bleed,elevation,img_id,biopsed\n"
)
PAD_ROWS = (
    "PAT_1516,1765,,,,,8,,,,,,,,ARM,,,NEV,False,False,False,False,False,False,"
    "PAT_1516_1765_530.png,False\n"
    "PAT_46,881,False,False,POMERANIA,POMERANIA,55,False,FEMALE,True,True,True,True,3.0,NECK,6.0,"
    "5.0,BCC,True,True,False,True,True,True,PAT_46_881_939.png,True\n"
    "PAT_46,880,False,False,POMERANIA,POMERANIA,55,False,FEMALE,True,True,True,True,3.0,FACE,,,"
    "SEK,UNK,UNK,False,UNK,False,True,PAT_46_880_140.png,False\n"
)
# Recipe -> (name of the folder, files, expected {path: (labels, split)}); a text is a file's
# content, None an image. What the dict of expectations lacks must be a counted drop.
NONE = (NO_FINDING,)
UNSURE = "finding that the source is not sure of"
TREES = {
    "chexpert": (
        SMALL,
        {
            "train/patient00001/study1/view1_frontal.jpg": (("lung opacity",), "train"),
            "train/patient00001/study1/view2_lateral.jpg": (NONE, "train"),
            "valid/patient64541/study1/view1_frontal.jpg": (("support device",), "validation"),
        },
        {
            "train.csv": CHEXPERT_HEADER
            + f"{SMALL}/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,"
            ",,0.0,1.0,,0.0,,,,,,,,\n"
            + f"{SMALL}/train/patient00001/study1/view2_lateral.jpg,Female,68,Lateral,,"
            "1.0,,,,,,,,,,,,,\n",
            "valid.csv": CHEXPERT_HEADER
            + f"{SMALL}/valid/patient64541/study1/view1_frontal.jpg,Male,0,Frontal,AP,"
            "0.0,,,,,,,,,,-1.0,,0.0,1.0\n",
        },
    ),
    "mimic_cxr_jpg": (
        "mimic-cxr-jpg",
        {
            "files/p10/p10000032/s50414267/02aa804e.jpg": (("edema",), "train"),
            "files/p10/p10000032/s50414267/174413ec.jpg": (("edema",), "train"),
            "files/p11/p11000011/s51029426/68b5c4b1.jpg": ((), "validation"),
        },
        {
            "mimic-cxr-2.0.0-metadata.csv.gz": "dicom_id,subject_id,study_id,ViewPosition\n"
            "02aa804e,10000032,50414267,PA\n174413ec,10000032,50414267,LATERAL\n"
            "68b5c4b1,11000011,51029426,AP\n",
            "mimic-cxr-2.0.0-chexpert.csv.gz": "subject_id,study_id,Cardiomegaly,Edema,No Finding\n"
            "10000032,50414267,0.0,1.0,\n",
            "mimic-cxr-2.0.0-split.csv.gz": "dicom_id,study_id,subject_id,split\n"
            "02aa804e,50414267,10000032,train\n174413ec,50414267,10000032,train\n"
            "68b5c4b1,51029426,11000011,validate\n",
            "files/p10/p10000032/s50414267.txt": "FINDINGS:\n Mild edema.\n",
        },
    ),
    "iu_xray": (
        "chest-xrays-indiana-university",
        {
            "images/images_normalized/1_IM-0001-4001.dcm.png": ((NO_FINDING,), ""),
            "images/images_normalized/4_IM-2050-1001.dcm.png": (
                ("cardiomegaly", "pulmonary disease, chronic obstructive"),
                "",
            ),
            "images/images_normalized/9_IM-2407-1001.dcm.png": ((), ""),
        },
        {
            "indiana_projections.csv": "uid,filename,projection\n"
            "1,1_IM-0001-4001.dcm.png,Frontal\n4,4_IM-2050-1001.dcm.png,Frontal\n"
            "9,9_IM-2407-1001.dcm.png,Frontal\n",
            "indiana_reports.csv": "uid,MeSH,Problems,image,indication,comparison,findings,"
            "impression\n1,normal,normal,Xray Chest PA,Positive TB test,None.,Clear lungs.,"
            'Normal chest.\n4,x,"Cardiomegaly;Pulmonary Disease, Chronic Obstructive",,,,,COPD.\n'
            "9,No Indexing,No Indexing,,,,,\n",
        },
    ),
    "pcam_kaggle": (
        "histopathologic-cancer-detection",
        {
            "train/f38a6374.tif": (("metastatic tumor",), ""),
            "train/c18f2d88.tif": ((NO_FINDING,), ""),
        },
        {"train_labels.csv": "id,label\nf38a6374,1\nc18f2d88,0\n"},
    ),
    "oct2017": (
        "OCT2017",
        {
            "train/CNV/CNV-1016042-1.jpeg": (("choroidal neovascularization",), "train"),
            "train/DRUSEN/DRUSEN-95633-12.jpeg": (("drusen",), "train"),
            "test/DME/DME-15307-1.jpeg": (("diabetic macular edema",), "test"),
            "val/NORMAL/NORMAL-5156112-1.jpeg": (NONE, "validation"),
        },
    ),
    "chest_xray_pneumonia": (
        "chest_xray",
        {
            "train/PNEUMONIA/person1_bacteria_1.jpeg": (("pneumonia",), "train"),
            "test/NORMAL/IM-0001-0001.jpeg": (NONE, "test"),
        },
    ),
    "covid19_radiography": (
        "COVID-19_Radiography_Dataset",
        {
            "COVID/images/COVID-1.png": (("COVID-19",), ""),
            "Lung_Opacity/images/Lung_Opacity-1.png": (("lung opacity",), ""),
            "Normal/images/Normal-1.png": (NONE, ""),
            "Viral Pneumonia/images/Viral Pneumonia-1.png": (("viral pneumonia",), ""),
        },
    ),
    "shenzhen_tb": (
        "ChinaSet_AllFiles",
        {
            "CXR_png/CHNCXR_0001_0.png": (NONE, ""),
            "CXR_png/CHNCXR_0327_1.png": (("tuberculosis",), ""),
        },
    ),
    "montgomery_tb": (
        "MontgomerySet",
        {
            "CXR_png/MCUCXR_0001_0.png": (NONE, ""),
            "CXR_png/MCUCXR_0104_1.png": (("tuberculosis",), ""),
        },
    ),
    "nct_crc_he": (
        "crc",
        {
            "NCT-CRC-HE-100K/ADI/ADI-AAAFLCLY.tif": (("adipose tissue",), "train"),
            "NCT-CRC-HE-100K/TUM/TUM-AAGKKEQH.tif": (("colorectal adenocarcinoma",), "train"),
            "CRC-VAL-HE-7K/NORM/NORM-TCGA-AASSYQPA.tif": (("normal colon mucosa",), "test"),
        },
    ),
    "lc25000": (
        "lung_colon_image_set",
        {
            "lung_image_sets/lung_aca/lungaca1.jpeg": (("lung adenocarcinoma",), ""),
            "lung_image_sets/lung_n/lungn1.jpeg": (NONE, ""),
            "colon_image_sets/colon_aca/colonca1.jpeg": (("colon adenocarcinoma",), ""),
        },
    ),
    "breakhis": (
        "BreaKHis_v1",
        {
            "histology_slides/breast/malignant/SOB/ductal_carcinoma/SOB_M_DC_14-2523/40X/"
            "SOB_M_DC-14-2523-40-001.png": (("ductal carcinoma",), ""),
            "histology_slides/breast/benign/SOB/adenosis/SOB_B_A_14-22549AB/100X/"
            "SOB_B_A-14-22549AB-100-002.png": (("adenosis",), ""),
        },
    ),
    "bach": (
        "ICIAR2018_BACH_Challenge",
        {
            "Photos/Normal/n001.tif": (NONE, ""),
            "Photos/InSitu/is001.tif": (("carcinoma in situ",), ""),
        },
    ),
    "bracs_roi": (
        "BRACS_RoI",
        {
            "train/0_N/BRACS_1003691_N_1.png": (NONE, "train"),
            "val/6_IC/BRACS_1295_IC_1.png": (("invasive carcinoma",), "validation"),
        },
    ),
    "malaria_cells": (
        "cell_images",
        {
            "Parasitized/C33P1thinF_IMG_20150619_114756a_cell_179.png": (
                ("malaria parasite",),
                "",
            ),
            "Uninfected/C1_thinF_IMG_20150604_104722_cell_9.png": None,  # names no patient
            "Uninfected/C100P61ThinF_IMG_20150918_144104_cell_34.png": (NONE, ""),
        },
    ),
    "mura": (
        "MURA-v1.1",
        {
            "train/XR_WRIST/patient00006/study1_positive/image1.png": (("abnormality",), "train"),
            "valid/XR_HAND/patient11185/study1_negative/image1.png": (NONE, "validation"),
        },
    ),
    "hyperkvasir_labelled": (
        "hyper-kvasir",
        {
            "labeled-images/lower-gi-tract/pathological-findings/polyps/0a7bdce4.jpg": (
                ("polyp",),
                "",
            ),
            "labeled-images/upper-gi-tract/anatomical-landmarks/z-line/1b2c.jpg": (("z-line",), ""),
        },
    ),
    "fracatlas": (
        "FracAtlas",
        {
            "images/Fractured/IMG0000019.jpg": (("fracture",), ""),
            "images/Non_fractured/IMG0000000.jpg": (NONE, ""),
        },
    ),
    "unitopatho": (
        "unitopatho",
        {
            "800/TA.HG/1.ndpi_ROI__mpp0.44_reg000_crop_sk0000.png": (
                ("tubular adenoma with high-grade dysplasia",),
                "",
            ),
            "800/NORM/2.ndpi_ROI__mpp0.44_reg000_crop_sk0001.png": (NONE, ""),
        },
    ),
    "refuge_training": (
        "REFUGE-Training400",
        {
            "Training400/Glaucoma/g0001.jpg": (("glaucoma",), ""),
            "Training400/Non-Glaucoma/n0001.jpg": (NONE, ""),
        },
    ),
    "ham10000": (
        "ham",
        {
            "HAM10000_images_part_1/ISIC_0027419.jpg": (("benign keratosis",), ""),
            "HAM10000_images_part_2/ISIC_0031633.jpg": (("melanocytic nevus",), ""),
        },
        {
            "HAM10000_metadata.csv": "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
            "HAM_0000118,ISIC_0027419,bkl,histo,80.0,male,scalp\n"
            "HAM_0001751,ISIC_0031633,nv,follow_up,,unknown,unknown\n"
        },
    ),
    "pad_ufes_20": (
        "PAD-UFES-20",
        {
            "images/imgs_part_1/PAT_1516_1765_530.png": (("melanocytic nevus",), ""),
            "images/imgs_part_3/PAT_46_881_939.png": (("basal cell carcinoma",), ""),
            "images/imgs_part_3/PAT_46_880_140.png": (("seborrheic keratosis",), ""),
        },
        {"metadata.csv": PAD_HEADER + PAD_ROWS},
    ),
    "isic2020": (
        "jpeg",
        {
            "train/ISIC_0015719.jpg": (("benign skin lesion",), ""),
            "train/ISIC_0052212.jpg": (("melanoma",), ""),
        },
        {
            "train.csv": "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,"
            "diagnosis,benign_malignant,target\n"
            "ISIC_0015719,IP_3075186,female,45.0,upper extremity,unknown,benign,0\n"
            "ISIC_0052212,IP_2842074,female,50.0,lower extremity,nevus,malignant,1\n"
        },
    ),
    "nih_chestxray14": (
        "ChestX-ray14",
        {
            "images_001/images/00000001_000.png": (("cardiomegaly", "emphysema"), ""),
            "images_001/images/00000002_000.png": (NONE, ""),
        },
        {
            "Data_Entry_2017_v2020.csv": NIH_HEADER + "\n"
            "00000001_000.png,Cardiomegaly|Emphysema,0,1,57,M,PA,2682,2749,0.143,0.143\n"
            "00000002_000.png,No Finding,0,2,80,M,PA,2500,2048,0.171,0.171\n"
        },
    ),
    "aptos2019": (
        "aptos",
        {
            "train_images/000c1434d8d7.png": (("diabetic retinopathy",), ""),
            "train_images/002c21358ce6.png": (NONE, ""),
        },
        {"train.csv": "id_code,diagnosis\n000c1434d8d7,2\n002c21358ce6,0\n"},
    ),
    "eyepacs": (
        "diabetic-retinopathy-detection",
        {
            "train/10_left.jpeg": (NONE, ""),
            "train/10_right.jpeg": (("diabetic retinopathy",), ""),
        },
        {"trainLabels.csv": "image,level\n10_left,0\n10_right,4\n"},
    ),
    "mhist": (
        "mhist",
        {
            "images/MHIST_aaa.png": (("sessile serrated adenoma",), "train"),
            "images/MHIST_aab.png": (("hyperplastic polyp",), "test"),
        },
        {
            "annotations.csv": "Image Name,Majority Vote Label,Number of Annotators who Selected "
            "SSA (Out of 7),Partition\nMHIST_aaa.png,SSA,6,train\nMHIST_aab.png,HP,0,test\n"
        },
    ),
    "bus_bra": (
        "BUSBRA",
        {
            "Images/bus_0001-l.png": (("benign breast lesion",), ""),
            "Images/bus_0003-r.png": (("malignant breast lesion",), ""),
        },
        {
            "bus_data.csv": "ID,Case,Histology,Pathology,BIRADS,Device\n"
            "bus_0001-l,1,Fibroadenoma,benign,2,GE\nbus_0003-r,3,IDC,malignant,5,GE\n"
        },
    ),
}
# Recipe -> (folder, {image: (labels, split, {mask: label})}); a mask is a white square.
PAIRS = {
    "kvasir_seg": (
        "Kvasir-SEG",
        {"images/cju0qkwl35piu.jpg": (("polyp",), "", ["masks/cju0qkwl35piu.jpg"])},
    ),
    "cvc_clinicdb": (
        "CVC-ClinicDB",
        {"Original/1.tif": (("polyp",), "", ["Ground Truth/1.tif"])},
    ),
    "drive": (
        "DRIVE",
        {
            "training/images/21_training.tif": (
                ("retinal vessels",),
                "train",
                ["training/1st_manual/21_manual1.gif"],
            )
        },
    ),
    "isic2018_task1": (
        "isic2018",
        {
            "ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg": (
                ("skin lesion",),
                "train",
                ["ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png"],
            ),
            "ISIC2018_Task1-2_Test_Input/ISIC_0012169.jpg": (
                ("skin lesion",),
                "test",
                ["ISIC2018_Task1_Test_GroundTruth/ISIC_0012169_segmentation.png"],
            ),
        },
    ),
    "busi": (
        "Dataset_BUSI_with_GT",
        {
            "benign/benign (1).png": (
                ("benign breast lesion",),
                "",
                ["benign/benign (1)_mask.png", "benign/benign (1)_mask_1.png"],
            ),
            "malignant/malignant (12).png": (
                ("malignant breast lesion",),
                "",
                ["malignant/malignant (12)_mask.png"],
            ),
        },
    ),
    "tn3k": (
        "tn3k",
        {
            "trainval-image/0000.jpg": (("thyroid nodule",), "train", ["trainval-mask/0000.jpg"]),
            "test-image/0001.jpg": (("thyroid nodule",), "test", ["test-mask/0001.jpg"]),
        },
    ),
    "idrid_segmentation": (
        "A. Segmentation",
        {
            "1. Original Images/a. Training Set/IDRiD_01.jpg": (
                ("microaneurysm", "optic disc"),
                "train",
                [
                    "2. All Segmentation Groundtruths/a. Training Set/1. Microaneurysms/"
                    "IDRiD_01_MA.tif",
                    "2. All Segmentation Groundtruths/a. Training Set/5. Optic Disc/"
                    "IDRiD_01_OD.tif",
                ],
            ),
            "1. Original Images/b. Testing Set/IDRiD_55.jpg": (
                ("hard exudate",),
                "test",
                [
                    "2. All Segmentation Groundtruths/b. Testing Set/3. Hard Exudates/"
                    "IDRiD_55_EX.tif"
                ],
            ),
        },
    ),
    "dsad": (
        "DSAD",
        {
            "liver/02/image00.png": (("liver",), "", ["liver/02/mask00.png"]),
            "small_intestine/07/image12.png": (
                ("small bowel",),
                "",
                ["small_intestine/07/mask12.png"],
            ),
        },
    ),
    "endovis2017_instruments": (
        "instrument_1_4_training",
        {
            "instrument_dataset_1/left_frames/frame000.png": (
                ("bipolar forceps", "prograsp forceps"),
                "",
                [
                    "instrument_dataset_1/ground_truth/Maryland_Bipolar_Forceps_labels/frame000.png",
                    "instrument_dataset_1/ground_truth/Left_Prograsp_Forceps_labels/frame000.png",
                    "instrument_dataset_1/ground_truth/Right_Prograsp_Forceps_labels/frame000.png",
                ],
            ),
            "instrument_dataset_4/left_frames/frame000.png": (
                ("large needle driver",),
                "",
                [
                    "instrument_dataset_4/ground_truth/Large_Needle_Driver_Left_labels/frame000.png",
                    "instrument_dataset_4/ground_truth/Large_Needle_Driver_Right_labels/"
                    "frame000.png",
                ],
            ),
        },
    ),
}


def plant(root, files, tables=None):
    for path in files:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(PNG)  # what an image is, its bytes tell and not its suffix
    for path, text in (tables or {}).items():
        data = text.encode()
        (root / path).write_bytes(gzip.compress(data) if path.endswith(".gz") else data)


def read(root):
    ((recipe, found),) = recipes.find(root.parent)
    ledger = Ledger()
    records = list(readers.read(recipe, found, ledger))
    ledger.check()
    return recipe, records, ledger


@pytest.mark.parametrize("name", sorted(TREES))
def test_a_tree_in_the_published_layout_is_found_and_read(tmp_path, name):
    folder, files, *tables = TREES[name]
    plant(tmp_path / folder, files, *tables)
    recipe, records, ledger = read(tmp_path / folder)
    assert recipe.name == name
    assert {r.path: (r.labels, r.split) for r in records} == {
        path: said for path, said in files.items() if said
    }
    lost = sum(row["count"] for row in ledger.rows() if row["outcome"] not in ("kept", UNSURE))
    assert lost == sum(said is None for said in files.values())
    grouping = recipe.options.get("columns", {}).get("patient") or "patient" in recipe.options.get(
        "path", ""
    )
    assert all(bool(r.patient) == bool(grouping) for r in records)


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_masks_become_boxes(tmp_path, name):
    folder, pairs = PAIRS[name]
    mask = np.zeros((48, 32), np.uint8)
    mask[10:20, 8:16] = 255
    plant(tmp_path / folder, pairs)
    for _, _, masks in pairs.values():
        for path in masks:
            target = tmp_path / folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(images.to_png(mask))
    recipe, records, ledger = read(tmp_path / folder)
    assert recipe.name == name
    assert {r.path: (r.labels, r.split) for r in records} == {
        path: (labels, split) for path, (labels, split, _) in pairs.items()
    }
    assert {row["outcome"] for row in ledger.rows()} == {"kept"}
    for record in records:
        assert len(record.boxes) == len(pairs[record.path][2])
        for box in record.boxes:
            corners = (box.x1 * 32, box.y1 * 48, box.x2 * 32, box.y2 * 48)
            assert corners == pytest.approx((8, 10, 16, 20))


def test_a_mask_that_is_missing_or_belongs_to_no_image_is_counted(tmp_path):
    plant(tmp_path / "Kvasir-SEG", ["images/a.jpg", "images/b.jpg", "masks/b.jpg", "masks/c.jpg"])
    _, records, ledger = read(tmp_path / "Kvasir-SEG")
    assert [r.path for r in records] == ["images/a.jpg", "images/b.jpg"]
    lost = {row["outcome"]: row["count"] for row in ledger.rows() if row["outcome"] != "kept"}
    assert lost == {"mask missing": 1, "no annotation names this mask": 1}


def test_an_instruments_parts_are_one_mask_and_an_unnamed_instrument_is_counted(tmp_path):
    root = tmp_path / "instrument_1_4_training"
    sequence = "instrument_dataset_2"
    plant(root, [f"{sequence}/left_frames/frame000.png", f"{sequence}/right_frames/frame000.png"])
    mask = np.zeros((48, 32), np.uint8)
    mask[10:14, 8:16], mask[14:17, 8:16], mask[17:20, 8:16] = 10, 20, 30  # shaft, wrist, claspers
    for folder in ("Right_Prograsp_Forceps_labels", "Left_Prograsp_Forceps_labels", "Other_labels"):
        target = root / sequence / "ground_truth" / folder / "frame000.png"
        target.parent.mkdir(parents=True)
        target.write_bytes(images.to_png(mask if "Left" not in folder else mask * 0))
    _, (record,), ledger = read(root)
    assert record.labels == ("prograsp forceps",)
    (box,) = record.boxes
    assert (box.x1 * 32, box.y1 * 48, box.x2 * 32, box.y2 * 48) == pytest.approx((8, 10, 16, 20))
    lost = {row["outcome"]: row["count"] for row in ledger.rows() if row["outcome"] != "kept"}
    assert lost == {"mask is empty": 1, "no annotation names this mask": 1}


def test_an_empty_mask_of_a_normal_breast_is_no_finding(tmp_path):
    root = tmp_path / "Dataset_BUSI_with_GT"
    plant(root, ["normal/normal (1).png", "benign/benign (1).png", "benign/benign (1)_mask.png"])
    (root / "normal" / "normal (1)_mask.png").write_bytes(
        images.to_png(np.zeros((48, 32), np.uint8))
    )
    _, records, _ = read(root)
    assert records[1].labels == (NO_FINDING,) and records[1].boxes == ()
    assert records[1].absent == ("benign breast lesion",)


def test_every_layout_recipe_has_a_tree():
    names = {recipe.name for recipe in recipes.LAYOUTS}
    # below and in test_question_files, test_videos, test_slides
    elsewhere = recipes_layouts.DETECTION + recipes_layouts.VIDEOS
    elsewhere += recipes_layouts.SLIDES
    names -= {recipe.name for recipe in elsewhere}
    assert names == set(TREES) | set(PAIRS)
    public = len(recipes.PUBLIC) - 1 + len(recipes.MEDMNIST) + len(recipes.LAYOUTS)
    assert public >= 40  # pydicom's samples are no dataset
    assert len({r.modality for r in (*recipes.PUBLIC, *recipes.LAYOUTS, *recipes.MEDMNIST)}) >= 9


def test_grades_are_severities_and_eyes_of_one_person_one_group(tmp_path):
    folder, files, tables = TREES["eyepacs"]
    plant(tmp_path / folder, files, tables)
    _, records, _ = read(tmp_path / folder)
    assert [(r.severity, r.volume) for r in records] == [("", "10"), ("proliferative", "10")]


def test_findings_the_table_does_not_name_are_absent(tmp_path):
    folder, files, tables = TREES["nih_chestxray14"]
    plant(tmp_path / folder, files, tables)
    _, (first, none), _ = read(tmp_path / folder)
    assert first.absent == () and none.absent == ("cardiomegaly", "emphysema")


def test_what_chexpert_is_not_sure_of_is_neither_there_nor_absent(tmp_path):
    folder, files, tables = TREES["chexpert"]
    plant(tmp_path / folder, files, tables)
    _, (first, second, third), ledger = read(tmp_path / folder)
    assert first.absent == ("cardiomegaly", "edema") and second.absent == ()
    assert third.absent == ("fracture",)
    assert UNSURE in {row["outcome"] for row in ledger.rows()}
    assert first.patient == second.patient != third.patient


def test_findings_splits_and_reports_are_joined_from_other_tables(tmp_path):
    """MIMIC-CXR: findings of a study, splits of an image, the report beside the study's folder."""
    folder, files, tables = TREES["mimic_cxr_jpg"]
    plant(tmp_path / folder, files, tables)
    _, (first, second, third), _ = read(tmp_path / folder)
    assert first.absent == second.absent == ("cardiomegaly",) and third.absent == ()
    assert first.report == second.report == "FINDINGS: Mild edema." and third.report == ""
    assert first.patient == second.patient != third.patient
    (tmp_path / folder / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"split\.csv\.gz is not a readable CSV file"):
        read(tmp_path / folder)


def test_the_parts_of_a_report_are_one_text(tmp_path):
    folder, files, tables = TREES["iu_xray"]
    plant(tmp_path / folder, files, tables)
    _, records, _ = read(tmp_path / folder)
    assert [r.report for r in records] == ["Clear lungs. Normal chest.", "COPD.", ""]


def test_boxes_of_a_dicom_radiograph_stand_in_its_table(tmp_path):
    """RSNA: a class per row, repeated for every box; rows without corners where nothing is."""
    from pydicom.data import get_testdata_file

    root = tmp_path / "rsna"
    (root / "stage_2_train_images").mkdir(parents=True)
    plain = get_testdata_file("CT_small.dcm", read=True)
    for name in "abc":
        plain.Modality, plain.PatientID = "CR", name
        plain.save_as(root / f"stage_2_train_images/{name}.dcm")
    (root / "stage_2_train_images/d.dcm").write_bytes(b"no DICOM file")
    (root / "stage_2_detailed_class_info.csv").write_text(
        "patientId,class\na,Lung Opacity\na,Lung Opacity\nb,Normal\n"
        "c,No Lung Opacity / Not Normal\nd,Normal\n"
    )
    (root / "stage_2_train_labels.csv").write_text(
        "patientId,x,y,width,height,Target\na,32,64,32,32,1\na,64,64,32,32,1\nb,,,,,0\nc,,,,,0\n"
        "e,1,1,2,2,1\n"
    )
    recipe, (a, b, c), ledger = read(root)
    assert recipe.name == "rsna_pneumonia"
    assert (a.labels, b.labels, c.labels) == (
        ("lung opacity",),
        NONE,
        ("abnormality without lung opacity",),
    )
    corners = [(box.x1 * 128, box.y1 * 128, box.x2 * 128, box.y2 * 128) for box in a.boxes]
    assert corners == [(32, 64, 64, 96), (64, 64, 96, 96)] and not b.boxes + c.boxes
    assert (a.width, a.height) == (128, 128) and a.image.startswith(b"\x89PNG")
    lost = {row["outcome"]: row["count"] for row in ledger.rows() if row["level"] == "annotation"}
    assert lost["box of an unknown image"] == 1
    assert "not a readable DICOM file" in {row["outcome"] for row in ledger.rows()}


def test_boxes_of_two_coco_indexes_keep_their_splits(tmp_path):
    """TBX11K: ids begin anew in every index; healthy lungs have no annotation."""
    categories = [
        {"id": 1, "name": "ActiveTuberculosis", "supercategory": "Tuberculosis"},
        {"id": 2, "name": "ObsoletePulmonaryTuberculosis", "supercategory": "Tuberculosis"},
    ]
    root = tmp_path / "TBX11K"
    plant(root, ["imgs/tb/tb0003.png", "imgs/health/h0001.png", "imgs/tb/tb0005.png"])
    (root / "annotations/json").mkdir(parents=True)
    size = {"height": 48, "width": 32}
    for split, names, boxes in (
        ("train", ("tb/tb0003.png", "health/h0001.png"), [(1, 1)]),
        ("val", ("tb/tb0005.png",), [(1, 2)]),
    ):
        shown = [{"id": n, "file_name": name, **size} for n, name in enumerate(names, 1)]
        found = [
            {"id": 1, "image_id": image, "category_id": kind, "bbox": [8, 12, 16, 24]}
            for image, kind in boxes
        ]
        index = {"images": shown, "annotations": found, "categories": categories}
        (root / f"annotations/json/TBX11K_{split}.json").write_text(json.dumps(index))
    recipe, records, ledger = read(root)
    assert recipe.name == "tbx11k" and {row["outcome"] for row in ledger.rows()} == {"kept"}
    assert {r.path: (r.labels, r.split) for r in records} == {
        "imgs/tb/tb0003.png": (("active tuberculosis",), "train"),
        "imgs/health/h0001.png": ((), "train"),
        "imgs/tb/tb0005.png": (("healed tuberculosis",), "validation"),
    }
    assert "active tuberculosis" in records[1].absent
    (box,) = records[2].boxes
    assert (box.x1, box.y1, box.x2, box.y2) == (0.25, 0.25, 0.75, 0.75)


def test_tables_are_what_a_csv_reader_sees():
    """The NIH header's brackets hold commas: rows must have as many cells as the header."""
    for _, _, *tables in TREES.values():
        for path, text in (tables[0] if tables else {}).items():
            if path.endswith(".txt"):
                continue
            rows = list(csv.reader(text.splitlines()))
            assert len({len(row) for row in rows}) == 1


def test_every_term_of_a_recipe_has_a_chinese_name():
    """Else half of the Chinese text about a dataset would be English."""
    from collections import Counter

    from gmai_lib.dataset.lexicon import readable, translate

    unknown = Counter()
    for recipe in recipes.RECIPES:
        options = recipe.options
        terms = [*options.get("names", {}).values(), *options.get("labels", ())]
        terms += [*options.get("severity", ()), *options.get("grades", {}).values(), recipe.organ]
        terms += [term for term in options.get("pairs", ()) if "{" not in term]
        for term in filter(None, terms):
            translate(readable(term), "zh", unknown)
    assert not unknown


def test_a_blank_between_separators_is_no_finding(tmp_path):
    folder, files, tables = TREES["nih_chestxray14"]
    text = tables["Data_Entry_2017_v2020.csv"].replace("Cardiomegaly|", "Cardiomegaly| |")
    plant(tmp_path / folder, files, {"Data_Entry_2017_v2020.csv": text})
    _, (first, _), _ = read(tmp_path / folder)
    assert first.labels == ("cardiomegaly", "emphysema")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ham10000", {("male", "65+"), ("", "")}),
        ("isic2020", {("female", "40-64")}),
        ("pad_ufes_20", {("", "0-17"), ("female", "40-64")}),
        ("nih_chestxray14", {("male", "40-64"), ("male", "65+")}),
    ],
)
def test_sex_and_age_group_of_the_person_come_with_the_image(tmp_path, name, expected):
    folder, files, tables = TREES[name]
    plant(tmp_path / folder, files, tables)
    _, records, ledger = read(tmp_path / folder)
    assert {(record.sex, record.age_group) for record in records} == expected
    assert not [row for row in ledger.rows() if "not understood" in row["outcome"]]
