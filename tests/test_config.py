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
    ],
)
def test_impossible_stage_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(config.load("mini").stages[0], **changes)
