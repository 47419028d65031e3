"""The probe: move a prompt through the splits of a frozen model, and take one mechanism away after the other."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dplearn.backbones import Reading
from dplearn.backbones.rows import token_positions
from dplearn.backbones.views import evaluating
from dplearn.progress import told
from dplearn.prompt import PromptedInput
from dplearn.theory.sensitivity.report import Change, Sensitivity
from dplearn.theory.sensitivity.towers import States, Tower, normal_like, tower

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def position_sensitivity(
    model: PreTrainedModel,
    *,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    pixel_values: Tensor | None = None,
    decoder_input_ids: Tensor | None = None,
    length: int = 4,
    prompt: Tensor | None = None,
    splits: Sequence[int] | None = None,
    draws: int = 3,
    seed: int = 0,
) -> Sensitivity:
    """Move a prompt through its splits and measure what changes, with each mechanism on and off.

    The same prompt at split k is compared with itself as a prefix (k = l). A number is ||now - before|| / ||before||,
    the largest over the splits, the mean over prompts. Everything runs in evaluation mode and without gradients, and
    the model is left as it was.

    Parameters
    ----------
    model : whatever :func:`dplearn.prompted` serves, and the text or vision model of CLIP and SigLIP alone.
    input_ids : (B, T), a batch of text.
    attention_mask : (B, T), 1 = real.
    pixel_values : (B, channels, height, width), a batch of images instead.
    decoder_input_ids : (B, U), for encoder-decoder models; None: the start token.
    length : l, of the random prompts.
    prompt : (l, d), a prompt of one's own instead, such as a trained one.
    splits : those to compare with k = l; None: all.
    draws : number of random prompts (of redrawn vectors, where a prompt is given).
    seed : of the random prompts: embeddings of random tokens for text, for images normal vectors with the mean and
        the standard deviation of the rows.

    Raises
    ------
    TypeError : the model is not served; the message says why.
    ValueError : neither or both of input_ids and pixel_values, or a split outside 0..l; a text for CLIP without an end
        token; a mask that hides tokens from SigLIP.
    """
    if (input_ids is None) == (pixel_values is None):
        raise ValueError(
            "expected either input_ids or pixel_values, got " + ("neither" if input_ids is None else "both")
        )
    if prompt is None and length < 1 or draws < 1:
        raise ValueError(f"length={length}, draws={draws}: expected at least 1 each")
    stack = tower(model, image=pixel_values is not None)
    if prompt is not None and (prompt.dim() != 2 or len(prompt) == 0):
        raise ValueError(f"prompt has shape {tuple(prompt.shape)}, expected (length, dim), length >= 1")
    stack.decoder_input_ids = decoder_input_ids
    length = length if prompt is None else len(prompt)
    batch = dict(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
    with torch.no_grad(), evaluating(model, copies=False):
        reading = stack.embed(length=length, **batch)
        pairs = _prompts(stack, reading, length, prompt, draws, torch.Generator().manual_seed(seed))
        others = _others(splits, length)
        told_pairs = told(pairs, f"{len(others) + 1} places for each of {draws} prompts")
        lines = [_lines(stack, reading, first, second, others) for first, second in told_pairs]
    means: dict[str, Any] = {
        name: None if lines[0][name] is None else _over([one[name] for one in lines], statistics.fmean)
        for name in lines[0]
    }
    return Sensitivity(
        model=type(model).__name__,
        length=length,
        splits=tuple(sorted({*others, length})),
        positions=stack.positions,
        causal=stack.causal,
        unreached=stack.unreached,
        tolerance=1e-4 if reading.rows.dtype in (torch.float32, torch.float64) else 5e-2,
        **means,
    )


def _prompts(
    stack: Tower, reading: Reading, length: int, prompt: Tensor | None, draws: int, generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Pairs of prompts (l, d): one to move, and new vectors to compare it with."""
    if prompt is None:
        drawn = [stack.draw(length, reading, generator) for _ in range(2 * draws)]
        return list(zip(drawn[::2], drawn[1::2]))
    prompt = prompt.detach().to(reading.rows)
    return [(prompt, normal_like(prompt, length, generator)) for _ in range(draws)]


def _others(splits: Sequence[int] | None, length: int) -> tuple[int, ...]:
    """The splits to compare with the prefix."""
    others = tuple(k for k in dict.fromkeys(range(length) if splits is None else splits) if k != length)
    if not others:
        raise ValueError(f"splits={list(splits or ())} has no split to compare with the prefix, {length}")
    return others


def _lines(stack: Tower, reading: Reading, prompt: Tensor, other: Tensor, splits: Sequence[int]) -> dict:
    """Every line of the table for one prompt; ``other`` replaces it where vectors are redrawn."""

    def change(**options: Any) -> Change:
        return _change(stack, reading, prompt, splits, **options)

    reached = stack.unreached is None
    positions, causal = reached and stack.positions is not None, stack.causal
    lines: dict[str, Change | None] = {"full": change()}
    lines["position_off"] = change(positions=False) if positions else None
    # Models whose positions are known take a mask of our own.
    lines["mask_off"] = change(see_all=True) if causal and reached else None
    lines["both_off"] = (
        change(positions=False, see_all=True) if positions and causal else lines["position_off"]
    )
    for name in ("prompt_moves", "input_moves"):
        lines[name] = change(moves=name, see_all=causal) if stack.table() is not None else None
    prefixes = [stack.states(reading, vectors, len(prompt)) for vectors in (other, prompt)]
    return lines | {"redrawn": change_between(*prefixes)}


def _change(
    stack: Tower,
    reading: Reading,
    prompt: Tensor,
    splits: Sequence[int],
    *,
    positions: bool = True,
    moves: str | None = None,
    see_all: bool = False,
) -> Change:
    """The largest change over splits, relative to k = l, of each column.

    positions : whether rows know where they stand.
    moves : "prompt_moves" or "input_moves", whose positions alone move; None: both.
    """
    prefix = stack.place(reading, prompt, len(prompt))

    def states(split: int) -> States:
        switched = nullcontext() if positions else stack.without_positions()
        if moves is not None:
            switched = stack.standing_at(positions_held(stack.place(reading, prompt, split), prefix, moves))
        with switched:
            return stack.states(reading, prompt, split, see_all=see_all)

    start = states(len(prompt))
    changes = [change_between(states(split), start) for split in splits]
    return _over(changes, max)


def change_between(now: States, before: States) -> Change:
    """How far the states of a batch are from those of the same batch under another prompt or split."""
    real = now.between
    fixed = None if now.fixed is None or before.fixed is None else _relative(now.fixed, before.fixed)
    readout = [states.readout[real] if states.of_tokens else states.readout for states in (now, before)]
    return Change(_relative(now.rows[real], before.rows[real]), _relative(*readout), fixed)


def _relative(now: Tensor, before: Tensor) -> float:
    return float((now - before).norm() / before.norm())


def _over(changes: Sequence[Change], reduced: Callable[[list[float]], float]) -> Change:
    """The largest or the mean of each column."""
    fixed = [change.fixed for change in changes if change.fixed is not None]
    return Change(
        reduced([change.rows for change in changes]),
        reduced([change.readout for change in changes]),
        reduced(fixed) if fixed else None,
    )


def positions_held(placed: PromptedInput, prefix: PromptedInput, what_moves: str) -> Tensor:
    """Positions (B, S) of the placed rows, where only those of the prompt move from where they are in the prefix
    ("prompt_moves"), or only those of the input ("input_moves")."""
    ids, there = token_positions(placed.mask), token_positions(prefix.mask)
    field = "input_positions" if what_moves == "prompt_moves" else "prompt_positions"
    stays, stayed = getattr(placed, field), getattr(prefix, field)
    return ids.scatter(1, stays, there.gather(1, stayed))
