"""The numbers and words that the figure shows, in the page and in its still."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dplearn.theory.explorer.heads import HEADS, INPUTS, PROMPT, Readings, readings

# A difference between two outputs below this share of the largest is rounding in float64.
ROUNDING = 1e-12


def numbers(prompt: Any = PROMPT, inputs: Any = INPUTS) -> dict:
    """What the figure shows, rounded: gates in percent, outputs to two decimals, and their changes as words.

    A change is "0" if there is none but rounding, else the difference of the two outputs as they are shown.
    """
    by_head = {head: readings(head, prompt, inputs) for head in HEADS}
    count = next(iter(by_head.values())).outputs.shape[1]
    return {
        "rows": [*(f"X{t}" for t in range(1, count)), "R"],
        "heads": [
            {
                "name": head,
                "gates": (100 * read.gates).round().int().tolist(),
                "outputs": _decimals(read.outputs),
                "changes": _changes(read),
            }
            for head, read in by_head.items()
        ],
    }


def _decimals(outputs: Tensor) -> list[list[float]]:
    return [[round(value, 2) + 0.0 for value in row] for row in outputs.tolist()]  # + 0.0: no -0.0


def _changes(read: Readings) -> list[list[str]]:
    shown = _decimals(read.outputs)
    none = ROUNDING * max(1.0, read.outputs.abs().max().item())
    return [
        [
            "0" if abs(exact) <= none else number_text(now - then, "+")
            for exact, now, then in zip(exacts, row, shown[-1])
        ]
        for exacts, row in zip(read.changes.tolist(), shown)
    ]


def number_text(value: float, sign: str = "") -> str:
    return f"{value:{sign}.2f}".replace("-", "\N{MINUS SIGN}")


def order_at(data: dict, k: int) -> list[str]:
    """The names of all rows of the sequence at split k."""
    vectors = [f"P{i}" for i in range(1, len(data["heads"][0]["outputs"]))]
    return [*vectors[:k], *data["rows"][:-1], *vectors[k:], data["rows"][-1]]
