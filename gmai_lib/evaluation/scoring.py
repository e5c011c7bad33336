"""Score a response to an item: extraction, then one main measure and several others.

A response that cannot be read (`gmai_lib.evaluation.extraction`) gives the prediction None and
the score 0; it stays in the denominator.

Every item is measured by `accuracy` after extraction and by the stricter `exact_match` of the
normalised text; counts also by `within_one`; open answers by `exact_match` (without the words that
announce an answer, and a list in any order), `token_recall` and `token_f1`; boxes by `iou` and
`accuracy_at_0.5`.
"""

import re
from collections import Counter

import numpy as np

from gmai_lib.evaluation.extraction import (
    LETTERS,
    extract_choice,
    extract_label,
    extract_number,
    extract_yes_no,
)
from gmai_lib.evaluation.wording import free_text, is_refusal, list_items, normalise
from gmai_lib.grounding import extract_boxes


def iou(a: tuple, b: tuple) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def score(item, response: str) -> dict:
    """Score one response to a benchmarks.Item.

    Returns `correct` (0..1, the item's main measure), `prediction` (text, or None if the scorer
    abstains), `metric` (name of the main measure) and `measures` (every measure by name).
    Raises ValueError if the item's own answer cannot be read: the item would be unanswerable.
    """
    accepted = {normalise(answer) for answer in item.answers or (item.answer,)}
    exact = float(normalise(response) in accepted - {""})
    if item.kind == "box":
        return _score_boxes(item, response)
    if item.kind == "open":
        text = free_text(response)
        exact = max(exact, float(text in accepted - {""}), _same_list(item, response))
        overlaps = [_token_overlap(text, answer) for answer in accepted]
        recall, f1 = (max(values) for values in zip(*overlaps, strict=True))
        measures = {"accuracy": exact, "exact_match": exact}  # "accuracy" for means over kinds
        measures |= {"token_recall": recall, "token_f1": f1}
        prediction = None if not text or (is_refusal(response) and not exact) else text
        return _result("exact_match", prediction, measures)
    if item.kind == "yes/no":
        prediction = extract_yes_no(response, item.question)
        correct = prediction == _gold(item, extract_yes_no(item.answer))
    elif item.kind == "multiple choice":
        prediction = extract_choice(response, item.options)
        known = item.answer in LETTERS[: len(item.options)]
        correct = prediction == _gold(item, item.answer if known else None)
        exact = float(response.split("<|im_end|>")[0].strip(" .()\n") == item.answer)
    elif item.kind == "count":
        number = extract_number(response)
        prediction = None if number is None else str(number)
        _gold(item, extract_number(item.answer))
        accepted_numbers = item.answers or (item.answer,)
        correct = prediction in accepted_numbers
        near = number is not None and any(
            abs(number - int(a)) <= 1 for a in accepted_numbers if a.isdigit()
        )
    else:
        prediction = extract_label(response, item.options)
        _gold(item, extract_label(item.answer, item.options))
        correct = prediction is not None and normalise(prediction) in accepted
    measures = {"accuracy": float(correct), "exact_match": exact}
    if item.kind == "count":
        measures["within_one"] = float(near)
    return _result("accuracy", prediction, measures)


def _result(metric: str, prediction: str | None, measures: dict[str, float]) -> dict:
    return {
        "correct": measures[metric],
        "prediction": prediction,
        "metric": metric,
        "measures": measures,
    }


def _gold(item, read: str | int | None):
    if read is None:
        raise ValueError(
            f"item {item.id}: the scorer cannot read its own answer {item.answer!r} "
            f"as kind {item.kind!r} (options {item.options}); correct the item"
        )
    return read


def _same_list(item, response: str) -> float:
    said = list_items(response)
    return float(bool(said) and said in {list_items(a) for a in item.answers or (item.answer,)})


def _score_boxes(item, response: str) -> dict:
    """Mean IoU over the best one-to-one matching; missing and surplus boxes count as 0."""
    from scipy.optimize import linear_sum_assignment

    gold, predicted = extract_boxes(item.answer), extract_boxes(response)
    _gold(item, len(gold) or None)
    overlaps = np.array([[iou(a, b) for b in predicted] for a in gold]).reshape(len(gold), -1)
    matched = overlaps[linear_sum_assignment(overlaps, maximize=True)]
    number = max(len(gold), len(predicted))
    measures = {
        "iou": float(matched.sum() / number),
        "accuracy_at_0.5": float((matched >= 0.5).sum() / number),
    }
    return _result("iou", str(predicted) if predicted else None, measures)


def _token_overlap(predicted: str, gold: str) -> tuple[float, float]:
    """Recall and F1 of words (Chinese: characters), as multisets."""
    pattern = r"[一-鿿]|[^\s一-鿿]+"
    predicted_words = Counter(re.findall(pattern, predicted))
    gold_words = Counter(re.findall(pattern, gold))
    common = (predicted_words & gold_words).total()
    if not common:
        return 0.0, 0.0
    recall, precision = common / gold_words.total(), common / predicted_words.total()
    return recall, 2 * precision * recall / (precision + recall)
