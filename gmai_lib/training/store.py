"""Parquet shards -> one folder of tokens and pixels, mapped into memory by every rank and stage.

    store = prepare(pairs, cache, split="train", processor=processor)
    sample = store.sample(0)  # input_ids, labels, label_weights, pixels

Every sample is tokenised and every distinct image decoded and resized once: 3 x S x S bytes an
image, 5 bytes a token.
"""

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gmai_lib.config import LOSS_WEIGHTINGS
from gmai_lib.model import chat, views
from gmai_lib.outputs import read_json, write_json
from gmai_lib.training.launch import fingerprint

COLUMNS = ("id", "images", "conversations", "subset", "language", "source")
CATEGORIES = ("subset", "language", "source")
LAYOUT = 2  # of the store's files; part of its name, so that an older store is made anew


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
    turns = (_user("<image>\nx 0.18"), {"role": "assistant", "content": "y"})
    encoded = chat.encode(turns, processor.tokenizer, 2)
    ramp = np.arange(48 * 32, dtype=np.uint32).reshape(48, 32).astype(np.uint8)
    pixels = chat.square_image(ramp, _size(processor))
    vocabulary = json.dumps(processor.tokenizer.get_vocab(), sort_keys=True)
    merges = processor.tokenizer.backend_tokenizer.to_str()
    text = f"{encoded} {_tokens_per_image(processor)} {vocabulary} {merges}"
    large = np.resize(ramp, (3 * _size(processor), 2 * _size(processor)))
    shown, turns = views.expand([large, large], [_user(2 * chat.IMAGE_TOKEN)], processor)
    text += f" {turns} {[image.shape for image in shown]}"
    return hashlib.sha256(text.encode() + pixels.numpy().tobytes()).hexdigest()


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


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
        ThreadPoolExecutor() as threads,  # read images while the tokenizer works
    ):
        for shard in shards:
            for batch in pq.ParquetFile(shard).iter_batches(256, columns=list(COLUMNS)):
                rows, pixels, rendered = batch.to_pylist(), [], []
                for row in rows:
                    images, text = _shown(row, shard, processor)
                    rendered.append(text)
                    for image in images:
                        digest = _digest(image)
                        if digest not in known:
                            known[digest] = len(known)
                            pixels.append(threads.submit(_pixels, image, size, row["id"], shard))
                        uses.append(known[digest])
                    image_starts.append(len(uses))
                encodings = chat.encode_rendered(rendered, tokenizer, _tokens_per_image(processor))
                for row, encoded in zip(rows, encodings, strict=True):
                    ids_file.write(np.asarray(encoded["input_ids"], np.int32).tobytes())
                    supervised = np.asarray(encoded["labels"]) != chat.IGNORE_INDEX
                    supervised_file.write(supervised.tobytes())
                    token_starts.append(token_starts[-1] + len(supervised))
                    label_tokens.append(supervised.sum())
                    id_starts.append(id_starts[-1] + names_file.write(row["id"].encode()))
                    for name in CATEGORIES:
                        categories[name].append(row[name])
                for image in pixels:
                    pixels_file.write(image.result())
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


def _shown(row, shard, processor) -> tuple[list, tuple]:
    """The images of a row as the model gets them, tiles included, and its rendered text.

    ValueError names the row if it is no conversation, or has other images than its text says.
    """
    images, turns = [image["bytes"] for image in row["images"]], row["conversations"]
    text = "".join(turn["content"] for turn in turns)
    if text.count(chat.IMAGE_TOKEN) != len(images):
        raise ValueError(
            f"{shard}: sample {row['id']} has {len(images)} images but its conversation "
            f"has {text.count(chat.IMAGE_TOKEN)} {chat.IMAGE_TOKEN}"
        )
    try:
        images, turns = views.expand(images, turns, processor)
    except (OSError, ValueError) as error:
        raise _unreadable(row["id"], shard, error) from error
    try:
        return images, chat.render_training(turns)
    except ValueError as error:
        raise ValueError(f"{shard}: sample {row['id']}: {error}") from error


def _digest(image: bytes | np.ndarray) -> bytes:
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


def _pixels(image, size: int, sample_id: str, shard) -> bytes:
    try:
        return chat.square_image(image, size).numpy().tobytes()
    except (OSError, ValueError) as error:  # Pillow's UnidentifiedImageError is an OSError
        raise _unreadable(sample_id, shard, error) from error


def _unreadable(sample_id: str, shard, error: Exception) -> ValueError:
    return ValueError(f"{shard}: image of sample {sample_id} cannot be read: {error}")


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
