"""The notebook contract: what every notebook must look like for the chain, CI and readers."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from gmai_lib import chain

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
COMMON = ("profile", "data_root", "output_root", "seed")
# Calls whose picture or table the next prose cell must read.
SHOWN = re.compile(r"report\.\w+\(|widgets\.|style\.|display\(|\.to_frame\(|print\(")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    nb = nbformat.read(request.param, as_version=4)
    return SimpleNamespace(path=request.param, node=nb, cells=nb.cells, metadata=nb.metadata)


def code_cells(nb):
    return [c for c in nb.cells if c.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def parameters(nb):
    return ast.parse(code_cells(nb)[0].source).body


def test_there_are_thirteen_numbered_notebooks():
    assert [p.stem[:2] for p in NOTEBOOKS] == [f"{n:02d}" for n in range(13)]


def test_notebook_is_valid_stripped_and_small(notebook):
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", notebook.path.stem)
    nbformat.validate(notebook.node)
    assert notebook.metadata.kernelspec.name == "python3"  # papermill refuses one without
    assert not any(c.outputs or c.execution_count for c in code_cells(notebook)), "strip outputs"
    assert notebook.path.stat().st_size < 100_000
    assert not any("base64" in c.source for c in notebook.cells if c.cell_type == "markdown")
    ids = [c.id for c in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_nothing_is_left_to_strip():
    keys = "metadata.papermill cell.metadata.papermill metadata.language_info"
    command = [sys.executable, "-m", "nbstripout", "--verify", "--keep-id", "--extra-keys", keys]
    result = subprocess.run([*command, *map(str, NOTEBOOKS)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_first_code_cell_holds_the_parameters(notebook):
    first = code_cells(notebook)[0]
    assert tags(first) == ["parameters"]
    assert all(isinstance(s, ast.AnnAssign) for s in parameters(notebook)), "name: type = literal"
    for statement in parameters(notebook):
        value = ast.literal_eval(statement.value)  # a derived value would ignore an override
        assert statement.annotation.id in ("str", "int", "float", "bool", "list")
        assert type(value).__name__ == statement.annotation.id
    lines = first.source.splitlines()
    assert all(line.count("=") == 1 and "# " in line for line in lines), "papermill cannot parse"
    names = [s.target.id for s in parameters(notebook)]
    assert tuple(names[:4]) == COMMON and len(names) <= 8


def test_papermill_reads_the_parameters_as_declared(notebook):
    import papermill

    declared = papermill.inspect_notebook(str(notebook.path))
    assert set(declared) == {s.target.id for s in parameters(notebook)}
    assert all(p["help"] for p in declared.values())


def test_every_parameter_is_read(notebook):
    declared = {s.target.id for s in parameters(notebook)}
    read = set()
    for cell in code_cells(notebook)[1:]:
        nodes = ast.walk(ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", cell.source)))
        read |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert declared <= read, f"declared but never read: {sorted(declared - read)}"


def test_defaults_are_the_mini_profile_on_phantoms(notebook):
    values = {s.target.id: ast.literal_eval(s.value) for s in parameters(notebook)}
    assert values["profile"] == "mini" and values["data_root"] == "" and values["seed"] == 0
    assert values["output_root"] == "../outputs"


def test_code_is_short_and_plain(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= 25, f"move to gmai_lib: {cell.source[:60]}"
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 12, f"{node.name} is too long for a notebook"
        assert not re.search(r"^\s*[!%]|sys\.path|os\.environ|%%writefile", cell.source, re.M)


def test_imports_stand_in_one_cell(notebook):
    importing = [
        i
        for i, cell in enumerate(code_cells(notebook))
        if any(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.parse(cell.source).body)
    ]
    assert importing == [1], "all imports belong in the cell after the parameters"


def test_every_import_is_used(notebook):
    code = "\n".join(c.source for c in code_cells(notebook))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                name = (alias.asname or alias.name).split(".")[0]
                assert len(re.findall(rf"\b{name}\b", code)) > 1, f"{name} is imported, not used"


def test_opening_cell_asks_a_question_and_states_paper_reads_writes_time(notebook):
    opening = notebook.cells[0].source
    assert re.match(rf"# {notebook.path.stem[:2]} · \w", opening)
    assert re.search(r"(?m)^> .+\?$", opening)
    for row in ("Paper", "Reads", "Writes", "Time"):
        assert re.search(rf"(?m)^\| \*{row}\* \| .+ \|$", opening), row


def test_check_exercises_and_next_close_the_notebook(notebook):
    headings = [
        line
        for c in notebook.cells
        if c.cell_type == "markdown"
        for line in c.source.splitlines()
        if line.startswith("## ")
    ]
    assert headings[-3:] == ["## Check", "## Exercises", "## Next"]
    assert [h[3] for h in headings[:-3]] == [str(i + 1) for i in range(len(headings) - 3)]
    (check,) = [c for c in code_cells(notebook) if tags(c) == ["check"]]
    assert "assert " in check.source and '"result.json"' in check.source


def test_solutions_are_folded_and_end_in_an_assert(notebook):
    solutions = [c for c in code_cells(notebook) if "solution" in tags(c)]
    assert 2 <= len(solutions) <= 4
    for cell in solutions:
        assert cell.metadata.jupyter.source_hidden is True
        assert isinstance(ast.parse(cell.source).body[-1], ast.Assert)
        assert "assert True" not in cell.source


def test_every_shown_output_is_followed_by_prose(notebook):
    for index, cell in enumerate(notebook.cells[:-1]):
        if cell.cell_type != "code" or tags(cell) or not SHOWN.search(cell.source):
            continue
        if index == 2 or (index == 3 and notebook.cells[2].cell_type == "code"):
            continue  # the set-up cell prints what runs
        following = notebook.cells[index + 1]
        assert following.cell_type == "markdown", f"nothing reads the output of: {cell.source[:80]}"
        first = following.source.splitlines()[0]
        assert not first.startswith("#"), f"a heading follows the output of: {cell.source[:80]}"


def test_prose_has_one_sentence_per_line(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line and not line.startswith(("#", "|", ">", "-", "$")):
                    plain = re.sub(r"`[^`]*`|\([^)]*\)|\"[^\"]*\"", "", line)
                    assert not re.search(r"[a-z]{2}[.!?] [A-Z]", plain), line


def test_notebook_reads_only_earlier_ones_and_says_so(notebook):
    own = notebook.path.stem
    names = {p.stem for p in NOTEBOOKS}
    code = "\n".join(c.source for c in code_cells(notebook))
    assert f'outputs.folder(output_root, profile, "{own}")' in code
    for other in chain.dependencies(notebook.path):
        if other in names:
            assert other < own, f"{own} reads the later {other}"
            assert other[:2] in notebook.cells[0].source.split("*Reads*")[1].split("\n")[0]


def test_no_machine_path_and_no_leftover(notebook):
    text = "\n".join(c.source for c in notebook.cells)
    assert not re.search(r"/home/|/root/|/tmp/|/work/|TODO|FIXME|XXX", text)
