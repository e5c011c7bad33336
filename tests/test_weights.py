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
from safetensors.torch import load_file, save_file
from tiny_model import picture, talk, tiny_model, tiny_profile
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
)

from gmai_lib import config
from gmai_lib.model import chat, gmai_vl, weights

TURNS = talk("<image>\nWhich organ is it? 肺?")


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


def test_loading_refuses_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*config\.json is missing"):
        weights.load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("multi_modal_projector.linear_2.bias", None, r"missing_keys.*linear_2\.bias"),
        ("multi_modal_projector.linear_3.bias", torch.ones(1), r"unexpected_keys.*linear_3\.bias"),
        (
            "multi_modal_projector.linear_1.bias",
            torch.ones(47),
            r"mismatched_keys.*linear_1\.bias.*\[47\].*\[48\]",
        ),
    ],
    ids=["missing", "extra", "misshapen"],
)
def test_a_tensor_that_does_not_fit_is_named(model, processor, tmp_path, name, tensor, message):
    path = weights.save_checkpoint(model, processor, tmp_path / "checkpoint")
    state = load_file(path / "model.safetensors") | {name: tensor}
    state = {key: value for key, value in state.items() if value is not None}
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"does not fit GMAIVL.*: .*{message}"):
        weights.load_checkpoint(path)


def test_a_checkpoint_with_a_broken_or_missing_file_is_named(model, processor, tmp_path):
    path = weights.save_checkpoint(model, processor, tmp_path / "checkpoint")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-999])
    with pytest.raises(ValueError, match=r"checkpoint is broken .* download it again"):
        weights.load_checkpoint(path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"none of \['model.safetensors', "):
        weights.load_checkpoint(path)


def change(holder, name, value):
    def apply(processor):
        setattr(getattr(processor, holder) if holder else processor, name, value)

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda p: p.tokenizer.add_tokens([f"<{n}>" for n in range(500)]),
            r"has \d+ tokens for 600",
        ),
        (
            change("image_processor", "size", {"height": 32, "width": 32}),
            r"image size is \(32, 32\)",
        ),
        (change("", "patch_size", 8), "patch size is 8, expected 4"),
        (change("image_processor", "do_center_crop", True), "square padding is False"),
        (change("image_processor", "image_mean", [0.5] * 3), r"pixel mean is \[0.5, 0.5, 0.5\]"),
        (change("image_processor", "image_std", [0.5] * 3), r"pixel deviation is \[0.5, "),
        (change("image_processor", "ct_windows", {"lung": [-500, 1500]}), r"CT windows is \{'lung"),
    ],
    ids=["vocabulary", "size", "patch", "crop", "mean", "deviation", "windows"],
)
def test_a_processor_of_another_model_is_refused(model, processor, tmp_path, spoil, message):
    spoil(processor)
    path = weights.save_checkpoint(model, processor, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=f"checkpoint: the processor does not fit .*{message}"):
        weights.load_checkpoint(path)


def test_a_processor_with_another_image_token_is_refused(model, processor, tmp_path):
    model.config.image_token_id += 1
    path = weights.save_checkpoint(model, processor, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"id of <image> is \d+, expected \d+"):
        weights.load_checkpoint(path)


def test_the_ct_windows_travel_with_the_processor(model, processor, tmp_path):
    expected = {name: list(values) for name, values in config.CT_WINDOWS.items()}
    weights.export_llava(model, processor, tmp_path / "llava")
    plain = AutoProcessor.from_pretrained(tmp_path / "llava")
    assert plain.image_processor.ct_windows == expected
    assert expected["lung"] == [-600.0, 1500.0], "center and width in Hounsfield units"


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
    torch.testing.assert_close(theirs["logits"], logits_of(model, tokenizer), atol=1e-5, rtol=1e-5)
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


@pytest.mark.parametrize("published", ["siglip", "siglip_vision_model"])
def test_a_siglip_tower_takes_the_pixels_of_clip(tmp_path, published):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4}
    vision = sizes | {"image_size": 16, "patch_size": 4}
    text = sizes | {"vocab_size": 100, "projection_size": 32}
    siglip = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    own = siglip if published == "siglip" else siglip.vision_model
    own.save_pretrained(tmp_path / "siglip")
    tower = weights.load_vision_tower(str(tmp_path / "siglip")).eval()
    picture_of_bytes = torch.stack([chat.square_image(picture(0), 16)])
    with torch.no_grad():
        expected = siglip.vision_model((picture_of_bytes / 255 - 0.5) / 0.5).last_hidden_state
        found = tower(chat.normalize_pixels(picture_of_bytes)).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_vision_tower_of_another_kind_is_refused(tmp_path, llm_folder):
    with pytest.raises(ValueError, match=r"is a qwen2 model; .* one of \['clip', 'siglip'\]"):
        weights.load_vision_tower(str(llm_folder))


def test_a_published_part_that_lacks_a_weight_is_refused_not_drawn_at_random(llm_folder, tmp_path):
    path = llm_folder / "model.safetensors"
    state = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    for tensor, message in ((None, "missing_keys.*up_proj"), (torch.ones(3, 3), "mismatched_keys")):
        changed = {k: v for k, v in (state | {name: tensor}).items() if v is not None}
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"does not fit Qwen2ForCausalLM: .*{message}"):
            weights.load_language_model(str(llm_folder))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    vision = sizes | {"num_attention_heads": 4, "image_size": 16, "patch_size": 4}
    CLIPVisionModel(CLIPVisionConfig(**vision)).save_pretrained(tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    state = load_file(path)
    del state[next(name for name in state if "post_layernorm" not in name)]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"does not fit CLIPVisionModel: .*missing_keys"):
        weights.load_vision_tower(str(tmp_path / "clip"))


def test_a_published_part_whose_pickle_holds_code_is_refused(llm_folder):
    (llm_folder / "model.safetensors").unlink()
    torch.save({"x": os.getcwd}, llm_folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="was not read: its pickle holds code"):
        weights.load_language_model(str(llm_folder))


@pytest.fixture
def llm_folder(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, vocab_size=300)).save_pretrained(tmp_path / "q")
    return tmp_path / "q"


def test_a_projector_travels_alone(model, tokenizer, tmp_path):
    path = weights.save_projector(model, tmp_path / "projector.safetensors")
    other = tiny_model(tokenizer, seed=1)
    others = {n: t.clone() for n, t in other.state_dict().items() if "projector" not in n}
    weights.load_projector(other, path)
    for name, tensor in other.state_dict().items():
        expected = model.state_dict()[name] if "projector" in name else others[name]
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear_1.bias": None}, "linear_1.bias is missing"),
        ({"linear_3.bias": torch.zeros(1)}, "linear_3.bias is extra"),
        (
            {"linear_2.weight": torch.zeros(48, 32)},
            r"linear_2.weight is \(48, 32\), expected \(48, 48\)",
        ),
    ],
)
def test_a_projector_that_does_not_fit_is_named(model, tmp_path, change, message):
    path = weights.save_projector(model, tmp_path / "projector.safetensors")
    state = model.multi_modal_projector.state_dict() | change
    save_file({name: t.clone() for name, t in state.items() if t is not None}, path)
    with pytest.raises(ValueError, match=f"does not fit the projector: {message}"):
        weights.load_projector(model, path)


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
