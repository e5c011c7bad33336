"""gmai_lib.dataset.writers: the text says what the facts say, and nothing else.

The parsers below know the vocabulary but not the templates: they look for words.
"""

import random
import re
from collections import Counter
from dataclasses import replace

import pytest
from synthetic_records import (
    FINDINGS,
    ORGANS,
    asked,
    bare,
    blood_cells,
    box,
    noted,
    nuclei,
    one_of_each,
    organs,
    phantom,
    record,
    text_only,
    tumor,
)

from gmai_lib.dataset import phrases, sentences
from gmai_lib.dataset.facts import extract
from gmai_lib.dataset.lexicon import (
    translate,
)
from gmai_lib.dataset.writers import TemplateWriter, answer, choices, cut, question
from gmai_lib.schema import (
    DEPARTMENTS,
    IMAGE_MODALITIES,
    LANGUAGES,
    NO_FINDING,
    PLACES,
    SIZES,
    QuestionAnswer,
)

# How a finding may appear in English text -> (label, is it plural).
SPELLINGS = {name: (name, False) for name in FINDINGS if name not in ("drusen", "globules")}
SPELLINGS |= {f"{name}s": (name, True) for name in FINDINGS if name not in ("drusen", "globules")}
SPELLINGS |= {
    "masses": ("mass", True),
    "cavities": ("cavity", True),
    "foreign bodies": ("foreign body", True),
    "hypermetabolic foci": ("hypermetabolic focus", True),
    "drusen deposit": ("drusen", False),
    "drusen deposits": ("drusen", True),
    "cluster of globules": ("globules", False),
    "clusters of globules": ("globules", True),
    "bleeding site": ("bleeding", False),
    "bleeding sites": ("bleeding", True),
    "area of necrosis": ("necrosis", False),
    "areas of necrosis": ("necrosis", True),
}
NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
CHINESE_NUMBERS = {"一": 1, "两": 2, "三": 3}


def samples_of(made, language="en", seed=0):
    return TemplateWriter(seed).write(made, extract(made), language=language)


def texts(made_samples, subset):
    return [s.conversations for s in made_samples if s.subset == subset]


def one_of(words):
    return "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True))


def parse_english(text):
    """Set of (kind, value, label) that `text` states; label None where the text names none."""
    stated = set()
    for sentence in re.findall(r"[^.]+\.", text):
        low = sentence.strip().lower()
        negative = re.search(r"\b(no|not|cannot)\b", low) is not None
        names = []
        pattern = (
            rf"\b(?:({one_of(NUMBERS)})\s)?(?:(small|medium-sized|large)\s)?({one_of(SPELLINGS)})\b"
        )
        for number, size, spelled in re.findall(pattern, low):
            label, several = SPELLINGS[spelled]
            names.append(label)
            stated.add(("absent" if negative else "label", label, None))
            if number:
                assert several == (NUMBERS[number] > 1), sentence
                stated.add(("count", str(NUMBERS[number]), label))
            if size:
                stated.add(("size", size.removesuffix("-sized"), label))
        low = re.sub(rf"\b({one_of(SPELLINGS)})\b", "#", low)
        if negative and not names:
            assert re.search(r"\bno (abnormal )?finding\b", low), sentence
            stated.add(("label", NO_FINDING, None))
        label = names[0] if names else None
        stated |= {("place", p, label) for p in re.findall(rf"\b({one_of(PLACES)})\b", low)}
        stated |= {("side", s, label) for s in re.findall(r"\b(left|right) side of the image", low)}
        stated |= {("severity", s, None) for s in re.findall(r"\b(mild|moderate|severe)\b", low)}
        stated |= {("department", d, None) for d in DEPARTMENTS if re.search(rf"\b{d}\b", low)}
        low = re.sub(rf"\b({one_of(DEPARTMENTS)})\b", "#", low)
        found = re.findall(rf"\b({one_of(m.lower() for m in IMAGE_MODALITIES)})\b", low)
        stated |= {("modality", m, None) for m in IMAGE_MODALITIES if m.lower() in found}
        stated |= {("organ", o, None) for o in re.findall(rf"\b({one_of(ORGANS)})\b", low)}
        if names and not negative:
            low = low.replace("medium-sized", "")
            stated |= {("size", s, label) for s in re.findall(rf"\b({one_of(SIZES)})\b", low)}
    return stated


def parse_chinese(text):
    """As `parse_english`, for Chinese text."""
    terms = {kind: {translate(v, "zh"): v for v in values} for kind, values in (
        ("finding", FINDINGS), ("organ", ORGANS), ("modality", IMAGE_MODALITIES),
        ("place", PLACES), ("department", DEPARTMENTS[:-1]),
        ("severity", ("mild", "moderate", "severe")),
    )}  # fmt: skip
    sizes = {"较小的": "small", "中等大小的": "medium", "较大的": "large"}
    stated = set()
    for sentence in re.findall("[^。]+。", text):
        nothing = "未见异常" in sentence
        sentence = sentence.replace("未见异常", "#")
        negative = re.search("未|没有|不", sentence) is not None
        if nothing:
            stated.add(("label", NO_FINDING, None))
        names = []
        pattern = f"(?:([一两三])[个处])?({one_of(sizes)})?({one_of(terms['finding'])})"
        for number, size, term in re.findall(pattern, sentence):
            label = terms["finding"][term]
            names.append(label)
            stated.add(("absent" if negative else "label", label, None))
            if number:
                stated.add(("count", str(CHINESE_NUMBERS[number]), label))
            if size:
                stated.add(("size", sizes[size], label))
        sentence = re.sub(one_of(terms["finding"]), "#", sentence)
        label = names[0] if names else None
        for kind in ("department", "modality", "organ", "severity", "place"):
            about = label if kind == "place" else None
            for term in re.findall(one_of(terms[kind]), sentence):
                stated.add((kind, terms[kind][term], about))
            sentence = re.sub(one_of(terms[kind]), "#", sentence)
        stated |= {("side", {"左": "left", "右": "right"}[s], label) for s in
                   re.findall("([左右])侧", sentence)}  # fmt: skip
        if size := re.search("(?:大小|尺寸)[^小中大]*(小|中等|大)。", sentence):
            value = {"小": "small", "中等": "medium", "大": "large"}[size[1]]
            stated.add(("size", value, label))
    return stated


def allowed(facts, *, region=False):
    """All (kind, value, label) that a text may state, with and without the label."""
    may = {(f.kind, f.value, label) for f in facts for label in {f.label or None, None}}
    boxes = [f for f in facts if f.kind == "box"]
    for fact in boxes:  # the places of two or three instances follow from their boxes
        x1, y1, x2, y2 = map(float, fact.value.split())
        cell = PLACES[3 * min(int((y1 + y2) * 1.5), 2) + min(int((x1 + x2) * 1.5), 2)]
        may |= {("place", cell, label) for label in (fact.label, None)}
        if region:
            may.add(("count", "1", fact.label))
    if not any(f.kind == "count" for f in facts):
        may |= {("count", "1", f.value) for f in facts if f.kind == "label"}  # "a glioma"
    return may


@pytest.mark.parametrize(("language", "parse"), [("en", parse_english), ("zh", parse_chinese)])
def test_descriptions_state_only_facts(language, parse):
    kinds = Counter()
    for number in range(400):
        made = phantom(number)
        facts = extract(made)
        for sample in samples_of(made, language):
            if sample.subset == "caption":
                text = sample.conversations[1]["content"]
                region = "<box>" in sample.conversations[0]["content"]
            elif sample.subset.startswith("text"):
                text = sample.conversations[0]["content"].split("\n")[0]
                text, region = re.sub("^(Report: |报告：)", "", text), False
            else:
                continue
            stated = parse(text)
            assert stated <= allowed(facts, region=region), (text, stated - allowed(facts))
            assert stated, text
            if not region and sample.subset == "caption":
                must = {("modality", made.modality, None), ("organ", made.organ, None)}
                must |= {("label", made.labels[0], None)}
                assert must <= stated, (text, must - stated)
            kinds.update(kind for kind, _, _ in stated)
    # The parser sees every kind, so the test above is not empty.
    expected = "modality organ label absent count place side size severity department"
    assert set(kinds) == set(expected.split()), kinds
    assert min(kinds.values()) >= 15, kinds


def test_parsers_see_a_lie():
    facts = extract(phantom(0, modality="CT", organ="lung", labels=("nodule",), boxes=()))
    for lie in ("There are two nodules.", "A cyst is seen.", "No nodule is seen.", "It is MR."):
        assert not parse_english(lie) <= allowed(facts), lie
    for lie in ("可见两个结节。", "图中有囊肿。", "未见结节。", "这是磁共振图像。"):
        assert not parse_chinese(lie) <= allowed(facts), lie


def test_captions_have_two_to_four_sentences():
    for number in range(200):
        for language, stop in (("en", r"\.(?= |$)"), ("zh", "。")):
            for turns in texts(samples_of(phantom(number), language), "caption"):
                assert 2 <= len(re.findall(stop, turns[1]["content"])) <= 4, turns[1]["content"]


def test_places_of_several_instances_are_listed():
    boxes = [box("cavity", x, x, x + 0.1, x + 0.1) for x in (0.1, 0.4, 0.8)]
    made = phantom(
        0, modality="X-ray", organ="lung", labels=("cavity",), absent=(), boxes=tuple(boxes)
    )
    text = " ".join(str(samples_of(made, seed=s)[0].conversations) for s in range(30))
    assert "cavities" in text
    assert "the upper left, the center and the lower right of the image" in text
    text = " ".join(str(samples_of(made, "zh", seed=s)[0].conversations) for s in range(30))
    assert "图像左上部、中央和右下部" in text


def test_captions_vary_in_wording_and_order():
    found = {samples_of(phantom(3), seed=s)[0].conversations[1]["content"] for s in range(60)}
    assert len(found) > 50
    first = {re.match(r"[^.]+", text)[0] for text in found}
    assert any("image of" not in sentence for sentence in first)  # not always the modality first


def test_region_captions_start_with_this_region():
    starts = Counter()
    for number in range(300):
        made = phantom(number)
        for language, start in (("en", "This region "), ("zh", "该区域")):
            for sample in samples_of(made, language):
                if sample.subset == "caption" and sample.granularity == "box":
                    assert sample.conversations[1]["content"].startswith(start)
                    assert "<box>[[" in sample.conversations[0]["content"]
                    starts[language] += 1
    assert 0.2 < starts["en"] / 225 < 0.4  # of the three quarters that have boxes


@pytest.mark.parametrize("language", LANGUAGES)
def test_brief_answers_are_facts(language):
    """Each brief answer is the value of a fact of the kind that its question asks for."""
    seen = Counter()
    for number in range(300):
        made = phantom(number)
        facts = extract(made)
        for sample in samples_of(made, language):
            for user, assistant in zip(
                sample.conversations[::2], sample.conversations[1::2], strict=True
            ):
                asks, said = user["content"].rsplit("\n", 1)[-1], assistant["content"]
                if not asks.endswith(phrases.BRIEF[language]):
                    continue
                kind = kind_of(asks, language)
                seen[kind] += 1
                assert right(kind, asks, said, facts, language), (asks, said)
    expected = set(
        ["modality", "organ", "department", "label", "place", "side", "count", "size", "severity"]
    )
    assert expected | {"present", "any", "none", "is_modality", "is_organ", "region"} <= set(seen)


def kind_of(asks, language):
    """The kind whose surface form fits `asks`; of several the one with the most literal text."""
    asks = asks.removeprefix("<image>\n").split("Question: ")[-1].split("问题：")[-1]
    asks = asks.split("\n")[0]
    for endings in (phrases.BRIEF, phrases.LABEL, phrases.BOX):
        asks = asks.removesuffix(endings[language]).strip()
    fits = []
    for kind, forms in phrases.QUESTIONS.items():
        for form in forms[language]:
            pattern = re.sub(r"\\{\w+\\}", "(.+)", re.escape(form))
            if re.fullmatch(pattern, asks):
                fits.append((len(re.sub(r"{\w+}", "", form)), kind))
    assert fits, asks
    kind = max(fits)[1]
    if kind in ("present", "present_structure", "is_organ"):  # some Chinese forms are the same
        kind = "present" if any(spoken(n, asks, language) for n in FINDINGS) else "is_organ"
    return kind


def right(kind, asks, said, facts, language):
    """Whether `said` answers `asks` by the facts; reads names from the question, not slots."""
    values = {translate(f.value, language) for f in facts if f.kind == kind}
    if kind in ("modality", "organ", "department", "label", "severity", "side", "place", "size"):
        return said in values
    if kind == "count":
        return said in values and said.isdecimal()
    if kind == "region":
        corners = re.search(r"\[\[(.+?)\]\]", asks)[1].replace(",", "")
        names = {f.label for f in facts if f.kind == "box" and f.value == corners}
        return said in {translate(n, language) for n in names}
    yes = {"en": {"yes": True, "no": False}, "zh": {"是": True, "否": False}}[language][said]
    labels = {f.value for f in facts if f.kind == "label"}
    if kind in ("any", "none"):
        return yes == ((labels != {NO_FINDING}) == (kind == "any"))
    if kind in ("is_modality", "is_organ"):
        fact = next(f for f in facts if f.kind == kind.removeprefix("is_"))
        return yes == (spells(translate(fact.value, language), asks))
    named = [n for n in FINDINGS if spoken(n, asks, language)]
    named = [max(named, key=lambda n: len(translate(n, language)))]
    absent = {f.value for f in facts if f.kind == "absent"}
    return named[0] in (labels if yes else absent)


def spells(word, text):
    """Whether `text` has `word`, not inside another Latin word (CT is not OCT)."""
    return re.search(rf"(?<![A-Za-z]){re.escape(word)}(?![A-Za-z])", text) is not None


def spoken(name, asks, language):
    if language == "zh":
        return translate(name, "zh") in asks
    spellings = [s for s, (label, several) in SPELLINGS.items() if label == name and not several]
    return any(re.search(rf"\b{s}\b", asks) for s in spellings)


def test_yes_and_no_are_balanced():
    said = Counter()
    by_label = Counter()
    for number in range(1000):
        for sample in samples_of(phantom(number)):
            if sample.subset == "instruct":
                for user, reply in zip(
                    sample.conversations[::2], sample.conversations[1::2], strict=True
                ):
                    if reply["content"] in ("yes", "no"):
                        said[reply["content"]] += 1
                        if "cyst" in user["content"]:
                            by_label[reply["content"]] += 1
    assert said["yes"] == said["no"] > 700
    assert 0.3 < by_label["yes"] / by_label.total() < 0.7  # the name alone does not tell


def test_instruct_covers_every_kind_and_has_up_to_eight_turns():
    turns, kinds = Counter(), Counter()
    for number in range(300):
        for conversation in texts(samples_of(phantom(number)), "instruct"):
            turns[len(conversation) // 2] += 1
            for asks in conversation[::2]:
                kinds[kind_of(asks["content"], "en")] += 1
    assert min(turns) >= 4 and max(turns) <= 8, turns
    for kind in [
        "modality",
        "organ",
        "label",
        "present",
        "side",
        "place",
        "count",
        "size",
        "severity",
    ]:
        assert kinds[kind] >= 20, (kind, kinds)


def test_percept_answers_are_tags():
    for number in range(100):
        made = phantom(number)
        for turns in texts(samples_of(made), "percept"):
            assert 3 <= len(turns) // 2 <= 5
            for reply in turns[1::2]:
                assert re.fullmatch(
                    r"<ref>[^<]+</ref>(<box>\[(\[\d\.\d\d(, \d\.\d\d){3}\](, )?)+\]</box>)?",
                    reply["content"],
                )


def test_percept_boxes_are_those_of_the_annotation():
    made = phantom(next(n for n in range(99) if len(phantom(n).boxes) == 3))
    expected = sorted([f"{v:.2f}" for v in (b.x1, b.y1, b.x2, b.y2)] for b in made.boxes)
    found = []
    for seed in range(5):
        for turns in texts(samples_of(made, seed=seed), "percept"):
            for reply in turns[1::2]:
                if "<box>" in reply["content"]:
                    boxes = re.findall(r"\[([\d., ]+)\]", reply["content"])
                    found.append(sorted(b.split(", ") for b in boxes))
    assert found and all(boxes == expected for boxes in found)


def test_the_first_user_turn_alone_carries_the_image():
    for made in one_of_each():
        for language in LANGUAGES:
            for sample in samples_of(made, language):
                marks = [t["content"].count("<image>") for t in sample.conversations]
                pictured = sample.subset in ("caption", "percept", "instruct")
                assert sum(marks) == len(sample.images) == int(pictured)
                if pictured:
                    assert sample.conversations[0]["content"].startswith("<image>\n")
                roles = [t["role"] for t in sample.conversations]
                assert roles == ["user", "assistant"] * (len(roles) // 2)
                assert all(t["content"].strip() for t in sample.conversations)


def test_text_subsets_cover_the_promised_shares():
    counts = Counter()
    for number in range(600):
        for language in LANGUAGES:
            for sample in samples_of(phantom(number), language):
                counts[language, sample.subset] += 1
                if sample.subset.startswith("text"):
                    first = sample.conversations[0]["content"]
                    assert re.match(r"(Report: .+\nQuestion: |报告：.+\n问题：)", first)
                    assert (sample.modality, sample.images, sample.width) == ("text", (), 0)
                if sample.subset == "text_multi":
                    assert 4 <= len(sample.conversations) // 2 <= 8
    for language in LANGUAGES:
        assert 0.44 < counts[language, "text_multi"] / 600 < 0.56
        assert 0.2 < counts[language, "text_single"] / 600 < 0.3


def test_text_questions_are_answered_by_the_report():
    """A value that the answer gives was stated in the report."""
    for number in range(300):
        for sample in samples_of(phantom(number)):
            if not sample.subset.startswith("text"):
                continue
            report = sample.conversations[0]["content"].split("\n")[0]
            stated = {(kind, value) for kind, value, _ in parse_english(report)}
            for user, reply in zip(
                sample.conversations[::2], sample.conversations[1::2], strict=True
            ):
                asks = user["content"].split("Question: ")[-1]
                kind = kind_of(asks, "en")
                if kind in (
                    "modality",
                    "organ",
                    "department",
                    "place",
                    "side",
                    "count",
                    "severity",
                ):
                    assert (kind, reply["content"]) in stated, (report, asks, reply)
                if kind == "present" and reply["content"] == "no":
                    name = [n for n in FINDINGS if spoken(n, asks, "en")]
                    assert any(("absent", n) in stated for n in name), (report, asks)


def test_many_cells_are_counted_not_listed():
    for language in LANGUAGES:
        for seed in range(10):
            for made in (blood_cells(), nuclei()):
                for sample in samples_of(made, language, seed):
                    for turn in sample.conversations:
                        assert turn["content"].count("[0.") <= 6
    counted = [
        (user["content"], reply["content"])
        for seed in range(20)
        for turns in texts(samples_of(nuclei(), seed=seed), "instruct")
        for user, reply in zip(turns[::2], turns[1::2], strict=True)
        if kind_of(user["content"], "en") == "count"
    ]
    assert counted and {said for _, said in counted} <= {"40", *said_sentences(counted)}
    captions = [samples_of(blood_cells(), seed=s)[0].conversations[1]["content"] for s in range(20)]
    whole = [c for c in captions if not c.startswith("This region")]
    assert all("12 red blood cells" in c and "a white blood cell" in c for c in whole)


def test_cells_are_not_called_findings():
    for seed in range(20):
        for sample in samples_of(nuclei(), seed=seed):
            text = "\n".join(turn["content"] for turn in sample.conversations)
            assert "finding" not in text, text
            assert "organ" not in text and "body part" not in text


def said_sentences(counted):
    return {said for _, said in counted if "40 nuclei" in said}


def test_organs_are_recognised_by_region_in_readable_names():
    asks, everything = [], []
    for seed in range(20):
        for sample in samples_of(organs(), seed=seed):
            everything += [turn["content"] for turn in sample.conversations]
            asks += [t["content"] for t in sample.conversations if "in the region" in t["content"]]
    text = "\n".join(everything)
    assert any("organ" in a for a in asks)
    assert "left kidney" in text and "middle lobe of the right lung" in text
    assert "_" not in text and "a liver" not in text and "finding" not in text
    assert "Is there the" not in text


def test_source_pairs_are_used_as_they_are():
    writer = TemplateWriter(0)
    made = asked(11)
    written = [s for s in writer.write(made, extract(made), language="en")]
    instruct = [s for s in written if s.subset == "instruct"]
    assert [len(s.conversations) // 2 for s in instruct] == [8, 3]
    assert instruct[0].conversations[2] == {
        "role": "user",
        "content": "Is sign 1 seen? Answer briefly.",
    }
    assert len({s.id for s in written}) == len(written)
    assert writer.counts["question-answer pairs without text"] == 1
    assert len(samples_of(replace(made, qa=made.qa * 2))) == len(written)  # repeats go once
    assert not texts(TemplateWriter(0).write(made, extract(made), language="zh"), "text_single")
    assert "sign" not in str([s.conversations for s in samples_of(made, "zh")])


@pytest.mark.parametrize(
    ("question", "said", "brief"),
    [
        ("Which plane?", "axial", True),
        ("Which plane?", "The plane of this image is axial.", False),
        ("Which plane? Answer briefly.", "axial", True),
        ("Which plane?\nA. axial\nB. coronal", "A. axial", False),
    ],
)
def test_a_source_question_says_when_its_answer_is_a_bare_value(question, said, brief):
    made = replace(asked(1), qa=(QuestionAnswer(question=question, answer=said),))
    (turns,) = texts(samples_of(made), "instruct")
    assert turns[0]["content"].count("Answer briefly.") == brief


def test_source_reports_become_captions_and_text():
    made = noted()
    for seed in range(20):
        written = samples_of(made, seed=seed)
        assert texts(written, "caption")[0][1]["content"] == made.report
        for turns in texts(written, "text_multi"):
            assert turns[0]["content"].startswith(f"Report: {made.report}\nQuestion: ")
            assert not any("X-ray" in t["content"] for t in turns[1::2])  # not in the report
    assert made.report not in str([s.conversations for s in samples_of(made, "zh")])


def test_text_records_give_single_questions_in_their_own_language():
    assert [s.subset for s in samples_of(text_only())] == ["text_single"] * 2
    assert samples_of(text_only(), "zh") == []
    assert samples_of(text_only(answer=" ")) == []


def test_long_source_text_is_cut_at_a_sentence_and_counted():
    sentence = "This sentence has exactly seven words here. "
    text, was_cut = cut(sentence * 20)
    assert was_cut and text == (sentence * 8).strip()
    assert cut("one  two\n three.") == ("one two three.", False)
    assert cut("word " * 80) == (("word " * 80).strip(), False)  # nowhere to cut
    assert cut("word " * 70 + "end. More.")[0].endswith("end.")
    writer = TemplateWriter(0)
    writer.write(text_only(answer=sentence * 20), (), language="en")
    assert writer.counts["answers cut"] == 2


def test_a_bare_record_still_gives_short_samples():
    written = samples_of(bare())
    assert {s.subset for s in written} == {"caption", "percept", "instruct"}
    assert "knee" in texts(written, "caption")[0][1]["content"]
    nothing = record(modality="text", department="unstated", organ="")
    assert samples_of(nothing) == []


def test_absent_classes_are_the_only_negations():
    seen = set()
    for seed in range(40):
        for sample in samples_of(tumor(), seed=seed):
            for turn in sample.conversations[1::2]:
                seen |= set(re.findall(r"[Nn]o (\w+(?: tumor)?)", turn["content"]))
    assert seen <= {"meningioma", "pituitary tumor", "pituitary"} and seen


def test_same_seed_same_samples_in_any_order():
    made = one_of_each()
    one, other = TemplateWriter(7), TemplateWriter(7)
    forward = {r.id: one.write(r, extract(r), language="en") for r in made}
    backward = {r.id: other.write(r, extract(r), language="en") for r in reversed(made)}
    assert forward == backward
    assert forward != {r.id: samples_of(r, seed=8) for r in made}


def test_multiple_choice_has_one_right_option():
    found, kinds = 0, set()
    for number in range(200):
        made = phantom(number)
        values = {f.value for f in extract(made)}
        for turns in texts(samples_of(made), "instruct"):
            for user, reply in zip(turns[::2], turns[1::2], strict=True):
                options = dict(re.findall(r"\n([A-D])\. (.+)", user["content"]))
                if options:
                    found += 1
                    assert len(options) == 4 and len(set(options.values())) == 4
                    by_letter = "letter" in user["content"]
                    kinds.add(by_letter)
                    said = reply["content"]
                    assert (options[said] if by_letter else said) in values
                    truths = {f.value for f in extract(made) if f.kind != "absent"}
                    assert len(set(options.values()) & truths) == 1
    assert found > 20 and kinds == {True, False}, "a letter is asked for, or the text"


@pytest.mark.parametrize("table", [phrases.QUESTIONS, phrases.REQUESTS, sentences.SENTENCES])
def test_every_kind_has_six_different_forms_in_both_languages(table):
    for kind, forms in table.items():
        for language in LANGUAGES:
            assert len(set(forms[language])) >= 6, (kind, language)


def test_question_and_answer_for_benchmarks():
    facts = {f.kind: f for f in extract(phantom(next(
        n for n in range(99) if len(phantom(n).boxes) == 1 and phantom(n).absent
    )))}  # fmt: skip
    label = facts["label"].value
    for language in LANGUAGES:
        for form in range(6):
            asks = question("location", language, label=label, form=form)
            assert asks.endswith(phrases.BRIEF[language])
        assert answer("location", facts["place"], language) == translate(
            facts["place"].value, language
        )
        assert answer("yes/no", facts["label"], language) == {"en": "yes", "zh": "是"}[language]
        assert answer("yes/no", facts["absent"], language) == {"en": "no", "zh": "否"}[language]
        assert answer("finding", facts["label"], language) == translate(label, language)
        boxes = answer("box", facts["box"], language)
        assert boxes.startswith("<ref>") and boxes.endswith("]]</box>")
    assert question("box", "en", label="nodule", form=0) == "Locate the nodule. Give the box."
    assert question("yes/no", "en", label="ulcer", form=0) == "Is there an ulcer? Answer briefly."
    assert question("count", "zh", label="nodule", form=0) == "图中有几个结节？请简短回答。"
    assert question("finding", "en", rng=random.Random(0), brief=False)[-1] in "?."
    shown = "Which?\nA. x\nB. y\nAnswer with the "
    assert choices("Which?", ["x", "y"], "en", by_letter=True) == shown + "letter."
    assert choices("Which?", ["x", "y"], "en", by_letter=False) == shown + "option."
    with pytest.raises(ValueError, match="unknown question kind 'colour'"):
        question("colour", "en", form=0)
    with pytest.raises(ValueError, match="needs `form` or `rng`"):
        question("label", "en")
    with pytest.raises(ValueError, match="no sentence answers"):
        answer("region", facts["label"], "en", False)


def test_unknown_terms_stay_english_and_are_counted():
    made = record(labels=("odd thing",))
    writer = TemplateWriter(0)
    written = writer.write(made, extract(made), language="zh")
    assert "odd thing" in written[0].conversations[1]["content"]
    assert writer.unknown_terms["odd thing"] > 0


def test_a_source_answer_may_be_any_text():
    made = record(qa=(QuestionAnswer(question="Plane?", answer="axial"),))
    assert samples_of(made)[2].conversations[1]["content"] == "axial"


# Fact type -> kinds of questions and of sentences that are about it.
SURFACES = {
    "modality": (("modality", "is_modality"), ("modality", "modality_organ")),
    "department": (("department",), ("department",)),
    "organ": (("organ", "is_organ"), ("organ", "modality_organ")),
    "label": (("label", "labels", "present"), ("label",)),
    "absent": (("present",), ("no_label", "absent")),
    "box": (("box", "boxes", "region"), ("region",)),
    "side": (("side",), ("side",)),
    "place": (("place",), ("place", "places", "label_place")),
    "count": (("count",), ("count",)),
    "size": (("size",), ("size",)),
    "severity": (("severity",), ("severity",)),
}


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", sorted(SURFACES))
def test_every_type_of_fact_has_ten_surface_forms(kind, language):
    asked, said = SURFACES[kind]
    forms = [form for name in asked for form in phrases.QUESTIONS[name][language]]
    forms += [form for name in said for form in sentences.SENTENCES[name][language]]
    assert len(set(forms)) >= 10
