"""Several tasks as one, for a prompt that they share: all texts, all answer words, and whose example each one is.

The joined task answers with any of the words of its parts, so nothing but text and prompt tells which task is asked.
Its splits hold the examples of all parts one after the other, and once more those of each part, under the split's name
and the part's, such as "test world/rte".
"""

from collections.abc import Sequence
from typing import Any

from dplearn.tasks.base import Task
from dplearn.tasks.encoding import Encoded


class JoinedTask(Task):
    """Made by :func:`join`. Each example has the number of its part as "part"."""

    def encode(
        self, tokenizer: Any, split: str, model: Any = None, *, max_length: int = 480, answer_prefix: str = ""
    ) -> Encoded:
        """As :meth:`dplearn.tasks.base.Task.encode`; where a prompt has decisions per task, with its "task_ids"."""
        rows = super().encode(tokenizer, split, model, max_length=max_length, answer_prefix=answer_prefix)
        if getattr(getattr(model, "prompt_config", None), "tasks", None):
            for row, example in zip(rows, self.examples(split)):
                row["task_ids"] = example["part"]
        return rows


def join(tasks: Sequence[Task]) -> JoinedTask:
    """One task of several.

    The parts are filled into their templates beforehand. Labels are the answer words of all parts, in order of
    appearance; the metric is accuracy over all of them. A prompt with ``PromptConfig(tasks=[...])`` takes the parts'
    names in this order.

    Raises
    ------
    ValueError : fewer than two tasks, or two of one name; parts without a common split beside "train".

    >>> from dplearn.tasks import load
    >>> both = join([load("world/color"), load("world/rte")])
    >>> both.name, both.examples("test world/rte")[0]["part"]
    ('world/color+world/rte', 1)
    """
    names = [task.name for task in tasks]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"tasks={names}, expected at least two of different names")
    words = tuple(dict.fromkeys(word for task in tasks for word in task.words))
    common = [split for split in tasks[0].splits if all(split in task.splits for task in tasks)]
    if len(common) < 2:
        raise ValueError(f"tasks={names} have the splits {common} in common, expected one beside 'train'")
    splits: dict[str, tuple] = {}
    for split in common:
        parts = [_filled(task, split, number, words) for number, task in enumerate(tasks)]
        splits[split] = tuple(example for part in parts for example in part)
        splits |= {f"{split} {name}": tuple(part) for name, part in zip(names, parts)}
    source = "; ".join(dict.fromkeys(task.source for task in tasks))
    return JoinedTask("+".join(names), words, words, "{text}", splits, "accuracy", source)


def _filled(task: Task, split: str, number: int, words: Sequence[str]) -> list[dict]:
    return [
        {"text": task.text(example), "label": words.index(task.words[example["label"]]), "part": number}
        for example in task.examples(split)
    ]
