"""A dataset and a checkpoint small enough to train on in seconds, for the training tests."""

import hashlib
import io
import multiprocessing
import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from gmai_lib import config
from gmai_lib.outputs import write_json
from gmai_lib.schema import Sample, sample_features
from gmai_lib.training import launch

PLACES = ("upper left", "upper right", "lower left", "lower right")


def tiny_profile(**stage_changes) -> config.Profile:
    """The mini profile, shrunk to 0.1 M parameters and packs of 96 tokens."""
    mini = config.load("mini")
    wide = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    odd = wide | {"intermediate_size": 65}  # two ranks cannot halve its bias
    changes = {"max_steps": 4, "global_batch_size": 4, "micro_batch_size": 2, "max_length": 96}
    changes |= {"zero_stage": 2} | stage_changes
    return replace(
        mini,
        name="tiny",
        vision=replace(mini.vision, image_size=16, patch_size=8, num_hidden_layers=2, **odd),
        text=replace(mini.text, vocab_size=600, num_hidden_layers=2, num_key_value_heads=1, **wide),
        stages=tuple(replace(stage, **changes) for stage in mini.stages),
    )


def samples(count: int, *, seed: int = 0, split: str = "train", size: int = 24) -> list[Sample]:
    """`count` conversations about a bright square; every fifth has no image."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        place = PLACES[rng.integers(4)]
        image = _square(place, rng, size)
        has_image = number % 5 != 4
        question = "Where is the bright square?" if has_image else f"A square is {place}. Where?"
        turns = [
            {"role": "user", "content": "<image>\n" * has_image + question},
            {"role": "assistant", "content": place},
        ]
        for _ in range(rng.integers(3)):
            turns += [
                {"role": "user", "content": "Is it bright?"},
                {"role": "assistant", "content": "yes"},
            ]
        made.append(
            Sample(
                id=f"2d#cls#CT#tiny#{seed}-{number}",
                images=(image,) if has_image else (),
                conversations=tuple(turns),
                subset="instruct" if has_image else "text_single",
                language="zh" if number % 4 == 3 else "en",
                source="tiny_a" if number % 2 else "tiny_b",
                split=split,
                license="CC0-1.0",
                access="open",
                modality="CT" if has_image else "text",
                department="unstated",
                task="disease diagnosis",
                granularity="image",
                labels=(place,),
                boxes=(),
                facts=(),
                patient="",
                volume="",
                writer="tiny",
                width=size,
                height=size,
                sha256=hashlib.sha256(image).hexdigest() if has_image else "",
                phash="",
            )
        )
    return made


def _square(place, rng, size) -> bytes:
    """A PNG of noise with a bright square in one quarter."""
    pixels = rng.integers(0, 60, (size, size), np.uint8)
    half = size // 2
    top, left = half * place.startswith("lower"), half * place.endswith("right")
    pixels[top + 2 : top + half - 2, left + 2 : left + half - 2] += 180
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(folder: Path, made: list[Sample], *, split: str = "train", shards: int = 2):
    """Write samples as the builder does: `<split>-00000-of-00002.parquet` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    schema = sample_features().arrow_schema
    for shard in range(shards):
        rows = [sample.to_row() for sample in made[shard::shards]]
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet")
    return folder


def write_initial(folder: Path, profile: config.Profile, made: list[Sample]):
    """Write an untrained checkpoint with tokenizer and processor; return the processor."""
    import torch

    from gmai_lib.model import chat, gmai_vl, standins, weights

    texts = [turn["content"] for sample in made for turn in sample.conversations]
    tokenizer = standins.train_tokenizer(texts, profile.text.vocab_size)
    torch.manual_seed(0)
    model = gmai_vl.from_profile(profile, tokenizer)
    processor = chat.build_processor(tokenizer, model.config.vision_config)
    weights.save_checkpoint(model, processor, folder)
    return processor


def write_inputs(folder: Path, profile: config.Profile, count: int) -> Path:
    """Write pairs/ of `count` samples and initial/ into `folder`; return it."""
    made = samples(count)
    write_shards(folder / "pairs", made)
    write_initial(folder / "initial", profile, made)
    return folder


def write_run(folder: Path, inputs: Path, stage: config.Stage, ranks: int, **changes) -> Path:
    """Write the run.json that launch.run_stage would write; return its path."""
    paths = {"pairs": inputs / "pairs", "init": inputs / "initial", "cache": inputs / "cache"}
    run = {name: str(path) for name, path in (paths | {"out": folder}).items()}
    run |= {"stage": asdict(stage), "ranks": ranks, "seed": 0, "checkpoint_steps": 100}
    run |= {"keep_checkpoints": 2, "keep_best": "no"} | changes
    return write_json(folder / "run.json", run)


def run_ranks(run_file: Path, ranks: int, *, kill_at: int | None = None, prepare=None) -> list[int]:
    """Train as launch would, but forked from a server that has torch loaded; return exit codes.

    With `kill_at`, every rank is killed (-9) as soon as that optimizer step has been logged.
    `prepare` is called in every rank first.
    """
    context = multiprocessing.get_context("forkserver")
    # The last one pulls in torch._inductor, which DeepSpeed imports on its first optimizer.
    preload = ["gmai_lib.training.train", "deepspeed"]
    context.set_forkserver_preload([*preload, "deepspeed.runtime.zero.muon.muon_optimizer"])
    port, metrics = launch.free_port(), run_file.with_name("metrics.jsonl")
    processes = [
        context.Process(target=_rank, args=(str(run_file), rank, ranks, port, prepare))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        time.sleep(0.005)
        failed = any(process.exitcode for process in processes)
        reached = metrics.exists() and f'"step": {kill_at},' in metrics.read_text()
        if failed or (kill_at and reached):
            for process in processes:
                process.kill()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def fill_disk_after_first():
    """Let the disk have room for one checkpoint and then for 1,000 bytes."""
    usage, asked = shutil.disk_usage, []

    def nearly_full(path):
        asked.append(path)
        return usage(path) if len(asked) == 1 else usage(path)._replace(free=1000)

    shutil.disk_usage = nearly_full


def _rank(run_file: str, rank: int, ranks: int, port: int, prepare):
    """One rank of `run_ranks`; its output goes to <out>/log-<rank>.txt."""
    log = os.open(Path(run_file).with_name(f"log-{rank}.txt"), os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    if prepare:
        prepare()
    if ranks > 1:  # one rank finds its way without a launcher
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in where.items()}
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    import torch

    from gmai_lib.training import train

    torch.set_num_threads(1)
    train.main([run_file])
