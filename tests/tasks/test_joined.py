"""Several tasks as one: examples, words and splits against the parts, and a run with decisions per task."""

import pytest

import dplearn as dp
from dplearn import tasks, zoo
from dplearn.experiments.execution import load_task, run_job
from dplearn.tasks.joined import join

NAMES = ("world/color", "world/rte")


def test_the_parts_are_all_there_and_only_they():
    parts = [tasks.load(name) for name in NAMES]
    both = join(parts)
    assert both.words == tuple(dict.fromkeys(parts[0].words + parts[1].words))
    for split in ("train", "validation", "test", "test_wordings"):
        expected = [
            (part.text(example), part.words[example["label"]], number)
            for number, part in enumerate(parts) for example in part.examples(split)
        ]  # fmt: skip
        found = [(e["text"], both.words[e["label"]], e["part"]) for e in both.examples(split)]
        assert found == expected
        for number, name in enumerate(NAMES):
            own = [(e["text"], both.words[e["label"]], e["part"]) for e in both.examples(f"{split} {name}")]
            assert own == [each for each in expected if each[2] == number]
    assert load_task("+".join(NAMES)).examples("test") == both.examples("test")


def test_encoded_examples_are_those_of_the_parts_with_the_task_where_a_prompt_wants_it():
    backbone, tokenizer = zoo.load("t5-mini")
    parts = [tasks.load(name) for name in NAMES]
    both = join(parts)
    plain = dp.prompted(backbone, dp.PromptConfig(length=2))
    shared = dp.prompted(backbone, dp.PromptConfig(length=2, position="task", tasks=NAMES))
    options = {"answer_prefix": zoo.ANSWER_PREFIX}
    rows = [row for part in parts for row in part.encode(tokenizer, "test", plain, **options)]
    assert list(both.encode(tokenizer, "test", plain, **options)) == rows
    assert list(both.encode(tokenizer, "test", None, **options)) == rows
    numbers = [e["part"] for e in both.examples("test")]
    expected = [row | {"task_ids": number} for row, number in zip(rows, numbers, strict=True)]
    assert list(both.encode(tokenizer, "test", shared, **options)) == expected


def test_a_run_decides_per_task_and_is_scored_on_each():
    spec = {
        "backbone": "t5-mini", "task": "+".join(NAMES), "kind": "prompt", "seed": 0, "purpose": "report",
        "prompt": {"length": 2, "position": "task", "tasks": list(NAMES), "estimator": "score-function"},
        "settings": {"steps": 2, "batch_size": 4}, "splits": ["validation", *(f"validation {n}" for n in NAMES)],
        "looks": {"points": 1, "subset": 8, "report": 8},
    }  # fmt: skip
    row = run_job(spec)
    scores = [row["scores"][split]["accuracy"] for split in spec["splits"]]
    parts = [len(tasks.load(name).examples("validation")) for name in NAMES]
    assert scores[0] == pytest.approx((scores[1] * parts[0] + scores[2] * parts[1]) / sum(parts), abs=1e-4)
    assert row["evidence"]["decisions"]["position"]["options"] == 3
    # vectors, and three scores for each task
    assert row["trained_parameters"] == 2 * 128 + 2 * 3


@pytest.mark.parametrize("names", [("world/color",), ("world/color", "world/color")])
def test_what_cannot_be_joined_is_refused(names):
    with pytest.raises(ValueError, match="expected at least two of different names"):
        join([tasks.load(name) for name in names])
