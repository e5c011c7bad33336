"""Measures of a written report against a reference: BLEU, ROUGE-L and the facts that both state.

BLEU and ROUGE-L count words and know nothing of negation: "no pneumothorax" shares most of its
words with "pneumothorax". The fact score reads both texts with the builder's fact checker, so that
a denied finding is another fact than the finding; what is not in its lexicon it does not see.

References: Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE).
"""

import math
import re
from collections import Counter

from gmai_lib.dataset.fidelity import claims
from gmai_lib.evaluation.wording import strip_tags

_TOKEN = re.compile(r"[一-鿿]|[^\W_]+(?:[.'][^\W_]+)*")


def tokens(text: str) -> list[str]:
    """Lower-case words without punctuation; Chinese by characters."""
    return _TOKEN.findall(strip_tags(text).casefold())


def bleu(responses: list[str], references: list[list[str]], *, order: int = 4) -> float:
    """Return the corpus BLEU of `order`, in 0..1, without smoothing.

    `references` holds one list per response. Raises ValueError for unlike lengths or a response
    without reference.
    """
    if len(responses) != len(references) or not all(references):
        raise ValueError(f"{len(responses)} responses, {len(references)} lists of references")
    matched, total, said_length, wanted_length = Counter(), Counter(), 0, 0
    for response, accepted in zip(responses, references, strict=True):
        said, wanted = tokens(response), [tokens(text) for text in accepted]
        said_length += len(said)
        wanted_length += min((abs(len(w) - len(said)), len(w)) for w in wanted)[1]
        for n in range(1, order + 1):
            counts, most = _ngrams(said, n), Counter()
            for words in wanted:
                most |= _ngrams(words, n)
            matched[n] += (counts & most).total()
            total[n] += counts.total()
    if not all(matched[n] for n in range(1, order + 1)):
        return 0.0
    precision = sum(math.log(matched[n] / total[n]) for n in range(1, order + 1)) / order
    return math.exp(min(0.0, 1 - wanted_length / said_length) + precision)


def _ngrams(words: list[str], n: int) -> Counter:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def rouge_l(response: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words, in 0..1."""
    said, wanted = tokens(response), tokens(reference)
    lengths = [0] * (len(wanted) + 1)
    for word in said:
        previous = 0
        for j, other in enumerate(wanted, 1):
            kept = lengths[j]
            lengths[j] = previous + 1 if word == other else max(lengths[j], lengths[j - 1])
            previous = kept
    common = lengths[-1]
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def fact_scores(response: str, reference: str, language: str = "en") -> dict[str, float]:
    """Return precision, recall and F1 of the facts of `response` among those of `reference`.

    A reference without any fact that the checker knows gives F1 1 only to a response without one.
    """
    said, wanted = claims(response, language), claims(reference, language)
    common = len(said & wanted)
    if not said and not wanted:
        return {"fact_precision": 1.0, "fact_recall": 1.0, "fact_f1": 1.0}
    precision = common / len(said) if said else 0.0
    recall = common / len(wanted) if wanted else 0.0
    f1 = 2 * common / (len(said) + len(wanted))
    return {"fact_precision": precision, "fact_recall": recall, "fact_f1": f1}
