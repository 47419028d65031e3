"""Prints how many architectures of the sweep (``test_architectures.py``) came out how, with any number of workers.

With the environment variable ``DPLEARN_SWEEP`` set to a file, the outcomes are also written there as JSON.
"""

import collections
import json
import os


def summary(terminalreporter):
    found = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                found |= {value[0]: value[1:] for name, value in report.user_properties if name == "sweep"}
    if not found:
        return
    counts = collections.Counter((row.split("-")[0], status) for row, (status, _) in found.items())
    terminalreporter.section("architectures")
    for (task, status), count in sorted(counts.items()):
        terminalreporter.write_line(f"{task:>14}  {status:<13}{count:>4}")
    if os.environ.get("DPLEARN_SWEEP"):
        import transformers

        sound = {row: status for row, (status, _) in sorted(found.items()) if status != "wrong"}
        reasons = {
            row: found[row][1].split("cannot take a prompt: ")[-1]
            for row, status in sound.items()
            if status == "refused"
        }
        content = {"transformers": transformers.__version__, "status": sound, "reasons": reasons}
        with open(os.environ["DPLEARN_SWEEP"], "w") as file:
            file.write(json.dumps(content, indent=0) + "\n")
