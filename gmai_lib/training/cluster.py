"""The same stage on several machines: hostfile, torchrun, Slurm and Kubernetes.

    print(slurm_script(run_file, nodes=4, gpus=8, name="deep_alignment"))

Each is a text that ends in one command per machine, which starts one process of
gmai_lib.training.train per GPU; `python -m gmai_lib.training.launch --on slurm ... --print` shows
it. The folders of run.json must be on a file system that all machines see. A run that was killed
resumes when it is submitted again, on the same number of GPUs.

Paper: 32 GPUs, four machines of eight. This module imports no torch.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

TRAIN = "gmai_lib.training.train"
PORT = 29500  # torch's default for the meeting point of the ranks


def hostfile(hosts: Sequence[str], gpus: int) -> str:
    """Return DeepSpeed's list of machines, "host slots=8" a line; ValueError for a repeated one."""
    hosts = list(hosts)
    repeated = sorted({host for host in hosts if hosts.count(host) > 1})
    if repeated:
        raise ValueError(f"a hostfile names every machine once; {repeated} are repeated in {hosts}")
    return "".join(f"{host} slots={gpus}\n" for host in hosts)


def torchrun(run_file: Path, *, nodes: int, gpus: int, node_rank: str, master: str) -> list[str]:
    """Return torchrun's command for machine number `node_rank` of `nodes`.

    `node_rank` and `master` (host name of machine 0) may be names of shell variables ("$HOST").
    """
    return [
        *("python", "-m", "torch.distributed.run", "--nnodes", str(nodes)),
        *("--nproc-per-node", str(gpus), "--node-rank", node_rank),
        *("--master-addr", master, "--master-port", str(PORT)),
        *("--module", TRAIN, str(run_file)),
    ]


def slurm_script(
    run_file: Path, *, nodes: int, gpus: int, name: str, variables: dict[str, str], hours: int = 72
) -> str:
    """Return a script for sbatch. Slurm puts the job back in the queue if a machine fails.

    `variables` are exported first (launch.variables). `gpus` are those of one machine; 0 for one
    process per machine on its CPU.
    """
    command = torchrun(
        run_file, nodes=nodes, gpus=max(1, gpus), node_rank="$SLURM_NODEID", master="$MASTER_ADDR"
    )
    options = {"job-name": name, "nodes": nodes, "ntasks-per-node": 1, "time": f"{hours}:00:00"}
    options |= {"output": Path(run_file).with_name("slurm-%j.txt"), "open-mode": "append"}
    options |= {"gpus-per-node": gpus} if gpus else {}
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{option}={value}" for option, value in options.items()]
    lines += ["#SBATCH --requeue", "set -euo pipefail", *exports(variables)]
    lines.append(
        'export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"'
    )
    # In single quotes: SLURM_NODEID is another one in each task.
    lines.append(f"srun --kill-on-bad-exit=1 bash -c {shlex.quote('exec ' + line(command))}")
    return "\n".join(lines) + "\n"


def kubernetes_environment(
    index: int | str, *, nodes: int, gpus: int, master: str
) -> dict[str, str]:
    """Return the environment of pod `index` of `nodes`, which torchrun reads (PET_...).

    `index` may be "$JOB_COMPLETION_INDEX" of an Indexed Job, `master` the first pod's name in the
    Job's headless service. Where an operator (PyTorchJob) starts one process per pod and sets RANK,
    WORLD_SIZE, MASTER_ADDR and MASTER_PORT itself, `python -m gmai_lib.training.train run.json`
    is the whole command.
    """
    return {
        "PET_NNODES": str(nodes),
        "PET_NPROC_PER_NODE": str(gpus),
        "PET_NODE_RANK": str(index),
        "PET_MASTER_ADDR": master,
        "PET_MASTER_PORT": str(PORT),
    }


def kubernetes_script(
    run_file: Path, *, nodes: int, gpus: int, name: str, variables: dict[str, str]
) -> str:
    """Return what every pod of an Indexed Job called `name` runs."""
    pods = kubernetes_environment(
        "$JOB_COMPLETION_INDEX", nodes=nodes, gpus=gpus, master=f"{name}-0.{name}"
    )
    command = ["python", "-m", "torch.distributed.run", "--module", TRAIN, str(run_file)]
    lines = ["#!/bin/sh", "set -eu", *exports(variables | pods), f"exec {line(command)}"]
    return "\n".join(lines) + "\n"


def exports(variables: dict[str, str]) -> list[str]:
    """Return shell lines that export `variables`; a value such as "$HOST" stays a variable."""
    return [f"export {name}={line([value])}" for name, value in variables.items()]


def line(arguments: Sequence[str]) -> str:
    """Return `arguments` as one line of shell; names of shell variables stay such."""
    return " ".join(f'"{a}"' if a.startswith("$") else shlex.quote(a) for a in arguments)
