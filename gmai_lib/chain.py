"""Run the notebooks in order with papermill, strictly.

    python -m gmai_lib.chain --profile mini [--data FOLDER] [--outputs FOLDER]
                             [--from NN] [--to NN] [--set NN.name=value]

Each notebook runs in its own kernel; `<outputs>/<profile>/NN_name/` receives the executed
notebook, its HTML and its `result.json`, and `<outputs>/<profile>/chain.json` the wall time and
peak memory of every notebook. A finished notebook runs again only if its code, the part of
gmai_lib it imports, its parameters, the data folder or a notebook it reads from has changed.
Exit codes: 0 every notebook ran or was up to date, 1 a notebook failed, 2 the request makes no
sense, 130 interrupted.

Departs from plain papermill (style traps, all seen): an unknown parameter is an error, not a
warning; parameters go through the Python API; a notebook without result.json failed; the
terminal shows what a notebook prints while it runs.
"""

import argparse
import ast
import fcntl
import hashlib
import json
import os
import re
import signal
import sys
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from gmai_lib import config, outputs
from gmai_lib.runner import NotebookError, duration, run_notebook, write_page

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
STATE = "chain.json"

# Inherited by every kernel. Progress bars of libraries would flood the saved notebooks; warnings
# stay as they are.
QUIET_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # kernels fork loaders after tokenizing
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # ipykernel's frozen-modules notice in every notebook
    "GMAI_LIB_STATIC": "1",  # widgets draw themselves once (gmai_lib.widgets)
    "JUPYTER_PREFER_ENV_PATH": "1",  # "python3" is this environment's kernel, not the user's
}


class UsageError(ValueError):
    """The request makes no sense; the message is one sentence for the terminal."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gmai_lib.chain", description="Run the notebooks in order."
    )
    parser.error = _raise_usage_error
    parser.add_argument("--profile", default="mini", help="mini (default), single_gpu or paper")
    parser.add_argument("--data", default="", help="folder whose datasets are added")
    parser.add_argument("--outputs", default=str(ROOT / "outputs"), help="where runs write")
    parser.add_argument("--from", dest="first", default="", metavar="NN", help="first notebook")
    parser.add_argument("--to", dest="last", default="", metavar="NN", help="last notebook")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="NN.name=value",
        help="one parameter of one notebook; may be repeated",
    )
    # A scheduler's SIGTERM should end the kernels too, exactly like Ctrl-C.
    previous = signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        args = parser.parse_args(arguments)
        run(args.profile, args.data, args.outputs, args.first, args.last, args.overrides)
    except (UsageError, PermissionError) as error:
        print(f"chain: {error}", file=sys.stderr)
        return 2
    except NotebookError as error:
        print(f"chain: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("chain: interrupted; run the same command to go on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def run(
    profile: str, data: str, output_root: str, first: str, last: str, overrides: list[str]
) -> list[dict]:
    """Run notebooks `first` to `last`; return chain.json's rows of this run.

    Everything that can be refused is refused before the first kernel starts. Raises UsageError,
    PermissionError (outputs not writable) or NotebookError.
    """
    try:
        config.load(profile)
    except ValueError as error:
        raise UsageError(str(error)) from None
    notebooks = select_notebooks(first, last)
    data_root = _check_data(data)
    parameters = resolve_parameters(
        notebooks,
        {"profile": profile, "data_root": data_root, "output_root": os.path.abspath(output_root)},
        overrides,
    )
    outputs.folder(output_root, profile, notebooks[0].stem)  # refuses an unwritable place now
    os.environ.update(QUIET_ENVIRONMENT)
    if not list(Path("/dev").glob("nvidia[0-9]*")):
        os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed warns where it has to find out by itself
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
    )
    folder = Path(output_root).absolute() / profile
    # The page of one notebook is written while the kernel of the next one starts.
    with _lock(folder), ThreadPoolExecutor(1) as pages:
        return _run_all(notebooks, parameters, folder, listing_sha256(data_root), pages)


def select_notebooks(first: str = "", last: str = "") -> list[Path]:
    """Return the notebooks from `first` to `last` (numbers or names, "" = the end) in order."""
    known = {p.stem[:2]: p for p in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
    if not known:
        raise UsageError(f"no notebooks in {NOTEBOOKS}")
    numbers = []
    for text, default in ((first, min(known)), (last, max(known))):
        number = text[:2].zfill(2) if text else default
        if number not in known or (len(text) > 2 and text != known[number].stem):
            raise UsageError(f"no notebook {text!r}; they are {', '.join(known)}")
        numbers.append(number)
    if numbers[0] > numbers[1]:
        raise UsageError(f"--from {first} comes after --to {last}; nothing would run")
    return [p for n, p in known.items() if numbers[0] <= n <= numbers[1]]


def resolve_parameters(notebooks: list[Path], common: dict, overrides: list[str]) -> dict:
    """Return {notebook: {parameter: value}}; UsageError for what a notebook does not declare."""
    import papermill

    declared = {p: papermill.inspect_notebook(str(p)) for p in notebooks}
    parameters = {p: {k: v for k, v in common.items() if k in declared[p]} for p in notebooks}
    by_number = {p.stem[:2]: p for p in notebooks}
    for override in overrides:
        match = re.fullmatch(r"(\d{1,2})(?:_\w+)?\.(\w+)=(.*)", override, re.DOTALL)
        if not match:
            raise UsageError(f"--set {override!r} is not of the form NN.name=value")
        number, name, text = match[1].zfill(2), match[2], match[3]
        if number not in by_number:
            raise UsageError(
                f"--set {override!r}: no notebook {number} in this run; "
                f"it runs {', '.join(by_number)}"
            )
        path = by_number[number]
        if name not in declared[path]:
            raise UsageError(
                f"--set {override!r}: {path.stem} declares no parameter {name!r}; "
                f"it has {', '.join(declared[path])}"
            )
        if name.endswith("_root") and text:  # notebooks run in another folder than this command
            text = str(Path(text).expanduser().absolute())
        kind = declared[path][name]["inferred_type_name"]
        parameters[path][name] = _parse_value(override, text, kind)
    return parameters


def fingerprints(path: Path, parameters: dict, upstream: dict[str, str], data: str) -> dict:
    """Return {"result": sha256, "page": sha256} of everything that can change a notebook's run.

    "result" covers the code, the parts of gmai_lib it imports, parameters, data and the results
    it reads (`upstream`); "page" covers the prose. Where files lie is not part of either.
    """
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    prose = ["".join(c["source"]) for c in cells if c["cell_type"] != "code"]
    settings = {k: v for k, v in parameters.items() if k not in ("output_root", "data_root")}
    if "benchmark_root" in settings:  # what lies there counts, not where it lies
        settings["benchmark_root"] = listing_sha256(settings["benchmark_root"])
    library = {
        str(file.relative_to(ROOT)): outputs.sha256_of(file)
        for file in library_files("\n".join(code))
    }
    result = json.dumps([code, settings, library, upstream, data], sort_keys=True)
    return {
        "result": hashlib.sha256(result.encode()).hexdigest(),
        "page": hashlib.sha256("\n".join(prose).encode()).hexdigest(),
    }


def library_files(code: str) -> list[Path]:
    """Return the files of gmai_lib that `code` imports, directly or through other files.

    A subpackage counts as a whole, because `training.launch` starts `training.train` by name.
    """
    package = ROOT / "gmai_lib"
    found: set[Path] = set()
    waiting = [code]
    while waiting:
        names = imported_modules(waiting.pop())
        for name in sorted(names):
            folder = package / name
            files = set(folder.rglob("*.*")) if folder.is_dir() else {package / f"{name}.py"}
            new = {f for f in files if f.suffix in (".py", ".csv") and f.is_file()} - found
            found |= new
            waiting += [f.read_text("utf-8") for f in sorted(new) if f.suffix == ".py"]
    return sorted(found)


def imported_modules(code: str) -> set[str]:
    """Return the first-level gmai_lib modules and subpackages that Python `code` imports."""
    names = set()
    for node in ast.walk(ast.parse(re.sub(r"(?m)^\s*[%!].*$", "pass", code))):
        if isinstance(node, ast.ImportFrom) and node.module == "gmai_lib":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gmai_lib."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("gmai_lib.")}
    return names


def dependencies(path: Path) -> list[str]:
    """Return the notebooks whose output folders the code of `path` names, e.g. "02_curate"."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return sorted(set(re.findall(r"[\"'](\d\d_[a-z0-9_]+)(?=[/\"'])", code)) - {path.stem})


def listing_sha256(folder: str) -> str:
    """Return a hash of the names, sizes and modification times of all files under `folder`."""
    digest = hashlib.sha256()
    for parent, folders, files in os.walk(folder) if folder else ():
        folders.sort()
        for name in sorted(files):
            status = os.stat(os.path.join(parent, name))
            relative = os.path.relpath(os.path.join(parent, name), folder)
            digest.update(f"{relative}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _run_all(
    notebooks: list[Path], parameters: dict, folder: Path, data: str, pages: Executor
) -> list[dict]:
    state_path, written = folder / STATE, []
    state = outputs.read_json(state_path) if state_path.is_file() else {}
    began = time.perf_counter()
    for path in notebooks:
        out_dir, old = folder / path.stem, state.get(path.stem, {})
        upstream = {n: state.get(n, {}).get("result", "") for n in dependencies(path)}
        current = fingerprints(path, parameters[path], upstream, data)
        executed = out_dir / path.name
        row = {"notebook": path.stem, "state": "running", **current}
        if _is_up_to_date(old, current, out_dir):
            print(f"{path.stem:<24} up to date, skipped", flush=True)
            state[path.stem] = old | {"state": "skipped"}
            if not executed.with_suffix(".html").is_file():  # an earlier chain was killed
                written.append(pages.submit(write_page, executed))
            continue
        print(f"{path.stem:<24} running, {time.strftime('%H:%M:%S')}", flush=True)
        state[path.stem] = row
        outputs.write_json(state_path, state)
        try:
            measured = run_notebook(path, out_dir, parameters[path])
        except BaseException:
            state[path.stem] = row | {"state": "failed"}
            raise
        else:
            row |= {
                "state": "ran",
                **measured,
                "result_json": outputs.sha256_of(out_dir / "result.json"),
            }
            state[path.stem] = row
            written.append(pages.submit(write_page, executed))
            print(
                f"{path.stem:<24} done in {duration(row['seconds'])}, "
                f"peak memory {row['peak_memory_mb'] / 1e3:.1f} GB",
                flush=True,
            )
        finally:
            outputs.write_json(state_path, state)
    outputs.write_json(state_path, state)
    for page in written:
        page.result()
    ran = [p.stem for p in notebooks if state[p.stem]["state"] == "ran"]
    print(
        f"chain complete: {len(ran)} notebooks ran, {len(notebooks) - len(ran)} were up to date, "
        f"{duration(time.perf_counter() - began)}; results in {folder}",
        flush=True,
    )
    return [state[p.stem] for p in notebooks]


def _is_up_to_date(old: dict, current: dict, out_dir: Path) -> bool:
    """Whether the last run finished with equal inputs and nobody has run the notebook since."""
    result = out_dir / "result.json"
    return (
        old.get("state") in ("ran", "skipped")
        and all(old.get(key) == value for key, value in current.items())
        and result.is_file()
        and outputs.sha256_of(result) == old.get("result_json")
        and (out_dir / f"{out_dir.name}.ipynb").is_file()
    )


@contextmanager
def _lock(folder: Path):
    """Hold `folder`/chain.lock; UsageError if another chain does. The system frees it on death."""
    with (folder / "chain.lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise UsageError(
                f"another chain ({handle.read().strip()}) is writing to {folder}; wait for it or "
                "pass another folder with --outputs"
            ) from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        handle.flush()
        yield
        handle.truncate(0)


def _check_data(data: str) -> str:
    """Return `data` as an absolute path ("" stays ""); UsageError if missing or empty."""
    if not data:
        return ""
    folder = Path(data)
    if not folder.is_dir():
        raise UsageError(f"--data {data}: no such folder")
    if not any(folder.iterdir()):
        raise UsageError(f"--data {data}: the folder is empty; put at least one dataset into it")
    return str(folder.resolve())


def _parse_value(override: str, text: str, kind: str):
    """Parse the text of --set by the type the notebook declares."""
    if kind == "str":
        return text
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind in ("int", "float"):
            return {"int": int, "float": float}[kind](text)
        return ast.literal_eval(text)
    except (KeyError, ValueError, SyntaxError):
        raise UsageError(f"--set {override!r}: {text!r} is not of type {kind}") from None


def _raise_usage_error(message: str):
    raise UsageError(message)


def _raise_interrupt(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
