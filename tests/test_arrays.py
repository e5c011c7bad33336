"""The .npz reader on every MedMNIST set, in the published layout (info.py v3.0.2, dataset.py)."""

import zipfile
from collections import Counter

import numpy as np
import pytest

from gmai_lib.dataset import images, readers, recipes
from gmai_lib.schema import NO_FINDING, Ledger

# Channels of each set as published: 3 for RGB; "3d" sets have an axis more.
RGB = ("pathmnist", "dermamnist", "retinamnist", "bloodmnist")
BY_NAME = {recipe.name: recipe for recipe in recipes.MEDMNIST}


def write(folder, recipe, size=28, ending="", **changes):
    """A file of the published layout with one image per label in train and two in val and test."""
    rng, labels, arrays = np.random.default_rng(0), recipe.options["labels"], {}
    for split, count in (("train", len(labels)), ("val", 2), ("test", 2)):
        shape = (count, size, size)
        if recipe.name in RGB:
            shape = (*shape, 3)
        if recipe.name.endswith("3d"):
            shape = (count, 28, 28, 28)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, np.uint8)
        numbers = np.arange(count) % len(labels)
        arrays[f"{split}_labels"] = numbers[:, None].astype(np.uint8)
        if recipe.name == "chestmnist":
            arrays[f"{split}_labels"] = np.eye(len(labels), dtype=np.uint8)[numbers]
    arrays |= changes
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{recipe.name}{ending}.npz", **arrays)
    return arrays


@pytest.mark.parametrize("recipe", recipes.MEDMNIST, ids=lambda recipe: recipe.name)
def test_every_set_is_found_and_read(tmp_path, recipe):
    arrays = write(tmp_path / "downloads", recipe)
    ((found, root),) = recipes.find(tmp_path)
    assert found is recipe
    ledger = Ledger()
    records = list(readers.read(recipe, root, ledger))
    ledger.check()
    planes = 3 if recipe.name.endswith("3d") else 1
    count = len(recipe.options["labels"]) + 4
    assert len(records) == count * planes == ledger.kept[recipe.name, "read", "item"]
    splits = {"train": (count - 4) * planes, "validation": 2 * planes, "test": 2 * planes}
    assert Counter(r.split for r in records) == splits
    said = [r.labels[0] for r in records if r.split == "train"][::planes]
    assert said == list(recipe.options["labels"])
    for record in records:
        assert record.labels and not set(record.labels) & set(record.absent)
        assert bool(record.volume) == (planes == 3)
    stored = [plane for split in ("train", "val", "test") for plane in arrays[f"{split}_images"]]
    for number, record in enumerate(records[::planes]):
        wanted = stored[number] if planes == 1 else stored[number][4]
        np.testing.assert_array_equal(images.decode(record.image), wanted)
    assert len({r.id for r in records}) == len(records)


def test_a_row_of_zeros_has_no_finding_and_grades_are_severities(tmp_path):
    chest = BY_NAME["chestmnist"]
    zeros = np.zeros((2, 14), np.uint8)
    zeros[1, [0, 2]] = 1
    write(tmp_path / "a", chest, val_labels=zeros)
    none, two = [r for r in read(chest, tmp_path / "a") if r.split == "validation"]
    assert none.labels == (NO_FINDING,) and len(none.absent) == 14
    assert two.labels == ("atelectasis", "effusion") and len(two.absent) == 12
    retina = BY_NAME["retinamnist"]
    write(tmp_path / "b", retina)
    grades = [(r.labels[0], r.severity) for r in read(retina, tmp_path / "b")][:5]
    assert grades[0] == (NO_FINDING, "") and grades[4] == ("diabetic retinopathy", "proliferative")


def read(recipe, root, ledger=None):
    return list(readers.read(recipe, root, ledger or Ledger()))


def test_the_largest_size_is_read(tmp_path):
    recipe = BY_NAME["octmnist"]
    write(tmp_path / "x", recipe)
    write(tmp_path / "x", recipe, size=64, ending="_64")
    assert {r.width for r in read(recipe, tmp_path / "x")} == {64}


def test_odd_labels_and_lengths_are_counted(tmp_path):
    recipe, ledger = BY_NAME["pneumoniamnist"], Ledger()
    write(
        tmp_path / "x",
        recipe,
        train_labels=np.array([[0], [7]], np.uint8),
        val_labels=np.array([[1]], np.uint8),
        test_labels=np.array([[1], [0], [1]], np.uint8),
    )
    records = read(recipe, tmp_path / "x", ledger)
    ledger.check()
    lost = {r["outcome"]: r["count"] for r in ledger.rows() if r["level"] == "item"}
    assert lost == {
        "kept": len(records),
        "label number is not in the list": 1,
        "image without a label": 1,
        "label without an image": 1,
    }


@pytest.mark.parametrize("broken", ["truncated", "text", "pickled", "empty", "short"])
def test_a_broken_file_is_named(tmp_path, broken):
    recipe = BY_NAME["octmnist"]
    write(tmp_path / "x", recipe)
    path = tmp_path / "x" / "octmnist.npz"
    data = path.read_bytes()
    if broken == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif broken == "text":
        path.write_text("not an archive")
    elif broken == "pickled":
        np.savez(path, train_images=np.array([{"a": 1}, None]), train_labels=np.zeros((2, 1)))
    elif broken == "empty":
        np.savez(path, other=np.zeros(3))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("train_labels.npy", b"\x93NUMPY")
            archive.writestr("train_images.npy", b"\x93NUMPY\x01\x00")
    with pytest.raises(ValueError, match=r"octmnist.npz is no readable .npz .* download it again"):
        read(recipe, tmp_path / "x")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    recipe = BY_NAME["pathmnist"]
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set/pathmnist.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, count in (("train_labels", 1), ("train_images", 40_000)):
            shape = (count, 28, 28, 3) if name == "train_images" else (count, 1)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.save(file, np.zeros(shape, np.uint8))
    assert (tmp_path / "set/pathmnist.npz").stat().st_size < 200_000
    with pytest.raises(ValueError, match=r"train_images\.npy unpacks to 94,080,128 bytes"):
        list(readers.read(recipe, tmp_path / "set", Ledger()))
