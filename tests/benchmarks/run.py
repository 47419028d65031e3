"""The benchmarks: python tests/benchmarks/run.py [--quick] [--only insertion,steps] [--out FILE.json]

Prints every figure of goals.py with its goal and whether it holds. A full run writes them, group by group and with
their provenance, to the record that the book shows; the groups that it does not run keep their rows there. A quick
run has small shapes and few pairs, so its verdicts say little: it writes only where --out tells it to.
Pytest does not run this; `make test` does not need it.
"""

import argparse
import json
import os
import time
import warnings
from importlib import import_module, metadata
from pathlib import Path

from goals import GROUPS
from measure import Report

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all models are random ones: nothing is fetched
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler of memory would print at every start


def parse(arguments=None) -> argparse.Namespace:
    """The options of the command line; ``only`` becomes a list of groups."""
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__.split("\n\n")[1])
    parser.add_argument(
        "--quick", action="store_true", help="small shapes, few pairs: see that everything runs"
    )
    parser.add_argument("--only", help=f"some of the groups, with commas between: {','.join(GROUPS)}")
    parser.add_argument(
        "--estimators", action="store_true", help="the estimators alone, as --only estimators"
    )
    parser.add_argument("--pairs", type=int, help="pairs of runs per ratio (default 11; 3 if quick)")
    parser.add_argument("--out", type=Path, help="the record to write (default: the package's, not if quick)")
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else []
    names += ["estimators"] * options.estimators
    for name in names:
        if name not in GROUPS:
            parser.error(f"--only {name!r} is unknown, expected some of {', '.join(GROUPS)}")
    options.only = [name for name in GROUPS if name in names or not names]
    if options.pairs is None:
        options.pairs = 3 if options.quick else 11
    if options.pairs < 1:
        parser.error(f"--pairs {options.pairs} is not valid, expected at least 1 (9 for a verdict)")
    return options


def command(options: argparse.Namespace, group: str) -> str:
    """The command that measures one group again; where its record was written does not matter."""
    parts = ["python tests/benchmarks/run.py", "--quick" * options.quick, f"--only {group}"]
    return " ".join([part for part in parts if part] + [f"--pairs {options.pairs}"])


def provenance(options: argparse.Namespace, group: str) -> dict:
    """Who made the figures of a group, with what decides about speed."""
    import torch

    from dplearn.experiments import records

    blas = "MKL" if torch.backends.mkl.is_available() else "no MKL"
    # Said here, since records.provenance names a GPU where there is one: these figures are the CPU's.
    device = f"CPU, {torch.backends.cpu.get_cpu_capability()}, {blas}, {torch.get_num_threads()} thread"
    return records.provenance(command(options, group)) | {"device": device, "peft": _version("peft")}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def main(arguments=None) -> None:
    options = parse(arguments)
    import torch

    from dplearn.experiments import records

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft uses an old name
    out = options.out or (None if options.quick else records.FOLDER / "benchmarks.json")
    kept = json.loads(out.read_text())["rows"] if out and out.is_file() else []
    rows = {row["group"]: row for row in kept if row["group"] in (*GROUPS, "gpu")}
    missed = []
    for group in options.only:
        print(f"\n== {GROUPS[group].title}: {command(options, group)}")
        torch.manual_seed(0)
        report, start = Report(group, options.quick), time.perf_counter()
        import_module(GROUPS[group].module).measure(report, options.quick, options.pairs)
        report.check_complete()
        missed += report.missed()
        rows[group] = {
            "group": group,
            "quick": options.quick,
            "seconds": round(time.perf_counter() - start, 1),
            "provenance": provenance(options, group),
            "figures": report.figures,
        }
        print(f"{rows[group]['seconds']:.0f} s")
        if out:  # after every group: a run that is stopped keeps what it has
            ordered = [rows[name] for name in (*GROUPS, "gpu") if name in rows]
            records.save(out, ordered, command(options, ",".join(options.only)))
    print("\nall goals hold" if not missed else "\nmissed:\n  " + "\n  ".join(missed))
    if options.quick:
        print("quick: these shapes are not those of the goals")


if __name__ == "__main__":
    main()
