"""Recipes of public questions, captions and dialogues, with images and without.

Layouts: the dataset cards and files on the hub; of PubMedQA and LLaVA-Med their repositories, of
VQA-Med-2019 and ROCOv2 their Zenodo records. Only English questions of SLAKE are read: its Chinese
training images include English test images.

The modality of an image is what the row or the path says; where it says nothing, or something that
is none of the paper's modalities, it is "unstated", and nothing is asked about it.
"""

from gmai_lib.dataset.recipes_layouts import declare
from gmai_lib.schema import Recipe

_HUB = "https://huggingface.co/datasets/"
_GMAI = _HUB + "General-Medical-AI/GMAI-VL-5.5M"
_CHOICES = ("Choice A", "Choice B", "Choice C", "Choice D")
_THREE = {"data/train-*.parquet": "train", "data/validation-*.parquet": "validation"}
_THREE |= {"data/test-*.parquet": "test"}


def _image(reader: str, name: str, marks, homepage: str, **more) -> Recipe:
    more = {"task": "attribute recognition", "homepage": homepage} | more
    return declare(reader, name, marks, "unstated", "unstated", "", **more)


def _text(name: str, marks, homepage: str, **more) -> Recipe:
    more = {"task": "text QA", "homepage": homepage} | more
    return declare(more.pop("reader", "question_rows"), name, marks, "text", "unstated", "", **more)


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
    _image(
        "image_questions", "pmc_vqa", ("*/train_2.csv", "*/test_2.csv"), _HUB + "xmcmic/PMC-VQA",
        citation="Zhang et al., PMC-VQA, arXiv 2305.10415",
        indexes={"train_2.csv": "train", "test_2.csv": "test"},
        image="**/{name}",
        images="**/*.jpg",
        fields={"image": "Figure_path", "question": "Question", "answer": "Answer"},
        choices=_CHOICES,
    ),
    _image(  # the first version, with compound figures; `Answer` is the text, spelled in two ways
        "image_questions", "pmc_vqa_1", ("*/train.csv", "*/test_clean.csv"),
        _HUB + "xmcmic/PMC-VQA",
        citation="Zhang et al., PMC-VQA, arXiv 2305.10415",
        indexes={"train.csv": "train", "test.csv": "test"},  # test_clean.csv is some of the latter
        image="**/{name}",
        images="**/*.jpg",
        fields={
            "image": "Figure_path", "question": "Question",
            "answer": ("Answer_label", "Anwser_label"),
        },
        choices=_CHOICES,
    ),
    _image(
        "image_questions", "vqa_med_2019", ("*/QAPairsByCategory/C?_*.txt",),
        "https://zenodo.org/records/10499039",
        license="CC-BY-4.0",
        citation="Ben Abacha et al., VQA-Med: Overview at ImageCLEF 2019",
        indexes={
            "QAPairsByCategory/C?_*_train.txt": "train",
            "QAPairsByCategory/C?_*_val.txt": "validation",
        },
        header=("image", "question", "answer"),
        image="**/{name}.jpg",
        images="**/*.jpg",
    ),
    _image(
        "captions", "rocov2", ("*/train_captions.csv", "*/valid_captions.csv"),
        _HUB + "eltorio/ROCOv2-radiology",
        license="CC-BY-NC-SA-4.0",
        citation="Rueckert et al., ROCOv2, Scientific Data 2024, 10.1038/s41597-024-03496-6",
        indexes={
            "train_captions.csv": "train", "valid_captions.csv": "validation",
            "test_captions.csv": "test",
        },
        image="**/{name}.jpg",
        images="**/*.jpg",
        fields={"image": "ID", "caption": "Caption"},
    ),
    _image(
        "captions", "pmc_oa", ("*/pmc_oa.jsonl",), _HUB + "axiong/pmc_oa",
        citation="Lin et al., PMC-CLIP, arXiv 2303.07240",
        indexes={"pmc_oa.jsonl": ""},
        image="**/{name}",
        images="**/*.jpg",
    ),
    declare(
        "captions", "quilt_1m", ("*/quilt_1M_lookup.csv",),
        "histopathology", "laboratory medicine and pathology", "",
        task="attribute recognition",
        access="registration",
        citation="Ikezogwo et al., Quilt-1M, arXiv 2306.11207",
        homepage="https://github.com/wisdomikezogwo/quilt1m",
        indexes={"quilt_1M_lookup.csv": ""},
        image="**/{name}",
        images="**/*.jpg",
        fields={"image": "image_path"},
    ),
    _image(
        "dialogues", "pubmedvision", ("*/PubMedVision_*_VQA.json",),
        _HUB + "FreedomIntelligence/PubMedVision",
        license="Apache-2.0",
        citation="Chen et al., HuatuoGPT-Vision, arXiv 2406.19280",
        indexes={"PubMedVision_*_VQA.json": "train"},
        image="{name}",
    ),
    _image(  # the 10k and the plain 60k are other versions of the same conversations
        "dialogues", "llava_med", ("*/llava_med_instruct_60k_inline_mention.json",),
        "https://github.com/microsoft/LLaVA-Med",
        license="CC-BY-NC-4.0",
        citation="Li et al., LLaVA-Med, arXiv 2306.00890",
        indexes={
            "llava_med_instruct_60k_inline_mention.json": "train",
            "llava_med_alignment_500k.json": "train",
        },
        image="**/{name}",
        images="**/*.jpg",
    ),
    _image(
        "dialogues", "gmai_vl_5_5m", ("*/annotations/GMAI-MM-*.jsonl",), _GMAI,
        citation="Li et al., GMAI-VL & GMAI-VL-5.5M, arXiv 2411.14522",
        indexes={"annotations/GMAI-MM-*.jsonl": "train"},
        image="{name}",
        path=r"(?:images/)?[^/]+/[^/]+/(?P<modality>[^/]+)/",
    ),
    _text(
        "gmai_vl_5_5m_text", ("*/annotations/GMAI_Text_*.jsonl",), _GMAI,
        reader="text_dialogues",
        citation="Li et al., GMAI-VL & GMAI-VL-5.5M, arXiv 2411.14522",
        indexes={"annotations/GMAI_Text_*.jsonl": "train"},
    ),
)  # fmt: skip
