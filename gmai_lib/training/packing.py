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
from torch.nn import functional as F

from gmai_lib.model.chat import IGNORE_INDEX

STARTS = 64  # so that compiled layers meet few lengths of `sample_starts`


def pack(
    lengths,
    max_length: int,
    *,
    rng: np.random.Generator,
    images=None,
    max_images: int | None = None,
) -> list[list[int]]:
    """Group samples so that no group exceeds `max_length` tokens; return the groups.

    With `max_images` and the number of `images` of each sample, none exceeds so many images
    either: they cost the vision tower memory, however few tokens they make.

    Best-fit-decreasing: the longest sample first, each into the fullest pack that still takes
    it. Every index occurs exactly once. `rng` decides between samples of equal length and the
    order of the packs. Raises ValueError for a sample that is too large for a pack.
    """
    lengths = np.asarray(lengths)
    images = np.zeros(len(lengths), int) if max_images is None else np.asarray(images)
    for sizes, most, unit in ((lengths, max_length, "tokens"), (images, max_images, "images")):
        if len(sizes) and sizes.max() > (most or 0):
            raise ValueError(
                f"sample {int(sizes.argmax())} has {sizes.max()} {unit} but a pack holds {most}; "
                "drop or shorten it first"
            )
    shuffled = rng.permutation(len(lengths))
    longest_first = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    packs: list[list[int]] = []
    room: list[int] = []  # images that each pack still takes
    text_only, open_packs = _Spaces(), _Spaces()  # packs without room for images, and with
    for index in longest_first.tolist():
        length, needed = int(lengths[index]), int(images[index])
        found = open_packs.best(length, lambda p, needed=needed: room[p] >= needed)
        spaces = open_packs
        if not needed and text_only.spaces:
            other = text_only.best(length)
            if other and (not found or other[0] <= found[0]):
                found, spaces = other, text_only
        if found:
            target, space = spaces.take(*found), found[0]
        else:
            target, space = len(packs), max_length
            packs.append([])
            room.append(max_images or 0)
        packs[target].append(index)
        room[target] -= needed
        full = max_images is not None and not room[target]
        (text_only if full else open_packs).put(space - length, target)
    return [packs[i] for i in rng.permutation(len(packs))]


class _Spaces:
    """Packs by their free tokens."""

    def __init__(self):
        self.packs: dict[int, list[int]] = {}  # free tokens -> packs that have exactly so many
        self.spaces: list[int] = []  # its keys, sorted

    def best(self, length: int, takes=lambda pack: True) -> tuple[int, int] | None:
        """Return (free tokens, place in `packs`) of the fullest pack that fits, None if none."""
        for fit in range(bisect_left(self.spaces, length), len(self.spaces)):
            space = self.spaces[fit]
            for place in reversed(range(len(self.packs[space]))):
                if takes(self.packs[space][place]):
                    return space, place
        return None

    def take(self, space: int, place: int) -> int:
        """Remove and return a pack that `best` has found."""
        pack = self.packs[space].pop(place)
        if not self.packs[space]:
            del self.packs[space], self.spaces[bisect_left(self.spaces, space)]
        return pack

    def put(self, space: int, pack: int):
        if space not in self.packs:
            self.packs[space] = []
            insort(self.spaces, space)
        self.packs[space].append(pack)


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


def sample_starts(sequence_ids: torch.Tensor) -> torch.Tensor:
    """Return (S,) int32: where each sample starts in the B * T tokens, then B * T.

    For attention that is told the samples instead of a mask (kernels.varlen_attention); rows of
    `sequence_ids` (B, T) as for `block_mask`. A stretch of padding is one sample, a row's end
    always ends one. S is a multiple of STARTS: samples of no tokens follow the last one.
    """
    starts = torch.ones_like(sequence_ids, dtype=torch.bool)
    starts[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    places = starts.flatten().nonzero().squeeze(1)
    end = torch.tensor([sequence_ids.numel()], device=places.device)
    starts = torch.cat((places, end)).to(torch.int32)
    return F.pad(starts, (0, -len(starts) % STARTS), value=sequence_ids.numel())


def collate(
    packs: list[list[dict]], *, pad_token_id: int, length: int = 0
) -> dict[str, torch.Tensor]:
    """Lay samples side by side, one row per pack, padded to the longest row, or to `length`.

    Each sample is a dict of arrays: input_ids (t,), labels (t,), pixels (n, 3, S, S) uint8, and
    label_weights (t,) float where labels do not all weigh 1. Returns input_ids, labels,
    position_ids (from 0 for every sample), sequence_ids (see `block_mask`), all (B, T) int64,
    label_weights (B, T) float32, and pixels (N, 3, S, S) uint8 in the order of their
    placeholders. The first token of a sample must not be a label: it would be predicted from
    the sample before. ValueError if one is.
    """
    rows = [np.concatenate([sample["input_ids"] for sample in samples]) for samples in packs]
    shape = (len(packs), max(length, *(len(row) for row in rows)))
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


def spread(costs, hands: list[list[int]]) -> float:
    """Return by how much the dearest hand exceeds the mean, as a share of it: time lost waiting."""
    costs = np.asarray(costs, np.float64)
    sums = np.array([costs[hand].sum() for hand in hands])
    return float(sums.max() / sums.mean() - 1) if sums.any() else 0.0
