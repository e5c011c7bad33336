"""What this processor is fast at: the precision of training and the attention kernel.

    precision = kernels.precision("fastest", "cpu")          # "bf16" or "float32"
    kernels.set_attention(model, kernels.attention("cpu", precision))

A CPU with bf16 instructions (avx512_bf16, amx_bf16) multiplies bf16 several times faster than
float32; one without emulates it several times slower (1,024 x 1,024 matrices, 2 threads: 212
GFLOP/s in float32 against 49 in bf16 on an Ice Lake Xeon). With bf16, torch's CPU kernel behind
`scaled_dot_product_attention` is slow backwards at the lengths of the mini profile (forward and
backward, 1 thread, 48 x 4 heads x 64 tokens: 23.6 ms against 3.8 ms as two matrix products; 16 x
4 x 384: 78 ms against 37 ms). In float32 it is the faster one, as on a GPU. The price of matrix
products is memory: the (T, T) scores exist. Same numbers as transformers' "eager", which widens
the scores to float32 in memory; torch's bf16 softmax does so in registers.

On a GPU in half precision, packs are attended by torch's variable-length kernel (FlashAttention):
it is told where each sample begins and computes nothing between samples, while
`scaled_dot_product_attention` with a mask computes the whole (T, T) square and then hides it.
Measured in README, results, "On a GPU".

Shape letters: B packs, T and S tokens, N heads, K key heads, H width of a head.
"""

import inspect
from contextlib import contextmanager

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

MATMUL, VARLEN = "matmul", "varlen"
# torch 2.11 shares key heads without being asked to, 2.13 has to be asked.
_ASKED = "enable_gqa" in inspect.signature(varlen_attn).parameters
_SHARED_KEYS = {"enable_gqa": True} if _ASKED else {}


def precision(wanted: str, device_type: str) -> str:
    """Return "bf16" or "float32" for "fastest"; anything else is returned as it is."""
    if wanted != "fastest":
        return wanted
    return "bf16" if has_bf16(device_type) else "float32"


def has_bf16(device_type: str) -> bool:
    """Whether "cpu" or "cuda" multiplies bf16 in hardware."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch keeps the two checks private; torch.cpu.get_capabilities() is not in 2.11.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def attention(device_type: str, precision: str) -> str:
    """Return the fastest attention for packs on "cpu" or "cuda" in bf16, fp16 or float32."""
    if device_type == "cuda":
        return VARLEN if precision in ("bf16", "fp16") else "sdpa"  # it takes half precision only
    return MATMUL if precision == "bf16" else "sdpa"


def set_attention(model, attention: str):
    """Let the language model of `model` attend by `attention`, and the tower where it can, too."""
    model.language_model.set_attn_implementation(attention)
    # Images are all of one length: nothing varies there.
    model.vision_tower.set_attn_implementation("sdpa" if attention == VARLEN else attention)


@contextmanager
def threads_of(number: int):
    """Let torch use `number` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def matmul_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """Attend; called by transformers.

    query (B, N, T, H); key and value (B, K, S, H), N a multiple of K; attention_mask None or
    additive (B, 1, T, S). Returns (B, T, N, H) and None for the weights.
    """
    if dropout:
        raise ValueError(f"attention dropout {dropout}: not supported, the paper trains without")
    # Heads that share a key head become extra rows of it, so that no key is copied.
    batch, heads, length, width = query.shape
    rows = (batch, key.shape[1], heads // key.shape[1] * length)
    scores = (query * scaling).reshape(*rows, width) @ key.transpose(2, 3)  # (B, K, N/K T, S)
    if attention_mask is not None:
        grouped = scores.view(batch, key.shape[1], heads // key.shape[1], length, -1)
        if attention_mask.dtype != scores.dtype:
            # Under autocast the mask is float32, whose minimum is minus infinity in bf16: a row
            # of padding that may attend to nothing would become NaN and spread.
            lowest = torch.finfo(scores.dtype).min
            attention_mask = attention_mask.to(scores.dtype).clamp(min=lowest)
        grouped += attention_mask[:, :, None]
    attended = torch.softmax(scores, dim=-1) @ value  # (B, K, N/K T, H)
    return attended.view(query.shape).transpose(1, 2).contiguous(), None


def varlen_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling,
    dropout=0.0,
    cu_seq_lens_q=None,
    max_length_q=None,
    **_,
):
    """Attend within samples laid end to end; called by transformers.

    query (B, N, T, H); key and value (B, K, T, H), N a multiple of K; cu_seq_lens_q int32, where
    each sample starts in the B * T tokens, and their end (packing.sample_starts); max_length_q at
    least the longest one's tokens. Returns (B, T, N, H) and None for the weights.

    Raises ValueError without the starts, with a mask, or with dropout.
    """
    if cu_seq_lens_q is None or attention_mask is not None or dropout:
        raise ValueError(
            f'attention "{VARLEN}" is for packs in training: it needs cu_seq_lens_q and '
            'max_length_q (packing.sample_starts), no mask and no dropout; use "sdpa" for the rest'
        )
    batch, _, length, _ = query.shape
    attended = varlen_attn(
        *(tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)),
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1, 0),  # every earlier token and itself, no later one
        **_SHARED_KEYS,
    )
    return attended.unflatten(0, (batch, length)), None


AttentionInterface.register(VARLEN, varlen_attention)  # no mask beside it: none is to be made
AttentionInterface.register(MATMUL, matmul_attention)
AttentionMaskInterface.register(MATMUL, eager_mask)  # without it transformers passes no mask at all
