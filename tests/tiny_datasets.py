"""Tiny datasets in the layouts of the real ones, each with the real one's traps."""

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension
from PIL import Image

from gmai_lib.schema import Ledger


def real_data() -> Path:
    """Folder of the real data beside the checkout, or from GMAI_DATA; skips where absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("GMAI_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set GMAI_DATA to test on it")
    return folder


def picture(path: Path, seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Path:
    """Write noise as an image file of `size` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def mask(path: Path, box: tuple[int, int, int, int] | None, size=(64, 48)) -> Path:
    """Write a binary 0/255 mask with one filled rectangle x1, y1, x2, y2 (x2, y2 exclusive)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), np.uint8)
    if box:
        pixels[box[1] : box[3], box[0] : box[2]] = 255
    Image.fromarray(pixels).save(path)
    return path


def text(path: Path, content) -> Path:
    """Write text, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def nifti(path: Path, values: np.ndarray, affine=None, labels: dict[int, str] | None = None):
    """Write a NIfTI file, with `labels` as Caret XML in a header extension like the real masks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-3.0, -3.0, 3.0, 1.0]) if affine is None else affine
    image = nibabel.Nifti1Image(values, affine)
    if labels:
        rows = "".join(f'<Label Key="{k}"><![CDATA[{v}]]></Label>' for k, v in labels.items())
        xml = f"<CaretExtension><LabelTable>{rows}</LabelTable></CaretExtension>\0\0"
        image.header.extensions.append(Nifti1Extension(0, xml.encode()))
    nibabel.save(image, path)
    return path


def voc_xml(name: str, boxes: list[tuple]) -> str:
    """Pascal VOC text; boxes are label, xmin, ymin, xmax, ymax."""
    corner = "<{0}>{1}</{0}>"
    objects = ""
    for label, *corners in boxes:
        keys = ("xmin", "ymin", "xmax", "ymax")
        inside = "".join(corner.format(k, v) for k, v in zip(keys, corners, strict=True))
        objects += f"<object><name>{label}</name><bndbox>{inside}</bndbox></object>"
    return (
        f"<annotation><filename>{name}</filename>"
        f"<path>/home/someone/else/{name}</path>{objects}</annotation>"
    )


def bccd(root: Path) -> Path:
    """Three smears: one fine, one with a zero-area box, one without objects; test.csv lists all."""
    boxes = {
        "BloodImage_00000": [("WBC", 8, 6, 40, 30), ("RBC", 0, 0, 16, 12)],
        "BloodImage_00001": [("RBC", 4, 4, 20, 20), ("RBC", 50, 33, 50, 33)],
        "BloodImage_00002": [],
    }
    rows = ["filename,cell_type,xmin,xmax,ymin,ymax"]
    for i, (name, objects) in enumerate(boxes.items()):
        picture(root / f"BCCD/JPEGImages/{name}.jpg", seed=i)
        text(root / f"BCCD/Annotations/{name}.xml", voc_xml(f"{name}.jpg", objects))
        rows += [f"{name},{label},{a},{c},{b},{d}" for label, a, b, c, d in objects]
    text(root / "test.csv", "\n".join(rows) + "\n")
    lists = {"train": "BloodImage_00000", "val": "BloodImage_00001", "test": "BloodImage_00002"}
    lists["trainval"] = "BloodImage_00000\nBloodImage_00001"
    for split, names in lists.items():
        text(root / f"BCCD/ImageSets/Main/{split}.txt", names + "\n")
    return root


def brain_tumor(root: Path) -> Path:
    """Class folders with blanks and parentheses in names, and an exact copy across the split."""
    for i, label in enumerate(("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")):
        picture(root / f"Training/{label}/p ({i}).jpg", seed=i)
        picture(root / f"Testing/{label}/image({i}).jpg", seed=i + 10)
    copy = (root / "Training/no_tumor/p (2).jpg").read_bytes()
    (root / "Testing/no_tumor/image(58).jpg").write_bytes(copy)
    return root


def covid(root: Path) -> Path:
    """metadata.csv with " url", an unnamed last column and licences per row; nested images."""
    lines = [
        "Patientid,sex,finding,view,modality,filename, url,license,clinical notes,other notes,",
        "63,,COVID-19,PA,X-ray,a.jpg,https://x.org,CC BY-NC-SA,Patchy opacities.,,",
        '63,,COVID-19,Axial,CT,b.jpg,https://x.org,CC BY-NC-SA,"Opacities, both lungs.",,',
        "64,F,No Finding,PA,X-ray,missing.jpg,https://x.org,CC0,Normal.,,",
        "65,F,COVID-19,PA,X-ray,twice.jpg,https://x.org,CC0,Two of them.,,",
        "66,F,COVID-19,PA,Photo,c.jpg,https://x.org,CC0,A photo.,,",
        "67,M,COVID-19,short row",
    ]
    text(root / "metadata.csv", "\n".join(lines) + "\n")
    picture(root / "images/COVID-19/XRAY/PA/a.jpg", seed=1)
    picture(root / "images/COVID-19/CT/b.jpg", seed=2, mode="L")
    picture(root / "images/COVID-19/c.jpg", seed=3)
    picture(root / "images/COVID-19/CT/twice.jpg", seed=4)
    picture(root / "images/COVID-19/XRAY/twice.jpg", seed=5)
    return root


def dsb2018(root: Path) -> Path:
    """RGBA image with two nuclei, an empty mask, a mask of another size, a folder of masks only."""
    one = root / "stage1_train/aa"
    picture(one / "images/aa.png", mode="RGBA")
    mask(one / "masks/1.png", (0, 0, 16, 12))
    mask(one / "masks/2.png", (32, 24, 64, 48))
    two = root / "stage1_train/bb"
    picture(two / "images/bb.png", seed=1, mode="RGBA")
    mask(two / "masks/1.png", (10, 10, 20, 20))
    mask(two / "masks/2.png", None)
    mask(two / "masks/3.png", (1, 1, 2, 2), size=(32, 32))
    mask(root / "stage1_train/cc/masks/1.png", (1, 1, 9, 9))
    return root


def medquad(root: Path) -> Path:
    """One topic with an answer, one with only empty answers, one malformed, one XML bomb."""
    pair = '<QAPair pid="{0}"><Question qid="q{0}" qtype="{1}">{2}</Question>'
    pair += "<Answer>{3}</Answer></QAPair>"
    document = "<Document><Focus>Flu</Focus><QAPairs>{}</QAPairs></Document>"
    good = pair.format(1, "information", "What is flu ?", "A viral\n      infection.")
    empty = pair.format(2, "causes", "What causes flu ?", "  ")
    text(root / "1_CancerGov_QA/1.xml", document.format(good + empty))
    text(root / "10_MPlus_ADAM_QA/2.xml", document.format(empty + empty))
    text(root / "2_GARD_QA/3.xml", document.format(good)[:60])
    bomb = '<!DOCTYPE d [<!ENTITY a "lol"><!ENTITY b "&a;&a;">]>' + document.format(good)
    text(root / "2_GARD_QA/4.xml", bomb.replace("Flu", "&b;"))
    return root


def sam_med2d(root: Path) -> Path:
    """Two indexed images and one that no index names; two instances; masks without an owner."""
    images, masks = root / "data_demo/images", root / "data_demo/masks"
    for i, name in enumerate(("amos_0006_90", "s0114_111", "amos_0507_31")):
        picture(images / f"{name}.png", seed=i)
    mask(masks / "amos_0006_90_inferior_vena_cava_000.png", (0, 0, 32, 24))
    mask(masks / "s0114_111_hip_left_000.png", (0, 0, 8, 8))
    mask(masks / "s0114_111_hip_left_001.png", (16, 16, 24, 24))
    mask(masks / "s0114_111_orphan_000.png", (1, 1, 4, 4))
    index = {
        "data_demo/images/amos_0006_90.png": [
            "data_demo/masks/amos_0006_90_inferior_vena_cava_000.png",
            "data_demo/masks/other_liver_000.png",
        ]
    }
    text(root / "data_demo/image2label_train.json", index)
    index = {
        f"data_demo/masks/s0114_111_hip_left_00{i}.png": "data_demo/images/s0114_111.png"
        for i in (0, 1)
    }
    text(root / "data_demo/label2image_test.json", index)
    return root


def vqa_rad(root: Path) -> Path:
    """Test images also in train, an integer answer, "CLOSED ", empty answers, lost images."""

    def row(qid, image, organ, question, answer, kind="OTHER", closed="OPEN"):
        names = (
            "qid",
            "image_name",
            "image_organ",
            "question",
            "answer",
            "question_type",
            "answer_type",
        )
        return dict(zip(names, (qid, image, organ, question, answer, kind, closed), strict=True))

    for i in range(6):
        picture(root / f"data/images/synpic{i}.jpg", seed=i)
    train = [
        row(i, f"synpic{i}.jpg", "CHEST", "Is it normal?", "No", closed="CLOSED ") for i in range(4)
    ]
    train += [
        row(10, "synpic0.jpg", "CHEST", "How many masses?", 2),
        row(16, "synpic0.jpg", "CHEST", "What does this not represent?", "CT", "MODALITY"),
        row(11, "synpic1.jpg", "CHEST", "Where?", ""),
        row(12, "synpic1.jpg", "CHEST", "Where?", None),
        row(13, "gone.jpg", "CHEST", "Where?", "left"),
        row(14, "synpic4.jpg", "HEAD", "What modality is this?", "MRI, T2 weighted", "MODALITY"),
        row(15, "synpic5.jpg", "HEAD", "Is this a CT?", "no", "MODALITY", "CLOSED"),
        "not a question",
    ]
    test = [row(20 + i, f"synpic{i}.jpg", "CHEST", "Is it abnormal?", "Yes") for i in range(3)]
    text(root / "data/trainset.json", train)
    text(root / "data/testset.json", test)
    picture(root / "data/images/synpic99.jpg", seed=99)
    return root


def totalsegmentator(root: Path) -> Path:
    """The CT case of the real layout: label table in the header, a mask on a larger grid."""
    base = root / "tests/reference_files"
    rng = np.random.default_rng(0)
    ct = rng.integers(-200, 200, (20, 16, 10)).astype(np.int16)
    affine = np.diag([-3.0, -3.0, 3.0, 1.0])  # x to the left, y to posterior: display order
    affine[:3, 3] = (30, 24, 0)
    organs = np.zeros(ct.shape, np.uint8)
    organs[2:6, 4:8, 2:8] = 5  # liver, at the patient's right
    organs[14:17, 8:12, 3:5] = 3
    organs[0, 0, 9] = 77  # a value that the table does not name
    nifti(base / "example_ct_sm.nii.gz", ct, affine)
    nifti(base / "example_seg.nii.gz", organs, affine, {3: "kidney_left", 5: "liver", 9: "spleen"})
    subset = np.where(organs == 5, organs, 0).astype(np.uint8)
    nifti(base / "example_seg_roi_subset.nii.gz", subset, affine, {5: "liver"})
    # The same body on a grid of half the spacing that starts elsewhere and is turned.
    fat = np.zeros((60, 40, 12), np.uint8)
    fine = np.diag([1.5, 1.5, 3.0, 1.0])
    fine[:3, 3] = (-40, -30, -3)
    low = np.rint((np.array([30 - 3 * 10, 24 - 3 * 8, 9]) - fine[:3, 3]) / [1.5, 1.5, 3.0]).astype(
        int
    )
    fat[low[0] - 2 : low[0] + 3, low[1] - 2 : low[1] + 3, low[2]] = 1
    nifti(base / "example_seg_tissue_types/torso_fat.nii.gz", fat, fine)
    return root


def totals(ledger: Ledger, source: str, step: str = "read") -> dict[str, tuple[int, int]]:
    """Level -> (kept, dropped), after checking the ledger."""
    ledger.check()
    return {
        level: (
            ledger.kept[source, step, level],
            sum(n for key, n in ledger.dropped.items() if key[:3] == (source, step, level)),
        )
        for level in ("item", "annotation")
    }


def reasons(ledger: Ledger, source: str, level: str, step: str = "read") -> dict[str, int]:
    """Drop reason -> count."""
    return {k[3]: n for k, n in ledger.dropped.items() if k[:3] == (source, step, level)}
