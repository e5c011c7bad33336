"""FLOPs and memory of a stage, counted per part: a frozen part costs less, not nothing.

    flops = model_flops(profile, stage, text_tokens=300_000, images=2_000, label_tokens=90_000)
    rows = memory_table(profile)

A multiply and an add are two FLOPs. Forward of a matrix is 2 per weight and token; backward
the same again for the gradient of its input, and again for that of its weight. Gradients pass
through the frozen language model to reach the projector, but no weight gradient is computed
there; nothing passes back into a frozen vision tower. Only matrix products are counted, as by
`torch.utils.flop_counter`, with which tests compare (no norms, softmax, embeddings).

Paper: table 3 (which parts a stage trains). This module imports no torch.

Letters: P patches of an image, D language-model width, V vision width.
"""

from gmai_lib.config import PARTS, Profile, Stage

GIB = 2**30
OPTIMIZER_BYTES = 12  # AdamW per trained weight: float32 copy and two moments
WEIGHT_BYTES = {
    "bf16": 2,
    "fp16": 2,
    "float32": 4,
    "fastest": 4,
}  # the larger of what it may become


def model_flops(
    profile: Profile,
    stage: Stage,
    text_tokens: int,
    images: int,
    *,
    label_tokens: int | None = None,
) -> dict[str, dict[str, int]]:
    """Return {part: {"forward": FLOPs, "backward": FLOPs}} for so many tokens and images.

    `text_tokens` excludes image tokens and includes padding, if any: padding costs the same.
    `label_tokens` is how many positions reach the vocabulary head (all text if None). Attention
    is counted over the whole pack (`stage.max_length`), since the mask does not save work.
    """
    vision, text = profile.vision, profile.text
    learns = set(stage.trainable)
    counts = {}

    tokens = images * (vision.num_patches + 1)  # with the class token
    layers = _used_layers(profile)
    linear = 2 * tokens * layers * _vision_layer_weights(vision)
    attention = 4 * tokens * layers * (vision.num_patches + 1) * vision.hidden_size
    patches = 2 * images * vision.num_patches * 3 * vision.patch_size**2 * vision.hidden_size
    backward = 2 * linear + 2 * attention + patches if "vision_tower" in learns else 0
    counts["vision_tower"] = {"forward": linear + attention + patches, "backward": backward}

    tokens = images * vision.num_patches
    first = 2 * tokens * vision.hidden_size * text.hidden_size
    second = 2 * tokens * text.hidden_size**2
    backward = 0
    if "vision_tower" in learns:
        backward += first
    if learns & {"vision_tower", "multi_modal_projector"}:
        backward += second
    if "multi_modal_projector" in learns:
        backward += first + second
    counts["multi_modal_projector"] = {"forward": first + second, "backward": backward}

    tokens += text_tokens
    linear = 2 * tokens * text.num_hidden_layers * _text_layer_weights(text)
    attention = 4 * tokens * text.num_hidden_layers * stage.max_length * text.hidden_size
    labels = text_tokens if label_tokens is None else label_tokens
    linear += 2 * labels * text.hidden_size * text.vocab_size
    passes = 2 if "language_model" in learns else 1
    counts["language_model"] = {
        "forward": linear + attention,
        "backward": passes * linear + 2 * attention,
    }
    return counts


def parameter_counts(profile: Profile) -> dict[str, int]:
    """Return the number of weights per part, shared ones once.

    Of the plain CLIP and Llama layouts; a language model with attention biases has a few more.
    """
    vision, text = profile.vision, profile.text
    width = vision.hidden_size
    per_layer = _vision_layer_weights(vision) + 9 * width + vision.intermediate_size
    tower = 3 * vision.patch_size**2 * width + (vision.num_patches + 2) * width + 4 * width
    projector = (width + 1 + text.hidden_size + 1) * text.hidden_size
    model = text.num_hidden_layers * (_text_layer_weights(text) + 2 * text.hidden_size)
    vocabularies = 1 if text.tie_word_embeddings else 2
    model += vocabularies * text.vocab_size * text.hidden_size + text.hidden_size
    counts = (tower + vision.num_hidden_layers * per_layer, projector, model)
    return dict(zip(PARTS, counts, strict=True))


def memory_table(profile: Profile) -> list[dict]:
    """Return one row per stage and ZeRO stage: GiB on each of `profile.ranks` devices.

    Weights, gradients and optimizer state; activations come on top and grow with
    micro_batch_size x max_length. ZeRO 1 splits the optimizer state over the ranks, 2 the
    gradients too, 3 the weights too.
    """
    counts = parameter_counts(profile)
    rows = []
    for stage in profile.stages:
        size = WEIGHT_BYTES[stage.precision]
        trained = sum(counts[part] for part in stage.trainable)
        for zero_stage in range(4):
            shares = [profile.ranks if zero_stage >= level else 1 for level in (3, 2, 1)]
            sizes = [sum(counts.values()) * size, trained * size, trained * OPTIMIZER_BYTES]
            weights, gradients, optimizer = (
                total / share / GIB for total, share in zip(sizes, shares, strict=True)
            )
            rows.append(
                {
                    "stage": stage.name,
                    "zero_stage": zero_stage,
                    "ranks": profile.ranks,
                    "parameters": sum(counts.values()),
                    "trained": trained,
                    "weights_gib": weights,
                    "gradients_gib": gradients,
                    "optimizer_gib": optimizer,
                    "total_gib": weights + gradients + optimizer,
                }
            )
    return rows


def _used_layers(profile: Profile) -> int:
    """Vision layers that run; -2 leaves out the last one."""
    layer = profile.vision_feature_layer
    return layer if layer >= 0 else profile.vision.num_hidden_layers + 1 + layer


def _vision_layer_weights(vision) -> int:
    """Matrix weights of a CLIP layer: query, key, value, output and two of the MLP."""
    return 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size


def _text_layer_weights(text) -> int:
    """Matrix weights of a Llama layer: grouped-query attention and three of the MLP."""
    key_value = text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    attention = 2 * text.hidden_size * (text.hidden_size + key_value)
    return attention + 3 * text.hidden_size * text.intermediate_size
