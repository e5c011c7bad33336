"""Where each published benchmark is obtained, what of it lies in a folder, and its download.

    python -m gmai_lib.evaluation.fetch                    # all benchmarks
    python -m gmai_lib.evaluation.fetch ~/benchmarks       # and what is there already
    python -m gmai_lib.evaluation.fetch ~/benchmarks --download vqa_rad slake_en

Only `--download` downloads, and only what is named: the sets are large, and some want their terms
read first. Of the repository it takes the files the benchmark needs; archives are unpacked beside
the files they come with, and stay, or the hub would be asked for them again.

References: https://huggingface.co/docs/huggingface_hub/guides/download
"""

import argparse
import re
import sys
import zipfile
import zlib
from fnmatch import filter as matching
from json import JSONDecodeError
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from gmai_lib.dataset.annotations import files
from gmai_lib.dataset.records import is_inside
from gmai_lib.evaluation.published_benchmarks import BENCHMARKS, Benchmark, get, read, recognise

_HUB_ERRORS = (
    HTTPError,  # of the hub's client and of the HTTP library below it
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    JSONDecodeError,  # a page where the hub's answer should be: the login of a guest network
    RuntimeError,  # of hf_xet, whenever the hub's store of large files fails it
)


def describe(benchmark: Benchmark) -> str:
    """Return what is needed to get one benchmark, as a paragraph."""
    lines = [f"    {name}  {size}".rstrip() for name, size in benchmark.files.items()]
    hub = hub_repository(benchmark)
    command = f"python -m gmai_lib.evaluation.fetch path/to/benchmarks --download {benchmark.name}"
    return "\n".join(
        [
            f"{benchmark.name}: {benchmark.title}, split {benchmark.split}, "
            f"{benchmark.expected['all']:,} items",
            f"  from      {benchmark.homepage}",
            *([f"  command   {command}  # from {hub}"] if hub else []),
            f"  license   {benchmark.license}; access: {benchmark.access}",
            f"  protocol  {benchmark.protocol}",
            f"  cite      {benchmark.citation}",
            "  files",
            *lines,
        ]
    )


def hub_repository(benchmark: Benchmark) -> str:
    """Return the id of the benchmark's dataset on the Hugging Face hub, "" if it is not there."""
    found = re.search(r"huggingface\.co/datasets/(\S+)", benchmark.homepage)
    return found[1] if found else ""


def found_in(folder: Path) -> str:
    """Return one line per benchmark in `folder`: its items, and what is missing."""
    lines, present = [], recognise(folder)
    for name, root in present:
        result = read(name, root)
        state = result.problems() or "complete"
        lines.append(f"{name}: {len(result.items):,} items in {root}: {state}")
    missing = sorted({b.name for b in BENCHMARKS} - {name for name, _ in present})
    return "\n".join([*lines, f"not in {folder}: {', '.join(missing) or 'none'}"])


def download(name: str, folder: Path, *, endpoint: str | None = None) -> Path:
    """Download what benchmark `name` needs from the hub into a folder in `folder`; return that.

    The folder is called like the repository, so that `recognise` finds it, and benchmarks of one
    repository share it. Files of the hub's present commit that are there are not asked for again,
    and unpacked archives are not unpacked again. `endpoint`: another hub than HF_ENDPOINT's.

    Raises ValueError if the benchmark is unknown or not on the hub, or an archive is unsafe or
    broken; PermissionError if the hub wants a login or its terms accepted; ConnectionError if it
    cannot be reached or has no such repository; FileNotFoundError if the repository has no such
    files. What was downloaded before an error stays and is not asked for again.
    """
    benchmark = get(name)
    repository = hub_repository(benchmark)
    if not repository:
        raise ValueError(
            f"{name} is not on the Hugging Face hub; get {', '.join(benchmark.files)} from "
            f"{benchmark.homepage}, into a folder with a name like {benchmark.folder}"
        )
    root = Path(folder) / repository.rpartition("/")[2]
    try:
        # Without a timeout nothing would be said behind a firewall that drops what it refuses.
        info = HfApi(endpoint=endpoint).dataset_info(repository, timeout=30)
        wanted = _wanted(benchmark, [file.rfilename for file in info.siblings or ()])
        # A commit, so that all files are of one version. Where the hub cannot be reached it returns
        # any folder that is not empty, as if it were complete; hence the check for missing files.
        snapshot_download(
            repository,
            repo_type="dataset",
            revision=info.sha,
            allow_patterns=list(benchmark.hub_files),
            local_dir=root,
            endpoint=endpoint,
        )
    except _HUB_ERRORS as error:
        raise _explained(error, name, repository, root) from error
    if missing := [file for file in wanted if not (root / file).is_file()]:
        raise ConnectionError(
            f"{name}: {len(missing)} of {len(wanted)} files of {repository} did not come, first "
            f"{missing[0]}; what is in {root} stays, download again"
        )
    for pattern in benchmark.hub_files:
        for archive in files(root, pattern) if pattern.endswith(".zip") else ():
            _unpack(root / archive, benchmark)
    return root


def _wanted(benchmark: Benchmark, published: list[str]) -> list[str]:
    """The files of the repository that the benchmark needs."""
    wanted = {pattern: matching(published, pattern) for pattern in benchmark.hub_files}
    if absent := [pattern for pattern, found in wanted.items() if not found]:
        raise FileNotFoundError(
            f"{benchmark.name}: {hub_repository(benchmark)} has no {' and no '.join(absent)}, only "
            f"{', '.join(sorted(published)[:10]) or 'nothing'}; see {benchmark.homepage}"
        )
    return [file for found in wanted.values() for file in found]


def _explained(error: Exception, name: str, repository: str, root: Path) -> OSError:
    """The same error in one sentence that says what to do."""
    if isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__ or error  # it only says that there is no copy to fall back on
    page = f"https://huggingface.co/datasets/{repository}"
    copy = f"copy the files of {page} into {root}"
    if isinstance(error, GatedRepoError):
        return PermissionError(
            f"{name}: {repository} is gated; accept its terms at {page}, run `hf auth login`, and "
            "download again"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ConnectionError(
            f"{name}: the hub shows no dataset {repository}; it was moved or made private, see "
            f"{page} (with access: `hf auth login`)"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return ConnectionError(
            f"{name}: {repository} is on the hub and HF_HUB_OFFLINE is set; unset it (and "
            f"TRANSFORMERS_OFFLINE), or {copy}"
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return PermissionError(
            f"{name}: the hub refuses {repository} with {error.response.status_code}; see {page}, "
            "run `hf auth login` with a token that may read it, and download again"
        )
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return ConnectionError(
        f"{name}: {repository} could not be downloaded ({reason}); repair the connection and "
        f"download again, or {copy}"
    )


def _unpack(archive: Path, benchmark: Benchmark):
    """Unpack a zip archive beside itself, unless that was done.

    The folder that holds all of it and is called like the archive is left out where no layout of
    the benchmark looks into it: OmniMedVQA.zip has OmniMedVQA/QA_information. Raises ValueError if
    a member would lie outside, before anything is unpacked, or if the archive is broken.
    """
    state = archive.stat()
    done = f"{state.st_size} {state.st_mtime_ns}"  # another one once a new version was downloaded
    marker = archive.with_name(f".{archive.name}.unpacked")
    if marker.is_file() and marker.read_text("utf-8") == done:
        return
    try:
        with zipfile.ZipFile(archive) as opened:
            # SLAKE's was packed on a Mac, which adds a second tree of its own.
            members = [
                m for m in opened.infolist()
                if not m.filename.startswith("__MACOSX/")
                and not m.filename.rpartition("/")[2].startswith((".DS_Store", "._"))
            ]  # fmt: skip
            top = f"{archive.stem}/"
            places = [place for x in benchmark.layouts for place in (x.rows, *x.images)]
            if all(member.filename.startswith(top) for member in members) and not any(
                place.startswith(top) for place in places
            ):
                for member in members:
                    member.filename = member.filename.removeprefix(top)
            if outside := [m.filename for m in members if not is_inside(m.filename)]:
                raise ValueError(
                    f"{archive} is not unpacked: its member {outside[0]!r} would lie outside "
                    f"{archive.parent}"
                )
            for member in members:
                if member.filename:  # but for the folder that is left out
                    opened.extract(member, archive.parent)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,  # packed in a way that zipfile does not know
        RuntimeError,  # encrypted
    ) as error:
        raise ValueError(
            f"{archive} is no whole zip archive ({error}); delete it and download again"
        ) from error
    marker.write_text(done, "utf-8")  # last: what was killed before is done again


def main(arguments: list[str]) -> int:
    """Print the benchmarks, download what is asked for, and print what lies in the folder.

    Returns 1, with the reason on stderr, if that fails.
    """
    parser = argparse.ArgumentParser(prog="python -m gmai_lib.evaluation.fetch")
    parser.add_argument("folder", nargs="?", type=Path, help="where benchmarks may lie already")
    parser.add_argument(
        "--download", nargs="+", default=[], metavar="NAME", help="benchmarks to get from the hub"
    )
    options = parser.parse_args(arguments)
    if options.download and options.folder is None:
        parser.error("name the folder to download into before --download")
    try:
        # All names before the first download, which may take hours.
        chosen = [get(name) for name in options.download]
        print("\n\n".join(describe(benchmark) for benchmark in chosen or BENCHMARKS))
        for benchmark in chosen:
            print(f"\n{benchmark.name} is in {download(benchmark.name, options.folder)}")
        if options.folder is not None:
            print("\n" + found_in(options.folder))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
