"""Records: results of runs as JSON, each with the command, versions and device that made it; tables from them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from dplearn.files import write

FOLDER = Path(__file__).parent / "records"


def provenance(command: str) -> dict:
    """Who made a result: the command, the date, the commit, versions and device."""
    import torch
    import transformers

    import dplearn

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "dplearn": dplearn.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device,
        "machine": platform.machine(),
    }


class Peak:
    """The most memory that a run takes: of the device where there is one, else of this process.

    On Linux the process's mark is set back at the start; elsewhere it is that of all runs of the process so far.
    """

    def __init__(self):
        import torch

        self.device = torch.cuda.is_available()
        if self.device:
            torch.cuda.reset_peak_memory_stats()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def megabytes(self) -> int | None:
        """So far, in 10^6 bytes; None where the system does not tell."""
        import torch

        if self.device:
            return round(torch.cuda.max_memory_allocated() / 1e6)
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return round(int(line.split()[1]) * 1024 / 1e6)
        try:
            import resource
        except ImportError:  # Windows
            return None
        unit = 1 if sys.platform == "darwin" else 1024
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def _commit() -> str:
    """The git commit of the working copy, with "+" where files differ from it, or "unknown" outside a checkout."""

    def git(*arguments):
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def save(path: str | os.PathLike, rows: Sequence[dict], command: str | None = None) -> None:
    """Write rows with their provenance, in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    command = command or " ".join(["python -m dplearn.experiments", *sys.argv[1:]])
    text = json.dumps({"provenance": provenance(command), "rows": list(rows)}, indent=1) + "\n"
    write(path, text.encode())


def publish(path: str | os.PathLike, rows: Iterable[dict], command: str) -> None:
    """Write the rows of a study with keys as its record, one row a line, in one step.

    What made a row is kept once for all rows alike ("makers", to which a row's "made" is an index). Rows of choices
    lose their curves.
    """
    makers: list[dict] = []
    kept = []
    for row in rows:
        made = row.get("made")
        if isinstance(made, dict):
            if made not in makers:
                makers.append(made)
            row = row | {"made": makers.index(made)}
        kept.append(
            {name: value for name, value in row.items() if row["purpose"] != "choice" or name != "curves"}
        )
    head = json.dumps({"provenance": provenance(command), "makers": makers}, indent=1)[:-2]
    lines = ",\n".join(json.dumps(row) for row in kept)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, f'{head},\n "rows": [\n{lines}\n]}}\n'.encode())


def load(name: str) -> dict | None:
    """The record ``name`` that ships with the package: {"provenance": …, "rows": […]}; None where it was not run."""
    return read(FOLDER / f"{name}.json")


def read(path: Path) -> dict | None:
    """The record in a file; None where there is none.

    Raises
    ------
    ValueError : the file is something else; it would be lost if a record took its place.
    """
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
    except ValueError:  # neither text nor JSON
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("rows"), list):
        raise ValueError(f"{str(path)!r} is no record of a study, expected what `publish` has written")
    for row in record["rows"] if "makers" in record else ():
        if isinstance(row.get("made"), int):
            row["made"] = record["makers"][row["made"]]
    return record


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval over seeds (Student's t; at least 2 values).

    >>> mean, half = interval([0.8, 0.9])
    >>> round(mean, 2), round(half, 3)
    (0.85, 0.635)
    """
    from scipy.stats import t

    if len(values) < 2:
        raise ValueError(
            f"values={list(values)} has {len(values)} entries, expected at least 2 (one per seed)"
        )
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(half)


def headline(row: dict, split: str = "test") -> float:
    """The first metric of a row's split."""
    return next(iter(row["scores"][split].values()))


def log_likelihood(row: dict, split: str = "test") -> float:
    """Minus the cross-entropy of a row's split, in nats: like a score, more is better."""
    return -row["cross_entropy"][split]


def paired(
    rows: Iterable[dict],
    others: Iterable[dict],
    split: str = "test",
    value: Callable[[dict, str], float] = headline,
) -> list[float]:
    """Differences of the first metric (or another ``value``), rows minus others, at the seeds that both have, in the
    order of the seeds."""
    scores, baseline = ({row["seed"]: value(row, split) for row in some} for some in (rows, others))
    return [scores[seed] - baseline[seed] for seed in sorted(scores.keys() & baseline.keys())]


def by(rows: Iterable[dict], *keys: str) -> dict[tuple, list[dict]]:
    """Rows grouped by the values of ``keys``, in order of appearance."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups
