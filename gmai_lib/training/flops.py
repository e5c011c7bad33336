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

from dataclasses import replace

from gmai_lib.config import PARTS, Profile, Stage, paper, paper_samples

GIB = 2**30
# Dense bf16 FLOP/s of a device, without sparsity: NVIDIA's data sheets.
PEAKS = {"A100": 312e12, "A800": 312e12, "H100": 989e12, "H800": 989e12, "H200": 989e12}
PEAKS |= {"B200": 2250e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "A10": 125e12}
OPTIMIZER_BYTES = 12  # AdamW per trained weight: float32 copy and two moments
# The larger of what "fastest" may become.
WEIGHT_BYTES = {"bf16": 2, "fp16": 2, "float32": 4, "fastest": 4}


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

    tokens = images * vision.tokens_per_image
    first = 2 * tokens * vision.hidden_size * vision.pixel_shuffle**2 * text.hidden_size
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
    passes = 2 if "language_model" in learns and not stage.lora_rank else 1
    adapters = 2 * tokens * _adapter_weights(text, stage.lora_rank)
    counts["language_model"] = {
        "forward": linear + attention + adapters,
        "backward": passes * linear + 2 * attention + 2 * adapters,
    }
    return counts


def peak_of(device_name: str) -> float:
    """Return the dense bf16 FLOP/s of a GPU by its name; ValueError lists the known ones."""
    for name, peak in PEAKS.items():
        if name in device_name and f"{name}0" not in device_name:  # an A100 is no A10
            return peak
    raise ValueError(f"no peak known for {device_name!r}; add it to flops.PEAKS: {list(PEAKS)}")


def parameter_counts(profile: Profile) -> dict[str, int]:
    """Return the number of weights per part, shared ones once.

    Of the plain CLIP and Llama layouts; a language model with attention biases has a few more.
    """
    vision, text = profile.vision, profile.text
    width = vision.hidden_size
    per_layer = _vision_layer_weights(vision) + 9 * width + vision.intermediate_size
    tower = 3 * vision.patch_size**2 * width + (vision.num_patches + 2) * width + 4 * width
    joined = width * vision.pixel_shuffle**2
    projector = (joined + 1 + text.hidden_size + 1) * text.hidden_size
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
        learning = counts | {"language_model": _adapter_weights(profile.text, stage.lora_rank)}
        learning = learning if stage.lora_rank else counts
        trained = sum(learning[part] for part in stage.trainable)
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


def plan(
    profile: Profile,
    *,
    gpus: int,
    gpu: str = "A100",
    gpu_gib: float = 80.0,
    mfu: float = 0.35,
    gpu_hour_price: float = 2.0,
    text_tokens: int = 120,
    samples: dict[str, float] | None = None,
) -> list[dict]:
    """Return one row per stage and ZeRO stage: hours, price and memory on `gpus` devices.

    `samples` per stage are those of the paper unless given; each is one image and `text_tokens`
    of text. `mfu` is an assumption (measured: metrics.jsonl); "fits" leaves a fifth of `gpu_gib`
    for activations. Raises ValueError if the batch does not divide over `gpus`.
    """
    peak, rows = peak_of(gpu), []
    memory = memory_table(replace(profile, ranks=gpus))
    for stage in profile.stages:
        accumulation = stage.gradient_accumulation_steps(gpus)
        count = samples[stage.name] if samples else sum(paper_samples(stage.name).values())
        counts = model_flops(profile, stage, int(count * text_tokens), int(count))
        total = sum(sum(part.values()) for part in counts.values())
        hours = total / (gpus * peak * mfu) / 3600
        for row in memory:
            if row["stage"] == stage.name:
                fits = row["total_gib"] < 0.8 * gpu_gib
                rows.append(
                    {"stage": stage.name, "gpus": gpus, "samples": count, "flops": total}
                    | {"accumulation": accumulation, "hours": hours, "days": hours / 24}
                    | {"gpu_hours": hours * gpus, "price": hours * gpus * gpu_hour_price}
                    | {name: row[name] for name in ("zero_stage", "total_gib")}
                    | {"fits": fits}
                )
    return rows


# Optimizer steps of the authors' checkpoints, by the names in their code (paper.md section 3).
PAPER_STEPS = {"shallow_alignment": 12_854, "deep_alignment": 13_490}
PAPER_GPUS = 32  # A100 80 GB


def paper_run(*, mfu: float = 0.35, text_tokens: int = 120) -> list[dict]:
    """Return the paper's three stages as arithmetic, one row each.

    Samples of table 10, their number per pack where the authors' step count is known, FLOPs, and
    days on 32 A100 at `mfu`, which is an assumption: the paper gives no hours.
    """
    profile, rows = paper(), []
    planned = plan(profile, gpus=PAPER_GPUS, mfu=mfu, text_tokens=text_tokens)
    for stage in profile.stages:
        row = next(r for r in planned if (r["stage"], r["zero_stage"]) == (stage.name, 2))
        steps = PAPER_STEPS.get(stage.name)
        packs = steps and steps * stage.global_batch_size
        rows.append(
            {name: row[name] for name in ("stage", "samples", "flops", "hours", "days")}
            | {"steps": steps, "samples_per_pack": packs and row["samples"] / packs}
            | {"tokens_per_sample": profile.vision.tokens_per_image + text_tokens}
        )
    return rows


def _used_layers(profile: Profile) -> int:
    """Vision layers that run; -2 leaves out the last one."""
    layer = profile.vision_feature_layer
    return layer if layer >= 0 else profile.vision.num_hidden_layers + 1 + layer


def _vision_layer_weights(vision) -> int:
    """Matrix weights of a CLIP layer: query, key, value, output and two of the MLP."""
    return 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size


def _adapter_weights(text, rank: int) -> int:
    """Weights of the low-rank adapters beside the seven matrices of every Llama layer."""
    width, inner = text.hidden_size, text.intermediate_size
    key_value = width * text.num_key_value_heads // text.num_attention_heads
    ends = 2 * (width + width) + 2 * (width + key_value) + 3 * (width + inner)
    return text.num_hidden_layers * rank * ends


def _text_layer_weights(text) -> int:
    """Matrix weights of a Llama layer: grouped-query attention and three of the MLP."""
    key_value = text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    attention = 2 * text.hidden_size * (text.hidden_size + key_value)
    return attention + 3 * text.hidden_size * text.intermediate_size
