"""Items whose image or text is in the training data are flagged, others are not."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from synthetic_records import record

from gmai_lib.dataset import images
from gmai_lib.evaluation.contamination import flag_contaminated
from gmai_lib.evaluation.items import Item
from gmai_lib.evaluation.results import summarise
from gmai_lib.schema import QuestionAnswer

RNG = np.random.default_rng(0)


def drawn() -> np.ndarray:
    """A smooth random picture: pure noise would survive no compression."""
    small = Image.fromarray(RNG.integers(0, 255, (8, 8), dtype=np.uint8))
    return np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC))


def compressed(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=50)
    return out.getvalue()


def item(number: int, pictures: tuple[bytes, ...], question: str = "Is there a nodule?") -> Item:
    values = {"id": f"demo#{number}", "benchmark": "demo", "images": pictures, "answer": "yes"}
    values |= {"question": question, "kind": "yes/no", "language": "en", "group": str(number)}
    return Item(**values, modality="CT", source="demo", subsets=("organ=lung",))


def trained(name: str, **values):
    made = record(name, width=64, height=64)
    empty = {"labels": (), "boxes": (), "absent": (), "patient": "", "volume": "", "sha256": ""}
    return replace(made, id=name, **empty | values)


def test_copies_in_the_training_data_are_flagged_and_have_a_row_of_their_own():
    same, alike, other, new = (drawn() for _ in range(4))
    long = "Does the drug that was given to the forty patients of the second group help them?"
    training = [
        trained("same", image=images.to_png(same)),
        trained("alike", image=images.to_png(alike)),
        trained("other", image=images.to_png(other)),
        trained("text", image=None, qa=(QuestionAnswer(question=long, answer="yes"),)),
    ]
    items = [
        item(0, (images.to_png(same),)),
        item(1, (compressed(alike),)),
        item(2, (images.to_png(new),)),
        item(3, (images.to_png(new), images.to_png(same))),
        item(4, (), long),
        item(5, (), "Is it known whether the new method works for children under the age of two?"),
    ]
    flagged = flag_contaminated(items, training)
    said = [subset for i in flagged for subset in i.subsets if subset.startswith("contaminated")]
    assert said == [f"contaminated={x}" for x in ("yes", "yes", "no", "yes", "yes", "no")]
    assert [replace(i, subsets=("organ=lung",)) for i in flagged] == items
    responses = [{"id": i.id, "response": "yes", "finished": True} for i in items]
    rows = summarise(flagged, responses, None, checkpoint="x")
    sizes = {row["subset"]: row["num_items"] for row in rows}
    assert (sizes["contaminated=yes"], sizes["contaminated=no"]) == (4, 2)


@pytest.mark.parametrize("training", [[], [trained("text", image=None)]])
def test_nothing_is_flagged_without_training_data(training):
    flagged = flag_contaminated([item(0, (images.to_png(drawn()),))], training)
    assert flagged[0].subsets[-1] == "contaminated=no"
