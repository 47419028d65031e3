"""The interactive figure of chapter 03: where the attention heads of a model look, at every split of a prompt.

The numbers come from the reader's own notebook: gates of :func:`dplearn.theory.attention.parts.gates`, recorded from a
real model. The picture has one bar for each head of the layer that is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dplearn.interactive.page import Control, displayed, number_table
from dplearn.interactive.picture import Part, Slots, figure

if TYPE_CHECKING:
    from IPython.display import HTML

PARTS = ("before", "input", "after")
MEAN = "mean of all rows"


def head_explorer(
    gates: Tensor, words: Sequence[str], vectors: Sequence[str], name: str = "head-explorer"
) -> HTML:
    """The interactive figure, as an object that a notebook and the book display.

    Parameters
    ----------
    gates : (l + 1, layers, heads, T, 3), shares of the attention of the input's rows on the prompt before them, on the
        input and on the prompt behind it, for the splits k = 0..l.
    words : the T tokens.  vectors : the l vectors of the prompt, as words.
    name : the figure's id in the page.

    Raises
    ------
    ValueError : another shape, or rows that do not sum to 1.
    """
    return displayed(markup(gates, words, vectors, name))


def markup(gates: Tensor, words: Sequence[str], vectors: Sequence[str], name: str = "head-explorer") -> str:
    """The HTML of :func:`head_explorer`."""
    gates = _checked(gates, words, vectors)
    splits, layers = gates.shape[:2]
    # The mean over all rows first, then each row.
    gates = torch.cat([gates.mean(3, keepdim=True), gates], 3)
    rows = [MEAN, *words]
    controls = [
        Control(
            "slider", "Split", [_split_words(k, splits - 1) for k in range(splits)], splits // 2,
            ends=("0 postfix", f"{splits - 1} prefix"),
        ),
        Control("choice", "Layer", [str(layer + 1) for layer in range(layers)]),
        Control("choice", "Rows that look", [f"row {n}: {row}" if n else row for n, row in enumerate(rows)]),
    ]  # fmt: skip

    def sentence(slots: Slots, k: int) -> str:
        *inside, last = words  # the end token stays last, as T5 was trained
        return slots.placed(" ".join(inside), vectors[:k], vectors[k:], last)

    def bars(slots: Slots, k: int, layer: int, row: int) -> str:
        return _draw(slots, gates[k, layer, :, row], f"row {row}, {rows[row]}" if row else MEAN, k)

    parts = [Part(sentence, of=(0,)), Part(bars, of=(0, 1, 2))]
    return figure(name, controls, parts, _table(gates), style=STYLE)


def _checked(gates: Tensor, words: Sequence[str], vectors: Sequence[str]) -> Tensor:
    gates = torch.as_tensor(gates).detach().double()
    wanted = f"({len(vectors) + 1}, layers, heads, {len(words)}, 3)"
    if gates.dim() != 5 or (gates.shape[0], *gates.shape[3:]) != (len(vectors) + 1, len(words), 3):
        raise ValueError(f"gates has shape {tuple(gates.shape)}, expected {wanted}")
    if (gates.sum(-1) - 1).abs().max() > 1e-6:
        raise ValueError("gates has rows that do not sum to 1, expected shares of attention")
    return gates


def _split_words(k: int, length: int) -> str:
    return f"k = {k}, {'postfix' if k == 0 else 'prefix' if k == length else 'surround'}"


def _draw(slots: Slots, gates: Tensor, row: str, k: int) -> str:
    """A bar of three pieces for each head (heads, 3), and the shares in percent."""
    lines, shares = [KEY], gates.tolist()
    for head, parts in enumerate(shares, 1):
        before, _, after = (round(100 * part) for part in parts)
        bar = slots.bar(
            *zip(PARTS, (before, 100 - before - after, after))
        )  # all of it, however they were rounded
        numbers = slots.text(" · ".join(f"{100 * part:.0f}" for part in parts))
        lines.append(
            f'<div class="dpx-line dpx-head-line"><span>head {head}</span><div>{bar}</div>{numbers}</div>'
        )
    on_prompt = [1 - parts[1] for parts in shares]
    most = max(range(len(shares)), key=on_prompt.__getitem__)
    said = f"k = {k}, {row}. Most on the prompt: head {most + 1}, {100 * on_prompt[most]:.0f} %."
    said += f" Mean of the heads: {100 * sum(on_prompt) / len(on_prompt):.0f} %."
    return "\n".join([*lines, slots.said(said)])


def _table(gates: Tensor) -> str:
    """The mean over all rows, for each layer, head and split."""
    splits, layers, heads = gates.shape[:3]
    head = ["Layer", "Head", *(f"k = {k}" for k in range(splits))]
    rows = []
    for layer in range(layers):
        for number in range(heads):
            each = (gates[k, layer, number, 0].tolist() for k in range(splits))
            cells = [" · ".join(f"{100 * part:.0f}" for part in parts) for parts in each]
            rows.append([str(layer + 1), str(number + 1), *cells])
    words = "Percent of the attention on the prompt before · the input · the prompt behind it: means over all rows."
    return number_table(words, head, rows)


KEY = """<div class="dpx-key"><span>Percent of the attention on:</span>
<span><i class="dpx-before"></i>prompt before</span>
<span><i class="dpx-input"></i>input</span><span><i class="dpx-after"></i>prompt behind</span></div>"""

STYLE = """
.dpx-line.dpx-head-line { grid-template-columns: 4rem 1fr 6rem }
"""
