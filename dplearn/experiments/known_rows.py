"""Which rows a command reads (of the runs folder, of the published record), and whether they belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from dplearn.experiments import jobs, records
from dplearn.experiments.jobs import Job
from dplearn.experiments.parts import Study
from dplearn.experiments.store import Store


def store_of(options, one: Study) -> Store:
    """Where the runs of a study lie, beside those of the others."""
    return Store(Path(options.runs) / one.name, beside=options.runs)


def record_of(one: Study) -> Path:
    """Where the record of a study lies: those of our studies ship with the package, that of a file of one's own lies
    beside the file."""
    file = one.source.partition(" --scale ")[0]
    folder = Path(file).parent if file.endswith(".toml") else records.FOLDER
    return folder / f"{one.name}.json"


def _record(one: Study) -> dict:
    """The published record of a study, without rows where there is none."""
    return records.read(record_of(one)) or {"rows": []}


def published_rows(one: Study) -> dict[str, dict]:
    """The rows of a study's published record by key; a record of before the keys has none."""
    return {row["key"]: row for row in _record(one)["rows"] if "key" in row}


def rows_of(options, one: Study) -> dict[str, dict]:
    """The rows of a study by key: those of its runs, and of its published record."""
    return published_rows(one) | store_of(options, one).rows()


def labelled_rows(options, one: Study) -> list[dict]:
    """The rows of a study as tables read them; a record of before the keys is taken as it is."""
    rows = rows_of(options, one)
    if rows:
        return list(jobs.labelled(one, rows))
    return _record(one)["rows"]


def check_data(one: Study, rows: Iterable[Mapping]) -> None:
    """Raise ValueError where runs of one task read different data, or runs of one backbone different weights, as before
    and after a change of its files. Rows of before these had a name say nothing."""
    read: dict[tuple, set] = {}
    for row in rows:
        for of, what in (("task", "data"), ("backbone", "weights")):
            read.setdefault((of, row.get(of), what), set()).update({row[what]} if row.get(what) else ())
    for (of, name, what), sources in read.items():
        if len(sources) > 1:
            raise ValueError(
                f"{one.name}: runs of {of}={name!r} read different {what}, expected one of: "
                f"{'; '.join(sorted(sources))}. Another --runs folder keeps them apart"
            )


def check_files(one: Study, rows: Mapping[str, dict], known: Iterable[Job]) -> None:
    """Raise ValueError where files that ``known`` runs read cannot be read, or where those of them that are done have
    read other data or weights than there are now; what is generated, ships or lies on a hub stays."""
    from dplearn.experiments.execution import data_of, load_task, weights_of

    tasks: dict[str, str] = {}  # by label: one of each, whatever is drawn for a run
    data: dict[str, str] = {}
    weights: dict[str, str] = {}
    for job in known:
        row, label, backbone = rows.get(job.key), job.labels["task"], job.spec["backbone"]
        if "path=" in label:
            tasks.setdefault(label, job.spec["task"])
        if row is not None:
            data.setdefault(label, row.get("data", ""))
            weights.setdefault(backbone, row.get("weights", ""))
    for label, task in tasks.items():
        _check_same(one, f"task={task!r}", data_of(load_task(task)), data.get(label))
    for backbone, before in weights.items():
        _check_same(one, f"{backbone=}", weights_of(backbone), before)


def _check_same(one: Study, name: str, now: str | None, before: str | None) -> None:
    """Rows of before files had a hash say nothing, nor does what is in no folder."""
    if now and before and now != before:
        raise ValueError(
            f"{one.name}: {name} is now {now}, expected what the finished runs have read, {before}. "
            "Another --runs folder begins anew"
        )
