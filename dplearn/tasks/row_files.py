"""Rows of a table in files: one JSON object per line, CSV, TSV or parquet, read so that errors name the line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")


def split_files(folder: Path, stems: Sequence[str], suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """One split's files: train.jsonl, train.parquet or, as on the hub, train-00000-of-00001.parquet; [] if none."""
    for stem in stems:
        patterns = [f"{stem}{suffix}" for suffix in suffixes]
        for pattern in (*patterns, f"{stem}-*.parquet"):
            files = sorted(folder.glob(pattern))
            if files:
                return files
    return []


def rows_of(files: Sequence[Path], cache_dir: str | Path | None = None) -> Any:
    """The rows of files of one kind, in order: a list of dicts, or for parquet a table of `datasets`.

    Raises
    ------
    ValueError : a file of another kind; a line that is no row, or no text in UTF-8.
    """
    suffix = files[0].suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{files[0].name}: expected a file that ends in one of {list(SUFFIXES)}")
    if suffix != ".parquet":
        read = _objects if suffix == ".jsonl" else _cells
        return [row for file in files for row in read(file)]
    import datasets

    return datasets.load_dataset(
        "parquet",
        data_files=[str(file) for file in files],
        split="train",  # what `datasets` calls a single list of files
        cache_dir=cache_dir and str(cache_dir),
    )


def _lines(file: Path) -> Iterator[str]:
    """The lines of a file. A mark at its head, as some editors write it, is no part of the text."""
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        for number, line in enumerate(lines, start=1):
            if any("\udc80" <= letter <= "\udcff" for letter in line):
                raise ValueError(
                    f"{file.name} line {number}: expected text in UTF-8, found bytes that are none"
                )
            yield line


def _objects(file: Path) -> Iterator[dict]:
    """One object per line; read here rather than with `datasets`, to name the line that is wrong."""
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file.name} line {number}: expected one JSON object, {error}") from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{file.name} line {number}: expected one JSON object, found {line.strip()[:40]!r}"
            )
        yield row


def _cells(file: Path) -> Iterator[dict]:
    """The rows of a table with a head, separated by commas, or by tabs where the name ends in .tsv."""
    table = csv.DictReader(_lines(file), delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
    try:
        for row in table:
            head = list(table.fieldnames or ())
            if None in row or None in row.values():
                count = sum(value is not None for name, value in row.items() if name is not None)
                count += len(row.get(None) or ())
                raise ValueError(
                    f"{file.name} line {table.line_num}: {count} cells, expected {len(head)}, one for each of {head}"
                )
            yield row
    except csv.Error as error:
        raise ValueError(
            f"{file.name} after line {table.line_num}: expected a row of cells, {error}"
        ) from None
