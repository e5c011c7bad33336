"""Kernels: what a processor is fast at, and matmul attention against transformers' own."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gmai_lib.model import kernels


def tiny():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def padded_batch():
    """Two rows, the first with three padding tokens on the left."""
    input_ids = torch.arange(20).view(2, 10) + 1
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, :3] = 0
    return input_ids, attention_mask


@torch.no_grad()
def test_equal_to_eager_on_real_tokens():
    model = tiny()
    input_ids, mask = padded_batch()
    logits = {}
    for name in ("eager", kernels.MATMUL):
        model.set_attn_implementation(name)
        logits[name] = model(input_ids=input_ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(logits["eager"], logits[kernels.MATMUL], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_stays_finite_under_autocast():
    model = tiny()
    model.set_attn_implementation(kernels.MATMUL)
    input_ids, mask = padded_batch()
    expected = model(input_ids=input_ids, attention_mask=mask).logits[mask.bool()]
    with torch.autocast("cpu", torch.bfloat16):
        got = model(input_ids=input_ids, attention_mask=mask).logits[mask.bool()]
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("hardware", [True, False])
def test_the_fastest_precision_follows_the_processor(monkeypatch, hardware):
    monkeypatch.setattr(kernels, "has_bf16", lambda device_type: hardware)
    assert kernels.precision("fastest", "cpu") == ("bf16" if hardware else "float32")
    assert kernels.precision("bf16", "cpu") == "bf16", "what is asked for is not replaced"


def test_matmul_attention_is_for_bf16_on_a_cpu_only():
    assert kernels.attention("cpu", "bf16") == kernels.MATMUL
    assert kernels.attention("cpu", "float32") == kernels.attention("cuda", "bf16") == "sdpa"
