"""Which slices of a volume are taken: axes, spacing, the smallest structure, the richest slices."""

import dataclasses
import re

import nibabel
import numpy as np
import pydicom
import pytest
import tiny_archive
import tiny_datasets as tiny

from gmai_lib.dataset import readers, recipes, records, stacks, volumes
from gmai_lib.schema import Ledger

THIN, THICK = (1.0, 1.0, 2.0), (1.0, 1.0, 5.0)  # millimetres along x, y, z
SHAPE = (20, 16, 12)


def phantom(tmp_path, spacing=THIN, labels=None, turn=None):
    """An nnU-Net folder: a bright block at x 4-9, y 6-10, z 3-7 and its mask, stored in LPS order
    or with its axes in the order `turn`."""
    root = tmp_path / "phantom_mr"
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) % 50
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:9, 6:10, 3:7] = 1
    mask = mask if labels is None else labels
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    for folder, name, array in (("imagesTr", "a_0000", values), ("labelsTr", "a", mask)):
        image = nibabel.Nifti1Image(np.where(mask == 1, array + 99, array), affine)
        if folder == "labelsTr":
            image = nibabel.Nifti1Image(array, affine)
        if turn:
            image = image.as_reoriented(np.array([[turn.index(i), 1] for i in range(3)]))
        (root / folder).mkdir(parents=True, exist_ok=True)
        nibabel.save(image, root / folder / f"{name}.nii.gz")
    names = {"background": 0, "mass": 1, "edema": 2}
    tiny.text(root / "dataset.json", {"labels": names})
    tiny.text(root / "cases.csv", "case,patient,organ,finding\na,p,brain,mass\n")
    return root


def read(root, ledger=None, name="phantom_mr", **options):
    recipe = recipes.get(name)
    recipe = dataclasses.replace(recipe, options=recipe.options | options)
    ledger = Ledger() if ledger is None else ledger
    records = list(readers.read(recipe, root, ledger))
    ledger.check()
    return records


def shown(records) -> dict[str, set[int]]:
    """Axis -> numbers of the slices that show the mass."""
    found = {}
    for record in records:
        if record.boxes:
            axis, k = re.fullmatch(r".*#(?:(\w+)-)?(\d+)", record.path).groups()
            found.setdefault(axis, set()).add(int(k))
    return found


ALL = ("axial", "coronal", "sagittal")


@pytest.mark.parametrize("turn", [None, (2, 0, 1), (1, 2, 0)])
def test_all_three_axes_show_the_block_where_it_is(tmp_path, turn):
    found = read(phantom(tmp_path, turn=turn), axes=ALL, slices=99)
    assert len(found) == sum(SHAPE)
    assert shown(found) == {
        "axial": {3, 4, 5, 6},
        "coronal": {6, 7, 8, 9},
        "sagittal": {4, 5, 6, 7, 8},
    }
    sizes = {r.path.split("#")[1].split("-")[0]: (r.width, r.height) for r in found}
    # Rows of coronal and sagittal planes are 2 mm apart and come out twice as many.
    assert sizes == {"axial": (20, 16), "coronal": (20, 24), "sagittal": (16, 24)}
    box = next(r.boxes[0] for r in found if r.boxes and "coronal" in r.path)
    corners = (box.x1 * 20, box.y1 * 12, box.x2 * 20, box.y2 * 12)
    assert corners == pytest.approx((4, 5, 9, 9))  # superior is up: z 3-7 are rows 5-9


def test_the_pixels_of_a_reformatted_plane_are_those_of_the_block(tmp_path):
    found = read(phantom(tmp_path), axes=("sagittal",), slices=99)
    (record,) = (r for r in found if r.path.endswith("sagittal-6"))
    from gmai_lib.dataset import images

    pixels = images.decode(record.image)
    (box,) = record.boxes
    rows = slice(round(box.y1 * record.height), round(box.y2 * record.height))
    inside = pixels[rows, round(box.x1 * 16) : round(box.x2 * 16)]
    assert inside[1:-1].min() > 150 > np.median(pixels)


def test_thick_slices_are_not_reformatted(tmp_path):
    ledger = Ledger()
    found = read(phantom(tmp_path, THICK), ledger, axes=ALL, slices=99)
    assert {r.path.split("#")[1].split("-")[0] for r in found} == {"axial"} and len(found) == 12
    lost = tiny.reasons(ledger, "phantom_mr", "item")
    assert lost == {"reformatted plane of thick slices": 20 + 16}


def test_without_declared_axes_a_volume_is_cut_across_its_thickest(tmp_path):
    found = read(phantom(tmp_path, (5.0, 1.0, 1.0)), slices=99)
    assert len(found) == 20 and shown(found) == {None: {4, 5, 6, 7, 8}}


def test_an_unknown_axis_or_policy_is_an_error_of_the_recipe(tmp_path):
    root = phantom(tmp_path)
    with pytest.raises(ValueError, match=r"phantom_mr: axes \('oblique',\) is no list of"):
        read(root, axes=("oblique",))
    with pytest.raises(ValueError, match="axes 'axial' is no list of"):
        read(root, axes="axial")
    with pytest.raises(ValueError, match="select 'best' is not mixed, richest or even"):
        read(root, select="best")


def test_a_structure_below_the_minimum_size_is_neither_there_nor_absent(tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:9, 6:10, 3:7] = 1  # 20 mm2 on axial slices
    labels[12, 12, 3:9] = 2  # 1 mm2
    root = phantom(tmp_path, labels=labels)
    tiny.text(root / "cases.csv", "case,patient,organ,finding\na,p,brain,mass\nb,q,brain,edema\n")
    before = read(root, axes=("axial",), slices=99)
    assert [r.labels for r in before if "edema" in r.labels] == [("mass", "edema")] * 4 + [
        ("edema",)
    ] * 2
    ledger = Ledger()
    found = {int(r.path[-1:]): r for r in read(root, ledger, axes=("axial",), slices=9, min_mm2=2)}
    assert {k for k, r in found.items() if "mass" in r.labels} == {3, 4, 5, 6}
    assert not any("edema" in r.labels for r in found.values())
    for k, record in found.items():
        assert ("edema" in record.absent) == (k not in range(3, 9))
        assert record.boxes_are_complete == (k not in range(3, 9))
        assert k not in (7, 8) or record.labels == ()  # not "no finding"
    lost = tiny.reasons(ledger, "phantom_mr", "annotation")
    assert lost["region below the minimum size"] == 6
    assert lost["structure on no selected slice"] == 1


def test_the_minimum_size_is_in_millimetres(tmp_path):
    """20 pixels are 20 mm2 at 1 mm and 5 mm2 at half a millimetre."""
    for spacing, there in ((THIN, True), ((0.5, 0.5, 1.0), False)):
        root = phantom(tmp_path / str(spacing), spacing)
        assert bool(shown(read(root, axes=("axial",), slices=99, min_mm2=10))) == there


def test_the_smallest_region_of_flat_images_is_in_pixels(tmp_path):
    root = tmp_path / "Kvasir-SEG"
    tiny.picture(root / "images" / "a.jpg")
    tiny.mask(root / "masks" / "a.jpg", (10, 10, 30, 20))
    for least, labels in ((200, ("polyp",)), (230, ())):
        ledger = Ledger()
        (record,) = read(root, ledger, "kvasir_seg", min_pixels=least)
        assert record.labels == labels
    assert tiny.reasons(ledger, "kvasir_seg", "annotation") == {"region below the minimum size": 1}


def test_the_richest_slices_have_most_structures_and_then_most_area(tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:18, 2:14, 1] = 1  # one large structure
    labels[4:6, 6:8, 5] = 1  # two small ones
    labels[10:12, 6:8, 5] = 2
    labels[4:7, 6:8, 9] = 1  # two larger ones
    labels[10:12, 6:8, 9] = 2
    root = phantom(tmp_path, labels=labels)

    def kept(**options):
        return [int(r.path.split("-")[-1]) for r in read(root, axes=("axial",), **options)]

    assert kept(slices=1, select="richest") == [9]
    assert kept(slices=2, select="richest") == [5, 9]
    assert kept(slices=3, select="richest") == [1, 5, 9]
    assert kept(slices=6, select="richest") == [1, 5, 9]  # none without a structure
    assert kept(slices=99, select="richest") == [1, 5, 9]
    assert kept(slices=3, select="even") == [1, 5, 9]
    assert 9 in kept(slices=2) and len(kept(slices=2)) == 2


def test_select_slices_keeps_its_default():
    scores = [0.0] * 40
    scores[20:25] = [5, 6, 7, 6, 5]
    assert volumes.select_slices(scores, 4) == volumes.select_slices(scores, 4, "mixed")
    assert volumes.select_slices(scores, 4, "richest") == [22]


# ---- DICOM series --------------------------------------------------------------------------


def series(tmp_path, spacing=(2.0, 1.0, 1.0)):
    """A CT series of 12 slices with an RTSTRUCT of a block: x 10-20, y 4-12, slices 2-4."""
    shape = (12, 24, 32)
    block = tiny_archive.block(slice(2, 5), slice(4, 12), slice(10, 20), shape=shape)
    study = tmp_path / "NSCLC-Radiomics" / "LUNG1-001" / tiny_archive.STUDY
    voxels = np.where(block, 200, -100)
    slices = tiny_archive.ct(study / "0.000000-NA-82046", "LUNG1-001", shape, spacing, voxels)
    contours = [(s, tiny_archive.rectangle(s, 10, 4, 20, 12)) for s in slices[2:5]]
    tiny_archive.rtstruct(study / "3.000000-NA-78236" / "1-1.dcm", slices, {"GTV-1": contours})
    return tmp_path / "NSCLC-Radiomics"


def test_a_series_is_reformatted_with_its_contours(tmp_path):
    from gmai_lib.dataset import images

    ledger = Ledger()
    found = read(series(tmp_path), ledger, "nsclc_radiomics", axes=ALL, slices=99)
    assert len(found) == 12 + 24 + 32
    axial = [r for r in found if r.path.endswith(".dcm")]  # its own slices keep their files
    assert len(axial) == 12 and sum(bool(r.boxes) for r in axial) == 3
    across = [r for r in found if not r.path.endswith(".dcm")]
    assert shown(across) == {"coronal": set(range(4, 12)), "sagittal": set(range(10, 20))}
    for record in across:
        for box in record.boxes:
            pixels = images.decode(record.image)
            height, width = pixels.shape
            y, x = (box.y1 + box.y2) / 2 * height, (box.x1 + box.x2) / 2 * width
            # 200 and -100 HU in the window "mediastinum".
            assert (pixels[int(y), int(x)], pixels[0, 0]) == (237, 18)
    assert tiny.totals(ledger, "nsclc_radiomics") == {"item": (68, 0), "annotation": (1, 0)}


@pytest.mark.parametrize(
    ("sexes", "expected", "lost"),
    [
        (["F"] * 12, ("female", "65+"), {}),
        (["", *["M"] * 11], ("male", "65+"), {}),  # one slice says nothing
        (["F", *["M"] * 11], ("", "65+"), {"sex not understood": 1}),
    ],
)
def test_sex_and_age_of_a_series_are_what_its_slices_agree_on(tmp_path, sexes, expected, lost):
    root, ledger = series(tmp_path), Ledger()
    for path, sex in zip(sorted(root.glob("*/*/0.*/*.dcm")), sexes, strict=True):
        slice_ = pydicom.dcmread(path)
        slice_.PatientSex, slice_.PatientAge = sex, "071Y"
        slice_.save_as(path)
    found = read(root, ledger, "nsclc_radiomics", axes=ALL)
    assert {(record.sex, record.age_group) for record in found} == {expected}
    assert tiny.reasons(ledger, "nsclc_radiomics", "annotation") == lost


def test_a_series_that_is_not_whole_is_not_reformatted(tmp_path):
    root = series(tmp_path)
    next(root.glob("*/*/0.*/1-7.dcm")).unlink()
    ledger = Ledger()
    found = read(root, ledger, "nsclc_radiomics", axes=ALL, slices=99)
    assert len(found) == 11 and sum(bool(r.boxes) for r in found) == 3
    lost = tiny.reasons(ledger, "nsclc_radiomics", "item")
    assert lost == {"plane across a series with missing or doubled slices": 24 + 32}


def test_thick_slices_of_a_series_are_not_reformatted(tmp_path):
    ledger = Ledger()
    root = series(tmp_path, (5.0, 1.0, 1.0))
    assert len(read(root, ledger, "nsclc_radiomics", axes=("coronal",))) == 0
    assert tiny.reasons(ledger, "nsclc_radiomics", "item") == {
        "slice across an axis not declared": 12,
        "reformatted plane of thick slices": 24,
    }


def test_regions_are_the_same_whether_they_are_searched_or_seen_at_once(monkeypatch):
    rng, seen = np.random.default_rng(0), 0
    rows, columns = np.mgrid[:24, :32]
    masks = [(rows - 11) ** 2 + (columns - 9) ** 2 < r**2 for r in (1, 2, 5, 9)]
    masks += [np.eye(24, 32, dtype=bool), np.eye(24, 32, k=2, dtype=bool)[:, ::-1]]
    masks += [np.eye(24, 32, dtype=bool) & (rows != 7), (columns - 15) ** 2 > rows]
    masks += [rng.random((24, 32)) < share for share in (0.02, 0.1, 0.5, 0.9, 1.1)]
    # Rows of one run each, which touch the next one, or miss it by one pixel.
    masks += [(columns >= rows % 2 * gap) & (columns < 5 + rows % 2 * 9) for gap in (4, 5, 6, 7)]
    for mask in masks:
        found = records.boxes_of_mask(mask, "x", "components")
        seen += records._is_one_region(mask[mask.any(axis=1)])
        with monkeypatch.context() as patched:
            patched.setattr(records, "_is_one_region", lambda mask: False)
            assert found == records.boxes_of_mask(mask, "x", "components")
    assert 0 < seen < len(masks)


@pytest.mark.parametrize("dtype", [bool, np.uint8, ">i2", np.uint64])
def test_the_values_of_a_mask_are_counted_whatever_their_type(dtype):
    values = np.zeros((4, 5, 6), dtype)
    values[1:3, 2, :3] = 1
    found, counts = stacks.counted_values(values.T)
    assert found.tolist() == [1] and counts.tolist() == [6]
    if dtype is np.uint64:
        values[0, 0, 0] = 2**40
        assert stacks.counted_values(values)[0].tolist() == [1, 2**40]
