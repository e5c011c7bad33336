"""Benchmarks asked over HTTP: images and questions as sent, replies kept, silence never hidden."""

import base64

import numpy as np
import pytest
from chat_server import Server

from gmai_lib import llm
from gmai_lib.dataset import images
from gmai_lib.evaluation import endpoint, results
from gmai_lib.evaluation.items import Item

OPEN = {"demo": "open"}


def items_of(number: int) -> list[Item]:
    made = []
    for n in range(number):
        picture = images.to_png(np.full((8, 8), n, np.uint8))
        about = {"kind": "yes/no", "language": "en", "options": ("yes", "no"), "group": str(n)}
        about |= {"modality": "CT", "source": "demo", "benchmark": "demo", "images": (picture,)}
        made.append(
            Item(id=f"i{n}", question=f"Is {n} even?", answer="no" if n % 2 else "yes", **about)
        )
    return made


def asker_of(server, tmp_path, **more):
    url = more.pop("base_url", server.url)
    target = llm.Endpoint(base_url=url, model="m", temperature=0.0, retries=0, **more)
    return llm.Asker(target, tmp_path / "journal.jsonl")


def said(body, number):
    asked = body["messages"][0]["content"][-1]["text"]
    return "yes" if int(asked.split()[1]) % 2 == 0 else "no"


def test_every_item_is_asked_with_its_image_and_scored(tmp_path):
    server, items = Server(said), items_of(6)
    responses = endpoint.ask(items, asker_of(server, tmp_path), access=OPEN)
    rows = results.summarise(items, responses, None, checkpoint="m")
    (overall,) = [
        r
        for r in rows
        if r["kind"] == "overall" and r["metric"] == "accuracy" and r["subset"] == "all"
    ][:1]
    assert overall["score"] == 1.0 and overall["num_items"] == 6
    sent = {}
    for body in server.bodies:
        picture, text = body["messages"][0]["content"]
        head, data = picture["image_url"]["url"].split(",")
        assert head == "data:image/png;base64" and "response_format" not in body
        sent[text["text"]] = base64.b64decode(data)
    assert sent == {item.question: item.images[0] for item in items}


def test_a_second_run_asks_nothing_and_without_images_none_is_sent(tmp_path):
    server, items = Server(said), items_of(3)
    asker = asker_of(server, tmp_path)
    first = endpoint.ask(items, asker, access=OPEN)
    assert endpoint.ask(items, asker, access=OPEN) == first and len(server.bodies) == 3
    assert endpoint.estimate(items, asker).requests == 0
    endpoint.ask(items, asker, access=OPEN, image_mode="none")
    assert [len(b["messages"][0]["content"]) for b in server.bodies[3:]] == [1, 1, 1]
    endpoint.ask(items, asker, access=OPEN, image_mode="blank")
    assert len({b["messages"][0]["content"][0]["image_url"]["url"] for b in server.bodies[6:]}) == 1


@pytest.mark.parametrize("broken", [(500, "down"), (200, "<html>proxy</html>"), None])
def test_items_without_a_reply_are_named_and_asked_again(tmp_path, broken):
    def sometimes(body, number):
        if not mended and "Is 1" in body["messages"][0]["content"][-1]["text"]:
            return broken
        return said(body, number)

    mended, items = [], items_of(3)
    server = Server(sometimes)
    asker = asker_of(server, tmp_path, timeout=5)
    if broken == (200, "<html>proxy</html>"):  # a reply, and a wrong answer: the model's, not ours
        assert endpoint.ask(items, asker, access=OPEN)[1]["response"] == "<html>proxy</html>"
        return
    with pytest.raises(RuntimeError, match=r"1 of 3 items got no reply from .* \(first: i1; no "):
        endpoint.ask(items, asker, access=OPEN)
    mended.append(True)
    asked = len(server.bodies)
    assert [r["response"] for r in endpoint.ask(items, asker, access=OPEN)] == ["yes", "no", "yes"]
    assert len(server.bodies) == asked + 1


CHOICE = b'{"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [%s]}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "rate limited"}}',
        b"<html>please log in</html>",
        b"[]",
        CHOICE % b"",
        CHOICE % b'{"index": 0, "finish_reason": "stop", "message": null}',
        CHOICE % b'{"index": 0, "message": {"role": "assistant", "content": [{"type": "text"}]}}',
    ],
)
def test_a_body_that_is_no_answer_is_not_scored_nor_kept(tmp_path, body):
    mended, items = [], items_of(2)
    server = Server(lambda sent, number: said(sent, number) if mended else body)
    asker = asker_of(server, tmp_path)
    with pytest.raises(RuntimeError, match=r"2 of 2 items got no reply .*: no "):
        endpoint.ask(items, asker, access=OPEN)
    mended.append(True)
    assert [r["response"] for r in endpoint.ask(items, asker, access=OPEN)] == ["yes", "no"]


def test_an_answer_that_was_cut_is_not_finished(tmp_path):
    cut = CHOICE % b'{"index": 0, "finish_reason": "length", "message": {"content": null}}'
    rows = endpoint.ask(items_of(1), asker_of(Server(lambda *_: cut), tmp_path), access=OPEN)
    assert (rows[0]["response"], rows[0]["finished"]) == ("", False)


def test_what_is_not_open_stays_here_and_an_unknown_tier_is_refused(tmp_path):
    server, items = Server(said), items_of(1)
    away = asker_of(server, tmp_path, base_url="https://models.example.org/v1")
    with pytest.raises(PermissionError, match="demo \\(credentialed\\): access is not open"):
        endpoint.ask(items, away, access={"demo": "credentialed"})
    with pytest.raises(ValueError, match="no access tier for \\['demo'\\]"):
        endpoint.ask(items, away, access={})
    with pytest.raises(ValueError, match="image_mode 'upside down' not in"):
        endpoint.requests(items, image_mode="upside down")
    assert not server.bodies
