"""Generation that resumes, and rows whose intervals and baselines are right."""

import copy
import io
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import processors
from transformers import AutoModelForImageTextToText, AutoProcessor

from gmai_lib import config
from gmai_lib.evaluation import askers, results, run
from gmai_lib.evaluation.items import Item
from gmai_lib.evaluation.results import (
    clustered_interval,
    paired_difference,
    summarise,
    unpaired_difference,
)
from gmai_lib.evaluation.run import (
    evaluate,
    option_likelihoods,
    read_responses,
    without_exchange,
)
from gmai_lib.evaluation.scoring import score
from gmai_lib.model import chat, gmai_vl, standins, weights


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [picture(seed) for seed in range(6)]
ASKED = {
    "yes/no": ("Is there a nodule? Answer briefly.", "yes", ()),
    "side": ("On which side is the nodule? Answer briefly.", "left", ("left", "right")),
    "box": ("Locate the nodule. Give the box.", "[[0.10, 0.20, 0.50, 0.60]]", ()),
    "open": ("What organ system is imaged?", "chest", ()),
}


def demo_items(images=PICTURES, kinds=tuple(ASKED), benchmark="demo", unequal=True) -> list[Item]:
    made = []
    for number, image in enumerate(images):
        for kind in kinds:
            question, answer, options = ASKED[kind]
            made.append(
                Item(
                    id=f"{benchmark}#{kind}#{number}",
                    benchmark=benchmark,
                    images=(image,),
                    question=question + " Look closely." * (unequal * number % 3),
                    answer=answer,
                    kind=kind,
                    language="zh" if number % 3 == 2 else "en",
                    options=options,
                    group=f"image {number}",
                    modality="CT" if number % 2 else "MR",
                    source="demo",
                    subsets=("answer_type=open",) if kind == "open" else (),
                )
            )
    return made


@pytest.fixture(scope="module")
def tiny():
    """An untrained model of 0.1 M parameters and its processor."""
    mini = config.load("mini")
    wide = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    profile = replace(
        mini,
        vision=replace(mini.vision, image_size=16, patch_size=8, num_hidden_layers=2, **wide),
        text=replace(mini.text, vocab_size=600, num_hidden_layers=2, num_key_value_heads=1, **wide),
    )
    tokenizer = standins.train_tokenizer([q for q, *_ in ASKED.values()], 600)
    torch.manual_seed(0)
    model = gmai_vl.from_profile(profile, tokenizer)
    with torch.no_grad():  # at its small initial weights it repeats the last prompt token
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model, chat.build_processor(tokenizer, model.config.vision_config)


def test_batched_answers_are_those_of_one_by_one(tiny, tmp_path):
    items = demo_items()
    batched = evaluate(*tiny, items, out_jsonl=tmp_path / "a.jsonl", batch_size=5)
    single = evaluate(*tiny, items, out_jsonl=tmp_path / "b.jsonl", batch_size=1)
    assert [row["id"] for row in batched] == [item.id for item in items]
    assert batched == single
    assert len({row["response"] for row in batched}) > 2, "the model must not say one thing only"


def test_jobs_side_by_side_answer_like_one_after_the_other(tiny, tmp_path):
    weights.save_checkpoint(*tiny, tmp_path / "checkpoint")
    items = demo_items()
    jobs = [
        run.Job(tmp_path / "checkpoint", items, tmp_path / f"{mode}.jsonl", mode)
        for mode in ("image", "none", "blank")
    ]
    found = list(run.evaluate_jobs(jobs, processes=2, batch_size=5))
    for job, rows in zip(jobs, found, strict=True):
        path = tmp_path / f"{job.image_mode}_here.jsonl"
        assert rows == evaluate(*tiny, items, out_jsonl=path, image_mode=job.image_mode)
        assert read_responses(job.out_jsonl)[0]["image_mode"] == job.image_mode
    assert found[0] != found[1]
    jobs[0] = replace(jobs[0], image_mode="nothing")
    with pytest.raises(ValueError, match="image_mode 'nothing' not in"):
        list(run.evaluate_jobs(jobs))


def test_two_ranks_together_answer_like_one(tiny, tmp_path):
    weights.save_checkpoint(*tiny, tmp_path / "checkpoint")
    items, whole = demo_items(), tmp_path / "whole.jsonl"
    alone = evaluate(*tiny, items, out_jsonl=whole, batch_size=5, image_mode="shuffled")
    job = run.Job(tmp_path / "checkpoint", items, tmp_path / "a.jsonl", "shuffled")
    parts = [replace(job, rank=rank, world_size=2) for rank in range(2)]
    first, second = run.evaluate_jobs(parts, batch_size=5)
    # Both may have to generate 432 tokens: 5 boxes have the limits of 13 bare answers.
    assert sorted([len(first), len(second)]) == [8, 16] and len(items) == 24
    merged = run.merge_parts(items, job.out_jsonl, 2)
    assert merged == alone
    assert read_responses(job.out_jsonl) == read_responses(whole)
    assert evaluate(*tiny, items, out_jsonl=job.out_jsonl, image_mode="shuffled") == alone
    with pytest.raises(ValueError, match="rank 2 is not one of world_size 2"):
        evaluate(*tiny, items, out_jsonl=job.out_jsonl, rank=2, world_size=2)


def test_parts_with_missing_or_repeated_items_are_not_merged(tiny, tmp_path):
    items, path = demo_items(kinds=("yes/no", "open")), tmp_path / "a.jsonl"
    files = [run.part_path(path, rank, 2) for rank in range(2)]
    assert files[0].name == "a.part-0-of-2.jsonl"
    evaluate(*tiny, items, out_jsonl=path, batch_size=2, rank=0, world_size=2)
    with pytest.raises(FileNotFoundError, match=r"part-1-of-2.jsonl is missing: run rank 1 of 2"):
        run.merge_parts(items, path, 2)
    evaluate(*tiny, items, out_jsonl=path, batch_size=2, rank=1, world_size=2)
    texts = [file.read_text("utf-8").splitlines(keepends=True) for file in files]
    files[1].write_text("".join(texts[1][:-1]), "utf-8")
    with pytest.raises(ValueError, match="of 12 items 1 have no response in the 2 parts"):
        run.merge_parts(items, path, 2)
    files[1].write_text("".join([*texts[1], texts[0][1]]), "utf-8")
    with pytest.raises(ValueError, match="answers 1 items of another rank"):
        run.merge_parts(items, path, 2)
    files[1].write_text("".join([*texts[1], texts[0][1].replace("demo#", "x#")]), "utf-8")
    with pytest.raises(ValueError, match=r"0 have no response .* and 1 responses are to other"):
        run.merge_parts(items, path, 2)
    files[1].write_text("".join([texts[1][0].replace('"image"', '"none"'), *texts[1][1:]]), "utf-8")
    with pytest.raises(ValueError, match="the ranks must ask the same model the same items"):
        run.merge_parts(items, path, 2)
    files[1].write_text("".join(texts[1]), "utf-8")
    with pytest.raises(ValueError, match="the ranks must ask the same model the same items"):
        run.merge_parts(items[1:], path, 2)
    assert not path.exists()
    assert [row["id"] for row in run.merge_parts(items, path, 2)] == [item.id for item in items]


def test_items_with_no_image_and_with_several_are_asked_in_one_batch(tiny, tmp_path):
    items = demo_items(kinds=("open",))
    shown = [(), items[0].images, (*items[1].images, *items[0].images)]
    mixed = [replace(i, images=images) for i, images in zip(items, shown * 2, strict=False)]
    batched = evaluate(*tiny, mixed, out_jsonl=tmp_path / "a.jsonl", batch_size=6)
    assert batched == evaluate(*tiny, mixed, out_jsonl=tmp_path / "b.jsonl", batch_size=1)


def test_questions_about_one_image_share_its_pass_and_answer_as_alone(tiny, tmp_path, monkeypatch):
    """Of different lengths, about one image, two images and another one first."""
    items, model = demo_items(kinds=("open",), unequal=False), tiny[0]
    shown = (items[0].images, items[1].images, items[0].images + items[1].images)
    items = [
        replace(
            items[0], id=f"{n}-{m}", images=images, question=f"What? {'Look. ' * m}Which organ?"
        )
        for n, images in enumerate(shown)
        for m in range(4)
    ]
    passes, features = [], model.image_features
    monkeypatch.setattr(
        model, "image_features", lambda pixels: passes.append(len(pixels)) or features(pixels)
    )
    for mode, *seen in (("image", 4, 4, 16), ("blank", 3, 4, 16), ("none", 0, 0, 0)):
        said = {}
        for size, number in zip((12, 4, 1), seen, strict=True):
            passes.clear()
            path = tmp_path / f"{mode}-{size}"
            said[size] = evaluate(*tiny, items, out_jsonl=path, batch_size=size, image_mode=mode)
            assert sum(passes) == number
        assert said[12] == said[4] == said[1]
        assert len({row["response"] for row in said[1]}) >= (8 if mode == "image" else 2)
    long = [replace(item, question="Look. " * 9999) for item in items[:2]]
    with pytest.raises(
        ValueError, match=r"2 of 2 prompts are longer than the context of 1024 tokens.*\(0-0\)"
    ):
        evaluate(*tiny, long, out_jsonl=tmp_path / "long")


def test_options_of_one_question_share_its_pass(tiny, monkeypatch):
    items, model = demo_items(kinds=("side", "yes/no")), tiny[0]
    lengths, embed = [], model.get_input_embeddings()
    hook = embed.register_forward_hook(lambda _, args, __: lengths.append(args[0].numel()))
    try:
        shared = option_likelihoods(*tiny, items, batch_size=16)
        together = sum(lengths)
        monkeypatch.setattr(askers.ModelAsker, "_can_share", lambda self, batch: False)
        lengths.clear()
        alone = option_likelihoods(*tiny, items, batch_size=16)
    finally:
        hook.remove()
    assert together < 0.6 * sum(lengths)
    for a, b in zip(shared, alone, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-5)


def test_the_image_matters_only_where_it_is_shown(tiny, tmp_path):
    items = demo_items(kinds=("open",), unequal=False)
    changed = demo_items(images=PICTURES[::-1], kinds=("open",), unequal=False)
    said = {}
    for mode in ("image", "none"):
        for name, asked in (("items", items), ("changed", changed)):
            path = tmp_path / f"{mode}_{name}.jsonl"
            rows = evaluate(*tiny, asked, out_jsonl=path, image_mode=mode)
            said[mode, name] = [row["response"] for row in rows]
    assert said["none", "items"] == said["none", "changed"]
    assert said["image", "items"] == said["image", "changed"][::-1]
    assert said["image", "items"] != said["none", "items"]


def test_blank_shows_every_item_the_same_image(tiny, tmp_path, monkeypatch):
    items = demo_items(kinds=("open",), unequal=False)
    own = evaluate(*tiny, items, out_jsonl=tmp_path / "own.jsonl")
    blank = evaluate(*tiny, items, out_jsonl=tmp_path / "blank.jsonl", image_mode="blank")
    assert len({row["response"] for row in own}) > 1
    assert len({row["response"] for row in blank}) == 1, "one question, one image"
    monkeypatch.setattr(askers, "MOST_PIXELS", 1)  # forgets every image but the last
    few = evaluate(*tiny, items, out_jsonl=tmp_path / "few.jsonl", batch_size=1)
    assert few == own


def test_shuffled_shows_every_item_an_image_of_another_group(tiny, tmp_path):
    items = demo_items(kinds=("open",), unequal=False)
    own = evaluate(*tiny, items, out_jsonl=tmp_path / "own.jsonl")
    other = evaluate(*tiny, items, out_jsonl=tmp_path / "other.jsonl", image_mode="shuffled")
    assert sorted(r["response"] for r in own) == sorted(r["response"] for r in other)
    assert all(a["response"] != b["response"] for a, b in zip(own, other, strict=True))
    with pytest.raises(ValueError, match="demo has 1 image group"):
        path = tmp_path / "one.jsonl"
        evaluate(*tiny, items[:1], out_jsonl=path, image_mode="shuffled")
    alone = demo_items(kinds=("open",), benchmark="alone")[:1]
    assert without_exchange(items) == [] and without_exchange(items + alone) == ["alone"]


def test_likelihoods_are_those_of_the_options_alone_whatever_the_batch(tiny, tmp_path):
    model, processor = tiny
    items = demo_items(kinds=("yes/no", "side"))
    rows = option_likelihoods(model, processor, items, batch_size=7)
    assert [row["id"] for row in rows] == [item.id for item in items]
    for item, row in zip(items, rows, strict=True):
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert row["confidence"] == max(row["probabilities"].values())
        assert row["prediction"] in (*item.options, "yes", "no")
        assert row["correct"] == score(item, row["prediction"])["correct"]
    one = option_likelihoods(model, processor, items, batch_size=1)
    for a, b in zip(rows, one, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-5)
    # By hand, with the loss of the model itself over the answer and the end of the turn.
    place = next(n for n, i in enumerate(items) if i.kind == "yes/no" and i.language == "zh")
    item, row = items[place], rows[place]
    turn = [{"role": "user", "content": f"{chat.IMAGE_TOKEN}\n{item.question}"}]
    tokens = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    ids = chat.encode_prompt(turn, processor.tokenizer, tokens)
    shown = chat.pixel_values([item.images[0]], model.config.vision_config)
    by_hand = []
    for option in ("是", "否"):
        answer = processor.tokenizer(option + chat.TURN_END, add_special_tokens=False)["input_ids"]
        whole = torch.tensor([ids + answer])
        with torch.no_grad():
            log_p = model(input_ids=whole, pixel_values=shown).logits[0].log_softmax(-1)
        by_hand.append(sum(log_p[len(ids) - 1 + n, token] for n, token in enumerate(answer)))
    expected = torch.stack(by_hand).softmax(0).tolist()
    assert list(row["probabilities"].values()) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="of kind 'open' has no options to compare"):
        option_likelihoods(model, processor, demo_items(kinds=("open",)))


@pytest.fixture(scope="module")
def hub(tiny, tmp_path_factory):
    """The same weights as transformers loads any model of the hub."""
    folder = weights.export_llava(*tiny, tmp_path_factory.mktemp("hub") / "llava")
    llava = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return llava, AutoProcessor.from_pretrained(folder)


# That of llava-hf/llava-1.5-7b-hf: no token begins it, a space stands before an answer.
LLAVA_1_5 = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for part in m['content'] %}{{ '<image>\n' if part['type'] == 'image' else '' }}{% endfor %}"
    "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def like_llava_1_5(general, *, template=LLAVA_1_5):
    """A copy of the processor with this template and a tokenizer that begins with a token."""
    general = copy.deepcopy(general)
    begin = processors.TemplateProcessing(
        single="<ref> $A", special_tokens=[("<ref>", general.tokenizer.vocab["<ref>"])]
    )
    general.tokenizer.backend_tokenizer.post_processor = begin
    general.tokenizer.bos_token, general.chat_template = "<ref>", template
    return general


def test_likelihoods_of_a_hub_model_are_ours_for_our_template(tiny, hub):
    items = demo_items(kinds=("yes/no", "side"))
    items += [replace(items[0], id="no image", images=())]
    for mode in ("image", "none"):
        ours = option_likelihoods(*tiny, items, batch_size=5, image_mode=mode)
        theirs = option_likelihoods(*hub, items, batch_size=5, image_mode=mode)
        for a, b in zip(ours, theirs, strict=True):
            assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-5)
            assert (a["id"], a["prediction"]) == (b["id"], b["prediction"])


def test_likelihoods_of_a_hub_model_follow_its_template_and_tokens(hub):
    """Beside each option alone, unpadded, from the logits of every position."""
    llava, general = hub[0], like_llava_1_5(hub[1])
    items = demo_items(kinds=("yes/no", "side"))
    side = items[1]
    items += [replace(side, id="long", options=("left", "left, and of the nodule briefly"))]
    rows = option_likelihoods(llava, general, items, batch_size=7)
    end = llava.generation_config.eos_token_id
    for item, row in zip(items, rows, strict=True):
        image = [Image.open(io.BytesIO(i)).convert("RGB") for i in item.images]
        text = f"USER: <image>\n{item.question} ASSISTANT:"
        start = general(images=image, text=text, return_tensors="pt")["input_ids"].shape[1]
        by_hand = []
        for option in row["probabilities"]:
            inputs = general(images=image, text=f"{text} {option}", return_tensors="pt")
            ids = [*inputs["input_ids"][0].tolist(), end]
            assert ids[0] == general.tokenizer.bos_token_id != ids[1]
            with torch.no_grad():
                log_p = llava(**inputs).logits[0].log_softmax(-1)
            by_hand.append(sum(log_p[n - 1, ids[n]] for n in range(start, len(ids))))
        expected = torch.stack(by_hand).softmax(0).tolist()
        assert list(row["probabilities"].values()) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_likelihoods_where_prompt_and_option_become_one_token_or_have_no_place(hub):
    llava, general = (
        hub[0],
        like_llava_1_5(hub[1], template=LLAVA_1_5.replace("'ASSISTANT:'", "'USER:'")),
    )
    with pytest.raises(
        ValueError, match=r"ends a prompt with .*USER:', but writes the answer 'yes'"
    ):
        option_likelihoods(llava, general, demo_items(kinds=("yes/no",)))
    general = like_llava_1_5(hub[1])
    ask = askers.HubModelAsker(llava, general, with_image=False)
    ask._ids = lambda text: {"yes": [1, 2, 7], "no": [1, 3, 4]}.get(text.split()[-1], [1, 2, 3])
    prompt = ask.prepare(demo_items()[0], {})
    assert [ids for _, ids in ask.answered(prompt, ("yes", "no"))] == [[2, 7], [3, 4]]


def test_any_model_of_the_hub_answers_as_its_processor_asks(tiny, hub, tmp_path, monkeypatch):
    """The exported checkpoint is a plain LLaVA: asked the general way it says the same."""
    (model, processor), (llava, general) = tiny, hub
    items = demo_items()
    asker = askers.asker(llava, general, with_image=True)
    assert asker.prepare(items[0], {})["limit"] == 256, "it may explain itself first"
    monkeypatch.setattr(askers, "OTHER_MODELS_MAX_NEW_TOKENS", 0)
    for mode in ("image", "none"):
        ours = run.evaluate(
            model, processor, items, out_jsonl=tmp_path / f"a-{mode}", image_mode=mode
        )
        theirs = run.evaluate(
            llava, general, items, out_jsonl=tmp_path / f"b-{mode}", image_mode=mode
        )
        assert ours == theirs and len({row["response"] for row in ours}) > 1


def test_a_killed_run_goes_on_and_gives_the_same(tiny, tmp_path, monkeypatch):
    items, path = demo_items(), tmp_path / "a.jsonl"
    whole = evaluate(*tiny, items, out_jsonl=tmp_path / "whole.jsonl", batch_size=4)
    evaluate(*tiny, items, out_jsonl=path, batch_size=4)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:8]) + lines[8][:20])  # header, 7 responses, a torn line
    asked = []
    generate = tiny[0].generate
    monkeypatch.setattr(
        tiny[0], "generate", lambda **kw: asked.append(len(kw["input_ids"])) or generate(**kw)
    )
    with pytest.warns(UserWarning, match="half-written last line 9 dropped"):
        resumed = evaluate(*tiny, items, out_jsonl=path, batch_size=4)
    assert resumed == whole
    assert sum(asked) < len(items), "finished batches must not be asked again"
    assert len(path.read_bytes().splitlines()) == len(items) + 1
    asked.clear()
    assert evaluate(*tiny, items, out_jsonl=path, batch_size=4) == whole
    assert not asked


def test_a_file_of_another_run_is_refused(tiny, tmp_path):
    items, path = demo_items(kinds=("yes/no",)), tmp_path / "a.jsonl"
    evaluate(*tiny, items, out_jsonl=path)
    with pytest.raises(ValueError, match=r"a\.jsonl holds responses of another run.*num_items 6"):
        evaluate(*tiny, items[:5], out_jsonl=path)
    with pytest.raises(ValueError, match="image_mode image in the file, none now"):
        evaluate(*tiny, items, out_jsonl=path, image_mode="none")
    model, processor = tiny
    weight = model.multi_modal_projector.linear_1.weight
    with torch.no_grad():
        weight += 1
    with pytest.raises(ValueError, match="weights_digest"):
        evaluate(model, processor, items, out_jsonl=path)
    with pytest.warns(UserWarning, match="begun anew"):
        evaluate(model, processor, items, out_jsonl=path, if_stale="restart")
    with torch.no_grad():
        weight -= 1


def test_broken_files_and_repeated_items_are_refused(tiny, tmp_path):
    items, path = demo_items(kinds=("yes/no",)), tmp_path / "a.jsonl"
    with pytest.raises(ValueError, match=r"ids that occur more than once: \['demo#yes/no#0'\]"):
        evaluate(*tiny, [*items, items[0]], out_jsonl=path)
    evaluate(*tiny, items, out_jsonl=path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]))
    with pytest.raises(ValueError, match="more than one response for"):
        read_responses(path)
    path.write_text("".join([lines[0], "{torn\n", *lines[2:]]))
    with pytest.raises(ValueError, match="line 2 is not valid JSON"):
        read_responses(path)
    with pytest.raises(ValueError, match="image_mode 'grey'"):
        evaluate(*tiny, items, out_jsonl=path, image_mode="grey")


# ---- rows ----------------------------------------------------------------------------------


def say(items, right=lambda item: True) -> list[dict]:
    wrong = {"yes/no": "no", "side": "right", "box": "[[0.7, 0.7, 0.9, 0.9]]", "open": "liver"}
    return [
        {"id": i.id, "response": i.answer if right(i) else wrong[i.kind], "finished": True}
        for i in items
    ]


def test_rows_hold_the_contract_and_are_json():
    items = demo_items() + demo_items(benchmark="second")
    rows = summarise(items, say(items), say(items, lambda i: False), checkpoint="09")
    wanted = {"benchmark", "checkpoint", "protocol", "metric", "num_items", "score", "ci_low"}
    wanted |= {"ci_high", "blind_score", "majority_score", "question_ids_sha256", "kind"}
    wanted |= {"language", "blind_ci_low", "blind_ci_high", "num_images"}
    assert all(wanted <= set(row) for row in rows)
    json.dumps(rows, allow_nan=False)
    for row in rows:
        assert row["score"] == 1 and row["blind_score"] == 0 and row["image_gain"] == 1
        assert row["ci_low"] <= row["score"] <= row["ci_high"]
        assert row["blind_ci_low"] <= row["blind_score"] <= row["blind_ci_high"]
    keys = [(r["benchmark"], r["kind"], r["language"], r["subset"], r["metric"]) for r in rows]
    assert len(set(keys)) == len(keys)
    assert {key[1:] for key in keys if key[0] == "demo"} >= {
        ("overall", "all", "all", "accuracy"),
        ("overall", "zh", "all", "accuracy"),
        ("overall", "all", "modality=CT", "accuracy"),
        ("overall", "all", "answer_type=open", "accuracy"),
        ("box", "all", "all", "iou"),
        ("box", "all", "all", "accuracy_at_0.5"),
        ("open", "all", "all", "token_recall"),
        ("side", "en", "all", "accuracy"),
    }


def test_overall_leaves_boxes_out_and_counts_its_items():
    items = demo_items()
    rows = summarise(items, say(items, lambda i: i.kind != "box"), None, checkpoint="09")
    overall = rows[0]
    assert (overall["kind"], overall["score"], overall["num_items"]) == ("overall", 1.0, 18)
    assert overall["num_images"] == overall["num_groups"] == 6
    assert overall["blind_score"] is None and overall["image_gain"] is None
    hashes = {row["kind"]: row["question_ids_sha256"] for row in rows}
    assert len(set(hashes.values())) == len(hashes)


def test_majority_answer_comes_from_the_prior_where_there_is_one():
    items = demo_items(kinds=("side",))
    other = [Item(**vars(i) | {"answer": "right"}) for i in items]
    own = summarise(items, say(items), None, checkpoint="09")[0]
    assert (own["majority_score"], own["majority_from"]) == (1.0, "benchmark")
    prior = summarise(items, say(items), None, checkpoint="09", prior_items=other)[0]
    assert (prior["majority_score"], prior["majority_from"]) == (0.0, "prior")
    english = [i for i in other if i.language == "en"]
    mixed = summarise(items, say(items), None, checkpoint="09", prior_items=english)[0]
    assert mixed["majority_from"] == "benchmark and prior"
    assert mixed["majority_score"] == pytest.approx(2 / 6)


def test_majority_box_is_the_median_box():
    boxes = ["[[0.0, 0.0, 0.2, 0.2]]", "[[0.1, 0.1, 0.3, 0.3]]", "[[0.1, 0.1, 0.5, 0.5]]"]
    items = demo_items(images=PICTURES[:2], kinds=("box",))
    items = [Item(**vars(items[0]) | {"id": box, "answer": box}) for box in boxes]
    answers, _ = results.majority_answers(items, [])
    assert answers["demo", "box", "en"] == "[[0.1, 0.1, 0.3, 0.3]]"


def test_abstentions_and_cut_answers_are_reported():
    items = demo_items(kinds=("yes/no",))
    said = [{"id": i.id, "response": "nodule", "finished": False} for i in items[:3]]
    row = summarise(items, said + say(items[3:]), None, checkpoint="09")[0]
    assert (row["abstained"], row["unfinished"], row["score"]) == (0.5, 0.5, 0.5)


def test_an_empty_answer_is_wrong_and_stays_among_the_questions():
    items = demo_items(kinds=("yes/no", "open"))
    said = [row | {"response": ""} if n < 3 else row for n, row in enumerate(say(items))]
    row = summarise(items, said, said, checkpoint="09")[0]
    assert (row["num_items"], row["score"], row["blind_score"]) == (12, 0.75, 0.75)
    assert row["abstained"] == 0.25


def test_responses_must_be_those_of_the_items():
    items = demo_items()
    with pytest.raises(ValueError, match="24 items but 23 responses; 1 items without response"):
        summarise(items, say(items)[1:], None, checkpoint="09")
    with pytest.raises(ValueError, match="1 repeated"):
        summarise(items, [*say(items), say(items)[0]], None, checkpoint="09")


def test_paired_difference_sees_what_separate_intervals_do_not():
    rng = np.random.default_rng(0)
    items = demo_items(images=[bytes([n]) for n in range(200)], kinds=("yes/no", "side"))
    hard = {i.id: rng.random() < 0.5 for i in items}
    better = {i.id: not hard[i.id] or rng.random() < 0.12 for i in items}
    a, b = say(items, lambda i: not hard[i.id]), say(items, lambda i: better[i.id])
    row = paired_difference(items, a, b, checkpoint_a="07", checkpoint_b="09")[0]
    assert row["difference"] == pytest.approx(row["score_b"] - row["score_a"])
    assert 0 < row["ci_low"] < row["difference"] < row["ci_high"]
    assert row["p_value"] < 0.01
    single = [summarise(items, said, None, checkpoint="x")[0] for said in (a, b)]
    assert single[0]["ci_high"] > single[1]["ci_low"], "the separate intervals overlap"
    same = paired_difference(items, a, a)[0]
    assert same["difference"] == same["ci_low"] == same["ci_high"] == 0 and same["p_value"] == 1


def test_many_comparisons_need_more_to_find_a_better_one():
    rng = np.random.default_rng(0)
    items, better = [], {}
    for name in ("one", "two", "three"):
        more = demo_items(
            images=[bytes([n]) for n in range(100)], kinds=("yes/no",), benchmark=name
        )
        items += more
        # Only the first benchmark has a better b.
        better |= {i.id: rng.random() < (0.9 if name == "one" else 0.5) for i in more}
    a, b = say(items, lambda i: rng.random() < 0.5), say(items, lambda i: better[i.id])
    rows = paired_difference(items, a, b, checkpoint_a="07", checkpoint_b="09")
    overall = {row["benchmark"]: row for row in rows if row["kind"] == "overall"}
    assert {row["num_comparisons"] for row in overall.values()} == {3}
    assert overall["one"]["says"] == "09 is better"
    assert overall["one"]["p_holm"] == pytest.approx(3 * overall["one"]["p_value"])
    assert overall["two"]["says"] == overall["three"]["says"] == "no difference shown"
    ranked = sorted(overall.values(), key=lambda row: row["p_value"])
    assert all(x["p_holm"] <= y["p_holm"] for x, y in pairwise(ranked))
    back = paired_difference(items, b, a, checkpoint_a="09", checkpoint_b="07")
    assert next(r for r in back if r["kind"] == "overall")["says"] == "09 is better"


def test_printed_numbers_of_150_questions_do_not_differ_by_one_point():
    none = unpaired_difference(0.503, 145, 0.513, 150)  # MMMU-H&M in the paper's table
    assert none["says"] == "no difference shown" and none["ci_low"] < -0.1 < 0.1 < none["ci_high"]
    # Newcombe 1998, table II, example a: 56/70 and 48/80; method 10 gives 0.0524 to 0.3339.
    known = unpaired_difference(48 / 80, 80, 56 / 70, 70)
    assert (known["ci_low"], known["ci_high"]) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert unpaired_difference(0.5, 1000, 0.6, 1000)["says"] == "b is better"
    assert unpaired_difference(0.6, 1000, 0.5, 1000)["says"] == "a is better"
    with pytest.raises(ValueError, match=r"51\.3.*not accuracies"):
        unpaired_difference(51.3, 150, 50.3, 145)


def test_chance_is_that_of_the_options_and_unknown_without():
    rows = summarise(demo_items(), say(demo_items()), None, checkpoint="x")
    chance = {r["kind"]: r["chance_score"] for r in rows if r["metric"] == "accuracy"}
    assert chance["yes/no"] == chance["side"] == 0.5
    assert chance["overall"] is None, "open questions have no options"


# ---- intervals -----------------------------------------------------------------------------


def test_interval_is_wider_when_questions_share_an_image():
    rng = np.random.default_rng(0)
    images = rng.random(100) < 0.5
    scores, groups = np.repeat(images, 5), np.repeat(np.arange(100), 5)
    low, high = clustered_interval(scores, groups)
    alone_low, alone_high = clustered_interval(scores, np.arange(500))
    assert high - low == pytest.approx(np.sqrt(5) * (alone_high - alone_low), rel=0.15)
    assert clustered_interval(scores, groups) == (low, high), "seeded"


def test_interval_at_the_bounds_is_not_empty():
    assert clustered_interval(np.ones(10), np.arange(10)) == (pytest.approx(0.6915, abs=1e-4), 1.0)
    assert clustered_interval(np.zeros(10), np.arange(10)) == (0.0, pytest.approx(0.3085, abs=1e-4))
    assert clustered_interval([1, 0, 1], ["a", "a", "a"]) == (0.0, 1.0)
    assert clustered_interval(np.zeros(9), np.arange(9), bounds=(-1.0, 1.0)) == (0.0, 0.0)
    for value in (0.1, 0.3, 0.7):  # equal scores: rounding must not leave the score outside
        for number in range(2, 20):
            scores = np.full(3 * number, value)
            low, high = clustered_interval(scores, np.repeat(np.arange(number), 3))
            assert low <= scores.mean() <= high


# The others take half a minute together; near 1 the plain percentiles covered 92 %.
_SLOW = [pytest.param(*x, marks=pytest.mark.slow) for x in ((12, 0.6), (40, 0.3), (200, 0.95))]


@pytest.mark.parametrize(("images", "accuracy"), [(100, 0.9), *_SLOW])
def test_a_95_percent_interval_covers_the_truth_in_93_to_97_percent(images, accuracy):
    rng = np.random.default_rng(images)
    runs, covered = 1000, 0
    for _ in range(runs):
        # Questions about one image succeed together: beta-distributed image difficulty.
        ability = rng.beta(2 * accuracy, 2 * (1 - accuracy), images)
        number = rng.integers(1, 6, images)
        groups = np.repeat(np.arange(images), number)
        low, high = clustered_interval(rng.random(len(groups)) < ability[groups], groups)
        covered += low <= accuracy <= high
    assert 0.93 <= covered / runs <= 0.97
