"""Facts -> conversations: the template writer.

`TemplateWriter(seed).write(record, facts, language="en")` returns the samples of one record in
the paper's five subsets. Any object with `name` and `write` of the same shape is a writer.
`question`, `answer` and `choices` are for benchmarks that ask as the training data does.

Paper: section 3.1, step 5; tables 9 and 10 (subsets).
Departs: templates instead of GPT-4o, and a lexicon instead of machine translation; a source's
own English text is left out of the Chinese samples; its questions with an answer of a few words
end with "Answer briefly.", as ours do.
"""

from collections import Counter
from random import Random

from gmai_lib.dataset import phrases
from gmai_lib.dataset.describe import Page, describe, describe_region
from gmai_lib.dataset.lexicon import LEXICON
from gmai_lib.dataset.questions import answer, ask_briefly, choices, question
from gmai_lib.dataset.turns import (
    Turn,
    conversation,
    instruct_turns,
    percept_turns,
    report_turns,
)
from gmai_lib.schema import Fact, Record, Sample

__all__ = [
    "LEXICON", "TemplateWriter", "answer", "ask_briefly", "choices", "cut", "make_sample",
    "question",
]  # fmt: skip

MOST_SOURCE_TURNS = 8  # question-answer pairs of a source in one conversation
MOST_BRIEF = {"en": 3, "zh": 8}  # words, characters: a source's answer that is a bare value
MOST_WORDS = 60  # of an answer or report taken from a source; cut at the end of a sentence
REGION_SHARE = 0.3  # of the captions of records with boxes
TEXT_MULTI_SHARE, TEXT_SINGLE_SHARE = 0.5, 0.25  # of the image records with labels
_ABBREVIATIONS = ("e.g.", "i.e.", "Dr.", "vs.", "approx.", "Fig.", "No.")
# Columns that a Sample takes over from its Record.
_SHARED = (
    "source", "split", "license", "access", "modality", "department", "task", "labels", "boxes",
    "patient", "volume", "width", "height", "sha256", "phash",
)  # fmt: skip


class TemplateWriter:
    """Writes the samples of one record from templates: the same for a seed, in any order.

    `unknown_terms` counts terms without a Chinese translation (they stay English), `counts`
    what was cut or left out of a source's own text.
    """

    name = "template-1"

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.unknown_terms: Counter = Counter()
        self.counts: Counter = Counter()

    def write(self, record: Record, facts: tuple[Fact, ...], *, language: str) -> list[Sample]:
        """Return the samples of `record` in `language`; [] if there is nothing to say in it."""
        rng = Random(f"{self.seed}|{language}|{record.id}")
        page = Page(facts, language, rng, self.unknown_terms)
        own = language == record.language  # a source's own text is not translated
        pairs = self._source_pairs(record) if own else []
        report = self._cut(record.report, "reports cut") if own else ""
        if record.image is None:
            written = [("text_single", [pair]) for pair in pairs]
        else:
            kind = "report" if record.task == "disease diagnosis" else "caption"
            written = self._write_image(page, pairs, report, kind)
        numbers: Counter = Counter()
        samples = []
        for subset, turns in written:
            names = {"writer": self.name, "number": numbers[subset]}
            samples.append(make_sample(record, page.facts, language, subset, turns, **names))
            numbers[subset] += 1
        return samples

    def _write_image(self, page: Page, pairs, report, kind) -> list[tuple[str, list[Turn]]]:
        written = [("caption", [_caption_turn(page, report, kind)])] if page.facts or report else []
        if turns := percept_turns(page):
            written.append(("percept", turns))
        for start in range(0, len(pairs), MOST_SOURCE_TURNS):
            written.append(("instruct", pairs[start : start + MOST_SOURCE_TURNS]))
        if not pairs and (turns := instruct_turns(page)):
            written.append(("instruct", turns))
        for subset, share in (("text_multi", TEXT_MULTI_SHARE), ("text_single", TEXT_SINGLE_SHARE)):
            if page.rng.random() < share and page.of("label"):
                turns = report_turns(page, report, single=subset == "text_single")
                written += [(subset, turns)] if turns else []
        return written

    def _source_pairs(self, record: Record) -> list[Turn]:
        pairs, seen = [], set()
        for item in record.qa:
            asked, said = " ".join(item.question.split()), self._cut(item.answer, "answers cut")
            if not asked or not said:
                self.counts["question-answer pairs without text"] += 1
            elif (asked, said) in seen:
                self.counts["repeated question-answer pairs"] += 1
            else:
                seen.add((asked, said))
                has_options = "\n" in item.question.strip()
                if _is_brief(said, record.language) and not has_options:
                    asked = ask_briefly(asked, record.language)
                pairs.append((asked, said))
        return pairs

    def _cut(self, text: str, reason: str) -> str:
        text, was_cut = cut(text)
        if was_cut:
            self.counts[reason] += 1
        return text


def quoted(record: Record, language: str) -> frozenset[str | Turn]:
    """Return the source's own report and question-answer turns, as samples give them."""
    if language != record.language:
        return frozenset()
    own: set[str | Turn] = {cut(record.report)[0]}
    for pair in record.qa:
        asked, said = " ".join(pair.question.split()), cut(pair.answer)[0]
        own |= {(asked, said), (ask_briefly(asked, language), said)}
    return frozenset(own)


def make_sample(
    record: Record, facts: tuple[Fact, ...], language: str, subset: str, turns: list[Turn], *,
    writer: str, number: int = 0,
) -> Sample:  # fmt: skip
    """Return the sample that `turns` about `record` make; `number` is among those of a subset."""
    pictured = subset in ("caption", "percept", "instruct")
    conversations = conversation(turns, pictured=pictured)
    shared = {name: getattr(record, name) for name in _SHARED}
    if not pictured:  # these describe a picture that the sample does not have
        shared |= {"modality": "text", "task": "text QA", "width": 0, "height": 0}
        shared |= {"sha256": "", "phash": ""}
    boxed = any("<box>" in turn["content"] for turn in conversations)
    return Sample(
        id=f"{record.id}#{subset}#{language}" + (f"#{number}" if number else ""),
        images=(record.image,) if pictured else (),
        conversations=tuple(conversations),
        subset=subset,
        language=language,
        granularity="box" if boxed else "image",
        facts=facts,
        writer=writer,
        **shared,
    )


def cut(text: str, most_words: int = MOST_WORDS) -> tuple[str, bool]:
    """Return `text` cut after the last sentence within `most_words`, and whether it was cut.

    Blanks and line breaks are collapsed. A first sentence longer than the limit stays whole.
    """
    words = text.split()
    if len(words) <= most_words:
        return " ".join(words), False
    ends = [i + 1 for i, word in enumerate(words) if _ends_sentence(word)]
    within = [end for end in ends if end <= most_words]
    end = within[-1] if within else min(ends, default=len(words))
    return " ".join(words[:end]), end < len(words)


def _is_brief(said: str, language: str) -> bool:
    return len(said if language == "zh" else said.split()) <= MOST_BRIEF[language]


def _ends_sentence(word: str) -> bool:
    return word.rstrip("\"')").endswith((".", "!", "?")) and word not in _ABBREVIATIONS


def _caption_turn(page: Page, report: str, kind: str) -> Turn:
    """The request and the description: the source's own text, one region, or the whole image."""
    rng, boxes = page.rng, page.of("box")
    if report:
        return rng.choice(phrases.REQUESTS[kind][page.language]), report
    if boxes and rng.random() < REGION_SHARE:
        box = rng.choice(boxes)
        asked = rng.choice(phrases.REQUESTS["region"][page.language])
        asked = asked.format(box=f"<box>[[{', '.join(box.value.split())}]]</box>")
        return asked, page.text(describe_region(page, box))
    asked = rng.choice(phrases.REQUESTS["caption"][page.language])
    return asked, page.text(describe(page))
