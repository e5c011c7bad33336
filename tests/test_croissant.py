"""Croissant metadata: the reference reader takes it, checks the sums and finds every sample."""

import json
from dataclasses import replace

import datasets
import pytest
from synthetic_records import phantom, png, text_only

from gmai_lib.dataset import build, croissant, curate, phantom_files, readers, recipes
from gmai_lib.dataset.writers import TemplateWriter
from gmai_lib.schema import SPLITS, Ledger, sample_features


def write_pairs(records, out, **changes):
    arguments = {"writer": TemplateWriter(0), "seed": 0, "chinese_fraction": 0.3} | changes
    return build.write_pairs(records, out, **arguments)


@pytest.fixture(scope="module")
def phantom_pairs(tmp_path_factory):
    """A build of one two-dimensional and one volume source, as notebooks 01 to 03 make it."""
    root = tmp_path_factory.mktemp("croissant")
    phantom_files.write_sources(
        root / "sources",
        seed=0,
        images_per_modality=10,
        size=48,
        only=("phantom_oct", "phantom_mr"),
    )
    read = [
        record
        for recipe, folder in recipes.find(root / "sources")
        for record in readers.read(recipe, folder, Ledger())
    ]
    fractions = {"validation_fraction": 0.2, "test_fraction": 0.2}
    kept = curate.assign_splits(list(curate.apply(read, Ledger())), seed=0, **fractions)
    manifest = write_pairs([*kept, replace(text_only(), split="train")], root / "pairs")
    return root / "pairs", manifest


def test_the_reference_reader_yields_every_sample(phantom_pairs, tmp_path):
    import mlcroissant

    pairs, manifest = phantom_pairs
    croissant.write(pairs, url="https://example.org", creator="Us", date_published="2026-01-31")
    dataset = mlcroissant.Dataset(str(pairs / croissant.NAME))
    assert not dataset.metadata.ctx.issues.errors
    rows = {}
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("parquet", data_dir=str(pairs), cache_dir=cache)
    for split, part in loaded.items():
        assert split in SPLITS
        rows |= {row["id"]: row for row in part}
    records = list(dataset.records("pairs"))
    assert len(records) == len(rows) == manifest["num_samples"]
    pictured = 0
    for record in records:
        row = rows[record["pairs/id"].decode()]
        assert set(record) == {f"pairs/{name}" for name in sample_features()}
        assert record["pairs/split"].decode() == row["split"]
        assert [label.decode() for label in record["pairs/labels"]] == row["labels"]
        for column in ("conversations", "boxes", "facts"):
            shown = [
                {
                    key.rpartition("/")[2]: value.decode() if isinstance(value, bytes) else value
                    for key, value in part.items()
                }
                for part in record[f"pairs/{column}"] or []
            ]
            assert shown == row[column], column
        for image, stored in zip(record["pairs/images"], row["images"], strict=True):
            assert image.size == (row["width"], row["height"])
            assert stored["bytes"]
            pictured += 1
    assert pictured > 10
    splits = list(dataset.records("splits"))
    assert [row["splits/name"] for row in splits] == list(SPLITS)


def test_the_sums_of_the_shards_are_stated(phantom_pairs):
    import mlcroissant

    pairs, manifest = phantom_pairs
    metadata = croissant.write(pairs)
    files = {f["@id"]: f for f in metadata["distribution"] if f["@type"] == "cr:FileObject"}
    assert {name: f["sha256"] for name, f in files.items()} == {
        shard["name"]: shard["sha256"] for shard in manifest["shards"]
    }
    dataset = mlcroissant.Dataset(str(pairs / croissant.NAME))
    stated = {f.id: f.sha256 for f in dataset.metadata.file_objects}
    assert stated == {name: f["sha256"] for name, f in files.items()}


def test_what_is_unknown_is_left_out_and_what_is_known_is_from_the_build(phantom_pairs):
    pairs, manifest = phantom_pairs
    metadata = croissant.write(pairs)
    assert not {*croissant.REQUIRED, "citeAs", "version", "rai:dataBiases"} & set(metadata)
    stated = croissant.write(pairs, url="https://example.org", creator="Us")
    assert stated["url"] == "https://example.org" and stated["creator"]["name"] == "Us"
    assert "datePublished" not in stated
    assert set(metadata["license"]) == {
        croissant.license_url(name) for name in manifest["composition"]["license"]
    }
    derived = {s["prov:label"]: s for s in metadata["prov:wasDerivedFrom"]}
    assert set(derived) == {row["source"] for row in manifest["records"]}
    assert derived["phantom_oct"]["citation"] == recipes.get("phantom_oct").citation
    assert metadata["rai:machineAnnotationTools"] == [manifest["writer"]]
    assert f"{manifest['fidelity']['checked']} samples" in metadata["rai:dataAnnotationProtocol"][1]


def test_licences_are_named_by_spdx_or_as_they_are():
    assert croissant.license_url("CC-BY-4.0") == "https://spdx.org/licenses/CC-BY-4.0.html"
    assert croissant.license_url("unstated") == "unstated"
    assert croissant.license_url("CC BY-NC-ND") == "CC BY-NC-ND"


def test_same_build_same_bytes_and_a_new_build_takes_the_old_metadata_away(tmp_path):
    write_pairs([phantom(0, image=png(0))], tmp_path)
    croissant.write(tmp_path)
    before = (tmp_path / croissant.NAME).read_bytes()
    croissant.write(tmp_path)
    assert (tmp_path / croissant.NAME).read_bytes() == before
    assert json.loads(before)["license"] == ["https://spdx.org/licenses/CC0-1.0.html"]
    write_pairs([phantom(1, image=png(1))], tmp_path)
    assert not (tmp_path / croissant.NAME).exists()


def test_without_a_manifest_or_a_shard_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json; run notebook 03"):
        croissant.write(tmp_path)
    manifest = write_pairs([phantom(0)], tmp_path)
    (tmp_path / manifest["shards"][0]["name"]).unlink()
    with pytest.raises(FileNotFoundError, match="is missing; write the pairs again"):
        croissant.write(tmp_path)
