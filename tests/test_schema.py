"""Records and samples survive Parquet; the ledger does not lose anything."""

import pytest

from gmai_lib.schema import Box, Ledger, QuestionAnswer, Record, sample_features


def record(**changes) -> Record:
    values = {
        "id": "2d#det#microscopy#demo#a.png",
        "source": "demo",
        "path": "a.png",
        "dimension": "2d",
        "modality": "microscopy",
        "department": "hematology",
        "task": "counting",
        "license": "CC0-1.0",
        "access": "open",
        "labels": ("red blood cell",),
        "boxes": (Box(label="red blood cell", x1=0.1, y1=0.2, x2=0.3, y2=0.4),),
        "qa": (QuestionAnswer(question="有几个细胞？", answer="1"),),
        "image": b"\x89PNG",
    }
    return Record(**values | changes)


def test_record_survives_a_row():
    assert Record.from_row(record().to_row()) == record()


@pytest.mark.parametrize("field", ["modality", "department", "task", "access", "language", "split"])
def test_record_refuses_a_word_outside_the_vocabulary(field):
    with pytest.raises(ValueError, match=f"{field}='bogus'"):
        record(**{field: "bogus"})


def test_sample_features_cover_every_column_once():
    features = sample_features()
    assert len(features) == 23
    assert features["images"].feature.decode is False


def test_ledger_balances_and_names_an_example():
    ledger = Ledger()
    ledger.keep("demo", "read", 3)
    ledger.drop("demo", "read", "truncated", "b.png")
    ledger.check({("demo", "read", "item"): 4})
    dropped = [row for row in ledger.rows() if row["outcome"] == "truncated"]
    assert dropped == [
        {"source": "demo", "step": "read", "level": "item"}
        | {"outcome": "truncated", "count": 1, "example": "b.png"}
    ]


def test_ledger_notices_a_lost_item():
    ledger = Ledger()
    ledger.keep("demo", "read", 3)
    with pytest.raises(ValueError, match="4 in the input but 3 accounted for"):
        ledger.check({("demo", "read", "item"): 4})
    ledger.seen["demo", "read", "item"] += 1
    with pytest.raises(ValueError, match="kept 3"):
        ledger.check()
