"""Sphinx extension: put the recorded figures of the benchmarks into the page that describes them.

Each line `<!-- benchmarks: GROUP -->` in book/benchmarks.md is replaced by the tables of that group. Which figures
there are, and their goals, is read from tests/benchmarks/goals.py; the values come from the record that ships with the
package. A figure that the record lacks is shown as "not run".
"""

import importlib.util
import json
import re
from pathlib import Path

PAGE = "book/benchmarks"
MARK = re.compile(r"^<!-- benchmarks: (\w+) -->$", re.MULTILINE)
GOALS = Path("tests", "benchmarks", "goals.py")
RECORD = Path("dplearn", "experiments", "records", "benchmarks.json")
NONE = "No record of these figures ships with this version."


def load_goals(root):
    """The module that lists the figures; its folder is no package."""
    spec = importlib.util.spec_from_file_location("benchmark_goals", Path(root) / GOALS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(record):
    """The rows of a record by group; none without a record."""
    return {} if record is None else {row["group"]: row for row in record["rows"]}


def cells(goals, figure, found, quick):
    """One row of a table: the figure, its value, its quartiles, its goal and the verdict."""
    if found is None or "skipped" in found:
        reason = "" if found is None else f": {found['skipped']}"
        return [figure.words, f"not run{reason}", "", goals.bound(figure), ""]
    value, spread = found["value"], ""
    if "low" in found:
        spread = f"{goals.number(found['low'])} to {goals.number(found['high'])}"
    # Judged here and not copied: a goal that has changed since the run must not keep its old verdict.
    verdict = {True: "pass", False: "fail", None: ""}[goals.holds(value, figure.goal, figure.at_least)]
    if quick and verdict:
        verdict = "not judged"
    return [figure.words, goals.number(value), spread, goals.bound(figure), verdict]


def table(rows, columns=5):
    """A Markdown table of the first columns of cells."""
    head = [["Figure", "Value", "Quartiles", "Goal", "Verdict"], [":--", "--:", "--:", "--:", ":--"]]
    lines = [[str(cell).replace("|", r"\|") for cell in row[:columns]] for row in head + rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def origin(row):
    """Who measured a group, in a sentence."""
    p, peft = row["provenance"], ""
    if p.get("peft"):
        peft = f"peft {p['peft']}, "
    pairs = max((figure.get("pairs", 0) for figure in row["figures"]), default=0)
    quick = (
        "**A quick run with small shapes: it shows that the benchmark runs, and no more.** "
        if row["quick"]
        else ""
    )
    medians = f"Ratios of times are medians of {pairs} pairs. " if pairs else ""
    return (
        f"{quick}{medians}Measured on {p['date']} at commit `{p['commit']}` with dplearn {p['dplearn']}, "
        f"torch {p['torch']}, transformers {p['transformers']}, {peft}Python {p['python']}, on {p['machine']}, "
        f"{p['device']}, in {row['seconds']:.0f} s:\n\n```bash\n{p['command']}\n```"
    )


def section(goals, name, record):
    """The tables of one group: figures with a goal, then the others, folded away, and where they come from."""
    row = rows_of(record).get(name)
    found = {} if row is None else {figure["name"]: figure for figure in row["figures"]}
    quick = row is not None and row["quick"]
    judged, other = [], []
    for figure in goals.group(name).figures:
        line = cells(goals, figure, found.get(figure.name), quick)
        (other if figure.goal is None else judged).append(line)
    parts = [table(judged)] if judged else []
    if other:
        text = table(other, columns=3)
        parts.append(f":::{{dropdown}} Also measured, without a goal\n{text}\n:::" if judged else text)
    return "\n\n".join([*parts, NONE if row is None else origin(row)])


def insert_tables(app, docname, source):
    """Replace the marks of the page; a new record or changed goals make Sphinx read the page again."""
    if docname != PAGE:
        return
    root = Path(app.srcdir)
    for path in (root / GOALS, root / RECORD):
        app.env.note_dependency(str(path))
    path = root / RECORD
    record = json.loads(path.read_text(encoding="utf8")) if path.is_file() else None
    goals = load_goals(root)
    source[0] = MARK.sub(lambda match: section(goals, match[1], record), source[0])


def setup(app):
    """Register the replacement."""
    app.connect("source-read", insert_tables)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
