"""The rows of SuperGLUE: from the hub or from local files, and as examples of a task."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dplearn.checks import is_whole
from dplearn.tasks.encoding import template_fields
from dplearn.tasks.row_files import rows_of, split_files

HUB = "aps/super_glue"  # SuperGLUE's repository; "super_glue" is its old name
FILES = {"train": ("train",), "validation": ("val", "validation")}  # split -> how its local files are called


def from_hub(key: str, revision: str, cache_dir: str | Path | None) -> Any:
    """A `DatasetDict` of the hub's repository."""
    import datasets

    try:
        return datasets.load_dataset(HUB, key, revision=revision, cache_dir=cache_dir and str(cache_dir))
    except Exception as error:  # the hub client, `datasets` and the network each raise their own kinds
        raise ConnectionError(
            f"SuperGLUE {key!r} could not be loaded from the hub repository {HUB!r}, revision {revision!r} "
            f"({type(error).__name__}: {error}). Expected a connection or a filled cache; without them pass "
            "path=, a folder with train.jsonl and val.jsonl as SuperGLUE distributes them"
        ) from error


def from_path(name: str, path: Path, cache_dir: str | Path | None, validation: str | None) -> Mapping:
    """Rows of the local splits; the task's own folder, such as "RTE", may be `path` or a folder in it."""
    if not path.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: expected a folder with the files of {name}")
    for folder in (path / name, path / name.lower(), path):
        if (folder / "dataset_dict.json").is_file() and validation is None:
            return _saved(folder)
        files = {split: split_files(folder, stems, (".jsonl", ".parquet")) for split, stems in FILES.items()}
        if any(files.values()):
            break
    missing = [split for split in FILES if not files[split]]
    if missing:
        raise FileNotFoundError(
            f"path={str(path)!r}: no {' and no '.join(missing)} data of {name}: expected "
            "train.jsonl and val.jsonl, or train and validation parquet files, or a saved DatasetDict"
        )
    if validation is not None:
        files[validation] = [folder / validation]
        if not files[validation][0].is_file():
            there = sorted(file.name for file in folder.iterdir() if file.suffix in (".jsonl", ".parquet"))
            raise FileNotFoundError(
                f"validation={validation!r}: no such file in the folder of {name}, expected one of {there}"
            )
    return {split: rows_of(paths, cache_dir) for split, paths in files.items()}


def _saved(folder: Path) -> Any:
    import datasets

    rows = datasets.load_from_disk(str(folder))
    missing = [split for split in FILES if split not in rows]
    if missing:
        raise ValueError(f"path={str(folder)!r} has splits {list(rows)}: expected {list(FILES)}")
    return rows


def examples_of(name: str, template: str, labels: tuple[str, ...], rows: Any, split: str) -> Iterator[dict]:
    """Rows as SuperGLUE or the hub writes them -> the text fields of the template, "label", and for MultiRC "group"."""
    numbered = getattr(getattr(rows, "features", {}).get("label"), "names", None)  # of a ClassLabel column
    number = -1
    for number, row in enumerate(rows):
        where = f"SuperGLUE {name}, {split}, row {number}"
        for part in _answers(row, where) if name == "MultiRC" else [row]:
            example: dict = {field: _text(part, field, where) for field in template_fields(template)}
            example["label"] = label_index(part.get("label"), labels, where, numbered)
            if name == "MultiRC":
                example["group"] = _question_id(part, where)
            yield example
    if number < 0:
        raise ValueError(f"SuperGLUE {name}: the {split} data is empty: expected at least one row")


def label_index(
    value: object, labels: tuple[str, ...], where: str = "label", names: Sequence[str] | None = None
) -> int:
    """The index of a label that is written as a name, as a truth value or as SuperGLUE's number.

    names: what the numbers mean in a `datasets` label column (None: SuperGLUE's own order).

    >>> label_index("neutral", ("entailment", "contradiction", "neutral"))
    2
    >>> label_index(True, ("False", "True"))
    1
    >>> label_index(0, ("entailment", "not_entailment"), names=["not_entailment", "entailment"])
    1
    """
    known = names if names else labels
    if is_whole(value, 0) and value < len(known):
        value = known[value]
    matches = [i for i, label in enumerate(labels) if str(value).lower() == label.lower()]
    if not matches:
        hint = (
            " (-1 or no label marks SuperGLUE's test split, which cannot be used)"
            if value in (-1, None)
            else ""
        )
        raise ValueError(
            f"{where}: label {value!r}: expected one of {list(labels)} or 0..{len(labels) - 1}{hint}"
        )
    return matches[0]


def _text(row: Mapping, field: str, where: str) -> str:
    if not isinstance(row.get(field), str):
        raise ValueError(
            f"{where}: field {field!r} is {row.get(field)!r}: expected text; the row has {sorted(row)}"
        )
    return row[field].strip()


def _answers(row: Mapping, where: str) -> Iterator[Mapping]:
    """One dict per answer: SuperGLUE's own MultiRC rows are paragraphs with questions with answers.

    A row that is flat already, as on the hub, is passed on.
    """
    passage = row.get("passage")
    if not isinstance(passage, Mapping):
        yield row
        return
    for question in _items(passage, "questions", where):
        for answer in _items(question, "answers", where):
            yield {
                "paragraph": passage.get("text"),
                "question": question.get("question"),
                "answer": answer.get("text"),
                "label": answer.get("label"),
                "idx": {"paragraph": row.get("idx"), "question": question.get("idx")},
            }


def _items(row: Mapping, field: str, where: str) -> list:
    items = row.get(field)
    if not isinstance(items, list) or not items or not all(isinstance(item, Mapping) for item in items):
        raise ValueError(f"{where}: {field!r} is {items!r}: expected a list of objects that is not empty")
    return items


def _question_id(row: Mapping, where: str) -> str:
    """The group of an answer: paragraph and question number, as SuperGLUE's exact match needs it."""
    idx = row.get("idx")
    if not isinstance(idx, Mapping) or any(idx.get(part) is None for part in ("paragraph", "question")):
        raise ValueError(
            f"{where}: idx is {idx!r}: expected the numbers of the paragraph and of the question"
        )
    return f"{idx['paragraph']}-{idx['question']}"
