"""Training beside Hugging Face's `Trainer`: `python -m gmai_lib.bench train outputs/mini`.

The same checkpoint, samples, precision and optimizer; real tokens a second, padding not counted.
Ours is a stage of this workbook: packs, one DeepSpeed process per core. Beside it `Trainer` with
transformers' own LLaVA, exported from the same checkpoint, and batches padded to their longest
sample; one process with all cores, as it is used.
"""

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from gmai_lib import config
from gmai_lib.model import chat, kernels, weights
from gmai_lib.training import launch, loader

WARM_UP = 5  # optimizer steps that are not timed
STAGE = "instruction_tuning"  # all parts learn


def train(
    outputs: Path, *, steps: int = 40, seed: int = 0, profile: config.Profile | None = None
) -> list[dict]:
    """Return a row per way to train: real tokens and samples a second, share of padding, speed-up.

    `outputs` is the folder of a finished run of `profile` (mini): its pairs, initial checkpoint and
    store are used. Raises FileNotFoundError where one is missing, and ImportError without
    accelerate, which `Trainer` needs.
    """
    from transformers import LlavaForConditionalGeneration

    outputs = Path(outputs)
    profile = profile or config.load("mini")
    stage = replace(profile.stage(STAGE), max_steps=WARM_UP + steps, loss_weighting="token")
    stage = replace(stage, augment=False)  # Trainer has no such thing
    profile = replace(profile, stages=(stage,))
    init = outputs / "05_model" / "initial"
    model, processor = weights.load_checkpoint(init)
    pairs, cache = outputs / "03_write_pairs" / "pairs", outputs / "06_loader" / "cache"
    store = loader.prepare(pairs, cache, split="train", processor=processor)
    with tempfile.TemporaryDirectory() as folder:
        files = {"pairs": pairs, "init": init, "out": Path(folder) / "ours", "cache": cache}
        rows = [_ours(profile, stage, files, seed)]
        weights.export_llava(model.float(), processor, Path(folder) / "llava")
        llava = LlavaForConditionalGeneration.from_pretrained(
            Path(folder) / "llava", dtype=torch.float32
        )
        # What the ranks do side by side, one process does at once.
        accumulate = stage.gradient_accumulation_steps(profile.ranks)
        options = {"accumulate": accumulate, "steps": steps, "seed": seed}
        rows.append(beside_trainer(llava, store, stage, **options))
    for row in rows:
        row["speed-up"] = row["tokens_per_s"] / rows[1]["tokens_per_s"]
    return rows


def _ours(profile, stage, files: dict, seed: int) -> dict:
    launch.run_stage(profile, stage.name, seed=seed, **files)
    lines = (files["out"] / "metrics.jsonl").read_text("utf-8").splitlines()[WARM_UP:]
    steps = [json.loads(line) for line in lines]
    seconds = sum(step["seconds"] for step in steps)
    tokens = sum(step["tokens"] for step in steps)
    padded = sum(step["padded_tokens_per_s"] * step["seconds"] for step in steps)
    return {
        "what": f"packs, {profile.ranks} DeepSpeed ranks",
        "steps": len(steps),
        "tokens_per_s": tokens / seconds,
        "samples_per_s": sum(step["samples"] for step in steps) / seconds,
        "padding": 1 - tokens / padded,
    }


def beside_trainer(
    llava, store, stage, *, accumulate: int, steps: int, seed: int, warm_up: int = WARM_UP
) -> dict:
    """Time `Trainer` on as many samples a step as fill our packs, in random order.

    `llava` is a float32 LlavaForConditionalGeneration; `accumulate` batches make a step. Returns
    the row of `train`. Trained with bf16 autocast where the stage trains in bf16, and with
    bitsandbytes' AdamW where it does.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    cuda = torch.cuda.is_available()
    kept = np.flatnonzero(store.lengths <= stage.max_length)
    per_step = round(stage.global_batch_size * stage.max_length / store.lengths[kept].mean())
    per_batch = round(per_step / accumulate)
    order = np.random.default_rng(seed).choice(kept, per_batch * accumulate * (warm_up + steps))
    counted = {"tokens": 0, "padded": 0, "samples": 0, "seconds": 0.0}

    def collate(indices: list[int]) -> dict:
        samples = [store.sample(index) for index in indices]
        filled = {"input_ids": store.pad_token_id, "labels": chat.IGNORE_INDEX}
        batch = {
            name: pad_sequence([torch.tensor(s[name]) for s in samples], True, value).long()
            for name, value in filled.items()
        }
        width, real = batch["labels"].shape[1], [len(sample["input_ids"]) for sample in samples]
        batch["attention_mask"] = (torch.arange(width) < torch.tensor(real)[:, None]).long()
        pixels = torch.from_numpy(np.concatenate([sample["pixels"] for sample in samples]))
        if len(pixels):
            batch["pixel_values"] = chat.normalize_pixels(pixels)
        return batch

    class Counting(Trainer):
        def training_step(self, model, inputs, *arguments, **options):
            if self.state.global_step >= warm_up:
                counted["tokens"] += inputs["attention_mask"].sum()
                counted["padded"] += inputs["attention_mask"].numel()
                counted["samples"] += len(inputs["attention_mask"])
            return super().training_step(model, inputs, *arguments, **options)

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == warm_up:
                synchronize()
                self.start = time.perf_counter()

        def on_train_end(self, args, state, control, **kwargs):
            synchronize()
            counted["seconds"] = time.perf_counter() - self.start

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=per_batch,
            gradient_accumulation_steps=accumulate,
            max_steps=warm_up + steps,
            learning_rate=max(stage.learning_rates.values()),
            weight_decay=stage.weight_decay,
            max_grad_norm=stage.max_grad_norm,
            optim="adamw_bnb_8bit" if stage.optimizer == "adamw_8bit" else "adamw_torch_fused",
            bf16=kernels.precision(stage.precision, "cuda" if cuda else "cpu") == "bf16",
            gradient_checkpointing=stage.gradient_checkpointing,
            use_cpu=not cuda,
            dataloader_pin_memory=cuda,
            dataloader_num_workers=4 if cuda else 0,  # two cores are better left to the model
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=seed,
        )
        Counting(
            model=llava,
            args=arguments,
            train_dataset=[int(index) for index in order],
            data_collator=collate,
            callbacks=[Clock()],
        ).train()
    tokens = float(counted["tokens"])
    return {
        "what": "Trainer, padded batches",
        "steps": steps,
        "tokens_per_s": tokens / counted["seconds"],
        "samples_per_s": counted["samples"] / counted["seconds"],
        "padding": 1 - tokens / counted["padded"],
    }


def synchronize():
    """Wait until the GPU has done what it was told, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
