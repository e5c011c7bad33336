"""A model as DeepSpeed's engine: what learns and at which rate, in which precision, how it attends.

    engine = engines.start(model, stage, world_size=1, device_type="cpu", seed=0)

Paper: section 4.2 and its stage table (AdamW, which parts learn at which rate).
"""

import torch

from gmai_lib.config import Stage
from gmai_lib.model import kernels, lora, weights
from gmai_lib.model.gmai_vl import part_of
from gmai_lib.training import launch

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LARGEST_8BIT = 2**31  # weights of a group that bitsandbytes updates at once


def start(model, stage: Stage, *, world_size: int, device_type: str, seed: int):
    """Return `model` as the DeepSpeed engine of a rank of `world_size` that trains `stage`.

    Mutates the model: what is frozen, 4-bit weights, adapters, attention, precision. `seed` is that
    of new adapters. The process group must exist (train.join).
    """
    import deepspeed

    model.set_trainable(stage.trainable)
    if stage.quantization != "none":
        model.to(DTYPES[stage.precision])  # what the 4-bit weights are expanded to
        weights.quantize_language_model(model, stage.quantization)
    if stage.lora_rank:
        lora.attach(model, rank=stage.lora_rank, alpha=stage.lora_alpha, seed=seed)
    kernels.set_attention(model, kernels.attention(device_type, stage.precision))
    if stage.precision == "float32":
        model.float()
    if torch.distributed.get_rank() == 0:
        print(f"{stage.name} in {stage.precision}: {model.parameter_table()}", flush=True)
    if stage.gradient_checkpointing:
        checkpoint_activations(model)
    if stage.torch_compile:
        compile_layers(model)
    groups, optimizer = parameter_groups(model, stage), None
    if stage.optimizer == "adamw_8bit":
        groups = _small_groups(groups)
        optimizer = optimizer_8bit(groups, stage)
    engine, *_ = deepspeed.initialize(
        model=model.train(),
        model_parameters=groups,
        optimizer=optimizer,
        config=launch.deepspeed_config(stage, world_size),
    )
    return engine


def parameter_groups(model, stage: Stage) -> list[dict]:
    """Return AdamW groups: per part its learning rate, and no weight decay on vectors.

    Vectors are norms, biases and the class embedding; shrinking them regularises nothing.
    """
    groups = []
    for part in stage.trainable:
        members = [
            parameter
            for name, parameter in model.named_parameters()
            if part_of(name) == part and parameter.requires_grad
        ]
        for decay, chosen in (
            (stage.weight_decay, [p for p in members if p.ndim > 1]),
            (0.0, [p for p in members if p.ndim <= 1]),
        ):
            if chosen:
                rate = stage.learning_rates[part]
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay, "part": part})
    return groups


def checkpoint_activations(model):
    """Keep only the inputs of each layer and compute the rest again in the backward pass."""
    # transformers 5.17, on which this must run too, has only the second name.
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
    # Turned on for LoRA; here gradients would go on into frozen parts that need none.
    model.disable_input_require_grads()


def compile_layers(model):
    """Let torch compile the layers that run: norms, rotations and activations become few kernels.

    All layers of a kind share what is compiled, so that it takes seconds for any depth. Packs are
    of one length (PairLoader), images of any number.
    """
    for layer in model.vision_tower.encoder.layers[: model.config.num_used_layers]:
        layer.compile(dynamic=True)
    for layer in model.language_model.base_model.layers:
        layer.compile()


def _small_groups(groups: list[dict]) -> list[dict]:
    """Split groups of more weights than bitsandbytes' kernels can count (32 bits).

    DeepSpeed lays the weights of a group end to end and updates them as one tensor.
    """
    split = []
    for group in groups:
        members, size = [], 0
        for parameter in group["params"]:
            if members and size + parameter.numel() >= LARGEST_8BIT:
                split.append(group | {"params": members})
                members, size = [], 0
            members.append(parameter)
            size += parameter.numel()
        split.append(group | {"params": members})
    return split


def optimizer_8bit(groups: list[dict], stage: Stage):
    """AdamW with two 8-bit moments: two bytes a weight instead of eight."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, betas=stage.adam_betas)


def full_parameter(parameter) -> torch.Tensor:
    """Return a whole parameter: the optimizer's float32 copy where DeepSpeed keeps one."""
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad and (
        hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")
    ):
        return safe_get_full_fp32_param(parameter)
    if hasattr(parameter, "ds_id"):  # ZeRO 3 spreads frozen parameters over the ranks, too
        with zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach()
