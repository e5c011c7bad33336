"""The corpus of tricky answers and the properties of a scorer, and that both notice a bug."""

import os
from collections import Counter, defaultdict
from dataclasses import replace

import pandas as pd
import pytest

from gmai_lib.evaluation import extraction, peers, scoring, wording
from gmai_lib.evaluation.extraction import LETTERS
from gmai_lib.evaluation.items import KINDS

CORPUS = peers.tricky_answers()


def corpus_failures() -> list[str]:
    """Answers that the scorer reads otherwise than a reader does, with what it says."""
    failed = []
    for entry in CORPUS:
        said = peers.own_verdict(entry.item, entry.response)
        if said != entry.verdict:
            failed.append(f"{entry.category}: {entry.response!r} is {entry.verdict}, not {said}")
    return failed


def distinct_items() -> list:
    """One item per question, options and answer of the corpus."""
    found = {}
    for entry in CORPUS:
        item = entry.item
        found.setdefault((item.kind, item.question, item.options, item.answer), item)
    return list(found.values())


def wrong_answer(item) -> str:
    """Another answer of the same form."""
    if item.kind == "yes/no":
        return {"yes": "no", "no": "yes", "是": "否", "否": "是"}[item.answer]
    if item.kind == "count":
        return str(int(item.answer) + 2)  # `within_one` is for the next number
    if item.kind in ("open", "box"):
        return {"open": "something else", "box": "[[0.90, 0.90, 0.99, 0.99]]"}[item.kind]
    names = LETTERS[: len(item.options)] if item.kind == "multiple choice" else item.options
    return next(name for name in names if name != item.answer)


def mean(items, responses) -> dict[str, float]:
    """Mean of every measure, as a benchmark would report it."""
    sums = defaultdict(list)
    for item, response in zip(items, responses, strict=True):
        for name, value in scoring.score(item, response)["measures"].items():
            sums[name].append(value)
    return {name: sum(values) / len(values) for name, values in sums.items()}


def property_failures() -> list[str]:
    """What does not hold of all answers right, all wrong, all empty, and of shuffled options."""
    failed, by_kind = [], defaultdict(list)
    for item in distinct_items():
        by_kind[item.kind].append(item)
    for kind, items in by_kind.items():
        said = {
            "right": [item.answer for item in items],
            "wrong": [wrong_answer(item) for item in items],
            "empty": [""] * len(items),
        }
        for name, wanted in (("right", 1.0), ("wrong", 0.0), ("empty", 0.0)):
            if set(mean(items, said[name]).values()) != {wanted}:
                failed.append(f"{kind}: all {name} gives {mean(items, said[name])}")
    for entry in CORPUS:
        measures = scoring.score(entry.item, entry.response)["measures"]
        if not all(0.0 <= value <= 1.0 for value in measures.values()):
            failed.append(f"{entry.response!r} scores {measures}")
    return failed + shuffle_failures() + overlap_failures()


def shuffle_failures() -> list[str]:
    """Items whose score moves when the options are turned and the key with them."""
    failed = []
    for item in distinct_items():
        for turn in range(1, len(item.options)):
            turned = replace(item, options=(*item.options[turn:], *item.options[:turn]))
            answers = [(text, text) for text in item.options]
            if item.kind == "multiple choice":
                moved = dict(zip(LETTERS, turned.options, strict=False))
                letter_of = {text: letter for letter, text in moved.items()}
                new = {x: letter_of[text] for x, text in zip(LETTERS, item.options, strict=False)}
                turned = replace(turned, answer=new[item.answer], answers=())
                answers = [(f"Answer: {x}", f"Answer: {new[x]}") for x in new]
                answers += [(f"({x.lower()})", f"({new[x].lower()})") for x in new]
                if not set(item.options) & set(LETTERS):  # "B" may be a letter and a text
                    answers += [(text, text) for text in item.options]
            for before, after in answers:
                old, now = scoring.score(item, before), scoring.score(turned, after)
                if old["measures"]["accuracy"] != now["measures"]["accuracy"]:
                    failed.append(f"{item.options} turned by {turn}: {before!r}, {after!r}")
    return failed


def overlap_failures() -> list[str]:
    """Recall and F1 of open answers against values worked out by hand."""
    asked = next(e.item for e in CORPUS if e.item.kind == "open")
    known = [  # (reference, response, recall, F1)
        ("head of the pancreas", "pancreas", 1 / 3, 1 / 2),
        ("pancreas", "head of the pancreas", 1.0, 1 / 2),
        ("left lung", "right lung", 1 / 2, 1 / 2),
    ]
    failed = []
    for reference, response, recall, f1 in known:
        said = scoring.score(replace(asked, answer=reference), response)["measures"]
        if (said["token_recall"], said["token_f1"]) != pytest.approx((recall, f1)):
            failed.append(f"{response!r} for {reference!r}: {said}")
    return failed


def environment_failures() -> list[str]:
    """Answers whose score follows an environment variable."""
    verdicts = []
    before = dict(os.environ)
    try:
        for value in (None, "0", "1"):
            for name in ("VERBOSE", "DEBUG", "LANG", "LC_ALL"):
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            verdicts.append([peers.own_verdict(e.item, e.response) for e in CORPUS])
    finally:
        os.environ.clear()
        os.environ.update(before)
    pairs = zip(CORPUS, *verdicts, strict=True)
    return [f"{entry.response!r}: {said}" for entry, *said in pairs if len(set(said)) > 1]


def all_failures() -> list[str]:
    return corpus_failures() + property_failures() + environment_failures()


def test_the_scorer_reads_every_tricky_answer_as_its_meaning_asks():
    assert corpus_failures() == []


def test_right_is_one_wrong_is_zero_and_shuffled_options_change_nothing():
    assert property_failures() == []


def test_no_environment_variable_changes_a_score():
    assert environment_failures() == []


def test_the_corpus_is_large_and_holds_every_kind_verdict_and_language():
    assert len(CORPUS) >= 600
    assert {e.item.kind for e in CORPUS} == set(KINDS)
    assert {e.verdict for e in CORPUS} == set(peers.VERDICTS)
    languages = Counter(e.item.language for e in CORPUS)
    assert languages["en"] >= 300 and languages["zh"] >= 300
    rows = Counter((e.item.question, e.item.options, e.item.answer, e.response) for e in CORPUS)
    assert [row for row, n in rows.items() if n > 1] == []
    responses = {(e.item.kind, e.item.question, e.item.options, e.response) for e in CORPUS}
    assert len(responses) >= 600, "the same response under both keys counts once"


def no_is_a_substring(monkeypatch):
    read = extraction.extract_yes_no

    def substring(text, question=""):
        if not text.isascii():
            return read(text, question)
        found = [word for word in ("yes", "no") if word in text.casefold()]
        return found[0] if len(found) == 1 else None

    monkeypatch.setattr(scoring, "extract_yes_no", substring)


def silence_is_the_first_option(monkeypatch):
    read = extraction.extract_choice
    monkeypatch.setattr(scoring, "extract_choice", lambda text, o: read(text, o) or "A")


def only_four_letters_are_known(monkeypatch):
    read = extraction.extract_choice
    monkeypatch.setattr(scoring, "extract_choice", lambda text, options: read(text, options[:4]))


def lower_case_letters_are_not_read(monkeypatch):
    read = extraction.extract_choice

    def strict(text, options):
        return read(text, options) if any(x in text for x in LETTERS) else None

    monkeypatch.setattr(scoring, "extract_choice", strict)


def a_logging_variable_decides(monkeypatch):
    read = extraction.extract_choice

    def verbose(text, options):
        return "A" if text.startswith("A ") and "VERBOSE" not in os.environ else read(text, options)

    monkeypatch.setattr(scoring, "extract_choice", verbose)


def negation_is_not_seen(monkeypatch):
    never = extraction.re.compile(r"(?!)")
    monkeypatch.setattr(extraction, "_DENIED_BEFORE", never)


def of_two_labels_the_first_option_wins(monkeypatch):
    read = extraction.extract_label

    def first(text, options):
        return read(text, options) or next((o for o in options if o in text), None)

    monkeypatch.setattr(scoring, "extract_label", first)


def closed_answers_are_counted_twice(monkeypatch):
    result = scoring._result

    def double(metric, prediction, measures):
        return result(metric, prediction, {k: 1.5 * v for k, v in measures.items()})

    monkeypatch.setattr(scoring, "_result", double)


def f1_and_recall_are_swapped(monkeypatch):
    overlap = scoring._token_overlap
    monkeypatch.setattr(scoring, "_token_overlap", lambda a, b: overlap(a, b)[::-1])


def units_are_ignored(monkeypatch):
    monkeypatch.setattr(wording, "_MEASURE", wording.re.compile(r"(?!)()()"))


def the_order_of_the_options_decides(monkeypatch):
    read = extraction.extract_choice

    def placed(text, options):
        said = read(text, options)
        return said if said is None or options[0] == min(options) else "A"

    monkeypatch.setattr(scoring, "extract_choice", placed)


BUGS = [
    no_is_a_substring,
    silence_is_the_first_option,
    only_four_letters_are_known,
    lower_case_letters_are_not_read,
    a_logging_variable_decides,
    negation_is_not_seen,
    of_two_labels_the_first_option_wins,
    closed_answers_are_counted_twice,
    f1_and_recall_are_swapped,
    units_are_ignored,
    the_order_of_the_options_decides,
]


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_fails_the_corpus_or_a_property(plant, monkeypatch):
    plant(monkeypatch)
    for cache in (wording.normalise, wording.strip_tags, wording.list_items):
        cache.cache_clear()
    found = all_failures()
    for cache in (wording.normalise, wording.strip_tags, wording.list_items):
        cache.cache_clear()
    assert found


# (toolkit, kind, response, key, what pitfalls record of it)
D = ("Pneumonia", "Pleural effusion", "Cardiomegaly", "No finding")


@pytest.mark.parametrize(
    ("rule", "options", "response", "key", "said"),
    [
        (peers.vlmevalkit_choice, D, "There is no pneumonia", "A", "right"),
        (peers.vlmevalkit_choice, D, "The image shows no evidence of pneumonia.", "A", "right"),
        (peers.vlmevalkit_choice, D, "(b)", "B", "abstain"),
        (peers.vlmevalkit_choice, D, "option b", "B", "abstain"),
        (peers.vlmevalkit_choice, D, "A fracture is seen", "A", "right"),
        (peers.lmms_eval_choice, D, "b", "B", peers.GUESS),
        (peers.lmms_eval_choice, D, "A fracture is seen", "A", "right"),
        (peers.medevalkit_choice, D, "", "A", "right"),
        (peers.medevalkit_choice, D, "Option B", "A", "right"),
        (peers.medevalkit_yes_no, (), "Yes, a nodule is present", "yes", "wrong"),
        (peers.medevalkit_yes_no, (), "Yes, this is abnormal", "yes", "wrong"),
        (peers.medevalkit_yes_no, (), "I do not know", "no", "right"),
    ],
)
def test_the_rules_of_others_do_what_was_observed_of_them(rule, options, response, key, said):
    kind = "multiple choice" if options else "yes/no"
    item = replace(CORPUS[0].item, kind=kind, options=options, answer=key, answers=())
    assert rule(item, response) == said


def test_the_agreement_table_counts_every_answer_once_per_toolkit():
    table = pd.DataFrame(peers.agreement())
    own = table[table.toolkit == "this project"]
    assert own[own.category == "all"].num_items.item() == len(CORPUS)
    assert (own.same_score == 1).all()
    for toolkit, rows in table.groupby("toolkit"):
        effects = ["false_credit", "lost_credit", "guesses"]
        parts, whole = rows[rows.category != "all"], rows[rows.category == "all"].iloc[0]
        assert (parts[["num_items", *effects]].sum() == whole[["num_items", *effects]]).all()
        assert whole.same_score == pytest.approx(1 - whole[effects].sum() / whole.num_items)
        if toolkit != "this project":
            assert whole.same_score < 1
            assert len(peers.differences(toolkit)) == whole[effects].sum()


def test_a_toolkit_without_rules_is_named():
    with pytest.raises(ValueError, match="no rules of 'EvalScope'"):
        peers.differences("EvalScope")
