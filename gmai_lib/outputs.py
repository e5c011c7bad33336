"""Where runs write: `<output_root>/<profile>/<NN_name>/`, atomically.

Notebooks talk to each other only through these folders (README, "The chain").
"""

import csv
import hashlib
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path


def folder(output_root: str | Path, profile: str, name: str) -> Path:
    """Return (and create) the output folder of notebook `name`, with its `figures/`.

    Raises PermissionError with the path and what to do if it cannot be written.
    """
    path = Path(output_root) / profile / name
    try:
        (path / "figures").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise PermissionError(
            f"cannot write to {path} ({error.strerror}); "
            "pass another folder with --outputs or fix its permissions"
        ) from error
    return path


def require(output_root: str | Path, profile: str, relative: str) -> Path:
    """Return `<output_root>/<profile>/<relative>`, which an earlier notebook must have written.

    Raises FileNotFoundError that names the notebook to run first.
    """
    path = Path(output_root) / profile / relative
    if not path.exists():
        notebook = Path(relative).parts[0]
        raise FileNotFoundError(
            f"{path} is missing: run notebook {notebook} first "
            f"(python -m gmai_lib.chain --profile {profile} --to {notebook[:2]})"
        )
    return path


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal; it is read in parts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: Path):
    """Yield a temporary sibling of `path`; rename it into place only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path):
    """Yield an empty sibling folder; it replaces `path` only if the block succeeds."""
    path = Path(path)
    partial, old = (path.with_name(f".{path.name}.{end}") for end in ("partial", "old"))
    for leftover in (partial, old):  # of a killed run
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.rename(old)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value) -> Path:
    """Write `value` as indented UTF-8 JSON, atomically; return `path`."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return path


def write_csv(path: Path, rows: list[dict]) -> Path:
    """Write rows with the union of their columns; ValueError if there are none."""
    if not rows:
        raise ValueError(f"nothing to write to {path}")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_json(path: Path):
    """Read JSON; ValueError names the file if it is not valid."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete or repair it") from error
