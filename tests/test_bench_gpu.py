"""The bench of one GPU, climbed on the CPU: every rung, stage and Trainer trains on one store."""

import json
import multiprocessing

import pytest
import torch
from test_kernels import sample_by_sample
from tiny_run import tiny_profile

from gmai_lib import bench_gpu
from gmai_lib.model import kernels
from gmai_lib.training import engines


def climb(path):
    """Write the rows of a tiny model to `path`; a process of its own, as it joins a group."""
    torch.set_num_threads(1)
    kernels.varlen_attn = sample_by_sample
    engines.compile_layers = lambda model: None  # half a minute of C++
    profile = tiny_profile(micro_batch_size=2)
    bench_gpu.PACKS = bench_gpu.STAGE_PACKS = 4
    options = {"steps": 1, "device": "cpu", "profile": profile}
    rows = bench_gpu.gpu("0.5b", only="row;+ ;Trainer;instruction", **options)
    path.write_text(json.dumps(rows))


@pytest.mark.slow
def test_every_rung_stage_and_trainer_is_measured(tmp_path):
    process = multiprocessing.get_context("spawn").Process(
        target=climb, args=(tmp_path / "rows.json",)
    )
    process.start()
    process.join()
    rows = {row["what"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert len(rows) == len(bench_gpu.ladder()) + 2 + 2
    assert all(row["tokens_per_s"] > 0 and 0 < row["mfu"] < 1 for row in rows.values())
    assert rows["Trainer, padded rows"]["padding"] > 0.1
    fastest = max(rows[name]["tokens_per_s"] for name in bench_gpu.TRAINERS)
    stage = rows["workbook, instruction tuning"]
    assert stage["speed-up"] == pytest.approx(stage["tokens_per_s"] / fastest)
    compiled = rows["workbook, instruction tuning, compiled"]
    assert compiled["loss"] == pytest.approx(stage["loss"], rel=1e-3), "longer rows change nothing"


def test_rungs_compute_the_same_loss(monkeypatch):
    monkeypatch.setattr(kernels, "varlen_attn", sample_by_sample)
    bench = bench_gpu._Bench(
        tiny_profile(subsets=("caption",), loss_weighting="token"), "cpu", 1, 0
    )
    stage = bench.profile.stages[-1]
    batches = bench_gpu.loader.PairLoader(bench.store, stage, seed=0)
    micro_batch, losses = next(batches).micro_batches[0], []
    for rung in bench_gpu.ladder()[:6]:
        model = bench.model(torch.float32)
        kernels.set_attention(model, rung.attention)
        losses.append(bench.loss(model, micro_batch, rung, torch.float32).item())
    assert losses == pytest.approx([losses[0]] * 6, rel=1e-5)


def test_what_cannot_be_measured_is_said():
    with pytest.raises(ValueError, match=r"unknown model '13b'; known: \['0.5b', '7b'\]"):
        bench_gpu.gpu("13b")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device here"):
            bench_gpu.gpu("7b")
