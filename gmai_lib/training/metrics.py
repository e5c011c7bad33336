"""What a training step says of itself: losses by kind of sample, norms by part, speed, MFU.

One line of metrics.jsonl per optimizer step, and the same numbers for TensorBoard
(`tensorboard --logdir outputs/mini` from an activated environment). Losses of single tokens cost
nothing extra: the loss is a sum of token losses times label weights, so its gradient with respect
to a weight is the loss of that token.
"""

import json
import math
import resource
import statistics
import time
from dataclasses import MISSING, dataclass, fields, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from gmai_lib.config import PARTS, Stage, TextConfig, VisionConfig
from gmai_lib.training import flops, launch

FINAL_STEPS = 10  # whose mean loss is the stage's final loss
RECENT = 32  # steps whose median a loss is compared with
FEWEST = 8  # steps before a jump can be told from the start
SMALLEST_JUMP = 1.0  # nats; near zero a loss may be many times its median and mean nothing
KINDS = ("subset", "language")  # of samples, whose losses are shown apart
WORST = 5  # samples named when a run is stopped


class StepLosses:
    """Collects the losses of one optimizer step, per sample; `over_ranks` sums them by kind.

    Call `watch` with the inputs before the forward pass.
    """

    def __init__(self, store, device):
        self.store, self.device = store, device
        self.watched: list[tuple[dict, torch.Tensor]] = []

    def watch(self, micro_batch: dict, inputs: dict):
        """Let the backward pass leave the token losses in the gradient of the label weights."""
        weights = inputs["label_weights"].detach().requires_grad_()  # not the loader's own tensor
        inputs["label_weights"] = weights
        self.watched.append((micro_batch, weights))

    def samples(self, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (indices, summed weighted losses, weights) of this rank's samples.

        `scale` is what one token's loss was multiplied by before it was summed.
        """
        parts = []
        for micro_batch, weights in self.watched:
            losses = weights.grad.double().cpu().numpy() / scale
            weights = micro_batch["label_weights"].double().numpy()
            sequence_ids = micro_batch["sequence_ids"].numpy()
            # The label at position 0 of a row predicts nothing, and has no weight.
            for row, members in enumerate(micro_batch["members"]):
                count = len(members) + 1  # 0 is padding
                weighed = np.bincount(sequence_ids[row], weights[row], count)
                total = np.bincount(sequence_ids[row], weights[row] * losses[row], count)
                parts.append(np.stack((members, total[1:], weighed[1:])))
        indices, total, weighed = np.concatenate(parts, axis=1)
        return indices.astype(int), total, weighed

    def over_ranks(self, loss, samples, dist) -> tuple[float, dict[str, dict[str, float]]]:
        """Return the sum of `loss` () over all ranks, and the losses by kind.

        These are {"subset": {"caption": loss, ...}, "language": {...}}, weighted as the loss is: it
        is their mean, weighted by the kinds' shares of label weight. One exchange for both.
        """
        indices, total, weighed = samples
        columns = []
        for kind in KINDS:
            codes = self.store.categories[kind].codes[indices]
            count = len(self.store.categories[kind].categories)
            columns += [np.bincount(codes, values, count) for values in (total, weighed)]
        sums = torch.tensor(np.concatenate(columns), dtype=torch.float32, device=self.device)
        sums = torch.cat((loss.view(1), sums))
        dist.all_reduce(sums)
        (loss, *sums), start, losses = sums.tolist(), 0, {}
        for kind in KINDS:
            names = self.store.categories[kind].categories
            totals, weights = (
                sums[start + half * len(names) : start + (half + 1) * len(names)] for half in (0, 1)
            )
            start += 2 * len(names)
            rows = zip(names, totals, weights, strict=True)
            losses[kind] = {name: part / weight for name, part, weight in rows if weight}
        return loss, losses

    def worst(self, samples, dist) -> list[tuple[str, float]]:
        """Return (id, loss) of the samples with the largest losses on any rank; NaN first."""
        indices, total, weighed = samples
        mine = [
            (self.store.sample_id(index), part / weight)
            for index, part, weight in zip(indices, total, weighed, strict=True)
            if weight
        ]
        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        return sorted(chain(*gathered), key=lambda row: -_rank_of(row[1]))[:WORST]


def _rank_of(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss


class Guard:
    """Stops a run whose loss is not finite or jumps; `recent` are the losses of its last steps."""

    def __init__(self, stage: Stage, recent: list[float]):
        self.stage, self.recent = stage, list(recent)

    def objection(self, loss: float) -> str | None:
        """Return what is wrong with the loss of the next step, None if nothing is."""
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if len(self.recent) >= FEWEST:
            usual = statistics.median(self.recent)
            if loss > max(self.stage.max_loss_jump * usual, usual + SMALLEST_JUMP):
                return (
                    f"loss {loss:.3f} is more than {self.stage.max_loss_jump:g} times the median "
                    f"{usual:.3f} of the last {len(self.recent)} steps"
                )
        self.recent = [*self.recent, loss][-RECENT:]
        return None


class GradientNorms:
    """Gradient norms per part, of all ranks and before clipping.

    ZeRO 1 to 3 compute one per parameter group for clipping, which are listened to here; with
    ZeRO 0 whole averaged gradients lie in the parameters after the last backward pass.
    """

    def __init__(self, engine):
        self.engine, self.norms = engine, []
        groups = engine.optimizer.param_groups
        if engine.zero_optimization_stage():
            optimizer = engine.optimizer
            of_group = getattr(optimizer, "sub_group_to_group_id", range(len(groups)))
            self.parts = [groups[of_group[i]]["part"] for i in range(len(of_group))]
            for name in ("get_grad_norm_direct", "complete_grad_norm_calculation_for_cpu_offload"):
                if hasattr(optimizer, name):
                    setattr(optimizer, name, self._listening(getattr(optimizer, name)))
        else:
            self.parts = [group["part"] for group in groups]
            named = {part: [] for part in PARTS}
            for name, parameter in engine.module.named_parameters():
                if parameter.requires_grad:
                    named[name.split(".")[0]].append(parameter)
            self.parameters = {part: members for part, members in named.items() if members}

    def _listening(self, compute):
        def listen(*arguments, **options):
            norm = compute(*arguments, **options)
            self.norms.append(norm)
            return norm

        return listen

    def before_update(self):
        """Call after the last backward pass of a step."""
        self.norms = []
        if not self.engine.zero_optimization_stage():
            self.squares = {
                part: sum(p.grad.double().pow(2).sum() for p in members if p.grad is not None)
                for part, members in self.parameters.items()
            }

    def by_part(self, scale: float) -> dict[str, float] | None:
        """Return the norms of the last step's gradients; None if it was skipped (fp16 overflow)."""
        if not self.engine.zero_optimization_stage():
            return {part: float(square) ** 0.5 / scale for part, square in self.squares.items()}
        if len(self.norms) != len(self.parts):
            return None
        squares = dict.fromkeys(self.parts, 0.0)
        for part, norm in zip(self.parts, self.norms, strict=True):
            squares[part] += float(norm) ** 2
        return {part: square**0.5 / scale for part, square in squares.items()}


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step found, over all ranks."""

    loss: float  # weighted mean over the labels of the global batch
    losses: dict[str, dict[str, float]]  # see StepLosses.kinds
    grad_norm: float | None  # of all parts, before clipping
    grad_norms: dict[str, float] | None  # per part; None where fp16 skipped the update
    loss_scale: float
    spent: tuple[float, float] | None  # seconds of forward and backward, and of the update


class Log:
    """Writes metrics.jsonl and TensorBoard's events at every step, and sums up at the end."""

    def __init__(self, out: Path, first: int, max_steps: int, stage: Stage, shapes, peak: float):
        self.max_steps, self.stage, self.shapes, self.peak = max_steps, stage, shapes, peak
        self.path = out / "metrics.jsonl"
        self.rows = launch.keep_metrics(self.path, first)
        self.began, self.written = len(self.rows), 0.0  # seconds that the last line took
        # Steps that a killed run has written and this one repeats are purged.
        self.board = SummaryWriter(out / "tensorboard", purge_step=first + 1, flush_secs=5)

    def write(self, step, batch, factor, result: "StepResult", started: float, waited: float):
        """Append a line; `started` is a time of perf_counter, `waited` seconds for the data."""
        ended, stage = time.perf_counter(), self.stage
        seconds, whole = ended - started, ended - started + self.written
        text_tokens = batch.tokens - batch.images * self.shapes.vision.tokens_per_image
        counted = flops.model_flops(
            self.shapes,
            stage,
            text_tokens,
            batch.images,
            label_tokens=batch.label_tokens,
            attended=batch.attended,  # what the samples need, whatever the kernel computes
        )
        worked = sum(sum(part.values()) for part in counted.values())
        row = {
            "step": step + 1,
            "max_steps": self.max_steps,
            "epoch": batch.epoch,
            "loss": result.loss,
            "learning_rates": {p: rate * factor for p, rate in stage.learning_rates.items()},
            "grad_norm": result.grad_norm,
            "tokens": batch.tokens,
            "label_tokens": batch.label_tokens,
            "samples": batch.samples,
            "images": batch.images,
            "utilisation": batch.tokens / batch.capacity,
            "seconds": seconds,
            "tokens_per_s": batch.tokens / seconds,
            "padded_tokens_per_s": batch.padded_tokens / seconds,
            "images_per_s": batch.images / seconds,
            "data_wait_share": waited / seconds,
            "update_share": result.spent[1] / whole if result.spent else None,
            "overhead_share": 1 - sum(result.spent) / whole if result.spent else None,
            "rank_spread": list(batch.rank_spread),
            "loss_by_subset": result.losses["subset"],
            "loss_by_language": result.losses["language"],
            "grad_norm_by_part": result.grad_norms,
            "tflops_per_s": worked / seconds / 1e12,
            "mfu": worked / seconds / self.peak,
            "memory_gib": memory_gib(),
            "seconds_left": self._seconds_left(step, seconds),
        }
        if stage.precision == "fp16":
            row["loss_scale"] = result.loss_scale
        self.rows.append(row)
        with self.path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        # One event of all numbers: writing each by itself takes several times as long.
        values = [Summary.Value(tag=name, simple_value=value) for name, value in _scalars(row)]
        self.board.file_writer.add_summary(Summary(value=values), row["step"])
        self.written = time.perf_counter() - ended

    def _seconds_left(self, step: int, seconds: float) -> float:
        """Steps to go times the mean of this run's last ones, the very first left out."""
        recent = [row["seconds"] for row in self.rows[self.began + 1 :]][-RECENT + 1 :] + [seconds]
        return (self.max_steps - step - 1) * statistics.mean(recent)

    def summary(self, first: int, world_size: int, device) -> dict:
        """Return what launch.run_stage returns; the events are complete then."""
        self.board.close()
        seconds = sum(row["seconds"] for row in self.rows)
        tokens = sum(row["tokens"] for row in self.rows)
        losses = [row["loss"] for row in self.rows[-FINAL_STEPS:]]
        before, after = np.mean([row["rank_spread"] for row in self.rows], axis=0)
        return {
            "steps": len(self.rows),
            "final_loss": sum(losses) / len(losses),
            "seconds": seconds,
            "tokens": tokens,
            "tokens_per_s": tokens / seconds,
            "images": sum(row["images"] for row in self.rows),
            "resumed_from": first,
            "world_size": world_size,
            "device": str(device.type),
            "precision": self.stage.precision,
            "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "mfu": sum(row["mfu"] * row["seconds"] for row in self.rows) / seconds,
            "data_wait_share": sum(row["data_wait_share"] * row["seconds"] for row in self.rows)
            / seconds,
            "update_share": self._median("update_share"),
            "overhead_share": self._median("overhead_share"),
            "rank_spread_in_order": float(before),
            "rank_spread": float(after),
        }

    def _median(self, name: str) -> float | None:
        values = [row[name] for row in self.rows if row.get(name) is not None]
        return statistics.median(values) if values else None


def _scalars(row: dict, prefix: str = ""):
    """Yield (name, number) of a line; those of a dict are called "loss_by_subset/caption"."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and prefix + name != "step":
            yield prefix + name, value


def memory_gib() -> float:
    """Most memory in use so far: on the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Shapes:
    """The sizes of a loaded model, as flops.model_flops takes them from a profile."""

    def __init__(self, config):
        vision = _sizes(VisionConfig, config.vision_config)
        self.vision = replace(vision, pixel_shuffle=config.pixel_shuffle)
        self.text = _sizes(TextConfig, config.text_config)
        self.vision_feature_layer = config.vision_feature_layer


def _sizes(kind, config):
    """Fill VisionConfig or TextConfig from transformers' configuration."""
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    sizes = {name: getattr(config, name) for name in needed if hasattr(config, name)}
    # Where the weights came from and how positions are encoded cost no FLOPs.
    return kind(**dict.fromkeys(needed, "") | sizes)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s MFU is measured against.

    Of a GPU, its maker's dense bf16 figure (flops.PEAKS); of a CPU, what this process reaches on
    a 1,024 x 1,024 matrix product in the precision of training. ValueError for an unknown GPU.
    """
    if device.type == "cuda":
        return flops.peak_of(torch.cuda.get_device_name(device))
    size, best = 1024, math.inf
    matrix = torch.ones(size, size, dtype=dtype)
    for _ in range(3):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
