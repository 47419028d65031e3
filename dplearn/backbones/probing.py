"""Trying a text model out on a few tokens: what an adapter takes for granted about it, or why it cannot be served.

A prompt is rows among the rows of an input. That means something only where a model says the same about embedded
tokens as about the tokens themselves, and the same about an input whatever its padding is. Most models do. Others
multiply what they looked up by a factor that embedded inputs do not get, count positions from another number than 0,
read the token ids a second time deeper inside, or ignore the mask. So every model is asked, once, with five tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from dplearn.backbones.rows import with_rows
from dplearn.backbones.views import changed, evaluating
from dplearn.offload import device_of, is_offloaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Findings(NamedTuple):
    """What a model turned out to be."""

    scale: float = 1.0  # what it multiplies token embeddings with, behind the embedding module
    first: int = 0  # the position id of the first token, where positions are given
    causal: bool = False  # whether no row depends on a later one


class Refused(Exception):
    """The reason why a model cannot be served."""


# States of a model: called with input_ids or inputs_embeds (1, T), a mask (1, T) and the position of the first token.
States = Callable[..., Tensor]
_ASKED: weakref.WeakKeyDictionary[nn.Module, Findings | str] = weakref.WeakKeyDictionary()


def tried(model: PreTrainedModel, embedding: nn.Embedding, body: nn.Module, states: States) -> Findings:
    """Ask a model, once.

    Parameters
    ----------
    embedding : the module that embeds tokens.
    body : the module that gets tokens or rows.
    states : ``states(input_ids=..., mask=...)`` and ``states(inputs_embeds=..., mask=..., first=...)`` -> (1, T, h).

    Raises
    ------
    Refused : the model cannot be given rows, or padding changes its answer.
    """
    if model not in _ASKED:
        try:
            with torch.no_grad(), evaluating(model, copies=False):
                _ASKED[model] = _try(model, embedding, body, states)
        except Refused as reason:
            _ASKED[model] = str(reason)
    findings = _ASKED[model]
    if isinstance(findings, str):
        raise Refused(findings)
    return findings


def _try(model: PreTrainedModel, embedding: nn.Embedding, body: nn.Module, states: States) -> Findings:
    if is_empty(embedding):
        return Findings(causal=_is_listed_as_causal(model))  # weights that are not there yet
    name = type(model).__name__
    ids = probe_ids(model, embedding.weight.shape[0])
    mask = torch.ones_like(ids)
    try:
        plain = states(input_ids=ids, mask=mask).float()
        nearest, rows = float("inf"), embedding(ids)
        for scale, first in _candidates(model, body):
            embedded = states(inputs_embeds=rows * scale, mask=mask, first=first).float()
            if (distance := _difference(embedded, plain)) < _tolerance(model):
                _check_noise(model, states, rows * scale, mask, first, plain)
                _check_padding(model, states, rows * scale, mask, first, plain)
                return Findings(scale, first, _is_causal(states, ids, mask, plain, _tolerance(model)))
            nearest = min(nearest, distance)
    except Refused:
        raise
    except Exception as error:  # whatever it is: this model does not take rows
        raise Refused(
            f"{name} fails on embedded tokens: {type(error).__name__}: {str(error).strip()[:200]}"
        ) from None
    raise Refused(
        f"{name} answers differently to tokens and to their embeddings (by {nearest:.1%} of the largest value), so a "
        "prompt would not enter where its words do"
    )


def _candidates(model: PreTrainedModel, body: nn.Module) -> Iterator[tuple[float, int]]:
    """Factors and first positions to try: the usual ones first."""
    scales = {
        float(value) for module in body.modules() if (value := vars(module).get("embed_scale")) is not None
    }
    # RoBERTa counts from behind its padding token, MPNet from behind a row of its table.
    rows = {
        getattr(model.config, "pad_token_id", None),
        *(vars(m).get("padding_idx") for m in body.modules()),
    }
    firsts = {row + 1 for row in rows if isinstance(row, int)}
    return product((1.0, *sorted(scales - {1.0})), (0, *sorted(firsts - {0})))


def _check_noise(model, states: States, rows: Tensor, mask: Tensor, first: int, plain: Tensor) -> None:
    """A prompt's vectors are no token's: some models look each row up among their tokens."""
    noise = (
        1e-4 * rows.abs().amax() * torch.linspace(-1, 1, rows.shape[-1], device=rows.device).to(rows.dtype)
    )
    noisy = states(inputs_embeds=rows + noise, mask=mask, first=first).float()
    if not _difference(noisy, plain) < 0.3:
        raise Refused(f"{type(model).__name__} reads embedded tokens alone, and no other vectors")


def _check_padding(model, states: States, rows: Tensor, mask: Tensor, first: int, plain: Tensor) -> None:
    more = torch.cat([rows, rows[:, :2]], 1), torch.cat([mask, 0 * mask[:, :2]], 1)
    padded = states(inputs_embeds=more[0], mask=more[1], first=first).float()[:, : plain.shape[1]]
    if (distance := _difference(padded, plain)) > 10 * _tolerance(model):
        raise Refused(
            f"{type(model).__name__} answers differently where an input is padded (by {distance:.1%} of the largest "
            "value), so the answer would depend on the batch"
        )


def _is_causal(states: States, ids: Tensor, mask: Tensor, plain: Tensor, tolerance: float) -> bool:
    """Whether another last token leaves the rows in front of it as they are."""
    other = torch.cat([ids[:, :-1], ids[:, :1]], 1)
    return _difference(states(input_ids=other, mask=mask).float()[:, :-1], plain[:, :-1]) < tolerance


def _is_listed_as_causal(model: PreTrainedModel) -> bool:
    from transformers.models.auto import modeling_auto

    kind = model.config.model_type
    return (
        kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and kind not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def _difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest value; infinite where shapes differ or numbers are none."""
    if actual.shape != expected.shape or not actual.isfinite().all():
        return float("inf")
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def is_empty(embedding: nn.Module) -> bool:
    """Whether a model has no weights yet: they are on the meta device, and nothing fetches them."""
    return any(parameter.is_meta for parameter in embedding.parameters()) and not is_offloaded(embedding)


def same(model: PreTrainedModel, actual: Tensor, expected: Tensor) -> bool:
    """Whether two answers of a model are the same up to the rounding of its dtype."""
    return _difference(actual.float(), expected.float()) < _tolerance(model)


def _tolerance(model: PreTrainedModel) -> float:
    return 1e-4 if model.dtype in (torch.float32, torch.float64) else 0.05


def probe_ids(model: PreTrainedModel, vocabulary: int) -> Tensor:
    """(1, 5) token ids that differ and have no special meaning to the model."""
    config, special = model.config, set()
    for name in ("pad", "bos", "eos", "sep", "cls", "mask", "decoder_start"):
        value = getattr(config, f"{name}_token_id", None)
        special |= set(value if isinstance(value, (list, tuple)) else [value])
    usual = [token for token in range(vocabulary) if token not in special]
    return torch.tensor([usual[1:][-5:] if len(usual) > 6 else usual[:5]], device=device_of(model))


# ---- where the layers end ----


def end_of_layers(base: nn.Module, ids: Tensor) -> str | None:
    """The outermost module inside of a base model whose output is its last hidden states: what a pooler reads.

    Parameters
    ----------
    ids : (1, T) tokens to try it with.

    Returns
    -------
    Its path; None where nothing reads the last hidden states inside of the base model, or only a module ``pooler``.

    Raises
    ------
    Refused : there is no such module.
    """
    seen: list[tuple[int, str, Tensor]] = []

    def note(name: str):
        def hook(module, arguments, output):
            first = first_tensor(output)
            if first is not None:
                seen.append((name.count("."), name, first))

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for name, module in base.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(note(name)).remove)
        output = base(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True)
    if getattr(output, "pooler_output", None) is None:
        return None
    last = output.last_hidden_state
    inside = sorted((depth, path) for depth, path, states in seen if states is last)
    calls = [path for _, path, _ in seen]
    if not inside or calls.count(inside[0][1]) != 1:
        _check_pooler(base)
        return None

    def one_row(usual, *values, **options):
        return with_rows(usual(*values, **options), ids[:, :1] * 0)

    with torch.no_grad(), changed(base, {inside[0][1]: one_row}) as view:
        left = view(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True).last_hidden_state
    if left.shape[1] == 1:
        return inside[0][1]
    _check_pooler(base)
    return None


def _check_pooler(base: nn.Module) -> None:
    """Raise Refused unless there is a pooler: rows can be taken at the base model's output and at a pooler's input."""
    if not isinstance(getattr(base, "pooler", None), nn.Module):
        raise Refused(
            f"no module of {type(base).__name__} gives the last hidden states that its pooler reads"
        )


def first_tensor(output) -> Tensor | None:
    """The first tensor of a module's output."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)):
        return output[0] if output and isinstance(output[0], Tensor) else None
    values = list(output.values()) if hasattr(output, "values") else []
    return values[0] if values and isinstance(values[0], Tensor) else None
