"""Recipes and readers: real folders, phantoms, and tiny trees with every known trap."""

import dataclasses
import gzip
import json
import re
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import tiny_datasets as tiny
from PIL import Image
from pydicom.pixels import apply_modality_lut

from gmai_lib.dataset import (
    images,
    phantom_files,
    planes,
    readers,
    recipes,
    records,
    stacks,
    volumes,
)
from gmai_lib.dataset.phantoms import DEPARTMENT, FINDINGS
from gmai_lib.schema import NO_FINDING, Ledger

REAL = ("bccd", "brain_tumor_mri_folders", "covid_kjr_notes", "dsb2018_nuclei")
REAL += ("medquad_text_qa", "sam_med2d_demo", "totalsegmentator_ct_mr", "vqa_rad")


def _read(name: str, root: Path, ledger: Ledger | None = None, **options):
    recipe = recipes.get(name)
    recipe = dataclasses.replace(recipe, options=recipe.options | options)
    return list(readers.read(recipe, root, ledger if ledger is not None else Ledger()))


# ---- finding -------------------------------------------------------------------------------


def test_find_names_what_is_wrong_with_the_folder(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder; pass the folder"):
        recipes.find(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is empty; put datasets into it"):
        recipes.find(tmp_path)
    (tmp_path / "holiday").mkdir()
    tiny.picture(tmp_path / "holiday/beach.jpg")
    with pytest.raises(ValueError, match=r"holiday.*gmai_lib.dataset.new.*know .*bccd"):
        recipes.find(tmp_path)


def test_find_sees_a_dataset_itself_and_datasets_inside(tmp_path):
    tiny.bccd(tmp_path / "my blood")
    tiny.covid(tmp_path / "covid")
    (tmp_path / "holiday").mkdir()
    (tmp_path / ".bccd.partial").mkdir()
    found = [(recipe.name, root.name) for recipe, root in recipes.find(tmp_path)]
    assert found == [("covid_kjr_notes", "covid"), ("bccd", "my blood")]
    assert [p.name for p in recipes.unrecognised(tmp_path)] == ["holiday"]
    itself = recipes.find(tmp_path / "my blood")
    assert [(r.name, p) for r, p in itself] == [("bccd", tmp_path / "my blood")]
    assert recipes.unrecognised(tmp_path / "my blood") == []


def test_recipes_are_complete_and_unambiguous():
    names = [recipe.name for recipe in recipes.RECIPES]
    assert (
        len(set(names))
        == len(names)
        == 14 + 8 + 1 + 16 + len(recipes.LAYOUTS + recipes.VOLUMES + recipes.QUESTIONS)
    )
    assert set(REAL) <= set(names)
    for recipe in recipes.RECIPES:
        assert recipe.reader in readers.READERS and recipe.license and recipe.citation
    with pytest.raises(ValueError, match=r"no recipe 'bcdc'; known: .*bccd"):
        recipes.get("bcdc")


def test_read_refuses_unknown_formats_and_datasets_without_items(tmp_path):
    recipe = dataclasses.replace(recipes.get("bccd"), reader="parquet")
    with pytest.raises(ValueError, match=r"no reader 'parquet'; have .*voc"):
        list(readers.read(recipe, tmp_path, Ledger()))
    with pytest.raises(ValueError, match="looks like bccd but holds no item"):
        _read("bccd", tmp_path)


# ---- the real folders ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """Records and ledger of every real folder, read once."""
    ledger = Ledger()
    found = recipes.find(tiny.real_data())
    return {r.name: list(readers.read(r, p, ledger)) for r, p in found}, ledger


@pytest.mark.parametrize(
    "name, item, annotation",
    [  # (kept, dropped): their sums are what the SOURCE.md files say is there
        ("bccd", (364, 0), (4886, 2)),
        ("brain_tumor_mri_folders", (1080, 0), (1080, 0)),
        ("covid_kjr_notes", (11, 0), (11, 0)),
        ("dsb2018_nuclei", (44, 0), (1297, 0)),
        ("medquad_text_qa", (265, 43), (1292 - 251, 251)),
        ("sam_med2d_demo", (4, 1), (30, 0)),
        ("totalsegmentator_ct_mr", (16, 30 + 20 + 20 + 112 - 16), (105, 6)),
        ("vqa_rad", (94, 0), (1056, 0)),
    ],
)
def test_real_folders_are_counted_completely(real, name, item, annotation):
    read, ledger = real
    assert tiny.totals(ledger, name) == {"item": item, "annotation": annotation}
    assert len(read[name]) == item[0]
    for record in read[name]:
        assert record.source == name and record.license != "unstated"
        if record.image:
            pixels = images.decode(record.image)
            assert pixels.shape[:2] == (record.height, record.width)


def test_real_folder_needs_nothing_but_itself():
    data = tiny.real_data()
    assert [recipe.name for recipe, _ in recipes.find(data)] == list(REAL)
    assert recipes.unrecognised(data) == []


def test_real_bccd_drops_exactly_the_two_boxes_without_area(real):
    read, ledger = real
    assert tiny.reasons(ledger, "bccd", "annotation") == {"box without area": 2}
    partial = [r.path for r in read["bccd"] if not r.boxes_are_complete]
    assert [Path(p).stem for p in partial] == ["BloodImage_00338", "BloodImage_00343"]
    assert Counter(r.split for r in read["bccd"]) == {"train": 205, "validation": 87, "test": 72}
    cells = Counter(box.label for r in read["bccd"] for box in r.boxes)
    assert cells == {"red blood cell": 4153, "white blood cell": 372, "platelet": 361}


def test_real_totalsegmentator_keeps_sides_and_shows_right_at_the_left(real):
    read, ledger = real
    slices = read["totalsegmentator_ct_mr"]
    assert len({r.volume for r in slices}) == 4
    assert Counter(r.modality for r in slices) == {"CT": 12, "MR": 4}
    centers = {"liver": [], "kidney_left": [], "kidney_right": [], "spleen": []}
    for record in slices:
        for box in record.boxes:
            centers.get(box.label, []).append((box.x1 + box.x2) / 2)
    assert max(centers["liver"] + centers["kidney_right"]) < 0.5
    assert min(centers["spleen"] + centers["kidney_left"]) > 0.5
    reported = [r for r in slices if r.report]
    assert reported and all("pulmonary_artery" in r.labels for r in reported)
    assert "proximal MPA: area 5.0 cm2, diameter 3.0 cm" in reported[0].report
    # Every structure of every mask file is accounted for, plus the five measurements.
    base = tiny.real_data() / "totalsegmentator_ct_mr/tests/reference_files"
    masks = [*base.glob("example_seg*.nii.gz"), *base.glob("example_seg*/*.nii.gz")]
    masks += base.glob("pulmonary_report/models/[hp]*.nii.gz")
    structures = sum(
        len(np.unique(np.asanyarray(nibabel.load(path).dataobj))) - 1 for path in masks
    )
    assert ledger.seen["totalsegmentator_ct_mr", "read", "annotation"] == structures + 5


def test_real_measurements_are_in_centimetres():
    base = tiny.real_data() / "totalsegmentator_ct_mr/tests/reference_files/pulmonary_report"
    for mark in json.loads((base / "pulmonary_report.json").read_text())["landmarks"].values():
        distance_mm = np.linalg.norm(np.subtract(mark["start"], mark["end"]))
        assert distance_mm / 10 == pytest.approx(mark["diameter"], abs=0.06)


def test_real_dicom_slice_equals_its_file_under_its_own_window(real):
    read, _ = real
    record = next(r for r in read["totalsegmentator_ct_mr"] if "example_ct_dicom" in r.path)
    dataset = pydicom.dcmread(tiny.real_data() / "totalsegmentator_ct_mr" / record.path)
    hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    expected = images.window(hu, dataset.WindowCenter[0], dataset.WindowWidth[0])
    assert np.array_equal(images.decode(record.image), expected)


def test_real_vqa_rad_answers_are_text_and_conflicts_stay_visible(real):
    read, _ = real
    pairs = [pair for r in read["vqa_rad"] for pair in r.qa]
    assert {pair.answer_type for pair in pairs} == {"open", "closed"}
    assert all(isinstance(pair.answer, str) and pair.answer for pair in pairs)
    both = [r for r in read["vqa_rad"] if r.split == ""]
    assert len(both) == 64  # every test image is also a train image
    assert {r.split for r in read["vqa_rad"]} == {"", "train"}
    assert Counter(r.modality for r in read["vqa_rad"]) == {"X-ray": 48, "CT": 46}


def test_real_covid_rows_carry_their_own_license_and_report(real):
    read, _ = real
    assert {r.license for r in read["covid_kjr_notes"]} == {"CC-BY-NC-SA"}
    assert Counter(r.modality for r in read["covid_kjr_notes"]) == {"CT": 7, "X-ray": 4}
    assert all(r.report and r.labels == ("COVID-19",) for r in read["covid_kjr_notes"])
    assert len({r.patient for r in read["covid_kjr_notes"]}) == 5


# ---- the tiny twins of the real folders ----------------------------------------------------


def test_bccd_twin(tmp_path):
    ledger = Ledger()
    first, second, third = _read("bccd", tiny.bccd(tmp_path), ledger)
    assert tiny.totals(ledger, "bccd") == {"item": (3, 0), "annotation": (3, 1)}
    assert [r.split for r in (first, second, third)] == ["train", "validation", "test"]
    assert first.labels == ("white blood cell", "red blood cell")
    box = first.boxes[0]
    assert (box.x1, box.y1, box.x2, box.y2) == (8 / 64, 6 / 48, 40 / 64, 30 / 48)
    assert first.boxes_are_complete and not second.boxes_are_complete
    assert second.absent == ("white blood cell",)
    assert third.labels == () and third.absent == ("red blood cell", "white blood cell")
    assert first.id == "2d#det#microscopy#bccd#BCCD#JPEGImages#BloodImage_00000.jpg"
    assert first.image == (tmp_path / first.path).read_bytes()


def test_brain_tumor_twin(tmp_path):
    ledger = Ledger()
    read = _read("brain_tumor_mri_folders", tiny.brain_tumor(tmp_path), ledger)
    assert tiny.totals(ledger, "brain_tumor_mri_folders")["item"] == (9, 0)
    normal = [r for r in read if r.labels == (NO_FINDING,)]
    assert len(normal) == 3
    assert normal[0].absent == ("glioma", "meningioma", "pituitary tumor")
    glioma = next(r for r in read if r.labels == ("glioma",))
    assert glioma.absent == ("meningioma", "pituitary tumor")  # "no finding" is no finding
    assert Counter(r.split for r in read) == {"train": 4, "test": 5}


def test_covid_twin(tmp_path):
    ledger = Ledger()
    read = _read("covid_kjr_notes", tiny.covid(tmp_path), ledger)
    assert [r.path for r in read] == ["images/COVID-19/XRAY/PA/a.jpg", "images/COVID-19/CT/b.jpg"]
    assert [r.modality for r in read] == ["X-ray", "CT"]
    assert read[1].report == "Opacities, both lungs." and read[1].license == "CC-BY-NC-SA"
    assert read[0].patient == read[1].patient and "63" not in read[0].patient
    assert tiny.reasons(ledger, "covid_kjr_notes", "item") == {
        "image missing": 1,
        "modality is not stated or unknown": 1,
        "no annotation names this image": 2,  # the two of the same base name
    }
    notes = tiny.reasons(ledger, "covid_kjr_notes", "annotation")
    assert notes["malformed table row"] == notes["several files have this base name"] == 1


def test_table_headers_may_carry_blanks_and_a_row_may_list_findings(tmp_path):
    tiny.picture(tmp_path / "images/a.jpg")
    header = " filename , finding,modality,License ,Clinical Notes,\n"
    tiny.text(tmp_path / "metadata.csv", header + 'a.jpg,"COVID-19, ARDS",CT,CC BY 4.0,Note.,\n')
    (record,) = _read("covid_kjr_notes", tmp_path)
    assert record.labels == ("COVID-19", "ARDS") and record.report == "Note."
    assert record.license == "CC-BY-4.0" and record.modality == "CT"


def test_dsb2018_twin(tmp_path):
    ledger = Ledger()
    one, two = _read("dsb2018_nuclei", tiny.dsb2018(tmp_path), ledger)
    assert tiny.totals(ledger, "dsb2018_nuclei") == {"item": (2, 1), "annotation": (3, 3)}
    assert images.decode(one.image).shape == (48, 64, 3)
    original = np.array(Image.open(tmp_path / one.path))
    assert np.array_equal(images.decode(one.image), original[..., :3])
    assert [(b.x1, b.y1, b.x2, b.y2) for b in one.boxes] == [(0, 0, 0.25, 0.25), (0.5, 0.5, 1, 1)]
    assert one.boxes[1].area == 0.25 and one.boxes_are_complete
    assert len(two.boxes) == 1 and not two.boxes_are_complete
    lost = tiny.reasons(ledger, "dsb2018_nuclei", "annotation")
    assert lost == {
        "mask is empty": 1,
        "mask of another size than its image": 1,
        "item dropped: image missing": 1,
    }


def test_medquad_twin(tmp_path):
    ledger = Ledger()
    (record,) = _read("medquad_text_qa", tiny.medquad(tmp_path), ledger)
    assert tiny.totals(ledger, "medquad_text_qa") == {"item": (1, 3), "annotation": (1, 3)}
    assert record.image is None and record.modality == "text"
    assert record.qa[0].answer == "A viral infection."
    assert tiny.reasons(ledger, "medquad_text_qa", "item") == {
        "malformed XML": 2,  # cut off, and entities that defusedxml refuses
        "no usable question": 1,
    }


def test_sam_med2d_twin(tmp_path):
    ledger = Ledger()
    one, two = _read("sam_med2d_demo", tiny.sam_med2d(tmp_path), ledger)
    assert tiny.totals(ledger, "sam_med2d_demo") == {"item": (2, 1), "annotation": (3, 2)}
    assert one.labels == ("inferior_vena_cava",) and one.volume == "amos_0006"
    assert two.labels == ("hip_left",) and len(two.boxes) == 2
    assert (one.split, two.split) == ("train", "test")
    assert not two.boxes_are_complete
    assert set(tiny.reasons(ledger, "sam_med2d_demo", "annotation")) == {
        "mask name does not fit its image",
        "no annotation names this mask",
    }


def test_vqa_rad_twin(tmp_path):
    ledger = Ledger()
    read = {Path(r.path).stem: r for r in _read("vqa_rad", tiny.vqa_rad(tmp_path), ledger)}
    assert list(read) == ["synpic0", "synpic1", "synpic2", "synpic3", "synpic4"]
    assert [r.split for r in read.values()] == ["", "", "", "train", "train"]
    assert [p.item for p in read["synpic0"].qa] == ["train/0", "train/10", "train/16", "test/20"]
    assert read["synpic0"].qa[0].answer_type == "closed"
    assert read["synpic0"].qa[1].answer == "2"
    assert read["synpic0"].modality == "X-ray" and read["synpic4"].modality == "MR"
    assert tiny.reasons(ledger, "vqa_rad", "item") == {
        "image missing": 1,
        "modality is not stated or unknown": 1,  # a head that is no CT may be anything
        "no annotation names this image": 1,
    }
    lost = tiny.reasons(ledger, "vqa_rad", "annotation")
    assert lost["empty question or answer"] == 2 and lost["malformed question"] == 1


def test_totalsegmentator_twin(tmp_path):
    ledger = Ledger()
    read = _read("totalsegmentator_ct_mr", tiny.totalsegmentator(tmp_path), ledger)
    assert len(read) == 4 and {r.volume for r in read} == {
        "tests/reference_files/example_ct_sm.nii.gz"
    }
    assert tiny.reasons(ledger, "totalsegmentator_ct_mr", "item") == {
        "slice not selected": 6,
        "image missing": 3,  # the other three volumes of the recipe
    }
    kept, dropped = tiny.totals(ledger, "totalsegmentator_ct_mr")["annotation"]
    assert kept + dropped == 3 + 1 + 1  # structures of the three masks
    lost = tiny.reasons(ledger, "totalsegmentator_ct_mr", "annotation")
    assert lost["structure already given by another mask"] == 1
    assert lost["mask value without a name"] == 1
    by_slice = {int(r.path.split("#")[1]): r for r in read}
    liver = next(b for r in read for b in r.boxes if b.label == "liver")
    assert (liver.x1, liver.y1, liver.x2, liver.y2) == (2 / 20, 4 / 16, 6 / 20, 8 / 16)
    kidney = [b for r in read for b in r.boxes if b.label == "kidney_left"]
    assert all(b.x1 == 14 / 20 for b in kidney) and kidney
    # The mask on the finer, turned grid lands on voxel (10, 8, 3).
    for number, record in by_slice.items():
        fat = [b for b in record.boxes if b.label == "torso_fat"]
        assert bool(fat) == (number == 3)
        for box in fat:
            assert box.x1 <= 10 / 20 < box.x2 <= 13 / 20 and box.y1 <= 8 / 16 < box.y2 <= 11 / 16


def test_totalsegmentator_names_what_a_complete_mask_does_not_show(tmp_path):
    tiny.totalsegmentator(tmp_path)
    path = tmp_path / "tests/reference_files/example_seg.nii.gz"
    organs = np.asanyarray(nibabel.load(path).dataobj).copy()
    organs[organs == 77] = 0
    labels = {3: "kidney_left", 5: "liver", 9: "spleen"}
    tiny.nifti(path, organs, nibabel.load(path).affine, labels)
    read = _read("totalsegmentator_ct_mr", tmp_path)
    for record in read:
        assert set(record.labels) | set(record.absent) == {*labels.values(), "torso_fat"}


def test_measurements_go_only_to_slices_that_show_the_measured_structure(tmp_path):
    base = tiny.totalsegmentator(tmp_path) / "tests/reference_files"
    mark = {"name": "left PA", "area": 2.5, "diameter": 2.0, "diameter_pd": 1.8}
    tiny.text(base / "report.json", {"landmarks": {"4": mark}})
    case = {"image": "example_ct_sm.nii.gz", "masks": ("example_seg.nii.gz",)}
    case |= {"window": "lung", "measurements": "report.json", "measured": "kidney_left"}
    ledger = Ledger()
    read = _read("totalsegmentator_ct_mr", tmp_path, ledger, cases=(case,))
    assert {bool(r.report) for r in read} == {True, False}
    for record in read:
        assert bool(record.report) == ("kidney_left" in record.labels)
    said = next(r.report for r in read if r.report)
    assert "left PA: area 2.5 cm2, diameter 2.0 cm, perpendicular 1.8 cm." in said
    (base / "report.json").write_text('{"landmarks": [')
    ledger = Ledger()
    read = _read("totalsegmentator_ct_mr", tmp_path, ledger, cases=(case,))
    assert not any(r.report for r in read)
    lost = tiny.reasons(ledger, "totalsegmentator_ct_mr", "annotation")
    assert lost["measurements cannot be read"] == 1


# ---- phantoms: every format with known truth -----------------------------------------------


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    phantom_files.write_sources(root, seed=3, images_per_modality=12, size=64)
    return root


def test_every_phantom_folder_is_recognised_and_read_without_a_loss(phantoms):
    found = recipes.find(phantoms)
    assert {r.name for r, _ in found} == {r.name for r in recipes.PHANTOMS}
    names = {n for organs in FINDINGS.values() for kinds in organs.values() for n in kinds.values()}
    for recipe, root in found:
        ledger = Ledger()
        read = list(readers.read(recipe, root, ledger))
        counts = tiny.totals(ledger, recipe.name)
        assert counts["item"] == (len(read), 0) and read, recipe.name
        lost = tiny.reasons(ledger, recipe.name, "annotation")
        assert set(lost) <= {"empty answer"}, recipe.name
        assert len({r.id for r in read}) == len(read)
        for record in read:
            assert set(record.labels) <= names | {NO_FINDING}
            assert not set(record.labels) & set(record.absent)
            assert record.department != "unstated" or record.modality == "text"
            if recipe.name in ("phantom_vqa", "phantom_reports"):
                assert not record.boxes_are_complete  # they speak of it in words only
            else:
                assert record.department == DEPARTMENT.get(
                    (record.modality, record.organ),
                    DEPARTMENT.get((record.modality, ""), "unstated"),
                )
            assert all(box.label in record.labels for box in record.boxes)


@pytest.mark.parametrize("name", ["ct", "mr", "pet"])
def test_phantom_volumes_have_instances_of_their_finding_per_slice(phantoms, name):
    read = _read(f"phantom_{name}", phantoms / f"phantom_{name}")
    assert len(read) == 12 and len({r.volume for r in read}) == 3
    for record in read:
        assert record.boxes_are_complete and len(record.boxes) <= 3
        assert record.dimension == "3d" and record.patient and record.organ
        assert bool(record.boxes) == (record.labels != (NO_FINDING,))
        assert all(0.05 < box.x2 - box.x1 < 0.5 for box in record.boxes)


@pytest.mark.parametrize("name", ["oct", "fundus", "histopathology"])
def test_phantom_boxes_are_those_of_the_table(phantoms, name):
    root = phantoms / f"phantom_{name}"
    rows = (root / "boxes.csv").read_text().split()[1:]
    expected = Counter(row.split(",")[0] for row in rows)
    read = _read(f"phantom_{name}", root)
    assert {Path(r.path).name: len(r.boxes) for r in read if r.boxes} == expected
    # The table states pixels of a 64-pixel image.
    box = next(r for r in read if Path(r.path).name == rows[0].split(",")[0]).boxes[0]
    corners = [round(64 * v) for v in (box.x1, box.y1, box.x2, box.y2)]
    assert corners == [int(v) for v in rows[0].split(",")[-4:]]


def test_a_series_stored_in_another_orientation_gives_the_same_slices(phantoms, tmp_path):
    source = phantoms / "phantom_ct"
    expected = _read("phantom_ct", source)
    turned = tmp_path / "phantom_ct"
    for path in source.glob("**/*"):
        target = turned / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name.startswith("CT."):  # stored turned by half a circle, geometry told rightly
            dataset = pydicom.dcmread(path)
            pixels = dataset.pixel_array[::-1, ::-1]
            step = np.array(dataset.PixelSpacing, float) * (np.array(pixels.shape) - 1)
            position = np.array(dataset.ImagePositionPatient, float) + [step[1], step[0], 0]
            dataset.ImagePositionPatient = [round(float(v), 4) for v in position]
            dataset.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
            dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
            dataset.save_as(target)
        elif path.is_file():
            target.write_bytes(path.read_bytes())
    for before, after in zip(expected, _read("phantom_ct", turned), strict=True):
        assert np.array_equal(images.decode(before.image), images.decode(after.image))
        assert before.labels == after.labels
        for a, b in zip(before.boxes, after.boxes, strict=True):
            assert dataclasses.astuple(a)[1:] == pytest.approx(dataclasses.astuple(b)[1:])


def test_a_nifti_volume_stored_in_another_order_gives_the_same_slices(phantoms, tmp_path):
    source = phantoms / "phantom_mr"
    expected = _read("phantom_mr", source)
    turned = tmp_path / "phantom_mr"
    orientation = nibabel.orientations.axcodes2ornt("SPR")
    for path in source.glob("**/*"):
        target = turned / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name.endswith(".nii.gz"):
            image = nibabel.load(path)
            old = nibabel.orientations.io_orientation(image.affine)
            move = nibabel.orientations.ornt_transform(old, orientation)
            nibabel.save(image.as_reoriented(move), target)
        elif path.is_file():
            target.write_bytes(path.read_bytes())
    before = {r.sha256 or r.image: r.boxes for r in expected}
    after = {r.sha256 or r.image: r.boxes for r in _read("phantom_mr", turned)}
    assert before.keys() == after.keys() and len(before) == len(expected)
    for image, boxes in before.items():
        assert {b.label for b in boxes} == {b.label for b in after[image]}
        corners = sorted((b.x1, b.y1, b.x2, b.y2) for b in boxes)
        assert np.allclose(corners, sorted((b.x1, b.y1, b.x2, b.y2) for b in after[image]))


# ---- pydicom's own files -------------------------------------------------------------------


def test_pydicom_samples_are_counted_file_by_file():
    root, ledger = recipes.pydicom_samples_root(), Ledger()
    assert recipes.find(root)[0][0].name == "pydicom_samples"
    read = _read("pydicom_samples", root, ledger)
    files = [p for p in root.glob("**/*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    kept, dropped = tiny.totals(ledger, "pydicom_samples")["item"]
    assert kept + dropped == len([p for p in files if not p.name.startswith(".")])
    assert kept == len(read)
    assert {"CT", "MR", "X-ray"} <= {r.modality for r in read}
    lost = tiny.reasons(ledger, "pydicom_samples", "item")
    assert {"not a readable DICOM file", "DICOM file without an image"} <= set(lost)
    assert any(reason.startswith("DICOM pixels cannot be decoded") for reason in lost)
    names = {Path(r.path).name: r for r in read}
    assert names["examples_overlay.dcm"].organ == "abdomen"
    assert not any(r.labels for r in read)


def test_pydicom_samples_carry_no_patient_id():
    root = recipes.pydicom_samples_root()
    ids = {
        str(header.get("PatientID") or "")
        for path in root.glob("**/*")
        if path.is_file() and (header := planes.dicom_header(path)) is not None
    }
    ids = {i for i in ids if len(i) > 3}
    assert "77654033" in ids  # also the name of a folder
    read = _read("pydicom_samples", root)
    assert sum(bool(r.patient) for r in read) > 30
    for record in read:
        row = record.to_row() | {"image": None}
        words = set(re.split(r"[^0-9A-Za-z^-]", json.dumps(row)))
        assert not words & ids, record.id
    # Painted patient headers: ultrasound is kept only where the file says there are none.
    assert "ultrasound" not in {r.modality for r in read}


def _dicom(path: Path, **changes) -> Path:
    dataset = pydicom.dcmread(recipes.pydicom_samples_root() / "CT_small.dcm")
    for name, value in changes.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path


def test_dicom_files_follow_polarity_window_and_burned_in_text(tmp_path):
    _dicom(
        tmp_path / "plain",
        PatientID="secret-7",
        BodyPartExamined="CSPINE",
        PatientSex="F",
        PatientAge="091Y",
    )
    _dicom(tmp_path / "window", WindowCenter=[1000, 5], WindowWidth=[100, 5])
    _dicom(tmp_path / "inverted", PhotometricInterpretation="MONOCHROME1")
    _dicom(tmp_path / "painted", BurnedInAnnotation="YES")
    _dicom(tmp_path / "sound", Modality="US")
    _dicom(tmp_path / "clean", Modality="US", BurnedInAnnotation="NO")
    _dicom(tmp_path / "badwindow", WindowCenter=1, WindowWidth=0)
    (tmp_path / "cut").write_bytes((tmp_path / "plain").read_bytes()[:20000])
    (tmp_path / "corrupt").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 400)
    ledger = Ledger()
    read = {r.path: r for r in _read("pydicom_samples", tmp_path, ledger)}
    assert set(read) == {"plain", "window", "inverted", "clean", "badwindow"}
    plain = images.decode(read["plain"].image)
    hu = pydicom.dcmread(tmp_path / "plain").pixel_array - 1024.0
    assert np.array_equal(plain, images.window(hu, *images.CT_WINDOWS["soft tissue"]))
    assert np.array_equal(images.decode(read["window"].image), images.window(hu, 1000, 100))
    assert np.array_equal(images.decode(read["inverted"].image), 255 - plain)
    assert np.array_equal(images.decode(read["badwindow"].image), plain)
    assert read["plain"].organ == "cervical spine"
    assert (read["plain"].sex, read["plain"].age_group) == ("female", "65+")
    assert (read["window"].sex, read["window"].age_group) == ("", "0-17")  # it says O and 000Y
    assert "secret" not in json.dumps(read["plain"].to_row() | {"image": ""})
    reasons = tiny.reasons(ledger, "pydicom_samples", "item")
    assert reasons.pop("text may be burned into the pixels") == 2
    assert reasons.pop("DICOM pixels cannot be decoded (Explicit VR Little Endian)") == 1
    assert sum(reasons.values()) == 1  # the corrupt one


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8])
@pytest.mark.parametrize(
    "rescale", [(1, -1024), (1, 0), (2, -1024), (1, 0.5), (1, 40000), (None, None), (1, None)]
)
def test_rescaled_pixels_are_those_of_pydicom(dtype, rescale):
    dataset = pydicom.Dataset()
    for name, value in zip(("RescaleSlope", "RescaleIntercept"), rescale, strict=True):
        if value is not None:
            setattr(dataset, name, value)
    ends = np.iinfo(dtype)
    for pixels in (np.array([[ends.min, 7, ends.max]], dtype), np.array([[0, 3, 99]], dtype)):
        try:
            expected = apply_modality_lut(pixels, dataset)
        except AttributeError:  # a slope without its intercept
            with pytest.raises(AttributeError):
                planes._rescaled(pixels, dataset)
            continue
        found = planes._rescaled(pixels, dataset)
        assert np.array_equal(found, expected)
        if rescale[0] == 1 and rescale[1] in (-1024, 0) and abs(expected).max() < 2**15:
            assert found.dtype == np.int16


def test_multi_frame_dicom_is_a_video_of_which_a_few_frames_are_kept(tmp_path):
    dataset = pydicom.dcmread(recipes.pydicom_samples_root() / "CT_small.dcm")
    frames = np.stack([dataset.pixel_array + i for i in range(10)])
    _dicom(tmp_path / "run", NumberOfFrames=10, PixelData=frames.tobytes())
    ledger = Ledger()
    read = _read("pydicom_samples", tmp_path, ledger, slices=3)
    assert [r.path for r in read] == ["run#1", "run#4", "run#8"]
    assert {r.dimension for r in read} == {"video"} and {r.volume for r in read} == {"run"}
    assert tiny.reasons(ledger, "pydicom_samples", "item") == {"frame not selected": 7}


# ---- damage --------------------------------------------------------------------------------


def test_a_truncated_image_and_a_bomb_are_drops_that_name_the_path(tmp_path, monkeypatch):
    tiny.brain_tumor(tmp_path)
    broken = tmp_path / "Training/glioma_tumor/p (0).jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    tiny.picture(tmp_path / "Training/no_tumor/huge.jpg", size=(200, 200))
    (tmp_path / "Training/no_tumor/Thumbs.db").write_bytes(b"x" * 99)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)  # 64 x 48 is fine, 200 x 200 warns
    ledger = Ledger()
    read = _read("brain_tumor_mri_folders", tmp_path, ledger)
    assert len(read) == 8
    key = ("brain_tumor_mri_folders", "read", "item", "image cannot be decoded")
    assert ledger.dropped[key] == 3
    assert ledger.examples[key] == "Training/glioma_tumor/p (0).jpg"
    tiny.totals(ledger, "brain_tumor_mri_folders")


def test_malformed_voc_xml_and_entity_bombs_are_drops(tmp_path):
    tiny.bccd(tmp_path)
    folder = tmp_path / "BCCD/Annotations"
    bomb = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>'
    tiny.text(folder / "BloodImage_00000.xml", "<annotation><object>")
    tiny.text(folder / "BloodImage_00001.xml", bomb)
    ledger = Ledger()
    assert len(_read("bccd", tmp_path, ledger)) == 1
    assert tiny.reasons(ledger, "bccd", "annotation") == {"malformed XML": 2}
    assert tiny.reasons(ledger, "bccd", "item") == {"no annotation names this image": 2}
    key = ("bccd", "read", "annotation", "malformed XML")
    assert ledger.examples[key] == "BCCD/Annotations/BloodImage_00000.xml"


@pytest.mark.parametrize(
    "name, index",
    [
        ("vqa_rad", "data/trainset.json"),
        ("sam_med2d_demo", "data_demo/image2label_train.json"),
        ("phantom_xray", "annotations.json"),
        ("phantom_mr", "dataset.json"),
    ],
)
@pytest.mark.parametrize(
    "content, says",
    [('[{"qid": 1,', "not valid JSON"), ('"text"', ""), (None, "is missing")],
)
def test_an_unreadable_json_index_is_a_value_error_naming_the_file(
    tmp_path, name, index, content, says
):
    path = tmp_path / index
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}.*{says}"):
        _read(name, tmp_path)


@pytest.mark.parametrize(
    "content, says",
    [
        (b"Patientid,modality\n1,CT\n", r"has no column \['filename'\]; it has"),
        (b'filename\n"never closed\n', "not a readable CSV"),
        (b"filename\n\xff\xfe\x00\n", "not a readable CSV"),
        (b"", "has no column"),
        (None, "is missing"),
    ],
)
def test_an_unreadable_csv_index_is_a_value_error_naming_the_file(tmp_path, content, says):
    tiny.covid(tmp_path)
    path = tmp_path / "metadata.csv"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"metadata\.csv.*{says}"):
        _read("covid_kjr_notes", tmp_path)


def test_paths_that_lead_outside_the_dataset_are_drops(tmp_path):
    root = tiny.bccd(tmp_path / "data")
    tiny.picture(tmp_path / "secret.jpg")
    outside = ["../../../secret.jpg", str(tmp_path / "secret.jpg"), "..\\..\\..\\secret.jpg"]
    for i, name in enumerate(outside):
        content = tiny.voc_xml(name, [("RBC", 1, 1, 9, 9)])
        tiny.text(root / f"BCCD/Annotations/evil{i}.xml", content)
    ledger = Ledger()
    read = _read("bccd", root, ledger)
    assert len(read) == 3
    lost = tiny.reasons(ledger, "bccd", "item")
    # folder + absolute path is a path inside the folder that does not exist
    assert lost == {"path leads outside the dataset folder": 2, "image missing": 1}
    assert tiny.totals(ledger, "bccd")["annotation"] == (3, 1 + 3)

    root = tiny.sam_med2d(tmp_path / "sam")
    tiny.mask(tmp_path / "amos_0006_90_liver_000.png", (1, 1, 9, 9))
    image = "data_demo/images/amos_0006_90.png"
    index = {image: ["../amos_0006_90_liver_000.png"], str(tmp_path / "secret.jpg"): []}
    tiny.text(root / "data_demo/image2label_train.json", index)
    ledger = Ledger()
    read = {r.path: r for r in _read("sam_med2d_demo", root, ledger)}
    assert read[image].boxes == ()
    reason = "path leads outside the dataset folder"
    assert tiny.reasons(ledger, "sam_med2d_demo", "annotation")[reason] == 1
    assert tiny.reasons(ledger, "sam_med2d_demo", "item")[reason] == 1


@pytest.mark.parametrize(
    "path, inside",
    [
        ("a/b.png", True),
        ("a/../b.png", True),
        ("./b.png", True),
        ("../b.png", False),
        ("a/../../b.png", False),
        ("/etc/passwd", False),
        ("C:\\x.png", False),
        ("a\\..\\..\\x.png", False),
        ("a\0b", False),
    ],
)
def test_is_inside(path, inside):
    assert records.is_inside(path) is inside


@pytest.mark.parametrize(
    "corners, reason",
    [
        ((5, 5, 5, 9), "box without area"),
        ((9, 5, 5, 9), "box without area"),
        (("nan", 1, 9, 9), "box without area"),
        ((100, 100, 120, 120), "box without area"),  # wholly outside
        (("x", 1, 9, 9), "box is not four numbers"),
        ((1, 2, 3), "box is not four numbers"),
        ((None, 1, 9, 9), "box is not four numbers"),
    ],
)
def test_unusable_boxes_have_a_reason(corners, reason):
    assert records.box_of("RBC", corners, 64, 48) == reason


def test_boxes_are_clipped_to_the_image():
    box = records.box_of("RBC", ("-5", 24, 1e9, 48.0), 64, 48)
    assert (box.x1, box.y1, box.x2, box.y2) == (0, 0.5, 1, 1)
    assert records.box_of("", (1, 1, 2, 2), 64, 48) == "box without label"


def test_damaged_coco_entries_are_drops(tmp_path):
    root = tmp_path / "phantom_xray"
    tiny.picture(root / "images/a.png", mode="L")
    tiny.picture(root / "images/b.png", seed=1, mode="L")
    good = {"image_id": 1, "category_id": 1, "bbox": [8, 6, 8, 6]}
    index = {
        "images": [{"id": 1, "file_name": "a.png", "organ": "lung"}, {"id": 2}, "junk"],
        "categories": [{"id": 1, "name": "nodule"}],
        "annotations": [
            good,
            good | {"image_id": 9},
            good | {"category_id": 9},
            good | {"bbox": [1, 2, "x", 4]},
            good | {"bbox": [1, 2]},
            7,
        ],
    }
    tiny.text(root / "annotations.json", index)
    ledger = Ledger()
    (record,) = _read("phantom_xray", root, ledger)
    assert [dataclasses.astuple(b)[:5] for b in record.boxes] == [
        ("nodule", 0.125, 0.125, 0.25, 0.25)
    ]
    assert not record.boxes_are_complete
    assert tiny.totals(ledger, "phantom_xray") == {"item": (1, 1), "annotation": (1, 5 + 2)}


def _series(root: Path, slices: int = 4) -> Path:
    """One CT series of a lesion: a bright square on slices 1 and 2, with its mask."""
    values = np.zeros((16, 12, slices), np.int16)
    values[4:8, 3:6, 1:3] = 1
    for k in range(slices):
        _dicom(
            root / f"s1/CT.{k}",
            Rows=12,
            Columns=16,
            PixelSpacing=[2, 2],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[-20, -30, 5 * k],
            PatientID="P-12345",
            WindowCenter=40,
            WindowWidth=400,
            PixelData=(values[..., k].T * 1000).astype("<i2").tobytes(),
        )
    affine = np.diag([-2.0, -2.0, 5.0, 1.0])
    affine[:3, 3] = (20, 30, 0)
    tiny.nifti(root / "s1/seg.nii.gz", values.astype(np.uint8), affine)
    tiny.text(root / "labels.csv", "series,patient,organ,finding\ns1,P-12345,lung,nodule\n")
    return root


def test_what_the_table_of_a_series_does_not_say_its_header_says(tmp_path):
    root = _series(tmp_path / "phantom_ct")
    for path in root.glob("s1/CT.*"):
        header = pydicom.dcmread(path)
        header.PatientSex, header.PatientAge = "F", "030Y"
        header.save_as(path)
    assert {(r.sex, r.age_group) for r in _read("phantom_ct", root)} == {("female", "18-39")}
    tiny.text(root / "labels.csv", "series,patient,organ,finding,sex\ns1,P-1,lung,nodule,M\n")
    assert {(r.sex, r.age_group) for r in _read("phantom_ct", root)} == {("male", "18-39")}


def test_a_series_with_a_corrupt_and_a_missing_slice_still_fits_its_mask(tmp_path):
    root = _series(tmp_path / "phantom_ct")
    read = _read("phantom_ct", root)
    assert [r.labels[0] for r in read] == [NO_FINDING, "nodule", "nodule", NO_FINDING]
    box = read[1].boxes[0]
    assert (box.x1, box.y1, box.x2, box.y2) == (4 / 16, 3 / 12, 8 / 16, 6 / 12)
    (root / "s1/CT.0").unlink()
    (root / "s1/CT.2").write_bytes(b"\0" * 200)
    cut = root / "s1/CT.3"
    cut.write_bytes(cut.read_bytes()[:-200])
    ledger = Ledger()
    (record,) = _read("phantom_ct", root, ledger)
    assert record.path == "s1/CT.1" and record.boxes == read[1].boxes
    assert tiny.reasons(ledger, "phantom_ct", "item") == {
        "not a readable DICOM file": 1,
        "DICOM pixels cannot be decoded (Explicit VR Little Endian)": 1,
    }
    assert "12345" not in json.dumps(record.to_row() | {"image": ""})


def test_a_folder_named_like_the_patient_is_renamed_in_the_record(tmp_path):
    root = _series(tmp_path / "phantom_ct")
    (root / "s1").rename(root / "P-12345")
    tiny.text(root / "labels.csv", "series,patient,organ,finding\nP-12345,P-12345,lung,nodule\n")
    read = _read("phantom_ct", root)
    name = records.pseudonym("phantom_ct", "P-12345")
    assert [r.path for r in read] == [f"{name}/CT.{k}" for k in range(4)]
    assert {r.patient for r in read} == {name} and {r.volume for r in read} == {name}


def test_slices_without_their_mask_or_row_are_not_called_normal(tmp_path):
    root = _series(tmp_path / "phantom_ct")
    (root / "s1/seg.nii.gz").write_bytes(b"no gzip")
    ledger = Ledger()
    assert _read("phantom_ct", root, ledger) == []
    assert tiny.reasons(ledger, "phantom_ct", "item") == {"volume without its mask": 4}
    assert tiny.reasons(ledger, "phantom_ct", "annotation") == {"mask cannot be read": 1}
    (root / "labels.csv").write_text("series,patient,organ,finding\n")
    ledger = Ledger()
    assert _read("phantom_ct", root, ledger) == []
    assert tiny.reasons(ledger, "phantom_ct", "item") == {"volume without a table row": 4}


def test_slices_come_from_inferior_to_superior_whatever_the_file_names(tmp_path):
    root = _series(tmp_path / "phantom_ct")
    swapped = {"CT.0": "CT.9", "CT.3": "CT.00"}
    for old, new in swapped.items():
        (root / "s1" / old).rename(root / "s1" / new)
    read = _read("phantom_ct", root)
    assert [Path(r.path).name for r in read] == ["CT.9", "CT.1", "CT.2", "CT.00"]


def test_a_mask_on_a_smaller_grid_says_nothing_outside_it(tmp_path):
    root = _series(tmp_path / "phantom_ct")
    image = nibabel.load(root / "s1/seg.nii.gz")
    small = image.slicer[4:6, 3:5, 1:2]  # nothing but lesion, up to its border
    nibabel.save(small, root / "s1/seg.nii.gz")
    read = _read("phantom_ct", root)
    assert [len(r.boxes) for r in read] == [0, 1, 0, 0]
    box = read[1].boxes[0]
    assert (box.x1, box.y1, box.x2, box.y2) == (4 / 16, 3 / 12, 6 / 16, 5 / 12)


def test_a_ct_without_any_window_is_an_error_of_the_recipe(tmp_path):
    tiny.totalsegmentator(tmp_path)
    case = {"image": "example_ct_sm.nii.gz", "masks": ()}
    with pytest.raises(ValueError, match=r"states no CT window; give recipe .* 'lung'"):
        _read("totalsegmentator_ct_mr", tmp_path, cases=(case,))
    with pytest.raises(ValueError, match="window 'bones' is not one of"):
        _read("totalsegmentator_ct_mr", tmp_path, cases=(case | {"window": "bones"},))


@pytest.mark.parametrize("damage", ["cut", "junk", "4d", "2d", "claims", "nan"])
def test_a_broken_nifti_volume_is_a_drop(tmp_path, damage):
    root = tmp_path / "phantom_pet"
    path = tiny.nifti(root / "imagesTr/a_0000.nii.gz", np.zeros((8, 8, 4), np.int16))
    tiny.nifti(root / "labelsTr/a.nii.gz", np.zeros((8, 8, 4), np.uint8))
    tiny.nifti(root / "labelsTr/orphan.nii.gz", np.zeros((8, 8, 4), np.uint8))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-12])
    elif damage == "junk":
        path.write_bytes(b"junk")
    elif damage == "4d":
        tiny.nifti(path, np.zeros((8, 8, 4, 2), np.int16))
    elif damage == "claims":  # 30,000 voxels along each axis, in a file of a few bytes
        header = bytearray(gzip.decompress(path.read_bytes()))
        header[42:48] = np.full(3, 30_000, "<i2").tobytes()
        path.write_bytes(gzip.compress(bytes(header)))
    elif damage == "nan":  # pixdim and the rows of the affine
        header = bytearray(gzip.decompress(path.read_bytes()))
        header[76:92] = np.full(4, np.nan, "<f4").tobytes()
        header[280:328] = np.full(12, np.nan, "<f4").tobytes()
        path.write_bytes(gzip.compress(bytes(header)))
    else:
        tiny.nifti(path, np.zeros((8, 8), np.int16))
    tiny.text(root / "dataset.json", {"labels": {"background": 0, "focus": 1}})
    tiny.text(root / "cases.csv", "case,patient,organ,finding\na,p,torso,no finding\n")
    ledger = Ledger()
    assert _read("phantom_pet", root, ledger) == []
    assert tiny.reasons(ledger, "phantom_pet", "item") == {"volume cannot be read": 1}
    assert tiny.reasons(ledger, "phantom_pet", "annotation") == {"mask without an image": 1}


def test_decathlon_labels_and_names_are_understood(tmp_path):
    root = tmp_path / "phantom_mr"
    values = np.zeros((8, 8, 3), np.uint8)
    values[1:3, 1:3, 1] = 1
    values[5:7, 5:7, 1] = 1
    tiny.nifti(root / "imagesTr/a.nii.gz", np.arange(192, dtype=np.int16).reshape(8, 8, 3))
    tiny.nifti(root / "labelsTr/a.nii.gz", values)
    tiny.text(root / "dataset.json", {"labels": {"0": "background", "1": "mass"}})
    tiny.text(root / "cases.csv", "case,patient,organ,finding\na,p,brain,mass\n")
    read = _read("phantom_mr", root)
    assert [r.labels for r in read] == [(NO_FINDING,), ("mass",), (NO_FINDING,)]
    assert len(read[1].boxes) == 2  # one label value, two components


def test_a_mask_value_without_a_name_makes_no_slice_normal(tmp_path):
    root = tmp_path / "phantom_mr"
    values = np.zeros((8, 8, 3), np.uint8)
    values[1:3, 1:3, 1] = 7
    tiny.nifti(root / "imagesTr/a_0000.nii.gz", np.arange(192, dtype=np.int16).reshape(8, 8, 3))
    tiny.nifti(root / "labelsTr/a.nii.gz", values)
    tiny.text(root / "dataset.json", {"labels": {"background": 0, "mass": 1}})
    tiny.text(root / "cases.csv", "case,patient,organ,finding\na,p,brain,mass\n")
    ledger = Ledger()
    for record in _read("phantom_mr", root, ledger):
        assert record.labels == record.absent == () and not record.boxes_are_complete
    lost = tiny.reasons(ledger, "phantom_mr", "annotation")
    assert lost == {"mask value without a name": 1}


# ---- small parts ---------------------------------------------------------------------------


def test_pseudonym_is_stable_salted_and_hides_the_id(monkeypatch):
    first = records.pseudonym("a", "12345")
    assert first == records.pseudonym("a", "12345") and "12345" not in first
    assert first != records.pseudonym("b", "12345")
    assert records.pseudonym("a", "") == ""
    monkeypatch.setenv("GMAI_SALT", "mine")
    assert first != records.pseudonym("a", "12345")


def test_select_slices_takes_rich_ones_apart_and_fills_evenly():
    assert volumes.select_slices([1.0, 0.0, 2.0], 4) == [0, 1, 2]
    scores = [0.0] * 40
    scores[20:25] = [5, 6, 7, 6, 5]
    chosen = volumes.select_slices(scores, 4)
    assert len(chosen) == 4 and 22 in chosen and chosen == sorted(set(chosen))
    assert sum(20 <= i < 25 for i in chosen) == 1  # its neighbours look the same
    assert volumes.select_slices([0.0] * 12, 3) == [1, 5, 9]


def test_reading_twice_gives_the_same_records(tmp_path):
    root = tiny.totalsegmentator(tmp_path)
    assert _read("totalsegmentator_ct_mr", root) == _read("totalsegmentator_ct_mr", root)


def test_coco_masks_give_the_box_that_is_missing():
    """Polygons, plain and compressed RLE of one mask, and what only looks like one."""
    from pycocotools import mask

    from gmai_lib.dataset.annotations import _bbox_of, _run_lengths

    pixels = np.zeros((40, 60), np.uint8)
    pixels[10:30, 5:25] = 1
    coded = mask.encode(np.asfortranarray(pixels))["counts"].decode()
    flat = pixels.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    assert _run_lengths(coded.encode()) == runs
    box, size = [5, 10, 20, 20], [40, 60]
    assert _bbox_of({"size": size, "counts": runs}, (0, 0)) == box
    assert _bbox_of({"size": size, "counts": coded}, (0, 0)) == box
    assert _bbox_of([[5, 10, 25, 10, 25, 30, 5, 30]], (40, 60)) == box
    for wrong in (
        {"size": size, "counts": runs[:-1]}, {"size": size, "counts": coded[:-2]},
        {"size": size, "counts": coded + "z"}, {"size": [40, 61], "counts": coded},
        {"size": size, "counts": "\x00\xff"}, {"size": [10**6, 10**6], "counts": [10**12]},
        {"size": "x", "counts": coded}, {"counts": coded}, {}, [[1, 2]], [["a"] * 6], [], 5,
        {"size": size, "counts": [-1, 2401]}, {"size": size, "counts": [2400]},
    ):  # fmt: skip
        assert _bbox_of(wrong, (40, 60)) is None, wrong


# ---- several processes, and masks on the grid of their image --------------------------------


def test_two_processes_read_the_same_records_and_count_the_same(tmp_path):
    only = ("phantom_ct", "phantom_mr", "phantom_dermoscopy")
    phantom_files.write_sources(tmp_path, seed=0, images_per_modality=40, size=48, only=only)
    (tmp_path / "phantom_dermoscopy/images/unlisted.png").write_bytes(b"no picture")
    next((tmp_path / "phantom_mr/labelsTr").iterdir()).write_bytes(b"no volume")
    next((tmp_path / "phantom_ct").glob("*/CT.*")).write_bytes(b"no slice")
    found, in_all, read_in_turn = recipes.find(tmp_path), Ledger(), []
    for recipe, root in found:
        one, two = Ledger(), Ledger()
        alone = list(readers.read(recipe, root, one))
        read_in_turn += alone
        assert alone == list(readers.read(recipe, root, two, processes=2))
        assert len(alone) > 20 and len(one.rows()) > 2 and one.rows() == two.rows()
        two.check()
    assert len(found) == 3
    assert read_in_turn == list(readers.read_all(found, in_all, processes=2))
    in_all.check()


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (2, 0, 1), (0, 2, 1)])
@pytest.mark.parametrize("shift", [0, 2])
def test_a_mask_on_the_grid_of_its_image_is_cut_as_it_is_looked_up(axes, shift, monkeypatch):
    """Columns, rows and slices of the image along `axes` of the mask, `shift` voxels apart."""
    values = np.random.default_rng(0).integers(0, 4, (7, 9, 11))
    named = {"path": "mask.nii.gz", "names": {}, "searched": frozenset()}
    mask = stacks.Mask(values=values, affine=np.eye(4), **named)
    affine = np.eye(4)[:, [*axes, 3]]
    affine[:3, 3] = shift
    size = [n - shift for n in values.shape]
    plane = planes.Plane(
        path="", affine=affine, shape=(size[axes[1]], size[axes[0]]), load=lambda: None
    )
    cut = mask.on(plane)
    monkeypatch.setattr(stacks, "_as_view", lambda *_: None)
    looked_up = mask.on(plane)
    assert cut.base is values or cut.base.base is values, "not copied"
    assert cut.shape == plane.shape and np.array_equal(cut, looked_up)
    expected = values.transpose(axes[1], axes[0], axes[2])[shift:, shift:, shift]
    assert np.array_equal(cut, expected)


@pytest.mark.parametrize(
    ("splits", "merged"),
    [(("train", "test"), ""), (("train", ""), "train"), (("train", "test", "train"), "")],
)
def test_an_image_keeps_its_split_unless_another_is_stated(splits, merged):
    entries = [readers.Entry(path="a.png", split=split) for split in splits]
    (entry,) = readers._merged(entries)
    assert entry.split == merged


@pytest.mark.parametrize(
    ("sex", "age", "expected"),
    [
        ("F", "054Y", ("female", "40-64")),
        ("male", "17.9", ("male", "0-17")),
        ("M", "18", ("male", "18-39")),
        ("Female", "40.0", ("female", "40-64")),
        ("f", "65 y", ("female", "65+")),
        ("", "008M", ("", "0-17")),
        ("F", "054Y+055Y", ("female", "40-64")),  # a series over a birthday
        ("O", "000D", ("", "0-17")),
        ("unknown", "nan", ("", "")),
    ],
)
def test_sex_and_age_as_sources_write_them(sex, age, expected):
    ledger = Ledger()
    found = records.person(recipes.RECIPES[0], "x.png", sex, age, ledger)
    assert (found["sex"], found["age_group"]) == expected and not ledger.dropped


@pytest.mark.parametrize(
    ("sex", "age", "reason"),
    [
        ("mal", "", "sex not understood"),
        ("", "414Y", "age group not understood"),
        ("", "064Y+065Y", "age group not understood"),
    ]
    + [("", "-3", "age group not understood"), ("", "40s", "age group not understood")],
)
def test_sex_and_age_that_are_not_understood_are_counted(sex, age, reason):
    ledger = Ledger()
    found = records.person(recipes.RECIPES[0], "x.png", sex, age, ledger)
    assert found == {"sex": "", "age_group": ""}
    assert [row["outcome"] for row in ledger.rows()] == [reason]
