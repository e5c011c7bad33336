"""Low-rank adapters (LoRA, QLoRA) in PEFT's file format: where they go, merged and exported.

    lora.attach(model, rank=64, alpha=16, seed=0)  # what a stage with lora_rank does
    lora.save(dict(model.named_parameters()), folder, rank=64, alpha=16, base=init)
    lora.merge(plain, folder)  # or weights.export_llava(plain, ..., adapter=folder)

PEFT's own get_peft_model(model, LoraConfig(target_modules=lora.TARGETS, **lora.AUTHORS)) does as
well, also beside NF4 weights (weights.quantize_language_model), and saves the same files.

An adapter adds scale * B A to a weight W (https://arxiv.org/abs/2106.09685). It is merged into the
unquantised weights, not into NF4 ones, which could not hold it.
Paper: none; the authors' training script has LoRA options, its released runs train every weight.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from gmai_lib.model.tensor_files import read_tensors
from gmai_lib.outputs import read_json, write_json

# A full name, since "q_proj" alone is in the vision tower as well.
TARGETS = r"language_model\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
AUTHORS = {"r": 64, "lora_alpha": 16, "lora_dropout": 0.1}  # defaults of the authors' script
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
# What would change the formula, and the value with which it does not.
_PLAIN = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "use_dora": False}
_PLAIN |= {"modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}}


_ADAPTER = ".lora_"  # in the name of an adapter's weight
_WRAPPED = ".base_layer."  # in the name of a weight beside which it lies


def attach(model: nn.Module, *, rank: int, alpha: float, seed: int):
    """Put adapters into the language model of `model`, in place; they learn instead of its weights.

    What learns in the other parts goes on learning. A is drawn by `seed`, B is zero. Raises
    ImportError without peft, and ValueError if no module is among TARGETS.
    """
    from peft import inject_adapter_in_model

    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    learning = {name for name in learning if not name.startswith("language_model.")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_config(rank, alpha), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning or _ADAPTER in name)


def _config(rank: int, alpha: float, **options):
    from peft import LoraConfig

    return LoraConfig(target_modules=TARGETS, r=rank, lora_alpha=alpha, **options)


def plain_name(name: str) -> str | None:
    """Return a parameter's name before `attach`; None for the adapters' own."""
    return None if _ADAPTER in name else name.replace(_WRAPPED, ".")


def save(parameters: dict[str, torch.Tensor], folder: Path, *, rank: int, alpha: float, base: str):
    """Write the adapters among `parameters` (by their names after `attach`) to `folder`."""
    config = _config(rank, alpha, base_model_name_or_path=str(base))
    config.inference_mode = True
    config.save_pretrained(folder)
    tensors = {
        f"base_model.model.{name.replace('.default.', '.')}": tensor.detach().cpu().contiguous()
        for name, tensor in parameters.items()
        if _ADAPTER in name
    }
    save_file(tensors, Path(folder) / "adapter_model.safetensors", metadata={"format": "pt"})


def read(folder: Path) -> tuple[float, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Return (scale, {module: (A (r, in), B (out, r))}) of an adapter folder.

    Raises ValueError for variants whose formula is another one, and for a tensor without its twin.
    """
    folder = Path(folder)
    config = read_json(folder / "adapter_config.json")
    other = {k: config[k] for k, plain in _PLAIN.items() if config.get(k, plain) != plain}
    if other:
        raise ValueError(f"{folder} is no plain LoRA adapter: {other}; merge it with PEFT itself")
    found: dict[str, dict] = {}
    path = folder / "adapter_model.safetensors"
    for key, tensor in read_tensors(path).items():
        match = _KEY.fullmatch(key)
        if not match:
            raise ValueError(f"{path}: {key} is no LoRA weight")
        found.setdefault(match[1], {})[match[2]] = tensor
    alone = sorted(name for name, pair in found.items() if len(pair) != 2)
    if alone:
        raise ValueError(f"{path}: {alone[:5]} have only one of lora_A and lora_B")
    rank = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
    return config["lora_alpha"] / rank, {name: (p["A"], p["B"]) for name, p in found.items()}


@torch.no_grad()
def merge(model: nn.Module, folder: Path):
    """Add an adapter to the weights of `model`, in place; return `model`.

    Raises ValueError before anything is changed if a module is missing, quantised or of another
    shape.
    """
    scale, adapters = read(folder)
    modules = dict(model.named_modules())
    for name, (a, b) in adapters.items():
        if name not in modules:
            raise ValueError(f"{folder}: the model has no {name}; is it the adapter's own base?")
        if type(modules[name]) is not nn.Linear:
            raise ValueError(
                f"{folder}: {name} is {type(modules[name]).__name__} in the model, expected an "
                "unquantised Linear"
            )
        if modules[name].weight.shape != (len(b), a.shape[1]):
            raise ValueError(
                f"{folder}: {name} is {tuple(modules[name].weight.shape)} in the model, "
                f"{(len(b), a.shape[1])} in the adapter"
            )
    for name, (a, b) in adapters.items():
        weight = modules[name].weight
        weight.copy_(weight.float() + scale * (b.float() @ a.float()).to(weight.device))
    return model


def export(source: Path, target: Path, rename) -> Path:
    """Write an adapter for a model whose modules `rename(name)` calls otherwise.

    Its target modules are then listed by their full names, which a regular expression written
    for the old ones would miss.
    """
    source, target = Path(source), Path(target)
    target.mkdir(parents=True)
    _, adapters = read(source)
    tensors = {}
    for name, pair in adapters.items():
        for letter, tensor in zip("AB", pair, strict=True):
            tensors[f"base_model.model.{rename(name)}.lora_{letter}.weight"] = tensor.contiguous()
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    config = read_json(source / "adapter_config.json") | {"base_model_name_or_path": None}
    config["target_modules"] = sorted(map(rename, adapters))
    write_json(target / "adapter_config.json", config)
    return target
