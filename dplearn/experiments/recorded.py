"""Published records as the book reads them: one table of a study with its verdicts, in words.

table = recorded.table("instance", "docs/signature")
pd.DataFrame(table.rows("mean ± sd, %", "verdict")).T
print(recorded.made("instance"))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dplearn.checks import shown
from dplearn.experiments import records, study, tables
from dplearn.experiments.known_rows import record_of
from dplearn.experiments.parts import Cell, Study
from dplearn.experiments.tables import Line
from dplearn.experiments.verdicts import Verdict


class Table(NamedTuple):
    """One table of a study; without lines where nothing of it was run.

    cell : backbone, condition and task.  split : what the scores are of.  baseline : the usual one of its verdicts.
    lines : by method.  verdicts : by (baseline, method).  runs : the reported ones, by method.
    """

    study: Study
    cell: Cell
    split: str
    baseline: str | None
    lines: Mapping[str, Line]
    verdicts: Mapping[tuple[str, str], Verdict]
    runs: Mapping[str, list[dict]]

    def rows(self, *names: str) -> dict[str, dict[str, str]]:
        """Cells by method and column, for a data frame: all columns, or those that are named.

        They are those of :func:`dplearn.experiments.tables.columns`, and :meth:`told` as "against ..." the baseline.

        Raises
        ------
        ValueError : the table has no column of this name.
        """
        cells = tables.columns(list(self.lines.values()), self.verdicts, self.baseline)
        told = {method: self.verdicts.get((self.baseline or "", method)) for method in self.lines}
        cells[f"against {self.baseline}"] = ["" if each is None else each.told() for each in told.values()]
        for name in names:
            if name not in cells and self.lines:
                raise ValueError(f"names={shown(name)}, expected columns of the table: {', '.join(cells)}")
        wanted = names or [name for name in cells if name != "method"]
        return {
            method: {name: cells[name][number] for name in wanted} for number, method in enumerate(self.lines)
        }

    def score(self, method: str) -> str:
        """Mean ± standard deviation over the seeds, in percent."""
        line = self.lines[method]
        return tables.percent(line.mean, line.spread)

    def told(self, method: str, baseline: str | None = None) -> str:
        """What may be said of a method against a baseline (None: the usual one), with its interval in points."""
        return self.verdicts[baseline or self.baseline or "", method].told()

    def in_nats(self) -> dict[tuple[str, str], str]:
        """The verdicts by cross-entropy instead, a family of its own: "better" has fewer nats. The margin is the same
        number, of nats; pairs of which a run has no cross-entropy are left out."""
        pairs = [
            pair for pair in self.verdicts
            if all(row.get("cross_entropy") for name in pair for row in self.runs.get(name, ()))
        ]  # fmt: skip
        rows = [row for group in self.runs.values() for row in group]
        value = records.log_likelihood
        found = tables.judged(rows, self.cell.task, pairs, self.study.verdict, self.split, value)
        return {pair: verdict.told(1.0, 2) for pair, verdict in found.items()}

    def seeds(self, method: str) -> int:
        """How many seeds were reported of a method; 0: it was not run."""
        return len(self.runs.get(method, ()))


def table(
    name: str,
    task: str,
    condition: str = "",
    split: str = "test",
    baseline: str | None = None,
    backbone: str | None = None,
    scale: str | None = None,
) -> Table:
    """A table of a study's published record.

    Parameters
    ----------
    name : of the study, or the path of a file of one's own, whose record lies beside it.
    task : of the table.
    condition : of the table.
    split : of the scores; methods without it are left out.
    baseline : of the differences and verdicts in the rows; None: the study's own.
    backbone : needed where a study has several for this task.
    scale : of the study; None: its own.

    Raises
    ------
    ValueError : the study has no such table, or several.
    """
    one = study.read(name, scale)
    cells = [
        cell for cell in one.cells()
        if (cell.task, cell.condition.name) == (task, condition) and backbone in (None, cell.backbone)
    ]  # fmt: skip
    if len(cells) != 1:
        titles = [cell.title for cell in one.cells()]
        raise ValueError(
            f"study {name!r} has {len(cells)} tables of task={task!r}, condition={condition!r}, "
            f"backbone={backbone!r}, expected one of {titles}"
        )
    return _table(one, cells[0], records.read(record_of(one)), split, baseline)


def all_tables(name: str, split: str = "test", scale: str | None = None) -> list[Table]:
    """The tables of a study's published record, in the order of the study."""
    one = study.read(name, scale)
    record = records.read(record_of(one))
    return [_table(one, cell, record, split) for cell in one.cells()]


def _table(one: Study, cell: Cell, record: dict | None, split: str, baseline: str | None = None) -> Table:
    rows = [
        row for row in (record or {"rows": []})["rows"]
        if cell.holds(row) and (row["purpose"] == "choice" or split in row["scores"])
    ]  # fmt: skip
    runs, used = tables.reports(rows, cell.task), baseline or one.baseline
    lines = tables.lines_against(rows, cell.task, used if used in runs else None, split)
    verdicts = tables.judged(rows, cell.task, one.pairs(cell), one.verdict, split)
    return Table(one, cell, split, used, {line.method: line for line in lines}, verdicts, runs)


def made(name: str, scale: str | None = None) -> str:
    """Who made a record: its command, date, device, seeds and versions; and what it does not keep to.

    >>> made("instance").splitlines()[0]
    'python -m dplearn.experiments run instance'
    """
    one = study.read(name, scale)
    record, command = records.read(record_of(one)), f"python -m dplearn.experiments run {one.source}"
    if record is None:
        return f"{command}\nnot run"
    by = record["provenance"]
    devices = sorted({maker["device"] for maker in record.get("makers", [])}) or [by.get("device", "")]
    words = [command]
    words.append(f"{by['date']} · {', '.join(devices)} · {_seeds(record['rows'])}")
    words.append(" · ".join(f"{each} {by[each]}" for each in ("dplearn", "torch", "transformers")))
    if one.exempt:
        words.append(f"not by the protocol: {one.exempt}")
    return "\n".join(words)


def _seeds(rows: list[dict]) -> str:
    """The seeds of the reports in words, without those of baselines that have no luck, and one seed in all tables."""
    reported = records.by([row for row in rows if row["purpose"] == "report"], "method").values()
    own = [{row["seed"] for row in group} for group in reported]
    seeds = sorted(set().union(*([each for each in own if len(each) > 1] or own)))
    if len(seeds) < 2:
        return f"seed {seeds[0]}" if seeds else "no reports"
    return f"seeds {seeds[0]} to {seeds[-1]}"
