"""The text of an answer: what a response says, its comparable form, and whether it refuses.

Everything here is about wording and nothing about options or keys; `evaluation.extraction` reads
the answer. English and Chinese.
"""

import re
import unicodedata
from functools import lru_cache

# --- the text of a response -------------------------------------------------------------------

_MARKUP = re.compile(
    r"</?(?:ref|answer)>|<image>|<\|[^|>]*\|>|\*\*|__|`{1,3}"
    r"|(?m:^\s*(?:#+\s+|>\s+(?=[^\W\d])|[-*•]\s+|\d+[.)]\s+(?=[^\W\d])))"
)
_QUESTION = re.compile(r"[^.!?。\n]*\?|^\s*(?:q|question|问)\s*:\s*", re.IGNORECASE)
_ASKED_TO = re.compile(r"\b(?:answer|reply) briefly\.?|请简短回答。?", re.IGNORECASE)


@lru_cache(maxsize=65536)
def strip_tags(text: str) -> str:
    """Return what a response says, NFKC: up to <|im_end|>, without reasoning, tags and markdown.

    <think> goes with its content, <box> with its numbers; of several \\boxed{} or <answer> the last
    one is what was said.
    """
    text = unicodedata.normalize("NFKC", text.split("<|im_end|>")[0])
    text = re.sub(r"<think>.*?(?:</think>|$)", " ", text, flags=re.DOTALL)
    text = re.sub(r"<box>.*?(?:</box>|$)", " ", text, flags=re.DOTALL)
    text = re.sub(r"\\text\{([^}]*)\}", r"\1", text)
    final = re.findall(r"\\boxed\{([^}]*)\}|<answer>(.*?)</answer>", text, flags=re.DOTALL)
    final = ["".join(pair) for pair in final]
    final += re.findall(r"\{\s*\"(?:final_)?answer\"\s*:\s*\"([^\"]*)\"\s*\}", text)
    text = final[-1] if final else text
    return _MARKUP.sub(" ", text).strip()


def statements(text: str, question: str = "") -> str:
    """The text without questions: who repeats a question has not answered it."""
    asked = unicodedata.normalize("NFKC", question).strip(" ?\n").casefold()
    if asked and text.strip(" ?.\n").casefold() == asked:
        return ""
    if asked and "?" not in question and text.casefold().startswith(asked):
        text = text[len(asked) :]
    return _ASKED_TO.sub(" ", _QUESTION.sub(" ", text)).strip()


# --- the comparable form of an answer ---------------------------------------------------------

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
NUMBER_WORDS = {word: n for n, word in enumerate(_SMALL.split())}
TENS = dict(twenty=20, thirty=30, forty=40, fifty=50, sixty=60, seventy=70, eighty=80, ninety=90)
_CHINESE_DIGITS = {c: n for n, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_CHINESE_PLACES = {"十": 10, "百": 100, "千": 1000}
CHINESE_NUMBER = "[零〇一二两三四五六七八九十百千]+"
MEASURE_WORD = "[个枚颗处只根条块名例粒张]"

# Unit -> (what it is written as, factor): lengths as mm, masses as mg.
_UNITS = (
    (re.compile(r"(?:cm|centi(?:meter|metre)s?|厘米)"), "mm", 10),
    (re.compile(r"(?:mm|milli(?:meter|metre)s?|毫米)"), "mm", 1),
    (re.compile(r"(?:mg|milligrams?|毫克)"), "mg", 1),
    (re.compile(r"(?:g|grams?|克)"), "mg", 1000),
    (re.compile(r"(?:%|per ?cent)"), "percent", 1),
)
_MEASURE = re.compile(
    r"(\d+(?:\.\d+)?)[ -]?(" + "|".join(u.pattern for u, _, _ in _UNITS) + r")(?![a-z])"
)
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
        (r"in middle(?: of (?:image|picture))?$", "in center"),
        (r"haemorrhage", "hemorrhage"),
        (r"oedema", "edema"),
        (r"tumou?r(s?)", r"tumor\1"),
        (r"(?:greater|larger|bigger) than", "more than"),
        (r"(?:smaller|fewer) than", "less than"),
    )
)
# One search instead of twenty for the many texts without any.
_ANY_SYNONYM = re.compile("|".join(f"(?:{pattern.pattern})" for pattern, _ in _SYNONYMS))
_CHINESE_SYNONYMS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"核?磁共振(?:成像)?", "mr"),
        (r"x ?[线光](?:片|图像)?", "xray"),
        (r"b超", "超声"),
        (r"([左右])[边方]", r"\1侧"),
        (r"^在?([左右])$", r"\1侧"),
        (r"(?:未见|没有|无)(?:明显|任何)?异常", "未见异常"),
    )
)
CHINESE = re.compile(r"[一-鿿]")
_DIGIT = re.compile(r"\d")


@lru_cache(maxsize=65536)  # options and references come up again and again
def normalise(text: str) -> str:
    """Return the comparable form of an answer.

    NFKC, lower case, no tags, punctuation or articles; number words as digits, lengths in mm and
    masses in mg, "<" and ">" as words; the synonyms unified; one blank between words and none
    between Chinese characters.
    """
    text = strip_tags(text)
    # "Hepatitis A" has no article: a capital A is one only at the beginning of a sentence.
    text = re.sub(r"\b(?:[Tt]he|THE|an?|An|AN)\s+(?=\w)|(?:^|(?<=[.!?]\s))A\s+(?=\w)", "", text)
    text = re.sub(r"n't\b", " not", text.casefold().replace("can't", "can not"))
    text = re.sub(r"(?<=[a-z0-9])\+", " positive", text)  # HER2+
    text = re.sub(r"(?<=[a-z0-9])-(?=\s*$)", " negative", text)
    if CHINESE.search(text):
        text = re.sub(rf"{CHINESE_NUMBER}(?={MEASURE_WORD})", _as_digits, text)
    if _DIGIT.search(text):
        text = _numbers_unified(text)
    text = re.sub(r"\.(?!\d)|(?<!\d)\.|[^\w\s.]|_", " ", text)
    text = " ".join(str(NUMBER_WORDS.get(word, word)) for word in text.split())
    if _ANY_SYNONYM.search(text):
        for pattern, replacement in _SYNONYMS:
            text = pattern.sub(replacement, text)
    if CHINESE.search(text):
        text = re.sub(r"(?<=[一-鿿]) +(?=[一-鿿])", "", text)
        for pattern, replacement in _CHINESE_SYNONYMS:
            text = pattern.sub(replacement, text)
    return text


def _numbers_unified(text: str) -> str:
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"<\s*(?=\d)", " less than ", text)
    text = re.sub(r">\s*(?=\d)", " more than ", text)
    text = re.sub(r"(?:(?<=[\s(:])|^)-(?=\d)", " minus ", text)
    text = re.sub(r"\d+\.\d+", lambda n: n.group().rstrip("0").rstrip("."), text)  # 2.0, 1.50
    return _MEASURE.sub(_in_base_unit, text)


def _as_digits(match: re.Match) -> str:
    value = chinese_number(match.group())
    return match.group() if value is None else str(value)


def _in_base_unit(match: re.Match) -> str:
    name, factor = next((n, f) for unit, n, f in _UNITS if unit.fullmatch(match.group(2)))
    return f" {float(match.group(1)) * factor:g}{name} "


_REFUSAL = re.compile(
    r"\b(?:can ?not|can't|could ?n[o']t|unable|do ?n[o']t know|not (?:sure|certain|possible)|"
    r"unsure|uncertain|unclear|unknown|sorry|impossible|indeterminate|n/a)\b"
    r"|无法|不确定|不能确定|不知道|不清楚|难以|抱歉|未知"
)
CLAUSE_END = re.compile(  # what is denied in one clause may be affirmed in the next
    r"[;!?；！？。，\n]|:(?=\s)|,(?!\d{3}\b)|\.(?=\s|$)|\b(?:but|however)\b|而是|而在|但"
)


def is_refusal(text: str) -> bool:
    """Tell whether the text says that it does not answer."""
    return bool(_REFUSAL.search(unicodedata.normalize("NFKC", text).casefold()))


# --- free text --------------------------------------------------------------------------------

_ANSWER_IS = re.compile(
    r"^\s*(?:(?:the )?(?:final |correct |best )?answer\s*(?:is|:|=)|(?:it|this) is(?! not\b)|"
    r"答案\s*[是为:]|这是)\s*",
    re.IGNORECASE,
)
_ITEM_END = re.compile(r"\s*(?:[,;、\n/]|\band\b|和|及)\s*")


def free_text(response: str) -> str:
    """Return the normalised answer without the words that announce it ("The answer is ...")."""
    return normalise(_ANSWER_IS.sub("", strip_tags(response)))


@lru_cache(maxsize=65536)
def list_items(text: str) -> tuple[str, ...]:
    """Return the sorted items of a list ("liver, spleen and kidney"); () for a single thing."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", _ANSWER_IS.sub("", strip_tags(text)))
    items = sorted(filter(None, (normalise(part) for part in _ITEM_END.split(text))))
    return tuple(items) if len(items) > 1 else ()


def chinese_number(text: str) -> int | None:
    """Value of a numeral: 十二 = 12, 二十 = 20, 一百零五 = 105; None for 两三 (two or three)."""
    total, digit = 0, None
    for sign in text:
        if sign in _CHINESE_PLACES:
            total += (1 if digit is None else digit) * _CHINESE_PLACES[sign]
            digit = None
        elif digit is not None and digit != 0:
            return None
        else:
            digit = _CHINESE_DIGITS[sign]
    return total + (digit or 0)
