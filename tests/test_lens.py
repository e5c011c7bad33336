"""lens: how sure a model is of an answer, and which training image its tower finds nearest."""

from dataclasses import replace

import numpy as np
import pytest
import synthetic_records
import tiny_model
import torch

from gmai_lib import lens
from gmai_lib.dataset.images import to_png
from gmai_lib.evaluation import items, run
from gmai_lib.evaluation.items import Draft, Item, Vocabulary, drafts_of
from gmai_lib.model import chat
from gmai_lib.schema import Box, Fact, QuestionAnswer

PICTURES = [to_png(tiny_model.picture(n, 20 + n, 28 - 3 * n)) for n in range(6)]


@pytest.fixture
def processor(tokenizer, model):
    return chat.build_processor(tokenizer, model.config.vision_config)


def asked_items(number: int = 6) -> list[Item]:
    return [
        Item(
            id=f"demo#en#finding##{n}",
            benchmark="demo",
            images=(PICTURES[n],),
            question="What is shown?" + " Look closely." * (n % 3),
            answer="nodule",
            kind="finding",
            language="en",
            options=("nodule", "cyst"),
            group=str(n),
            modality="CT",
            source="demo",
        )
        for n in range(number)
    ]


ANSWERS = ["nodule", "no", "upper left of the lung", "", "nodule", "肺", "cyst"]


def by_hand(model, processor, item, answer) -> float:
    """The loss of the model over the answer and the end of its turn, alone and unpadded."""
    talk = tiny_model.talk(f"<image>\n{item.question}", answer)
    encoded = chat.encode(talk, processor.tokenizer, model.config.tokens_per_image)
    ids, labels = (torch.tensor([encoded[name]]) for name in ("input_ids", "labels"))
    pixels = chat.pixel_values(item.images, model.config.vision_config)
    with torch.no_grad():
        loss = model(input_ids=ids, pixel_values=pixels, labels=labels).loss
    return -loss.item() * int((labels != chat.IGNORE_INDEX).sum())


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_log_probability_of_an_answer_is_that_of_its_tokens_and_the_end(
    model, processor, batch_size
):
    """Whatever is asked beside it, the same question too, and in the order of the items."""
    asked = asked_items()
    asked.append(replace(asked[0], id="demo#en#finding##again"))
    found = run.answer_log_probabilities(model, processor, asked, ANSWERS, batch_size=batch_size)
    expected = [by_hand(model, processor, *pair) for pair in zip(asked, ANSWERS, strict=True)]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert len(set(found.round(3))) == len(found) and (found < 0).all()


def test_log_probabilities_of_no_answers_are_none_and_the_mode_is_kept(model, processor):
    model.train()
    found = run.answer_log_probabilities(model, processor, [], [])
    assert found.shape == (0,) and found.dtype == np.float64 and model.training
    with pytest.raises(ValueError, match="argument 2"):  # an answer is missing
        run.answer_log_probabilities(model, processor, asked_items(2), ["no"])


def test_image_features_are_the_mean_over_the_patches_that_the_projector_reads(model):
    found = lens.image_features(model, PICTURES, batch_size=4)
    assert found.shape == (6, 32) and found.dtype == np.float32
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(6), abs=1e-5)
    for image, row in zip(PICTURES, found, strict=True):  # transformers' own hidden states
        pixels = chat.pixel_values([image], model.config.vision_config)
        with torch.no_grad():
            hidden = model.vision_tower(pixels, output_hidden_states=True).hidden_states
        expected = hidden[model.config.vision_feature_layer][0, 1:].mean(0)
        assert row == pytest.approx((expected / expected.norm()).numpy(), abs=1e-4)
    pictures = [tiny_model.picture(n, 20 + n, 28 - 3 * n) for n in range(6)]
    assert lens.image_features(model, pictures) == pytest.approx(found, abs=1e-5)


def test_image_features_of_joined_patches_are_as_wide_and_of_no_images_none(tokenizer):
    tiny = tiny_model.tiny_profile()
    shuffling = replace(tiny, vision=replace(tiny.vision, pixel_shuffle=2))
    model = tiny_model.tiny_model(tokenizer, profile=shuffling)
    assert lens.image_features(model, PICTURES[:2]).shape == (2, 4 * 32)
    assert lens.image_features(model, []).shape == (0, 4 * 32)


def test_nearest_to_a_training_image_is_itself(model):
    training = lens.image_features(model, PICTURES, batch_size=4)
    order = [4, 0, 5, 1]
    asked = lens.image_features(model, [PICTURES[n] for n in order])
    places, similarity = lens.nearest(asked, training)
    assert places.tolist() == order and similarity == pytest.approx(np.ones(4), abs=1e-5)
    assert np.sort(training @ training.T, axis=1)[:, -2].max() < 1 - 1e-4  # the others are not


def test_nearest_takes_the_first_of_equals_and_refuses_nothing_to_compare_with():
    training = np.array([[0, 1], [1, 0], [1, 0], [-1, 0]], np.float32)
    asked = np.array([[0.8, 0.6], [-0.8, -0.6], [0, 1]], np.float32)
    places, similarity = lens.nearest(asked, training)
    assert places.tolist() == [1, 3, 0] and similarity == pytest.approx([0.8, 0.8, 1])
    places, similarity = lens.nearest(asked[:0], training)
    assert len(places) == len(similarity) == 0
    with pytest.raises(ValueError, match="no training images to compare 3 images with"):
        lens.nearest(asked, training[:0])


CT = {"modality": "CT", "organ": "lung"}
LEFT, RIGHT = (
    {"y1": 0.1, "y2": 0.2, "x1": x, "x2": x + 0.1} for x in (0.1, 0.8)
)  # upper left, upper right
NODULE = synthetic_records.record(
    "nodule",
    **CT,
    labels=("nodule",),
    absent=("cyst",),
    boxes=(Box(label="nodule", **LEFT),),
    boxes_are_complete=True,
)
BOTH = synthetic_records.record(
    "both",
    **CT,
    labels=("nodule", "cyst"),
    boxes=(Box(label="nodule", **LEFT), Box(label="cyst", **RIGHT)),
    boxes_are_complete=True,
)
HEALTHY = synthetic_records.record("healthy", **CT, labels=("no finding",))
ANSWERED = synthetic_records.record(
    "answered", **CT, qa=(QuestionAnswer(question="Fracture?", answer="no"),)
)
SILENT = synthetic_records.record("silent", **CT)


def question(kind: str, about: str = "", choices=()) -> Item:
    """A question of the benchmark about NODULE, as `Draft.item` makes it."""
    drafts = drafts_of(NODULE, name_labels=bool(about))
    draft = next((d for d in drafts if (d.kind, d.about) == (kind, about)), None)
    draft = draft or Draft(NODULE, kind, Fact(id="f", kind="absent", value=about), about)
    if choices:
        draft = replace(draft, kind="multiple choice", choices=(kind, choices))
    return draft.item("demo", "en", Vocabulary([NODULE, BOTH]), 0)


@pytest.mark.parametrize(
    ("record", "kind", "about", "said"),
    [
        (NODULE, "finding", "", "nodule"),
        (HEALTHY, "finding", "", "no finding"),
        (BOTH, "finding", "", "labelled nodule, cyst"),  # asked about one, it has no answer
        (NODULE, "modality", "", "CT"),
        (ANSWERED, "organ", "", "lung"),
        (NODULE, "yes/no", "nodule", "yes"),
        (NODULE, "yes/no", "cyst", "no"),
        (HEALTHY, "yes/no", "cyst", "labelled no finding"),  # its annotation names no cyst
        (NODULE, "location", "", "upper left"),
        (BOTH, "location", "", "upper left, upper right"),
        (BOTH, "side", "nodule", "left"),
        (NODULE, "side", "nodule", "left"),
        (NODULE, "count", "", "1"),
        (BOTH, "count", "", "1"),  # of either
        (HEALTHY, "side", "", "labelled no finding"),
        (ANSWERED, "side", "", "no"),
        (SILENT, "side", "", "nothing"),
    ],
)
def test_told_is_what_the_training_record_answers_to_the_same_kind(record, kind, about, said):
    item = question(kind, about)
    assert lens.asked(item) == (kind, about)
    assert lens.told(record, item) == said


@pytest.mark.parametrize(
    ("kind", "choices", "said"),
    [
        ("finding", ("cyst", "nodule", "no finding", "mass"), "nodule"),
        ("organ", ("lung", "brain", "skin", "blood"), "lung"),
        ("location", ("upper left", "center", "lower left", "lower right"), "upper left"),
        ("modality", ("CT", "MR", "PET", "OCT"), "CT"),
    ],
)
def test_told_of_a_choice_answers_what_it_lets_choose_among(kind, choices, said):
    item = question(kind, choices=choices)
    assert item.kind == "multiple choice" and lens.told(NODULE, item) == said
    assert lens.spelled(item, item.answer) == said
    assert lens.spelled(item, "D") == choices[3]


def test_every_choice_of_the_phantoms_is_told_apart():
    for names, kind in ((synthetic_records.FINDINGS, "finding"), (items.PLACES, "location")):
        assert {lens._kind_of(names[n : n + 4]) for n in range(len(names) - 3)} == {kind}
    organs = synthetic_records.ORGANS
    assert {lens._kind_of(organs[n : n + 4]) for n in range(len(organs) - 3)} == {"organ"}


def test_spelled_says_when_nothing_could_be_read():
    item = question("finding")
    assert lens.spelled(item, "cyst") == "cyst"
    assert lens.spelled(item, None) == lens.spelled(item, "") == "nothing readable"
