"""The training data: store of tokens and pixels -> mixture -> packs -> device batches.

    store = prepare(pairs, cache, split="train", processor=processor)
    loader = PairLoader(store, profile.stage("deep_alignment"), seed=0)
    step = next(loader)  # the packs of one optimizer step
    inputs = to_device(step.micro_batches[0], "cpu", torch.bfloat16)

Order, packs and noise depend only on (seed, epoch, position), not on the number of ranks, on the
micro batch size or on where a run was resumed (`stage.augment` turns the noise off).

Paper: section 4.2, the stage table (subsets per stage) and table 10 (mixture). Departs: training
varies brightness, contrast and noise a little, because the mini profile sees few images.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from gmai_lib.config import Stage
from gmai_lib.model import chat
from gmai_lib.model.kernels import VARLEN
from gmai_lib.schema import SUBSETS
from gmai_lib.training.packing import block_mask, collate, deal, pack, sample_starts, spread
from gmai_lib.training.store import Store, prepare

__all__ = ["PairLoader", "Step", "Store", "prepare", "rows_of_mixture", "to_device", "vary"]

CHUNK = 4096  # samples packed together: enough to fill packs to 97 %, few enough to stay mixed
BRIGHTNESS, CONTRAST, NOISE = 0.05, 0.1, 0.01  # of full scale; largest shift, factor, deviation


@dataclass(frozen=True)
class Step:
    """The packs of one optimizer step: this rank's batches, and counts over all ranks."""

    micro_batches: list[dict]  # see packing.collate; plus "noise_seeds" (N,), "members" (rows)
    epoch: int
    samples: int
    images: int
    tokens: int  # without padding
    padded_tokens: int
    label_tokens: int
    label_weight: float  # of all labels together: what the global batch's loss is divided by
    attended: int  # pairs of tokens of one sample: the sum of the squared lengths
    capacity: int  # tokens if every pack were full
    rank_spread: tuple[float, float]  # packing.spread of the ranks' work undealt, and as dealt
    after: tuple[int, int]  # (epoch, pack) at which the next step begins


class PairLoader:
    """An endless iterator over optimizer steps, restartable at any of them.

    Yields a `Step` with this rank's `gradient_accumulation_steps` micro batches. The next step
    is collated in a thread while the current one is used. `counts` says how many samples were
    kept, and how many dropped and why; `cut` how many of those kept lost their last turns.

    With `stage.mixture` an epoch draws that share of every source, the next epoch other samples
    of it, until all have been seen; `drawn` counts them.

    Raises ValueError if no sample is left, or none of a source fits `stage.max_length`; if there
    are fewer samples than ranks; and if a source of the mixture is absent, unless
    `stage.missing_sources` is "reweigh".
    """

    def __init__(
        self,
        store: Store,
        stage: Stage,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        stage.gradient_accumulation_steps(world_size)  # raises if the batch does not divide
        self.store, self.stage, self.seed = store, stage, seed
        self.rank, self.world_size = rank, world_size
        self.lengths, self.images = store.lengths, np.diff(store.image_starts)
        self.kept, self.counts, self.rows = self._select()
        if len(self.kept) < max(1, world_size):
            few = "no sample" if not len(self.kept) else f"fewer samples than ranks ({world_size})"
            raise ValueError(f"stage {stage.name}: {few} to train on: {self.counts}")
        self._label_weight = store.label_weight(stage.loss_weighting)
        self._label_tokens = store.label_tokens
        self.cut = self._apply_cuts()
        self._packs: tuple[int, list[np.ndarray]] = (-1, [])  # of the epoch last asked for
        # The last step of an epoch runs on into the next one, so this need not be whole.
        self.steps_per_epoch = len(self.packs(0)) / stage.global_batch_size
        self._position = (0, 0)  # (epoch, pack) at which the next step begins
        self._ahead, self._thread = None, ThreadPoolExecutor(1)

    def _select(self):
        """Return the indices to train on, the counts of kept and dropped samples, mixture rows."""
        store, stage = self.store, self.stage
        if stage.over_long == "cut":
            self.lengths = store.fitting_lengths(stage.max_length)
        dropped = np.zeros(len(self.lengths), bool)
        wanted = {"subset": stage.subsets, "language": stage.languages}
        counts = {"seen": len(self.lengths)}
        refused = {
            f"other {name}": ~store.categories[name].isin(values) for name, values in wanted.items()
        }
        row_of = None
        if stage.mixture is not None:
            row_of = rows_of_mixture(store, stage.mixture)
            drawn = np.array([ratio > 0 for ratio in stage.mixture.values()] + [True])
            refused |= {"not in the mixture": row_of < 0, "ratio zero": ~drawn[row_of]}
        refused["too long"] = (self.lengths > stage.max_length) | (self.lengths == 0)
        for reason, mask in refused.items():
            if reason == "too long":
                self._require_fitting(mask, dropped)
            counts[reason] = int((mask & ~dropped).sum())
            dropped |= mask
        kept = np.flatnonzero(~dropped)
        rows = self._mixture_rows(row_of, kept) if stage.mixture is not None else []
        return kept, counts | {"kept": len(kept)}, rows

    def _require_fitting(self, too_long, dropped):
        """Raise ValueError for a source whose samples are all longer than a pack."""
        sources = self.store.categories["source"]
        wanted = np.bincount(sources.codes[~dropped], minlength=len(sources.categories))
        lost = np.bincount(sources.codes[too_long & ~dropped], minlength=len(sources.categories))
        for code in np.flatnonzero((wanted > 0) & (lost == wanted)):
            shortest = self.store.lengths[(sources.codes == code) & ~dropped].min()
            raise ValueError(
                f"stage {self.stage.name}: none of the {wanted[code]} samples of source "
                f"{sources.categories[code]} fits {self.stage.max_length} tokens (the shortest has "
                f"{shortest}); raise max_length or leave the source out"
            )

    def _mixture_rows(self, row_of, kept) -> list[dict]:
        """Return the mixture's rows with their samples in the order in which epochs draw them.

        Raises ValueError for absent sources unless the stage asks for "reweigh".
        """
        rows = []
        for number, (key, ratio) in enumerate(self.stage.mixture.items()):
            rng = np.random.default_rng((self.seed, number))
            members = rng.permutation(kept[row_of[kept] == number])
            rows.append({"source": key, "ratio": ratio, "members": members})
        absent = [row["source"] for row in rows if row["ratio"] and not len(row["members"])]
        if absent and self.stage.missing_sources == "error":
            raise ValueError(
                f"stage {self.stage.name}: {len(absent)} of {len(rows)} sources of the mixture "
                f"have no sample to train on: {', '.join(absent)}; add them, take them out, or "
                'set missing_sources="reweigh" to train on the others'
            )
        return rows

    def drawn(self, epoch: int) -> list[dict]:
        """Return what the epoch draws of each source of the mixture.

        Rows of source, ratio, available and drawn (samples), share (of all that is drawn);
        nothing without a mixture.
        """
        counts = [(row, len(self._draw(row, epoch))) for row in self.rows]
        whole = max(1, sum(count for _, count in counts))
        return [
            {"source": row["source"], "ratio": row["ratio"], "available": len(row["members"])}
            | {"drawn": count, "share": count / whole}
            for row, count in counts
        ]

    @staticmethod
    def _draw(row: dict, epoch: int) -> np.ndarray:
        """The epoch's stretch of a source's order, which goes round and round.

        Its ends are rounded, not its length: over the epochs the ratio is met exactly.
        """
        members, ratio = row["members"], row["ratio"]
        ends = [round(number * ratio * len(members)) for number in (epoch, epoch + 1)]
        return members[np.arange(*ends) % max(1, len(members))]

    def _apply_cuts(self) -> int:
        """Correct the counts of the samples that are cut; return how many those are."""
        cut = self.kept[self.lengths[self.kept] < self.store.lengths[self.kept]]
        if len(cut):
            self._label_tokens, self.images = self._label_tokens.copy(), self.images.copy()
        for index in cut:
            sample = self._sample(index)
            self.images[index] = len(sample["pixels"])
            self._label_tokens[index] = (sample["labels"] != chat.IGNORE_INDEX).sum()
            self._label_weight[index] = sample["label_weights"].sum(dtype=np.float64)
        return len(cut)

    def _sample(self, index: int) -> dict[str, np.ndarray]:
        return self.store.sample(index, self.stage.loss_weighting, self.lengths[index])

    def packs(self, epoch: int) -> list[np.ndarray]:
        """Return the epoch's packs, arrays of sample indices, in order."""
        held, packs = self._packs
        if held != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            order, lengths = rng.permutation(self._members(epoch)), self.lengths
            packs = []
            for start in range(0, len(order), CHUNK):
                chunk = order[start : start + CHUNK]
                limits = {"images": self.images[chunk], "max_images": self.stage.max_images}
                groups = pack(lengths[chunk], self.stage.max_length, rng=rng, **limits)
                packs += [chunk[group] for group in groups]
            self._packs = (epoch, packs)
        return packs

    def _members(self, epoch: int) -> np.ndarray:
        """Indices of the samples of an epoch, unordered."""
        if not self.rows:
            return self.kept
        return np.concatenate([self._draw(row, epoch) for row in self.rows])

    def __iter__(self):
        return self

    def __next__(self) -> Step:
        step = self._ahead.result() if self._ahead else self._step(self._position)
        self._position = step.after
        self._ahead = self._thread.submit(self._step, self._position)
        return step

    def _step(self, position: tuple[int, int]) -> Step:
        """Collate the step that begins at `position`; depends on nothing else."""
        stage, (epoch, start), packs = self.stage, position, []
        while len(packs) < stage.global_batch_size:
            taken = self.packs(epoch)[start : start + stage.global_batch_size - len(packs)]
            packs += taken
            start += len(taken)
            if start == len(self.packs(epoch)):
                epoch, start = epoch + 1, 0
        # Images decide what a pack costs, since all are nearly equally long.
        lengths, images = self.lengths, self.images
        counts = [int(images[members].sum()) for members in packs]
        rng = np.random.default_rng((self.seed, *position))
        seeds = np.split(rng.integers(2**62, size=sum(counts)), np.cumsum(counts)[:-1])
        costs = [
            count * stage.max_length + lengths[members].sum()
            for count, members in zip(counts, packs, strict=True)
        ]
        hands = deal(costs, stage.global_batch_size // stage.micro_batch_size)
        # Compiled layers are compiled for a length.
        length, batches = stage.max_length if stage.torch_compile else 0, []
        for number in range(self.rank, len(hands), self.world_size):
            rows = [[self._sample(i) for i in packs[place]] for place in hands[number]]
            batch = collate(rows, pad_token_id=self.store.pad_token_id, length=length)
            if torch.cuda.is_available():
                batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
            batch["members"] = [packs[place] for place in hands[number]]
            batch["noise_seeds"] = np.concatenate([seeds[place] for place in hands[number]])
            batches.append(batch)
        members = np.concatenate(packs)
        sizes = np.array([lengths[p].sum() for p in packs])
        in_order = np.arange(len(packs)).reshape(len(hands), -1).tolist()
        return Step(
            micro_batches=batches,
            epoch=position[0],
            samples=len(members),
            images=sum(counts),
            tokens=int(sizes.sum()),
            padded_tokens=int(sum(len(hand) * max(length, sizes[hand].max()) for hand in hands)),
            # Known to every rank without asking the others: the loss is a mean over these.
            label_tokens=int(self._label_tokens[members].sum()),
            label_weight=float(self._label_weight[members].sum()),
            attended=int((lengths[members] ** 2).sum()),
            capacity=stage.global_batch_size * stage.max_length,
            rank_spread=tuple(spread(costs, self._by_rank(way)) for way in (in_order, hands)),
            after=(epoch, start),
        )

    def _by_rank(self, hands) -> list[list[int]]:
        """Join the hands that one rank works through."""
        ranks = range(self.world_size)
        return [np.concatenate(hands[rank :: self.world_size]).tolist() for rank in ranks]

    def state_dict(self) -> dict:
        """Where the next step begins, and what makes the order what it is."""
        return {"position": list(self._position), "order": self._order()}

    def load_state_dict(self, state: dict):
        """Continue where another loader's `state_dict` was taken.

        Raises ValueError if data, seed or batch differ: the order would be another.
        """
        if state["order"] != self._order():
            raise ValueError(f"cannot resume: data order {state['order']} is now {self._order()}")
        self._position, self._ahead = tuple(state["position"]), None

    def _order(self) -> dict:
        return {
            "seed": self.seed,
            "samples": len(self.kept),
            "tokens": int(self.lengths[self.kept].sum()),
            "mixture": self.stage.mixture,
            "max_length": self.stage.max_length,
            "global_batch_size": self.stage.global_batch_size,
        }


def rows_of_mixture(store: Store, mixture: dict[str, float]) -> np.ndarray:
    """Return (samples,) int64: the row of `mixture` each sample belongs to, -1 for none.

    A sample belongs to its source's row for its subset, else to its source's row, else to that
    of its subset ("*/caption"). Upper case and punctuation of sources do not count.
    """
    source, subset = store.categories["source"], store.categories["subset"]
    numbers = {key: number for number, key in enumerate(map(_mixture_key, mixture))}
    if len(numbers) < len(mixture):
        raise ValueError(f"two rows of the mixture name the same source: {list(mixture)}")
    table = np.full((len(source.categories), len(subset.categories)), -1)
    for i, name in enumerate(map(_plain, source.categories)):
        for j, kind in enumerate(subset.categories):
            found = [numbers[k] for k in ((name, kind), (name, ""), ("*", kind)) if k in numbers]
            table[i, j] = found[0] if found else -1
    return table[source.codes, subset.codes]


def _mixture_key(key: str) -> tuple[str, str]:
    """Split "source/subset"; a source may have a slash of its own."""
    source, _, subset = key.rpartition("/")
    source, subset = (source, subset) if subset in SUBSETS else (key, "")
    return (source if source == "*" else _plain(source)), subset


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def to_device(
    batch: dict, device, dtype: torch.dtype, *, noise: bool = True, attention: str = "sdpa"
) -> dict:
    """Turn a micro batch into the model's arguments on `device`.

    Pixels travel as bytes; noise, normalisation and the attention mask are made there. With
    `noise` the pixels are varied (see `vary`) by the images' own seeds; without, they are what
    `chat.pixel_values` gives at inference. With `attention` kernels.VARLEN the samples are told
    by where they start instead of by a mask.
    """
    names = ("input_ids", "labels", "label_weights", "position_ids", "sequence_ids", "pixels")
    moved = {name: batch[name].to(device, non_blocking=True) for name in names}
    pixels = moved.pop("pixels")
    if noise:
        pixels = vary(pixels, batch["noise_seeds"])
    inputs = {name: moved[name] for name in names[:4]}
    if attention == VARLEN:
        # Made here, where the ids are: on the device it would wait for all work before.
        starts = sample_starts(batch["sequence_ids"])
        inputs["cu_seq_lens_q"] = starts.to(device, non_blocking=True)
        inputs["max_length_q"] = batch["sequence_ids"].shape[1]  # a bound; no new one every batch
    else:
        inputs["attention_mask"] = block_mask(moved["sequence_ids"])
    inputs["pixel_values"] = chat.normalize_pixels(pixels).to(dtype)
    inputs["dummy_image"] = not len(pixels)  # else ranks would wait for each other's gradients
    return inputs


def vary(pixels: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Change brightness, contrast and noise of (N, 3, S, S) uint8 images; returns float 0..255.

    One seed per image, so that it does not matter which others lie in its batch. The noise is
    equal in the three channels: grey images stay grey. No flips and no crops: answers name sides
    and places.
    """
    count, size, device = len(pixels), pixels.shape[-1], pixels.device
    generator, draws = torch.Generator(device), torch.empty((count, 2, 1, 1, 1), device=device)
    noise = torch.empty((count, 1, size, size), device=device)
    for seed, draw, grain in zip(seeds, draws, noise, strict=True):
        generator.manual_seed(int(seed))
        draw.uniform_(-1, 1, generator=generator)
        grain.normal_(generator=generator)
    contrast, brightness = draws.unbind(1)
    varied = pixels.float()
    mean = varied.mean((1, 2, 3), keepdim=True)
    varied = (varied - mean) * (1 + CONTRAST * contrast) + mean
    return (varied + 255 * (BRIGHTNESS * brightness + NOISE * noise)).clamp(0, 255)
