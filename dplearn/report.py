"""What a report on decisions says: numbers, a table in words, a figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dplearn.evidence import MOVED, Evidence, Headroom


@dataclass(frozen=True)
class DecisionReport:
    """What the decisions of a prompt did over a data set.

    decisions : evidence of each learned decision, by name.  headroom : of one decision, where it was asked for.
    probabilities : (N, n) distributions over the options of each decision.  chosen : (N,) options in evaluation.
    losses : (N, n) of the headroom, or None.

    ``print(report)`` shows a table, :meth:`figure` draws it, :meth:`to_dict` gives the numbers as JSON values.
    """

    decisions: dict[str, Evidence]
    headroom: Headroom | None
    probabilities: dict[str, Tensor]
    chosen: dict[str, Tensor]
    losses: Tensor | None = None
    asked: str | None = None

    def to_dict(self) -> dict:
        """Plain JSON values: everything but the tensors of single inputs."""
        return {
            "decisions": {name: evidence.to_dict() for name, evidence in self.decisions.items()},
            "headroom": None if self.headroom is None else {"decision": self.asked} | self.headroom.to_dict(),
        }

    def __str__(self) -> str:
        lines = [line for name, evidence in self.decisions.items() for line in _in_words(name, evidence)]
        if self.headroom is not None:
            lines += [f"{self.asked}, at every option:", *_headroom_in_words(self.headroom)]
        return "\n".join(lines) or "nothing is decided: every part of the prompt is fixed"

    def figure(self) -> Any:
        """A matplotlib figure: how many inputs get each option, and the mean loss at each option."""
        import matplotlib.pyplot as plt

        panels = len(self.decisions) + (self.headroom is not None)
        figure, axes = plt.subplots(1, max(panels, 1), figsize=(3.6 * max(panels, 1), 3.2), squeeze=False)
        for ax, (name, evidence) in zip(axes[0], self.decisions.items()):
            ax.bar(
                range(evidence.options),
                [100 * count / evidence.inputs for count in evidence.counts],
                color="#0072b2",
            )
            ax.set(xlabel=f"option of the {name}", ylabel="share of inputs, %", title=_title(name, evidence))
        if self.headroom is not None and self.asked is not None:
            _draw_headroom(axes[0, -1], self.asked, self.headroom)
        figure.tight_layout()
        return figure


def _in_words(name: str, evidence: Evidence) -> list[str]:
    moved = {None: "start not known", True: "moved", False: "NOT LEARNED"}[evidence.learned]
    if evidence.learned and evidence.moved is not None and evidence.moved < MOVED:
        moved = "moved little, but dealing it to other inputs costs"
    start = "" if evidence.entropy_first is None else f"{evidence.entropy_first:.3f} -> "
    lines = [
        f"{name}: {evidence.options} options, {evidence.inputs} inputs: {moved}",
        f"  entropy (nats)      {start}{evidence.entropy:.3f}",
        f"  options used        {evidence.used}; {evidence.share:.1%} of the inputs share one",
    ]
    if evidence.moved is not None:
        changed = (
            "" if evidence.changed is None else f"; {evidence.changed:.1%} of the inputs changed their option"
        )
        lines.append(f"  total variation     {evidence.moved:.3f}{changed}")
    if evidence.information is not None:
        lines.append(
            f"  told about labels   {evidence.information:.3f} nats "
            f"({evidence.expected:.3f} by chance, p = {evidence.chance:.3f})"
        )
    if evidence.cost is not None:
        lines.append(
            f"  loss                {evidence.loss:.4f}; dealt to other inputs {evidence.shuffled:.4f} "
            f"({evidence.cost[0]:+.4f} ± {evidence.cost[1]:.4f})"
        )
    return lines


def _headroom_in_words(room: Headroom) -> list[str]:
    rows = [
        (f"best fixed ({room.best})", room.fixed),
        ("  chosen on the other half", room.fixed_elsewhere),
        ("at random", room.random),
        ("as the model decides", room.learned),
        ("best by group, cross-fitted", room.per_group),
        ("best by a linear function of the summary, cross-fitted", room.by_summary),
        ("each input's smallest (optimistic)", room.oracle),
    ]
    width = max(len(words) for words, _ in rows)
    lines = [f"  {words:<{width}}  {value:.4f}" for words, value in rows if value is not None]
    return [*lines, f"  {room.verdict}"]


def _title(name: str, evidence: Evidence) -> str:
    return f"{name}: {'not learned' if evidence.learned is False else f'{evidence.used} of {evidence.options} used'}"


def _draw_headroom(ax: Any, name: str, room: Headroom) -> None:
    ax.plot(room.options, room.means, marker="o", color="black", label="held at one option")
    lines = {
        "as decided": (room.learned, "#0072b2", "--"),
        "by group": (room.per_group, "#009e73", "-."),
        "by summary": (room.by_summary, "#d55e00", ":"),
        "smallest": (room.oracle, "#888888", "-"),
    }
    for label, (value, color, style) in lines.items():
        if value is not None:
            ax.axhline(value, color=color, linestyle=style, label=label)
    ax.set(xlabel=f"option of the {name}", ylabel="mean loss", title="what there is to win")
    ax.legend(fontsize=8)
