"""Conversation -> input_ids and labels; images -> pixel_values; the Hugging Face processor.

Paper: section 4.1; the template is that of the authors' code (InternLM2's ChatML, no system
turn, no BOS): `<|im_start|>user\\n...<|im_end|>\\n<|im_start|>assistant\\n...<|im_end|>`. One
`<image>` in the text stands for one image and is widened to one id per patch.
Departs: training and inference share one image path (square pad with the CLIP mean colour, no
crop), which the authors' demo does not; `<ref>` and `<box>` are single tokens, so that grounded
answers stay short. `render` and CHAT_TEMPLATE say the same thing twice, once for speed and
answer spans, once for `apply_chat_template`; tests hold them equal.

Shape letters: N images, H = W = S pixels.
"""

import io

import numpy as np
import torch
from PIL import Image
from transformers import AddedToken, LlavaProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from gmai_lib.config import CT_WINDOWS

IMAGE_TOKEN = "<image>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
GROUNDING_TOKENS = ("<ref>", "</ref>", "<box>", "</box>")
SPECIAL_TOKENS = (IMAGE_TOKEN, TURN_START, TURN_END, *GROUNDING_TOKENS)
IGNORE_INDEX = -100
ROLES = ("user", "assistant")

# The same text as `render`; content may also be a list of {"type": "image"} and text parts.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '' if loop.first else '\n' }}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>' }}"
    "{% endfor %}"
    "{{ '\n<|im_start|>assistant\n' if add_generation_prompt else '' }}"
)

# Colour of the square padding: what transformers' LLaVA processor uses, 8-bit (122, 116, 104).
PADDING_COLOUR = tuple(int(value * 255) for value in OPENAI_CLIP_MEAN)


def render(conversations) -> tuple[str, list[tuple[int, int]]]:
    """Return the chat text and the (start, end) character spans that are answers.

    An answer span ends after its `<|im_end|>`. Raises ValueError for roles that do not
    alternate from user, and for template tokens inside the content: they would end a turn early.
    """
    text, spans = "", []
    for turn, message in enumerate(conversations):
        role, content = message["role"], message["content"]
        if role != ROLES[turn % 2]:
            raise ValueError(f"turn {turn} has role {role!r}; expected {ROLES[turn % 2]!r}")
        forbidden = [TURN_START, TURN_END] + [IMAGE_TOKEN] * (role == "assistant")
        found = [token for token in forbidden if token in content]
        if found:
            raise ValueError(f"turn {turn} ({role}) contains {found}: {content[:80]!r}")
        text += f"{chr(10) if turn else ''}{TURN_START}{role}\n"
        start = len(text)
        text += content + TURN_END
        if role == "assistant":
            spans.append((start, len(text)))
    return text, spans


def encode(conversations, tokenizer, tokens_per_image: int) -> dict[str, list[int]]:
    """Tokenise one conversation for training.

    Returns {"input_ids": ..., "labels": ...}, equally long; each `<image>` is
    `tokens_per_image` ids. Labels are IGNORE_INDEX but for the assistant's text including its
    `<|im_end|>`; the newline between turns is not learned. Needs a fast tokenizer (offsets).
    """
    return encode_rendered([render_training(conversations)], tokenizer, tokens_per_image)[0]


def render_training(conversations) -> tuple[str, list[tuple[int, int]]]:
    """`render` a conversation that ends with an answer; ValueError for another."""
    rendered = render(conversations)
    if len(conversations) % 2 or not conversations:
        raise ValueError("a training conversation must end with an assistant turn")
    return rendered


def encode_rendered(rendered, tokenizer, tokens_per_image: int) -> list[dict[str, list[int]]]:
    """`encode` many conversations, each as `render_training` gave it; other threads may run."""
    # A third faster than calling the tokenizer, which wraps every list of the backend.
    texts = [text for text, _ in rendered]
    encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    rows = []
    for encoded, (_, spans) in zip(encodings, rendered, strict=True):
        ids, offsets = encoded.ids, encoded.offsets
        labels = [IGNORE_INDEX] * len(ids)
        index = 0
        for start, end in spans:
            while offsets[index][0] < start:
                index += 1
            while index < len(ids) and offsets[index][0] < end:
                labels[index] = ids[index]
                index += 1
        values = {"input_ids": ids, "labels": labels}
        rows.append(
            {name: _widen(row, ids, tokenizer, tokens_per_image) for name, row in values.items()}
        )
    return rows


def encode_prompt(conversations, tokenizer, tokens_per_image: int) -> list[int]:
    """Tokenise a conversation that ends with a user turn, up to where the answer begins."""
    text, _ = render(conversations)
    if len(conversations) % 2 == 0:
        raise ValueError("a prompt must end with a user turn")
    text += f"\n{TURN_START}assistant\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return _widen(ids, ids, tokenizer, tokens_per_image)


def _widen(values, ids, tokenizer, tokens_per_image):
    """Repeat the value at every image placeholder."""
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    widened = []
    start = 0
    for position in [i for i, token in enumerate(ids) if token == image_token_id]:
        widened += values[start:position] + [values[position]] * tokens_per_image
        start = position + 1
    return widened + values[start:]


def add_special_tokens(tokenizer, language_model=None) -> int:
    """Add the tokens of this module to a pretrained tokenizer; grow `language_model` to match.

    Returns how many were new. Their rows, of the embedding and of the head, start at the mean of
    those of the known tokens: a random row can outshout every word in the softmax.
    """
    known = tokenizer.get_vocab()
    new = [token for token in SPECIAL_TOKENS if token not in known]
    tokenizer.add_tokens([token_entry(token) for token in new])
    if language_model is not None and new:
        if len(tokenizer) > language_model.get_input_embeddings().num_embeddings:
            language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        ids, known_ids = tokenizer.convert_tokens_to_ids(new), sorted(set(known.values()))
        for layer in (
            language_model.get_input_embeddings(),
            language_model.get_output_embeddings(),
        ):
            with torch.no_grad():  # if both are one matrix, the second time changes nothing
                mean = layer.weight[known_ids].mean(0, dtype=torch.float32)
                layer.weight[ids] = mean.to(layer.weight.dtype)
    return len(new)


def token_entry(token: str) -> AddedToken:
    """Return the tokenizer entry of one of SPECIAL_TOKENS.

    Grounding tags are ordinary added tokens, so that `decode(skip_special_tokens=True)` keeps
    them in an answer and drops only `<|im_end|>` and padding.
    """
    return AddedToken(token, special=token not in GROUNDING_TOKENS, normalized=False)


def decode_image(image) -> np.ndarray:
    """Return (H, W, 3) uint8 from encoded bytes, or from a uint8 array (H, W) or (H, W, 3).

    Raises ValueError for more than 8 bits a pixel and for floats (with NaN or not): which values
    are black and white is the dataset's business (`dataset.images.window`), never a guess here.
    """
    if isinstance(image, bytes):
        try:
            with Image.open(io.BytesIO(image)) as opened:
                if opened.mode.startswith(("I", "F")):
                    raise ValueError(
                        f"image mode {opened.mode}: more than 8 bits a pixel; window it first"
                    )
                return np.asarray(opened.convert("RGB"))
        except Image.DecompressionBombError as error:
            raise ValueError(f"{error}; cut it into tiles first") from error
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(
            f"expected a uint8 (H, W) or (H, W, 3) image, got {array.dtype} {array.shape}"
        )
    return np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array[:, :, :3]


def square_image(image, size: int) -> torch.Tensor:
    """Decode, pad to a square with the CLIP mean colour, resize: (3, size, size) uint8.

    Pillow resizes here because it does so in the processor of the exported checkpoint: the
    pixels are then equal, not similar. torch's antialiased bicubic differs by one level in
    0.04 % of the values when enlarging.
    """
    array = decode_image(image)
    height, width = array.shape[:2]
    side = max(height, width)
    most = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow refuses to decode: half a GiB of RGB
    if side * side > most:
        raise ValueError(
            f"an image of {width} x {height} pixels becomes a square of {side} x {side}, more "
            f"than {most:,}; crop it or cut it into tiles first"
        )
    square = Image.new("RGB", (side, side), PADDING_COLOUR)
    square.paste(Image.fromarray(array), ((side - width) // 2, (side - height) // 2))
    resized = np.array(square.resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()


def normalize_pixels(images: torch.Tensor) -> torch.Tensor:
    """Scale (N, 3, S, S) uint8 to float32 with the CLIP mean and standard deviation."""
    mean = torch.tensor(OPENAI_CLIP_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(OPENAI_CLIP_STD, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def pixel_values(images, vision_config) -> torch.Tensor:
    """Encoded bytes or uint8 arrays -> (N, 3, S, S) float32, S = vision_config.image_size."""
    size = vision_config.image_size
    if not len(images):
        return torch.zeros((0, 3, size, size))
    return normalize_pixels(torch.stack([square_image(image, size) for image in images]))


def build_processor(
    tokenizer,
    vision_config,
    *,
    pixel_shuffle: int = 1,
    max_tiles: int = 1,
    number_slices: bool = False,
) -> LlavaProcessor:
    """Return the processor saved beside a checkpoint.

    It is transformers' own LLaVA processor, so that `AutoProcessor` loads it without this
    package. `LlavaImageProcessorPil` needs no torchvision and pads to a square before it resizes.
    Its `ct_windows` say how CT values became the grey levels that the model has learned from, its
    `max_tiles` and `number_slices` what `views.expand` makes of a sample before the processor.
    """
    size = {"height": vision_config.image_size, "width": vision_config.image_size}
    image_processor = LlavaImageProcessorPil(
        do_pad=True, size=size, crop_size=size, do_center_crop=False
    )
    image_processor.ct_windows = {name: list(values) for name, values in CT_WINDOWS.items()}
    image_processor.max_tiles, image_processor.number_slices = max_tiles, number_slices
    class_tokens = int(vision_config.model_type.startswith("clip"))  # SigLIP has none
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size * pixel_shuffle,  # of what becomes one token
        vision_feature_select_strategy="default" if class_tokens else "full",
        num_additional_image_tokens=class_tokens,  # which "default" then drops
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )


def check_processor(processor, config, rows: int):
    """Raise ValueError if a loaded processor does not fit the model, with every difference.

    `config` is the model's GMAIVLConfig, `rows` how many token embeddings it has. A processor of
    another model would give wrong answers without any error: other pixels, or other words.
    """
    images, tokenizer = processor.image_processor, processor.tokenizer
    size, side = config.vision_config.image_size, int(config.tokens_per_image**0.5)
    windows = {name: list(values) for name, values in CT_WINDOWS.items()}
    found_and_expected = {
        f"id of {IMAGE_TOKEN}": (
            tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            config.image_token_id,
        ),
        "image size": ((images.size["height"], images.size["width"]), (size, size)),
        "patch size": (processor.patch_size, size // side),
        "square padding": (bool(images.do_pad and not images.do_center_crop), True),
        "pixel mean": (list(images.image_mean), list(OPENAI_CLIP_MEAN)),
        "pixel deviation": (list(images.image_std), list(OPENAI_CLIP_STD)),
        "CT windows": (getattr(images, "ct_windows", None), windows),
        "tiles": (getattr(images, "max_tiles", 1), config.max_tiles),
        "numbered slices": (getattr(images, "number_slices", False), config.number_slices),
    }
    wrong = [
        f"{name} is {found}, expected {expected}"
        for name, (found, expected) in found_and_expected.items()
        if found != expected
    ]
    if len(tokenizer) > rows:
        wrong.append(f"the tokenizer has {len(tokenizer)} tokens for {rows} embeddings")
    if wrong:
        raise ValueError(f"the processor does not fit the weights: {'; '.join(wrong)}")
