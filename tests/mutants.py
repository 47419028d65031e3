"""Mutation testing: break the package in small ways, one at a time, and count how often a test notices.

    python tests/mutants.py                         every module of the table in pyproject.toml, every mutant
    python tests/mutants.py choice length           these modules
    python tests/mutants.py --sample 40 --seed 0    at most 40 of each, drawn with this seed
    python tests/mutants.py --show                  the table of the record; nothing is run
    python tests/mutants.py --again --record        only what survived in the record, after a change of the tests

mutmut makes the mutants and runs, for each, the tests that reach the changed function, the quick ones first, out of the
files that pyproject.toml names for the module ([tool.mutants]). A mutant that survives is either a gap in the tests or no change
at all: ``tests/equivalent_mutants.toml`` lists the latter with the reason. Everything happens in ``_build/mutants``;
``--record`` stores what was run and found in ``tests/mutants.json``. Exit status 1: fewer than 92 % are killed, or a
survivor is not in the list.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD, EQUIVALENT = ROOT / "tests" / "mutants.json", ROOT / "tests" / "equivalent_mutants.toml"
GOAL = 0.92
# What mutmut says of a mutant: noticed by a test, or not. One that never ends counts as not noticed, until somebody has
# looked whether it is the mutant or the machine that hangs. Anything else (interrupted, out of memory) is no answer.
KILLED, ALIVE = ("killed",), ("survived", "no tests", "suspicious", "timeout")
# What the tests need besides the package and themselves.
BESIDE = ("dplearn", "tests", "README.md", "CITATION.cff", "LICENSE", "constraints.txt", "notebooks", "book")


def tested_by():
    """module -> its test files, from pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutants"]


def workplace(module, tests):
    """A folder of links to the project, with a pyproject.toml that tells mutmut which module and which tests."""
    folder = ROOT / "_build" / "mutants" / module
    folder.mkdir(parents=True, exist_ok=True)
    for name in BESIDE:
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    # (A list of strings reads alike in JSON and TOML.)
    chosen = {"only_mutate": [f"dplearn/{module}.py"], "pytest_add_cli_args_test_selection": tests}
    lines = ["[tool.mutmut]", *(f"{name} = {json.dumps(value)}" for name, value in chosen.items())]
    text = (ROOT / "pyproject.toml").read_text().replace("[tool.mutmut]", "\n".join(lines))
    (folder / "pyproject.toml").write_text(text)
    return folder


def names_of(module):
    """The names of all mutants of a module, in the order of its lines."""
    from mutmut.mutation.file_mutation import mutate_file_contents

    path = f"dplearn/{module}.py"
    return [
        f"dplearn.{module}.{name}"
        for name in mutate_file_contents(path, (ROOT / path).read_text()).mutant_names
    ]


def mutmut(folder, *arguments, **options):
    """Run a command of mutmut in a folder; the installed package must not hide the mutated one."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"} | options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments], cwd=folder, env=environment, **options
    )


def outcomes(folder, module, chosen):
    """{mutant: "killed", "survived", "no tests", ...} after a run."""
    from mutmut.stats import status_by_exit_code

    codes = json.loads((folder / "mutants" / "dplearn" / f"{module}.py.meta").read_text())["exit_code_by_key"]
    # mutmut has one word for a crash of the tests (-11), which is noticed, and for a process that was killed (-9).
    return {name: "killed" if codes[name] == -11 else status_by_exit_code[codes[name]] for name in chosen}


def change(folder, name):
    """(function, line before, line after) of a mutant, without indentation."""
    shown = mutmut(folder, "show", name, capture_output=True, text=True, check=True).stdout.splitlines()
    removed = [line[1:].strip() for line in shown if line.startswith("-") and not line.startswith("---")]
    added = [line[1:].strip() for line in shown if line.startswith("+") and not line.startswith("+++")]
    function = (
        name.rsplit(".", 1)[1].split("__mutmut_")[0].removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    )
    return function, "\n".join(removed), "\n".join(added)


def why_equivalent(module, function, after, known):
    """The reason for which a survivor changes nothing, or None."""
    return next(
        (row["why"] for row in known.get(module, []) if (row["function"], row["after"]) == (function, after)),
        None,
    )


def draw(every, sample, seed):
    """The mutants to test: all, or some of them."""
    return every if sample is None else random.Random(seed).sample(every, min(sample, len(every)))


def run(module, tests, chosen, jobs):
    """Make all mutants of one module and test the chosen ones; returns what the record says about them."""
    folder = workplace(module, tests)
    # mutmut knows from its last run which tests reach a function, and asks new tests alone: not those that have changed.
    (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    command = ["run", "--max-children", str(jobs), *chosen]
    with (folder / "log.txt").open("w") as log:
        done = mutmut(folder, *command, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"mutmut stopped; see {folder.relative_to(ROOT)}/log.txt")
    known, found = tomllib.loads(EQUIVALENT.read_text()), outcomes(folder, module, chosen)
    if unknown := {name: status for name, status in found.items() if status not in KILLED + ALIVE}:
        raise SystemExit(f"mutants that were not tested to the end count neither way: {unknown}")
    survivors = []
    for name in sorted(name for name, status in found.items() if status in ALIVE):
        function, before, after = change(folder, name)
        why = why_equivalent(module, function, after, known)
        survivors.append({"name": name, "function": function, "before": before, "after": after, "why": why})
    return {"run": len(chosen), "killed": len(chosen) - len(survivors), "survivors": survivors}


def run_again(module, tests, row, jobs):
    """A row of the record, after its survivors met the tests of today."""
    names = [each["name"] for each in row["survivors"]]
    left = run(module, tests, names, jobs)["survivors"] if names else []
    return row | {"killed": row["run"] - len(left), "survivors": left}


def lines_of(rows):
    """The table: a line per module, a line for all of them, and every survivor that nothing explains."""
    head = ("module", "mutants", "run", "killed", "survived", "explained", "killed %")
    yield "{:<14}{:>9}{:>7}{:>9}{:>10}{:>11}{:>10}".format(*head)
    total = {"mutants": 0, "run": 0, "killed": 0, "survivors": []}
    for module, row in rows.items():
        yield line_of(module, row)
        total = {name: value + row[name] for name, value in total.items()}
    yield line_of("all", total)
    for module, row in rows.items():
        for each in row["survivors"]:
            if each["why"] is None:
                yield f"\n{module}: {each['function']}\n- {each['before']}\n+ {each['after']}"


def line_of(name, row):
    survived, explained = len(row["survivors"]), sum(one["why"] is not None for one in row["survivors"])
    share = 100 * row["killed"] / max(row["run"], 1)
    return f"{name:<14}{row['mutants']:>9}{row['run']:>7}{row['killed']:>9}{survived:>10}{explained:>11}{share:>10.1f}"


def passes(rows):
    """Whether enough were killed, and every survivor has its reason."""
    killed, tried = (sum(row[name] for row in rows.values()) for name in ("killed", "run"))
    return killed >= GOAL * tried and all(one["why"] for row in rows.values() for one in row["survivors"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="modules of the table in pyproject.toml; default all")
    parser.add_argument("--sample", type=int, help="at most so many mutants of each module; default all")
    parser.add_argument("--again", action="store_true", help="only the survivors of the record")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="mutants that are tested at a time")
    parser.add_argument("--show", action="store_true", help="print the table of the record")
    parser.add_argument("--record", action="store_true", help="store the result in tests/mutants.json")
    given = parser.parse_args()
    table = tested_by()
    if unknown := set(given.modules) - set(table):
        parser.error(f"unknown modules {sorted(unknown)}, expected some of {list(table)}")
    rows = recorded() if given.show else {}
    for module in () if given.show else given.modules or table:
        if given.again:
            rows[module] = run_again(module, table[module], recorded()[module], given.jobs)
        else:
            every = names_of(module)
            rows[module] = about(given) | {"mutants": len(every)}
            rows[module] |= run(module, table[module], draw(every, given.sample, given.seed), given.jobs)
        print(line_of(module, rows[module]), flush=True)
        if given.record:
            content = recorded() | {module: rows[module]}
            RECORD.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(*lines_of(rows), sep="\n")
    sys.exit(0 if passes(rows) else 1)


def recorded():
    """module -> its row of the record."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def about(given):
    """With what a row was made."""
    packages = {name: version(name) for name in ("mutmut", "pytest", "torch", "transformers")}
    return {
        "sample": given.sample,
        "seed": None if given.sample is None else given.seed,
        "versions": packages,
    }


if __name__ == "__main__":
    main()
