"""Answering in batches beside one by one, and scoring: `python -m gmai_lib.bench evaluate OUTPUTS`.

The final checkpoint answers the same questions both ways, alternately, and the fastest run of each
counts, in seconds of the clock. The scorer reads as many answers as asked for: what the model said
and the references, each text once as it is and, as a harder case, with a number in it, so that no
answer comes twice and nothing is remembered from one to the next.
"""

import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from gmai_lib import config
from gmai_lib.dataset.curate import read_records
from gmai_lib.evaluation import benchmarks, run, scoring
from gmai_lib.model import weights


def evaluate(
    outputs: Path, *, number: int = 800, answers: int = 100_000, repeats: int = 3, seed: int = 0
) -> list[dict]:
    """Return two rows for answering `number` questions and two for scoring `answers`.

    `outputs` is the folder of a finished mini run: its records and the checkpoint of stage III are
    used. Rows: what, n, seconds, per_second; of batches also "speed-up" over one by one and "same",
    the share of responses that are the same both ways.
    """
    outputs = Path(outputs)
    profile = config.load("mini")
    records = list(read_records(outputs / "02_curate" / "records"))
    items = benchmarks.phantom_benchmark(records, seed=seed, num_images=profile.benchmark_images)
    asked = items[:: max(1, len(items) // number)][:number]  # all kinds, in their shares
    model, processor = weights.load_checkpoint(outputs / "09_instruction_tuning" / "checkpoint")
    sizes, seconds, said = (profile.evaluation_batch_size, 1), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            for size in sizes:
                path = Path(folder) / f"{size}-{repeat}.jsonl"
                start = time.perf_counter()
                said[size] = run.evaluate(model, processor, asked, out_jsonl=path, batch_size=size)
                spent = time.perf_counter() - start
                seconds[size] = min(spent, seconds.get(size, spent))
    batched, single = (_row(f"answer, batches of {n}", len(asked), seconds[n]) for n in sizes)
    same = [a["response"] == b["response"] for a, b in zip(*said.values(), strict=True)]
    batched |= {"speed-up": seconds[1] / seconds[sizes[0]], "same": sum(same) / len(same)}
    texts = [(i, i.answer) for i in items]
    texts += [(i, r["response"]) for i, r in zip(asked, said[1], strict=True)]
    texts = list(islice(cycle(texts), answers))
    rows = [batched, single]
    for what, own in (
        ("score answers", texts),
        ("score, all different", [(i, f"{t}. Case {n}.") for n, (i, t) in enumerate(texts)]),
    ):
        start = time.perf_counter()
        for item, text in own:
            scoring.score(item, text)
        rows.append(_row(what, len(own), time.perf_counter() - start))
    return rows


def _row(what: str, number: int, seconds: float) -> dict:
    return {"what": what, "n": number, "seconds": seconds, "per_second": number / seconds}
