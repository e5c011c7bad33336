"""Recipes of recipes_volumes.py, each on a small file tree in exactly the published layout."""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK
from test_layouts import read

from gmai_lib.dataset import readers, recipes, recipes_volumes
from gmai_lib.dataset.lexicon import readable
from gmai_lib.schema import Ledger

VOLUME = np.full((24, 20, 8), 60, np.int16)
KIDNEY = {1: "kidney", 2: "kidney tumor", 3: "kidney cyst"}
GLIOMA = {1: "necrotic tumor core", 2: "peritumoral edema", 4: "enhancing tumor"}
HEART = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
# Recipe -> (folder, {volume: (its mask, {value: what it is}, split)}).
TREES = {
    "amos22_ct": (
        "amos22",
        {
            "imagesTr/amos_0001.nii.gz": (
                "labelsTr/amos_0001.nii.gz",
                {1: "spleen", 10: "pancreas", 15: "prostate or uterus"},
                "train",
            ),
            "imagesVa/amos_0008.nii.gz": (
                "labelsVa/amos_0008.nii.gz",
                {2: "right kidney", 14: "urinary bladder"},
                "validation",
            ),
        },
    ),
    "btcv_abdomen": (
        "Abdomen",
        {
            "RawData/Training/img/img0001.nii.gz": (
                "RawData/Training/label/label0001.nii.gz",
                {3: "left kidney", 10: "portal vein and splenic vein", 11: "pancreas"},
                "",
            )
        },
    ),
    "lits": (
        "LITS17",
        {
            f"Training Batch {batch}/volume-{n}.nii": (
                f"Training Batch {batch}/segmentation-{n}.nii",
                {1: "liver", 2: "liver tumor"},
                "",
            )
            for batch, n in ((1, 0), (2, 28))
        },
    ),
    "kits23": (
        "kits23",
        {
            "dataset/case_00000/imaging.nii.gz": (
                "dataset/case_00000/segmentation.nii.gz",
                KIDNEY,
                "",
            )
        },
    ),
    "brats2020": (
        "MICCAI_BraTS2020_TrainingData",
        {
            f"BraTS20_Training_001/BraTS20_Training_001_{kind}.nii": (
                "BraTS20_Training_001/BraTS20_Training_001_seg.nii",
                GLIOMA,
                "",
            )
            for kind in ("flair", "t1", "t1ce", "t2")
        },
    ),
    "brats2021": (
        "BraTS2021_Training_Data",
        {
            f"BraTS2021_00000/BraTS2021_00000_{kind}.nii.gz": (
                "BraTS2021_00000/BraTS2021_00000_seg.nii.gz",
                GLIOMA,
                "",
            )
            for kind in ("flair", "t1", "t1ce", "t2")
        },
    ),
    "acdc": (
        "ACDC",
        {
            f"database/{split}/patient{n}/patient{n}_frame{frame}.nii.gz": (
                f"database/{split}/patient{n}/patient{n}_frame{frame}_gt.nii.gz",
                HEART,
                said,
            )
            for split, n, frame, said in (
                ("training", "001", "01", "train"),
                ("training", "001", "12", "train"),
                ("testing", "101", "01", "test"),
            )
        },
    ),
    "verse": (
        "dataset-verse20training",
        {
            "rawdata/sub-verse500/sub-verse500_dir-ax_ct.nii.gz": (
                "derivatives/sub-verse500/sub-verse500_dir-ax_seg-vert_msk.nii.gz",
                {7: "vertebra C7", 8: "vertebra T1", 25: "vertebra L6", 28: "vertebra T13"},
                "",
            )
        },
    ),
    "promise12": (
        "PROMISE12",
        {
            "training_data/Case00.mhd": (
                "training_data/Case00_segmentation.mhd",
                {1: "prostate"},
                "",
            )
        },
    ),
}
TREES["amos22_mr"] = (
    "amos22",
    {
        "imagesTr/amos_0507.nii.gz": (
            "labelsTr/amos_0507.nii.gz",
            {6: "liver", 13: "duodenum"},
            "train",
        )
    },
)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mhd":
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))
    else:
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1, 1, 3, 1])), path)


def block(values) -> np.ndarray:
    """A mask with one box of voxels for each value, on two slices of the thick axis."""
    mask = np.zeros(VOLUME.shape, np.uint8)
    for number, value in enumerate(values):
        mask[2 + 5 * number : 6 + 5 * number, 6:11, 2:4] = value
    return mask


def plant(tmp_path, name):
    folder, pairs = TREES[name]
    root = tmp_path / folder
    for path, (mask, values, _) in pairs.items():
        save(root / path, VOLUME)
        save(root / mask, block(values))
    if name.startswith("amos"):
        (root / "dataset.json").write_text("{}")
    return root, pairs


@pytest.mark.parametrize("name", sorted(TREES))
def test_volumes_beside_their_masks_are_found_and_read(tmp_path, name):
    root, pairs = plant(tmp_path, name)
    recipe, records, ledger = read(root)
    assert recipe.name == name
    for path, (_, values, split) in pairs.items():
        mine = [r for r in records if r.volume == path]
        assert {readable(b.label) for r in mine for b in r.boxes} == set(values.values())
        assert {r.split for r in mine} == {split} and all(r.patient for r in mine)
    assert {r.volume for r in records} == set(pairs)
    assert {row["outcome"] for row in ledger.rows()} <= {"kept", "slice not selected"}


def test_totalsegmentator_names_structures_by_files_and_splits_by_table(tmp_path):
    root = tmp_path / "Totalsegmentator_dataset_v201"
    for case in ("s0000", "s0001"):
        save(root / case / "ct.nii.gz", VOLUME)
        save(root / case / "segmentations" / "spleen.nii.gz", block([1]))
        save(root / case / "segmentations" / "kidney_left.nii.gz", block([0]))  # not in this scan
    save(root / "s0002" / "ct.nii.gz", VOLUME)
    (root / "meta.csv").write_text(
        "image_id;age;gender;institute;study_type;split\ns0000;72;m;A;ct abdomen;train\n"
        "s0001;50;f;B;ct thorax;test\ns0002;50;f;B;ct thorax;val\ns0009;50;f;B;ct thorax;val\n"
    )
    recipe, records, ledger = read(root)
    assert recipe.name == "totalsegmentator_v2"
    assert {(r.volume, r.split) for r in records} == {
        ("s0000/ct.nii.gz", "train"),
        ("s0001/ct.nii.gz", "test"),
    }
    assert {(r.volume[:5], r.sex, r.age_group) for r in records} == {
        ("s0000", "male", "65+"),
        ("s0001", "female", "40-64"),
    }
    assert {b.label for r in records for b in r.boxes} == {"spleen"}
    assert all("kidney_left" in r.absent and "" not in r.absent for r in records)
    lost = {row["outcome"]: row["count"] for row in ledger.rows()}
    assert lost["volume without its mask"] == 8  # its slices
    assert lost["table row about an unknown volume"] == 1


def test_the_mr_release_has_no_table(tmp_path):
    root = tmp_path / "TotalsegmentatorMRI_dataset_v100"
    save(root / "s0000" / "mri.nii.gz", VOLUME)
    save(root / "s0000" / "segmentations" / "spleen.nii.gz", block([1]))
    recipe, records, _ = read(root)
    assert recipe.name == "totalsegmentator_mri" and records[0].modality == "MR"
    assert {b.label for r in records for b in r.boxes} == {"spleen"}


def test_a_broken_mask_and_a_strange_name_are_counted(tmp_path):
    root, _ = plant(tmp_path, "brats2020")
    case = root / "BraTS20_Training_355"
    save(case / "BraTS20_Training_355_flair.nii", VOLUME)
    save(case / "W39_1998.09.19_Segm.nii", block([1]))  # as one public copy calls a mask
    other = root / "BraTS20_Training_002"
    save(other / "BraTS20_Training_002_flair.nii", VOLUME)
    (other / "BraTS20_Training_002_seg.nii").write_bytes(b"broken")
    _, records, ledger = read(root)
    assert {r.patient for r in records} == {records[0].patient}
    lost = {row["outcome"]: row["count"] for row in ledger.rows()}
    assert lost["volume without its mask"] == 16 and lost["mask cannot be read"] == 1
    assert lost["path does not fit the pairs"] == 1


def test_processes_change_nothing(tmp_path):
    root, _ = plant(tmp_path, "brats2021")
    recipe, found = recipes.find(root.parent)[0]
    one, two = (list(readers.read(recipe, found, Ledger(), processes=n)) for n in (1, 2))
    assert one == two and one


@pytest.mark.parametrize("recipe", recipes_volumes.PAIRED, ids=lambda recipe: recipe.name)
def test_every_structure_of_a_recipe_has_a_chinese_name(recipe):
    from collections import Counter

    from gmai_lib.dataset.lexicon import translate

    unknown: Counter = Counter()
    for shown in recipe.options["pairs"].values():
        for name in shown.values() if isinstance(shown, dict) else [shown]:
            if name != "{stem}":
                translate(readable(name), "zh", unknown)
    assert not unknown


@pytest.mark.parametrize("recipe", recipes_volumes.DECATHLON, ids=lambda recipe: recipe.name)
def test_a_decathlon_task_is_read_slice_by_slice(tmp_path, recipe):
    task = recipe.marks[0].split("/")[0]
    published = {
        "Task02_Heart": ["left atrium"],
        "Task03_Liver": ["liver", "cancer"],
        "Task04_Hippocampus": ["Anterior", "Posterior"],
        "Task06_Lung": ["cancer"],
        "Task07_Pancreas": ["pancreas", "cancer"],
        "Task08_HepaticVessel": ["Vessel", "Tumour"],
        "Task09_Spleen": ["spleen"],
        "Task10_Colon": ["colon cancer primaries"],
    }[task]
    root = tmp_path / task
    volume, mask = np.zeros((24, 24, 6), np.int16), np.zeros((24, 24, 6), np.uint8)
    volume[4:20, 4:20] = 60
    for number in range(len(published)):
        mask[6 + 8 * number : 11 + 8 * number, 6:11, 2:4] = number + 1
    for folder, array in (("imagesTr", volume), ("labelsTr", mask)):
        (root / folder).mkdir(parents=True)
        image = nibabel.Nifti1Image(array, np.diag([1, 1, 3, 1]))
        nibabel.save(image, root / folder / "case_001.nii.gz")
        (root / folder / "._case_001.nii.gz").write_bytes(b"AppleDouble")
    labels = {"0": "background"} | {str(i + 1): name for i, name in enumerate(published)}
    index = {"name": task, "licence": "CC-BY-SA 4.0", "modality": {"0": "CT"}, "labels": labels}
    (root / "dataset.json").write_text(json.dumps(index))
    found, records, _ = read(root)
    assert found is recipe and records
    wanted = {recipe.options["names"].get(name, name) for name in published}
    assert {box.label for r in records for box in r.boxes} == wanted
    assert {r.volume for r in records} and all(r.license == "CC-BY-SA-4.0" for r in records)
