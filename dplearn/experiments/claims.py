"""The paper's claims and the recorded comparisons that test them: the table of chapter 15 is computed from here.

A claim says that a learned decision is better than a baseline. Each recorded table in which both were run is one
finding, with the verdict of that table (:mod:`dplearn.experiments.verdicts`: paired by seed, Holm within the table) and
the evidence that the decision was learned. Findings are counted, never averaged: their conditions differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from dplearn.experiments import recorded
from dplearn.experiments.parts import Cell
from dplearn.experiments.tables import Line
from dplearn.experiments.verdicts import KINDS, Verdict


class Source(NamedTuple):
    """Where a claim is tested: in every table of a study that has both methods.

    method : a name or pattern.  baseline : what it has to be better than.  condition : a pattern.
    """

    study: str
    method: str
    baseline: str
    condition: str = "*"
    tasks: str = "*"


FIXED, PLACE = "best fixed split", "best fixed place"
MANY = "one prompt, as many parameters"
FULL = 0.99  # a share of right answers that leaves nothing to win by a margin of a point
CONTROLS = ("place/none",)  # nothing can be won there, by construction
# Without "l = 4" and "l = 8", where the decision's vectors were given no rate that is fast enough: "one grid" is each
# of these tables again.
LENGTHS = "given", "l = [12]", "l = *, one grid"

CLAIMS: Mapping[str, tuple[Source, ...]] = {
    "A place per task improves on a fixed one": (
        Source("position-again", "per task, *", FIXED),
        Source("instance", "per task, *", FIXED),
        Source("t5", "place per task, *", PLACE),
        Source("smollm2-place", "per task, *", "postfix"),
    ),
    "A place per input improves on a fixed one": (
        *(Source("estimators-place", "per instance, score-function", FIXED, each) for each in LENGTHS),
        Source("estimators-place", "per instance, straight-through", FIXED),
        Source("instance", "per instance, *", FIXED),
        Source("t5", "place per input, *", PLACE),
        Source("smollm2-place", "per instance, *", "postfix"),
    ),
    "A place per input improves on one per task": (
        Source("estimators-place", "per instance, score-function", "per task, score-function"),
        Source("instance", "per instance, *", "per task, score-function"),
        Source("smollm2-place", "per instance, *", "per task, score-function"),
    ),
    "A learned length improves on a fixed one": (
        Source("length", "number per *", "best fixed number"),
        Source("t5", "size per input, at a cost", PLACE),
    ),
    "A mixture from a pool improves on one prompt": (
        Source("pool", "pool of 4 per instance*", MANY),
        *(Source("ablations", f"pool of {size}", f"one prompt of {size}") for size in (2, 4, 8, 16)),
        Source("t5", "pool per input", MANY),
    ),
    "Everything together improves on one prompt": (
        Source("unified", "all per instance", FIXED),
        Source("unified", "all per instance", MANY),
        Source("t5", "all per input", PLACE),
        Source("t5", "all per input", MANY),
    ),
    "It holds with few examples": (
        Source("few-shot", "per *", FIXED),
        Source("position-again", "per task, *", FIXED, tasks="*shots=32*"),
        Source("smollm2-place", "per *", "postfix"),
    ),
    "It holds with several tasks": (
        Source("multi-task", "place per *", FIXED),
        Source("multi-task", "mixture per task", MANY),
    ),
    "It holds for vision models": (
        Source("vit-decisions", "place per *-*", PLACE),
        # A coded place leaves the patches, as the plain prompt behind the positions does.
        Source("vit-decisions", "place per image, coded", "VPT, shallow"),
        Source("vit-decisions", "pool per image", MANY),
    ),
    "It holds for models of images and texts": (
        Source("clip-decisions", "place per *", PLACE),
        Source("clip-decisions", "pool per *", MANY),
        *(
            Source("clip-decisions", f"pool of {size} per class", f"one prompt of {size} times the words")
            for size in (2, 8)
        ),
    ),
}


class Finding(NamedTuple):
    """One comparison of a claim; ``line`` and ``other`` (of the baseline) are None where they were not run."""

    source: Source
    cell: Cell
    method: str
    verdict: Verdict
    line: Line | None
    other: Line | None

    @property
    def where(self) -> str:
        """Backbone, task and condition, in a few words."""
        task = self.cell.task.split("?")[0]
        return ", ".join(part for part in (self.cell.backbone, task, self.cell.condition.name) if part)


def findings(sources: Iterable[Source]) -> list[Finding]:
    """All findings of a claim, in the order of the sources and of their studies' tables."""
    found: dict[tuple, Finding] = {}
    known: dict[str, list[recorded.Table]] = {}
    for source in sources:
        if source.study not in known:
            known[source.study] = recorded.all_tables(source.study)
        for table in known[source.study]:
            cell = table.cell
            if cell.task in CONTROLS or not (
                fnmatchcase(cell.condition.name, source.condition) and fnmatchcase(cell.task, source.tasks)
            ):
                continue
            for (baseline, method), verdict in table.verdicts.items():
                if baseline == source.baseline and fnmatchcase(method, source.method):
                    lines = table.lines.get(method), table.lines.get(baseline)
                    key = source.study, cell.title, method, baseline
                    found.setdefault(key, Finding(source, cell, method, verdict, *lines))
    return list(found.values())


def counts(found: Sequence[Finding]) -> dict[str, int]:
    """How many findings are of each kind of verdict, in the order of ``verdicts.KINDS``."""
    of = Counter(each.verdict.kind for each in found)
    return {kind: of[kind] for kind in KINDS}


def standing(found: Sequence[Finding]) -> str:
    """What the findings allow to say of a claim.

    "observed" : better somewhere, and nowhere worse.  "mixed" : better somewhere and worse elsewhere.
    "not reproduced" : nowhere better, though the decision was learned and a difference above the margin is ruled out,
    or it was worse.  "not tested" : everything else, also where nothing was run. Where the baseline has (nearly) all
    answers right, nothing could be won, and a finding does not count.

    >>> standing([])
    'not tested'
    """
    of = counts([each for each in found if each.other is None or each.other.mean < FULL])
    if of["better"]:
        return "mixed" if of["worse"] else "observed"
    return "not reproduced" if of["worse"] or of["no difference"] else "not tested"
