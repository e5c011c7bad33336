"""licenses: SPDX identifiers only, conditions read off them, a commercial build refuses by name."""

import pytest
import tiny_datasets as tiny

from gmai_lib.dataset import catalog, licenses
from gmai_lib.dataset.recipes import RECIPES

PHANTOM = {"source": "phantom_ct", "license": "CC0-1.0", "access": "open"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_names_an_spdx_licence_or_unstated(recipe):
    assert recipe.license == "unstated" or licenses.terms(recipe.license).is_known


def test_every_licence_of_the_catalog_is_known():
    named = set(catalog.load().license) - {"unstated"}
    assert named and all(licenses.terms(name).is_known for name in named)


@pytest.mark.parametrize(
    ("license", "rights"),
    [  # commercial, derivatives, share alike, attribution
        ("CC0-1.0", (True, True, False, False)),
        ("MIT", (True, True, False, True)),
        ("CC-BY-4.0", (True, True, False, True)),
        ("CC-BY-SA-4.0", (True, True, True, True)),
        ("ODbL-1.0", (True, True, True, True)),
        ("CC-BY-NC-4.0", (False, True, False, True)),
        ("CC-BY-NC-SA-4.0", (False, True, True, True)),
        ("CC-BY-NC-ND-4.0", (False, False, False, True)),
        ("CC-BY-ND-4.0", (True, False, False, True)),
    ],
)
def test_terms_of_listed_licences(license, rights):
    found = licenses.terms(license)
    stated = (found.commercial, found.derivatives, found.share_alike, found.attribution)
    assert found.is_known and stated == rights


@pytest.mark.parametrize("name", ["unstated", "CC-BY", "CC BY 4.0", "cc-by-4.0", "free", ""])
def test_what_is_not_on_the_list_allows_nothing(name):
    found = licenses.terms(name)
    assert not (found.is_known or found.commercial or found.derivatives)


def test_require_names_every_source_and_what_to_do():
    sources = [
        PHANTOM,
        {"source": "skin", "license": "CC-BY-NC-4.0", "access": "open"},
        {"source": "skin", "license": "CC0-1.0", "access": "open"},
        {"source": "atlas", "license": "unstated", "access": "open"},
        {"source": "ward", "license": "CC-BY-4.0", "access": "credentialed"},
    ]
    licenses.require(sources, "research")
    licenses.require([PHANTOM], "commercial")
    with pytest.raises(ValueError) as caught:
        licenses.require(sources, "commercial")
    assert str(caught.value).startswith(
        "a commercial build may not contain atlas (license is unstated), "
        "skin (license CC-BY-NC-4.0 is non-commercial), ward (access is credentialed): leave"
    )
    with pytest.raises(ValueError, match="use 'sale' is not one of"):
        licenses.require([PHANTOM], "sale")


@pytest.mark.parametrize(
    ("names", "binding"),
    [
        ({"MIT", "CC0-1.0"}, "MIT"),
        ({"MIT", "CC-BY-NC-SA-4.0", "CC-BY-4.0"}, "CC-BY-NC-SA-4.0"),
        ({"CC-BY-SA-4.0", "CC-BY-4.0"}, "CC-BY-SA-4.0"),
        ({"CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0"}, "CC-BY-NC-ND-4.0"),
        ({"MIT", "unstated"}, "unstated"),
        ({"CC-BY-NC-SA-4.0", "CC BY-NC-ND"}, "CC BY-NC-ND"),
    ],
)
def test_the_strictest_licence_binds_and_an_unknown_one_is_strictest(names, binding):
    assert licenses.strictest(names) == binding


def test_conditions_that_the_strictest_licence_lacks_are_named():
    assert licenses.uncovered({"CC-BY-SA-4.0", "CC-BY-NC-4.0", "MIT"}) == ["CC-BY-SA-4.0"]
    assert licenses.uncovered({"CC-BY-4.0", "MIT"}) == []
    assert licenses.uncovered({"CC-BY-4.0", "unstated"}) == []


def test_the_hub_gets_identifiers_of_its_own_list():
    assert licenses.hub_metadata("CC-BY-NC-4.0") == {"license": "cc-by-nc-4.0"}
    assert licenses.hub_metadata("ODbL-1.0") == {"license": "odbl"}
    other = {"license": "other", "license_name": "cc-by-nd-1.0"}
    assert licenses.hub_metadata("CC-BY-ND-1.0") == other
    assert licenses.hub_metadata("unstated")["license"] == "other"


def test_command_line_refuses_in_one_sentence(tmp_path, capsys):
    tiny.covid(tmp_path / "covid_kjr_notes")
    licenses.main([str(tmp_path)])
    assert "a research build may contain all 1 sources" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        licenses.main([str(tmp_path), "--use", "commercial"])
    assert "covid_kjr_notes (license is unstated)" in capsys.readouterr().err
