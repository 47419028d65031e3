"""The rows in front of a prompt in a causal model: computed once, and then read from what is kept.

A step with a postfix on kept inputs runs the prompt's rows and what follows them alone, against the keys and values of
the input (:class:`dplearn.kept.KeptInputs`). The head meets the columns from the last token of the input on: the
outputs have as many, as with transformers' ``logits_to_keep``.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dplearn.backbones.heads import standing_in
from dplearn.backbones.parts import cache_of, copies_of
from dplearn.backbones.probing import probe_ids
from dplearn.backbones.reading import Reading
from dplearn.backbones.rows import take_rows, token_positions, with_rows
from dplearn.backbones.views import changed
from dplearn.kept import KeptInputs, digest_of
from dplearn.prompt import PromptedInput

# What a call may hold: all else is about rows that do not run, or asks for them.
SERVED = {"input_ids", "attention_mask", "labels", "return_dict", "use_cache"}


class Front(NamedTuple):
    """The inputs of a batch whose keys and values are kept.

    counts: (B,) rows that are kept.  digests: by which.
    columns: (B, N), the tokens from the last one of the input on, in the order of right padding.  real: (B, N), whether
    there is such a token.
    """

    counts: Tensor
    digests: list[str]
    columns: Tensor
    real: Tensor


def counts_of(reading: Reading) -> Tensor:
    """How many rows of an input are kept, (B,): all up to the boundary but the last one, whose state the head reads
    where no vector is in use."""
    return ((reading.mask != 0).sum(1) - reading.keep_last - 1).clamp(min=0)


def digests_of(reading: Reading, counts: Tensor) -> list[str]:
    """By what the inputs of a batch are kept: the ids of these rows."""
    ids = reading.given["input_ids"]
    if reading.columns is not None:
        ids = torch.empty_like(ids).scatter(1, reading.columns, ids)
    return [digest_of(row[:count]) for row, count in zip(ids.cpu(), counts.tolist(), strict=True)]


def front_of(adapter, placed: PromptedInput, reading: Reading, learning: bool) -> Front | None:
    """The kept inputs of a batch, or None where the full pass is due: something was not kept, a vector stands in front
    of the input, or what the caller asks for is about all rows. ``learning``: it is a step of training."""
    asks = adapter.kept is not None and _asks_for_the_rest_alone(adapter.model, reading.given, learning)
    return _kept_front(adapter, placed, reading) if asks else None


def _kept_front(adapter, placed: PromptedInput, reading: Reading) -> Front | None:
    kept = adapter.kept
    if kept is None or not len(kept) or torch.compiler.is_compiling() or placed.moves is not None:
        return None
    if reading.given.get("input_ids") is None or not kept.fresh:
        return None
    # An adapter in the backbone that is trained beside the prompt gets a gradient from the rows of the input.
    if torch.is_grad_enabled() and any(p.requires_grad for p in adapter.model.parameters()):
        return None
    counts = counts_of(reading)
    if adapter.predicts_next and _asks_of_the_front(reading, counts):
        return None
    position = placed.decisions["position"]
    if position.weights is not None:  # their gradient is about the rows of the input
        return None
    if bool((position.index != 0).any()) or not counts.any():
        return None
    if not adapter.entry.takes_positions and bool((counts != counts[0]).any()):
        return None  # the padding in front would count as rows
    digests = digests_of(reading, counts)
    if any(digest not in kept for digest in digests):
        return None
    behind = ((reading.mask != 0).sum(1) - counts).unsqueeze(1)
    steps = torch.arange(int(behind.max()), device=counts.device)
    columns = (counts.unsqueeze(1) + steps).clamp(max=reading.mask.shape[1] - 1)
    return Front(counts, digests, columns, steps < behind)


def _asks_of_the_front(reading: Reading, counts: Tensor) -> bool:
    """Whether labels ask for the prediction of a token of the input itself, from a row that would not run."""
    labels = reading.given.get("labels")
    if labels is None or labels.shape != reading.mask.shape:
        return False
    if reading.columns is not None:
        labels = torch.empty_like(labels).scatter(1, reading.columns, labels)
    steps = torch.arange(labels.shape[1], device=counts.device)
    return bool(((labels != -100) & (steps <= counts.unsqueeze(1))).any())


def _asks_for_the_rest_alone(model, given: dict, learning: bool) -> bool:
    """Whether a call can do without the rows of the input: it is for a loss or says that it wants no cache, and wants
    neither hidden states nor anything else of the input's rows. (Nor is there dropout, whatever the prompt in use.)"""
    given = {name: value for name, value in given.items() if value is not None}
    config = model.config
    wants = [
        given.get("use_cache"),
        getattr(config, "output_hidden_states", False),
        given.get("return_dict") is False,
    ]
    wants += [getattr(config, "output_attentions", False), any(m.training for m in model.modules())]
    answers = learning or "labels" in given or given.get("use_cache") is False
    return "input_ids" in given and SERVED.issuperset(given) and answers and not any(wants)


@torch.no_grad()
def values_of_a_token(adapter) -> int:
    """How many numbers the keys and values of one token are, over all layers.

    Raises
    ------
    ValueError : the model keeps something else, such as the state of a recurrent layer.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    rows = adapter.embed(probe_ids(adapter.model, adapter.vocabulary))[:, :1]
    mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
    given = {"inputs_embeds": rows, "attention_mask": mask, **adapter.position_ids(mask)}
    try:
        adapter.entry.module(**given, past_key_values=cache, use_cache=True)
        shapes: Any = [part.shape for layer in cache.layers for part in (layer.keys, layer.values)]
    except Exception as error:
        shapes = f"{type(error).__name__}: {str(error)[:120]}"
    if isinstance(shapes, str) or not shapes or any(len(shape) != 4 or shape[2] != 1 for shape in shapes):
        raise ValueError(
            f"cache_inputs: {type(adapter.model).__name__} is not made of keys and values alone ({shapes}), expected "
            "attention in every layer"
        )
    return sum(shape.numel() for shape in shapes)


@torch.no_grad()
def keep(adapter, kept: KeptInputs, reading: Reading) -> None:
    """Compute and keep what is not kept yet of the inputs of a batch."""
    from transformers import DynamicCache

    counts = counts_of(reading)
    digests = digests_of(reading, counts)
    first = {digest: number for number, digest in reversed(list(enumerate(digests))) if digest not in kept}
    if not first or not counts.any():
        return
    numbers = torch.tensor(sorted(first.values()), device=reading.rows.device)
    counts, longest = counts[numbers], int(counts[numbers].max())
    mask = (torch.arange(longest, device=counts.device) < counts.unsqueeze(1)).long()
    cache = DynamicCache()
    adapter.entry.module(
        inputs_embeds=reading.rows[numbers, :longest], attention_mask=mask, **adapter.position_ids(mask),
        past_key_values=cache, use_cache=True, return_dict=True,
    )  # fmt: skip
    kept.add(
        {
            digests[number]: [
                part[row, :, :count] for layer in cache.layers for part in (layer.keys, layer.values)
            ]
            for row, (number, count) in enumerate(zip(numbers.tolist(), counts.tolist()))
        }
    )


def cache_for(adapter, placed: PromptedInput, reading: Reading, options: dict):
    """The cache from which ``generate`` goes on behind kept inputs, or None where it has to begin at the start: the
    rows behind the inputs differ in number, or the caller asks for what begins there (:func:`~.parts.copies_of`)."""
    times = copies_of(adapter.model, options)
    front = None if times is None else _kept_front(adapter, placed, reading)
    if front is None:
        return None
    rest = (placed.mask != 0).sum(1) - front.counts
    if bool((rest != rest[0]).any()):
        return None
    cache, _ = _cache_of(adapter, front, placed.embeds.device)
    cache.batch_repeat_interleave(times)
    return cache


def _cache_of(adapter, front: Front, device: torch.device):
    """Kept keys and values as a cache, padded in front, and its mask (B, N)."""
    layers, mask = adapter.kept.layers(front.digests, device)
    return cache_of(layers), mask


def shortened(front: Front, reading: Reading, predicts_next: bool) -> Reading:
    """The batch as the head meets it: the columns from the last token of the input on, (B, N), padded on the right.

    ``predicts_next``: labels are those of tokens. A classifier's are for each input, as many as there are.
    """
    given = {name: value for name, value in reading.given.items() if value is not None}
    for name in ("input_ids", "labels"):
        value = given.get(name)
        if value is None or value.shape != reading.mask.shape or (name == "labels" and not predicts_next):
            continue
        if reading.columns is not None:
            value = torch.empty_like(value).scatter(1, reading.columns, value)
        value = value.gather(1, front.columns)
        given[name] = value.masked_fill(~front.real, -100) if name == "labels" else value
    given["attention_mask"] = front.real.long()
    return reading._replace(given=given, front=front)


def run(adapter, placed: PromptedInput, reading: Reading, head: nn.ModuleDict | None):
    """The model's output for a shortened batch: N columns, the last of them each input's last real one."""
    front, device = cast("Front", reading.front), placed.embeds.device
    ends = (torch.arange(placed.mask.shape[1], device=device) * (placed.mask != 0)).amax(1) + 1
    rest = (ends - front.counts).unsqueeze(1)
    rows = torch.arange(int(rest.max()), device=device)
    index = (rows + front.counts.unsqueeze(1)).clamp(max=placed.mask.shape[1] - 1)
    mask = placed.mask.gather(1, index) * (rows < rest)
    positions = (token_positions(placed.mask) + adapter.first_position).gather(1, index)
    cache, front_mask = _cache_of(adapter, front, device)
    read = adapter.rows_read(placed, placed.input_positions).gather(1, front.columns)
    read = (read - front.counts.unsqueeze(1)).masked_fill(
        ~front.real, 0
    )  # what padding reads does not matter
    read = torch.cat([read[:, :-1], read.amax(1, keepdim=True)], 1)

    def forward(usual, *values, **options):
        inner = adapter.entry.arguments(values, options)
        inner |= {"past_key_values": cache, "use_cache": True}
        inner["inputs_embeds"] = take_rows(placed.embeds, index)
        inner["attention_mask"] = torch.cat([front_mask, mask.to(front_mask.dtype)], 1)
        inner.pop("input_ids", None)
        inner.pop("position_ids", None)
        if adapter.entry.takes_positions:
            inner["position_ids"] = positions
        return with_rows(usual(**inner), read)

    with changed(adapter.model, standing_in(head) | {adapter.entry.path: forward}) as model:
        output = model(**reading.given)
    # The cache holds what was kept as well, and nobody asked for it.
    return type(output)(**{name: value for name, value in output.items() if name != "past_key_values"})
