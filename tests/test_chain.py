"""chain and runner: refusals, order, skipping, failure messages, the lock, live output."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from gmai_lib import chain, outputs, runner

PARAMETERS = """profile: str = "mini"  # profile
data_root: str = ""  # data
output_root: str = "../outputs"  # outputs
seed: int = 0  # seed
rate: float = 0.5  # a number
flag: bool = False  # a switch"""
WRITE = """from gmai_lib import outputs
out = outputs.folder(output_root, profile, "{name}")
outputs.write_json(out / "result.json", {{"seed": seed, "rate": rate, "flag": flag}})"""


def write_notebook(folder, name, *cells, parameters=PARAMETERS):
    """Write a notebook with a parameters cell, then `cells`; "md:" marks prose."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    for cell in cells:
        new = nbformat.v4.new_markdown_cell if cell.startswith("md:") else nbformat.v4.new_code_cell
        notebook.cells.append(new(cell))
    for index, cell in enumerate(notebook.cells):
        cell.id = f"{name}-{index}"
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def workbook(tmp_path, monkeypatch):
    """Two tiny notebooks, the second of which reads the first."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write_notebook(folder, "00_first", "print('hello')", WRITE.format(name="00_first"))
    read = "outputs.require(output_root, profile, '00_first/result.json')"
    write_notebook(folder, "01_second", WRITE.format(name="01_second"), read)
    monkeypatch.setattr(chain, "NOTEBOOKS", folder)
    for name in (*chain.QUIET_ENVIRONMENT, "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back what the chain sets
    return tmp_path


def run(workbook, *arguments):
    return chain.main(["--outputs", str(workbook / "outputs"), *arguments])


def sentence(capsys):
    """Return stderr, which must be one line without a traceback."""
    text = capsys.readouterr().err
    assert text.startswith("chain: ") and text.count("\n") == 1 and "Traceback" not in text
    return text


def test_chain_runs_skips_and_reruns_what_changed(workbook, capsys):
    assert run(workbook, "--set", "00.rate=1e-4", "--set", "1.flag=true") == 0
    folder = workbook / "outputs" / "mini"
    shown = capsys.readouterr().out
    assert re.search(r"00_first +running.*\n    hello\n00_first +done in \d+ s, peak memory", shown)
    assert "2 notebooks ran, 0 were up to date" in shown
    assert outputs.read_json(folder / "00_first/result.json")["rate"] == 1e-4
    assert outputs.read_json(folder / "01_second/result.json")["flag"] is True
    assert "hello" in (folder / "00_first/00_first.html").read_text("utf-8")
    rows = outputs.read_json(folder / "chain.json")
    assert rows["00_first"]["peak_memory_mb"] > 10 and rows["00_first"]["seconds"] > 0

    # An up to date notebook without its page gets the page and does not run again.
    (folder / "00_first/00_first.html").unlink()
    assert run(workbook, "--set", "00.rate=1e-4", "--set", "1.flag=true") == 0
    assert "0 notebooks ran, 2 were up to date" in capsys.readouterr().out
    assert "hello" in (folder / "00_first/00_first.html").read_text("utf-8")

    # Another value upstream re-runs the reader too, although the reader itself is unchanged.
    assert run(workbook, "--set", "1.flag=true", "--set", "00.rate=0.25") == 0
    assert "2 notebooks ran" in capsys.readouterr().out

    # Somebody ran the first notebook by hand: its artefacts are no longer the chain's.
    outputs.write_json(folder / "00_first/result.json", {"seed": 9})
    assert run(workbook, "--to", "00", "--set", "00.rate=0.25") == 0
    assert "1 notebooks ran, 0 were up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--set", "00.nonexistent=1"],
            "00_first declares no parameter 'nonexistent'; it has prof",
        ),
        (["--set", "00.seed=many"], "'many' is not of type int"),
        (["--set", "00.flag=7"], "'7' is not of type bool"),
        (["--set", "seed=1"], "not of the form NN.name=value"),
        (["--set", "42.seed=1"], "no notebook 42 in this run; it runs 00, 01"),
        (["--from", "01", "--set", "00.seed=1"], "no notebook 00 in this run; it runs 01"),
        (["--from", "42"], "no notebook '42'; they are 00, 01"),
        (["--to", "x"], "no notebook 'x'"),
        (["--from", "01", "--to", "00"], "--from 01 comes after --to 00"),
        (["--profile", "huge"], "unknown profile 'huge'; choose one of"),
        (["--data", "/nonexistent/folder"], "--data /nonexistent/folder: no such folder"),
        (["--what"], "unrecognized arguments: --what"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(workbook, capsys, arguments, message):
    assert run(workbook, *arguments) == 2
    assert message in sentence(capsys)
    assert not (workbook / "outputs").exists()


def test_an_empty_data_folder_is_refused(workbook, capsys):
    (workbook / "data").mkdir()
    assert run(workbook, "--data", str(workbook / "data")) == 2
    assert "the folder is empty" in sentence(capsys)


def test_an_outputs_path_that_cannot_be_written_is_refused(workbook, capsys):
    (workbook / "outputs").write_text("a file where the folder should be")
    assert run(workbook) == 2
    assert "cannot write to" in (text := sentence(capsys)) and "--outputs" in text


def test_a_second_chain_on_the_same_outputs_is_refused(workbook, capsys):
    folder = outputs.folder(workbook / "outputs", "mini", "00_first").parent
    with chain._lock(folder):
        assert run(workbook) == 2
    assert f"another chain (process {os.getpid()}, since" in sentence(capsys)
    with chain._lock(folder):
        pass  # freed


def test_a_failing_cell_is_named_with_line_error_and_executed_notebook(workbook, capsys):
    write_notebook(
        chain.NOTEBOOKS, "00_first", "fine = 1", "a = 1\nint('two\\nlines')\nb = 2  # after"
    )
    assert run(workbook) == 1
    text = sentence(capsys)
    executed = workbook / "outputs/mini/00_first/00_first.ipynb"
    assert r"00_first failed in cell [4] at `int('two\nlines')`: ValueError: invalid" in text
    assert f"the executed notebook is {executed}" in text
    assert "ValueError" in executed.read_text("utf-8")
    assert outputs.read_json(workbook / "outputs/mini/chain.json")["00_first"]["state"] == "failed"
    assert not (workbook / "outputs/mini/01_second/result.json").exists()


def test_a_kernel_that_dies_is_named_with_its_cell(workbook, capsys):
    write_notebook(chain.NOTEBOOKS, "00_first", "import os, signal", "os.kill(os.getpid(), 9)")
    assert run(workbook) == 1
    text = sentence(capsys)
    assert "failed in the cell that starts with `os.kill(os.getpid(), 9)`: DeadKernelError" in text


def test_a_notebook_without_result_json_failed(workbook, capsys):
    write_notebook(chain.NOTEBOOKS, "00_first", "print('nothing written')")
    assert run(workbook, "--to", "00") == 1
    assert "00_first ran but wrote no" in sentence(capsys)


def test_an_undeclared_parameter_is_an_error_not_a_warning(workbook):
    path = chain.NOTEBOOKS / "00_first.ipynb"
    with pytest.raises(ValueError, match=r"00_first.ipynb declares no parameter \['sed'\]"):
        runner.run_notebook(path, workbook, {"sed": 1})


def test_ctrl_c_ends_the_kernel_and_what_it_started(workbook):
    """A whole chain in a process of its own receives SIGINT while a notebook waits for a child."""
    cell = (
        "import pathlib, subprocess, sys\nprint('child started', flush=True)\ntry:\n"
        "    subprocess.run([sys.executable, '-c', 'import time; time.sleep(321)'])\n"
        "except KeyboardInterrupt:\n    pathlib.Path(output_root, 'told').touch()\n    raise"
    )
    write_notebook(chain.NOTEBOOKS, "00_first", cell)
    code = (
        "import sys, pathlib, signal\nfrom gmai_lib import chain\n"
        # A shell without job control starts what it puts behind & with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"chain.NOTEBOOKS = pathlib.Path({str(chain.NOTEBOOKS)!r})\n"
        f"sys.exit(chain.main(['--outputs', {str(workbook / 'outputs')!r}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=chain.ROOT,
        start_new_session=True,
    )
    for line in process.stdout:
        if "child started" in line:
            break
    import psutil

    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        below = psutil.Process(process.pid).children(recursive=True)
        if any("time.sleep(321)" in " ".join(p.cmdline()) for p in below):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 130, errors
    assert errors.endswith("chain: interrupted; run the same command to go on\n")
    assert "Traceback" not in errors
    assert (workbook / "outputs/told").exists()  # the cell could clean up before it was ended
    assert below and not any(runner._is_alive(p) for p in below)


def test_fingerprint_covers_code_library_parameters_and_upstream_but_not_places(workbook):
    path = chain.NOTEBOOKS / "01_second.ipynb"
    base = dict(parameters={"seed": 0, "output_root": "/a"}, upstream={"00_first": "x"}, data="d")
    first = chain.fingerprints(path, **base)
    assert first == chain.fingerprints(path, **base | {"parameters": {"seed": 0}})
    for change in ({"parameters": {"seed": 1}}, {"upstream": {"00_first": "y"}}, {"data": "e"}):
        assert chain.fingerprints(path, **base | change)["result"] != first["result"]
    notebook = json.loads(path.read_text())
    notebook["cells"].append(
        {"cell_type": "markdown", "source": "prose", "metadata": {}, "id": "p"}
    )
    path.write_text(json.dumps(notebook))
    changed = chain.fingerprints(path, **base)
    assert changed["result"] == first["result"] and changed["page"] != first["page"]


def test_a_folder_of_benchmarks_counts_by_what_lies_there_and_is_found_from_here(
    tmp_path, monkeypatch
):
    path = chain.NOTEBOOKS / "10_evaluate.ipynb"
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.chdir(tmp_path)
    resolved = chain.resolve_parameters([path], {}, ["10.benchmark_root=benchmarks"])[path]
    assert resolved == {"benchmark_root": str(tmp_path / "benchmarks")}
    base = dict(parameters=resolved, upstream={}, data="")
    first = chain.fingerprints(path, **base)["result"]
    assert first == chain.fingerprints(path, **base)["result"]
    (tmp_path / "benchmarks" / "new.json").write_text("[]")
    assert first != chain.fingerprints(path, **base)["result"]


def test_library_files_follow_imports_and_take_subpackages_whole():
    names = {
        f.name for f in chain.library_files("from gmai_lib import outputs\n%matplotlib inline")
    }
    assert names == {"outputs.py"}
    files = {f.parent.name + "/" + f.name for f in chain.library_files("import gmai_lib.training")}
    assert "training/__init__.py" in files


def test_dependencies_are_the_folders_named_in_code(workbook):
    assert chain.dependencies(chain.NOTEBOOKS / "01_second.ipynb") == ["00_first"]
    assert chain.dependencies(chain.NOTEBOOKS / "00_first.ipynb") == []


def test_listing_changes_when_a_file_does(tmp_path):
    (tmp_path / "a").write_text("1")
    first = chain.listing_sha256(str(tmp_path))
    assert first == chain.listing_sha256(str(tmp_path)) != chain.listing_sha256("")
    (tmp_path / "b").write_text("")
    assert first != chain.listing_sha256(str(tmp_path))


def test_terminal_shows_lines_and_only_the_last_state_of_a_progress_bar():
    out = io.StringIO()
    terminal = runner._Terminal(out, quiet_s=0.0)
    stream = terminal.stream("stderr")
    for text in ("one\ntw", "o\n", "\r 10%", "\r 50%", "\r100%\n", "", "rest"):
        stream.write(text)
    terminal.finish()
    assert out.getvalue() == "    one\n    two\n    100%\n    rest\n"
    terminal.heartbeat(2_000_000_000)
    assert "still running after 0 s, memory 2.0 GB" in out.getvalue()
