"""Profiles, stages and mixtures: every number of a run, with its origin.

`load("mini")`, `load("single_gpu")` or `load("paper")` returns a frozen `Profile`; a variant is
`dataclasses.replace(load("mini"), seed=1)`. Marks: [paper] arXiv:2411.14522 v2, [code] the
authors' public code, [chosen] ours.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

PARTS = ("vision_tower", "multi_modal_projector", "language_model")
STAGES = ("shallow_alignment", "deep_alignment", "instruction_tuning")
PRECISIONS = (
    "float32",
    "bf16",
    "fp16",
    "fastest",
)  # fastest: what the processor is (model.kernels)
# What a token of an answer of n tokens weighs: n to the power of minus this. With "token" a caption
# of sixty tokens counts thirty times as much as a "yes"; with "answer" all answers count alike.
LOSS_WEIGHTINGS = {"token": 0.0, "square_root": 0.5, "answer": 1.0}
OPTIMIZERS = ("adamw", "adamw_8bit")  # the second: bitsandbytes, a quarter of the state's memory
# [paper] table 7: which stages were trained, in order, for each row of the stage ablation.
ABLATIONS = {
    "1": STAGES[:1],
    "1+2": STAGES[:2],
    "1+3": (STAGES[0], STAGES[2]),
    "1+2+3": STAGES,
}
# [paper] table 10: group, per cent drawn in stages I and II, in stage III, and samples per set
# after the authors' cleaning. A key is a source ("SLAKE"), one subset of it
# ("PubMedVision/caption") or a subset of every source without a row of its own ("*/caption": the
# paper's GMAI-MM-Caption, here what the dataset builder writes).
TABLE_10 = (
    ("general caption", 100, 50, {"ALLaVA": 468_000, "ShareGPT4V": 102_000}),
    ("medical caption", 100, 100, {"*/caption": 1_700_000, "PubMedVision/caption": 1_300_000}),
    (
        "medical caption",
        100,
        5,
        {"MedICaT": 173_000, "MPx-Single": 31_000, "PMC-OA": 1_300_000, "Quilt-1M": 643_000}
        | {"Retina Image Bank": 22_000},
    ),
    ("report", 100, 30, {"CheXpert-Plus": 223_000, "MIMIC-CXR": 486_000, "OpenI": 7_000}),
    (
        "general instruction",
        100,
        75,
        {"GeoQA+": 72_000, "AI2D": 12_000, "SynthDoG": 29_000, "ChartQA": 18_000}
        | {"MMChemExam": 219_000, "LLaVA-150K": 157_000, "DVQA": 200_000, "DocVQA": 10_000},
    ),
    (
        "medical instruction",
        100,
        100,
        {"*/percept": 1_300_000, "*/instruct": 900_000, "PubMedVision/instruct": 1_280_000}
        | {"LLaVA-Med-60k": 56_000},
    ),
    (
        "medical instruction",
        100,
        10,
        {"PMC-Inline": 288_000, "VQA-Med-2019": 3_200, "Medical-Diff-VQA": 260_000}
        | {"PathVQA": 2_600, "PMC-CaseReport": 109_000, "PMC-VQA": 251_000, "ROCOv2": 60_000}
        | {"SLAKE": 600, "VQA-RAD": 300},
    ),
    (
        "general text",
        0,
        100,
        {"blossom-orca": 20_000, "COIG-CQIA": 14_800, "Cosmopedia": 33_000}
        | {"ShareGPT4V text": 26_000, "Orca-Math": 379_000, "Leetcode": 1_700, "LogiQA": 12_700}
        | {"Lima": 83_000, "OpenHermes-2.5": 200_000, "Firefly": 189_000, "UltraChat": 189_000}
        | {"Alpaca": 49_000},
    ),
    ("medical text", 0, 100, {"*/text_single": 1_000_000, "*/text_multi": 649_000}),
)

# Center and width in Hounsfield units, as set on most radiology workstations. The dataset is built
# with them, and every checkpoint's processor names them (model.chat).
CT_WINDOWS = {
    "soft tissue": (50.0, 400.0),
    "mediastinum": (50.0, 350.0),
    "lung": (-600.0, 1500.0),
    "liver": (30.0, 150.0),
    "brain": (40.0, 80.0),
    "bone": (400.0, 1800.0),
}


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A CLIP or SigLIP vision transformer (names as in transformers' CLIPVisionConfig)."""

    pretrained: str  # hub id or folder; "" = trained from scratch in notebook 05
    image_size: int  # pixels, square
    patch_size: int  # pixels, square
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "quick_gelu"  # OpenAI's CLIP
    model_type: str = "clip"  # or "siglip", which has no class token
    pixel_shuffle: int = 1  # so many patches a side become one token; 1 = none [code]
    max_tiles: int = 1  # of an image larger than image_size, beside the whole; 1 = none [code]
    number_slices: bool = False  # several images of a turn are the slices of a volume [code]

    @property
    def views(self) -> dict[str, int | bool]:
        """What becomes of an image before the language model: options of model and processor."""
        return {n: getattr(self, n) for n in ("pixel_shuffle", "max_tiles", "number_slices")}

    @property
    def num_patches(self) -> int:
        """Patches the tower computes per image, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens_per_image(self) -> int:
        """Image tokens the language model receives per image."""
        return self.num_patches // self.pixel_shuffle**2

    def __post_init__(self):
        if self.image_size % (self.patch_size * self.pixel_shuffle):
            raise ValueError(
                f"patch_size {self.patch_size} x pixel_shuffle {self.pixel_shuffle} does not "
                f"divide {self.image_size}"
            )
        if self.model_type not in ("clip", "siglip"):
            raise ValueError(f"vision model_type {self.model_type!r} is neither clip nor siglip")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A language model with Llama's structure (names as in transformers' LlamaConfig)."""

    pretrained: str  # hub id or folder; "" = trained from scratch in notebook 05
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rope_theta: float
    tie_word_embeddings: bool = False
    model_type: str = "llama"  # of transformers: InternLM2.5 is converted to it
    rope_scaling_factor: float = 1.0  # dynamic NTK beyond max_position_embeddings; 1 = none


@dataclass(frozen=True, kw_only=True)
class StandInConfig:
    """How notebook 05 makes small stand-ins for CLIP and the language model (mini only)."""

    vision_steps: int  # optimizer steps of contrastive image-text pretraining
    vision_batch_size: int  # image-text pairs per step; the negatives of each other
    vision_learning_rate: float
    language_steps: int  # optimizer steps of next-token pretraining on text
    language_batch_tokens: int  # per step, with padding
    language_learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training stage."""

    name: str
    trainable: tuple[str, ...]  # which of PARTS learn; the others stay bit-identical
    learning_rates: dict[str, float]  # AdamW peak per trainable part
    subsets: tuple[str, ...]  # which Sample subsets are drawn
    languages: tuple[str, ...] = ("en", "zh")  # of the samples that are drawn
    max_steps: int | None  # optimizer steps; None = `epochs` passes over the mixture
    epochs: float
    global_batch_size: int  # packs per optimizer step, over all ranks
    micro_batch_size: int  # packs per rank per forward
    max_length: int  # tokens per pack, image tokens included
    warmup_ratio: float
    weight_decay: float
    adam_betas: tuple[float, float] = (0.9, 0.999)  # [authors' material]
    max_grad_norm: float = 1.0  # [code]
    precision: str = "bf16"
    loss_weighting: str = "token"  # see LOSS_WEIGHTINGS; [code] token
    augment: bool = True  # small photometric changes (loader.vary); [code] none
    # Share of each source drawn per epoch, keys as in TABLE_10; None draws all of every source.
    mixture: dict[str, float] | None = None
    missing_sources: str = "error"  # "reweigh": print the shares of those that are present
    over_long: str = "drop"  # "cut": end after the last answer that fits `max_length`
    max_images: int | None = None  # per pack; bounds the vision tower's memory
    optimizer: str = "adamw"  # see OPTIMIZERS
    gradient_checkpointing: bool = False  # a third more compute, activations of one layer at a time
    torch_compile: bool = False  # of every layer: fewer, larger kernels; ZeRO 0 to 2
    zero_stage: int = 2  # DeepSpeed ZeRO
    offload_optimizer: bool = False  # its state in host memory, ZeRO 1 to 3
    offload_parameters: bool = False  # weights in host memory, ZeRO 3
    bucket_elements: int = 500_000_000  # gradients reduced at once; DeepSpeed's default
    max_loss_jump: float = 5.0  # times the recent median loss that stops a run [chosen]
    # Above 0, the language model learns by adapters of this rank (model.lora) and is else frozen.
    lora_rank: int = 0
    lora_alpha: float = 16.0  # the adapters are scaled by alpha / rank [code]
    quantization: str = "none"  # "nf4": of the frozen weights beside the adapters (QLoRA)

    def __post_init__(self):
        if not set(self.trainable) <= set(PARTS):
            raise ValueError(f"stage {self.name}: trainable {self.trainable} not within {PARTS}")
        if set(self.learning_rates) != set(self.trainable):
            raise ValueError(
                f"stage {self.name}: learning rates for {sorted(self.learning_rates)} "
                f"but trainable parts are {sorted(self.trainable)}"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"stage {self.name}: precision {self.precision} not in {PRECISIONS}")
        if self.loss_weighting not in LOSS_WEIGHTINGS:
            raise ValueError(
                f"stage {self.name}: loss_weighting {self.loss_weighting!r} not in "
                f"{list(LOSS_WEIGHTINGS)}"
            )
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"stage {self.name}: zero_stage {self.zero_stage} not in 0..3")
        for name, known in (
            ("missing_sources", ("error", "reweigh")),
            ("over_long", ("drop", "cut")),
            ("optimizer", OPTIMIZERS),
            ("quantization", ("none", "nf4")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"stage {self.name}: {name} {getattr(self, name)!r} not in {known}"
                )
        if self.lora_rank and (self.lora_rank < 0 or "language_model" not in self.trainable):
            raise ValueError(
                f"stage {self.name}: lora_rank {self.lora_rank} must be positive, and needs "
                f"language_model among the trainable parts {self.trainable}"
            )
        if self.quantization != "none" and not (self.lora_rank and self.zero_stage < 3):
            raise ValueError(
                f"stage {self.name}: quantization {self.quantization!r} needs adapters that learn "
                f"(lora_rank is {self.lora_rank}) and weights that are whole on every rank "
                f"(zero_stage 0 to 2, not {self.zero_stage})"
            )
        if self.torch_compile and self.zero_stage == 3:
            raise ValueError(
                f"stage {self.name}: torch_compile needs weights that are whole on every rank "
                "(zero_stage 0 to 2): ZeRO 3 gathers them inside the layers that are compiled"
            )
        if self.offload_optimizer and not self.zero_stage:
            raise ValueError(f"stage {self.name}: offload_optimizer needs zero_stage 1 to 3, not 0")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(
                f"stage {self.name}: offload_parameters needs zero_stage 3, not {self.zero_stage}"
            )
        if self.mixture is not None:
            wrong = {key: ratio for key, ratio in self.mixture.items() if not 0 <= ratio <= 1}
            if wrong:
                raise ValueError(
                    f"stage {self.name}: ratios of a mixture lie between 0 and 1, not {wrong}"
                )
            if not any(self.mixture.values()):
                raise ValueError(
                    f"stage {self.name}: every ratio of the mixture is zero: {self.mixture}"
                )

    @classmethod
    def from_dict(cls, raw: dict) -> "Stage":
        """Undo `asdict` and JSON, which turns tuples into lists."""
        tuples = ("trainable", "subsets", "languages", "adam_betas")
        return cls(**raw | {name: tuple(raw[name]) for name in tuples})

    def gradient_accumulation_steps(self, world_size: int) -> int:
        """Micro steps per optimizer step; ValueError if the batch sizes do not divide."""
        per_micro_step = self.micro_batch_size * world_size
        if self.global_batch_size % per_micro_step:
            raise ValueError(
                f"stage {self.name}: global batch {self.global_batch_size} is not a multiple of "
                f"micro batch {self.micro_batch_size} x world size {world_size}"
            )
        return self.global_batch_size // per_micro_step


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the builder makes."""

    phantom_images_per_modality: int  # procedural images for each phantom modality
    phantom_size: int  # pixels, square
    chinese_fraction: float  # share of image records also written in Chinese [paper: about 0.3]
    validation_fraction: float  # of patients or volumes, where a source has no split of its own
    test_fraction: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything a run needs; `asdict` of it is written beside every artefact."""

    name: str
    vision: VisionConfig
    text: TextConfig
    stand_ins: StandInConfig | None
    stages: tuple[Stage, ...]
    data: DataConfig
    ranks: int  # processes the launcher starts on one machine
    vision_feature_layer: int = -2  # [code] second-to-last layer, class token dropped
    benchmark_images: int = 500  # images of the phantom benchmark
    evaluation_batch_size: int = 64
    seed: int = 0

    def stage(self, name: str) -> Stage:
        """Return the stage called `name`; ValueError lists the known ones."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(f"no stage {name!r} in profile {self.name}; known: {STAGES}")

    def to_json(self, path: Path) -> Path:
        """Write the resolved configuration; `Profile.from_json` gives an equal object back."""
        from gmai_lib.outputs import write_json

        return write_json(path, asdict(self))

    @classmethod
    def from_json(cls, path: Path) -> "Profile":
        """Read what `to_json` wrote."""
        raw = json.loads(Path(path).read_text("utf-8"))
        raw["vision"] = VisionConfig(**raw["vision"])
        raw["text"] = TextConfig(**raw["text"])
        raw["stand_ins"] = StandInConfig(**raw["stand_ins"]) if raw["stand_ins"] else None
        raw["data"] = DataConfig(**raw["data"])
        raw["stages"] = tuple(Stage.from_dict(stage) for stage in raw["stages"])
        unknown = set(raw) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"{path}: unknown profile fields {sorted(unknown)}")
        return cls(**raw)


def paper_mixture(stage_name: str) -> dict[str, float]:
    """Return TABLE_10's share of every source in the stage called `stage_name`."""
    if stage_name not in STAGES:
        raise ValueError(f"no stage {stage_name!r}; known: {STAGES}")
    last = stage_name == STAGES[-1]
    return {
        key: (instruction if last else alignment) / 100
        for _, alignment, instruction, sets in TABLE_10
        for key in sets
    }


def paper_samples(stage_name: str) -> dict[str, float]:
    """Return how many samples of every source of TABLE_10 the paper's stage sees in an epoch."""
    ratios = paper_mixture(stage_name)
    return {key: size * ratios[key] for *_, sets in TABLE_10 for key, size in sets.items()}


def _three_stages(**common) -> tuple[Stage, Stage, Stage]:
    """The paper's schedule (table 3): which parts learn, at which peak rate, on which subsets."""
    image_subsets = ("caption", "percept", "instruct")
    all_subsets = (*image_subsets, "text_single", "text_multi")
    shallow = Stage(
        name="shallow_alignment",
        trainable=("multi_modal_projector",),
        learning_rates={"multi_modal_projector": 1e-3},  # [paper]
        subsets=image_subsets,
        **common,
    )
    deep = replace(
        shallow,
        name="deep_alignment",
        trainable=("vision_tower", "multi_modal_projector"),
        learning_rates=dict.fromkeys(("vision_tower", "multi_modal_projector"), 1e-4),  # [paper]
    )
    instruct = replace(
        shallow,
        name="instruction_tuning",
        trainable=PARTS,
        learning_rates=dict.fromkeys(PARTS, 1e-5),  # [paper]
        subsets=all_subsets,
    )
    return shallow, deep, instruct


def paper() -> Profile:
    """CLIP ViT-L/14-336 and InternLM2.5-7B on 8 to 32 GPUs."""
    stages = _three_stages(
        max_steps=None,
        epochs=1.0,  # [code]
        global_batch_size=512,  # [paper] 32 GPUs x 8 x 2, then 32 x 4 x 4
        micro_batch_size=4,
        max_length=2048,  # [code]
        warmup_ratio=0.03,  # [code]
        weight_decay=0.0,  # [code] README value; the parser's default is 0.01
        augment=False,  # [code]
        over_long="cut",  # [code] says so and does not do it
        missing_sources="reweigh",  # [chosen] nobody else has all sources of table 10
        gradient_checkpointing=True,  # [code] every layer
        zero_stage=2,
    )
    shallow = replace(stages[0], micro_batch_size=8)  # [paper]
    return Profile(
        name="paper",
        vision=VisionConfig(
            pretrained="openai/clip-vit-large-patch14-336",  # [code] paper says "CLIP", 336 px
            image_size=336,
            patch_size=14,
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
        ),
        text=TextConfig(
            pretrained="internlm/internlm2_5-7b-chat",  # [paper] InternLM2.5-7B; variant unstated
            vocab_size=92544,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=32768,
            rope_theta=1e6,
            rope_scaling_factor=2.0,  # config.json of internlm2_5-7b-chat: dynamic, 2.0
        ),
        stand_ins=None,
        # [paper] table 10
        stages=tuple(replace(s, mixture=paper_mixture(s.name)) for s in (shallow, *stages[1:])),
        data=DataConfig(
            phantom_images_per_modality=0,
            phantom_size=336,
            chinese_fraction=0.3,
            validation_fraction=0.02,
            test_fraction=0.02,
        ),
        ranks=8,
    )


def single_gpu() -> Profile:
    """A base-size tower and a half-billion-parameter language model on one consumer GPU."""
    base = paper()
    changes = {"mixture": None, "missing_sources": "error", "augment": True}
    changes |= {"over_long": "drop", "gradient_checkpointing": False}
    return replace(
        base,
        name="single_gpu",
        vision=VisionConfig(
            pretrained="openai/clip-vit-base-patch16",
            image_size=224,
            patch_size=16,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
        ),
        text=TextConfig(
            pretrained="Qwen/Qwen2.5-0.5B-Instruct",
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=32768,
            rope_theta=1e6,
            tie_word_embeddings=True,
            model_type="qwen2",
        ),
        stages=tuple(
            replace(s, global_batch_size=64, micro_batch_size=4, **changes) for s in base.stages
        ),
        data=replace(base.data, phantom_images_per_modality=1000, phantom_size=224),
        ranks=1,
    )


def mini() -> Profile:
    """A few million parameters, from scratch, on two laptop cores: minutes. All [chosen]."""
    shallow, deep, instruct = _three_stages(
        max_steps=None,
        epochs=1.0,
        global_batch_size=8,
        micro_batch_size=4,
        max_length=384,
        warmup_ratio=0.05,
        weight_decay=0.01,
        precision="fastest",
        # With every token alike, captions outweigh short answers; stage III then loses findings.
        loss_weighting="square_root",
        zero_stage=2,
    )
    # From-scratch parts need far higher rates than the paper's pretrained ones.
    # The tower has the lowest: above it, a few hundred steps undo what contrast has taught it.
    shallow = replace(shallow, max_steps=60, learning_rates=dict.fromkeys(shallow.trainable, 3e-3))
    rates = {"vision_tower": 1e-4, "multi_modal_projector": 1e-3}
    deep = replace(deep, max_steps=90, learning_rates=rates)
    rates = {"vision_tower": 3e-4, "multi_modal_projector": 1e-3, "language_model": 1e-3}
    instruct = replace(instruct, max_steps=340, learning_rates=rates)
    return Profile(
        name="mini",
        vision=VisionConfig(
            pretrained="",
            image_size=64,
            patch_size=8,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            hidden_act="gelu",  # quick_gelu is four passes over memory on a CPU
        ),
        text=TextConfig(
            pretrained="",
            vocab_size=3000,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            rope_theta=1e4,
            tie_word_embeddings=True,
        ),
        stand_ins=StandInConfig(
            vision_steps=1000,
            vision_batch_size=32,
            vision_learning_rate=4e-3,
            language_steps=600,
            language_batch_tokens=5000,
            language_learning_rate=5e-3,
        ),
        stages=(shallow, deep, instruct),
        data=DataConfig(
            phantom_images_per_modality=1000,
            phantom_size=112,
            chinese_fraction=0.3,
            validation_fraction=0.05,
            test_fraction=0.1,
        ),
        ranks=2,
    )


_PROFILES = {"mini": mini, "single_gpu": single_gpu, "paper": paper}


def load(name: str) -> Profile:
    """Return the profile called `name`; ValueError lists the known ones."""
    if name not in _PROFILES:
        raise ValueError(f"unknown profile {name!r}; choose one of {sorted(_PROFILES)}")
    return _PROFILES[name]()
