"""Profiles are consistent, reload to equal objects, and refuse impossible stages."""

from dataclasses import replace

import pytest

from gmai_lib import config

PROFILES = ("mini", "single_gpu", "paper")


@pytest.mark.parametrize("name", PROFILES)
def test_profile_reloads_equal(name, tmp_path):
    profile = config.load(name)
    assert config.Profile.from_json(profile.to_json(tmp_path / "profile.json")) == profile


@pytest.mark.parametrize("name", PROFILES)
def test_stages_train_what_the_paper_says(name):
    profile = config.load(name)
    assert tuple(s.name for s in profile.stages) == config.STAGES
    shallow, deep, instruct = profile.stages
    assert shallow.trainable == ("multi_modal_projector",)
    assert set(deep.trainable) == {"vision_tower", "multi_modal_projector"}
    assert set(instruct.trainable) == set(config.PARTS)
    assert not {"text_single", "text_multi"} & {*shallow.subsets, *deep.subsets}


def test_paper_profile_has_the_published_numbers():
    profile = config.load("paper")
    assert profile.vision.num_patches == 576
    rates = [max(stage.learning_rates.values()) for stage in profile.stages]
    assert rates == [1e-3, 1e-4, 1e-5]
    assert {stage.global_batch_size for stage in profile.stages} == {512}


def test_unknown_profile_lists_the_known():
    with pytest.raises(ValueError, match=r"'big'.*mini.*paper"):
        config.load("big")


def test_batch_that_does_not_divide_names_the_numbers():
    stage = replace(config.load("mini").stages[0], global_batch_size=30, micro_batch_size=8)
    with pytest.raises(ValueError, match="30 is not a multiple of micro batch 8 x world size 2"):
        stage.gradient_accumulation_steps(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": ("everything",)}, "everything"),
        ({"learning_rates": {}}, "learning rates for"),
        ({"precision": "fp8"}, "fp8"),
        ({"zero_stage": 4}, "zero_stage 4"),
        ({"mixture": {"SLAKE": 1.5, "PathVQA": 1.0}}, r"between 0 and 1, not {'SLAKE': 1.5}"),
        ({"mixture": {"SLAKE": -0.1}}, r"{'SLAKE': -0.1}"),
        ({"mixture": {"SLAKE": 0.0, "VQA-RAD": 0.0}}, r"every ratio .* is zero: {'SLAKE': 0.0, 'V"),
        ({"missing_sources": "ignore"}, "missing_sources 'ignore' not in"),
        ({"over_long": "truncate"}, "over_long 'truncate' not in"),
        ({"optimizer": "sgd"}, "optimizer 'sgd' not in"),
        ({"offload_optimizer": True, "zero_stage": 0}, "offload_optimizer needs zero_stage 1 to 3"),
        ({"offload_parameters": True}, "offload_parameters needs zero_stage 3, not 2"),
        ({"torch_compile": True, "zero_stage": 3}, "torch_compile needs weights that are whole"),
        ({"quantization": "int4"}, "quantization 'int4' not in"),
        ({"quantization": "nf4"}, r"needs adapters that learn \(lora_rank is 0\)"),
        ({"lora_rank": 8}, r"lora_rank 8 must be positive, and needs language_model among"),
    ],
)
def test_impossible_stage_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config.load("mini").stages[0], **changes)


def test_table_10_adds_up_to_what_the_paper_says():
    """11.7 M samples in stages I and II; 10.6 M by the ratios in stage III (10.0 M printed)."""
    totals = [sum(config.paper_samples(name).values()) / 1e6 for name in config.STAGES]
    assert totals == pytest.approx([11.683, 11.683, 10.626], abs=0.001)
    sets = [key for *_, rows in config.TABLE_10 for key in rows]
    assert len(sets) == len(set(sets)) == 47
    tuned = config.paper_mixture("instruction_tuning")
    assert tuned["ALLaVA"] == 0.5 and tuned["PMC-OA"] == 0.05 and tuned["MIMIC-CXR"] == 0.3
    assert tuned["GeoQA+"] == 0.75 and tuned["SLAKE"] == 0.1 and tuned["Alpaca"] == 1
    assert config.paper_mixture("deep_alignment")["Alpaca"] == 0
    for stage in config.load("paper").stages:
        assert stage.mixture == config.paper_mixture(stage.name)


def test_paper_batches_are_those_of_its_table():
    """GPUs x micro batch x accumulation: 32 x 8 x 2, then 32 x 4 x 4."""
    stages = config.load("paper").stages
    micro = [(s.micro_batch_size, s.gradient_accumulation_steps(32)) for s in stages]
    assert micro == [(8, 2), (4, 4), (4, 4)]


def test_ablations_are_those_of_table_7():
    numbers = {
        key: [config.STAGES.index(name) + 1 for name in config.ABLATIONS[key]]
        for key in config.ABLATIONS
    }
    assert numbers == {"1": [1], "1+2": [1, 2], "1+3": [1, 3], "1+2+3": [1, 2, 3]}
