"""The printed results: every row complete, the known mistakes marked, the arithmetic checked."""

from collections import defaultdict

import pytest

from gmai_lib.evaluation.results import published

COLUMNS = ["table", "benchmark", "subset", "model", "metric", "score", "num_items"]
COLUMNS += ["protocol", "source", "note"]
ROWS = published()


def rows(**wanted) -> list[dict]:
    return [row for row in ROWS if all(row[name] == value for name, value in wanted.items())]


def test_every_row_is_complete():
    for row in ROWS:
        assert list(row) == COLUMNS
        assert row["table"] in ("4", "5", "6/11", "7", "8", "peer")
        assert row["metric"] == "accuracy"
        assert 0 < row["score"] < 100
        assert row["num_items"] is None or row["num_items"] > 0
        assert all(row[name].strip() for name in ("benchmark", "model", "protocol", "source"))
        assert row["source"].startswith("arXiv:")
        assert not any(text != text.strip() for text in row.values() if isinstance(text, str))


def test_no_row_is_printed_twice():
    keys = [(r["table"], r["benchmark"], r["subset"], r["model"], r["source"]) for r in ROWS]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("table", "benchmark", "subset", "score"),
    [
        ("4", "VQA-RAD", "", 66.3),
        ("4", "SLAKE", "", 72.9),
        ("4", "PMC-VQA", "", 54.3),
        ("5", "OmniMedVQA", "overall", 88.48),
        ("6/11", "GMAI-MMBench", "val", 61.74),
        ("6/11", "GMAI-MMBench", "test", 62.43),
        ("6/11", "GMAI-MMBench", "surgical instrument recognition", 37.40),
        ("8", "MMMU Health & Medicine", "average", 51.3),
    ],
)
def test_headline_numbers(table, benchmark, subset, score):
    found = rows(table=table, benchmark=benchmark, subset=subset, model="GMAI-VL")
    assert [row["score"] for row in found] == [score]


def test_every_table_is_there_in_full():
    count = defaultdict(int)
    for row in ROWS:
        count[row["table"]] += 1
    # 11 x 4; 20 x 6; 13 x 20 + 15 x 2; 4 x 4; 10 x 6
    assert {**count} | {"peer": 0} == {"4": 44, "5": 120, "6/11": 290, "7": 16, "8": 60, "peer": 0}


def test_the_huatuo_row_is_marked_and_corrected():
    for row in rows(table="4", model="HuatuoGPT-Vision-7B"):
        assert row["note"].startswith("mistake:")
    corrected = rows(table="peer", model="HuatuoGPT-Vision-7B", benchmark="SLAKE")
    assert [row["score"] for row in corrected] == [76.2]


def test_mixed_denominators_are_marked():
    for benchmark, own, peers in (("VQA-RAD", 451, 251), ("SLAKE", 1061, 416)):
        for row in rows(table="4", benchmark=benchmark):
            is_own = row["model"].startswith("GMAI-VL")
            assert row["num_items"] == (own if is_own else peers)
            assert is_own <= row["note"].startswith("mistake: denominators mixed")
    assert not fits(66.3, 251, decimals=1) and not fits(72.9, 416, decimals=1)


def fits(percent: float, number: int, decimals: int) -> bool:
    """Whether some count out of `number` rounds to the printed percentage."""
    nearest = round(percent * number / 100)
    return any(
        round(100 * k / number, decimals) == percent for k in (nearest - 1, nearest, nearest + 1)
    )


def test_stated_denominators_fit_the_own_rows():
    for row in rows(source="arXiv:2411.14522v2 (GMAI-VL)"):
        if row["num_items"] and row["model"].startswith("GMAI-VL") and row["table"] != "7":
            decimals = 1 if row["table"] in ("4", "8") else 2
            assert fits(row["score"], row["num_items"], decimals), row


def test_averages_that_are_not_averages_are_marked():
    for table, subset, tolerance in (("4", "mean of the three", 0.11), ("8", "average", 1.0)):
        for row in rows(table=table, subset=subset):
            parts = [
                r["score"] for r in rows(table=table, model=row["model"]) if r["subset"] != subset
            ]
            differs = abs(sum(parts) / len(parts) - row["score"]) > tolerance
            assert ("printed" in row["note"]) == differs, row
            assert not differs or row["note"].startswith("mistake:")
