"""Benchmarks: balanced, leak-free, repeatable, and every item answered right by its own answer."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from gmai_lib.dataset.lexicon import LEXICON, translate
from gmai_lib.evaluation.benchmarks import phantom_benchmark, source_benchmarks
from gmai_lib.evaluation.items import KINDS, Item, accepted_counts, question_ids_sha256
from gmai_lib.evaluation.results import summarise
from gmai_lib.evaluation.scoring import extract_label, score
from gmai_lib.schema import NO_FINDING, Box, Ledger, QuestionAnswer, Record

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMES = {
    ("CT", "lung"): ("nodule", "cyst", "calcification"),
    ("CT", "liver"): ("mass", "cyst", "calcification"),
    ("MR", "brain"): ("mass", "cyst", "microbleed"),
    ("PET", "torso"): ("hypermetabolic focus",),
    ("microscopy", "blood"): ("white blood cell", "malaria parasite", "platelet clump"),
}


def record(number: int, **changes) -> Record:
    values = {
        "id": f"2d#seg#CT#phantom_ct#{number}",
        "source": "phantom_ct",
        "path": f"{number}",
        "dimension": "2d",
        "modality": "CT",
        "department": "unstated",
        "task": "disease diagnosis",
        "license": "CC0-1.0",
        "access": "open",
        "split": "test",
        "image": f"image {number}".encode(),
        "width": 100,
        "height": 100,
    }
    return Record(**values | changes)


def boxes(label: str, count: int, rng: Random) -> tuple[Box, ...]:
    corners = [(rng.randint(0, 85) / 100, rng.randint(0, 85) / 100) for _ in range(count)]
    return tuple(Box(label=label, x1=x, y1=y, x2=x + 0.15, y2=y + 0.15) for x, y in corners)


def phantoms(number: int = 600, split: str = "test", start: int = 0) -> list[Record]:
    """Records as the phantom readers give them: a quarter without finding, counts 60/20/20 %."""
    rng = Random(start)
    made = []
    for n in range(start, start + number):
        (modality, organ), names = rng.choice(list(NAMES.items()))
        found = NO_FINDING if rng.random() < 0.25 else rng.choice(names)
        count = 0 if found == NO_FINDING else rng.choices((1, 2, 3), (6, 2, 2))[0]
        source = f"phantom_{modality.lower()}"
        made.append(
            record(
                n,
                id=f"2d#seg#{modality}#{source}#{n}",
                source=source,
                modality=modality,
                organ=organ,
                labels=(found,),
                absent=tuple(name for name in names if name != found),
                boxes=boxes(found, count, rng),
                boxes_are_complete=True,
                split=split,
                volume=f"volume {n // 2}" if modality == "CT" else "",
            )
        )
    return made


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return phantom_benchmark(phantoms(), seed=0, num_images=300)


def test_every_item_is_answered_by_its_own_answer(items):
    for item in items:
        assert score(item, item.answer)["correct"] == 1.0, item
        assert all(score(item, answer)["correct"] == 1.0 for answer in item.answers), item


def test_a_perfect_and_a_silent_model_get_exactly_one_and_zero(items):
    right = [{"id": i.id, "response": i.answer, "finished": True} for i in items]
    silent = [{"id": i.id, "response": "", "finished": True} for i in items]
    rows = summarise(items, right, silent, checkpoint="perfect")
    assert len(rows) > 40
    assert {row["score"] for row in rows} == {1.0} and {row["blind_score"] for row in rows} == {0.0}
    rows = summarise(items, silent, None, checkpoint="silent")
    assert {row["score"] for row in rows} == {0.0} and {row["abstained"] for row in rows} == {1.0}
    exact = [row for row in rows if row["kind"] != "box" and row["metric"] != "within_one"]
    assert all(0 < row["majority_score"] < 1 for row in exact)
    near = next(row for row in rows if row["metric"] == "within_one")
    assert near["majority_score"] == 1, "2 is within one of 1, 2 and 3: it says nothing here"


def test_kinds_are_capped_and_all_there(items):
    english = Counter(item.kind for item in items if item.language == "en")
    assert set(english) == set(KINDS) - {"open"}
    assert max(english.values()) <= 100
    assert english["yes/no"] == 100
    assert len({item.id for item in items}) == len(items)


def test_yes_and_no_are_equally_frequent_for_every_label(items):
    answers = defaultdict(list)
    for item in items:
        if item.kind == "yes/no":
            label = item.id.split("#")[3]
            answers[item.language, item.modality, label].append(item.answer)
    assert len(answers) > 16
    for key, said in answers.items():
        assert said.count("yes") == said.count("no"), key
        assert said.count("是") == said.count("否"), key


@pytest.mark.parametrize(("kind", "most"), [("count", 0.35), ("location", 0.15), ("side", 0.6)])
def test_a_constant_answer_does_not_pay(items, kind, most):
    said = Counter(i.answer for i in items if i.kind == kind and i.language == "en")
    assert max(said.values()) / said.total() <= most


def test_letters_are_about_equally_frequent():
    many = phantom_benchmark(phantoms(1200), seed=0, num_images=1200)
    letters = Counter(i.answer for i in many if i.kind == "multiple choice")
    assert set(letters) == set("ABCD")
    assert max(letters.values()) / letters.total() < 0.32


def test_questions_do_not_give_away_modality_or_organ(items):
    names = {name.lower() for pair in NAMES for name in pair}
    for item in items:
        if item.language == "en" and item.kind != "multiple choice":
            words = item.question.lower().replace("white blood cell", "").replace("?", " ").split()
            assert not names & set(words), item.question


def test_location_and_count_do_not_name_the_finding(items):
    findings = {name for names in NAMES.values() for name in names}
    for item in items:
        if item.kind in ("location", "side", "count") and item.language == "en":
            assert not any(name in item.question for name in findings), item.question


def test_chinese_items_are_the_same_questions_on_a_third_of_the_images(items):
    def key(item):
        return tuple(item.id.split("#")[2:])  # without benchmark and language

    english = {key(i): i for i in items if i.language == "en"}
    chinese = {key(i): i for i in items if i.language == "zh"}
    assert 0.25 < len(chinese) / len(english) < 0.42
    assert set(chinese) <= set(english)
    pictured = {i.images for i in items if i.language == "zh" and i.kind != "yes/no"}
    assert len(pictured) <= 100
    for name, item in chinese.items():
        assert any("一" <= c <= "鿿" for c in item.question)
        assert item.images == english[name].images
        if item.kind in ("count", "box", "multiple choice"):
            continue
        assert item.answer != english[name].answer or item.kind == "modality"


def test_wording_varies_and_is_brief(items):
    asked = {i.question for i in items if i.kind == "finding" and i.language == "en"}
    assert len(asked) >= 4
    assert all(question.endswith("Answer briefly.") for question in asked)


def test_slices_of_one_volume_are_one_group(items):
    assert {i.group for i in items if i.modality == "CT"} <= {
        f"phantom_ct#volume {n}" for n in range(300)
    }
    assert all(i.group.startswith("2d#") for i in items if i.modality == "MR")


def test_the_same_seed_gives_the_same_items_whatever_the_order():
    made = phantoms(200)
    first = phantom_benchmark(made, seed=3, num_images=60)
    shuffled = Random(1).sample(made, len(made))
    assert phantom_benchmark(shuffled, seed=3, num_images=60) == first
    digest = question_ids_sha256(first)
    assert question_ids_sha256(first[::-1]) == digest
    other = phantom_benchmark(made, seed=4, num_images=60)
    assert question_ids_sha256(other) != digest


def test_only_the_asked_split_is_used_and_a_leak_raises():
    train = phantoms(100, split="train", start=1000)
    made = [*phantoms(100), *train]
    for split in ("test", "train"):
        pictured = {
            i.images[0] for i in phantom_benchmark(made, seed=0, num_images=50, split=split)
        }
        assert pictured <= {r.image for r in made if r.split == split}
    leaked = replace(made[0], id="copy", split="train")
    with pytest.raises(ValueError, match=r"is in split 'test', but the same image is copy"):
        phantom_benchmark([*made, leaked], seed=0, num_images=50)
    with pytest.raises(ValueError, match="no phantom image of split 'validation' among 200"):
        phantom_benchmark(made, seed=0, num_images=50, split="validation")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_known_term_is_read_among_all_others(language):
    terms = tuple(dict.fromkeys(translate(term, language) for term in LEXICON))
    sentence = {"en": "The image shows {}.", "zh": "图像显示{}。"}[language]
    for term in terms:
        assert extract_label(term, terms) == term
        assert extract_label(sentence.format(term), terms) == term


def test_counts_up_to_ten_are_exact():
    assert accepted_counts(10) == ("10",)
    assert accepted_counts(40) == tuple(str(n) for n in range(36, 45))


def test_items_refuse_what_cannot_be_asked():
    values = {"id": "x", "benchmark": "b", "images": (b"",), "question": "?", "answer": "left"}
    values |= {"kind": "side", "language": "en", "group": "g", "modality": "CT", "source": "s"}
    values |= {"options": ("left", "right")}
    Item(**values)
    for change, message in (
        ({"kind": "colour"}, "kind 'colour' is not one of"),
        ({"question": "<image>\nWhere?"}, "hold <image>"),
        ({"answer": ""}, "must not be empty"),
        ({"options": ()}, "needs options"),
    ):
        with pytest.raises(ValueError, match=message):
            Item(**values | change)


def test_own_questions_of_a_source_are_asked_as_they_are_and_want_a_brief_answer():
    qa = (
        QuestionAnswer(question="Is  there free air?", answer="yes", question_type="PRES, POS"),
        QuestionAnswer(question="Which plane?", answer="axial ", answer_type="open", item="7"),
        QuestionAnswer(question="CT or MR?", answer="CT", answer_type="closed", item="8"),
        QuestionAnswer(question="Empty?", answer=""),
        QuestionAnswer(question="Why?", answer="a long answer tells nothing by its question"),
    )
    made = source_benchmarks([record(0, source="vqa_rad", qa=qa)])
    assert list(made) == ["vqa_rad"]
    air, plane, closed, why = made["vqa_rad"]
    assert (air.question, air.kind) == ("Is there free air? Answer briefly.", "yes/no")
    assert why.question == "Why? Answer briefly."
    assert air.subsets == ("question_type=PRES", "question_type=POS")
    assert (plane.kind, plane.answer, plane.subsets) == ("open", "axial", ("answer_type=open",))
    assert (closed.kind, closed.subsets) == ("open", ("answer_type=closed",))


def test_class_folders_become_a_finding_question_over_all_classes():
    classes = ("glioma_tumor", "meningioma_tumor", "pituitary_tumor", NO_FINDING)
    made = [
        record(n, source="tumors", labels=(classes[n % 4],), split="test" if n < 40 else "train")
        for n in range(80)
    ]
    items = source_benchmarks(made)["tumors"]
    finding = [i for i in items if i.kind == "finding"]
    assert len(finding) == 40
    assert finding[0].options == ("glioma", "meningioma", NO_FINDING, "pituitary tumor")
    assert {i.kind for i in items} == {"finding"}, "one modality only: not worth asking"


def test_cells_are_counted_and_their_presence_is_asked_evenly():
    rng = Random(0)
    made = []
    for n in range(30):
        here = ("RBC", "Platelets") if n % 3 else ("RBC",)
        counted = tuple(
            box for name in here for box in boxes(name, 14 if name == "RBC" else 2, rng)
        )
        changes = {"task": "cell recognition", "modality": "microscopy", "labels": here}
        changes |= {"absent": () if n % 3 else ("Platelets",), "boxes": counted}
        made.append(record(n, source="cells", boxes_are_complete=True, **changes))
    items = source_benchmarks(made)["cells"]
    counts = [i for i in items if i.kind == "count"]
    assert len(counts) == 50
    red = next(i for i in counts if "red blood cells" in i.question)
    assert (red.answer, red.answers) == ("14", ("13", "14", "15"))
    presence = Counter(i.answer for i in items if i.kind == "yes/no")
    assert presence == {"yes": 10, "no": 10}
    assert "finding" not in {i.kind for i in items}


def test_normal_anatomy_is_asked_for_presence_only():
    rng = Random(0)
    made = []
    for n in range(20):
        here, gone = ("liver", "spleen") if n % 2 else ("spleen", "liver")
        changes = {"task": "organ recognition", "labels": (here,), "absent": (gone,)}
        made.append(record(n, source="organs", boxes=boxes(here, 1, rng), **changes))
    items = source_benchmarks(made)["organs"]
    assert Counter((i.kind, i.answer) for i in items) == {
        ("yes/no", "yes"): 20,
        ("yes/no", "no"): 20,
    }


def test_a_source_with_one_class_reads_answers_from_all_classes():
    made = [record(n, source="covid", labels=("COVID-19",)) for n in range(3)]
    made += [record(n, source="other", labels=("pneumonia",), split="train") for n in range(9, 12)]
    items = source_benchmarks(made)["covid"]
    assert {i.options for i in items} == {("COVID-19", "pneumonia")}


def test_phantom_sources_are_not_real_benchmarks():
    assert source_benchmarks(phantoms(50)) == {}


def test_phantom_files_become_benchmarks(tmp_path):
    from gmai_lib.dataset import curate, phantom_files, readers, recipes

    phantom_files.write_sources(tmp_path, seed=0, images_per_modality=12, size=64)
    ledger = Ledger()
    found = recipes.find(tmp_path)
    records = [r for recipe, root in found for r in readers.read(recipe, root, ledger)]
    records = curate.assign_splits(records, seed=0, validation_fraction=0.0, test_fraction=0.5)
    items = phantom_benchmark(records, seed=0, num_images=60)
    assert {i.kind for i in items} == set(KINDS) - {"open"}
    assert len({i.modality for i in items}) == 11
    own = source_benchmarks(records)
    assert list(own) == ["phantom_vqa"]
    for item in [*items, *own["phantom_vqa"]]:
        assert score(item, item.answer)["correct"] == 1.0, item


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs {DATA}")
def test_real_sources_become_benchmarks():
    from gmai_lib.dataset import readers, recipes

    records = []
    for recipe, root in recipes.find(DATA):
        if recipe.name in ("vqa_rad", "dsb2018_nuclei", "covid_kjr_notes"):
            read = readers.read(recipe, root, Ledger())
            records += [replace(r, split="test") for r in read]
    made = source_benchmarks(records)
    assert set(made) == {"vqa_rad", "dsb2018_nuclei", "covid_kjr_notes"}
    assert len(made["vqa_rad"]) == 1056  # 899 + 157 pairs in the two lists
    assert Counter(i.kind for i in made["vqa_rad"])["yes/no"] == 611
    assert len(made["dsb2018_nuclei"]) == 44
    for item in (item for items in made.values() for item in items):
        assert score(item, item.answer)["correct"] == 1.0, item


def test_questions_about_a_person_count_by_sex_and_age_group():
    known = [
        replace(record, sex=("female", "male", "")[n % 3], age_group="65+" if n % 2 else "")
        for n, record in enumerate(phantoms())
    ]
    by_image = {record.digest: record for record in known}
    for item in phantom_benchmark(known, seed=0, num_images=60):
        record = by_image[hashlib.sha256(item.images[0]).hexdigest()]
        expected = [f"sex={record.sex}"] * bool(record.sex)
        assert list(item.subsets) == expected + ["age=65+"] * bool(record.age_group)
