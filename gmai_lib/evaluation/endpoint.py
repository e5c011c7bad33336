"""Ask a model behind any OpenAI-compatible endpoint the questions of a benchmark.

    asker = llm.Asker(llm.Endpoint(base_url=..., model=..., temperature=0.0), out / "journal.jsonl")
    responses = ask(items, asker, access={"vqa_rad": "open"})
    rows = results.summarise(items, responses, None, checkpoint=asker.endpoint.model)

Images go as data URLs in front of the question, as with a local model (`run.evaluate`). The journal
holds every reply, so a killed run goes on and pays for no answer twice.
"""

import base64

from gmai_lib.evaluation import askers, run
from gmai_lib.evaluation.items import Item
from gmai_lib.llm import Asker, Bill, Request

_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


def ask(
    items: list[Item],
    asker: Asker,
    *,
    access: dict[str, str],
    image_mode: str = "image",
    seed: int = 0,
) -> list[dict]:
    """Return one response per item, as `run.evaluate` does; "finished" says that it was not cut.

    `access` maps every benchmark to its tier: only open ones may leave this machine.

    Raises PermissionError before the first request if one may not, ValueError for a benchmark
    without a tier, ConnectionError like `Asker.fill`, and RuntimeError, with their number, if
    items are left without a reply: run it again, the others are in the journal.
    """
    unknown = sorted({item.benchmark for item in items} - set(access))
    if unknown:
        raise ValueError(f"no access tier for {unknown}; say open, registration or credentialed")
    asker.endpoint.check_access({item.benchmark: access[item.benchmark] for item in items})
    asked = requests(items, image_mode=image_mode, seed=seed)
    bill = asker.fill(asked)
    replies = {request.id: asker.settled(request) for request in asked}
    silent = [item.id for item in items if replies[item.id] is None]
    if silent:
        reasons = "; ".join(reason for reason in bill.outcomes if reason != "done")
        raise RuntimeError(
            f"{len(silent)} of {len(items)} items got no reply from {asker.endpoint.base_url} "
            f"(first: {silent[0]}; {reasons}); run again, what came is in {asker.journal.path}"
        )
    return [
        askers.response_row(
            item, replies[item.id]["reply"], finished=replies[item.id].get("finished", True)
        )
        for item in items
    ]


def estimate(items: list[Item], asker: Asker, *, image_mode: str = "image", seed: int = 0) -> Bill:
    """Return what `ask` would ask and about what it would cost, without images; sends nothing."""
    return asker.estimate(requests(items, image_mode=image_mode, seed=seed))


def requests(items: list[Item], *, image_mode: str = "image", seed: int = 0) -> list[Request]:
    """Return one plain-text request per item; `image_mode` and `seed` as in `run.evaluate`."""
    if image_mode not in run.IMAGE_MODES:
        raise ValueError(f"image_mode {image_mode!r} not in {run.IMAGE_MODES}")
    replaced = run.replaced_images(items, image_mode, seed)
    return [
        Request(id=item.id, messages=[_message(item, image_mode, replaced)], name="answer")
        for item in items
    ]


def _message(item: Item, image_mode: str, replaced: dict) -> dict:
    shown = askers.shown_images(item, replaced) if image_mode != "none" else ()
    urls = map(_data_url, shown)
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*content, {"type": "text", "text": item.question}]}


def _data_url(image: bytes) -> str:
    kind = next((name for magic, name in _KINDS.items() if image.startswith(magic)), None)
    if kind is None:
        raise ValueError(f"an image of {len(image)} bytes is no PNG, JPEG, GIF or WebP file")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
