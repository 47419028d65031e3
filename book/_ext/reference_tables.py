"""Sphinx extension: put tables that the code or a record knows into the pages that describe them.

`<!-- the options -->` on the page The prompt of the API reference is replaced by the options of PromptConfig, as the
package declares them (dplearn.config.option_rows). `<!-- the architectures -->` on the page Backbones is replaced by
what came of every text architecture of transformers, from the record that the test of all of them writes. Without a
record the page says "not run".
"""

import collections
import json
import re
from pathlib import Path

PAGES = {"book/api/prompt": "<!-- the options -->", "book/backbones": "<!-- the architectures -->"}
RECORD = Path("tests", "backbones", "architectures.json")
NOT_RUN = "This test was not run: there is no record of it in this copy."
OPTIONS = ("Option", "Expected", "Meaning")
# What a row of the record begins with, and how a reader calls it.
TASKS = {
    "seq2seq": ("Encoder-decoder models", "AutoModelForSeq2SeqLM"),
    "causal": ("Models that predict the next token", "AutoModelForCausalLM"),
    "classification": ("Text classifiers", "AutoModelForSequenceClassification"),
}
STATUS = {
    "exact": "Exact",
    "left refused": "Exact with padding on the right; on the left refused",
    "refused": "Refused by name",
    "not built": "Not tried",
    "wrong": "Wrong",
}


def table(rows):
    """A Markdown table; the first row is its head. Columns of numbers are aligned on the right."""
    numbers = [isinstance(cell, int) for cell in rows[-1]]
    head, *others = ([str(cell).replace("|", r"\|") for cell in row] for row in rows)
    lines = [head, ["--:" if number else ":--" for number in numbers], *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def values_as_code(text):
    """Text with the values in it ('prefix', None, True) as code."""
    return re.sub(r"'[^']*'|\b(?:None|True|False)\b", r"`\g<0>`", text)


def options(rows):
    """The options of PromptConfig as a table; which kinds of backbone serve an option is said where not all do."""
    cells = []
    for name, default, expected, kinds, words in rows:
        served = "" if kinds == "all" else f" (backbones: {values_as_code(kinds)})"
        cells.append((f"`{name}`", f"{values_as_code(expected)}; default: `{default}`", words + served))
    # custom.css keeps the names in one piece.
    return f"```{{table}}\n:class: options\n\n{table([OPTIONS, *cells])}\n```"


def name_of(row):
    """The architecture in a row of the record ("causal-bert-as-decoder"), as a page shows it.

    >>> name_of("causal-bert-as-decoder")
    '`bert` (as a decoder)'
    """
    name = row.partition("-")[2]
    return f"`{name.removesuffix('-as-decoder')}`" + (
        " (as a decoder)" if name.endswith("-as-decoder") else ""
    )


def names(rows, reasons):
    """Architectures in one paragraph, or, where there are reasons, in a list with a line for each reason."""
    if not any(reasons.get(row) for row in rows):
        return ", ".join(map(name_of, rows))
    groups = collections.defaultdict(list)
    for row in rows:
        groups[" ".join(reasons.get(row, "").split()).replace("<", r"\<")].append(name_of(row))
    ordered = sorted(groups.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return "\n".join(f"- {', '.join(found)}" + (f": {reason}" if reason else "") for reason, found in ordered)


def architectures(record):
    """Counts by task and outcome, and the names behind each count."""
    if record is None:
        return NOT_RUN
    found, reasons = collections.defaultdict(list), record.get("reasons", {})
    for row, status in sorted(record["status"].items()):
        found[row.partition("-")[0], status].append(row)
    shown = [status for status in STATUS if any(key[1] == status for key in found)]
    shown += sorted({status for _, status in found} - set(STATUS))
    head = ["", *(STATUS.get(status, status) for status in shown)]
    counts = [[title, *(len(found[task, status]) for status in shown)] for task, (title, _) in TASKS.items()]
    parts = [
        f"With transformers {record['transformers']}, {len(record['status'])} rows in all:",
        table([head, *counts]),
    ]
    for task, (title, auto) in TASKS.items():
        for status in shown:
            if found[task, status]:
                listed = names(found[task, status], reasons)
                what = f"{title}, {STATUS.get(status, status).lower()} ({len(found[task, status])})"
                parts.append(f":::{{dropdown}} {what}\nThe names are those of `{auto}`.\n\n{listed}\n:::")
    return "\n\n".join(parts)


def insert_tables(app, docname, source):
    """Replace the mark of a page; a new record makes Sphinx read the page again."""
    if docname not in PAGES:
        return
    if docname == "book/api/prompt":
        from dplearn.config import option_rows

        text = options(option_rows())
        app.env.note_dependency(str(Path(app.srcdir, "dplearn", "config.py")))
    else:
        path = Path(app.srcdir, RECORD)
        app.env.note_dependency(str(path))
        text = architectures(json.loads(path.read_text(encoding="utf8")) if path.is_file() else None)
    if source[0].count(PAGES[docname]) != 1:
        raise ValueError(f"{docname}.md: expected the line {PAGES[docname]} once")
    source[0] = source[0].replace(PAGES[docname], text)


def setup(app):
    """Register the replacement."""
    app.connect("source-read", insert_tables)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
