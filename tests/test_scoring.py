"""The scorer on tricky answers: it must read what is said, and abstain where nothing is."""

import os
import random
import string
import time

import pytest

from gmai_lib.evaluation import scoring
from gmai_lib.evaluation.items import Item
from gmai_lib.evaluation.peers import tricky_answers

PLACES = (
    "upper left", "upper center", "upper right", "middle left", "center", "middle right",
    "lower left", "lower center", "lower right",
)  # fmt: skip
DISEASES = ("Pneumonia", "Pleural effusion", "Cardiomegaly", "No finding")


def item(kind: str, answer: str, **changes) -> Item:
    values = {
        "id": f"{kind}|{answer}",
        "benchmark": "demo",
        "images": (b"image",),
        "question": "Is there a nodule?",
        "answer": answer,
        "kind": kind,
        "language": "en",
        "group": "g",
        "modality": "CT",
        "source": "demo",
    }
    return Item(**values | changes)


@pytest.mark.parametrize(
    ("response", "question", "expected"),
    [
        ("Yes, a nodule", "", "yes"),
        ("nodule", "", None),
        ("nodule", "Is there a nodule?", None),
        ("No.", "", "no"),
        ("YES", "", "yes"),
        ("Ｙｅｓ", "", "yes"),
        ("Yes, this is abnormal", "", "yes"),
        ("abnormal", "", None),
        ("not", "", None),
        ("diagnosis", "", None),
        ("no nodule", "Is there a nodule?", "no"),
        ("no finding", "Is there a nodule?", None),
        ("No nodule, no cyst", "Is there a cyst?", None),
        ("No, there is no nodule", "", "no"),
        ("no no no no", "", "no"),
        ("Yes. There is no fracture.", "", "yes"),
        ("There is no abnormality", "Is the lung normal?", None),
        ("The lung is not normal", "Is the lung normal?", "no"),
        ("There is no nodule in the image.", "Is there a nodule?", "no"),
        ("No evidence of pneumonia.", "Is there evidence of pneumonia?", "no"),
        ("A nodule is present", "Is there a nodule?", "yes"),
        ("The image shows a nodule", "Is there a nodule?", "yes"),
        ("There isn't a nodule", "Is there a nodule?", "no"),
        ("There is no nodule", "Is there no nodule?", None),
        ("The answer is: No", "", "no"),
        ("answer: yes", "", "yes"),
        ("**No**", "", "no"),
        ("\\boxed{yes}", "", "yes"),
        ("<ref>yes</ref>", "", "yes"),
        ("yes<|im_end|>no", "", "yes"),
        ("yes or no", "", None),
        ("yes/no", "", None),
        ("Yes, no", "", None),
        ("no, yes", "", None),
        ("yes no yes no", "", None),
        ("maybe", "", None),
        ("unknown", "Is it unknown?", None),
        ("I do not know", "Is there a nodule?", None),
        ("Cannot be determined", "Can it be determined?", None),
        ("", "Is there a nodule?", None),
        ("   ", "", None),
        ("是", "", "yes"),
        ("是的。", "", "yes"),
        ("有", "", "yes"),
        ("否", "", "no"),
        ("没有", "", "no"),
        ("不是", "", "no"),
        ("无", "", "no"),
        ("未见", "", "no"),
        ("是，图像中有结节", "", "yes"),
        ("不是，没有", "", "no"),
        ("没有，未见结节", "", "no"),
        ("没有结节", "图像中有结节吗？", "no"),
        ("无结节", "是否存在结节？", "no"),
        ("未见结节", "是否可见结节？", "no"),
        ("结节不存在", "是否存在结节？", "no"),
        ("有结节", "图像中有结节吗？", "yes"),
        ("没有囊肿", "图像中有结节吗？", None),
        ("没有异常", "图像是否正常？", None),
        ("没有不存在", "", None),
        ("是否有结节", "是否有结节？", None),
        ("有没有", "", None),
        ("是，否", "", None),
        ("有，没有", "", None),
        ("没有，是", "", None),
        ("没有，是囊肿", "", "no"),
        ("是或否", "", None),
        ("不确定", "", None),
        ("无法判断", "", None),
    ],
)
def test_yes_no(response, question, expected):
    assert scoring.extract_yes_no(response, question) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(b)", "B"),
        ("Option B", "B"),
        ("option b", "B"),
        ("B. Pleural effusion", "B"),
        ("B) Pleural effusion", "B"),
        ("B pleural effusion", "B"),
        ("Pleural effusion", "B"),
        ("A pleural effusion", "B"),  # the article, not the letter
        ("The answer is a pleural effusion", "B"),
        ("The answer is C", "C"),
        ("answer: (d)", "D"),
        ("I think it is cardiomegaly", "C"),
        ("no finding", "D"),
        ("No pneumonia; pleural effusion", "B"),
        ("选B", "B"),
        ("答案是C", "C"),
        ("答案：Ｃ", "C"),
        ("\\boxed{C}", "C"),
        ("There is no pneumonia", None),
        ("The image shows no evidence of pneumonia.", None),
        ("pneumonia is absent", None),
        ("A fracture is seen", None),
        ("B. Pneumonia", None),  # letter and text disagree
        ("A or B", None),
        ("A, B", None),
        ("A and C", None),
        ("AB", None),
        ("A. Pneumonia B. Pleural effusion", None),
        ("pneumonia and cardiomegaly", None),
        ("Option A is incorrect", None),
        ("The answer is not A", None),
        ("E", None),  # beyond the options
        ("I", None),
        ("not sure", None),
        ("", None),
    ],
)
def test_choice(response, expected):
    assert scoring.extract_choice(response, DISEASES) == expected


def test_choice_reads_a_fifth_option():
    assert scoring.extract_choice("The answer is E", (*DISEASES, "Fracture")) == "E"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("2", 2),
        ("two", 2),
        ("Two nodules.", 2),
        ("three (3)", 3),
        ("2 2 2", 2),
        ("3 nodules, 5 mm", 3),
        ("twenty-three", 23),
        ("nineteen", 19),
        ("1,234", 1234),
        ("none", 0),
        ("There are no polyps", 0),
        ("2个", 2),
        ("两个", 2),
        ("一个结节", 1),
        ("十二", 12),
        ("二十三", 23),
        ("没有", 0),
        ("two or three", None),
        ("1-2", None),
        ("2/3", None),
        ("-2", None),
        ("5.6 cm", None),
        ("2 cm", None),
        ("more than 3", None),
        ("at least two", None),
        ("not 2", None),
        ("I do not know", None),
        ("a lot", None),
        ("", None),
    ],
)
def test_number(response, expected):
    assert scoring.extract_number(response) == expected


@pytest.mark.parametrize(
    ("response", "options", "expected"),
    [
        ("upper left", PLACES, "upper left"),
        ("The nodule is in the upper left.", PLACES, "upper left"),
        ("left upper", PLACES, "upper left"),
        ("bottom-left", PLACES, "lower left"),
        ("centre", PLACES, "center"),
        ("left", PLACES, None),
        ("upper left or lower left", PLACES, None),
        ("not left", ("left", "right"), None),
        ("not left but right", ("left", "right"), "right"),
        ("on the left side", ("left", "right"), "left"),
        ("<ref>nodule</ref>", ("nodule", "cyst"), "nodule"),
        ("<ref>nodule</ref><box>[[0.1, 0.1, 0.2, 0.2]]</box>", ("nodule", "cyst"), "nodule"),
        ("nodules", ("nodule", "cyst"), "nodule"),
        ("No nodule", ("nodule", "no finding"), None),
        ("no finding", ("nodule", "no finding"), "no finding"),
        ("neither nodule nor cyst", ("nodule", "cyst"), None),
        ("nodule is not seen, cyst is", ("nodule", "cyst"), "cyst"),
        ("without a nodule", ("nodule", "cyst"), None),
        ("glioma", ("glioma", "no tumor"), "glioma"),
        ("no tumor", ("glioma", "no tumor"), "no tumor"),
        ("MRI", ("MR", "CT"), "MR"),
        ("This is a magnetic resonance image", ("MR", "CT"), "MR"),
        ("x ray", ("X-ray", "CT"), "X-ray"),
        ("左侧", ("左侧", "右侧"), "左侧"),
        ("这是CT图像。", ("CT", "OCT", "X线"), "CT"),
        ("左侧和右侧", ("左侧", "右侧"), None),
        ("不是左侧，而是右侧", ("左侧", "右侧"), "右侧"),
        ("未见异常", ("结节", "未见异常"), "未见异常"),
        ("未见结节", ("结节", "未见异常"), None),
        ("没有结节", ("结节", "囊肿"), None),
        ("不规则结节", ("结节", "囊肿"), "结节"),
        ("", ("结节", "囊肿"), None),
    ],
)
def test_label(response, options, expected):
    assert scoring.extract_label(response, options) == expected


def test_boxes_are_read_only_as_fractions_in_order():
    read = scoring.extract_boxes
    assert read("<ref>a</ref><box>[[0.18, 0.16, 0.50, 0.43]]</box>") == [(0.18, 0.16, 0.5, 0.43)]
    assert read("0.18 0.16 0.50 0.43") == [(0.18, 0.16, 0.5, 0.43)]
    assert len(read("<box>[[0, 0, 0.5, 1], [0.5, 0, 1, 1]]</box>")) == 2
    assert read("[[179, 164, 500, 434]]") == []  # pixels, or thousandths? not guessed
    assert read("[[0.5, 0.1, 0.2, 0.3]]") == []  # corners swapped
    assert read("<box>[[0.1, 0.2, 0.3") == []
    assert read("") == []


def test_iou():
    assert scoring.iou((0, 0, 1, 1), (0, 0, 1, 1)) == 1
    assert scoring.iou((0, 0, 0.5, 1), (0.5, 0, 1, 1)) == 0
    assert scoring.iou((0, 0, 0.5, 1), (0.25, 0, 0.75, 1)) == pytest.approx(1 / 3)


def test_box_scores_are_iou_and_accuracy_and_count_surplus_boxes():
    asked = item("box", "<ref>nodule</ref><box>[[0.00, 0.00, 0.50, 1.00]]</box>")
    near = scoring.score(asked, "<box>[[0.00, 0.00, 0.40, 1.00]]</box>")
    assert near["measures"] == {"iou": pytest.approx(0.8), "accuracy_at_0.5": 1.0}
    assert near["correct"] == near["measures"]["iou"] and near["metric"] == "iou"
    two = scoring.score(asked, "[[0, 0, 0.5, 1], [0.5, 0, 1, 1]]")
    assert two["measures"] == {"iou": pytest.approx(0.5), "accuracy_at_0.5": 0.5}
    none = scoring.score(asked, "I cannot see it")
    assert none["measures"]["iou"] == 0 and none["prediction"] is None


def test_several_gold_boxes_are_matched_one_to_one():
    asked = item("box", "[[0.00, 0.00, 0.50, 1.00], [0.50, 0.00, 1.00, 1.00]]")
    swapped = scoring.score(asked, "[[0.5, 0, 1, 1], [0, 0, 0.5, 1]]")
    assert swapped["measures"] == {"iou": 1.0, "accuracy_at_0.5": 1.0}
    repeated = scoring.score(asked, "[[0, 0, 0.5, 1], [0, 0, 0.5, 1]]")
    assert repeated["measures"]["iou"] == 0.5


@pytest.mark.parametrize(
    ("answer", "response", "exact", "recall"),
    [
        ("right sided pleural effusion", "Right-sided pleural effusion.", 1, 1),
        ("right side", "the right", 1, 1),
        ("fat", "fat tissue", 0, 1),
        ("head of the pancreas", "pancreas", 0, 1 / 3),
        ("2", "two", 1, 1),
        ("MRI", "magnetic resonance imaging", 1, 1),
        ("5.6cm focal, predominantly hypodense", "5.6cm focal predominantly hypodense", 1, 1),
        ("右上叶", "右 上 叶", 1, 1),
        ("not sure", "not sure", 1, 1),
        ("appendix", "", 0, 0),
    ],
)
def test_open_answers(answer, response, exact, recall):
    measures = scoring.score(item("open", answer), response)["measures"]
    assert measures["exact_match"] == exact
    assert measures["token_recall"] == pytest.approx(recall)
    assert measures["token_f1"] >= measures["exact_match"]


def test_open_refusals_abstain():
    assert scoring.score(item("open", "appendix"), "I'm not sure")["prediction"] is None
    assert scoring.score(item("open", "appendix"), "liver")["prediction"] == "liver"


def test_counts_within_the_accepted_range_are_right():
    asked = item("count", "40", answers=tuple(map(str, range(36, 45))))
    assert scoring.score(asked, "44")["correct"] == 1
    assert scoring.score(asked, "45")["correct"] == 0


def test_exact_match_is_stricter_than_accuracy():
    asked = item("location", "upper left", options=PLACES)
    sentence = scoring.score(asked, "It is in the upper left of the image.")
    assert sentence["measures"] == {"accuracy": 1.0, "exact_match": 0.0}
    asked = item("multiple choice", "B", options=DISEASES)
    assert scoring.score(asked, "B")["measures"] == {"accuracy": 1.0, "exact_match": 1.0}
    assert scoring.score(asked, "Option B")["measures"] == {"accuracy": 1.0, "exact_match": 0.0}


def test_an_unreadable_reference_raises():
    with pytest.raises(ValueError, match="cannot read its own answer 'perhaps'"):
        scoring.score(item("yes/no", "perhaps"), "yes")
    with pytest.raises(ValueError, match="cannot read its own answer 'ulcer'"):
        scoring.score(item("finding", "ulcer", options=("nodule", "cyst")), "nodule")


# (item, a response that is wrong and one that abstains)
EVERY_KIND = [
    (item("modality", "CT", options=("CT", "MR", "X-ray")), "MR", "no idea"),
    (item("organ", "肺", language="zh", options=("肺", "脑")), "脑", "心"),
    (item("finding", "no finding", options=("nodule", "cyst", "no finding")), "nodule", ""),
    (item("yes/no", "no"), "yes", "nodule"),
    (item("yes/no", "是", language="zh"), "否", "是否"),
    (item("side", "left", options=("left", "right")), "right", "left or right"),
    (item("location", "upper left", options=PLACES), "lower left", "left"),
    (item("count", "2"), "3", "2 or 3"),
    (item("box", "[[0.10, 0.10, 0.40, 0.40]]"), "[[0.5, 0.5, 0.9, 0.9]]", "box"),
    (item("multiple choice", "B", options=DISEASES), "A", "A or B"),
    (item("open", "appendix"), "liver", "I cannot tell"),
]


@pytest.mark.parametrize(("asked", "wrong", "silent"), EVERY_KIND)
def test_right_is_one_wrong_is_zero_and_silence_abstains(asked, wrong, silent):
    right = scoring.score(asked, asked.answer)
    assert right["correct"] == 1.0 and set(right["measures"].values()) == {1.0}
    assert right["prediction"] is not None
    assert scoring.score(asked, wrong)["correct"] == 0.0
    assert scoring.score(asked, wrong)["prediction"] is not None
    assert scoring.score(asked, silent)["correct"] == 0.0
    assert scoring.score(asked, silent)["prediction"] is None


def test_scores_stay_within_bounds_on_any_text():
    rng = random.Random(0)
    words = (
        "yes no not A B (c) [[0.1,0.2,0.3,0.4]] 2 两 三 左侧 是 否 没有 <box> </ref> . , upper left"
    )
    words = [*words.split(" "), *string.punctuation, "nodule", "\n", "１", "ß", "answer is", "选"]
    for _ in range(1000):
        response = rng.choice(("", " ")).join(rng.choices(words, k=rng.randint(0, 8)))
        for asked, _, _ in EVERY_KIND:
            result = scoring.score(asked, response)
            assert all(0.0 <= value <= 1.0 for value in result["measures"].values()), response
            assert result["prediction"] is not None or result["correct"] == 0.0, response


@pytest.mark.slow
def test_a_hundred_thousand_answers_are_scored_in_a_minute():
    rng = random.Random(0)
    answers = rng.choices(tricky_answers(), k=10_000)
    said = [(a.item, f"{a.response} case {rng.randrange(10**9)}") for a in answers]  # no repeats
    start = time.process_time()
    for asked, response in said:
        scoring.score(asked, response)
    assert time.process_time() - start < 6


def test_the_score_does_not_depend_on_the_environment(monkeypatch):
    responses = ["A fracture is seen", "option b", "(c)", "There is no pneumonia"]
    asked = item("multiple choice", "B", options=DISEASES)
    before = [scoring.score(asked, r) for r in responses]
    for name in ("VERBOSE", "DEBUG", "LANG", "LC_ALL", "PYTHONHASHSEED"):
        monkeypatch.setenv(name, "0")
    assert [scoring.score(asked, r) for r in responses] == before
    for name in list(os.environ):
        monkeypatch.delenv(name)
    assert [scoring.score(asked, r) for r in responses] == before
