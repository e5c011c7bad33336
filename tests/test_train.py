"""training/train: what learns, at which rate, and that ranks and accumulation change nothing."""

import json
import random
import re
import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import (
    fill_disk_after_first,
    run_ranks,
    samples,
    tiny_profile,
    write_inputs,
    write_run,
    write_shards,
)

from gmai_lib.config import ABLATIONS, PARTS, STAGES, paper_mixture
from gmai_lib.model import lora, weights
from gmai_lib.outputs import read_json
from gmai_lib.training import engines, flops, launch, loader, metrics, packing, train

PROFILE = tiny_profile()
ALONE = SimpleNamespace(
    get_rank=lambda: 0, get_world_size=lambda: 1, all_reduce=lambda tensor: None
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with pairs/ and initial/."""
    return write_inputs(tmp_path_factory.mktemp("inputs"), PROFILE, 60)


def _metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def _curves(out):
    """What TensorBoard shows of a run: name -> [(step, value)]."""
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}


def _log(out):
    return "\n".join(path.read_text()[-2000:] for path in sorted(out.glob("log-*.txt")))


def test_learning_rate_rises_linearly_then_falls_as_a_cosine():
    factors = [train.learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1 and factors[55] == pytest.approx(0.5)
    assert factors[10:] == sorted(factors[10:], reverse=True) and 0 < factors[-1] < 0.001
    assert train.learning_rate_factor(0, 1, 0.0) == 1


@pytest.mark.parametrize("name", STAGES)
def test_parameter_groups_hold_exactly_the_trainable_parameters(inputs, name):
    rates = dict.fromkeys(PROFILE.stage(name).trainable, 0.1) | {"multi_modal_projector": 0.2}
    stage = replace(PROFILE.stage(name), learning_rates=rates, weight_decay=0.3)
    model, _ = weights.load_checkpoint(inputs / "initial")
    model.set_trainable(stage.trainable)
    groups = engines.parameter_groups(model, stage)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for group in groups:
        assert group["lr"] == rates[group["part"]]
        assert group["weight_decay"] == (0.3 if group["params"][0].ndim > 1 else 0.0)
        assert len({p.ndim > 1 for p in group["params"]}) == 1
    projector = [g for g in groups if g["part"] == "multi_modal_projector"]
    assert sum(p.numel() for g in projector for p in g["params"]) == 2 * (32 * 32 + 32)


def test_part_hashes_notice_one_bit(inputs):
    model, _ = weights.load_checkpoint(inputs / "initial")
    before = train.part_hashes(model)
    assert set(before) == set(PARTS)
    bits = model.vision_tower.embeddings.class_embedding.data.view(torch.int32)
    bits[0] ^= 1
    after = train.part_hashes(model)
    assert [part for part in PARTS if before[part] != after[part]] == ["vision_tower"]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_ranks_equal_one_rank_with_accumulation(inputs, tmp_path, zero_stage):
    # Stage III mixes packs with and without images, and micro batches differ in label counts.
    stage = replace(
        PROFILE.stage("instruction_tuning"), precision="float32", zero_stage=zero_stage, max_steps=3
    )
    for ranks in (1, 2):
        run_file = write_run(tmp_path / str(ranks), inputs, stage, ranks)
        assert run_ranks(run_file, ranks) == [0] * ranks, _log(tmp_path / str(ranks))
    one, two = _metrics(tmp_path / "1"), _metrics(tmp_path / "2")
    for name in ("loss", "grad_norm") if zero_stage else ("loss",):
        values = [row[name] for row in one]
        assert values == pytest.approx([row[name] for row in two], rel=1e-4), name
    for name in ("step", "tokens", "label_tokens", "images", "samples", "learning_rates"):
        assert [row[name] for row in one] == [row[name] for row in two], name
    first, _ = weights.load_checkpoint(tmp_path / "1" / "checkpoint")
    second, _ = weights.load_checkpoint(tmp_path / "2" / "checkpoint")
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"gradient_checkpointing": True, "zero_stage": 2}, 1e-5),
        ({"gradient_checkpointing": True, "zero_stage": 3}, 1e-5),
        ({"offload_optimizer": True, "zero_stage": 2}, 1e-5),
        ({"offload_optimizer": True, "offload_parameters": True, "zero_stage": 3}, 1e-5),
        ({"bucket_elements": 5_000}, 1e-5),
        ({"optimizer": "adamw_8bit", "zero_stage": 1}, 1e-2),
        ({"optimizer": "adamw_8bit", "zero_stage": 2}, 1e-2),
    ],
    ids=str,
)
def test_memory_savers_give_the_same_loss_curve(inputs, tmp_path, changes, tolerance):
    stage = replace(PROFILE.stage("instruction_tuning"), precision="float32", max_steps=6)
    curves = []
    for name, variant in (("plain", stage), ("saver", replace(stage, **changes))):
        run_file = write_run(tmp_path / name, inputs, variant, 2)
        assert run_ranks(run_file, 2) == [0, 0], _log(tmp_path / name)
        curves.append([row["loss"] for row in _metrics(tmp_path / name)])
    assert curves[1] == pytest.approx(curves[0], rel=tolerance)
    assert curves[0][-1] != curves[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("names", [*ABLATIONS.values(), STAGES[::-1]], ids=" ".join)
def test_stages_can_be_trained_in_any_order_and_subset(inputs, tmp_path, names):
    """The paper's ablation (table 7), and backwards; stage I on one subset only."""
    init = inputs / "initial"
    for number, name in enumerate(names):
        stage = replace(PROFILE.stage(name), max_steps=1, precision="float32")
        if name == "shallow_alignment":
            stage = replace(stage, subsets=("text_single",))
        out = tmp_path / f"{number}_{name}"
        assert run_ranks(write_run(out, inputs, stage, 1, init=str(init)), 1) == [0], _log(out)
        frozen = read_json(out / "frozen.json")
        assert {part for part in PARTS if frozen[part]["trained"]} == set(stage.trainable)
        init = out / "checkpoint"
        assert read_json(init / "lineage.json")["stages"] == list(names[: number + 1])


@pytest.mark.parametrize(
    "changes",
    [{"zero_stage": 2}, {"zero_stage": 2, "quantization": "nf4"}]
    + [pytest.param({"zero_stage": 3}, marks=pytest.mark.slow)],
    ids=str,
)
def test_adapters_learn_instead_of_the_language_model_and_resume(inputs, tmp_path, changes):
    stage = replace(PROFILE.stage("instruction_tuning"), max_steps=10, lora_rank=4, **changes)
    rates = {"vision_tower": 1e-3, "multi_modal_projector": 1e-3, "language_model": 1e-2}
    stage = replace(stage, precision="float32", learning_rates=rates)
    runs = {
        label: write_run(tmp_path / label, inputs, stage, 2, checkpoint_steps=3)
        for label in ("whole", "killed")
    }
    assert run_ranks(runs["whole"], 2) == [0, 0], _log(tmp_path / "whole")
    assert run_ranks(runs["killed"], 2, kill_at=4) == [-9, -9]
    stored = list((tmp_path / "killed" / "training").rglob("*.pt"))
    size = sum(path.stat().st_size for path in stored)
    states = next(path for path in stored if "model_states" in path.name)
    names = torch.load(states, weights_only=False)["module"]
    assert any("absmax" in name for name in names) == ("quantization" in changes), "4-bit scales"
    assert run_ranks(runs["killed"], 2) == [0, 0], _log(tmp_path / "killed")
    initial, _ = weights.load_checkpoint(inputs / "initial")
    trained, again = (weights.load_checkpoint(tmp_path / label / "checkpoint")[0] for label in runs)
    assert train.part_hashes(trained) == train.part_hashes(again)
    before, after = dict(initial.named_parameters()), dict(trained.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    language = {name.removesuffix(".weight") for name in moved if "language_model" in name}
    assert language == {n for n, _ in initial.named_modules() if re.fullmatch(lora.TARGETS, n)}
    assert any(name.startswith("vision_tower") for name in moved)
    frozen = sum(p.numel() for n, p in before.items() if "language_model" in n)
    others = sum(p.numel() for p in before.values()) - frozen
    small = sum(
        a.numel() + b.numel() for a, b in lora.read(tmp_path / "whole" / "adapter")[1].values()
    )
    assert size < 2 * 1.5 * 16 * (others + small), "two checkpoints hold what learns and no more"

    adapter = tmp_path / "whole" / "adapter"
    scale, pairs = lora.read(adapter)
    assert scale == 4.0 and all(len(a) == b.shape[1] == 4 for a, b in pairs.values())
    for part in ("vision_tower", "multi_modal_projector"):
        getattr(initial, part).load_state_dict(getattr(trained, part).state_dict())
    lora.merge(initial, adapter)
    assert train.part_hashes(initial) == train.part_hashes(trained)
    rows = _metrics(tmp_path / "whole")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0]["grad_norm_by_part"]["language_model"] > 0


def test_4bit_weights_are_not_evaluated_on_the_cpu(inputs, tmp_path):
    stage = replace(PROFILE.stage("instruction_tuning"), lora_rank=4, quantization="nf4")
    run = write_run(tmp_path, inputs, stage, 1, keep_best="validation")
    assert run_ranks(run, 1) == [1]
    assert "repacks nf4 weights" in _log(tmp_path)


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_norms_are_those_without_the_loss_scale(inputs, scale):
    """What the fp16 run below shows of a whole stage, on every processor."""
    model, _ = weights.load_checkpoint(inputs / "initial")
    stage = PROFILE.stage("instruction_tuning")
    model.set_trainable(stage.trainable)
    groups = engines.parameter_groups(model, stage)
    expected = dict.fromkeys(PARTS, 0.0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, scale)
            expected[name.split(".")[0]] += parameter.numel()
    engine = SimpleNamespace(module=model, optimizer=SimpleNamespace(param_groups=groups))
    engine.zero_optimization_stage = lambda: 0
    norms = metrics.GradientNorms(engine)
    norms.before_update()
    expected = {part: count**0.5 for part, count in expected.items()}
    assert norms.by_part(scale) == pytest.approx(expected)


def test_fp16_says_its_loss_scale_and_learns_as_float32(inputs, tmp_path):
    from deepspeed.accelerator import get_accelerator

    if not get_accelerator().is_fp16_supported():
        pytest.skip("DeepSpeed trains no fp16 on this processor")
    stage = replace(PROFILE.stage("instruction_tuning"), max_steps=40, zero_stage=1)
    curves = {}
    for precision in ("fp16", "float32"):
        out = tmp_path / precision
        run = write_run(out, inputs, replace(stage, precision=precision), 1)
        assert run_ranks(run, 1) == [0], _log(out)
        curves[precision] = _metrics(out)
    assert {row["loss_scale"] for row in curves["fp16"]} == {2.0**16}, "no update overflowed"
    for half, full in zip(curves["fp16"], curves["float32"], strict=True):
        assert half["loss"] == pytest.approx(full["loss"], rel=0.01)
        norms = half["grad_norm_by_part"]
        assert norms == pytest.approx(full["grad_norm_by_part"], rel=0.05), "without the scale"


def test_a_stage_trains_on_its_mixture_and_says_so(inputs, tmp_path):
    mixture = {"tiny_a": 0.5, "tiny_b": 0.25, "SLAKE": 0.1}
    stage = replace(PROFILE.stage("instruction_tuning"), max_steps=None, mixture=mixture)
    run_file = write_run(tmp_path, inputs, stage, 1)
    assert run_ranks(run_file, 1) == [1]
    assert "1 of 3 sources of the mixture have no sample to train on: SLAKE" in _log(tmp_path)
    stage = replace(stage, missing_sources="reweigh")
    assert run_ranks(write_run(tmp_path, inputs, stage, 1), 1) == [0], _log(tmp_path)
    log = _log(tmp_path)
    assert "mixture: tiny_a: 15 of 30 samples (ratio 0.5), 65.2 % of the epoch" in log
    assert "mixture: tiny_b: 8 of 30 samples (ratio 0.25), 34.8 % of the epoch" in log
    assert "mixture: absent, the others weigh more: SLAKE" in log
    assert sum(row["samples"] for row in _metrics(tmp_path)) >= 23


@pytest.mark.parametrize("weighting", ["token", "square_root"])
def test_micro_batch_and_accumulation_do_not_change_the_gradient(inputs, weighting):
    """1 x 8, 2 x 4, 4 x 2 and 8 x 1 (packs x micro steps), with noise, in float64, two steps."""
    model, processor = weights.load_checkpoint(inputs / "initial")
    model = model.double().train()
    store = loader.prepare(inputs / "pairs", inputs / "cache", split="train", processor=processor)
    found = []
    for micro in (1, 2, 4, 8):
        stage = replace(PROFILE.stage("instruction_tuning"), global_batch_size=8)
        stage = replace(stage, micro_batch_size=micro, loss_weighting=weighting)
        data = loader.PairLoader(store, stage, seed=0)
        for step in (next(data), next(data)):
            assert len(step.micro_batches) == 8 // micro
            model.zero_grad()
            for batch in step.micro_batches:
                given = loader.to_device(batch, "cpu", torch.float64)
                model(**given, num_items_in_batch=step.label_weight).loss.backward()
            found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for number, gradients in enumerate(found[2:]):
        for name, gradient in gradients.items():
            same = found[number % 2][name]
            scale = same.abs().max().item()
            torch.testing.assert_close(gradient, same, rtol=1e-6, atol=1e-6 * scale + 1e-12)


@pytest.mark.slow
def test_micro_batch_and_accumulation_do_not_change_the_update(inputs, tmp_path):
    """The same through DeepSpeed and AdamW, in float32, with the noise (see loader.vary)."""
    moved, losses = [], []
    for micro, ranks in ((1, 1), (2, 1), (4, 1), (8, 1), (2, 2)):
        stage = replace(PROFILE.stage("instruction_tuning"), precision="float32", max_steps=2)
        stage = replace(stage, global_batch_size=8, micro_batch_size=micro, augment=True)
        out = tmp_path / f"{micro}-{ranks}"
        assert run_ranks(write_run(out, inputs, stage, ranks), ranks) == [0] * ranks, _log(out)
        losses.append([row["loss"] for row in _metrics(out)])
        moved.append(dict(weights.load_checkpoint(out / "checkpoint")[0].named_parameters()))
    initial = dict(weights.load_checkpoint(inputs / "initial")[0].named_parameters())
    for other, loss in zip(moved[1:], losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-6)
        for name, parameter in moved[0].items():
            torch.testing.assert_close(other[name], parameter, rtol=0, atol=1e-6, msg=name)
    assert max((moved[0][n] - p).abs().max() for n, p in initial.items()) > 1e-3


def test_shares_of_table_10_are_printed_before_and_after(inputs, capsys):
    _, processor = weights.load_checkpoint(inputs / "initial")
    store = loader.prepare(inputs / "pairs", inputs / "cache", split="train", processor=processor)
    stage = replace(PROFILE.stage("instruction_tuning"), missing_sources="reweigh")
    stage = replace(stage, mixture=paper_mixture("instruction_tuning"))
    train._print_mixture(loader.PairLoader(store, stage, seed=0))
    printed = capsys.readouterr().out
    assert (
        "*/instruct: 48 of 48 samples (ratio 1), 80.0 % of the epoch, 8.5 % of the pub" in printed
    )
    assert "SLAKE: 0 of 0 samples (ratio 0.1), 0.0 % of the epoch, 0.0 % of the pub" in printed
    assert "absent, the others weigh more: ALLaVA, ShareGPT4V, " in printed


def test_loss_is_the_token_mean_over_the_global_batch(inputs, tmp_path):
    stage = replace(PROFILE.stage("instruction_tuning"), precision="float32", max_steps=1)
    stage = replace(stage, loss_weighting="token")
    run_file = write_run(tmp_path, inputs, stage, 1)
    assert run_ranks(run_file, 1) == [0], _log(tmp_path)
    model, processor = weights.load_checkpoint(inputs / "initial")
    store = loader.prepare(inputs / "pairs", inputs / "cache", split="train", processor=processor)
    step = next(loader.PairLoader(store, stage, seed=0))
    total, tokens = 0.0, 0
    for batch in step.micro_batches:
        arguments = loader.to_device(batch, "cpu", torch.float32)
        count = (arguments["labels"] != -100).sum().item()
        total += model(**arguments).loss.item() * count  # the model's own mean, undone
        tokens += count
    assert _metrics(tmp_path)[0]["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert _metrics(tmp_path)[0]["label_tokens"] == tokens


@pytest.mark.parametrize("zero_stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_rank_with_text_only_does_not_hang_beside_one_with_images(inputs, tmp_path, zero_stage):
    """Packs of one sample each, a micro batch of one: every fifth sample has no image."""
    stage = replace(PROFILE.stage("instruction_tuning"), zero_stage=zero_stage, max_steps=12)
    stage = replace(stage, global_batch_size=2, micro_batch_size=1, max_length=70, over_long="cut")
    run_file = write_run(tmp_path, inputs, stage, 2)
    assert run_ranks(run_file, 2) == [0, 0], _log(tmp_path)
    _, processor = weights.load_checkpoint(inputs / "initial")
    store = loader.prepare(inputs / "pairs", inputs / "cache", split="train", processor=processor)
    ranks = [loader.PairLoader(store, stage, seed=0, rank=r, world_size=2) for r in (0, 1)]
    images = [[len(next(rank).micro_batches[0]["pixels"]) > 0 for rank in ranks] for _ in range(12)]
    assert [True, False] in images or [False, True] in images


@pytest.mark.parametrize("name", STAGES)
def test_only_the_stage_parts_change(inputs, tmp_path, name):
    stage = PROFILE.stage(name)
    run_file = write_run(tmp_path, inputs, stage, 2)
    assert run_ranks(run_file, 2) == [0, 0], _log(tmp_path)
    table = read_json(tmp_path / "frozen.json")
    assert {part for part in PARTS if table[part]["trained"]} == set(stage.trainable)
    initial, _ = weights.load_checkpoint(inputs / "initial")
    trained, processor = weights.load_checkpoint(tmp_path / "checkpoint")
    before, after = train.part_hashes(initial), train.part_hashes(trained)
    for part in PARTS:
        assert (table[part]["before"], table[part]["after"]) == (before[part], after[part])
        assert (before[part] != after[part]) == (part in stage.trainable)
    assert processor.tokenizer("bright")["input_ids"]
    assert all(p.dtype == torch.float32 for p in trained.parameters())  # as in `initial`
    assert not (tmp_path / "training").exists()


@pytest.mark.parametrize("name", ["shallow_alignment", "instruction_tuning"])
def test_run_killed_twice_equals_uninterrupted_run_bit_for_bit(inputs, tmp_path, name):
    stage = replace(PROFILE.stage(name), max_steps=24)
    runs = {
        label: write_run(tmp_path / label, inputs, stage, 2, checkpoint_steps=4)
        for label in ("whole", "killed")
    }
    assert run_ranks(runs["whole"], 2) == [0, 0], _log(tmp_path / "whole")
    for kill_at in (6, 15):
        assert run_ranks(runs["killed"], 2, kill_at=kill_at) == [-9, -9], _log(tmp_path / "killed")
    assert launch.resume_step(tmp_path / "killed") >= 12
    assert len(list((tmp_path / "killed" / "training").glob("step-*"))) <= 3  # one unfinished
    assert run_ranks(runs["killed"], 2) == [0, 0], _log(tmp_path / "killed")
    whole, killed = _metrics(tmp_path / "whole"), _metrics(tmp_path / "killed")
    assert [row["step"] for row in killed] == list(range(1, 25))
    for column in ("loss", "grad_norm", "tokens", "epoch", "learning_rates"):
        assert [row[column] for row in killed] == [row[column] for row in whole], column
    shown = _curves(tmp_path / "killed")["loss"]  # without the steps that were done again
    assert shown == [(row["step"], pytest.approx(row["loss"])) for row in whole]
    assert read_json(tmp_path / "killed" / "training.json")["resumed_from"] >= 12
    hashes = [
        train.part_hashes(weights.load_checkpoint(tmp_path / label / "checkpoint")[0])
        for label in runs
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("zero_stage", "precision", "before", "after"),
    [(2, "float32", 2, 1), (3, "float32", 1, 2)]
    + [
        pytest.param(zero_stage, precision, *ranks, marks=pytest.mark.slow)
        for precision in ("float32", "bf16")
        for zero_stage in (0, 1, 2, 3)
        for ranks in ((2, 1), (1, 2))
        if (zero_stage, precision, ranks) not in ((2, "float32", (2, 1)), (3, "float32", (1, 2)))
    ],
)
def test_run_goes_on_with_another_number_of_ranks(
    inputs, tmp_path, zero_stage, precision, before, after
):
    stage = replace(PROFILE.stage("instruction_tuning"), max_steps=10, zero_stage=zero_stage)
    stage = replace(stage, precision=precision)
    assert run_ranks(write_run(tmp_path / "whole", inputs, stage, after), after) == [0] * after
    run_file = write_run(tmp_path / "moved", inputs, stage, before, checkpoint_steps=3)
    assert run_ranks(run_file, before, kill_at=4) == [-9] * before, _log(tmp_path / "moved")
    reached = launch.resume_step(tmp_path / "moved")
    assert 3 <= reached < 10
    assert run_ranks(run_file, after) == [0] * after, _log(tmp_path / "moved")
    log = (tmp_path / "moved" / "log-0.txt").read_text()
    assert f"was written by {before} ranks, {after} go on" in log
    training = read_json(tmp_path / "moved" / "training.json")
    assert (training["resumed_from"], training["world_size"]) == (reached, after)
    rows = {name: _metrics(tmp_path / name) for name in ("whole", "moved")}
    for column in ("step", "tokens", "images", "samples", "epoch", "learning_rates"):
        assert [r[column] for r in rows["moved"]] == [r[column] for r in rows["whole"]], column
    losses = {name: [row["loss"] for row in found] for name, found in rows.items()}
    exact = precision == "float32"
    assert losses["moved"] == pytest.approx(losses["whole"], rel=1e-4 if exact else 2e-2)
    folders = [tmp_path / "whole" / "checkpoint", tmp_path / "moved" / "checkpoint"]
    models = [weights.load_checkpoint(folder)[0] for folder in (*folders, inputs / "initial")]
    whole, moved, start = (torch.nn.utils.parameters_to_vector(m.parameters()) for m in models)
    difference = (moved - whole).norm() / (whole - start).norm()
    print("difference as a share of the update", difference.item())
    assert difference < (1e-3 if exact else 0.1)


@pytest.mark.slow
def test_8bit_moments_are_not_split_anew(inputs, tmp_path):
    stage = replace(PROFILE.stage("shallow_alignment"), max_steps=200, optimizer="adamw_8bit")
    run_file = write_run(tmp_path, inputs, stage, 2, checkpoint_steps=2)
    assert run_ranks(run_file, 2, kill_at=4) == [-9, -9], _log(tmp_path)
    assert run_ranks(run_file, 1) == [1]
    assert "was written by 2 ranks, not 1, and the moments of adamw_8bit are" in _log(tmp_path)


def _resumed(inputs, out, *, prepare=None):
    """Train 12 steps with a checkpoint every 3, killed at step 9 or so, then again to the end."""
    stage = replace(PROFILE.stage("deep_alignment"), max_steps=12)
    run_file = write_run(out, inputs, stage, 2, checkpoint_steps=3)
    assert run_ranks(run_file, 2, kill_at=8) == [-9, -9], _log(out)
    checkpoints = launch.training_checkpoints(out / "training")
    assert len(checkpoints) == 2
    if prepare:
        prepare(checkpoints)
    assert run_ranks(run_file, 2) == [0, 0], _log(out)
    return [int(path.name.removeprefix("step-")) for path in checkpoints]


def _flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_flip_a_bit, "has another sha256"),
        pytest.param(_truncate, " bytes", marks=pytest.mark.slow),
        pytest.param(Path.unlink, "is missing", marks=pytest.mark.slow),
    ],
)
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(inputs, tmp_path, damage, said):
    def prepare(checkpoints):
        damage(sorted(checkpoints[0].glob("*optim_states.pt"))[1])

    steps = _resumed(inputs, tmp_path / "damaged", prepare=prepare)
    log = _log(tmp_path / "damaged")
    assert f"step-{steps[0]} is damaged (" in log and said in log
    assert f"resuming from step-{steps[1]}" in log
    training = read_json(tmp_path / "damaged" / "training.json")
    assert training["resumed_from"] == steps[1] and training["steps"] == 12
    rows = _metrics(tmp_path / "damaged")
    assert [row["step"] for row in rows] == list(range(1, 13))


@pytest.mark.slow
def test_without_an_intact_checkpoint_training_starts_again(inputs, tmp_path):
    def prepare(checkpoints):
        for path in checkpoints:
            _flip_a_bit(next(path.glob("*optim_states.pt")))

    _resumed(inputs, tmp_path, prepare=prepare)
    assert "there is none before it, starting from step 0" in _log(tmp_path)
    assert read_json(tmp_path / "training.json")["resumed_from"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_run_killed_twice_at_random_steps_has_the_weights_of_the_uninterrupted(
    inputs, tmp_path, name
):
    stage = replace(PROFILE.stage(name), max_steps=24)
    rng = random.Random(f"{name} {time.time_ns()}")
    kills = sorted(rng.sample(range(2, 22), 2))
    print("killed at steps", kills)
    whole, killed = (
        write_run(tmp_path / label, inputs, stage, 2, checkpoint_steps=2 + number)
        for number, label in enumerate(("whole", "killed"))
    )
    assert run_ranks(whole, 2) == [0, 0]
    for kill_at in kills:
        assert run_ranks(killed, 2, kill_at=kill_at) == [-9, -9], _log(tmp_path / "killed")
    assert run_ranks(killed, 2) == [0, 0], _log(tmp_path / "killed")
    hashes = [
        train.part_hashes(weights.load_checkpoint(tmp_path / label / "checkpoint")[0])
        for label in ("whole", "killed")
    ]
    assert hashes[0] == hashes[1], kills


def test_last_checkpoints_are_kept_and_older_ones_removed(inputs, tmp_path):
    stage = replace(PROFILE.stage("shallow_alignment"), max_steps=200)
    run_file = write_run(tmp_path, inputs, stage, 1, checkpoint_steps=2, keep_checkpoints=3)
    assert run_ranks(run_file, 1, kill_at=14) == [-9], _log(tmp_path)
    kept = [path.name for path in launch.training_checkpoints(tmp_path / "training")]
    assert len(kept) == 3 and kept[0] == f"step-{launch.resume_step(tmp_path)}"
    steps = [int(name.removeprefix("step-")) for name in kept]
    assert steps == [steps[0], steps[0] - 2, steps[0] - 4]


@pytest.mark.parametrize(
    ("by", "zero_stage"),
    [("training", 2), ("validation", 2), pytest.param("validation", 3, marks=pytest.mark.slow)],
)
def test_best_checkpoint_is_kept_beside_the_newest(inputs, tmp_path, by, zero_stage):
    """Trained at a rate that spoils the weights: the first checkpoint stays the best."""
    pairs = tmp_path / "pairs"
    shutil.copytree(inputs / "pairs", pairs)
    write_shards(pairs, samples(12, seed=5), split="validation")
    stage = replace(PROFILE.stage("instruction_tuning"), max_steps=12, precision="float32")
    rates = dict.fromkeys(stage.trainable, 1.0)
    stage = replace(stage, learning_rates=rates, warmup_ratio=0.9, max_loss_jump=1e9)
    stage = replace(stage, zero_stage=zero_stage)
    out = tmp_path / "out"
    changes = {"checkpoint_steps": 2, "keep_checkpoints": 1, "keep_best": by, "pairs": str(pairs)}
    run_file = write_run(out, inputs, stage, 2, cache=str(tmp_path / "cache"), **changes)
    assert run_ranks(run_file, 2) == [0, 0], _log(out)
    training, rows = read_json(out / "training.json"), _metrics(out)
    assert training["best_step"] < 10 and not (out / "training").exists()
    assert launch.lineage(out / "best", "next")["stages"] == [stage.name, "next"]
    model, processor = weights.load_checkpoint(out / "best")
    if by == "training":  # the mean of the losses so far
        seen = [np.mean([row["loss"] for row in rows[:step]]) for step in range(2, 12, 2)]
        assert training["best_loss"] == pytest.approx(min(seen))
        assert training["best_step"] == 2 * (1 + int(np.argmin(seen)))
    else:
        store = loader.prepare(pairs, tmp_path, split="validation", processor=processor)
        data = loader.PairLoader(store, stage, seed=0)
        found = train.validation_loss(model, data, stage, "cpu", ALONE)
        assert found == pytest.approx(training["best_loss"], rel=1e-4), "these are its weights"
        assert found < rows[-1]["loss"]


def test_validation_loss_is_the_mean_over_the_validation_split(inputs, tmp_path):
    pairs = write_shards(tmp_path, samples(9, seed=5), split="validation")
    model, processor = weights.load_checkpoint(inputs / "initial")
    store = loader.prepare(pairs, tmp_path, split="validation", processor=processor)
    stage = replace(PROFILE.stage("instruction_tuning"), loss_weighting="square_root")
    stage = replace(stage, global_batch_size=1, micro_batch_size=1, precision="float32")
    data = loader.PairLoader(store, stage, seed=0)
    assert data.steps_per_epoch <= train.VALIDATION_STEPS, "all packs are seen"
    total = 0.0
    for index in range(9):
        sample = packing.collate([[store.sample(index, "square_root")]], pad_token_id=0)
        given = loader.to_device(sample, "cpu", torch.float32, noise=False)
        total += model(**given, num_items_in_batch=1).loss.item()
    expected = total / store.label_weight("square_root").sum()
    for _ in range(2):  # the same each time
        found = train.validation_loss(model.train(), data, stage, "cpu", ALONE)
        assert found == pytest.approx(expected, rel=1e-5)
    assert model.training


def test_full_disk_is_an_error_with_the_needed_bytes_and_harms_nothing(inputs, tmp_path):
    stage = replace(PROFILE.stage("deep_alignment"), max_steps=12)
    run_file = write_run(tmp_path, inputs, stage, 1, checkpoint_steps=3)
    assert run_ranks(run_file, 1, prepare=fill_disk_after_first) == [1]
    log = _log(tmp_path)
    assert "disk full: the checkpoint of step 6 needs " in log
    assert "training has 1,000; free some and start again, which resumes from step 3" in log
    assert [p.name for p in (tmp_path / "training").glob("*step-*")] == ["step-3"]
    assert run_ranks(run_file, 1) == [0], _log(tmp_path)
    assert read_json(tmp_path / "training.json")["resumed_from"] == 3


@pytest.mark.parametrize(
    ("precision", "zero_stage"),
    [("float32", 2)]
    + [
        pytest.param(precision, zero_stage, marks=pytest.mark.slow)
        for precision in ("float32", "bf16")
        for zero_stage in (0, 1, 2, 3)
        if (precision, zero_stage) != ("float32", 2)
    ],
)
def test_losses_by_kind_and_norms_by_part_add_up(inputs, tmp_path, zero_stage, precision):
    stage = replace(PROFILE.stage("instruction_tuning"), zero_stage=zero_stage, max_steps=3)
    stage = replace(stage, precision=precision, loss_weighting="square_root", augment=False)
    assert run_ranks(write_run(tmp_path, inputs, stage, 2), 2) == [0, 0], _log(tmp_path)
    model, processor = weights.load_checkpoint(inputs / "initial")
    store = loader.prepare(inputs / "pairs", inputs / "cache", split="train", processor=processor)
    rows = _metrics(tmp_path)
    for row, step in zip(rows, loader.PairLoader(store, stage, seed=0), strict=False):
        assert set(row["grad_norm_by_part"]) == set(PARTS)
        squares = sum(norm**2 for norm in row["grad_norm_by_part"].values())
        assert row["grad_norm"] == pytest.approx(squares**0.5, rel=1e-3)
        members = np.concatenate([m for b in step.micro_batches for m in b["members"]])
        for kind in ("subset", "language"):
            by_kind = row[f"loss_by_{kind}"]
            shares = dict.fromkeys(by_kind, 0.0)
            for name, weight in zip(
                store.categories[kind][members],
                store.label_weight("square_root")[members],
                strict=True,
            ):
                shares[name] += weight / step.label_weight
            assert sum(shares.values()) == pytest.approx(1)
            mean = sum(shares[name] * loss for name, loss in by_kind.items())
            assert mean == pytest.approx(row["loss"], rel=1e-5)
    if precision == "float32":  # against autograd and the model's own loss
        step = next(loader.PairLoader(store, stage, seed=0))
        for batch in step.micro_batches:
            given = loader.to_device(batch, "cpu", torch.float32, noise=False)
            model(**given, num_items_in_batch=step.label_weight).loss.backward()
        for part in PARTS:
            members = getattr(model, part).parameters()
            norm = sum(p.grad.double().pow(2).sum() for p in members if p.grad is not None) ** 0.5
            assert rows[0]["grad_norm_by_part"][part] == pytest.approx(norm.item(), rel=1e-4)
        totals = {"en": [0.0, 0.0], "zh": [0.0, 0.0]}
        for index in np.concatenate([m for b in step.micro_batches for m in b["members"]]):
            sample = packing.collate([[store.sample(index, "square_root")]], pad_token_id=0)
            given = loader.to_device(sample, "cpu", torch.float32, noise=False)
            total = totals[store.categories["language"][index]]
            total[0] += model(**given, num_items_in_batch=1).loss.item()
            total[1] += given["label_weights"].sum().item()
        for language, (total, weight) in totals.items():
            assert rows[0]["loss_by_language"][language] == pytest.approx(total / weight, rel=1e-4)


def test_every_step_says_how_fast_it_was(inputs, tmp_path):
    stage = replace(PROFILE.stage("instruction_tuning"), max_steps=5)
    assert run_ranks(write_run(tmp_path, inputs, stage, 2), 2) == [0, 0], _log(tmp_path)
    rows = _metrics(tmp_path)
    for row in rows:
        assert 0 < row["tokens_per_s"] <= row["padded_tokens_per_s"]
        assert row["images_per_s"] == pytest.approx(row["images"] / row["seconds"])
        assert 0 <= row["data_wait_share"] < 1 and 0 < row["mfu"] < 1
        assert row["memory_gib"] > 0 and row["tflops_per_s"] > 0
        assert row["update_share"] > 0 and row["data_wait_share"] / 2 < row["overhead_share"]
        assert row["update_share"] + row["overhead_share"] < 1, "the rest are the passes"
        assert (row["seconds_left"] > 0) == (row["step"] < 5)
        before, after = row["rank_spread"]
        assert 0 <= after <= 1 and 0 <= before <= 1
    _, processor = weights.load_checkpoint(inputs / "initial")
    store = loader.prepare(inputs / "pairs", inputs / "cache", split="train", processor=processor)
    step = next(loader.PairLoader(store, stage, seed=0))
    text = step.tokens - step.images * PROFILE.vision.tokens_per_image
    counted = {"label_tokens": step.label_tokens, "attended": step.attended}
    needed = flops.model_flops(PROFILE, stage, text, step.images, **counted)
    needed = sum(sum(part.values()) for part in needed.values())
    assert rows[0]["tflops_per_s"] * rows[0]["seconds"] == pytest.approx(needed / 1e12)
    curves = _curves(tmp_path)
    assert {"learning_rates/language_model", "grad_norm_by_part/vision_tower"} < set(curves)
    for name in ("loss", "mfu", "tokens_per_s"):
        assert curves[name] == [(row["step"], pytest.approx(row[name])) for row in rows]
    summary = read_json(tmp_path / "training.json")
    assert summary["overhead_share"] == statistics.median(r["overhead_share"] for r in rows)
    assert 0 < summary["mfu"] < 1 and summary["rank_spread"] <= summary["rank_spread_in_order"]


def test_nan_stops_before_the_update_and_names_samples_of_the_batch(inputs, tmp_path):
    stage = replace(PROFILE.stage("shallow_alignment"), precision="float32", max_steps=9)
    stage = replace(stage, learning_rates={"multi_modal_projector": 1e30}, warmup_ratio=0.0)
    run_file = write_run(tmp_path, inputs, stage, 1, checkpoint_steps=1)
    assert run_ranks(run_file, 1) == [1]
    (said,) = re.findall(r"before the update of step (\d+): loss is nan; samples", _log(tmp_path))
    rows = _metrics(tmp_path)
    assert int(said) == len(rows) + 1 == launch.resume_step(tmp_path) + 1 == 2
    _, processor = weights.load_checkpoint(inputs / "initial")
    store = loader.prepare(inputs / "pairs", inputs / "cache", split="train", processor=processor)
    data = loader.PairLoader(store, stage, seed=0)
    batch = [next(data), next(data)][1]
    members = np.concatenate([m for b in batch.micro_batches for m in b["members"]])
    named = re.findall(r"(2d#cls#CT#tiny#0-\d+) \(nan\)", _log(tmp_path))
    assert named and set(named) <= {store.sample_id(i) for i in members}


def test_samples_with_the_largest_losses_are_found(inputs):
    _, processor = weights.load_checkpoint(inputs / "initial")
    store = loader.prepare(inputs / "pairs", inputs / "cache", split="train", processor=processor)
    stage = PROFILE.stage("instruction_tuning")
    losses = metrics.StepLosses(store, "cpu")
    step = next(loader.PairLoader(store, stage, seed=0))
    expected = {}
    for number, batch in enumerate(step.micro_batches):
        inputs_given = {"label_weights": batch["label_weights"]}
        losses.watch(batch, inputs_given)
        given = batch["label_weights"] * 0  # what backward would leave: loss 7 + its row, scale 2
        for row, members in enumerate(batch["members"]):
            for place, index in enumerate(members, start=1):
                loss = float("nan") if (number, row, place) == (0, 1, 1) else number + row + place
                given[row][batch["sequence_ids"][row] == place] = 2 * loss
                expected[store.sample_id(index)] = loss
        inputs_given["label_weights"].grad = given
        assert not batch["label_weights"].requires_grad, "the loader's own tensor is left alone"
    alone = SimpleNamespace(
        get_world_size=lambda: 1,
        all_gather_object=lambda out, value: out.__setitem__(0, value),
        all_reduce=lambda tensor: None,
    )
    worst = losses.worst(losses.samples(2.0), alone)
    assert len(worst) == 5 and np.isnan(worst[0][1])
    assert [expected[name] for name, _ in worst[1:]] == pytest.approx([v for _, v in worst[1:]])
    assert [v for _, v in worst[1:]] == sorted(v for v in expected.values() if v == v)[:-5:-1]


def test_a_jump_of_the_loss_stops_the_run():
    stage = replace(PROFILE.stage("shallow_alignment"), max_loss_jump=3.0)
    guard = metrics.Guard(stage, [1.0] * 7)
    assert guard.objection(2.9) is None  # the eighth: from now on there is a median
    assert guard.objection(2.9) is None
    assert "loss 3.100 is more than 3 times the median 1.000 of the last 9" in guard.objection(3.1)
    assert metrics.Guard(stage, [0.01] * 9).objection(0.9) is None  # less than a nat
    assert guard.objection(float("nan")) == "loss is nan"
    assert metrics.Guard(stage, []).objection(1e6) is None  # nothing to compare with
    assert metrics.Guard(stage, []).objection(float("inf")) == "loss is inf"


def test_checkpointing_keeps_less_and_sends_no_gradient_into_frozen_parts(inputs):
    model, processor = weights.load_checkpoint(inputs / "initial")
    store = loader.prepare(inputs / "pairs", inputs / "cache", split="train", processor=processor)
    stage = PROFILE.stage("instruction_tuning")
    batch = next(loader.PairLoader(store, stage, seed=0)).micro_batches[0]
    kept, through_tower = [], []
    projector = model.multi_modal_projector
    projector.register_forward_pre_hook(lambda _, args: through_tower.append(args[0].requires_grad))
    for enabled in (False, True):
        if enabled:
            engines.checkpoint_activations(model)
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t
        )
        with hooks:
            model.train()(**loader.to_device(batch, "cpu", torch.float32, noise=False))
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]
    model.set_trainable(PROFILE.stage("shallow_alignment").trainable)
    model(**loader.to_device(batch, "cpu", torch.float32, noise=False)).loss.backward()
    assert through_tower == [True, True, False]
    assert all(p.grad is None for p in model.vision_tower.parameters() if not p.requires_grad)


def test_groups_stay_below_what_8_bit_kernels_count(monkeypatch):
    monkeypatch.setattr(engines, "LARGEST_8BIT", 100)
    sizes = [60, 39, 1, 150, 10, 10]
    members = [torch.zeros(size, requires_grad=True) for size in sizes]
    groups = engines._small_groups([{"params": members, "lr": 0.1, "part": "language_model"}])
    assert [[p.numel() for p in group["params"]] for group in groups] == [
        [60, 39],
        [1],
        [150],
        [10, 10],
    ]
    assert all(group["lr"] == 0.1 and group["part"] == "language_model" for group in groups)


def test_rows_of_compiled_stages_are_of_one_length(inputs):
    stage = replace(PROFILE.stage("instruction_tuning"), torch_compile=True)
    _, processor = weights.load_checkpoint(inputs / "initial")
    store = loader.prepare(inputs / "pairs", inputs / "cache", split="train", processor=processor)
    step = next(loader.PairLoader(store, stage, seed=0))
    assert {batch["input_ids"].shape[1] for batch in step.micro_batches} == {stage.max_length}
    assert step.padded_tokens == stage.global_batch_size * stage.max_length
    free = next(loader.PairLoader(store, replace(stage, torch_compile=False), seed=0))
    assert step.tokens == free.tokens and free.padded_tokens <= step.padded_tokens
    assert step.attended == sum(
        int(n) ** 2 for b in step.micro_batches for m in b["members"] for n in store.lengths[m]
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
def test_compiled_layers_change_no_loss(inputs, tmp_path):
    stage, losses = PROFILE.stage("instruction_tuning"), {}
    for compiled in (False, True):
        out = tmp_path / str(compiled)
        out.mkdir()
        changes = {"torch_compile": compiled, "precision": "float32", "max_steps": 2}
        run = write_run(out, inputs, replace(stage, **changes), 1)
        assert run_ranks(run, 1) == [0], _log(out)
        losses[compiled] = [row["loss"] for row in _metrics(out)]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
