"""Read the answer out of a response and score it; abstain where the response does not say.

Pure functions: no model, no randomness, no judge, no environment variable. A response that
cannot be read (empty, refusal, two answers at once, a negated mention) gives the prediction
None and the score 0; nothing is ever matched by similarity or drawn at random.

Every item is measured by `accuracy` after extraction and by the stricter `exact_match` of the
normalised text; open answers by `exact_match`, `token_recall` and `token_f1`; boxes by `iou`
and `accuracy_at_0.5`.

Paper: section 4 evaluates through VLMEvalKit.
Departs: VLMEvalKit matches "There is no pneumonia" to the option "Pneumonia" and falls back to a
judge or a random letter; MedEvalKit looks for the substring "no", which "nodule" contains.
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

import numpy as np

from gmai_lib.grounding import extract_boxes

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_NUMBER_WORDS = {word: n for n, word in enumerate(_SMALL.split())}
_TENS = dict(twenty=20, thirty=30, forty=40, fifty=50, sixty=60, seventy=70, eighty=80, ninety=90)
_CHINESE_DIGITS = {c: n for n, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}

# Applied in this order to lower-case text without punctuation, to gold and response alike.
_SYNONYMS = tuple(
    (re.compile(rf"\b(?:{pattern})\b"), replacement)
    for pattern, replacement in (
        (r"magnetic resonance(?: imaging| image| scan)?|mri(?: scan)?|mr (?:imaging|scan)", "mr"),
        (r"optical coherence tomography", "oct"),
        (r"positron emission tomography|pet scan", "pet"),
        (r"computed tomography(?: scan)?|computerized tomography|cat scan|ct scan", "ct"),
        (r"(?:plain film )?x ?rays?|plain (?:film|radiograph)|radiographs?|xr", "xray"),
        (r"ultrasonography|sonography|sonogram|ultrasound scan", "ultrasound"),
        (r"fundus (?:photograph|photography|photo|image)", "fundus"),
        (r"dermatoscopy", "dermoscopy"),
        (r"centre|central", "center"),
        (r"top", "upper"),
        (r"bottom", "lower"),
        (r"(left|right) (?:hand )?sided?", r"\1"),
        (r"(left|right) (upper|lower|middle)", r"\2 \1"),
        (r"(upper|lower) middle", r"\1 center"),
        (r"center (left|right)", r"middle \1"),
        (r"middle center|center middle|center center|middle middle", "center"),
        (r"haemorrhage", "hemorrhage"),
        (r"oedema", "edema"),
        (r"tumou?r(s?)", r"tumor\1"),
    )
)
_REFUSAL = re.compile(
    r"\b(?:can ?not|can't|could ?n[o']t|unable|do ?n[o']t know|not (?:sure|certain|possible)|"
    r"unsure|uncertain|unclear|unknown|sorry|impossible|indeterminate|n/a)\b"
    r"|无法|不确定|不能确定|不知道|不清楚|难以|抱歉|未知"
)
_CLAUSE_END = re.compile(r"[;,!?，。；！？\n]|\.(?=\s|$)|\b(?:but|however)\b|而是|但")
_DENIED_BEFORE = re.compile(
    r"\b(?:no|not|without|never|neither|nor|absence of|negative for|free of|rules? out|"
    r"ruled out|excludes?|rather than)\b|没有|无|未|不是|不存在|不像|并非|排除"
)
_DENIED_AFTER = re.compile(
    r"^ ?(?:is|are|was|were|can|has been|have been)? ?(?:not|absent|unlikely|ruled out|excluded)\b"
    r"|^(?:不|未见|没有)"
)


def strip_tags(text: str) -> str:
    """Return `text` up to `<|im_end|>` without <ref>, <box> (with its numbers) and bold marks."""
    text = text.split("<|im_end|>")[0]
    text = re.sub(r"<box>.*?(?:</box>|$)", " ", text, flags=re.DOTALL)
    text = re.sub(r"\\boxed\{([^}]*)\}", r"\1", text)
    return re.sub(r"</?(?:ref|answer)>|<image>|<\|[^|>]*\|>|\*\*", " ", text).strip()


@lru_cache(maxsize=65536)  # options and references come up again and again
def normalise(text: str) -> str:
    """Return the comparable form of an answer.

    NFKC, lower case, no tags, punctuation or articles, number words as digits, the synonyms of
    `_SYNONYMS` unified, one blank between words and none between Chinese characters.
    """
    text = unicodedata.normalize("NFKC", strip_tags(text)).casefold()
    text = re.sub(r"n't\b", " not", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"\.(?!\d)|(?<!\d)\.|[^\w\s.]|_", " ", text)
    words = (str(_NUMBER_WORDS.get(w, w)) for w in text.split() if w not in ("a", "an", "the"))
    text = " ".join(words)
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    return re.sub(r"(?<=[一-鿿]) +(?=[一-鿿])", "", text)


def is_refusal(text: str) -> bool:
    """Tell whether the text says that it does not answer."""
    return bool(_REFUSAL.search(unicodedata.normalize("NFKC", text).casefold()))


_YES = _words(
    "yes yeah yep yup y true correct present positive affirmative "
    "是 是的 有 有的 对 对的 正确 存在 可见 能 会"
)
_NO = _words(
    "no nope nah n false incorrect absent negative none "
    "否 不 不是 没有 没 无 不存在 不可见 未见 不能 不会 错 错误 不对"
)
# What may follow a leading "no" that answers, rather than the "no" of "no nodule".
_AFTER_NO = _words("there it this that these those the i he she they we not a an no")
_STATES = _words("is are was were there shows show showing seen visible present appears absent")
_FLUFF = _STATES | _words(
    "be been here this that it any a an the of in on at for to with and or image picture scan "
    "slice photo figure evidence sign signs presence see shown appear can could i we patient "
    "does do has have yes"
)
_CHINESE_FLUFF = re.compile(
    r"这张|这幅|该|此|图像|图片|影像|图|中|里|内|上|显示|明显|任何|可以|看到|见到|发现|的|了|到|一个|"
    r"吗|呢|患者|病人"
)
_CHINESE_CUE = re.compile(r"不存在|没有|不是|未见|不可见|可见|存在|没|无|未|不|有|是|否")


def extract_yes_no(text: str, question: str = "") -> str | None:
    """Return "yes", "no" or None.

    A bare or leading answer word counts ("Yes, a nodule", "没有，..."), not one inside another
    word ("nodule", "abnormal"). A full sentence counts only if it restates `question` ("There is
    no nodule" to "Is there a nodule?"): "There is no abnormality" must not answer "Is it normal?".
    """
    text = unicodedata.normalize("NFKC", strip_tags(text)).casefold()
    text = re.sub(r"n't\b", " not", text)
    marked = re.split(r"\banswer\s*(?:is|:|would be)|答案\s*(?:是|为|:)", text)
    text = marked[-1].strip(" .!\"'()[]:,;。\n\t")
    if text in _YES or text in _NO:
        return "yes" if text in _YES else "no"
    leading = re.match(
        r"(yes|yeah|yep|no|nope)\b|(是的?|有的?|对的?|否|不是|没有|不|无)(?=[,;.。 ])", text
    )
    if leading:
        word, rest = leading.group(), text[leading.end() :]
        # The opposite answer word standing alone later on ("yes, no", "yes or no", "是,否").
        if word in _YES:
            opposite = r"\bno\b(?=\W*$|\W*[,;.]|\W+yes\b)|否|[,;。]\s*(?:没有|无|不是?)$"
        else:
            opposite = r"\byes\b|是的|[,;。]\s*(?:是|有)$"
        follower = re.match(r"\s+(\w+)", rest)
        determiner = word == "no" and follower and follower.group(1) not in _AFTER_NO
        if re.search(opposite, rest) or re.match(r"\s*(?:or|/|或)\s*", rest):
            return None
        if not determiner:
            return "yes" if word in _YES else "no"
    if not question or is_refusal(text):
        return None
    question = unicodedata.normalize("NFKC", question).casefold()
    if re.search(r"[一-鿿]", text):
        return _restated_chinese(text, question)
    return _restated_english(text, question)


def _restated_english(text: str, question: str) -> str | None:
    """Polarity of a sentence whose every content word stands in the question."""
    words = re.findall(r"[a-z]+", text)
    negations = [w for w in words if w in ("no", "not", "without", "absent")]
    content = {w for w in words if w not in _FLUFF and w not in ("no", "not", "without")}
    asked = set(re.findall(r"[a-z]+", question))
    states = bool(_STATES & set(words)) or bool(negations)
    if not content or not states or not content <= asked | {f"{w}s" for w in asked}:
        return None
    if len(negations) > 1 or {"no", "not", "without", "or"} & asked:
        return None  # double negation, or a question that is itself negated or offers a choice
    return "no" if negations else "yes"


def _restated_chinese(text: str, question: str) -> str | None:
    """Polarity of cue + the thing asked about: 没有结节, 有结节, 未见结节, 结节不存在."""
    if re.search(r"是否|有没有|是不是|有无", text):
        return None  # repeats the question
    cues = _CHINESE_CUE.findall(text)
    thing = re.sub(r"[\W_]", "", _CHINESE_FLUFF.sub("", _CHINESE_CUE.sub("", text)))
    asked = _CHINESE_FLUFF.sub("", _CHINESE_CUE.sub("", question))
    if len(cues) != 1 or not thing or thing not in asked:
        return None
    return "yes" if cues[0] in ("有", "是", "可见", "存在") else "no"


def extract_choice(text: str, options: tuple[str, ...]) -> str | None:
    """Return the capital letter of the option that the text picks, or None.

    Reads "b", "(b)", "B. ...", "Option B", "the answer is B", 选B, or the text of exactly one
    option that is not negated. Two letters, a letter beyond the options, or a letter whose own
    text is another option give None.
    """
    letters = _LETTERS[: len(options)]
    text = unicodedata.normalize("NFKC", strip_tags(text)).strip()
    if not text:
        return None
    bare = re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", text)
    if bare:
        letter = bare.group(1).upper()
        return letter if letter in letters else None
    # A lower-case "a" before a word is the article: "the answer is a mass".
    named = re.findall(
        r"(?:(?i:\banswer(?:\s+is|\s*:)|\b(?:option|choice|choose|select|pick)\b)|答案(?:是|为|:)|选项?)"
        r"\s*:?\s*(?:(?i:option|choice)|选项)?\s*[\(\[]?((?!a\s+\w)[A-Za-z])\b(?!')",
        text,
    )
    leading = re.match(r"[\(\[]?([A-Za-z])\s*[\)\].:、,]\s*(.*)", text, flags=re.DOTALL)
    named += [leading.group(1)] if leading else []
    named += re.findall(r"[\(\[]([A-Za-z])[\)\]]", text)
    # A capital that is not the article: "B pneumonia", "A and B", "A or C".
    named += re.findall(r"\b([B-HJ-Z]|A(?=\s+(?:and|or)\s+[B-Z]\b))\b(?!['.]\w)", text)
    picked = {letter.upper() for letter in named}
    by_text = extract_label(text, options)
    if picked:
        letter = picked.pop()
        denied = re.search(r"\b(?:not|incorrect|wrong|unlikely)\b|不是|不选|错", text.casefold())
        if picked or letter not in letters or denied:
            return None
        return letter if by_text in (None, options[letters.index(letter)]) else None
    return letters[options.index(by_text)] if by_text is not None else None


def extract_label(text: str, options: tuple[str, ...]) -> str | None:
    """Return the one option that the text affirms, or None for none, several or only denied ones.

    Whole words (Chinese: substrings), longest option first, so that "upper left" is not also
    "left" and "no finding" is not a denied "finding".
    """
    forms = {normalise(option): option for option in options}
    if normalise(text) in forms:
        return forms[normalise(text)]
    affirmed = set()
    for clause in _CLAUSE_END.split(unicodedata.normalize("NFKC", strip_tags(text)).casefold()):
        clause = normalise(clause)
        for form in sorted(filter(None, forms), key=len, reverse=True):
            chinese = re.search(r"[一-鿿]", form)
            pattern = (
                re.escape(form)
                if chinese
                else rf"(?<![a-z0-9]){re.escape(form)}(?:e?s)?(?![a-z0-9])"
            )
            for match in re.finditer(pattern, clause):
                denied = _DENIED_BEFORE.search(clause[: match.start()].replace("#", ""))
                if not denied and not _DENIED_AFTER.search(clause[match.end() :]):
                    affirmed.add(forms[form])
            clause = re.sub(pattern, lambda match: "#" * len(match.group()), clause)
    return affirmed.pop() if len(affirmed) == 1 else None


_VAGUE = re.compile(
    r"\b(?:more than|at least|at most|fewer|less than|over|up to|not)\b|(?<!\d)-\d"
    r"|多于|少于|至少|至多|以上|以下|超过|不是"
)
_DIGITS = re.compile(
    r"(?<![a-z0-9.])(\d+(?:,\d{3})*(?:\.\d+)?)(?![a-z0-9]|\.\d|\s*(?:mm|cm|%|percent|毫米|厘米))"
)


def extract_number(text: str) -> int | None:
    """Return the one whole number that the text states ("2", "two", 两个; "none" is 0), or None.

    Bounds ("more than 3"), measures ("5 mm"), fractions and two different numbers give None.
    """
    text = unicodedata.normalize("NFKC", strip_tags(text)).casefold()
    if is_refusal(text) or _VAGUE.search(text):
        return None
    found = set()
    for digits in _DIGITS.findall(text):
        value = float(digits.replace(",", ""))
        found.add(int(value) if value.is_integer() and "." not in digits else None)
    words = re.findall(r"[a-z]+", text)
    for position, word in enumerate(words):
        previous = words[position - 1] if position else ""
        if word in _TENS:
            following = words[position + 1] if position + 1 < len(words) else ""
            unit = _NUMBER_WORDS.get(following, 0)
            found.add(_TENS[word] + (unit if unit < 10 else 0))
        elif word in _NUMBER_WORDS and not (previous in _TENS and 0 < _NUMBER_WORDS[word] < 10):
            found.add(_NUMBER_WORDS[word])
        elif word in ("no", "none"):
            found.add(0)
    for digits in re.findall(r"[零〇一二两三四五六七八九十]+", text):
        found.add(_chinese_number(digits))
    if re.search(r"没有|无|未见", text):
        found.add(0)
    return found.pop() if len(found) == 1 else None


def _chinese_number(text: str) -> int | None:
    """Value of up to two digits in Chinese: 十二 = 12, 二十 = 20, 三 = 3."""
    tens, ten, units = text.rpartition("十")
    if len(tens) > 1 or len(units) > 1 or "十" in tens:
        return None
    return (_CHINESE_DIGITS.get(tens, 1) * 10 if ten else 0) + _CHINESE_DIGITS.get(units, 0)


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
        text = normalise(response)
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
        correct = prediction == _gold(item, extract_choice(item.answer, item.options))
        exact = float(response.split("<|im_end|>")[0].strip(" .()\n") == item.answer)
    elif item.kind == "count":
        number = extract_number(response)
        prediction = None if number is None else str(number)
        _gold(item, extract_number(item.answer))
        correct = prediction in (item.answers or (item.answer,))
    else:
        prediction = extract_label(response, item.options)
        _gold(item, extract_label(item.answer, item.options))
        correct = prediction is not None and normalise(prediction) in accepted
    measures = {"accuracy": float(correct), "exact_match": exact}
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
