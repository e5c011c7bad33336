"""Checkpoints: saved, exported to LLaVA, converted from InternLM2, quantised."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_model import picture, talk, tiny_model, tiny_profile, tiny_tokenizer
from transformers import (
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from gmai_lib.model import chat, gmai_vl, weights

TURNS = talk("<image>\nWhich organ is it? 肺?")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer):
    return tiny_model(tokenizer)


@pytest.fixture
def processor(model, tokenizer):
    return chat.build_processor(tokenizer, model.config.vision_config)


def inputs_of(model, tokenizer, images=None):
    ids = chat.encode_prompt(TURNS, tokenizer, model.config.tokens_per_image)
    images = [picture(0)] if images is None else images
    pixels = chat.pixel_values(images, model.config.vision_config).to(model.dtype)
    return {"input_ids": torch.tensor([ids]), "pixel_values": pixels}


@torch.no_grad()
def logits_of(model, tokenizer):
    return model.eval()(**inputs_of(model, tokenizer)).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_saved_and_loaded_gives_the_same_logits(tokenizer, tmp_path, dtype, tied):
    profile = tiny_profile()
    profile = replace(profile, text=replace(profile.text, tie_word_embeddings=tied))
    model = tiny_model(tokenizer, profile=profile).to(dtype)
    processor = chat.build_processor(tokenizer, model.config.vision_config)
    weights.save_checkpoint(model, processor, tmp_path / "checkpoint")
    loaded, loaded_processor = weights.load_checkpoint(tmp_path / "checkpoint")
    assert loaded.dtype == dtype
    assert torch.equal(logits_of(loaded, tokenizer), logits_of(model, tokenizer))
    assert loaded_processor.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    head, embedding = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    assert (head.weight.data_ptr() == embedding.weight.data_ptr()) == tied
    automatic = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint")
    assert type(automatic) is gmai_vl.GMAIVLForConditionalGeneration


def test_a_failed_save_keeps_the_old_checkpoint_and_leaves_nothing(
    model, processor, tokenizer, tmp_path
):
    path = weights.save_checkpoint(model, processor, tmp_path / "checkpoint")
    before = logits_of(model, tokenizer)
    with torch.no_grad():
        model.multi_modal_projector.linear_1.bias.add_(1)
    with pytest.raises(AttributeError):
        weights.save_checkpoint(model, None, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]
    assert torch.equal(logits_of(weights.load_checkpoint(path)[0], tokenizer), before)
    weights.save_checkpoint(model, processor, path)
    assert not torch.equal(logits_of(weights.load_checkpoint(path)[0], tokenizer), before)


def test_loading_refuses_what_is_no_checkpoint(model, processor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*config\.json is missing"):
        weights.load_checkpoint(tmp_path / "nowhere")
    path = weights.save_checkpoint(model, processor, tmp_path / "checkpoint")
    state = {n: t.clone() for n, t in model.state_dict().items() if "lm_head" not in n}
    del state["multi_modal_projector.linear_2.bias"]
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit .*multi_modal_projector\.linear_2\.bias"):
        weights.load_checkpoint(path)


FRESH = """
import json, sys
import numpy as np, torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

folder, picture, out = sys.argv[1:]
model, report = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
assert not any(report.values()), report
processor = AutoProcessor.from_pretrained(folder)
messages = json.load(open(f"{out}.json"))
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=[Image.open(picture)], text=prompt, return_tensors="pt")
with torch.no_grad():
    logits = model.eval()(**inputs).logits
new = model.generate(**inputs, max_new_tokens=8, do_sample=False)
assert "gmai_lib" not in sys.modules
np.savez(out, logits=logits, new=new, **{k: inputs[k] for k in ("input_ids", "pixel_values")})
"""


def test_exported_checkpoint_in_a_fresh_process_without_this_package(
    model, processor, tokenizer, tmp_path
):
    weights.export_llava(model, processor, tmp_path / "llava")
    Image.fromarray(picture(0)).save(tmp_path / "picture.png")
    (tmp_path / "out.npz.json").write_text(json.dumps(TURNS))
    arguments = ("llava", "picture.png", "out.npz")
    subprocess.run(
        [sys.executable, "-I", "-c", FRESH, *(str(tmp_path / name) for name in arguments)],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    theirs = {name: torch.from_numpy(a) for name, a in np.load(tmp_path / "out.npz").items()}
    ours = inputs_of(model, tokenizer)
    assert torch.equal(theirs["input_ids"], ours["input_ids"])
    torch.testing.assert_close(theirs["pixel_values"], ours["pixel_values"], atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs["logits"], logits_of(model, tokenizer), atol=1e-4, rtol=0)
    new = model.generate(**ours, max_new_tokens=8, do_sample=False)
    assert torch.equal(theirs["new"], new)


def test_export_keeps_bf16_and_leaves_the_model_as_it_was(tokenizer, tmp_path):
    from transformers import LlavaForConditionalGeneration

    model = tiny_model(tokenizer).bfloat16()
    processor = chat.build_processor(tokenizer, model.config.vision_config)
    before = logits_of(model, tokenizer)
    weights.export_llava(model, processor, tmp_path / "llava")
    assert torch.equal(logits_of(model, tokenizer), before)
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava")
    assert llava.dtype == torch.bfloat16
    assert torch.equal(logits_of_llava(llava, model, tokenizer), before)


@torch.no_grad()
def logits_of_llava(llava, model, tokenizer):
    return llava.eval()(**inputs_of(model, tokenizer)).logits


def internlm2_folder(folder, llama, *, shards: int = 2):
    """Write a Llama's weights as InternLM2 publishes them: packed wqkv, its own names."""
    config = llama.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads
    state, renamed = llama.state_dict(), {}
    renamed["model.tok_embeddings.weight"] = state["model.embed_tokens.weight"]
    renamed["model.norm.weight"] = state["model.norm.weight"]
    renamed["output.weight"] = state["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        old, new = f"model.layers.{layer}.", f"model.layers.{layer}."
        q, k, v = (state[f"{old}self_attn.{name}_proj.weight"] for name in "qkv")
        rows, per_group = [], heads // groups * width
        for group in range(groups):  # its query heads, then its key head, then its value head
            rows.append(q[group * per_group : (group + 1) * per_group])
            rows.append(k[group * width : (group + 1) * width])
            rows.append(v[group * width : (group + 1) * width])
        renamed[new + "attention.wqkv.weight"] = torch.cat(rows)
        for theirs, ours in (
            ("attention.wo", "self_attn.o_proj"),
            ("feed_forward.w1", "mlp.gate_proj"),
            ("feed_forward.w3", "mlp.up_proj"),
            ("feed_forward.w2", "mlp.down_proj"),
            ("attention_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            renamed[f"{new}{theirs}.weight"] = state[f"{old}{ours}.weight"]
    folder.mkdir()
    names = sorted(renamed)
    for shard in range(shards):
        part = {name: renamed[name].clone() for name in names[shard::shards]}
        save_file(part, folder / f"model-{shard + 1:05d}-of-{shards:05d}.safetensors")
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps")
    names += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    raw = {name: getattr(config, name) for name in names}
    raw |= {"model_type": "internlm2", "bias": False, "tie_word_embeddings": False}
    raw |= {"rope_theta": 1000000, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    raw |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(raw))
    return renamed


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0},
    )
    return LlamaForCausalLM(config).eval()


def test_internlm2_loads_as_llama_with_the_same_logits(llama, tmp_path):
    internlm2_folder(tmp_path / "internlm2", llama)
    loaded = weights.load_language_model(str(tmp_path / "internlm2")).eval()
    for length in (20, 100):  # within and beyond max_position_embeddings
        ids = torch.randint(300, (1, length))
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids).logits, llama(ids).logits)
    assert loaded.config.eos_token_id == 2


def test_internlm2_conversion_refuses_a_stranger(llama, tmp_path):
    renamed = internlm2_folder(tmp_path / "internlm2", llama)
    with pytest.raises(ValueError, match=r"vision\.weight is no InternLM2 weight"):
        weights.internlm2_to_llama(renamed | {"vision.weight": torch.zeros(1)}, llama.config)
    for shard in (tmp_path / "internlm2").glob("*.safetensors"):
        shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors"):
        weights.load_language_model(str(tmp_path / "internlm2"))


def test_internlm2_tokenizer_cuts_as_sentencepiece_does(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece trains the file")
    text = "What is shown in this image? A nodule in the lung.\n肺部有一个结节。\n" * 20
    (tmp_path / "corpus.txt").write_text(text)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "config.json").write_text('{"model_type": "internlm2"}')
    tokenizer = weights.load_tokenizer(str(tmp_path))
    reference = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    for sentence in ("What is a nodule? 3.14", "肺部 lung 🫁"):
        assert tokenizer(sentence)["input_ids"] == reference.encode(sentence)
    chat.add_special_tokens(tokenizer)
    turns = talk("<image>\nWhat is shown?", "A nodule.", "Where?", "in the lung")
    encoded = chat.encode(turns, tokenizer, 4)
    learned = [
        i for i, label in zip(encoded["input_ids"], encoded["labels"], strict=True) if label >= 0
    ]
    assert tokenizer.decode(learned) == "A nodule.<|im_end|>in the lung<|im_end|>"


def test_pretrained_parts_come_from_the_folders_of_the_profile(tmp_path, tokenizer):
    """A full CLIP checkpoint (both towers) and a Qwen2, as single_gpu names them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4}
    clip = CLIPModel(
        CLIPConfig(
            text_config=sizes | heads | {"vocab_size": 100},
            vision_config=sizes | heads | {"image_size": 16, "patch_size": 4},
        )
    )
    clip.save_pretrained(tmp_path / "clip")
    qwen = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, num_key_value_heads=2, vocab_size=496))
    qwen.save_pretrained(tmp_path / "qwen")
    plain = tokenizer.train_new_from_iterator(["What is shown?"], 300)
    plain.save_pretrained(tmp_path / "qwen")
    profile = tiny_profile()
    profile = replace(
        profile,
        vision=replace(profile.vision, pretrained=str(tmp_path / "clip")),
        text=replace(profile.text, pretrained=str(tmp_path / "qwen")),
    )
    tower, language_model, loaded_tokenizer = weights.load_pretrained_parts(profile)
    assert torch.equal(
        tower.embeddings.patch_embedding.weight,
        clip.vision_model.embeddings.patch_embedding.weight,
    )
    model = gmai_vl.from_parts(tower, language_model, loaded_tokenizer).eval()
    assert logits_of(model, loaded_tokenizer).isfinite().all()
    processor = chat.build_processor(loaded_tokenizer, tower.config)
    weights.export_llava(model, processor, tmp_path / "llava")  # any causal language model
    with pytest.raises(ValueError, match="profile mini names no pretrained vision part"):
        weights.load_pretrained_parts(tiny_profile())


@pytest.mark.parametrize(("kind", "smaller", "close"), [("nf4", 4, 0.5), ("int8", 3, 0.1)])
def test_quantised_language_model_is_smaller_and_runs_on_the_cpu(
    tokenizer, processor, tmp_path, kind, smaller, close
):
    pytest.importorskip("bitsandbytes", reason="quantisation needs bitsandbytes")
    profile = tiny_profile()
    profile = replace(profile, text=replace(profile.text, hidden_size=256, intermediate_size=512))
    model = tiny_model(tokenizer, spread=1.0, profile=profile)
    before, size = (
        logits_of(model, tokenizer),
        weights.size_in_bytes(model.language_model.model.layers),
    )
    kept = weights.size_in_bytes(model.vision_tower), model.language_model.lm_head.weight.clone()
    assert weights.quantize_language_model(model, kind) is model
    assert weights.size_in_bytes(model.language_model.model.layers) < size / smaller
    assert weights.size_in_bytes(model.vision_tower) == kept[0]
    assert torch.equal(model.language_model.lm_head.weight, kept[1])
    inputs = inputs_of(model, tokenizer)
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.multi_modal_projector.linear_1.weight.grad.any(), "gradients must pass through"
    after = logits_of(model, tokenizer)
    assert 0 < (after - before).abs().mean() < close * before.std()
    with pytest.raises(ValueError, match="quantised"):
        weights.export_llava(model, processor, tmp_path / "llava")


def test_unknown_quantisation_raises(model):
    pytest.importorskip("bitsandbytes", reason="quantisation needs bitsandbytes")
    with pytest.raises(ValueError, match="unknown quantisation 'int3'"):
        weights.quantize_language_model(model, "int3")


def test_size_counts_tied_weights_once(tokenizer):
    model = tiny_model(tokenizer)
    assert weights.size_in_bytes(model) == 4 * model.num_parameters()
