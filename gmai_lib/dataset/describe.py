"""Facts -> sentences: the descriptions of captions, regions and written reports.

Every sentence comes with the facts it states (`Statement`), so that a reader can trace it and a
question about a written report only asks for what the report says.

Paper: section 3.1, step 5 (whole-image and region captions guided by the annotation).
Departs: templates instead of GPT-4o; text states the annotation and adds no visual detail.
"""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from gmai_lib.dataset import lexicon
from gmai_lib.dataset.facts import box_of, place_of
from gmai_lib.dataset.lexicon import NEGATIVE_LABELS, is_structure
from gmai_lib.dataset.sentences import CHINESE_SIZES, ENGLISH_SIZES, SENTENCES
from gmai_lib.schema import PLACES, Fact

MOST_LISTED = 5  # labels that one sentence names; of more, some are drawn ("include")
MOST_PLACED = 3  # instances of one label whose places one sentence lists


@dataclass(frozen=True)
class Statement:
    """One sentence and the facts it states."""

    text: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Page:
    """What a text is written from: facts, language and chance."""

    facts: tuple[Fact, ...]
    language: str
    rng: Random | None = None  # None: always the first surface form
    unknown: Counter = field(default_factory=Counter)  # terms without a translation

    def of(self, kind: str, label: str | None = None) -> list[Fact]:
        """Return the facts of `kind` (about `label`, if given) in their order."""
        return [f for f in self.facts if f.kind == kind and (label is None or f.label == label)]

    def term(self, english: str) -> str:
        """Return `english` in the page's language."""
        return lexicon.translate(english, self.language, self.unknown)

    def modality(self, value: str) -> dict[str, str]:
        """Slots of a modality: {x} "MR", {a} "an MR"."""
        x = self.term(value)
        return {"x": x, "a": lexicon.with_article(x) if self.language == "en" else x}

    def name(self, label: str) -> dict[str, str]:
        """Slots of a label or organ: {x}, {a}, {the}, {many}; Chinese {x} and {unit}."""
        if self.language == "zh":
            return {"x": self.term(label), "unit": lexicon.measure_word(label)}
        a, the = lexicon.indefinite(label), lexicon.definite(label)
        return {"x": label, "a": a, "the": the, "many": lexicon.plural(label)}

    def the(self, label: str) -> str:
        """Return "the nodule", "the liver", "left rib 9"; Chinese the bare term."""
        return lexicon.definite(label) if self.language == "en" else self.term(label)

    def amount(self, label: str, count: int = 0, size: str = "") -> tuple[str, str]:
        """Return ("two nodules", "are"); without a count "a nodule", Chinese the bare term."""
        if self.language == "zh":
            adjective = CHINESE_SIZES[size] if size else ""
            if count:
                return lexicon.quantity(label, count, "zh", adjective), ""
            return adjective + self.term(label), ""
        adjective = ENGLISH_SIZES[size] if size else ""
        if count > 1:
            return lexicon.quantity(label, count, "en", adjective), "are"
        return lexicon.indefinite(label, adjective), "are" if lexicon.are(label) else "is"

    def join(self, words: list[str], last: str = "and") -> str:
        """Return "a, b and c"; Chinese "a、b和c"."""
        if len(words) == 1:
            return words[0]
        if self.language == "zh":
            return "、".join(words[:-1]) + {"and": "和", "or": "或"}[last] + words[-1]
        return f"{', '.join(words[:-1])} {last} {words[-1]}"

    def say(self, kind: str, facts, **slots: str) -> Statement:
        """Return a sentence of `kind` that states `facts`."""
        forms = SENTENCES[kind][self.language]
        form = self.rng.choice(forms) if self.rng else forms[0]
        return Statement(fill(form, **slots), tuple(facts))

    def text(self, statements: list[Statement]) -> str:
        """Join sentences; Chinese needs no blank between them."""
        return ("" if self.language == "zh" else " ").join(s.text for s in statements)


def fill(form: str, **slots: str) -> str:
    """Fill a surface form; {A}, {The} and {N} are the capitalized slots."""
    for name, capital in (("a", "A"), ("the", "The"), ("n", "N")):
        if name in slots:
            slots[capital] = slots[name][0].upper() + slots[name][1:]
    return form.format(**slots)


def describe(page: Page, *, most: int = 4) -> list[Statement]:
    """Return a whole-image description: 2 to `most` sentences, one if the facts give no more.

    Wording, order and choice of facts vary; modality, organ and labels are always in.
    """
    rng = page.rng
    body = _labels_and_places(page)
    blocks = [block for block in (_opening(page, alone=not body), body) if block]
    extras = []
    if absent := page.of("absent"):
        some = rng.sample(absent, rng.randint(1, min(3, len(absent))))
        extras.append((state_absent(page, some), 0.5))
    for kind, share in (("severity", 0.5), ("department", 0.2)):
        extras += [(page.say(kind, [f], x=page.term(f.value)), share) for f in page.of(kind)]
    rng.shuffle(extras)
    length = sum(map(len, blocks))
    for statement, share in extras:
        if length < 2 or (length < most and rng.random() < share):
            blocks.append([statement])
            length += 1
    if rng.random() < 0.25:  # now and then the description does not open with the modality
        rng.shuffle(blocks)
    return [statement for block in blocks for statement in block]


def describe_region(page: Page, fact: Fact) -> list[Statement]:
    """Return 2 or 3 sentences on the box of `fact`; the first starts "This region"."""
    n = page.the(fact.label) if is_structure(fact.label) else page.amount(fact.label, 1)[0]
    statements = [page.say("region", [fact], n=n)]
    rest = []
    if place := place_of(box_of(fact)):
        rest.append(page.say("region_place", [fact], place=page.term(place)))
    modality, organ = page.of("modality"), page.of("organ")
    if modality and organ:
        slots = page.modality(modality[0].value) | {"organ": page.the(organ[0].value)}
        rest.append(page.say("region_context", [*modality, *organ], **slots))
    elif modality:
        rest.append(page.say("modality", modality, **page.modality(modality[0].value)))
    return statements + rest[: page.rng.randint(1, 2)]


def state_labels(page: Page) -> list[Statement]:
    """Return the sentence that names the labels with their counts; [] without labels."""
    labels = page.of("label")
    if not labels:
        return []
    if negative := [f for f in labels if f.value in NEGATIVE_LABELS]:
        fact = negative[0]
        noun = fact.value.removeprefix("no ")
        return [page.say("no_label", [fact], n=noun, x=page.term(fact.value))]
    chosen = labels
    if len(labels) > MOST_LISTED:
        chosen = page.rng.sample(labels, page.rng.randint(3, MOST_LISTED))
    counts = {f.label: f for f in page.of("count")}
    used = [*chosen, *(counts[f.value] for f in chosen if f.value in counts)]
    named = [
        page.amount(f.value, int(counts[f.value].value) if f.value in counts else 0) for f in chosen
    ]
    verb = named[0][1] if len(named) == 1 else "are"
    partial = len(chosen) < len(labels) and all(is_structure(f.value) for f in chosen)
    kind = "include" if partial else "label"
    return [page.say(kind, used, n=page.join([n for n, _ in named]), **{"is": verb})]


def state_absent(page: Page, absent: list[Fact]) -> Statement:
    """Return the sentence that says that `absent` labels are not there.

    Normal anatomy that the image does not reach is "not seen", one structure a sentence.
    """
    structures = [f for f in absent if is_structure(f.value)]
    if structures:
        return page.say("absent_structure", structures[:1], **page.name(structures[0].value))
    names = [page.term(f.value) for f in absent]
    if page.language == "en":
        names = [lexicon.one(name) for name in names]
    return page.say("absent", absent, n=page.join(names, "or"))


def _opening(page: Page, *, alone: bool) -> list[Statement]:
    """Modality and organ in one sentence; in two where nothing else can be said."""
    modality, organ = page.of("modality"), page.of("organ")
    if modality and organ and not alone:
        slots = page.modality(modality[0].value) | {"organ": page.the(organ[0].value)}
        return [page.say("modality_organ", [*modality, *organ], **slots)]
    out = [page.say("modality", [f], **page.modality(f.value)) for f in modality]
    return out + [page.say("organ", [f], **page.name(f.value)) for f in organ]


def _labels_and_places(page: Page) -> list[Statement]:
    """What is there and, where boxes say so, where, on which side and how large."""
    rng, labels, places = page.rng, page.of("label"), page.of("place")
    if len(labels) == 1 and places and rng.random() < 0.5:
        return _label_with_place(page, labels[0], places[0])
    statements = state_labels(page)
    named = {f.value for s in statements for f in s.facts if f.kind == "label"}
    placed = [f for f in places if f.label in named]
    if placed and rng.random() < 0.9:
        place = rng.choice(placed)
        slots = page.name(place.label)
        side = page.of("side", place.label)
        if side and rng.random() < 0.3:
            statements.append(page.say("side", side, side=page.term(side[0].value), **slots))
        else:
            statements.append(page.say("place", [place], place=page.term(place.value), **slots))
        statements += _size(page, place.label)
    elif len(labels) == 1 and rng.random() < 0.7:
        statements += _places_of_several(page, labels[0].value)
    return statements


def _label_with_place(page: Page, label: Fact, place: Fact) -> list[Statement]:
    """One sentence that names the only label and its place, perhaps with its size."""
    count = page.of("count", label.value)
    size = page.of("size", label.value) if page.rng.random() < 0.4 else []
    n, verb = page.amount(label.value, len(count), size[0].value if size else "")
    used = [label, place, *count, *size]
    slots = {"n": n, "is": verb, "place": page.term(place.value)}
    return [page.say("label_place", used, **slots), *([] if size else _size(page, label.value))]


def _places_of_several(page: Page, label: str) -> list[Statement]:
    """The places of two or three instances, from their boxes."""
    boxes = page.of("box", label)
    if not 2 <= len(boxes) <= MOST_PLACED:
        return []
    found = {place_of(box_of(fact)) for fact in boxes}
    if None in found:
        return []
    the = "the " if page.language == "en" else ""
    places = [the + page.term(place) for place in PLACES if place in found]
    joined = page.join(places).removeprefix(the)  # the surface form has the first article
    return [page.say("places", boxes, place=joined, **page.name(label))]


def _size(page: Page, label: str) -> list[Statement]:
    size = page.of("size", label)
    if not size or page.rng.random() >= 0.15:
        return []
    return [page.say("size", size, **size_slots(page, size[0]))]


def size_slots(page: Page, size: Fact) -> dict[str, str]:
    """Slots of a sentence about the size of a label."""
    if page.language == "zh":
        return page.name(size.label) | {"size": page.term(size.value)}
    return page.name(size.label) | {"x": size.value}
