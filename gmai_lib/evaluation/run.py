"""Ask a model every question of a benchmark: batched, greedy, resumable.

    responses = evaluate(model, processor, items, out_jsonl=out / "image.jsonl")
    blind = evaluate(model, processor, items, out_jsonl=out / "none.jsonl", image_mode="none")
    rows = summarise(items, responses, blind, checkpoint="09_instruction_tuning")
    answers = evaluate_jobs([Job(checkpoint, items, out_jsonl), ...], processes=2)

    evaluate(model, processor, items, out_jsonl=path, rank=rank, world_size=8)  # on each rank
    responses = merge_parts(items, path, world_size=8)                          # once all are done

Every response is appended to a JSONL file, from which a killed run goes on. How a model is asked:
`gmai_lib.evaluation.askers`; what the rows mean: `gmai_lib.evaluation.results`.

Paper: section 4 (VLMEvalKit, greedy decoding).
Departs: the same questions without the image, or with another one, are a mode of the same call.
"""

import hashlib
import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gmai_lib import pool
from gmai_lib.dataset.images import to_png
from gmai_lib.dataset.phrases import LETTER
from gmai_lib.evaluation.askers import asker, batches
from gmai_lib.evaluation.extraction import LETTERS
from gmai_lib.evaluation.items import Item, write_items
from gmai_lib.evaluation.results import paired_difference, summarise
from gmai_lib.evaluation.scoring import score
from gmai_lib.outputs import atomic

__all__ = [
    "Job",
    "answer_log_probabilities",
    "evaluate",
    "evaluate_jobs",
    "merge_parts",
    "option_likelihoods",
    "paired_difference",
    "read_responses",
    "summarise",
    "weights_digest",
    "without_exchange",
    "write_items",
]

IMAGE_MODES = ("image", "none", "blank", "shuffled")


def evaluate(
    model,
    processor,
    items: list[Item],
    *,
    out_jsonl: Path,
    batch_size: int = 64,
    image_mode: str = "image",
    seed: int = 0,
    if_stale: str = "error",
    rank: int = 0,
    world_size: int = 1,
) -> list[dict]:
    """Return one response per item, in the order of `items`; append them to `out_jsonl` on the way.

    `model` is one of this project, with the preprocessing of training, or any
    AutoModelForImageTextToText with its own AutoProcessor and chat template.

    image_mode "none" asks without image placeholders, "blank" shows a grey image, "shuffled" an
    image of another group of the same benchmark (drawn by `seed`). The model runs in the precision
    it was loaded in. Responses already in the file are not asked again; a half-written last line is
    dropped with a warning. A file that holds other items, another image mode or other weights
    raises ValueError, or is begun anew with `if_stale="restart"`.

    Of several ranks each answers its share of the batches into a file of its own (`part_path`)
    and returns those responses; the batches, and so the rounding, are those of one rank.
    `merge_parts` joins the files.
    """
    import torch

    if image_mode not in IMAGE_MODES or if_stale not in ("error", "restart"):
        raise ValueError(
            f"image_mode {image_mode!r} not in {IMAGE_MODES} or if_stale {if_stale!r} not in "
            "('error', 'restart')"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of world_size {world_size}")
    header = header_of(items, image_mode, seed) | {"weights_digest": weights_digest(model)}
    path = Path(out_jsonl)
    if world_size > 1:
        path = part_path(path, rank, world_size)
        header |= {"rank": rank, "world_size": world_size}
    responses = _open_responses(path, header, if_stale)
    images = replaced_images(items, image_mode, seed)
    ask = asker(model, processor, with_image=image_mode != "none")
    prompts = [ask.prepare(item, images) for item in items]
    if too_long := [p for p in prompts if len(p["ids"]) > ask.context]:
        raise ValueError(
            f"{len(too_long)} of {len(items)} prompts are longer than the context of "
            f"{ask.context} tokens, the first has {len(too_long[0]['ids'])} "
            f"({too_long[0]['item'].id}); nothing was asked. Leave such items out, or ask a model "
            "with a longer context"
        )
    asked_together = list(batches(prompts, batch_size))
    mine = _share(asked_together, rank, world_size)
    was_training = model.training
    model.eval()
    try:
        with path.open("a", encoding="utf-8") as file, torch.inference_mode():
            for batch in mine:
                missing = {p["item"].id for p in batch} - set(responses)
                # A batch that was cut is asked again as a whole: the padding stays the same, and
                # with it the rounding, so a resumed run equals an uninterrupted one.
                for response in ask(batch) if missing else ():
                    if response["id"] in missing:
                        responses[response["id"]] = response
                        file.write(json.dumps(response, ensure_ascii=False) + "\n")
                file.flush()
    finally:
        model.train(was_training)
    asked = {prompt["item"].id for batch in mine for prompt in batch}
    return [responses[item.id] for item in items if item.id in asked]


def part_path(out_jsonl: Path, rank: int, world_size: int) -> Path:
    """Return where one of several ranks writes: a.jsonl -> a.part-0-of-8.jsonl."""
    return out_jsonl.with_name(f"{out_jsonl.stem}.part-{rank}-of-{world_size}{out_jsonl.suffix}")


def merge_parts(items: list[Item], out_jsonl: Path, world_size: int) -> list[dict]:
    """Join what `world_size` ranks wrote to `out_jsonl`; return a response per item, in order.

    Raises FileNotFoundError if a part is missing, ValueError if one is of another run, or if an
    item has no response, two, or is none of `items`; nothing is written then. The parts stay.
    """
    out_jsonl, shared, responses = Path(out_jsonl), None, {}
    for rank in range(world_size):
        path = part_path(out_jsonl, rank, world_size)
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run rank {rank} of {world_size}")
        header, found = read_responses(path)
        own = (header.pop("rank", None), header.pop("world_size", None))
        wanted = {"items_sha256": items_sha256(items), "num_items": len(items)}
        shared = shared or header | wanted
        if own != (rank, world_size) or header != shared:
            raise ValueError(
                f"{path} has the header {header} of rank and world_size {own}, wanted {shared} of "
                f"{(rank, world_size)}: the ranks must ask the same model the same items"
            )
        if twice := sorted(responses.keys() & found):
            raise ValueError(f"{path} answers {len(twice)} items of another rank, {twice[:3]}")
        responses |= found
    missing = [item.id for item in items if item.id not in responses]
    if missing or len(responses) != len(items):
        raise ValueError(
            f"{out_jsonl}: of {len(items)} items {len(missing)} have no response in the "
            f"{world_size} parts, {missing[:3]}, and {len(responses) + len(missing) - len(items)} "
            "responses are to other items; run the ranks again, each goes on where it stopped"
        )
    ordered = [responses[item.id] for item in items]
    write_responses(out_jsonl, shared, ordered)
    return ordered


@dataclass(frozen=True)
class Job:
    """One run of `evaluate`, of a checkpoint of this project, or the part of one rank."""

    checkpoint: Path
    items: list[Item]
    out_jsonl: Path
    image_mode: str = "image"
    rank: int = 0
    world_size: int = 1


def evaluate_jobs(jobs: list[Job], *, processes: int = 1, **options) -> Iterator[list[dict]]:
    """Yield the responses to each job, in order; `options` are those of `evaluate`.

    `processes` jobs run at a time, each with its share of the threads: on a CPU, models of a few
    million parameters answer faster side by side than one after the other.
    """
    import torch

    threads = max(1, torch.get_num_threads() // processes)
    return pool.ordered(partial(_evaluate_job, threads, options), jobs, processes=processes)


def _evaluate_job(threads: int, options: dict, job: Job) -> list[dict]:
    from gmai_lib.model import kernels, weights

    asked = dict(vars(job))
    model, processor = weights.load_checkpoint(asked.pop("checkpoint"))
    with kernels.threads_of(threads):
        return evaluate(model, processor, **asked, **options)


def option_likelihoods(
    model, processor, items: list[Item], *, batch_size: int = 64, image_mode: str = "image"
) -> list[dict]:
    """Return per closed item how probable each of its options is as the whole answer.

    Rows {"id", "prediction", "confidence", "correct", "probabilities"}: the probability of an
    option, and of the end of the turn after it, among those of all options; nothing is generated.
    The options are the letters where the question asks for a letter, else the texts, and yes and
    no; nothing is divided by their length. `model` is one that `evaluate` takes.

    Raises ValueError for an item without options, and for a chat template whose answers do not
    begin where its prompt ends.
    """
    candidates = [_candidates(item) for item in items]
    found = _log_probabilities(model, processor, items, candidates, batch_size, image_mode)
    return [_most_likely(*row) for row in zip(items, candidates, found, strict=True)]


def answer_log_probabilities(
    model, processor, items: list[Item], answers: list[str], *, batch_size: int = 64
) -> np.ndarray:
    """Return how probable each of `answers` is as the whole answer to its item: (N,), in nats.

    The sum over the tokens of the answer and the end of the turn, among all that the model could
    say. The text is tokenised anew: an answer that was generated in another spelling has the
    probability of the usual one.
    """
    alone = [(text,) for text in answers]
    found = _log_probabilities(model, processor, items, alone, batch_size)
    return np.array([row[text] for row, text in zip(found, answers, strict=True)], float)


def _log_probabilities(
    model, processor, items, texts: list[tuple[str, ...]], batch_size: int, image_mode="image"
) -> list[dict[str, float]]:
    """Per item: each of its `texts` -> log-probability of it and of the end of the turn."""
    import torch

    ask = asker(model, processor, with_image=image_mode != "none")
    images = replaced_images(items, image_mode, seed=0)
    rows = []  # (place of the item, text, prompt with the text after it, the text's tokens)
    for place, (item, own) in enumerate(zip(items, texts, strict=True)):
        said = ask.answered(ask.prepare(item, images), own)
        rows += [(place, text, *row) for text, row in zip(own, said, strict=True)]
    # Options of one question side by side: what is before them then runs once.
    rows.sort(key=lambda row: (len(row[2]["ids"]) - len(row[3]), items[row[0]].id))
    found = [{} for _ in items]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                most = max(len(ids) for *_, ids in batch) + 1  # and the end
                log_p = ask.log_probabilities([prompt for _, _, prompt, _ in batch], most)
                for (place, text, _, ids), row in zip(batch, log_p, strict=True):
                    wanted = torch.tensor(ids, dtype=torch.long, device=row.device)
                    said = row[-1 - len(ids) : -1].gather(1, wanted[:, None]).sum()
                    found[place][text] = float(said + row[-1, ask.ends].logsumexp(0))
    finally:
        model.train(was_training)
    return found


def _candidates(item: Item) -> tuple[str, ...]:
    if item.kind == "yes/no":
        return {"en": ("yes", "no"), "zh": ("是", "否")}[item.language]
    if not item.options:
        raise ValueError(f"item {item.id} of kind {item.kind!r} has no options to compare")
    by_letter = item.question.rstrip().endswith(LETTER[item.language])
    return tuple(LETTERS[: len(item.options)]) if by_letter else item.options


def _most_likely(item: Item, candidates: tuple[str, ...], log_p: dict[str, float]) -> dict:
    values = np.array([log_p[text] for text in candidates])
    shares = np.exp(values - values.max())
    shares /= shares.sum()
    best = candidates[int(shares.argmax())]
    result = score(item, best)
    return {
        "id": item.id,
        "prediction": result["prediction"],
        "confidence": float(shares.max()),
        "correct": result["correct"],
        "probabilities": dict(zip(candidates, map(float, shares), strict=True)),
    }


def _share(batches: list[list[dict]], rank: int, world_size: int) -> list[list[dict]]:
    """The batches of one rank: the costliest first, each goes to who has the least to do."""
    loads, own = [0] * world_size, []
    for batch in sorted(batches, key=_cost, reverse=True):
        least = loads.index(min(loads))
        loads[least] += _cost(batch)
        own += [batch] if least == rank else []
    return own


def _cost(batch: list[dict]) -> int:
    return len(batch) * max(p["limit"] for p in batch)  # tokens that it may have to generate


def without_exchange(items) -> list[str]:
    """Return the benchmarks of one image group: image_mode "shuffled" has nothing to show there."""
    return [name for name, by_group in _image_groups(items).items() if len(by_group) < 2]


def _image_groups(items) -> dict:
    """Return for every benchmark, by name, its groups, each with its distinct images in order."""
    groups = defaultdict(lambda: defaultdict(dict))
    for item in items:
        groups[item.benchmark][item.group].update(dict.fromkeys(item.images))
    return {benchmark: groups[benchmark] for benchmark in sorted(groups)}


def replaced_images(items: list[Item], image_mode: str, seed: int) -> dict:
    """Return (benchmark, image) -> the image shown instead, for a mode of IMAGE_MODES."""
    if image_mode == "shuffled":
        return _shuffled_images(items, seed)
    if image_mode == "blank":
        blank = to_png(np.full((8, 8), 128, np.uint8))
        return {(item.benchmark, image): blank for item in items for image in item.images}
    return {}


def _shuffled_images(items, seed: int) -> dict:
    """Map (benchmark, image) to an image of another group, the groups in a random ring."""
    rng = np.random.default_rng(seed)
    replaced = {}
    for benchmark, by_group in _image_groups(items).items():
        ring = [list(by_group[group]) for group in sorted(by_group)]
        if len(ring) < 2:
            raise ValueError(f"{benchmark} has {len(ring)} image group: nothing to shuffle with")
        ring = [ring[i] for i in rng.permutation(len(ring))]
        for own, other in zip(ring, ring[1:] + ring[:1], strict=True):
            for i, image in enumerate(own):
                replaced[benchmark, image] = other[i % len(other)]
    return replaced


def weights_digest(model) -> str:
    """Return a digest of up to 1,024 evenly spaced values of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        values = flat[:: max(1, len(flat) // 1024)].float().cpu().numpy()
        digest.update(name.encode() + str(tuple(parameter.shape)).encode() + values.tobytes())
    return digest.hexdigest()


def items_sha256(items: list[Item]) -> str:
    """Return the digest of ids, questions, answers and images; ValueError if an id is repeated."""
    counts = Counter(item.id for item in items)
    repeated = [identifier for identifier, n in counts.items() if n > 1]
    if repeated or not items:
        raise ValueError(f"{len(items)} items; ids that occur more than once: {repeated[:5]}")
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda item: item.id):
        digest.update(json.dumps([item.id, item.question, item.answer]).encode())
        for image in item.images:
            digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()


def header_of(items: list[Item], image_mode: str, seed: int) -> dict:
    """Return what the first line of a file of responses says about the questions."""
    return {
        "items_sha256": items_sha256(items),
        "num_items": len(items),
        "image_mode": image_mode,
        "seed": seed if image_mode == "shuffled" else None,
    }


def write_responses(path: Path, header: dict, responses: list[dict]) -> Path:
    """Write a file as `read_responses` reads it; return `path`."""
    with atomic(Path(path)) as partial_file, partial_file.open("w", encoding="utf-8") as file:
        for line in ({"header": header}, *responses):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return Path(path)


def _open_responses(path: Path, header: dict, if_stale: str) -> dict[str, dict]:
    """Return the responses that `path` holds for this header; create it if it does not exist."""
    if path.exists():
        found, responses = read_responses(path)
        differing = {k: (found.get(k), v) for k, v in header.items() if found.get(k) != v}
        if not differing:
            return responses
        what = "; ".join(f"{k} {old} in the file, {new} now" for k, (old, new) in differing.items())
        if if_stale == "error":
            raise ValueError(
                f"{path} holds responses of another run ({what}); give another out_jsonl, delete "
                'the file, or pass if_stale="restart" to begin it anew'
            )
        warnings.warn(f"{path} is begun anew: {what}", stacklevel=3)
    write_responses(path, header, [])
    return {}


def read_responses(path: Path) -> tuple[dict, dict[str, dict]]:
    """Return the header and the responses by item id of a file that `evaluate` wrote.

    A last line without newline or with broken JSON is cut off the file, with a warning. Raises
    ValueError for a broken line elsewhere or an id that occurs twice.
    """
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    rows, good = [], 0
    for number, line in enumerate(lines, 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("no end of line")
            rows.append(json.loads(line))
            good += len(line)
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path} line {number} is not valid JSON: delete it") from error
            warnings.warn(f"{path}: half-written last line {number} dropped", stacklevel=2)
            with path.open("r+b") as file:
                file.truncate(good)
    header = rows[0].get("header", {}) if rows else {}
    responses = {row["id"]: row for row in rows[1:]}
    if len(responses) != len(rows[1:]):
        repeated = [i for i, n in Counter(row["id"] for row in rows[1:]).items() if n > 1]
        raise ValueError(f"{path}: more than one response for {repeated[:5]}; delete the file")
    return header, responses
