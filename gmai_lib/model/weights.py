"""Checkpoints in and out: load the paper's backbones, save, export to LLaVA, quantise.

Paper: section 4.1 (CLIP and InternLM2.5-7B as starting points).
Departs: the authors' remote-code InternLM2 is converted to transformers' own Llama layout on
load (same numbers, no `trust_remote_code`), and the result exports to the LLaVA layout, which
plain transformers, vLLM and others read.
[NOT IMPLEMENTED] saving a quantised model; quantise after loading instead.
"""

import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gmai_lib.model import chat
from gmai_lib.model.gmai_vl import GMAIVLForConditionalGeneration
from gmai_lib.outputs import read_json

QUANTISATIONS = ("nf4", "int8")


def save_checkpoint(model, processor, path: Path) -> Path:
    """Write model, generation settings, tokenizer and processor to the folder `path`."""
    with _atomic_folder(path) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    return Path(path)


@contextmanager
def _atomic_folder(path: Path):
    """Yield an empty sibling folder; it replaces `path` only if the block succeeds."""
    path = Path(path)
    partial, old = (path.with_name(f".{path.name}.{end}") for end in ("partial", "old"))
    for leftover in (partial, old):  # of a killed run
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.rename(old)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(path: Path, *, dtype=None):
    """Return (model, processor) of a folder that `save_checkpoint` wrote; dtype as saved if None.

    Raises FileNotFoundError where there is no checkpoint, ValueError where weights are missing.
    """
    if not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"no checkpoint in {path}: config.json is missing")
    model, report = GMAIVLForConditionalGeneration.from_pretrained(
        path, dtype=dtype or "auto", output_loading_info=True
    )
    wrong = {name: sorted(keys)[:5] for name, keys in report.items() if keys}
    if wrong:
        raise ValueError(f"{path} does not fit GMAI-VL: {wrong}")
    return model, AutoProcessor.from_pretrained(path)


def load_pretrained_parts(profile):
    """Return (vision_tower, language_model, tokenizer) that the profile names.

    Names are hub ids or folders. The tokenizer has the chat and grounding tokens added and the
    language model's embeddings are grown to match.
    """
    for part, name in (("vision", profile.vision.pretrained), ("text", profile.text.pretrained)):
        if not name:
            raise ValueError(
                f"profile {profile.name} names no pretrained {part} part; "
                "make a stand-in (gmai_lib.model.standins)"
            )
    vision_tower = CLIPVisionModel.from_pretrained(profile.vision.pretrained)
    language_model = load_language_model(profile.text.pretrained)
    tokenizer = load_tokenizer(profile.text.pretrained)
    chat.add_special_tokens(tokenizer, language_model)
    return vision_tower, language_model, tokenizer


def load_language_model(name: str):
    """Load a causal language model; an InternLM2 folder is converted to the Llama layout.

    InternLM2 is Llama with other names and one packed query-key-value matrix, but transformers
    reads it only by running code from the hub. `name` must then be a local folder.
    """
    if not _is_internlm2(name):
        return AutoModelForCausalLM.from_pretrained(name)
    state = {}
    for shard in sorted(Path(name).glob("*.safetensors")):
        state |= load_file(shard)
    if not state:
        raise FileNotFoundError(f"{name} has an InternLM2 config.json but no *.safetensors")
    config = internlm2_config(read_json(Path(name) / "config.json"))
    with torch.device("meta"):  # the weights are then assigned, not copied
        model = LlamaForCausalLM(config)
    model.load_state_dict(internlm2_to_llama(state, config), strict=True, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # a buffer no checkpoint stores
    return model


def load_tokenizer(name: str):
    """Load a tokenizer; InternLM2's SentencePiece file through transformers' Llama tokenizer."""
    if _is_internlm2(name):
        return LlamaTokenizer.from_pretrained(name, add_bos_token=False)
    return AutoTokenizer.from_pretrained(name)


def _is_internlm2(name: str) -> bool:
    config_file = Path(name) / "config.json"
    return config_file.is_file() and read_json(config_file).get("model_type") == "internlm2"


def internlm2_config(raw: dict) -> LlamaConfig:
    """Translate InternLM2's config.json; its field names are Llama's but for the RoPE scaling."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    names += ("rms_norm_eps", "tie_word_embeddings", "pad_token_id", "bos_token_id")
    rope = {"rope_type": "default", "rope_theta": raw["rope_theta"]}
    if raw.get("rope_scaling"):
        rope |= {"rope_type": raw["rope_scaling"]["type"], "factor": raw["rope_scaling"]["factor"]}
    return LlamaConfig(
        rope_parameters=rope,
        eos_token_id=raw["eos_token_id"],
        attention_bias=raw["bias"],
        **{name: raw[name] for name in names},
    )


def internlm2_to_llama(state: dict, config: LlamaConfig) -> dict:
    """Rename InternLM2 weights to Llama's and split the packed `wqkv`.

    `wqkv` has, for every key-value head, its query heads, then its key and its value head.
    Raises ValueError for a name that is not InternLM2's. Source: InternLM2's published layout.
    """
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads
    llama = {}
    for name, weight in state.items():
        if name.endswith("attention.wqkv.weight"):
            prefix = name.removesuffix("attention.wqkv.weight") + "self_attn."
            packed = weight.view(groups, heads // groups + 2, width, config.hidden_size)
            pieces = {"q_proj": packed[:, :-2], "k_proj": packed[:, -2], "v_proj": packed[:, -1]}
            for projection, piece in pieces.items():
                llama[f"{prefix}{projection}.weight"] = piece.reshape(-1, config.hidden_size)
            continue
        matches = [old for old in _INTERNLM2_NAMES if name == old or f".{old}" in name]
        if len(matches) != 1:
            raise ValueError(f"{name} is no InternLM2 weight; is this folder InternLM2 or 2.5?")
        llama[name.replace(matches[0], _INTERNLM2_NAMES[matches[0]])] = weight
    return llama


_INTERNLM2_NAMES = {
    "model.tok_embeddings.weight": "model.embed_tokens.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "model.norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def export_llava(model: GMAIVLForConditionalGeneration, processor, path: Path) -> Path:
    """Write `model` as a checkpoint of transformers' LlavaForConditionalGeneration.

    Loads with `LlavaForConditionalGeneration.from_pretrained` and `AutoProcessor`, without this
    package and without `trust_remote_code`. Raises ValueError for a quantised model.
    """
    config = LlavaConfig(
        vision_config=model.config.vision_config,
        text_config=model.config.text_config,
        image_token_index=model.config.image_token_id,
        image_seq_length=model.config.tokens_per_image,
        projector_hidden_act=model.config.projector_hidden_act,
        vision_feature_layer=model.config.vision_feature_layer,
        vision_feature_select_strategy="default",  # drops the class token
        tie_word_embeddings=model.config.text_config.tie_word_embeddings,
    )
    with torch.device("meta"):  # names and shapes only; the weights are assigned, not copied
        llava = LlavaForConditionalGeneration(config)
    state = {llava_name(name): tensor for name, tensor in model.state_dict().items()}
    different = sorted(set(state) ^ set(llava.state_dict()))
    if different:
        raise ValueError(
            f"cannot export (is the model quantised?); weights differ: {different[:5]}"
        )
    llava.load_state_dict(state, strict=True, assign=True)
    llava.tie_weights()
    llava.generation_config = model.generation_config
    with _atomic_folder(path) as partial:
        llava.save_pretrained(partial)
        processor.save_pretrained(partial)
    return Path(path)


def llava_name(name: str) -> str:
    """Name of a GMAI-VL weight in LlavaForConditionalGeneration."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.", 1)


def quantize_language_model(model: GMAIVLForConditionalGeneration, kind: str):
    """Quantise the linear layers of the language model's blocks, in place; return `model`.

    "nf4": 4-bit NormalFloat with double quantisation (QLoRA); "int8": LLM.int8(). Embeddings,
    head, projector and vision tower keep their type. Needs bitsandbytes; runs on the CPU too,
    where its first evaluation repacks NF4 weights for good: from then on no gradient passes, so
    train (`.train()`) before you evaluate.
    """
    import bitsandbytes as bnb  # only QLoRA and the memory table need it

    if kind not in QUANTISATIONS:
        raise ValueError(f"unknown quantisation {kind!r}; known: {QUANTISATIONS}")
    blocks = model.language_model.model.layers
    linears = [(name, old) for name, old in blocks.named_modules() if type(old) is nn.Linear]
    for name, old in linears:
        shape = (old.in_features, old.out_features)
        bias, weight = old.bias is not None, old.weight.data
        if kind == "nf4":
            new = bnb.nn.Linear4bit(
                *shape, bias, compute_dtype=weight.dtype, quant_type="nf4", compress_statistics=True
            )
            new.weight = bnb.nn.Params4bit(
                weight, requires_grad=False, quant_type="nf4", compress_statistics=True
            )
        else:
            new = bnb.nn.Linear8bitLt(*shape, bias, has_fp16_weights=False)
            new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        new.bias = old.bias
        parent, _, child = name.rpartition(".")
        setattr(blocks.get_submodule(parent), child, new.to(weight.device))  # quantises
    return model


def size_in_bytes(module: nn.Module) -> int:
    """Bytes of all weights as stored now, with the scales of quantised ones; shared ones once."""
    total = 0
    for parameter in module.parameters():
        total += parameter.nbytes
        state = getattr(parameter, "quant_state", None)  # of NF4
        if state is not None:
            total += sum(t.nbytes for t in state.as_dict(packed=True).values())
        scales = getattr(parameter, "SCB", None)  # of int8
        total += scales.nbytes if scales is not None else 0
    return total
