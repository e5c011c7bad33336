"""Write the phantoms to disk as 14 datasets in the world's own formats.

    write_sources(Path("sources"), seed=0, images_per_modality=1000, size=112, processes=2)

The bytes depend on the seed, the size and the number of images only, not on `processes`. A
folder appears under its name when it is complete, so a killed run leaves nothing half-made;
a complete one made with the same parameters and the same drawing code is reused.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from gmai_lib.dataset.phantom_formats import LAYOUTS, Layout, Patient
from gmai_lib.outputs import write_json
from gmai_lib.pool import ordered

MARKER = ".complete"  # parameters of a finished folder
_CHUNK = 24  # patients a process writes at a time


def write_sources(
    root: Path,
    *,
    seed: int,
    images_per_modality: int,
    size: int,
    processes: int = 1,
    only: Iterable[str] = tuple(LAYOUTS),
) -> list[Path]:
    """Write the phantom datasets under `root` and return their folders, in order of `only`.

    `images_per_modality` counts slices for volumes; the question and report folders hold a
    quarter of it. `processes` > 1 starts that many new Python processes.

    Raises ValueError if a number is out of range, or if a folder of that name exists that was
    not written by this function: it is never overwritten.
    """
    if images_per_modality < 1 or size < 32 or processes < 1:
        raise ValueError(
            f"images_per_modality={images_per_modality}, size={size}, processes={processes}: "
            "at least 1 image, 32 pixels and 1 process are needed"
        )
    names = tuple(only)
    if unknown := sorted(set(names) - set(LAYOUTS)):
        raise ValueError(f"no phantom dataset {unknown}; known: {', '.join(LAYOUTS)}")
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    wanted = {"seed": seed, "images_per_modality": images_per_modality, "size": size}
    wanted["code"] = _code_sha256()
    missing = [name for name in names if not _is_complete(root / name, wanted)]
    chunks = {name: _chunks(name, wanted) for name in missing}
    written = ordered(partial(_write_chunk, root), _jobs(root, chunks, seed), processes=processes)
    try:
        for name in missing:
            _finish(root / name, wanted, [row for _ in chunks[name] for row in next(written)])
    finally:
        written.close()  # no process writes any more
        for name in missing:
            shutil.rmtree(_unfinished(root, name), ignore_errors=True)
    return [root / name for name in names]


def _unfinished(root: Path, name: str) -> Path:
    return root / f".{name}.partial"


def _chunks(name: str, wanted: dict) -> list[list[Patient]]:
    patients = _patients(LAYOUTS[name], name, wanted)
    return [patients[i : i + _CHUNK] for i in range(0, len(patients), _CHUNK)]


def _jobs(root: Path, chunks: dict[str, list], seed: int) -> Iterator[tuple]:
    """A few patients of one dataset at a time; its folder is made when its turn comes."""
    for name in chunks:
        shutil.rmtree(_unfinished(root, name), ignore_errors=True)  # of a run that was killed
        _unfinished(root, name).mkdir()
        yield from ((name, seed, patients) for patients in chunks[name])


def _is_complete(folder: Path, wanted: dict) -> bool:
    if not folder.exists():
        return False
    marker = folder / MARKER
    if not marker.is_file():
        raise ValueError(
            f"{folder} exists but has no {MARKER} file, so it is not a finished phantom dataset; "
            "move it away or choose another folder"
        )
    return json.loads(marker.read_text("utf-8")) == wanted


def _write_chunk(root: Path, job: tuple[str, int, list[Patient]]) -> list[dict]:
    """Write the images of a few patients; return their rows."""
    name, seed, patients = job
    number = list(LAYOUTS).index(name)
    rows = []
    for patient in patients:
        rng = np.random.default_rng((seed, number, patient.number))
        rows += LAYOUTS[name].unit(_unfinished(root, name), rng, patient)
    return rows


def _finish(folder: Path, wanted: dict, rows: list[dict]):
    """Write what describes a dataset and give its folder its name."""
    layout, made = LAYOUTS[folder.name], _unfinished(folder.parent, folder.name)
    layout.index(made, rows)
    (made / "SOURCE.md").write_text(_source_text(folder.name, layout, wanted), "utf-8")
    write_json(made / MARKER, wanted)
    if folder.exists():  # complete, but made with other parameters
        outdated = folder.with_name(f".{folder.name}.outdated")
        shutil.rmtree(outdated, ignore_errors=True)
        folder.rename(outdated)
        made.rename(folder)
        shutil.rmtree(outdated)
    else:
        made.rename(folder)


def _patients(layout: Layout, name: str, wanted: dict) -> list[Patient]:
    """Deal the images of a folder out to patients; a volume counts as one image."""
    rng = np.random.default_rng((wanted["seed"], list(LAYOUTS).index(name)))
    low, high = layout.images_per_patient
    left = max(1, round(wanted["images_per_modality"] * layout.share))
    patients, first = [], 1
    while left:
        images = min(left, int(rng.integers(low, high + 1)))
        number = len(patients) + 1
        patients.append(Patient(number=number, first=first, images=images, size=wanted["size"]))
        first, left = first + images, left - images
        if not layout.share:
            break
    return patients


@lru_cache
def _code_sha256() -> str:
    """Hash of the drawing and writing code: a folder made by other code is made again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("phantom*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _source_text(name: str, layout: Layout, wanted: dict) -> str:
    return (
        f"# {name}\n\n"
        f"{layout.about}.\n\n"
        "Drawn by gmai_lib/dataset/phantoms.py from a seed: procedural, no person, no patient "
        "data. Not for any clinical use.\n\n"
        f"Seed {wanted['seed']}, {wanted['size']} pixels. Licence: CC0-1.0.\n"
    )
