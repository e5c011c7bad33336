"""The fidelity gate on the writer's own text, on planted errors, and on sentences in free words."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from synthetic_records import blood_cells, nuclei, organs, phantom, tumor

from gmai_lib.dataset.describe import Page, describe
from gmai_lib.dataset.facts import extract
from gmai_lib.dataset.fidelity import (
    KINDS,
    check,
    check_answer,
    check_question,
    check_turns,
)
from gmai_lib.dataset.planted import misread, plant
from gmai_lib.dataset.writers import TemplateWriter
from gmai_lib.schema import Fact

RECORDS = [phantom(i) for i in range(160)] + [blood_cells(), nuclei(), organs(), tumor()]


def test_faithful_descriptions_pass():
    alarms, texts = [], 0
    for number, made in enumerate(RECORDS):
        facts = extract(made)
        for language in ("en", "zh"):
            page = Page(facts, language, Random(number))
            text = page.text(describe(page, most=6))
            texts += 1
            alarms += [(text, problem) for problem in check(text, facts, language)]
    assert texts > 300 and len(alarms) <= 0.02 * texts, alarms[:3]


def test_planted_errors_are_caught():
    total, missed = Counter(), []
    for number, made in enumerate(RECORDS):
        facts = extract(made)
        for language in ("en", "zh"):
            for kind, text in plant(facts, language, Random(number)):
                total[kind] += 1
                if not check(text, facts, language):
                    missed.append((kind, text))
    assert total.total() >= 500 and len(total) == 11, total
    assert len(missed) <= 0.05 * total.total(), missed[:3]


def test_questions_of_the_templates_take_nothing_for_granted():
    writer, asked = TemplateWriter(0), 0
    for made in RECORDS:
        facts = extract(made)
        for language in ("en", "zh"):
            for sample in writer.write(made, facts, language=language):
                for turn in sample.conversations[::2]:
                    asked += 1
                    assert not check_question(turn["content"], facts, language), turn
    assert asked > 2000


# One image: a single small nodule in the upper left of a lung CT; no mass and no effusion.
FACTS = tuple(
    Fact(id=f"f{number}", kind=kind, value=value, label=label)
    for number, (kind, value, label) in enumerate(
        [
            ("modality", "CT", ""),
            ("department", "pulmonary medicine", ""),
            ("organ", "lung", ""),
            ("label", "nodule", ""),
            ("absent", "mass", ""),
            ("absent", "effusion", ""),
            ("box", "0.10 0.12 0.20 0.22", "nodule"),
            ("side", "left", "nodule"),
            ("place", "upper left", "nodule"),
            ("size", "small", "nodule"),
            ("count", "1", "nodule"),
            ("severity", "mild", ""),
        ]
    )
)
# Written by hand, away from the templates: what a language model could say, right and wrong.
FAITHFUL = {
    "en": (
        "On this CT of the chest, one small nodule sits in the upper left of the image.",
        "A nodule, small in size, is present; there is neither a mass nor an effusion.",
        "The lung contains a single nodule (left side of the picture).",
        "Axial CT image through the lung. Small nodule, upper left.",
        "No mass. No effusion. One nodule.",
        "We can make out a small nodule on the left, with mild severity.",
        "The study was requested by pulmonary medicine and shows a nodule.",
        "There is a nodule without any mass nearby.",
        "Findings: nodule. Location: upper left.",
        "The nodule in the left half of this CT is small.",
        "Look at the upper left: that is where the nodule is.",
        "An image of the lung, made by CT.",
        "The picture is free of effusion.",
        "Both the organ (lung) and the finding (nodule) can be recognised.",
    ),
    "zh": (
        "肺部CT图像，图像左上部可见一个较小的结节，未见肿块。",
        "结节位于图像左侧，没有积液。",
        "该CT显示肺内有一个结节。",
        "病变为轻度，图中有结节。",
        "未见肿块，未见积液，仅见结节。",
    ),
}
WRONG = {
    "en": (
        ("modality", "This MR image of the lung shows a nodule."),
        ("modality", "An X-ray with a small nodule in the upper left."),
        ("modality", "The ultrasound demonstrates a nodule."),
        ("organ", "A CT of the liver with one nodule."),
        ("organ", "The nodule is in the right kidney."),
        ("organ", "The brain and a nodule are shown on CT."),
        ("department", "The case falls under dermatology."),
        ("label", "There is a cyst in the upper left."),
        ("label", "CT of the lung with a nodule and a pneumothorax."),
        ("label", "The image shows pneumonia."),
        ("label", "A mass can be seen on the left."),
        ("label", "An effusion is visible next to the nodule."),
        ("label", "The scan is normal: no abnormality is seen."),
        ("label", "There is no finding in this image."),
        ("absent", "No nodule is seen."),
        ("absent", "The lung is clear, without a nodule."),
        ("absent", "A nodule cannot be identified."),
        ("absent", "There is neither a nodule nor a mass."),
        ("side", "The nodule is on the right side of the image."),
        ("side", "A small nodule in the right half of the picture."),
        ("place", "The nodule lies in the lower right of the image."),
        ("place", "In the center there is a nodule."),
        ("place", "Upper right: one small nodule."),
        ("count", "Two nodules are present."),
        ("count", "We count 3 nodules in the lung."),
        ("count", "Four small nodules can be seen."),
        ("size", "A large nodule in the upper left."),
        ("size", "The nodule is of medium size."),
        ("severity", "The severity is severe."),
        ("severity", "A moderate case with a nodule."),
    ),
    "zh": (
        ("modality", "这是一幅肺的磁共振图像。"),
        ("organ", "CT图像显示肝脏内有结节。"),
        ("label", "图像左上部可见囊肿。"),
        ("label", "可见肿块。"),
        ("label", "图像未见异常。"),
        ("absent", "未见结节。"),
        ("side", "结节位于图像右侧。"),
        ("place", "结节位于图像右下部。"),
        ("count", "图中有两个结节。"),
        ("size", "可见较大的结节。"),
        ("severity", "病变为重度。"),
        ("department", "该图像属于皮肤科。"),
    ),
}


@pytest.mark.parametrize(
    "language, text", [(lang, text) for lang, texts in FAITHFUL.items() for text in texts]
)
def test_free_wording_that_is_right_passes(language, text):
    assert check(text, FACTS, language) == []


@pytest.mark.parametrize(
    "language, kind, text", [(lang, *pair) for lang, pairs in WRONG.items() for pair in pairs]
)
def test_free_wording_that_is_wrong_is_caught(language, kind, text):
    problems = check(text, FACTS, language)
    assert kind in {problem.kind for problem in problems}, problems
    assert all(problem.kind in KINDS for problem in problems)


def test_markup_is_not_text():
    text = "<ref>nodule</ref><box>[[0.10, 0.12, 0.20, 0.22]]</box>"
    assert check(text, FACTS, "en") == []
    assert [p.said for p in check("<ref>cyst</ref>", FACTS, "en")] == ["cyst"]


def test_a_problem_says_what_and_where():
    (problem,) = check("A nodule. The nodule lies in the lower right of the image.", FACTS, "en")
    assert str(problem) == (
        "place 'lower right' is not in the annotation: "
        "The nodule lies in the lower right of the image."
    )


def test_the_end_of_a_verb_and_the_start_of_a_finding_are_no_other_finding():
    facts = extract(blood_cells())
    for question in ("请说出血小板在图像的哪一侧。", "请说出血小板位于图像何处。"):
        assert check_question(question, facts, "zh") == []


@pytest.mark.parametrize(
    ("language", "question", "said"),
    [
        ("en", "Where is the mass?", ["mass"]),
        ("en", "A CT. How many cysts are there?", ["cyst"]),
        ("en", "What does the pneumothorax look like?", ["pneumothorax"]),
        ("zh", "肿块位于哪里？", ["mass"]),
        ("en", "Where is the nodule?", []),
        ("en", "Is there a mass?", []),
        ("en", "Which is it, a mass or a nodule?", []),
        ("en", "What is seen on this CT, and is there no mass?", []),
        ("zh", "图中有没有肿块？", []),
        ("zh", "结节位于哪里？", []),
        ("zh", "请说出结节在图像的哪一侧。", []),
        ("zh", "出血位于哪里？", ["bleeding"]),
    ],
)
def test_a_question_may_not_take_for_granted_what_is_not_there(language, question, said):
    assert [p.said for p in check_question(question, FACTS, language)] == said


HEALTHY = tuple(f for f in FACTS if f.kind in ("modality", "organ")) + (
    Fact(id="h", kind="label", value="no finding"),
)
TWO = (*FACTS, Fact(id="m", kind="label", value="cyst"),
       Fact(id="n", kind="place", value="lower right", label="cyst"))  # fmt: skip


@pytest.mark.parametrize(
    ("question", "answer", "facts", "said"),
    [
        ("Is there a nodule? Answer briefly.", "yes", FACTS, []),
        ("Is there a nodule? Answer briefly.", "no", FACTS, ["nodule"]),
        ("Is there a mass?", "No.", FACTS, []),
        ("Is there a mass?", "<ref>yes</ref>", FACTS, ["mass"]),
        ("Is there a cyst?", "yes", FACTS, ["cyst"]),
        ("Is there a cyst?", "no", FACTS, ["cyst"]),  # nobody looked for it
        ("Is this a CT image?", "no", FACTS, ["CT"]),
        ("Is this an MR image?", "yes", FACTS, ["MR"]),
        ("Is this an MR image?", "no", FACTS, []),
        ("Is the liver shown?", "no", FACTS, []),
        ("Is the liver shown?", "yes", FACTS, ["liver"]),
        ("Is the lung shown?", "no", FACTS, ["lung"]),
        ("Does the nodule lie in the upper left?", "yes", FACTS, []),
        ("Does the nodule lie in the lower right?", "yes", FACTS, ["lower right"]),
        ("Is it a nodule or a cyst?", "yes", FACTS, []),  # says nothing
        ("Is there any finding?", "yes", FACTS, []),
        ("Is there any finding?", "no", FACTS, ["no finding"]),
        ("Is there any finding?", "no", HEALTHY, []),
        ("Is there any finding?", "yes", HEALTHY, ["finding"]),
        ("Is this image free of findings?", "yes", FACTS, []),  # not judged
        ("Is it true that there is no finding?", "no", HEALTHY, []),
        ("How many nodules are there? Answer briefly.", "1", FACTS, []),
        ("How many nodules are there? Answer briefly.", "three", FACTS, ["3 nodule"]),
        ("How many findings are there?", "2", FACTS, ["2 nodule"]),
        ("What is the dose?", "2", FACTS, []),
        ("Where is the nodule?", "upper left", FACTS, []),
        ("Where is the nodule?", "lower right", TWO, ["lower right"]),  # that of the cyst
        ("Where is the cyst?", "lower right", TWO, []),
        ("图中是否有结节？请简短回答。", "否", FACTS, ["nodule"]),
        ("图中有没有肿块？", "没有", FACTS, []),
        ("图中有没有肿块？", "有", FACTS, ["mass"]),
        ("该图像的模态是否为磁共振？", "是", FACTS, ["MR"]),
        ("图中是否没有异常？", "是", FACTS, []),
        ("图像里是否看不到异常？", "否", FACTS, []),
        ("能否看到异常？", "是", HEALTHY, ["finding"]),
        ("图中有几个结节？请简短回答。", "2", FACTS, ["2 nodule"]),
        ("图中有几个结节？请简短回答。", "一", FACTS, []),
        ("图中有几个结节？", "两个", FACTS, ["2 nodule"]),
        ("Is there a nodule in this CT?", "no", FACTS, ["nodule"]),
        ("Is there a mass?", "Yes, there is.", FACTS, ["mass"]),
        ("Is there a mass?", "Yes!", FACTS, ["mass"]),
        ("是否有肿块？", "是的。", FACTS, ["mass"]),
    ],
)
def test_a_bare_answer_is_read_with_its_question(question, answer, facts, said):
    language = "zh" if any(character >= "\u4e00" for character in question) else "en"
    assert [p.said for p in check_answer(question, answer, facts, language)] == said


QUALIFIED = """Is the nodule on the right?|no
Is there a nodule on the right side of the image?|no
Is the nodule large?|no
Are there two nodules?|no
Is there more than one nodule?|no
Are there other findings besides the nodule?|no
Is this CT normal?|no
Is the lung normal?|no
Is the nodule calcified?|no
Is there an abnormality on the right side?|no
Does the finding lie on the right?|no
Is the finding severe?|no
Is there more than one finding?|no
How many slices are shown?|24
How many ribs can be seen?|5
How many nodules lie in the right half?|0
In how many quadrants are nodules seen?|2
How many kinds of nodules are seen?|1
Is it a nodule, not a mass?|yes
Does the patient need a follow-up MR?|yes
Does this CT show any abnormality?|yes
Is the nodule to the left of the heart?|yes
结节是否位于图像右侧？|否
图中是否有多个结节？|否
结节大吗？|否
这张CT正常吗？|否
图像右侧是否有异常？|否
这张CT有异常吗？|有
除结节外，是否有其他异常？|否
左侧有几个红细胞？|1"""


@pytest.mark.parametrize("turn", QUALIFIED.splitlines())
def test_a_qualified_question_is_left_alone(turn):
    question, answer = turn.split("|")
    language = "zh" if any(character >= "\u4e00" for character in question) else "en"
    assert check_answer(question, answer, FACTS, language) == []


@pytest.mark.parametrize(
    ("label", "question"),
    [
        ("malignant tumor", "Is there a tumor?"),
        ("hard exudate", "Are there exudates?"),
        ("left kidney", "Is the kidney visible?"),
    ],
)
def test_a_wider_name_of_what_is_there_may_be_answered_either_way(label, question):
    facts = (Fact(id="a", kind="label", value=label),)
    assert check_answer(question, "yes", facts, "en") == []
    assert check_answer(question, "no", facts, "en") == []


@pytest.mark.parametrize(
    "label", ["immature granulocyte", "nondisplaced rib fracture", "sessile serrated adenoma"]
)
def test_a_name_that_begins_like_a_denial_denies_nothing(label):
    made = replace(phantom(0), labels=(label,), absent=(), boxes=())
    facts, writer = extract(made), TemplateWriter(0)
    for number in range(20):
        for sample in writer.write(replace(made, id=f"{number}"), facts, language="zh"):
            said = [turn["content"] for turn in sample.conversations]
            turns = list(zip(said[::2], said[1::2], strict=True))
            assert not check_turns(turns, facts, "zh"), turns


def test_what_the_templates_write_passes_and_what_was_misread_often_does_not():
    writer, counts = TemplateWriter(0), Counter()
    for number, made in enumerate(RECORDS):
        facts, rng = extract(made), Random(number)
        for language in ("en", "zh"):
            for name, read in (("right", facts), ("wrong", misread(facts, rng))):
                for sample in writer.write(made, read, language=language):
                    said = [turn["content"] for turn in sample.conversations]
                    turns = list(zip(said[::2], said[1::2], strict=True))
                    found = check_turns(turns, facts, language)
                    counts[name, bool(found)] += 1
                    assert name == "wrong" or not found, (turns, found[0])
    assert counts["right", False] > 1000
    # Most samples of a record do not state the one fact that was read wrong.
    assert counts["wrong", True] > 0.55 * counts["wrong", False]


def test_a_written_report_is_checked_and_the_source_s_own_words_are_not():
    asked = "Report: A cyst lies in the lung.\nQuestion: Which organ is shown?"
    assert [p.said for p in check_turns([(asked, "lung")], FACTS, "en")] == ["cyst"]
    own = {"A cyst lies in the lung.", ("Where is the cyst?", "liver")}
    assert not check_turns([(asked, "lung")], FACTS, "en", quoted=own)
    assert not check_turns([("Where is the cyst?", "liver")], FACTS, "en", quoted=own)
    assert check_turns([("Where is the cyst?", "upper left")], FACTS, "en", quoted=own)
    assert check_turns([("Which organ is shown?", "liver")], FACTS, "en", quoted=own)


def test_turns_are_read_by_themselves_or_else_beside_their_questions():
    assert len(check_turns([("Is there a cyst?", "yes")], FACTS, "en")) == 1
    assert len(check_turns([("Where is the nodule?", "lower right")], FACTS, "en")) == 1


def test_misreading_changes_one_thing_and_a_text_has_nothing_to_misread():
    for number in range(60):
        changed = misread(FACTS, Random(number))
        assert changed != FACTS
        if not any(f.value == "nodule" for f in changed if f.kind == "label"):
            denied = [f for f in changed if f.kind == "absent" and f.value == "nodule"]
            renamed = [f for f in changed if f.kind == "label"]
            assert denied or renamed
            if denied:  # what is absent has no place
                assert not [f for f in changed if f.label == "nodule"]
    assert misread((), Random(0)) == ()
