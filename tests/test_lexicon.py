"""gmai_lib.dataset.lexicon: readable names, noun phrases, Chinese terms."""

import re
from collections import Counter
from pathlib import Path

import pytest
from synthetic_records import FINDINGS, ORGANS

from gmai_lib.dataset.lexicon import (
    LEXICON,
    indefinite,
    is_structure,
    plural,
    quantity,
    readable,
    translate,
)
from gmai_lib.schema import DEPARTMENTS, IMAGE_MODALITIES, PLACES, SIZES

SEGMENTED = (
    *("spleen", "adrenal_gland_left", "lung_upper_lobe_left", "vertebrae_L5", "rib_right_12"),
    *("portal_vein_and_splenic_vein", "autochthon_left", "clavicula_right", "heart_atrium_left"),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nodule", "a nodule"),
        ("ulcer", "an ulcer"),
        ("exudate", "an exudate"),
        ("foreign body", "a foreign body"),
        ("drusen", "a drusen deposit"),
        ("necrosis", "an area of necrosis"),
        ("liver", "the liver"),
        ("left rib 9", "left rib 9"),
        ("pneumonia", "pneumonia"),
        ("COVID-19", "COVID-19"),
        ("unilateral cyst", "a unilateral cyst"),
    ],
)
def test_articles(name, expected):
    assert indefinite(name) == expected


@pytest.mark.parametrize(
    ("name", "count", "english", "chinese"),
    [
        ("nodule", 1, "a nodule", "一个结节"),
        ("nodule", 2, "two nodules", "两个结节"),
        ("platelet clump", 3, "three platelet clumps", "三个血小板团"),
        ("cavity", 2, "two cavities", "两个空洞"),
        ("mass", 2, "two masses", "两个肿块"),
        ("hypermetabolic focus", 2, "two hypermetabolic foci", "两个高代谢灶"),
        ("bleeding", 3, "three bleeding sites", "三处出血"),
        ("red blood cell", 12, "12 red blood cells", "12个红细胞"),
    ],
)
def test_quantities(name, count, english, chinese):
    assert quantity(name, count, "en") == english
    assert quantity(name, count, "zh") == chinese


@pytest.mark.parametrize(
    ("name", "english", "chinese"),
    [
        ("lung_middle_lobe_right", "middle lobe of the right lung", "右肺中叶"),
        ("rib_left_10", "left rib 10", "左侧第10肋"),
        ("vertebrae_T9", "vertebra T9", "第9胸椎"),
        ("kidney_left", "left kidney", "左肾"),
        ("heart_atrium_left", "left atrium", "左心房"),
        ("iliac_vena_right", "right iliac vein", "右髂静脉"),
        ("RBC", "red blood cell", "红细胞"),
        ("COVID-19", "COVID-19", "新型冠状病毒肺炎"),
        ("NECROSIS", "necrosis", "坏死"),
    ],
)
def test_readable_names_and_their_chinese(name, english, chinese):
    assert readable(name) == english
    assert readable(english) == english
    assert translate(english, "zh") == chinese


def test_the_lexicon_covers_the_vocabularies():
    unknown = Counter()
    for term in (*IMAGE_MODALITIES, *DEPARTMENTS[:-1], *PLACES, *SIZES, *FINDINGS, *ORGANS):
        translate(term, "zh", unknown)
    assert not unknown
    pairs = Counter(LEXICON[name] for name in FINDINGS)
    assert max(pairs.values()) == 1  # two findings never share a Chinese name


def test_every_structure_of_the_segmentation_sets_is_known():
    data = Path(__file__).parents[2] / "shared/data/totalsegmentator_ct_mr/tests/reference_files"
    names = SEGMENTED
    if data.exists():
        nibabel = pytest.importorskip("nibabel")
        for file in ("example_seg.nii.gz", "example_seg_mr.nii.gz"):
            header = nibabel.load(data / file).header.extensions[0].get_content()
            names = [*names, *re.findall(r"CDATA\[([a-z]\w+)\]", header.decode())]
        names = [name for name in names if "cyst" not in name]  # the one finding among them
    for name in names:
        assert is_structure(readable(name)), name
        assert translate(readable(name), "zh") != readable(name), name


def test_plurals():
    assert [plural(n) for n in ("biopsy", "x-ray", "box", "drusen")] == [
        "biopsies",
        "x-rays",
        "boxes",
        "drusen deposits",
    ]
