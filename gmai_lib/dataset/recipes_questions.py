"""Recipes of public question-answer datasets, with images and without.

Layouts: the dataset cards and files on the hub, and for PubMedQA its repository. Only English
questions of SLAKE are read: its Chinese training images include English test images.
"""

from gmai_lib.dataset.recipes_layouts import declare
from gmai_lib.schema import Recipe

_HUB = "https://huggingface.co/datasets/"
_THREE = {"data/train-*.parquet": "train", "data/validation-*.parquet": "validation"}
_THREE |= {"data/test-*.parquet": "test"}


def _text(name: str, marks, homepage: str, **more) -> Recipe:
    more = {"task": "text QA", "homepage": homepage} | more
    return declare("question_rows", name, marks, "text", "unstated", "", **more)


QUESTIONS = (
    declare(
        "vqa_json", "slake", ("*/imgs/xmlab*/source.jpg", "*/train.json", "*/validate.json"),
        "X-ray", "unstated", "",
        license="CC-BY-4.0",
        citation="Liu et al., SLAKE, ISBI 2021, 10.1109/ISBI48211.2021.9434010",
        homepage=_HUB + "BoKelvin/SLAKE",
        indexes={"train.json": "train", "validate.json": "validation", "test.json": "test"},
        folder="imgs",
        images="imgs/*/source.jpg",
        only={"q_lang": "en"},
        readable=True,
        fields={
            "image": "img_name", "question_type": "content_type", "organ": "location",
        },
    ),
    declare(
        "parquet_vqa", "path_vqa", ("*path*vqa*/data/train-*.parquet",),
        "histopathology", "laboratory medicine and pathology", "",
        license="MIT",  # of the collection; textbooks and PEIR keep the copyright of the images
        citation="He et al., PathVQA, arXiv 2003.10286",
        homepage=_HUB + "flaviagiammarino/path-vqa",
        splits=_THREE,
    ),
    _text(
        "medmcqa", ("*medmcqa*/data/train-*.parquet",), _HUB + "openlifescienceai/medmcqa",
        license="Apache-2.0",
        citation="Pal et al., MedMCQA, CHIL 2022",
        splits=_THREE,
        question="question",
        choices=("opa", "opb", "opc", "opd"),
        number="cop",  # from 0 in Parquet; -1 in the test split, whose answers are kept back
    ),
    _text(
        "pubmedqa", ("*/data/ori_pqal.json",), "https://github.com/pubmedqa/pubmedqa",
        license="MIT",
        citation="Jin et al., PubMedQA, EMNLP 2019",
        splits={"data/ori_pqal.json": ""},
        question="QUESTION",
        answer="LONG_ANSWER",
    ),
    _text(
        "medqa_usmle", ("*/phrases_no_exclude_train.jsonl",),
        _HUB + "GBaker/MedQA-USMLE-4-options",
        license="CC-BY-4.0",
        citation="Jin et al., What Disease does this Patient Have?, Applied Sciences 2021",
        splits={"phrases_no_exclude_train.jsonl": "train", "phrases_no_exclude_test.jsonl": "test"},
        question="question",
        answer="answer",
        choices="options",
    ),
)  # fmt: skip
