"""Phantoms: exact ground truth, weak blind guessing, same seed same bytes, every format opens."""

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy import ndimage

from gmai_lib.dataset import phantom_files, phantom_words
from gmai_lib.dataset.phantom_files import write_sources
from gmai_lib.dataset.phantom_formats import LAYOUTS, SLICES
from gmai_lib.dataset.phantoms import (
    DEPARTMENT,
    FINDINGS,
    GREY,
    boxes_of,
    draw,
    draw_volume,
    severity_of,
)
from gmai_lib.schema import DEPARTMENTS, MODALITIES, NO_FINDING, PLACES

IMAGES = 9  # per modality in the files of `sources`
NAMES = {
    m: {n for kinds in organs.values() for n in kinds.values()} for m, organs in FINDINGS.items()
}


@pytest.fixture(scope="module")
def sample():
    """150 pictures of each modality."""
    pictures = {}
    for modality in FINDINGS:
        rng = np.random.default_rng(5)
        pictures[modality] = [draw(modality, rng) for _ in range(150)]
    return pictures


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Every phantom dataset on disk, small."""
    root = tmp_path_factory.mktemp("sources")
    write_sources(root, seed=3, images_per_modality=IMAGES, size=64)
    return root


# ---- drawing -------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", FINDINGS)
def test_ground_truth_is_exact(sample, modality):
    for picture in sample[modality]:
        assert modality in MODALITIES and picture.department in DEPARTMENTS
        names = FINDINGS[modality][picture.organ]
        assert picture.finding == names.get(picture.kind, NO_FINDING)
        ids = set(np.unique(picture.mask)) - {0}
        assert ids == set(range(1, len(picture.boxes) + 1)), "every instance has one box"
        assert bool(ids) == (picture.finding != NO_FINDING) == bool(picture.severity)
        for i, (x1, y1, x2, y2) in enumerate(picture.boxes, start=1):
            region = picture.mask == i
            assert region.sum() == region[y1:y2, x1:x2].sum()
            assert region[y1:y2, x1:x2].any(axis=0).all(), "the box is tight across"
            assert region[y1:y2, x1:x2].any(axis=1).all(), "the box is tight down"
            assert 0.09 <= max(x2 - x1, y2 - y1) / len(region) <= 0.25
            assert 0 <= x1 < x2 <= 112 and 0 <= y1 < y2 <= 112


@pytest.mark.parametrize("modality", FINDINGS)
def test_lesions_of_one_image_are_apart(sample, modality):
    for picture in sample[modality]:
        _, parts = ndimage.label(picture.mask > 0, structure=np.ones((3, 3)))
        assert parts == len(picture.boxes), "connected parts are the instances"
        for i, a in enumerate(picture.boxes):
            for b in picture.boxes[:i]:
                apart = max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])
                assert apart >= 2, f"boxes {a} and {b} touch"


@pytest.mark.parametrize("modality", FINDINGS)
def test_a_lesion_changes_the_pixels_at_64_pixels(modality):
    """The same body with and without its lesion differs, in brightness, where the mask says."""
    for organ, kinds in FINDINGS[modality].items():
        for finding in kinds.values():
            rngs = np.random.default_rng(11), np.random.default_rng(11)
            ill, well = (
                draw(modality, rng, organ=organ, finding=name)
                for rng, name in zip(rngs, (finding, NO_FINDING), strict=True)
            )
            grey = [_small_grey(picture.image) for picture in (ill, well)]
            inside = np.asarray(Image.fromarray(ill.mask > 0).resize((64, 64), Image.BOX))
            change = np.abs(grey[0] - grey[1])
            assert np.percentile(change[inside], 90) > 30, f"{modality} {organ} {finding}"


def _small_grey(image):
    return np.asarray(Image.fromarray(image).convert("L").resize((64, 64), Image.BICUBIC), float)


@pytest.mark.parametrize("modality", FINDINGS)
def test_grey_modalities_are_grey_and_the_others_are_not(sample, modality):
    shapes = {picture.image.shape for picture in sample[modality]}
    assert shapes == ({(112, 112)} if modality in GREY else {(112, 112, 3)})
    for picture in sample[modality]:
        assert picture.image.dtype == np.uint8 and picture.image.std() > 5


@pytest.mark.parametrize("modality", FINDINGS)
def test_sampling_keeps_blind_guessing_weak(sample, modality):
    pictures = sample[modality]
    n = len(pictures)
    findings = Counter(p.finding for p in pictures)
    assert set(findings) == NAMES[modality] | {NO_FINDING}
    assert 0.15 < findings.pop(NO_FINDING) / n < 0.37
    if len(FINDINGS[modality]) == 1:
        assert max(findings.values()) < 2 * min(findings.values())
    organs = Counter(p.organ for p in pictures)
    assert min(organs[o] for o in FINDINGS[modality]) > 0.35 * n or len(organs) == 1
    counts = Counter(len(p.boxes) for p in pictures if p.boxes)
    assert set(counts) == {1, 2, 3} and 0.45 < counts[1] / counts.total() < 0.75
    places = Counter(phantom_words.places(p)[0] for p in pictures if len(p.boxes) == 1)
    assert len(places) >= 7, f"{modality}: only {places}"
    assert max(places.values()) < 0.35 * places.total(), f"{modality}: {places}"
    assert set(Counter(p.severity for p in pictures)) == {"", "mild", "moderate", "severe"}


def test_same_seed_same_picture_and_another_seed_another():
    for modality in FINDINGS:
        a, b, c = (draw(modality, np.random.default_rng(s)) for s in (1, 1, 2))
        assert (a.image == b.image).all() and (a.mask == b.mask).all() and a.boxes == b.boxes
        assert (a.image != c.image).any()


@pytest.mark.parametrize("modality", FINDINGS)
def test_organ_and_finding_can_be_asked_for(modality):
    for organ, kinds in FINDINGS[modality].items():
        assert (modality, organ) in DEPARTMENT
        for name in (*kinds.values(), NO_FINDING):
            picture = draw(modality, np.random.default_rng(0), size=64, organ=organ, finding=name)
            assert (picture.organ, picture.finding) == (organ, name)
            assert picture.image.shape[:2] == (64, 64)


def test_unknown_requests_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="'Xray' has no phantom; known: CT"):
        draw("Xray", rng)
    with pytest.raises(ValueError, match="'spleen' unknown; known: lung, liver"):
        draw("CT", rng, organ="spleen")
    with pytest.raises(ValueError, match="CT liver phantom has no 'nodule'"):
        draw("CT", rng, organ="liver", finding="nodule")
    with pytest.raises(ValueError, match="'fundus' has no volumes"):
        draw_volume("fundus", rng)


@pytest.mark.parametrize("modality", ["CT", "MR", "PET"])
def test_volumes_are_coherent(modality):
    rng = np.random.default_rng(7)
    shown = []
    for _ in range(12):
        volume = draw_volume(modality, rng, slices=5)
        assert volume.voxels.shape == volume.masks.shape == (5, 112, 112)
        assert volume.voxels.dtype == np.int16
        healthy = ~ndimage.binary_dilation(volume.masks.any(axis=0), iterations=6)
        smooth = ndimage.gaussian_filter(volume.voxels.astype(float), (0, 2, 2))
        flat = smooth[:, healthy]
        near = [np.corrcoef(flat[k], flat[k + 1])[0, 1] for k in range(4)]
        assert min(near) > 0.9, "neighbours show the same body"
        assert np.corrcoef(flat[0], flat[2])[0, 1] < near[0], "farther slices differ more"
        for i in set(np.unique(volume.masks)) - {0}:
            there = (volume.masks == i).any(axis=(1, 2)).nonzero()[0]
            assert (np.diff(there) == 1).all(), "a lesion is not interrupted"
            centres = [ndimage.center_of_mass(volume.masks[k] == i) for k in there]
            assert np.ptp(centres, axis=0).max() < 2, "and stays in its place"
        assert volume.labels == [volume.finding if m.any() else NO_FINDING for m in volume.masks]
        assert bool(volume.masks.any()) == (volume.finding != NO_FINDING)
        shown += [m.any() for m in volume.masks]
    assert 0.3 < np.mean(shown) < 0.9, "some slices of a sick body show nothing"


def test_ct_is_in_hounsfield_units():
    volume = draw_volume("CT", np.random.default_rng(0), organ="lung", finding="nodule")
    assert volume.voxels.min() < -900 and 300 < volume.voxels.max() < 3072
    assert -950 < np.median(volume.voxels[:, 30:80, 20:45]) < 200
    assert 20 < np.median(volume.voxels[volume.masks > 0]) < 120, "a nodule is soft tissue"


def test_boxes_and_severity_of_a_hand_made_mask():
    mask = np.zeros((100, 100), np.uint8)
    mask[10:20, 30:45] = 1
    mask[60:80, 50:60] = 2
    assert boxes_of(mask) == [(30, 10, 45, 20), (50, 60, 60, 80)]
    assert severity_of(mask) == "severe"
    assert severity_of(mask * (mask == 1)) == "moderate"
    assert severity_of(mask * 0) == ""


# ---- words ---------------------------------------------------------------------------------


def test_reports_and_questions_state_the_truth():
    rng = np.random.default_rng(2)
    for _ in range(60):
        for modality in ("X-ray", "CT", "MR"):
            picture = draw(modality, rng, size=64)
            text = phantom_words.report(picture, rng)
            assert 2 <= text.count(".") <= 4
            where = phantom_words.places(picture)
            for place in where:
                assert place in PLACES and place in text
            if picture.finding != NO_FINDING:
                said = picture.finding if len(where) == 1 else phantom_words.plural(picture.finding)
                assert said in text.lower()
            for name in NAMES[modality] - {picture.finding}:
                if name in text:
                    assert name in text[text.index("No ") :], f"only denied: {text}"
            answers = {q["question"]: q for q in phantom_words.questions(picture, rng)}
            present = [q for q in answers.values() if q["question_type"] == "PRES"]
            assert (present[0]["answer"] == "Yes") == (
                picture.finding in present[0]["question"] and picture.finding != NO_FINDING
            )
            for q in answers.values():
                if q["question_type"] == "COUNT":
                    assert q["answer"] == len(picture.boxes)
                if q["question_type"] == "POS":
                    assert [q["answer"]] == where


def test_lessons_answer_each_question_once():
    pairs = [pair for _, pairs in phantom_words.lessons() for pair in pairs]
    questions = [question for _, question, _ in pairs]
    assert len(pairs) >= 150 and len(set(questions)) == len(questions)
    assert 3 <= sum(not answer for *_, answer in pairs) <= 10
    assert all(name in " ".join(questions) for names in NAMES.values() for name in names)


# ---- files ---------------------------------------------------------------------------------


def _digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_files_depend_on_the_seed_only(sources, tmp_path):
    write_sources(tmp_path / "two", seed=3, images_per_modality=IMAGES, size=64, processes=2)
    assert _digests(tmp_path / "two") == _digests(sources)
    write_sources(tmp_path / "other", seed=4, images_per_modality=2, size=64)
    first = "phantom_ct/series_0001/CT.1"
    assert (tmp_path / "other" / first).read_bytes() != (sources / first).read_bytes()


def test_every_folder_explains_itself(sources):
    assert sorted(p.name for p in sources.iterdir()) == sorted(LAYOUTS)
    for name in LAYOUTS:
        text = (sources / name / "SOURCE.md").read_text("utf-8")
        assert "CC0-1.0" in text and "no person" in text and "procedural" in text


def test_ct_series_open_and_their_masks_lie_on_them(sources):
    root = sources / "phantom_ct"
    for row in _rows(root / "labels.csv"):
        files = sorted((root / row["series"]).glob("CT.*"))
        slices = [pydicom.dcmread(file) for file in files]
        assert len(slices) == SLICES and {len(s.SeriesInstanceUID) <= 64 for s in slices} == {True}
        assert len({s.SOPInstanceUID for s in slices}) == SLICES
        assert len({s.SeriesInstanceUID for s in slices}) == 1
        mask = nibabel.load(root / row["series"] / "seg.nii.gz")
        values = np.asarray(mask.dataobj)
        assert values.any() == (row["finding"] != NO_FINDING)
        for k, s in enumerate(slices):
            assert (s.RescaleSlope, s.RescaleIntercept) == (1, -1024) and s.WindowWidth > 0
            assert s.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
            assert s.PatientID == row["patient"] and not s.PatientBirthDate and not s.StudyDate
            hu = s.pixel_array + s.RescaleIntercept
            assert -1024 <= hu.min() < -500 and s.pixel_array.dtype == np.int16
            # Pixel (column 5, row 9) in patient space: DICOM is LPS, NIfTI RAS.
            x, y, z = s.ImagePositionPatient
            at = np.array([-(x + 5 * s.PixelSpacing[1]), -(y + 9 * s.PixelSpacing[0]), z])
            assert np.allclose(mask.affine @ [5, 9, k, 1], [*at, 1], atol=1e-3)
    finding = {row["finding"] for row in _rows(root / "labels.csv")}
    assert finding <= NAMES["CT"] | {NO_FINDING}


@pytest.mark.parametrize("modality", ["MR", "PET"])
def test_nifti_cases_open_and_label_values_are_findings(sources, modality):
    root = sources / f"phantom_{modality.lower()}"
    about = json.loads((root / "dataset.json").read_text("utf-8"))
    rows = _rows(root / "cases.csv")
    assert about["numTraining"] == len(rows) and about["file_ending"] == ".nii.gz"
    assert set(about["labels"]) == NAMES[modality] | {"background"}
    for row in rows:
        image = nibabel.load(root / "imagesTr" / f"{row['case']}_0000.nii.gz")
        label = nibabel.load(root / "labelsTr" / f"{row['case']}.nii.gz")
        assert image.shape == label.shape == (64, 64, SLICES)
        assert np.allclose(image.affine, label.affine)
        wanted = {about["labels"][row["finding"]]} if row["finding"] != NO_FINDING else set()
        assert set(np.unique(np.asarray(label.dataobj))) - {0} == wanted
        plane = {"brain": "LPS", "knee": "PIR", "torso": "LIA"}[row["organ"]]
        assert "".join(nibabel.aff2axcodes(image.affine)) == plane
        assert image.header.get_zooms()[2] > 3 * image.header.get_zooms()[0], "thick slices"


def test_xray_is_coco(sources):
    root = sources / "phantom_xray"
    coco = json.loads((root / "annotations.json").read_text("utf-8"))
    names = {c["id"]: c["name"] for c in coco["categories"]}
    images = {i["id"]: i for i in coco["images"]}
    assert len(images) == IMAGES and set(names.values()) == NAMES["X-ray"]
    for image in images.values():
        with Image.open(root / "images" / image["file_name"]) as picture:
            assert picture.mode == "L" and picture.size == (image["width"], image["height"])
        assert image["patient"] and image["organ"] in FINDINGS["X-ray"]
    assert coco["annotations"]
    for box in coco["annotations"]:
        x, y, width, height = box["bbox"]
        image = images[box["image_id"]]
        assert names[box["category_id"]] in FINDINGS["X-ray"][image["organ"]].values()
        assert 0 < box["area"] <= width * height and x + width <= 64 and y + height <= 64


def test_ultrasound_masks_are_named_after_image_and_finding(sources):
    root = sources / "phantom_ultrasound"
    index = json.loads((root / "image2label.json").read_text("utf-8"))
    organs = {row["image"]: row["organ"] for row in _rows(root / "patients.csv")}
    assert len(index) == IMAGES and set(organs) == set(index)
    listed = {mask for masks in index.values() for mask in masks}
    assert {p.as_posix() for p in _relative(root, "masks/*.png")} == listed
    for image, masks in index.items():
        for k, mask in enumerate(masks):
            stem, finding, number = Path(mask).stem.split("_", 1)[0], *_middle(mask)
            assert stem == Path(image).stem and number == k
            assert finding in FINDINGS["ultrasound"][organs[image]].values()
            with Image.open(root / mask) as picture:
                assert set(np.unique(picture)) == {0, 255}


def _middle(mask: str) -> tuple[str, int]:
    parts = Path(mask).stem.split("_")
    return " ".join(parts[1:-1]), int(parts[-1])


def _relative(root: Path, pattern: str) -> list[Path]:
    return [p.relative_to(root) for p in root.glob(pattern)]


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [("phantom_oct", "*/*.jpeg"), ("phantom_histopathology", "*/*/*.png")],
)
def test_class_folders_agree_with_their_boxes(sources, folder, pattern):
    root = sources / folder
    images = {p.name: p for p in _relative(root, pattern)}
    boxes = _rows(root / "boxes.csv")
    assert len(images) == IMAGES and boxes
    boxed = {row["filename"]: row["label"] for row in boxes}
    for name, path in images.items():
        assert boxed.get(name, "NORMAL") == path.parent.name
        with Image.open(root / path) as picture:
            assert picture.mode == ("L" if folder == "phantom_oct" else "RGB")
    for row in boxes:
        assert 0 <= int(row["xmin"]) < int(row["xmax"]) <= 64


def test_fundus_table_agrees_with_its_boxes(sources):
    root = sources / "phantom_fundus"
    rows = {row["file"]: row for row in _rows(root / "labels.csv")}
    boxed = {row["filename"] for row in _rows(root / "boxes.csv")}
    assert set(rows) == {p.name for p in root.glob("images/*.jpg")} and len(rows) == IMAGES
    for name, row in rows.items():
        assert (row["finding"] != NO_FINDING) == (name in boxed) == bool(row["severity"])


def test_dermoscopy_masks_have_the_lesions(sources):
    root = sources / "phantom_dermoscopy"
    for row in _rows(root / "metadata.csv"):
        assert Image.open(root / "images" / f"{row['image_id']}.jpg").size == (64, 64)
        mask = root / "masks" / f"{row['image_id']}_segmentation.png"
        assert mask.is_file() == (row["finding"] != NO_FINDING)
        if mask.is_file():
            _, parts = ndimage.label(np.asarray(Image.open(mask)) > 0, np.ones((3, 3)))
            assert 1 <= parts <= 3


def test_endoscopy_is_pascal_voc(sources):
    root = sources / "phantom_endoscopy"
    rows = {row["file"]: row for row in _rows(root / "patients.csv")}
    trees = [ElementTree.parse(p).getroot() for p in sorted(root.glob("Annotations/*.xml"))]
    assert len(trees) == len(rows) == IMAGES and not (root / "ImageSets").exists()
    for tree in trees:
        name = tree.findtext("filename")
        assert Image.open(root / "JPEGImages" / name).size == (64, 64)
        assert tree.findtext("size/width") == "64"
        for thing in tree.findall("object"):
            assert thing.findtext("name") in FINDINGS["endoscopy"][rows[name]["organ"]].values()
            corners = [int(thing.findtext(f"bndbox/{c}")) for c in ("xmin", "ymin", "xmax", "ymax")]
            assert corners[0] < corners[2] <= 64 and corners[1] < corners[3] <= 64


def test_microscopy_is_dsb2018(sources):
    root = sources / "phantom_microscopy"
    rows = _rows(root / "classes.csv")
    assert len(rows) == IMAGES
    for row in rows:
        folder = root / row["id"]
        image = Image.open(folder / "images" / f"{row['id']}.png")
        assert image.mode == "RGBA" and np.asarray(image)[..., 3].min() == 255
        masks = [np.asarray(Image.open(p)) > 0 for p in (folder / "masks").glob("*.png")]
        assert bool(masks) == (row["finding"] != NO_FINDING) and len(masks) <= 3
        assert not masks or np.sum(masks, axis=0).max() == 1, "instances do not overlap"


def test_vqa_keeps_the_quirks_and_splits_by_image(tmp_path):
    write_sources(
        tmp_path, seed=0, images_per_modality=120, size=32, processes=1, only=["phantom_vqa"]
    )
    root = tmp_path / "phantom_vqa"
    lists = [json.loads((root / f"{s}set.json").read_text("utf-8")) for s in ("train", "test")]
    images = [{row["image_name"] for row in rows} for rows in lists]
    assert images[0] and images[1] and not images[0] & images[1]
    rows = lists[0] + lists[1]
    assert {type(row["answer"]) for row in rows} == {str, int}
    assert {row["answer_type"] for row in rows} == {"OPEN", "CLOSED", "CLOSED "}
    assert len({row["qid"] for row in rows}) == len(rows)
    assert all((root / "images" / row["image_name"]).is_file() for row in rows)


def test_reports_table_has_the_odd_columns(sources):
    root = sources / "phantom_reports"
    header = (root / "metadata.csv").read_text("utf-8").splitlines()[0]
    assert ", url," in header and header.endswith(",clinical notes,")
    for row in _rows(root / "metadata.csv"):
        found = list(root.glob(f"images/*/*/{row['filename']}"))
        assert len(found) == 1 and row["clinical notes"].count(".") >= 2


def test_text_is_medquad_xml(sources):
    pairs = [
        pair
        for path in sorted((sources / "phantom_text").glob("1_Phantom_QA/*.xml"))
        for pair in ElementTree.parse(path).getroot().findall("QAPairs/QAPair")
    ]
    assert len(pairs) >= 150 and any(not pair.findtext("Answer") for pair in pairs)
    assert all(pair.find("Question").get("qtype") for pair in pairs)


# ---- interrupted, reused, refused ----------------------------------------------------------


def test_interrupted_write_leaves_no_half_folder(tmp_path, monkeypatch):
    real = phantom_files._write_chunk

    def stop(root, job):
        done = real(root, job)
        if job[0] == "phantom_pet":
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(phantom_files, "_write_chunk", stop)
    with pytest.raises(KeyboardInterrupt):
        write_sources(tmp_path, seed=0, images_per_modality=4, size=32)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["phantom_ct", "phantom_mr"]
    monkeypatch.undo()
    before = (tmp_path / "phantom_ct" / ".complete").stat().st_mtime_ns
    (tmp_path / ".phantom_pet.partial").mkdir()  # what a killed process leaves behind
    folders = write_sources(tmp_path, seed=0, images_per_modality=4, size=32)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in folders)
    assert (tmp_path / "phantom_ct" / ".complete").stat().st_mtime_ns == before, "reused"


def test_other_parameters_replace_a_folder_and_foreign_ones_are_refused(tmp_path):
    only = ["phantom_oct"]
    write_sources(tmp_path, seed=0, images_per_modality=2, size=32, only=only)
    write_sources(tmp_path, seed=0, images_per_modality=5, size=32, only=only)
    assert len(list((tmp_path / "phantom_oct").glob("*/*.jpeg"))) == 5
    (tmp_path / "phantom_oct" / ".complete").unlink()
    with pytest.raises(ValueError, match=r"phantom_oct exists but has no \.complete"):
        write_sources(tmp_path, seed=0, images_per_modality=5, size=32, only=only)
    with pytest.raises(ValueError, match="size=8"):
        write_sources(tmp_path, seed=0, images_per_modality=5, size=8)
