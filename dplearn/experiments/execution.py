"""One run in a worker process: from a job's spec to a row, with where and by what it was made.

A worker keeps the backbones and the encoded tasks that it has loaded: the next run of a study often wants the same.
"""

from __future__ import annotations

import copy
import hashlib
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, lru_cache
from inspect import signature
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from dplearn.experiments import records
from dplearn.experiments.parts import SPLITS

TEXTS = ("world", "place", "docs", "superglue", "texts")  # families of tasks; the others are of images
LONGEST = 480  # tokens of an input, where the study says nothing
# The random state is the process's: two runs at once, as in a Dask worker of several threads, would mix theirs.
_ONE_AT_A_TIME = threading.Lock()


def run_job(spec: Mapping, options: Mapping | None = None) -> dict:
    """Run one job in this process; returns its row.

    spec : of a :class:`~dplearn.experiments.jobs.Job`.
    options : settings that do not belong to a result's name, such as ``{"bf16": True}``.
    """
    with _ONE_AT_A_TIME:
        start = time.perf_counter()
        memory = records.Peak()
        row = RUNS.get(spec["kind"], _prompt)(spec, dict(options or {}))
        about = {
            name: spec[name] for name in ("backbone", "seed", "purpose", "kind", "control") if name in spec
        }
        return row | about | {
            "data": data_of(_task(spec["task"])),
            **_weights(spec.get("backbone")),
            "wall_seconds": round(time.perf_counter() - start, 1),
            "peak_memory_mb": memory.megabytes(),
            "made": _made(),
        }  # fmt: skip


def data_of(task) -> str:
    """What a task was read from, with a hash of it where it comes from files, whatever was drawn from it."""
    return task.source.partition("; train: ")[0]


def weights_of(backbone: str | None) -> str | None:
    """A hash of the weights of a model that lies in a folder, and of its settings; None where it has another name.

    What ships has hashes of its own, which are compared at each loading (:mod:`dplearn.zoo`).
    """
    folder = Path(backbone or "")
    if not backbone or not folder.is_dir():
        return None
    digest = hashlib.sha256()
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".json")]
    for path in sorted(files):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return f"sha256 {digest.hexdigest()[:12]}"


@cache
def _weights(backbone: str | None) -> dict:
    """Of the model as this process has read it."""
    found = weights_of(backbone)
    return {} if found is None else {"weights": found}


@cache
def _made() -> dict:
    """Provenance of the rows of this process (its command is that of the runner)."""
    provenance = records.provenance("")
    del provenance["command"]
    return provenance


def load_task(name: str):
    """A task by name, with options as in an address: ``world/rte?shots=32&draw=3``.

    ``shots`` training examples of each label, or ``total`` in all, drawn by the seed ``draw`` (0); of images
    a draw leaves ``validation`` of each class to choose on. Other options are those of the task's family
    (:func:`dplearn.tasks.load`), numbers as such. ``$NAME`` stands for a variable of the environment:
    ``superglue/cb?path=$SUPERGLUE&validation=dev32.jsonl``.

    Several names with "+" between them are one task (:func:`dplearn.tasks.joined.join`).

    Raises
    ------
    ValueError : a variable that is not set; an unknown option; what the task's family and the draw raise.

    >>> len(load_task("world/rte?shots=8&draw=3").examples("train"))
    16
    """
    from dplearn import tasks

    if "+" in name:
        from dplearn.tasks.joined import join

        return join([load_task(part) for part in name.split("+")])
    plain, _, query = name.partition("?")
    given = {key: os.path.expandvars(value) for key, value in parse_qsl(query)}
    for key, value in given.items():
        if value.startswith("$"):
            raise ValueError(
                f"task={name!r}: {key}={value}, expected the variable {value[1:]} to be set in the environment"
            )
    options: dict[str, Any] = {key: _number(value) for key, value in given.items()}
    shots, total, draw = (
        options.pop(key, usual) for key, usual in (("shots", None), ("total", None), ("draw", 0))
    )
    if shots is not None and total is not None:
        raise ValueError(f"task={name!r}: shots={shots} and total={total}, expected one of the two")
    family = plain.partition("/")[0]
    drawn = shots is not None or total is not None
    more = {} if family in TEXTS or not drawn else {"validation": options.pop("validation", None)}
    if options:
        taken = signature(tasks.family_of(plain).load).parameters
        known = ["shots", "total", "draw", *more, *list(taken)[1:]]
        for key in options:
            if key not in taken and not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
                raise ValueError(f"task={name!r}: option {key!r} is unknown, expected some of {known}")
    task: Any = tasks.load(plain, **options)
    if not drawn:
        return task
    return task.few_shot(shots, draw, **more) if more else task.few_shot(shots, draw, total=total)


def _number(value: str) -> int | float | str:
    """A number where the value is one: "3", "0.25"."""
    if value.isdecimal():
        return int(value)
    whole, _, part = value.partition(".")
    return float(value) if whole.isdecimal() and part.isdecimal() else value


@lru_cache(maxsize=8)
def _task(name: str):
    return load_task(name)


@lru_cache(maxsize=2)
def _backbone(name: str):
    from dplearn import zoo

    return zoo.load(name)


@lru_cache(maxsize=8)
def _encoded(backbone: str, task: str, prefix: str, max_length: int):
    """How a task is encoded for this backbone, bare or with a prompt, each split once."""
    data, tokenizer = _task(task), _backbone(backbone)[1]
    kept: dict = {}

    def encode(split: str, model):
        config = getattr(model, "prompt_config", None)
        key = split, config is not None, config is not None and config.tasks is not None
        if key not in kept:
            kept[key] = data.encode(tokenizer, split, model, max_length=max_length, answer_prefix=prefix)
        return kept[key]

    return encode


def _splits(spec: Mapping) -> list[str]:
    """The splits that are scored: those asked for that the task has. Only the usual ones may be absent."""
    there = _task(spec["task"]).splits
    splits = [split for split in spec["splits"] if split in there]
    absent = [split for split in spec["splits"] if split not in there and split not in SPLITS]
    if not splits or absent:
        raise ValueError(
            f"task={spec['task']!r} has no split {' and no '.join(map(repr, absent or spec['splits']))}, expected some "
            f"of {list(there)}"
        )
    return splits


def _settings(spec: Mapping, usual, options: Mapping):
    return replace(usual, **spec["settings"] | options)


def _probe(spec: Mapping, options: Mapping) -> dict:
    from dplearn.experiments import probes

    run = {
        "bag of words": probes.bag_of_words,
        "MiniLM probe": probes.minilm_probe,
        "majority": probes.majority,
    }
    return run[spec["kind"]](_task(spec["task"]), _splits(spec))


def _state_probe(spec: Mapping, options: Mapping) -> dict:
    from transformers import DataCollatorWithPadding

    from dplearn.experiments import probes

    backbone, tokenizer = _backbone(spec["backbone"])
    encode = _encoded(spec["backbone"], spec["task"], _prefix(spec), spec.get("max_length", LONGEST))
    collate = DataCollatorWithPadding(tokenizer)
    return probes.state_probe(backbone, _task(spec["task"]), encode, collate, _splits(spec))


def _image(spec: Mapping, options: Mapping) -> dict:
    from dplearn.experiments import image_text, images

    module = images if spec["kind"] == "images" else image_text
    settings = _settings(spec, module.SETTINGS, options)
    task = _task(spec["task"])
    # Of the usual ones those that there are; others are named by `tune`, which makes "test_new" itself.
    splits = [split for split in spec["splits"] if split in task.splits or split not in SPLITS]
    method = spec.get("prompt") or spec["named"]
    return module.tune(method, task, settings, spec["seed"], splits, spec["backbone"], _looks(spec))


def _looks(spec: Mapping):
    """How closely a run is looked at: reports at a third of their steps too."""
    from dplearn.experiments.watching import Looks

    return Looks(**{"thirds": spec["purpose"] == "report"} | spec.get("looks", {}))


def _prompt(spec: Mapping, options: Mapping) -> dict:
    """A prompt, a rival, full fine-tuning or the bare backbone, on a text task."""
    from dplearn import zoo
    from dplearn.config import PromptConfig
    from dplearn.experiments import tuning

    task, (backbone, tokenizer) = _task(spec["task"]), _backbone(spec["backbone"])
    prefix = _prefix(spec)
    if spec.get("control") == "random layers":
        backbone = zoo.random_control(spec["backbone"], spec["seed"])
    given = {
        "splits": _splits(spec),
        "answer_prefix": prefix,
        "encode": _encoded(spec["backbone"], spec["task"], prefix, spec.get("max_length", LONGEST)),
    }
    if spec["kind"] == "no prompt":
        return tuning.zero_shot(backbone, tokenizer, task, **given)
    settings = _settings(spec, tuning.USUAL, options)
    if spec["kind"] == "full fine-tuning":
        return tuning.fine_tune(copy.deepcopy(backbone), tokenizer, task, settings, spec["seed"], **given)
    if spec["kind"] in ("peft", "rival"):
        from dplearn.experiments import rivals_peft, rivals_prompts

        tune = rivals_peft.tune_peft if spec["kind"] == "peft" else rivals_prompts.tune_rival
        table = spec[spec["kind"]]
        return tune(backbone, tokenizer, task, table, settings, spec["seed"], looks=_looks(spec), **given)
    config = PromptConfig(**spec["prompt"])
    given |= {"looks": _looks(spec), "headroom": spec.get("headroom", False)}
    return tuning.tune_prompt(backbone, tokenizer, task, config, settings, spec["seed"], **given)


def _prefix(spec: Mapping) -> str:
    if not hasattr(_backbone(spec["backbone"])[1], "get_vocab"):
        raise ValueError(
            f"backbone={spec['backbone']!r}, expected a model that reads texts for a method of kind {spec['kind']!r}"
        )
    return spec["cue"] if "cue" in spec else answer_prefix(*_backbone(spec["backbone"]))


def answer_prefix(backbone, tokenizer) -> str:
    """What a backbone reads before the answer word where the study names no cue: T5's first sentinel, or nothing."""
    from dplearn import zoo

    known = zoo.ANSWER_PREFIX in tokenizer.get_vocab()
    return zoo.ANSWER_PREFIX if backbone.config.is_encoder_decoder and known else ""


RUNS = {
    "bag of words": _probe, "MiniLM probe": _probe, "majority": _probe, "state probe": _state_probe,
    "images": _image, "image-text": _image,
    "prompt": _prompt, "no prompt": _prompt, "full fine-tuning": _prompt, "peft": _prompt, "rival": _prompt,
}  # fmt: skip
