"""training/flops.memory_of: what it computes is what real steps of the mini model were measured at.

Bytes of live tensors, not of the process: the same number on every run.
"""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from gmai_lib import config
from gmai_lib.config import STAGES
from gmai_lib.model import chat, gmai_vl, lora, standins, weights
from gmai_lib.training import engines, flops, memory
from gmai_lib.training.packing import block_mask

MINI = config.mini()
PACKS, IMAGES, LABELS = 2, 3, 150
TOLERANCE = 0.1
RANK = 16


@pytest.fixture(scope="module")
def tokenizer():
    return standins.train_tokenizer(["one two three"], MINI.text.vocab_size)


def stage_of(name, **changes):
    changes = {"micro_batch_size": PACKS, "precision": "float32"} | changes
    return replace(MINI.stage(name), **changes)


def mini_model(tokenizer, stage, profile=MINI):
    """An untrained model as the stage trains it, with the kernel that is on GPUs, too."""
    dtype = engines.DTYPES[stage.precision]
    model = gmai_vl.from_profile(profile, tokenizer).to(dtype).train()
    model.set_trainable(stage.trainable)
    model.set_attn_implementation("sdpa")
    return model


def batch_of(model, stage, images=IMAGES, labels=LABELS) -> dict:
    shape = (stage.micro_batch_size, stage.max_length)
    input_ids, targets = torch.full(shape, 7), torch.full(shape, chat.IGNORE_INDEX)
    patches, size = model.config.tokens_per_image, model.config.vision_config.image_size
    input_ids.view(-1)[: images * patches] = model.config.image_token_id
    targets.view(-1)[-labels:] = 7
    return {
        "input_ids": input_ids,
        "labels": targets,
        "attention_mask": block_mask(torch.ones(shape, dtype=torch.int64)),
        "pixel_values": torch.randn(images, 3, size, size).to(model.dtype),
    }


class WithCopies(torch.optim.AdamW):
    """AdamW on float32 copies, as DeepSpeed keeps them (for float32 weights as well)."""

    def __init__(self, parameters):
        self.trained = list(parameters)
        super().__init__([p.detach().float().clone() for p in self.trained])

    def step(self):
        (group,) = self.param_groups
        for copy, parameter in zip(group["params"], self.trained, strict=True):
            copy.grad = parameter.grad.float()
        super().step()
        for copy, parameter in zip(group["params"], self.trained, strict=True):
            parameter.data.copy_(copy)
            copy.grad = None


def measured_step(model, optimizer_class, batch) -> dict[str, int]:
    """Bytes at the peak of a later micro batch: gradients and moments exist already."""
    optimizer = optimizer_class([p for p in model.parameters() if p.requires_grad])

    def micro_step():
        model(**batch).loss.backward()

    micro_step()
    optimizer.step()
    return memory.measured(micro_step, model, optimizer, batch.values())


def assert_agree(computed, found):
    print({kind: (round(computed[kind] / 1e6, 3), round(found[kind] / 1e6, 3)) for kind in found})
    for kind, size in found.items():
        assert computed[kind] == pytest.approx(size, rel=TOLERANCE), kind
    assert sum(computed.values()) == pytest.approx(sum(found.values()), rel=TOLERANCE)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_needs_what_the_formula_says(tokenizer, name, checkpointing):
    stage = stage_of(name, gradient_checkpointing=checkpointing)
    model = mini_model(tokenizer, stage)
    if checkpointing:
        engines.checkpoint_activations(model)
    computed = flops.memory_of(MINI, stage, images=IMAGES, label_tokens=LABELS)
    assert_agree(computed, measured_step(model, WithCopies, batch_of(model, stage)))


def test_bf16_halves_what_is_not_float32_anyway(tokenizer):
    stage = stage_of(STAGES[2], precision="bf16", micro_batch_size=1, max_length=128)
    model = mini_model(tokenizer, stage)
    computed = flops.memory_of(MINI, stage, images=1, label_tokens=30)
    batch = batch_of(model, stage, images=1, labels=30)
    assert_agree(computed, measured_step(model, WithCopies, batch))


@pytest.mark.parametrize(
    ("method", "dropout", "precision"),
    [
        ("lora", 0.1, "float32"),
        ("lora", 0.0, "float32"),
        ("lora", 0.1, "bf16"),
        ("qlora", 0.1, "float32"),
    ],
)
def test_adapters_need_what_the_formula_says(tokenizer, method, dropout, precision):
    peft = pytest.importorskip("peft", reason="PEFT trains the adapters")
    small = {"micro_batch_size": 1, "max_length": 128} if precision == "bf16" else {}
    stage = stage_of(STAGES[2], precision=precision, **small)
    model = mini_model(tokenizer, stage)
    if method == "qlora":
        pytest.importorskip("bitsandbytes", reason="NF4 needs bitsandbytes")
        weights.quantize_language_model(model, "nf4")
    settings = peft.LoraConfig(target_modules=lora.TARGETS, r=RANK, lora_dropout=dropout)
    batch = batch_of(model, stage, images=1, labels=40)
    adapted = peft.get_peft_model(model, settings).train()
    computed = flops.memory_of(
        MINI, stage, method, images=1, label_tokens=40, rank=RANK, dropout=dropout
    )
    assert_agree(computed, measured_step(adapted, torch.optim.AdamW, batch))


def test_reading_a_prompt_needs_what_the_formula_says(tokenizer):
    stage, rows, prompt = stage_of(STAGES[2]), 4, 100
    profile = replace(MINI, evaluation_batch_size=rows)
    model = mini_model(tokenizer, stage).eval()
    ids = torch.full((rows, prompt), 7)
    ids[:, : MINI.vision.tokens_per_image] = model.config.image_token_id
    size = MINI.vision.image_size
    inputs = {"input_ids": ids, "pixel_values": torch.randn(rows, 3, size, size)}
    inputs["attention_mask"] = torch.ones_like(ids)

    def read():
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=1)

    found = memory.measured(read, model, inputs=inputs.values())
    computed = flops.memory_of(profile, stage, "inference", prompt_tokens=prompt, new_tokens=1)
    assert_agree(computed, found)


def test_writing_a_long_answer_needs_what_the_formula_says(tokenizer):
    stage, rows, prompt, new_tokens = stage_of(STAGES[2]), 4, 100, 900
    profile = replace(MINI, evaluation_batch_size=rows)
    model = mini_model(tokenizer, stage).eval()
    text = model.config.text_config
    cache = DynamicCache(config=text)
    shape = (rows, text.num_key_value_heads, prompt + new_tokens - 1, 32)
    for layer in range(text.num_hidden_layers):
        cache.update(torch.zeros(shape), torch.zeros(shape), layer)
    mask = torch.ones((rows, prompt + new_tokens), dtype=torch.int64)
    mask[0, :5] = 0  # a shorter prompt, padded on the left

    def write():
        with torch.inference_mode():
            ids = torch.full((rows, 1), 7)
            model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)

    kept = (tensor for layer in cache.layers for tensor in (layer.keys, layer.values))
    found = memory.measured(write, model, inputs=kept)
    computed = flops.memory_of(
        profile, stage, "inference", prompt_tokens=prompt, new_tokens=new_tokens
    )
    assert_agree(computed, found)
