"""Methods of others beside our own prompts: what they are called in a study, and what can be said of each.

A method of kind "peft" is one of the library of that name (:mod:`dplearn.experiments.rivals_peft`); one of kind "rival"
is built from our own parts (:mod:`dplearn.experiments.rivals_prompts`). Both have a table:

    kind = "peft"
    peft = { type = "lora", r = 8 }

and what stands there is checked before any run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from dplearn.checks import Check, Flag, Names, Number, OneOf, Whole, shown
from dplearn.config import INITS, OPTIONS


class Option(NamedTuple):
    """An option of a rival: its default, and what raises ValueError where a value is wrong (of none, None, nothing is
    asked)."""

    default: object
    check: Check | Callable[[str, object], None]


def _targets(name: str, value: object) -> None:
    """Names of modules, or "all-linear"."""
    if value != "all-linear":
        Names("a list of names of modules, or 'all-linear'")(name, value)


VECTORS = {"num_virtual_tokens": Option(20, Whole())}
REPARAMETERIZED = {"encoder_hidden_size": Option(None, Whole())}
DROPOUT = {"backbone_dropout": Option(False, Flag())}
# Kind -> what a method of it is called -> its options. Those of "peft" have the library's names; "start" and
# "backbone_dropout" are ours.
RIVALS: dict[str, dict[str, dict[str, Option]]] = {
    "peft": {
        "prompt-tuning": VECTORS | {"start": Option("vocabulary", OneOf(("vocabulary", "random")))} | DROPOUT,
        "p-tuning": VECTORS
        | {"encoder_reparameterization_type": Option("MLP", OneOf(("MLP", "LSTM")))}
        | REPARAMETERIZED
        | DROPOUT,
        "prefix-tuning": VECTORS | {"prefix_projection": Option(False, Flag())} | REPARAMETERIZED | DROPOUT,
        "lora": {
            "r": Option(8, Whole()),
            "lora_alpha": Option(8, Whole()),
            "lora_dropout": Option(0.0, Number(positive=False)),
            "target_modules": Option(None, _targets),
            "use_rslora": Option(False, Flag()),
            "use_dora": Option(False, Flag()),
        }
        | DROPOUT,
    },
    "rival": {
        "SMoP": {
            "length": Option(5, Whole()),
            "pool_size": Option(4, Whole()),
            "noise": Option(1.0, Number(positive=False)),
            "balance": Option(0.01, Number(positive=False)),
            "init": Option("vocabulary", OneOf(INITS)),
        },
        "CaPT": {"init": Option("vocabulary", OneOf(INITS))},
    },
}
# Settings of a run that such methods pass over.
WITHOUT_EFFECT = {
    "peft": (
        "controller_learning_rate", "head_learning_rate", "schedule", "last_temperature", "entropy_bonus",
        "vectors_first", "train_vectors", "fit_summaries", "noisy_evaluation",
    ),
    "rival": ("head_learning_rate", "schedule", "last_temperature", "fit_summaries", "noisy_evaluation"),
}  # fmt: skip


def options_of(kind: str, given: Mapping) -> dict:
    """The table of a method with the options that it leaves out.

    Parameters
    ----------
    kind : "peft" or "rival".
    given : the type of the method and options of it.

    Raises
    ------
    ValueError : an unknown type or option, or a wrong value; the message lists what is known.

    >>> options_of("peft", {"type": "prompt-tuning", "num_virtual_tokens": 5})
    {'type': 'prompt-tuning', 'num_virtual_tokens': 5, 'start': 'vocabulary', 'backbone_dropout': False}
    >>> options_of("peft", {"type": "lora", "rank": 8})
    Traceback (most recent call last):
    ValueError: rank=8 is no option of 'lora', expected some of ['r', 'lora_alpha', 'lora_dropout', 'target_modules',
    'use_rslora', 'use_dora', 'backbone_dropout']
    """
    types = RIVALS[kind]
    if given.get("type") not in types:
        raise ValueError(f"type={shown(given.get('type'))} is unknown, expected one of {list(types)}")
    known = types[given["type"]]
    for name, value in given.items():
        if name == "type":
            continue
        if name not in known:
            raise ValueError(
                f"{name}={shown(value)} is no option of {given['type']!r}, expected some of {list(known)}"
            )
        if value is not None or known[name].default is not None:
            known[name].check(name, value)
    if given.get("lora_dropout", 0) > 1:
        raise ValueError(f"lora_dropout={given['lora_dropout']} is not valid, expected a share, 0 to 1")
    return {"type": given["type"]} | {name: given.get(name, option.default) for name, option in known.items()}


def with_length(kind: str, table: Mapping, length: int | None) -> dict:
    """The table of a method, with as many virtual tokens as the study's prompts have vectors, where it names no number.

    >>> with_length("peft", {"type": "prefix-tuning"}, 8), with_length("peft", {"type": "lora"}, 8)
    ({'type': 'prefix-tuning', 'num_virtual_tokens': 8}, {'type': 'lora'})
    """
    has = "num_virtual_tokens" in RIVALS[kind].get(table.get("type", ""), {})
    own = {"num_virtual_tokens": length} if has and length is not None else {}
    return {**table, **{name: value for name, value in own.items() if name not in table}}


def check(kind: str, table: Mapping, others: Mapping) -> None:
    """Raise ValueError where a study says something wrong of a rival, or something that its runs would pass over.

    Parameters
    ----------
    table : of the method.
    others : what else the study says of this method alone, by name: options of a prompt, settings, axes of its grid.
    """
    options_of(kind, table)
    for name, value in others.items():
        if name in OPTIONS or name in WITHOUT_EFFECT[kind]:
            raise ValueError(
                f"{name}={shown(value)} has no effect on a method of kind {kind!r}, expected none: it is described by "
                f"its table {kind!r}"
            )


def learns(kind: str, table: Mapping) -> bool:
    """Whether a method decides something about each input: such methods try the grid of those that learn."""
    return kind == "rival" and table.get("type") == "SMoP"
