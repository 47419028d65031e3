"""Several tasks in a stock Trainer, by number and by name; and what is said of training that diverges."""

import pytest
import spliced
import tiny
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformers import (
    BertForSequenceClassification,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    set_seed,
)

import dplearn as dp

TASKS, LENGTH = ("rte", "boolq"), 3
TEXTS = [[5, 9, 6], [40, 4, 8, 3, 21], [3, 17], [11, 12, 9, 50]]
LABELS, WHICH = [1, 2, 0, 1], [0, 1, 1, 0]


def rows(tasks=WHICH, **columns):
    found = {"input_ids": TEXTS, "labels": LABELS} | ({} if tasks is None else {"task_ids": tasks})
    return Dataset.from_dict(found | columns)


def model_of(backbone=None, **options):
    set_seed(0)
    backbone = backbone or tiny.bert(BertForSequenceClassification, num_labels=3)
    config = dp.PromptConfig(length=LENGTH, position="task", tasks=TASKS, **tiny.SAMPLED | options)
    model = dp.prompted(backbone, config).double()
    with torch.no_grad():  # one task has a postfix, the other one a split
        model.prompt.position.controller.logits.copy_(torch.tensor([[2.0, 0, 0, 0], [0, 0, 2.0, 0]]))
    return model


def trainer_of(model, data, folder, kind=Trainer, collator=None, **options):
    settings = TrainingArguments if kind is Trainer else Seq2SeqTrainingArguments
    usual = dict(
        max_steps=4, per_device_train_batch_size=4, per_device_eval_batch_size=4, learning_rate=0.05, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1,
    )  # fmt: skip
    return kind(
        model,
        settings(output_dir=str(folder), **usual | options),
        train_dataset=data,
        eval_dataset=data,
        data_collator=collator or DataCollatorWithPadding(spliced.tokenizer()),
    )


def named(model):
    """The documented way from names to numbers."""
    data = rows([TASKS[number] for number in WHICH], note=["x"] * 4)
    return data.map(lambda rows: {"task_ids": model.task_numbers(rows["task_ids"])}, batched=True)


def test_each_row_has_the_split_of_its_task(tmp_path):
    """``evaluate`` gives the mean of losses of prompts that stand where each task wants them."""
    losses = []
    for text, label, task in zip(TEXTS, LABELS, WHICH, strict=True):
        model = model_of()
        fixed = dp.PromptConfig(length=LENGTH, position=(0, 2)[task])
        one = dp.prompted(model.backbone, fixed, vectors=model.prompt.vectors.detach())
        losses.append(cross_entropy(one(torch.tensor([text])).logits, torch.tensor([label])))
    expected, other = torch.stack(losses).mean().item(), model_of()
    for data in (rows(), named(other)):
        found = trainer_of(model_of(), data, tmp_path).evaluate()["eval_loss"]
        assert found == pytest.approx(expected, rel=1e-6)
    swapped = trainer_of(model_of(), rows([1 - task for task in WHICH]), tmp_path).evaluate()["eval_loss"]
    assert abs(swapped - expected) > 1e-3


def test_training_by_name_is_training_by_number(tmp_path):
    models = [model_of(), model_of()]
    for model, data in zip(models, (rows(), named(models[1])), strict=True):
        trainer_of(model, data, tmp_path).train()
    start = model_of()
    for name, parameter in models[0].trainable_parameters().items():
        assert torch.equal(parameter, models[1].trainable_parameters()[name])
        assert not torch.equal(parameter, start.trainable_parameters()[name])


def test_a_task_that_is_not_in_the_data_learns_nothing(tmp_path):
    model, start = model_of(), model_of().prompt.position.controller.logits
    trainer_of(model, rows(["rte"] * 4).map(
        lambda rows: {"task_ids": model.task_numbers(rows["task_ids"])}, batched=True
    ), tmp_path).train()  # fmt: skip
    logits = model.prompt.position.controller.logits
    assert torch.equal(logits[1], start[1]) and (logits[0] - start[0]).abs().max() > 1e-3


def test_without_tasks_the_trainer_says_what_is_missing(tmp_path):
    with pytest.raises(
        ValueError, match=r"task_ids=None, expected one of \['rte', 'boolq'\] \(or its number\) for each"
    ):
        trainer_of(model_of(), rows(None), tmp_path).train()
    with pytest.raises(ValueError, match="task_ids holds 'other', expected some of"):
        model_of().task_numbers(["rte", "other"])
    with pytest.raises(ValueError, match="task_ids holds 0..7, expected 0..1"):
        trainer_of(model_of(), rows([0, 1, 0, 7]), tmp_path).train()


def test_answers_are_generated_for_each_task(tmp_path):
    """``predict_with_generate`` hands the tasks on."""
    model = model_of(tiny.t5())
    texts, answers = [[*text, tiny.EOS] for text in TEXTS], [[20, tiny.EOS]] * 4
    data = Dataset.from_dict({"input_ids": texts, "labels": answers, "task_ids": WHICH})
    trainer = trainer_of(
        model, data, tmp_path, Seq2SeqTrainer, DataCollatorForSeq2Seq(spliced.tokenizer(), model),
        predict_with_generate=True, generation_max_length=5,
    )  # fmt: skip
    found = trainer.predict(data).predictions
    differs = False
    for row, (text, task) in enumerate(zip(texts, WHICH, strict=True)):
        one = []
        for position in (0, 2):
            config = dp.PromptConfig(length=LENGTH, position=position)
            fixed = dp.prompted(model.backbone, config, vectors=model.prompt.vectors.detach())
            one.append(fixed.generate(torch.tensor([text]), max_length=5)[0])
        differs = differs or one[0].tolist() != one[1].tolist()
        wanted = one[task].tolist()
        assert found[row, : len(wanted)].tolist() == wanted
        assert all(token in (tiny.PAD, -100) for token in found[row, len(wanted) :])
    assert differs


# --- training that diverges ---


DIVERGES = dict(learning_rate=float("inf"), max_grad_norm=0.0)


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        ("straight-through", "weights row 0 is nan away from one-hot, .*: .* training has diverged"),
        ("score-function", "logits of the position, row 0, are not finite: training has diverged"),
        ("exact", "logits of the position, row 0, are not finite: training has diverged"),
    ],
)
def test_decisions_that_diverge_stop_the_training(tmp_path, estimator, words):
    trainer = trainer_of(model_of(estimator=estimator), rows(), tmp_path, **DIVERGES)
    with pytest.raises(ValueError, match=words):
        trainer.train()


def test_numbers_that_are_not_finite_are_named_and_never_loaded(tmp_path):
    """A Trainer goes on with NaN and writes files of its own; saving the prompt is refused, and so is loading those."""
    bert = tiny.bert(BertForSequenceClassification, num_labels=3)
    model = dp.prompted(bert, dp.PromptConfig(length=LENGTH)).double()
    trainer = trainer_of(model, rows(None), tmp_path / "runs", **DIVERGES)
    trainer.train()
    wrong = int((~model.prompt.vectors.isfinite()).sum())
    assert wrong > LENGTH
    words = rf"vectors' {{}} .* with {wrong} of {LENGTH * tiny.WIDTH} numbers that are NaN or .*training has diverged"
    with pytest.raises(ValueError, match=words.format("cannot be saved to")):
        model.save_pretrained(tmp_path / "prompt")
    assert not (tmp_path / "prompt").exists()
    trainer.save_model(tmp_path / "saved")
    with pytest.raises(ValueError, match=words.format("is loaded from")):
        dp.from_pretrained(tmp_path / "saved", tiny.bert(BertForSequenceClassification, num_labels=3))


def test_finite_numbers_of_a_trainer_are_loaded(tmp_path):
    model = model_of()
    trainer = trainer_of(model, rows(), tmp_path / "runs")
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    again = dp.from_pretrained(tmp_path / "saved", tiny.bert(BertForSequenceClassification, num_labels=3))
    ids, mask = spliced.padded(TEXTS)
    batch = dict(input_ids=ids, attention_mask=mask, task_ids=list(map(TASKS.__getitem__, WHICH)))
    assert_close(again.eval()(**batch).logits, model.eval()(**batch).logits, rtol=0, atol=0)
