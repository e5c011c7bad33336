"""The README's file tree and commands are those of the repository."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def listed_files() -> set[str]:
    """Paths of the README's tree: a folder line ends with "/", its files are indented below."""
    tree = re.search(r"```text\n(.*?)```", README, re.DOTALL).group(1)
    paths, folders = set(), []
    for line in tree.splitlines():
        name = line.split("  #")[0].rstrip()
        depth = (len(name) - len(name.lstrip())) // 2
        name = name.strip()
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            paths.add("".join(folders) + name)
    return paths


def test_file_tree_lists_every_module_and_notebook():
    expected = {
        str(path.relative_to(ROOT))
        for pattern in ("gmai_lib/**/*.py", "gmai_lib/**/*.csv", "notebooks/*.ipynb")
        for path in ROOT.glob(pattern)
        if path.name != "__init__.py"
    }
    listed = {p for p in listed_files() if p.startswith(("gmai_lib/", "notebooks/"))}
    assert listed == expected


def test_every_listed_file_exists():
    assert [path for path in listed_files() if not (ROOT / path).exists()] == []


def test_every_make_target_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert targets
    assert [t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)] == []


def test_no_output_checkpoint_or_archive_is_tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(
        ["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    paths = [line.split("\t")[1] for line in tracked]
    banned = (".pyc", ".safetensors", ".pt", ".bin", ".parquet", ".zip", ".dcm", ".nii.gz")
    assert [p for p in paths if p.endswith(banned)] == []
    assert [p for p in paths if p.startswith("outputs/")] == ["outputs/.gitkeep"]
    large = [p for p in paths if (ROOT / p).exists() and (ROOT / p).stat().st_size > 256_000]
    assert large == []
