"""Small stand-ins, trained here, for what the paper takes ready-made: CLIP and a language model.

    tokenizer = train_tokenizer(texts, profile.text.vocab_size, terms=practice.terms(rows))
    tower, metrics = pretrain_vision_tower(profile, images, captions, tokenizer, groups=modalities)
    language_model, metrics = pretrain_language_model(profile, documents, tokenizer)

`start_vision_tower` trains the first in a process of its own, beside the second.

Paper: none; section 4.1 starts from CLIP ViT-L/14-336 and InternLM2.5-7B, which the `paper`
profile loads (gmai_lib.model.weights). Only the `mini` profile uses this file.
Departs from CLIP where a few hundred steps must do: the image embedding is the mean of the patch
tokens, not the class token (see `_contrastive_loss`); every patch learns what is said of it (see
`_region_loss`); patch embedding and positions start from data and from sines, not from noise, and
the first attention of the language model looks for equal tokens (`_attend_to_equals`); Muon for
matrices.

Shape letters: B images, P patches, D tower width, E embedding width, T tokens of a caption.
"""

import math
import re
import time
from collections.abc import Callable
from functools import cache
from itertools import chain

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, CLIPVisionModel, PreTrainedTokenizerFast

from gmai_lib import pool
from gmai_lib.model import chat, kernels
from gmai_lib.model.chat import (
    GROUNDING_TOKENS,
    IGNORE_INDEX,
    IMAGE_TOKEN,
    SPECIAL_TOKENS,
    TURN_END,
    normalize_pixels,
    token_entry,
)
from gmai_lib.model.gmai_vl import splice_image_features, text_config, vision_config
from gmai_lib.model.muon import Muon

PAD_TOKEN = "<|pad|>"
MOST_TEXTS = 20_000  # evenly spaced, that the tokenizer learns from; more change little
EMBEDDING_SIZE = 128  # width of the space in which images and captions meet
REGION_WEIGHT = 5.0  # of the region term against the contrastive one
BACKGROUND_WEIGHT = 0.04  # of a patch outside every box: 97 % of them are
CODE_STD = 0.5  # of the vectors that stand for terms: a sum of two or four is about as large as 1
QUESTION_SHARE = 0.02  # of the tokens outside the answers, in language pretraining
EMBEDDING_STD = 0.1  # of the language model's words; 0.02 is lost in what the first block adds
LESSON_TOKENS = 3000  # of a batch of a lesson: many small steps
MOST_DOUBT = 0.45  # of what a slot says in a conversation may be another slot's
REVIEW_SHARE = 0.35  # of the batches after the lessons repeat the last one
GROUPED_FRACTION = 0.5  # of the batches hold one group only

# What one BPE word may be, tried from left to right: one digit, the separator between two
# coordinates, a word with its leading blank, punctuation, white space.
_PIECES = r"\d|, (?=\d|$)| ?\p{L}+| ?[^\s\p{L}\d]+|\s+"


def train_tokenizer(texts, vocab_size: int, terms=()) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `texts`; the same texts give the same tokenizer.

    Every coordinate from 0.00 to 1.00 is one token, so a box costs 11 tokens with its tags
    instead of about 25, and the model never has to spell a number. Each of `terms` ("upper left",
    "foreign body") is one token, too, the same one with and without a blank before it.

    Raises ValueError if the terms leave no room for 256 bytes and 101 coordinates.
    """
    terms = list(dict.fromkeys(terms))
    if len(terms) + 400 > vocab_size:
        raise ValueError(
            f"{len(terms)} terms do not fit a vocabulary of {vocab_size} beside 256 bytes, the "
            "coordinates and the tags: pass fewer terms or raise vocab_size"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token in (PAD_TOKEN, *SPECIAL_TOKENS) if token not in GROUNDING_TOKENS]
    added = [token_entry(token) for token in GROUNDING_TOKENS]
    added += [AddedToken(f"{n / 100:.2f}", single_word=True, normalized=False) for n in range(101)]
    # A term is no part of another word, but Chinese has no blanks between words.
    added += [AddedToken(t, single_word=t.isascii(), normalized=False) for t in terms]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Added tokens are cut out before merges apply, so training must not see them either.
    cut = [re.escape(token) for token in SPECIAL_TOKENS] + [r"\b(?:0\.\d\d|1\.00)\b"]
    for term in sorted(terms, key=len, reverse=True):
        cut.append(rf"\b{re.escape(term)}\b" if term.isascii() else re.escape(term))
    cut = re.compile("|".join(cut))
    texts = list(texts)
    texts = texts[:: max(1, len(texts) // MOST_TEXTS)]
    pieces = [piece for text in texts for piece in cut.split(text) if piece]
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.add_tokens(added)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=PAD_TOKEN,
        padding_side="left",  # generation; training packs and does not pad
        clean_up_tokenization_spaces=False,
    )


class _ContrastivePair(nn.Module):
    """Vision tower, text side and heads during pretraining; only the tower is kept."""

    def __init__(self, profile, vocab_size: int):
        super().__init__()
        self.tower = CLIPVisionModel(vision_config(profile))
        width = profile.vision.hidden_size
        self.image_head = nn.Linear(width, EMBEDDING_SIZE)
        # Captions here are short lists of words, so their mean is enough of a text tower.
        self.words = nn.EmbeddingBag(vocab_size, EMBEDDING_SIZE, mode="mean")
        self.text_head = nn.Sequential(
            nn.Linear(EMBEDDING_SIZE, 2 * EMBEDDING_SIZE),
            nn.GELU(),
            nn.Linear(2 * EMBEDDING_SIZE, EMBEDDING_SIZE),
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def patches(self, images):
        """Encode (B, 3, S, S) uint8 to patch tokens (B, P, D) of the last two layers."""
        tower = self.tower
        hidden = tower.pre_layrnorm(tower.embeddings(normalize_pixels(images)))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, attention_mask=None)
        last = tower.encoder.layers[-1](hidden, attention_mask=None)
        return hidden[:, 1:], tower.post_layernorm(last[:, 1:])


def start_vision_tower(
    folder, profile, images, captions, tokenizer, *, threads: int, **options
) -> Callable[[], tuple]:
    """Start `pretrain_vision_tower` in a process of its own; return the function that awaits it.

    That function returns what `pretrain_vision_tower` does, and raises what it raised; the tower
    comes by way of `folder`. `threads`: of that process. A second thread gains little at matrices
    of this size, so that two trainings of one thread each are done sooner, side by side, than one
    after the other with two.
    """
    arguments = (profile, images.numpy(), captions, tokenizer)  # numpy: not by way of /dev/shm
    training = pool.in_background(_write_vision_tower, folder, threads, arguments, options)

    def finish():
        metrics = training.result()
        return CLIPVisionModel.from_pretrained(folder, dtype=torch.float32).eval(), metrics

    return finish


def _write_vision_tower(folder, threads, arguments, options) -> list[dict]:
    profile, images, captions, tokenizer = arguments
    with kernels.threads_of(threads):
        images = torch.from_numpy(images)
        tower, metrics = pretrain_vision_tower(profile, images, captions, tokenizer, **options)
    tower.save_pretrained(folder)
    return metrics


def pretrain_vision_tower(
    profile, images, captions, tokenizer, *, groups=None, regions=None, on_step=None
):
    """Pretrain a CLIP-layout vision tower by matching images with captions.

    images (N, 3, S, S) uint8 tensor; captions N strings that say what, where and how many.
    `groups`: N labels (the source); half of the batches hold one group, so that an image must be
    told from its like: a tumour from another tumour, not from a chest. `regions`: for each image
    the terms of its background and a (box, terms) pair for each box (practice.regions), which
    its patches then also learn. `on_step(row)` is called after every optimizer step. Seeded by
    `profile.seed`.

    Returns (CLIPVisionModel in float32, rows with step, loss, region_loss, seconds).
    """
    if not len(images) == len(captions) == len(groups or images) == len(regions or images):
        raise ValueError(
            f"{len(images)} images, {len(captions)} captions, {len(groups or images)} groups and "
            f"{len(regions or images)} lists of regions: they must be equally many"
        )
    settings = profile.stand_ins
    torch.manual_seed(profile.seed)
    generator = torch.Generator().manual_seed(profile.seed)
    tokens = [
        torch.tensor(ids) for ids in tokenizer(captions, add_special_tokens=False)["input_ids"]
    ]
    same_caption = {text: number for number, text in enumerate(captions)}
    caption_ids = torch.tensor([same_caption[text] for text in captions])
    if regions:
        patch_sets, boxed, codes = _patch_terms(regions, profile.vision, generator)
    pair = _ContrastivePair(profile, len(tokenizer))
    _initialise(pair.tower, images, profile.vision)
    batches = _batches(groups, len(images), settings.vision_batch_size, generator)

    def loss_of(step):
        chosen = next(batches)
        inner, last = pair.patches(images[chosen])
        loss = _contrastive_loss(pair, last, [tokens[i] for i in chosen], caption_ids[chosen])
        region = torch.zeros(())
        if regions:
            region = _region_loss(inner, codes[patch_sets[chosen]], boxed[patch_sets[chosen]])
        row = {"loss": loss.item(), "region_loss": region.item()}
        return loss + REGION_WEIGHT * region, row

    metrics = _train(pair, settings.vision_steps, settings.vision_learning_rate, loss_of, on_step)
    return pair.tower.eval(), metrics


def _contrastive_loss(pair, patches, tokens, caption_ids):
    """CLIP's symmetric cross-entropy; images with the same caption are all right answers.

    CLIP compares the class token of the last layer, and LLaVA reads the patch tokens of the
    layer before. 400 M pairs make those informative too; here the mean of the patch tokens is
    compared, so that every patch token gets a gradient of its own.
    """
    image = F.normalize(pair.image_head(patches.mean(1)), dim=-1)  # (B, E)
    offsets = torch.tensor([0] + [len(ids) for ids in tokens[:-1]]).cumsum(0)
    text = F.normalize(pair.text_head(pair.words(torch.cat(tokens), offsets)), dim=-1)
    logits = image @ text.T * pair.log_scale.exp()  # (B, B)
    right = (caption_ids[:, None] == caption_ids).float()
    right = right / right.sum(1, keepdim=True)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def _region_loss(patches, codes, boxed):
    """Squared error between patch tokens and the codes of their terms, over the codes' square.

    The patches (B, P, D) are those of the layer LLaVA reads; codes (B, P, D); boxed (B, P) bool.
    The least squared error is at the mean of what a patch may show, so an unsure patch says its
    terms in part, and a sum it always is: what a projector that sees one patch at a time can
    translate word by word. A classifier's patches name their label as well, but are no sum, and
    the language model could not compare them with the term of a question.
    """
    weight = torch.where(boxed, 1.0, BACKGROUND_WEIGHT)
    error = (patches - codes).square().mean(-1)
    return (weight * error).sum() / (weight * codes.square().mean(-1)).sum()


def _patch_terms(regions, vision, generator):
    """Return which set of terms every patch shows (N, P), which sets are a box's, and their codes.

    Codes (sets, D) are sums of one random vector of length CODE_STD * sqrt(D) per term. Box edges
    are rounded to patch edges; a tiny box keeps one patch; of two boxes on one patch the later one
    counts.
    """
    grid = vision.image_size // vision.patch_size
    numbers = {}  # (is a box, terms) -> number of the set
    patches = torch.empty((len(regions), grid, grid), dtype=torch.long)
    for image, (background, boxes) in enumerate(regions):
        patches[image] = numbers.setdefault((False, *background), len(numbers))
        for box, terms in boxes:
            rows, columns = (
                slice(
                    min(round(low * grid), grid - 1), max(round(high * grid), round(low * grid) + 1)
                )
                for low, high in ((box.y1, box.y2), (box.x1, box.x2))
            )
            patches[image, rows, columns] = numbers.setdefault((True, *terms), len(numbers))
    width = vision.hidden_size
    named = dict.fromkeys(term for _, *terms in numbers for term in terms)
    # At right angles, as far as there is room: no term is mistaken for a mixture of others.
    blocks = [
        nn.init.orthogonal_(torch.empty(width, width), generator=generator)
        for _ in range(0, len(named), width)
    ]
    vectors = dict(zip(named, CODE_STD * width**0.5 * torch.cat(blocks), strict=False))
    codes = [sum((vectors[t] for t in terms), torch.zeros(width)) for _, *terms in numbers]
    boxed = torch.tensor([is_box for is_box, *_ in numbers])
    return patches.flatten(1), boxed, torch.stack(codes)


@torch.no_grad()
def _initialise(tower, images, vision):
    """Start where a long pretraining soon arrives; saves about half of the steps.

    Patch embedding: whitened principal components of the patches in a random rotation, because
    raw patches are dominated by their mean brightness. Positions: sines of row and column.
    """
    size, width = vision.patch_size, vision.hidden_size
    pixels = normalize_pixels(images[:: max(len(images) // 1000, 1)])
    patches = F.unfold(pixels, size, stride=size).transpose(1, 2).flatten(0, 1)
    variance, components = torch.linalg.eigh(torch.cov(patches.T))
    count = min(width, len(variance))
    whitening = (components / (variance.clamp(min=0) + 0.02).sqrt()).T[-count:]
    rotation = torch.linalg.qr(torch.randn(width, width))[0][:, :count]
    embedding = tower.embeddings.patch_embedding.weight
    embedding.copy_((0.3 * rotation @ whitening).view_as(embedding))
    grid = vision.image_size // size
    frequency = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angle = torch.arange(grid)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], 1) / 2  # (grid, D / 2)
    rows, columns = wave[:, None].expand(-1, grid, -1), wave[None].expand(grid, -1, -1)
    tower.embeddings.position_embedding.weight[1:] = torch.cat([rows, columns], -1).flatten(0, 1)


def _batches(groups, count, size, generator):
    """Yield index tensors for ever; GROUPED_FRACTION of them within one group.

    A group comes in proportion to the square root of its size: small real sources are not
    drowned by large ones, and the smallest are not shown over and over.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups or [None]))}
    member = torch.tensor([numbers[group] for group in groups or [None] * count])
    members = [(member == number).nonzero().squeeze(1) for number in range(len(numbers))]
    weights = torch.tensor([len(group) for group in members]).sqrt()
    while True:
        drawn_from = torch.arange(count)
        if torch.rand((), generator=generator) < GROUPED_FRACTION:
            drawn_from = members[torch.multinomial(weights, 1, generator=generator)]
        yield drawn_from[torch.randint(len(drawn_from), (size,), generator=generator)]


def encode_documents(documents: list[dict], tokenizer) -> list[dict]:
    """Tokenise what dataset.practice writes: {"conversations", "slots"} or {"notes", "slots"}.

    Returns for each input_ids and labels, as chat.encode does, with one `<image>` id per slot, and
    "slots": the token ids of every slot. Of notes only what is said is learned.
    """
    ids = cache(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
    encoded = []
    for document in documents:
        slots = document["slots"]
        if "notes" in document:
            entry = _encode_notes(document, ids, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        else:
            entry = chat.encode(document["conversations"], tokenizer, max(len(slots), 1))
        encoded.append(
            entry | {"slots": [[i for word in slot for i in ids(word)] for slot in slots]}
        )
    return encoded


def _encode_notes(document, ids, image_token_id) -> dict:
    """The slots and one note per line, without roles."""
    input_ids = [image_token_id] * len(document["slots"])
    labels = [IGNORE_INDEX] * len(input_ids)
    for asked, said in document["notes"]:
        question = list(chain.from_iterable(map(ids, asked)))
        end = ids("\n") if document["slots"] else []
        input_ids += [*question, *ids(said), *end]
        labels += [IGNORE_INDEX] * len(question) + ids(said) + [IGNORE_INDEX] * len(end)
    return {"input_ids": input_ids, "labels": labels}


def pretrain_language_model(
    profile, documents, tokenizer, *, lessons=(), on_step=None, length: int = 320
):
    """Pretrain a Llama-layout language model on next-token prediction.

    `documents`: what `encode_documents` returns, one per conversation. A batch holds whole
    documents of similar length, cut after `length` tokens: a question whose image is in another
    batch would only teach to guess. All of the answers are learned, and of the rest a random
    QUESTION_SHARE: which question comes next is chance, and there are four times as many tokens.
    In conversations some slots are in doubt (`_in_doubt`).
    `lessons`: (share of the steps, documents) pairs that come first, in their order; the last one
    is repeated among the documents.

    Returns (LlamaForCausalLM in float32, rows with step, loss, seconds).
    """
    settings = profile.stand_ins
    torch.manual_seed(profile.seed)
    generator = torch.Generator().manual_seed(profile.seed)
    batches = _course(lessons, documents, settings, length, generator)
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    model = AutoModelForCausalLM.from_config(text_config(profile, tokenizer))
    nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_STD)
    _attend_to_equals(model.model.layers[0].self_attn)

    def loss_of(step):
        batch, is_lesson = next(batches)
        ids, labels = (
            nn.utils.rnn.pad_sequence(
                [torch.tensor(document[name][:length]) for document in batch],
                batch_first=True,
                padding_value=value,  # to the right, where no token looks at it
            )
            for name, value in (("input_ids", tokenizer.pad_token_id), ("labels", IGNORE_INDEX))
        )
        embeddings = model.get_input_embeddings()(ids)
        shown = list(chain.from_iterable(document["slots"] for document in batch))
        if shown:
            offsets = torch.tensor([0] + [len(words) for words in shown[:-1]]).cumsum(0)
            words = torch.tensor(list(chain.from_iterable(shown)))
            weight = model.get_input_embeddings().weight
            features = F.embedding_bag(words, weight, offsets, mode="sum")
            if not is_lesson:
                features = _in_doubt(features, [len(words) for words in shown], generator)
            embeddings = splice_image_features(embeddings, features[:, None], ids, image_token_id)
        hidden = model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, :-1]
        following = ids[:, 1:]
        drawn = torch.rand(following.shape, generator=generator) < QUESTION_SHARE * (not is_lesson)
        drawn &= (following != image_token_id) & (following != tokenizer.pad_token_id)
        learned = (labels[:, 1:] != IGNORE_INDEX) | drawn
        logits = model.lm_head(hidden[learned])
        loss = F.cross_entropy(logits, following[learned])
        return loss, {"loss": loss.item()}

    metrics = _train(
        model, settings.language_steps, settings.language_learning_rate, loss_of, on_step, flat=0.5
    )
    return model.eval(), metrics


@torch.no_grad()
def _attend_to_equals(attention):
    """Start the heads of `attention` with queries equal to keys: every token looks for its like.

    A trained language model has heads that find an earlier token equal to this one; a question
    needs them to find its term among the slots. Whether a small model learned them in a few
    hundred steps was a matter of the seed, and without them yes/no questions stay at chance. With
    orthonormal rows a token scores sqrt(head_dim) against itself, half of that against a slot
    of four terms that has it, and about zero against anything else.
    """
    key, query = attention.k_proj.weight, attention.q_proj.weight
    nn.init.orthogonal_(key)
    groups = len(query) // len(key)  # query heads that share a key head stand side by side
    heads = key.unflatten(0, (-1, 1, attention.head_dim)).expand(-1, groups, -1, -1)
    query.copy_(heads.flatten(0, 2))


def _in_doubt(features, sizes, generator):
    """Let every slot of more than two terms say some of another one, up to MOST_DOUBT of it.

    features (slots, D), sizes: terms per slot. A patch between two ninths, or of a lesion that
    looks like two, says both in part, and a reader of clean words alone cannot tell which is more.
    """
    chosen = (torch.tensor(sizes) > 2).nonzero().squeeze(1)
    share = MOST_DOUBT * torch.rand((len(chosen), 1), generator=generator)
    others = chosen[torch.randperm(len(chosen), generator=generator)]
    mixed = (1 - share) * features[chosen] + share * features[others]
    return features.index_copy(0, chosen, mixed)


def _course(lessons, documents, settings, length, generator):
    """Yield (documents of one batch, whether they are a lesson): lessons first."""
    review = None
    for share, lesson in lessons:
        review = _document_batches(lesson, LESSON_TOKENS, length, generator)
        for _ in range(round(share * settings.language_steps)):
            yield next(review), True
    batches = _document_batches(documents, settings.language_batch_tokens, length, generator)
    while True:
        if review and torch.rand((), generator=generator) < REVIEW_SHARE:
            yield next(review), True
        else:
            yield next(batches), False


def _document_batches(documents, tokens, length, generator):
    """Yield lists of documents of similar length, pass after pass, in a seeded order.

    A batch has at most `tokens` tokens with its padding, where documents are cut after `length`.
    """
    if not documents:
        raise ValueError("no documents to learn from")
    sizes = [min(len(document["input_ids"]), length) for document in documents]
    while True:
        order = torch.randperm(len(documents), generator=generator).tolist()
        order.sort(key=sizes.__getitem__)
        groups = [[]]
        for index in order:
            if groups[-1] and (len(groups[-1]) + 1) * sizes[index] > tokens:
                groups.append([])
            groups[-1].append(index)
        for number in torch.randperm(len(groups), generator=generator).tolist():
            yield [documents[index] for index in groups[number]]


def _train(model, steps, learning_rate, loss_of, on_step, *, flat: float = 0.0):
    """Run the optimizer with warm-up and cosine decay, in float32.

    The rate stays at its peak for the share `flat` of the steps before it decays.

    Returns one row per step. Muon moves the matrices of the blocks, AdamW everything else: from
    scratch, this reaches the same loss in about half of the steps. At this size bf16 is no faster
    on a processor with AMX (notebook 05: 186 s against 188 s), and teaches less: after
    stage I the model then had 50 instead of 67 % of the phantom benchmark (one seed).
    """
    model.train()
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (matrices if ".layers." in name and parameter.ndim == 2 else others).append(parameter)
    optimizers = [
        Muon(matrices, weight_decay=0.05),
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.05, fused=True),
    ]
    start, metrics = time.perf_counter(), []
    for step in range(steps):
        decayed = max(0.0, step / steps - flat) / (1 - flat)
        factor = min(1.0, (step + 1) / (0.05 * steps)) * (1 + math.cos(math.pi * decayed)) / 2
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * factor
        loss, row = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        metrics.append({"step": step + 1, **row, "seconds": time.perf_counter() - start})
        if on_step is not None:
            on_step(metrics[-1])
    return metrics
