"""Responses -> result rows: scores with intervals, blind and majority baselines, comparisons.

`summarise` gives each score its number of items, a 95 % interval that resamples images (questions
about one image are not independent), the score of the same model without the image, and the score
of always giving the most frequent answer. `paired_difference` compares two checkpoints on the
same items. `published` reads what the paper printed.

Paper: tables 4 to 8, which print scores without intervals or blind baselines.
Departs: no LLM judge and no random fallback (`scoring`); box answers are scored too.

Shape letters: G groups (images or volumes), R bootstrap draws.
"""

import csv
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path
from statistics import median

import numpy as np

from gmai_lib.evaluation.items import Item, question_ids_sha256
from gmai_lib.evaluation.scoring import score
from gmai_lib.grounding import extract_boxes

PROTOCOL = "greedy; answer read by rule, abstention is wrong; open answers by exact match"


def summarise(
    items: list[Item],
    responses: list[dict],
    blind_responses: list[dict] | None,
    *,
    checkpoint: str,
    protocol: str = PROTOCOL,
    prior_items: list[Item] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> list[dict]:
    """Return result rows (JSON-ready) per benchmark, kind, language, modality and subset.

    kind "overall" is the mean over all items but boxes, which are scored by `iou` and
    `accuracy_at_0.5`. The majority answer is that of `prior_items` (built like `items` from
    training records) where they have the benchmark, kind and language, else of `items` themselves:
    column `majority_from`. `chance_score` is that of drawing among the options, None where an item
    has none. `image_gain` is score minus blind score, with its own interval.
    `abstained` and `unfinished` are shares of the items. With the `draws` and the `seed` of the
    intervals in it, a row can be computed again from stored answers (`evaluation.recompute`).
    """
    majority, majority_from = majority_answers(items, prior_items or [])
    scored = {
        "model": _score_all(items, responses),
        "blind": _score_all(items, blind_responses) if blind_responses is not None else None,
        "majority": [score(item, majority[_majority_key(item)]) for item in items],
    }
    unfinished = {row["id"] for row in responses if not row["finished"]}
    rows = []
    for benchmark in dict.fromkeys(item.benchmark for item in items):
        chosen = [i for i, item in enumerate(items) if item.benchmark == benchmark]
        for kind, language, subset, indices in _slices(items, chosen):
            kept = [items[i] for i in indices]
            detailed = language == "all" and subset == "all"
            for metric in _metrics(kind, detailed):
                columns = {
                    name: np.array([results[i]["measures"][metric] for i in indices])
                    for name, results in scored.items()
                    if results is not None
                }
                row = {
                    "benchmark": benchmark,
                    "kind": kind,
                    "language": language,
                    "subset": subset,
                    "checkpoint": checkpoint,
                    "protocol": protocol,
                    "metric": metric,
                    "num_items": len(kept),
                    "num_images": len({item.images for item in kept}),
                }
                row |= _numbers(columns, [item.group for item in kept], draws, seed)
                row["chance_score"] = _chance(kept) if metric == "accuracy" else None
                sources = {majority_from[_majority_key(item)] for item in kept}
                row["majority_from"] = " and ".join(sorted(sources))
                silent = [scored["model"][i]["prediction"] is None for i in indices]
                row["abstained"] = float(np.mean(silent))
                row["unfinished"] = float(np.mean([item.id in unfinished for item in kept]))
                row["question_ids_sha256"] = question_ids_sha256(kept)
                row |= {"draws": draws, "seed": seed}
                rows.append(row)
    return rows


def _score_all(items, responses) -> list[dict]:
    """Score in the order of `items`; ValueError unless the responses are exactly those items."""
    by_id = {row["id"]: row["response"] for row in responses}
    if len(by_id) != len(responses) or set(by_id) != {item.id for item in items}:
        wanted = {item.id for item in items}
        raise ValueError(
            f"{len(items)} items but {len(responses)} responses; "
            f"{len(wanted - set(by_id))} items without response, {len(set(by_id) - wanted)} "
            f"responses without item, {len(responses) - len(by_id)} repeated"
        )
    return [score(item, by_id[item.id]) for item in items]


def _slices(items, chosen: list[int]):
    """Yield (kind, language, subset, indices), the non-empty ones that differ from the whole."""
    exact = [i for i in chosen if items[i].kind != "box"]
    languages = sorted({items[i].language for i in chosen})
    modalities = sorted({items[i].modality for i in exact})
    subsets = sorted({name for i in exact for name in items[i].subsets})
    found = [("overall", "all", "all", exact)]
    for language in languages if len(languages) > 1 else ():
        found.append(
            ("overall", language, "all", [i for i in exact if items[i].language == language])
        )
    for kind in sorted({items[i].kind for i in chosen}):
        same = [i for i in chosen if items[i].kind == kind]
        found.append((kind, "all", "all", same))
        for language in languages if len(languages) > 1 else ():
            found.append(
                (kind, language, "all", [i for i in same if items[i].language == language])
            )
    for modality in modalities if len(modalities) > 1 else ():
        same = [i for i in exact if items[i].modality == modality]
        found.append(("overall", "all", f"modality={modality}", same))
    for name in subsets:
        found.append(("overall", "all", name, [i for i in exact if name in items[i].subsets]))
    yield from (slice_ for slice_ in found if slice_[3])


def _metrics(kind: str, detailed: bool) -> tuple[str, ...]:
    """Measures that every item of a slice has; the secondary ones only for undivided slices."""
    if kind == "box":
        return ("iou", "accuracy_at_0.5")
    if kind == "open":
        return ("exact_match", "token_recall", "token_f1") if detailed else ("exact_match",)
    if kind == "count" and detailed:
        return ("accuracy", "exact_match", "within_one")
    return ("accuracy", "exact_match") if detailed else ("accuracy",)


def _numbers(columns: dict, groups: list[str], draws: int, seed: int) -> dict:
    """Scores and intervals of one row."""
    low, high = clustered_interval(columns["model"], groups, draws=draws, seed=seed)
    row = {"num_groups": len(set(groups)), "score": float(columns["model"].mean())}
    row |= {"ci_low": low, "ci_high": high, "blind_score": None}
    row |= dict.fromkeys(("blind_ci_low", "blind_ci_high", "image_gain"))
    row |= dict.fromkeys(("image_gain_ci_low", "image_gain_ci_high"))
    if "blind" in columns:
        low, high = clustered_interval(columns["blind"], groups, draws=draws, seed=seed)
        row |= {"blind_score": float(columns["blind"].mean())}
        row |= {"blind_ci_low": low, "blind_ci_high": high}
        gain = columns["model"] - columns["blind"]
        low, high = clustered_interval(gain, groups, draws=draws, seed=seed, bounds=(-1.0, 1.0))
        row |= {"image_gain": float(gain.mean())}
        row |= {"image_gain_ci_low": low, "image_gain_ci_high": high}
    return row | {"majority_score": float(columns["majority"].mean())}


def _chance(items: list[Item]) -> float | None:
    """Expected accuracy of a random one of the answers an item is read from."""
    choices = [2 if item.kind == "yes/no" else len(item.options) for item in items]
    return None if 0 in choices else float(np.mean([1 / n for n in choices]))


def _majority_key(item: Item) -> tuple[str, str, str]:
    return item.benchmark, item.kind, item.language


def majority_answers(items: list[Item], prior_items: list[Item]) -> tuple[dict, dict]:
    """Return the best constant answer per (benchmark, kind, language), and where it comes from.

    It is the answer that the most items accept; for boxes the median of each coordinate.
    """
    answers, origin = {}, {}
    for source, name in ((items, "benchmark"), (prior_items, "prior")):
        by_key = defaultdict(list)
        for item in source:
            by_key[_majority_key(item)].append(item)
        for key, same in by_key.items():
            if key[1] == "box":
                boxes = [box for item in same for box in extract_boxes(item.answer)]
                corners = [median(values) for values in zip(*boxes, strict=True)]
                answers[key] = str([[round(value, 4) for value in corners]])
            else:
                said = [a for item in same for a in item.answers or (item.answer,)]
                counts = Counter(a.casefold() for a in said)  # a source may write Yes and yes
                best = min(counts, key=lambda a: (-counts[a], a))
                answers[key] = next(a for a in said if a.casefold() == best)
            origin[key] = name
    return answers, origin


def paired_difference(
    items: list[Item],
    responses_a: list[dict],
    responses_b: list[dict],
    *,
    checkpoint_a: str = "a",
    checkpoint_b: str = "b",
    draws: int = 1000,
    seed: int = 0,
) -> list[dict]:
    """Return per benchmark (and kind) how much b is better than a on the same items.

    Interval: the same bootstrap over groups, of the per-item differences. p_value: two-sided,
    from flipping the sign of whole groups at random. p_holm corrects it (Holm 1979) for the
    `num_comparisons` rows of its family: the overall rows of all benchmarks, or all kinds. `says`
    names the better one only below 0.05 of p_holm, else "no difference shown".
    """
    scored = [
        np.array([s["correct"] for s in _score_all(items, r)]) for r in (responses_a, responses_b)
    ]
    rows = []
    for benchmark in dict.fromkeys(item.benchmark for item in items):
        chosen = [i for i, item in enumerate(items) if item.benchmark == benchmark]
        for kind, language, subset, indices in _slices(items, chosen):
            if (language, subset) != ("all", "all"):
                continue
            groups = [items[i].group for i in indices]
            a, b = scored[0][indices], scored[1][indices]
            low, high = clustered_interval(
                b - a, groups, draws=draws, seed=seed, bounds=(-1.0, 1.0)
            )
            rows.append(
                {
                    "benchmark": benchmark,
                    "kind": kind,
                    "metric": _metrics(kind, False)[0],
                    "checkpoint_a": checkpoint_a,
                    "checkpoint_b": checkpoint_b,
                    "num_items": len(indices),
                    "num_groups": len(set(groups)),
                    "score_a": float(a.mean()),
                    "score_b": float(b.mean()),
                    "difference": float((b - a).mean()),
                    "ci_low": low,
                    "ci_high": high,
                    "p_value": _sign_flip_p(b - a, groups, max(draws, 10_000), seed),
                    "question_ids_sha256": question_ids_sha256([items[i] for i in indices]),
                }
            )
    for overall in (True, False):
        _correct([row for row in rows if (row["kind"] == "overall") == overall])
    return rows


def _correct(family: list[dict]):
    """Add Holm's correction and what follows from it to the rows of one family."""
    worst = 0.0
    for rank, row in enumerate(sorted(family, key=lambda row: row["p_value"])):
        worst = max(worst, min(1.0, (len(family) - rank) * row["p_value"]))
        row |= {"num_comparisons": len(family), "p_holm": worst}
        better = "checkpoint_b" if row["difference"] > 0 else "checkpoint_a"
        row["says"] = f"{row[better]} is better" if worst < 0.05 else "no difference shown"


def unpaired_difference(score_a: float, num_a: int, score_b: float, num_b: int) -> dict:
    """Return whether two printed accuracies (0..1) on so many items each differ at all.

    For published numbers, whose items nobody has: Fisher's exact test of the counts of right
    answers, and Newcombe's interval of b - a (1998, method 10). Questions about one image are
    taken as independent, so the truth is less certain still.
    """
    from scipy.stats import fisher_exact

    if not (0 <= score_a <= 1 and 0 <= score_b <= 1 and num_a > 0 and num_b > 0):
        raise ValueError(f"scores {score_a}, {score_b} of {num_a}, {num_b} items: not accuracies")
    right = round(score_a * num_a), round(score_b * num_b)
    table = [[right[0], num_a - right[0]], [right[1], num_b - right[1]]]
    (low_a, high_a), (low_b, high_b) = (
        _wilson(k, n) for k, n in zip(right, (num_a, num_b), strict=True)
    )
    a, b = right[0] / num_a, right[1] / num_b
    p_value = float(fisher_exact(table).pvalue)
    better = "b is better" if b > a else "a is better"
    return {
        "difference": b - a,
        "ci_low": b - a - float(np.hypot(b - low_b, high_a - a)),
        "ci_high": b - a + float(np.hypot(high_b - b, a - low_a)),
        "p_value": p_value,
        "says": better if p_value < 0.05 else "no difference shown",
    }


def _wilson(right: int, number: int) -> tuple[float, float]:
    z = 1.959964
    middle = (right + z * z / 2) / (number + z * z)
    half = z * np.sqrt(right * (number - right) / number + z * z / 4) / (number + z * z)
    return middle - half, middle + half


def clustered_interval(
    scores, groups, *, draws: int = 1000, seed: int = 0, bounds: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `scores` when whole `groups` are resampled.

    Bootstrap of R = `draws` resamples, bias-corrected and accelerated (Efron 1987), for scores
    near a bound are skewed: there the plain percentiles cover 90 to 93 % instead of 95. The tails
    are widened for few groups as Student's t is against the normal (Hesterberg 2015). Where every
    score sits at a bound, resampling shows no spread and the exact binomial limit for G trials is
    used; a single group says nothing about others and gives `bounds`.
    """
    from scipy.stats import norm, t

    scores = np.asarray(scores, float)
    inverse = np.unique(np.asarray(groups), return_inverse=True)[1]
    sums, counts = np.bincount(inverse, scores), np.bincount(inverse)
    number = len(counts)
    if number == 1:
        return bounds
    for bound, other in (bounds, bounds[::-1]):
        if np.all(scores == bound):
            limit = bound + (other - bound) * (1 - 0.025 ** (1 / number))
            return float(min(bound, limit)), float(max(bound, limit))
    weights = _resamples(number, draws, seed)  # (R, G)
    means = (weights @ sums) / (weights @ counts)
    mean = sums.sum() / counts.sum()
    below = (np.sum(means < mean - 1e-12) + np.sum(means < mean + 1e-12)) / (2 * draws)
    bias = norm.ppf(np.clip(below, 0.5 / draws, 1 - 0.5 / draws))
    without = (sums.sum() - sums) / (counts.sum() - counts)  # the mean without each group
    spread = without.mean() - without
    cubes, squares = np.sum(spread**3), np.sum(spread**2)
    acceleration = cubes / (6 * squares**1.5) if squares > 1e-24 else 0.0
    tail = np.sqrt(number / (number - 1)) * t.ppf(0.975, number - 1)
    ends = bias + np.array((-tail, tail))
    low, high = np.quantile(means, norm.cdf(bias + ends / np.maximum(1 - acceleration * ends, 0.1)))
    return float(min(low, scores.mean())), float(max(high, scores.mean()))  # also when rounded


@lru_cache(maxsize=64)
def _resamples(number: int, draws: int, seed: int) -> np.ndarray:
    """How often each of `number` groups is drawn in each resample: (R, G)."""
    rng = np.random.default_rng((seed, number))
    return rng.multinomial(number, np.full(number, 1 / number), size=draws).astype(float)


def _sign_flip_p(differences: np.ndarray, groups: list[str], draws: int, seed: int) -> float:
    inverse = np.unique(np.asarray(groups), return_inverse=True)[1]
    sums = np.bincount(inverse, differences)
    rng, as_large = np.random.default_rng(seed), 0
    for start in range(0, draws, 1000):  # in parts: draws x groups may not fit
        size = (min(1000, draws - start), len(sums))
        signs = rng.choice((-1.0, 1.0), size=size)
        as_large += int(np.sum(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12))
    return (1 + as_large) / (draws + 1)


def published() -> list[dict]:
    """Return the printed results of the paper (published.csv), `score` in percent as a float.

    `num_items` is an int or None; notes that begin with "mistake:" mark what the source has wrong.
    """
    path = Path(__file__).with_name("published.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["score"] = float(row["score"])
        row["num_items"] = int(row["num_items"]) if row["num_items"] else None
    return rows
