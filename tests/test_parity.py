"""transformers' LLaVA with the same weights gives the same numbers, whatever the two backbones.

CLIP or SigLIP tower, Llama or Qwen2 language model: logits, loss, every gradient, every token.
"""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_model import left_padded, picture, talk, tiny_model, tiny_profile
from torch.nn import functional as F
from transformers import (
    AutoProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    pipeline,
)

from gmai_lib import lens
from gmai_lib.model import chat, gmai_vl, weights
from gmai_lib.model.chat import IGNORE_INDEX

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
BACKBONES = [("clip", "llama"), ("siglip", "qwen2")]
TALKS = {  # every `<image>` is a picture of its own
    "one image": [talk("<image>\nWhich organ is it?", "liver")],
    "several images in one turn": [talk("<image>\n<image>\n<image>\nWhich is left?", "the second")],
    "several turns": [talk("<image>\nWhich?", "liver", "And <image>\nthis?", "lung", "Why?", "no")],
    "text only": [talk("What is a nodule?", "a lesion", "Where?", "in the lung")],
    "Chinese": [talk("<image>\n这是哪个器官？", "肺，左上。"), talk("请简短回答。", "无结节")],
}
TALKS["mixed batch"] = [turns for talks in TALKS.values() for turns in talks]


def profile_of(tower: str, language_model: str):
    tiny = tiny_profile()
    return replace(
        tiny,
        vision=replace(tiny.vision, model_type=tower),
        text=replace(tiny.text, model_type=language_model, tie_word_embeddings=False),
    )


@pytest.fixture(scope="module", params=BACKBONES, ids="-".join)
def pair(request, tokenizer):
    """(our model, LLaVA with the same weights)."""
    model = tiny_model(tokenizer, profile=profile_of(*request.param))
    names = (type(model.vision_tower).__name__, type(model.language_model).__name__)
    assert [name.lower()[:4] for name in names] == [kind[:4] for kind in request.param]
    has_class_token = request.param[0] == "clip"
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=model.config.vision_config,
            text_config=model.config.text_config,
            image_token_index=model.config.image_token_id,
            vision_feature_layer=model.config.vision_feature_layer,
            vision_feature_select_strategy="default" if has_class_token else "full",
        )
    )
    state = {weights.llava_name(name): tensor for name, tensor in model.state_dict().items()}
    llava.load_state_dict(state, strict=True)
    llava.generation_config = model.generation_config
    return model, llava.eval()


def batch_of(talks, tokenizer, model, side="left"):
    """A padded batch with labels; the pictures are numbered in the order of their `<image>`."""
    encoded = [chat.encode(turns, tokenizer, model.config.tokens_per_image) for turns in talks]

    def padded(rows, fill):
        if side == "left":
            return left_padded(rows, fill)
        return left_padded([row[::-1] for row in rows], fill).flip(1)

    text = "".join(turn["content"] for turns in talks for turn in turns)
    pictures = [picture(number) for number in range(text.count("<image>"))]
    batch = {
        "input_ids": padded([row["input_ids"] for row in encoded], tokenizer.pad_token_id),
        "labels": padded([row["labels"] for row in encoded], IGNORE_INDEX),
        "attention_mask": padded([[1] * len(row["labels"]) for row in encoded], 0),
    }
    if pictures:
        batch["pixel_values"] = chat.pixel_values(pictures, model.config.vision_config)
    return batch


def prompts_of(talks, tokenizer, model):
    """A left-padded batch of the same conversations up to their last answer."""
    ids = [
        chat.encode_prompt(turns[:-1], tokenizer, model.config.tokens_per_image) for turns in talks
    ]
    batch = batch_of(talks, tokenizer, model)
    batch["input_ids"] = left_padded(ids, tokenizer.pad_token_id)
    batch["attention_mask"] = left_padded([[1] * len(row) for row in ids], 0)
    del batch["labels"]
    return batch


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("talks", TALKS.values(), ids=TALKS)
def test_logits_loss_and_every_gradient(pair, tokenizer, talks, side):
    model, llava = pair
    batch = batch_of(talks, tokenizer, model, side)
    real = batch["attention_mask"].bool()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        ours, theirs = (m(**inputs).logits[real] for m in (model, llava))
    assert theirs.std() > 0.5, "flat logits would agree with anything"
    torch.testing.assert_close(ours, theirs, **TOLERANCE)

    for m in (model, llava):
        m.zero_grad()
    losses = [m(**batch).loss for m in (model, llava)]
    torch.testing.assert_close(*losses, **TOLERANCE)
    for loss in losses:
        loss.backward()
    expected, compared = dict(llava.named_parameters()), set()
    for name, parameter in model.named_parameters():
        gradient = expected[weights.llava_name(name)].grad
        assert (parameter.grad is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, **TOLERANCE, msg=name)
            compared.add(gmai_vl.part_of(name))
    assert compared == {"language_model"} if "pixel_values" not in batch else len(compared) == 3


@pytest.mark.parametrize("talks", TALKS.values(), ids=TALKS)
def test_greedy_generation_token_for_token_with_and_without_the_cache(pair, tokenizer, talks):
    model, llava = pair
    batch = prompts_of(talks, tokenizer, model)
    settings = {"max_new_tokens": 10, "do_sample": False}
    ours = model.generate(**batch, **settings)
    assert torch.equal(ours, llava.generate(**batch, **settings))
    assert torch.equal(ours, model.generate(**batch, **settings, use_cache=False))


def spliced(model, batch):
    """The same prompt as embeddings: LLaVA's beams then cannot mix up the images of a row."""
    with torch.no_grad():
        embeds = model.get_input_embeddings()(batch["input_ids"])
        if "pixel_values" in batch:
            features = model.image_features(batch["pixel_values"])
            embeds = gmai_vl.splice_image_features(
                embeds, features, batch["input_ids"], model.config.image_token_id
            )
    return {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}


SEARCHES = {
    "beams": {"num_beams": 3, "do_sample": False},
    "beams, several returned": {"num_beams": 4, "num_return_sequences": 2, "do_sample": False},
    "samples": {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "num_return_sequences": 3},
}


@pytest.mark.parametrize("settings", SEARCHES.values(), ids=SEARCHES)
def test_beams_and_samples_of_a_mixed_batch(pair, tokenizer, settings):
    model, llava = pair
    batch = prompts_of(TALKS["mixed batch"], tokenizer, model)
    length = batch["input_ids"].shape[1]
    torch.manual_seed(0)
    ours = model.generate(**batch, **settings, max_new_tokens=6)[:, length:]
    torch.manual_seed(0)
    theirs = llava.generate(**spliced(model, batch), **settings, max_new_tokens=6)
    assert len(ours.unique()) > 5, "the test model repeats itself; the comparison says little"
    assert torch.equal(ours, theirs)


def test_beams_with_a_wrong_number_of_images_raise_with_both_numbers(pair, tokenizer):
    model, _ = pair
    batch = prompts_of(TALKS["several images in one turn"], tokenizer, model)
    batch["pixel_values"] = batch["pixel_values"][:2]
    with pytest.raises(ValueError, match="48 image placeholders in input_ids but 32 image"):
        model.generate(**batch, num_beams=2, max_new_tokens=2)


@pytest.fixture
def checkpoint(pair, tokenizer, tmp_path):
    model = pair[0]
    processor = chat.build_processor(tokenizer, model.config.vision_config)
    return weights.save_checkpoint(model, processor, tmp_path / "checkpoint")


def test_pipeline_auto_processor_and_chat_template_answer_alike(pair, checkpoint, tmp_path):
    model = pair[0]
    Image.fromarray(picture(0)).save(tmp_path / "picture.png")
    processor = AutoProcessor.from_pretrained(checkpoint)
    content = [{"type": "image", "url": str(tmp_path / "picture.png")}]
    content += [{"type": "text", "text": "Which organ is it?"}]
    messages = [{"role": "user", "content": content}]
    expected = lens.reply(model, processor, [picture(0)], "Which organ is it?", 8)

    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = processor.batch_decode(
        ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert answer[0].strip() == expected

    answerer = pipeline("image-text-to-text", model=str(checkpoint), dtype=torch.float32)
    assert type(answerer.model) is gmai_vl.GMAIVLForConditionalGeneration
    settings = {"max_new_tokens": 8, "do_sample": False}
    said = answerer(text=messages, generate_kwargs=settings, return_full_text=False)
    assert said[0]["generated_text"].strip() == expected


def test_export_of_every_pair_gives_the_same_logits_and_pixels(pair, tokenizer, tmp_path):
    model = pair[0]
    processor = chat.build_processor(tokenizer, model.config.vision_config)
    weights.export_llava(model, processor, tmp_path / "llava")
    llava, report = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "llava", output_loading_info=True
    )
    assert not any(report.values()), report
    plain = AutoProcessor.from_pretrained(tmp_path / "llava")
    prompt = chat.render(talk("<image>\nWhich organ is it?"))[0]
    inputs = plain(text=prompt, images=[picture(0)], return_tensors="pt")
    pixels = chat.pixel_values([picture(0)], model.config.vision_config)
    torch.testing.assert_close(inputs["pixel_values"], pixels, atol=1e-5, rtol=0)
    with torch.no_grad():
        theirs = llava.eval()(**inputs).logits
        ours = model(input_ids=inputs["input_ids"], pixel_values=pixels).logits
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@torch.no_grad()
def test_any_causal_language_model_can_be_joined(pair, tokenizer):
    """GPT-2 names its parts otherwise and has learned positions."""
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=600, initializer_range=0.3)
    )
    model = gmai_vl.from_parts(pair[0].vision_tower, gpt2.eval(), tokenizer)
    batch = batch_of(TALKS["mixed batch"], tokenizer, model)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    expected = gpt2(**spliced(model, batch)).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**inputs).logits[real], expected[real], **TOLERANCE)
    learned = batch["labels"][:, 1:]
    loss = F.cross_entropy(expected[:, :-1].flatten(0, 1), learned.flatten())
    torch.testing.assert_close(model(**batch).loss, loss, **TOLERANCE)
    prompts = prompts_of(TALKS["mixed batch"], tokenizer, model)
    said = model.generate(**prompts, max_new_tokens=6, do_sample=False)
    settings = {"suppress_tokens": [model.config.image_token_id], "do_sample": False}
    settings |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    theirs = gpt2.generate(**spliced(model, prompts), **settings, max_new_tokens=6)
    assert torch.equal(said[:, prompts["input_ids"].shape[1] :], theirs)
