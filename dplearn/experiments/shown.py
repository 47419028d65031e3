"""What two trained models decide for single inputs, for the figures of chapters 09 and 12 that a reader can move.

    python -m dplearn.experiments.shown --out shown.json

Each model is one reported run of a study, trained again with the settings that its record holds. For a few test inputs
the record keeps what is decided (probabilities or weights, and what follows from them) and what the model answers with
these decisions, with those of every other input, and with each prompt of the pool alone.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import set_seed

from dplearn import shelf
from dplearn.config import PromptConfig
from dplearn.experiments import records
from dplearn.experiments.fitting import Settings
from dplearn.experiments.runs import distribution, learned_parts
from dplearn.experiments.tuning import prompted_for, run_of, text_for, train_prompt
from dplearn.model import PromptedModel
from dplearn.sampling import Choice, learned
from dplearn.tasks import Task, load
from dplearn.zoo import ANSWER_PREFIX


@dataclass(frozen=True)
class Shown:
    """A reported run of a study, and how many of its test texts are shown, none longer than ``characters``."""

    figure: str
    study: str
    task: str
    method: str
    seed: int
    inputs: int
    characters: int


RUNS = (
    Shown("pool", "unified", "place/mixed", "pool per instance", seed=1, inputs=12, characters=90),
    Shown("decisions", "t5", "docs/signature", "all per input", seed=1, inputs=10, characters=95),
)


def recorded(which: Shown) -> dict:
    """The row of the run in the record of its study; ValueError where there is none."""
    wanted = {"task": which.task, "method": which.method, "seed": which.seed, "purpose": "report"}
    record = records.load(which.study)
    found = [row for row in record["rows"] if wanted.items() <= row.items()] if record else []
    if len(found) != 1:
        raise ValueError(f"the record of {which.study!r} has {len(found)} rows with {wanted}, expected one")
    return found[0]


def trained(which: Shown) -> tuple[PromptedModel, object, Task, float]:
    """The model of the run, its tokenizer, its task, and its accuracy on test."""
    row = recorded(which)
    known = {each.name for each in fields(Settings)}
    settings = Settings(**{name: value for name, value in row["settings"].items() if name in known})
    backbone, tokenizer = shelf.load(row["backbone"])
    task = cast(Task, load(which.task))
    set_seed(which.seed)
    model = prompted_for(backbone, tokenizer, PromptConfig(**row["config"]), settings)
    made = train_prompt(model, tokenizer, task, settings, which.seed, ("test",), ANSWER_PREFIX)
    return model.eval(), tokenizer, task, made["scores"]["test"]["accuracy"]


def chosen(task: Task, inputs: int, characters: int) -> list[int]:
    """The first so many test texts that are short enough, by their numbers."""
    texts = [task.text(row) for row in task.examples("test")]
    return [number for number, text in enumerate(texts) if len(text) <= characters][:inputs]


def decided(model: PromptedModel, choices: Mapping[str, Choice], which: Sequence[int]) -> dict:
    """Decisions of these inputs, as a model takes them: options, and weights where a pool is mixed."""
    picked = {}
    for name in learned_parts(model):
        choice = choices[name].picked(torch.tensor(which))
        picked[name] = choice if choice.weights is not None else choice.index
    return picked


@torch.no_grad()
def answers(model: PromptedModel, run, rows: Sequence[dict], decisions: dict) -> Tensor:
    """Probabilities of the label words with given decisions, (N, labels)."""
    batch = run.collate([dict(row) for row in rows])
    labels = batch.pop("labels")
    logits = model(**batch, labels=labels, decisions=decisions).logits
    return run.label_columns(logits).softmax(-1)


def row_of(which: Shown, model: PromptedModel, tokenizer, task: Task, accuracy: float) -> dict:
    """The row of one figure: inputs, their decisions, and the answers with the decisions of each source."""
    numbers = chosen(task, which.inputs, which.characters)
    encode, options = text_for(model, tokenizer, task, ANSWER_PREFIX, None)
    run = run_of(model, task, encode, options)
    rows, examples = [encode("test")[n] for n in numbers], [task.examples("test")[n] for n in numbers]
    choices, parts = run.choices(rows), learned_parts(model)
    probabilities = {name: distribution(part, choices[name]) for name, part in parts.items()}
    count = len(rows)
    sources = {
        f"input {other + 1}": decided(model, choices, [other] * count) for other in range(count)
    } | pure(model, choices, count)
    return {
        "figure": which.figure,
        "study": which.study,
        "task": which.task,
        "method": which.method,
        "seed": which.seed,
        "backbone": recorded(which)["backbone"],
        "length": model.prompt.length,
        "accuracy": {"recorded": records.headline(recorded(which)), "again": round(accuracy, 4)},
        "inputs": [
            {"text": task.text(row), "answer": task.words[row["label"]], "tokens": len(encoded["input_ids"])}
            for row, encoded in zip(examples, rows)
        ],
        "decisions": {
            name: {
                "probabilities": _rounded(probabilities[name]),
                "chosen": choices[name].index.tolist(),
            }
            for name in parts
        },
        "answers": {
            source: _said(task, answers(model, run, rows, each), examples) for source, each in sources.items()
        },
    }


def pure(model: PromptedModel, choices: Mapping[str, Choice], count: int) -> dict[str, dict]:
    """For a model that mixes a pool and decides nothing else: each prompt of the pool alone, and their plain mean."""
    if set(learned_parts(model)) != {"vector"}:
        return {}
    size = learned(choices["vector"].weights).shape[1]
    rows = {f"prompt {i + 1} alone": row for i, row in enumerate(torch.eye(size))}
    rows["all prompts alike"] = torch.full((size,), 1 / size)
    return {
        name: {"vector": Choice(row.argmax().expand(count), row.expand(count, -1))}
        for name, row in rows.items()
    }


def _said(task: Task, probabilities: Tensor, examples: Sequence[Mapping]) -> list[list]:
    """For each input the word that is answered, its probability and that of the right word."""
    best = probabilities.max(1)
    return [
        [task.words[word], round(most, 3), round(row[example["label"]].item(), 3)]
        for word, most, row, example in zip(
            best.indices.tolist(), best.values.tolist(), probabilities, examples
        )
    ]


def _rounded(rows: Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in row] for row in rows.tolist()]


def main(arguments=None) -> None:
    """Train both models again and write the record."""
    parser = argparse.ArgumentParser(prog="python -m dplearn.experiments.shown", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON record")
    options = parser.parse_args(arguments)
    rows = []
    for which in RUNS:
        rows.append(row_of(which, *trained(which)))
        print(json.dumps({"figure": which.figure} | rows[-1]["accuracy"]), flush=True)
    records.save(options.out, rows, "python -m dplearn.experiments.shown")


if __name__ == "__main__":
    main()
