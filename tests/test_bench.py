"""The benchmark measures every source and says what it measured."""

import json
from dataclasses import replace

import pytest
import tiny_run
from synthetic_records import phantom, png

from gmai_lib import bench, bench_train
from gmai_lib.dataset import curate, phantom_files


def test_every_phantom_source_and_the_writer_are_measured(tmp_path, capsys):
    sizes = ["--images", "8", "--size", "48", "--scaled", "1"]
    bench.main(["build", *sizes, "--out", str(tmp_path / "bench.json")])
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    read = [row for row in rows if row["what"].startswith("read ")]
    together = {row["what"].split()[-1]: row["n"] for row in read[14:]}
    read = read[:14]
    assert all(row["n"] > 0 and row["per_second"] > 0 for row in read)
    assert sum("share of decoding" in row for row in read) == 13, "all but the texts"
    volumes = sum(row["n"] for row in read if row["what"].endswith(("_ct", "_mr", "_pet")))
    texts = next(row["n"] for row in read if row["what"].endswith("_text"))
    images = sum(row["n"] for row in read) - volumes - texts
    assert together == {"images": images, "slices": volumes}
    encoded = {r["what"].split("_")[1] for r in read if "share of decoding and encoding" in r}
    assert encoded == {"ct", "mr", "pet", "microscopy"}, "the others are kept as they are"
    assert {"write pairs", "write questions"} <= {row["what"] for row in rows}
    assert rows[-1]["what"] == "build, 2 processes" and rows[-1]["speed-up"] > 0
    assert 0 < rows[-1]["busy"] < 1.1 and rows[-1]["more work"] > 1, "ended children are counted"
    said = capsys.readouterr().out
    assert "of decoding alone" in said and "times one process" in said


def test_rates_scale_reader_and_writer(tmp_path):
    sources = tmp_path / "sources"
    phantom_files.write_sources(sources, seed=0, images_per_modality=3, size=48)
    records = [replace(phantom(n), split="train") for n in range(8)]
    rates = bench.rates(sources, records, chinese_fraction=0.0, seed=0)
    assert min(rates.values()) > 0 and 1 <= rates["pairs_per_image"] < 20


@pytest.mark.slow
def test_training_is_measured_beside_the_trainer_on_the_same_samples(tmp_path):
    pytest.importorskip("accelerate", reason="Trainer needs it")
    profile = tiny_run.tiny_profile(precision="float32")
    made = tiny_run.samples(60)
    tiny_run.write_shards(tmp_path / "03_write_pairs" / "pairs", made)
    (tmp_path / "05_model").mkdir()
    tiny_run.write_initial(tmp_path / "05_model" / "initial", profile, made)
    ours, theirs = bench_train.train(tmp_path, steps=3, profile=profile)
    assert ours["steps"] == theirs["steps"] == 3 and theirs["speed-up"] == 1
    assert min(ours["tokens_per_s"], theirs["tokens_per_s"], ours["samples_per_s"]) > 0
    assert 0 <= ours["padding"] < 1 and 0 < theirs["padding"] < 1


def test_answering_and_scoring_are_measured(tmp_path, capsys):
    made = [replace(phantom(n), split="test", image=png(n), sha256="") for n in range(40)]
    curate.write_records(made, tmp_path / "02_curate" / "records")
    checkpoint = tmp_path / "09_instruction_tuning" / "checkpoint"
    tiny_run.write_initial(
        checkpoint, tiny_run.tiny_profile(precision="float32"), tiny_run.samples(9)
    )
    out = tmp_path / "bench.json"
    counts = ["--questions", "12", "--answers", "300"]
    bench.main(["evaluate", str(tmp_path), *counts, "--out", str(out)])
    batched, single, scored, different = json.loads(out.read_text())["rows"]
    assert (batched["n"], single["n"], scored["n"], different["n"]) == (12, 12, 300, 300)
    assert batched["speed-up"] == pytest.approx(single["seconds"] / batched["seconds"])
    assert 0 <= batched["same"] <= 1 and min(scored["seconds"], different["seconds"]) > 0
    assert "times one by one" in capsys.readouterr().out
