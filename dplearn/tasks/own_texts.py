"""Texts of your own as a task: files of rows, a template over their columns, and a word for each label.

    text_folder("reviews", template="review: {text} It is", words=("bad", "good"))       train.csv, divided here
    load("texts/folder", path="reviews", template="review: {text} It is", words="bad,good")

The task is a :class:`~dplearn.tasks.Task` like all others. The second form is for studies, whose tasks are names:
"texts/folder?path=reviews&template=review: {text} It is&words=bad,good" (a "+" or "&" in it stands as %2B or %26).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dplearn.checks import is_whole, shown
from dplearn.tasks.base import Task
from dplearn.tasks.encoding import template_fields
from dplearn.tasks.image_sources import ALIASES
from dplearn.tasks.images import divide
from dplearn.tasks.own_images import shares_of
from dplearn.tasks.row_files import SUFFIXES, rows_of, split_files

NAMES = ("texts/folder",)


def text_folder(
    path: str | Path,
    *,
    template: str,
    words: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    column: str = "label",
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    metric: str = "accuracy",
    cuttable: Sequence[str] = (),
    pair: Sequence[str] = (),
    name: str | None = None,
) -> Task:
    """Texts in files as a task.

    Parameters
    ----------
    path : a folder with train.jsonl, train.csv, train.tsv or train.parquet, and such files for validation (or val,
        valid, dev) and test where there are any; or one file, which is divided.
    template : a format string over the columns, such as "premise: {premise} hypothesis: {hypothesis}".
    words : what a model answers for each label, in label order; None: the labels' own names.
    labels : the labels' names in order; None: those that the files have, in alphabetical order, numbers by size. Where
        they are given, the files may hold their numbers, from 0, instead.
    column : which one the label stands in.
    validation : the share of each label's training texts that becomes this split where there is no file of it, rounded;
        0: the task has no such split.
    test : the same for the test split.
    seed : of that division.
    metric : a key of `dplearn.tasks.metrics.METRICS`. Those of groups want a column "group".
    cuttable : columns that may be shortened where a text is too long; (): any.
    pair : for classifiers, see :class:`~dplearn.tasks.Task`.
    name : of the task; None: that of the folder or file.

    Raises
    ------
    FileNotFoundError : there is nothing at the path, or no file of training texts in the folder.
    ValueError : a line that is no row, a column that is missing, a label that is none, shares that leave nothing to
        train on.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "reviews.csv"
    >>> _ = file.write_text("text,label\\n" + "what a film,good\\nwhat a mess,bad\\n" * 5)
    >>> task = text_folder(file, template="review: {text} It is")
    >>> task
    Task('own/reviews', 2 labels, train 6, validation 2, test 2 examples, metric 'accuracy')
    >>> task.words, task.text(task.examples("test")[0])
    (('bad', 'good'), 'review: what a mess It is')
    """
    shares = shares_of(validation, test, seed)
    source = Path(path)
    read = {split: list(rows_of(files)) for split, files in _files(source).items()}
    columns = [*template_fields(template), column]
    for split, rows in read.items():
        for number, row in enumerate(rows, start=1):
            _check_row(row, columns, f"{split}, row {number}")
    known = _labels(read, column) if labels is None else tuple(labels)
    splits = {
        split: [_example(row, columns, known, labels is not None, split, n) for n, row in enumerate(rows, 1)]
        for split, rows in read.items()
    }
    missing = {split: share for split, share in shares.items() if share and split not in splits}
    splits = _divided(splits, missing, seed, str(path))
    note = ", ".join(f"{split} {share:.0%}" for split, share in missing.items())
    note = f"{note} of train by label, seed {seed}" if missing else "splits of the files"
    digest = hashlib.sha256(json.dumps([known, splits], sort_keys=True).encode()).hexdigest()[:16]
    return Task(
        name=f"own/{source.stem}" if name is None else name,
        labels=known,
        words=known if words is None else tuple(words),
        template=template,
        splits=splits,
        metric=metric,
        source=f"own texts, sha256 {digest}, {note}",
        cuttable=tuple(cuttable),
        pair=tuple(pair),
    )


def load(
    name: str,
    path: str | Path | None = None,
    template: str | None = None,
    words: Sequence[str] | str | None = None,
    labels: Sequence[str] | str | None = None,
    cuttable: Sequence[str] | str = (),
    column: str = "label",
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    metric: str = "accuracy",
) -> Task:
    """:func:`text_folder` by name; what is several words may be one string with commas between them."""
    if name not in NAMES:
        raise ValueError(f"name={name!r}: expected one of {list(NAMES)}")
    if path is None or template is None:
        raise ValueError(f"{name}: path={path!r} and template={template!r}, expected both")
    return text_folder(
        path,
        template=template,
        words=_listed(words),
        labels=_listed(labels),
        cuttable=_listed(cuttable) or (),
        column=column,
        validation=validation,
        test=test,
        seed=seed,
        metric=metric,
    )


def _listed(words: Sequence[str] | str | None) -> Sequence[str] | None:
    return [word.strip() for word in words.split(",")] if isinstance(words, str) else words


def _files(path: Path) -> dict[str, list[Path]]:
    """The files of each split that has some."""
    if path.is_file():
        return {"train": [path]}
    if not path.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: expected a folder with files of texts, or such a file")
    found = {split: split_files(path, stems) for split, stems in ALIASES.items()}
    if not found["train"]:
        raise FileNotFoundError(
            f"path={str(path)!r}: no training texts, expected {' or '.join('train' + suffix for suffix in SUFFIXES)}"
        )
    return {split: files for split, files in found.items() if files}


def _check_row(row: Mapping, columns: Sequence[str], where: str) -> None:
    for name in columns:
        if row.get(name) is None:
            raise ValueError(f"{where}: no {name!r}, expected columns {columns}, found {list(row)}")


def _labels(read: Mapping[str, Sequence[Mapping]], column: str) -> tuple[str, ...]:
    """The labels that there are, in order."""
    found = {str(row[column]) for rows in read.values() for row in rows}
    return tuple(sorted(found, key=lambda label: (int(label) if label.isdecimal() else 0, label)))


def _example(
    row: Mapping, columns: Sequence[str], known: tuple[str, ...], numbered: bool, split: str, number: int
) -> dict:
    """One example of a task; ``numbered``: a label may be a number of a known one."""
    value = row[columns[-1]]
    label = known.index(str(value)) if str(value) in known else None
    if (
        label is None
        and numbered
        and (is_whole(value, 0) or str(value).isdecimal())
        and int(value) < len(known)
    ):
        label = int(value)
    if label is None:
        raise ValueError(
            f"{split}, row {number}: {columns[-1]}={shown(value)}, expected one of {shown(list(known))}"
        )
    group = {"group": row["group"]} if "group" in row else {}
    return {**{name: row[name] for name in columns[:-1]}, "label": label, **group}


def _divided(splits: dict[str, list], missing: Mapping[str, float], seed: int, path: str) -> dict[str, list]:
    """The splits, with those that have no file divided off the training texts, in the usual order."""
    if missing:
        train = splits["train"]
        parts = divide([example["label"] for example in train], missing, "train", seed)
        empty = [split for split in (*missing, "train") if not parts[split]]
        if empty:
            raise ValueError(
                f"path={path!r}: {', '.join(f'{split}={share}' for split, share in missing.items())} leaves no text "
                f"for {empty[0]}: expected more texts of each label, other shares, or 0 for a task without that split"
            )
        splits = splits | {split: [train[row] for row in rows] for split, rows in parts.items()}
    return {split: splits[split] for split in ALIASES if split in splits}
