"""Execute one notebook: live output, peak memory, one sentence when it fails.

`chain` calls `run_notebook` for every notebook that is not up to date. papermill runs in a
thread of its own, so that the calling thread can sample memory and take Ctrl-C. Imports no torch.
"""

import json
import logging
import re
import signal
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from gmai_lib import outputs


class NotebookError(RuntimeError):
    """A notebook failed; the message is one sentence for the terminal."""


def run_notebook(path: Path, out_dir: Path, parameters: dict, terminal=None) -> dict:
    """Execute one notebook into `out_dir`; return {"seconds", "peak_memory_mb"}.

    The peak is the summed resident memory of all processes below this one; pages they share count
    in each. Raises ValueError for a parameter the notebook does not declare (papermill only warns,
    and the run would silently use the default) and NotebookError if a cell fails, the kernel dies
    or no result.json appears.
    """
    import papermill

    unknown = set(parameters) - set(papermill.inspect_notebook(str(path)))
    if unknown:
        raise ValueError(f"{path.name} declares no parameter {sorted(unknown)}")
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # _describe says it in one sentence
    terminal = terminal or _Terminal()
    executed, result = out_dir / path.name, out_dir / "result.json"
    out_dir.mkdir(parents=True, exist_ok=True)
    executed.unlink(missing_ok=True)
    result.unlink(missing_ok=True)
    start = time.perf_counter()
    tree = _ProcessTree()
    with ThreadPoolExecutor(1) as executor:
        run = executor.submit(
            papermill.execute_notebook,
            str(path),
            str(executed).replace("{", "{{").replace("}", "}}"),  # papermill formats paths
            parameters,
            cwd=str(path.parent),
            progress_bar=False,
            stdout_file=terminal.stream("stdout"),
            stderr_file=terminal.stream("stderr"),
            start_timeout=180,
            iopub_timeout=120,  # the default of 4 s fails on a machine that is busy training
            extra_arguments=["--IPKernelApp.log_level=50"],  # its notices are not ours
        )
        try:
            while not run.done():
                wait([run], timeout=0.5)
                terminal.heartbeat(tree.sample())
        except KeyboardInterrupt:
            tree.interrupt_kernel()
            wait([run], timeout=20)
            raise
        finally:
            tree.kill()
    terminal.finish()
    measured = {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_mb": round(tree.peak_bytes / 1e6),
    }
    if error := run.exception():
        raise NotebookError(_describe(path, executed, error, measured)) from error
    if not result.is_file():
        raise NotebookError(f"{path.stem} ran but wrote no {result}; its last cell must")
    outputs.read_json(result)
    return measured


def duration(seconds: float) -> str:
    """Return "3 min 12 s" or "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _describe(path: Path, executed: Path, error: BaseException, measured: dict) -> str:
    """Return one sentence: notebook, cell, line, error, and where the executed copy lies."""
    from papermill.exceptions import PapermillExecutionError

    where = f"the executed notebook is {executed}"
    message = textwrap.shorten(str(getattr(error, "evalue", error)), 800, placeholder=" ...")
    if isinstance(error, PapermillExecutionError):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        # The frame inside the notebook, not the one deep in a library that raised.
        frames = re.findall(rf"Cell In\[{error.exec_count}\], line (\d+)", plain)
        lines = error.source.splitlines()
        line = lines[int(frames[-1]) - 1].strip() if frames else lines[0].strip()
        return (
            f"{path.stem} failed in cell [{error.exec_count}] at `{line}`: "
            f"{error.ename}: {message}; {where}"
        )
    # The kernel died: the cell that ran last is the last one with a start time.
    cells = json.loads(executed.read_text("utf-8"))["cells"] if executed.is_file() else []
    started = [c for c in cells if c["metadata"].get("papermill", {}).get("start_time")]
    running = "before its first cell"
    if started:
        running = f"in the cell that starts with `{started[-1]['source'][0].strip()}`"
    peak = measured["peak_memory_mb"] / 1e3
    return (
        f"{path.stem} failed {running}: {type(error).__name__}: {message} "
        f"(peak memory {peak:.1f} GB; a kernel that dies often ran out of it); {where}"
    )


def write_page(executed: Path) -> Path:
    """Write the executed notebook as one HTML file beside it, with solutions folded."""
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(executed, as_version=4)
    for index, cell in enumerate(notebook.cells):
        if "solution" in cell.metadata.get("tags", []):
            # nbconvert ignores JupyterLab's "source_hidden".
            folded = f"<details><summary>Solution</summary>\n\n```python\n{cell.source}\n```\n"
            notebook.cells[index] = nbformat.v4.new_markdown_cell(folded + "\n</details>")
    body, _ = HTMLExporter().from_notebook_node(notebook)
    path = executed.with_suffix(".html")
    with outputs.atomic(path) as partial:
        partial.write_text(body, "utf-8")
    return path


class _Terminal:
    """Shows what a notebook prints, indented, line by line, while it runs."""

    def __init__(self, out=None, quiet_s: float = 60.0):
        self.out = out or sys.stdout
        self.quiet_s = quiet_s  # a sign of life after this long without output
        self.rest = {"stdout": "", "stderr": ""}
        self.last = self.began = time.monotonic()
        self.lock = threading.Lock()

    def stream(self, name: str):
        """Return a file-like object for papermill's `stdout_file` or `stderr_file`."""
        terminal = self

        class Stream:
            def write(self, text):
                terminal._feed(name, text)

            def flush(self):
                pass

        return Stream()

    def heartbeat(self, memory_bytes: int):
        if time.monotonic() - self.last > self.quiet_s:
            since = duration(time.monotonic() - self.began)
            self._line(f"still running after {since}, memory {memory_bytes / 1e9:.1f} GB")

    def finish(self):
        for name in self.rest:
            self._feed(name, "\n" if self.rest[name] else "")

    def _feed(self, name: str, text: str):
        with self.lock:
            *lines, self.rest[name] = (self.rest[name] + text).split("\n")
        for line in lines:
            # A progress bar redraws with carriage returns: its last state is the line.
            line = line.rstrip("\r").rsplit("\r", 1)[-1].rstrip()
            if line:
                self._line(line)

    def _line(self, text: str):
        self.last = time.monotonic()
        print(f"    {text}", file=self.out, flush=True)


class _ProcessTree:
    """All processes started below this one since creation, and their peak resident memory."""

    def __init__(self):
        import psutil

        self.psutil = psutil
        self.older = set(psutil.Process().children(recursive=True))
        self.seen: set = set()
        self.peak_bytes = 0

    def sample(self) -> int:
        """Return the memory in use now, in bytes, and remember the peak."""
        total = 0
        for process in self.psutil.Process().children(recursive=True):
            if process not in self.older:
                self.seen.add(process)
                with suppress(self.psutil.NoSuchProcess):  # it ended since the listing
                    total += process.memory_info().rss
        self.peak_bytes = max(self.peak_bytes, total)
        return total

    def interrupt_kernel(self):
        """Send SIGINT to our direct children, so that cells can stop what they started."""
        self.sample()
        for process in self.psutil.Process().children():
            if process in self.seen:
                process.send_signal(signal.SIGINT)

    def kill(self):
        """End whatever the notebook left behind, e.g. ranks of a stage whose kernel died."""
        self.sample()  # what started since the last one
        alive = [p for p in self.seen if _is_alive(p)]
        for process in alive:
            with suppress(self.psutil.NoSuchProcess):
                process.terminate()
        _, stubborn = self.psutil.wait_procs(alive, timeout=5)
        for process in stubborn:
            process.kill()


def _is_alive(process) -> bool:
    """Whether a psutil process still does anything; a zombie only waits to be collected."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
