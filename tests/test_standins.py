"""The stand-ins: a tokenizer that reads boxes, a tower and a language model that learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import TEXTS, talk, tiny_profile

from gmai_lib.model import chat, kernels, standins
from gmai_lib.schema import PLACES as PLACE_NAMES
from gmai_lib.schema import Box


def test_the_same_texts_give_the_same_tokenizer(tokenizer):
    again = standins.train_tokenizer(iter(TEXTS), 600)  # an iterator will do
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("vocab_size", [400, 600, 3000])
def test_tokenizer_stays_within_its_size_and_knows_the_chat(vocab_size):
    tokenizer = standins.train_tokenizer(TEXTS, vocab_size)
    assert len(tokenizer) <= vocab_size
    assert max(tokenizer.get_vocab().values()) < vocab_size
    for token in (*chat.SPECIAL_TOKENS, standins.PAD_TOKEN):
        assert tokenizer.tokenize(token) == [token]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.eos_token == chat.TURN_END


def test_every_coordinate_is_one_token(tokenizer):
    for value in range(101):
        assert len(tokenizer.tokenize(f"{value / 100:.2f}")) == 1
    box = "<box>[[0.18, 0.16, 0.50, 0.43]]</box>"
    pieces = [tokenizer.decode(i) for i in tokenizer(box)["input_ids"]]
    assert pieces[:2] == ["<box>", "[["]
    assert pieces[2:9] == ["0.18", ", ", "0.16", ", ", "0.50", ", ", "0.43"]
    assert len(pieces) == 11
    assert tokenizer.tokenize("2.18") == ["2", ".", "1", "8"], "no coordinate: single digits"
    assert "0.18" not in tokenizer.tokenize("10.18") + tokenizer.tokenize("0.185")


@pytest.mark.parametrize("text", [*TEXTS, "a  b\n\tc\r\n", "未见异常。🫁", "naive Ünïcode", ""])
def test_decoding_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_term_is_one_token_wherever_it_stands():
    terms = ["upper left", "nodule", "no", "foreign body", "左上部", "结节"]
    tokenizer = standins.train_tokenizer([*TEXTS, "no nodule in the upper left 结节"], 600, terms)
    assert max(tokenizer.get_vocab().values()) < 600

    def pieces(text):
        return [tokenizer.decode(token) for token in tokenizer(text)["input_ids"]]

    assert pieces("upper left") == ["upper left"] and pieces("nodule") == ["nodule"]
    assert pieces("no nodule")[0] == "no" and pieces("no nodule")[-1] == "nodule"
    assert pieces("<ref>foreign body</ref>") == ["<ref>", "foreign body", "</ref>"]
    assert {"左上部", "结节"} <= set(pieces("图像左上部有一个结节。"))
    for text in ("nodules", "note", "the upper lefty"):
        assert not set(terms) & set(pieces(text)), "a term is no part of a longer word"
    for text in ("A nodule, upper left.", "没有结节", "foreign body 1"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_terms_must_leave_room_for_bytes_and_coordinates():
    with pytest.raises(ValueError, match=r"500 terms .* 700"):
        standins.train_tokenizer(TEXTS, 700, [f"term {number}" for number in range(500)])


COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}
PLACES = {"upper left": (0, 0), "upper right": (0, 8), "lower left": (8, 0), "lower right": (8, 8)}


def blocks(count: int, seed: int = 0):
    """Noise with a coloured block in one quarter: images, captions, groups and regions."""
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 120, (count, 3, 16, 16), dtype=np.uint8)
    captions, groups, regions = [], [], []
    for image in images:
        colour, place = rng.choice(list(COLOURS)), rng.choice(list(PLACES))
        top, left = PLACES[place]
        image[:, top : top + 8, left : left + 8] = np.array(COLOURS[colour])[:, None, None]
        captions.append(f"a {colour} block in the {place}")
        groups.append(str(colour))
        edges = {"x1": left / 16, "y1": top / 16, "x2": left / 16 + 0.5, "y2": top / 16 + 0.5}
        box = Box(label=str(colour), **edges)
        regions.append((["noise"], [(box, [str(colour), str(place)])]))
    return torch.from_numpy(images), captions, groups, regions


def quick_profile(**changes):
    profile = tiny_profile()
    settings = {"vision_steps": 140, "vision_batch_size": 32, "vision_learning_rate": 3e-3}
    settings |= {
        "language_steps": 150,
        "language_batch_tokens": 200,
        "language_learning_rate": 3e-3,
    }
    return replace(profile, stand_ins=replace(profile.stand_ins, **settings | changes))


def mean_loss(rows, name="loss"):
    return sum(row[name] for row in rows) / len(rows)


@pytest.mark.parametrize("boxed", [True, False], ids=["boxes", "captions only"])
def test_vision_tower_learns_to_match_images_with_captions(boxed):
    images, captions, groups, regions = blocks(400)
    tokenizer = standins.train_tokenizer(captions, 400)
    seen = []
    tower, rows = standins.pretrain_vision_tower(
        quick_profile(),
        images,
        captions,
        tokenizer,
        groups=groups,
        regions=regions if boxed else None,
        on_step=seen.append,
    )
    assert seen == rows and [row["step"] for row in rows] == list(range(1, 141))
    # 8 different captions in a batch of 32: guessing costs log 32, knowing costs log 4 (log 8
    # for a batch of one colour).
    assert mean_loss(rows[:3]) > 3.0
    assert mean_loss(rows[-10:]) < 2.2
    if boxed:
        assert mean_loss(rows[-10:], "region_loss") < 0.3 * rows[0]["region_loss"]
    assert tower.dtype == torch.float32 and not tower.training
    assert tower.config._attn_implementation == "sdpa"


def test_pretraining_repeats_with_the_seed():
    images, captions, groups, regions = blocks(60)
    tokenizer = standins.train_tokenizer(captions, 400)

    def first_weights(seed):
        profile = replace(quick_profile(vision_steps=3), seed=seed)
        tower, _ = standins.pretrain_vision_tower(
            profile, images, captions, tokenizer, groups=groups, regions=regions
        )
        return tower.encoder.layers[0].mlp.fc1.weight

    assert torch.equal(first_weights(0), first_weights(0))
    assert not torch.equal(first_weights(0), first_weights(1))


def test_half_of_the_batches_hold_one_group():
    groups = ["CT", "MR", "CT", "OCT"] * 25
    batches = standins._batches(groups, 100, 20, torch.Generator().manual_seed(0))
    members = [{groups[i] for i in next(batches)} for _ in range(600)]
    alone = [name for names in members if len(names) == 1 for name in names]
    assert 0.4 < len(alone) / 600 < 0.6
    # CT is twice as large as MR or OCT, so it comes about 1.4 times as often.
    assert 0.33 < alone.count("CT") / len(alone) < 0.5


def test_every_patch_shows_the_terms_of_its_box_or_of_the_background():
    def box(*edges):
        return Box(label="any", **dict(zip(("x1", "y1", "x2", "y2"), edges, strict=True)))

    corner = (box(0.99, 0.99, 1, 1), ["a", "1"])
    regions = [(["CT"], [(box(0, 0, 0.5, 0.25), ["b"]), corner]), (["b"], []), (["CT"], [corner])]
    generator = torch.Generator().manual_seed(0)
    patches, boxed, codes = standins._patch_terms(regions, tiny_profile().vision, generator)
    ct, b, a, everywhere_b = range(4)  # a box that shows "b" is not a background that does
    assert patches[0].view(4, 4).tolist() == [[b, b, ct, ct], [ct] * 4, [ct] * 4, [ct, ct, ct, a]]
    assert patches[1].eq(everywhere_b).all() and patches[2].tolist() == [ct] * 15 + [a]
    assert boxed.tolist() == [False, True, True, False]
    assert torch.equal(codes[b], codes[everywhere_b]), "the same words, the same code"
    assert codes.shape == (4, tiny_profile().vision.hidden_size)
    again = standins._patch_terms(regions, tiny_profile().vision, generator)[2]
    assert not torch.equal(again, codes), "codes are drawn"
    assert codes.std() == pytest.approx(standins.CODE_STD, rel=0.5)


def test_codes_of_terms_are_at_right_angles_as_far_as_there_is_room():
    vision = tiny_profile().vision
    regions = [([f"term {n}"], []) for n in range(vision.hidden_size + 3)]
    _, _, codes = standins._patch_terms(regions, vision, torch.Generator().manual_seed(0))
    products = codes @ codes.T
    length = standins.CODE_STD**2 * vision.hidden_size
    width = vision.hidden_size
    torch.testing.assert_close(products[:width, :width], length * torch.eye(width))
    torch.testing.assert_close(products.diagonal(), torch.full((width + 3,), length))


def test_region_loss_is_the_share_of_the_code_that_is_missed():
    codes, boxed = torch.ones(1, 2, 4), torch.tensor([[True, False]])
    assert standins._region_loss(codes, codes, boxed) == 0
    assert standins._region_loss(torch.zeros(1, 2, 4), codes, boxed) == 1
    outside_wrong = codes * torch.tensor([1.0, 0.0])[None, :, None]
    inside_wrong = codes * torch.tensor([0.0, 1.0])[None, :, None]
    share = standins.BACKGROUND_WEIGHT / (1 + standins.BACKGROUND_WEIGHT)
    assert standins._region_loss(outside_wrong, codes, boxed) == pytest.approx(share)
    assert standins._region_loss(inside_wrong, codes, boxed) == pytest.approx(1 - share)


def test_unequal_inputs_raise_with_the_numbers(tokenizer):
    images, captions, groups, _ = blocks(4)
    with pytest.raises(ValueError, match="4 images, 3 captions, 4 groups"):
        standins.pretrain_vision_tower(
            quick_profile(), images, captions[:3], tokenizer, groups=groups
        )


def test_language_model_learns_the_next_token(tokenizer):
    lists = [tokenizer(text)["input_ids"] for text in TEXTS] * 20
    documents = [{"input_ids": ids, "labels": ids, "slots": []} for ids in lists]
    model, rows = standins.pretrain_language_model(quick_profile(), documents, tokenizer)
    assert rows[0]["loss"] == pytest.approx(np.log(600), abs=0.5)
    assert mean_loss(rows[-5:]) < 1.0
    assert model.config.vocab_size == 600 and not model.training
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_language_model_looks_up_what_only_the_slots_say(tokenizer):
    """The answer is in one of the slots only: of its two tokens, guessing costs log 4."""
    words = ["0.10", "0.20", "0.30", "0.40"]
    documents = [
        {"conversations": talk("<image>\n?", word), "slots": [["0.90"]] * 3 + [[word, "0.50"]]}
        for word in words * 40
    ]
    documents = standins.encode_documents(documents, tokenizer)
    profile = quick_profile(language_learning_rate=1e-2, language_batch_tokens=300)
    _, rows = standins.pretrain_language_model(profile, documents, tokenizer)
    assert mean_loss(rows[-5:]) < 0.25


def test_the_first_attention_looks_for_equal_tokens_from_the_start(tokenizer):
    ids = tokenizer(TEXTS[0])["input_ids"]
    documents = [{"input_ids": ids, "labels": ids, "slots": []}]
    profile = quick_profile(language_steps=1, language_learning_rate=1e-9)
    model, _ = standins.pretrain_language_model(profile, documents, tokenizer)
    attention = model.model.layers[0].self_attn
    hidden = model.model.layers[0].input_layernorm(model.get_input_embeddings().weight[:200])
    width = attention.head_dim
    query = attention.q_proj(hidden).unflatten(-1, (-1, width))  # (tokens, heads, width)
    key = attention.k_proj(hidden).unflatten(-1, (-1, width))
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, key) / width**0.5
    share = (scores.argmax(-1) == torch.arange(200)).float().mean()
    assert share > 0.7  # heads of 8 numbers confuse a few of 200; by chance it is 0.005


def test_documents_stay_whole_and_come_with_their_like():
    documents = [{"input_ids": [0] * (1 + n % 7), "number": n} for n in range(60)]
    batches = standins._document_batches(documents, 30, 6, torch.Generator().manual_seed(0))
    seen, passes = [], []
    for _ in range(2):
        while len(seen) < 60:
            batch = next(batches)
            lengths = [min(len(document["input_ids"]), 6) for document in batch]
            assert max(lengths) - min(lengths) <= 2 and len(batch) * max(lengths) <= 30
            seen += [document["number"] for document in batch]
        assert sorted(seen) == list(range(60)), "each comes once in a pass"
        passes.append(seen)
        seen = []
    assert passes[0] != passes[1]


def test_a_document_longer_than_a_batch_comes_alone_and_none_is_an_error(tokenizer):
    documents = [{"input_ids": [0] * 50}, {"input_ids": [0] * 3}]
    batches = standins._document_batches(documents, 10, 320, torch.Generator().manual_seed(0))
    assert sorted(len(next(batches)) for _ in range(2)) == [1, 1]
    with pytest.raises(ValueError, match="no documents"):
        standins.pretrain_language_model(quick_profile(), [], tokenizer)


def test_lessons_come_first_and_the_last_one_comes_again():
    first, last = ([{"input_ids": [n] * 3}] for n in (1, 2))
    settings = quick_profile(language_steps=100).stand_ins
    generator = torch.Generator().manual_seed(0)
    lessons = [(0.1, first), (0.2, last)]
    course = standins._course(lessons, [{"input_ids": [3] * 3}], settings, 320, generator)
    drawn = [
        (batch[0]["input_ids"][0], lesson) for batch, lesson in (next(course) for _ in range(100))
    ]
    assert [number for number, _ in drawn[:30]] == [1] * 10 + [2] * 20
    after = [number for number, _ in drawn[30:]]
    assert set(after) == {2, 3} and 10 < after.count(2) < 40
    assert all(lesson == (number < 3) for number, lesson in drawn)


def test_in_doubt_a_slot_says_some_of_another_and_the_background_stays():
    features = torch.eye(40)
    mixed = standins._in_doubt(features, [3, 2] * 20, torch.Generator().manual_seed(0))
    assert torch.equal(mixed[1::2], features[1::2]) and torch.allclose(mixed.sum(1), torch.ones(40))
    own = mixed.diagonal()[::2]
    assert own.min() >= 1 - standins.MOST_DOUBT and own.max() <= 1 and own.std() > 0.05
    assert (mixed[::2, 1::2] == 0).all(), "only slots of three terms are mixed with each other"


def test_of_notes_only_what_is_said_is_learned(tokenizer):
    notes = [(("cyst where:",), "left"), (("nodule is there:",), "no")]
    pair = {"slots": [], "notes": [(("cyst", "nodule"), "no")]}
    document = {"slots": [["cyst", "left"], ["CT"]], "notes": notes}
    image, same = standins.encode_documents([document, pair], tokenizer)
    kept = [i for i in image["labels"] if i != chat.IGNORE_INDEX]
    assert tokenizer.decode(kept) == "leftno"
    image_id = tokenizer.convert_tokens_to_ids(chat.IMAGE_TOKEN)
    assert image["input_ids"][:2] == [image_id] * 2 and image_id not in image["input_ids"][2:]
    assert tokenizer.decode(image["input_ids"][2:]) == "cyst where:left\nnodule is there:no\n"
    assert tokenizer.decode(same["input_ids"]) == "cystnoduleno" and same["slots"] == []
    assert len(image["labels"]) == len(image["input_ids"])


def test_lessons_teach_to_compare(tokenizer):
    """Two words, the same or not: after a lesson of pairs, new pairs of them are told apart."""
    words = ["0.10", "0.20", "0.30", "0.40", "0.50", "0.60"]
    pairs = [(a, b) for a in words for b in words for _ in range(5 if a == b else 1)]
    notes = [
        {"slots": [], "notes": [(pair, "yes" if len({*pair}) == 1 else "no")]} for pair in pairs
    ]
    lesson = standins.encode_documents(notes * 3, tokenizer)
    talks = [{"conversations": talk("Hi", "Hello"), "slots": []}] * 8
    profile = quick_profile(language_steps=120, language_learning_rate=5e-3)
    _, rows = standins.pretrain_language_model(
        profile, standins.encode_documents(talks, tokenizer), tokenizer, lessons=[(0.9, lesson)]
    )
    assert rows[2]["loss"] > 0.5 and mean_loss(rows[98:106]) < 0.1


@pytest.mark.slow
def test_patch_tokens_of_the_layer_llava_reads_see_phantom_lesions():
    """After 150 short steps, a linear probe of layer -2 finds the lesion's ninth of the image."""
    from gmai_lib.dataset import phantoms

    rng, modalities = np.random.default_rng(0), list(phantoms.FINDINGS)
    drawn = [phantoms.draw(modalities[i % len(modalities)], rng) for i in range(1500)]
    images = torch.stack([chat.square_image(phantom.image, 64) for phantom in drawn])
    captions = [f"{p.modality} {p.organ} {p.finding} {len(p.boxes)}" for p in drawn]
    size = drawn[0].image.shape[0]
    corners = ("x1", "y1", "x2", "y2")
    boxes = [
        [
            Box(label=p.finding, **{c: v / size for c, v in zip(corners, edges, strict=True)})
            for edges in p.boxes
        ]
        for p in drawn
    ]
    regions = [
        ([p.modality, p.organ], [(box, [p.finding, PLACE_NAMES[box.place]]) for box in own])
        for p, own in zip(drawn, boxes, strict=True)
    ]
    profile = quick_profile(vision_steps=150)
    vision = {"image_size": 64, "patch_size": 8, "hidden_size": 128, "intermediate_size": 512}
    profile = replace(profile, vision=replace(profile.vision, **vision, num_hidden_layers=4))
    tower, _ = standins.pretrain_vision_tower(
        profile,
        images[:1200],
        captions[:1200],
        standins.train_tokenizer(captions, 600),
        groups=[p.modality for p in drawn[:1200]],
        regions=regions[:1200],
    )
    with torch.no_grad():
        hidden = tower(chat.normalize_pixels(images), output_hidden_states=True).hidden_states[-2]
    patches, boxed, _ = standins._patch_terms(regions, profile.vision, torch.Generator())
    lesion = boxed[patches].float()
    probe = torch.nn.Linear(128, 1)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2)
    for _ in range(200):
        logits = probe(hidden[:1200, 1:]).squeeze(-1)
        torch.nn.functional.binary_cross_entropy_with_logits(logits, lesion[:1200]).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = total = 0
    for index in range(1200, 1500):
        if len(drawn[index].boxes) == 1:
            row, column = divmod(int(probe(hidden[index, 1:]).argmax()), 8)
            box = boxes[index][0]
            truth = int((box.y1 + box.y2) / 2 * 3) * 3 + int((box.x1 + box.x2) / 2 * 3)
            guess = (2 * row + 1) * 3 // 16 * 3 + (2 * column + 1) * 3 // 16
            found, total = found + (guess == truth), total + 1
    assert found / total > 0.4, f"{found} of {total}; guessing gives 0.11"


def test_a_slot_is_one_token_of_a_document(tokenizer):
    document = {
        "conversations": talk("<image>\nWhat is it?", "cyst"),
        "slots": [["nodule", "0.18"], ["0.16"]],
    }
    talks = {"conversations": talk("Hi", "Hello"), "slots": []}
    encoded, text = standins.encode_documents([document, talks], tokenizer)
    image = tokenizer.convert_tokens_to_ids(chat.IMAGE_TOKEN)
    assert encoded["input_ids"].count(image) == len(encoded["slots"]) == len(document["slots"])
    assert tokenizer.decode(encoded["slots"][0]) == "nodule0.18"
    assert encoded["slots"][1] == tokenizer("0.16")["input_ids"]
    assert text["slots"] == [] and image not in text["input_ids"]


def test_a_tower_trained_in_a_process_of_its_own_is_the_same(tmp_path):
    images, captions, groups, regions = blocks(60)
    tokenizer = standins.train_tokenizer(captions, 400)
    arguments = (quick_profile(vision_steps=3), images, captions, tokenizer)
    options = {"groups": groups, "regions": regions}
    finish = standins.start_vision_tower(tmp_path / "tower", *arguments, threads=1, **options)
    with kernels.threads_of(1):
        here, rows = standins.pretrain_vision_tower(*arguments, **options)
    there, told = finish()
    for name, weight in here.state_dict().items():
        assert torch.equal(weight, there.state_dict()[name]), name
    assert [row["loss"] for row in told] == [row["loss"] for row in rows]
    assert not there.training and there.dtype == torch.float32


def test_what_goes_wrong_in_that_process_is_raised_here(tmp_path):
    images, captions, *_ = blocks(6)
    tokenizer = standins.train_tokenizer(captions, 400)
    arguments = (quick_profile(vision_steps=3), images, captions[:5], tokenizer)
    finish = standins.start_vision_tower(tmp_path / "tower", *arguments, threads=1)
    with pytest.raises(ValueError, match="6 images, 5 captions"):
        finish()
    assert not (tmp_path / "tower").exists()
