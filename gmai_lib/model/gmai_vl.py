"""GMAI-VL: vision tower -> two-layer projector -> language model, and the splice between them.

    model = from_profile(config.load("mini"), tokenizer)
    loss = model(input_ids=..., pixel_values=..., labels=...).loss

Paper: section 4.1 and figure 1 (CLIP ViT-L/14-336 + MLP + InternLM2.5-7B, a LLaVA layout).
Departs: 4-D attention masks, so that packed samples do not see each other (the authors' code
does this inside a flash-attention wrapper); a placeholder mismatch raises where the authors'
code cuts or repeats image features; only the tower layers that are used are computed. The tower
may also be SigLIP's, the language model any causal one (Qwen2, Mistral, GPT-2, ...), and
`pixel_shuffle` may join patches: all by config, none of it in the paper.
References: same contract as transformers' `LlavaForConditionalGeneration`, to which
`gmai_lib.model.weights.export_llava` converts.

Shape letters: B batch, T tokens, N images, P patches per image, D language-model width,
V vocabulary, S supervised positions (labels that count).
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    GenerationMixin,
    LlavaProcessor,
    PreTrainedModel,
)
from transformers.activations import ACT2FN
from transformers.modeling_outputs import CausalLMOutputWithPast

from gmai_lib.config import PARTS
from gmai_lib.model.chat import IGNORE_INDEX, IMAGE_TOKEN, TURN_END
from gmai_lib.model.configuration import GMAIVLConfig, text_config, vision_config


class MultiModalProjector(nn.Module):
    """Linear, GELU, Linear: patch features (..., vision width) -> token features (..., D)."""

    def __init__(self, config: GMAIVLConfig):
        super().__init__()
        width, joined = config.text_config.hidden_size, config.pixel_shuffle**2
        self.linear_1 = nn.Linear(config.vision_config.hidden_size * joined, width)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features):
        return self.linear_2(self.act(self.linear_1(features)))


def join_patches(features, ratio: int):
    """Join squares of ratio x ratio patches ("pixel shuffle"): (N, P, C) -> (N, P / r^2, C r^2).

    Fewer tokens of the same content; patches and channels keep their order, row by row.
    """
    images, patches, channels = features.shape
    side = math.isqrt(patches) // ratio
    grid = features.view(images, side, ratio, side, ratio, channels)
    return grid.transpose(2, 3).reshape(images, side * side, ratio * ratio * channels)


def splice_image_features(inputs_embeds, image_features, input_ids, image_token_id):
    """Write image features over the placeholder embeddings.

    Shapes: inputs_embeds (B, T, D); image_features (N, P, D) in the order the placeholders
    appear; input_ids (B, T). Returns a new (B, T, D) tensor; gradients reach both inputs.

    Raises ValueError if the placeholders are not exactly N * P: a mismatch would shift
    every later image silently. Source: same contract as transformers' Llava model.
    """
    positions = (input_ids.flatten() == image_token_id).nonzero().squeeze(1)
    images, patches = image_features.shape[:2]
    _check_placeholders(len(positions), images, patches)
    features = image_features.flatten(0, 1).to(inputs_embeds.dtype)
    return inputs_embeds.flatten(0, 1).index_copy(0, positions, features).view_as(inputs_embeds)


def _check_placeholders(found: int, images: int, patches: int):
    if found != images * patches:
        raise ValueError(
            f"{found} image placeholders in input_ids but {images * patches} image "
            f"features ({images} images x {patches} patches); every <image> must be widened to "
            f"{patches} ids, and pixel_values must hold exactly the images of this batch"
        )


class GMAIVLForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The whole model; its three attributes are the three boxes of the paper's figure 1."""

    config_class = GMAIVLConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ("past_key_values",)

    def __init__(self, config: GMAIVLConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = MultiModalProjector(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def _apply(self, fn, recurse=True):
        """Keep the rotary frequencies in float32 when the model is cast (torch, DeepSpeed).

        In bf16 they are wrong by up to 0.4 %, 0.16 radian after 100 tokens; no checkpoint
        stores them, so a model trained on rounded ones would be evaluated on others.
        """
        language_model = self.language_model
        exact = {n: buffer for n, buffer in language_model.named_buffers() if "inv_freq" in n}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            owner, _, own_name = name.rpartition(".")
            module = language_model.get_submodule(owner)
            if getattr(module, own_name).dtype != buffer.dtype:
                setattr(module, own_name, buffer.to(getattr(module, own_name).device))
        return self

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()

    def image_features(self, pixel_values):
        """Encode pixel_values (N, 3, H, W) to image features (N, P, D)."""
        return self.multi_modal_projector(self.patch_features(pixel_values))

    def patch_features(self, pixel_values):
        """Encode pixel_values (N, 3, H, W) to what the projector reads, (N, P, vision width).

        Layers after `vision_feature_layer` do not run: asking transformers for all hidden
        states would compute them and keep every one in memory.
        """
        tower = self.vision_tower
        hidden = tower.embeddings(pixel_values)  # (N, class token + P, vision width)
        if self.config.class_tokens:
            hidden = tower.pre_layrnorm(hidden)
        for layer in tower.encoder.layers[: self.config.num_used_layers]:
            hidden = layer(hidden, attention_mask=None)
        patches = hidden[:, self.config.class_tokens :]
        if self.config.pixel_shuffle > 1:
            patches = join_patches(patches, self.config.pixel_shuffle)
        return patches

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        label_weights=None,
        use_cache=None,
        logits_to_keep=0,
        num_items_in_batch=None,
        dummy_image=False,
        **kwargs,
    ):
        """Compute the loss (with `labels`) or the logits (without).

        input_ids (B, T); pixel_values (N, 3, H, W) in order of the placeholders, None or N = 0
        for text only; attention_mask (B, T), or (B, 1, T, T) for packs (bool: True = may
        attend, or additive float); position_ids (B, T), restarting at 0 for every packed sample.

        `labels` (B, T), IGNORE_INDEX where nothing is learned: the loss is the mean over the S
        supervised tokens, or their sum / `num_items_in_batch` where gradients are accumulated.
        `label_weights` (B, T) float weighs these tokens, in the mean as in the sum.
        The vocabulary head then runs on these S positions only and `logits` is None, because
        at most a third of a pack is answers. Without labels, logits are (B, T, V), or the last
        `logits_to_keep` positions. `dummy_image` sends a blank image with weight zero through
        tower and projector, so that ranks with a text-only batch join the gradient exchange.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            if pixel_values is not None and len(pixel_values):
                features = self.image_features(pixel_values)
            else:  # zero images: the splice then checks that there is no placeholder either
                shape = (0, self.config.tokens_per_image, inputs_embeds.shape[-1])
                features = inputs_embeds.new_zeros(shape)
            inputs_embeds = splice_image_features(
                inputs_embeds, features, input_ids, self.config.image_token_id
            )
        if dummy_image:
            size = self.config.vision_config.image_size
            blank = inputs_embeds.new_zeros((1, 3, size, size))
            inputs_embeds = inputs_embeds + 0 * self.image_features(blank).sum()
        if labels is None and not (past_key_values and past_key_values.get_seq_length()):
            self._check_length(inputs_embeds.shape[1])

        outputs = self.language_model.base_model(
            inputs_embeds=inputs_embeds,
            attention_mask=self._language_mask(attention_mask, inputs_embeds.dtype),
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache if labels is None else False,
            **kwargs,
        )
        hidden = outputs.last_hidden_state  # (B, T, D)
        if labels is not None:
            loss = self._loss(hidden, labels, label_weights, num_items_in_batch)
            return CausalLMOutputWithPast(loss=loss)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(
            logits=self.get_output_embeddings()(hidden[:, kept]),
            past_key_values=outputs.past_key_values,
        )

    def _check_length(self, length: int):
        context = self.config.context
        if length > context:
            raise ValueError(
                f"the prompt has {length} tokens, {length - context} more than the context of "
                f"{context}; shorten the text or use fewer images (each of them costs "
                f"{self.config.tokens_per_image})"
            )

    def _loss(self, hidden, labels, label_weights, num_items_in_batch):
        """Cross-entropy of the next token, in float32, at the supervised positions."""
        targets = labels[:, 1:]
        supervised = targets != IGNORE_INDEX
        logits = self.get_output_embeddings()(hidden[:, :-1][supervised]).float()  # (S, V)
        losses = F.cross_entropy(logits, targets[supervised], reduction="none")
        count = len(losses)
        if label_weights is not None:
            weights = label_weights[:, 1:][supervised]
            losses, count = losses * weights, weights.sum()
        # A batch without a single answer token gives 0, not 0 / 0.
        return losses.sum() / (num_items_in_batch or max(count, 1e-9))

    def _language_mask(self, mask, dtype):
        """4-D masks go to the attention kernel as they are; make their type one it takes."""
        if mask is None or mask.ndim == 2:
            return mask
        if mask.dtype == torch.bool:
            if self.language_model.config._attn_implementation == "sdpa":
                return mask
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        return mask.to(dtype)

    def _expand_inputs_for_generation(self, expand_size=1, input_ids=None, **kwargs):
        """Repeat the inputs for beams or several samples; images stay with their row.

        transformers repeats each image in place, which would give the two images of one row to
        its first copy twice over.
        """
        pixels = kwargs.pop("pixel_values", None)
        if pixels is not None and expand_size > 1:
            patches = self.config.tokens_per_image
            placeholders = (input_ids == self.config.image_token_id).sum(1)
            _check_placeholders(int(placeholders.sum()), len(pixels), patches)
            rows = pixels.split((placeholders // patches).tolist())
            pixels = torch.cat([row for row in rows for _ in range(expand_size)])
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size, input_ids=input_ids, **kwargs
        )
        return input_ids, kwargs if pixels is None else kwargs | {"pixel_values": pixels}

    def set_trainable(self, parts):
        """Let only `parts` learn (names of config.PARTS).

        What comes after `vision_feature_layer` in the tower receives no gradient in any stage and
        stays frozen, so that weight decay does not shrink it.
        """
        unknown = set(parts) - set(PARTS)
        if unknown:
            raise ValueError(f"unknown parts {sorted(unknown)}; known: {PARTS}")
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(part_of(name) in parts)
        self.vision_tower.encoder.layers[self.config.num_used_layers :].requires_grad_(False)
        for name, module in self.vision_tower.named_children():
            if name in ("post_layernorm", "head"):
                module.requires_grad_(False)

    def parameter_table(self) -> list[dict]:
        """One row per part: parameters, and how many of them would learn now."""
        rows = {part: {"part": part, "parameters": 0, "trainable": 0} for part in PARTS}
        for name, parameter in self.named_parameters():
            row = rows[part_of(name)]
            row["parameters"] += parameter.numel()
            row["trainable"] += parameter.numel() * parameter.requires_grad
        return list(rows.values())


def part_of(parameter_name: str) -> str:
    """Return which of config.PARTS a parameter belongs to."""
    part = parameter_name.removeprefix("module.").split(".")[0]
    if part not in PARTS:
        raise ValueError(f"parameter {parameter_name} belongs to none of {PARTS}")
    return part


def from_parts(vision_tower, language_model, tokenizer, **options):
    """Join two backbones with a new, untrained projector. The backbones are used, not copied.

    `options` are further fields of GMAIVLConfig: `vision_feature_layer`, `pixel_shuffle`, ...
    """
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    rows = language_model.get_input_embeddings().num_embeddings
    if image_token_id is None or not image_token_id < rows or len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens ({IMAGE_TOKEN} is {image_token_id}) but "
            f"the language model embeds {rows}; call chat.add_special_tokens first"
        )
    joined = GMAIVLConfig(
        vision_config=vision_tower.config,
        text_config=language_model.config,
        image_token_id=image_token_id,
        **options,
    )
    with torch.device("meta"):  # no second copy of the backbones, not even for a moment
        model = GMAIVLForConditionalGeneration(joined)
    model.vision_tower, model.language_model = vision_tower, language_model
    projector = MultiModalProjector(joined)
    for linear in (projector.linear_1, projector.linear_2):
        nn.init.normal_(linear.weight, std=joined.text_config.initializer_range)
        nn.init.zeros_(linear.bias)
    model.multi_modal_projector = projector.to(vision_tower.dtype)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(TURN_END),
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[image_token_id],  # an answer cannot contain an image
    )
    return model


def from_profile(profile, tokenizer) -> GMAIVLForConditionalGeneration:
    """Build an untrained model of the profile's shape (seed torch before for a repeatable one)."""
    return from_parts(
        AutoModel.from_config(vision_config(profile)),
        AutoModelForCausalLM.from_config(text_config(profile, tokenizer)),
        tokenizer,
        vision_feature_layer=profile.vision_feature_layer,
        **profile.vision.views,
    )


AutoConfig.register(GMAIVLConfig.model_type, GMAIVLConfig)
AutoModelForImageTextToText.register(GMAIVLConfig, GMAIVLForConditionalGeneration)
AutoProcessor.register(GMAIVLConfig, LlavaProcessor)
