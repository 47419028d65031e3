"""The gate table: is a backbone one on which prompt tuning means something?

Five gates (see the model card): 1 right with an instruction, 2 at chance without, 3 prompts reach the skill and full
fine-tuning is no worse, 4 neither words alone nor random layers do, 5 a real-text task gains from pretraining.
What llama-mini was meant to learn for certain, the equality tasks, has two gates of its own: E1 and E2.
The tuning runs are recorded by `python -m dplearn.experiments run gates` (llama-mini: `gates-llama`); zero-shot
accuracy is computed on the spot, or recorded by `python -m dplearn.zoo check NAME --record`.
"""

import json
from pathlib import Path

from ..experiments.records import by, headline, interval, paired
from ..experiments.records import load as load_record
from ..files import write
from . import folder_of, load

FAMILIES = ("world/boolq", "world/multirc", "world/rte", "world/cb", "world/wic")
REAL = ("docs/library", "docs/signature", "docs/next")
TWO_WAY = tuple(name for name in FAMILIES if name != "world/cb")
EQUALITY = ("world/color", "world/owner")
PROMPT, RANDOM, FULL, WORDS = "prefix", "prefix, random layers", "full fine-tuning", "bag of words"
SECONDS = 180
STUDIES = {"t5-mini": "gates", "llama-mini": "gates-llama"}  # the study that records a backbone's tuning runs
SPLITS = ("test", "test_entities", "test_wordings")


def recorded(name: str) -> dict | None:
    """The recorded tuning runs: gates.json beside the weights, else the study's record; None if there is none."""
    path = folder_of(name) / "gates.json"
    return json.loads(path.read_text()) if path.is_file() else load_record(STUDIES[name])


def spread(values) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval; one value has no interval (0)."""
    return interval(values) if len(values) > 1 else (values[0], 0.0)


def means(rows) -> dict[tuple[str, str], tuple[float, float, int]]:
    """(task, method) -> (mean of the headline on test, half-width, runs)."""
    by_cell = {}
    for key, group in by([row for row in rows if row["purpose"] == "report"], "task", "method").items():
        scores = [headline(row) for row in group]
        by_cell[key] = (*spread(scores), len(scores))
    return by_cell


def difference(rows, task) -> tuple[float, float] | None:
    """Prompt minus random layers over the seeds that both have: (mean, half-width); None below two seeds."""
    grouped = by([row for row in rows if row["purpose"] == "report"], "task", "method")
    gains = paired(grouped.get((task, PROMPT), []), grouped.get((task, RANDOM), []))
    return interval(gains) if len(gains) > 1 else None


def judge_zero_shot(rows) -> list[tuple[str, bool | None, str]]:
    """Gates 1 and 2 from zero-shot rows: (gate, holds, why)."""
    test = {row["task"]: row for row in rows if row["split"] == "test" and row["task"] in FAMILIES}
    good = [name for name, row in test.items() if row["instructed"] >= 0.9]
    far = [name for name, row in test.items() if abs(row["bare"] - row["chance"]) > 0.05]
    return [
        ("1 with the instruction at least .90 on four of five families", len(good) >= 4, f"{len(good)} of 5"),
        (
            "2 without an instruction within .05 of chance",
            not far,
            "all within" if not far else f"not: {', '.join(far)}",
        ),
    ]


def judge_runs(rows) -> list[tuple[str, bool | None, str]]:
    """Gates 3, 4 and 5 from recorded tuning runs; a gate holds (True), fails (False) or was not run (None)."""
    by_cell = means(rows)

    def at(task, method, default):
        return by_cell.get((task, method), (default, 0.0, 0))[0]

    reached = [task for task in FAMILIES if at(task, PROMPT, 0) >= 0.8]
    worse = [t for t in reached if at(t, FULL, 0) + by_cell.get((t, FULL), (0, 0.0))[1] < at(t, PROMPT, 0)]
    fair = [t for t in reached if t in TWO_WAY and max(at(t, WORDS, 1), at(t, RANDOM, 1)) <= 0.6]
    slow = max((row.get("seconds", 0) for row in rows if row["method"] == PROMPT), default=0)
    gains = {task: difference(rows, task) for task in REAL}
    real = [task for task, gain in gains.items() if gain and gain[0] > gain[1]]
    said = "; ".join(f"{task} {gain[0]:+.3f} ± {gain[1]:.3f}" for task, gain in gains.items() if gain)
    ran = any(task in FAMILIES and method == PROMPT for task, method in by_cell)
    return [
        ("3 prompts (l=20) at least .80 on three families, full fine-tuning no worse",
         len(reached) >= 3 and not worse if ran else None,
         (f"{len(reached)} reached" if ran else "no runs")
         + (f", full fine-tuning worse on {', '.join(worse)}" if worse else "")),
        ("4 words alone and random layers at most .60 on two of these", len(fair) >= 2 if ran else None,
         ", ".join(fair) or ("none" if ran else "no runs")),
        (f"4b one run in at most {SECONDS} s", 0 < slow <= SECONDS, f"slowest {slow:.0f} s"),
        ("5 on a real-text task prompts beat random layers by more than the interval", bool(real) if said else None,
         said or "no runs"),
    ]  # fmt: skip


def judge_equality(zero, rows) -> list[tuple[str, bool | None, str]]:
    """Gates of the equality tasks, from zero-shot rows and recorded tuning runs."""
    shown = {row["task"]: row for row in zero if row["split"] == "test" and row["task"] in EQUALITY}
    low = [task for task, row in shown.items() if row["instructed"] < 0.9]
    far = [task for task, row in shown.items() if abs(row["bare"] - row["chance"]) > 0.05]
    wrong = [f"below .90: {task}" for task in low] + [f"not at chance without: {task}" for task in far]
    by_cell = means(rows)
    found = {task: difference(rows, task) for task in EQUALITY}
    gains = {task: gain for task, gain in found.items() if gain}
    held = [task for task, gain in gains.items() if by_cell[task, PROMPT][0] >= 0.8 and gain[0] > gain[1]]
    said = "; ".join(f"{task} {gain[0]:+.3f} ± {gain[1]:.3f}" for task, gain in gains.items())
    return [
        ("E1 the equality tasks with the instruction at least .90, without within .05 of chance", not wrong,
         "; ".join(wrong) or "both"),
        ("E2 a prompt at least .80 on those that were run, above random layers by more than the interval",
         len(held) == len(gains) if gains else None, said or "no runs"),
    ]  # fmt: skip


def measure(name: str, splits=("test",)) -> list[dict]:
    """Zero-shot rows of a backbone, computed now, on the tasks whose instructions it was pretrained with."""
    from .evaluation import SKILLS, zero_shot

    model, tokenizer = load(name)
    asked = [task for task in SKILLS if model.config.model_type == "t5" or task.startswith("world/")]
    return zero_shot(model, tokenizer, asked, splits)


def record(name: str) -> Path:
    """Computes the zero-shot rows of all splits and writes them beside the weights; returns the file."""
    path = folder_of(name) / "zero_shot.json"
    write(path, (json.dumps(measure(name, SPLITS), indent=1) + "\n").encode())
    return path


def zero_shot_rows(name: str, run: bool) -> list[dict]:
    """Zero-shot accuracy, computed now or read from zero_shot.json."""
    if run:
        return measure(name)
    path = folder_of(name) / "zero_shot.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run the check without --quick")
    return json.loads(path.read_text())


def report(name: str, run: bool = True) -> str:
    """The gate table and verdicts as text."""
    zero = zero_shot_rows(name, run)
    lines = [f"{'task':16} {'split':14} {'instructed':>10} {'bare':>6} {'chance':>6}"]
    for row in zero:
        lines.append(
            f"{row['task']:16} {row['split']:14} {row['instructed']:10.3f} {row['bare']:6.3f} {row['chance']:6.3f}"
        )
    verdicts, saved = judge_zero_shot(zero), recorded(name)
    rows = [row for row in saved["rows"] if (row.get("backbone") or name) == name] if saved else []
    if rows:
        lines += [
            "",
            f"{'task':16} {'method':24} {'mean':>6} {'±':>6} {'runs':>4}   (test split, 95 % interval over seeds)",
        ]
        for (task, method), (value, half, runs) in sorted(means(rows).items()):
            lines.append(f"{task:16} {method:24} {value:6.3f} {half:6.3f} {runs:4d}")
    if any(row["method"] == PROMPT for row in rows):
        verdicts += judge_runs(rows)
    else:
        lines += [
            "",
            f"gates 3 to 5 are open: tuning runs are not recorded (python -m dplearn.experiments run {STUDIES[name]})",
        ]
    if name == "llama-mini":
        verdicts += judge_equality(zero, rows)
    said = {True: "holds ", False: "FAILS ", None: "OPEN  "}
    lines += [""] + [f"{said[holds]} gate {gate}: {why}" for gate, holds, why in verdicts]
    return "\n".join(lines)
