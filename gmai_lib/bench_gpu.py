"""Training on one GPU, rung by rung: `python -m gmai_lib.bench gpu --model 7b --out FILE`.

Untrained weights in the shapes of the profiles single_gpu (0.5b) and paper (7b), samples of one
image and some text: nothing is read from a disk or a hub. Three things are measured, in real
tokens a second and MFU: the rungs from a plain loop (a padded row per sample, attention by matrix
products, logits of every token) to packs, attention within samples, the loss at the answers and
compiled layers; the workbook's own stages (DeepSpeed, loader, log); and Hugging Face's `Trainer` on
transformers' LLaVA. MFU counts what the samples need (flops.model_flops): no padding, no pair of
tokens of two samples, nothing computed twice.
"""

import gc
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from gmai_lib import config
from gmai_lib.bench_train import beside_trainer, synchronize
from gmai_lib.config import Stage
from gmai_lib.model import chat, gmai_vl, kernels, standins, weights
from gmai_lib.training import engines, flops, loader, metrics, packing, train
from gmai_lib.training.store import Store

# Profile and optimizer: moments of 7 B weights fit in 8 bits only.
MODELS = {"0.5b": ("single_gpu", "adamw"), "7b": ("paper", "adamw_8bit")}
MICRO_BATCH = 2  # packs
MAX_LENGTH = 4096  # tokens of a pack
PACKS = 8  # of an optimizer step: 32,768 tokens, as many as each GPU of the paper has in one
STAGE_PACKS = 64  # of the workbook's stages: 262,144 tokens, a quarter of the paper's global batch
WARM_UP = 1  # optimizer steps that are not timed
IMAGES = 64  # distinct ones
TRAINERS = ("Trainer, padded rows", "Trainer, checkpointing")


@dataclass(frozen=True)
class Rung:
    """One way to train; each differs from the one before in one thing."""

    what: str
    precision: str = "float32"
    attention: str = "eager"
    packed: bool = False
    answers_only: bool = False  # logits where the loss needs them, not everywhere
    torch_compile: bool = False
    gradient_checkpointing: bool = False


def ladder() -> list[Rung]:
    """The rungs in order."""
    rungs = [Rung("float32, a padded row per sample")]
    for what, change in (
        ("bf16", {"precision": "bf16"}),
        ("fused attention (SDPA)", {"attention": "sdpa"}),
        ("packs, masked", {"packed": True}),
        ("attention within samples", {"attention": kernels.VARLEN}),
        ("loss at the answers", {"answers_only": True}),
        ("compiled layers", {"torch_compile": True}),
        ("activation checkpointing", {"gradient_checkpointing": True}),
    ):
        rungs.append(replace(rungs[-1], what=f"+ {what}", **change))
    return rungs


def gpu(
    model: str,
    *,
    steps: int = 2,
    seed: int = 0,
    device: str = "cuda",
    profile: config.Profile | None = None,
    only: str = "",
) -> list[dict]:
    """Return a row per rung, per stage of the workbook, and for `Trainer`.

    Rows of what, tokens_per_s (real), samples_per_s, mfu, peak_gib and speed-up (over `Trainer`);
    a way that does not fit the memory has "error" instead. `model` is a key of MODELS, `profile`
    another one of its shapes; `only` is parts of the names of the rows wanted, with semicolons.
    ValueError for an unknown model, and for a `device` of cuda without one.
    """
    if model not in MODELS:
        raise ValueError(f"unknown model {model!r}; known: {list(MODELS)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device here; `bench train` compares with Trainer on a CPU")
    name, optimizer = MODELS[model]
    profile = profile or config.load(name)
    common = {"micro_batch_size": MICRO_BATCH, "global_batch_size": PACKS, "zero_stage": 1}
    common |= {"optimizer": optimizer, "gradient_checkpointing": False, "augment": False}
    common |= {"mixture": None, "subsets": ("caption",), "max_steps": WARM_UP + steps}
    common["precision"] = kernels.precision("fastest", device)
    if device == "cuda":
        common["max_length"] = MAX_LENGTH
    profile = replace(profile, stages=tuple(replace(s, **common) for s in profile.stages))
    bench = _Bench(profile, device, steps, seed)
    rows = [
        _measured(*way, bench)
        for way in _ways(bench)
        if any(name in way[0] for name in only.split(";"))
    ]
    trainers = [row["tokens_per_s"] for row in rows if row["what"] in TRAINERS and "mfu" in row]
    for row in rows:
        if trainers and "mfu" in row:
            row["speed-up"] = row["tokens_per_s"] / max(trainers)
    return rows


def _ways(bench: "_Bench") -> list[tuple]:
    """Name, method of the bench and its argument of everything that is measured, in order."""
    profile = bench.profile
    ways = [(rung.what, bench.rung, rung) for rung in ladder()]
    if bench.parameters > 2e9:  # 7 B in float32, with activations, fit no GPU of today
        ways = ways[1:]
    # Before the first stage: in a process group, even of one, Trainer would wrap its model.
    for name, checkpointing in zip(TRAINERS, (False, True), strict=True):
        stage = replace(profile.stages[-1], gradient_checkpointing=checkpointing)
        ways.append((name, bench.trainer, stage))
    for stage in profile.stages:
        label = f"workbook, {stage.name.replace('_', ' ')}"
        stage = replace(stage, global_batch_size=STAGE_PACKS)
        ways.append((label, bench.stage, stage))
        ways.append((f"{label}, compiled", bench.stage, replace(stage, torch_compile=True)))
    return ways


def _measured(what: str, measure, how, bench: "_Bench") -> dict:
    """Measure one way on an empty GPU; memory that does not suffice is a result, too."""
    torch.compiler.reset()
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start, row = time.perf_counter(), {"what": what}
    try:
        row |= measure(how)
    except torch.OutOfMemoryError as error:
        row["error"] = f"out of memory: {str(error).partition('.')[0]}"
    else:
        row["mfu"] = row["tokens_per_s"] * bench.needed(how) / bench.peak
        row["peak_gib"] = metrics.memory_gib()
    print(f"{json.dumps(row)} ({time.perf_counter() - start:.0f} s in all)", flush=True)
    return row


class _Bench:
    """What all ways share: shapes, samples and the device."""

    def __init__(self, profile: config.Profile, device: str, steps: int, seed: int):
        self.profile, self.steps, self.seed = profile, steps, seed
        self.tokenizer = standins.train_tokenizer(["What is shown? A nodule."], 600)
        self.store = random_store(profile, self.tokenizer, 4000, seed)
        self.device = torch.device(device)
        self.peak = metrics.peak_flops(self.device, torch.bfloat16)
        self.parameters = sum(flops.parameter_counts(profile).values())

    def needed(self, how) -> float:
        """FLOPs a real token needs, all parts learning, or those of the stage."""
        stage = how if isinstance(how, Stage) else self.profile.stages[-1]
        lengths, images = self.store.lengths, len(self.store.lengths)
        text = int(lengths.sum()) - images * self.profile.vision.tokens_per_image
        counted = flops.model_flops(
            self.profile,
            stage,
            text,
            images,
            label_tokens=int(self.store.label_tokens.sum()),
            attended=int((lengths**2).sum()),
        )
        return sum(sum(part.values()) for part in counted.values()) / lengths.sum()

    def model(self, dtype: torch.dtype):
        """An untrained model on the device."""
        torch.manual_seed(self.seed)
        torch.set_default_dtype(dtype)
        try:
            with self.device:
                return gmai_vl.from_profile(self.profile, self.tokenizer)
        finally:
            torch.set_default_dtype(torch.float32)

    def rung(self, rung: Rung) -> dict:
        """Time a plain loop: forward, backward, clipping, AdamW on the weights as they are."""
        stage, dtype = self.profile.stages[-1], engines.DTYPES[rung.precision]
        model = self.model(dtype).train()
        model.set_trainable(stage.trainable)
        kernels.set_attention(model, rung.attention)
        if rung.gradient_checkpointing:
            engines.checkpoint_activations(model)
        if rung.torch_compile:
            engines.compile_layers(model)
        optimizer = self.optimizer(model, stage)
        batches = loader.PairLoader(self.store, stage, seed=self.seed)
        counted = {"tokens": 0, "samples": 0}
        for step in range(WARM_UP + self.steps):
            if step == WARM_UP:
                synchronize()
                start = time.perf_counter()
            batch = next(batches)
            for micro_batch in batch.micro_batches:
                self.loss(model, micro_batch, rung, dtype).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), stage.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if step >= WARM_UP:
                counted["tokens"] += batch.tokens
                counted["samples"] += batch.samples
        synchronize()
        return _per_second(counted, time.perf_counter() - start)

    def optimizer(self, model, stage: Stage):
        """AdamW on what learns: torch's fused one, or bitsandbytes' of 8-bit moments."""
        groups = engines.parameter_groups(model, stage)
        if stage.optimizer == "adamw_8bit":
            return engines.optimizer_8bit(groups, stage)
        return torch.optim.AdamW(groups, betas=stage.adam_betas, fused=True)

    def loss(self, model, micro_batch: dict, rung: Rung, dtype):
        """The loss of a micro batch, as the rung computes it."""
        if not rung.packed:
            micro_batch = self.unpacked(micro_batch)
        inputs = loader.to_device(
            micro_batch, self.device, dtype, noise=False, attention=rung.attention
        )
        if not rung.packed:  # as everybody does: causal, and the padding named
            inputs["attention_mask"] = (micro_batch["sequence_ids"] > 0).long().to(self.device)
        if rung.answers_only:
            return model(**inputs).loss
        labels = inputs.pop("labels")
        logits = model(**inputs).logits[:, :-1].flatten(0, 1).float()
        return F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=chat.IGNORE_INDEX)

    def unpacked(self, micro_batch: dict) -> dict:
        """The same samples, each in a row of its own."""
        rows = [[self.store.sample(i)] for members in micro_batch["members"] for i in members]
        return packing.collate(rows, pad_token_id=self.store.pad_token_id)

    def stage(self, stage: Stage) -> dict:
        """Time the workbook's own training: DeepSpeed's engine, the loader, the log."""
        dist, _ = train.join()
        model = self.model(engines.DTYPES[stage.precision])
        ranks = {"world_size": 1, "device_type": self.device.type}
        engine = engines.start(model, stage, seed=self.seed, **ranks)
        try:
            rows = self.logged_steps(engine, stage, dist)
        finally:
            engine.destroy()  # else a step that did not fit would leave its memory taken
        seconds = sum(row["seconds"] for row in rows)
        counted = {name: sum(row[name] for row in rows) for name in ("tokens", "samples")}
        waited = sum(row["data_wait_share"] * row["seconds"] for row in rows) / seconds
        beside = {"data_wait_share": waited, "loss": rows[-1]["loss"]}
        return _per_second(counted, seconds) | beside

    def logged_steps(self, engine, stage: Stage, dist) -> list[dict]:
        """Train as train.py does; return the lines of metrics.jsonl of the steps that count."""
        data = loader.PairLoader(self.store, stage, seed=self.seed)
        guard, norms = metrics.Guard(stage, []), metrics.GradientNorms(engine)
        shapes = metrics.Shapes(engine.module.config)
        with tempfile.TemporaryDirectory() as folder:
            log = metrics.Log(Path(folder), 0, WARM_UP + self.steps, stage, shapes, self.peak)
            for step in range(WARM_UP + self.steps):
                start = time.perf_counter()
                batch = next(data)
                waited = time.perf_counter() - start
                where = (guard, norms, step, self.device, dist)
                result = train.optimizer_step(engine, batch, stage, self.store, *where)
                log.write(step, batch, 1.0, result, start, waited)
            log.board.close()
        return log.rows[WARM_UP:]

    def trainer(self, stage: Stage) -> dict:
        """Time `Trainer` on the same shapes, samples and precision."""
        with torch.device("meta"):
            shapes = gmai_vl.from_profile(self.profile, self.tokenizer).config
        with self.device:
            llava = LlavaForConditionalGeneration(weights.llava_config(shapes))
        accumulate = stage.gradient_accumulation_steps(1)
        row = beside_trainer(
            llava,
            self.store,
            stage,
            accumulate=accumulate,
            steps=self.steps,
            seed=self.seed,
            warm_up=WARM_UP,
        )
        return {name: row[name] for name in ("tokens_per_s", "samples_per_s", "padding")}


def _per_second(counted: dict, seconds: float) -> dict:
    return {f"{name}_per_s": number / seconds for name, number in counted.items()}


def random_store(profile: config.Profile, tokenizer, count: int, seed: int) -> Store:
    """Return `count` samples of one random image and random text, a third of it answer.

    Text is as long as in the mix of "576 image tokens and about 120 of text" (tests/test_packing).
    """
    rng, vision = np.random.default_rng(seed), profile.vision
    image = tokenizer.convert_tokens_to_ids(chat.IMAGE_TOKEN)
    text = np.maximum(12, rng.gamma(2, 60, count).astype(int))
    lengths = vision.tokens_per_image + text
    starts = np.concatenate(([0], lengths.cumsum()))
    ids = rng.integers(profile.text.vocab_size, size=starts[-1], dtype=np.int32)
    ids[ids == image] = (image + 1) % profile.text.vocab_size
    supervised = np.zeros(starts[-1], bool)
    for start, stop, answer in zip(starts[:-1], starts[1:], text // 3, strict=True):
        ids[start + 4 : start + 4 + vision.tokens_per_image] = image
        supervised[stop - answer : stop] = True
    size = (IMAGES, 3, vision.image_size, vision.image_size)
    kinds = {"subset": "caption", "language": "en", "source": "random"}
    return Store(
        input_ids=ids,
        supervised=supervised,
        token_starts=starts,
        images=rng.integers(IMAGES, size=count),
        image_starts=np.arange(count + 1),
        pixels=rng.integers(256, size=size, dtype=np.uint8),
        label_tokens=text // 3,
        categories={name: pd.Categorical([kind] * count) for name, kind in kinds.items()},
        ids=np.zeros(count, np.uint8),
        id_starts=np.arange(count + 1),
        pad_token_id=tokenizer.pad_token_id,
        image_token_id=image,
        tokens_per_image=vision.tokens_per_image,
    )
