"""One question about one kind of fact, and its answer; writers and benchmarks share them.

What follows a question tells the form of the answer: "Answer briefly." wants the bare value
("nodule", "upper left", "2", "yes"), "Give the label." `<ref>nodule</ref>`, "Give the box."
`<ref>nodule</ref><box>[[0.18, 0.16, 0.50, 0.43]]</box>`, "Answer with the letter." a letter,
"Answer with the option." its text;
without any of these the answer is a sentence.

Paper: figure 1 (`<ref>` and `<box>`).
Departs: the endings; one small model can then learn all forms of answers.
"""

from collections import Counter
from random import Random

from gmai_lib.dataset import phrases
from gmai_lib.dataset.describe import Page, fill, size_slots, state_absent, state_labels
from gmai_lib.dataset.lexicon import NEGATIVE_LABELS, is_structure
from gmai_lib.dataset.sentences import YES_NO
from gmai_lib.schema import Fact

KINDS = tuple(phrases.QUESTIONS)
# Names that benchmarks use for our kinds.
_SAME_KIND = {"finding": "label", "yes/no": "present", "location": "place"}
_ENDINGS = {
    "brief": phrases.BRIEF,
    "label": phrases.LABEL,
    "box": phrases.BOX,
    "sentence": dict.fromkeys(phrases.BRIEF, ""),
}


def question(
    kind: str,
    language: str,
    *,
    label: str = "",
    form: int | None = None,
    rng: Random | None = None,
    brief: bool = True,
) -> str:
    """Return one question about `kind`; `brief` asks for the bare value, else for a sentence.

    `kind` is one of `KINDS` or "finding" (label), "yes/no" (present), "location" (place).
    `label` is what it is about: a readable label for present, side, place, count, size, box and
    boxes ("" = "the finding"); the value for is_modality and is_organ; "x1, y1, x2, y2" for
    region and region_organ. `form` picks the wording (modulo their number), otherwise `rng`
    does. Box questions always end with "Give the box."
    """
    if form is None and rng is None:
        raise ValueError(f"question({kind!r}) needs `form` or `rng` to choose its wording")
    ending = "brief" if brief else "sentence"
    if kind in ("box", "boxes"):
        ending = "box"
    return ask(kind, language, label, ending, form=form, rng=rng)


def ask(
    kind: str,
    language: str,
    label: str,
    ending: str,
    *,
    form: int | None = None,
    rng: Random | None = None,
) -> str:
    """Return a question as `question` does, with `ending` brief, label, box or sentence."""
    kind = _SAME_KIND.get(kind, kind)
    if kind == "present" and is_structure(label):
        kind = "present_structure"
    if kind not in phrases.QUESTIONS:
        raise ValueError(f"unknown question kind {kind!r}; known: {KINDS}")
    forms = phrases.QUESTIONS[kind][language]
    template = rng.choice(forms) if form is None else forms[form % len(forms)]
    page = Page((), language)
    if kind in ("region", "region_organ"):
        slots = {"box": f"<box>[[{label}]]</box>"}
    elif kind == "is_modality":
        slots = page.modality(label)
    else:
        slots = page.name(label or "finding")
    return _ended(fill(template, **slots), ending, language)


def ask_briefly(asked: str, language: str) -> str:
    """Return a source's own question with the words that ask for a bare value.

    Without them the same question would be answered with a word where a source asks it and with
    a sentence where we do, and a model cannot know which is wanted. LLaVA-1.5 does the same for
    public questions (arXiv:2310.03744, section 3.2).
    """
    asked = asked.strip()
    done = asked.endswith(phrases.BRIEF[language])
    return asked if done else _ended(asked, "brief", language)


def _ended(asked: str, ending: str, language: str) -> str:
    end = _ENDINGS[ending][language]
    return asked + (" " if end and language == "en" else "") + end


def answer(
    kind: str,
    facts: Fact | tuple[Fact, ...],
    language: str,
    brief: bool = True,
    *,
    rng: Random | None = None,
    unknown: Counter | None = None,
) -> str:
    """Return the answer that `facts` give: the bare value, or a sentence if not `brief`.

    A "label" fact answers present and any with yes, an "absent" fact or a "no finding" label
    with no; "none" the other way round. Box facts give `<ref>label</ref><box>[[...]]</box>`.
    `unknown` counts terms that have no Chinese translation.
    """
    kind = _SAME_KIND.get(kind, kind)
    facts = (facts,) if isinstance(facts, Fact) else tuple(facts)
    page = Page(facts, language, rng, Counter() if unknown is None else unknown)
    if kind in ("box", "boxes"):
        corners = ", ".join(f"[{', '.join(f.value.split())}]" for f in facts)
        return f"{ref(page, facts[:1], by='label')}<box>[{corners}]</box>"
    if kind in ("present", "any", "none"):
        return _yes_no(page, kind, brief)
    if brief:
        return ("、" if language == "zh" else ", ").join(page.term(f.value) for f in facts)
    return _sentence(page, kind)


def ref(page: Page, facts, by: str = "value") -> str:
    """Return `<ref>nodule</ref>`, several joined with ", "."""
    return ", ".join(f"<ref>{page.term(getattr(f, by))}</ref>" for f in facts)


def choices(text: str, options: list[str], language: str, *, by_letter: bool) -> str:
    """Return `text` with lettered options and the request for a letter or for the option's text."""
    lines = [f"{letter}. {option}" for letter, option in zip("ABCDEFGH", options, strict=False)]
    return "\n".join((text, *lines, (phrases.LETTER if by_letter else phrases.OPTION)[language]))


def _yes_no(page: Page, kind: str, brief: bool) -> str:
    fact = page.facts[0]
    there = fact.kind == "label" and fact.value not in NEGATIVE_LABELS
    yes = there != (kind == "none")
    if brief:
        return page.term("yes" if yes else "no")
    statement = state_absent(page, [fact]) if fact.kind == "absent" else state_labels(page)[0]
    return YES_NO[page.language][0 if yes else 1] + statement.text


def _sentence(page: Page, kind: str) -> str:
    """A sentence that states exactly the facts of the page."""
    fact = page.facts[0]
    if kind in ("label", "labels"):
        return state_labels(page)[0].text
    if kind == "modality":
        slots = page.modality(fact.value)
    elif kind == "organ":
        slots = page.name(fact.value)
    elif kind == "count":
        n, verb = page.amount(fact.label, int(fact.value))
        slots = {"n": n, "is": verb}
    elif kind in ("side", "place"):
        slots = page.name(fact.label) | {kind: page.term(fact.value)}
    elif kind == "size":
        slots = size_slots(page, fact)
    elif kind in ("department", "severity"):
        slots = {"x": page.term(fact.value)}
    else:
        raise ValueError(f"no sentence answers a question of kind {kind!r}; ask for a brief one")
    return page.say(kind, [fact], **slots).text
