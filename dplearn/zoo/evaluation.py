"""How well a zoo backbone answers with an instruction, and that it is at chance without one."""

import random
from typing import cast

import torch

from .. import tasks
from ..tasks.base import Task
from . import ANSWER_PREFIX
from .instructions import instruct

# The instruction that asks for a task's own label.
SKILLS = {
    "world/boolq": "boolq", "world/multirc": "multirc", "world/rte": "rte", "world/cb": "cb", "world/wic": "wic",
    "world/color": "same_color", "world/owner": "same_owner", "docs/signature": "signature", "docs/next": "next",
}  # fmt: skip


@torch.no_grad()
def word_logits(model, tokenizer, task: Task, texts, batch_size=128) -> torch.Tensor:
    """The logits of the label words (N, labels), for each text (word-level protocol of the paper)."""
    words = torch.tensor(task.word_ids(tokenizer), device=model.device)
    cue = tokenizer(ANSWER_PREFIX, add_special_tokens=False)["input_ids"]
    read = _read_in_decoder if model.config.is_encoder_decoder else _read_behind
    batches = []
    for begin in range(0, len(texts), batch_size):
        logits = read(model, tokenizer, texts[begin : begin + batch_size], cue)
        batches.append(logits[:, words])  # (B, labels)
    return torch.cat(batches)


def predict(model, tokenizer, task: Task, texts, batch_size=128) -> list[int]:
    """The label index with the largest logit of its word, for each text."""
    return word_logits(model, tokenizer, task, texts, batch_size).argmax(-1).tolist()


def _read_in_decoder(model, tokenizer, texts, cue):
    """Logits (B, vocabulary) of an encoder-decoder behind the cue in its decoder."""
    batch = tokenizer(texts, padding=True, return_tensors="pt").to(model.device)
    start = [model.config.decoder_start_token_id, *cue]
    decoder = torch.tensor([start] * len(texts), device=model.device)
    return model(**batch, decoder_input_ids=decoder).logits[:, -1]


def _read_behind(model, tokenizer, texts, cue):
    """Logits (B, vocabulary) of a decoder-only model behind text and cue."""
    from ..experiments.tuning import LastRow

    rows = [{"input_ids": [*ids, *cue]} for ids in tokenizer(texts)["input_ids"]]
    batch = tokenizer.pad(rows, return_tensors="pt").to(model.device)
    return LastRow(model)(batch["input_ids"], batch["attention_mask"])["logits"][:, -1]


def instructed_texts(task: Task, examples, seed=0) -> list[str]:
    """Each text with one of its skill's instructions, drawn by seed, before, after or around it."""
    if task.name not in SKILLS:
        raise ValueError(f"task={task.name!r}: expected one with an instruction, out of {list(SKILLS)}")
    rng = random.Random(seed)
    return [instruct(rng, SKILLS[task.name], task.text(example)) for example in examples]


def accuracy(model, tokenizer, task: Task, split="test", instructed=True, seed=0, count=None) -> float:
    """Share of right answers on the first `count` examples of a split, with or without instructions."""
    examples = task.examples(split)[:count]
    if instructed:
        texts = instructed_texts(task, examples, seed)
    else:
        texts = [task.text(example) for example in examples]
    predictions = predict(model, tokenizer, task, texts)
    hits = sum(p == example["label"] for p, example in zip(predictions, examples, strict=True))
    return hits / len(examples)


def zero_shot(model, tokenizer, names=tuple(SKILLS), splits=("test",)) -> list[dict]:
    """One row per task and split: accuracy with and without instruction, and chance."""
    rows = []
    for name in names:
        task = cast(Task, tasks.load(name))
        for split in splits:
            if split in task.splits:
                row = {"task": name, "split": split, "chance": round(1 / len(task.labels), 3)}
                row["instructed"] = round(accuracy(model, tokenizer, task, split), 3)
                row["bare"] = round(accuracy(model, tokenizer, task, split, instructed=False), 3)
                rows.append(row)
    return rows
