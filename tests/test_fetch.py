"""Download of published benchmarks: a hub on this machine that has them in its own form."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq
import pytest
from huggingface_hub import close_session, constants
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from test_published_benchmarks import TINY, made, vqa_rad_parquet

from gmai_lib.evaluation import fetch
from gmai_lib.evaluation.published_benchmarks import BENCHMARKS, get, load, recognise

ROOT = Path(__file__).resolve().parents[1]
ON_HUB = [name for name in TINY if name != "pubmedqa"]
# benchmark -> archive of the hub and the folder it holds; "" = all, below a folder of its name
ZIPPED = {
    "slake_en": ("imgs.zip", "imgs/"),
    "slake_zh": ("imgs.zip", "imgs/"),
    "pmc_vqa": ("images_2.zip", "figures/"),
    "pmc_vqa_clean": ("images.zip", "images/"),
    "omnimedvqa": ("OmniMedVQA.zip", ""),
    "medxpertqa_mm": ("images.zip", "images/"),
}
NOT_NEEDED = (
    "README.md", ".gitattributes", "train.json", "KG.zip", "train_2.csv", "images_3.zip",
    "MM/dev.jsonl", "Text/test.jsonl", "data/train-00000-of-00001.parquet",
    "Pharmacy/test-00000-of-00001.parquet", "Sociology/validation-00000-of-00001.parquet",
)  # fmt: skip
SUBJECTS = ("Basic_Medical_Science", "Clinical_Medicine", "Public_Health")
SUBJECTS += ("Diagnostics_and_Laboratory_Medicine",)


class Hub(ThreadingHTTPServer):
    """As much of the Hugging Face hub as a download asks for.

    `repositories`: id -> {path: bytes}; `refuse(path)` -> (status, headers, body), or None;
    `in_store`: files that are listed as lying in its store of large files, which has nothing.
    """

    def __init__(self, repositories: dict):
        self.repositories, self.commit, self.refuse = repositories, "a" * 40, lambda path: None
        self.asked, self.in_store = [], set()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, path: str) -> tuple[int, dict, bytes]:
        if refused := self.refuse(path):
            return refused
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)", path):
            if found[1] in self.repositories:
                names = [{"rfilename": name} for name in self.repositories[found[1]]]
                info = {"id": found[1], "sha": self.commit, "siblings": names}
                return 200, {}, json.dumps(info).encode()
        elif found := re.fullmatch(rf"/api/datasets/([^/]+/[^/]+)/tree/{self.commit}", path):
            tree = []
            for name, data in self.repositories[found[1]].items():
                tree.append({"type": "file", "path": name, "size": len(data), "oid": "0" * 40})
                if name in self.in_store:
                    lfs = {"size": len(data), "oid": "1" * 64, "pointerSize": 100}
                    tree[-1] |= {"lfs": lfs, "xetHash": "2" * 64}
            return 200, {}, json.dumps(tree).encode()
        elif "/xet-read-token/" in path:
            token = {"X-Xet-Access-Token": "t", "X-Xet-Token-Expiration": str(2**40)}
            return 200, {"X-Xet-Cas-Url": self.url} | token, b""
        elif found := re.fullmatch(rf"/datasets/([^/]+/[^/]+)/resolve/{self.commit}/(.+)", path):
            data = self.repositories[found[1]][found[2]]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            return 200, {"X-Repo-Commit": self.commit, "ETag": etag}, data
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def files_sent(self) -> list[str]:
        """Paths in the repository of the files that were sent, sorted."""
        sent = [path for method, path in self.asked if method == "GET" and "/resolve/" in path]
        return sorted(path.split(f"/resolve/{self.commit}/")[1] for path in sent)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        status, headers, data = self.server.answer(path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def unzipped(name: str, folder: Path) -> Path:
    """The files of a benchmark as they lie when they were unpacked by hand."""
    if name != "vqa_rad":
        return made(name, folder)
    vqa_rad_parquet(folder / name)
    return folder / name


def published(name: str, folder: Path) -> dict[str, bytes]:
    """The same files as the hub has them: what it has as an archive is one."""
    root = unzipped(name, folder)
    files = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
    if name == "mmmu_health":
        empty = io.BytesIO()
        pq.write_table(pq.read_table(root / "Pharmacy").slice(0, 0), empty)
        for subject in SUBJECTS:
            files[f"{subject}/validation-00000-of-00001.parquet"] = empty.getvalue()
    if name in ZIPPED:
        archive, inside = ZIPPED[name]
        members = {path: files.pop(path) for path in list(files) if path.startswith(inside)}
        if inside:
            members["__MACOSX/._" + inside] = b"resource fork"
        else:
            top = archive.removesuffix(".zip")
            members = {f"{top}/": b""} | {f"{top}/{path}": x for path, x in members.items()}
        files[archive] = zipped(members)
    return files


@pytest.fixture(scope="module")
def files_of(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("published")
    return {name: published(name, folder) for name in ON_HUB}


@pytest.fixture
def hub(files_of, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read from the environment on import
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()  # the next one reads the proxies anew
    repositories = {}
    for name, files in files_of.items():
        repository = repositories.setdefault(fetch.hub_repository(get(name)), {})
        repository |= dict.fromkeys(NOT_NEEDED, b"not needed") | files
    server = Hub(repositories)
    yield server
    server.shutdown()
    server.server_close()
    close_session()


def items_in(name: str, root: Path) -> list:
    with pytest.warns(UserWarning, match="published are"):
        return load(name, root, incomplete=True)


def everything_in(folder: Path) -> list[str]:
    """Paths of all files, but for what the hub's client notes for itself."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if "/.cache/" not in path)


@pytest.mark.parametrize("name", ON_HUB)
def test_a_download_gives_the_items_of_the_folder_and_no_other_file(name, hub, files_of, tmp_path):
    root = fetch.download(name, tmp_path / "benchmarks", endpoint=hub.url)
    needed = set(files_of[name]) - {"Art/validation-00000-of-00001.parquet"}
    assert hub.files_sent() == sorted(needed)
    assert (name, root) in recognise(tmp_path / "benchmarks")
    assert root.parent == tmp_path / "benchmarks"
    items = items_in(name, root)
    assert items and items == items_in(name, unzipped(name, tmp_path / "by hand"))
    assert not list(root.rglob("__MACOSX"))


def test_what_is_on_the_hub_says_which_files_it_needs():
    for benchmark in BENCHMARKS:
        assert bool(benchmark.hub_files) == bool(fetch.hub_repository(benchmark))
    assert fetch.hub_repository(get("vqa_rad")) == "flaviagiammarino/vqa-rad"


def test_a_second_download_asks_for_no_file_and_unpacks_nothing(hub, tmp_path, monkeypatch):
    root = fetch.download("slake_en", tmp_path, endpoint=hub.url)
    present = everything_in(tmp_path)
    hub.asked.clear()
    monkeypatch.setattr(zipfile.ZipFile, "extract", lambda *args: pytest.fail("unpacked again"))
    assert fetch.download("slake_en", tmp_path, endpoint=hub.url) == root
    assert fetch.download("slake_zh", tmp_path, endpoint=hub.url) == root, "the same repository"
    assert hub.asked == [("GET", "/api/datasets/BoKelvin/SLAKE")] * 2
    assert everything_in(tmp_path) == present


def test_benchmarks_of_one_repository_share_a_folder(hub, tmp_path):
    for name, archive in (("pmc_vqa", "images_2.zip"), ("pmc_vqa_clean", "images.zip")):
        hub.asked.clear()
        root = fetch.download(name, tmp_path, endpoint=hub.url)
        assert archive in hub.files_sent() and len(hub.files_sent()) == 2
    assert recognise(tmp_path) == [("pmc_vqa", root), ("pmc_vqa_clean", root)]


def test_a_new_version_of_an_archive_is_downloaded_and_unpacked(hub, tmp_path):
    root = fetch.download("slake_en", tmp_path, endpoint=hub.url)
    hub.asked.clear()
    repository = hub.repositories["BoKelvin/SLAKE"]
    repository["imgs.zip"] = zipped({"imgs/xmlab7/source.jpg": b"another"})
    hub.commit = "b" * 40
    fetch.download("slake_en", tmp_path, endpoint=hub.url)
    assert hub.files_sent() == ["imgs.zip"], "test.json is the same"
    assert (root / "imgs/xmlab7/source.jpg").read_bytes() == b"another"


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("part", ["/api/", "/resolve/"])
def test_a_gated_repository_says_where_its_terms_are(hub, tmp_path, status, part):
    gated = {"X-Error-Code": "GatedRepo"}
    hub.refuse = lambda path: (status, gated, b"") if part in path else None
    with pytest.raises(PermissionError, match=r"slake_en: .* gated; accept its terms at") as error:
        fetch.download("slake_en", tmp_path, endpoint=hub.url)
    assert "https://huggingface.co/datasets/BoKelvin/SLAKE, run `hf auth login`" in str(error.value)
    assert isinstance(error.value.__cause__, GatedRepoError)
    hub.refuse = lambda path: None  # once they are accepted
    assert fetch.download("slake_en", tmp_path, endpoint=hub.url).is_dir()


@pytest.mark.parametrize(
    ("status", "part"), [(401, "/api/"), (403, "/api/"), (401, "/resolve/"), (403, "/resolve/")]
)
def test_a_token_that_may_not_read_is_named(hub, tmp_path, status, part):
    refused = {"X-Error-Message": "Invalid credentials in Authorization header"}
    hub.refuse = lambda path: (status, refused, b"") if part in path else None
    with pytest.raises(PermissionError, match=rf"medmcqa: .*refuses .*/medmcqa with {status}"):
        fetch.download("medmcqa", tmp_path, endpoint=hub.url)


def test_a_repository_that_is_gone_is_named(hub, tmp_path):
    del hub.repositories["MMMU/MMMU"]
    with pytest.raises(ConnectionError, match=r"mmmu_health: .* no dataset MMMU/MMMU") as error:
        fetch.download("mmmu_health", tmp_path, endpoint=hub.url)
    assert isinstance(error.value.__cause__, RepositoryNotFoundError)


def test_a_file_that_was_renamed_is_named_before_anything_is_downloaded(hub, tmp_path):
    repository = hub.repositories["xmcmic/PMC-VQA"]
    repository["test2.csv"] = repository.pop("test_2.csv")
    with pytest.raises(FileNotFoundError, match=r"xmcmic/PMC-VQA has no test_2\.csv, only .*\.zip"):
        fetch.download("pmc_vqa", tmp_path, endpoint=hub.url)
    assert hub.files_sent() == [] and everything_in(tmp_path) == []


def test_without_a_hub_the_sentence_says_what_to_do(hub, tmp_path, monkeypatch):
    def fails(match: str) -> ConnectionError:
        with pytest.raises(ConnectionError, match=match) as error:
            fetch.download("vqa_rad", tmp_path, endpoint=hub.url)
        assert "vqa_rad: flaviagiammarino/vqa-rad" in str(error.value)
        assert f"copy the files of {page} into {tmp_path / 'vqa-rad'}" in str(error.value)
        assert "\n" not in str(error.value)
        return error.value

    page = "https://huggingface.co/datasets/flaviagiammarino/vqa-rad"
    hub.refuse = lambda path: (200, {}, b"<html>Please log in to the guest network</html>")
    fails("JSONDecodeError.* repair the connection")
    hub.refuse = lambda path: (500, {}, b"")
    fails("500 .*repair the connection")
    hub.shutdown()
    hub.server_close()
    fails("ConnectError: .* repair the connection")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert isinstance(fails("unset it").__cause__, OfflineModeIsEnabled)


def test_a_hub_that_breaks_off_is_no_download_though_the_folder_is_not_empty(hub, tmp_path):
    root = fetch.download("pmc_vqa", tmp_path, endpoint=hub.url)
    hub.commit = "b" * 40
    hub.refuse = lambda path: (404, {}, b"") if "/tree/" in path else None
    with pytest.raises(ConnectionError, match=r"2 of 2 files .* did not come, first test_clean"):
        fetch.download("pmc_vqa_clean", tmp_path, endpoint=hub.url)
    hub.refuse = lambda path: None
    assert fetch.download("pmc_vqa_clean", tmp_path, endpoint=hub.url) == root
    assert items_in("pmc_vqa_clean", root)


def test_what_is_not_on_the_hub_or_unknown_is_not_asked_for(hub, tmp_path):
    with pytest.raises(ValueError, match=r"pubmedqa is not .* https://github\.com/pubmedqa"):
        fetch.download("pubmedqa", tmp_path, endpoint=hub.url)
    with pytest.raises(ValueError, match="no benchmark 'slake'; known: "):
        fetch.download("slake", tmp_path, endpoint=hub.url)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("medxpertqa_mm", "images/../../evil.txt"),
        ("medxpertqa_mm", "/evil.txt"),
        ("medxpertqa_mm", "..\\evil.txt"),
        ("omnimedvqa", "OmniMedVQA/../evil.txt"),  # outside only once its folder is left out
    ],
)
def test_nothing_is_unpacked_of_an_archive_that_leads_outside(hub, tmp_path, name, member):
    repository = hub.repositories[fetch.hub_repository(get(name))]
    archive, top = ZIPPED[name][0], ZIPPED[name][1] or "OmniMedVQA/"
    repository[archive] = zipped({f"{top}one.jpeg": b"1", member: b"2", f"{top}two.jpeg": b"3"})
    with pytest.raises(ValueError, match="would lie outside") as error:
        fetch.download(name, tmp_path / "benchmarks", endpoint=hub.url)
    assert archive in str(error.value) and "evil.txt" in str(error.value)
    present = {path.rpartition("/")[2] for path in everything_in(tmp_path)}
    assert present == {archive} | ({"test.jsonl"} if name == "medxpertqa_mm" else set())


def test_a_broken_archive_is_named_and_got_again_once_deleted(hub, files_of, tmp_path):
    whole = files_of["slake_en"]["imgs.zip"]
    for broken in (b"<html>", whole[:-30], whole.replace(whole[60:70], b"\0" * 10)):
        hub.repositories["BoKelvin/SLAKE"]["imgs.zip"] = broken
        hub.commit = hashlib.sha1(broken).hexdigest()
        with pytest.raises(ValueError, match=r"imgs\.zip is no whole zip archive .*; delete it"):
            fetch.download("slake_en", tmp_path, endpoint=hub.url)
    hub.repositories["BoKelvin/SLAKE"]["imgs.zip"] = whole
    (tmp_path / "SLAKE/imgs.zip").unlink()
    root = fetch.download("slake_en", tmp_path, endpoint=hub.url)
    assert items_in("slake_en", root)


def test_unpacking_that_was_killed_is_done_again(hub, tmp_path, monkeypatch):
    extract, unpacked = zipfile.ZipFile.extract, []

    def killed(archive, member, path):
        if unpacked:
            raise KeyboardInterrupt
        unpacked.append(Path(extract(archive, member, path)))

    monkeypatch.setattr(zipfile.ZipFile, "extract", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch.download("pmc_vqa", tmp_path, endpoint=hub.url)
    unpacked[0].write_bytes(b"half of it")
    monkeypatch.setattr(zipfile.ZipFile, "extract", extract)
    hub.asked.clear()
    root = fetch.download("pmc_vqa", tmp_path, endpoint=hub.url)
    assert hub.files_sent() == []
    assert items_in("pmc_vqa", root) == items_in("pmc_vqa", made("pmc_vqa", tmp_path / "by hand"))


def run_command(hub: Hub, folder: Path, *names: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, which reads the hub's address on import."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(folder / ".home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-m", "gmai_lib.evaluation.fetch", str(folder), "--download", *names]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_command_downloads_what_it_is_told_and_says_what_is_there(hub, tmp_path):
    result = run_command(hub, tmp_path, "vqa_rad", "slake_en")
    assert result.returncode == 0, result.stderr
    assert [name for name, _ in recognise(tmp_path)] == ["slake_en", "slake_zh", "vqa_rad"]
    said = result.stdout
    assert f"vqa_rad is in {tmp_path / 'vqa-rad'}" in said
    assert f"slake_en: 3 items in {tmp_path / 'SLAKE'}: 3 items of all, published are 1061" in said
    assert said.splitlines()[-1].startswith(f"not in {tmp_path}: gmai_mmbench, ")
    assert "CC0-1.0" in said and "PathVQA" not in said, "only what is asked for is described"


def test_the_command_fails_in_one_sentence_without_the_store_of_large_files(hub, tmp_path):
    hub.in_store = {"data/validation-00000-of-00001.parquet"}
    result = run_command(hub, tmp_path, "medmcqa")
    assert any("/reconstructions/" in path for _, path in hub.asked)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("medmcqa: openlifescienceai/medmcqa could not be downloaded (Runtime")
    assert last.endswith(f"/datasets/openlifescienceai/medmcqa into {tmp_path / 'medmcqa'}")


def test_the_command_fails_in_one_sentence(hub, tmp_path, capsys):
    assert fetch.main([str(tmp_path), "--download", "medmcqa", "slake"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("no benchmark 'slake'; known: ") and said.out == ""
    assert fetch.main([str(tmp_path), "--download", "pubmedqa"]) == 1
    assert capsys.readouterr().err.startswith("pubmedqa is not on the Hugging Face hub; ")
    with pytest.raises(SystemExit):
        fetch.main(["--download", "vqa_rad"])
    assert "name the folder to download into" in capsys.readouterr().err
    assert hub.asked == [] and everything_in(tmp_path) == []


def test_without_download_it_only_says_where_each_is_obtained_and_what_is_there(
    hub, tmp_path, capsys
):
    made("vqa_rad", tmp_path)
    present = everything_in(tmp_path)
    assert fetch.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for benchmark in BENCHMARKS:
        assert benchmark.homepage in said and benchmark.license in said
    assert "--download slake_en  # from BoKelvin/SLAKE" in said
    assert "vqa_rad: 3 items in" in said and "3 items of all, published are 451" in said
    assert "not in" in said and "slake_zh" in said.splitlines()[-1]
    assert everything_in(tmp_path) == present and hub.asked == []
    assert fetch.main([str(tmp_path / "nowhere")]) == 1
    assert "is no folder" in capsys.readouterr().err
