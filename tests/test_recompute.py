"""Every number of results.json again from stored answers; whatever was touched is named."""

import json
from dataclasses import replace

import pytest
from test_benchmarks import phantoms

from gmai_lib.evaluation import askers, recompute, run
from gmai_lib.evaluation.benchmarks import phantom_benchmark, source_benchmarks
from gmai_lib.evaluation.results import summarise
from gmai_lib.outputs import write_json
from gmai_lib.schema import QuestionAnswer

RIGHT = {"05_first-image": 5, "05_first-none": 3, "09_last-image": 9}  # of ten answers


@pytest.fixture(scope="module")
def records():
    asked = QuestionAnswer(question="Is it the lung?", answer="yes", answer_type="closed")
    other = [replace(r, id=f"{r.id} own", source="asked", qa=(asked,)) for r in phantoms(8)]
    own = [replace(r, image=f"own {r.id}".encode()) for r in other]
    return phantoms(60) + phantoms(120, split="train", start=1000) + own


@pytest.fixture
def folder(tmp_path, records):
    """What notebook 10 writes, with made-up answers of two checkpoints."""
    items = phantom_benchmark(records, seed=3, num_images=20)
    prior = phantom_benchmark(records, seed=3, num_images=20, split="train")
    items += [item for own in source_benchmarks(records, seed=3).values() for item in own]
    with (tmp_path / "items.jsonl").open("w", encoding="utf-8") as file:
        for item in items:
            row = {k: v for k, v in vars(item).items() if k != "images"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    said = {}
    for name, right in RIGHT.items():
        header = {"items_sha256": run.items_sha256(items), "num_items": len(items)}
        header |= {"image_mode": name.split("-")[1], "seed": None, "weights_digest": name}
        said[name] = [
            askers.response_row(i, i.answer if n % 10 < right else "cannot say", finished=True)
            for n, i in enumerate(items)
        ]
        path = tmp_path / "responses" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        lines = [{"header": header}, *said[name]]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        path.write_text(text, "utf-8")
    rows = []
    for checkpoint in ("05_first", "09_last"):
        answers, blind = said[f"{checkpoint}-image"], said["05_first-none"]
        options = {"prior_items": prior, "draws": 100, "seed": 3}
        rows += summarise(items, answers, blind, checkpoint=checkpoint, **options)
    write_json(tmp_path / "results.json", rows)
    write_json(tmp_path / "result.json", {"benchmark_images": 20})
    return tmp_path


def edit_line(path, number, change):
    lines = path.read_text("utf-8").splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | change, ensure_ascii=False)
    path.write_text("\n".join(lines) + "\n", "utf-8")


def test_untouched_answers_give_every_row_again(folder, records):
    rows, differences = recompute.recompute(folder, records)
    assert differences == []
    assert rows == json.loads((folder / "results.json").read_text())
    assert {row["benchmark"] for row in rows} == {"phantom", "asked"}


def test_one_tampered_answer_is_found_in_every_row_that_it_counts_in(folder, records):
    path = folder / "responses" / "09_last-image.jsonl"
    first = json.loads(path.read_text("utf-8").splitlines()[1])
    edit_line(path, 1, {"response": "cannot say"})
    _, differences = recompute.recompute(folder, records)
    scores = [text for text in differences if ": score is " in text]
    assert any(f"09_last, phantom, {first['kind']}, all, all, accuracy" in t for t in scores)
    assert any("09_last, phantom, overall, all, all, accuracy: score is" in t for t in scores)
    assert not any("05_first" in text for text in differences)


def test_a_tampered_blind_answer_moves_the_blind_score_of_all_that_use_it(folder, records):
    edit_line(folder / "responses" / "05_first-none.jsonl", 1, {"response": "cannot say"})
    _, differences = recompute.recompute(folder, records)
    assert {text.split(", ")[0] for text in differences if "blind_score" in text} == {
        "results.json: 05_first",
        "results.json: 09_last",
    }
    assert not any(": score is " in text for text in differences)


@pytest.mark.parametrize(
    "column", ["num_items", "score", "ci_low", "ci_high", "blind_score", "majority_score"]
)
def test_a_changed_number_of_results_json_is_named(folder, records, column):
    rows = json.loads((folder / "results.json").read_text())
    rows[0][column] += 1e-6
    write_json(folder / "results.json", rows)
    (difference,) = recompute.recompute(folder, records)[1]
    assert f"phantom, overall, all, all, accuracy: {column} is {rows[0][column]}" in difference


def test_missing_and_added_rows_are_named(folder, records):
    rows = json.loads((folder / "results.json").read_text())
    write_json(folder / "results.json", rows[1:] + [rows[1] | {"checkpoint": "10_new"}])
    differences = recompute.recompute(folder, records)[1]
    assert len(differences) == 2
    assert any("10_new" in t and t.endswith("no answers give this row") for t in differences)
    assert any("accuracy: the row is missing" in t for t in differences)


def test_a_changed_question_key_or_header_is_named(folder, records):
    edit_line(folder / "items.jsonl", 0, {"answer": "another"})
    path = folder / "responses" / "09_last-image.jsonl"
    edit_line(path, 0, {"header": {"items_sha256": "0", "image_mode": "none"}})
    differences = recompute.recompute(folder, records)[1]
    assert any("items.jsonl: " in t and "answer 'another'" in t for t in differences)
    assert any(t.startswith("09_last-image.jsonl: items_sha256 0, of") for t in differences)
    assert any(t.startswith("09_last-image.jsonl: image_mode none, of") for t in differences)


def test_a_missing_answer_or_file_or_seed_stops_with_its_name(folder, records):
    path = folder / "responses" / "09_last-image.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]), "utf-8")
    with pytest.raises(ValueError, match="1 items without response"):
        recompute.recompute(folder, records)
    path.write_text("".join(lines), "utf-8")
    rows = json.loads((folder / "results.json").read_text())
    write_json(folder / "results.json", [{**row, "seed": n} for n, row in enumerate(rows)])
    with pytest.raises(ValueError, match="not of one seed"):
        recompute.recompute(folder, records)
    (folder / "items.jsonl").unlink()
    write_json(folder / "results.json", rows)
    with pytest.raises(FileNotFoundError, match=r"items\.jsonl is missing: run notebook 10"):
        recompute.recompute(folder, records)


def test_the_command_exits_0_only_without_a_difference(folder, records, monkeypatch, capsys):
    monkeypatch.setattr(recompute, "read_records", lambda path: records)
    assert recompute.main([str(folder)]) == 0
    assert "0 differences" in capsys.readouterr().out
    path = folder / "responses" / "09_last-image.jsonl"
    whole = path.read_text("utf-8")
    edit_line(path, 1, {"response": "cannot say"})
    assert recompute.main([str(folder)]) == 1
    assert "score is" in capsys.readouterr().err
    path.write_text(whole[:-20], "utf-8")
    assert recompute.main([str(folder)]) == 1
    assert "half-written last line" in capsys.readouterr().err
    assert path.read_text("utf-8") == whole[:-20], "the file is left as it is"
