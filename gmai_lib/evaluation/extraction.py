"""Read the answer out of a response; None where the response does not say.

Pure functions: no model, no randomness, no judge, no environment variable. A response that cannot
be read (empty, refusal, two answers at once, a negated mention) gives None; nothing is matched by
similarity or drawn at random. English and Chinese.

Paper: section 4 evaluates through VLMEvalKit.
Departs: VLMEvalKit matches "There is no pneumonia" to the option "Pneumonia" and falls back to a
judge or a random letter; MedEvalKit looks for the substring "no", which "nodule" contains.
`evaluation.peers` has their rules side by side with these.
"""

import re
import unicodedata
from functools import lru_cache

from gmai_lib.evaluation.wording import (
    CHINESE,
    CHINESE_NUMBER,
    CLAUSE_END,
    MEASURE_WORD,
    NUMBER_WORDS,
    TENS,
    chinese_number,
    is_refusal,
    normalise,
    statements,
    strip_tags,
)
from gmai_lib.schema import PLACES

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _words(text: str, between: str | None = None) -> frozenset[str]:
    return frozenset(text.split(between))


# --- denial -----------------------------------------------------------------------------------

# What undoes even a leading "yes" or "no": the speaker cannot tell, not "I cannot see a nodule".
_CANNOT_TELL = re.compile(
    r"\b(?:can ?not|unable to|not able to) (?:tell|say|determine|answer|assess|judge|diagnose|help|"
    r"(?:see|view|open) (?:the|any|an) image)\b"
)
_DENIED_BEFORE = re.compile(
    r"\b(?:no|not|non|without|never|neither|nor|absence of|negative for|free of|rules? out|"
    r"ruled out|excludes?|rather than)\b|没有|没|无|未|不是|不在|不存在|不像|并非|排除"
)
_DENIED_AFTER = re.compile(
    r"^ ?(?:is|are|was|were|can|has been|have been)? ?(?:absent|unlikely|ruled out|excluded)\b"
    r"|^ ?(?:is|are|was|were|can|has been|have been) ?not\b"
    r"|^ ?not (?:seen|present|visible|identified|found|likely)\b"
    r"|^(?:不|未见|没有)"
)


# --- yes or no --------------------------------------------------------------------------------

_YES = _words(
    "yes|yeah|yep|yup|y|true|correct|present|positive|affirmative|certainly|definitely|of course|"
    "absolutely|no doubt|that is correct|this is correct|"
    "there is|there are|there is one|it is|it does|it is present|i think so|i believe so|think so|"
    "believe so|是|是的|有|有的|对|对的|正确|存在|可见|能|会|肯定|肯定的|包含",
    "|",
)
_NO = _words(
    "no|nope|nah|n|false|incorrect|absent|negative|none|none seen|there is not|there are not|"
    "there is none|there are none|it is not|it does not|it is absent|not present|not seen|"
    "not visible|not that i can see|not at all|definitely not|certainly not|probably not|"
    "most likely not|"
    "i do not think so|do not think so|否|不|不是|不是的|没有|没有的|并没有|没|无|不存在|不可见|"
    "未见|不能|不会|错|错误|不对|否定|否定的|不包含",
    "|",
)
_ANSWER = re.compile(  # what announces the answer
    r"\b(?:answers?|ans|response)\b\.?(?:\s*(?:is|are|would be|should be|must be))?\s*[:=-]?\s*"
    r"|(?<=[,;.] )(?:so|therefore|thus|hence),?\s+(?=(?:yes|no)\b)"
    r"|(?:答案|回答|答)\s*(?:应?是|应?为)?\s*:?\s*",
    re.IGNORECASE,
)
_LEAD_IN = re.compile(
    r"^(?:a\s*:|therefore|thus|hence|so|in conclusion|i (?:would )?(?:say|think|believe)|"
    r"(?:most likely|probably)(?= (?:yes|no)\b)|(?:based on|from|looking at|in) (?:the|this|my) "
    r"(?:image|picture|scan|slice|opinion|view)|我(?:认为|觉得)|因此|所以|应该(?!是))[\s,:]*"
)
# What may follow a leading "no" that answers, rather than the "no" of "no nodule".
_AFTER_NO = _words("there it this that these those the i he she they we not a an no probably")
_STATES = _words(
    "is are was were there shows show showing seen visible present appears seems positive "
    "identified noted detected found observed demonstrated evident"
)
_DENIALS = _words("no not without absent absence negative excluded")
_FLUFF = _STATES | _words(
    "be been here this that it any a an the of in on at for to with and or image picture scan "
    "slice photo figure evidence sign signs presence see shown appear can could i we patient "
    "does do has have yes see find identify detect"
)
_CHINESE_FLUFF = re.compile(
    r"这张|这幅|该|此|图像|图片|影像|图|中|里|内|上|显示|明显|任何|可以|发现|的|了|一个|吗|呢|患者|病人|看起来|影"
)
# Adjectives and verbs that a Chinese answer repeats for yes, with 不 before them for no.
_CHINESE_PREDICATE = re.compile(r"正常|健康|对称|包含|含有")
_CHINESE_NO = re.compile(r"没有|不是|未|无|没|不")
_CHINESE_CUE = re.compile(r"存在|可见|看[到见]|见到|看得?到|见|有|是|到")


def extract_yes_no(text: str, question: str = "") -> str | None:
    """Return "yes", "no" or None.

    A bare or leading answer word counts ("Yes, a nodule", "没有，..."), not one inside another
    word ("nodule", "abnormal"). A full sentence counts only if it restates `question` ("There is
    no nodule" to "Is there a nodule?"): "There is no abnormality" must not answer "Is it normal?".
    What is announced as the answer goes before the rest; two different answers give None.
    """
    text = strip_tags(text).casefold().replace("can't", "can not").translate(_TRADITIONAL)
    text = statements(re.sub(r"n't\b", " not", text), question)
    question = unicodedata.normalize("NFKC", question).casefold()
    parts = _ANSWER.split(text)
    announced = [_yes_no_of(part, question) for part in parts[1:]]
    if any(announced):
        said = set(announced) - {None}
        return said.pop() if len(said) == 1 else None
    if len(parts) > 1 and re.search(r"\b(?:yes|no)\b\W*\bor\b|是或否", text):
        return None
    return _yes_no_of(text, question)


_TRADITIONAL = str.maketrans("沒無對見結節顯圖確", "没无对见结节显图确")


def _yes_no_of(text: str, question: str) -> str | None:
    text = text.strip(" .!\"'()[]{}_*:,;。“”‘’「」|\n\t")
    while lead := _LEAD_IN.match(text):
        if text in _YES | _NO:
            break
        text = text[lead.end() :].strip(" .,\n")
    if text in _YES or text in _NO:
        return "yes" if text in _YES else "no"
    leading = re.match(
        r"(yes|yeah|yep|no|nope|correct(?=[,.]))\b"
        r"|(是的?|有的?|对的?|否|不是|没有|不|无)(?=[,;.。! (])",
        text,
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
        if re.search(opposite, rest) or re.match(r"\s*(?:or\b|/|或)\s*", rest):
            return None
        if _CANNOT_TELL.search(rest):
            return None
        said = "yes" if word in _YES else "no"
        if not determiner:
            # "Yes, there is no nodule" contradicts itself.
            restated = {_restated(part, question) for part in re.split(r"[,;.。]", rest)}
            return None if restated - {None, said} else said
    if named := re.fullmatch(r"([a-z ]+):\s*(yes|no)", text):  # "fracture: yes"
        asked = set(re.findall(r"[a-z]+", question))
        return named.group(2) if set(named.group(1).split()) <= asked else None
    text = re.sub(r"\bi (?:can|could) ?not (?=see|find|identify|detect)", "no ", text)
    return None if is_refusal(text) else _restated(text, question)


def _restated(text: str, question: str) -> str | None:
    """Polarity of a sentence that says again what was asked."""
    if not question or not text.strip():
        return None
    read = _restated_chinese if CHINESE.search(text) else _restated_english
    return read(text, question)


def _restated_english(text: str, question: str) -> str | None:
    """Polarity of a sentence whose every content word stands in the question."""
    text = re.sub(r"ruled out", "excluded", text)
    words = re.findall(r"[a-z]+", text)
    negations = [w for w in words if w in _DENIALS]
    content = {w for w in words if w not in _FLUFF and w not in _DENIALS}
    asked = set(re.findall(r"[a-z]+", question))
    states = bool(_STATES & set(words)) or bool(negations)
    if (
        not content
        or not states
        or not content <= {w + ending for w in asked for ending in ("", "s", "es")}
    ):
        return None
    if len(negations) > 1 or {"no", "not", "without", "or"} & asked:
        return None  # double negation, or a question that is itself negated or offers a choice
    return "no" if negations else "yes"


def _restated_chinese(text: str, question: str) -> str | None:
    """Polarity of cue + the thing asked about: 没有结节, 有结节, 未见结节, 结节不存在."""
    if re.search(r"是否|有没有|是不是|有无", text):
        return None  # repeats the question
    denied = _CHINESE_NO.findall(text)
    rest = _CHINESE_NO.sub("", text)
    predicates = [p for p in _CHINESE_PREDICATE.findall(rest) if p in question]
    cues = _CHINESE_CUE.findall(rest)
    for pattern in (_CHINESE_PREDICATE, _CHINESE_CUE, _CHINESE_FLUFF):
        rest, question = pattern.sub("", rest), pattern.sub("", question)
    thing = re.sub(r"[\W_]", "", rest)
    if len(denied) > 1 or thing not in question or not (denied or cues or predicates):
        return None
    if not thing and not predicates:
        return None
    return "no" if denied else "yes"


# --- one of several options -------------------------------------------------------------------

_TITLES = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|Prof)\.?\s+(?:[A-Z]\.\s*)*(?=[A-Z])")
_NOT_A_LETTER = re.compile(  # capitals that are part of a name
    r"\b[A-Z]\. (?:coli|difficile|pylori|aureus|albicans|pneumoniae|faecalis|fragilis)\b"
    r"|B超|C臂|维生素 ?[A-Z]|[A-Z][型级]"
)
_LETTER_DENIED = re.compile(
    r"\b(?:not|cannot|can't|neither|nor|never|incorrect|wrong|false|unlikely|exclud\w+|eliminat\w+|except|"
    r"ruled? out)\b|不是|不选|不对|不正确|错|排除|并非"
)
_OPTION_DENIED = re.compile(  # what follows the letter and denies it
    r"\b(?:is|are) (?:not (?:correct|right|true)|incorrect|wrong|false|unlikely|excluded|"
    r"ruled out)\b"
    r"|错|不正确|不对"
)
_CHOSEN = re.compile(
    r"\bI(?:'d| would| will)? (?:choose|pick|select|go (?:with|for))\b|(?:故|因此|我|应)选"
)
_OPTION = re.compile(  # what names an option
    r"\b(?:options?|choices?|letter|choose|select|pick)\b(?:\s*(?:is|are))?\s*[:=]?\s*|选项?择?\s*:?",
    re.IGNORECASE,
)
_JOINED = r"(?:\s*(?:,|/|&|\+|\band\b|\bor\b|\bnor\b|、|和|或|与|还是)\s*|\s+)"
_ONLY_LETTERS = re.compile(  # "B", "so (B)", "it's B", "I think B", "both A and B"
    r"(?i:(?:probably|most likely|so|hence|thus|therefore|it is|it's|this is|that is|"
    r"both|either|between|not|neither|"
    r"i (?:would |will )?(?:choose|pick|select|think|believe|say|answer|go with|exclude)|"
    r"i'd (?:choose|pick|say|go with))\s+)*"
    rf"([(\[]?[A-Z][)\]]?(?:{_JOINED}[(\[]?[A-Z][)\]]?)*)"
    r"(?:\s+(?i:because|since|fits|matches|applies)\b.*|\s+(?i:is|are)\s+(?i:not\s+)?(?i:the\s+)?"
    r"(?i:correct|right|true|best|wrong|incorrect|false|unlikely|excluded|ruled out)\b.*)?"
)
_LEADING = re.compile(  # "B. ...", "(b) ...", "B - ..."
    r"\s*[(\[]?([A-Za-z])(?:\s*[.:、)\]]|\s+-)(?=\s|$|[一-鿿])\s*(.*)", re.DOTALL
)


def extract_choice(text: str, options: tuple[str, ...]) -> str | None:
    """Return the capital letter of the option that the text picks, or None.

    Reads "b", "(b)", "B. ...", "Option B", "the answer is B", 选B, or the text of exactly one
    option that is not negated. Two letters, a letter beyond the options, or a letter whose own
    text is another option give None.
    """
    letters = LETTERS[: len(options)]
    text = _TITLES.sub("", statements(strip_tags(text)))
    forms = _forms(options, letters)
    parts = _ANSWER.split(text)
    announced = " ; ".join(parts[1:] or _CHOSEN.split(text)[1:]).strip()
    for alone in (text, announced):
        bare = re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", alone)
        # Also where "B" is the text of another option: letters are what is asked for.
        if bare and bare.group(1).upper() in letters:
            return bare.group(1).upper()
    if text and (whole := forms.get(normalise(text))):
        return whole
    leading = _LEADING.match(text)
    if leading and (letter := leading.group(1).upper()) in letters:
        own = forms.get(normalise(leading.group(2)))
        if own:  # "C. Hepatitis B": the rest is the text of an option
            return letter if own == letter else None
    if re.search(r"\b(?:all|every\w*|any\w*) (?:but|except)\b", text.casefold()):
        return None
    if announced and (said := _letters_in(announced, forms) or _option_in(announced, options)):
        return _agreed(said, announced, options)
    said = _letters_in(text, forms)
    return _agreed(said or _option_in(text, options), text, options)


def _forms(options: tuple[str, ...], values) -> dict[str, str]:
    """Normalised option -> its value; options that read alike cannot be told apart and are out."""
    forms = [normalise(option) for option in options]
    pairs = zip(forms, values, strict=True)
    return {form: value for form, value in pairs if form and forms.count(form) == 1}


def _agreed(said: set[str], text: str, options: tuple[str, ...]) -> str | None:
    """The one letter said, unless it is beyond the options or the text names another option."""
    letters = LETTERS[: len(options)]
    if len(said) != 1 or not said <= set(letters):
        return None
    (letter,) = said
    named = _option_in(text, options)
    return letter if named <= {letter} else None


def _option_in(text: str, options: tuple[str, ...]) -> set[str]:
    """The letter of the option whose text is affirmed, as a set of one or none."""
    if {normalise(option) for option in options} <= {"yes", "no", "maybe", "是", "否"}:
        said = extract_yes_no(text)
        accepted = {"yes": ("yes", "是"), "no": ("no", "否"), None: ()}[said]
        if said is None and re.search(r"\bmaybe\b", text.casefold()) and len(options) > 2:
            accepted = () if re.search(r"\b(?:yes|no)\b", text.casefold()) else ("maybe",)
        return {LETTERS[i] for i, o in enumerate(options) if normalise(o) in accepted}
    label = extract_label(text, options)
    return set() if label is None else {LETTERS[options.index(label)]}


def _letters_in(text: str, forms: dict[str, str]) -> set[str]:
    """Letters that the text gives as an answer; not the article, nor letters in prose or denied."""
    text = _NOT_A_LETTER.sub(" ", text)
    said = set()
    for line in text.splitlines():
        if not _LETTER_DENIED.search(line.casefold()):  # "B pleural effusion", with its own text
            normal = f" {normalise(line)} "
            said |= {x for form, x in forms.items() if f" {x.lower()} {form} " in normal}
        line = re.sub(r"(^|[.;]\s+)([A-Za-z])[.:](?=\s+\S)", r"\1(\2)", line)
        for clause in CLAUSE_END.split(line):
            clause = clause.strip(" .:'\"|-*“”「」") if clause else ""
            if leading := _LEADING.match(clause):
                denied = _OPTION_DENIED.search(leading.group(2).casefold())
                said |= set() if denied else {leading.group(1).upper()}
            if not _LETTER_DENIED.search(clause.casefold()):
                said |= _letters_of_clause(clause)
    # "A. O" may pick the option "O": a letter beyond the options can be the text of one.
    return {x for x in said if x in forms.values() or x.casefold() not in forms}


def _letters_of_clause(clause: str) -> set[str]:
    only = _ONLY_LETTERS.fullmatch(clause)
    named = re.findall(r"\b[A-Z]\b", only.group(1)) if only else []
    named += re.findall(r"[(\[【]([A-Za-z])[)\]】]", clause)
    for part in _OPTION.split(clause)[1:]:
        one = re.match(rf"[(\[【]?((?!a\s+\w)[A-Za-z](?:{_JOINED}[A-Za-z]\b)*)\b(?!['-])", part)
        named += re.findall(r"\b[A-Za-z]\b", one.group(1)) if one else []
    for pair in re.findall(r"\b([A-Z])\s*(?:or|and|/|&|\+)\s*([A-Z])\b", clause):
        named += pair
    if CHINESE.search(clause):
        named += re.findall(r"(?<![A-Za-z0-9])[A-Z](?![A-Za-z0-9])", clause)
    return {letter.upper() for letter in named}


def extract_label(text: str, options: tuple[str, ...]) -> str | None:
    """Return the one option that the text affirms, or None for none, several or only denied ones.

    Whole words (Chinese: substrings), longest option first, so that "upper left" is not also
    "left", "upper center" is not the option "center" even where it is none itself, and "no finding"
    is not a denied "finding". "No evidence of a tumor" affirms the option "no tumor", if there is
    one; "pneumonia or ..." affirms nothing.
    """
    forms = _forms(options, options)
    places = forms.keys() & set(PLACES)
    longer = {other for place in places for other in PLACES if other.endswith(f" {place}")}
    forms = dict.fromkeys(longer) | forms
    text = strip_tags(text)
    if normalise(text) in forms:
        return forms[normalise(text)]
    negatives = {}  # what a negative option denies -> the option
    for form, option in forms.items():
        if denied := re.match(r"(?:(?:no|not|without) |未见|没有|无)(.+)", form):
            negatives[denied.group(1)] = option
    wanted = sorted({**negatives, **forms}, key=len, reverse=True)
    affirmed = set()
    for clause in CLAUSE_END.split(statements(text)):
        clause = normalise(clause)
        for form in wanted:
            pattern = _pattern_of(form)
            for match in pattern.finditer(clause):
                before, after = clause[: match.start()].replace("#", ""), clause[match.end() :]
                if _DENIED_BEFORE.search(before):
                    affirmed |= {negatives[form]} if form in negatives else set()
                elif form in forms and not _DENIED_AFTER.search(after):
                    affirmed.add(_unless_vague(form, before, after) and forms[form])
            clause = pattern.sub(lambda match: "#" * len(match.group()), clause)
    return affirmed.pop() if len(affirmed) == 1 else None


@lru_cache(maxsize=65536)
def _pattern_of(form: str) -> re.Pattern:
    if CHINESE.search(form):
        return re.compile(re.escape(form))
    return re.compile(rf"(?<![a-z0-9.]){re.escape(form)}(?:e?s)?(?![a-z0-9]|\.\d)")


def _unless_vague(form: str, before: str, after: str) -> bool | None:
    """None where the option is one of an alternative, a bound, or denies something else."""
    alternative = re.match(r" ?(?:or\b|或)", after) or re.search(r"(?:\bor|或) ?$", before)
    bound = re.search(r"\b(?:more|less) than $", before)
    other = form.startswith("no ") and re.match(r" (?:of|for|to suggest|consistent)\b", after)
    return None if alternative or bound or other else True


# --- a number, boxes --------------------------------------------------------------------------

_VAGUE = re.compile(
    r"\b(?:more than|at least|at most|fewer|less than|over|up to|thirds?|half|quarters?|dozens?)\b"
    r"|[<>≤≥]|\d\+|(?<!\d)-\d|多于|少于|至少|至多|以上|以下|超过|不到|不足|大于|小于"
)
_DIGITS = re.compile(
    r"(?<![a-z0-9.])(\d+(?:,\d{3})*(?:\.\d+)?)(?![a-z0-9]|\.\d|[ -]*(?:mm|cm|m|k?g|mg|ml|%|percent|"
    r"(?:minute|hour|day|week|month|year)s?|毫米|厘米|岁|天|周|年)(?![a-z]))"
)
_DIMENSIONS = re.compile(r"\d+(?:\.\d+)?\s*[x×]\s*\d+(?:\.\d+)?\s*(?:[a-z]+|毫米|厘米)?")


def extract_number(text: str) -> int | None:
    """Return the one whole number that the text states ("2", "two", 两个; "none" is 0), or None.

    Bounds ("more than 3"), measures ("5 mm"), fractions and two different numbers give None; a
    denied number ("3, not 2") does not count.
    """
    text = statements(strip_tags(text)).casefold()
    if is_refusal(text) or _VAGUE.search(text):
        return None
    found = set()
    for clause in CLAUSE_END.split(_DIMENSIONS.sub(" ", text)):
        if not re.search(r"\bnot\b|不是", clause):
            found |= _numbers_in(clause)
    return found.pop() if len(found) == 1 else None


def _numbers_in(text: str) -> set[int | None]:
    found = set()
    for digits in _DIGITS.findall(text):
        value = float(digits.replace(",", ""))
        found.add(int(value) if value.is_integer() else None)
    total = None
    for word in [*re.findall(r"[a-z]+", text), ""]:
        if word in TENS or word in NUMBER_WORDS:
            value = TENS.get(word) or NUMBER_WORDS[word]
            extends = total and (total % 100 == 0 or (total % 10 == 0 and value < 10))
            if total is not None and not extends:
                found.add(total)
            total = total + value if extends else value
        elif word in ("hundred", "thousand"):
            total = (total or 1) * (100 if word == "hundred" else 1000)
        elif word != "and" or total is None or total % 100:
            found |= set() if total is None else {total}
            total = None
            found |= {0} if word in ("no", "none") else set()
            found |= {1} if word in ("single", "solitary") else set()
    alone = re.fullmatch(rf"\W*(?:答案[是为:]?)?({CHINESE_NUMBER})\W*", text)
    counted = re.findall(rf"(?<!第)({CHINESE_NUMBER})(?={MEASURE_WORD})", text)
    found |= {chinese_number(said) for said in counted + ([alone.group(1)] if alone else [])}
    if re.search(r"没有|无|未见", text):
        found.add(0)
    return found
