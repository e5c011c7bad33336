"""The corpus of tricky answers, and how the published rules of other toolkits read it.

    pandas.DataFrame(agreement())          # per toolkit and category: where its score differs
    pandas.DataFrame(differences("MedEvalKit"))   # every answer that it scores differently

`tricky_answers.csv` holds an answer a line with the verdict that its meaning asks for: "right",
"wrong" (it says something else) or "abstain" (it says nothing that can be read). Many of them are
one phrase in several forms; the numbers say where rules differ, not how often models write so.

The rules are those of VLMEvalKit (e8e78f0: option letter, option text), lmms-eval (75571cf: MMMU
letters, SLAKE answers) and MedEvalKit (9b12e3b: letters by similarity, yes/no by substring, equal
text), restated from their description and written anew; no code of theirs is used. A rule that a
toolkit leaves to an LLM judge, or has no benchmark for, is not there.

References: https://github.com/open-compass/VLMEvalKit,
https://github.com/EvolvingLMMs-Lab/lmms-eval, https://github.com/alibaba-damo-academy/MedEvalKit
"""

import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from gmai_lib.evaluation.extraction import LETTERS
from gmai_lib.evaluation.items import Item
from gmai_lib.evaluation.scoring import score

VERDICTS = ("right", "wrong", "abstain")
GUESS = "guess"  # a letter drawn at random where nothing was read
_CLOSED = ("modality", "organ", "finding", "side", "location")


@dataclass(frozen=True)
class TrickyAnswer:
    """One response to one question, and what a reader would say of it."""

    item: Item
    response: str
    verdict: str
    category: str


def tricky_answers() -> list[TrickyAnswer]:
    """Return the corpus; the items have no image."""
    path = Path(__file__).with_name("tricky_answers.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        TrickyAnswer(
            Item(
                id=f"tricky#{number}",
                benchmark="tricky_answers",
                images=(),
                question=row["question"],
                answer=row["answer"],
                kind=row["kind"],
                language=row["language"],
                options=tuple(filter(None, row["options"].split(" | "))),
                group=f"tricky#{number}",
                modality="unstated",
                source="tricky_answers",
            ),
            row["response"],
            row["verdict"],
            row["category"],
        )
        for number, row in enumerate(rows)
    ]


def own_verdict(item: Item, response: str) -> str:
    """What this project's scorer says; a box is right from an IoU of 0.5."""
    result = score(item, response)
    if result["prediction"] is None:
        return "abstain"
    measures = result["measures"]
    return _verdict(measures.get("accuracy_at_0.5", result["correct"]) == 1.0)


def _verdict(is_right: bool) -> str:
    return "right" if is_right else "wrong"


def vlmevalkit_choice(item: Item, response: str) -> str:
    """One option letter among the last five words; else the only option whose text occurs.

    With exact matching, what neither rule reads is wrong. The letter is looked for in capitals;
    a text longer than twice all options together is not searched; negation does not matter.
    """
    letters = LETTERS[: len(item.options)]
    tokens = re.sub(r"[.()\[\],:;!*#{}]", " ", response).split()
    present = [letter for letter in letters if letter in tokens]
    if len(present) == 1 and present[0] in tokens[-5:]:
        return _verdict(present[0] == item.answer)
    bold = re.findall(r"answer is \*\*([A-D])\*\*", response)
    if bold:
        return _verdict(bold[-1] == item.answer)
    text = response.lower()
    if len(text) > 2 * sum(map(len, item.options)):
        return "abstain"
    named = [x for x, option in zip(letters, item.options, strict=True) if option.lower() in text]
    return _verdict(named[0] == item.answer) if len(named) == 1 else "abstain"


def lmms_eval_choice(item: Item, response: str) -> str:
    """MMMU: "(A)", else "A " with a blank after it, else "A.", else the text of an option in a
    reply of more than five words; of several the last; none: a random letter."""
    letters = LETTERS[: len(item.options)]
    text = f" {response.strip(' ,.!?;:' + chr(39))} "
    for form in ("({})", "{} ", "{}."):
        places = {x: text.rfind(form.format(x)) for x in letters if form.format(x) in text}
        if places:
            return _verdict(max(places, key=places.get) == item.answer)
    if len(text.split()) > 5:
        lower = text.lower()
        pairs = zip(letters, item.options, strict=True)
        places = {x: lower.rfind(option.lower()) for x, option in pairs if option.lower() in lower}
        if places:
            return _verdict(max(places, key=places.get) == item.answer)
    return GUESS


_X_RAYS = re.compile(r"\bx ?rays?\b")
_YES_WORDS = ("yes", "y", "true", "是", "是的", "对", "有", "存在", "包含")
_NO_WORDS = ("no", "n", "false", "否", "不是", "不对", "没有", "不存在", "不包含")


def lmms_eval_text(item: Item, response: str) -> str:
    """SLAKE: lower case, no brackets, punctuation as blanks, one word for X-ray, for yes and for
    no; then equal or not."""

    def normal(text: str) -> str:
        text = re.sub(r"\([^)]*\)", " ", text.lower())
        text = " ".join(re.sub(r"[^\w\s]|_", " ", text).split())
        text = _X_RAYS.sub("xray", text)
        return "yes" if text in _YES_WORDS else "no" if text in _NO_WORDS else text

    return _verdict(normal(response) == normal(item.answer))


def medevalkit_choice(item: Item, response: str) -> str:
    """A first or last paragraph that is one letter; else what follows "answer is" and the like,
    as a letter or the text of an option; else the option most similar to the whole response.

    There is always a letter: an empty response has one too.
    """
    letters = LETTERS[: len(item.options)].lower()
    text = response.lower()
    blocks = text.split("\n\n")
    for block in (blocks[0], blocks[-1].split(".")[0]):
        if block in letters and len(block) == 1:
            return _verdict(block.upper() == item.answer)
    said = text
    if marked := re.findall(r"\\boxed\{(.*?)\}|<answer>(.*?)</answer>", text, flags=re.DOTALL):
        said = "".join(marked[-1])
    for marker in ("answer is", "answer:", "final answer", "答案:"):
        said = said.rsplit(marker, 1)[-1]
    said = said.split(".")[0].rsplit(":", 1)[-1].strip().strip("*").strip()
    if len(said) == 1 and said in letters:
        return _verdict(said.upper() == item.answer)
    options = [option.lower() for option in item.options]
    if said not in options:
        ratios = [SequenceMatcher(None, text, option).ratio() for option in options]
        said = options[ratios.index(max(ratios))]
    return _verdict(letters[options.index(said)].upper() == item.answer)


def medevalkit_yes_no(item: Item, response: str) -> str:
    """Right if exactly one of the strings "yes" and "no" occurs, anywhere, and it is the key."""
    text, key = response.lower(), item.answer.lower()
    found = [word for word in ("yes", "no") if word in text]
    return _verdict(len(found) == 1 and key in text)


def medevalkit_text(item: Item, response: str) -> str:
    """Equal after lower case and without line ends and full stops."""

    def normal(text: str) -> str:
        return text.lower().replace("\n", "").replace(".", "").strip()

    return _verdict(normal(response) == normal(item.answer))


RULES = {
    "this project": dict.fromkeys(
        ("yes/no", "multiple choice", "count", "open", "box", *_CLOSED), own_verdict
    ),
    "VLMEvalKit": {"multiple choice": vlmevalkit_choice},
    "lmms-eval": {"multiple choice": lmms_eval_choice}
    | dict.fromkeys(("yes/no", "open", *_CLOSED), lmms_eval_text),
    "MedEvalKit": {"multiple choice": medevalkit_choice, "yes/no": medevalkit_yes_no}
    | dict.fromkeys(("open", *_CLOSED), medevalkit_text),
}


def differences(toolkit: str) -> list[dict]:
    """Return the answers of the corpus whose score by the rules of `toolkit` is not the wanted one.

    `effect`: "false credit" (scored right, is not), "lost credit" (is right, scored wrong), or
    "guess" (a random letter decides).
    """
    if toolkit not in RULES:
        raise ValueError(f"no rules of {toolkit!r}; there are {list(RULES)}")
    rows = []
    for answer, said in _read(toolkit):
        if effect := _effect(answer.verdict, said):
            item = answer.item
            rows.append(
                {
                    "category": answer.category,
                    "kind": item.kind,
                    "question": item.question,
                    "options": " | ".join(item.options),
                    "answer": item.answer,
                    "response": answer.response,
                    "verdict": answer.verdict,
                    toolkit: said,
                    "effect": effect,
                }
            )
    return rows


def agreement() -> list[dict]:
    """Return one row per toolkit and category of the corpus, then "all" per toolkit.

    `num_items` counts the answers that the toolkit has a rule for. `same_score` is the share with
    the wanted score (an abstention scores 0); the three effects are counts, see `differences`.
    """
    rows = []
    for toolkit in RULES:
        by_category = defaultdict(list)
        for answer, said in _read(toolkit):
            effect = _effect(answer.verdict, said)
            by_category[answer.category].append(effect)
            by_category["all"].append(effect)
        by_category["all"] = by_category.pop("all")  # last
        for category, effects in by_category.items():
            rows.append(
                {
                    "toolkit": toolkit,
                    "category": category,
                    "num_items": len(effects),
                    "same_score": effects.count("") / len(effects),
                    "false_credit": effects.count("false credit"),
                    "lost_credit": effects.count("lost credit"),
                    "guesses": effects.count(GUESS),
                }
            )
    return rows


def _read(toolkit: str):
    rules = RULES[toolkit]
    for answer in tricky_answers():
        if rule := rules.get(answer.item.kind):
            yield answer, rule(answer.item, answer.response)


def _effect(wanted: str, said: str) -> str:
    if said == GUESS:
        return GUESS
    if (wanted == "right") == (said == "right"):
        return ""
    return "false credit" if said == "right" else "lost credit"
