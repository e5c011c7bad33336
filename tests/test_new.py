"""Drafts of recipes: every phantom source under another name, real folders, what is not known."""

import shutil

import pytest

from gmai_lib.dataset import new, phantom_files, recipes
from gmai_lib.schema import Ledger


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    phantom_files.write_sources(folder, seed=0, images_per_modality=12, size=48, processes=1)
    return folder


@pytest.mark.parametrize("recipe", recipes.PHANTOMS, ids=lambda recipe: recipe.name)
def test_a_phantom_source_under_another_name_is_recognised(sources, tmp_path, recipe):
    """The drafted reader is the recipe's own, and it finds as many records and boxes."""
    from gmai_lib.dataset import readers

    folder = tmp_path / "something else"
    shutil.copytree(sources / recipe.name, folder)
    drafts = new.draft(folder)
    surest = drafts[0].recipe
    assert surest.reader == recipe.reader
    assert surest.license == "unstated" and surest.modality == surest.task == new.ASK
    records, ledger = new.attempt(surest, folder, recipe.modality)
    ledger.check()
    own = list(readers.read(recipe, sources / recipe.name, Ledger()))
    assert len(records) == len(own)
    if recipe.name != "phantom_dermoscopy":  # its masks are named by the table's column
        assert sum(len(r.boxes) for r in records) == sum(len(r.boxes) for r in own)


@pytest.mark.parametrize("recipe", recipes.PHANTOMS, ids=lambda recipe: recipe.name)
def test_the_draft_is_python(sources, tmp_path, recipe):
    folder = tmp_path / "mine"
    shutil.copytree(sources / recipe.name, folder)
    for draft in new.draft(folder):
        again = eval(draft.source(), {"Recipe": recipes.Recipe})
        assert again == draft.recipe
        assert recipes.matches(again, folder), "its marks find the folder it was drafted from"


def test_a_split_in_the_path_is_a_split(tmp_path):
    for split in ("Training", "Testing"):
        for label in ("a", "b"):
            (tmp_path / "set" / split / label).mkdir(parents=True)
            (tmp_path / "set" / split / label / "1.png").write_bytes(b"x")
    (draft,) = new.draft(tmp_path / "set")
    assert draft.recipe.options["path"] == "(?P<split>Testing|Training)/(?P<label>[^/]+)/[^/]+"


def test_what_is_not_known_is_said(tmp_path):
    (tmp_path / "data.bin").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"in no format that a reader knows .* 1 files: 1 .bin"):
        new.draft(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        new.draft(tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="it holds 0 files: none"):
        new.draft(empty)


@pytest.mark.parametrize("broken", ["not json", "[]", "{}", "[1]", '{"a": [{}]}', "\x00"])
def test_broken_indexes_are_passed_over(tmp_path, broken):
    (tmp_path / "index.json").write_text(broken)
    (tmp_path / "sheet.xml").write_text(broken)
    (tmp_path / "table.csv").write_text(broken)
    with pytest.raises(ValueError, match="in no format"):
        new.draft(tmp_path)


def test_command_line(sources, tmp_path, capsys):
    folder = tmp_path / "chest"
    shutil.copytree(sources / "phantom_xray", folder)
    new.main([str(folder), "--modality", "X-ray"])
    said = capsys.readouterr().out
    assert "surest: annotations.json is a COCO index of 12 images" in said
    assert "Recipe(" in said and "tried on the first 12 records" in said
    new.main([str(sources / "phantom_xray")])
    assert "is recognised already: phantom_xray" in capsys.readouterr().out
    for wrong in ([str(tmp_path / "none")], [str(folder), "--modality", "xray"]):
        with pytest.raises(SystemExit):
            new.main(wrong)
