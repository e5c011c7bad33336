"""Imports point one way, stay cheap, and every third-party one is declared."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gmai_lib"
# Lower layers first; a module may import its own layer and those before it.
LAYERS = [
    {"config", "schema", "outputs", "llm", "grounding", "pool"},
    {"dataset", "model"},
    {"training", "evaluation"},
    {"report", "cards", "lens", "doctor"},
    {"widgets", "ablate", "bench", "bench_evaluate", "bench_train", "bench_gpu"},
]
# These start other processes and must stay light: what they may import of gmai_lib.
STANDALONE = {
    "chain": {"config", "outputs", "runner"},
    "runner": {"outputs"},
    "training/launch": {"config", "outputs", "training"},
    "training/cluster": set(),
}
# Import name -> distribution, where they differ.
DISTRIBUTION = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "IPython": "ipython",
    "sklearn": "scikit-learn",
    "dateutil": "python-dateutil",
    "dicomanonymizer": "dicom-anonymizer",
    "openslide": "openslide-python",
}
MODULES = sorted(p for p in PACKAGE.rglob("*.py"))
# The parallel backend has its own extra; these are imported only where it is asked for.
OWN = {"gmai_lib", *(p.stem for p in (ROOT / "tests").glob("*.py"))}


def imported(tree) -> set[str]:
    """Full dotted names of what a module imports, `from x import y` as x.y."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def of_package(path: Path) -> set[str]:
    """First-level gmai_lib modules that a file imports."""
    names = imported(ast.parse(path.read_text("utf-8")))
    return {n.split(".")[1] for n in names if n.startswith("gmai_lib.")} - {"__version__"}


def key_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE).with_suffix(""))


@pytest.mark.parametrize("path", MODULES, ids=key_of)
def test_imports_point_down_the_layers(path):
    key = key_of(path)
    if path.name == "__init__.py":
        assert not of_package(path)
        return
    if key in STANDALONE:
        assert of_package(path) <= STANDALONE[key]
        return
    first = key.split("/")[0]
    (level,) = [i for i, layer in enumerate(LAYERS) if first in layer] or pytest.fail(
        f"{key} is in no layer; add it to LAYERS"
    )
    allowed = set().union(*LAYERS[: level + 1])
    assert of_package(path) <= allowed, f"{key} imports {of_package(path) - allowed}"


@pytest.mark.parametrize("first", ["dataset", "model"])
def test_dataset_and_model_know_nothing_of_each_other(first):
    other = {"dataset": "model", "model": "dataset"}[first]
    users = [key_of(p) for p in (PACKAGE / first).glob("*.py") if other in of_package(p)]
    assert users == []


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        listed += extra
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in listed]
    return {name.lower().replace("_", "-") for name in names}


def third_party(path: Path) -> set[str]:
    names = {n.split(".")[0] for n in imported(ast.parse(path.read_text("utf-8")))}
    return {n for n in names if n not in sys.stdlib_module_names and n not in OWN}


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "tests").glob("*.py"))], ids=str)
def test_third_party_imports_are_declared(path):
    used = {DISTRIBUTION.get(n, n).lower().replace("_", "-") for n in third_party(path)}
    assert used <= declared(), f"not in pyproject.toml: {sorted(used - declared())}"


def test_notebook_imports_are_declared():
    import nbformat

    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        code = "\n".join(c.source for c in cells if c.cell_type == "code")
        names = {n.split(".")[0] for n in imported(ast.parse(code))}
        used = {n for n in names if n not in sys.stdlib_module_names} - OWN
        used = {DISTRIBUTION.get(n, n).lower() for n in used}
        assert used <= declared(), f"{path.name}: {sorted(used - declared())}"


def loaded_by(statement: str) -> tuple[set[str], float]:
    """Modules that a fresh interpreter has after `statement`, and its seconds."""
    code = (
        f"import sys, time\nstart = time.perf_counter()\n{statement}\n"
        "print(time.perf_counter() - start)\nprint(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds, modules = result.stdout.split("\n", 1)
    return {name.split(".")[0] for name in modules.split()}, float(seconds)


@pytest.mark.parametrize(
    "module", ["gmai_lib", "gmai_lib.config", "gmai_lib.chain", "gmai_lib.training.launch"]
)
def test_light_modules_import_nothing_heavy(module):
    modules, seconds = loaded_by(f"import {module}")
    heavy = {"torch", "transformers", "datasets", "numpy", "pandas", "matplotlib", "papermill"}
    assert not modules & heavy
    assert seconds < 2  # measured: tens of milliseconds


@pytest.mark.parametrize("module", ["report", "widgets", "cards", "doctor"])
def test_drawing_modules_do_not_import_torch(module):
    modules, _ = loaded_by(f"import gmai_lib.{module}")
    assert not modules & {"torch", "transformers", "matplotlib", "ipywidgets"}


def test_every_module_says_what_it_is_for():
    for path in MODULES:
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        assert docstring, f"{key_of(path)} has no module docstring"
