"""What GMAI-VL is made of: the configurations of its two backbones, and how they are joined.

    config = GMAIVLConfig.from_pretrained(folder)
    vision_config(profile), text_config(profile, tokenizer)  # transformers' own

The vision tower is CLIP's or SigLIP's, the language model any causal one of transformers
(InternLM2.5 is converted to Llama); a profile can shape those with Llama's field names. Paper:
section 4.1.
"""

from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, PreTrainedConfig

from gmai_lib.model.chat import TURN_END


class GMAIVLConfig(PreTrainedConfig):
    """The configurations of the two backbones and how they are joined."""

    model_type = "gmai_vl"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 0
    vision_feature_layer: int = -2  # index into [embeddings, layer 1, ..., layer L]
    projector_hidden_act: str = "gelu"
    # More than the paper, all off in its profile:
    pixel_shuffle: int = 1  # so many patches a side become one token
    max_tiles: int = 1  # of a large image, beside the whole of it (model.views)
    number_slices: bool = False  # several images of a turn are slices in order (model.views)

    def __post_init__(self, **kwargs):
        for name, default in (("vision_config", CLIPVisionConfig), ("text_config", LlamaConfig)):
            value = getattr(self, name)
            if not isinstance(value, PreTrainedConfig):
                value = dict(value or {})
                model_type = value.pop("model_type", default.model_type)
                setattr(self, name, AutoConfig.for_model(model_type, **value))
        super().__post_init__(**kwargs)

    @property
    def class_tokens(self) -> int:
        """Tokens before the patches in the tower's output: one in CLIP, none in SigLIP."""
        return int(self.vision_config.model_type.startswith("clip"))

    @property
    def tokens_per_image(self) -> int:
        """Placeholders one image occupies: its patches, without the class token."""
        side = self.vision_config.image_size // self.vision_config.patch_size
        if side % self.pixel_shuffle:
            raise ValueError(f"pixel_shuffle {self.pixel_shuffle} does not divide {side} patches")
        return (side // self.pixel_shuffle) ** 2

    @property
    def context(self) -> int:
        """Tokens a prompt may have: the language model's positions, stretched by dynamic RoPE."""
        rope = getattr(self.text_config, "rope_parameters", None) or {}
        stretch = rope["factor"] if rope.get("rope_type") == "dynamic" else 1
        return int(self.text_config.max_position_embeddings * stretch)

    @property
    def num_used_layers(self) -> int:
        """Vision tower layers that run: 23 of CLIP-L's 24 for `vision_feature_layer` = -2."""
        layer, total = self.vision_feature_layer, self.vision_config.num_hidden_layers
        if not -total - 1 <= layer <= total:
            raise ValueError(f"vision_feature_layer {layer} in a vision tower of {total} layers")
        return layer if layer >= 0 else total + 1 + layer


def vision_config(profile) -> PreTrainedConfig:
    """transformers' configuration of the profile's vision tower."""
    names = ("image_size", "patch_size", "hidden_size", "intermediate_size")
    names += ("num_hidden_layers", "num_attention_heads", "hidden_act")
    return AutoConfig.for_model(
        f"{profile.vision.model_type}_vision_model",
        **{name: getattr(profile.vision, name) for name in names},
    )


def text_config(profile, tokenizer) -> PreTrainedConfig:
    """transformers' configuration of the profile's language model."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "max_position_embeddings", "tie_word_embeddings")
    rope = {"rope_type": "default", "rope_theta": profile.text.rope_theta}
    if profile.text.rope_scaling_factor != 1:
        rope |= {"rope_type": "dynamic", "factor": profile.text.rope_scaling_factor}
    return AutoConfig.for_model(
        profile.text.model_type,
        vocab_size=max(profile.text.vocab_size, len(tokenizer)),
        rope_parameters=rope,
        rms_norm_eps=1e-5,  # InternLM2.5's
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,  # the chat template has none
        eos_token_id=tokenizer.convert_tokens_to_ids(TURN_END),
        **{name: getattr(profile.text, name) for name in names},
    )
