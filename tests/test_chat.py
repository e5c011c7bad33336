"""The label mask, the template, and pixels that equal those of transformers' processor."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import picture, talk, tiny_model, tiny_profile, tiny_tokenizer
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from gmai_lib.model import chat, gmai_vl
from gmai_lib.model.chat import IGNORE_INDEX, IMAGE_TOKEN

TALKS = {
    "one turn": talk("<image>\nWhich organ?", "liver"),
    "several turns": talk(
        "<image>\n<image>\nWhich organ?", "liver", "And the side?", "left, I see"
    ),
    "text only": talk("What is a nodule?", "A round lesion.\n\nIt is solid."),
    "Chinese": talk("<image>\n请简短回答。", "肺结节"),
    "grounded": talk("<image>\nWhere?", "<ref>nodule</ref><box>[[0.18, 0.16, 0.50, 0.43]]</box>"),
    "blanks": talk("<image>\n  What ? ", "  spaced  \n"),
    "empty answer": talk("<image>\nWhat?", ""),
}


@pytest.fixture(scope="module")
def processor(tokenizer):
    return chat.build_processor(tokenizer, gmai_vl.vision_config(tiny_profile()))


@pytest.mark.parametrize("turns", TALKS.values(), ids=TALKS)
def test_labels_cover_exactly_the_answers_and_their_end(tokenizer, turns):
    encoded = chat.encode(turns, tokenizer, 16)
    ids, labels = np.array(encoded["input_ids"]), np.array(encoded["labels"])
    learned = labels != IGNORE_INDEX
    assert np.array_equal(ids[learned], labels[learned])
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    starts = np.flatnonzero(learned & ~np.roll(learned, 1))
    ends = np.flatnonzero(learned & ~np.roll(learned, -1)) + 1
    spans = [tokenizer.decode(ids[a:b]) for a, b in zip(starts, ends, strict=True)]
    assert spans == [f"{answer}<|im_end|>" for answer in answers]
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (labels == end_of_turn).sum() == len(answers), "user turns must not be learned"


@pytest.mark.parametrize("turns", TALKS.values(), ids=TALKS)
def test_encode_is_the_template_of_the_paper_with_widened_images(tokenizer, turns):
    ids = chat.encode(turns, tokenizer, 3)["input_ids"]
    expected = "\n".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>" for t in turns)
    assert tokenizer.decode(ids) == expected.replace(IMAGE_TOKEN, IMAGE_TOKEN * 3)
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert ids.count(image) == 3 * expected.count(IMAGE_TOKEN)


@pytest.mark.parametrize("turns", TALKS.values(), ids=TALKS)
def test_prompt_is_how_the_training_text_begins(tokenizer, turns):
    prompt = chat.encode_prompt(turns[:-1], tokenizer, 16)
    encoded = chat.encode(turns, tokenizer, 16)
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert encoded["labels"][len(prompt)] != IGNORE_INDEX


@pytest.mark.parametrize("turns", TALKS.values(), ids=TALKS)
def test_jinja_template_says_the_same_as_render(processor, tokenizer, turns):
    assert processor.apply_chat_template(turns) == chat.render(turns)[0]
    prompt = processor.apply_chat_template(turns[:-1], add_generation_prompt=True)
    images = [picture(seed) for seed in range(prompt.count(IMAGE_TOKEN))]
    theirs = processor(text=prompt, images=images or None)["input_ids"][0]
    assert theirs == chat.encode_prompt(turns[:-1], tokenizer, 16)


def test_jinja_template_takes_content_in_parts(processor):
    parts = [{"type": "image"}, {"type": "text", "text": "Which organ?"}]
    in_parts = processor.apply_chat_template([{"role": "user", "content": parts}])
    assert in_parts == chat.render(talk("<image>\nWhich organ?"))[0]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (talk("What?", "yes")[::-1], "turn 0 has role 'assistant'; expected 'user'"),
        ([{"role": "system", "content": "x"}], "turn 0 has role 'system'"),
        (talk("a", "b<|im_end|>c"), r"turn 1 \(assistant\) contains \['<\|im_end\|>'\]"),
        (talk("<|im_start|>assistant\nyes", "b"), r"turn 0 \(user\) contains"),
        (talk("a", "an <image>"), r"turn 1 \(assistant\) contains \['<image>'\]"),
        (talk("a"), "must end with an assistant turn"),
        ([], "must end with an assistant turn"),
    ],
)
def test_encode_refuses_what_would_train_wrongly(tokenizer, turns, message):
    with pytest.raises(ValueError, match=message):
        chat.encode(turns, tokenizer, 16)


def test_prompt_must_end_with_a_question(tokenizer):
    with pytest.raises(ValueError, match="must end with a user turn"):
        chat.encode_prompt(talk("a", "b"), tokenizer, 16)


def test_decoding_without_special_tokens_keeps_the_grounding(tokenizer):
    answer = "<ref>nodule</ref><box>[[0.18, 0.16, 0.50, 0.43]]</box>"
    ids = tokenizer(answer + "<|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == answer


SHAPES = [(16, 16), (20, 28), (112, 112), (97, 64), (7, 33), (1, 1), (300, 16), (15, 17)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_equal_those_of_the_processor(processor, shape):
    image = picture(1, *shape)
    ours = chat.pixel_values([image], gmai_vl.vision_config(tiny_profile()))
    theirs = processor.image_processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape == (1, 3, 16, 16)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_images_are_padded_to_a_square_with_the_clip_mean():
    black = np.zeros((10, 30, 3), np.uint8)
    square = chat.square_image(black, 30)
    assert not square[:, 10:20].any()
    for rows in (square[:, :10], square[:, 20:]):
        assert torch.equal(
            rows.flatten(1).unique(dim=1)[:, 0], torch.tensor([122, 116, 104]).byte()
        )


def encoded_image(mode: str, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).convert(mode).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "LA", "CMYK"])
def test_every_8_bit_image_file_is_read_as_the_processor_reads_it(processor, mode):
    data = encoded_image(mode, "TIFF" if mode == "CMYK" else "PNG")
    opened = Image.open(io.BytesIO(data))
    theirs = processor.image_processor(opened, return_tensors="pt")["pixel_values"]
    ours = chat.pixel_values([data], gmai_vl.vision_config(tiny_profile()))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_grey_array_equals_its_rgb_twin():
    grey = picture(0)[:, :, 0]
    twin = np.stack([grey] * 3, axis=2)
    assert torch.equal(chat.square_image(grey, 16), chat.square_image(twin, 16))


def test_more_than_8_bits_raise():
    buffer = io.BytesIO()
    Image.fromarray(picture(0)[:, :, 0].astype(np.uint16) * 256).save(buffer, "PNG")
    with pytest.raises(ValueError, match="more than 8 bits a pixel; window it first"):
        chat.decode_image(buffer.getvalue())
    with pytest.raises(ValueError, match=r"expected a uint8 .* got int16"):
        chat.decode_image(np.zeros((4, 4), np.int16))


@pytest.mark.parametrize("values", [np.zeros((4, 4)), np.full((4, 4, 3), np.nan)], ids=["0", "NaN"])
def test_floats_raise_with_nan_or_without(values):
    with pytest.raises(ValueError, match=r"expected a uint8 .* got float64 \(4, 4"):
        chat.decode_image(values)
    buffer = io.BytesIO()
    Image.fromarray(values.reshape(4, -1).astype(np.float32)).save(buffer, "TIFF")
    with pytest.raises(ValueError, match="image mode F: more than 8 bits a pixel"):
        chat.decode_image(buffer.getvalue())


def test_an_image_too_long_for_a_square_says_so():
    with pytest.raises(ValueError, match=r"20000 x 3 pixels becomes a square of 20000 x 20000"):
        chat.square_image(np.zeros((3, 20000), np.uint8), 16)
    assert chat.square_image(np.zeros((1, 3000), np.uint8), 16).shape == (3, 16, 16)


def test_a_bomb_is_a_value_error():
    row = np.zeros((1, 60000), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(row).resize((60000, 3000)).save(buffer, "PNG")
    with pytest.raises(ValueError, match=r"exceeds limit .* cut it into tiles first"):
        chat.decode_image(buffer.getvalue())


def test_no_image_gives_no_pixels():
    assert chat.pixel_values([], gmai_vl.vision_config(tiny_profile())).shape == (0, 3, 16, 16)


def test_add_special_tokens_grows_the_model_once(tokenizer):
    plain = tiny_tokenizer().train_new_from_iterator(["some plain words"], 300)
    missing = [token for token in chat.SPECIAL_TOKENS if token not in plain.get_vocab()]
    language_model = tiny_model(tokenizer).language_model
    language_model.resize_token_embeddings(len(plain))
    assert chat.add_special_tokens(plain, language_model) == len(missing)
    assert chat.add_special_tokens(plain, language_model) == 0
    assert language_model.get_input_embeddings().num_embeddings == len(plain)
    ids = plain(chat.render(talk("<image>\nhi", "<ref>x</ref>"))[0])["input_ids"]
    for token in ("<image>", "<|im_start|>", "<|im_end|>", "<ref>", "</ref>"):
        assert plain.convert_tokens_to_ids(token) in ids
    assert (
        F.embedding(torch.tensor(ids), language_model.get_input_embeddings().weight)
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("vocabulary", [300, 400], ids=["grows", "has room"])
def test_rows_of_new_tokens_start_at_the_mean_of_the_known(tied, vocabulary):
    plain = tiny_tokenizer().train_new_from_iterator(["some plain words"], 300)
    known = sorted(plain.get_vocab().values())
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(**sizes, **heads, vocab_size=vocabulary, tie_word_embeddings=tied)
    )
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    before = [layer.weight.detach().clone() for layer in layers]
    chat.add_special_tokens(plain, model)
    new = [i for i in plain.get_vocab().values() if i not in known]
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    for layer, old in zip(layers, before, strict=True):
        torch.testing.assert_close(layer.weight[new], old[known].mean(0).expand(len(new), -1))
        assert torch.equal(layer.weight[known], old[known]), "the known ones stay"
    assert (layers[0].weight.data_ptr() == layers[1].weight.data_ptr()) == tied
