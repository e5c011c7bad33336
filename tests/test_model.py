"""The model packs, freezes and fails as it says (test_parity: it equals transformers' LLaVA)."""

import pytest
import torch
from tiny_model import left_padded, picture, talk, tiny_model, tiny_profile, tiny_tokenizer

from gmai_lib import config
from gmai_lib.model import chat, gmai_vl, kernels
from gmai_lib.model.chat import IGNORE_INDEX
from gmai_lib.training.flops import parameter_counts
from gmai_lib.training.packing import block_mask

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def three_rows(tokenizer, model):
    """A left-padded batch: two images in one row, none in the next, one in the last."""
    talks = [
        talk("<image>\n<image>\nWhich organ?", "liver", "Is it left?", "no"),
        talk("What is shown?", "a nodule"),
        talk("<image>\nWhich side?", "left"),
    ]
    patches = model.config.tokens_per_image
    encoded = [chat.encode(turns, tokenizer, patches) for turns in talks]
    input_ids = left_padded([row["input_ids"] for row in encoded], tokenizer.pad_token_id)
    lengths = [[1] * len(row["input_ids"]) for row in encoded]
    return {
        "input_ids": input_ids,
        "labels": left_padded([row["labels"] for row in encoded], IGNORE_INDEX),
        "attention_mask": left_padded(lengths, 0),
        "pixel_values": chat.pixel_values(
            [picture(seed) for seed in range(3)], model.config.vision_config
        ),
    }


def without_labels(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


def test_loss_with_labels_is_the_shifted_mean_of_the_logits(model, tokenizer):
    batch = three_rows(tokenizer, model)
    with torch.no_grad():
        logits = model(**without_labels(batch)).logits
        output = model(**batch)
        halved = model(**batch, num_items_in_batch=2).loss
    targets = batch["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1][targets != -100], targets[targets != -100]
    )
    torch.testing.assert_close(output.loss, expected, **TOLERANCE)
    count = (targets != IGNORE_INDEX).sum()
    torch.testing.assert_close(halved, expected * count / 2, atol=1e-3, rtol=1e-5)
    assert output.logits is None


def test_label_weights_weigh_the_mean_and_the_sum(model, tokenizer):
    batch = three_rows(tokenizer, model)
    weights = torch.rand(batch["labels"].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(**without_labels(batch)).logits
        mean = model(**batch, label_weights=weights).loss
        total = model(**batch, label_weights=weights, num_items_in_batch=1).loss
    learned = batch["labels"][:, 1:] != IGNORE_INDEX
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1][learned], batch["labels"][:, 1:][learned], reduction="none"
    )
    given = weights[:, 1:][learned]
    torch.testing.assert_close(mean, (losses * given).sum() / given.sum(), **TOLERANCE)
    torch.testing.assert_close(total, (losses * given).sum(), atol=1e-3, rtol=1e-5)


def test_logits_to_keep_computes_the_last_positions_only(model, tokenizer):
    batch = without_labels(three_rows(tokenizer, model))
    with torch.no_grad():
        full, last = model(**batch).logits, model(**batch, logits_to_keep=2).logits
    torch.testing.assert_close(last, full[:, -2:], **TOLERANCE)


def test_a_batch_without_answers_has_loss_zero_and_gradients(model, tokenizer):
    batch = three_rows(tokenizer, model)
    batch["labels"].fill_(IGNORE_INDEX)
    loss = model(**batch).loss
    loss.backward()
    assert loss.item() == 0
    assert not model.multi_modal_projector.linear_1.weight.grad.any()


def test_generation_of_a_padded_row_equals_the_row_alone(model, tokenizer):
    batch = without_labels(three_rows(tokenizer, model))
    settings = {"max_new_tokens": 8, "do_sample": False}
    together = model.generate(**batch, **settings)[2]
    real = batch["attention_mask"][2].bool()
    alone = model.generate(
        input_ids=batch["input_ids"][2:, real],
        attention_mask=batch["attention_mask"][2:, real],
        pixel_values=batch["pixel_values"][2:],
        **settings,
    )[0]
    length = min(len(alone) - int(real.sum()), 8)
    assert together[len(real) :][:length].tolist() == alone[int(real.sum()) :][:length].tolist()


def test_a_second_image_may_follow_on_the_cache(model, tokenizer):
    patches, vision = model.config.tokens_per_image, model.config.vision_config
    images = chat.pixel_values([picture(0), picture(1)], vision)
    turns = talk("<image>\nWhich organ?", "liver", "<image>\nAnd this?")
    ids = torch.tensor([chat.encode_prompt(turns, tokenizer, patches)])
    cut = len(chat.encode(turns[:2], tokenizer, patches)["input_ids"])
    with torch.no_grad():
        whole = model(input_ids=ids, pixel_values=images).logits
        first = model(input_ids=ids[:, :cut], pixel_values=images[:1], use_cache=True)
        cache = {"past_key_values": first.past_key_values, "use_cache": True}
        second = model(input_ids=ids[:, cut:], pixel_values=images[1:], **cache).logits
    torch.testing.assert_close(second, whole[:, cut:], **TOLERANCE)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager", kernels.MATMUL])
def test_packed_rows_equal_unpacked_rows(model, tokenizer, implementation, kind):
    model.set_attn_implementation(implementation)
    patches = model.config.tokens_per_image
    talks = [
        talk("<image>\nWhich organ?", "liver"),
        talk("What is shown?", "a nodule"),
        talk("<image>\nWhich side?", "left"),
    ]
    rows = [chat.encode(turns, tokenizer, patches) for turns in talks]
    images = chat.pixel_values([picture(0), picture(1)], model.config.vision_config)
    with torch.no_grad():
        alone = [
            model(input_ids=torch.tensor([row["input_ids"]]), pixel_values=pixels).logits[0]
            for row, pixels in zip(rows, (images[:1], None, images[1:]), strict=True)
        ]
        lengths = [len(row["input_ids"]) for row in rows]
        ids = torch.tensor([[token for row in rows for token in row["input_ids"]] + [0] * 5])
        sequence_ids = torch.repeat_interleave(
            torch.tensor([1, 2, 3, 0]), torch.tensor([*lengths, 5])
        )
        mask = block_mask(sequence_ids[None])
        if kind == "float":
            mask = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
        packed = model(
            input_ids=ids,
            pixel_values=images,
            attention_mask=mask,
            position_ids=torch.cat([torch.arange(n) for n in [*lengths, 5]])[None],
        ).logits[0]
    for part, expected in zip(packed.split([*lengths, 5]), alone, strict=False):
        torch.testing.assert_close(part, expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (2, "48 image placeholders in input_ids but 32"),
        (4, "48 image placeholders .* but 64"),
        (0, "48 image placeholders in input_ids but 0 image features"),
    ],
)
def test_a_wrong_number_of_images_raises_with_both_numbers(model, tokenizer, images, message):
    batch = three_rows(tokenizer, model)
    batch["pixel_values"] = torch.zeros((images, 3, 16, 16))
    with pytest.raises(ValueError, match=message):
        model(**batch)
    if not images:
        with pytest.raises(ValueError, match=message):
            model(**batch | {"pixel_values": None})


def test_splice_writes_in_order_and_reaches_both_inputs():
    input_ids = torch.tensor([[7, 1, 1, 7], [1, 1, 7, 7]])
    embeds = torch.zeros((2, 4, 3), requires_grad=True)
    features = torch.arange(1.0, 13.0).view(2, 2, 3).requires_grad_()
    spliced = gmai_vl.splice_image_features(embeds, features, input_ids, 1)
    assert torch.equal(spliced[0, 1:3], features[0]) and torch.equal(spliced[1, :2], features[1])
    assert not spliced[0, 0].any() and not spliced[1, 2:].any()
    spliced.sum().backward()
    assert features.grad.eq(1).all()
    assert torch.equal(embeds.grad[..., 0], (input_ids != 1).float())


@pytest.mark.parametrize("stage", config.load("mini").stages, ids=lambda stage: stage.name)
def test_only_the_parts_of_the_stage_receive_gradients(model, tokenizer, stage):
    model.set_trainable(stage.trainable)
    model(**three_rows(tokenizer, model)).loss.backward()
    with_gradient = {
        gmai_vl.part_of(name) for name, p in model.named_parameters() if p.grad is not None
    }
    assert with_gradient == set(stage.trainable)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert trainable and not without
    assert not any(name.startswith("vision_tower.encoder.layers.2.") for name in trainable)


def test_set_trainable_refuses_an_unknown_part(model):
    with pytest.raises(ValueError, match=r"unknown parts \['mlp1'\]"):
        model.set_trainable(("mlp1",))
    with pytest.raises(ValueError, match=r"lm_head\.weight belongs to none"):
        gmai_vl.part_of("lm_head.weight")


def test_dummy_image_joins_the_tower_to_the_graph_and_changes_nothing(model, tokenizer):
    row = chat.encode(talk("What is shown?", "a nodule"), tokenizer, 16)
    batch = {name: torch.tensor([values]) for name, values in row.items()}
    plain = model(**batch).loss
    loss = model(**batch, dummy_image=True).loss
    torch.testing.assert_close(loss, plain)
    loss.backward()
    gradient = model.vision_tower.embeddings.patch_embedding.weight.grad
    assert gradient is not None and not gradient.any()


@pytest.mark.parametrize(("layer", "used"), [(-1, 3), (-2, 2), (-4, 0), (1, 1)])
def test_vision_feature_layer_runs_no_later_layer(tokenizer, layer, used):
    torch.manual_seed(0)
    model = gmai_vl.from_profile(tiny_profile(), tokenizer).eval()
    model.config.vision_feature_layer = layer
    ran = []
    for number, block in enumerate(model.vision_tower.encoder.layers):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    pixels = torch.randn((1, 3, 16, 16))
    features = model.image_features(pixels)
    assert ran == list(range(used))
    states = model.vision_tower(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(features, model.multi_modal_projector(states[layer][:, 1:]))


def test_vision_feature_layer_outside_the_tower_raises(model):
    model.config.vision_feature_layer = -5
    with pytest.raises(ValueError, match="vision_feature_layer -5 in a vision tower of 3 layers"):
        model.image_features(torch.zeros((1, 3, 16, 16)))


def test_parameter_table_counts_every_parameter_once(model):
    model.set_trainable(("multi_modal_projector",))
    table = {row["part"]: row for row in model.parameter_table()}
    assert sum(row["parameters"] for row in table.values()) == model.num_parameters()
    projector = 32 * 48 + 48 + 48 * 48 + 48
    assert table["multi_modal_projector"] == {
        "part": "multi_modal_projector",
        "parameters": projector,
        "trainable": projector,
    }
    assert table["language_model"]["trainable"] == table["vision_tower"]["trainable"] == 0


def test_the_paper_profile_has_the_papers_shape(tokenizer):
    profile = config.load("paper")
    joined = gmai_vl.GMAIVLConfig(
        vision_config=gmai_vl.vision_config(profile),
        text_config=gmai_vl.text_config(profile, tokenizer),
    )
    assert (joined.tokens_per_image, joined.num_used_layers) == (576, 23)
    with torch.device("meta"):
        rows = gmai_vl.GMAIVLForConditionalGeneration(joined).parameter_table()
    counts = {row["part"]: row["parameters"] for row in rows}
    # CLIP ViT-L/14-336: patches, class token and positions, 24 blocks, two norms around them.
    block = 4 * (1024 * 1024 + 1024) + (1024 * 4096 + 4096) + (4096 * 1024 + 1024) + 2 * 2 * 1024
    tower = 3 * 14 * 14 * 1024 + 1024 + (576 + 1) * 1024 + 24 * block + 2 * 2 * 1024
    projector = (1024 * 4096 + 4096) + (4096 * 4096 + 4096)
    # InternLM2.5-7B: 32 query and 8 key-value heads of 128, three MLP matrices, two norms.
    attention = 2 * 4096 * 32 * 128 + 2 * 4096 * 8 * 128
    layer = attention + 3 * 4096 * 14336 + 2 * 4096
    language_model = 2 * 92544 * 4096 + 32 * layer + 4096  # embedding and head are not tied
    assert counts == {
        "vision_tower": tower,
        "multi_modal_projector": projector,
        "language_model": language_model,
    }
    assert (tower, projector, language_model) == (303_507_456, 20_979_712, 7_737_708_544)
    assert counts == parameter_counts(profile), "the planner's formula says the same"


def test_config_survives_json(model, tmp_path):
    model.config.save_pretrained(tmp_path)
    assert gmai_vl.GMAIVLConfig.from_pretrained(tmp_path).to_dict() == model.config.to_dict() | {
        "architectures": model.config.architectures
    }


def test_from_parts_refuses_a_tokenizer_larger_than_the_embedding(model, tokenizer):
    larger = tiny_tokenizer()
    larger.add_tokens([f"<extra{number}>" for number in range(400)])
    with pytest.raises(ValueError, match=f"has {len(larger)} tokens .* embeds 600"):
        gmai_vl.from_parts(model.vision_tower, model.language_model, larger)


def test_bf16_agrees_loosely_with_float32(model, tokenizer):
    batch = without_labels(three_rows(tokenizer, model))
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        wide = model(**batch).logits[real]
        narrow = model.bfloat16()(**batch).logits[real].float()
    assert (wide - narrow).abs().mean() < 0.05 * wide.abs().mean()


def test_positions_keep_their_precision_in_bf16(tokenizer):
    model = tiny_model(tokenizer)
    exact = model.language_model.model.rotary_emb.inv_freq.clone()
    for converted in (model.bfloat16(), model.to(torch.float16), model.double()):
        rotary = converted.language_model.model.rotary_emb
        assert rotary.inv_freq.dtype == rotary.original_inv_freq.dtype == torch.float32
        assert torch.equal(rotary.inv_freq, exact)
    assert model.dtype == torch.float64


def test_a_prompt_longer_than_the_context_says_by_how_many_tokens(model, tokenizer):
    patches = model.config.tokens_per_image
    turns = talk("<image>\nWhich organ?" + " liver" * 2000)
    ids = torch.tensor([chat.encode_prompt(turns, tokenizer, patches)])
    pixels = chat.pixel_values([picture(0)], model.config.vision_config)
    context = model.config.text_config.max_position_embeddings
    over = ids.shape[1] - context
    assert over > 0
    message = f"has {ids.shape[1]} tokens, {over} more than the context of {context}"
    with pytest.raises(ValueError, match=message):
        model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=2)
    fits = ids[:, :context]
    assert model.generate(input_ids=fits, pixel_values=pixels, max_new_tokens=2).shape[1] > context


def test_the_paper_profile_stretches_its_positions(tokenizer):
    text = gmai_vl.text_config(config.load("paper"), tokenizer)
    assert text.rope_parameters == {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}
    assert text.max_position_embeddings == 32768
    assert gmai_vl.GMAIVLConfig(text_config=text).context == 2 * 32768
