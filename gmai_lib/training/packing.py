"""Isolated packing: several conversations in one row, none of which sees another.

    packs = pack(lengths, 384, rng=numpy.random.default_rng(0))  # lists of sample indices
    batch = collate([[samples[i] for i in p] for p in packs[:16]], pad_token_id=0)
    mask = block_mask(batch["sequence_ids"])

Paper: section 4.2 ("soft packing"). Departs: packs are filled by best-fit-decreasing instead
of in file order, and isolation is a mask plus restarting positions, which any attention kernel
takes, instead of a flash-attention wrapper.

Shape letters: B packs, T tokens, N images, S pixels.
"""

from bisect import bisect_left, insort

import numpy as np
import torch

from gmai_lib.model.chat import IGNORE_INDEX


def pack(lengths, max_length: int, *, rng: np.random.Generator) -> list[list[int]]:
    """Group samples so that no group is longer than `max_length` tokens; return the groups.

    Best-fit-decreasing: the longest sample first, each into the fullest pack that still takes
    it. Every index occurs exactly once. `rng` decides between samples of equal length and the
    order of the packs. Raises ValueError for a sample that is longer than a pack.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > max_length:
        raise ValueError(
            f"sample {int(lengths.argmax())} has {lengths.max()} tokens but a pack holds "
            f"{max_length}; drop or shorten it first"
        )
    shuffled = rng.permutation(len(lengths))
    longest_first = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    packs: list[list[int]] = []
    with_space: dict[int, list[int]] = {}  # free tokens -> packs that have exactly so many
    spaces: list[int] = []  # sorted keys of `with_space`
    for index in longest_first.tolist():
        length = int(lengths[index])
        fit = bisect_left(spaces, length)
        if fit == len(spaces):
            target, space = len(packs), max_length
            packs.append([])
        else:
            space = spaces[fit]
            target = with_space[space].pop()
            if not with_space[space]:
                del with_space[space], spaces[fit]
        packs[target].append(index)
        left = space - length
        if left not in with_space:
            with_space[left] = []
            insort(spaces, left)
        with_space[left].append(target)
    return [packs[i] for i in rng.permutation(len(packs))]


def block_mask(sequence_ids: torch.Tensor) -> torch.Tensor:
    """Return (B, 1, T, T) bool, True where the row token may attend to the column token.

    `sequence_ids` (B, T) numbers the samples of a pack from 1; 0 is padding. A token sees
    itself and earlier tokens of its own sample. Padding sees padding only: a row without any
    True would make softmax divide 0 by 0.
    """
    length = sequence_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=sequence_ids.device).tril()
    same = sequence_ids[:, :, None] == sequence_ids[:, None, :]
    return (same & causal)[:, None]


def collate(packs: list[list[dict]], *, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Lay samples side by side, one row per pack, padded to the longest row.

    Each sample is a dict of arrays: input_ids (t,), labels (t,), pixels (n, 3, S, S) uint8, and
    label_weights (t,) float where labels do not all weigh 1. Returns input_ids, labels,
    position_ids (from 0 for every sample), sequence_ids (see `block_mask`), all (B, T) int64,
    label_weights (B, T) float32, and pixels (N, 3, S, S) uint8 in the order of their
    placeholders. The first token of a sample must not be a label: it would be predicted from
    the sample before. ValueError if one is.
    """
    rows = [np.concatenate([sample["input_ids"] for sample in samples]) for samples in packs]
    shape = (len(packs), max(len(row) for row in rows))
    input_ids = np.full(shape, pad_token_id, np.int64)
    labels = np.full(shape, IGNORE_INDEX, np.int64)
    position_ids, sequence_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    label_weights = np.zeros(shape, np.float32)
    for row, samples in enumerate(packs):
        start = 0
        for number, sample in enumerate(samples, start=1):
            if sample["labels"][0] != IGNORE_INDEX:
                raise ValueError(f"sample {number} of pack {row} begins with a label")
            cells = slice(start, start + len(sample["input_ids"]))
            input_ids[row, cells] = sample["input_ids"]
            labels[row, cells] = sample["labels"]
            label_weights[row, cells] = sample.get("label_weights", 1)
            position_ids[row, cells] = np.arange(cells.stop - start)
            sequence_ids[row, cells] = number
            start = cells.stop
    pixels = np.concatenate([sample["pixels"] for samples in packs for sample in samples])
    batch = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
    batch |= {"sequence_ids": sequence_ids, "label_weights": label_weights, "pixels": pixels}
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def deal(costs, num_hands: int) -> list[list[int]]:
    """Deal items to `num_hands` hands of equal count and nearly equal summed cost.

    Ranks wait for the slowest, and images cost more than the text beside them. The dearest
    items go first, back and forth over the hands. Raises ValueError if the count does not divide.
    """
    if len(costs) % num_hands:
        raise ValueError(f"{len(costs)} packs cannot be dealt evenly to {num_hands} batches")
    hands: list[list[int]] = [[] for _ in range(num_hands)]
    for place, index in enumerate(np.argsort(-np.asarray(costs), kind="stable").tolist()):
        turn, hand = divmod(place, num_hands)
        hands[hand if turn % 2 == 0 else num_hands - 1 - hand].append(index)
    return hands
