"""The interactive figures of chapters 09 and 12: what a trained model decides for an input, and what it then answers.

A reader picks an input, and whose decisions it gets: its own, those of another input, or one prompt of the pool alone.
The numbers are those of the record "shown" (:mod:`dplearn.experiments.shown`), of two reported runs of studies.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, cast

from dplearn.interactive.page import Control, displayed, number_table
from dplearn.interactive.picture import Part, Slots, figure

if TYPE_CHECKING:
    from IPython.display import HTML

FIGURES = ("pool", "decisions")
OWN = "its own"
# Of each decision: its heading, and what its options are called, from the first number on.
WORDS = {
    "position": ("Place: the split k", "k = {}", 0),
    "size": ("Number of vectors n", "n = {}", 0),
    "vector": ("Weights of the pool", "prompt {}", 1),
}


def source_explorer(which: str, name: str | None = None) -> HTML:
    """The interactive figure, as an object that a notebook and the book display.

    which : "pool" (chapter 09) or "decisions" (chapter 12).  name : the figure's id in the page.
    """
    return displayed(markup(which, name))


def markup(which: str, name: str | None = None) -> str:
    """The HTML of :func:`source_explorer`."""
    row = recorded(which)
    texts, sources = [given["text"] for given in row["inputs"]], sources_of(row)
    controls = [
        Control("choice", "Input", [f"{n}: {text}" for n, text in enumerate(texts, 1)]),
        Control("choice", "Decisions from", [_source_title(source, texts) for source in sources]),
    ]
    parts = [
        Part(lambda slots, i: f'<p class="dpx-quote">{slots.text(texts[i])}</p>', of=(0,)),
        Part(lambda slots, i, s: _decisions(slots, row, i, sources[s]), of=(0, 1)),
        Part(lambda slots, i, s: _answer(slots, row, i, sources[s]), of=(0, 1)),
        Part(lambda slots, s: slots.said(right_words(row, sources[s]), "dpx-right"), of=(1,)),
    ]
    return figure(name or f"{which}-explorer", controls, parts, _table(row), style=STYLE)


def recorded(which: str) -> dict:
    """The row of a figure in the record; ValueError for another name."""
    from dplearn.experiments import records

    if which not in FIGURES:
        raise ValueError(f"which={which!r} is no figure, expected one of {', '.join(map(repr, FIGURES))}")
    [row] = [row for row in cast(dict, records.load("shown"))["rows"] if row["figure"] == which]
    return row


def sources_of(row: dict) -> list[str]:
    """Where decisions can come from: the input itself, one of the inputs, and where a pool is mixed, the pool."""
    return [OWN, *row["answers"]]


def shares(row: dict, number: int, source: str) -> dict[str, list[float]]:
    """For each decision what input ``number`` (from 0) is given by a source: probabilities or weights, by name."""
    decisions = {name: each["probabilities"] for name, each in row["decisions"].items()}
    if source == OWN or source.startswith("input "):
        at = number if source == OWN else int(source.split()[1]) - 1
        return {name: rows[at] for name, rows in decisions.items()}
    size = len(decisions["vector"][0])
    if source.startswith("prompt "):
        alone = int(source.split()[1]) - 1
        return {"vector": [float(i == alone) for i in range(size)]}
    return {"vector": [1 / size] * size}


def chosen(row: dict, number: int, source: str) -> dict[str, int]:
    """The option that is taken of each decision that takes one; a pool is mixed and takes none."""
    at = number if source == OWN else int(source.split()[1]) - 1
    return {name: each["chosen"][at] for name, each in row["decisions"].items() if name != "vector"}


def answered(row: dict, number: int, source: str) -> tuple[str, float, float]:
    """The word that input ``number`` is answered with, its probability, and that of the right word."""
    source = f"input {number + 1}" if source == OWN else source
    return tuple(row["answers"][source][number])


def right_words(row: dict, source: str) -> str:
    """How many of the inputs are answered right with decisions from this source."""
    inputs = row["inputs"]
    hits = sum(answered(row, n, source)[0] == given["answer"] for n, given in enumerate(inputs))
    whose = "its own decisions" if source == OWN else f"the decisions from {source}"
    return f"Given {whose}, {hits} of the {len(inputs)} inputs here are answered right."


def _source_title(source: str, texts: list[str]) -> str:
    if source.startswith("input "):
        return f"{source}: {texts[int(source.split()[1]) - 1]}"
    return source


def _decisions(slots: Slots, row: dict, number: int, source: str) -> str:
    """For each decision a title and a line for each option: what is used, and the input's own below it."""
    used, own, lines = shares(row, number, source), shares(row, number, OWN), []
    taken = chosen(row, number, source) if len(row["decisions"]) > 1 else {}
    for name in row["decisions"]:
        title, option, first = WORDS[name]
        lines.append(f'<div class="dpx-decision"><p class="dpx-title">{title}</p>')
        for k, (share, mine) in enumerate(zip(used[name], own[name])):
            bars = slots.bar(("before", 100 * share)) + slots.bar(("after", 100 * mine))
            on = taken.get(name) == k
            tick = slots.text(" ✓" if on else "") if name in taken else ""
            inside = (
                f"<span>{option.format(k + first)}{tick}</span><div>{bars}</div>{slots.text(f'{share:.2f}')}"
            )
            lines.append(slots.marked(on, inside, "dpx-line"))
        lines.append("</div>")
    return f'{KEY}<div class="dpx-decisions">{"".join(lines)}</div>'


def _answer(slots: Slots, row: dict, number: int, source: str) -> str:
    word, _, right = answered(row, number, source)
    wanted = row["inputs"][number]["answer"]
    judged = "right" if word == wanted else "wrong"
    line = (
        f"<span>{slots.text(wanted)} is right</span><div>{slots.bar(('input', 100 * right))}</div>"
        f"{slots.text(f'{right:.2f}')}"
    )
    said = f"Input {number + 1} with {'its own decisions' if source == OWN else f'the decisions from {source}'}: the "
    said += f"model answers {word}, which is {judged}. The probability of {wanted} is {right:.2f}."
    title = '<p class="dpx-title">Probability of the right answer</p>'
    return f'{title}<div class="dpx-line">{line}</div>{slots.said(said)}'


def _table(row: dict) -> str:
    """One line for each input: its decisions, its answer, and its answers with the decisions of all others."""
    names, lines = list(row["decisions"]), []
    head = ["Input", "Right", *(WORDS[name][0] for name in names), "Answer", "With the decisions from"]
    for number, given in enumerate(row["inputs"]):
        cells = [f"{number + 1}: {given['text']}", given["answer"]]
        cells += [" · ".join(f"{share:.2f}" for share in shares(row, number, OWN)[name]) for name in names]
        others = (f"{source}: {_said(row, number, source)}" for source in row["answers"])
        cells += [_said(row, number, OWN), "; ".join(others)]
        lines.append([f'<div class="dpx-wrap">{escape(cell)}</div>' for cell in cells])
    words = (
        "What is decided for each input and what the model answers; then what it answers with the decisions from each"
        " source. In brackets the probability of the right answer."
    )
    return number_table(words, head, lines)


def _said(row: dict, number: int, source: str) -> str:
    word, _, right = answered(row, number, source)
    return f"{word} ({right:.2f})"


KEY = """<div class="dpx-key"><span><i class="dpx-before"></i>what the model is given</span>
<span><i class="dpx-after"></i>what it decides for this input itself</span></div>"""

STYLE = """
.dpx-line > div > .dpx-bar + .dpx-bar { height: 7px; background: none; margin-top: 2px }
.dpx-right { text-align: center }
.dpx-wrap { white-space: normal; min-width: 4rem; vertical-align: top }
td:last-child > .dpx-wrap { min-width: 24rem }
.dpx td, .dpx th { vertical-align: top }
@media print { .dpx-wrap, td:last-child > .dpx-wrap { min-width: 0 } }
.dpx-decisions { display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(12.5rem, 100%), 1fr)); gap: 0 1.2rem }
.dpx-decision:not(:only-child) .dpx-line { grid-template-columns: 4.6rem 1fr 2.6rem; gap: .4rem }
"""
