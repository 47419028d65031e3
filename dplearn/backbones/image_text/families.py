"""The families of image-text models: what CLIP and SigLIP do differently. Callers ask a family, never for its name.

CLIP's text tower is causal and is read at the end token; both towers are projected into a joint space; scores are
trained by a softmax over the texts, and over the images. SigLIP's text tower sees everything, padding too, and is read
in the last row by a head; scores are trained pair by pair.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from dplearn.backbones.image_text.captions import Captions, alike_columns, check_texts
from dplearn.backbones.rows import take_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def text_tower(model: PreTrainedModel) -> PreTrainedModel:
    """The text tower of a model with both towers, or of a text model, which may be the tower itself."""
    return getattr(model, "text_model", model)


def image_tower(model: PreTrainedModel) -> PreTrainedModel:
    """The image tower of a model with both towers, or of an image model, which may be the tower itself."""
    return getattr(model, "vision_model", model)


def unit(features: Tensor) -> Tensor:
    """Vectors of length 1 along the last dimension."""
    return normalize(features, dim=-1)


class Family:
    """What all families share, and what one has to say of itself.

    Attributes
    ----------
    model_class, output_class : names of transformers' classes: the model with both towers, and its output.
    text_classes, image_classes : those of models with one of the towers, which the probe serves
        (:mod:`dplearn.backbones.image_text.sides`).
    special_rows : how many rows stand in front of an image's patches ([CLS]).
    keep_last : how many last tokens of a text stay behind the prompt (the end token, where the answer is read there).
    hides_vectors : whether vectors of a text prompt can be out of use behind a mask, as a learned size needs.
    causal_text : whether a row of a text sees the rows in front of it alone.
    """

    model_class: str
    output_class: str
    text_classes: tuple[str, ...]
    image_classes: tuple[str, ...]
    special_rows: int
    keep_last: int
    hides_vectors: bool
    causal_text: bool

    def __init__(self, model: PreTrainedModel):
        self.model = model

    @property
    def text_config(self):
        """The configuration of the text tower."""
        return text_tower(self.model).config

    @property
    def joint_width(self) -> int:
        """p, the width of the space in which texts and images are compared."""
        raise NotImplementedError

    def captions(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Captions:
        """Look at texts once: where they start and end, and what they share. (Waits for a device.)

        Raises
        ------
        ValueError : wrong shapes; a CLIP text without an end token, or with padding inside; a mask that hides padding
            from SigLIP, which is trained to see it.
        """
        check_texts(input_ids, attention_mask)
        return self._captions(input_ids, attention_mask)

    def _captions(self, ids: Tensor, mask: Tensor | None) -> Captions:
        raise NotImplementedError

    def columns_read(self, captions: Captions, room: int, truncate: bool) -> Captions:
        """The columns of texts that the tower reads, of which there is room for so many; ``truncate``: as few as give
        the same answers."""
        raise NotImplementedError

    def words(self, captions: Captions) -> Tensor:
        """(C, T): 1 = words, without start and end tokens."""
        raise NotImplementedError

    def text_answers(
        self, states: Tensor, captions: Captions, input_positions: Tensor | None = None
    ) -> Tensor:
        """What the model says about texts, (B, p), not normalised, from the last hidden states (B, S, d) of B = N * C.

        input_positions : (B, T), the rows that the columns of the captions have moved to; None: they did not move.
        """
        raise NotImplementedError

    def answers_at(self, states: Tensor, rows: Tensor) -> Tensor:
        """What the model says about texts that are read in these rows: (B, S, d), (B, N) -> (B, N, p)."""
        raise NotImplementedError

    def image_answers(self, pooled: Tensor) -> Tensor:
        """What the model says about images, (N, p), not normalised, from the tower's pooled output (N, width)."""
        raise NotImplementedError

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """The model's score of every pair, (N, C), from unit vectors: images (N, p), and texts (C, p), or (N, C, p)
        where each image has texts of its own."""
        model = self.model
        cosines = images @ texts.mT if texts.ndim == 2 else (texts @ images.unsqueeze(2)).squeeze(2)
        return cosines * model.logit_scale.exp() + getattr(model, "logit_bias", 0.0)

    def pair_loss(self, logits: Tensor) -> Tensor:
        """The loss of N images and their N texts, in the same order, that the model was pretrained with."""
        raise NotImplementedError

    def probabilities(self, logits: Tensor) -> Tensor:
        """(N, C), as the model was trained: over the texts, or of each pair by itself."""
        raise NotImplementedError

    def output(self, **fields):
        """The model's own output, of the class that stands beside the model's class."""
        own = next(kind for kind in type(self.model).__mro__ if kind.__name__ == self.model_class)
        return getattr(sys.modules[own.__module__], self.output_class)(**fields)


class CLIP(Family):
    """A causal text tower that is read at the end token, and a joint space."""

    model_class, output_class = "CLIPModel", "CLIPOutput"
    text_classes = ("CLIPTextModel", "CLIPTextModelWithProjection")
    image_classes = ("CLIPVisionModel", "CLIPVisionModelWithProjection")
    special_rows, keep_last = 1, 1
    hides_vectors = causal_text = True

    @property
    def joint_width(self) -> int:
        return self.model.visual_projection.out_features

    def _captions(self, ids: Tensor, mask: Tensor | None) -> Captions:
        config, steps = self.text_config, torch.arange(ids.shape[1], device=ids.device)
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
        special = self._start_tokens(ids, end, old)
        shown = (steps <= end[:, None]) & (steps >= special)
        ends = tuple(end.tolist())
        return Captions(ids, shown.long(), ends, special, min(alike_columns(ids), *ends))

    def _start_tokens(self, ids: Tensor, end: Tensor, old: bool) -> int:
        """1 where texts begin with a start token, 0 where they do not."""
        # CLIP's start token is numbered one below its end token, also where the configuration says something else.
        starts = ids[:, 0] == ids.gather(1, end[:, None])[:, 0] - 1
        starts |= ids[:, 0] == (-1 if old else self.text_config.bos_token_id)
        if starts.any() != starts.all():
            raise ValueError("input_ids has rows with and without a start token, expected all or none")
        return int(starts.all())

    def columns_read(self, captions: Captions, room: int, truncate: bool) -> Captions:
        """Those up to the longest text's end token, or as many as there is room for: what stands behind an end token
        cannot be seen from it."""
        columns = captions.input_ids.shape[1]
        return captions.first_columns(captions.longest if truncate else min(columns, room))

    def words(self, captions: Captions) -> Tensor:
        words = captions.mask.clone()
        words[torch.arange(len(words)), list(captions.ends)] = 0
        return words

    def text_answers(
        self, states: Tensor, captions: Captions, input_positions: Tensor | None = None
    ) -> Tensor:
        ends = torch.tensor(captions.ends, device=states.device).repeat(len(states) // len(captions.ends))
        rows = ends[:, None]
        return self.answers_at(states, rows if input_positions is None else input_positions.gather(1, rows))[
            :, 0
        ]

    def answers_at(self, states: Tensor, rows: Tensor) -> Tensor:
        projection = getattr(self.model, "text_projection", None)  # CLIPTextModel has none
        states = take_rows(states, rows)
        return states if projection is None else projection(states)

    def image_answers(self, pooled: Tensor) -> Tensor:
        return self.model.visual_projection(pooled)

    def pair_loss(self, logits: Tensor) -> Tensor:
        """Cross-entropy over the texts and over the images, in equal parts (Radford et al. 2021)."""
        own = torch.arange(len(logits), device=logits.device)
        return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)


class SigLIP(Family):
    """A text tower that sees everything, padding too, and is read in the last row; each pair by itself."""

    model_class, output_class = "SiglipModel", "SiglipOutput"
    text_classes = ("SiglipTextModel",)
    image_classes = ("SiglipVisionModel", "SiglipForImageClassification")
    special_rows, keep_last = 0, 0
    hides_vectors = causal_text = False

    @property
    def joint_width(self) -> int:
        return self.model.vision_model.config.hidden_size

    def _captions(self, ids: Tensor, mask: Tensor | None) -> Captions:
        if mask is not None and not bool((mask != 0).all()):
            raise ValueError(
                f"attention_mask hides tokens, expected none: {type(self.model).__name__} is trained to see padding "
                "(pass input_ids alone, padded to max_length)"
            )
        config, steps = self.text_config, torch.arange(ids.shape[1], device=ids.device)
        stop = (ids == config.pad_token_id) | (ids == config.eos_token_id)
        words = torch.where(stop.any(1), stop.int().argmax(1), ids.shape[1])
        ends = tuple(words.tolist())
        return Captions(ids, (steps < words[:, None]).long(), ends, 0, min(alike_columns(ids), *ends))

    def columns_read(self, captions: Captions, room: int, truncate: bool) -> Captions:
        """All: the prompt takes the place of padding."""
        return captions

    def words(self, captions: Captions) -> Tensor:
        return captions.mask

    def text_answers(
        self, states: Tensor, captions: Captions, input_positions: Tensor | None = None
    ) -> Tensor:
        return text_tower(self.model).head(states[:, -1])

    def image_answers(self, pooled: Tensor) -> Tensor:
        return pooled

    def pair_loss(self, logits: Tensor) -> Tensor:
        """The sigmoid loss of each pair, own or not (Zhai et al. 2023)."""
        sign = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
        return -logsigmoid(sign * logits).sum(1).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


# By the model_type of transformers' configuration. A further family is a class here.
FAMILIES: dict[str, type[Family]] = {"clip": CLIP, "siglip": SigLIP}
