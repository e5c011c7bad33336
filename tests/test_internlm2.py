"""InternLM2 folders as published: converted shard by shard, equal to their definition."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_model import picture, talk
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    LlavaForConditionalGeneration,
)

from gmai_lib import config
from gmai_lib.model import chat, gmai_vl, internlm2, weights
from gmai_lib.model.tensor_files import read_tensors, weight_files

RAW = {  # config.json of internlm2_5-7b-chat, smaller
    "architectures": ["InternLM2ForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
    "model_type": "internlm2",
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "hidden_act": "silu",
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def published_weights(raw=RAW, seed=0) -> dict:
    """Random tensors with the names and shapes of the published checkpoints."""
    hidden, inner, vocabulary = raw["hidden_size"], raw["intermediate_size"], raw["vocab_size"]
    width = hidden // raw["num_attention_heads"]
    fused = (raw["num_attention_heads"] + 2 * raw["num_key_value_heads"]) * width
    shapes = {"model.tok_embeddings": (vocabulary, hidden), "model.norm": (hidden,)}
    shapes |= {"output": (vocabulary, hidden)}
    for layer in range(raw["num_hidden_layers"]):
        for name, shape in (
            ("attention.wqkv", (fused, hidden)),
            ("attention.wo", (hidden, hidden)),
            ("feed_forward.w1", (inner, hidden)),
            ("feed_forward.w3", (inner, hidden)),
            ("feed_forward.w2", (hidden, inner)),
            ("attention_norm", (hidden,)),
            ("ffn_norm", (hidden,)),
        ):
            shapes[f"model.layers.{layer}.{name}"] = shape
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.weight": torch.randn(shape, generator=generator) * 0.2 + (len(shape) == 1)
        for name, shape in shapes.items()
    }


def write_folder(folder: Path, state: dict, *, form="safetensors", shards=2, raw=RAW) -> Path:
    """Write a folder as the hub has it; `shards` = 0 is a single file without index."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    stem = {"safetensors": "model", "bin": "pytorch_model"}[form]
    names = [f"{stem}-{n + 1:05d}-of-{shards:05d}.{form}" for n in range(shards)]
    parts = {name: {} for name in names or [f"{stem}.{form}"]}
    for number, key in enumerate(state):
        parts[list(parts)[number % len(parts)]][key] = state[key].clone()
    for name, part in parts.items():
        if form == "bin":
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name, metadata={"format": "pt"})
    if shards:
        weight_map = {key: name for name, part in parts.items() for key in part}
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / f"{stem}.{form}.index.json").write_text(json.dumps(index))
    return folder


def by_definition(state: dict, ids, raw=RAW):
    """Logits (T, V) of one sequence, head by head, from the definition of InternLM2."""
    heads, groups = raw["num_attention_heads"], raw["num_key_value_heads"]
    width, length = raw["hidden_size"] // heads, len(ids)
    base, longest = raw["rope_theta"], raw["max_position_embeddings"]
    if length > longest:  # dynamic NTK: a longer base for a longer text
        factor = raw["rope_scaling"]["factor"]
        base *= (factor * length / longest - (factor - 1)) ** (width / (width - 2))
    angles = torch.arange(length)[:, None] / base ** (torch.arange(0, width, 2) / width)

    def norm(x, name):
        scale = (x.pow(2).mean(-1, keepdim=True) + raw["rms_norm_eps"]).rsqrt()
        return x * scale * state[f"{name}.weight"]

    def rotate(x):
        one, two = x[:, : width // 2], x[:, width // 2 :]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=1)

    x = state["model.tok_embeddings.weight"][ids]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in range(raw["num_hidden_layers"]):
        own = f"model.layers.{layer}."
        rows = norm(x, f"{own}attention_norm") @ state[f"{own}attention.wqkv.weight"].T
        rows = list(rows.split(width, dim=1))  # per group: its query heads, a key, a value
        attended = []
        for _ in range(groups):
            queries = [rows.pop(0) for _ in range(heads // groups)]
            key, value = rows.pop(0), rows.pop(0)
            for query in queries:
                scores = rotate(query) @ rotate(key).T / width**0.5
                attended.append(scores.masked_fill(future, -torch.inf).softmax(1) @ value)
        x = x + torch.cat(attended, dim=1) @ state[f"{own}attention.wo.weight"].T
        inner = norm(x, f"{own}ffn_norm")
        w1, w2, w3 = (state[f"{own}feed_forward.w{n}.weight"] for n in (1, 2, 3))
        x = x + (torch.nn.functional.silu(inner @ w1.T) * (inner @ w3.T)) @ w2.T
    return norm(x, "model.norm") @ state["output.weight"].T


@torch.no_grad()
def assert_equals_definition(model, state):
    for length in (20, 100):  # within and beyond max_position_embeddings
        ids = torch.randint(300, (length,), generator=torch.Generator().manual_seed(length))
        logits = model.eval()(ids[None]).logits[0]
        expected = by_definition(state, ids)
        assert expected.std() > 0.5, "flat logits would agree with anything"
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [0, 3], ids=["single file", "sharded"])
def test_a_published_folder_loads_and_equals_the_definition(tmp_path, form, shards):
    state = published_weights()
    folder = write_folder(tmp_path / "internlm2", state, form=form, shards=shards)
    model = weights.load_language_model(str(folder))
    assert_equals_definition(model, state)
    assert model.config.eos_token_id == 2
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_the_converted_folder_is_a_plain_llama(tmp_path):
    state = published_weights()
    folder = write_folder(tmp_path / "internlm2", state, form="bin", shards=3)
    end = sentencepiece_file(folder).piece_to_id("[UNUSED_TOKEN_145]")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, end]}))
    internlm2.convert(folder, tmp_path / "llama")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["internlm2", "llama"]
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "llama", output_loading_info=True
    )
    assert type(model).__name__ == "LlamaForCausalLM" and not any(report.values()), report
    assert_equals_definition(model, state)
    index = json.loads((tmp_path / "llama" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in state.values())
    assert len(set(index["weight_map"].values())) == 3
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama")
    text = "<|im_start|>user\nWhat is a nodule? 肺<|im_end|>"
    assert tokenizer(text)["input_ids"] == internlm2.load_tokenizer(folder)(text)["input_ids"]
    asked = [{"role": "user", "content": "What?"}]
    assert tokenizer.apply_chat_template(asked, tokenize=False) == "user: What?"
    assert model.generation_config.eos_token_id == [2, end]


def changed(state, name, tensor):
    return {key: value for key, value in state.items() if key != name} | (
        {} if tensor is None else {name: tensor}
    )


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("model.norm.weight", None, r"lacks 1 weights: \['model.norm.weight'\]"),
        ("vision.weight", torch.zeros(1), r"vision.weight is no InternLM2 weight"),
        ("output.bias", torch.zeros(300), r"output.bias gives lm_head.bias .* no such weight"),
        ("model.layers.0.norm.weight", torch.zeros(48), "layers.0.norm.weight is no InternLM2"),
        ("attention.wo.weight", torch.zeros(48, 48), "attention.wo.weight is no InternLM2 weight"),
        (
            "model.layers.1.attention.wo.weight",
            torch.zeros(48, 40),
            r"o_proj.weight of shape \(48, 40\), expected \(48, 48\)",
        ),
        (
            "model.layers.1.attention.wqkv.weight",
            torch.zeros(72, 48),
            "wqkv.weight has 72 rows, expected 80",
        ),
        ("model.layers.2.ffn_norm.weight", torch.ones(48), r"layers.2.* expected no such weight"),
    ],
)
def test_every_tensor_is_accounted_for(tmp_path, name, tensor, message):
    folder = write_folder(tmp_path / "internlm2", changed(published_weights(), name, tensor))
    for load in (
        lambda: weights.load_language_model(str(folder)),
        lambda: internlm2.convert(folder, tmp_path / "llama"),
    ):
        with pytest.raises(ValueError, match=message):
            load()
    assert [path.name for path in tmp_path.iterdir()] == ["internlm2"], "nothing half-written"


def test_a_weight_that_two_files_have_raises(tmp_path):
    state = published_weights()
    folder = write_folder(tmp_path / "internlm2", state)
    first, second = weight_files(folder)
    save_file(read_tensors(first) | {"output.weight": state["output.weight"]}, first)
    save_file(read_tensors(second) | {"output.weight": state["output.weight"]}, second)
    with pytest.raises(ValueError, match=r"lm_head.weight, which another file has as well"):
        weights.load_language_model(str(folder))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_shard_the_index_names_and_the_folder_lacks_is_named(tmp_path, form):
    folder = write_folder(tmp_path / "internlm2", published_weights(), form=form, shards=3)
    weight_files(folder)[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"lists 3 files, but \['.*00002-of-00003"):
        weights.load_language_model(str(folder))


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    folder = write_folder(tmp_path / "internlm2", published_weights(), shards=0)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"none of \['model.safetensors', .* is there"):
        weights.load_language_model(str(folder))


class Trap:
    """Unpickled, it would write a file."""

    def __reduce__(self):
        return os.system, (f"touch {os.environ['TRAP']}",)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    folder = write_folder(tmp_path / "internlm2", published_weights(), form="bin", shards=0)
    torch.save({"model.norm.weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin was not read: its pickle holds code"):
        weights.load_language_model(str(folder))
    assert not (tmp_path / "sprung").exists()
    torch.save([torch.zeros(1)], folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no dictionary of tensors"):
        weights.load_language_model(str(folder))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_file_cut_short_is_named(tmp_path, form):
    folder = write_folder(tmp_path / "internlm2", published_weights(), form=form, shards=0)
    (path,) = weight_files(folder)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=rf"{path.name} is broken .* download it again"):
        weights.load_language_model(str(folder))


PUBLISHED = """
import sys
from gmai_lib import config
from gmai_lib.model import weights

name = config.load("paper").text.pretrained
model, tokenizer = weights.load_language_model(name), weights.load_tokenizer(name)
print(type(model).__name__, model.num_parameters(), tokenizer.convert_tokens_to_ids("<|im_end|>"))
assert not any("internlm" in module and "gmai_lib" not in module for module in sys.modules)
"""


def test_the_name_in_the_paper_profile_loads_from_the_hubs_cache_without_its_code(tmp_path):
    name = config.load("paper").text.pretrained
    repository = tmp_path / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    state = published_weights()
    write_folder(snapshot, state, shards=2)
    end = sentencepiece_file(snapshot).piece_to_id("[UNUSED_TOKEN_145]")
    for code in (
        "configuration_internlm2.py",
        "modeling_internlm2.py",
        "tokenization_internlm2.py",
    ):
        (snapshot / code).write_text("raise RuntimeError('remote code was run')")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    offline = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", PUBLISHED],
        check=True, capture_output=True, text=True, env={**os.environ, **offline},
    )  # fmt: skip
    said = ["LlamaForCausalLM", str(sum(t.numel() for t in state.values())), str(end)]
    assert result.stdout.split() == said


@torch.no_grad()
def test_published_clip_and_internlm2_become_an_exported_llava(tmp_path):
    torch.manual_seed(0)
    state = published_weights()
    folder = write_folder(tmp_path / "internlm2", state, form="bin")
    end = sentencepiece_file(folder).piece_to_id("[UNUSED_TOKEN_145]")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4}
    vision = sizes | {"image_size": 16, "patch_size": 4}
    clip = CLIPModel(CLIPConfig(text_config=sizes | {"vocab_size": 100}, vision_config=vision))
    clip.save_pretrained(tmp_path / "clip")
    paper = config.load("paper")
    profile = replace(
        paper,
        vision=replace(paper.vision, pretrained=str(tmp_path / "clip")),
        text=replace(paper.text, pretrained=str(folder)),
    )
    tower, language_model, tokenizer = weights.load_pretrained_parts(profile)
    rows = language_model.get_input_embeddings().weight
    new = tokenizer.convert_tokens_to_ids(["<image>", *chat.GROUNDING_TOKENS])
    vocabulary = state["model.tok_embeddings.weight"]
    assert torch.equal(rows[end], vocabulary[end]), "the published row of <|im_end|> is kept"
    assert len(set(new)) == 5 and min(new) >= len(tokenizer) - 5
    model = gmai_vl.from_parts(tower, language_model, tokenizer).eval()
    assert model.generation_config.eos_token_id == end
    processor = chat.build_processor(tokenizer, tower.config)
    weights.export_llava(model, processor, tmp_path / "llava")
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava")
    plain = AutoProcessor.from_pretrained(tmp_path / "llava")
    assert llava.config.text_config.rope_parameters["rope_type"] == "dynamic"
    for times, stretched in ((1, False), (16, True)):  # RoPE stretches beyond 64 tokens, up to 128
        prompt = chat.render(talk("<image>\n" + "What is shown? " * times))[0]
        inputs = plain(text=prompt, images=[picture(0)], return_tensors="pt")
        theirs = llava.eval()(**inputs).logits
        assert (theirs.shape[1] > 64) == stretched
        torch.testing.assert_close(model(**inputs).logits, theirs, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="more than the context of 128"):
        model(input_ids=torch.full((1, 129), 20))


MEASURE = """
import sys
from gmai_lib.model import internlm2, weights
folder, target = sys.argv[1:]

def peak(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

internlm2.llama_config(folder)
before = peak("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
internlm2.convert(folder, target)
print("converting", peak("VmHWM") - before)
before = peak("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
model = weights.load_language_model(folder)
print("loading", peak("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc (Linux)")
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_conversion_needs_less_memory_than_two_shards(tmp_path, form):
    raw = RAW | {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6}
    state = published_weights(raw)
    folder = write_folder(tmp_path / "internlm2", state, form=form, shards=3, raw=raw)
    sentencepiece_file(folder)
    shard = max(path.stat().st_size for path in weight_files(folder))
    total = sum(tensor.nbytes for tensor in state.values())
    assert shard > 40e6, "too small beside what Python itself moves"
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "llama")],
        check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    peaks = {name: int(size) for name, size in map(str.split, result.stdout.splitlines())}
    print({name: f"{size / shard:.2f} shards" for name, size in peaks.items()})
    assert peaks["converting"] < 2 * shard
    assert peaks["loading"] < total + 2 * shard


def sentencepiece_file(folder: Path, *, dummy_prefix: bool = False, chat: bool = True):
    """Train tokenizer.model; with `chat`, its last two unused pieces become the turn marks."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece trains the file")
    text = "What is shown in this image? A nodule in the lung.\n肺部有一个结节。\nuser assistant\n"
    (folder / "corpus.txt").write_text(text * 20)
    unused = [f"[UNUSED_TOKEN_{n}]" for n in range(140, 147)]
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=380,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        add_dummy_prefix=dummy_prefix,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=unused,
        minloglevel=2,
    )
    reference = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    if chat:
        marks = {"<unk>": 0, "<s>": 1, "</s>": 2}
        marks["<|im_end|>"] = reference.piece_to_id(unused[-2])
        marks["<|im_start|>"] = reference.piece_to_id(unused[-1])
        entry = {"lstrip": False, "normalized": False, "rstrip": False, "special": True}
        added = {str(i): entry | {"content": content} for content, i in marks.items()}
        published = {"tokenizer_class": "InternLM2Tokenizer", "added_tokens_decoder": added}
        published["chat_template"] = (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
        )
        published |= {"auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(published))
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps(RAW))
    return reference


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_the_tokenizer_cuts_as_sentencepiece_does(tmp_path, dummy_prefix):
    reference = sentencepiece_file(tmp_path, dummy_prefix=dummy_prefix, chat=False)
    tokenizer = weights.load_tokenizer(str(tmp_path))
    for sentence in ("What is a nodule? 3.14", "肺部 lung 🫁", "  two  blanks\n\nand lines\n"):
        ids = tokenizer(sentence)["input_ids"]
        assert ids == reference.encode(sentence), sentence
        assert tokenizer.decode(ids) == sentence


def test_the_turn_marks_keep_their_published_places(tmp_path):
    reference = sentencepiece_file(tmp_path)
    tokenizer = weights.load_tokenizer(str(tmp_path))
    end = reference.piece_to_id("[UNUSED_TOKEN_145]")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == end
    assert len(tokenizer) == reference.get_piece_size()
    new = chat.add_special_tokens(tokenizer)
    assert new == len(chat.SPECIAL_TOKENS) - 2, "only <image> and the grounding tags are new"
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.get_vocab() == tokenizer.get_vocab()
    turns = talk("<image>\nWhat is shown?", "A nodule.", "Where?", "in the lung")
    for one in (tokenizer, loaded):
        encoded = chat.encode(turns, one, 4)
        pairs = zip(encoded["input_ids"], encoded["labels"], strict=True)
        learned = [token for token, label in pairs if label >= 0]
        assert one.decode(learned) == "A nodule.<|im_end|>in the lung<|im_end|>"
        assert learned.count(end) == 2
        between = reference.encode("user\nWhere?")  # no blank before the text of a turn
        assert any(
            encoded["input_ids"][i : i + len(between)] == between
            for i in range(len(encoded["input_ids"]))
        )


def test_an_added_token_beyond_the_pieces_is_refused(tmp_path):
    sentencepiece_file(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["9999"] = {"content": "<|plugin|>", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"added tokens are not where .*<\|plugin\|>"):
        weights.load_tokenizer(str(tmp_path))
