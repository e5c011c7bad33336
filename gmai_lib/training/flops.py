"""FLOPs and memory of a stage, counted per part: a frozen part costs less, not nothing.

    flops = model_flops(profile, stage, text_tokens=300_000, images=2_000, label_tokens=90_000)
    rows = memory_table(profile)  # weights, gradients, optimizer per ZeRO stage
    rows = method_table(profile)  # with activations: three stages, LoRA, QLoRA, inference

A multiply and an add are two FLOPs. Forward of a matrix is 2 per weight and token; backward
the same again for the gradient of its input, and again for that of its weight. Gradients pass
through the frozen language model to reach the projector, but no weight gradient is computed
there; nothing passes back into a frozen vision tower. Only matrix products are counted, as by
`torch.utils.flop_counter`, with which tests compare (no norms, softmax, embeddings).

Paper: table 3 (which parts a stage trains). This module imports no torch.

Letters: P patches of an image, D language-model width, V vision width.

Activations are what autograd keeps for the backward pass, plus what is alive at the worst moment
of it. They are counted tensor by tensor for fused attention (sdpa), and tests compare them with
the tensors alive in real steps (training/memory.py). Not in them: a GPU's context, its
allocator's gaps, and DeepSpeed's bucket (`stage.bucket_elements` weights, 1 GB by default).
"""

from dataclasses import replace

from gmai_lib.config import PARTS, Profile, Stage, paper, paper_samples

GIB = 2**30
# Dense bf16 FLOP/s of a device, without sparsity: NVIDIA's data sheets.
PEAKS = {"A100": 312e12, "A800": 312e12, "H100": 989e12, "H800": 989e12, "H200": 989e12}
PEAKS |= {"B200": 2250e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "A10": 125e12}
OPTIMIZER_BYTES = 12  # AdamW per trained weight: float32 copy and two moments
ADAPTER_OPTIMIZER_BYTES = 8  # adapters are float32 themselves: two moments, no copy
# NF4 with double quantisation: half a byte, one byte a block of 64, four bytes 256 blocks.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
METHODS = ("full", "lora", "qlora", "inference")
TEXT_TOKENS, ANSWER_TOKENS = 120, 40  # of a sample with one image, where nothing else is known
# The larger of what "fastest" may become.
WEIGHT_BYTES = {"bf16": 2, "fp16": 2, "float32": 4, "fastest": 4}


def model_flops(
    profile: Profile,
    stage: Stage,
    text_tokens: int,
    images: int,
    *,
    label_tokens: int | None = None,
    attended: int | None = None,
) -> dict[str, dict[str, int]]:
    """Return {part: {"forward": FLOPs, "backward": FLOPs}} for so many tokens and images.

    `text_tokens` excludes image tokens and includes padding, if any: padding costs the same.
    `label_tokens` is how many positions reach the vocabulary head (all text if None). `attended`
    is the sum over tokens of how many tokens they attend to: the sum of the squared lengths of the
    samples for what they need (of which causality spares half, not taken off, as is usual), and
    if None the whole pack for every token, which is what attention with a mask computes.
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
    attended = tokens * stage.max_length if attended is None else attended
    attention = 4 * attended * text.num_hidden_layers * text.hidden_size
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
    """Return the number of weights per part, shared ones once (see `parameter_arithmetic`)."""
    counts = dict.fromkeys(PARTS, 0)
    for row in parameter_arithmetic(profile):
        counts[row["part"]] += row["parameters"]
    return counts


def parameter_arithmetic(profile: Profile) -> list[dict]:
    """Return how many weights each piece of the model has, and the sizes they come from.

    Rows of "part", "piece", "arithmetic" ("32 x (2 x 4096 + 512)") and "parameters", of the plain
    CLIP and Llama layouts; a language model with attention biases has a few more.
    """
    vision, text = profile.vision, profile.text
    v, d, inner, patch = (
        vision.hidden_size,
        text.hidden_size,
        vision.intermediate_size,
        vision.patch_size,
    )
    joined, key_value = v * vision.pixel_shuffle**2, _key_value_width(text)
    vocabularies = 1 if text.tie_word_embeddings else 2
    pieces = {
        "vision_tower": {
            "patches": f"3 x {patch} x {patch} x {v}",
            "class token, positions": f"{v} + {vision.num_patches + 1} x {v}",
            "attention": f"{vision.num_hidden_layers} x 4 x ({v} + 1) x {v}",
            "MLP": f"{vision.num_hidden_layers} x (({v} + 1) x {inner} + ({inner} + 1) x {v})",
            "norms": f"({vision.num_hidden_layers} + 1) x 2 x 2 x {v}",
        },
        "multi_modal_projector": {
            "first": f"({joined} + 1) x {d}",
            "second": f"({d} + 1) x {d}",
        },
        "language_model": {
            "vocabulary": f"{vocabularies} x {text.vocab_size} x {d}",
            "attention": f"{text.num_hidden_layers} x 2 x {d} x ({d} + {key_value})",
            "MLP": f"{text.num_hidden_layers} x 3 x {d} x {text.intermediate_size}",
            "norms": f"({text.num_hidden_layers} x 2 + 1) x {d}",
        },
    }
    return [
        {"part": part, "piece": piece, "arithmetic": product, "parameters": _value(product)}
        for part, products in pieces.items()
        for piece, product in products.items()
    ]


def _value(product: str) -> int:
    """What "2 x (3 + 4)" comes to; the text is ours, so that it cannot differ from the number."""
    return eval(product.replace(" x ", " * "), {"__builtins__": {}})


def _trained(profile: Profile, stage: Stage) -> int:
    """Weights with a gradient: not those of the tower's last layers, which nothing reads."""
    vision, counts = profile.vision, parameter_counts(profile)
    if stage.lora_rank:
        counts["language_model"] = _adapter_weights(profile.text, stage.lora_rank)
    trained = sum(counts[part] for part in stage.trainable)
    if "vision_tower" in stage.trainable:
        unused = vision.num_hidden_layers - _used_layers(profile)
        trained -= unused * _vision_layer_parameters(vision) + 2 * vision.hidden_size
    return trained


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
        trained = _trained(profile, stage)
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


def method_table(profile: Profile) -> list[dict]:
    """Return one row per method: GiB of weights, gradients, optimizer, activations, in all.

    The three stages in full, then LoRA, QLoRA and answering, all on one device without ZeRO.
    Micro batches as in the stage, of samples with one image and TEXT_TOKENS tokens of text.
    """
    last = profile.stages[-1]
    methods = [(stage.name.replace("_", " "), stage, "full") for stage in profile.stages]
    methods += [("LoRA", last, "lora"), ("QLoRA (NF4)", last, "qlora")]
    methods += [("inference", last, "inference")]
    rows = []
    for name, stage, method in methods:
        sizes = memory_of(profile, stage, method)
        row = {"method": name} | {f"{kind}_gib": size / GIB for kind, size in sizes.items()}
        rows.append(row | {"total_gib": sum(sizes.values()) / GIB})
    return rows


def memory_of(
    profile: Profile,
    stage: Stage,
    method: str = "full",
    *,
    images: int | None = None,
    label_tokens: int | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int = 64,
    rank: int = 64,
    dropout: float = 0.1,
) -> dict[str, float]:
    """Return bytes of "weights", "gradients", "optimizer" and "activations" at the peak.

    "full" trains the parts of `stage` (gradients accumulate over micro batches; with AdamW as
    DeepSpeed keeps it); "lora" and "qlora" train adapters of `rank` beside the seven matrices of
    every language layer (model.lora) and freeze the rest; "inference" answers
    `profile.evaluation_batch_size` prompts of one image. `images` and `label_tokens` are those of
    one micro batch. Raises ValueError for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {METHODS}")
    text, size, counts = profile.text, WEIGHT_BYTES[stage.precision], parameter_counts(profile)
    if method == "inference":
        prompt = prompt_tokens or profile.vision.tokens_per_image + TEXT_TOKENS
        activations = _inference(profile, size, prompt, new_tokens)
        weights = sum(counts.values()) * size
        return {"weights": weights, "gradients": 0, "optimizer": 0, "activations": activations}
    samples = stage.micro_batch_size * max(
        1, stage.max_length // (profile.vision.tokens_per_image + TEXT_TOKENS)
    )
    images = samples if images is None else images
    labels = samples * ANSWER_TOKENS if label_tokens is None else label_tokens
    if method == "full":
        trained = _trained(profile, stage)
        return {
            "weights": sum(counts.values()) * size,
            "gradients": trained * size,
            "optimizer": trained * OPTIMIZER_BYTES,
            "activations": _activations(profile, stage, images, labels),
        }
    matrices = text.num_hidden_layers * _text_layer_weights(text)
    adapters = _adapter_weights(text, rank)
    others = sum(counts.values()) - matrices
    return {
        "weights": others * size
        + matrices * (NF4_BYTES if method == "qlora" else size)
        + adapters * 4,
        "gradients": adapters * 4,
        "optimizer": adapters * ADAPTER_OPTIMIZER_BYTES,
        "activations": _activations(profile, stage, images, labels, rank, dropout),
    }


def _activations(profile, stage, images, labels, rank=0, dropout=0.0) -> int:
    """Bytes of activations at the peak of a training step; with `rank`, only adapters learn.

    A layer keeps what its backward pass reads. Frozen matrices need their weights only, so the
    inputs of theirs are not kept; but gradients pass, so norms, attention and SiLU keep theirs.
    """
    vision, text, size = profile.vision, profile.text, WEIGHT_BYTES[stage.precision]
    learns = set() if rank else set(stage.trainable)
    tokens, width, inner = (
        stage.micro_batch_size * stage.max_length,
        text.hidden_size,
        text.intermediate_size,
    )
    trained = "language_model" in learns
    # Two norms in float32; query, key, value (repeated to all heads), result; gate, SiLU, up.
    layer = 2 * 4 * width + size * (4 * width + 3 * inner)
    layer += 4 * text.num_attention_heads + size * stage.max_length  # log-sum-exp; the mask
    if trained:  # both norms before and after their weight, and the input of the last matrix
        layer += size * (4 * width + inner)
    if rank:
        layer += _adapter_inputs(width, inner, size, dropout) + 4 * 7 * rank
    if stage.gradient_checkpointing:  # the inputs of all layers, and one layer in full
        saved, again = text.num_hidden_layers * tokens * size * width, tokens * layer
        again -= tokens * size * width
    else:
        saved, again = text.num_hidden_layers * tokens * layer, 0

    if "vision_tower" in learns:
        sizes = 4 * vision.num_attention_heads
        gelu = 3 if vision.hidden_act == "quick_gelu" else 2  # x * sigmoid(1.7 x) keeps one more
        sizes += size * (8 * vision.hidden_size + gelu * vision.intermediate_size)
        if stage.gradient_checkpointing:
            sizes = size * vision.hidden_size
        sizes = _used_layers(profile) * sizes + size * vision.hidden_size
        saved += images * (vision.num_patches + 1) * sizes
    if learns & {"vision_tower", "multi_modal_projector"}:
        joined = vision.hidden_size * vision.pixel_shuffle**2
        saved += images * vision.tokens_per_image * size * (joined + 3 * width)

    norm = tokens * width * (4 + size * trained)
    head = labels * (4 * text.vocab_size + size * width * trained)  # log-softmax in float32
    inputs = images * 3 * vision.image_size**2 * size + tokens * (stage.max_length + 16)
    saved += inputs
    # Either two more tensors like the logits, at the loss, or three and two more in the last MLP.
    at_loss = saved + norm + head + 2 * labels * 4 * text.vocab_size
    at_layer = saved + again + tokens * size * (3 * inner + 2 * width)
    at_layer -= tokens * size * inner * trained  # freed before
    if trained and text.tie_word_embeddings:  # the head's gradient waits for the embedding's
        at_layer += text.vocab_size * width * size
    return max(at_loss, at_layer)


def _adapter_inputs(width: int, inner: int, size: int, dropout: float) -> int:
    """Bytes a token that the seven adapters of a layer keep: float32 inputs, masks of dropout."""
    if dropout:
        return 4 * 2 * (6 * width + inner)
    if size == 4:  # no copies: q, k and v share one input, gate and up another
        return 4 * (2 * width + inner)
    return 4 * (6 * width + inner)


def _inference(profile, size: int, prompt: int, new_tokens: int) -> int:
    """Bytes of the key-value cache and what else is alive, while reading or while writing."""
    text, rows = profile.text, profile.evaluation_batch_size
    key_value = _key_value_width(text)
    cache = 2 * text.num_hidden_layers * key_value * size * rows  # a token
    inputs = rows * 3 * profile.vision.image_size**2 * size
    alive = size * (3 * text.intermediate_size + 5 * text.hidden_size)
    reading = prompt * (cache + rows * alive)
    # A layer's longer keys are written before the shorter ones go.
    writing = (prompt + new_tokens) * (cache + key_value * size * rows)
    return inputs + max(reading, writing)


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
    width, inner, key_value = text.hidden_size, text.intermediate_size, _key_value_width(text)
    ends = 2 * (width + width) + 2 * (width + key_value) + 3 * (width + inner)
    return text.num_hidden_layers * rank * ends


def _vision_layer_parameters(vision) -> int:
    """The matrices with their biases, and two norms."""
    return _vision_layer_weights(vision) + 9 * vision.hidden_size + vision.intermediate_size


def _text_layer_weights(text) -> int:
    """Matrix weights of a Llama layer: grouped-query attention and three of the MLP."""
    key_value = _key_value_width(text)
    attention = 2 * text.hidden_size * (text.hidden_size + key_value)
    return attention + 3 * text.hidden_size * text.intermediate_size


def _key_value_width(text) -> int:
    """Width of all key heads together, which several query heads share."""
    return text.hidden_size * text.num_key_value_heads // text.num_attention_heads
