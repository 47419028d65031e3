"""A causal model in two parts: the first columns of a batch are known or need no gradient, the rest goes on from there.

A row of a causal model sees none behind it. Two things follow for the columns in which all instances of a batch have
rows of one kind:

- in training, rows of the input in front of every vector (postfix) are the frozen model's own. They run without a
  gradient, and once for all copies of an instance that differ in later rows alone ("front");
- without a gradient, vectors in front of every input (prefix, or a split behind them) do not depend on the input. Their
  keys and values are kept until the vectors change, for each of the prompts in use ("prefix").

The base model still gives a state for each row, so what stands behind it (head, loss, cache) meets what it always does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dplearn.backbones.position_space import unknown_layers
from dplearn.backbones.probing import probe_ids, same
from dplearn.backbones.reading import Reading
from dplearn.backbones.views import Change, evaluating
from dplearn.kept import state_of
from dplearn.prompt import PromptedInput

# What a call may hold.
SERVED = {"input_ids", "inputs_embeds", "attention_mask", "labels", "use_cache", "logits_to_keep"}
PREFIXES = 16  # prompts whose keys and values are kept at once


class First(NamedTuple):
    """The first columns of a batch, as they are known.

    count: how many.  layers: their keys and values, layer by layer, (B, H, count, d_k) one after the other.
    states: (B, count, d), their last hidden states; None: nobody reads them.
    """

    count: int  # type: ignore[assignment]  # a tuple counts its values by this name
    layers: list[Tensor]
    states: Tensor | None


class KnownPrefix(NamedTuple):
    """Vectors in front of an input, (k, d), their keys and values (1, H, k, d_k), and what the model was made of."""

    vectors: Tensor
    layers: list[Tensor]
    state: tuple


def cut(change: Change, adapter, placed: PromptedInput, reading: Reading) -> Change:
    """The change of the base model by which a prompted input runs in two parts where that is less work."""
    first = first_of(adapter, placed, reading)
    if first is None:
        return change
    keeps = reading.given.get("use_cache")
    keeps = getattr(adapter.model.config, "use_cache", True) if keeps is None else keeps

    def behind(usual, *values, **options):
        return change(partial(_rest, first, adapter.model.config, keeps, usual), *values, **options)

    return behind


def first_of(adapter, placed: PromptedInput, reading: Reading) -> First | None:
    """The first columns of a batch, or None where all rows run at once."""
    if torch.compiler.is_compiling() or placed.moves is not None or "position" not in placed.decisions:
        return None
    if _asks_for_more(adapter.model, reading.given):
        return None
    if not torch.is_grad_enabled():
        return prefix_of(adapter, placed) if "prefix" in adapter.shortcuts else None
    wanted = reading.rows.requires_grad or any(p.requires_grad for p in adapter.entry.module.parameters())
    return _front(adapter, placed, reading) if "front" in adapter.shortcuts and not wanted else None


def prefix_of(adapter, placed: PromptedInput) -> First | None:
    """The vectors that stand in front of all inputs of a batch, kept or computed now."""
    # The first token's row is the number of vectors in front of it.
    count, batch = int(placed.input_positions.min()), len(placed.embeds)
    if not 0 < count < placed.embeds.shape[1] or not runs_in_parts(adapter):
        return None
    vectors, mask = placed.embeds[0, :count], placed.mask[:, :count]
    if not (bool((mask != 0).all()) and torch.equal(placed.embeds[:, :count], vectors.expand(batch, -1, -1))):
        return None
    known, state = adapter.prefixes, state_of(adapter.model)
    prefix = next((p for p in known if p.state == state and _starts_with(p.vectors, vectors)), None)
    if prefix is None:
        layers, _ = _run(adapter, vectors[None], mask[:1])
        prefix = KnownPrefix(vectors.clone(), layers, state)
        adapter.prefixes = [prefix, *known][
            :PREFIXES
        ]  # another list: other threads may go through the old one
    return First(count, [part[:, :, :count].expand(batch, -1, -1, -1) for part in prefix.layers], None)


def _starts_with(known: Tensor, vectors: Tensor) -> bool:
    return known.shape[0] >= vectors.shape[0] and torch.equal(known[: len(vectors)], vectors)


def _front(adapter, placed: PromptedInput, reading: Reading) -> First | None:
    """Rows of the input in front of every vector, run without a gradient and once for all copies of an instance."""
    total, position = placed.mask.shape[1], placed.decisions["position"]
    # The gradient of weights of a position is about the rows of the input.
    if not placed.embeds.requires_grad or position.weights is not None or bool((position.index != 0).any()):
        return None
    count = int(((reading.mask != 0).sum(1) - reading.keep_last).min())
    # Two passes instead of one: worth it where the first is most of the work.
    if 2 * count < total or not runs_in_parts(adapter):
        return None
    rows, back = torch.arange(len(placed.mask), device=placed.mask.device), None
    if reading.copies is not None:
        _, back = reading.copies.unique(return_inverse=True)
        rows = torch.full_like(rows[: int(back.max()) + 1], len(rows)).scatter_reduce(0, back, rows, "amin")
    mask = placed.mask[rows, :count]
    with torch.no_grad():
        layers, states = _run(adapter, placed.embeds[rows, :count].detach(), mask)
    if back is not None:
        layers, states = [part.index_select(0, back) for part in layers], states.index_select(0, back)
    return First(count, layers, states)


def _asks_for_more(model, given: dict) -> bool:
    """Whether a call wants states of single layers, brings what has a value for each row, or has dropout."""
    config, names = model.config, {name for name, value in given.items() if value is not None}
    wants = [getattr(config, name, False) for name in ("output_hidden_states", "output_attentions")]
    wants += [getattr(config, "return_dict", True) is False]
    return any(wants) or not names <= SERVED or any(module.training for module in model.modules())


def _run(adapter, embeds: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
    """Keys and values, layer by layer, and last hidden states of rows (B, N, d) with nothing in front of them; without
    dropout, whatever the mode."""
    from transformers import DynamicCache

    cache = DynamicCache()
    with evaluating(adapter.model) as model:
        states = model.get_submodule(adapter.entry.path)(
            inputs_embeds=embeds, attention_mask=mask, **adapter.position_ids(mask), past_key_values=cache,
            use_cache=True, return_dict=True,
        ).last_hidden_state  # fmt: skip
    return [part for layer in cache.layers for part in (layer.keys, layer.values)], states


def cache_of(layers: list[Tensor], config=None):
    """Keys and values, layer by layer, (B, H, N, d_k) one after the other, as a cache of transformers'; with a model's
    config as the model makes it, which lets go of what its windows have passed."""
    from transformers import DynamicCache

    cache = DynamicCache() if config is None else DynamicCache(config=config)
    for number in range(len(layers) // 2):
        keys, values = layers[2 * number : 2 * number + 2]
        if config is not None:
            cache.update(keys, values, number)
            continue
        cache.update(keys[:, :, :0], values[:, :, :0], number)  # makes the layer; the rest without a copy
        cache.layers[number].keys, cache.layers[number].values = keys, values
    return cache


def copies_of(model, options: dict) -> int | None:
    """How many sequences ``generate`` begins for each input, or None where it cannot go on behind known rows: another
    kind of cache is asked for, or none, or outputs of all rows."""
    config = options.get("generation_config") or model.generation_config

    def asked(name):
        return options[name] if options.get(name) is not None else getattr(config, name, None)

    others = ("cache_implementation", "prefill_chunk_size", "assistant_model", "prompt_lookup_num_tokens")
    wanted = ("output_hidden_states", "output_attentions")
    if asked("use_cache") is False or any(asked(name) for name in (*others, *wanted)):
        return None
    return max(asked("num_beams") or 1, asked("num_return_sequences") or 1)


def prefix_for(adapter, placed: PromptedInput, options: dict) -> tuple[int, object] | None:
    """How many first columns of a batch are vectors whose keys and values are known, and the cache from which
    ``generate`` goes on behind them, or None where it begins at the start.

    Padding stands between the vectors and the input there, where a model with a window of rows would count it.
    """
    config, times = adapter.model.config, copies_of(adapter.model, options)
    kinds = getattr(config, "layer_types", None) or ()
    windows = getattr(config, "sliding_window", None) or "sliding_attention" in kinds
    padded = not bool((placed.mask != 0).all())
    if times is None or (padded and (windows or not adapter.entry.takes_positions)):
        return None
    first = prefix_of(adapter, placed)
    if first is None:
        return None
    cache = cache_of(first.layers, config)
    cache.batch_repeat_interleave(times)
    return first.count, cache


def _rest(
    first: First,
    config,
    keeps: bool,
    usual: Callable,
    inputs_embeds: Tensor,
    position_ids: Tensor | None = None,
    **options,
):
    """What the base model gives for all rows, computed from the first columns and a pass over the rest.

    keeps : whether the caller gets the cache.
    """
    if position_ids is not None:
        options["position_ids"] = position_ids[:, first.count :]
    options |= {"past_key_values": cache_of(first.layers, config), "use_cache": True, "return_dict": True}
    output = usual(inputs_embeds=inputs_embeds[:, first.count :], **options)
    states = output.last_hidden_state
    shape = (len(states), first.count, states.shape[2])
    front = states.new_zeros(shape) if first.states is None else first.states.to(states.dtype)
    output["last_hidden_state"] = torch.cat([front, states], 1)
    if not keeps:
        output["past_key_values"] = None
    return output


@torch.no_grad()
def runs_in_parts(adapter) -> bool:
    """Whether the model is made of keys and values alone and gives in parts what it gives at once; asked once."""
    if adapter.runs_in_parts is None:
        adapter.runs_in_parts = _tried(adapter)
    return adapter.runs_in_parts


def _tried(adapter) -> bool:
    if unknown_layers(adapter.model.config) or not hasattr(adapter.entry.module, "forward"):
        return False
    rows = adapter.embed(probe_ids(adapter.model, adapter.vocabulary))
    rows = torch.cat([rows, rows.flip(1), rows], 1)
    mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
    mask[:, -1] = 0
    try:
        with evaluating(adapter.model) as model:  # another thread may train
            module = model.get_submodule(adapter.entry.path)
            given = {"attention_mask": mask, **adapter.position_ids(mask)}
            whole = module(inputs_embeds=rows, **given, use_cache=False, return_dict=True)
            layers, states = _run(adapter, rows[:, :6], mask[:, :6])
            if any(part.ndim != 4 or part.shape[2] != 6 for part in layers) or not layers:
                return False
            parts = _rest(First(6, layers, states), adapter.model.config, False, module, rows, **given)
    except Exception:
        return False  # whatever it is, the model is left to run at once
    return same(adapter.model, parts.last_hidden_state[:, :-1], whole.last_hidden_state[:, :-1])
