"""The audit: drawn evenly, judged behind the chat API or in a widget, compared by kappa."""

import json

import numpy as np
import pytest
from synthetic_records import PNG, record

from gmai_lib import widgets
from gmai_lib.dataset import audit
from gmai_lib.dataset.build import write_pairs
from gmai_lib.dataset.writers import TemplateWriter
from gmai_lib.llm import Asker, Endpoint

GOOD = {"accuracy": 1, "language": 2, "completeness": 1, "relevance": 1, "comment": ""}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two sources, 40 and 3 images."""
    shared = {"image": PNG, "split": "train", "labels": ("nodule",), "organ": "lung"}
    names = [("big", n) for n in range(40)] + [("small", n) for n in range(3)]
    records = [record(f"{source}{n}", source=source, **shared) for source, n in names]
    out = tmp_path_factory.mktemp("pairs")
    write_pairs(records, out, writer=TemplateWriter(0), seed=0, chinese_fraction=0.5)
    return out


def asker(server, tmp_path, **changes):
    endpoint = Endpoint(base_url=server.url, model="judge", retries=0, **changes)
    return Asker(endpoint, tmp_path / "journal.jsonl")


def mark(name, source="a", **scores):
    return {"id": name, "source": source} | dict.fromkeys(audit.SCALES, 1) | scores


def test_so_many_pairs_of_every_source_are_drawn(pairs):
    drawn = audit.draw(pairs, seed=0, per_source=30)
    sources = [row["source"] for row in drawn]
    assert sources.count("big") == 30 and sources.count("small") < 30
    assert audit.draw(pairs, seed=0) == drawn != audit.draw(pairs, seed=1)
    assert len({row["id"] for row in drawn}) == len(drawn)
    with pytest.raises(FileNotFoundError, match=r"no \*\.parquet shards"):
        audit.draw(pairs / "none", seed=0)


def test_the_sheet_has_an_empty_cell_for_every_score(pairs):
    (row, *_) = rows = audit.sheet(audit.draw(pairs, seed=0, per_source=2))
    assert len(rows) == 4 and all(row[scale] == "" for scale in audit.SCALES)
    assert "label nodule" in row["facts"] and row["source"] == "big" and row["conversation"]


def test_a_judge_scores_every_pair_and_is_shown_what_it_needs(serve, pairs, tmp_path):
    server = serve(lambda body, n: json.dumps(GOOD | {"accuracy": 5 if n == 1 else 1}))
    drawn = audit.draw(pairs, seed=0, per_source=4)
    marks = audit.judge(drawn, asker(server, tmp_path, concurrency=1))
    assert [m["id"] for m in marks] == [row["id"] for row in drawn]
    assert sorted(m["accuracy"] for m in marks)[-2:] == [1, 5] and marks[0]["by"] == "judge"
    shown = json.loads(server.bodies[0]["messages"][1]["content"])
    assert {"kind": "label", "value": "nodule"} in shown["annotation"] and shown["conversation"]
    assert "image_url" not in json.dumps(server.bodies)


def test_a_judge_that_sees_gets_the_picture(serve, pairs, tmp_path):
    server = serve(lambda body, n: json.dumps(GOOD))
    drawn = [row for row in audit.draw(pairs, seed=0) if row["images"]][:1]
    audit.judge(drawn, asker(server, tmp_path), pictures=True)
    _, picture = server.bodies[0]["messages"][1]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,iVBOR")


@pytest.mark.parametrize("reply", ["", "no", json.dumps(GOOD | {"accuracy": 6}), "{}"])
def test_an_unusable_verdict_is_a_reason_and_no_score(serve, pairs, tmp_path, reply):
    server = serve(lambda body, n: reply)
    drawn = audit.draw(pairs, seed=0, per_source=1)
    marks = audit.judge(drawn, asker(server, tmp_path))
    assert all("reason" in m and "accuracy" not in m for m in marks)
    rows = audit.verdicts(marks)
    assert [row["passed"] for row in rows] == [False, False] and rows[0]["unscored"] == 1


def test_closed_sources_are_not_sent_away(pairs, tmp_path):
    drawn = [row | {"access": "credentialed"} for row in audit.draw(pairs, seed=0, per_source=1)]
    far = Asker(Endpoint(base_url="https://example.org/v1", model="m"), tmp_path / "j.jsonl")
    tiers = r"big \(credentialed\), small \(credentialed\): access is not open"
    with pytest.raises(PermissionError, match=tiers):
        audit.judge(drawn, far)


def test_a_source_passes_with_a_mean_of_three(tmp_path):
    fair = [mark("1", "fair", accuracy=5, language=5), mark("2", "fair", accuracy=5, relevance=5)]
    poor = [mark("3", "poor", accuracy=5, language=5, completeness=5)]
    poor_row, fair_row = audit.verdicts([*fair, *poor])
    assert (fair_row["mean"], fair_row["passed"], fair_row["accuracy"]) == (3.0, True, 5.0)
    assert (poor_row["source"], poor_row["mean"], poor_row["passed"]) == ("poor", 4.0, False)


def test_weighted_kappa_has_its_known_values():
    assert audit.weighted_kappa([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]) == 1
    assert audit.weighted_kappa([1, 5], [5, 1]) == -1
    # By hand: seen 1/4 * (0 + 1 + 1 + 0) = 0.5; by chance 2.5 (margins 2,1,1 and 1,2,1 of 1, 2, 4).
    first, second = [1, 1, 2, 4], [1, 2, 1, 4]
    distance = [(a - b) ** 2 for a in first for b in second]
    expected = 1 - 0.5 / np.mean(distance)
    assert audit.weighted_kappa(first, second) == pytest.approx(expected)
    rng = np.random.default_rng(0)
    chance = audit.weighted_kappa(rng.integers(1, 6, 20000), rng.integers(1, 6, 20000))
    assert abs(chance) < 0.03
    assert np.isnan(audit.weighted_kappa([1, 1], [1, 1]))


def test_agreement_is_over_pairs_that_both_scored():
    first = [mark("1"), mark("2", accuracy=5), mark("3"), {"id": "4", "source": "a", "reason": "x"}]
    second = [mark("1"), mark("2", accuracy=5), mark("4"), mark("9")]
    assert audit.agreement(first, second)["accuracy"] == 1
    with pytest.raises(ValueError, match="no pair has two scores"):
        audit.agreement(first, [mark("9")])


def test_a_person_scores_in_a_form_and_goes_on_later(pairs, tmp_path, monkeypatch):
    monkeypatch.delenv(widgets.STATIC, raising=False)
    drawn, path = audit.draw(pairs, seed=0, per_source=1), tmp_path / "marks.jsonl"
    form = widgets.audit_form(drawn, path, by="reader")
    status, _, *sliders, comment, button = form.children
    sliders[0].value, comment.value = 4, "side is wrong"
    button.click()
    (first,) = audit.read_marks(path)
    assert (first["accuracy"], first["comment"], first["by"]) == (4, "side is wrong", "reader")
    assert "1 of 2 scored" in status.value and sliders[0].value == 1
    again = widgets.audit_form(drawn, path, by="reader")
    again.children[-1].click()
    assert len(audit.read_marks(path)) == 2 and again.children[-1].disabled
    assert [row["passed"] for row in audit.verdicts(audit.read_marks(path))] == [True, True]


def test_a_damaged_mark_is_named(tmp_path):
    path = tmp_path / "marks.jsonl"
    audit.save_mark(mark("1"), path)
    audit.save_mark(mark("2", accuracy=9), path)
    with pytest.raises(ValueError, match=r"marks\.jsonl line 2 is no mark"):
        audit.read_marks(path)
