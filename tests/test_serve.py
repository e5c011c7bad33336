"""The real server, `transformers serve`, asked through the `openai` client.

It answers an image question from an exported checkpoint, and the LLM writer writes with it.
"""

import base64
import io
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest
from PIL import Image
from synthetic_records import PNG, record
from tiny_model import picture, tiny_model, tiny_tokenizer

from gmai_lib import lens
from gmai_lib.dataset.llm_writer import LLMWriter
from gmai_lib.llm import Endpoint
from gmai_lib.model import chat, weights
from gmai_lib.training.launch import free_port

pytestmark = pytest.mark.slow
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A tiny exported GMAI-VL behind `transformers serve`: (model, processor, folder, base_url)."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    processor = chat.build_processor(tokenizer, model.config.vision_config)
    weights.export_llava(model, processor, folder / "llava")
    port, log = free_port(), folder / "log.txt"
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


def test_an_exported_checkpoint_answers_an_image_question_over_http(served):
    import openai

    model, processor, folder, url = served
    png = io.BytesIO()
    Image.fromarray(picture(0)).save(png, "PNG")
    address = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "text", "text": "Which organ is it?"},
    ]
    reply = openai.OpenAI(base_url=url, api_key="none").chat.completions.create(
        model=str(folder),
        messages=[{"role": "user", "content": content}],
        max_tokens=NEW_TOKENS,
        temperature=0.0,
    )
    said = reply.choices[0].message.content
    expected = lens.reply(model, processor, [png.getvalue()], "Which organ is it?", NEW_TOKENS)
    assert said and said.strip() == expected.strip()


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
