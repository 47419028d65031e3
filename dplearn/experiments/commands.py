"""What each command of `python -m dplearn.experiments` does; it returns the exit status."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from dplearn.experiments import jobs, records, study, tables
from dplearn.experiments.jobs import Job
from dplearn.experiments.known_rows import (
    check_data,
    check_files,
    labelled_rows,
    published_rows,
    record_of,
    rows_of,
    store_of,
)
from dplearn.experiments.parts import Cell, Study
from dplearn.experiments.store import Store
from dplearn.experiments.verdicts import Verdict


def study_of(options) -> Study:
    """The study that is asked for, at the scale that is asked for."""
    return study.read(options.study, options.scale)


def _plain(options) -> str:
    """The words that ask for a study, without the folder of its file."""
    name = Path(options.study).name
    return name if options.scale is None else f"{name} --scale {options.scale}"


def _asked(options) -> Iterator[Study]:
    """The study that is asked for; all of them, at their own scale, if none is."""
    if options.study:
        yield study_of(options)
    elif options.scale:
        raise ValueError(f"scale={options.scale!r} without a study, expected the name of one")
    else:
        yield from map(study.read, study.names())


def list_studies(options) -> int:
    """One line for each study, and for each of its scales."""
    for name in study.names():
        one = study.read(name)
        for each in (one, *(study.read(name, scale) for scale in one.scales)):
            counts, done = jobs.count(each), len(store_of(options, each).rows())
            published = records.load(each.name)
            state = [f"{done} runs here"] if done else []
            state += [f"{len(published['rows'])} published"] if published else []
            print(
                f"{each.source:28} {counts['choice']:5} choices {counts['report']:5} reports  "
                f"{', '.join(state) or 'not run'}"
            )
            print(f"  {each.title}")
    print(
        "\nchoices: runs on validation that choose settings; reports: the runs of the tables.\n"
        "published: rows of the record that ships, also of grids that were widened and of settings that a file has no "
        "more.\n`plan STUDY` says how many of the file's own runs are among them."
    )
    return 0


def show(options) -> int:
    """A study in words, then its file."""
    one = study_of(options)
    print(f"{one.name}: {one.title}")
    if one.about:
        print(one.about)
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
    """How many runs are done, here or in the published record, and the hours that the others take on one process."""
    one = study_of(options)
    rows, counts, here = rows_of(options, one), jobs.count(one), store_of(options, one).rows()
    known = list(jobs.jobs(one, rows))
    done = [job for job in known if job.key in rows]
    published = [job for job in done if job.key not in here]
    # Where an axis was widened there are more runs than the file tells.
    total = max(counts["choice"] + counts["report"], len(known))
    more = total - counts["choice"] - counts["report"]
    print(
        f"{one.name}: {counts['choice']} choice runs and {counts['report']} report runs"
        + (f", {more} more where grids were widened" if more else "")
        + f"; {len(done)} of them done"
        + (f", {len(published)} in the published record alone" if published else "")
    )
    if published:
        print("`run --published` takes these as done, `run` does them again")
    seconds = [rows[job.key].get("wall_seconds", rows[job.key].get("seconds", 0)) for job in done]
    if seconds:
        hours = statistics.mean(seconds) * (total - len(done)) / 3600
        print(
            f"about {hours:.1f} hours of one process are left ({statistics.mean(seconds):.1f} s a run so far)"
        )
    else:
        print("no run is done: `run --only METHOD/TASK/SEED --jobs 1` measures one")
    _plan_costs(one, options.device)
    return 0


def _plan_costs(one: Study, device: str) -> None:
    """Hours by backbone and method on a device, memory and downloads, by the arithmetic of the runs."""
    from dplearn.experiments import costs

    rate, found = costs.RATES[device], costs.costs(one)
    print(
        f"\nby arithmetic, every input at its longest, at {rate / 1e12:g} TFLOP/s ({device}, an assumption):"
    )
    print(f"{'backbone':36} {'method':44} {'runs':>5} {'hours':>9} {'GB':>6}")
    for (backbone, method), cost in found.items():
        print(f"{backbone:36} {method:44} {cost.runs:5} {cost.hours(rate):9.2f} {cost.memory / 1e9:6.1f}")
    total = sum(found.values(), start=costs.Cost(0, 0.0, 0.0))
    print(f"{'all':36} {'':44} {total.runs:5} {total.hours(rate):9.2f} {total.memory / 1e9:6.1f}")
    print(f"weights to fetch: {costs.disk(one) / 1e9:.1f} GB in float32; data sets: as their cards say")


def _known(one: Study, options, rows) -> Iterable[Job]:
    known = jobs.jobs(one, rows)
    return [
        job
        for job in known
        if job.matches(options.only, options.condition, options.purpose, options.backbone)
    ]


def run(options) -> int:
    """Run what is not done yet; 1 where runs failed."""
    from dplearn.experiments.runner import Runner
    from dplearn.experiments.workers import Cluster, Local

    one = study_of(options)
    _check_trial(options)
    given = {"bf16": True} if options.bf16 else {}
    if options.again:
        return _again(one, options, given)
    workers = Cluster(options.scheduler) if options.scheduler else Local(options.jobs)
    if options.trial is not None:
        return _try(one, options, given, workers)
    known: Callable = partial(_known, one, options)
    store = store_of(options, one)
    check_files(one, store.rows(), known(store.rows()))
    if options.published:
        taken = [store.add(key, row) for key, row in published_rows(one).items()]
        print(f"{sum(taken)} runs are taken from the published record")
    failed = Runner(known, store, workers, options=given).run()
    left = [job for job in known(store.rows()) if job not in failed]
    if not left and not failed:
        print(
            f"no run matches; those of a report are known when its choices are done: {one.name} has", end=" "
        )
        print(sorted({job.labels["method"] for job in jobs.jobs(one, {})}))
        return 1
    return 1 if failed else 0


def _try(one: Study, options, given: dict, workers) -> int:
    """Short runs of each method and in each table, on files and models as the study wants them; 1 where some failed."""
    from dplearn.experiments.runner import Runner

    def wanted(job: Job) -> bool:
        return job.matches(options.only, options.condition, None, options.backbone)

    tried = jobs.trials(one, wanted)
    with tempfile.TemporaryDirectory() as folder:
        given = given | {"steps": options.trial}
        failed = Runner(lambda rows: tried, Store(folder), workers, options=given).run()
    print(f"{len(tried) - len(failed)} of {len(tried)} runs end")
    return 1 if failed or not tried else 0


def _check_trial(options) -> None:
    """Raise ValueError where a trial is asked for together with what it would pass over."""
    if options.trial is None:
        return
    if options.trial < 1:
        raise ValueError(f"--try {options.trial}, expected at least 1 step")
    for name in ("again", "published", "purpose"):
        if getattr(options, name):
            raise ValueError(f"--{name} has no effect with --try, expected one of them")


def resume(options) -> int:
    """As `run`, for a study that was begun."""
    one = study_of(options)
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
        scores = run_job(dict(job.spec), given)["scores"]
        recorded = rows.get(job.key, {}).get("scores")
        differ += recorded is not None and scores != recorded
        word = (
            "not recorded"
            if recorded is None
            else "as recorded"
            if scores == recorded
            else f"recorded {recorded}"
        )
        print(f"{job}: {scores} ({word})")
    return int(differ > 0)


def _cells(options, one: Study) -> list[tuple[Cell, list[dict]]]:
    """The tables of a study with their rows; cells without a reported run are left out."""
    rows = labelled_rows(options, one)
    check_data(one, rows)
    found = [(cell, [row for row in rows if cell.holds(row)]) for cell in one.cells()]
    return [(cell, own) for cell, own in found if any(row["purpose"] == "report" for row in own)]


def _say_absent(one: Study, cells: Sequence[tuple[Cell, list[dict]]]) -> None:
    """A first line on what is left out: tables and methods of the study without a reported run."""
    there = {cell.title: tables.reports(rows, cell.task) for cell, rows in cells}
    absent = [cell.title for cell in one.cells() if cell.title not in there]
    for cell, _ in cells:
        names = [method.name for method in one.methods_in(cell) if method.name not in there[cell.title]]
        absent += [f"{', '.join(names)} in {cell.title}"] if names else []
    if absent:
        print(f"Not run, so left out: {'; '.join(absent)}.\n")


def split_of(one: Study) -> str:
    """The split that a study is read on: "test", or the first of its own where it has none."""
    return "test" if "test" in one.splits else one.splits[0]


def _verdicts(one: Study, cell: Cell, rows: list[dict], split: str | None = None) -> dict:
    return tables.judged(rows, cell.task, one.pairs(cell), one.verdict, split or split_of(one))


def _head(one: Study) -> None:
    print(f"# {one.name}: {one.title}\n")
    if one.exempt:
        print(f"Not by the protocol: {one.exempt}.\n")


def table(options) -> int:
    """The tables of a study, in Markdown."""
    one = study_of(options)
    split = options.split or split_of(one)
    _head(one)
    cells = _cells(options, one)
    _say_absent(one, cells)
    known = dict.fromkeys(name for _, rows in cells for row in rows for name in row["scores"])
    if cells and split not in known:
        raise ValueError(f"split={split!r}, expected one that was scored, of {list(known)}")
    for cell, rows in cells:
        # A method may have nothing to say on a split, as a linear probe on classes that it never saw.
        rows = [row for row in rows if row["purpose"] == "choice" or split in row["scores"]]
        verdicts = _verdicts(one, cell, rows, split)
        names = tables.reports(rows, cell.task)
        baseline = one.baseline if one.baseline in names else None
        lines = tables.lines_against(rows, cell.task, baseline, split)
        print(f"## {cell.title}\n\n{tables.full(lines, verdicts, baseline)}\n")
        print("Again, the first seed of each:\n")
        print("\n".join(f"    {line}" for line in _again_lines(one, names)), end="\n\n")
    print(
        f"Intervals: paired by seed, 95 %, by Holm within a table; margin {100 * one.verdict.margin:g} points."
    )
    return 0


def verdict(options) -> int:
    """What the runs allow to say, with the evidence of learning."""
    for one in _asked(options):
        _head(one)
        cells = _cells(options, one)
        _say_absent(one, cells)
        for cell, rows in cells:
            print(f"{cell.title} (margin {100 * one.verdict.margin:g} points)")
            groups = tables.reports(rows, cell.task)
            for (baseline, method), judged in _verdicts(one, cell, rows).items():
                print(f"  {method} against {baseline}: {_in_words(judged)}")
                for line in _evidence(method, groups.get(method, [])):
                    print(f"    {line}")
                for line in _again_lines(one, {method: groups.get(method, [])}):
                    print(f"    {line}")
            print()
    return 0


def _again_lines(one: Study, groups: Mapping[str, list[dict]]) -> Iterable[str]:
    """The command that runs the first report of each method again; rows of before the keys have none."""
    for group in groups.values():
        row = next((row for row in group if "condition" in row and "key" in row), None)
        if row is not None:
            # The best of a list is one of the list.
            labels = row | {"method": row.get("chosen", {}).get("method", row["method"])}
            backbone = row.get("backbone") if len(one.backbones) > 1 else None
            yield jobs.command_again(one.source, labels, row["seed"], "report", backbone)


def _in_words(said: Verdict) -> str:
    """The sentence of a verdict with its numbers."""
    numbers = said.difference
    if numbers is None or numbers.seeds < 2:
        return said.sentence()
    half = f"{100 * numbers.half:.1f}"
    return f"{said.sentence()} ({100 * numbers.mean:+.1f} ± {half} points, {numbers.seeds} seeds; detectable {half})"


def _evidence(method: str, group: list[dict]) -> Iterable[str]:
    """Lines on what became of the decisions of a method."""
    for name, evidence in tables.evidence_over(group).items():
        start = "?" if evidence["start"] is None else f"{evidence['start']:.2f}"
        moved = "?" if evidence["moved"] is None else f"{evidence['moved']:.2f}"
        cost = "" if evidence["cost"] is None else f", dealt to other inputs {evidence['cost']:+.3f} nats"
        used = f"{evidence['used']:.1f} of {evidence['options']} options used, {100 * evidence['share']:.0f} % at one"
        agree = f"{evidence['agree']} of {len(group)} runs agree on it"
        yield f"{name}: entropy {start} → {evidence['end']:.2f}, moved {moved}, {used}, {agree}{cost}"


def figure(options) -> int:
    """Draw the curves of each table, and the scores over the conditions."""
    from dplearn.experiments import figures

    one = study_of(options)
    cells = _cells(options, one)
    _say_absent(one, cells)
    for path in figures.draw(one, cells, Path(options.out), options.format):
        print(path)
    return 0


def predict(options) -> int:
    """Whether the splits of trained fixed prompts say beforehand what a learned position gains."""
    from dplearn.experiments import figures, predictions

    path = Path(options.out) if options.out else None
    if path is not None:
        figures.form_of(path)  # before the work
    points = []
    for one in _asked(options):
        if one.headroom and one.baseline:
            points += predictions.points(one.name, _cells(options, one), one.baseline)
    if not points:
        raise ValueError(
            "no study has runs with headroom, expected a study with `headroom = true` that was run"
        )
    print(predictions.markdown(points))
    trained = [point for point in points if point.trained]
    for words, some in (("all {} points", points), ("the {} points with trained prompts", trained)):
        for probe, (rank, p) in predictions.correlations(some).items():
            over = words.format(len(some))
            print(f"\nrank correlation of {probe} and gain over {over}: {rank:+.2f} (p = {p:.2g})")
    if path is not None:
        print(f"\n{figures.save(figures.predicted(points), path)}")
    return 0


def publish(options) -> int:
    """Merge the runs into the record of the study: of ours, the one that ships with the package."""
    one = study_of(options)
    rows = [*jobs.labelled(one, rows_of(options, one))]
    if not rows:
        raise ValueError(f"{one.name} has no runs in {options.runs!r}")
    path = record_of(one)
    records.publish(path, rows, f"python -m dplearn.experiments run {_plain(options)}")
    print(f"{path}: {len(rows)} rows")
    return 0


COMMANDS: dict[str, Callable] = {
    "list": list_studies, "show": show, "plan": plan, "run": run, "resume": resume, "table": table,
    "figure": figure, "verdict": verdict, "predict": predict, "publish": publish,
}  # fmt: skip
