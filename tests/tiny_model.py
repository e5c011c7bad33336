"""A GMAI-VL of some 100 k parameters, and conversations and pictures to feed it."""

from dataclasses import replace

import numpy as np
import torch

from gmai_lib import config
from gmai_lib.model import chat, gmai_vl, standins

TEXTS = (
    "What is shown in this image? It shows a nodule in the upper left of the lung.",
    "Which organ is it? Answer briefly. liver, 肺, 请简短回答。",
    "<ref>nodule</ref><box>[[0.18, 0.16, 0.50, 0.43]]</box>",
    "user assistant yes no left right one two three",
)


def tiny_profile() -> config.Profile:
    """The mini profile, smaller: 16 px, 16 patches, 3 tower layers, 2 language layers."""
    mini = config.load("mini")
    return replace(
        mini,
        vision=replace(
            mini.vision,
            image_size=16,
            patch_size=4,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
        ),
        text=replace(
            mini.text, vocab_size=600, hidden_size=48, intermediate_size=96, num_hidden_layers=2
        ),
    )


def tiny_tokenizer():
    return standins.train_tokenizer(TEXTS, 600)


def tiny_model(tokenizer, *, seed: int = 0, spread: float = 6.0, profile=None):
    """An untrained model in float32; `spread` widens its weights so that outputs vary."""
    torch.manual_seed(seed)
    model = gmai_vl.from_profile(profile or tiny_profile(), tokenizer).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(spread)
            else:  # norms and biases: not exactly one and zero, so that a mix-up shows
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def talk(*turns: str) -> list[dict]:
    """Alternating user and assistant turns."""
    return [
        {"role": chat.ROLES[number % 2], "content": content} for number, content in enumerate(turns)
    ]


def picture(seed: int, height: int = 20, width: int = 28) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def left_padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    """Stack rows of different length, padded on the left."""
    length = max(len(row) for row in rows)
    return torch.tensor([[fill] * (length - len(row)) + list(row) for row in rows])
