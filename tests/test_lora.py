"""LoRA and QLoRA: a step on the CPU, merged, exported merged and unmerged.

The reference is LoRA's own formula, put beside the linear layers by hooks.
"""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tiny_model import picture, talk, tiny_model, tiny_profile
from transformers import LlavaForConditionalGeneration

from gmai_lib.model import chat, lora, weights
from gmai_lib.model.tensor_files import read_tensors

RANK, ALPHA = 4, 8


@pytest.fixture
def batch(tokenizer, model):
    encoded = chat.encode(talk("<image>\nWhich organ is it?", "liver"), tokenizer, 16)
    return {name: torch.tensor([values]) for name, values in encoded.items()} | {
        "pixel_values": chat.pixel_values([picture(0)], model.config.vision_config)
    }


def targets(model) -> list[str]:
    return [name for name, _ in model.named_modules() if re.fullmatch(lora.TARGETS, name)]


def new_adapter(model, *, seed=0, zero=False) -> dict:
    """{module: (A, B)} of every target; B is zero at the start of a training."""
    generator = torch.Generator().manual_seed(seed)
    adapter = {}
    for name in targets(model):
        linear = model.get_submodule(name)
        a = torch.randn((RANK, linear.in_features), generator=generator) * 0.1
        b = torch.randn((linear.out_features, RANK), generator=generator) * 0.1 * (not zero)
        adapter[name] = (a, b)
    return adapter


def attach(model, adapter, scale=ALPHA / RANK):
    """Add scale * B A x to the output of every adapted layer, by definition; return the hooks."""

    def hook(a, b):
        return lambda _, inputs, output: output + scale * (inputs[0] @ a.T) @ b.T

    return [
        model.get_submodule(name).register_forward_hook(hook(a, b))
        for name, (a, b) in adapter.items()
    ]


def write(folder, adapter, **changes):
    """The folder that PEFT's save_pretrained leaves."""
    folder.mkdir()
    tensors = {}
    for name, (a, b) in adapter.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.detach().clone()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.detach().clone()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": lora.TARGETS}
    config |= {"bias": "none", "fan_in_fan_out": False, "use_dora": False, "use_rslora": False}
    config |= {"modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return folder


@torch.no_grad()
def logits_of(model, batch):
    return model.eval()(**{name: v for name, v in batch.items() if name != "labels"}).logits


def test_targets_are_the_seven_matrices_of_every_language_layer_and_no_other(model):
    assert len(targets(model)) == 7 * model.config.text_config.num_hidden_layers
    assert all(name.startswith("language_model.") for name in targets(model))


@pytest.mark.parametrize("rslora", [False, True], ids=["alpha / r", "alpha / sqrt(r)"])
def test_merged_weights_equal_the_formula(model, batch, tmp_path, rslora):
    before, adapter = logits_of(model, batch), new_adapter(model)
    folder = write(tmp_path / "adapter", adapter, use_rslora=rslora)
    hooks = attach(model, adapter, ALPHA / (RANK**0.5 if rslora else RANK))
    expected = logits_of(model, batch)
    for hook in hooks:
        hook.remove()
    assert (expected - before).abs().max() > 0.1
    assert lora.merge(model, folder) is model
    torch.testing.assert_close(logits_of(model, batch), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "unmerged"])
def test_export_with_an_adapter_equals_the_formula_in_plain_transformers(
    model, batch, tokenizer, tmp_path, merged
):
    adapter = new_adapter(model)
    folder = write(tmp_path / "adapter", adapter)
    base = logits_of(model, batch)
    hooks = attach(model, adapter)
    expected = logits_of(model, batch)
    for hook in hooks:
        hook.remove()
    processor = chat.build_processor(tokenizer, model.config.vision_config)
    if merged:
        weights.export_llava(lora.merge(model, folder), processor, tmp_path / "llava")
    else:
        weights.export_llava(model, processor, tmp_path / "llava", adapter=folder)
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava")
    if not merged:
        torch.testing.assert_close(logits_of(llava, batch), base, atol=2e-5, rtol=1e-5)
        exported = tmp_path / "llava" / "adapter"
        scale, pairs = lora.read(exported)
        attach(llava, pairs, scale)  # raises if a name is none of LLaVA's
        config = json.loads((exported / "adapter_config.json").read_text())
        assert config["target_modules"] == sorted(pairs) and len(pairs) == len(adapter)
    torch.testing.assert_close(logits_of(llava, batch), expected, atol=2e-5, rtol=1e-5)


def test_qlora_step_on_the_cpu_and_back_into_the_unquantised_weights(tokenizer, batch, tmp_path):
    pytest.importorskip("bitsandbytes", reason="NF4 needs bitsandbytes")
    profile = tiny_profile()
    profile = replace(profile, text=replace(profile.text, hidden_size=64, intermediate_size=128))
    model, plain = (tiny_model(tokenizer, spread=2.0, profile=profile) for _ in range(2))
    weights.quantize_language_model(model, "nf4").train().requires_grad_(False)
    adapter = {
        name: (a.requires_grad_(), b.requires_grad_())
        for name, (a, b) in new_adapter(plain, zero=True).items()
    }
    attach(model, adapter)
    codes = {n: p.clone() for n, p in model.named_parameters()}
    assert codes["language_model.model.layers.0.mlp.up_proj.weight"].dtype == torch.uint8
    optimizer = torch.optim.AdamW([t for pair in adapter.values() for t in pair], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(p, codes[n]) for n, p in model.named_parameters()), "the base is frozen"

    folder = write(tmp_path / "adapter", adapter)
    with pytest.raises(ValueError, match="is Linear4bit in the model, expected an unquantised"):
        lora.merge(model, folder)
    before = plain(**batch).loss.item()
    after = lora.merge(plain, folder)(**batch).loss.item()
    assert after < before - 0.05, "what was learned beside NF4 weights helps the plain ones"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, r"no plain LoRA adapter: \{'use_dora': True\}"),
        ({"peft_type": "IA3"}, "no plain LoRA adapter"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ],
)
def test_an_adapter_of_another_formula_is_refused(model, tmp_path, changes, message):
    folder = write(tmp_path / "adapter", new_adapter(model), **changes)
    with pytest.raises(ValueError, match=message):
        lora.merge(model, folder)


def test_an_adapter_that_does_not_fit_changes_nothing(model, tmp_path):
    adapter = new_adapter(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = write(tmp_path / "one", adapter) / "adapter_model.safetensors"
    tensors = read_tensors(path)
    first = next(iter(tensors))
    save_file({k: v.clone() for k, v in tensors.items() if k != first}, path)
    with pytest.raises(ValueError, match="have only one of lora_A and lora_B"):
        lora.merge(model, tmp_path / "one")
    save_file({"base_model.model.lm_head.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"lm_head\.weight is no LoRA weight"):
        lora.merge(model, tmp_path / "one")
    last = targets(model)[-1]
    wide = write(tmp_path / "two", adapter | {last: (torch.ones(RANK, 7), adapter[last][1])})
    with pytest.raises(ValueError, match=r"is \(48, 96\) in the model, \(48, 7\) in the adapter"):
        lora.merge(model, wide)
    lost = write(tmp_path / "three", {"language_model.model.layers.9.q": adapter[last]})
    with pytest.raises(ValueError, match=r"the model has no language_model\.model\.layers\.9\.q"):
        lora.merge(model, lost)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("card", ["", "# My card\n"], ids=["short card", "card given"])
def test_a_model_card_lies_beside_the_export(model, tokenizer, tmp_path, card):
    from huggingface_hub import ModelCard

    processor = chat.build_processor(tokenizer, model.config.vision_config)
    weights.export_llava(model, processor, tmp_path / "llava", card=card)
    text = (tmp_path / "llava" / "README.md").read_text("utf-8")
    if card:
        assert text == card
        return
    meta = ModelCard(text)
    assert meta.data.pipeline_tag == "image-text-to-text" and "research-only" in meta.data.tags
    for said in ("each costs 16 tokens of a context of 1024", "multi_modal_projector: 3,936"):
        assert said in text
    assert "research and teaching only" in text


def test_peft_wraps_steps_saves_and_merges(model, batch, tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT trains the adapters")
    config = peft.LoraConfig(target_modules=lora.TARGETS, r=RANK, lora_alpha=ALPHA)
    adapted = peft.get_peft_model(model, config)
    learn = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(learn) == 2 * 7 * model.config.text_config.num_hidden_layers
    assert all("lora_" in name for name in learn)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = adapted(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    expected = logits_of(adapted, batch)
    adapted.save_pretrained(tmp_path / "adapter")
    assert len(lora.read(tmp_path / "adapter")[1]) == len(learn) // 2
    prompt = {k: v for k, v in batch.items() if k != "labels"}
    said = adapted.generate(**prompt, max_new_tokens=4, do_sample=False)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, batch), expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(merged.generate(**prompt, max_new_tokens=4, do_sample=False), said)


def test_peft_loads_the_unmerged_export(model, batch, tokenizer, tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT loads the adapter")
    folder, expected = write(tmp_path / "adapter", new_adapter(model)), None
    processor = chat.build_processor(tokenizer, model.config.vision_config)
    weights.export_llava(model, processor, tmp_path / "llava", adapter=folder)
    expected = logits_of(lora.merge(model, folder), batch)
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava")
    adapted = peft.PeftModel.from_pretrained(llava, tmp_path / "llava" / "adapter")
    torch.testing.assert_close(logits_of(adapted, batch), expected, atol=2e-5, rtol=1e-5)


def test_peft_trains_beside_nf4_weights(model, batch):
    peft = pytest.importorskip("peft", reason="PEFT trains the adapters")
    pytest.importorskip("bitsandbytes", reason="NF4 needs bitsandbytes")
    weights.quantize_language_model(model, "nf4").train()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=lora.TARGETS, r=RANK))
    up_proj = adapted.get_base_model().language_model.model.layers[0].mlp.up_proj
    assert type(up_proj).__name__ == "Linear4bit" and "peft" in type(up_proj).__module__
    adapted(**batch).loss.backward()
    assert all(p.grad is not None for n, p in adapted.named_parameters() if "lora_B" in n)
