"""Checkpoints in and out: load the paper's backbones, save, export to LLaVA, quantise.

Paper: section 4.1 (CLIP and InternLM2.5-7B as starting points).
Departs: the authors' remote-code InternLM2 is converted to transformers' own Llama layout on
load (same numbers, no `trust_remote_code`), and the result exports to the LLaVA layout, which
plain transformers, vLLM and others read.
[NOT IMPLEMENTED] saving a quantised model; quantise after loading instead.
"""

import logging
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionModel,
)
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gmai_lib.model import chat, internlm2, lora
from gmai_lib.model.configuration import GMAIVLConfig
from gmai_lib.model.gmai_vl import GMAIVLForConditionalGeneration
from gmai_lib.model.tensor_files import explained, read_tensors, weight_files
from gmai_lib.outputs import atomic, atomic_folder
from gmai_lib.schema import NOT_CLINICAL

TOWERS = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
QUANTISATIONS = ("nf4", "int8")


def save_checkpoint(model, processor, path: Path) -> Path:
    """Write model, generation settings, tokenizer and processor to the folder `path`."""
    with atomic_folder(path) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
    return Path(path)


def load_checkpoint(path: Path, *, dtype=None):
    """Return (model, processor) of a folder that `save_checkpoint` wrote; dtype as saved if None.

    Raises FileNotFoundError where there is no checkpoint or a part of it is missing, ValueError
    where a weight is missing, extra or misshapen, and where the processor is another model's.
    """
    if not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"no checkpoint in {path}: config.json is missing")
    weight_files(path)  # raises if one is not there
    model = _load(GMAIVLForConditionalGeneration, path, extra=False, dtype=dtype or "auto")
    processor = AutoProcessor.from_pretrained(path)
    try:
        chat.check_processor(processor, model.config, model.get_input_embeddings().num_embeddings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; save it again with its own model") from error
    return model, processor


def _load(kind, name, *, extra: bool, **options):
    """`kind.from_pretrained(name)`, but raise ValueError where transformers only warns.

    A missing or misshapen weight would be drawn at random. `extra`: there may be more weights
    than the model has, as in a CLIP checkpoint, whose text tower is not used.
    """
    with explained(name):
        model, report = kind.from_pretrained(
            name,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, with their names
            **options,
        )
    if extra:
        report = report | {"unexpected_keys": ()}
    wrong = {problem: sorted(keys)[:5] for problem, keys in report.items() if keys}
    if wrong:
        raise ValueError(f"{name} does not fit {type(model).__name__}: {wrong}")
    return model


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
    vision_tower = load_vision_tower(profile.vision.pretrained)
    language_model = load_language_model(profile.text.pretrained)
    tokenizer = load_tokenizer(profile.text.pretrained)
    chat.add_special_tokens(tokenizer, language_model)
    return vision_tower, language_model, tokenizer


def load_vision_tower(name: str):
    """Load CLIP's or SigLIP's vision tower by its published name, or from a folder.

    Every tower takes the pixels of `chat.pixel_values`, which have CLIP's mean and standard
    deviation; SigLIP's own are folded into its patch embedding. So there is one preprocessing,
    whatever the tower.
    """
    kind = AutoConfig.from_pretrained(name).model_type.removesuffix("_vision_model")
    if kind not in TOWERS:
        raise ValueError(f"{name} is a {kind} model; a vision tower is one of {sorted(TOWERS)}")
    tower = _load(TOWERS[kind], name, extra=True)
    if kind == "siglip":
        _take_clip_pixels(tower, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)
    return tower


@torch.no_grad()
def _take_clip_pixels(tower, mean, std):
    """Let a tower that learned from (x - mean) / std take CLIP's; exact but for rounding."""
    mean, std, clip_mean, clip_std = (
        torch.tensor(values, dtype=torch.float64)[:, None, None]
        for values in (mean, std, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )
    patches = tower.embeddings.patch_embedding
    weight = patches.weight.double()  # (vision width, 3, patch, patch)
    patches.bias += (weight * (clip_mean - mean) / std).sum((1, 2, 3)).to(patches.bias.dtype)
    patches.weight.copy_(weight * clip_std / std)


def load_language_model(name: str):
    """Load a causal language model by hub id or folder; InternLM2 is converted on the way.

    Its shards are assigned one after the other, so that beside the model only one is in memory.
    """
    if not internlm2.is_internlm2(name):
        return _load(AutoModelForCausalLM, name, extra=False)
    folder = internlm2.fetch(name)
    config = internlm2.llama_config(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    for _, shard in internlm2.converted_shards(folder):
        model.load_state_dict(shard, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # a buffer no checkpoint stores
    return model


def load_tokenizer(name: str):
    """Load a tokenizer; InternLM2's from its SentencePiece file, without remote code."""
    if internlm2.is_internlm2(name):
        return internlm2.load_tokenizer(internlm2.fetch(name))
    return AutoTokenizer.from_pretrained(name)


def save_projector(model: GMAIVLForConditionalGeneration, path: Path) -> Path:
    """Write the projector alone to the safetensors file `path` (stage I trains nothing else)."""
    with atomic(Path(path)) as partial:
        save_file(model.multi_modal_projector.state_dict(), partial, metadata={"format": "pt"})
    return Path(path)


def load_projector(model: GMAIVLForConditionalGeneration, path: Path):
    """Copy a saved projector into `model`; ValueError names what is missing, extra or misshapen."""
    projector = model.multi_modal_projector
    loaded, own = read_tensors(path), projector.state_dict()
    different = [f"{name} is missing" for name in own if name not in loaded]
    different += [f"{name} is extra" for name in loaded if name not in own]
    different += [
        f"{name} is {tuple(loaded[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in loaded and loaded[name].shape != own[name].shape
    ]
    if different:
        raise ValueError(f"{path} does not fit the projector: {'; '.join(different)}")
    projector.load_state_dict(loaded)


def export_llava(
    model: GMAIVLForConditionalGeneration,
    processor,
    path: Path,
    *,
    card: str = "",
    adapter: Path | None = None,
) -> Path:
    """Write `model` as a checkpoint of transformers' LlavaForConditionalGeneration.

    Loads with `LlavaForConditionalGeneration.from_pretrained` and `AutoProcessor`, without this
    package and without `trust_remote_code`. `card` is the model card written as README.md
    (`cards.model_card`; a short one without results if empty). A LoRA adapter given as a PEFT
    folder goes along unmerged in `adapter/`, for `PeftModel.from_pretrained`; to merge it, call
    `lora.merge` before.

    Raises ValueError for a quantised model and for one that joins patches, which LLaVA cannot do.
    """
    with torch.device("meta"):  # names and shapes only; the weights are assigned, not copied
        llava = LlavaForConditionalGeneration(llava_config(model.config))
    state = {llava_name(name): tensor for name, tensor in model.state_dict().items()}
    different = sorted(set(state) ^ set(llava.state_dict()))
    if different:
        raise ValueError(
            f"cannot export (is the model quantised?); weights differ: {different[:5]}"
        )
    llava.load_state_dict(state, strict=True, assign=True)
    llava.tie_weights()
    llava.generation_config = model.generation_config
    with atomic_folder(path) as partial:
        llava.save_pretrained(partial)
        processor.save_pretrained(partial)
        (partial / "README.md").write_text(card or _short_card(model), "utf-8")
        if adapter:
            lora.export(adapter, partial / "adapter", llava_name)
    return Path(path)


def llava_config(config: GMAIVLConfig) -> LlavaConfig:
    """Return the configuration of the same model as LLaVA; ValueError if it joins patches."""
    if config.pixel_shuffle > 1:
        raise ValueError(
            f"cannot export: LLaVA's layout has no pixel shuffle ({config.pixel_shuffle} here); "
            "train with pixel_shuffle = 1, or use save_checkpoint"
        )
    return LlavaConfig(
        vision_config=config.vision_config,
        text_config=config.text_config,
        image_token_index=config.image_token_id,
        image_seq_length=config.tokens_per_image,
        projector_hidden_act=config.projector_hidden_act,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy="default" if config.class_tokens else "full",
        tie_word_embeddings=config.text_config.tie_word_embeddings,
    )


def _short_card(model) -> str:
    """A model card with what the weights themselves say."""
    config = model.config
    tiles = (
        f" Trained with up to {config.max_tiles} tiles of a larger image beside it, which "
        "transformers does not cut: see gmai_lib/model/views.py."
        if config.max_tiles > 1
        else ""
    )
    parts = "".join(f"- {row['part']}: {row['parameters']:,}\n" for row in model.parameter_table())
    return (
        "---\npipeline_tag: image-text-to-text\nlibrary_name: transformers\n"
        "tags:\n- medical\n- research-only\n---\n\n# GMAI-VL in the LLaVA layout\n\n"
        f"{NOT_CLINICAL}\n\nImages are padded to a square and resized to "
        f"{config.vision_config.image_size} pixels; each costs {config.tokens_per_image} tokens "
        f"of a context of {config.context}.{tiles} CT slices must be windowed "
        "before (`ct_windows` in processor_config.json: centre and width in Hounsfield units)."
        f"\n\nParameters:\n\n{parts}\nNo results are stated: this checkpoint was exported "
        "without an evaluation.\n"
    )


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
    # It is silent about all but one thing: a faster kernel that it would fetch from the hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
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
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind == "nf4", kind == "int8"  # PEFT asks
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
