"""What only a GPU can show: torch's kernel for samples of several lengths, and stages on CUDA.

Skipped without one; test_kernels and test_train hold the same on the CPU.
"""

import json
from dataclasses import replace

import pytest
import torch
from test_kernels import packed_batch, tiny
from tiny_run import run_ranks, tiny_profile, write_inputs, write_run

from gmai_lib.model import kernels, weights
from gmai_lib.training import packing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
STAGE = tiny_profile(augment=False, max_steps=6).stage("instruction_tuning")


def passes(model, attention, given):
    """Logits of real tokens, and all gradients, in float64."""
    sequence_ids, _, inputs = packed_batch()
    model.set_attn_implementation(attention)
    model.zero_grad()
    on_device = {n: t.cuda() if torch.is_tensor(t) else t for n, t in (inputs | given).items()}
    logits = model(**on_device).logits[(sequence_ids > 0).cuda()]
    logits.float().pow(2).sum().backward()
    return [t.detach().double() for t in (logits, *(p.grad for p in model.parameters()))]


def test_attention_within_samples_is_as_near_float32_as_bf16_with_the_mask():
    sequence_ids, starts, _ = packed_batch()
    masked = {"attention_mask": packing.block_mask(sequence_ids)}
    within = {"cu_seq_lens_q": starts, "max_length_q": 12}
    exact = passes(tiny().cuda(), "sdpa", masked)
    model = tiny().cuda().bfloat16()
    by_mask, by_starts = passes(model, "sdpa", masked), passes(model, kernels.VARLEN, within)
    for truth, one, other in zip(exact, by_mask, by_starts, strict=True):
        scale = truth.norm()
        assert (other - truth).norm() / scale < 2 * (one - truth).norm() / scale + 0.01


@torch.no_grad()
def test_no_sample_sees_another():
    sequence_ids, starts, inputs = packed_batch()
    model = tiny().cuda().bfloat16()
    model.set_attn_implementation(kernels.VARLEN)
    given = {n: t.cuda() for n, t in inputs.items()} | {"cu_seq_lens_q": starts.cuda()}
    before = model(**given, max_length_q=12).logits
    changed = ((sequence_ids == 2) & (torch.arange(3) == 1)[:, None]).cuda()
    given["input_ids"] = torch.where(changed, given["input_ids"] % 49 + 1, given["input_ids"])
    after = model(**given, max_length_q=12).logits
    assert torch.equal(before[~changed], after[~changed])
    assert not torch.equal(before[changed], after[changed])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with pairs/ and initial/."""
    return write_inputs(tmp_path_factory.mktemp("inputs"), tiny_profile(), 60)


def losses(folder, inputs, **changes):
    """Train the tiny stage with `changes` and return its losses."""
    run = write_run(folder, inputs, replace(STAGE, **changes), 1)
    codes = run_ranks(run, 1)
    assert codes == [0], (folder / "log-0.txt").read_text()[-3000:]
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory):
    """The losses in float32, ZeRO 0."""
    return losses(tmp_path_factory.mktemp("out"), inputs, precision="float32", zero_stage=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"zero_stage": 0, "precision": "bf16"},
        {"zero_stage": 1, "precision": "bf16"},
        {"zero_stage": 2, "precision": "bf16"},
        {"zero_stage": 3, "precision": "bf16"},
        {"zero_stage": 2, "precision": "fp16"},
        {"zero_stage": 1, "precision": "bf16", "optimizer": "adamw_8bit"},
        {"zero_stage": 1, "precision": "bf16", "gradient_checkpointing": True},
        {"zero_stage": 1, "precision": "bf16", "torch_compile": True},
        {"zero_stage": 1, "precision": "bf16", "offload_optimizer": True},
        {"zero_stage": 3, "precision": "bf16", "offload_parameters": True},
    ],
    ids=lambda changes: "-".join(f"{name}={value}" for name, value in changes.items()),
)
def test_every_way_to_train_gives_the_losses_of_float32(inputs, expected, tmp_path, changes):
    assert losses(tmp_path, inputs, **changes) == pytest.approx(expected, rel=0.02)


def test_qlora_trains_on_four_bit_weights(inputs, expected, tmp_path):
    found = losses(
        tmp_path, inputs, lora_rank=4, quantization="nf4", zero_stage=1, precision="bf16"
    )
    assert found[0] == pytest.approx(expected[0], rel=0.05) and len(found) == len(expected)


def test_a_killed_run_goes_on_where_it_was(inputs, tmp_path):
    stage = replace(STAGE, precision="bf16", zero_stage=2)
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
        run = write_run(folder, inputs, stage, 1, checkpoint_steps=2)
        if folder.name == "killed":
            run_ranks(run, 1, kill_at=3)
        assert run_ranks(run, 1) == [0], (folder / "log-0.txt").read_text()[-3000:]
    whole, killed = (weights.load_checkpoint(f / "checkpoint")[0].state_dict() for f in folders)
    same = sum(torch.equal(whole[name], killed[name]) for name in whole)
    print(f"{same} of {len(whole)} tensors are the same to the bit")
    for name, tensor in whole.items():
        torch.testing.assert_close(killed[name], tensor, rtol=1e-3, atol=1e-5)
