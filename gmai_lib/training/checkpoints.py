"""Training checkpoints: each is complete or absent, and checked before it is used.

training/step-N/ holds DeepSpeed's files of every rank and complete.json: step, ranks, position in
the data, recent losses, size and sha256 of every file. It is written as .step-N.partial and renamed
when every rank has finished, so that a kill at any moment leaves the one before.
"""

import errno
import shutil
from pathlib import Path

from gmai_lib.outputs import read_json, sha256_of, write_json
from gmai_lib.training import launch
from gmai_lib.training.launch import COMPLETE

SPARE_BYTES = 16 * 2**20  # left free on the disk, for logs


def save(engine, folder: Path, state: dict, *, keep: int, dist):
    """Write the checkpoint `folder`/step-<state["step"]> and remove all but the newest `keep`.

    Every rank calls it. Raises OSError with the needed bytes before anything is written if the
    disk has no room; training and the checkpoints before are as they were.
    """
    final = folder / f"step-{state['step']}"
    partial = folder / f".{final.name}.partial"
    if dist.get_rank() == 0:
        for leftover in folder.glob(".step-*.partial"):  # of a killed run
            shutil.rmtree(leftover)
    require_space(folder, needed_bytes(engine, folder), dist, state["step"])
    engine.save_checkpoint(
        str(folder), tag=partial.name, save_latest=False, exclude_frozen_parameters=True
    )
    dist.barrier()
    files = _hash_files(partial, dist)
    if dist.get_rank():
        return
    write_json(partial / COMPLETE, state | {"files": files})
    partial.rename(final)
    for old in launch.training_checkpoints(folder)[keep:]:
        doomed = old.rename(folder / f".{old.name}.partial")
        shutil.rmtree(doomed)


def newest_intact(folder: Path, dist) -> tuple[Path, dict] | None:
    """Return (folder, state) of the newest checkpoint whose files are as written, None without.

    Every rank calls it and checks its share of the files; rank 0 says which are damaged.
    """
    found = launch.training_checkpoints(folder)
    for number, path in enumerate(found):
        state = read_json(path / COMPLETE)
        damage = _damage(path, state["files"], dist)
        if not damage:
            return path, state
        if dist.get_rank() == 0:
            following = (
                f"resuming from {found[number + 1].name}"
                if found[number + 1 :]
                else "there is none before it, starting from step 0"
            )
            print(f"{path} is damaged ({'; '.join(damage)}): {following}", flush=True)
            path.rename(path.with_name(f".{path.name}.damaged.partial"))  # `save` removes it
    return None


def needed_bytes(engine, folder: Path) -> int:
    """Return how large the next checkpoint will be: as the last, or weights, copy and moments."""
    last = launch.training_checkpoints(folder)[:1]
    if last:
        return sum(file["bytes"] for file in read_json(last[0] / COMPLETE)["files"].values())
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    sizes = [getattr(p, "ds_numel", p.numel()) * (p.element_size() + 12) for p in trained]
    return int(1.1 * sum(sizes))


def require_space(folder: Path, needed: int, dist, step: int):
    """Raise OSError on every rank if the disk of `folder` has not `needed` bytes left."""
    folder.mkdir(parents=True, exist_ok=True)
    free = [shutil.disk_usage(folder).free if dist.get_rank() == 0 else 0]
    dist.broadcast_object_list(free, src=0)
    if free[0] < needed + SPARE_BYTES:
        raise OSError(
            errno.ENOSPC,
            f"disk full: the checkpoint of step {step} needs {needed + SPARE_BYTES:,} bytes and "
            f"{folder} has {free[0]:,}; free some and start again, which resumes from step "
            f"{launch.resume_step(folder.parent)}",
        )


def _hash_files(folder: Path, dist) -> dict[str, dict]:
    """Return {name: {"bytes", "sha256"}} of the files, each hashed by one of the ranks."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    mine = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in paths[dist.get_rank() :: dist.get_world_size()]
    }
    return {name: entry for part in _gather(mine, dist) for name, entry in part.items()}


def _damage(folder: Path, files: dict[str, dict], dist) -> list[str]:
    """Return what is wrong with the files, the same on every rank."""
    mine = []
    for name in sorted(files)[dist.get_rank() :: dist.get_world_size()]:
        path, wanted = folder / name, files[name]
        if not path.exists():
            mine.append(f"{name} is missing")
        elif path.stat().st_size != wanted["bytes"]:
            mine.append(f"{name} has {path.stat().st_size} of {wanted['bytes']} bytes")
        elif sha256_of(path) != wanted["sha256"]:
            mine.append(f"{name} has another sha256")
    return [problem for part in _gather(mine, dist) for problem in part]


def _gather(value, dist) -> list:
    """Return every rank's `value`, on every rank."""
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered
