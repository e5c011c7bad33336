"""Prompts of a benchmark for one model, the batches they are asked in, and what it answers.

    ask = asker(model, processor, with_image=True)
    for batch in batches([ask.prepare(item, {}) for item in items], 64):
        rows = ask(batch)

Batches hold prompts of similar length, and questions about one image side by side: what they
share, up to the image, runs once.

Shape letters: B batch, T prompt tokens, N images, S image size in pixels, V vocabulary.
"""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, groupby, takewhile
from operator import eq
from pathlib import Path

import numpy as np

from gmai_lib.dataset.images import decode, to_png
from gmai_lib.evaluation.items import Item
from gmai_lib.outputs import read_json

MOST_PIXELS = 4096  # preprocessed images kept, of a benchmark that may have 90,000
# Room for a bare answer with its tags; a model that rambles is cut and marked unfinished.
MAX_NEW_TOKENS = {"yes/no": 8, "count": 8, "multiple choice": 8, "box": 64, "open": 32}
_OTHER_KINDS_MAX_NEW_TOKENS = 24
# A model that was not trained to be brief explains itself first.
OTHER_MODELS_MAX_NEW_TOKENS = 256


def asker(model, processor, *, with_image: bool) -> "ModelAsker":
    """Return who asks this model: one of this project, or any AutoModelForImageTextToText."""
    own = getattr(model.config, "model_type", "") == "gmai_vl"
    return (ModelAsker if own else HubModelAsker)(model, processor, with_image=with_image)


def load_model(name: str | Path):
    """Return (model, processor) of a checkpoint of this project, or any of the hub, for `asker`.

    `name`: a folder, or a name on the hub. In the precision it was saved in, on the GPU if there is
    one. Raises OSError (FileNotFoundError) or ValueError if it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from gmai_lib.model import weights

    path = Path(name) / "config.json"
    if path.is_file() and read_json(path).get("model_type") == "gmai_vl":
        model, processor = weights.load_checkpoint(Path(name))
    else:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
        processor = AutoProcessor.from_pretrained(name)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), processor


class ModelAsker:
    """Prompts and image pixels of one model; every distinct image is preprocessed once."""

    def __init__(self, model, processor, *, with_image: bool):
        from gmai_lib.model import chat, views

        self.model, self.processor, self.with_image = model, processor, with_image
        self.tokenizer, self.chat, self.views = processor.tokenizer, chat, views
        vision = model.config.vision_config
        self.image_size, self.context = vision.image_size, model.config.context
        patches = (vision.image_size // vision.patch_size) ** 2
        self.tokens_per_image = getattr(model.config, "tokens_per_image", patches)
        self.end = self.tokenizer.convert_tokens_to_ids(chat.TURN_END)
        self.ends = [self.end]
        padding = self.tokenizer.pad_token_id
        self.pad = self.end if padding is None else padding
        self.pixels = {}  # encoded image -> (3, S, S) uint8

    def prepare(self, item: Item, replaced: dict) -> dict:
        """Tokenise the prompt of one item; `replaced` maps (benchmark, image) to another image."""
        images = shown_images(item, replaced) if self.with_image else ()
        text = f"{self.chat.IMAGE_TOKEN}\n" * len(images) + item.question
        turns = [{"role": "user", "content": text}]
        images, turns = self.views.expand(images, turns, self.processor)
        # Tiles are pixels. As a file they are small, and each is prepared once like any image.
        images = tuple(i if isinstance(i, bytes) else to_png(np.asarray(i)) for i in images)
        ids = self.chat.encode_prompt(turns, self.tokenizer, self.tokens_per_image)
        image = self.model.config.image_token_id
        start = len(ids) - ids[::-1].index(image) if image in ids else 0  # after the last image
        return {"item": item, "images": images, "ids": ids, "limit": _limit(item), "start": start}

    def inputs(self, batch: list[dict]) -> dict:
        """Left-padded ids and mask (B, T), and the pixels of all images (N, 3, S, S)."""
        import torch

        device = self.model.device
        width = max(len(p["ids"]) for p in batch)  # T
        # Left padding: every row's answer begins at the same position.
        padded = [[self.pad] * (width - len(p["ids"])) + p["ids"] for p in batch]
        mask = [[0] * (width - len(p["ids"])) + [1] * len(p["ids"]) for p in batch]
        inputs = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
        images = [image for p in batch for image in p["images"]]
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}  # (B, T)
        if images:
            normal = self.chat.normalize_pixels(torch.stack(self._pixels(images)).to(device))
            inputs["pixel_values"] = normal.to(self.model.dtype)  # (N, 3, S, S)
        return inputs

    def shared_inputs(self, batch: list[dict]) -> dict:
        """`inputs` for `generate`, with what several rows begin with gone through the model once.

        Rows about the same images are equal up to the last of them, options of one question to its
        end. The keys and values of each distinct beginning are copied to its rows
        (`past_key_values`); the padding of a row then stands between its images and its question.
        """
        import torch

        starts = [(p["images"], tuple(p["ids"][: p["start"]])) for p in batch]
        distinct = {start: place for place, start in enumerate(dict.fromkeys(starts))}
        if len(distinct) == len(batch) or not self._can_share(batch):
            return self.inputs(batch)
        begun = self.inputs([{"images": images, "ids": list(ids)} for images, ids in distinct])
        options = {"position_ids": _positions(begun), "use_cache": True, "logits_to_keep": 1}
        cache = self.model(**begun, **options).past_key_values
        rows = torch.tensor([distinct[start] for start in starts], device=self.model.device)
        cache.batch_select_indices(rows)
        rest = self.inputs([{"images": (), "ids": p["ids"][p["start"] :]} for p in batch])
        both = {name: torch.cat([begun[name][rows], rest[name]], dim=1) for name in rest}
        return both | {"past_key_values": cache}

    def _can_share(self, batch: list[dict]) -> bool:
        config = self.model.config
        return (
            all(p["start"] for p in batch)  # a row of padding alone has no keys
            and max(len(p["ids"]) for p in batch) <= config.context  # else the model says so
            and not getattr(config.text_config, "sliding_window", None)  # it would count padding
        )

    def __call__(self, batch: list[dict]) -> list[dict]:
        inputs = self.shared_inputs(batch)
        generated = self.model.generate(
            **inputs,
            max_new_tokens=max(p["limit"] for p in batch),
            do_sample=False,
            use_cache=True,
            eos_token_id=self.end,
            pad_token_id=self.pad,
        )[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._response(p, ids) for p, ids in zip(batch, generated, strict=True)]

    def answered(self, prompt: dict, texts: tuple[str, ...]) -> list[tuple[dict, list[int]]]:
        """Return per text the prompt with it as the answer, and the ids of the text."""
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        # All of the prompt is shared but its last token, which says what the first of a text is.
        prompt = prompt | {"start": len(prompt["ids"]) - 1}
        return [(prompt | {"ids": prompt["ids"] + own}, own) for own in ids]

    def log_probabilities(self, batch: list[dict], most: int):
        """Return (B, most, V) float32: of what follows each of the last `most` tokens of a row."""
        inputs = self.shared_inputs(batch)
        positions = _positions(inputs)
        if cache := inputs.get("past_key_values"):
            begun = cache.get_seq_length()
            inputs["input_ids"], positions = inputs["input_ids"][:, begun:], positions[:, begun:]
        options = {"position_ids": positions, "logits_to_keep": most}
        return self.model(**inputs, **options).logits.float().log_softmax(-1)

    def _pixels(self, images: list[bytes]) -> list:
        """Return (3, S, S) uint8 per image; new ones are decoded side by side (Pillow lets it)."""
        import torch

        new = [image for image in dict.fromkeys(images) if image not in self.pixels]
        square = partial(self.chat.square_image, size=self.image_size)
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            self.pixels |= zip(new, threads.map(square, new), strict=True)
        pixels = [self.pixels[image] for image in images]
        for image in list(self.pixels)[:-MOST_PIXELS]:
            del self.pixels[image]  # the oldest
        return pixels

    def _response(self, prompt: dict, ids: list[int]) -> dict:
        ids = ids[: prompt["limit"]]  # others of the batch may have had more
        finished = self.end in ids
        ids = ids[: ids.index(self.end)] if finished else ids
        said = self.tokenizer.decode(ids, skip_special_tokens=True)
        return response_row(prompt["item"], said, finished=finished)


class HubModelAsker(ModelAsker):
    """The same of any AutoModelForImageTextToText: its processor makes prompts and pixels."""

    def __init__(self, model, processor, *, with_image: bool):
        self.model, self.processor, self.with_image = model, processor, with_image
        # How many tokens an image becomes is the processor's secret: the model itself complains.
        self.tokenizer, self.context = processor.tokenizer, float("inf")
        ends = model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        self.end = ends if isinstance(ends, int) else ends[0]
        self.ends = [ends] if isinstance(ends, int) else list(ends)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(self.end)
        self.pad = self.tokenizer.pad_token_id

    def prepare(self, item: Item, replaced: dict) -> dict:
        """Render the chat template of the model for one item; see `ModelAsker.prepare`."""
        images = shown_images(item, replaced) if self.with_image else ()
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": item.question}]
        turns = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        prompt = {"item": item, "images": images, "ids": self._ids(text)}
        prompt["limit"] = max(_limit(item), OTHER_MODELS_MAX_NEW_TOKENS)
        # What a processor makes of a text is not known before, so nothing is shared.
        return prompt | {"text": text, "turns": turns, "start": 0}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=self._unbegun(text))["input_ids"]

    def _unbegun(self, text: str) -> bool:
        """Whether the template leaves the first token to the tokenizer (as transformers asks)."""
        begin = self.tokenizer.bos_token
        return begin is None or not text.startswith(begin)

    def answered(self, prompt: dict, texts: tuple[str, ...]) -> list[tuple[dict, list[int]]]:
        """See `ModelAsker.answered`; the texts stand where the template puts an answer.

        LLaVA 1.5 asks with "ASSISTANT:" and answers " yes". Where the end of the prompt and the
        beginning of a text become one token, the ids of all texts begin with that token.
        """
        whole = []
        for text in texts:
            turn = {"role": "assistant", "content": [{"type": "text", "text": text}]}
            said = self.processor.apply_chat_template([*prompt["turns"], turn])
            space, found, _ = said.removeprefix(prompt["text"]).partition(text)
            if not (said.startswith(prompt["text"]) and found) or space.strip():
                raise ValueError(
                    f"the chat template ends a prompt with {prompt['text'][-40:]!r}, but writes "
                    f"the answer {text!r} as {said[-80:]!r}: it cannot be given options to compare"
                )
            whole.append(prompt["text"] + space + text)
        ids = [self._ids(text) for text in whole]
        same = min(_equal_ids(prompt["ids"], own) for own in ids)
        return [
            (prompt | {"text": text, "ids": own}, own[same:])
            for text, own in zip(whole, ids, strict=True)
        ]

    def log_probabilities(self, batch: list[dict], most: int):
        """See `ModelAsker.log_probabilities`; padded on the right, where it changes no position."""
        import torch

        inputs = self.inputs(batch, padding_side="right")
        padding = (inputs["attention_mask"] == 0).sum(1).tolist()  # per row
        logits = self.model(**inputs, logits_to_keep=most + max(padding)).logits
        width = logits.shape[1]
        kept = [row[width - n - most : width - n] for row, n in zip(logits, padding, strict=True)]
        return torch.stack(kept).float().log_softmax(-1)

    def inputs(self, batch: list[dict], padding_side: str = "left") -> dict:
        """What the processor makes of the batch, its float tensors in the model's precision.

        Padded on the left, every row's answer begins at the same position.
        """
        from PIL import Image

        shown = [[Image.fromarray(decode(i)).convert("RGB") for i in p["images"]] for p in batch]
        images = [pictures for pictures in shown if pictures] or None
        texts = [p["text"] for p in batch]
        options = {"return_tensors": "pt", "padding": True, "padding_side": padding_side}
        options |= {"add_special_tokens": self._unbegun(texts[0])}
        made = self.processor(images=images, text=texts, **options)
        made = made.to(self.model.device)
        return {
            name: value.to(self.model.dtype) if value.is_floating_point() else value
            for name, value in made.items()
        }

    def _response(self, prompt: dict, ids: list[int]) -> dict:
        place = next((n for n, token in enumerate(ids) if token in self.ends), None)
        ids = ids if place is None else [*ids[:place], self.end]
        return super()._response(prompt, ids)


def _equal_ids(first: list[int], second: list[int]) -> int:
    """How many ids both begin with."""
    return sum(takewhile(bool, map(eq, first, second)))


def _positions(inputs: dict):
    """Where every token stands in its row (B, T), the padding not counted."""
    return (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)


def response_row(item: Item, said: str, *, finished: bool) -> dict:
    """Return what is kept of one answer: the item's question and key beside what was said."""
    return {
        "id": item.id,
        "benchmark": item.benchmark,
        "kind": item.kind,
        "language": item.language,
        "question": item.question,
        "answer": item.answer,
        "response": said.strip(),
        "finished": finished,
    }


def shown_images(item: Item, replaced: dict) -> tuple[bytes, ...]:
    """Return the images of an item, or those that `replaced_images` shows instead."""
    return tuple(replaced.get((item.benchmark, image), image) for image in item.images)


def _limit(item: Item) -> int:
    return MAX_NEW_TOKENS.get(item.kind, _OTHER_KINDS_MAX_NEW_TOKENS)


def batches(prompts: list[dict], batch_size: int):
    """Yield batches of similar length, in which short answers do not wait for long ones.

    Questions about the same images stay together, sorted by the longest of them.
    """

    def wait(prompt):  # a bare answer is two or three tokens, whatever its limit
        return max(prompt["limit"], _OTHER_KINDS_MAX_NEW_TOKENS)

    def order(prompt):
        return wait(prompt), len(prompt["ids"]), prompt["item"].id

    about = defaultdict(list)  # (wait, images) -> prompts
    for prompt in sorted(prompts, key=order):
        about[wait(prompt), prompt["images"]].append(prompt)
    groups = sorted(about.values(), key=lambda group: order(group[-1]))
    for _, same in groupby(chain.from_iterable(groups), key=wait):
        same = list(same)
        yield from (same[i : i + batch_size] for i in range(0, len(same), batch_size))
