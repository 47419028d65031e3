"""The stages of a pretraining: how many steps, with which mixture, at which learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass

BLOCK = 8  # batches that are drawn together and sorted by length, to avoid padding


@dataclass(frozen=True)
class Stage:
    """Some steps with one mixture; the learning rate goes linearly from the first to the second value."""

    steps: int
    rates: tuple[float, float]
    mixture: dict


def plan(step: int, stages: Sequence[Stage]) -> tuple[Stage, float]:
    """(stage, learning rate) of a step."""
    last = total_steps(stages)
    for stage in stages:
        if step < stage.steps:
            low, high = stage.rates
            return stage, low + (high - low) * (step + 1) / stage.steps
        step -= stage.steps
    raise ValueError(f"step {step} is after the last stage: expected less than {last}")


def total_steps(stages: Sequence[Stage]) -> int:
    """The steps of all stages."""
    return sum(stage.steps for stage in stages)
