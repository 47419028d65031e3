"""The attention of a real model: recorded as it runs, and taken apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dplearn.theory.attention.biases import causal_bias
from dplearn.theory.attention.parts import combine, decompose, gates, scores

_SEEN: ContextVar[tuple[dict[int, str], list[Layer]] | None] = ContextVar(
    "recorded attention layers", default=None
)
_RECORDER = "dplearn_recorder"


class Layer(NamedTuple):
    """One attention layer of a model, as it ran; heads that share keys and values are written out."""

    name: str  # of the attention module in the model
    scores: Tensor  # (B, h, queries, keys), before the softmax, with bias and mask
    value: Tensor  # (B, h, keys, d_v)
    output: Tensor  # (B, h, queries, d_v), what the model's own attention returned


@contextmanager
def recording(model: nn.Module) -> Iterator[list[Layer]]:
    """While this is open, every attention layer of a Hugging Face model that runs adds a `Layer` to the list.

        with recording(model) as layers:
            model(inputs_embeds=placed.embeds, attention_mask=placed.mask)
        layer_gates(layers, segments_of(placed, split))

    The model computes with torch's `scaled_dot_product_attention` in its own precision, whichever implementation it was
    loaded with; scores are recomputed from the same queries and keys, in float32 or wider. (Maps from
    ``output_attentions`` need ``attn_implementation="eager"``, and several models compute these in float32 even where
    their weights are float64: use `gates_from_maps` for them.) Cross-attention is recorded as well; names tell.

    Parameters
    ----------
    model : a transformers model, or a module that holds some, such as a prompted model.

    Raises
    ------
    TypeError : the module holds no transformers model.
    """
    from transformers import PreTrainedModel

    _register()
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    if not configs:
        raise TypeError(f"model={type(model).__name__} holds no transformers model, expected at least one")
    usual = [(config, config._attn_implementation) for config in configs.values()]
    names = {id(module): name for name, module in model.named_modules()}
    layers: list[Layer] = []
    token = _SEEN.set((names, layers))
    try:
        for config in configs.values():
            config._attn_implementation = _RECORDER
        yield layers
    finally:
        for config, implementation in usual:
            config._attn_implementation = implementation
        _SEEN.reset(token)


@cache
def _register() -> None:
    """Make the recorder known to transformers as an implementation of attention, with masks that are added."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
    from transformers.masking_utils import eager_mask

    def record(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        position_bias: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, position_bias=position_bias, **options
        )
        names, layers = _SEEN.get() or ({}, [])
        times = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, times), repeat_kv(value, times)
        wide = torch.promote_types(query.dtype, torch.float32)
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        logits = scores(
            query.to(wide), key.to(wide), scale=query.shape[-1] ** -0.5 if scaling is None else scaling
        )
        logits = logits if position_bias is None else logits + position_bias
        if attention_mask is None and causal and query.shape[2] > 1:
            logits = logits + causal_bias(query.shape[2]).to(logits)
        elif attention_mask is not None and attention_mask.dtype == torch.bool:  # one that the caller made
            logits = logits.masked_fill(~attention_mask, -torch.inf)
        elif attention_mask is not None:
            logits = logits + attention_mask
        name = names.get(id(module), type(module).__name__)
        layers.append(
            Layer(name, logits, value.to(wide), output.transpose(1, 2))
        )  # (B, S, h, d_v) -> (B, h, S, d_v)
        return output, None

    AttentionInterface.register(_RECORDER, record)
    AttentionMaskInterface.register(_RECORDER, eager_mask)


def layer_gates(layers: Iterable[Layer], segments: Tensor, count: int = 3) -> Tensor:
    """Gates of recorded layers with the same keys: (layers, B, h, queries, count).

    segments: (keys,) labels, or (B, keys) as from `segments_of`.
    """
    return torch.stack([gates(layer.scores, segments, count) for layer in layers])


def gates_from_maps(maps: Sequence[Tensor], segments: Tensor, count: int = 3) -> Tensor:
    """The same from attention maps (B, h, queries, keys) per layer, as ``output_attentions=True`` returns them."""
    labels = segments if segments.dim() == 2 else segments.unsqueeze(0)
    columns = nn.functional.one_hot(labels, count)[:, None]  # (B or 1, 1, keys, count)
    return torch.stack([weights @ columns.to(weights.dtype) for weights in maps])


def mean_gates(gates: Tensor, segments: Tensor, count: int = 3) -> Tensor:
    """Who looks where: (segments of the query, segments of the key), means over layers, batch, heads and rows.

    gates: (..., queries, count) with queries = keys; segments: (keys,) labels. A segment without rows gives nan.
    """
    rows = [gates[..., segments == s, :].flatten(0, -2) for s in range(count)]
    return torch.stack([part.mean(0) for part in rows])


def decomposition_error(layer: Layer, segments: Tensor, count: int = 3) -> float:
    """Largest difference between a layer's own output and the gated sum of its parts, over batch, heads and rows."""
    rebuilt = combine(decompose(layer.scores, layer.value, segments, count))
    return (rebuilt - layer.output).abs().max().item()


def jacobian_blocks(
    function: Callable[[Tensor], Tensor], embeds: Tensor, segments: Tensor, count: int = 3
) -> Tensor:
    """Who can depend on whom: (count, count), the largest |d row of segment a / d input row of segment b|.

    An exact zero means that no path leads from one to the other. A segment without rows gives zeros.

    Parameters
    ----------
    function : (1, S, d) -> (1, S, d'), for example a model from embeddings to hidden states.
    embeds : (1, S, d).
    segments : (S,) labels.
    """
    jacobian = torch.autograd.functional.jacobian(function, embeds)  # (1, S, d', 1, S, d)
    largest = jacobian.abs().amax((0, 2, 3, 5))  # (S, S): output row, input row
    blocks = largest.new_zeros(count, count)
    for a in range(count):
        for b in range(count):
            block = largest[segments == a][:, segments == b]
            if block.numel():
                blocks[a, b] = block.max()
    return blocks
