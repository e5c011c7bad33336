"""The real server, `transformers serve`, asked through the `openai` client.

It answers an image question from an exported checkpoint, and the LLM writer writes with it.
"""

import base64
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest
import tiny_run
from synthetic_records import PNG, record

from gmai_lib import lens
from gmai_lib.dataset.llm_writer import LLMWriter
from gmai_lib.llm import Endpoint
from gmai_lib.model import weights
from gmai_lib.training import launch

pytestmark = pytest.mark.slow
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A tiny trained and exported GMAI-VL behind `transformers serve`.

    Returns (model, processor, folder, base_url).
    """
    folder = tmp_path_factory.mktemp("served")
    profile = tiny_run.tiny_profile(max_steps=400)
    tiny_run.write_inputs(folder, profile, 60)
    paths = {"pairs": folder / "pairs", "init": folder / "initial", "out": folder / "out"}
    launch.run_stage(profile, "instruction_tuning", seed=0, **paths)
    model, processor = weights.load_checkpoint(folder / "out" / "checkpoint")
    weights.export_llava(model, processor, folder / "llava")
    port, log = launch.free_port(), folder / "log.txt"
    command = (
        "from transformers.cli.transformers import main; main()",
        *("serve", str(folder / "llava"), "--device", "cpu", "--port", str(port)),
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [sys.executable, "-c", *command], stdout=stream, stderr=stream, env=environment
        )
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield model, processor, folder / "llava", f"http://localhost:{port}/v1"
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
        server.kill()


def _wait(server, url, log, seconds=120):
    for _ in range(seconds * 2):
        if server.poll() is not None:
            break
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as reply:
            if reply.status == 200:
                return
        time.sleep(0.5)
    raise RuntimeError(f"no server at {url}: {log.read_text()[-2000:]}")


def test_an_exported_checkpoint_answers_image_questions_over_http(served):
    import openai

    model, processor, folder, url = served
    client = openai.OpenAI(base_url=url, api_key="none")
    said = []
    for sample in tiny_run.samples(8, seed=7):
        question = sample.conversations[0]["content"].removeprefix("<image>\n")
        content = [{"type": "text", "text": question}]
        for image in sample.images:
            address = "data:image/png;base64," + base64.b64encode(image).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": address}})
        reply = client.chat.completions.create(
            model=str(folder),
            messages=[{"role": "user", "content": content}],
            max_tokens=NEW_TOKENS,
            temperature=0.0,
        )
        said.append(reply.choices[0].message.content.strip())
        expected = lens.reply(model, processor, sample.images, question, NEW_TOKENS)
        assert said[-1] == expected.strip()
    assert set(said) & set(tiny_run.PLACES), "it was trained to name places"


def test_the_llm_writer_settles_every_request_with_a_real_server(served, tmp_path):
    _, _, folder, url = served
    endpoint = Endpoint(base_url=url, model=str(folder), concurrency=2, max_tokens=NEW_TOKENS)
    records = [
        record(
            name, image=PNG, width=16, height=16, organ="lung", labels=("nodule",), split="train"
        )
        for name in "ab"
    ]
    writer = LLMWriter(endpoint, tmp_path / "journal.jsonl")
    estimate = writer.estimate(records)
    bill = writer.fill(records)
    assert estimate.requests > 0 and bill.tokens_in > 0 and bill.tokens_out > 0
    # An untrained model writes no JSON: every request is settled, with its reason.
    assert sum(bill.outcomes.values()) == estimate.requests and "done" not in bill.outcomes
    assert writer.estimate(records).requests == 0, "nothing is paid for twice"
