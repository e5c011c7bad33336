"""training/launch: the DeepSpeed launcher's processes start, stop, fail and resume as promised."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tiny_run import (
    run_ranks,
    tiny_profile,
    write_inputs,
    write_run,
)

from gmai_lib import config
from gmai_lib.outputs import read_json, write_json
from gmai_lib.training import launch

STAGE = "deep_alignment"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with pairs/ and initial/."""
    return write_inputs(tmp_path_factory.mktemp("inputs"), tiny_profile(), 60)


def _run(inputs, out, profile, **changes):
    arguments = {"pairs": inputs / "pairs", "init": inputs / "initial", "out": out, "seed": 0}
    return launch.run_stage(profile, STAGE, **arguments | changes)


def _processes(out: Path) -> list[psutil.Process]:
    """Every process whose command line names a file in `out`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(out) in argument for argument in process.info["cmdline"] or ()):
            found.append(process)
    return found


def _wait_until_gone(out: Path, seconds: float = 15) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    while _processes(out) and time.monotonic() < deadline:
        time.sleep(0.1)
    return _processes(out)


def test_module_imports_no_torch():
    code = "import sys, gmai_lib.training.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=launch.PACKAGE_ROOT).returncode == 0


@pytest.mark.parametrize("profile", [config.mini(), config.single_gpu(), config.paper()])
def test_deepspeed_config_follows_the_stage(profile):
    for stage in profile.stages:
        derived = launch.deepspeed_config(stage, profile.ranks)
        batch = derived["train_micro_batch_size_per_gpu"] * derived["gradient_accumulation_steps"]
        assert batch * profile.ranks == derived["train_batch_size"] == stage.global_batch_size
        assert derived["zero_optimization"]["stage"] == stage.zero_stage
        assert derived["gradient_clipping"] == stage.max_grad_norm
        assert "auto" not in json.dumps(derived)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_deepspeed_config_says_everything_the_stage_says(zero_stage):
    stage = replace(config.paper().stages[2], zero_stage=zero_stage, bucket_elements=1000)
    plain = launch.deepspeed_config(stage, 32)
    assert plain["zero_optimization"] == {"stage": zero_stage, "reduce_bucket_size": 1000}
    assert plain["bf16"] == {"enabled": True} and "fp16" not in plain
    assert plain["optimizer"]["params"] == {"betas": [0.9, 0.999], "torch_adam": True}
    assert launch.deepspeed_config(replace(stage, precision="fp16"), 32)["fp16"]["loss_scale"] == 0
    eight = launch.deepspeed_config(replace(stage, optimizer="adamw_8bit"), 32)
    assert "optimizer" not in eight and eight["zero_allow_untested_optimizer"]
    if zero_stage:
        moved = launch.deepspeed_config(replace(stage, offload_optimizer=True), 32)
        assert moved["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    if zero_stage == 3:
        moved = launch.deepspeed_config(replace(stage, offload_parameters=True), 32)
        assert moved["zero_optimization"]["offload_param"]["device"] == "cpu"


def test_batches_that_do_not_divide_raise_before_anything_starts(inputs, tmp_path):
    profile = replace(tiny_profile(), ranks=3)
    with pytest.raises(ValueError, match="global batch 4 is not a multiple of micro batch 2 x wo"):
        _run(inputs, tmp_path / "out", profile)
    assert not (tmp_path / "out").exists()


def _copy(inputs, folder, change=None, name="config.json"):
    """The initial checkpoint, with one of its JSON files changed."""
    shutil.copytree(inputs / "initial", folder)
    content = read_json(folder / name)
    if change:
        change(content)
    write_json(folder / name, content)
    return folder


def test_stage_without_its_previous_checkpoint_is_refused(inputs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint in .*empty: config.json is missing"
    ):
        launch.check_initial(tiny_profile(), tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*nowhere"):
        _run(inputs, tmp_path / "out", tiny_profile(), init=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_checkpoint_of_another_configuration_is_refused_with_both_values(inputs, tmp_path):
    wider = _copy(inputs, tmp_path / "a", lambda c: c["text_config"].update(hidden_size=64))
    with pytest.raises(ValueError, match=r"profile tiny: text {'hidden_size': '64, not 32'}"):
        launch.check_initial(tiny_profile(), wider)
    larger = _copy(inputs, tmp_path / "b", lambda c: c["vision_config"].update(image_size=32))
    with pytest.raises(ValueError, match=r"vision {'image_size': '32, not 16'}"):
        launch.check_initial(tiny_profile(), larger)


def test_checkpoint_with_another_tokenizer_is_refused(inputs, tmp_path):
    moved = _copy(inputs, tmp_path / "a", lambda c: c.update(image_token_id=9))
    with pytest.raises(ValueError, match=r"the tokenizer has <image> at \d+, the model at 9"):
        launch.check_initial(tiny_profile(), moved)
    trained = _copy(inputs, tmp_path / "b")
    write_json(trained / "lineage.json", launch.lineage(trained, STAGE))
    launch.check_initial(tiny_profile(), trained)
    tokenizer = read_json(trained / "tokenizer.json")
    first, second = list(tokenizer["model"]["vocab"])[-2:]
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    write_json(trained / "tokenizer.json", tokenizer)
    with pytest.raises(ValueError, match=r"not the one with which \['deep_alignment'\] were"):
        launch.check_initial(tiny_profile(), trained)


def test_chain_with_an_unknown_stage_trains_nothing(inputs, tmp_path):
    arguments = {"pairs": inputs / "pairs", "init": inputs / "initial", "seed": 0}
    with pytest.raises(ValueError, match="no stage 'warm_up' in profile tiny"):
        launch.run_stages(tiny_profile(), (STAGE, "warm_up"), out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_chain_of_stages_starts_each_from_the_one_before(inputs, tmp_path):
    profile = tiny_profile(max_steps=1)
    names = config.ABLATIONS["1+3"]
    arguments = {"pairs": inputs / "pairs", "init": inputs / "initial", "seed": 0}
    results = launch.run_stages(profile, names, out=tmp_path, on_metrics=print, **arguments)
    assert [result["reused"] for result in results] == [False, False]
    last = tmp_path / "2_instruction_tuning"
    assert read_json(last / "run.json")["init"] == str(tmp_path / "1_shallow_alignment/checkpoint")
    assert read_json(last / "checkpoint" / "lineage.json")["stages"] == list(names)
    again = launch.run_stages(profile, names, out=tmp_path, on_metrics=print, **arguments)
    assert all(result["reused"] for result in again)


def test_environment_shares_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert launch.environment(2)["OMP_NUM_THREADS"] == "4"
    assert launch.environment(16)["OMP_NUM_THREADS"] == "1"


def test_command_for_several_machines_names_the_hostfile():
    arguments = launch.command(Path("run.json"), 8, hostfile=Path("hosts"))
    assert arguments[1:5] == ["-m", "deepspeed.launcher.runner", "--hostfile", "hosts"]
    assert arguments[-2:] == ["gmai_lib.training.train", "run.json"]


def test_fingerprint_follows_contents_not_times(tmp_path):
    (tmp_path / "a.json").write_text("1")
    (tmp_path / "b.parquet").write_text("2")
    first = launch.fingerprint(tmp_path)
    os.utime(tmp_path / "a.json", (0, 0))
    assert launch.fingerprint(tmp_path) == first
    (tmp_path / "b.parquet").write_text("3")
    second = launch.fingerprint(tmp_path)
    assert second != first
    write_json(tmp_path / "manifest.json", {"b.parquet": "hash 1"})
    listed = launch.fingerprint(tmp_path)
    write_json(tmp_path / "manifest.json", {"b.parquet": "hash 2"})
    assert len({first, second, listed, launch.fingerprint(tmp_path)}) == 4
    with pytest.raises(FileNotFoundError, match="missing or empty"):
        launch.fingerprint(tmp_path / "nowhere")


def test_keep_metrics_drops_repeated_and_half_written_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert launch.keep_metrics(path, 2) == [{"step": 1}, {"step": 2}]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_failure_shows_the_end_of_the_log(tmp_path):
    script = "import sys\nfor n in range(50): print('line', n)\nsys.exit('no such weights')"
    with pytest.raises(RuntimeError) as failure:
        launch._run_logged([sys.executable, "-c", script], tmp_path, STAGE, 1, lambda: None)
    message = str(failure.value)
    assert "stage deep_alignment failed with exit code 1" in message
    assert "line 31\n" in message and "line 30\n" not in message  # the last 20 lines
    assert message.endswith("no such weights")
    assert "line 0\n" in (tmp_path / "log.txt").read_text()


def test_stage_runs_quietly_and_is_not_repeated(inputs, tmp_path):
    seen = []
    result = _run(inputs, tmp_path, tiny_profile(), on_metrics=seen.append)
    assert [row["step"] for row in seen] == [1, 2, 3, 4]
    assert (result["steps"], result["resumed_from"], result["reused"]) == (4, 0, False)
    assert result["world_size"] == 2 and result["tokens"] == sum(row["tokens"] for row in seen)
    assert (tmp_path / "checkpoint" / "tokenizer.json").exists()
    assert (tmp_path / "checkpoint" / "processor_config.json").exists()
    assert len((tmp_path / "log.txt").read_text().splitlines()) <= 4, "warnings in the log"
    assert config.Profile.from_json(tmp_path / "profile.json") == tiny_profile()
    assert not _processes(tmp_path)

    written = (tmp_path / "training.json").stat().st_mtime_ns
    replayed = []
    again = _run(inputs, tmp_path, tiny_profile(), on_metrics=replayed.append)
    assert again == result | {"reused": True} and replayed == seen
    assert (tmp_path / "training.json").stat().st_mtime_ns == written


def test_changed_run_starts_afresh(inputs, tmp_path, monkeypatch):
    for name in ("training.json", "metrics.jsonl", "log.txt"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "checkpoint").mkdir()
    write_json(tmp_path / "run.json", {"seed": 1})
    monkeypatch.setattr(launch, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(7)"])
    with pytest.raises(RuntimeError, match="exit code 7"):
        _run(inputs, tmp_path, tiny_profile())
    assert not (tmp_path / "training.json").exists() and not (tmp_path / "checkpoint").exists()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_other_ranks_or_checkpoints_do_not_start_afresh(inputs, tmp_path):
    files = {"pairs": inputs / "pairs", "init": inputs / "initial", "out": tmp_path, "seed": 0}
    launch.prepare_run(tiny_profile(), STAGE, **files)
    (tmp_path / "training").mkdir()
    run_file = launch.prepare_run(
        replace(tiny_profile(), ranks=1), STAGE, keep_best="training", **files
    )
    assert (tmp_path / "training").exists()
    run = read_json(run_file)
    assert (run["ranks"], run["keep_best"]) == (1, "training")
    with pytest.raises(ValueError, match=r"keep_best 'all' not in \('no', 'training', 'val"):
        launch.prepare_run(tiny_profile(), STAGE, keep_best="all", **files)
    with pytest.raises(ValueError, match="pairs has no validation shards"):
        launch.prepare_run(tiny_profile(), STAGE, keep_best="validation", **files)
    launch.prepare_run(tiny_profile(), STAGE, **files | {"seed": 1})
    assert not (tmp_path / "training").exists()


@pytest.mark.slow
def test_killed_and_interrupted_stage_resumes_without_orphans(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)  # 1 thread each
    profile, out = tiny_profile(max_steps=60), tmp_path / "out"
    run_file = write_run(tmp_path / "whole", inputs, profile.stage(STAGE), 2)
    assert run_ranks(run_file, 2) == [0, 0]
    whole = [json.loads(line) for line in run_file.with_name("metrics.jsonl").open()]

    def kill_a_rank(row):
        if row["step"] == 6:
            ranks = [p for p in _processes(out) if "deepspeed.launcher.launch" not in p.cmdline()]
            ranks[0].send_signal(signal.SIGKILL)

    with pytest.raises(RuntimeError, match=f"stage {STAGE} failed with exit code"):
        _run(inputs, out, profile, checkpoint_steps=5, on_metrics=kill_a_rank)
    assert not _wait_until_gone(out)
    reached = launch.resume_step(out)
    assert reached >= 5

    def interrupt(row):
        if row["step"] == reached + 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(inputs, out, profile, checkpoint_steps=5, on_metrics=interrupt)
    assert not _wait_until_gone(out)
    assert launch.resume_step(out) > reached

    seen = []
    result = _run(inputs, out, profile, checkpoint_steps=5, on_metrics=seen.append)
    assert result["resumed_from"] > reached and result["steps"] == 60
    assert [row["loss"] for row in seen] == [row["loss"] for row in whole]


@pytest.mark.slow
def test_ranks_end_when_the_caller_is_killed(inputs, tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from tiny_run import tiny_profile\n"
        "from gmai_lib.training import launch\n"
        f"launch.run_stage(tiny_profile(max_steps=100000), {STAGE!r},\n"
        f"    pairs=Path({str(inputs / 'pairs')!r}), init=Path({str(inputs / 'initial')!r}),\n"
        "    out=Path(sys.argv[1]), seed=0)\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", code, str(out)], cwd=launch.PACKAGE_ROOT)
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").stat().st_size:
        assert caller.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    caller.kill()
    caller.wait()
    assert not _wait_until_gone(out)


def test_write_run_of_the_tests_matches_run_stage(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "command", lambda *_: [sys.executable, "-c", "raise SystemExit(7)"])
    with pytest.raises(RuntimeError):
        _run(inputs, tmp_path / "a", tiny_profile())
    write_run(tmp_path / "b", inputs, tiny_profile().stage(STAGE), 2)
    assert (
        read_json(tmp_path / "a" / "run.json").keys() - {"fingerprints"}
        == read_json(tmp_path / "b" / "run.json").keys()
    )


def test_the_error_is_that_of_the_rank_that_failed_first():
    lines = [
        "step 3",
        "[rank1]: Traceback (most recent call last):",
        "[rank1]:   File x",
        "[rank1]: ValueError: no sample to train on",
        "[rank0]: Traceback (most recent call last):",
        "[rank0]: RuntimeError: Connection closed by peer",
    ]
    reason, tail = launch._failure(lines)
    assert reason == ": ValueError: no sample to train on"
    assert tail.splitlines() == lines[1:4]
    assert launch._failure(["Killed"]) == ("", "Killed")
