"""InternLM2 and InternLM2.5 folders as published, in transformers' own Llama layout.

    config = llama_config(folder)
    for file_name, tensors in converted_shards(folder): ...
    convert(folder, target)  # the same as a plain Llama folder, which any tool reads

InternLM2 is Llama with other names and one fused query-key-value matrix, but transformers reads
it only by running code from the hub. Here no remote code runs: names are translated, the fused
matrix is split, and the tokenizer is built from `tokenizer.model`. One weight file is in memory
at a time, mapped and not read where its tensors stay as they are.

Paper: section 4.1 (InternLM2.5-7B). Source of the layout: the published checkpoints
(https://huggingface.co/internlm/internlm2_5-7b-chat), their config.json and tokenizer_config.json.
"""

import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.convert_slow_tokenizer import SentencePieceExtractor

from gmai_lib.model.tensor_files import read_tensors, weight_files
from gmai_lib.outputs import atomic_folder, read_json, write_json

_NAMES = {
    "model.tok_embeddings": "model.embed_tokens",
    "model.norm": "model.norm",
    "output": "lm_head",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def is_internlm2(name: str) -> bool:
    """Tell whether `name`, a folder or a hub id, is an InternLM2 model; only its config is read."""
    if Path(name).is_dir():
        config_file = Path(name) / "config.json"
        return config_file.is_file() and read_json(config_file).get("model_type") == "internlm2"
    return PreTrainedConfig.get_config_dict(name)[0].get("model_type") == "internlm2"


def fetch(name: str) -> Path:
    """Return the folder of `name`: itself, or what the hub has but for its code, in the cache."""
    if Path(name).is_dir():
        return Path(name)
    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model"]))


def llama_config(folder: Path) -> LlamaConfig:
    """Translate config.json; its field names are Llama's but for the RoPE scaling and the bias."""
    raw = read_json(Path(folder) / "config.json")
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
        dtype=raw.get("torch_dtype"),
        **{name: raw[name] for name in names},
    )


def converted_shards(folder: Path):
    """Yield (file name, {Llama name: tensor}) for every weight file of an InternLM2 folder.

    Every tensor is accounted for. Raises ValueError for one that is not InternLM2's, has another
    shape than config.json says or comes twice, and after the last file for those that never came:
    do not use what was yielded before.
    """
    config = llama_config(folder)
    with torch.device("meta"):
        expected = {n: t.shape for n, t in LlamaForCausalLM(config).state_dict().items()}
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    seen = set()
    for path in weight_files(folder):
        shard = {}
        for name, tensor in read_tensors(path).items():
            for new, piece in _translate(name, tensor, config, path).items():
                if new not in expected or piece.shape != expected[new]:
                    raise ValueError(
                        f"{path}: {name} gives {new} of shape {tuple(piece.shape)}, expected "
                        f"{tuple(expected[new]) if new in expected else 'no such weight'}; do "
                        "config.json and weights belong together?"
                    )
                if new in seen:
                    raise ValueError(f"{path}: {name} gives {new}, which another file has as well")
                seen.add(new)
                shard[new] = piece
        yield path.name, shard
    if missing := sorted(set(expected) - seen):
        raise ValueError(f"{folder} lacks {len(missing)} weights: {missing[:5]} (Llama's names)")


def _translate(name, tensor, config, path) -> dict[str, torch.Tensor]:
    """Return the Llama weights of one InternLM2 weight: one, or three of the fused `wqkv`.

    `wqkv` has, for every key-value head, its query heads, then its key and its value head.
    """
    match = re.fullmatch(r"(model\.layers\.\d+\.)?(.+)\.(weight|bias)", name)
    layer, old, kind = match.groups(default="") if match else ("", "", "")
    if old == "attention.wqkv" and layer:
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        width = config.hidden_size // heads
        rows = (heads + 2 * groups) * width
        if tensor.shape[0] != rows:
            raise ValueError(f"{path}: {name} has {tensor.shape[0]} rows, expected {rows}")
        fused = tensor.view(groups, heads // groups + 2, width, *tensor.shape[1:])
        pieces = {"q_proj": fused[:, :-2], "k_proj": fused[:, -2], "v_proj": fused[:, -1]}
        return {
            f"{layer}self_attn.{new}.{kind}": piece.reshape(-1, *tensor.shape[1:])
            for new, piece in pieces.items()
        }
    if old not in _NAMES or bool(layer) == old.startswith(("model.", "output")):
        raise ValueError(f"{path}: {name} is no InternLM2 weight; is this InternLM2 or 2.5?")
    return {f"{layer}{_NAMES[old]}.{kind}": tensor}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer from `tokenizer.model` and the added tokens of tokenizer_config.json.

    Those take the places of unused pieces: in the published chat models `<|im_end|>` is piece
    92542, and appended at the end it would be a new, untrained word. Whether a blank is put
    before the text is taken from `tokenizer.model` too.
    """
    folder = Path(folder)
    extractor = SentencePieceExtractor(str(folder / "tokenizer.model"))
    pieces = extractor.extract(BPE)
    config_file = folder / "tokenizer_config.json"
    published = read_json(config_file) if config_file.is_file() else {}
    added = published.get("added_tokens_decoder", {})
    added = {int(index): token["content"] for index, token in added.items()}
    vocabulary = {added.get(index, piece): index for piece, index in pieces["vocab"].items()}
    tokenizer = Tokenizer(
        BPE(vocabulary, pieces["merges"], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    prefix = extractor.proto.normalizer_spec.add_dummy_prefix
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁")] * prefix + [normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        + [decoders.Strip(" ", left=1)] * prefix
    )
    specials = [AddedToken(added[i], special=True, normalized=False) for i in sorted(added)]
    tokenizer.add_tokens(specials)
    wrong = {t: tokenizer.token_to_id(t) for t in added.values()}
    wrong = {token: i for token, i in wrong.items() if added.get(i) != token}
    if wrong:
        raise ValueError(f"{config_file}: added tokens are not where it puts them: {wrong}")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        padding_side="left",
        chat_template=published.get("chat_template"),
        clean_up_tokenization_spaces=False,
    )


def convert(source: Path, target: Path) -> Path:
    """Write an InternLM2 folder as a plain Llama folder: weights, index, config and tokenizer.

    Shard by shard, so memory stays below two of them; `target` appears only when it is whole.
    """
    config = llama_config(source)
    config.architectures = ["LlamaForCausalLM"]
    weight_map, size = {}, 0
    count = len(weight_files(source))
    with atomic_folder(target) as partial:
        for number, (_, shard) in enumerate(converted_shards(source), start=1):
            name = f"model-{number:05d}-of-{count:05d}.safetensors"
            save_file(shard, partial / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, name)
            size += sum(tensor.nbytes for tensor in shard.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(partial / "model.safetensors.index.json", index)
        config.save_pretrained(partial)
        if (Path(source) / "generation_config.json").is_file():  # where the chat models end a turn
            GenerationConfig.from_pretrained(source).save_pretrained(partial)
        load_tokenizer(source).save_pretrained(partial)
    return Path(target)
