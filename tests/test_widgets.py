"""widgets and lens: the same calls live and static, and maps that mean what they say."""

import numpy as np
import pytest
import tiny_model
import torch

from gmai_lib import lens, widgets
from gmai_lib.dataset.images import to_png
from gmai_lib.model import chat

IMAGE = to_png(tiny_model.picture(0))
SAMPLE = {
    "images": [{"bytes": IMAGE, "path": None}],
    "boxes": [{"label": "nodule", "x1": 0.1, "y1": 0.1, "x2": 0.5, "y2": 0.5}],
    "conversations": [
        {"role": "user", "content": "<image>\nWhere? <script>"},
        {"role": "assistant", "content": "<ref>nodule</ref>"},
    ],
    "subset": "percept",
    "language": "en",
    "license": "CC0-1.0",
}


@pytest.fixture(scope="module")
def parts():
    tokenizer = tiny_model.tiny_tokenizer()
    model = tiny_model.tiny_model(tokenizer)
    return model, chat.build_processor(tokenizer, model.config.vision_config)


@pytest.fixture
def static(monkeypatch):
    monkeypatch.setenv(widgets.STATIC, "1")


@pytest.fixture
def live(monkeypatch):
    monkeypatch.delenv(widgets.STATIC, raising=False)


def test_card_shows_picture_turns_and_origin_and_escapes_text():
    page = widgets.card(SAMPLE)
    assert page.count("<img") == 1 and "data:image/png;base64," in page
    assert "&lt;ref&gt;nodule&lt;/ref&gt;" in page and "CC0-1.0" in page
    assert "<script>" not in page and "&lt;image&gt;" not in page


def test_card_draws_the_boxes():
    assert widgets.card(SAMPLE) != widgets.card(SAMPLE | {"boxes": []})


def test_boxes_of_an_answer_are_drawn_and_malformed_ones_named():
    plain = SAMPLE | {"boxes": []}
    said = "<ref>nodule</ref><box>[[0.1, 0.1, 0.5, 0.5], [5, 1, 2, 3]]</box>"
    page = widgets.card(plain | widgets._grounded(said))
    alone = widgets.card(plain | widgets._grounded("<box>[[0.1, 0.1, 0.5, 0.5]]</box>"))
    assert alone == widgets.card(SAMPLE) != widgets.card(plain)
    assert "box [5, 1, 2, 3]: beyond 0..1" in page and "beyond" not in alone


def test_browse_is_a_page_when_static_and_a_slider_when_live(static, monkeypatch):
    assert widgets.browse([SAMPLE] * 6, first=2).data.count("<img") == 2
    monkeypatch.delenv(widgets.STATIC)
    slider, page = widgets.browse([SAMPLE, SAMPLE | {"subset": "caption"}]).children
    assert "percept" in page.value
    slider.value = 1
    assert "caption" in page.value


def test_browse_refuses_an_empty_list(static):
    with pytest.raises(ValueError, match="no samples"):
        widgets.browse([])


def rows(count):
    return [
        {"step": i + 1, "max_steps": count, "loss": 5.0 - i / count, "tokens_per_s": 1e4}
        for i in range(count)
    ]


def test_training_view_prints_a_line_per_tenth_when_static(static, capsys):
    view = widgets.TrainingView("stage")
    for row in rows(50):
        view(row)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "stage: step 50 of 50, loss 4.020, 10,000 tokens/s"


def test_training_view_takes_rows_without_total_or_speed(static, capsys):
    view = widgets.TrainingView("tower", max_steps=3)
    view({"step": 3, "loss": 1.0})
    assert capsys.readouterr().out == "tower: step 3 of 3, loss 1.000\n"


def test_training_view_draws_the_last_step_when_live(live, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda page, **_: shown.append(page))
    view = widgets.TrainingView("stage")
    for row in rows(1):
        view(row)
    assert "step 1 of 1" in shown[0].data and "<polyline" in shown[0].data


def test_chat_answers_the_questions_when_static_and_keeps_the_turns(static, parts):
    page = widgets.chat(*parts, IMAGE, ["Which organ is it?", "Where?"]).data
    assert "Which organ is it?" in page and "Where?" in page and page.count("<img") == 1


def test_chat_asks_on_click_when_live(live, parts):
    box = widgets.chat(*parts, IMAGE, ["Which organ is it?"])
    page, controls = box.children
    text, button = controls.children
    text.value = "What is shown?"
    button.click()
    assert "What is shown?" in page.value and text.value == ""


def test_reply_is_what_generate_gives_and_works_without_image(parts):
    model, processor = parts
    first = lens.reply(model, processor, [IMAGE], "What is shown?", 6)
    assert first == lens.reply(model, processor, [IMAGE], "What is shown?", 6)
    assert isinstance(lens.reply(model, processor, [], "What is shown?", 6), str)


def test_first_answers_are_replies_to_the_first_turn(parts):
    model, processor = parts
    wanted = lens.reply(model, processor, [IMAGE], SAMPLE["conversations"][:1], 5)
    assert lens.first_answers(model, processor, [SAMPLE, SAMPLE], 5) == [wanted, wanted]


def test_share_inside_counts_positive_weight_of_patches_whose_centre_is_covered():
    weights = np.array([[1.0, -5.0], [2.0, 1.0]])
    assert lens.share_inside(weights, [(0.0, 0.0, 0.5, 1.0)]) == (0.75, 0.5)
    assert lens.share_inside(weights, []) == (0.0, 0.0)
    assert lens.share_inside(np.zeros((2, 2)), [(0, 0, 1, 1)]) == (0.0, 1.0)
    # x is the column: a box on the right half covers the second column.
    assert lens.share_inside(weights, [(0.5, 0.0, 1.0, 1.0)])[0] == 0.25


def test_attention_is_a_distribution_over_patches_and_leaves_the_model_alone(parts):
    model, processor = parts
    own = model.language_model.config._attn_implementation
    weights = lens.answer_attention(model, processor, IMAGE, "What is shown?")
    assert weights.shape == (4, 4) and weights.min() >= 0
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert model.language_model.config._attn_implementation == own
    assert not model.language_model.model.layers[0].self_attn._forward_hooks


def test_occlusion_is_the_fall_of_log_probability_when_a_patch_is_covered(parts):
    """One cell, computed the slow way: cover the pixels of patch (1, 2) and run once."""
    model, processor = parts
    question, answer = "What is shown?", "nodule"
    effect = lens.occlusion(model, processor, IMAGE, question, answer)
    turns = tiny_model.talk(f"<image>\n{question}", answer)
    encoded = chat.encode(turns, processor.tokenizer, model.config.tokens_per_image)
    ids, labels = torch.tensor([encoded["input_ids"]]), torch.tensor([encoded["labels"]])
    pixels = chat.pixel_values([IMAGE], model.config.vision_config)
    covered = pixels.clone()
    covered[..., 4:8, 8:12] = 0
    with torch.inference_mode():
        losses = [
            model(input_ids=ids, pixel_values=p, labels=labels).loss.item()
            for p in (pixels, covered)
        ]
    tokens = int((labels != chat.IGNORE_INDEX).sum())
    assert effect.shape == (4, 4)
    assert effect[1, 2] == pytest.approx((losses[1] - losses[0]) * tokens, abs=1e-3)
    assert np.abs(effect).max() > 1e-3
