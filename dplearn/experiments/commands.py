"""What each command of `python -m dplearn.experiments` does; it returns the exit status."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from dplearn.experiments import jobs, records, study
from dplearn.experiments.jobs import Job
from dplearn.experiments.store import Store
from dplearn.experiments.study import Study


def store_of(options, one: Study) -> Store:
    """Where the runs of a study lie."""
    return Store(Path(options.runs) / one.name)


def rows_of(options, one: Study) -> dict[str, dict]:
    """The rows of a study by key: those of its runs, and of its published record those that have keys."""
    published = records.load(one.name) or {"rows": []}
    return {row["key"]: row for row in published["rows"] if "key" in row} | store_of(options, one).rows()


def labelled_rows(options, one: Study) -> list[dict]:
    """The rows of a study as tables read them; a record of before the keys is taken as it is."""
    rows = rows_of(options, one)
    if rows:
        return list(jobs.labelled(one, rows))
    return (records.load(one.name) or {"rows": []})["rows"]


def list(options) -> int:  # noqa: A001  the name of the command
    """One line for each study."""
    for name in study.names():
        one = study.read(name)
        counts, done = jobs.count(one), len(store_of(options, one).rows())
        published = records.load(name)
        state = [f"{done} runs here"] if done else []
        state += [f"{len(published['rows'])} published"] if published else []
        print(
            f"{name:18} {counts['choice']:5} choices {counts['report']:5} reports  {', '.join(state) or 'not run'}"
        )
        print(f"  {one.title}")
    return 0


def show(options) -> int:
    """A study in words, then its file."""
    one = study.read(options.study)
    print(f"{one.name}: {one.title}")
    if one.exempt:
        print(f"not by the protocol: {one.exempt}")
    for cell in one.cells():
        print(f"\n{cell.title}")
        for method in one.methods_in(cell):
            axes = one.grid_of(cell, method) if method.kind != "best of" else {}
            tried = ", ".join(f"{option} in {values}" for option, values in axes.items())
            print(f"  {method.name}" + (f": {tried}" if tried else ""))
    counts = jobs.count(one)
    print(f"\n{counts['choice']} choice runs, {counts['report']} report runs\n\n{one.text}", end="")
    return 0


def plan(options) -> int:
    """How many runs are done and open, and the hours that the open ones take on one process."""
    one = study.read(options.study)
    rows, counts = rows_of(options, one), jobs.count(one)
    known = jobs.jobs(one, rows)
    done = [job for job in known if job.key in rows]
    total = counts["choice"] + counts["report"]
    print(
        f"{one.name}: {counts['choice']} choice runs and {counts['report']} report runs; {len(done)} of them done"
    )
    seconds = [rows[job.key].get("wall_seconds", rows[job.key].get("seconds", 0)) for job in done]
    if seconds:
        hours = statistics.mean(seconds) * (total - len(done)) / 3600
        print(
            f"about {hours:.1f} hours of one process are left ({statistics.mean(seconds):.1f} s a run so far)"
        )
    else:
        print("no run is done: `run --only METHOD/TASK/SEED --jobs 1` measures one")
    return 0


def _known(one: Study, options, rows) -> Iterable[Job]:
    known = jobs.jobs(one, rows)
    return [job for job in known if job.matches(options.only, options.condition, options.purpose)]


def run(options) -> int:
    """Run what is not done yet; 1 where runs failed."""
    from dplearn.experiments.runner import Runner
    from dplearn.experiments.workers import Cluster, Local

    one = study.read(options.study)
    given = {"bf16": True} if options.bf16 else {}
    if options.again:
        return _again(one, options, given)
    workers = Cluster(options.scheduler) if options.scheduler else Local(options.jobs)
    known: Callable = partial(_known, one, options)
    failed = Runner(known, store_of(options, one), workers, options=given).run()
    left = [job for job in known(store_of(options, one).rows()) if job not in failed]
    if not left and not failed:
        print(
            f"no run matches; those of a report are known when its choices are done: {one.name} has", end=" "
        )
        print(sorted({job.labels["method"] for job in jobs.jobs(one, {})}))
        return 1
    return 1 if failed else 0


def resume(options) -> int:
    """As `run`, for a study that was begun."""
    one = study.read(options.study)
    if not store_of(options, one).folder.is_dir():
        raise ValueError(
            f"{one.name} was not begun in {options.runs!r}, expected a folder {one.name} in it: `run` starts it"
        )
    return run(options)


def _again(one: Study, options, given: dict) -> int:
    """Run jobs in this process and print their scores beside the recorded ones; 1 where some differ."""
    from dplearn.experiments.execution import run_job

    rows = rows_of(options, one)
    known = [*_known(one, options, rows)]
    if not known:
        raise ValueError("no run matches --only, --condition and --purpose (a report needs its choices)")
    differ = 0
    for job in known:
        found = run_job(dict(job.spec), given)["scores"]
        recorded = rows.get(job.key, {}).get("scores")
        differ += recorded is not None and found != recorded
        word = (
            "not recorded"
            if recorded is None
            else "as recorded"
            if found == recorded
            else f"recorded {recorded}"
        )
        print(f"{job}: {found} ({word})")
    return int(differ > 0)


def publish(options) -> int:
    """Merge the runs into the record that ships with the package."""
    one = study.read(options.study)
    rows = [*jobs.labelled(one, rows_of(options, one))]
    if not rows:
        raise ValueError(f"{one.name} has no runs in {options.runs!r}")
    path = records.FOLDER / f"{one.name}.json"
    records.publish(path, rows, f"python -m dplearn.experiments run {one.name}")
    print(f"{path}: {len(rows)} rows")
    return 0
