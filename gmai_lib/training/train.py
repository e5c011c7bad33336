"""Train one stage: freeze, optimise, log, checkpoint, resume.

    python -m gmai_lib.training.train outputs/mini/07_shallow_alignment/run.json

launch.run_stage writes run.json and starts this once per rank; the line above is the same with
one process. Files: see launch.py.

Paper: section 4.2 and its stage table (AdamW, cosine, which parts learn at which rate).
Departs: the loss is a mean over the label tokens of the whole global batch, so that ranks and
accumulation do not change it (the authors' code averages per micro batch); final weights are
the float32 ones of the optimizer, not their bf16 copies; frozen parts are proven unchanged.
"""

import argparse
import hashlib
import math
import os
import shutil
import statistics
import threading
import time
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch

from gmai_lib.config import PARTS, STAGES, Stage, paper_mixture, paper_samples
from gmai_lib.model import kernels, lora, weights
from gmai_lib.model.gmai_vl import part_of
from gmai_lib.outputs import read_json, write_json
from gmai_lib.training import checkpoints, engines, launch, loader, metrics

VALIDATION_STEPS = 8  # global batches of the validation split whose loss picks the best [chosen]
TIMEOUT = timedelta(hours=3)  # how long a rank waits for the others


def main(arguments: list[str] | None = None):
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run_file", type=Path, help="the run.json of a stage")
    parser.add_argument(
        "--stop-at-eof", action="store_true", help="exit when standard input closes (launch.py)"
    )
    parsed = parser.parse_args(arguments)
    if parsed.stop_at_eof:
        threading.Thread(target=_exit_at_eof, daemon=True).start()
    run = read_json(parsed.run_file)
    dist, device = join()
    train(run, dist, device)
    # Left to the interpreter's exit, gloo's threads sometimes abort with signal 6.
    dist.destroy_process_group()


def train(run: dict, dist, device: torch.device):
    """Train the stage that `run` describes, from where its last checkpoint left off."""
    stage = Stage.from_dict(run["stage"])
    stage = replace(stage, precision=kernels.precision(stage.precision, device.type))
    out, rank, world_size = Path(run["out"]), dist.get_rank(), dist.get_world_size()

    model, processor = weights.load_checkpoint(run["init"])
    before = part_hashes(model) if rank == 0 else None
    if stage.quantization != "none" and run["keep_best"] == "validation" and device.type == "cpu":
        raise ValueError(
            f"stage {stage.name}: on the CPU bitsandbytes repacks {stage.quantization} weights "
            "when they are first evaluated, and no gradient passes them any more; keep_best="
            '"training" judges without an evaluation'
        )
    engine = engines.start(
        model, stage, world_size=world_size, device_type=device.type, seed=run["seed"]
    )

    store = _store(run, "train", processor, dist)
    ranks = {"rank": rank, "world_size": world_size}
    data, unseen = loader.PairLoader(store, stage, seed=run["seed"], **ranks), None
    if run["keep_best"] == "validation":
        other = _store(run, "validation", processor, dist)
        unseen = loader.PairLoader(other, replace(stage, mixture=None), seed=0, **ranks)
    max_steps = stage.max_steps or max(1, round(stage.epochs * data.steps_per_epoch))
    first, recent = _resume(engine, data, stage, out, dist)
    if rank == 0:
        print(f"{data.counts}, {data.cut} of them cut; steps {first} to {max_steps}", flush=True)
        _print_mixture(data)
    log = _log(out, first, max_steps, stage, model, device, world_size) if rank == 0 else None
    guard, norms = metrics.Guard(stage, recent), metrics.GradientNorms(engine)

    for step in range(first, max_steps):
        start = time.perf_counter()
        factor = learning_rate_factor(step, max_steps, stage.warmup_ratio)
        for group in engine.optimizer.param_groups:
            group["lr"] = stage.learning_rates[group["part"]] * factor
        batch = next(data)
        waited = time.perf_counter() - start
        result = optimizer_step(engine, batch, stage, store, guard, norms, step, device, dist)
        if log:
            log.write(step, batch, factor, result, start, waited)
        if (step + 1) % run["checkpoint_steps"] == 0 and step + 1 < max_steps:
            state = {"step": step + 1, "world_size": world_size, "data": data.state_dict()}
            state |= {"recent_losses": guard.recent}
            if run["keep_best"] == "validation":
                state["selection_loss"] = validation_loss(engine, unseen, stage, device, dist)
            elif run["keep_best"] == "training":
                state["selection_loss"] = statistics.mean(guard.recent)
            keep = run["keep_checkpoints"]
            checkpoints.save(engine, out / "training", state, keep=keep, dist=dist)

    _finish(engine, stage, run, before, max_steps, dist)
    best = _write_best(engine, stage, run, dist)
    if log:
        summary = log.summary(first, world_size, device)
        print(
            f"work of the ranks: {summary['rank_spread']:.1%} above the mean, "
            f"{summary['rank_spread_in_order']:.1%} if packs were not dealt",
            flush=True,
        )
        summary |= {"samples": data.counts, "cut": data.cut}
        write_json(out / "training.json", summary | best)


def _store(run: dict, split: str, processor, dist) -> loader.Store:
    """Open the store of a split; rank 0 builds it where it is missing, the others then find it."""
    files = {"cache": Path(run["cache"]), "split": split, "processor": processor}
    if dist.get_rank():
        dist.barrier()
    store = loader.prepare(run["pairs"], **files)
    if dist.get_rank() == 0:
        dist.barrier()
    return store


def _log(out, first, max_steps, stage, model, device, world_size):
    """The log of rank 0, with what MFU is measured against."""
    peak = metrics.peak_flops(device, engines.DTYPES[stage.precision]) * world_size
    return metrics.Log(out, first, max_steps, stage, metrics.Shapes(model.config), peak)


def _print_mixture(data):
    """Print what the first epoch draws of each source, if the stage has a mixture.

    Absent sources make the others weigh more: beside table 10's ratios, its shares are printed.
    """
    stage, rows, shares = data.stage, data.drawn(0), {}
    if rows and stage.name in STAGES and stage.mixture == paper_mixture(stage.name):
        samples = paper_samples(stage.name)
        shares = {key: 100 * count / sum(samples.values()) for key, count in samples.items()}
    for row in rows:
        published = f", {shares[row['source']]:.1f} % of the published one" if shares else ""
        print(
            f"mixture: {row['source']}: {row['drawn']:,} of {row['available']:,} samples "
            f"(ratio {row['ratio']:g}), {100 * row['share']:.1f} % of the epoch{published}",
            flush=True,
        )
    absent = [row["source"] for row in rows if row["ratio"] and not row["available"]]
    if absent:
        print(f"mixture: absent, the others weigh more: {', '.join(absent)}", flush=True)


def learning_rate_factor(step: int, max_steps: int, warmup_ratio: float) -> float:
    """Return the share of the peak rate at optimizer step `step` (from 0): linear, then cosine.

    The first step is not at zero and the last one not quite, so that neither is wasted.
    """
    warmup = math.ceil(warmup_ratio * max_steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, max_steps - warmup)))


def part_hashes(model) -> dict[str, str]:
    """Return the sha256 of each part's weights: names, types, shapes and bytes."""
    digests = {part: hashlib.sha256() for part in PARTS}
    for name, tensor in sorted(model.state_dict().items()):
        digest = digests[part_of(name)]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {part: digest.hexdigest() for part, digest in digests.items()}


def optimizer_step(engine, batch, stage, store, guard, norms, step, device, dist):
    """Forward, backward and update; return a metrics.StepResult.

    `batch` is a loader.Step, `store` what it indexes; `guard` and `norms` are metrics.Guard and
    GradientNorms. DeepSpeed averages gradients over ranks. With the sum of a micro batch's losses
    divided by (label weight of the global batch / ranks), that average is the gradient of the
    global mean.

    Raises RuntimeError, before the update, if the loss is not finite or jumps; names the samples
    with the largest losses.
    """
    world_size = dist.get_world_size()
    total = torch.zeros((), device=device)
    kinds, unit = metrics.StepLosses(store, device), batch.label_weight / world_size
    passes = 0.0  # seconds of forward and backward
    for number, micro_batch in enumerate(batch.micro_batches, start=1):
        inputs = _inputs(micro_batch, stage, device, noise=stage.augment)
        kinds.watch(micro_batch, inputs)
        start = time.perf_counter()
        loss = engine(**inputs, num_items_in_batch=unit).loss
        engine.backward(loss, scale_wrt_gas=False)
        passes += time.perf_counter() - start
        total += loss.detach() / world_size
        if number < len(batch.micro_batches):
            engine.step()
    loss_scale = float(getattr(engine.optimizer, "loss_scale", 1.0))
    samples = kinds.samples(loss_scale / unit)
    total, by_kind = kinds.over_ranks(total, samples, dist)
    objection = guard.objection(total)
    if objection:
        worst = ", ".join(f"{name} ({loss:.3g})" for name, loss in kinds.worst(samples, dist))
        raise RuntimeError(
            f"stopped before the update of step {step + 1}: {objection}; samples with the largest "
            f"losses: {worst}; look at them, lower the learning rate or raise max_loss_jump"
        )
    norms.before_update()
    start = time.perf_counter()
    engine.step()
    update = time.perf_counter() - start
    by_part, whole = norms.by_part(loss_scale), engine.get_global_grad_norm()
    if whole is None and by_part:  # DeepSpeed does not say for ZeRO 0 in float32
        whole = sum(norm**2 for norm in by_part.values()) ** 0.5
    whole = None if whole is None else float(whole)
    # A GPU works on after the call, and its times would be those of the calls.
    spent = (passes, update) if device.type == "cpu" else None
    return metrics.StepResult(total, by_kind, whole, by_part, loss_scale, spent)


def _inputs(micro_batch: dict, stage: Stage, device, *, noise: bool) -> dict:
    attention = kernels.attention(torch.device(device).type, stage.precision)
    dtype = engines.DTYPES[stage.precision]
    return loader.to_device(micro_batch, device, dtype, noise=noise, attention=attention)


@torch.no_grad()
def validation_loss(engine, data: loader.PairLoader, stage: Stage, device, dist) -> float:
    """Return the loss on the first packs of `data`, at most VALIDATION_STEPS global batches.

    Weighted as in training, over all ranks, without noise; every call begins with the same pack.
    """
    data.load_state_dict(data.state_dict() | {"position": (0, 0)})
    total, weight = torch.zeros((), device=device), 0.0
    engine.eval()
    for _ in range(min(VALIDATION_STEPS, math.ceil(data.steps_per_epoch))):
        step = next(data)
        weight += step.label_weight
        for micro_batch in step.micro_batches:
            inputs = _inputs(micro_batch, stage, device, noise=False)
            total += engine(**inputs, num_items_in_batch=1).loss
    engine.train()
    dist.all_reduce(total)
    return total.item() / weight


def join():
    """Enter the process group, once; return (torch.distributed, this rank's device)."""
    cuda = torch.cuda.is_available()
    # DeepSpeed would guess the same and print a warning about guessing.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")
    if "RANK" not in os.environ:  # started without a launcher
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch.free_port())}
    os.environ.setdefault("LOCAL_RANK", "0")  # one process per pod: its operator sets only RANK
    import deepspeed
    from transformers.utils import logging

    logging.disable_progress_bar()
    # DeepSpeed's ZeRO still calls it by its old name.
    warnings.filterwarnings("ignore", "`torch.distributed.all_gather_into_tensor`", FutureWarning)
    # A kernel for inference only, which DeepSpeed would compile with g++ before it starts.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # The default of ten minutes is shorter than building the store of a large dataset.
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", timeout=TIMEOUT)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    return torch.distributed, device


def _exit_at_eof():
    """End this process when the one that started it has died and its pipe closed.

    Reads the file descriptor, not sys.stdin: a thread blocked in sys.stdin breaks Python's exit.
    """
    while os.read(0, 1024):
        pass
    print("the process that started this training has ended; stopping", flush=True)
    os._exit(1)


def _resume(engine, data, stage: Stage, out: Path, dist) -> tuple[int, list[float]]:
    """Load the newest intact checkpoint, if any; return the steps done and the last losses."""
    found = checkpoints.newest_intact(out / "training", dist)
    if found is None:
        return 0, []
    folder, state = found
    _load(engine, folder, state["world_size"], stage, dist)
    data.load_state_dict(state["data"])
    return state["step"], state["recent_losses"]


def _load(engine, folder: Path, writers: int, stage: Stage, dist):
    """Load a training checkpoint of `writers` ranks into the engine; every rank calls it."""
    readers = dist.get_world_size()
    other = writers != readers and checkpoints.is_split(folder)
    if other and stage.optimizer == "adamw_8bit":
        raise ValueError(
            f"{folder} was written by {writers} ranks, not {readers}, and the moments of "
            "adamw_8bit are quantised in blocks that cannot be split anew; resume with as many "
            "ranks, or delete the folder to start again"
        )
    frozen = {n for n, p in engine.module.named_parameters() if not p.requires_grad}

    def load(src, dst):
        """Load the trained weights; the frozen ones are those of `init` and not stored."""
        # Scales of frozen 4-bit weights are stored without them; both are made from `init` again.
        src = {n: t for n, t in src.items() if f"{n.partition('.weight.')[0]}.weight" not in frozen}
        missing, unexpected = dst.load_state_dict(src, strict=False)
        if unexpected or not set(missing) <= frozen | set(dst._tied_weights_keys or ()):
            raise ValueError(f"{folder} does not fit: {missing[:3]} {unexpected[:3]}")

    if other:
        checkpoints.load_split_anew(engine, folder)
    else:
        engine.load_checkpoint(str(folder.parent), tag=folder.name, custom_load_fn=load)
    if writers != readers and dist.get_rank() == 0:
        print(f"{folder} was written by {writers} ranks, {readers} go on", flush=True)
    dist.barrier()  # every rank has read it before rank 0 may remove it


def _finish(engine, stage: Stage, run: dict, before: dict | None, max_steps: int, dist):
    """Write the final checkpoint, and prove what did not change.

    Raises RuntimeError if a frozen parameter differs from `init` by a single bit.
    """
    out = Path(run["out"])
    size = sum(getattr(p, "ds_numel", p.numel()) * 4 for p in engine.module.parameters())
    checkpoints.require_space(out / "training", size, dist, max_steps)
    _write_model(engine, stage, run, out / "checkpoint", out / "adapter", dist)
    if dist.get_rank():
        return
    after = part_hashes(weights.load_checkpoint(out / "checkpoint")[0])
    table = {
        part: {
            "trained": part in stage.trainable,
            "before": before[part],
            "after": after[part],
        }
        for part in PARTS
    }
    changed = [p for p, row in table.items() if not row["trained"] and before[p] != after[p]]
    if changed:
        raise RuntimeError(f"frozen parts {changed} differ between {run['init']} and {out}")
    write_json(out / "frozen.json", table)


def _write_best(engine, stage: Stage, run: dict, dist) -> dict:
    """Write the model of the lowest loss to `out`/best if one was kept; say which it is.

    The training checkpoints are removed. Every rank calls it, after the last step: the engine then
    holds the best weights.
    """
    folder, found = Path(run["out"]) / "training", {}
    best = checkpoints.best(folder)
    dist.barrier()  # every rank has looked before rank 0 removes it
    if best is not None:
        state = read_json(best / launch.COMPLETE)
        _load(engine, best, state["world_size"], stage, dist)
        _write_model(engine, stage, run, Path(run["out"]) / "best", folder / "adapter", dist)
        found = {"best_step": state["step"], "best_loss": state["selection_loss"]}
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _write_model(engine, stage: Stage, run: dict, target: Path, adapter: Path, dist):
    """Write the engine's weights as a model, in the types of `init`; every rank calls it.

    Adapters are written to `adapter` and merged into the model. Raises RuntimeError if a frozen
    weight is not that of `init`.
    """
    model, processor = (
        weights.load_checkpoint(run["init"]) if dist.get_rank() == 0 else (None, None)
    )
    adapters = {}
    for name, parameter in engine.module.named_parameters():
        trained = engines.full_parameter(parameter)  # every rank takes part
        # A 4-bit copy of what `init` holds cannot learn; the adapters go to the weights themselves.
        if model is None or hasattr(parameter, "quant_state"):
            continue
        if lora.plain_name(name) is None:
            adapters[name] = trained
            continue
        original = model.get_parameter(lora.plain_name(name))
        if parameter.requires_grad:
            original.data.copy_(trained)
        elif not torch.equal(trained.cpu(), original.to(trained.dtype)):
            raise RuntimeError(f"frozen parameter {name} has changed during training")
    if model is None:
        return
    if adapters:
        scale = {"rank": stage.lora_rank, "alpha": stage.lora_alpha}
        lora.save(adapters, adapter, base=run["init"], **scale)
        lora.merge(model, adapter)
    weights.save_checkpoint(model, processor, target)
    write_json(target / launch.LINEAGE, launch.lineage(run["init"], stage.name))


if __name__ == "__main__":
    main()
