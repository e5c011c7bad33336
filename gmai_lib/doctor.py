"""What this machine has, and what will be used: `python -m gmai_lib.doctor`.

Nothing is replaced silently: each row names what was looked for, what was found and what follows
from it. Notebook 00 shows the same rows and keeps them in environment.json.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What follows where an optional package is missing; without a required one nothing runs.
CONSEQUENCES = {
    "matplotlib": "notebooks cannot draw",
    "papermill": "no headless chain; notebooks still run in JupyterLab",
    "jupyterlab": "no notebooks in the browser; the chain still runs",
    "ipywidgets": "no live widgets; figures stay static",
    "deepspeed": "the training stages 07 to 09 refuse to start",
    "bitsandbytes": "notebook 12 refuses to quantise",
}


def banner(profile, data_root: str = "") -> str:
    """Return the line with which every notebook begins; imports no torch."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return (
        f"profile {profile.name}, seed {profile.seed}, data: {data_root or 'phantoms only'}; "
        f"Python {platform.python_version()}, torch {installed_version('torch')}, "
        f"{usable_cores()} cores, {gpus} GPUs, commit {commit() or 'none'}"
    )


def declared_packages() -> list[str]:
    """Return the packages of pyproject.toml that runs need (test tools left out)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *extras["notebooks"], *extras["training"]]
    return [re.match(r"[\w.-]+", requirement)[0].lower() for requirement in listed]


def environment() -> dict:
    """Return {"machine", "devices", "packages", "commit"} of this machine; imports torch."""
    import psutil
    import torch

    devices = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        devices.append({"name": found.name, "memory_gb": round(found.total_memory / 1e9, 1)})
    return {
        "machine": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": usable_cores(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "memory_limit_gb": memory_limit_gb(),
            "disk_free_gb": round(shutil.disk_usage(ROOT).free / 1e9, 1),
        },
        "devices": devices,
        "packages": {name: installed_version(name) for name in declared_packages()},
        "commit": commit(),
    }


def plan(found: dict, profile) -> list[dict]:
    """Return rows {"what", "found", "used"}: what a run of `profile` will use on this machine.

    `found` is `environment()`. A row whose `used` starts with "NOT" marks something that will
    refuse to run.
    """
    from gmai_lib.model import kernels

    machine, devices, packages = found["machine"], found["devices"], found["packages"]
    device_type = "cuda" if devices else "cpu"
    cores = machine["cores"]
    device = f"{len(devices)} x {devices[0]['name']}" if devices else "no CUDA device"
    ranks = min(profile.ranks, len(devices)) if devices else profile.ranks
    rows = [
        {
            "what": "device",
            "found": device,
            "used": f"cuda, {devices[0]['memory_gb']} GB each" if devices else "cpu",
        },
        {
            "what": "training processes",
            "found": f"{cores} cores, {len(devices)} GPUs",
            "used": f"{ranks} DeepSpeed ranks over {'nccl' if devices else 'gloo'}"
            + ("" if devices else f", {max(1, cores // ranks)} thread(s) each"),
        },
        {
            "what": "precision",
            "found": "bf16 in hardware"
            if kernels.has_bf16(device_type)
            else "bf16 without hardware support",
            "used": ", ".join(
                sorted({kernels.precision(s.precision, device_type) for s in profile.stages})
            ),
        },
        {
            "what": "vision tower and language model",
            "found": "from scratch" if not profile.vision.pretrained else "named on the hub",
            "used": f"{profile.vision.pretrained or 'stand-in'} and "
            f"{profile.text.pretrained or 'stand-in'}",
        },
        {
            "what": "memory",
            "found": f"{machine['memory_gb']} GB"
            + (
                f", limited to {machine['memory_limit_gb']} GB"
                if machine["memory_limit_gb"]
                else ""
            ),
            "used": "whatever a notebook needs; peaks are in chain.json",
        },
    ]
    for name, version in packages.items():
        if version is None:
            rows.append(
                {
                    "what": name,
                    "found": "missing",
                    "used": f"NOT available: {CONSEQUENCES.get(name, 'nothing runs')}",
                }
            )
    return rows


def differing_versions(packages: dict[str, str | None]) -> list[dict]:
    """Return rows {"package", "pinned", "installed"} where constraints.txt says otherwise."""
    path = ROOT / "constraints.txt"
    pins = dict(
        line.strip().lower().split("==") for line in path.read_text().splitlines() if "==" in line
    )
    return [
        {"package": name, "pinned": pins[name], "installed": version}
        for name, version in packages.items()
        # "2.13.0+cpu" is 2.13.0, built for the CPU.
        if version is not None and name in pins and version.split("+")[0] != pins[name]
    ]


def installed_version(package: str) -> str | None:
    """Return the installed version, or None; does not import the package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def usable_cores() -> int:
    """Return the cores this process may use (affinity and container quota included)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _read_cgroup("cpu.max")
    if quota and quota.split()[0] != "max":
        limit, period = map(int, quota.split())
        cores = min(cores, max(1, limit // period))
    return cores


def memory_limit_gb() -> float | None:
    """Return the container's memory limit in GB, None where there is none."""
    text = _read_cgroup("memory.max")
    return round(int(text) / 1e9, 1) if text and text != "max" else None


def commit() -> str:
    """Return the git commit of the workbook with "+changes" if files differ, "" outside git."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        return ""
    ask = {"cwd": ROOT, "capture_output": True, "text": True}
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **ask).stdout.strip()
    dirty = subprocess.run(["git", "status", "--porcelain"], **ask).stdout.strip()
    return head + ("+changes" if head and dirty else "")


def main() -> int:
    """Print everything; exit code 1 if something the chain needs is missing."""
    from gmai_lib import config

    found = environment()
    for key, value in found["machine"].items():
        print(f"{key:<18}{value if value is not None else 'none'}")
    print(f"{'commit':<18}{found['commit'] or 'not a git checkout'}")
    print("\nwhat the mini profile will use")
    for row in plan(found, config.load("mini")):
        print(f"  {row['what']:<32}{row['found']:<32}-> {row['used']}")
    print("\npackages")
    for name, version in found["packages"].items():
        print(f"  {name:<18}{version or 'missing'}")
    for row in differing_versions(found["packages"]):
        print(f"  {row['package']} {row['installed']} differs from the pinned {row['pinned']}")
    missing = [n for n, v in found["packages"].items() if v is None]
    print(f"\nmissing: {', '.join(missing)}" if missing else "\neverything is there")
    return 1 if missing else 0


def _read_cgroup(name: str) -> str:
    path = Path("/sys/fs/cgroup") / name
    return path.read_text().strip() if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
