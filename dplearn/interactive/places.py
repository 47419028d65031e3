"""The interactive figure of chapter 07: the place that a controller gives a sentence, step by step of its training.

The numbers come from the reader's own notebook: the chances π of the splits for a few sentences, at some steps of one
or several trainings. The picture shows π and the sentence with the prompt around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dplearn.choice import most_likely
from dplearn.interactive.page import Control, displayed, number_table
from dplearn.interactive.picture import Part, Slots, figure

if TYPE_CHECKING:
    from IPython.display import HTML


def place_explorer(
    texts: Sequence[str],
    right: Sequence[int],
    trainings: Mapping[str, Tensor],
    steps: Sequence[int],
    vectors: Sequence[str],
    name: str = "place-explorer",
) -> HTML:
    """The interactive figure, as an object that a notebook and the book display.

    Parameters
    ----------
    texts : N sentences.  right : the right split of each.
    trainings : name -> π of the splits (steps, N, l + 1), at the same steps for all.
    steps : the training steps that these are.
    vectors : the l vectors of the prompt, as words.
    name : the figure's id in the page.

    Raises
    ------
    ValueError : shapes that do not fit, or rows that do not sum to 1.
    """
    return displayed(markup(texts, right, trainings, steps, vectors, name))


def markup(
    texts: Sequence[str],
    right: Sequence[int],
    trainings: Mapping,
    steps: Sequence[int],
    vectors: Sequence[str],
    name: str = "place-explorer",
) -> str:
    """The HTML of :func:`place_explorer`."""
    pi = {title: _checked(title, values, texts, steps, vectors) for title, values in trainings.items()}
    if len(right) != len(texts) or not all(0 <= split <= len(vectors) for split in right):
        raise ValueError(
            f"right={right!r} has no split for each of {len(texts)} texts, expected 0 to {len(vectors)}"
        )
    titles = list(pi)
    controls = [
        Control("choice", "Sentence", [f"{n}: {text}" for n, text in enumerate(texts, 1)]),
        Control("choice", "Summaries", titles),
        Control(
            "slider", "Training step", [str(step) for step in steps], 0, ends=(f"{steps[0]}", f"{steps[-1]}")
        ),
    ]

    def draw(slots: Slots, text: int, training: int, step: int) -> str:
        row = pi[titles[training]][step, text]
        return _draw(slots, texts[text], right[text], row, steps[step], vectors)

    def summary(slots: Slots, training: int, step: int) -> str:
        hits = (most_likely(pi[titles[training]][step]) == torch.tensor(right)).sum().item()
        words = f"At this step {hits} of the {len(texts)} sentences here are at their right split."
        return slots.said(words, "dpx-right")

    parts = [Part(draw, of=(0, 1, 2)), Part(summary, of=(1, 2))]
    return figure(name, controls, parts, _table(texts, right, pi, steps), style=STYLE)


def _checked(
    title: str, values: Tensor, texts: Sequence[str], steps: Sequence[int], vectors: Sequence[str]
) -> Tensor:
    """π in the two decimals that are shown: the figure is the same where a training differs by rounding."""
    values, shape = torch.as_tensor(values).detach().double(), (len(steps), len(texts), len(vectors) + 1)
    if values.shape != shape:
        raise ValueError(f"trainings[{title!r}] has shape {tuple(values.shape)}, expected {shape}")
    if not ((values >= 0).all() and (values.sum(-1) - 1).abs().max() < 1e-3):
        raise ValueError(f"trainings[{title!r}] has rows that are no chances, expected sums of 1")
    return values.round(decimals=2)


def _draw(slots: Slots, text: str, right: int, row: Tensor, step: int, vectors: Sequence[str]) -> str:
    k = int(most_likely(row[None]))
    lines = [slots.placed(text, vectors[:k], vectors[k:])]
    for split, chance in enumerate(row.tolist()):
        tick = slots.text(" ✓" if split == k else "")
        wanted = slots.text("right place" if split == right else "")
        inside = f"<span>k = {split}{tick}</span><div>{slots.bar(('before', 100 * chance))}</div>"
        inside += f"{slots.text(f'{chance:.2f}')}<span>{wanted}</span>"
        lines.append(slots.marked(split == k, inside, "dpx-line dpx-place"))
    judged = "the right place" if k == right else "the wrong place"
    said = f"After {step} steps: k = {k} is chosen, its chance is {row[k]:.2f}. That is {judged}."
    return "\n".join([*lines, slots.said(said)])


def _table(texts: Sequence[str], right: Sequence[int], pi: Any, steps: Sequence[int]) -> str:
    """π of every sentence at every step, for each training."""
    head = ["Summaries", "Sentence", "Right", *(f"step {step}" for step in steps)]
    rows = [
        [
            escape(title),
            escape(text),
            f"k = {wanted}",
            *(" · ".join(f"{x:.2f}" for x in row) for row in values[:, n].tolist()),
        ]
        for title, values in pi.items()
        for n, (text, wanted) in enumerate(zip(texts, right))
    ]
    return number_table("The chances π of the splits k = 0, 1, … at each step.", head, rows)


STYLE = """
.dpx-line.dpx-place { grid-template-columns: 4.6rem 1fr 2.6rem 5.6rem }
.dpx-right { text-align: center }
"""
