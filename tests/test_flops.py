"""training/flops: the formulas agree with torch's own counter and with the real modules."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gmai_lib import config
from gmai_lib.config import PARTS, STAGES
from gmai_lib.model import chat, gmai_vl, kernels, lora, standins
from gmai_lib.training import flops, metrics
from gmai_lib.training.packing import block_mask

MINI = config.mini()
PACKS, IMAGES, LABELS = 2, 3, 50


@pytest.fixture(scope="module")
def tokenizer():
    return standins.train_tokenizer(["one two three"], MINI.text.vocab_size)


def _counted(tokenizer, stage) -> dict[str, dict[str, int]]:
    """Forward and backward FLOPs per part, counted by torch while a mini model runs."""
    model = gmai_vl.from_profile(MINI, tokenizer)
    model.set_trainable(stage.trainable)
    if stage.lora_rank:
        lora.attach(model, rank=stage.lora_rank, alpha=stage.lora_alpha, seed=0)
    model.set_attn_implementation(kernels.MATMUL)
    shape, patches = (PACKS, stage.max_length), MINI.vision.num_patches
    input_ids = torch.full(shape, 7)
    placeholder = tokenizer.convert_tokens_to_ids(chat.IMAGE_TOKEN)
    input_ids.view(-1)[: IMAGES * patches] = placeholder
    labels = torch.full(shape, chat.IGNORE_INDEX)
    labels[0, -LABELS:] = 7
    size = MINI.vision.image_size
    arguments = {
        "input_ids": input_ids,
        "labels": labels,
        "attention_mask": block_mask(torch.ones(shape, dtype=torch.int64)),
        "pixel_values": torch.randn(IMAGES, 3, size, size),
    }
    with FlopCounterMode(display=False) as forward:
        loss = model(**arguments).loss
    with FlopCounterMode(display=False) as both:
        model(**arguments).loss.backward()
    assert loss.isfinite()
    table, total = forward.get_flop_counts(), both.get_total_flops()
    name = type(model).__name__
    per_part = {part: _part(table, f"{name}.{part}") for part in PARTS}
    return per_part, forward.get_total_flops(), total - forward.get_total_flops()


def _part(table, prefix) -> int:
    """The counter files a call under every enclosing module; submodules called directly have
    no entry of their parent, so add the topmost entries below `prefix`."""
    names = [n for n in table if n == prefix or n.startswith(prefix + ".")]
    top = [n for n in names if not any(n.startswith(other + ".") for other in names)]
    return sum(sum(table[name].values()) for name in top)


@pytest.mark.parametrize("name", [*STAGES, "adapters"])
def test_flops_agree_with_torchs_counter(tokenizer, name):
    stage = MINI.stages[2] if name == "adapters" else MINI.stage(name)
    stage = replace(stage, lora_rank=16 if name == "adapters" else 0)
    per_part, forward, backward = _counted(tokenizer, stage)
    text_tokens = PACKS * stage.max_length - IMAGES * MINI.vision.num_patches
    computed = flops.model_flops(MINI, stage, text_tokens, IMAGES, label_tokens=LABELS)
    for part in PARTS:
        assert computed[part]["forward"] == pytest.approx(per_part[part], rel=0.02), part
    assert sum(row["forward"] for row in computed.values()) == pytest.approx(forward, rel=0.02)
    assert sum(row["backward"] for row in computed.values()) == pytest.approx(backward, rel=0.02)


def test_adapters_are_what_the_memory_of_a_lora_stage_counts(tokenizer):
    learns = {"trainable": ("language_model",), "learning_rates": {"language_model": 1e-4}}
    stage = replace(MINI.stages[2], lora_rank=8, **learns)
    model = gmai_vl.from_profile(MINI, tokenizer)
    model.set_trainable(stage.trainable)
    lora.attach(model, rank=8, alpha=16, seed=0)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert flops.memory_table(replace(MINI, stages=(stage,)))[0]["trained"] == learning


def test_model_costs_what_its_profile_costs(tokenizer):
    shapes = metrics.Shapes(gmai_vl.from_profile(MINI, tokenizer).config)
    for stage in MINI.stages:
        assert flops.model_flops(shapes, stage, 900, 7) == flops.model_flops(MINI, stage, 900, 7)


def test_attention_within_samples_costs_what_packs_of_their_length_cost():
    for stage in MINI.stages:
        tokens = 900 + 7 * MINI.vision.tokens_per_image
        within = flops.model_flops(MINI, stage, 900, 7, attended=tokens * 50)
        assert within == flops.model_flops(MINI, replace(stage, max_length=50), 900, 7)
        assert within != flops.model_flops(MINI, stage, 900, 7)


def test_frozen_parts_cost_less_backwards():
    shallow, deep, tuned = (
        flops.model_flops(MINI, stage, text_tokens=1000, images=10) for stage in MINI.stages
    )
    assert shallow["vision_tower"]["backward"] == 0 < deep["vision_tower"]["backward"]
    assert 0 < shallow["language_model"]["backward"] < tuned["language_model"]["backward"]
    assert shallow["language_model"]["forward"] == tuned["language_model"]["forward"]


SHUFFLED = replace(config.mini(), vision=replace(config.mini().vision, pixel_shuffle=2))


@pytest.mark.parametrize(
    "profile", [config.mini(), config.paper(), SHUFFLED], ids=["mini", "paper", "shuffled"]
)
def test_parameter_counts_are_those_of_the_model(tokenizer, profile):
    with torch.device("meta"):
        model = gmai_vl.from_profile(profile, tokenizer)
    rows = {row["part"]: row["parameters"] for row in model.parameter_table()}
    assert flops.parameter_counts(profile) == rows
    for stage in profile.stages:
        model.set_trainable(stage.trainable)
        learning = sum(row["trainable"] for row in model.parameter_table())
        (first, *_) = [r for r in flops.memory_table(profile) if r["stage"] == stage.name]
        assert first["trained"] == learning, "the tower's unused last layer does not learn"


def test_memory_shrinks_with_every_zero_stage():
    rows = [r for r in flops.memory_table(config.paper()) if r["stage"] == "instruction_tuning"]
    assert [row["zero_stage"] for row in rows] == [0, 1, 2, 3]
    totals = [row["total_gib"] for row in rows]
    assert totals == sorted(totals, reverse=True)
    # 2 bytes a weight and 14 a trained one without ZeRO, all split over 8 ranks with ZeRO 3.
    whole = 2 * rows[0]["parameters"] + 14 * rows[0]["trained"]
    assert totals[0] == pytest.approx(whole / 2**30)
    assert totals[3] == pytest.approx(totals[0] / 8)


def test_planner_shares_the_work_and_refuses_what_does_not_divide():
    eight, sixteen = (flops.plan(config.paper(), gpus=n) for n in (8, 16))
    assert len(eight) == 3 * 4
    for one, other in zip(eight, sixteen, strict=True):
        assert one["hours"] == pytest.approx(2 * other["hours"])
        assert one["price"] == pytest.approx(other["price"]) and one["flops"] == other["flops"]
    last = [row for row in eight if row["stage"] == "instruction_tuning"]
    assert [row["fits"] for row in last] == [False, True, True, True]
    assert last[0]["total_gib"] == pytest.approx(8 * last[3]["total_gib"])
    few = flops.plan(config.paper(), gpus=8, samples=dict.fromkeys(STAGES, 1e6))
    assert few[0]["gpu_hours"] == pytest.approx(eight[0]["gpu_hours"] / 11.6827, rel=1e-4)
    with pytest.raises(ValueError, match="512 is not a multiple of micro batch 8 x world size 7"):
        flops.plan(config.paper(), gpus=7)


def test_papers_run_as_arithmetic():
    """11.68 M samples in 12,854 steps of 512 packs are 1.78 samples a pack; days at 35 % MFU."""
    rows = flops.paper_run()
    assert [row["samples"] / 1e6 for row in rows] == pytest.approx(
        [11.683, 11.683, 10.626], abs=1e-3
    )
    assert rows[0]["samples_per_pack"] == pytest.approx(1.775, abs=0.001)
    assert rows[1]["samples_per_pack"] == pytest.approx(1.691, abs=0.001)
    # By hand, stage III: 6 FLOPs per weight and token of a 7 B model, 696 tokens a sample.
    by_hand = 6 * 7.3e9 * 696 * 10.626e6
    assert by_hand < rows[2]["flops"] < 1.35 * by_hand  # attention and the tower on top
    assert rows[0]["flops"] < rows[1]["flops"]
    days = [round(row["days"], 1) for row in rows]
    print("days on 32 A100 at 35 % MFU:", days)


def test_peak_is_that_of_the_named_gpu():
    assert flops.peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert flops.peak_of("NVIDIA A10") == 125e12 and flops.peak_of("NVIDIA H200") == 989e12
    with pytest.raises(ValueError, match="no peak known for 'Voodoo 2'"):
        flops.peak_of("Voodoo 2")
