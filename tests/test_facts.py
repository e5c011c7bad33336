"""gmai_lib.dataset.facts: annotation -> typed facts."""

import pytest
from synthetic_records import blood_cells, box, nuclei, organs, phantom, record, text_only, tumor

from gmai_lib.dataset.facts import box_of, extract, place_of, size_of
from gmai_lib.schema import NO_FINDING, PLACES


def values(record, kind):
    """(value, label) of the facts of `kind`."""
    return [(f.value, f.label) for f in extract(record) if f.kind == kind]


def test_one_box_gives_place_side_size_and_count():
    made = record(
        labels=("nodule",),
        absent=("cyst",),
        boxes=(box("nodule", 0.1, 0.1, 0.2, 0.2),),
        boxes_are_complete=True,
        severity="mild",
    )
    assert {(f.kind, f.value) for f in extract(made)} == {
        ("modality", "CT"),
        ("department", "pulmonary medicine"),
        ("organ", "lung"),
        ("label", "nodule"),
        ("absent", "cyst"),
        ("box", "0.10 0.10 0.20 0.20"),
        ("side", "left"),
        ("place", "upper left"),
        ("size", "small"),
        ("count", "1"),
        ("severity", "mild"),
    }
    assert {f.label for f in extract(made) if f.kind in ("box", "side", "place", "size")} == {
        "nodule"
    }


def test_ids_are_unique_and_ordered():
    for number in range(20):
        facts = extract(phantom(number))
        assert [f.id for f in facts] == [f"f{i}" for i in range(len(facts))]


def test_two_boxes_give_no_place_but_a_count():
    made = record(
        labels=("nodule",),
        boxes=(box("nodule", 0.1, 0.1, 0.2, 0.2), box("nodule", 0.7, 0.1, 0.8, 0.2)),
        boxes_are_complete=True,
    )
    assert not values(made, "side") and not values(made, "place") and not values(made, "size")
    assert values(made, "count") == [("2", "nodule")]


def test_incomplete_boxes_give_no_count():
    made = record(labels=("nodule",), boxes=(box("nodule", 0.1, 0.1, 0.2, 0.2),))
    assert not values(made, "count")
    assert values(made, "place") == [("upper left", "nodule")]


@pytest.mark.parametrize(
    ("center", "side"), [(0.40, "left"), (0.42, None), (0.5, None), (0.58, None), (0.6, "right")]
)
def test_side_is_left_out_near_the_midline(center, side):
    assert box("x", center - 0.04, 0.1, center + 0.04, 0.2).side == side


def test_place_is_the_cell_of_the_center():
    for row in range(3):
        for column in range(3):
            x, y = (column + 0.5) / 3, (row + 0.5) / 3
            assert (
                place_of(box("x", x - 0.1, y - 0.1, x + 0.1, y + 0.1)) == (PLACES[3 * row + column])
            )
    assert place_of(box("x", 0.9, 0.9, 1.1, 1.1)) == "lower right"  # center on the border
    assert place_of(box("x", 0.0, 0.4, 0.9, 0.5)) is None  # spans all columns


def test_size_follows_the_documented_limits():
    assert size_of(box("x", 0, 0, 0.12, 0.12)) == "small"  # 1.44 % of the image
    assert size_of(box("x", 0, 0, 0.125, 0.12)) == "medium"  # 1.5 %
    assert size_of(box("x", 0, 0, 0.2, 0.15)) == "large"  # 3 %


def test_negative_labels_are_never_absent():
    assert values(tumor(), "absent") == [("meningioma", ""), ("pituitary tumor", "")]
    assert NO_FINDING not in {f.value for f in extract(tumor())}


def test_a_label_is_not_also_absent():
    made = record(labels=("RBC",), absent=("red blood cell", "WBC"))
    assert values(made, "label") == [("red blood cell", "")]
    assert values(made, "absent") == [("white blood cell", "")]


def test_structures_are_readable_and_never_counted():
    facts = extract(organs())
    assert [f.value for f in facts if f.kind == "label"] == [
        "liver",
        "left kidney",
        "left rib 9",
        "vertebra T9",
        "middle lobe of the right lung",
        "left hip bone",
    ]
    assert not [f for f in facts if f.kind in ("count", "size")]
    assert ("right", "left kidney") in values(organs(), "side")  # side of the image


def test_many_boxes_are_all_counted():
    assert values(nuclei(), "count") == [("40", "nucleus")]
    assert dict((label, n) for n, label in values(blood_cells(), "count")) == {
        "red blood cell": "12",
        "white blood cell": "1",
        "platelet": "1",
    }


def test_text_record_and_unstated_department_give_no_facts():
    assert extract(text_only()) == ()


def test_box_fact_reads_back():
    made = record(labels=("cyst",), boxes=(box("cyst", 0.123, 0.2, 0.987, 1.0),))
    (fact,) = [f for f in extract(made) if f.kind == "box"]
    assert box_of(fact) == box("cyst", 0.12, 0.2, 0.99, 1.0)
