"""Where each published benchmark is obtained, and what of it lies in a folder.

    python -m gmai_lib.evaluation.fetch                    # all benchmarks
    python -m gmai_lib.evaluation.fetch ~/benchmarks       # and what is there already

Nothing is downloaded: the sets are large, and some want their terms read first. The hub's own
command is printed; archives are unpacked beside the files they come with.
"""

import argparse
import re
import sys
from pathlib import Path

from gmai_lib.evaluation.published_benchmarks import BENCHMARKS, Benchmark, read, recognise


def describe(benchmark: Benchmark) -> str:
    """Return what is needed to get one benchmark, as a paragraph."""
    files = [f"    {name}  {size}".rstrip() for name, size in benchmark.files.items()]
    hub = re.search(r"huggingface\.co/datasets/(\S+)", benchmark.homepage)
    command = (
        f"hf download {hub[1]} --repo-type dataset --local-dir {benchmark.name}" if hub else ""
    )
    return "\n".join(
        [
            f"{benchmark.name}: {benchmark.title}, split {benchmark.split}, "
            f"{benchmark.expected['all']:,} items",
            f"  from      {benchmark.homepage}",
            *([f"  command   {command}"] if hub else []),
            f"  license   {benchmark.license}; access: {benchmark.access}",
            f"  protocol  {benchmark.protocol}",
            f"  cite      {benchmark.citation}",
            "  files",
            *files,
        ]
    )


def found_in(folder: Path) -> str:
    """Return one line per benchmark in `folder`: its items, and what is missing."""
    lines, present = [], recognise(folder)
    for name, root in present:
        result = read(name, root)
        state = result.problems() or "complete"
        lines.append(f"{name}: {len(result.items):,} items in {root}: {state}")
    missing = sorted({b.name for b in BENCHMARKS} - {name for name, _ in present})
    return "\n".join([*lines, f"not in {folder}: {', '.join(missing) or 'none'}"])


def main(arguments: list[str]) -> int:
    """Print the benchmarks, and what of them lies in the folder; 1 if it is no folder."""
    parser = argparse.ArgumentParser(prog="python -m gmai_lib.evaluation.fetch")
    parser.add_argument("folder", nargs="?", type=Path, help="where benchmarks may lie already")
    folder = parser.parse_args(arguments).folder
    print("\n\n".join(describe(benchmark) for benchmark in BENCHMARKS))
    if folder is not None:
        try:
            print("\n" + found_in(folder))
        except (FileNotFoundError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
