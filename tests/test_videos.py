"""Films and volumes of other libraries: Cholec80's layout, MetaImage and NRRD."""

import json

import av
import numpy as np
import pytest
import SimpleITK

from gmai_lib.dataset import planes, readers, recipes
from gmai_lib.schema import Ledger

TOOLS = "Frame\tGrasper\tBipolar\tHook\tScissors\tClipper\tIrrigator\tSpecimenBag"


def film(path, frames=101, keys=40):
    """A film whose every frame has its number as brightness; key frames are rare."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.gop_size = keys
        stream.bit_rate = 4_000_000
        for number in range(frames):
            grey = np.full((48, 64, 3), 2 * number + 20, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([TOOLS, *rows]) + "\n")


def read(root):
    ((recipe, found),) = recipes.find(root.parent)
    ledger = Ledger()
    records = list(readers.read(recipe, found, ledger))
    ledger.check()
    return recipe, records, {key[3]: n for key, n in ledger.dropped.items()}


def test_annotated_frames_of_a_film_become_records(tmp_path):
    root = tmp_path / "cholec80"
    film(root / "videos" / "video01.mp4")
    film(root / "videos" / "video02.mp4")
    rows = [f"{frame}\t1\t0\t{int(frame == 50)}\t0\t0\t0\t0" for frame in (0, 25, 50, 75, 100)]
    rows += ["125\t0\t0\t0\t0\t0\t0\t0", "150\t1\t0", "x\t0\t0\t0\t0\t0\t0\t0"]
    table(root / "tool_annotations" / "video01-tool.txt", rows)
    table(root / "tool_annotations" / "video09-tool.txt", rows)
    recipe, records, dropped = read(root)
    assert recipe.name == "cholec80" and recipe.access == "registration"
    frames = [int(r.path.rpartition("#")[2]) for r in records]
    assert frames == [0, 25, 50, 75, 100]
    from gmai_lib.dataset.images import decode

    for frame, record in zip(frames, records, strict=True):
        assert abs(decode(record.image).mean() - (2 * frame + 20)) < 4, "it is that very frame"
    assert records[2].labels == ("grasper", "hook") and "scissors" in records[2].absent
    assert {r.volume for r in records} == {"videos/video01.mp4"} and records[0].dimension == "video"
    assert dropped == {
        "malformed table row": 2,
        "frame cannot be decoded": 1,  # the film ends before it
        "video without its table": 1,
        "table without its video": 1,
    }


def test_of_many_annotated_frames_some_are_kept(tmp_path):
    root = tmp_path / "cholec80"
    film(root / "videos" / "video01.mp4", frames=60)
    rows = [f"{frame}\t0\t0\t0\t0\t0\t0\t0" for frame in range(50)]
    table(root / "tool_annotations" / "video01-tool.txt", rows)
    _, records, dropped = read(root)
    assert len(records) == 8 and dropped == {"frame not selected": 42}
    assert all(r.labels == ("no finding",) for r in records)


@pytest.mark.parametrize("content", [b"", b"no film at all", None])
def test_a_broken_film_is_counted(tmp_path, content):
    root = tmp_path / "cholec80"
    film(root / "videos" / "video01.mp4", frames=30)
    path = root / "videos" / "video01.mp4"
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    table(root / "tool_annotations" / "video01-tool.txt", ["0\t1\t0\t0\t0\t0\t0\t0"])
    _, records, dropped = read(root)
    assert records == [] and dropped["frame cannot be decoded"] == 1


def test_a_table_of_another_kind_is_named(tmp_path):
    root = tmp_path / "cholec80"
    film(root / "videos" / "video01.mp4", frames=2)
    (root / "tool_annotations").mkdir()
    (root / "tool_annotations" / "video01-tool.txt").write_text("0,1,2\n")
    with pytest.raises(ValueError, match=r"video01-tool\.txt has the header"):
        read(root)


def itk_pair(root, suffix):
    """An nnU-Net case; the structure lies at high x, low y in patient space (LPS)."""
    values = np.zeros((6, 20, 16), np.int16)  # z, y, x
    values[:, 2:6, 10:14] = 1
    for name, array in (("imagesTr/a_0000", values * 900 + 50), ("labelsTr/a", values)):
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing((0.5, 0.7, 3.0))
        image.SetOrigin((-10.0, 20.0, 5.0))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(image, str(root / f"{name}{suffix}"))
    index = {"labels": {"background": 0, "liver": 1}, "file_ending": suffix, "numTraining": 1}
    (root / "dataset.json").write_text(json.dumps(index))


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_metaimage_and_nrrd_have_the_geometry_of_the_same_nifti(tmp_path, suffix):
    itk_pair(tmp_path, suffix)
    itk_pair(tmp_path, ".nii.gz")
    ours, values = planes.load_volume(tmp_path / f"imagesTr/a_0000{suffix}")
    nifti, same = planes.load_volume(tmp_path / "imagesTr/a_0000.nii.gz")
    np.testing.assert_allclose(ours.affine, nifti.affine, atol=1e-5)
    np.testing.assert_array_equal(values, same)
    assert values.shape == (16, 20, 6)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("fault", ["empty", "half", "text"])
def test_a_broken_volume_is_a_value_error(tmp_path, suffix, fault):
    itk_pair(tmp_path, suffix)
    path = tmp_path / f"imagesTr/a_0000{suffix}"
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "text": b"not a volume"}[fault])
    with pytest.raises(ValueError, match="cannot read the volume"):
        planes.load_volume(path)


def test_a_volume_that_claims_to_be_huge_is_not_allocated(tmp_path):
    path = tmp_path / "huge.mha"
    header = "ObjectType = Image\nNDims = 3\nDimSize = 90000 90000 90000\nElementType = MET_SHORT\n"
    path.write_text(header + "ElementDataFile = LOCAL\n")
    with pytest.raises(ValueError, match="90000"):
        planes.load_volume(path)
