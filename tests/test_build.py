"""gmai_lib.dataset.build: streaming, atomic, deterministic, counted, loadable, resumable."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from synthetic_records import PNG, one_of_each, phantom, png, record, text_only

from gmai_lib.dataset import build
from gmai_lib.dataset.build import write_pairs
from gmai_lib.dataset.writers import TemplateWriter
from gmai_lib.schema import SPLITS, QuestionAnswer


def split_over(records):
    """The records with splits train, train, validation, test, ..."""
    order = ("train", "train", "validation", "test")
    return [replace(r, split=order[i % 4]) for i, r in enumerate(records)]


def write(records, out, **changes):
    arguments = {"writer": TemplateWriter(0), "seed": 0, "chinese_fraction": 0.3} | changes
    return write_pairs(records, out, **arguments)


def load(folder, tmp_path):
    return datasets.load_dataset("parquet", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))


def test_the_folder_loads_with_plain_datasets(tmp_path):
    out = tmp_path / "pairs"
    made = split_over([phantom(i, image=png(i)) for i in range(24)])
    manifest = write(made, out, shard_records=6)
    loaded = load(out, tmp_path)
    assert set(loaded) == set(SPLITS)
    assert sum(len(part) for part in loaded.values()) == manifest["num_samples"]
    for split, part in loaded.items():
        for row in part:
            source = next(r for r in made if row["id"].startswith(f"{r.id}#"))
            assert row["split"] == split == source.split
            pictured = row["subset"] in ("caption", "percept", "instruct")
            assert [i["bytes"] for i in row["images"]] == ([source.image] if pictured else [])
            assert row["conversations"][0]["role"] == "user"
            assert [b["label"] for b in row["boxes"]] == [b.label for b in source.boxes]
    images = (
        loaded["train"]
        .filter(lambda row: row["images"])
        .cast_column("images", datasets.List(datasets.Image()))
    )
    assert images[0]["images"][0].size == (16, 16)


def test_shards_are_named_counted_and_hashed(tmp_path):
    manifest = write(split_over([phantom(i) for i in range(40)]), tmp_path, shard_records=7)
    on_disk = sorted(p.name for p in tmp_path.iterdir())
    assert on_disk == sorted(["manifest.json", *(s["name"] for s in manifest["shards"])])
    rows = Counter()
    for shard in manifest["shards"]:
        split, _, rest = shard["name"].partition("-")
        rows[split] += shard["rows"]
        total = sum(s["name"].startswith(f"{split}-") for s in manifest["shards"])
        assert rest.endswith(f"-of-{total:05d}.parquet")
        assert len(shard["sha256"]) == 64
        assert (tmp_path / shard["name"]).stat().st_size == shard["bytes"]
    names = [s["name"] for s in manifest["shards"]]
    assert sum(name.startswith("train") for name in names) == 3, "20 records, 7 in a shard"
    assert sum(name.startswith("test") for name in names) == 2
    assert (
        sum(rows.values())
        == manifest["num_samples"]
        == sum(row["samples"] for row in manifest["counts"])
    )
    by_split = Counter()
    for row in manifest["counts"]:
        by_split[row["split"]] += row["samples"]
    assert by_split == rows
    for counts in manifest["composition"].values():
        assert sum(counts.values()) == manifest["num_samples"]
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest


def test_same_seed_same_bytes(tmp_path):
    made = split_over(one_of_each())
    one = write(made, tmp_path / "one")
    again = write(iter(made), tmp_path / "again")
    other = write(made, tmp_path / "other", writer=TemplateWriter(1), seed=1)
    assert one == again
    assert [s["sha256"] for s in one["shards"]] != [s["sha256"] for s in other["shards"]]


def test_every_kind_of_record_is_written_and_validated(tmp_path):
    made = split_over(one_of_each())
    nothing = record("nothing", modality="text", department="unstated", organ="")
    unanswered = replace(text_only(answer=""), id="unanswered")
    manifest = write([*made, nothing, unanswered], tmp_path)
    assert manifest["num_records"] == len(made)
    dropped = {r["outcome"]: r["count"] for r in manifest["ledger"] if r["outcome"] != "kept"}
    assert dropped == {
        "image without any annotation to write about": 1,
        "text item without a question and answer": 1,
    }
    subsets = {row["subset"] for row in manifest["counts"]}
    assert subsets == {"caption", "percept", "instruct", "text_single", "text_multi"}
    assert manifest["writer_counts"]["question-answer pairs without text"] >= 2


def test_chinese_fraction_is_the_share_of_image_records(tmp_path):
    made = [phantom(i) for i in range(300)]
    shares = {}
    for fraction in (0.0, 0.3, 1.0):
        manifest = write([*made, text_only()], tmp_path / str(fraction), chinese_fraction=fraction)
        captions = Counter()
        for row in manifest["counts"]:
            if row["subset"] == "caption":
                captions[row["language"]] += row["samples"]
        shares[fraction] = captions["zh"] / captions["en"]
        assert captions["en"] == 300
    assert shares[0.0] == 0 and shares[1.0] == 1 and 0.24 < shares[0.3] < 0.36


@pytest.mark.parametrize("group_rows", [5, 500])
def test_an_exception_in_mid_stream_leaves_nothing_that_loads(tmp_path, monkeypatch, group_rows):
    monkeypatch.setattr(build, "_GROUP_ROWS", group_rows)

    def broken():
        yield from split_over([phantom(i) for i in range(30)])
        raise OSError("disk pulled")

    with pytest.raises(OSError, match="disk pulled"):
        write(broken(), tmp_path, shard_records=6)
    assert list(tmp_path.rglob("*.parquet")) == []
    assert {p.suffix for p in (tmp_path / ".partial").iterdir()} == {".rows", ".json"}
    assert not list((tmp_path / ".partial").glob(".*")), "nothing half-written"
    with pytest.raises(OSError, match="disk pulled"):
        write(broken(), tmp_path / "small", shard_records=60)
    assert not any((tmp_path / "small").iterdir()), "nothing finished that could be used"


def test_a_failed_run_keeps_the_earlier_shards_whole(tmp_path):
    before = write(split_over([phantom(i) for i in range(8)]), tmp_path)

    def broken():
        yield phantom(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(broken(), tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text()) == before
    assert {p.name for p in tmp_path.glob("*.parquet")} == {s["name"] for s in before["shards"]}


def test_a_new_run_replaces_the_earlier_shards(tmp_path):
    write(split_over([phantom(i) for i in range(40)]), tmp_path, shard_records=3)
    manifest = write(split_over([phantom(i) for i in range(4)]), tmp_path)
    assert {p.name for p in tmp_path.glob("*.parquet")} == {s["name"] for s in manifest["shards"]}


def test_what_a_killed_run_leaves_does_not_load(tmp_path):
    out = tmp_path / "pairs"
    write(split_over([phantom(i) for i in range(8)]), out)
    rows = {split: len(part) for split, part in load(out, tmp_path).items()}
    staging = out / ".partial"
    staging.mkdir()
    shard = next(out.glob("train*.parquet"))
    (staging / "train-00001-of-00002.parquet").write_bytes(shard.read_bytes())
    (staging / "train-00002.partial").write_bytes(b"PAR1 half")
    loaded = load(out, tmp_path / "new")
    assert {split: len(part) for split, part in loaded.items()} == rows
    write(split_over([phantom(i) for i in range(8)]), out)
    assert not staging.exists()


def test_memory_holds_one_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_GROUP_ROWS", 10)
    most = 0
    flush = build._RowGroups._flush

    def watched(self):
        nonlocal most
        most = max(most, len(self.pending))
        flush(self)

    monkeypatch.setattr(build._RowGroups, "_flush", watched)
    write((phantom(i) for i in range(60)), tmp_path)
    assert 0 < most <= 10


def test_a_shard_of_large_images_ends_early(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_SHARD_BYTES", 3 * len(PNG))
    manifest = write((phantom(i) for i in range(10)), tmp_path)
    assert len(manifest["shards"]) == 4


def test_large_images_flush_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_GROUP_BYTES", 3 * len(PNG))
    manifest = write((phantom(i) for i in range(10)), tmp_path)
    import pyarrow.parquet as pq

    file = pq.ParquetFile(tmp_path / manifest["shards"][0]["name"])
    assert file.num_row_groups > 5


def test_an_image_is_stored_once_per_row_group(tmp_path):
    picture = png(1, size=192)
    manifest = write([phantom(3, image=picture)], tmp_path, chinese_fraction=1.0)
    assert sum(r["samples"] for r in manifest["counts"]) >= 6
    assert manifest["shards"][0]["bytes"] < 1.5 * len(picture)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has split '', not one of"):
        write([phantom(0, split="")], tmp_path)
    with pytest.raises(ValueError, match="have the same id"):
        write([phantom(0), phantom(0)], tmp_path)
    with pytest.raises(ValueError, match=r"chinese_fraction 1\.5"):
        write([], tmp_path, chinese_fraction=1.5)
    with pytest.raises(ValueError, match="shard_records 0"):
        write([], tmp_path, shard_records=0)


def test_another_writer_only_needs_name_and_write(tmp_path):
    class Fixed:
        name = "model-x+prompt-abc"

        def write(self, record, facts, *, language):
            return [
                replace(s, writer=self.name)
                for s in TemplateWriter(0).write(record, facts, language=language)[:1]
            ]

    manifest = write([phantom(0)], tmp_path, writer=Fixed())
    assert manifest["writer"] == "model-x+prompt-abc"
    assert manifest["composition"]["writer"] == {"model-x+prompt-abc": manifest["num_samples"]}


class Liar(TemplateWriter):
    """Calls everything a PET image, or asks `asked`: always, or in captions only."""

    def __init__(self, *, always: bool, asked: str = "?", said: str = "A PET image."):
        super().__init__(0)
        self.always, self.asked, self.said = always, asked, said

    def write(self, record, facts, *, language):
        samples = super().write(record, facts, language=language)
        lie = (
            {"role": "user", "content": self.asked},
            {"role": "assistant", "content": self.said},
        )
        return [
            replace(s, conversations=lie) if self.always or s.subset == "caption" else s
            for s in samples
        ]


def test_a_text_the_facts_do_not_support_is_refused_with_its_reason(tmp_path):
    made = split_over([record("a", labels=("nodule",)), record("b", labels=("cyst",))])
    manifest = write(made, tmp_path / "some", writer=Liar(always=False), chinese_fraction=0)
    refused = manifest["fidelity"]["refused"]
    assert {row["id"] for row in refused} == {f"{r.id}#caption#en" for r in made}
    (reason,) = refused[0]["reasons"]
    assert reason["kind"] == "modality" and "'PET' is not in the annotation" in reason["reason"]
    assert {row["subset"] for row in manifest["counts"]} & {"caption"} == set()
    assert manifest["num_samples"] == manifest["fidelity"]["checked"] - 2
    manifest = write(made, tmp_path / "all", writer=Liar(always=True), chinese_fraction=0)
    (lost,) = [row for row in manifest["ledger"] if row["outcome"] != "kept"]
    assert lost["outcome"] == "every text was refused" and lost["count"] == 2
    presumes = Liar(always=False, asked="How large is the ulcer?", said="Small.")
    manifest = write(made, tmp_path / "asked", writer=presumes, chinese_fraction=0)
    kinds = {
        (r["kind"], r["reason"]) for row in manifest["fidelity"]["refused"] for r in row["reasons"]
    }
    assert ("label", "label 'ulcer' is not in the annotation: How large is the ulcer?") in kinds


def test_a_commercial_build_names_every_forbidden_source_and_leaves_nothing(tmp_path):
    """Phantoms under three licences; the forbidden ones stand first and last."""
    made = split_over([phantom(i) for i in range(12)])
    made[0] = replace(made[0], source="skin", license="CC-BY-NC-4.0")
    made[11] = replace(made[11], source="atlas", license="unstated")
    earlier = write(made, tmp_path / "pairs")
    assert earlier["use"] == "research"
    before = sorted(p.name for p in (tmp_path / "pairs").iterdir())
    with pytest.raises(ValueError, match=r"may not contain atlas \(.*unstated\), skin \(.*-NC-4.0"):
        write(iter(made), tmp_path / "pairs", use="commercial")
    assert sorted(p.name for p in (tmp_path / "pairs").iterdir()) == before
    manifest = write(made[1:11], tmp_path / "pairs", use="commercial")
    assert manifest["use"] == "commercial" and "CC0-1.0" in manifest["composition"]["license"]
    with pytest.raises(ValueError, match="use 'sale' is not one of"):
        write(made, tmp_path / "pairs", use="sale")


# ---- many processes, and a process that is killed -------------------------------------------


def test_what_is_said_beside_a_source_s_own_words_is_judged_and_those_are_not(tmp_path):
    own = {"report": "A cyst of the liver.", "labels": ("nodule",)}
    asked = (QuestionAnswer(question="Where is the cyst?", answer="In the liver."),)
    made = split_over([record("a", **own), record("b", labels=("nodule",), qa=asked)])
    manifest = write(made, tmp_path / "right", chinese_fraction=0)
    assert manifest["fidelity"]["refused"] == []
    manifest = write(made, tmp_path / "wrong", writer=Liar(always=True), chinese_fraction=0)
    assert manifest["num_samples"] == 0
    manifest = write(
        made, tmp_path / "kept", writer=Liar(always=True), chinese_fraction=0, gate=False
    )
    assert manifest["num_samples"] == len(manifest["fidelity"]["refused"]) > 0
    assert manifest["gate"] is False


class Logging(TemplateWriter):
    """Notes every record it writes in a file; hangs at one record, as if the machine did."""

    def __init__(self, log: Path, hang_at: str = ""):
        super().__init__(0)
        self.log, self.hang_at = log, hang_at

    def write(self, record, facts, *, language):
        with self.log.open("a") as file:
            file.write(f"{record.id}\n")
        while record.id == self.hang_at:
            time.sleep(0.05)
        return super().write(record, facts, language=language)


def many():
    """48 records of three splits and every kind."""
    return split_over([*one_of_each(), *(phantom(i, image=png(i)) for i in range(12, 40))])


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def test_one_two_and_three_processes_write_the_same_bytes(tmp_path):
    made = many()
    for processes in (1, 2, 3):
        write(iter(made), tmp_path / str(processes), shard_records=6, processes=processes)
    one = contents(tmp_path / "1")
    assert len(one) > 6
    assert contents(tmp_path / "2") == one and contents(tmp_path / "3") == one


def test_a_ray_cluster_writes_the_same_bytes(tmp_path):
    pytest.importorskip("ray", reason='needs pip install ".[cluster]"')
    made = many()
    for cluster in (False, True):
        write(iter(made), tmp_path / str(cluster), shard_records=6, cluster=cluster)
    assert contents(tmp_path / "True") == contents(tmp_path / "False")


def test_without_ray_a_cluster_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'pip install "\.\[cluster\]"'):
        write(split_over([phantom(i) for i in range(4)]), tmp_path, cluster=True)


def start_child(folder, hang_at, processes):
    code = (
        "from pathlib import Path; import test_build\n"
        f"writer = test_build.Logging(Path({str(folder / 'log')!r}), {hang_at!r})\n"
        f"test_build.write(test_build.many(), Path({str(folder / 'pairs')!r}), writer=writer,"
        f" shard_records=6, chinese_fraction=0, processes={processes})"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    return subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, start_new_session=True
    )


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.mark.parametrize("processes", [1, 2])
def test_after_kill_9_at_most_one_shard_per_process_is_written_again(tmp_path, processes):
    made = many()
    hang_at = [r for r in made if r.split == "train"][16].id  # in the third shard of the split
    log = tmp_path / "log"
    log.touch()
    child = start_child(tmp_path, hang_at, processes)
    wait_for(lambda: hang_at in log.read_text().split() or child.poll() is not None)
    assert child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    group = child.pid  # of the session that the child started
    wait_for(lambda: not alive(group))  # its workers have seen that it is gone
    first = log.read_text().split()
    assert len(first) >= 12 and not list((tmp_path / "pairs").glob("*.parquet"))
    arguments = {"shard_records": 6, "chinese_fraction": 0}
    manifest = write(made, tmp_path / "pairs", writer=Logging(log), **arguments)
    both = log.read_text().split()
    repeated = sum(n - 1 for n in Counter(both).values())
    assert 0 < repeated <= 6 * processes
    assert set(both) == {r.id for r in made}
    assert manifest == write(made, tmp_path / "again", **arguments)
    assert contents(tmp_path / "pairs") == contents(tmp_path / "again")


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_was_written_otherwise_is_not_used_again(tmp_path):
    made = many()

    def of_split(split):
        return [r for r in made if r.split == split]

    def failed_run(folder):
        def broken():
            yield from made
            raise OSError("disk pulled")

        with pytest.raises(OSError, match="disk pulled"):
            write(broken(), folder, shard_records=6)
        return folder

    def written_by(records, folder, **changes):
        (log := tmp_path / "log").write_text("")
        write(records, folder, writer=Logging(log), shard_records=6, **changes)
        return set(log.read_text().split())

    assert written_by(made, failed_run(tmp_path / "same")) == set(), "all shards were finished"
    for changes in ({"seed": 1}, {"chinese_fraction": 0.9}):
        folder = failed_run(tmp_path / str(changes))
        assert written_by(made, folder, **changes) == {r.id for r in made}
    folder = failed_run(tmp_path / "labels")
    others = [replace(made[0], labels=("cyst",), boxes=()), *made[1:]]
    assert written_by(others, folder) == {r.id for r in of_split("train")[:6]}
    folder = failed_run(tmp_path / "broken")
    (folder / ".partial" / "test-00001.rows").write_bytes(b"PAR1 half")
    assert written_by(made, folder) == {r.id for r in of_split("test")[6:]}
    assert contents(folder) == contents(tmp_path / "same")


def test_memory_does_not_grow_with_the_number_of_records(tmp_path):
    """Peak of a process that writes 15 MB of images, and of one that writes 75 MB."""
    peaks = []
    for number in (30, 150):
        code = (
            "import random, resource, sys; from pathlib import Path\n"
            "import test_build; from gmai_lib.dataset import build\n"
            "build._SHARD_BYTES = build._GROUP_BYTES = 2**22\n"
            "noise = lambda i: random.Random(i).randbytes(500_000)\n"
            f"made = (test_build.phantom(i, image=noise(i)) for i in range({number}))\n"
            f"test_build.write(made, Path({str(tmp_path / str(number))!r}), chinese_fraction=0)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
        )
        paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(result.stdout))
    assert peaks[1] - peaks[0] < 20, f"{peaks} MB"


def test_a_writer_that_cannot_travel_is_refused_with_a_sentence(tmp_path):
    writer = TemplateWriter(0)
    writer.lock = lambda: None
    with pytest.raises(ValueError, match="cannot be sent to another process, use one"):
        write(many(), tmp_path, writer=writer, processes=2)
    with pytest.raises(ValueError, match="processes 0 is not positive"):
        write(many(), tmp_path, processes=0)
