"""Image-text models (CLIP, SigLIP): two towers, and a prompt in the text, in the image, in both, or in both coupled.

The text prompt stands between the start token and the end token, around the words, as CoOp (Zhou et al. 2022) places
it: its "end", "middle" and "front" are the prefix, an even surround and the postfix. The answer is read where the
model reads it: CLIP at the end token, wherever that went; SigLIP in the last row, so that its inputs keep their length
and the prompt takes the place of padding. Positions are counted anew: tokens behind the prompt move on. CLIP's text
model is causal and has absolute positions, so there the split is real.

The image prompt stands behind the patches and their position vectors, as in MaPLe (Khattak et al. 2023) and VPT, and
leaves before anything is read. There no split can matter (chapter 03), so it has none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from dplearn.backbones.base import Backbone, evaluating, take_rows, with_rows
from dplearn.backbones.views import Changes, changed
from dplearn.backbones.vit import check_order_matters, image_vectors, patch_uniform, receiving
from dplearn.controllers import LEARNED
from dplearn.length import resolve_size
from dplearn.offload import is_offloaded
from dplearn.summaries import masked_mean

KINDS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
TOWERS = ("text", "vision", "both", "coupled")
PACKED = 512  # rows of one packed sequence at most: its attention is quadratic in them


class Captions(NamedTuple):
    """Texts as a text tower reads them. What decides about shapes is plain integers, known before the model runs."""

    input_ids: Tensor  # (C, T), real tokens first
    mask: Tensor  # (C, T), 1 = tokens that the prompt surrounds, and CLIP's end token, which stays behind it
    ends: tuple[int, ...]  # CLIP: the column of the end token; SigLIP: the first one behind the words
    special: int  # columns in front of the prompt: 1 where there is a start token
    shared: int  # columns, counted from the front, in which all texts are alike


class _Pack(NamedTuple):
    """Some texts as one sequence of R rows."""

    source: Tensor  # (R,), which row of the texts, one behind the other, each is
    place: Tensor  # (R,), its position in its own text
    visible: Tensor  # (R, R), which rows a row sees
    holders: Tensor  # (V,), the rows that hold prompt vectors
    vectors: Tensor  # (V,), which vectors these are
    reads: Tensor  # (texts,), the rows of their end tokens


class CLIPBackbone(Backbone):
    """Adapter of an image-text model with two towers and one score for each pair."""

    kind, reads = "image-text", "images and texts"

    def __init__(self, model):
        super().__init__(model)
        self.text, self.vision = model.text_model, model.vision_model
        self.max_positions = self.text.config.max_position_embeddings
        # CLIP: causal, read at the end token. SigLIP: sees everything, padding too, and is read in the last row.
        self.causal = model.config.model_type == "clip"
        self._kept: tuple[tuple, list[_Pack]] | None = None

    @staticmethod
    def refusal(model: nn.Module) -> str | None:
        """Why this adapter cannot serve the model, or None if it can."""
        kind = getattr(model.config, "model_type", "")
        if kind not in KINDS:
            return f"expected one of the image-text models {sorted(KINDS)}, got model_type={kind!r}"
        if not any(ancestor.__name__ == KINDS[kind] for ancestor in type(model).__mro__):
            return f"expected the model with both towers, {KINDS[kind]}, got {type(model).__name__}"
        if any(is_offloaded(module) for module in model.modules()):
            return (
                f"{type(model).__name__} has weights that wait elsewhere (accelerate's offload), expected all of "
                "them on a device: towers are run in pieces"
            )
        return None

    @property
    def embedding(self) -> nn.Module:
        """The module that embeds tokens in the text tower."""
        return self.text.embeddings.token_embedding

    @property
    def vision_width(self) -> int:
        """The width of the embedded patches."""
        return self.vision.config.hidden_size

    @property
    def joint_width(self) -> int:
        """p, the width of the space in which texts and images are compared."""
        return self.model.visual_projection.out_features if self.causal else self.vision_width

    def width_of(self, config) -> int:
        return self.vision_width if config.towers == "vision" else self.width

    def summary_width(self, config) -> int:
        return self.joint_width if config.summary == "image" else self.width_of(config)

    def describe(self) -> dict:
        patch = list(self.vision.embeddings.patch_embedding.weight.shape[1:])
        return super().describe() | {"vision_width": self.vision_width, "patch": patch}

    def initial_vectors(self, config, generator: torch.Generator | None = None) -> Tensor:
        """Rows of the vocabulary for a text prompt; for an image prompt VPT's, as in a vision transformer."""
        if config.towers == "vision":
            return image_vectors(self.vision.embeddings.patch_embedding, config, generator)
        return super().initial_vectors(config, generator)

    def complete(self, prompt, config, generator: torch.Generator | None = None) -> None:
        """Give a prompt for both towers its image part: vectors of its own, or maps from those of the text."""
        super().complete(prompt, config, generator)
        if config.towers == "both":
            count = resolve_size(config.size, config.length) or config.length
            embedding = self.vision.embeddings.patch_embedding
            prompt.vision = VisionVectors(patch_uniform(embedding, (config.depth, count), generator))
        elif config.towers == "coupled":
            prompt.vision = Coupling(config.depth, self.width, self.vision_width)

    def refuses_kept(self, config) -> str | None:
        return (
            f"{type(self.model).__name__} has images and texts, expected cache_images, which keeps the images"
        )

    def check(self, config) -> None:
        """Raise ValueError where a config asks for what this model cannot do; warn where it asks for what is void."""
        name, towers = type(self.model).__name__, config.towers or "text"
        if config.entry is not None:
            raise ValueError(
                f"entry={config.entry!r} is not for {name}, expected None: an image prompt stands behind the "
                "position vectors, a text prompt in front of them"
            )
        reached = [] if towers == "vision" else [self.text]
        reached += [] if towers == "text" else [self.vision]
        layers = min(len(tower.encoder.layers) for tower in reached)
        if config.depth > layers:
            raise ValueError(f"depth={config.depth} is too deep, expected 1..{layers}: {name}'s layers")
        if towers == "vision":
            check_order_matters(config, name)
        _refuse(
            {
                "size": config.size in LEARNED and (towers in ("vision", "coupled") or not self.causal),
                "summary": (config.summary == "encoder" and towers == "vision")
                or (config.summary == "image" and towers in ("both", "coupled")),
                "vector": towers == "coupled" and (config.vector == "instance" or _several(config, "vector")),
                "estimator": config.estimator == "exact" and not self._decides_once(config),
            },
            config,
            {
                "size": f"'full' or a number: rows of {name} with towers={towers!r} cannot be hidden",
                "summary": f"'embeddings' with towers={towers!r}",
                "vector": "'single' or one mixture for all: with towers='coupled' an image gets its prompt from "
                "that of the texts, of which there must be one",
                "estimator": "'straight-through' or 'score-function': the loss of an image depends on the decisions "
                "for all texts, which are too many to enumerate together",
            },
        )

    def _decides_once(self, config) -> bool:
        """Whether no loss depends on the sampled decisions of several instances."""
        if config.towers == "vision" or config.summary == "image":
            return True
        sampled = ["position", "size"] + ["vector"] * (config.mixing == "hard")
        return not any(getattr(config, name) == "instance" or _several(config, name) for name in sampled)

    # --- texts ---

    def captions(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Captions:
        """Look at texts once: where they start and end, and what they share. (Waits for a device.)

        Raises
        ------
        ValueError : wrong shapes; a CLIP text without an end token, or with padding inside; a mask that hides padding
            from SigLIP, which is trained to see it.
        """
        if input_ids.ndim != 2 or input_ids.is_floating_point() or 0 in input_ids.shape:
            found = f"shape {tuple(input_ids.shape)} and dtype {input_ids.dtype}"
            raise ValueError(f"input_ids has {found}, expected integers (texts, seq)")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, expected {tuple(input_ids.shape)} as "
                "input_ids"
            )
        read = self._clip_captions if self.causal else self._siglip_captions
        return read(input_ids, attention_mask)

    def _clip_captions(self, ids: Tensor, mask: Tensor | None) -> Captions:
        config, steps = self.text.config, torch.arange(ids.shape[1], device=ids.device)
        # The library's own rule for where a text ends: configurations from before its correction hold a 2 and mean
        # the largest number; others name the token.
        old = config.eos_token_id == 2
        hits = ids == ids.amax(1, keepdim=True) if old else ids == config.eos_token_id
        if mask is not None:
            hits &= mask != 0  # padding on the left may be made of end tokens
        end = hits.int().argmax(1)
        first = torch.zeros_like(end) if mask is None else mask.int().argmax(1)
        real = (steps >= first[:, None]) & (steps <= end[:, None])
        if mask is not None:
            real &= mask != 0
        wrong = (~hits.any(1) | (real.sum(1) != end - first + 1)).nonzero()
        if len(wrong):
            raise ValueError(
                f"input_ids row {int(wrong[0])} has no end token, or padding in front of it, expected a text as the "
                "model's tokenizer writes it: start token, words, end token"
            )
        ids = ids.gather(1, (steps + first[:, None]).clamp(max=ids.shape[1] - 1))  # padding on the left goes
        end = end - first
        # CLIP's start token is numbered one below its end token, also where the configuration says something else.
        starts = ids[:, 0] == ids.gather(1, end[:, None])[:, 0] - 1
        starts |= ids[:, 0] == (-1 if old else config.bos_token_id)
        if starts.any() != starts.all():
            raise ValueError("input_ids has rows with and without a start token, expected all or none")
        special = int(starts.all())
        shown = (steps <= end[:, None]) & (steps >= special)
        ends = tuple(end.tolist())
        return Captions(ids, shown.long(), ends, special, min(_alike(ids), *ends))

    def _siglip_captions(self, ids: Tensor, mask: Tensor | None) -> Captions:
        if mask is not None and not bool((mask != 0).all()):
            raise ValueError(
                f"attention_mask hides tokens, expected none: {type(self.model).__name__} is trained to see padding "
                "(pass input_ids alone, padded to max_length)"
            )
        config, steps = self.text.config, torch.arange(ids.shape[1], device=ids.device)
        stop = (ids == config.pad_token_id) | (ids == config.eos_token_id)
        words = torch.where(stop.any(1), stop.int().argmax(1), ids.shape[1])
        ends = tuple(words.tolist())
        return Captions(ids, (steps < words[:, None]).long(), ends, 0, min(_alike(ids), *ends))

    def fit(self, captions: Captions, extra: int, truncate: bool) -> Captions:
        """The columns of the texts that the tower reads with ``extra`` prompt vectors.

        CLIP: those up to the longest text's end token (``truncate``), or as many as there is room for; what stands
        behind an end token cannot be seen from it. SigLIP reads all columns.

        Raises
        ------
        ValueError : there is no room for prompt and texts.
        """
        longest, columns = max(captions.ends) + 1, captions.input_ids.shape[1]
        if longest + extra > self.max_positions:
            raise ValueError(
                f"the longest text has {longest} tokens, with {extra} prompt vectors {longest + extra}, expected at "
                f"most {self.max_positions} positions: shorten the texts or the prompt"
            )
        if not self.causal:
            return captions
        kept = longest if truncate else min(columns, self.max_positions - extra)
        return captions._replace(input_ids=captions.input_ids[:, :kept], mask=captions.mask[:, :kept])

    def embed(self, input_ids: Tensor) -> Tensor:
        """(C, T) token ids -> (C, T, d) frozen embeddings, without positions."""
        with torch.no_grad():
            return self.text.embeddings.token_embedding(input_ids)

    def encoder_summary(self, inputs: Tensor, words: Tensor) -> Tensor:
        """(C, d): the mean of the last hidden states of the words (C, T), without gradient or dropout."""
        with torch.no_grad(), evaluating(self.text) as text:
            return masked_mean(self._run(inputs, text=text), words)

    def finish_texts(self, placed, captions: Captions):
        """Show the start token, which the prompt stood behind; SigLIP: padding gives way to the prompt."""
        mask = placed.mask.clone()
        mask[:, : captions.special] = 1
        room = self.max_positions
        return placed._replace(embeds=placed.embeds[:, :room], mask=mask[:, :room])

    def plain_text_features(self, captions: Captions) -> Tensor:
        """What the model says about texts without a prompt: (C, p), not normalised."""
        states = self._run(self.embed(captions.input_ids))
        if not self.causal:
            return self.text.head(states[:, -1])
        ends = torch.tensor(captions.ends, device=states.device)
        return self._project(states, ends[:, None])[:, 0]

    def text_features(self, placed, captions: Captions, split: int | None = None) -> Tensor:
        """What the model says about texts with their prompt: (B, p), not normalised.

        ``placed`` holds the C texts once, or B = N * C rows with the C texts once for each of N prompts. ``split``:
        all N prompts stand around all texts with so many vectors in front, and rows that the C texts of a prompt share
        are computed once. (CLIP only: what stands in front does not see what follows.)
        """
        if split is not None:
            return self._packed_features(placed, captions, split)
        states = self._run(placed.embeds, deeper=placed.deeper, rows=placed.prompt_positions)
        if not self.causal:
            return self.text.head(states[:, -1])
        ends = torch.tensor(captions.ends, device=states.device).repeat(len(states) // len(captions.ends))
        return self._project(states, placed.input_positions.gather(1, ends[:, None]))[:, 0]

    def _project(self, states: Tensor, rows: Tensor) -> Tensor:
        return self.model.text_projection(take_rows(states, rows))

    def _run(
        self,
        embeds: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        deeper: Tensor | None = None,
        rows: Tensor | None = None,
        text: nn.Module | None = None,
    ) -> Tensor:
        """The text tower on rows (B, S, d) that have no positions yet; last hidden states (B, S, d)."""
        if positions is None:
            positions = torch.arange(embeds.shape[1], device=embeds.device)
        # Not through the tower's own embeddings: they refuse packed sequences that are longer than their table.
        embeds = embeds + self.text.embeddings.position_embedding(positions)
        # The tower wants ids; only their shape is used. (It reads an answer from them that is not used either.)
        ids = torch.zeros(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        changes = {"embeddings": lambda *_, **__: embeds}
        if deeper is not None:
            changes |= receiving(self.text, self.text.encoder.layers, deeper, rows)
        with changed(self.text if text is None else text, changes) as text:
            return text(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state

    @property
    def packs(self) -> bool:
        """Whether texts can share rows: a causal tower whose attention takes any mask."""
        return self.causal and self.text.config._attn_implementation in ("sdpa", "eager")

    def _packed_features(self, placed, captions: Captions, split: int) -> Tensor:
        """One sequence of the shared rows and of each text's own rows, each of which sees the shared ones and its own
        text's earlier ones. The sequence's parts keep the positions that they have in their own text."""
        texts, (_, rows, width) = len(captions.ends), placed.embeds.shape
        length = rows - captions.input_ids.shape[1]
        key = (captions.ends, captions.special, captions.shared, split, rows, length, PACKED)
        several = placed.embeds.view(-1, texts * rows, width)
        found = []
        for pack in self._packs(key, several.device):
            mask = torch.zeros(pack.visible.shape, dtype=several.dtype, device=several.device)
            mask = mask.masked_fill(~pack.visible, torch.finfo(several.dtype).min)[None, None]
            deep = {}
            if placed.deeper is not None:
                deeper = placed.deeper if placed.deeper.ndim == 3 else placed.deeper[::texts]
                deep["deeper"] = deeper.index_select(-2, pack.vectors)
                deep["rows"] = pack.holders.expand(len(several), -1)
            states = self._run(several.index_select(1, pack.source), mask, pack.place, **deep)
            found.append(self._project(states, pack.reads.expand(len(several), -1)))  # (N, chosen, p)
        return torch.cat(found, 1).flatten(0, 1)

    def _packs(self, key: tuple, device: torch.device) -> list[_Pack]:
        """The packed sequences of some texts; those of the last call are kept, since every step of a training asks for
        the same and a device would have to wait for them."""
        if torch.compiler.is_compiling():
            return _pack(*key, device)
        kept = self._kept
        if kept is None or kept[0] != (key, device):
            kept = self._kept = (key, device), _pack(*key, device)
        return kept[1]

    # --- images ---

    def image_rows(self, pixel_values: Tensor, **options) -> Tensor:
        """(N, channels, height, width) -> (N, T, width): embedded patches with their positions, [CLS] first."""
        weight = self.vision.embeddings.patch_embedding.weight
        if pixel_values.ndim != 4 or not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)} and dtype {pixel_values.dtype}, "
                f"expected floating point (batch, {weight.shape[1]}, height, width)"
            )
        with torch.no_grad():
            return self.vision.embeddings(pixel_values, **options)

    def image_features(self, pixel_values: Tensor, vectors: Tensor | None = None, **options) -> Tensor:
        """What the model says about images: (N, p), not normalised, without gradient where there is no prompt.

        vectors: (depth, l, width) or (N, depth, l, width), a prompt for the first layers. ``options`` are those of the
        tower's embeddings, ``interpolate_pos_encoding``.
        """
        rows = self.image_rows(pixel_values, **options)
        if vectors is None:
            with torch.no_grad():
                return self._pooled(pixel_values, rows)
        batch, count, length = *rows.shape[:2], vectors.shape[-2]
        vectors = vectors.to(rows.dtype)
        rows = torch.cat([rows, vectors.select(-3, 0).expand(batch, -1, -1)], 1)
        own = torch.arange(count, device=rows.device).expand(batch, -1)
        changes = {"encoder": lambda usual, *values, **options: with_rows(usual(*values, **options), own)}
        if vectors.shape[-3] > 1:
            deeper = vectors.narrow(-3, 1, vectors.shape[-3] - 1)
            seats = torch.arange(count, count + length, device=rows.device).expand(batch, -1)
            changes |= receiving(self.vision, self.vision.encoder.layers, deeper, seats)
        return self._pooled(pixel_values, rows, changes)

    def _pooled(self, pixel_values: Tensor, rows: Tensor, changes: Changes | None = None) -> Tensor:
        """The vision tower on embedded rows: (N, p)."""
        with changed(self.vision, {"embeddings": lambda *_, **__: rows} | (changes or {})) as vision:
            pooled = vision(pixel_values=pixel_values, return_dict=True).pooler_output
        return self.model.visual_projection(pooled) if self.causal else pooled

    def image_summary(self, pixel_values: Tensor, **options) -> Tensor:
        """(N, width): the mean of the embedded patches, which an image prompt's decisions look at."""
        rows = self.image_rows(pixel_values, **options)
        return rows[:, int(self.causal) :].mean(1)

    # --- both ---

    def scores(self, texts: Tensor, images: Tensor) -> Tensor:
        """The model's score of every pair, (N, C), from unit vectors: texts (C, p), or (N, C, p) where each image has
        texts of its own, and images (N, p)."""
        model = self.model
        cosines = images @ texts.mT if texts.ndim == 2 else (texts @ images.unsqueeze(2)).squeeze(2)
        return cosines * model.logit_scale.exp() + getattr(model, "logit_bias", 0.0)

    def pair_loss(self, scores: Tensor) -> Tensor:
        """The loss of N images and their N texts, in the same order, that the model was pretrained with."""
        if self.causal:
            own = torch.arange(len(scores), device=scores.device)
            return (cross_entropy(scores, own) + cross_entropy(scores.T, own)) / 2
        sign = 2 * torch.eye(len(scores), dtype=scores.dtype, device=scores.device) - 1
        return -logsigmoid(sign * scores).sum(1).mean()

    def probabilities(self, scores: Tensor) -> Tensor:
        """(N, C): over the texts (CLIP), or of each pair by itself (SigLIP), as the model was trained."""
        return scores.softmax(-1) if self.causal else scores.sigmoid()

    def output_class(self) -> type:
        """The class of the model's own output."""
        module = sys.modules[
            next(k for k in type(self.model).__mro__ if k.__name__ in KINDS.values()).__module__
        ]
        return module.CLIPOutput if self.causal else module.SiglipOutput


class VisionVectors(nn.Module):
    """Trained vectors of an image prompt beside a text prompt, (depth, l, width)."""

    def __init__(self, vectors: Tensor):
        super().__init__()
        self.vectors = nn.Parameter(vectors)


class Coupling(nn.Module):
    """An image prompt that follows from the text prompt by one linear map for each layer, as in MaPLe (section 3.2)."""

    def __init__(self, depth: int, width: int, vision_width: int):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(width, vision_width) for _ in range(depth))

    def forward(self, text: Tensor) -> Tensor:
        """(depth, l, d) or (N, depth, l, d) -> the same with the images' width."""
        text = text.to(self.maps[0].weight.dtype)
        return torch.stack([layer(text.select(-3, number)) for number, layer in enumerate(self.maps)], -3)


def unit(features: Tensor) -> Tensor:
    """Vectors of length 1 along the last dimension."""
    return normalize(features, dim=-1)


def _alike(ids: Tensor) -> int:
    """In how many columns, counted from the front, all rows are alike."""
    return int((ids == ids[:1]).all(0).int().cumprod(0).sum())


def _several(config, name: str) -> bool:
    return getattr(config, name) == "task" and config.tasks is not None and len(config.tasks) > 1


def _refuse(wrong: dict[str, bool], config, expected: dict[str, str]) -> None:
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"{name}={getattr(config, name)!r} is not valid here, expected {expected[name]}")


def _pack(
    ends: tuple[int, ...],
    special: int,
    alike: int,
    split: int,
    rows: int,
    length: int,
    room: int,
    device: torch.device,
) -> list[_Pack]:
    """Texts with their prompt as few sequences in which shared rows occur once.

    ends, special, alike: of :class:`Captions`.  split: vectors in front.  rows: of each text with its prompt, of which
    ``length`` hold vectors.  room: rows of a sequence, at most.
    """
    # Alike are the start token, the vectors in front, and as many words as the texts have in common.
    shared = alike + split if alike >= special else alike
    packs = []
    for chosen in _chunks([end + length + 1 - shared for end in ends], room - shared):
        seats = [(chosen[0], row) for row in range(shared)]
        seats += [(text, row) for text in chosen for row in range(shared, ends[text] + length + 1)]
        held = [_vector_in(row, special, split, ends[text], length) for text, row in seats]
        holders = [seat for seat, vector in enumerate(held) if vector is not None]
        last = {seat: number for number, seat in enumerate(seats)}
        columns = (
            [text * rows + row for text, row in seats],
            [row for _, row in seats],
            [text if row >= shared else -1 for text, row in seats],
            holders,
            [held[seat] for seat in holders],
            [last[text, ends[text] + length] for text in chosen],
        )
        source, place, owner, *rest = (torch.tensor(column, device=device) for column in columns)
        visible = (place <= place[:, None]) & ((owner == -1) | (owner == owner[:, None]))
        packs.append(_Pack(source, place, visible, *rest))
    return packs


def _chunks(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Numbers 0..n-1 in order, in groups whose sizes add up to at most ``room`` (or of one).

    >>> _chunks([3, 2, 4, 9, 1], 6)
    [[0, 1], [2], [3], [4]]
    """
    groups, used = [], 0
    for number, size in enumerate(sizes):
        if not groups or used + size > room:
            groups.append([])
            used = 0
        groups[-1].append(number)
        used += size
    return groups


def _vector_in(row: int, special: int, split: int, end: int, length: int) -> int | None:
    """Which prompt vector stands in a row of a text whose end token was in column ``end``, or None."""
    if special <= row < special + split:
        return row - special
    return row - end if end + split <= row < end + length else None
