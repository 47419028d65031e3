"""The record of decisions for single inputs: what is kept is what the model decides, and answers are those by hand."""

import pytest
import torch
from torch.testing import assert_close
from transformers import DataCollatorForSeq2Seq

import dplearn as dp
from dplearn.experiments import shown

WHICH = shown.Shown("pool", "unified", "place/mixed", "pool per instance", seed=1, inputs=3, characters=45)


@pytest.fixture(scope="module")
def setting():
    """place-mini with an untrained pool and a controller that tells inputs apart; three short texts."""
    backbone, tokenizer = dp.zoo.load("place-mini")
    torch.manual_seed(0)
    options = {"length": 2, "vector": "instance", "pool_size": 4, "controller_init": "uniform"}
    model = dp.prompted(backbone, dp.PromptConfig(**options)).eval()
    with torch.no_grad():
        model.prompt.vector.controller.linear.weight.mul_(4)
    task = dp.tasks.load("place/mixed")
    numbers = shown.chosen(task, WHICH.inputs, WHICH.characters)
    rows = task.encode(tokenizer, "test", answer_prefix=dp.zoo.ANSWER_PREFIX)
    batch = DataCollatorForSeq2Seq(tokenizer, backbone)([dict(rows[n]) for n in numbers])
    return backbone, tokenizer, model, task, numbers, batch


def by_hand(setting, vectors):
    """Probabilities of the label words with this one prompt before all texts."""
    backbone, tokenizer, _, task, _, batch = setting
    words = task.word_ids(tokenizer, backbone)
    model = dp.prompted(backbone, dp.PromptConfig(length=2), vectors=vectors).eval()
    with torch.no_grad():
        return model(**batch).logits[:, -1, words].softmax(-1)


def test_the_row_holds_decisions_and_answers_as_by_hand(setting):
    _, tokenizer, model, task, numbers, batch = setting
    row = shown.row_of(WHICH, model, tokenizer, task, accuracy=0.5)
    examples = [task.examples("test")[n] for n in numbers]
    assert [each["text"] for each in row["inputs"]] == [example["text"] for example in examples]
    assert all(len(each["text"]) <= WHICH.characters for each in row["inputs"])
    with torch.no_grad():
        beta = model.decide(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[
            "vector"
        ].weights
    assert_close(torch.tensor(row["decisions"]["vector"]["probabilities"]), beta, rtol=0, atol=6e-4)
    assert (beta[0] - beta[1]).abs().max() > 0.05  # the inputs do differ
    pool, eye = model.prompt.vectors.detach(), torch.eye(4)
    weights = {f"input {n + 1}": beta[n] for n in range(3)} | {
        f"prompt {n + 1} alone": eye[n] for n in range(4)
    }
    weights["all prompts alike"] = torch.full((4,), 0.25)
    assert set(row["answers"]) == set(weights)
    for source, share in weights.items():
        wanted = by_hand(setting, torch.einsum("i,ild->ld", share, pool))
        for said, probabilities, example in zip(row["answers"][source], wanted, examples, strict=True):
            assert said[0] == task.words[int(probabilities.argmax())]
            assert said[1:] == pytest.approx(
                [probabilities.max().item(), probabilities[example["label"]].item()], abs=6e-4
            )


def test_the_runs_are_in_the_records_of_their_studies():
    for which in shown.RUNS:
        row = shown.recorded(which)
        assert row["method"] == which.method and row["purpose"] == "report"
    missing = shown.Shown(
        "pool", "unified", "place/mixed", "pool per instance", seed=99, inputs=1, characters=1
    )
    with pytest.raises(
        ValueError, match="the record of 'unified' has 0 rows with .*'seed': 99.*, expected one"
    ):
        shown.recorded(missing)
