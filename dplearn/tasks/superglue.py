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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dplearn.tasks.base import Task
from dplearn.tasks.superglue_rows import FILES, HUB, examples_of, from_hub, from_path

REVISION = (
    "3de24cf8022e94f4ee4b9d55a6f539891524d646"  # the one that turned its loading script into parquet files
)
PROTOCOLS = ("holdout", "paper")
HOLDOUT = 0.2


@dataclass(frozen=True)
class Format:
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
FORMATS = {
    "boolq": Format(
        "BoolQ",
        TRUTH,
        ("no", "yes"),
        "hypothesis: {question}. premise: {passage}",
        "passage",
        ("passage",),
        ("{question}", "{passage}"),
    ),
    "multirc": Format(
        "MultiRC",
        TRUTH,
        ("no", "yes"),
        "question: {question} answer: {answer}. paragraph: {paragraph}",
        "paragraph",
        ("paragraph",),
        ("{question} {answer}", "{paragraph}"),
        "f1a_em",
    ),
    "rte": Format(
        "RTE",
        ("entailment", "not_entailment"),
        ("yes", "no"),
        "sentence1: {premise} sentence2: {hypothesis}",
        "premise",
        ("premise",),
        ("{premise}", "{hypothesis}"),
    ),
    "cb": Format(
        "CB",
        ("entailment", "contradiction", "neutral"),
        ("yes", "no", "maybe"),
        "hypothesis: {hypothesis}. premise: {premise}",
        "premise",
        ("premise",),
        ("{premise}", "{hypothesis}"),
        "accuracy_f1",
    ),
    "wic": Format(
        "WiC",
        TRUTH,
        ("no", "yes"),
        "sentence1: {sentence1} sentence2: {sentence2} word: {word}",
        "word",
        ("sentence1", "sentence2"),
        ("{word}: {sentence1}", "{sentence2}"),
    ),
}
NAMES = tuple(f"superglue/{key}" for key in FORMATS)


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
    form = FORMATS[key]
    if path is None:
        rows, origin = from_hub(key, revision, cache_dir), f"{HUB} revision {revision}"
    else:
        rows, origin = from_path(form.folder, Path(path), cache_dir, validation), "local files"
    wanted = [*FILES, *([] if validation is None else [validation])]
    official = {
        split: list(examples_of(form.folder, form.template, form.labels, rows[split], split))
        for split in wanted
    }
    splits, note = _splits(official, form.context, protocol, share, seed, validation)
    digest = hashlib.sha256(json.dumps(official, sort_keys=True).encode()).hexdigest()[:16]
    source = f"SuperGLUE {form.folder} from {origin}, sha256 {digest}, {note}"
    parts = (form.labels, form.words, form.template, splits, form.metric, source, form.cuttable, form.pair)
    return Task(name, *parts)


def _splits(
    official: Mapping[str, list], context: str, protocol: str, share: float, seed: int, validation: str | None
) -> tuple[dict[str, list], str]:
    """What becomes "train", "validation" and "test", and the protocol in words."""
    if validation is not None:
        splits = {
            "train": official["train"],
            "validation": official[validation],
            "test": official["validation"],
        }
        return splits, f"validation {validation}, test the official validation set"
    if protocol == "paper":
        note = "protocol paper: choices and report on the official validation set, no test split"
        return dict(official), note
    train, held_out = carve(official["train"], context, share, seed)
    splits = {"train": train, "validation": held_out, "test": official["validation"]}
    note = f"protocol holdout: validation {share} of train (seed {seed}), test the official validation set"
    return splits, note


def _check_options(name: str, path: Any, protocol: Any, holdout: Any, validation: Any) -> float:
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
