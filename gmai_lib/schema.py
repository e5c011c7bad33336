"""The three things that flow through the dataset builder, and the ledger that counts them.

`Record` (one annotated image, volume slice or text item) -> `Fact`s (what the annotation
says, each with an id) -> `Sample` (a conversation with the same provenance). Vocabularies are
the paper's (arXiv:2411.14522, figures 2 and 3; names only, see README for what is unknown).

Boxes are x1, y1, x2, y2 as fractions of image width and height, origin top left.
Sides and places are those of the *image frame* as displayed, not of the patient.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, fields

NOT_CLINICAL = (  # in every card and in the dataset's metadata
    "For research and teaching only. Nothing here is a medical device, and no answer of the model "
    "may influence the care of a person."
)

# The paper's 13 modalities.
IMAGE_MODALITIES = (
    "CT",
    "MR",
    "X-ray",
    "ultrasound",
    "endoscopy",
    "histopathology",
    "fundus",
    "dermoscopy",
    "microscopy",
    "OCT",
    "infrared reflectance",
    "PET",
    "ophthalmoscope",
)
# "text" marks records that have no image, "unstated" images of sources that do not say.
MODALITIES = (*IMAGE_MODALITIES, "text", "unstated")

# The paper's 18 departments; "unstated" where a source does not say.
DEPARTMENTS = (
    "orthopedic surgery",
    "general surgery",
    "gastroenterology and hepatology",
    "hematology",
    "pulmonary medicine",
    "sports medicine",
    "endocrinology",
    "cardiovascular surgery",
    "otolaryngology",
    "obstetrics and gynecology",
    "neurosurgery",
    "nephrology and hypertension",
    "infectious diseases",
    "laboratory medicine and pathology",
    "dermatology",
    "oncology",
    "ophthalmology",
    "urology",
    "unstated",
)

# The paper's clinical tasks (shared with GMAI-MMBench); "text QA" marks records without image.
TASKS = (
    "disease diagnosis",
    "organ recognition",
    "bone",
    "severity grading",
    "surgeon action recognition",
    "muscle",
    "surgical workflow recognition",
    "blood vessels recognition",
    "cell recognition",
    "counting",
    "nervous tissue",
    "microorganism recognition",
    "attribute recognition",
    "image quality grading",
    "surgical instrument recognition",
    "text QA",
)

SUBSETS = ("caption", "percept", "instruct", "text_single", "text_multi")
LANGUAGES = ("en", "zh")
SPLITS = ("train", "validation", "test")
ACCESS = ("open", "registration", "credentialed")
PLACES = (
    "upper left",
    "upper center",
    "upper right",
    "middle left",
    "center",
    "middle right",
    "lower left",
    "lower center",
    "lower right",
)
SIZES = ("small", "medium", "large")
SEXES = ("female", "male")
AGE_GROUPS = ("0-17", "18-39", "40-64", "65+")  # years; an exact age can name an old person
# A box centre this near to the middle (fraction of the width) is neither left nor right.
MIDLINE = (0.42, 0.58)
NO_FINDING = "no finding"


@dataclass(frozen=True, kw_only=True)
class Box:
    """One annotated region: label and corners as fractions of the image."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float
    area: float | None = None  # fraction of the image covered by the mask, if there is a mask

    @property
    def place(self) -> int:
        """Index into PLACES of the cell of the 3 x 3 grid that holds the box's centre."""
        column = min(int((self.x1 + self.x2) / 2 * 3), 2)
        row = min(int((self.y1 + self.y2) / 2 * 3), 2)
        return 3 * row + column

    @property
    def side(self) -> str | None:
        """Return "left" or "right" (of the image), None if the centre is near the midline."""
        center = (self.x1 + self.x2) / 2
        if MIDLINE[0] <= center <= MIDLINE[1]:
            return None
        return "left" if center < MIDLINE[0] else "right"


@dataclass(frozen=True, kw_only=True)
class QuestionAnswer:
    """A question-answer pair written by the source's own annotators."""

    question: str
    answer: str
    question_type: str = ""  # the source's own type, e.g. VQA-RAD "PRES"
    answer_type: str = ""  # "closed", "open" or ""
    item: str = ""  # the source's own id of the question


@dataclass(frozen=True, kw_only=True)
class Record:
    """One annotated item of one source, as a reader yields it.

    `image` holds encoded PNG or JPEG bytes that any viewer opens (8-bit grey or RGB; DICOM and
    NIfTI slices are already windowed and oriented), or None for a text item.
    """

    id: str  # dimension#task#modality#source#path, stable between runs
    source: str
    path: str  # POSIX path inside the source folder, with "#slice" for volumes and frames
    dimension: str  # 2d, 3d, video or text: the shape of the original, not of `image`
    modality: str
    department: str
    task: str
    license: str  # SPDX identifier or "unstated"
    access: str
    patient: str = ""  # salted hash that groups items of one person; "" where unknown
    sex: str = ""  # of the person, as the source says; "" where unknown
    age_group: str = ""  # of the person; "" where unknown
    volume: str = ""  # groups slices of one volume or frames of one video
    split: str = ""  # the source's own split, "" where it has none
    image: bytes | None = None
    width: int = 0
    height: int = 0
    organ: str = ""
    labels: tuple[str, ...] = ()  # what is present in the whole image
    absent: tuple[str, ...] = ()  # what the annotation says is NOT there
    boxes: tuple[Box, ...] = ()
    boxes_are_complete: bool = False  # True if every instance is boxed, so counting is valid
    severity: str = ""
    report: str = ""
    qa: tuple[QuestionAnswer, ...] = ()
    language: str = "en"
    sha256: str = ""  # of `image`; filled by curation
    phash: str = ""  # perceptual hash, hex; filled by curation

    def __post_init__(self):
        for name, allowed in (
            ("modality", MODALITIES),
            ("department", DEPARTMENTS),
            ("task", TASKS),
            ("access", ACCESS),
            ("language", LANGUAGES),
            ("split", ("", *SPLITS)),
            ("sex", ("", *SEXES)),
            ("age_group", ("", *AGE_GROUPS)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"record {self.id}: {name}={getattr(self, name)!r} is not one of {allowed}"
                )

    @property
    def digest(self) -> str:
        """The sha256 of `image`, also before curation has filled it in; the record needs one."""
        return self.sha256 or hashlib.sha256(self.image).hexdigest()

    def to_row(self) -> dict:
        """Flatten for Parquet: nested annotation as JSON text, the rest as columns."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        row["labels"], row["absent"] = list(self.labels), list(self.absent)
        # vars, not asdict, here and below: these are flat, and asdict copies every value.
        row["boxes"] = json.dumps([vars(b) for b in self.boxes])
        row["qa"] = json.dumps([vars(q) for q in self.qa], ensure_ascii=False)
        return row

    @classmethod
    def from_row(cls, row: dict) -> "Record":
        """Inverse of `to_row`."""
        row = dict(row)
        row["labels"], row["absent"] = tuple(row["labels"]), tuple(row["absent"])
        row["boxes"] = tuple(Box(**b) for b in json.loads(row["boxes"]))
        row["qa"] = tuple(QuestionAnswer(**q) for q in json.loads(row["qa"]))
        return cls(**row)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One thing the expert annotation says; generated text may only say these."""

    id: str  # f0, f1, ... unique within the record
    kind: str  # modality, department, organ, label, absent, box, side, place, count, size, severity
    value: str  # text form: "CT", "nodule", "upper left", "2", "0.18 0.16 0.50 0.43"
    label: str = ""  # what the fact is about, for box, side, place, count and size


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One conversation, ready for training, with everything needed to audit it."""

    id: str
    images: tuple[bytes, ...]
    conversations: tuple[dict, ...]  # {"role": "user" | "assistant", "content": text}
    subset: str
    language: str
    source: str
    split: str
    license: str
    access: str
    modality: str
    department: str
    task: str
    granularity: str  # image or box
    labels: tuple[str, ...]
    boxes: tuple[Box, ...]
    facts: tuple[Fact, ...]
    patient: str
    volume: str
    writer: str  # "template-<version>"; an LLM writer names its model and prompt hash
    width: int
    height: int
    sha256: str
    phash: str

    def to_row(self) -> dict:
        """Columns of the published Parquet shards (`sample_features`)."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        row["images"] = [{"bytes": b, "path": None} for b in self.images]
        row["conversations"] = list(self.conversations)
        row["labels"] = list(self.labels)
        row["boxes"] = [vars(b) for b in self.boxes]
        row["facts"] = [vars(f) for f in self.facts]
        return row


def sample_features():
    """Return the `datasets.Features` of a Sample row."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    box = {"label": text, "area": Value("float64")}
    box |= {corner: Value("float64") for corner in ("x1", "y1", "x2", "y2")}
    columns = {f.name: text for f in fields(Sample)}
    columns |= {
        "images": List(Image(decode=False)),
        "conversations": List({"role": text, "content": text}),
        "labels": List(text),
        "boxes": List(box),
        "facts": List({"id": text, "kind": text, "value": text, "label": text}),
        "width": Value("int64"),
        "height": Value("int64"),
    }
    return Features(columns)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to recognise and read one dataset."""

    name: str  # `source` of its records
    reader: str  # format, a key of readers.READERS
    marks: tuple[str, ...]  # glob patterns that must all match; first part = the folder's name
    modality: str  # where the files do not say it themselves
    department: str
    task: str
    organ: str = ""
    license: str  # SPDX identifier or "unstated"; a per-image licence in the files wins
    access: str = "open"
    citation: str
    homepage: str = ""
    options: dict = field(default_factory=dict)  # of the reader


@dataclass
class Ledger:
    """Double-entry bookkeeping: everything seen is either kept or dropped with a reason.

    `level` says what is counted: "item" (an image or text unit that would become a Record) or
    "annotation" (a box, mask, label or QA pair inside one).
    """

    seen: Counter = field(default_factory=Counter)  # (source, step, level) -> n
    kept: Counter = field(default_factory=Counter)  # (source, step, level) -> n
    dropped: Counter = field(default_factory=Counter)  # (source, step, level, reason) -> n
    examples: dict = field(default_factory=dict)  # (source, step, level, reason) -> first item

    def keep(self, source: str, step: str, n: int = 1, level: str = "item"):
        """Count `n` things that passed `step`."""
        self.seen[source, step, level] += n
        self.kept[source, step, level] += n

    def drop(self, source: str, step: str, reason: str, item: str, n: int = 1, level: str = "item"):
        """Count `n` things that `step` refused; keep the first `item` per reason as example."""
        self.seen[source, step, level] += n
        self.dropped[source, step, level, reason] += n
        self.examples.setdefault((source, step, level, reason), item)

    def merge(self, other: "Ledger"):
        """Add what another ledger has counted."""
        for name in ("seen", "kept", "dropped"):
            getattr(self, name).update(getattr(other, name))
        self.examples = other.examples | self.examples

    def check(self, expected: dict[tuple[str, str, str], int] | None = None):
        """Raise ValueError unless kept + dropped = seen (= `expected`, where given)."""
        for key, seen in self.seen.items():
            lost = sum(n for (*k, _), n in self.dropped.items() if tuple(k) == key)
            if self.kept[key] + lost != seen:
                raise ValueError(f"{key}: kept {self.kept[key]} + dropped {lost} != seen {seen}")
        for key, count in (expected or {}).items():
            if self.seen[key] != count:
                raise ValueError(f"{key}: {count} in the input but {self.seen[key]} accounted for")

    def rows(self) -> list[dict]:
        """One row per (source, step, level, outcome), for tables and the card."""
        names = ("source", "step", "level")
        out = [
            dict(zip(names, key, strict=True), outcome="kept", count=n, example="")
            for key, n in self.kept.items()
        ]
        out += [
            dict(zip(names, key[:3], strict=True), outcome=key[3], count=n)
            | {"example": self.examples[key]}
            for key, n in self.dropped.items()
        ]
        return sorted(out, key=lambda r: (r["source"], r["step"], r["level"], r["outcome"]))
