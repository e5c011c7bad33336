"""The published benchmarks, from a folder in the layout in which their owners give them out.

    items = load("vqa_rad", Path("~/benchmarks/vqa_rad").expanduser())
    for name, root in recognise(Path("~/benchmarks").expanduser()): ...

A benchmark is one entry of `BENCHMARKS`: its files, split, licence, sizes, citation and protocol,
and per layout a function from a row to a question. Rows that cannot be asked (missing image,
repeated id, answer not among the options, missing field) are counted with their reason, and the
numbers are compared with the published ones: `load` raises if anything is lost or missing, unless
`incomplete=True`, which warns with the same words. `read` gives the counts themselves.

All images are held in memory as they lie on disk; the large sets (OmniMedVQA, PMC-VQA,
GMAI-MMBench) take gigabytes. `python -m gmai_lib.evaluation.fetch` tells where to get each, and
downloads those that are on the Hugging Face hub.

Paper: section 4 and tables 4 to 8 (VQA-RAD, SLAKE, PathVQA, PMC-VQA, OmniMedVQA, GMAI-MMBench,
MMMU Health & Medicine).
Departs: prompts are this project's; SLAKE in both languages; MedXpertQA, MedMCQA and PubMedQA too.
"""

import ast
import csv
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from gmai_lib.dataset.annotations import files, read_index
from gmai_lib.evaluation.extraction import LETTERS
from gmai_lib.evaluation.items import Item
from gmai_lib.evaluation.published_files import (
    UNKNOWN,
    Asked,
    Benchmark,
    Layout,
    Read,
    Unusable,
    digest,
    embedded,
    letter_of,
    read_benchmark,
    text_of,
)
from gmai_lib.outputs import atomic

_HUB = "https://huggingface.co/datasets/"


def load(name: str, folder: Path, *, incomplete: bool = False) -> list[Item]:
    """Return the items of benchmark `name` in `folder`.

    Raises ValueError, with every reason, its count and an example, if a row cannot be asked or a
    number differs from the published one; with `incomplete` that is a warning.
    """
    found = read(name, folder)
    if problems := found.problems():
        message = f"{name} in {folder}: {problems}"
        if not incomplete:
            raise ValueError(f"{message}; repair the folder, or pass incomplete=True")
        warnings.warn(message, stacklevel=2)
    return found.items


def read(name: str, folder: Path) -> Read:
    """Return the items of benchmark `name` in `folder` with the counts of what is wrong."""
    return read_benchmark(get(name), Path(folder))


def recognise(folder: Path) -> list[tuple[str, Path]]:
    """Return (name, root) of every benchmark that lies in `folder` or a folder directly in it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; pass the one that holds the benchmarks")
    roots = [folder, *sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")]
    return [
        (benchmark.name, root)
        for root in roots
        for benchmark in BENCHMARKS
        if fnmatchcase(root.resolve().name.lower(), benchmark.folder)
        and any(files(root, layout.rows) for layout in benchmark.layouts)
    ]


def get(name: str) -> Benchmark:
    """Return the benchmark called `name`; ValueError lists the known names."""
    for benchmark in BENCHMARKS:
        if benchmark.name == name:
            return benchmark
    raise ValueError(f"no benchmark {name!r}; known: {[b.name for b in BENCHMARKS]}")


def write_submission(items: list[Item], responses: list[dict], path: Path) -> Path:
    """Write the answers to GMAI-MMBench's TEST split as its owners take them; return `path`.

    One row per item: index, question, options, and the response as `prediction`, as a table with
    tabs (a spreadsheet program turns it into the .xlsx that is mailed). ValueError if a response
    is missing.
    """
    said = {row["id"]: row["response"] for row in responses}
    if missing := [item.id for item in items if item.id not in said]:
        raise ValueError(f"{len(missing)} items have no response, first {missing[0]}")
    letters = LETTERS[: max(len(item.options) for item in items)]
    with atomic(Path(path)) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "question", *letters, "prediction"])
        for item in items:
            options = [*item.options, *[""] * (len(letters) - len(item.options))]
            index = item.id.rpartition("#")[2]
            table.writerow([index, item.question.split("\n")[0], *options, said[item.id]])
    return Path(path)


# ---- rows -> questions ---------------------------------------------------------------------


def _vqa_rad_public(row: dict, where: str) -> Asked | None:
    """The owners' one list; `phrase_type` is the split."""
    return _vqa_rad(row, where) if row["phrase_type"].startswith("test") else None


def _vqa_rad(row: dict, where: str) -> Asked:
    """A file of test questions."""
    return Asked(
        id=text_of(row, "qid"),
        question=text_of(row, "question"),
        answer=text_of(row, "answer"),  # some are JSON integers
        images=(text_of(row, "image_name"),),
        subsets={
            "answer_type": text_of(row, "answer_type").lower(),  # "CLOSED " occurs
            "organ": text_of(row, "image_organ"),
        },
    )


def _embedded_question(row: dict, where: str) -> Asked:
    """VQA-RAD and PathVQA as Parquet: no id and no answer type; the row's place is the id."""
    picture = embedded(row, "image", where)
    return Asked(
        id=where,
        question=text_of(row, "question"),
        answer=text_of(row, "answer"),
        images=(picture,),
        group=digest(picture),
    )


class _PlainPickle(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers; anything else in a pickle could run code."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it wants {module}.{name}")


def _pickled_rows(path: Path) -> Iterator[dict]:
    try:
        with path.open("rb") as file:
            rows = _PlainPickle(file).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is no pickle of plain lists and dicts ({error})") from error
    yield from rows if isinstance(rows, list) else [rows]


def _path_vqa(row: dict, where: str) -> Asked:
    return Asked(
        id=text_of(row, "question_id"),
        question=text_of(row, "sent"),
        answer=next(iter(row["label"]), ""),
        images=(text_of(row, "img_id"),),
        subsets={"answer_type": text_of(row, "answer_type")},
    )


def _slake(language: str) -> Callable[[dict, str], Asked | None]:
    def asked(row: dict, where: str) -> Asked | None:
        if row["q_lang"] != language:
            return None
        return Asked(
            id=text_of(row, "qid"),
            question=text_of(row, "question"),
            answer=text_of(row, "answer"),
            images=(text_of(row, "img_name"),),
            language=language,
            modality=text_of(row, "modality"),
            subsets={
                "answer_type": text_of(row, "answer_type").lower(),
                "content_type": text_of(row, "content_type"),
                "base_type": text_of(row, "base_type"),
            },
        )

    return asked


def _pmc_vqa(row: dict, where: str) -> Asked:
    names = [f"Choice {letter}" for letter in "ABCD"]
    pairs = zip("ABCD", (text_of(row, name) for name in names), strict=True)
    # The files write the letter into the option: " A:Focal uptake ".
    options = tuple(re.sub(rf"^{letter}\s*[:.)]\s*", "", text) for letter, text in pairs)
    # The first version has the letter in Answer_label, spelled in two ways.
    label = next((name for name in ("Answer_label", "Anwser_label") if name in row), "Answer")
    return Asked(
        id=f"{where.partition('/')[0]}/{row.get('index') or row.get('') or where.split('/')[-1]}",
        question=text_of(row, "Question"),
        answer=text_of(row, label).upper(),
        options=options,
        images=(text_of(row, "Figure_path"),),
    )


def _omnimedvqa(row: dict, where: str) -> Asked:
    said = [text_of(row, name) for name in (f"option_{x}" for x in "ABCD") if row.get(name)]
    options = tuple(said)
    return Asked(
        id=f"{text_of(row, 'dataset')}/{text_of(row, 'question_id')}",
        question=text_of(row, "question"),
        answer=letter_of(text_of(row, "gt_answer"), options),
        options=options,
        images=(text_of(row, "image_path"),),
        modality=row.get("modality_type") or "unstated",
        subsets={
            "question_type": text_of(row, "question_type"),
            "modality_type": row.get("modality_type") or "",  # one item has none
            "dataset": text_of(row, "dataset"),
        },
    )


_AXES = {
    "clinical vqa task": "clinical VQA task",
    "department": "department",
    "perceptual granularity": "perceptual granularity",
}


def _gmai_mmbench(row: dict, where: str) -> Asked:
    absent = ("", "none", "nan")
    options = [row[x].strip() for x in "ABCDE" if row.get(x, "").strip().lower() not in absent]
    if row["image"] is None:
        raise Unusable("image cannot be decoded", where)
    return Asked(
        id=text_of(row, "index"),
        question=text_of(row, "question"),
        answer=text_of(row, "answer").upper(),
        options=tuple(options),
        images=(row["image"],),
        group=digest(row["image"]),
        modality=row.get("modality") or "unstated",
        subsets={name: row.get(key) or "" for key, name in _AXES.items()},
    )


def _gmai_mmbench_test(row: dict, where: str) -> Asked:
    return _gmai_mmbench(row | {"answer": UNKNOWN}, where)


_MMMU_SUBJECTS = (
    "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy", "Public_Health",
)  # fmt: skip


def _mmmu(row: dict, where: str) -> Asked | None:
    subject = where.split("/")[0]
    if subject not in _MMMU_SUBJECTS:
        return None
    options = ast.literal_eval(row["options"] or "[]")
    texts = [row["question"], *map(str, options)]
    # The order of mention; <image 2> before <image 10>, and as words: it is a token elsewhere.
    numbers = dict.fromkeys(n for text in texts for n in re.findall(r"<image (\d)>", text))
    pictures = tuple(embedded(row, f"image_{number}", where) for number in numbers)
    asked, *options = (re.sub(r"<image (\d)>", r"(image \1)", text) for text in texts)
    return Asked(
        id=text_of(row, "id"),
        question=asked,
        answer=text_of(row, "answer"),
        options=tuple(options),
        images=pictures,
        group=text_of(row, "id"),
        subsets={"subject": subject, "question_type": text_of(row, "question_type")},
    )


def _medxpertqa(row: dict, where: str) -> Asked:
    # The question repeats the options at its end.
    question = text_of(row, "question").split("\nAnswer Choices:")[0]
    return Asked(
        id=text_of(row, "id"),
        question=question,
        answer=text_of(row, "label"),
        options=tuple(str(row["options"][letter]) for letter in sorted(row["options"])),
        images=tuple(row["images"]),
        subsets={
            "medical_task": text_of(row, "medical_task"),
            "body_system": text_of(row, "body_system"),
            "question_type": text_of(row, "question_type"),
        },
    )


def _medmcqa(row: dict, where: str) -> Asked:
    number = row["cop"]  # from 0 in Parquet
    known = isinstance(number, int) and 0 <= number < 4
    return Asked(
        id=text_of(row, "id"),
        question=text_of(row, "question"),
        answer=LETTERS[number] if known else str(number),
        options=tuple(text_of(row, name) for name in ("opa", "opb", "opc", "opd")),
        modality="text",
        subsets={"subject": text_of(row, "subject_name")},
    )


def _pubmedqa_rows(path: Path) -> Iterator[dict]:
    """The labelled articles of the official test list, which lies beside them."""
    articles, labels = read_index(path), read_index(path.with_name("test_ground_truth.json"))
    for number, label in labels.items():
        yield articles.get(number, {}) | {"id": number, "label": label}


def _pubmedqa(row: dict, where: str) -> Asked:
    context = " ".join(row["CONTEXTS"])
    return Asked(
        id=text_of(row, "id"),
        question=f"{context} {text_of(row, 'QUESTION')}",
        answer=letter_of(text_of(row, "label"), ("yes", "no", "maybe")),
        options=("yes", "no", "maybe"),
        modality="text",
        by_letter=False,
    )


# ---- declarations --------------------------------------------------------------------------

_PMC_FOLDERS = ("figures/{}", "images_2/figures/{}", "images/figures/{}", "images/{}", "{}")
_RAD_PARQUET = Layout("data/test-*.parquet", _embedded_question)
_TASKS = {  # GMAI-MMBench, VAL
    "Attribute Recognition": 135, "Blood Vessels Recognition": 135, "Bone": 175,
    "Cell Recognition": 115, "Counting": 188, "Disease Diagnosis": 2122,
    "Image Quality Grading": 50, "Microorganism Recognition": 135, "Muscle": 50,
    "Nervous Tissue": 40, "Organ Recognition - Abdomen": 245,
    "Organ Recognition - Head and Neck": 155, "Organ Recognition - Pelvic": 75,
    "Organ Recognition - Thorax": 170, "Severity Grading": 336, "Surgeon Action Recognition": 115,
    "Surgical Instrument Recognition": 239, "Surgical Workflow Recognition": 70,
}  # fmt: skip

BENCHMARKS = (
    Benchmark(
        name="vqa_rad",
        title="VQA-RAD",
        folder="*vqa*rad*",
        layouts=(
            Layout("VQA_RAD Dataset Public.json", _vqa_rad_public, ("VQA_RAD Image Folder/{}",)),
            Layout("data/testset.json", _vqa_rad, ("data/images/{}",)),
            Layout("testset.json", _vqa_rad, ("images/{}",)),
            _RAD_PARQUET,
        ),
        split="test",
        expected={
            "all": 451, "answer_type=closed": 272, "answer_type=open": 179, "closed=yes/no": 251,
        },
        files={
            "VQA_RAD Dataset Public.json": "",
            "VQA_RAD Image Folder/synpic*.jpg": "315 files",
            "or data/test-00000-of-00001-*.parquet": "10.3 MB",
        },
        hub_files=("data/test-*.parquet",),
        homepage="https://osf.io/89kps/ or " + _HUB + "flaviagiammarino/vqa-rad",
        license="CC0-1.0",
        citation="Lau et al., Scientific Data 2018, 10.1038/sdata.2018.251",
        protocol="all 451, closed as annotated 272 or yes/no 251; 202 of 203 test images are also "
        "in train, by design",
    ),
    *(
        Benchmark(
            name=f"slake_{language}",
            title=f"SLAKE ({'English' if language == 'en' else 'Chinese'})",
            folder="*slake*",
            layouts=(Layout("test.json", _slake(language), ("imgs/{}",)),),
            split="test",
            expected={"all": n, "answer_type=open": opened, "answer_type=closed": closed},
            files={"test.json": "635,829 bytes", "imgs.zip -> imgs/xmlab*/source.jpg": "212 MB"},
            hub_files=("test.json", "imgs.zip"),
            homepage=_HUB + "BoKelvin/SLAKE",
            license="CC-BY-4.0",
            citation="Liu et al., SLAKE, ISBI 2021, 10.1109/ISBI48211.2021.9434010",
            protocol=f"all {n}, closed as annotated {closed}; MedEvalKit mixes both languages "
            "(2,094); 72 English test images are in the Chinese training split",
        )
        for language, n, opened, closed in (("en", 1061, 645, 416), ("zh", 1033, 613, 420))
    ),
    Benchmark(
        name="path_vqa",
        title="PathVQA",
        folder="*path*vqa*",
        layouts=(
            _RAD_PARQUET,
            Layout("qas/test_vqa.pkl", _path_vqa, ("images/test/{}.jpg",), _pickled_rows),
        ),
        split="test",
        expected={"all": 6719, "closed=yes/no": 3362},
        files={
            "data/test-*-of-00003-*.parquet": "3 files",
            "or qas/test_vqa.pkl and images/test/*.jpg": "the owners' zip, other numbers",
        },
        hub_files=("data/test-*.parquet",),
        homepage=_HUB + "flaviagiammarino/path-vqa",
        license="MIT",  # of the collection; textbooks and PEIR keep the copyright of the images
        citation="He et al., PathVQA, arXiv 2003.10286",
        protocol="all 6,719, yes/no 3,362; earlier revisions hold other numbers",
    ),
    Benchmark(
        name="pmc_vqa",
        title="PMC-VQA (test_2)",
        folder="*pmc*vqa*",
        layouts=(Layout("test_2.csv", _pmc_vqa, _PMC_FOLDERS),),
        split="test_2",
        expected={"all": 33430},
        files={"test_2.csv": "12.4 MB", "images_2.zip -> figures/*.jpg": "2.21 GB"},
        hub_files=("test_2.csv", "images_2.zip"),
        homepage=_HUB + "xmcmic/PMC-VQA",
        license="CC-BY-SA-4.0",
        citation="Zhang et al., PMC-VQA, arXiv 2305.10415",
        protocol="33,430 items as in MedEvalKit; the quoted 2,000 are test_clean.csv",
    ),
    Benchmark(
        name="pmc_vqa_clean",
        title="PMC-VQA (test_clean)",
        folder="*pmc*vqa*",
        layouts=(Layout("test_clean.csv", _pmc_vqa, _PMC_FOLDERS),),
        split="test_clean",
        expected={"all": 2000},
        files={"test_clean.csv": "419 kB", "images.zip -> images/*.jpg": "18.9 GB"},
        hub_files=("test_clean.csv", "images.zip"),
        homepage=_HUB + "xmcmic/PMC-VQA",
        license="CC-BY-SA-4.0",
        citation="Zhang et al., PMC-VQA, arXiv 2305.10415",
        protocol="2,000 hand-checked items of the first version, compound figures",
    ),
    Benchmark(
        name="omnimedvqa",
        title="OmniMedVQA (open access)",
        folder="*omnimed*",
        layouts=(Layout("QA_information/Open-access/*.json", _omnimedvqa, ("{}",)),),
        split="test",
        expected={
            "all": 88996, "question_type=Disease Diagnosis": 55387,
            "question_type=Anatomy Identification": 16448,
            "question_type=Modality Recognition": 11565,
            "question_type=Other Biological Attributes": 3498,
            "question_type=Lesion Grading": 2098,
        },
        files={"OmniMedVQA.zip -> QA_information/Open-access/*.json, Images/": "10.7 GB, 42 sets"},
        hub_files=("OmniMedVQA.zip",),
        homepage=_HUB + "foreverbeliever/OmniMedVQA",
        license="unstated",  # follow each source set's licence
        citation="Hu et al., OmniMedVQA, CVPR 2024, arXiv 2402.09181",
        protocol="all 88,996 open-access items, item-weighted; the HuatuoGPT-Vision table has "
        "11,124 of them, the authors 127,995",
    ),
    Benchmark(
        name="gmai_mmbench",
        title="GMAI-MMBench VAL",
        folder="*gmai*mm*",
        layouts=(Layout("GMAI*VAL*.tsv", _gmai_mmbench),),
        split="VAL",
        expected={"all": 4550} | {f"clinical VQA task={task}": n for task, n in _TASKS.items()},
        files={"GMAI-MMBench_VAL.tsv or GMAI_mm_bench_VAL.tsv": "9.34 GB"},
        hub_files=("GMAI*VAL*.tsv",),
        homepage=_HUB + "OpenGVLab/GMAI-MMBench",
        license="Apache-2.0",  # one curator treats it as CC BY-NC-SA
        citation="Chen et al., GMAI-MMBench, NeurIPS 2024, arXiv 2408.03361",
        protocol="VAL 4,550, item-weighted; the per-task columns of the papers are TEST",
    ),
    Benchmark(
        name="gmai_mmbench_test",
        title="GMAI-MMBench TEST (no answers)",
        folder="*gmai*mm*",
        layouts=(Layout("GMAI*TEST*.tsv", _gmai_mmbench_test),),
        split="TEST",
        expected={"all": 21281},
        files={"GMAI_mm_bench_TEST_part_1..11.tsv": "11 files"},
        hub_files=("GMAI*TEST*.tsv",),
        homepage=_HUB + "OpenGVLab/GMAI-MMBench",
        license="Apache-2.0",
        access="answers kept back: `write_submission`, then by e-mail to wangguoan@pjlab.org.cn",
        citation="Chen et al., GMAI-MMBench, NeurIPS 2024, arXiv 2408.03361",
        protocol="no score offline: 21,281 answers are mailed to the owners",
    ),
    Benchmark(
        name="mmmu_health",
        title="MMMU Health & Medicine",
        folder="*mmmu*",
        layouts=(Layout("*/validation-*.parquet", _mmmu),),
        split="validation",
        expected={
            "all": 150, "question_type=multiple-choice": 145, "question_type=open": 5,
            **{f"subject={subject}": 30 for subject in _MMMU_SUBJECTS},
        },
        files={f"{subject}/validation-00000-of-00001.parquet": "" for subject in _MMMU_SUBJECTS},
        hub_files=tuple(f"{subject}/validation-*.parquet" for subject in _MMMU_SUBJECTS),
        homepage=_HUB + "MMMU/MMMU",
        license="Apache-2.0",
        access="open; the answers of its test split are on EvalAI (2179), which wants an account",
        citation="Yue et al., MMMU, CVPR 2024, arXiv 2311.16502",
        protocol="validation 150, of them 145 multiple choice and 5 open (exact match); "
        "VLMEvalKit turns the 5 into choices, HuatuoGPT-Vision leaves them out",
    ),
    Benchmark(
        name="medxpertqa_mm",
        title="MedXpertQA-MM",
        folder="*medxpert*",
        layouts=(Layout("MM/test.jsonl", _medxpertqa, ("images/{}", "MM/images/{}")),),
        split="test",
        expected={"all": 2000, "question_type=Reasoning": 1446, "question_type=Understanding": 554},
        files={"MM/test.jsonl": "2.02 MB", "images.zip -> images/": "517 MB"},
        hub_files=("MM/test.jsonl", "images.zip"),
        homepage=_HUB + "TsinghuaC3I/MedXpertQA",
        license="MIT",
        citation="Zuo et al., MedXpertQA, arXiv 2501.18362",
        protocol="one direct turn as in MedEvalKit, all images; the owners ask in two turns",
    ),
    Benchmark(
        name="medmcqa",
        title="MedMCQA (text)",
        folder="*medmcqa*",
        layouts=(Layout("data/validation-*.parquet", _medmcqa),),
        split="validation",
        expected={"all": 4183},
        files={"data/validation-00000-of-00001.parquet": ""},
        hub_files=("data/validation-*.parquet",),
        homepage=_HUB + "openlifescienceai/medmcqa",
        license="Apache-2.0",
        citation="Pal et al., MedMCQA, CHIL 2022",
        protocol="validation 4,183: the test split has no labels",
    ),
    Benchmark(
        name="pubmedqa",
        title="PubMedQA (text)",
        folder="*pubmedqa*",
        layouts=(Layout("data/ori_pqal.json", _pubmedqa, read=_pubmedqa_rows),),
        split="test",
        expected={"all": 500},
        files={"data/ori_pqal.json": "", "data/test_ground_truth.json": ""},
        homepage="https://github.com/pubmedqa/pubmedqa",
        license="MIT",
        citation="Jin et al., PubMedQA, EMNLP 2019",
        protocol="the 500 labelled test articles with their context, yes/no/maybe",
    ),
)  # fmt: skip
