"""training/cluster: the commands for several machines start ranks that train."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import tiny_profile, write_inputs, write_run

from gmai_lib.outputs import read_json
from gmai_lib.training import cluster, launch

STAGE = "shallow_alignment"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with pairs/ and initial/."""
    return write_inputs(tmp_path_factory.mktemp("inputs"), tiny_profile(), 20)


@pytest.fixture
def run_file(inputs, tmp_path):
    stage = tiny_profile(max_steps=2).stage(STAGE)
    return write_run(tmp_path / "out", inputs, stage, 2)


def _finish(command, *, environment, out: Path, script: str | None = None):
    """Run to the end with this Python first on the PATH; two ranks must have trained."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        input=script,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=launch.PACKAGE_ROOT,
        env=os.environ | launch.environment(2) | {"PATH": path} | environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    training = read_json(out / "training.json")
    assert (training["steps"], training["world_size"]) == (2, 2)


def test_hostfile_is_what_deepspeed_reads(tmp_path):
    from deepspeed.launcher.runner import fetch_hostfile

    text = cluster.hostfile(["node-1", "node-2"], 8)
    (tmp_path / "hostfile").write_text(text)
    assert dict(fetch_hostfile(str(tmp_path / "hostfile"))) == {"node-1": 8, "node-2": 8}
    with pytest.raises(ValueError, match=r"\['a'\] are repeated in \['a', 'b', 'a'\]"):
        cluster.hostfile(["a", "b", "a"], 8)


def test_shell_variables_stay_variables_and_the_rest_is_quoted():
    assert cluster.line(["a b", "$HOST", "c"]) == "'a b' \"$HOST\" c"
    assert cluster.exports({"X": "1 2", "Y": "$Z"}) == ["export X='1 2'", 'export Y="$Z"']


def test_slurm_script_asks_for_the_machines_and_is_valid_shell(tmp_path):
    script = cluster.slurm_script(
        tmp_path / "my out" / "run.json", nodes=4, gpus=8, name="deep", variables={"A": "b c"}
    )
    for option in ("nodes=4", "gpus-per-node=8", "ntasks-per-node=1", "job-name=deep"):
        assert f"#SBATCH --{option}\n" in script
    assert "export A='b c'\n" in script and "'\"'\"'" in script  # a quoted path inside quotes
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


@pytest.mark.slow
def test_slurm_script_trains_where_srun_starts_one_task(run_file, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "PORT", launch.free_port())
    for name, body in (("scontrol", "echo 127.0.0.1"), ("srun", 'shift; exec "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    shared = {"name": STAGE, "variables": launch.variables(2)}
    script = cluster.slurm_script(run_file, nodes=1, gpus=2, **shared)
    path = os.pathsep.join((str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]))
    slurm = {"PATH": path, "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "localhost"}
    _finish(["bash"], environment=slurm, out=run_file.parent, script=script)


@pytest.mark.slow
def test_torchrun_trains(run_file, monkeypatch):
    monkeypatch.setattr(cluster, "PORT", launch.free_port())
    command = cluster.torchrun(run_file, nodes=1, gpus=2, node_rank="0", master="127.0.0.1")
    _finish(command, environment={}, out=run_file.parent)


@pytest.mark.slow
def test_kubernetes_pods_train(run_file):
    """Torchrun takes everything from the environment of its pod."""
    pods = cluster.kubernetes_environment(0, nodes=1, gpus=2, master="127.0.0.1")
    pods |= {"PET_MASTER_PORT": str(launch.free_port())}
    script = cluster.kubernetes_script(run_file, nodes=1, gpus=2, name=STAGE, variables={})
    assert 'export PET_NODE_RANK="$JOB_COMPLETION_INDEX"\n' in script
    assert subprocess.run(["sh", "-n"], input=script, text=True).returncode == 0
    command = script.splitlines()[-1].removeprefix("exec ")
    _finish(["sh"], environment=pods, out=run_file.parent, script=command)


@pytest.mark.slow
def test_pods_with_one_process_each_need_only_rank_and_world_size(run_file):
    """As the PyTorchJob operator sets them; no LOCAL_RANK."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch.free_port()), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", cluster.TRAIN, str(run_file)]
    pods = [
        subprocess.Popen(
            command,
            env=os.environ | launch.environment(2) | shared | {"RANK": str(rank)},
            cwd=launch.PACKAGE_ROOT,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    assert [pod.wait(timeout=300) for pod in pods] == [0, 0]
    assert read_json(run_file.parent / "training.json")["world_size"] == 2


@pytest.mark.parametrize(
    ("on", "more", "expected"),
    [
        ("here", [], "deepspeed.launcher.launch"),
        ("hostfile", ["--nodes", "2", "--hosts", "n1,n2"], "n2 slots=8"),
        ("slurm", ["--nodes", "4"], "#SBATCH --nodes=4"),
        ("torchrun", ["--nodes", "4"], '--node-rank "$NODE_RANK"'),
        ("kubernetes", ["--nodes", "4"], "export PET_NNODES=4"),
    ],
)
def test_print_shows_command_and_configuration_and_runs_nothing(
    tmp_path, capsys, on, more, expected
):
    files = [f"--{name}={tmp_path / name}" for name in ("pairs", "init", "out")]
    run = ["--profile", "paper", "--stage", "instruction_tuning", "--gpus", "8", "--on", on]
    launch.main([*run, *files, *more, "--print"])
    printed = capsys.readouterr().out
    assert expected in printed and "gmai_lib.training.train" in printed
    derived = json.loads(printed.partition(" ranks\n")[2])
    assert derived["train_batch_size"] == 512 and "auto" not in printed
    ranks = 8 * int(more[1] if more else 1)
    assert derived["gradient_accumulation_steps"] == 512 // (4 * ranks)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--gpus", "7"], "global batch 512 is not a multiple of micro batch 4 x world size 7"),
        (["--nodes", "2"], "2 machines: choose another --on than here"),
        (["--on", "hostfile", "--nodes", "2", "--hosts", "a"], "--hosts names 1 machines (a) of 2"),
        (["--stage", "warm_up"], "no stage 'warm_up' in profile paper"),
        (["--profile", "big"], "unknown profile 'big'"),
        ([], "init: config.json is missing; train the stage before"),
    ],
)
def test_command_line_says_what_cannot_be_done(tmp_path, capsys, changes, message):
    files = [f"--{name}={tmp_path / name}" for name in ("pairs", "init", "out")]
    with pytest.raises(SystemExit):
        launch.main(["--profile", "paper", "--stage", "deep_alignment", *files, *changes])
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_script_to_submit_is_written_with_its_run(inputs, tmp_path, capsys):
    profile = tiny_profile().to_json(tmp_path / "tiny.json")
    files = [f"--pairs={inputs / 'pairs'}", f"--init={inputs / 'initial'}", f"--out={tmp_path}"]
    run = ["--profile", str(profile), "--stage", STAGE, "--gpus", "1", "--nodes", "2"]
    launch.main([*run, "--on", "slurm", *files])
    assert capsys.readouterr().out == f"{tmp_path / 'job.sh'}\n"
    assert "--nodes=2" in (tmp_path / "job.sh").read_text()
    assert read_json(tmp_path / "run.json")["ranks"] == 2
