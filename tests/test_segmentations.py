"""DICOM SEG and RTSTRUCT files become masks of the series that they name, or a counted reason."""

import dataclasses
import warnings

import numpy as np
import pydicom
import pytest
import tiny_archive as tiny
from tiny_archive import block, rectangle
from tiny_datasets import reasons

from gmai_lib.dataset import readers, recipes
from gmai_lib.schema import Ledger

MASKS = "3.000000-NA-78236/1-1.dcm"  # beside the series, in its study


def read(root, ledger=None, **options):
    """All records of the dataset at `root`, found by its marks, the ledger checked."""
    ((recipe, root),) = recipes.find(root)
    ledger = Ledger() if ledger is None else ledger
    recipe = dataclasses.replace(recipe, options=recipe.options | options)
    records = list(readers.read(recipe, root, ledger))
    ledger.check()
    return records


def pixels(record, size=(32, 24)) -> dict[str, tuple]:
    """Label -> corners in pixels, and how many pixels the mask has."""
    return {
        box.label: (
            *(round(box.x1 * size[0]), round(box.y1 * size[1])),
            *(round(box.x2 * size[0]), round(box.y2 * size[1])),
            round(box.area * size[0] * size[1]),
        )
        for box in record.boxes
    }


def nsclc(tmp_path):
    """NSCLC-Radiomics, one patient: a tumour with a hole, a lung, both lungs, an empty heart."""
    study = tmp_path / "NSCLC-Radiomics" / "LUNG1-001" / tiny.STUDY
    slices = tiny.ct(study / "0.000000-NA-82046", "LUNG1-001")
    rois = {
        "GTV-1": [
            (slices[2], rectangle(slices[2], 10, 4, 20, 12)),
            (slices[2], rectangle(slices[2], 13, 6, 16, 9)),  # a hole of nine pixels
            (slices[3], rectangle(slices[3], 11, 4, 20, 12)),
        ],
        "Lung-Left": [(s, rectangle(s, 8, 2, 24, 16)) for s in slices],
        "Lungs-Total": [(slices[0], rectangle(slices[0], 2, 2, 30, 16))],
        "Heart": [],
    }
    tiny.rtstruct(study / MASKS, slices, rois)
    return tmp_path / "NSCLC-Radiomics"


@pytest.fixture
def lung(tmp_path):
    return nsclc(tmp_path)


def test_contours_of_nsclc_radiomics_are_boxes_on_their_slices(lung):
    ledger = Ledger()
    found = read(lung, ledger, slices=6)
    assert [pixels(r) for r in found] == [
        {"lung_left": (8, 2, 24, 16, 224)},
        {"lung_left": (8, 2, 24, 16, 224)},
        {"lung tumor": (10, 4, 20, 12, 80 - 9), "lung_left": (8, 2, 24, 16, 224)},
        {"lung tumor": (11, 4, 20, 12, 72), "lung_left": (8, 2, 24, 16, 224)},
        {"lung_left": (8, 2, 24, 16, 224)},
        {"lung_left": (8, 2, 24, 16, 224)},
    ]
    assert reasons(ledger, "nsclc_radiomics", "annotation") == {
        "structure without contours": 1,
        "structure the recipe leaves out": 1,
    }
    assert reasons(ledger, "nsclc_radiomics", "item") == {}
    (patient,) = {r.patient for r in found}
    assert patient and all("LUNG1" not in r.path + r.volume for r in found)
    assert all(r.absent == () for r in found)  # what is not drawn may still be there


def test_a_challenge_says_the_split_in_the_patient(tmp_path):
    root = tmp_path / "LCTSC"
    for patient in ("LCTSC-Train-S1-001", "LCTSC-Test-S1-101"):
        study = root / patient / "11-16-2003-RTRCCTTHORAX8FLow Adult-39664"
        slices = tiny.ct(study / "0-CTRespCT-cran  3.0  B30s  50 Ex-63530", patient)
        rois = {"SpinalCord": [(s, rectangle(s, 15, 20, 17, 22)) for s in slices[1:3]]}
        tiny.rtstruct(study / "1-.simplified-62948" / "1-1.dcm", slices, rois)
    found = read(root, select="richest")
    assert {(r.split, r.labels) for r in found} == {
        ("train", ("spinal cord",)),
        ("test", ("spinal cord",)),
    }
    assert len({r.patient for r in found}) == 2


SEGMENTS = {
    "Liver": block(slice(1, 5), slice(2, 16), slice(4, 20)),
    "Mass": block(slice(2, 4), slice(4, 8), slice(22, 26)),
    "Portal vein": block(slice(3, 4), slice(18, 20), slice(10, 12)),
    "Abdominal aorta": block(slice(0, 6), slice(20, 23), slice(14, 17)),
}


def hcc(tmp_path, kind="BINARY", segments=SEGMENTS, **more):
    study = tmp_path / "HCC-TACE-Seg" / "HCC_009" / "02-15-1998-NA-PP CAPLIVER PROTO.-10975"
    slices = tiny.ct(study / "103.000000-LIVER 3 PHASE CAP-83135", "HCC_009")
    tiny.ct(study / "3.000000-Recon 2-11111", "HCC_009", shape=(2, 24, 32))  # without a mask
    tiny.seg(study / "300.000000-Segmentation-91221" / "1-1.dcm", slices, segments, kind, **more)
    return tmp_path / "HCC-TACE-Seg"


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_segments_of_hcc_tace_seg_are_boxes_of_the_series_that_they_name(tmp_path, kind):
    ledger = Ledger()
    found = read(hcc(tmp_path, kind), ledger, slices=6)
    assert [pixels(r) for r in found] == [
        {"aorta": (14, 20, 17, 23, 9)},
        {"liver": (4, 2, 20, 16, 224), "aorta": (14, 20, 17, 23, 9)},
        {
            "liver": (4, 2, 20, 16, 224),
            "liver tumor": (22, 4, 26, 8, 16),
            "aorta": (14, 20, 17, 23, 9),
        },
        {
            "liver": (4, 2, 20, 16, 224),
            "liver tumor": (22, 4, 26, 8, 16),
            "portal vein": (10, 18, 12, 20, 4),
            "aorta": (14, 20, 17, 23, 9),
        },
        {"liver": (4, 2, 20, 16, 224), "aorta": (14, 20, 17, 23, 9)},
        {"aorta": (14, 20, 17, 23, 9)},
    ]
    assert reasons(ledger, "hcc_tace_seg", "item") == {"series without a usable mask": 2}
    assert reasons(ledger, "hcc_tace_seg", "annotation") == {}
    assert ledger.kept["hcc_tace_seg", "read", "annotation"] == 4


def test_a_fractional_segment_is_cut_at_half_and_says_so(tmp_path):
    soft = np.where(SEGMENTS["Mass"], 0.8, 0.0)
    soft[2, 4:8, 26] = 0.49
    with pytest.warns(UserWarning, match="hcc_tace_seg: fractional .* thresholded at half"):
        found = read(hcc(tmp_path, "FRACTIONAL", {"Mass": soft}), select="richest")
    assert [pixels(r) for r in found] == [{"liver tumor": (22, 4, 26, 8, 16)}] * 2


def test_a_segment_is_named_by_its_coded_type_if_the_recipe_knows_only_that(tmp_path):
    root = hcc(tmp_path, segments={"Segment_1": SEGMENTS["Mass"]})
    assert {r.labels for r in read(root, select="richest")} == {("liver tumor",)}


def test_a_structure_given_by_contours_and_segment_counts_once(lung):
    study = next(lung.glob("*/*"))
    slices = [pydicom.dcmread(p) for p in sorted((study / "0.000000-NA-82046").iterdir())]
    voxels = block(slice(2, 4), slice(4, 12), slice(10, 20))
    tiny.seg(study / "300.000000-Segmentation-99" / "1-1.dcm", slices, {"GTV-1": voxels})
    ledger = Ledger()
    found = read(lung, ledger, select="richest", slices=9)
    assert sum("lung tumor" in r.labels for r in found) == 2
    assert all(len(r.boxes) == len(set(r.labels)) for r in found)
    lost = reasons(ledger, "nsclc_radiomics", "annotation")
    assert lost["structure already given by another mask"] == 1


def test_masks_stay_on_their_slices_when_one_is_missing(lung):
    next(lung.glob("*/*/0.*/1-3.dcm")).unlink()
    ledger = Ledger()
    found = read(lung, ledger, slices=6)
    assert [sorted(r.labels) for r in found] == [
        ["lung_left"],
        ["lung_left"],
        ["lung tumor", "lung_left"],
        ["lung_left"],
        ["lung_left"],
    ]
    lost = reasons(ledger, "nsclc_radiomics", "annotation")
    assert lost["contour lies on no slice of its series"] == 3


def test_a_circle_covers_its_area(tmp_path):
    study = tmp_path / "NSCLC-Radiomics" / "LUNG1-001" / tiny.STUDY
    slices = tiny.ct(study / "0.000000-NA-82046", "LUNG1-001")
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    circle = [(15.3 + 8 * np.cos(a), 12.1 + 8 * np.sin(a)) for a in angles]
    contour = (None, tiny.polygon(slices[1], circle))  # names no slice: the nearest one
    tiny.rtstruct(study / MASKS, slices, {"GTV-1": [contour]})
    (record,) = read(tmp_path / "NSCLC-Radiomics", select="richest")
    (box,) = record.boxes
    y, x = np.mgrid[:24, :32] + 0.5  # pixel centres
    exact = np.hypot(x - 15.3, y - 12.1) < 8
    assert box.area * 32 * 24 == pytest.approx(exact.sum(), abs=6)
    assert box.x1 * 32 == pytest.approx(7.3, abs=0.6) and box.y2 * 24 == pytest.approx(20.1, abs=1)


def test_a_coronal_series_is_drawn_in_its_own_planes(tmp_path):
    study = tmp_path / "NSCLC-Radiomics" / "LUNG1-001" / tiny.STUDY
    folder = study / "0.000000-NA-82046"
    slices = tiny.ct(folder, "LUNG1-001")
    for k, ds in enumerate(slices):
        ds.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        ds.ImagePositionPatient = [-20, 5 * k, 50]
        ds.save_as(folder / f"1-{k + 1}.dcm", enforce_file_format=True)
    rois = {"GTV-1": [(slices[4], rectangle(slices[4], 5, 6, 9, 8))]}
    tiny.rtstruct(study / MASKS, slices, rois)
    (record,) = read(tmp_path / "NSCLC-Radiomics", select="richest")
    assert record.path.endswith("/1-5.dcm") and pixels(record) == {"lung tumor": (5, 6, 9, 8, 8)}


def _other_series(ds):
    study = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence[0].SeriesInstanceUID = tiny.uid("elsewhere")


def _other_frame(ds):
    for roi in ds.StructureSetROISequence:
        roi.ReferencedFrameOfReferenceUID = tiny.uid("another frame")


def _no_name(ds):
    for roi in ds.StructureSetROISequence:
        roi.ROIName = ""


def _contours(**changes):
    def change(ds):
        for roi in ds.ROIContourSequence:
            for contour in roi.ContourSequence:
                for name, value in changes.items():
                    setattr(contour, name, value)

    return change


def _reference_to(k):
    item = pydicom.Dataset()
    item.ReferencedSOPInstanceUID = tiny.uid("LUNG1-001", "0.000000-NA-82046", f"slice {k}")
    return item


def _moved(by):
    def change(ds):
        for roi in ds.ROIContourSequence:
            for contour in roi.ContourSequence:
                points = np.array(contour.ContourData, float).reshape(-1, 3) + by
                contour.ContourData = [round(float(v), 3) for v in points.ravel()]

    return change


def _tilted(ds):
    contour = ds.ROIContourSequence[0].ContourSequence[0]
    points = [str(v) for v in contour.ContourData]
    contour.ContourData = [*points[:2], "130", *points[3:]]


def _no_series(ds):
    ds.ReferencedFrameOfReferenceSequence = []
    _contours(ContourImageSequence=[])(ds)


UNUSABLE = "structure without a usable contour"
BAD_CONTOURS = {
    "another series": (_other_series, {"mask of a series that is not there": 1}),
    "no series": (_no_series, {"mask names no series": 1}),
    "frame of reference": (
        _other_frame,
        {"mask in another frame of reference than its series": 1},
    ),
    "no name": (_no_name, {"structure without a name": 1}),
    "no ROIs": (
        lambda ds: setattr(ds, "StructureSetROISequence", []),
        {"mask without structures": 1},
    ),
    "no contours": (
        lambda ds: setattr(ds, "ROIContourSequence", []),
        {"structure without contours": 1},
    ),
    "point": (
        _contours(ContourGeometricType="POINT"),
        {"contour is a point or an open line": 1, UNUSABLE: 1},
    ),
    "open": (
        _contours(ContourGeometricType="OPEN_PLANAR"),
        {"contour is a point or an open line": 1, UNUSABLE: 1},
    ),
    "two points": (
        _contours(ContourData=[0, 0, 110, 4, 4, 110]),
        {"contour of fewer than three points": 1, UNUSABLE: 1},
    ),
    "not in threes": (
        _contours(ContourData=[0, 0, 110, 4, 4, 110, 5]),
        {"contour data is malformed": 1, UNUSABLE: 1},
    ),
    "empty": (_contours(ContourData=[]), {"contour of fewer than three points": 1, UNUSABLE: 1}),
    "between slices": (
        _moved((0, 0, 40)),
        {"contour lies on no slice of its series": 1, UNUSABLE: 1},
    ),
    "another slice": (
        _contours(ContourImageSequence=[_reference_to(4)]),
        {"contour lies on no slice of its series": 1, UNUSABLE: 1},
    ),
    "not flat": (_tilted, {"contour lies on no slice of its series": 1, UNUSABLE: 1}),
    "far away": (_moved((9e8, 0, 0)), {"contour leaves the image": 1, UNUSABLE: 1}),
    "beside the image": (_moved((60, 0, 0)), {"contour covers no pixel": 1, UNUSABLE: 1}),
    "smaller than a pixel": (
        _contours(ContourData=[-20, -30, 110, -19.9, -30, 110, -19.9, -29.9, 110]),
        {"contour covers no pixel": 1, UNUSABLE: 1},
    ),
}


@pytest.mark.parametrize("damage", BAD_CONTOURS)
def test_contours_that_cannot_be_used_have_a_reason(tmp_path, damage):
    change, expected = BAD_CONTOURS[damage]
    study = tmp_path / "NSCLC-Radiomics" / "LUNG1-001" / tiny.STUDY
    slices = tiny.ct(study / "0.000000-NA-82046", "LUNG1-001")
    contour = (slices[2], rectangle(slices[2], 10, 4, 20, 12))
    ds = tiny.rtstruct(study / MASKS, slices, {"GTV-1": [contour]})
    change(ds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about values that are meant to be bad
        ds.save_as(study / MASKS, enforce_file_format=True)
    ledger = Ledger()
    assert len(read(tmp_path / "NSCLC-Radiomics", ledger)) == 0
    assert reasons(ledger, "nsclc_radiomics", "annotation") == expected
    assert reasons(ledger, "nsclc_radiomics", "item") == {"series without a usable mask": 6}


def test_a_bad_contour_leaves_the_good_ones(lung):
    path = next(lung.glob("*/*/3.*/1-1.dcm"))
    ds = pydicom.dcmread(path)
    ds.ROIContourSequence[0].ContourSequence[2].ContourGeometricType = "OPEN_PLANAR"
    ds.save_as(path)
    ledger = Ledger()
    found = read(lung, ledger, slices=6, exhaustive=True)
    assert [r.path[-5] for r in found if "lung tumor" in r.labels] == ["3"]
    assert all(r.absent == () for r in found)  # the lost contour may have shown it
    lost = reasons(ledger, "nsclc_radiomics", "annotation")
    assert lost["contour is a point or an open line"] == 1


def _series_of_seg(ds):
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = tiny.uid("elsewhere")


def _frame_of_seg(ds):
    ds.FrameOfReferenceUID = tiny.uid("another frame")


def _no_pixels(ds):
    ds.PixelData = b"\0\0"


def _no_positions(ds):
    for frame in ds.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence


def _uneven(ds):
    frame = ds.PerFrameFunctionalGroupsSequence[0]
    frame.PlanePositionSequence[0].ImagePositionPatient = [-20, -30, 107.3]


def _all_empty(ds):
    ds.PixelData = bytes(len(ds.PixelData))


BAD_SEGMENTS = {
    "another series": (_series_of_seg, {"mask of a series that is not there": 1}),
    "frame of reference": (
        _frame_of_seg,
        {"mask in another frame of reference than its series": 1},
    ),
    "pixels": (_no_pixels, {"segment cannot be decoded": 1}),
    "positions": (_no_positions, {"mask cannot be read": 1}),
    "uneven": (_uneven, {"mask is no evenly spaced volume": 1}),
    "empty": (_all_empty, {"structure is empty": 1}),
}


@pytest.mark.parametrize("damage", BAD_SEGMENTS)
def test_segments_that_cannot_be_used_have_a_reason(tmp_path, damage):
    change, expected = BAD_SEGMENTS[damage]
    root = hcc(tmp_path, segments={"Mass": SEGMENTS["Mass"]})
    path = next(root.glob("*/*/300*/1-1.dcm"))
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(path)
    ledger = Ledger()
    assert len(read(root, ledger)) == 0
    assert reasons(ledger, "hcc_tace_seg", "annotation") == expected


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_file_cut_short_is_counted(tmp_path, cut):
    root = hcc(tmp_path, segments={"Mass": SEGMENTS["Mass"]})
    path = next(root.glob("*/*/300*/1-1.dcm"))
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    ledger = Ledger()
    assert len(read(root, ledger)) == 0
    lost = reasons(ledger, "hcc_tace_seg", "annotation")
    assert sum(lost.values()) == 1, lost


def test_a_listed_volume_takes_a_dicom_mask_in_a_line(tmp_path):
    """The reader of listed volumes: a mask that ends in .dcm needs no more than its path."""
    base = tmp_path / "tests" / "reference_files"
    slices = tiny.ct(base / "example_ct_dicom", "P1")
    tiny.seg(base / "masks" / "seg.dcm", slices, {"liver": SEGMENTS["Liver"]})
    case = {"image": "example_ct_dicom", "masks": ("masks/*.dcm",), "window": "liver"}
    recipe = recipes.get("totalsegmentator_ct_mr")
    options = recipe.options | {"cases": (case,), "select": "richest"}
    ledger = Ledger()
    found = list(readers.read(dataclasses.replace(recipe, options=options), tmp_path, ledger))
    ledger.check()
    assert len(found) == 4 and {r.labels for r in found} == {("liver",)}
