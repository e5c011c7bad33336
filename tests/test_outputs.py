"""Output folders: atomic writes, and clear sentences when something is missing."""

import pytest

from gmai_lib import outputs


def test_atomic_leaves_nothing_behind_when_the_block_fails(tmp_path):
    target = tmp_path / "table.json"
    with pytest.raises(RuntimeError), outputs.atomic(target) as partial:
        partial.write_text("half")
        raise RuntimeError("killed")
    assert list(tmp_path.iterdir()) == []


def test_atomic_replaces_in_one_step(tmp_path):
    target = tmp_path / "table.json"
    outputs.write_json(target, {"a": 1})
    with outputs.atomic(target) as partial:
        partial.write_text("[2]")
        assert outputs.read_json(target) == {"a": 1}
    assert outputs.read_json(target) == [2]


def test_require_names_the_notebook_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run notebook 05_model first .*--to 05"):
        outputs.require(tmp_path, "mini", "05_model/initial")


def test_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "outputs").write_text("a file where a folder should be")
    with pytest.raises(PermissionError, match=r"cannot write to .*--outputs"):
        outputs.folder(tmp_path / "outputs", "mini", "00_environment")


def test_read_json_names_the_broken_file(tmp_path):
    (tmp_path / "broken.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"broken\.json is not valid JSON"):
        outputs.read_json(tmp_path / "broken.json")
