"""Does a probe of a trained prompt predict what deciding gains? One point for each table and learned position.

The probe holds a trained fixed prompt at every split (:class:`dplearn.evidence.Headroom`, of the reports of a study
with ``headroom = true``): how much its losses depend on the split (``deviation``), and how much a rule per input could
gain over the best split for all (``headroom``). What was gained is the cross-entropy of the best fixed split minus that
of the learned position on test, both trained, paired by seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dplearn.controllers import LEARNED
from dplearn.experiments.parts import Cell
from dplearn.experiments.records import interval
from dplearn.experiments.tables import reports


class Point(NamedTuple):
    """A learned position in one table of a study.

    where : study and table.  method : what was learned.
    deviation, headroom : of the baseline's trained prompts, nats, means over seeds.
    gain, half : cross-entropy of the baseline minus that of the method, nats: mean over seeds, and half-width of the
        95 % interval.
    trained : whether the baseline's prompts were; a prompt that was given never fitted the place where it stands.
    """

    where: str
    method: str
    deviation: float
    headroom: float
    gain: float
    half: float
    seeds: int
    trained: bool


def points(
    study: str, cells: Iterable[tuple[Cell, list[dict]]], baseline: str, split: str = "test"
) -> list[Point]:
    """The points of a study.

    cells : its tables with their rows.  baseline : the method of fixed prompts that are probed.
    """
    measured = []
    for cell, rows in cells:
        groups = reports(rows, cell.task)
        probed = [row["evidence"]["headroom"] for row in groups.get(baseline, []) if _has_headroom(row)]
        for method, group in groups.items():
            if not probed or group[0].get("config", {}).get("position") not in LEARNED:
                continue
            of_baseline = {row["seed"]: row["cross_entropy"][split] for row in groups[baseline]}
            gains = [
                of_baseline[row["seed"]] - row["cross_entropy"][split]
                for row in group if row["seed"] in of_baseline
            ]  # fmt: skip
            if len(gains) < 2:
                continue
            mean, half = interval(gains)
            deviation, headroom = (
                statistics.mean(values)
                for values in zip(*((each["deviation"], each["gain"][0]) for each in probed))
            )
            where = f"{study}: {cell.title}"
            trained = any(row["trained_parameters"] for row in groups[baseline])
            measured.append(Point(where, method, deviation, headroom, mean, half, len(gains), trained))
    return measured


def _has_headroom(row: dict) -> bool:
    return bool((row.get("evidence") or {}).get("headroom"))


def correlations(measured: Sequence[Point]) -> dict[str, tuple[float, float]]:
    """Spearman's rank correlation of each probe with the gain, and its p-value; empty below four points."""
    from scipy.stats import spearmanr

    if len(measured) < 4:
        return {}
    gains = [point.gain for point in measured]
    found = {}
    for name in ("deviation", "headroom"):
        correlation, p_value = spearmanr([getattr(point, name) for point in measured], gains)
        found[name] = (float(correlation), float(p_value))
    return found


def markdown(measured: Sequence[Point]) -> str:
    """The points as a Markdown table, in nats; gains with their 95 % intervals."""
    rows = [
        "| table | prompt | learned | losses differ over splits by | headroom per input | gained over best fixed "
        "| seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for point in measured:
        gain = f"{point.gain:+.3f}\u00a0±\u00a0{point.half:.3f}"
        cells = (
            point.where,
            "trained" if point.trained else "given",
            point.method,
            f"{point.deviation:.3f}",
            f"{point.headroom:+.3f}",
            gain,
            str(point.seeds),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
