"""The paper's five SuperGLUE tasks: BoolQ, MultiRC, RTE, CB and WiC, from the hub or from local files.

    load("superglue/rte")                   the parquet repository of the hub, at a fixed revision
    load("superglue/rte", path="folder")    files as SuperGLUE distributes them, or as `datasets` saves them
    load("superglue/rte", path="folder", validation="dev32.jsonl")    FewGLUE (Schick and Schütze 2021)

SuperGLUE's own test split has no labels, so it is never used here. Two protocols say what is used instead:

    "holdout"  (default) a part of train becomes "validation", for choices; the official validation set is
               kept as "test", for the report. No number is chosen and reported on the same examples.
    "paper"    "train" and the official "validation" alone: the paper's code chooses the best step on the
               validation set and reports that same number, which is optimistic.

A file named by `validation` takes the place of the part of train: all of train is trained on, choices are made on the
file, and the official validation set is "test". So FewGLUE's fixed 32 training examples stay 32.

Templates and answer words are those of the paper's code (its template 0). Label order is SuperGLUE's own.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dplearn.checks import is_whole
from dplearn.tasks.base import Task
from dplearn.tasks.encoding import template_fields

HUB = "aps/super_glue"  # SuperGLUE's repository; "super_glue" is its old name
REVISION = (
    "3de24cf8022e94f4ee4b9d55a6f539891524d646"  # the one that turned its loading script into parquet files
)
PROTOCOLS = ("holdout", "paper")
HOLDOUT = 0.2
FILES = {"train": ("train",), "validation": ("val", "validation")}  # split -> how its local files are called


@dataclass(frozen=True)
class Recipe:
    """One SuperGLUE task: the name of its folder and everything that turns rows into a `Task`.

    context   the field whose text examples may share; a holdout never has a context in common with train
    cuttable  the long fields, which an input that is too long is shortened by: never the question or the hypothesis
    pair      the two texts that a classifier reads
    """

    folder: str
    labels: tuple[str, ...]
    words: tuple[str, ...]
    template: str
    context: str
    cuttable: tuple[str, ...]
    pair: tuple[str, str]
    metric: str = "accuracy"


TRUTH = ("False", "True")
RECIPES = {
    "boolq": Recipe(
        "BoolQ",
        TRUTH,
        ("no", "yes"),
        "hypothesis: {question}. premise: {passage}",
        "passage",
        ("passage",),
        ("{question}", "{passage}"),
    ),
    "multirc": Recipe(
        "MultiRC",
        TRUTH,
        ("no", "yes"),
        "question: {question} answer: {answer}. paragraph: {paragraph}",
        "paragraph",
        ("paragraph",),
        ("{question} {answer}", "{paragraph}"),
        "f1a_em",
    ),
    "rte": Recipe(
        "RTE",
        ("entailment", "not_entailment"),
        ("yes", "no"),
        "sentence1: {premise} sentence2: {hypothesis}",
        "premise",
        ("premise",),
        ("{premise}", "{hypothesis}"),
    ),
    "cb": Recipe(
        "CB",
        ("entailment", "contradiction", "neutral"),
        ("yes", "no", "maybe"),
        "hypothesis: {hypothesis}. premise: {premise}",
        "premise",
        ("premise",),
        ("{premise}", "{hypothesis}"),
        "accuracy_f1",
    ),
    "wic": Recipe(
        "WiC",
        TRUTH,
        ("no", "yes"),
        "sentence1: {sentence1} sentence2: {sentence2} word: {word}",
        "word",
        ("sentence1", "sentence2"),
        ("{word}: {sentence1}", "{sentence2}"),
    ),
}
NAMES = tuple(f"superglue/{key}" for key in RECIPES)


def load(
    name: str,
    path: str | Path | None = None,
    protocol: str = "holdout",
    holdout: float | None = None,
    seed: int = 0,
    revision: str = REVISION,
    cache_dir: str | Path | None = None,
    validation: str | None = None,
) -> Task:
    """A SuperGLUE task.

    path        folder with the task's files (or with a folder such as "RTE" that has them): train.jsonl and
                val.jsonl, parquet files, or what `DatasetDict.save_to_disk` writes. None: the hub
    protocol    "holdout" or "paper", see the head of this module
    holdout     the share of train that becomes "validation" (0.2 when None; only for "holdout"): by label, and
                whole contexts (a paragraph with all its questions) at a time
    seed        of the holdout
    revision    of the hub repository
    cache_dir   where `datasets` keeps its files (its own default when None)
    validation  name of a file beside train.jsonl, such as "dev32.jsonl", that becomes "validation" instead of a holdout
    """
    share = _check_options(name, path, protocol, holdout, validation)
    key = name.partition("/")[2]
    recipe = RECIPES[key]
    if path is None:
        rows = _from_hub(key, revision, cache_dir)
    else:
        rows = _from_path(recipe, Path(path), cache_dir, validation)
    wanted = [*FILES, *([] if validation is None else [validation])]
    official = {split: list(_examples(key, rows[split], split)) for split in wanted}
    if validation is not None:
        splits = {
            "train": official["train"],
            "validation": official[validation],
            "test": official["validation"],
        }
        note = f"validation {validation}, test the official validation set"
    elif protocol == "paper":
        splits = official
        note = "protocol paper: choices and report on the official validation set, no test split"
    else:
        train, validation = carve(official["train"], recipe.context, share, seed)
        splits = {"train": train, "validation": validation, "test": official["validation"]}
        note = (
            f"protocol holdout: validation {share} of train (seed {seed}), test the official validation set"
        )
    origin = f"{HUB} revision {revision}" if path is None else "local files"
    digest = hashlib.sha256(json.dumps(official, sort_keys=True).encode()).hexdigest()[:16]
    source = f"SuperGLUE {recipe.folder} from {origin}, sha256 {digest}, {note}"
    return Task(
        name,
        recipe.labels,
        recipe.words,
        recipe.template,
        splits,
        recipe.metric,
        source,
        recipe.cuttable,
        recipe.pair,
    )


def _check_options(name, path, protocol, holdout, validation) -> float:
    """The share of train to hold out, after a check of the options that `load` was called with."""
    if name not in NAMES:
        raise ValueError(f"name={name!r}: expected one of {list(NAMES)}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r}: expected one of {list(PROTOCOLS)}")
    if protocol == "paper" and holdout is not None:
        raise ValueError(f"holdout={holdout!r}: expected None, because protocol 'paper' keeps all of train")
    if validation is not None:
        if path is None or holdout is not None or protocol != "holdout":
            raise ValueError(
                f"validation={validation!r}: expected None without a path=, with a holdout= or with another protocol "
                "than 'holdout': the file takes the place of a part of train"
            )
        if not isinstance(validation, str) or Path(validation).suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"validation={validation!r}: expected a file's name, such as 'dev32.jsonl'")
    share = HOLDOUT if holdout is None else holdout
    if not isinstance(share, (int, float)) or not 0 < share < 1:
        raise ValueError(f"holdout={holdout!r}: expected a share between 0 and 1, both excluded")
    return share


def carve(examples: list[dict], context: str, share: float, seed: int) -> tuple[list[dict], list[dict]]:
    """Split examples into (rest, held out), by label and with examples of one context on the same side.

    A context counts for the label of its first example. Of each label with two contexts or more, at least one
    context is held out and at least one stays.
    """
    contexts: dict[str, list[int]] = {}
    for i, example in enumerate(examples):
        contexts.setdefault(example[context], []).append(i)
    generator = random.Random(seed)
    by_label: dict[int, list] = {}
    for members in contexts.values():
        by_label.setdefault(examples[members[0]]["label"], []).append((generator.random(), members))
    held = set()
    for units in by_label.values():
        wanted = share * sum(len(members) for _, members in units)
        taken = 0
        for _, members in sorted(units)[:-1]:
            if taken and taken + len(members) / 2 > wanted:  # closer to the share without this context
                break
            held.update(members)
            taken += len(members)
    if not held:
        raise ValueError(
            f"holdout={share}: no label has two {context} texts in train: expected two or more, to hold out "
            "one and keep one"
        )
    rest = [example for i, example in enumerate(examples) if i not in held]
    return rest, [examples[i] for i in sorted(held)]


def _from_hub(key, revision, cache_dir):
    import datasets

    try:
        return datasets.load_dataset(HUB, key, revision=revision, cache_dir=cache_dir and str(cache_dir))
    except Exception as error:  # the hub client, `datasets` and the network each raise their own kinds
        raise ConnectionError(
            f"SuperGLUE {key!r} could not be loaded from the hub repository {HUB!r}, revision {revision!r} "
            f"({type(error).__name__}: {error}). Expected a connection or a filled cache; without them pass "
            "path=, a folder with train.jsonl and val.jsonl as SuperGLUE distributes them"
        ) from error


def _from_path(recipe: Recipe, path: Path, cache_dir, validation: str | None) -> Mapping:
    """Rows of the local splits; the task's own folder may be `path` or a folder in it."""
    if not path.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: expected a folder with the files of {recipe.folder}")
    for folder in (path / recipe.folder, path / recipe.folder.lower(), path):
        if (folder / "dataset_dict.json").is_file() and validation is None:
            return _saved(folder)
        files = {split: _split_files(folder, stems) for split, stems in FILES.items()}
        if any(files.values()):
            break
    missing = [split for split in FILES if not files[split]]
    if missing:
        raise FileNotFoundError(
            f"path={str(path)!r}: no {' and no '.join(missing)} data of {recipe.folder}: expected "
            "train.jsonl and val.jsonl, or train and validation parquet files, or a saved DatasetDict"
        )
    if validation is not None:
        files[validation] = [folder / validation]
        if not files[validation][0].is_file():
            there = sorted(file.name for file in folder.iterdir() if file.suffix in (".jsonl", ".parquet"))
            raise FileNotFoundError(
                f"validation={validation!r}: no such file in the folder of {recipe.folder}, expected one of {there}"
            )
    return {split: _read(found, cache_dir) for split, found in files.items()}


def _saved(folder):
    import datasets

    rows = datasets.load_from_disk(str(folder))
    missing = [split for split in FILES if split not in rows]
    if missing:
        raise ValueError(f"path={str(folder)!r} has splits {list(rows)}: expected {list(FILES)}")
    return rows


def _split_files(folder: Path, stems) -> list[Path]:
    """One split's files: train.jsonl, train.parquet or, as on the hub, train-00000-of-00001.parquet."""
    for stem in stems:
        for pattern in (f"{stem}.jsonl", f"{stem}.parquet", f"{stem}-*.parquet"):
            found = sorted(folder.glob(pattern))
            if found:
                return found
    return []


def _read(files: list[Path], cache_dir):
    if files[0].suffix == ".jsonl":
        return [row for file in files for row in _read_jsonl(file)]
    import datasets

    return datasets.load_dataset(
        "parquet",
        data_files=[str(file) for file in files],
        split="train",  # what `datasets` calls a single list of files
        cache_dir=cache_dir and str(cache_dir),
    )


def _read_jsonl(file: Path) -> Iterator[dict]:
    """One object per line; read here rather than with `datasets`, to name the line that is wrong."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
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


def _examples(key: str, rows, split: str) -> Iterator[dict]:
    """Rows as SuperGLUE or the hub writes them -> text fields, "label", and for MultiRC "group"."""
    recipe = RECIPES[key]
    names = getattr(getattr(rows, "features", {}).get("label"), "names", None)  # of a ClassLabel column
    number = -1
    for number, row in enumerate(rows):
        where = f"SuperGLUE {recipe.folder}, {split}, row {number}"
        for part in _answers(row, where) if key == "multirc" else [row]:
            example = {field: _text(part, field, where) for field in template_fields(recipe.template)}
            example["label"] = label_index(part.get("label"), recipe.labels, where, names)
            if key == "multirc":
                example["group"] = _question_id(part, where)
            yield example
    if number < 0:
        raise ValueError(f"SuperGLUE {recipe.folder}: the {split} data is empty: expected at least one row")


def label_index(value, labels: tuple[str, ...], where: str = "label", names=None) -> int:
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


def _answers(row: Mapping, where: str) -> Iterator[dict]:
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
