"""The same responses under several protocols, the judge, option places, calibration, reports."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gmai_lib.evaluation import protocols, reports
from gmai_lib.evaluation.items import Item
from gmai_lib.llm import Endpoint

D = ("Pneumonia", "Pleural effusion", "Cardiomegaly", "No finding")


def item(number: int, kind: str, answer: str, **changes) -> Item:
    values = {"id": f"demo#{number}", "benchmark": "demo", "images": (), "question": "What is it?"}
    values |= {"kind": kind, "answer": answer, "language": "en", "group": str(number)}
    return Item(**values | {"modality": "CT", "source": "demo"} | changes)


ITEMS = [
    item(0, "multiple choice", "B", options=D, subsets=("answer_type=closed",)),
    item(1, "multiple choice", "A", options=D, subsets=("answer_type=closed",)),
    item(2, "yes/no", "no", question="Is there a nodule?", subsets=("answer_type=closed",)),
    item(3, "open", "appendix", subsets=("answer_type=open",)),
    item(4, "count", "3"),
    item(5, "box", "[[0.10, 0.10, 0.40, 0.40]]"),
]
SAID = [
    "Option B",
    "There is no pneumonia",
    "No nodule.",
    "The answer is appendix.",
    "4",
    "0 0 1 1",
]
RESPONSES = [{"id": i.id, "response": text} for i, text in zip(ITEMS, SAID, strict=True)]


def test_protocols_stand_side_by_side_and_name_their_items():
    rows = protocols.side_by_side(ITEMS, RESPONSES, subsets=("all", "answer_type=closed"))
    table = pd.DataFrame(rows).set_index(["subset", "protocol"])
    everything = table.loc["all"]
    assert everything.num_items.to_dict() == {
        "strict match": 5,
        "option match": 5,
        "VLMEvalKit rules": 2,
        "lmms-eval rules": 4,
        "MedEvalKit rules": 4,
    }
    assert everything.score["strict match"] == 0.0
    assert everything.score["option match"] == pytest.approx(3 / 5)
    assert everything.score["VLMEvalKit rules"] == 1.0, "it takes a denied pneumonia for A"
    assert everything.score["lmms-eval rules"] == pytest.approx((1 + 1 / 4) / 4)
    assert everything.unread["option match"] == pytest.approx(1 / 5)
    assert table.loc["answer_type=closed"].num_items["option match"] == 3
    digests = everything.question_ids_sha256
    assert digests["strict match"] == digests["option match"] != digests["VLMEvalKit rules"]
    assert (table.ci_low <= table.score).all() and (table.score <= table.ci_high).all()


def test_likelihoods_are_a_protocol_of_the_items_they_are_of():
    likely = [{"id": "demo#0", "correct": 1.0}, {"id": "demo#1", "correct": 0.0}]
    table = pd.DataFrame(protocols.side_by_side(ITEMS, RESPONSES, likelihoods=likely))
    row = table[table.protocol == "option likelihood"].iloc[0]
    assert (row.num_items, row.score, row.unread) == (2, 0.5, 0.0)


def test_every_item_needs_one_response():
    with pytest.raises(ValueError, match=r"1 of 6 items have no response \(first: \['demo#5'\]\)"):
        protocols.side_by_side(ITEMS, RESPONSES[:-1])
    with pytest.raises(ValueError, match="1 are there twice"):
        protocols.side_by_side(ITEMS, [*RESPONSES, RESPONSES[0]])


def asker_for(server, tmp_path):
    endpoint = Endpoint(base_url=server.url, model="judge", retries=1, concurrency=2)
    return protocols.Asker(endpoint, tmp_path / "judge.jsonl")


def test_the_judge_sees_both_orders_and_only_agreeing_ones_count(serve, tmp_path):
    def behave(body, number):
        shown = json.loads(body["messages"][1]["content"])
        texts = (shown["first"], shown["second"])
        if "Option B" in texts:
            return json.dumps({"verdict": "same"})
        if "There is no pneumonia" in texts:  # turns with the order
            return json.dumps({"verdict": "same" if texts[0] == "A. Pneumonia" else "different"})
        return "I like both." if "4" in texts else json.dumps({"verdict": "different"})

    server = serve(behave)
    responses = [row | {"response": ""} if row["id"] == "demo#5" else row for row in RESPONSES]
    verdicts = protocols.judge(ITEMS, responses, asker_for(server, tmp_path))
    said = {row["id"]: row["verdict"] for row in verdicts}
    assert said == {
        "demo#0": "right",
        "demo#1": None,
        "demo#2": "wrong",
        "demo#3": "wrong",
        "demo#4": None,
        "demo#5": "wrong",
    }
    assert (verdicts[1]["forward"], verdicts[1]["backward"]) == ("same", "different")
    assert verdicts[5]["forward"] is None, "an empty response is not sent"
    assert verdicts[0]["prompt_sha256"] == protocols.PROMPT_SHA256
    shown = [json.loads(body["messages"][1]["content"]) for body in server.bodies]
    assert {
        "question": "What is it?",
        "first": "B. Pleural effusion",
        "second": "Option B",
    } in shown
    assert all("Option B" not in body["messages"][0]["content"] for body in server.bodies)
    agreement = protocols.judge_agreement(ITEMS, responses, verdicts)
    assert (agreement["num_asked"], agreement["num_verdicts"]) == (4, 4)
    assert agreement["orders_agree"] == pytest.approx(3 / 4)
    assert agreement["rules_agree"] == pytest.approx(2 / 4)
    table = pd.DataFrame(protocols.side_by_side(ITEMS, responses, verdicts=verdicts))
    judged = table[table.protocol == "LLM judge"].iloc[0]
    assert judged.score == pytest.approx(1 / 5) and judged.unread == pytest.approx(2 / 5)
    number = len(server.bodies)
    again = protocols.judge(ITEMS, responses, asker_for(server, tmp_path))
    assert again == verdicts and len(server.bodies) == number, "the journal has the replies"


def test_a_favourite_place_is_seen():
    items = [item(n, "multiple choice", "ABCD"[n % 4], options=D) for n in range(40)]
    always = [{"id": i.id, "response": "A"} for i in items]
    rows = protocols.option_positions(items, always)
    first = rows[0]
    assert (first["letter"], first["key_share"], first["said_share"]) == ("A", 0.25, 1.0)
    assert first["bias"] == pytest.approx(0.75) and first["accuracy"] == 1.0
    assert [row["accuracy"] for row in rows] == [1.0, 0.0, 0.0, 0.0]
    right = [{"id": i.id, "response": i.answer} for i in items]
    assert {row["bias"] for row in protocols.option_positions(items, right)} == {0.0}
    silent = [{"id": i.id, "response": ""} for i in items]
    assert protocols.option_positions(items, silent) == []


def test_calibration_error_of_known_confidences():
    made = protocols.calibration([0.95] * 10 + [0.55] * 10, [1.0] * 9 + [0.0] + [0.0] * 10)
    assert made["ece"] == pytest.approx(0.5 * 0.05 + 0.5 * 0.55)
    assert [row["num_items"] for row in made["bins"]] == [0, 0, 0, 0, 0, 10, 0, 0, 0, 10]
    rng = np.random.default_rng(0)
    confidence = rng.random(100_000)
    assert protocols.calibration(confidence, rng.random(100_000) < confidence)["ece"] < 0.01
    assert protocols.calibration([1.0, 0.0], [1, 0])["ece"] == 0.0
    with pytest.raises(ValueError, match=r"confidence holds 1\.2, not 0\.\.1"):
        protocols.calibration([0.5, 1.2], [1, 0])
    with pytest.raises(ValueError, match=r"\(2,\) confidences for \(1,\) answers"):
        protocols.calibration([0.5, 0.2], [1])


# The example of the BLEU paper as NLTK documents it: 0.5046 for a sentence, 0.5921 for the corpus.
SENTENCES = [
    "It is a guide to action which ensures that the military always obeys the commands "
    "of the party",
    "he read the book because he was interested in world history",
]
REFERENCES = [
    [
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "It is the guiding principle which guarantees the military forces always being under the "
        "command of the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    ],
    ["he was interested in world history because he read the book"],
]


def test_bleu_has_the_documented_values():
    assert reports.bleu(SENTENCES[:1], REFERENCES[:1]) == pytest.approx(0.5046, abs=1e-4)
    assert reports.bleu(SENTENCES, REFERENCES) == pytest.approx(0.5921, abs=1e-4)
    # Papineni et al., section 2.1: clipped unigram precision 2/7.
    cats = [["The cat is on the mat.", "There is a cat on the mat."]]
    assert reports.bleu(["the the the the the the the"], cats, order=1) == pytest.approx(2 / 7)
    assert reports.bleu(["the cat"], [["the cat sat here"]], order=2) == pytest.approx(np.exp(-1))
    assert reports.bleu([""], [["the cat"]]) == 0.0
    assert reports.bleu(["a b c"], [["a b c d e f", "a b c"]], order=3) == 1.0, "closest length"
    assert reports.bleu(["双肺清晰。"], [["双肺清晰"]]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="1 responses, 0 lists"):
        reports.bleu(["a"], [])


def test_rouge_l_has_the_values_of_its_paper():
    # Lin 2004, section 3.1.
    reference = "police killed the gunman"
    assert reports.rouge_l("police kill the gunman", reference) == pytest.approx(3 / 4)
    assert reports.rouge_l("the gunman kill police", reference) == pytest.approx(2 / 4)
    assert reports.rouge_l("the gunman police killed", reference) == pytest.approx(2 / 4)
    assert reports.rouge_l("gunman gunman gunman", "gunman") == pytest.approx(1 / 2)
    assert reports.rouge_l("", reference) == reports.rouge_l("x", "") == 0.0


def test_fact_scores_see_negation_and_side_where_words_do_not():
    reference = "There is a nodule in the left lung. No pleural effusion."
    denied = "There is no nodule in the left lung. No pleural effusion."
    assert reports.rouge_l(denied, reference) > 0.85
    same = "No pleural effusion is seen; the left lung holds a nodule."
    assert reports.fact_scores(same, reference)["fact_f1"] == 1.0
    assert reports.fact_scores(denied, reference)["fact_f1"] < 1.0
    swapped = "There is a nodule in the right lung. No pleural effusion."
    assert 0.0 < reports.fact_scores(swapped, reference)["fact_f1"] < 1.0
    assert reports.fact_scores("A nodule on the right.", "A nodule on the left.")["fact_f1"] < 1.0
    part = reports.fact_scores("There is a nodule.", reference)
    assert part["fact_precision"] == 1.0 and part["fact_recall"] < 1.0
    assert reports.fact_scores("", "Hello.")["fact_f1"] == 1.0
    assert reports.fact_scores("", reference)["fact_f1"] == 0.0
    assert reports.fact_scores("左肺有结节。", "左肺可见结节。", "zh")["fact_f1"] == 1.0


def test_counts_are_also_measured_within_one():
    measures = [
        protocols.score(replace(ITEMS[4]), text)["measures"] for text in ("3", "4", "5", "")
    ]
    assert [m["within_one"] for m in measures] == [1.0, 1.0, 0.0, 0.0]
    assert [m["accuracy"] for m in measures] == [1.0, 0.0, 0.0, 0.0]
