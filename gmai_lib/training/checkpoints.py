"""Training checkpoints: each is complete or absent, and checked before it is used.

training/step-N/ holds DeepSpeed's files of every rank and complete.json: step, ranks, position in
the data, recent losses, size and sha256 of every file. It is written as .step-N.partial and renamed
when every rank has finished, so that a kill at any moment leaves the one before. Another number of
ranks can go on from it (`load_split_anew`).
"""

import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from gmai_lib.outputs import read_json, sha256_of, write_json
from gmai_lib.training import launch
from gmai_lib.training.launch import COMPLETE

STATES = ("fp32", "exp_avg", "exp_avg_sq")  # of a trained weight: itself and AdamW's two moments
SPARE_BYTES = 16 * 2**20  # left free on the disk, for logs


def save(engine, folder: Path, state: dict, *, keep: int, dist):
    """Write the checkpoint `folder`/step-<state["step"]> and remove all but the newest `keep`.

    One of lower state["selection_loss"] than these, where states have one, is kept, too.
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
    there = launch.training_checkpoints(folder)
    for old in set(there[keep:]) - {best(folder)}:
        doomed = old.rename(folder / f".{old.name}.partial")
        shutil.rmtree(doomed)


def best(folder: Path) -> Path | None:
    """Return the checkpoint with the lowest selection_loss, None if none has one."""
    losses = {
        path: read_json(path / COMPLETE).get("selection_loss")
        for path in launch.training_checkpoints(folder)
    }
    known = {path: loss for path, loss in losses.items() if loss is not None}
    return min(known, key=known.get, default=None)  # of equals the newest, which comes first


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


def is_split(folder: Path) -> bool:
    """Whether the ranks share the optimizer state: not so with ZeRO 0 in float32."""
    return bool(_optimizer_files(folder))


def load_split_anew(engine, folder: Path):
    """Load weights and AdamW's state from a checkpoint of another number of ranks.

    ZeRO lays the parameters of a group end to end and gives each rank a stretch of that. Every
    rank joins the pieces of one parameter after the other from the files, which are mapped into
    memory, and keeps what lies in its own stretch. Mutates the engine; every rank calls it.
    """
    from deepspeed import zero

    optimizer, (pieces, step, scaler) = engine.optimizer, _saved_pieces(folder)
    flats = _first_attribute(optimizer, FLAT_GROUPS)
    buffers = [{key: torch.zeros_like(flat) for key in STATES} for flat in flats]
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if name not in pieces:
            raise ValueError(f"{folder} has no trained parameter {name}; it is of another stage")
        whole = {
            key: torch.cat([flat[key][start : start + size] for flat, start, size in pieces[name]])
            for key in STATES
        }
        for group, start, first, size in _stretch(optimizer, parameter):
            for key in STATES:
                buffers[group][key][start : start + size] = whole[key][first : first + size]
        shape = getattr(parameter, "ds_shape", parameter.shape)
        with zero.GatheredParameters([parameter], modifier_rank=0):  # does nothing below ZeRO 3
            parameter.data.copy_(whole["fp32"].view(shape))
    for flat, buffer in zip(flats, buffers, strict=True):
        flat.data.copy_(buffer.pop("fp32"))
        optimizer.optimizer.state[flat] = buffer | {"step": torch.as_tensor(step).clone()}
    if scaler is not None:
        optimizer.loss_scaler = scaler


# What DeepSpeed's optimizers call the flattened float32 weights: ZeRO 3, 1 and 2, 0 in bf16.
FLAT_GROUPS = (
    "fp32_partitioned_groups_flat",
    "single_partition_of_fp32_groups",
    "fp32_groups_flat_partition",
)


def _first_attribute(thing, names):
    return next(getattr(thing, name) for name in names if hasattr(thing, name))


def _optimizer_files(folder: Path) -> list[Path]:
    """The optimizer states of the ranks that wrote, in the order of the ranks."""
    ranks = {path: re.search(r"pp_rank_(\d+)_", path.name) for path in folder.glob("*_states.pt")}
    found = [path for path, rank in ranks.items() if rank and "_optim_" in path.name]
    return sorted(found, key=lambda path: int(ranks[path][1]))


def _saved_pieces(folder: Path):
    """Return ({parameter: [(states, start, size) of each rank in turn]}, Adam's step, loss scaler).

    `states` are flat tensors by the names in STATES.
    """
    pieces: dict[str, list] = {}
    files = _optimizer_files(folder)
    for rank, path in enumerate(files):
        saved = _mapped(path)["optimizer_state_dict"]
        if "fp32_flat_groups" in saved:  # ZeRO 3
            weights, adam = saved["fp32_flat_groups"], saved["optimizer_state_dict"]["state"]
            model = next(folder.glob("zero_pp_rank_0_*_model_states.pt"))
            groups = [_even_shares(s, rank, len(files)) for s in _mapped(model)["param_shapes"]]
        else:
            weights = saved["single_partition_of_fp32_groups"]
            adam = saved["base_optimizer_state"]["state"]
            groups = [
                [(name, place.start, place.numel) for name, place in group.items()]
                for group in saved["param_slice_mappings"]
            ]
        for number, group in enumerate(groups):
            states = adam[number] | {"fp32": weights[number]}
            for name, start, size in group:
                pieces.setdefault(name, []).append((states, start, size))
    return pieces, adam[0]["step"], saved.get("loss_scaler")


def _mapped(path: Path) -> dict:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)


def _even_shares(shapes: dict, rank: int, ranks: int) -> Iterator[tuple[str, int, int]]:
    """Yield (name, start, size) of ZeRO 3, which cuts every parameter into equal, padded shares."""
    start = 0
    for name, shape in shapes.items():
        share = -(-shape.numel() // ranks)
        yield name, start, max(0, min(share, shape.numel() - rank * share))
        start += share


def _stretch(optimizer, parameter) -> Iterator[tuple[int, int, int, int]]:
    """Yield what this rank keeps of a parameter: (group, start in it, first element, size)."""
    if hasattr(parameter, "ds_id"):
        for group, members in enumerate(optimizer.fp16_groups):
            start = 0
            for member in members:
                share = member.partition_numel()
                if member is parameter:
                    first = torch.distributed.get_rank() * share
                    size = max(0, min(share, parameter.ds_numel - first))
                    yield group, start, first, size
                start += share
    elif parameter._hp_mapping is not None:
        piece = parameter._hp_mapping
        here, there = piece.hp_fragment_address, piece.lp_fragment_address
        yield piece.param_group_index, here.start, there.start, here.numel


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
