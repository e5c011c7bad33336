"""Exports: the original's JSON fields, VLMEvalKit's columns, and nothing lost on the way."""

import base64
import csv
import json
import sys

import pytest
from synthetic_records import phantom, text_only

from gmai_lib.dataset import build, export
from gmai_lib.dataset.writers import TemplateWriter
from gmai_lib.evaluation.items import Item


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("pairs")
    records = [replace(phantom(i), split="train" if i % 4 else "test") for i in range(20)]
    records.append(replace(text_only(), split="train"))
    build.write_pairs(
        records, folder, writer=TemplateWriter(0), seed=0, chinese_fraction=0.5, shard_records=7
    )
    return folder


def test_llava_json_has_the_fields_of_the_release(pairs, tmp_path):
    import pyarrow.parquet as pq

    counts = export.llava_json(pairs, tmp_path)
    rows = {
        row["id"]: row
        for shard in pairs.glob("*.parquet")
        for row in pq.read_table(shard).to_pylist()
    }
    written = [s for split in counts for s in json.loads((tmp_path / f"{split}.json").read_text())]
    assert len(written) == sum(counts.values()) == len(rows) and set(counts) == {"train", "test"}
    for sample in written:
        row = rows[sample["id"]]
        pictured = {"image", "conversations", "id", "width", "height"}
        assert set(sample) == (pictured if row["images"] else {"conversations", "id"})
        assert [t["value"] for t in sample["conversations"]] == [
            t["content"] for t in row["conversations"]
        ]
        assert [t["from"] for t in sample["conversations"][:2]] == ["human", "gpt"]
        if row["images"]:
            assert (tmp_path / sample["image"]).read_bytes() == row["images"][0]["bytes"]
            assert sample["conversations"][0]["value"].startswith("<image>\n")
    images = {row["images"][0]["bytes"] for row in rows.values() if row["images"]}
    assert len(list((tmp_path / "images").iterdir())) == len(images), "every image once"


def test_exporting_again_gives_the_same_bytes(pairs, tmp_path):
    export.llava_json(pairs, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    export.llava_json(pairs, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_command_line(pairs, tmp_path, capsys):
    export.main([str(pairs), str(tmp_path / "out"), "--creator", "Us"])
    said = capsys.readouterr().out
    assert "train" in said and "croissant.json; not stated: url, datePublished" in said
    assert json.loads((pairs / "croissant.json").read_text())["creator"]["name"] == "Us"
    with pytest.raises(SystemExit):
        export.main([str(tmp_path / "none"), str(tmp_path / "out")])
    assert "no *.parquet shards" in capsys.readouterr().err


def item(number, image=b"\x89PNG picture", kind="multiple choice", **more):
    options = {"options": ("cyst", "nodule", "ulcer", "polyp"), "answer": "B"}
    question = "Which finding?\nA. cyst\nB. nodule\nC. ulcer\nD. polyp\nAnswer with the option."
    fields = {"benchmark": "phantom", "language": "en", "group": "g", "modality": "CT"}
    fields |= {"source": "phantom_ct", "question": question} | options | more
    return Item(id=f"i{number}", images=(image * (1 + number // 2),), kind=kind, **fields)


def test_tsv_is_what_vlmevalkit_reads(tmp_path):
    made = [item(0), item(1), item(2), item(3, kind="yes/no", answer="yes", options=())]
    assert export.vlmeval_tsv(made, tmp_path / "phantom.tsv") == 3
    csv.field_size_limit(sys.maxsize)
    with (tmp_path / "phantom.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert tuple(rows[0]) == export.TSV_COLUMNS
    assert base64.b64decode(rows[0]["image"]) == made[0].images[0]
    assert rows[1]["image"] == "0" == rows[0]["index"], "the same image is a reference"
    assert base64.b64decode(rows[2]["image"]) == made[2].images[0]
    assert rows[0]["question"] == "Which finding?" and rows[0]["B"] == "nodule"
    assert {row["answer"] for row in rows} == {"B"} and rows[0]["l2-category"] == "CT"


def test_tsv_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="no multiple-choice item"):
        export.vlmeval_tsv([item(0, kind="yes/no", answer="yes", options=())], tmp_path / "a.tsv")
    five = item(0, options=("a", "b", "c", "d", "e"))
    with pytest.raises(ValueError, match="i0 has 5 options"):
        export.vlmeval_tsv([five], tmp_path / "a.tsv")
    assert not list(tmp_path.iterdir())
