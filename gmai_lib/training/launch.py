"""Start one training stage as DeepSpeed processes of its own and follow its progress.

    result = run_stage(profile, "shallow_alignment", pairs=..., init=..., out=..., seed=0)
    python -m gmai_lib.training.launch --profile paper --stage deep_alignment --pairs P --init I \\
        --out O --on slurm --nodes 4 --gpus 8 --print

The second shows the command and DeepSpeed's configuration, and runs nothing; without --print it
trains here, or writes the script to submit (cluster.py).

The notebook's own process stays free of torch and of what a crash leaves behind. A stage that
is already complete is not repeated, a killed one resumes from its last training checkpoint, on as
many processes as before or on others, and one whose inputs changed starts afresh. Files in `out`:
run.json (what was asked), profile.json, log.txt (all output of the processes), metrics.jsonl (one
line per optimizer step), training/ (DeepSpeed checkpoints, while it runs; checkpoints.py),
checkpoint/ (the result), best/ (the model of the lowest loss, if asked for), adapter/ (of a LoRA
stage, already merged into checkpoint/), frozen.json (hashes per part), training.json (the returned
dict; its presence means complete).

Paper: section 4.2 (DeepSpeed, three stages). This module imports no torch.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from gmai_lib import config
from gmai_lib.config import STAGES, Profile, Stage
from gmai_lib.outputs import atomic, read_json, write_json
from gmai_lib.training import cluster

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT_STEPS = 100  # optimizer steps between training checkpoints [chosen]
POLL_S = 0.2  # how often progress is read
TAIL_LINES = 20  # of the log, shown when a stage fails
KEPT_CHECKPOINTS = 2  # the newest; one to fall back on [chosen]
# By whose loss a best checkpoint is kept as well: none, that of the last training steps, or that of
# the validation split.
KEEP_BEST = ("no", "training", "validation")
_TRACEBACK = re.compile(r"(\[rank\d+\]: )Traceback")
_ERROR = re.compile(r"(?:\[rank\d+\]: )?([A-Za-z_.]+(?:Error|Exception|Interrupt): .+)")
COMPLETE = "complete.json"  # in a training checkpoint: what it holds, and that it is whole
LINEAGE = "lineage.json"  # in a checkpoint that training wrote: its stages, its tokenizer
# What must agree between a profile and the checkpoint that a stage starts from.
VISION_SIZES = ("image_size", "patch_size", "hidden_size", "num_hidden_layers")
TEXT_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def run_stage(
    profile: Profile,
    stage_name: str,
    *,
    pairs: Path,
    init: Path,
    out: Path,
    seed: int,
    cache: Path | None = None,
    checkpoint_steps: int = CHECKPOINT_STEPS,
    keep_checkpoints: int = KEPT_CHECKPOINTS,
    keep_best: str = "no",
    on_metrics: Callable[[dict], None] | None = None,
) -> dict:
    """Train one stage from checkpoint `init` on the Parquet shards in `pairs`.

    `cache` holds tokens and resized pixels and may be shared by stages (default `out`/cache).
    `on_metrics` is called with every line of metrics.jsonl, lines of before a resume or of a
    reused stage included; without it a progress bar is shown. Returns steps, final_loss (mean
    of the last ten steps), seconds, tokens, tokens_per_s, images, resumed_from (0 = from the
    start), world_size, device, precision, peak_rss_gib (of rank 0), mfu, data_wait_share,
    update_share and overhead_share (medians; of what is neither forward nor backward; CPU only),
    rank_spread (and _in_order: undealt), samples (counts), cut (samples shortened), reused.
    A training checkpoint is written every `checkpoint_steps`; the newest `keep_checkpoints` are
    kept. With `keep_best` (see KEEP_BEST) that of the lowest loss is kept, too, and becomes the
    model `out`/best when the stage is complete (best_step and best_loss in the result).

    Raises RuntimeError with the last lines of the log if a process fails. On KeyboardInterrupt
    every process is stopped; the next call resumes.
    """
    stage, out = profile.stage(stage_name), Path(out).resolve()
    files = {"pairs": pairs, "init": init, "cache": cache, "seed": seed}
    files |= {"checkpoint_steps": checkpoint_steps, "keep_checkpoints": keep_checkpoints}
    files["keep_best"] = keep_best
    run_file = prepare_run(profile, stage_name, out=out, **files)
    if run_file is None:
        for row in _complete_lines(out / "metrics.jsonl") if on_metrics else ():
            on_metrics(row)
        return read_json(out / "training.json") | {"reused": True}
    with _Progress(out, stage, on_metrics) as progress:
        _run_logged(command(run_file, profile.ranks), out, stage_name, profile.ranks, progress)
    return read_json(out / "training.json") | {"reused": False}


def prepare_run(
    profile: Profile,
    stage_name: str,
    *,
    pairs: Path,
    init: Path,
    out: Path,
    seed: int,
    cache: Path | None = None,
    checkpoint_steps: int = CHECKPOINT_STEPS,
    keep_checkpoints: int = KEPT_CHECKPOINTS,
    keep_best: str = "no",
) -> Path | None:
    """Write `out`/run.json for train.py and return its path, None if the stage is complete.

    What an earlier, different run left in `out` is removed.
    """
    stage, out = profile.stage(stage_name), Path(out).resolve()
    stage.gradient_accumulation_steps(profile.ranks)  # fail here rather than in the child
    check_initial(profile, init)
    if keep_checkpoints < 1 or checkpoint_steps < 1:
        raise ValueError(
            f"keep_checkpoints {keep_checkpoints} and checkpoint_steps {checkpoint_steps} must be "
            "at least 1"
        )
    if keep_best not in KEEP_BEST:
        raise ValueError(f"keep_best {keep_best!r} not in {KEEP_BEST}")
    if keep_best == "validation" and not list(Path(pairs).glob("validation-*.parquet")):
        raise ValueError(f'{pairs} has no validation shards; use keep_best="training"')
    run = {
        "stage": asdict(stage),
        "seed": seed,
        "fingerprints": {
            "pairs": fingerprint(pairs),
            "init": fingerprint(init),
            "code": code_fingerprint(),
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    previous = read_json(out / "run.json") if (out / "run.json").exists() else {}
    if {key: previous.get(key) for key in run} != json.loads(json.dumps(run)):
        _clear(out)
    elif (out / "training.json").exists() and (out / "checkpoint").exists():
        return None
    paths = {"pairs": pairs, "init": init, "out": out, "cache": cache or out / "cache"}
    paths = {name: str(Path(path).resolve()) for name, path in paths.items()}
    profile.to_json(out / "profile.json")
    # Not compared above: another number of ranks goes on where the last one stopped.
    others = {"ranks": profile.ranks, "checkpoint_steps": checkpoint_steps, "keep_best": keep_best}
    return write_json(
        out / "run.json", run | paths | others | {"keep_checkpoints": keep_checkpoints}
    )


def run_stages(
    profile: Profile,
    names: Sequence[str],
    *,
    pairs: Path,
    init: Path,
    out: Path,
    seed: int,
    **options,
) -> list[dict]:
    """Train the named stages in this order, each from the checkpoint of the one before.

    Any subset and order (`config.ABLATIONS` has the paper's); `options` as for `run_stage`, whose
    results are returned. The folders are `out`/1_<name>, `out`/2_<name>, ...; a chain that begins
    alike in the same `out` is not trained twice.

    Raises ValueError for an unknown name before anything is trained.
    """
    stages = [profile.stage(name) for name in names]
    results = []
    for number, stage in enumerate(stages, start=1):
        folder = Path(out) / f"{number}_{stage.name}"
        arguments = {"pairs": pairs, "init": init, "out": folder, "seed": seed}
        results.append(run_stage(profile, stage.name, **arguments, **options))
        init = folder / "checkpoint"
    return results


def check_initial(profile: Profile, init: Path):
    """Raise if the checkpoint `init` is missing, of another shape or with another tokenizer.

    FileNotFoundError without a checkpoint; ValueError with the values where the sizes are not the
    profile's, the tokenizer puts `<image>` elsewhere than the model does, or the tokenizer has been
    exchanged since training wrote the checkpoint.
    """
    init = Path(init)
    if not (init / "config.json").is_file():
        raise FileNotFoundError(
            f"no checkpoint in {init}: config.json is missing; train the stage before, or run "
            "notebook 05"
        )
    saved = read_json(init / "config.json")
    for part, names, wanted in (
        ("vision", VISION_SIZES, profile.vision),
        ("text", TEXT_SIZES, profile.text),
    ):
        there = {name: saved[f"{part}_config"].get(name) for name in names}
        here = {name: getattr(wanted, name) for name in names}
        wrong = {n: f"{there[n]}, not {here[n]}" for n in names if there[n] not in (None, here[n])}
        if wrong:
            raise ValueError(
                f"{init} is of another configuration than profile {profile.name}: {part} {wrong}"
            )
    tokens = read_json(init / "tokenizer.json")["added_tokens"]
    placed = {token["content"]: token["id"] for token in tokens}.get("<image>")
    if placed != saved["image_token_id"]:
        raise ValueError(
            f"{init}: the tokenizer has <image> at {placed}, the model at "
            f"{saved['image_token_id']}; copy the tokenizer the model was made with"
        )
    if (init / LINEAGE).exists():
        written = read_json(init / LINEAGE)
        if written["tokenizer"] != tokenizer_hash(init):
            raise ValueError(
                f"{init}: tokenizer.json is not the one with which {written['stages']} were "
                "trained; copy that one back"
            )


def lineage(init: Path, stage_name: str) -> dict:
    """Return what a checkpoint trained from `init` says of itself: its stages and tokenizer."""
    before = read_json(Path(init) / LINEAGE)["stages"] if (Path(init) / LINEAGE).exists() else []
    return {"stages": [*before, stage_name], "tokenizer": tokenizer_hash(init)}


def tokenizer_hash(checkpoint: Path) -> str:
    """Return the sha256 of a checkpoint's vocabulary and merges, however the file is laid out."""
    model = read_json(Path(checkpoint) / "tokenizer.json")
    kept = json.dumps([model["model"], model["added_tokens"]], sort_keys=True)
    return hashlib.sha256(kept.encode()).hexdigest()


def deepspeed_config(stage: Stage, world_size: int) -> dict:
    """Derive DeepSpeed's configuration; there is no second, hand-kept one.

    Learning rates and weight decay per part come with the parameter groups (train.py), which also
    makes the 8-bit optimizer.
    """
    zero = {"stage": stage.zero_stage, "reduce_bucket_size": stage.bucket_elements}
    if stage.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if stage.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    derived = {
        "train_batch_size": stage.global_batch_size,
        "train_micro_batch_size_per_gpu": stage.micro_batch_size,
        "gradient_accumulation_steps": stage.gradient_accumulation_steps(world_size),
        "gradient_clipping": stage.max_grad_norm,
        "bf16": {"enabled": stage.precision == "bf16"},
        "zero_optimization": zero,
    }
    if stage.precision == "fp16":  # the loss is scaled up as far as gradients stay finite
        derived["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}
    if stage.optimizer == "adamw_8bit":
        return derived | {
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
    # torch's own AdamW: DeepSpeed's fused kernels would be compiled on first use.
    parameters = {"betas": list(stage.adam_betas), "torch_adam": True}
    return derived | {"optimizer": {"type": "AdamW", "params": parameters}}


def command(run_file: Path, ranks: int, *, hostfile: Path | None = None) -> list[str]:
    """Return the command that trains `run_file` on `ranks` processes of this machine.

    With `hostfile` (lines of "host slots=8") it is the one to start on the first of several
    machines; DeepSpeed then reaches the others over ssh. On one machine DeepSpeed's per-node
    launcher is called directly: its outer one would only import DeepSpeed once more.
    """
    module = ["--module", "gmai_lib.training.train", str(run_file)]
    if hostfile is not None:
        runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)]
        return [*runner, "--no_local_rank", *module]
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(ranks))}).encode())
    launcher = [sys.executable, "-m", "deepspeed.launcher.launch", "--quiet", "--no_local_rank"]
    launcher += ["--world_info", world.decode(), "--master_addr", "127.0.0.1"]
    return [*launcher, "--master_port", str(free_port()), *module]


def environment(ranks: int) -> dict[str, str]:
    """Return the environment of the child processes: the cores shared out, nothing downloaded."""
    added = variables(ranks)
    if not list(Path("/dev").glob("nvidia[0-9]*")):
        added["DS_ACCELERATOR"] = "cpu"  # DeepSpeed's launcher warns where it has to guess
    return os.environ | added


def variables(ranks: int) -> dict[str, str]:
    """Return what every rank needs in its environment, of `ranks` on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    paths = [str(PACKAGE_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "OMP_NUM_THREADS": str(max(1, cores // ranks)),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "TOKENIZERS_PARALLELISM": "false",  # tokenizers warns when a process with threads forks
        "HF_HUB_OFFLINE": "1",  # every input is a folder by now
    }


def fingerprint(folder: Path) -> str:
    """Return a hash of a folder's contents; FileNotFoundError if it has no files.

    Shards that a manifest.json lists with their hashes are not read again.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise FileNotFoundError(f"{folder} is missing or empty; run the notebook that writes it")
    listed = (folder / "manifest.json").exists()
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        if not (listed and path.suffix == ".parquet"):
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def code_fingerprint() -> str:
    """Return a hash of the sources a trained checkpoint depends on."""
    package = PACKAGE_ROOT / "gmai_lib"
    names = ("packing", "store", "loader", "engines", "train")
    files = [*package.glob("model/*.py"), *(package / f"training/{name}.py" for name in names)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


def training_checkpoints(folder: Path) -> list[Path]:
    """Return the complete training checkpoints in `folder`, the newest first."""
    complete = [path.parent for path in Path(folder).glob(f"step-*/{COMPLETE}")]
    return sorted(complete, key=lambda path: -int(path.name.split("-")[1]))


def resume_step(out: Path) -> int:
    """Return the optimizer step of the last complete training checkpoint in `out`, or 0."""
    newest = training_checkpoints(Path(out) / "training")[:1]
    return read_json(newest[0] / COMPLETE)["step"] if newest else 0


def keep_metrics(path: Path, last_step: int) -> list[dict]:
    """Cut metrics.jsonl after `last_step` and return the lines kept.

    A killed run has written steps that its resumption repeats, and perhaps half a line.
    """
    kept = [row for row in _complete_lines(path) if row["step"] <= last_step]
    with atomic(path) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
    return kept


def _complete_lines(path: Path) -> list[dict]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def _clear(out: Path):
    """Remove what an earlier, different run left in `out`."""
    for name in ("training.json", "frozen.json", "metrics.jsonl", "log.txt"):
        (out / name).unlink(missing_ok=True)
    for name in ("training", "checkpoint", "best", "adapter"):
        shutil.rmtree(out / name, ignore_errors=True)


def _run_logged(arguments, out: Path, stage_name: str, ranks: int, progress):
    """Run the launcher until it ends, calling `progress()` meanwhile."""
    log = out / "log.txt"
    with log.open("a") as stream:
        process = subprocess.Popen(
            [*arguments, "--stop-at-eof"],
            stdin=subprocess.PIPE,  # closes when this process dies, even by kill -9 (train.py)
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment(ranks),
            cwd=PACKAGE_ROOT,
            start_new_session=True,  # a group of its own, which can be stopped as a whole
        )
        try:
            while process.poll() is None:
                time.sleep(POLL_S)
                progress()
        finally:
            _stop(process)
    progress()
    if process.returncode:
        reason, tail = _failure(log.read_text("utf-8", "replace").splitlines())
        raise RuntimeError(
            f"stage {stage_name} failed with exit code {process.returncode}{reason}; "
            f"last lines of {log}:\n{tail}"
        )


def _failure(lines: list[str]) -> tuple[str, str]:
    """Return the error (": ..." or "") and the last lines of a log, of the rank that failed first.

    The others then fail because it is gone, and say so last.
    """
    first = next((m[1] for line in lines if (m := _TRACEBACK.match(line))), None)
    if first:
        lines = [line for line in lines if line.startswith(first)]
    errors = [m[1] for line in lines if (m := _ERROR.match(line))]
    return f": {errors[-1]}" if errors else "", "\n".join(lines[-TAIL_LINES:])


def _stop(process: subprocess.Popen):
    """End every process of the group; nothing to do after a normal end."""
    process.stdin.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + 5
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    process.wait()


class _Progress:
    """Passes new lines of metrics.jsonl on; each optimizer step once, in order."""

    def __init__(self, out: Path, stage: Stage, on_metrics):
        self.path, self.callback = out / "metrics.jsonl", on_metrics
        self.title, self.total, self.bar = stage.name, stage.max_steps, None
        self.offset = self.seen = 0
        keep_metrics(self.path, resume_step(out))

    def __enter__(self):
        if self.callback is None:
            from tqdm import tqdm

            self.bar = tqdm(total=self.total, desc=self.title, unit="step", mininterval=1)
            self.callback = self._show
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def __call__(self):
        if not self.path.exists():
            return
        if self.path.stat().st_size < self.offset:  # the child cut it on resuming
            self.offset = 0
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            *lines, rest = stream.read().split(b"\n")
            self.offset = stream.tell() - len(rest)
        for row in map(json.loads, lines):
            if row["step"] > self.seen:
                self.seen = row["step"]
                self.callback(row)

    def _show(self, row: dict):
        self.bar.total = row["max_steps"]
        self.bar.set_postfix(
            loss=f"{row['loss']:.3f}", tokens_per_s=f"{row['tokens_per_s']:.0f}", refresh=False
        )
        self.bar.update(row["step"] - self.bar.n)


def free_port() -> int:
    """Return a port nobody listens on, so that two runs on one machine do not meet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main(arguments: list[str] | None = None):
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--profile", default="mini", help="mini, single_gpu, paper or a profile.json"
    )
    parser.add_argument("--stage", required=True, help=", ".join(STAGES))
    for name, about in (
        ("pairs", "folder with the Parquet shards"),
        ("init", "checkpoint to start from"),
        ("out", "folder of the stage"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=about)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--on", choices=WAYS, default="here", help="what starts the processes")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--gpus", type=int, help="processes per machine (default: the profile's)")
    parser.add_argument("--hosts", default="", help="names of the machines, with commas (hostfile)")
    parser.add_argument("--print", action="store_true", help="show what would run, run nothing")
    parsed = parser.parse_args(arguments)
    try:
        _start(parsed)
    except (ValueError, FileNotFoundError) as error:  # what was asked cannot be done
        parser.error(str(error))


def _start(parsed):
    """Print, write or run what the command line asks for."""
    written = parsed.profile.endswith(".json")
    profile = Profile.from_json(parsed.profile) if written else config.load(parsed.profile)
    gpus = parsed.gpus or profile.ranks
    profile = replace(profile, ranks=gpus * parsed.nodes)
    if parsed.on == "here" and parsed.nodes > 1:
        raise ValueError(f"{parsed.nodes} machines: choose another --on than here, of {WAYS}")
    stage = profile.stage(parsed.stage)
    derived = deepspeed_config(stage, profile.ranks)  # raises if the batch does not divide
    out = parsed.out.resolve()
    texts = _texts(parsed, stage, out, gpus)
    if parsed.print:
        for name, text in texts.items():
            print(f"# {out / name}" if parsed.on != "here" else "# command", text, sep="\n")
        if stage.precision == "fastest":
            print("# precision fastest: bf16 where the processor multiplies bf16, else float32")
        print(f"# DeepSpeed, {profile.ranks} ranks", json.dumps(derived, indent=1), sep="\n")
        return
    files = {"pairs": parsed.pairs, "init": parsed.init, "out": out, "seed": parsed.seed}
    if parsed.on == "here":
        print(json.dumps(run_stage(profile, stage.name, **files), indent=1))
    elif prepare_run(profile, stage.name, **files) is None:
        print(f"{out} is complete")
    else:
        for name, text in texts.items():
            (out / name).write_text(text, "utf-8")
            print(out / name)


WAYS = ("here", "hostfile", "torchrun", "slurm", "kubernetes")


def _texts(parsed, stage: Stage, out: Path, gpus: int) -> dict[str, str]:
    """Return {file name: contents} of what starts the stage where `parsed.on` says."""
    run_file, nodes, needed = out / "run.json", parsed.nodes, variables(gpus)
    if parsed.on != "here":
        del needed["OMP_NUM_THREADS"]  # the cores of this machine say nothing of those
    shared = {"nodes": nodes, "gpus": gpus}
    named = shared | {"name": stage.name.replace("_", "-"), "variables": needed}
    if parsed.on == "slurm":
        return {"job.sh": cluster.slurm_script(run_file, **named)}
    if parsed.on == "kubernetes":
        return {"pod.sh": cluster.kubernetes_script(run_file, **named)}
    files = {}
    if parsed.on == "hostfile":
        hosts = [host for host in parsed.hosts.split(",") if host]
        if len(hosts) != nodes:
            raise ValueError(f"--hosts names {len(hosts)} machines ({parsed.hosts}) of {nodes}")
        files["hostfile"] = cluster.hostfile(hosts, gpus)
        start = command(run_file, nodes * gpus, hostfile=out / "hostfile")
    elif parsed.on == "torchrun":
        start = cluster.torchrun(run_file, node_rank="$NODE_RANK", master="$MASTER_ADDR", **shared)
    else:
        start = command(run_file, gpus)
    lines = [*cluster.exports(needed), cluster.line(start)]
    return files | {"start.sh": "\n".join(lines) + "\n"}


if __name__ == "__main__":
    main()
