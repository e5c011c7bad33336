"""Published benchmarks: small folders in exactly their layout, and what is wrong is named."""

import base64
import csv
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gmai_lib.evaluation.extraction import LETTERS
from gmai_lib.evaluation.published_benchmarks import (
    BENCHMARKS,
    get,
    load,
    read,
    recognise,
    write_submission,
)
from gmai_lib.evaluation.scoring import score

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def picture(seed: int, form: str = "PNG", mode: str = "L") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, form)
    return out.getvalue()


def put(path: Path, content) -> Path:
    """Write bytes, text, or JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def put_table(path: Path, rows: list[dict], delimiter: str = ",", columns=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns or rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def put_parquet(path: Path, rows: list[dict]):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def rad_rows() -> list[dict]:
    shared = {"image_case_url": "https://x", "image_organ": "CHEST", "question_type": "PRES, POS"}
    rows = [
        ("1", "test_freeform", "Is there free air?", "No", "CLOSED", "synpic1.jpg"),
        ("2", "test_para", "Which side?", "left", "CLOSED ", "synpic1.jpg"),
        ("3", "test_freeform", "How many lesions?", 2, "OPEN", "synpic2.jpg"),
        ("4", "freeform", "Is it normal?", "Yes", "CLOSED", "synpic3.jpg"),
        ("5", "para", "Where?", "lung", "OPEN", "synpic3.jpg"),
    ]
    names = ("qid", "phrase_type", "question", "answer", "answer_type", "image_name")
    return [shared | dict(zip(names, row, strict=True)) for row in rows]


def vqa_rad(root: Path):
    put(root / "VQA_RAD Dataset Public.json", rad_rows())
    for n in (1, 2, 3):
        put(root / f"VQA_RAD Image Folder/synpic{n}.jpg", picture(n, "JPEG"))


def vqa_rad_parquet(root: Path):
    """As the hub has it."""
    rows = [{"image": {"bytes": picture(1), "path": None}, "question": "Air?", "answer": "no"}]
    put_parquet(root / "data/test-00000-of-00001-e5.parquet", rows)


def slake(root: Path):
    def row(qid, language, question, answer, kind, image=7):
        shared = {"img_id": image, "img_name": f"xmlab{image}/source.jpg", "location": "Lung"}
        shared |= {"modality": "CT", "base_type": "vqa", "content_type": "Organ"}
        said = {"qid": qid, "q_lang": language, "question": question, "answer": answer}
        return shared | said | {"answer_type": kind, "triple": ["vhead", "_", "_"]}

    rows = [
        row(1, "en", "Is this a CT?", "Yes", "CLOSED"),
        row(2, "en", "Which organs are shown?", "Lung, Heart", "OPEN"),
        row(3, "en", "Which lung is abnormal?", "Left Lung", "CLOSED"),
        row(4, "zh", "图像中包含肺吗？", "包含", "CLOSED"),
        row(5, "zh", "图像中包含脾脏吗？", "不包含", "CLOSED"),
        row(6, "zh", "有没有异常？", "没有", "CLOSED"),
        row(7, "zh", "这是什么器官？", "肺", "OPEN"),
    ]
    put(root / "test.json", rows)
    put(root / "imgs/xmlab7/source.jpg", picture(7, "JPEG"))


def path_vqa(root: Path):
    rows = [
        {
            "image": {"bytes": picture(1, "JPEG", "CMYK"), "path": "a.jpg"},
            "question": q,
            "answer": a,
        }
        for q, a in (("is it liver?", "yes"), ("what is shown?", "canals of hering"))
    ]
    put_parquet(root / "data/test-00000-of-00003-abc.parquet", rows)


def pmc_rows() -> list[dict]:
    def row(index, answer, options=("None", "NA", "CT, axial", "MR")):
        choices = {f"Choice {x}": f" {x}:{o} " for x, o in zip("ABCD", options, strict=True)}
        row = {"index": index, "Figure_path": f"PMC{index}_F1.jpg", "Caption": "a, b"}
        return row | {"Question": " What is it? "} | choices | {"Answer": answer, "split": "test"}

    return [row(0, "C"), row(1, "A")]


def pmc_vqa(root: Path):
    put_table(root / "test_2.csv", pmc_rows())
    for n in (0, 1):
        put(root / f"figures/PMC{n}_F1.jpg", picture(n, "JPEG"))


def pmc_vqa_clean(root: Path):
    rows = []
    for row in pmc_rows():
        texts = {x: row[f"Choice {x}"].strip()[2:] for x in "ABCD"}
        first = {"Figure_path": row["Figure_path"], "Question": row["Question"]}
        choices = {f"Choice {x}": row[f"Choice {x}"] for x in "ABCD"}
        last = {"Answer": texts[row["Answer"]], "Answer_label": row["Answer"]}
        rows.append(first | choices | last)
    put_table(root / "test_clean.csv", rows)
    for n in (0, 1):
        put(root / f"images/PMC{n}_F1.jpg", picture(n, "JPEG"))


def omnimedvqa(root: Path):
    def row(number, answer, options, **more):
        said = {"dataset": "Covid CT", "question_id": f"Covid CT_{number:04}"}
        said |= {"question_type": "Modality Recognition", "question": "What modality is it?"}
        said |= {"gt_answer": answer, "image_path": f"Images/Covid CT/{number}.png"}
        said |= {f"option_{x}": o for x, o in zip("ABCD", options, strict=False)}
        return said | {"modality_type": "MR (Mag-netic Resonance Imaging)"} | more

    rows = [
        row(0, "MR.", ("CT", "mr", "X-Ray", "PET")),
        row(1, "Chest region.", ("Head region", "chest region")),
        row(2, "CT", ("MR", "PET", "CT"), question_type="Disease Diagnosis"),
    ]
    del rows[2]["modality_type"]
    put(root / "QA_information/Open-access/Covid CT.json", rows)
    put(root / "QA_information/Restricted-access/AIDA.json", rows)
    for n in range(3):
        put(root / f"Images/Covid CT/{n}.png", picture(n))


def mmbench_rows(scored: bool = True) -> list[dict]:
    def row(index, image, answer, **options):
        row = {"index": index, "image": image, "question": "What is shown?"}
        row |= {x: options.get(x, "none") for x in "ABCDE"}
        row |= {"answer": answer} if scored else {}
        row |= {"category": options.get(answer, ""), "modality": "CT"}
        row |= {"clinical VQA task": "Bone", "department": "Sports Medicine"}
        return row | {"perceptual granularity": "Box level", "original task": "DET_2D"}

    cell = base64.b64encode(picture(1) * 9).decode()
    return [
        row(10, cell, "B", A="femur", B="tibia"),
        row(11, "10", "E", A="femur", B="tibia", C="fibula", D="ulna", E="radius"),
    ]


def gmai_mmbench(root: Path):
    put_table(root / "GMAI-MMBench_VAL.tsv", mmbench_rows(), "\t")


def gmai_mmbench_test(root: Path):
    put_table(root / "GMAI_mm_bench_TEST_part_1.tsv", mmbench_rows(scored=False), "\t")


def mmmu_health(root: Path):
    def row(number, options, answer, kind, question="<image 1> What is it?", images=(1,)):
        said = {"id": f"validation_Pharmacy_{number}", "question": question}
        said |= {"options": str(options), "explanation": "", "img_type": "['Diagrams']"}
        said |= {"answer": answer, "topic_difficulty": "Easy", "question_type": kind}
        shown = {n: {"bytes": picture(n), "path": f"{n}.png"} for n in images}
        return said | {f"image_{n}": shown.get(n) for n in range(1, 8)} | {"subfield": "x"}

    rows = [
        row(1, ["aspirin", "it's ibuprofen"], "B", "multiple-choice"),
        row(2, ["<image 2>", "<image 1>"], "A", "multiple-choice", "Which?", (1, 2)),
        row(3, [], "2", "open"),
    ]
    put_parquet(root / "Pharmacy/validation-00000-of-00001.parquet", rows)
    put_parquet(root / "Art/validation-00000-of-00001.parquet", rows[:1])


def medxpertqa_mm(root: Path):
    options = {x: f"drug {x.lower()}" for x in "ABCDE"}
    choices = " ".join(f"({x}) {text}" for x, text in options.items())
    row = {
        "id": "MM-0",
        "question": f"A 3-year-old boy. What next?\nAnswer Choices: {choices}",
        "options": options,
        "label": "E",
        "images": ["MM-0-a.jpeg", "MM-0-b.jpeg"],
        "medical_task": "Treatment",
        "body_system": "Skeletal",
        "question_type": "Reasoning",
    }
    put(root / "MM/test.jsonl", json.dumps(row) + "\n")
    for name in row["images"]:
        put(root / "images" / name, picture(1, "JPEG"))


def medmcqa(root: Path):
    row = {"id": "x1", "question": "Which nerve?", "opa": "ulnar", "opb": "median", "opc": "radial"}
    row |= {"opd": "axillary", "cop": 3, "choice_type": "single", "exp": None}
    row |= {"subject_name": "Anatomy", "topic_name": None}
    rows = [row, row | {"id": "x2", "cop": 0}]
    put_parquet(root / "data/validation-00000-of-00001.parquet", rows)


def pubmedqa(root: Path):
    article = {"QUESTION": "Does it work?", "CONTEXTS": ["First.", "Second."], "YEAR": None}
    article |= {"final_decision": "maybe", "LONG_ANSWER": "Perhaps."}
    put(root / "data/ori_pqal.json", {"11": article, "22": article})
    put(root / "data/test_ground_truth.json", {"22": "maybe"})


# name -> (writer of its files, kinds of its items)
MC = "multiple choice"
TINY = {
    "vqa_rad": (vqa_rad, ["yes/no", "open", "open"]),
    "slake_en": (slake, ["yes/no", "open", "open"]),
    "slake_zh": (slake, ["yes/no", "yes/no", "yes/no", "open"]),
    "path_vqa": (path_vqa, ["yes/no", "open"]),
    "pmc_vqa": (pmc_vqa, [MC, MC]),
    "pmc_vqa_clean": (pmc_vqa_clean, [MC, MC]),
    "omnimedvqa": (omnimedvqa, [MC, MC, MC]),
    "gmai_mmbench": (gmai_mmbench, [MC, MC]),
    "gmai_mmbench_test": (gmai_mmbench_test, [MC, MC]),
    "mmmu_health": (mmmu_health, [MC, MC, "open"]),
    "medxpertqa_mm": (medxpertqa_mm, [MC]),
    "medmcqa": (medmcqa, [MC, MC]),
    "pubmedqa": (pubmedqa, [MC]),
}
SCORED = [name for name in TINY if name != "gmai_mmbench_test"]


def made(name: str, folder: Path) -> Path:
    root = folder / name
    TINY[name][0](root)
    return root


def test_every_declared_benchmark_is_tested():
    assert [benchmark.name for benchmark in BENCHMARKS] == list(TINY)


@pytest.mark.parametrize("name", TINY)
def test_a_folder_in_the_published_layout_becomes_items(name, tmp_path):
    result = read(name, made(name, tmp_path))
    assert not result.lost
    assert [item.kind for item in result.items] == TINY[name][1]
    for item in result.items:
        assert item.benchmark == name and item.id.startswith(f"{name}#")
        assert all(Image.open(io.BytesIO(image)).mode in ("L", "RGB") for image in item.images)
        assert bool(item.images) == ("(text)" not in get(name).title)


@pytest.mark.parametrize("name", SCORED)
def test_right_scores_one_and_wrong_scores_zero_on_every_benchmark(name, tmp_path):
    for item in read(name, made(name, tmp_path)).items:
        assert score(item, item.answer)["correct"] == 1.0
        assert score(item, "")["correct"] == 0.0
        if item.options:
            letters = LETTERS[: len(item.options)]
            wrong = [x for x in letters if x != item.answer]
            assert [score(item, x)["correct"] for x in wrong] == [0.0] * len(wrong)
            said = item.options[letters.index(item.answer)]
            assert score(item, said)["correct"] == 1.0, said
        elif item.kind == "yes/no":
            wrong = {"yes": "no", "no": "yes"}.get(item.answer.lower())
            wrong = wrong or {"包含": "不包含", "不包含": "包含", "没有": "有"}[item.answer]
            assert score(item, wrong)["correct"] == 0.0
        else:
            assert score(item, "something else")["correct"] == 0.0


def test_vqa_rad_takes_its_test_questions_from_the_one_list_and_from_a_test_file(tmp_path):
    one = read("vqa_rad", made("vqa_rad", tmp_path)).items
    assert [item.id for item in one] == ["vqa_rad#1", "vqa_rad#2", "vqa_rad#3"]
    assert one[2].answer == "2", "some answers are JSON integers"
    assert one[0].group == one[1].group != one[2].group
    assert "answer_type=closed" in one[1].subsets, "written with a trailing blank"
    put(tmp_path / "vqa_rad_split/data/testset.json", rad_rows()[:3])
    for n in (1, 2):
        put(tmp_path / f"vqa_rad_split/data/images/synpic{n}.jpg", picture(n, "JPEG"))
    two = read("vqa_rad", tmp_path / "vqa_rad_split").items
    assert two == one
    vqa_rad_parquet(tmp_path / "vqa-rad")
    hub = read("vqa_rad", tmp_path / "vqa-rad")
    assert [item.answer for item in hub.items] == ["no"]
    assert set(hub.unexpected) == {"all", "closed=yes/no"}, "Parquet does not say the answer type"


def test_path_vqa_is_read_from_its_pickle_which_may_hold_plain_values_only(tmp_path):
    row = {"question_id": 100422000, "img_id": "test_0422", "sent": "is it liver?"}
    row |= {"label": {"no": 1}, "answer_type": "yes/no", "question_type": "is"}
    root = tmp_path / "pvqa"
    put(root / "qas/test_vqa.pkl", pickle.dumps([row]))
    put(root / "images/test/test_0422.jpg", picture(1, "JPEG"))
    (item,) = read("path_vqa", root).items
    assert (item.id, item.answer, item.kind) == ("path_vqa#100422000", "no", "yes/no")
    put(root / "qas/test_vqa.pkl", pickle.dumps([Path("/etc")]))
    with pytest.raises(ValueError, match=r"test_vqa\.pkl is no pickle of plain .*it wants pathlib"):
        read("path_vqa", root)
    put(root / "qas/test_vqa.pkl", b"<html>")
    with pytest.raises(ValueError, match="is no pickle of plain"):
        read("path_vqa", root)


def test_slake_is_one_language_at_a_time(tmp_path):
    root = made("slake_en", tmp_path)
    english, chinese = (read(f"slake_{x}", root).items for x in ("en", "zh"))
    assert {i.language for i in english} == {"en"} and {i.language for i in chinese} == {"zh"}
    assert english[1].subsets[:2] == ("answer_type=open", "content_type=Organ")
    assert score(english[1], "heart and lung")["correct"] == 1.0
    assert score(chinese[0], "是")["correct"] == score(chinese[1], "不包含脾脏")["correct"] == 1.0


def test_pmc_vqa_options_lose_their_letters_and_keep_none_as_text(tmp_path):
    for name in ("pmc_vqa", "pmc_vqa_clean"):
        first, second = read(name, made(name, tmp_path)).items
        assert first.options == ("None", "NA", "CT, axial", "MR")
        assert (first.answer, second.answer) == ("C", "A")
        assert first.question.splitlines()[1] == "A. None"


def test_omnimedvqa_answers_are_texts_that_differ_in_case_and_full_stop(tmp_path):
    items = read("omnimedvqa", made("omnimedvqa", tmp_path)).items
    assert [item.answer for item in items] == ["B", "B", "C"]
    assert [len(item.options) for item in items] == [4, 2, 3]
    assert items[0].modality == "MR (Mag-netic Resonance Imaging)"
    assert items[2].modality == "unstated"
    assert "question_type=Disease Diagnosis" in items[2].subsets


def test_gmai_mmbench_rows_share_images_and_leave_absent_options_out(tmp_path):
    two, five = read("gmai_mmbench", made("gmai_mmbench", tmp_path)).items
    assert (len(two.options), len(five.options)) == (2, 5)
    assert two.images == five.images and two.group == five.group
    assert two.subsets == (
        "clinical VQA task=Bone",
        "department=Sports Medicine",
        "perceptual granularity=Box level",
    )


def test_a_test_split_without_answers_is_submitted_and_cannot_be_scored(tmp_path):
    items = read("gmai_mmbench_test", made("gmai_mmbench_test", tmp_path)).items
    with pytest.raises(ValueError, match="cannot read its own answer 'UNKNOWN'"):
        score(items[0], "A")
    responses = [{"id": items[1].id, "response": "E"}, {"id": items[0].id, "response": "B.\ttibia"}]
    with write_submission(items, responses, tmp_path / "sent.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(r["index"], r["prediction"]) for r in rows] == [("10", "B.\ttibia"), ("11", "E")]
    assert rows[0]["C"] == "" and rows[1]["C"] == "fibula"
    with pytest.raises(ValueError, match="1 items have no response, first gmai_mmbench_test#11"):
        write_submission(items, responses[1:], tmp_path / "sent.tsv")


def test_mmmu_shows_every_image_in_the_order_of_mention_and_only_health_subjects(tmp_path):
    one, two, opened = read("mmmu_health", made("mmmu_health", tmp_path)).items
    assert one.options == ("aspirin", "it's ibuprofen")
    assert two.images == (picture(2), picture(1)) and two.options == ("(image 2)", "(image 1)")
    assert (opened.answer, opened.kind) == ("2", "open")
    assert "<image" not in one.question


def test_medxpertqa_does_not_repeat_its_options(tmp_path):
    (item,) = read("medxpertqa_mm", made("medxpertqa_mm", tmp_path)).items
    assert "Answer Choices" not in item.question and item.question.count("drug e") == 1
    assert len(item.images) == 2 and item.answer == "E"


def test_text_checks_ask_without_an_image(tmp_path):
    last, first = read("medmcqa", made("medmcqa", tmp_path)).items
    assert (last.answer, first.answer, last.images) == ("D", "A", ())
    (item,) = read("pubmedqa", made("pubmedqa", tmp_path)).items
    assert item.id == "pubmedqa#22" and item.question.startswith("First. Second. Does it work?")
    assert score(item, "maybe")["correct"] == 1.0 and score(item, "yes")["correct"] == 0.0


def test_another_column_order_gives_the_same_items(tmp_path):
    names = ["split", "Answer", "Choice D", "Choice C", "Choice B", "Choice A", "Question"]
    root = made("pmc_vqa", tmp_path)
    before = read("pmc_vqa", root).items
    put_table(root / "test_2.csv", pmc_rows(), columns=[*names, "Caption", "Figure_path", "index"])
    assert read("pmc_vqa", root).items == before
    root = made("gmai_mmbench", tmp_path)
    before = read("gmai_mmbench", root).items
    columns = list(reversed(mmbench_rows()[0]))
    put_table(root / "GMAI-MMBench_VAL.tsv", mmbench_rows(), "\t", columns)
    assert read("gmai_mmbench", root).items == before


def test_what_cannot_be_asked_is_counted_and_named(tmp_path):
    root = made("pmc_vqa", tmp_path)
    rows = pmc_rows()
    rows += [
        rows[0] | {"index": 1, "Question": "Again?"},
        rows[0] | {"index": 2, "Answer": "E"},
        rows[0] | {"index": 3, "Figure_path": "gone.jpg"},
        rows[0] | {"index": 4, "Figure_path": "../../outside.jpg"},
        rows[0] | {"index": 5, "Question": " "},
        rows[0] | {"index": 6, "Figure_path": "broken.jpg"},
    ]
    put_table(root / "test_2.csv", rows)
    put(root / "figures/broken.jpg", b"no image")
    put(tmp_path / "outside.jpg", picture(9, "JPEG"))
    with (root / "test_2.csv").open("a") as file:
        file.write("7,short row\n")
    result = read("pmc_vqa", root)
    assert len(result.items) == 2
    assert result.lost == {
        "repeated id": 1,
        "answer not among the options": 1,
        "missing image": 2,
        "empty question or answer": 1,
        "image cannot be decoded": 1,
        "broken row": 1,
    }
    assert result.examples["missing image"] == "test_2.csv/4: gone.jpg"
    with pytest.raises(
        ValueError, match=r"2 x missing image .*2 items of all, published are 33430"
    ):
        load("pmc_vqa", root)
    with pytest.warns(UserWarning, match="1 x repeated id"):
        assert len(load("pmc_vqa", root, incomplete=True)) == 2


def test_malformed_rows_of_every_format_are_named(tmp_path):
    root = made("omnimedvqa", tmp_path)
    path = root / "QA_information/Open-access/Covid CT.json"
    rows = json.loads(path.read_text())
    del rows[0]["gt_answer"]
    put(path, [*rows, "a string", rows[1] | {"question_id": "z", "gt_answer": "foot"}])
    lost = read("omnimedvqa", root).lost
    assert lost == {"no field 'gt_answer'": 1, "broken row": 1, "answer not among the options": 1}
    root = made("gmai_mmbench", tmp_path)
    rows = mmbench_rows()
    rows[1]["image"] = "99"  # a row that does not exist
    put_table(root / "GMAI-MMBench_VAL.tsv", rows, "\t")
    assert read("gmai_mmbench", root).lost == {"image cannot be decoded": 1}
    root = made("mmmu_health", tmp_path)
    path = root / "Pharmacy/validation-00000-of-00001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["options"], rows[1]["image_2"] = "['unclosed", None
    put_parquet(path, rows)
    assert read("mmmu_health", root).lost == {"malformed row": 1, "missing image": 1}
    root = made("medxpertqa_mm", tmp_path)
    with (root / "MM/test.jsonl").open("a") as file:
        file.write(
            '{"id": "MM-1"\n{"id": "MM-2", "question": "?", "label": "A", "options": null}\n'
        )
    assert read("medxpertqa_mm", root).lost == {"broken row": 1, "malformed row": 1}


def test_files_that_are_missing_or_of_another_kind_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no test\.json; get slake_en from https"):
        load("slake_en", tmp_path)
    with pytest.raises(ValueError, match="no benchmark 'slake'; known: "):
        load("slake", tmp_path)
    put(tmp_path / "slake/test.json", "<html>not found</html>")
    with pytest.raises(ValueError, match=r"test\.json"):
        load("slake_en", tmp_path / "slake")
    root = made("pubmedqa", tmp_path)
    (root / "data/test_ground_truth.json").unlink()
    with pytest.raises(ValueError, match=r"test_ground_truth\.json is missing"):
        load("pubmedqa", root)


def test_published_numbers_add_up():
    for name, parts in (
        ("vqa_rad", "answer_type="),
        ("slake_en", "answer_type="),
        ("slake_zh", "answer_type="),
        ("omnimedvqa", "question_type="),
        ("gmai_mmbench", "clinical VQA task="),
        ("mmmu_health", "subject="),
        ("mmmu_health", "question_type="),
        ("medxpertqa_mm", "question_type="),
    ):
        expected = get(name).expected
        assert sum(n for key, n in expected.items() if key.startswith(parts)) == expected["all"]


def test_benchmarks_are_recognised_by_folder_name_and_files(tmp_path):
    made("vqa_rad", tmp_path)
    slake(tmp_path / "Slake1.0")
    put(tmp_path / "path-vqa/readme.txt", "empty")
    (tmp_path / ".hidden_slake").mkdir()
    found = recognise(tmp_path)
    assert [name for name, _ in found] == ["slake_en", "slake_zh", "vqa_rad"]
    assert recognise(tmp_path / "Slake1.0") == [(n, tmp_path / "Slake1.0") for n, _ in found[:2]]
    with pytest.raises(FileNotFoundError, match="is no folder"):
        recognise(tmp_path / "nowhere")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs {DATA}")
def test_the_real_part_of_vqa_rad_is_read_and_its_gaps_are_named():
    result = read("vqa_rad", DATA / "vqa_rad")
    assert len(result.items) == 157 and not result.lost
    assert result.unexpected["all"] == (157, 451)
    closed = [item for item in result.items if "answer_type=closed" in item.subsets]
    assert len(closed) == 103
    for item in result.items:
        assert score(item, item.answer)["correct"] == 1.0
