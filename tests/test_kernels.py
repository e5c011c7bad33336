"""Kernels: what a processor is fast at, and matmul attention against transformers' own."""

import itertools

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from gmai_lib.model import kernels
from gmai_lib.training import packing


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


def test_the_fastest_attention_follows_processor_and_precision():
    assert kernels.attention("cpu", "bf16") == kernels.MATMUL
    assert kernels.attention("cpu", "float32") == kernels.attention("cuda", "float32") == "sdpa"
    assert kernels.attention("cuda", "bf16") == kernels.attention("cuda", "fp16") == kernels.VARLEN


def sample_by_sample(query, key, value, starts, starts_k, longest, longest_k, **options):
    """What torch's kernel for samples of several lengths does on a GPU, one after the other."""
    assert options.pop("window_size") == (-1, 0) and torch.equal(starts, starts_k)
    assert starts.dtype == torch.int32 and longest == longest_k >= starts.diff().max()
    parts = [
        scaled_dot_product_attention(
            *(tensor[start:stop].transpose(0, 1) for tensor in (query, key, value)),
            is_causal=True,
            enable_gqa=True,
            scale=options["scale"],
        ).transpose(0, 1)
        for start, stop in itertools.pairwise(starts.unique().tolist())
    ]
    return torch.cat(parts)


def packed_batch(tokenizer_size=50):
    """Three rows of 12 tokens: one sample that fills its row, three samples, one and padding."""
    generator = torch.Generator().manual_seed(1)
    sequence_ids = torch.tensor([[1] * 12, [1] * 3 + [2] * 4 + [3] * 5, [1] * 7 + [0] * 5])
    input_ids = torch.randint(1, tokenizer_size, (3, 12), generator=generator)
    starts = packing.sample_starts(sequence_ids)
    position_ids = torch.cat([torch.arange(n) for n in starts.diff()]).view(3, 12)
    return sequence_ids, starts, {"input_ids": input_ids, "position_ids": position_ids}


def test_starts_are_those_of_samples_rows_and_padding():
    _, starts, _ = packed_batch()
    assert starts.tolist() == [0, 12, 15, 19, 24, 31] + 58 * [36] and starts.dtype == torch.int32


def test_attention_within_samples_gives_what_the_mask_gives(monkeypatch):
    monkeypatch.setattr(kernels, "varlen_attn", sample_by_sample)
    model, (sequence_ids, starts, inputs) = tiny().double(), packed_batch()
    how = {
        "sdpa": {"attention_mask": packing.block_mask(sequence_ids)},
        kernels.VARLEN: {"cu_seq_lens_q": starts, "max_length_q": 12},
    }
    real, found = sequence_ids > 0, {}
    for attention, given in how.items():
        model.set_attn_implementation(attention)
        model.zero_grad()
        logits = model(**inputs, **given).logits[real]
        logits.pow(2).sum().backward()
        found[attention] = [logits, *(p.grad.clone() for p in model.parameters())]
    for masked, within in zip(*found.values(), strict=True):
        torch.testing.assert_close(masked, within, atol=1e-9, rtol=1e-9)


def test_attention_within_samples_refuses_what_it_would_ignore():
    model, (sequence_ids, starts, inputs) = tiny(), packed_batch()
    model.set_attn_implementation(kernels.VARLEN)
    with pytest.raises(ValueError, match="needs cu_seq_lens_q"):
        model(**inputs)
    mask = {"attention_mask": packing.block_mask(sequence_ids)}
    with pytest.raises(ValueError, match="no mask"):
        model(**inputs, **mask, cu_seq_lens_q=starts, max_length_q=12)
