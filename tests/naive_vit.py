"""Visual prompt tuning (Jia et al. 2022) by hand: the reference that several test files share.

Patches are cut with ``unfold``, the prompt is concatenated behind the special tokens, the model's own layers are called
one after another, and the rows of the prompt are cut out by number. Nothing here uses the package.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import tiny
import torch
from torch.nn.functional import unfold
from transformers import DeiTForImageClassificationWithTeacher, DeiTModel, Dinov2Model, ViTModel

PATCH = 4


class Case(NamedTuple):
    """A class of models, and how its answer follows from the rows of the input behind the last norm."""

    make: Callable
    head: Callable  # model, rows (B, T, d) -> the fields of its output
    special: int = 1


def teacher(model, rows):
    one, other = model.cls_classifier(rows[:, 0]), model.distillation_classifier(rows[:, 1])
    return {"logits": (one + other) / 2, "cls_logits": one, "distillation_logits": other}


def pooled(model, rows):
    return {"last_hidden_state": rows, "pooler_output": model.pooler.dense(rows[:, 0]).tanh()}


def on_first(model, rows):
    return {"logits": model.classifier(rows[:, 0])}


CASES = {
    "vit": Case(tiny.vit, on_first),
    "vit-base": Case(partial(tiny.vit, ViTModel), pooled),
    "deit": Case(tiny.deit, on_first, 2),
    "deit-base": Case(partial(tiny.deit, DeiTModel), pooled, 2),
    "deit-teacher": Case(partial(tiny.deit, DeiTForImageClassificationWithTeacher), teacher, 2),
    "dinov2": Case(
        tiny.dinov2,
        lambda m, rows: {"logits": m.classifier(torch.cat([rows[:, 0], rows[:, 1:].mean(1)], 1))},
    ),
    "dinov2-base": Case(
        partial(tiny.dinov2, Dinov2Model),
        lambda m, rows: {"last_hidden_state": rows, "pooler_output": rows[:, 0]},
    ),
}


def layers_of(backbone):
    base = backbone.base_model
    return base.layers if hasattr(base, "layers") else base.encoder.layer


def rows_by_hand(backbone, pixels):
    """Special tokens and patches without positions: (B, T, d)."""
    embeddings = backbone.base_model.embeddings
    projection = embeddings.patch_embeddings.projection
    patches = unfold(pixels, PATCH, stride=PATCH).mT @ projection.weight.flatten(1).T + projection.bias
    tokens = [embeddings.cls_token]
    if hasattr(embeddings, "distillation_token"):
        tokens.append(embeddings.distillation_token)
    return torch.cat([*(token.expand(len(pixels), 1, -1) for token in tokens), patches], 1)


def embedded(backbone, pixels):
    """Special tokens and patches with their positions, as they enter the first layer: (B, T, d)."""
    return rows_by_hand(backbone, pixels) + backbone.base_model.embeddings.position_embeddings


def through_layers(case, backbone, states, prompts, length):
    """Prompts (depth, l, d), of which the first stands in the states already, behind the special tokens."""
    special = case.special
    for number, layer in enumerate(layers_of(backbone)):
        if 0 < number < len(prompts):
            fresh = prompts[number].expand(len(states), -1, -1)
            states = torch.cat([states[:, :special], fresh, states[:, special + length :]], 1)
        states = layer(states)
    rows = backbone.base_model.layernorm(states)
    return case.head(backbone, torch.cat([rows[:, :special], rows[:, special + length :]], 1))


def stacked(model):
    """The vectors of a prompt without a pool as (depth, l, d)."""
    vectors = model.prompt.vectors
    return vectors if model.prompt_config.depth > 1 else vectors[None]


def vpt_by_hand(case, backbone, pixels, prompts):
    """Shallow for one prompt (1, l, d), deep for several (depth, l, d)."""
    states, special = embedded(backbone, pixels), case.special
    first = prompts[0].expand(len(pixels), -1, -1)
    states = torch.cat([states[:, :special], first, states[:, special:]], 1)
    return through_layers(case, backbone, states, prompts, prompts.shape[1])
