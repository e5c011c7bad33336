"""The training data: Parquet shards -> store of tokens and pixels -> packs -> device batches.

    store = prepare(pairs, cache, split="train", processor=processor)
    loader = PairLoader(store, profile.stage("deep_alignment"), seed=0)
    step = next(loader)  # the packs of one optimizer step
    inputs = to_device(step.micro_batches[0], "cpu", torch.bfloat16)

Every sample is tokenised and every distinct image decoded and resized once; ranks and stages
share the result as memory-mapped files (3 x S x S bytes an image). Order, packs and noise depend
only on (seed, epoch, position), not on the number of ranks or on where a run was resumed.

Paper: section 4.2 and the stage table (subsets per stage). Departs: training varies brightness,
contrast and noise a little, because the mini profile sees few images.
"""

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from gmai_lib.config import LOSS_WEIGHTINGS, Stage
from gmai_lib.model import chat
from gmai_lib.outputs import read_json, write_json
from gmai_lib.schema import SUBSETS
from gmai_lib.training.launch import fingerprint
from gmai_lib.training.packing import block_mask, collate, deal, pack, spread

CHUNK = 4096  # samples packed together: enough to fill packs to 97 %, few enough to stay mixed
COLUMNS = ("id", "images", "conversations", "subset", "language", "source")
CATEGORIES = ("subset", "language", "source")
LAYOUT = 2  # of the store's files; part of its name, so that an older store is made anew
BRIGHTNESS, CONTRAST, NOISE = 0.05, 0.1, 0.01  # of full scale; largest shift, factor, deviation


@dataclass(frozen=True)
class Store:
    """Samples of one split. Sample i owns tokens `token_starts[i]:token_starts[i + 1]`."""

    input_ids: np.ndarray  # (all tokens,) int32; placeholders widened
    supervised: np.ndarray  # (all tokens,) bool: the token is an answer's
    token_starts: np.ndarray  # (samples + 1,) int64
    images: np.ndarray  # (all image uses,) int64 rows of `pixels`
    image_starts: np.ndarray  # (samples + 1,) int64
    pixels: np.ndarray  # (distinct images, 3, S, S) uint8
    label_tokens: np.ndarray  # (samples,) int64: how many tokens of each sample are learned
    categories: dict[str, pd.Categorical]  # subset, language and source of each sample
    ids: np.ndarray  # (all characters of the samples' ids,) uint8, UTF-8
    id_starts: np.ndarray  # (samples + 1,) int64
    pad_token_id: int
    image_token_id: int
    tokens_per_image: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample, image tokens included."""
        return np.diff(self.token_starts)

    def sample_id(self, index: int) -> str:
        """Return the id of one sample, as the builder wrote it."""
        return bytes(self.ids[self.id_starts[index] : self.id_starts[index + 1]]).decode()

    def sample(
        self, index: int, loss_weighting: str = "token", length: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return input_ids, labels and label_weights (t,), pixels (n, 3, S, S) of one sample.

        With `length`, of its first `length` tokens and the images shown in them.
        """
        start, stop = self.token_starts[index], self.token_starts[index + 1]
        tokens = slice(start, stop if length is None else start + length)
        input_ids, supervised = self.input_ids[tokens], self.supervised[tokens]
        rows = self.images[self.image_starts[index] : self.image_starts[index + 1]]
        if tokens.stop != stop:
            shown = np.count_nonzero(input_ids == self.image_token_id)
            rows = rows[: shown // self.tokens_per_image]
        labels = np.where(supervised, input_ids, chat.IGNORE_INDEX)
        label_weights = np.zeros(len(labels), np.float32)
        starts, lengths = _answers(supervised)
        for start, length in zip(starts, lengths, strict=True):
            label_weights[start : start + length] = length ** -LOSS_WEIGHTINGS[loss_weighting]
        sample = {"input_ids": input_ids, "labels": labels, "label_weights": label_weights}
        return sample | {"pixels": self.pixels[rows]}

    def label_weight(self, loss_weighting: str) -> np.ndarray:
        """Return (samples,) float64: what the labels of each sample weigh together."""
        starts, lengths = _answers(self.supervised)
        owners = np.searchsorted(self.token_starts, starts, side="right") - 1
        weights = lengths ** (1.0 - LOSS_WEIGHTINGS[loss_weighting])
        return np.bincount(owners, weights, minlength=len(self.token_starts) - 1)

    def fitting_lengths(self, max_length: int) -> np.ndarray:
        """Return (samples,) int64: tokens of each sample up to the last answer that fits.

        Samples that fit keep their length; 0 where not even the first answer does.
        """
        starts, lengths = _answers(self.supervised)
        owners = np.searchsorted(self.token_starts, starts, side="right") - 1
        ends = starts + lengths - self.token_starts[owners]
        fits = ends <= max_length
        last = np.zeros(len(self.lengths), np.int64)
        np.maximum.at(last, owners[fits], ends[fits])
        return np.where(self.lengths <= max_length, self.lengths, last)


def _answers(supervised: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each run of supervised tokens starts, and how long it is.

    A sample begins with the user's turn, so no run goes on into the next sample.
    """
    edges = np.flatnonzero(np.diff(supervised.astype(np.int8), prepend=0, append=0))
    return edges[::2], edges[1::2] - edges[::2]


def prepare(pairs: Path, cache: Path, *, split: str, processor) -> Store:
    """Open the store of `split` in the folder `cache`; build it first where it is missing.

    The store's name holds a hash of the shards, the tokenizer, the chat template and the image
    transform, so a change of any of them builds another. Raises ValueError that names the
    sample for a broken image or one `<image>` too many, FileNotFoundError without shards.
    """
    shards = sorted(Path(pairs).glob(f"{split}-*.parquet"))
    if not shards:
        raise FileNotFoundError(f"{pairs} has no {split}-*.parquet; run notebook 03 first")
    key = f"{LAYOUT} {fingerprint(pairs)} {split} {_probe(processor)}"
    key = hashlib.sha256(key.encode()).hexdigest()
    folder = Path(cache) / f"{split}-{key[:16]}"
    if not folder.exists():
        _build(shards, folder, processor)
    return _open(folder)


def _probe(processor) -> str:
    """Hash what tokenizer, template and image transform make of one small example."""
    turns = ({"role": "user", "content": "<image>\nx 0.18"}, {"role": "assistant", "content": "y"})
    encoded = chat.encode(turns, processor.tokenizer, 2)
    ramp = np.arange(48 * 32, dtype=np.uint32).reshape(48, 32).astype(np.uint8)
    pixels = chat.square_image(ramp, _size(processor))
    vocabulary = json.dumps(processor.tokenizer.get_vocab(), sort_keys=True)
    merges = processor.tokenizer.backend_tokenizer.to_str()
    text = f"{encoded} {_tokens_per_image(processor)} {vocabulary} {merges}"
    return hashlib.sha256(text.encode() + pixels.numpy().tobytes()).hexdigest()


def _size(processor) -> int:
    return processor.image_processor.size["height"]


def _tokens_per_image(processor) -> int:
    return (_size(processor) // processor.patch_size) ** 2


def _build(shards, folder: Path, processor):
    """Stream the shards into the store's files; a killed build leaves only a `.partial` folder."""
    import pyarrow.parquet as pq

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer, size = processor.tokenizer, _size(processor)
    token_starts, label_tokens, image_starts, uses, known = [0], [], [0], [], {}
    id_starts = [0]
    categories = {name: [] for name in CATEGORIES}
    with (
        (partial / "input_ids.int32").open("wb") as ids_file,
        (partial / "supervised.bool").open("wb") as supervised_file,
        (partial / "pixels.uint8").open("wb") as pixels_file,
        (partial / "ids.uint8").open("wb") as names_file,
    ):
        for shard in shards:
            for rows in pq.ParquetFile(shard).iter_batches(256, columns=list(COLUMNS)):
                for row in rows.to_pylist():
                    encoded = _encode(row, shard, tokenizer, _tokens_per_image(processor))
                    ids_file.write(np.asarray(encoded["input_ids"], np.int32).tobytes())
                    supervised = np.asarray(encoded["labels"]) != chat.IGNORE_INDEX
                    supervised_file.write(supervised.tobytes())
                    token_starts.append(token_starts[-1] + len(supervised))
                    label_tokens.append(supervised.sum())
                    id_starts.append(id_starts[-1] + names_file.write(row["id"].encode()))
                    for image in row["images"]:
                        digest = hashlib.sha256(image["bytes"]).digest()
                        if digest not in known:
                            known[digest] = len(known)
                            pixels_file.write(_pixels(image["bytes"], size, row, shard))
                        uses.append(known[digest])
                    image_starts.append(len(uses))
                    for name in CATEGORIES:
                        categories[name].append(row[name])
    arrays = {"token_starts": token_starts, "label_tokens": label_tokens}
    arrays |= {"image_starts": image_starts, "images": uses, "id_starts": id_starts}
    arrays = {name: np.asarray(values, np.int64) for name, values in arrays.items()}
    names = {name: sorted(set(values)) for name, values in categories.items()}
    for name, values in categories.items():
        arrays[name] = np.searchsorted(names[name], values).astype(np.int32)
    np.savez(partial / "index.npz", **arrays)
    info = {"categories": names, "pixels": [len(known), 3, size, size]}
    info |= {"tokens_per_image": _tokens_per_image(processor)}
    info |= {"image_token_id": tokenizer.convert_tokens_to_ids(chat.IMAGE_TOKEN)}
    write_json(partial / "store.json", info | {"pad_token_id": tokenizer.pad_token_id})
    partial.rename(folder)


def _encode(row, shard, tokenizer, tokens_per_image) -> dict:
    """Tokenise one row; ValueError names it if text and images do not agree."""
    try:
        encoded = chat.encode(row["conversations"], tokenizer, tokens_per_image)
    except ValueError as error:
        raise ValueError(f"{shard}: sample {row['id']}: {error}") from error
    text = "".join(turn["content"] for turn in row["conversations"])
    if text.count(chat.IMAGE_TOKEN) != len(row["images"]):
        raise ValueError(
            f"{shard}: sample {row['id']} has {len(row['images'])} images but its conversation "
            f"has {text.count(chat.IMAGE_TOKEN)} {chat.IMAGE_TOKEN}"
        )
    return encoded


def _pixels(data: bytes, size: int, row, shard) -> bytes:
    try:
        return chat.square_image(data, size).numpy().tobytes()
    except (OSError, ValueError) as error:  # Pillow's UnidentifiedImageError is an OSError
        raise ValueError(f"{shard}: image of sample {row['id']} cannot be read: {error}") from error


def _open(folder: Path) -> Store:
    info = read_json(folder / "store.json")
    index = np.load(folder / "index.npz")
    return Store(
        input_ids=_mapped(folder / "input_ids.int32", np.int32, -1),
        supervised=_mapped(folder / "supervised.bool", np.bool_, -1),
        token_starts=index["token_starts"],
        images=index["images"],
        image_starts=index["image_starts"],
        pixels=_mapped(folder / "pixels.uint8", np.uint8, info["pixels"]),
        label_tokens=index["label_tokens"],
        categories={
            name: pd.Categorical.from_codes(index[name], info["categories"][name])
            for name in CATEGORIES
        },
        ids=_mapped(folder / "ids.uint8", np.uint8, -1),
        id_starts=index["id_starts"],
        **{name: info[name] for name in ("pad_token_id", "image_token_id", "tokens_per_image")},
    )


def _mapped(path: Path, dtype, shape) -> np.ndarray:
    if not path.stat().st_size:  # an empty file cannot be mapped; text-only data has no pixels
        return np.zeros(shape if shape != -1 else 0, dtype)
    return np.memmap(path, dtype, mode="r").reshape(shape)


@dataclass(frozen=True)
class Step:
    """The packs of one optimizer step: this rank's batches, and counts over all ranks."""

    micro_batches: list[dict]  # see packing.collate; plus "noise_seed" (ints), "members" (rows)
    epoch: int
    samples: int
    images: int
    tokens: int  # without padding
    padded_tokens: int
    label_tokens: int
    label_weight: float  # of all labels together: what the global batch's loss is divided by
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
        languages: tuple[str, ...] | None = None,
        sources: tuple[str, ...] | None = None,
    ):
        stage.gradient_accumulation_steps(world_size)  # raises if the batch does not divide
        self.store, self.stage, self.seed = store, stage, seed
        self.rank, self.world_size = rank, world_size
        self.lengths, self.images = store.lengths, np.diff(store.image_starts)
        self.kept, self.counts, self.rows = self._select(languages, sources)
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

    def _select(self, languages, sources):
        """Return the indices to train on, the counts of kept and dropped samples, mixture rows."""
        store, stage = self.store, self.stage
        if stage.over_long == "cut":
            self.lengths = store.fitting_lengths(stage.max_length)
        dropped = np.zeros(len(self.lengths), bool)
        wanted = {"subset": stage.subsets, "language": languages, "source": sources}
        counts = {"seen": len(self.lengths)}
        refused = {
            f"other {name}": ~store.categories[name].isin(values)
            for name, values in wanted.items()
            if values is not None
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
        costs = [images[p].sum() * stage.max_length + lengths[p].sum() for p in packs]
        hands = deal(costs, stage.global_batch_size // stage.micro_batch_size)
        batches = []
        for number in range(self.rank, len(hands), self.world_size):
            rows = [[self._sample(i) for i in packs[place]] for place in hands[number]]
            batch = collate(rows, pad_token_id=self.store.pad_token_id)
            if torch.cuda.is_available():
                batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
            batch["members"] = [packs[place] for place in hands[number]]
            batches.append(batch | {"noise_seed": (self.seed, *position, number)})
        members = np.concatenate(packs)
        sizes = np.array([lengths[p].sum() for p in packs])
        in_order = np.arange(len(packs)).reshape(len(hands), -1).tolist()
        return Step(
            micro_batches=batches,
            epoch=position[0],
            samples=len(members),
            images=int(images[members].sum()),
            tokens=int(sizes.sum()),
            padded_tokens=int(sum(len(hand) * sizes[hand].max() for hand in hands)),
            # Known to every rank without asking the others: the loss is a mean over these.
            label_tokens=int(self._label_tokens[members].sum()),
            label_weight=float(self._label_weight[members].sum()),
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
            "micro_batch_size": self.stage.micro_batch_size,
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


def to_device(batch: dict, device, dtype: torch.dtype, *, noise: bool = True) -> dict:
    """Turn a micro batch into the model's arguments on `device`.

    Pixels travel as bytes; noise, normalisation and the attention mask are made there. With
    `noise` the pixels are varied (see `vary`) by the batch's own seed; without, they are what
    `chat.pixel_values` gives at inference.
    """
    names = ("input_ids", "labels", "label_weights", "position_ids", "sequence_ids", "pixels")
    moved = {name: batch[name].to(device, non_blocking=True) for name in names}
    pixels = moved.pop("pixels")
    if noise:
        pixels = vary(pixels, batch["noise_seed"])
    inputs = {name: moved[name] for name in names[:4]}
    inputs["attention_mask"] = block_mask(moved["sequence_ids"])
    inputs["pixel_values"] = chat.normalize_pixels(pixels).to(dtype)
    inputs["dummy_image"] = not len(pixels)  # else ranks would wait for each other's gradients
    return inputs


def vary(pixels: torch.Tensor, seed: tuple[int, ...]) -> torch.Tensor:
    """Change brightness, contrast and noise of (N, 3, S, S) uint8 images; returns float 0..255.

    One draw per image, the noise equal in the three channels: grey images stay grey. No flips
    and no crops: answers name sides and places.
    """
    state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator(pixels.device).manual_seed(state)
    count, size = len(pixels), pixels.shape[-1]
    draws = torch.rand((2, count, 1, 1, 1), generator=generator, device=pixels.device) * 2 - 1
    noise = torch.randn((count, 1, size, size), generator=generator, device=pixels.device)
    varied = pixels.float()
    mean = varied.mean((1, 2, 3), keepdim=True)
    varied = (varied - mean) * (1 + CONTRAST * draws[0]) + mean
    return (varied + 255 * (BRIGHTNESS * draws[1] + NOISE * noise)).clamp(0, 255)
