"""What all benchmarks share: times of runs that take turns, and the report that prints and keeps each figure.

Times are CPU time on one thread, of this process and of those that it waited for. Single times mean little on a shared
machine, so every figure on time is a ratio of two ways that take turns, A B A B, within one run: the median and the
quartiles over the pairs.
"""

import gc
import os
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager

import goals
from goals import bound, holds, number


@contextmanager
def no_collection():
    """No garbage collection while this is open: it would be charged to whoever happens to run."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def cpu_time(run: Callable[[], object]) -> float:
    """Seconds of CPU time of one call, with those of processes that it started and waited for."""
    start = time.process_time() + _of_children()
    run()
    return time.process_time() + _of_children() - start


def _of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def time_in_turns(first: Callable[[], object], second: Callable[[], object], pairs: int) -> dict:
    """Ratios time(first) / time(second) of calls that take turns: median, quartiles, and the median times in ms."""
    first(), second()  # the first run pays for allocation and dispatch
    with no_collection():
        times = [(cpu_time(first), cpu_time(second)) for _ in range(pairs)]
    ratios = [a / b for a, b in times]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if pairs > 1 else ratios * 3
    return {
        "value": middle,
        "low": low,
        "high": high,
        # Of the least disturbed runs of both: a median far from it tells of other work on the machine.
        "best": min(a for a, _ in times) / min(b for _, b in times),
        "pairs": pairs,
        "ms": [1e3 * statistics.median(column) for column in zip(*times)],
    }


class Report:
    """Prints each figure of one group as it comes, with goal and verdict, and keeps it for the record."""

    def __init__(self, group: str, quick: bool = False):
        self.expected = {figure.name: figure for figure in goals.group(group).figures}
        self.quick = quick
        self.figures = []

    def add(self, name: str, value: float, **more) -> None:
        """Report a figure; ``more`` goes into the record. A name that goals.py does not list is a KeyError."""
        figure = self.expected[name]
        verdict = holds(value, figure.goal, figure.at_least)
        self.figures.append(
            {
                "name": name,
                "value": value,
                "goal": figure.goal,
                "at_least": figure.at_least,
                "holds": verdict,
                **more,
            }
        )
        text = "" if verdict is None else f"{bound(figure):<9}{'pass' if verdict else 'FAIL'}"
        detail = ""
        if "pairs" in more:
            detail = "quartiles {}..{} of {pairs}, best {}, {:.1f} and {:.1f} ms".format(
                number(more["low"]),
                number(more["high"]),
                number(more["best"]),
                *more["ms"],
                pairs=more["pairs"],
            )
        small = " [small]" if self.quick else ""
        print(f"{figure.words + small:<98} {number(value):>9}  {text:<14} {detail}", flush=True)

    def ratio(self, name: str, first: Callable[[], object], second: Callable[[], object], pairs: int) -> None:
        """Report time(first) / time(second)."""
        self.add(name, **time_in_turns(first, second, pairs))

    def skip(self, name: str, reason: str) -> None:
        """Say why a figure is not measured."""
        self.figures.append({"name": name, "skipped": reason})
        print(f"{self.expected[name].words:<98} {'–':>9}  {reason}", flush=True)

    def missed(self) -> list[str]:
        """What did not reach its goal, in words."""
        return [self.expected[f["name"]].words for f in self.figures if f.get("holds") is False]

    def check_complete(self) -> None:
        """A figure that is neither reported nor skipped is an error of the benchmark."""
        missing = set(self.expected) - {figure["name"] for figure in self.figures}
        if missing:
            raise RuntimeError(f"not measured and not skipped: {sorted(missing)}")
