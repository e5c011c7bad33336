"""The registry of public datasets: every row within the vocabularies, filters, coverage."""

import re

import pytest

from gmai_lib.cards import PAPER_MODALITY_SHARES
from gmai_lib.dataset import catalog, recipes
from gmai_lib.schema import ACCESS, DEPARTMENTS, IMAGE_MODALITIES, MODALITIES, TASKS


@pytest.fixture(scope="module")
def registry():
    return catalog.load()


def test_every_row_keeps_to_the_vocabularies(registry):
    assert len(registry) >= 300
    known = {recipe.name for recipe in recipes.RECIPES}
    for row in registry.itertuples():
        assert row.name.isascii() and row.name == row.name.strip()
        assert set(row.modalities) <= {*MODALITIES, *catalog.OTHER_MODALITIES}, row
        assert set(row.annotations) <= set(catalog.ANNOTATIONS), row
        assert set(row.dimensions) <= set(catalog.DIMENSIONS), row
        for values in (row.modalities, row.annotations, row.dimensions):
            assert values and len(values) == len(set(values)), row
        assert row.department in DEPARTMENTS and row.task in (*TASKS, "unstated"), row
        assert row.access in ACCESS and row.obtained, row
        assert re.fullmatch(
            r"unstated|MIT|Apache-2\.0|CC0-1\.0|CC-BY(-NC)?(-[SN][AD])?-[2-4]\.0", row.license
        ), row
        assert re.fullmatch(r"https?://\S+", row.homepage), row
        assert row.recipe in known | {""}, row
    assert not registry.name.str.lower().duplicated().any()
    assert (registry["size"].dropna() > 0).all()
    assert registry.year.dropna().between(1990, 2026).all()


def test_every_recipe_of_a_public_dataset_is_in_the_registry(registry):
    public = {r.name: r for r in recipes.RECIPES if r not in recipes.PHANTOMS}
    named = registry[registry.recipe != ""].set_index("recipe")
    assert set(named.index) == set(public)  # some lists have a dataset twice
    for name, row in named.iterrows():
        recipe = public[name]
        assert "unstated" in (row.license, recipe.license) or row.license == recipe.license, name
        assert recipe.modality == "unstated" or recipe.modality in row.modalities, name


def test_the_registry_covers_the_paper(registry):
    named = {value for values in registry.modalities for value in values}
    assert set(IMAGE_MODALITIES) - named == {"ophthalmoscope"}  # not a word that public lists use
    assert set(registry.department) >= set(DEPARTMENTS) - {"sports medicine", "oncology"} - {
        "infectious diseases"
    }
    assert set(registry.recipe) - {""} >= {"vqa_rad", "bccd", "dsb2018_nuclei"}


def test_find_filters_and_names_the_vocabulary(registry):
    fundus = catalog.find(registry, modality="fundus", annotation="segmentation", access="open")
    assert 0 < len(fundus) < len(catalog.find(registry, modality="fundus"))
    assert all("fundus" in values for values in fundus.modalities)
    assert set(catalog.find(registry, recipe=True).recipe) == set(registry.recipe) - {""}
    assert len(catalog.find(registry)) == len(registry)
    brain = catalog.find(registry, department="neurosurgery", dimension="3D")
    assert set(brain.organ) == {"brain"}
    with pytest.raises(ValueError, match="unknown modalities 'xray'; known: CT, MR, X-ray"):
        catalog.find(registry, modality="xray")


def test_coverage_counts_each_value_of_a_list(registry):
    table = catalog.coverage(registry, "modalities", "access")
    assert table.loc["CT"].sum() == sum("CT" in values for values in registry.modalities)
    assert list(table.columns) == sorted(set(registry.access))


def test_shares_stand_beside_the_papers(registry):
    rows = catalog.shares(registry, "modalities", PAPER_MODALITY_SHARES)
    assert [row["modalities"] for row in rows[:2]] == ["CT", "MR"]
    assert sum(row["ours"] for row in rows) == pytest.approx(100, abs=2)
    assert rows[0]["paper"] == 26.8 and rows[-1]["paper"] is None
    departments = catalog.shares(registry, "department", catalog.PAPER_DEPARTMENT_SHARES)
    assert departments[0]["department"] == "orthopedic surgery"


def test_a_label_decides_the_task_before_the_annotation(registry):
    tasks = registry.set_index("name").task
    assert tasks["FIVES"] == tasks["RITE"] == "blood vessels recognition"
    assert tasks["TCGA-LGG"] != "severity grading"  # "low grade glioma" grades nothing
    assert tasks["VQA-RAD"] == "attribute recognition"
    assert tasks["BCCD"] in ("organ recognition", "cell recognition")
    only = registry[[set(values) == {"registration"} for values in registry.annotations]]
    assert set(only.task) == {"unstated"}


def test_command_line(capsys):
    catalog.main(["--modality", "fundus", "--access", "open"])
    assert capsys.readouterr().out.strip().splitlines()[-1].endswith("datasets")
    with pytest.raises(SystemExit):
        catalog.main(["--modality", "xray"])
    assert "known: CT, MR" in capsys.readouterr().err
