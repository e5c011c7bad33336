"""Reading practice: images made of words, and questions that they answer."""

from collections import Counter
from dataclasses import asdict

from gmai_lib.dataset import practice
from gmai_lib.dataset.lexicon import translate
from gmai_lib.schema import Fact

FACTS = [
    Fact(id=f"f{n}", kind=kind, value=value, label=label)
    for n, (kind, value, label) in enumerate(
        [
            ("modality", "CT", ""),
            ("department", "oncology", ""),
            ("organ", "liver", ""),
            ("label", "cyst", ""),
            ("absent", "mass", ""),
            ("box", "0.10 0.10 0.25 0.25", "cyst"),
            ("side", "left", "cyst"),
            ("place", "upper left", "cyst"),
            ("count", "1", "cyst"),
        ]
    )
]


def test_slots_stand_where_the_image_was():
    turns = [{"role": "user", "content": "<image>\nWhat is it?"}]
    turns += [{"role": "assistant", "content": "cyst"}]
    facts = [asdict(fact) for fact in FACTS]
    rows = [{"id": str(n), "facts": facts, "conversations": turns} for n in range(200)]
    documents = practice.with_slots(rows, seed=0)
    assert documents == practice.with_slots(rows, seed=0)
    for document in documents:
        shown = practice.IMAGE in document["conversations"][0]["content"]
        assert shown == bool(document["slots"])
    slots = [document["slots"] for document in documents if document["slots"]]
    assert 150 < len(slots) < 200, "about one in ten keeps nothing"
    background, box = ["CT", "liver"], ["cyst", "upper left", "left", "1"]
    assert all(slot in (background, box) for image in slots for slot in image)
    assert {image.count(box) for image in slots} == {1, 2, 3, 4}
    numbers = [image.count(background) for image in slots]
    assert min(numbers) == 1 and max(numbers) > 40, "few are easy, many are what an image has"
    assert turns[0]["content"].startswith("<image>"), "the rows themselves stay as they are"
    rows = [{"id": "t", "facts": facts, "conversations": [{"role": "user", "content": "Hello"}]}]
    assert practice.with_slots(rows, seed=0)[0]["slots"] == [], "text has no image"


def test_three_quarters_of_the_rows_have_a_place_where_there_are_enough():
    facts = [asdict(fact) for fact in FACTS]
    flat = [fact for fact in facts if fact["kind"] != "place"]
    few = [{"id": n, "facts": facts if n % 10 == 0 else flat} for n in range(1000)]
    chosen = practice.mostly_placed(few, 80)
    assert [row["id"] for row in chosen] == sorted(row["id"] for row in chosen)
    assert sum(row["facts"] is facts for row in chosen) == 60 and len(chosen) == 80
    chosen = practice.mostly_placed(few, 400)
    assert sum(row["facts"] is facts for row in chosen) == 100 and len(chosen) == 400
    all_placed = [{"id": n, "facts": facts} for n in range(50)]
    assert practice.mostly_placed(all_placed, 40) == all_placed[:40]
    assert practice.mostly_placed(few, 5000) == few


def test_practice_asks_only_what_the_slots_answer():
    facts = [asdict(fact) for fact in FACTS]
    rows = [{"id": str(n), "facts": facts, "language": "en"} for n in range(300)]
    documents = practice.reading_practice(rows, seed=0)
    assert documents == practice.reading_practice(rows, seed=0)
    assert documents != practice.reading_practice(rows, seed=1)
    yes_no = Counter()
    for document in documents:
        turns = document["conversations"]
        assert 2 <= len(turns) <= 20 and document["slots"]
        for asked, said in zip(turns[::2], turns[1::2], strict=True):
            asked, said = asked["content"], said["content"]
            if said in ("yes", "no"):
                yes_no[said] += 1
                assert "cyst" not in asked or said == "yes"
                assert "mass" not in asked or said == "no"
            elif "letter" in asked:
                raise AssertionError("letters stay at chance for hundreds of steps")
            else:
                assert said in ("CT", "liver", "cyst", "upper left", "left", "1")
    assert 0.4 < yes_no["yes"] / yes_no.total() < 0.6


def test_terms_are_the_values_of_facts_in_both_languages():
    facts = [asdict(fact) for fact in FACTS]
    only_cyst = [fact for fact in facts if fact["value"] == "cyst"]
    terms = practice.terms([facts, only_cyst])
    assert terms[:3] == ["yes", "no", "cyst"], "the commonest first"
    assert {"CT", "oncology", "liver", "mass", "left", "upper left", "囊肿", "左上部"} <= set(terms)
    assert not {"0.10 0.10 0.25 0.25", "1", "是", "否"} & set(terms)
    assert len(terms) == len(set(terms))
    assert practice.terms([facts], most=3)[:3] == ["yes", "no", "CT"]
    assert "liver" not in practice.terms([facts], most=3)


def lesson_rows():
    named = ["cyst", "mass", "nodule", "polyp"]
    rows = []
    for n, label in enumerate(named):
        facts = [asdict(fact) for fact in FACTS if fact.kind != "label"]
        facts.append(asdict(Fact(id=f"l{n}", kind="label", value=label)))
        rows.append({"id": str(n), "facts": facts})
    return rows


def test_every_note_of_a_lesson_is_answered_by_its_slots():
    lessons = practice.write_lessons(lesson_rows(), steps=20, seed=0)
    assert lessons == practice.write_lessons(lesson_rows(), steps=20, seed=0)
    assert lessons != practice.write_lessons(lesson_rows(), steps=20, seed=1)
    assert [share for share, _ in lessons] == [lesson.share for lesson in practice.LESSONS]
    said = {number: Counter() for number in range(len(lessons))}
    for number, (_, documents) in enumerate(lessons):
        for document in documents:
            shown = {translate(word, "zh") for slot in document["slots"] for word in slot}
            for asked, answer in document["notes"]:
                said[number][answer] += 1
                if number == 0:
                    words = {translate(word, "zh") for word in asked}
                    assert (answer in ("yes", "是")) == (len(words) == 1)
                elif answer in ("yes", "no", "是", "否"):
                    about = asked[0].replace(" is there:", "").replace(" 有吗:", "")
                    assert (answer in ("yes", "是")) == (translate(about, "zh") in shown)
                else:
                    assert translate(answer, "zh") in shown
    assert 0.4 < said[0]["yes"] / (said[0]["yes"] + said[0]["no"]) < 0.75
    assert {"upper left", "CT", "liver", "3", "左上部"} <= set(said[2]), "all kinds, two languages"


def test_without_labels_to_compare_there_are_no_lessons():
    assert practice.write_lessons([], steps=20, seed=0) == []
    assert practice.write_lessons(lesson_rows()[:1], steps=20, seed=0) == []


def test_regions_say_what_is_everywhere_and_what_is_in_each_box():
    everywhere, [(box, named)] = practice.regions(FACTS)
    assert everywhere == ["CT", "liver"] and named == ["cyst", "upper left", "left", "1"]
    assert (box.label, box.x1, box.y2) == ("cyst", 0.10, 0.25)
    unboxed = [fact for fact in FACTS if fact.kind != "box"]
    assert practice.regions(unboxed) == (["CT", "liver", "cyst"], [])
    wide = [fact for fact in FACTS if fact.kind not in ("box", "count")]
    wide.append(Fact(id="f9", kind="box", value="0.00 0.00 1.00 1.00", label="cyst"))
    assert practice.regions(wide)[1][0][1] == ["cyst"], "without place, side or count"
