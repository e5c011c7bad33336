"""A model on published benchmarks: asked once, scored again from the answers, never mixed."""

import csv
import json
from dataclasses import replace

import pytest
import tiny_run
from chat_server import Server
from synthetic_records import phantom
from test_published_benchmarks import made, picture

from gmai_lib.dataset import curate
from gmai_lib.evaluation import askers, leaderboard, results
from gmai_lib.evaluation.published_benchmarks import load
from gmai_lib.model import weights

pytestmark = pytest.mark.filterwarnings("ignore:.*items of .*published are")
NAMES = ("vqa_rad", "slake_en", "gmai_mmbench", "gmai_mmbench_test", "mmmu_health", "medmcqa")


@pytest.fixture
def folder(tmp_path):
    """Six published benchmarks, a handful of questions each."""
    for name in NAMES:
        made(name, tmp_path / "benchmarks")
    return tmp_path / "benchmarks"


def right(items, out_jsonl, image_mode):
    """With the image all is right, without it nothing is."""
    said = (i.answer if image_mode == "image" else "cannot say" for i in items)
    return [askers.response_row(i, s, finished=True) for i, s in zip(items, said, strict=True)]


def whole(rows, benchmark, mode="image"):
    wanted = {"benchmark": benchmark, "image_mode": mode, "metric": "accuracy"}
    wanted |= {"kind": "overall", "language": "all", "subset": "all"}
    (row,) = [row for row in rows if wanted.items() <= row.items()]
    return row


def test_every_benchmark_is_asked_scored_and_written(folder, tmp_path):
    roots, out = leaderboard.present(folder), tmp_path / "out"
    assert set(roots) == {*NAMES, "slake_zh"}, "one folder of SLAKE has both languages"
    asked = []

    def ask(items, out_jsonl, image_mode):
        asked.append((out_jsonl.relative_to(out).as_posix(), len(items)))
        return right(items, out_jsonl, image_mode)

    modes = (*leaderboard.MODES, *leaderboard.CONTROLS)
    rows, failed = leaderboard.measure(
        ask, roots, out, model={"name": "m"}, modes=modes, incomplete=True, draws=50
    )
    assert not failed and json.loads((out / "results.json").read_text()) == rows
    assert {row["benchmark"] for row in rows} == {*NAMES, "slake_zh"} - {"gmai_mmbench_test"}
    for name in {*NAMES, "slake_zh"} - {"gmai_mmbench_test"}:
        items = load(name, roots[name], incomplete=True)
        row = whole(rows, name)
        assert (row["score"], row["num_items"]) == (1.0, len(items)) and row["checkpoint"] == "m"
        lines = (out / name / "items.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == [item.id for item in items]
    assert whole(rows, "vqa_rad")["blind_score"] == 0.0 == whole(rows, "vqa_rad", "blank")["score"]
    assert whole(rows, "medmcqa")["blind_score"] is None, "a text has no image to leave out"
    assert ("medmcqa/image.jsonl", 2) in asked and ("medmcqa/none.jsonl", 2) not in asked
    # All English questions of this SLAKE are about one image: none to exchange it for.
    assert "slake_en/shuffled.jsonl" not in dict(asked)
    submission = (out / "gmai_mmbench_test" / "submission.tsv").read_text().splitlines()
    assert len(submission) == 1 + dict(asked)["gmai_mmbench_test/image.jsonl"]
    assert "gmai_mmbench_test/none.jsonl" not in dict(asked), "nobody scores it"


def row_of(benchmark, number, score, subset="all", **more):
    row = {"benchmark": benchmark, "subset": subset, "num_items": number, "score": score}
    row |= {"ci_low": score - 0.1, "ci_high": score + 0.1, "checkpoint": "m", "protocol": "ours"}
    row |= {"image_mode": "image", "metric": "accuracy", "language": "all", "kind": "overall"}
    row |= {"blind_score": 0.2}
    return row | more


def test_a_printed_score_stands_beside_ours_only_if_it_counts_as_many_items():
    rows = [
        row_of("vqa_rad", 451, 0.5),
        row_of("vqa_rad", 272, 0.7, "answer_type=closed"),  # nobody prints this number
        row_of("vqa_rad", 251, 0.6, "closed=yes/no"),
        row_of("vqa_rad", 451, 0.1, image_mode="none"),
        row_of("vqa_rad", 451, 0.4, metric="exact_match"),
        row_of("phantom", 10, 0.3),
    ]
    table = leaderboard.beside(rows, results.published())
    ours = [(r["benchmark"], r["num_items"], r["score"]) for r in table if r["items"] == "ours"]
    assert ours == [("VQA-RAD", 451, 50.0), ("VQA-RAD", 251, 60.0), ("phantom", 10, 30.0)]
    block = None
    for row in table:
        if row["items"] == "ours":
            block = row["num_items"]
        elif row["items"] == "as many":
            assert row["num_items"] == block and row["benchmark"] == "VQA-RAD"
        else:
            assert row["num_items"] not in (451, 251)
    assert sum(row["items"] == "as many" for row in table) == 2 + 9 + 2
    # The paper's own row counts all items, its peers' the yes/no ones; the note says so.
    mine = [row for row in table if row["model"] == "GMAI-VL" and row["items"] == "as many"]
    assert [row["num_items"] for row in mine] == [451] and "denominators" in mine[0]["note"]
    unstated = leaderboard.beside([row_of("omnimedvqa", 88996, 0.5)], results.published())
    assert {row["items"] for row in unstated} == {"ours", "not stated", "other items"}


def lines_of(capsys):
    """What the command printed, without what libraries say when they are imported."""
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if line.startswith("VQA-RAD") or "printed scores" in line]


def test_the_command_asks_a_checkpoint_once_and_scores_its_answers_again(
    folder, tmp_path, capsys, monkeypatch
):
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    tiny_run.write_initial(checkpoint, tiny_run.tiny_profile(), tiny_run.samples(9))
    arguments = [str(checkpoint), str(folder), str(out), "--incomplete", "--only", "vqa_rad"]
    assert leaderboard.main(arguments) == 0
    first, printed = (out / "results.json").read_bytes(), lines_of(capsys)
    assert printed[0].startswith("VQA-RAD (all), 3 items: ") and "not compared" in printed[-1]
    with (out / "beside.csv").open(newline="") as file:
        assert {row["items"] for row in csv.DictReader(file)} == {"ours", "other items"}
    monkeypatch.setattr(askers, "load_model", lambda name: pytest.fail("a model was loaded"))
    assert leaderboard.main([*arguments, "--stored"]) == 0
    assert (out / "results.json").read_bytes() == first and lines_of(capsys) == printed
    # Other answers, other scores; answers to other questions are refused.
    answers = out / "vqa_rad" / "image.jsonl"
    lines = answers.read_text().splitlines()
    says = [json.loads(line) for line in lines[1:]]
    key = {"vqa_rad#1": "no", "vqa_rad#2": "left", "vqa_rad#3": "2"}
    says = [json.dumps(row | {"response": key[row["id"]]}) for row in says]
    answers.write_text("\n".join([lines[0], *says]) + "\n")
    assert leaderboard.main([*arguments, "--stored"]) == 0
    assert whole(json.loads((out / "results.json").read_text()), "vqa_rad")["score"] == 1.0
    (folder / "vqa_rad" / "VQA_RAD Image Folder" / "synpic1.jpg").write_bytes(picture(9, "JPEG"))
    assert leaderboard.main([*arguments, "--stored"]) == 1
    assert "answers to other items" in capsys.readouterr().err


def test_a_model_of_the_hub_answers_like_the_checkpoint_it_was_exported_from(folder, tmp_path):
    profile, checkpoint = tiny_run.tiny_profile(), tmp_path / "checkpoint"
    tiny_run.write_initial(checkpoint, profile, tiny_run.samples(9))
    exported = weights.export_llava(*weights.load_checkpoint(checkpoint), tmp_path / "llava")
    roots, said = leaderboard.present(folder, ["slake_en", "medmcqa"]), {}
    for name in (checkpoint, exported):
        ask = leaderboard.local(*askers.load_model(str(name)), batch_size=2)
        out = tmp_path / f"out_{name.name}"
        said[name.name], failed = leaderboard.measure(
            ask, roots, out, model={"name": "m"}, incomplete=True, draws=50
        )
        assert not failed
    ours, theirs = said.values()
    assert ours == theirs and len(ours) > 4


def test_a_served_model_is_asked_and_its_answers_are_kept_like_any_other(folder, tmp_path, capsys):
    server = Server(lambda body, number: "no")
    arguments = ["served", str(folder), str(tmp_path / "out"), "--incomplete", "--only", "vqa_rad"]
    assert leaderboard.main([*arguments, "--base-url", server.url]) == 0
    number, first = len(server.bodies), lines_of(capsys)
    assert number == 3 * 2 and all(body["temperature"] == 0 for body in server.bodies)
    assert leaderboard.main([*arguments, "--base-url", server.url]) == 0
    assert len(server.bodies) == number, "the journal has every reply"
    assert leaderboard.main([*arguments, "--stored"]) == 0
    assert lines_of(capsys) == 2 * first


def test_items_that_the_training_records_hold_have_rows_of_their_own(folder, tmp_path):
    (item, *_) = load("vqa_rad", folder / "vqa_rad", incomplete=True)
    seen = replace(phantom(1, split="train"), image=item.images[0], sha256="")
    curate.write_records([seen], tmp_path / "records")
    arguments = ["m", str(folder), str(tmp_path / "out"), "--incomplete", "--only", "vqa_rad"]
    server = Server(lambda body, number: "no")
    arguments += ["--base-url", server.url, "--training-records", str(tmp_path / "records")]
    assert leaderboard.main(arguments) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    found = {
        row["subset"]: row["num_items"]
        for row in rows
        if row["subset"].startswith("contaminated") and row["image_mode"] == "image"
    }
    assert found == {"contaminated=yes": 2, "contaminated=no": 1}


def test_every_subject_stands_beside_its_own_printed_scores_and_no_other(folder):
    subjects = ("Basic_Medical_Science", "Clinical_Medicine", "Pharmacy", "Public_Health")
    rows = [row_of("mmmu_health", 30, 0.1 * n, f"subject={s}") for n, s in enumerate(subjects)]
    rows.append(row_of("mmmu_health", 150, 0.3))
    table = leaderboard.beside(rows, results.published())
    ours = [row["subset"] for row in table if row["items"] == "ours"]
    assert ours == [f"subject={s}" for s in subjects] + ["all"]
    of = {}
    for row in table:
        if row["items"] == "ours":
            of[row["subset"]] = beside = set()
        elif row["items"] == "as many":
            beside.add(row["subset"])
    assert of["subject=Clinical_Medicine"] == {"clinical medicine"}
    assert of["subject=Public_Health"] == {"public health"} and of["all"] == {"val", "average"}
    # A part of VAL that happens to have as many items as a part of TEST.
    part = row_of("gmai_mmbench", 200, 0.5, "department=Urology")
    assert all(row["items"] != "as many" for row in leaderboard.beside([part], results.published()))


def test_one_benchmark_that_cannot_be_asked_does_not_end_the_others(folder, tmp_path, capsys):
    out, url = tmp_path / "out", Server(lambda body, number: "no").url
    (folder / "slake_en" / "test.json").write_text("{")
    arguments = ["m", str(folder), str(out), "--base-url", url, "--incomplete"]
    assert leaderboard.main([*arguments, "--only", "slake_en", "vqa_rad"]) == 1
    said = capsys.readouterr()
    assert "slake_en was not asked: " in said.err and "VQA-RAD (all), 3 items" in said.out
    first = json.loads((out / "results.json").read_text())
    assert {row["benchmark"] for row in first} == {"vqa_rad"}
    assert leaderboard.main([*arguments, "--only", "medmcqa"]) == 0
    both = json.loads((out / "results.json").read_text())
    assert both[: len(first)] == first and {r["benchmark"] for r in both} == {"vqa_rad", "medmcqa"}
    assert leaderboard.main([*arguments, "--only", "gmai_mmbench_test"]) == 0
    assert "gmai_mmbench_test: no score" in capsys.readouterr().out


def test_answers_of_one_model_are_never_given_as_another_s(folder, tmp_path, capsys):
    one, two = (Server(lambda body, number, said=said: said) for said in ("no", "yes"))
    arguments = [str(folder), str(tmp_path / "out"), "--incomplete", "--only", "vqa_rad"]
    assert leaderboard.main(["m", *arguments, "--base-url", one.url]) == 0
    for other in (["n", "--base-url", one.url], ["m", "--base-url", two.url], ["n", "--stored"]):
        assert leaderboard.main([other[0], *arguments, *other[1:]]) == 1
        assert "give every model a folder of its own" in capsys.readouterr().err
    assert not two.bodies and leaderboard.main(["m", *arguments, "--stored"]) == 0


def test_stored_answers_must_be_all_there_and_a_benchmark_lie_there_once(folder, tmp_path, capsys):
    out, url = tmp_path / "out", Server(lambda body, number: "no").url
    arguments = ["m", str(folder), str(out), "--incomplete", "--only", "vqa_rad"]
    assert leaderboard.main([*arguments, "--base-url", url]) == 0
    answers = out / "vqa_rad" / "image.jsonl"
    answers.write_text("\n".join(answers.read_text().splitlines()[:2]) + "\n")
    assert leaderboard.main([*arguments, "--stored"]) == 1
    assert "has 1 of 3 answers: run without --stored" in capsys.readouterr().err
    made("vqa_rad", tmp_path / "again")
    (tmp_path / "again" / "vqa_rad").rename(folder / "vqa-rad")
    assert leaderboard.main([*arguments, "--stored"]) == 1
    assert "take one of them away" in capsys.readouterr().err


def test_what_is_not_there_or_lost_is_said_and_nothing_is_asked(folder, tmp_path, capsys):
    def run(*arguments):
        assert leaderboard.main([*map(str, arguments)]) == 1
        return capsys.readouterr().err

    out = tmp_path / "out"
    assert "nowhere is no folder" in run("m", tmp_path / "nowhere", out)
    (tmp_path / "empty").mkdir()
    assert "empty holds no published benchmark; python -m" in run("m", tmp_path / "empty", out)
    assert "not path_vqa; python -m" in run("m", folder, out, "--only", "vqa_rad", "path_vqa")
    assert "no benchmark 'vqarad'" in run("m", folder, out, "--only", "vqarad")
    assert "3 items of all, published are 451" in run(
        "m", folder, out, "--only", "vqa_rad", "--base-url", "http://127.0.0.1:9/v1"
    )
    assert "image.jsonl" in run("m", folder, out, "--only", "vqa_rad", "--incomplete", "--stored")
