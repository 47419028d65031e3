"""Training with transformers.Trainer: annealing, the loss over label words, small checkpoints that resume."""

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

import dplearn as dp
from dplearn.choice import Linear

WORDS = [7, 3, 11]


class Examples(torch.utils.data.Dataset):
    """Fixed-length inputs whose label word depends on the first token, or is always the same one."""

    def __init__(self, count=64, prefix=(), constant=False):
        self.ids, self.mask = tiny.batch([6] * count, seed=5)
        self.labels = torch.tensor([[*prefix, WORDS[2 if constant else int(row[0]) % 3]] for row in self.ids])

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        # A Trainer with its own loss function takes the labels away, so the decoder's inputs are given too.
        decoder = torch.cat([torch.tensor([tiny.PAD]), self.labels[i, :-1]])
        return {
            "input_ids": self.ids[i],
            "attention_mask": self.mask[i],
            "labels": self.labels[i],
            "decoder_input_ids": decoder,
        }


def model(position="instance", seed=0, **options):
    set_seed(seed)
    return dp.prompted(
        tiny.t5(dtype=torch.float32),
        dp.PromptConfig(length=4, position=position, **tiny.SAMPLED | options),
    )


def arguments(folder, **options):
    settings = {
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.05,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(output_dir=str(folder), **(settings | options))


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# --- the loss over label words ---


def test_loss_and_predictions_equal_a_loop():
    logits, targets = torch.randn(5, 2, 20), [0, 2, 1, 1, 0]
    labels = torch.tensor([[9, WORDS[target]] for target in targets])
    expected, best = 0.0, []
    for row, target in enumerate(targets):
        scores = torch.stack([logits[row, 1, word] for word in WORDS])
        expected += -(scores[target] - torch.logsumexp(scores, 0)) / 5
        best.append(int(scores.argmax()))
    loss = dp.LabelWordLoss(WORDS)
    torch.testing.assert_close(loss({"logits": logits}, labels), expected)
    assert (
        loss.predictions((logits, "other outputs"), labels).tolist()
        == best
        == loss.predictions(logits, None).tolist()
    )
    assert loss.targets(labels).tolist() == targets


@pytest.mark.parametrize("prefix", [(), (30,)])
def test_accumulated_gradients_equal_those_of_the_large_batch(tmp_path, prefix):
    gradients = []
    for batch_size, accumulate in ((16, 1), (4, 4)):
        prompted = model("prefix")
        optimizer = torch.optim.SGD(prompted.trainable_parameters().values(), lr=1.0)
        start = prompted.prompt.vectors.detach().clone()
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        trainer = Trainer(
            prompted,
            arguments(
                tmp_path,
                max_steps=1,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=accumulate,
                max_grad_norm=0.0,
            ),
            train_dataset=Examples(16, prefix),
            compute_loss_func=dp.LabelWordLoss(WORDS),
            optimizers=(optimizer, scheduler),
        )
        trainer.train()
        gradients.append(start - prompted.prompt.vectors.detach())
    by_hand = model("prefix").train()
    rows = [Examples(16, prefix)[i] for i in range(16)]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    scores = by_hand(**batch).logits[:, -1, WORDS]
    targets = torch.tensor([WORDS.index(int(label)) for label in batch["labels"][:, -1]])
    torch.nn.functional.cross_entropy(scores, targets).backward()
    assert gradients[0].abs().max() > 1e-3
    for gradient in gradients:
        torch.testing.assert_close(gradient, by_hand.prompt.vectors.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [[9, 7], [9, 8]],
            r"labels\[1\] ends with token id 8, expected one of the label words word_ids=\[7, 3, 11\]",
        ),
        ([[7, -100], [9, 3]], r"labels\[0\] ends with token id -100"),
        ([7, 3], r"labels has shape \(2,\), expected \(batch, label tokens\)"),
        ([[], []], r"labels has shape \(2, 0\)"),
    ],
)
def test_a_label_that_is_no_label_word_is_an_error(labels, message):
    loss, labels = dp.LabelWordLoss(WORDS), torch.tensor(labels)
    with pytest.raises(ValueError, match=message):
        loss.targets(labels)
    with pytest.raises(ValueError, match=message):
        loss({"logits": torch.zeros(2, 2, 20)}, labels)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_loss_compiles_whole_and_a_wrong_label_is_no_class_there(backend):
    loss, logits = dp.LabelWordLoss(WORDS), torch.randn(4, 2, 20)
    labels = torch.tensor([[9, 7], [9, 11], [9, 3], [9, 3]])
    compiled = torch.compile(lambda x, y: loss({"logits": x}, y), fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(logits, labels), loss({"logits": logits}, labels))
    with pytest.raises((IndexError, RuntimeError, AssertionError)):
        compiled(logits, torch.tensor([[9, 7], [9, 11], [9, 3], [9, 5]]))


@pytest.mark.parametrize("words", [[4], [4, 4], []])
def test_label_words_must_differ(words):
    with pytest.raises(ValueError, match="expected at least two distinct token ids"):
        dp.LabelWordLoss(words)


# --- the Trainer ---


@pytest.mark.parametrize("position", ["prefix", "task", "instance"])
def test_trainer_learns_and_leaves_the_backbone_alone(tmp_path, position):
    prompted = model(position)
    before = {name: tensor.clone() for name, tensor in prompted.backbone.state_dict().items()}
    data, loss = Examples(constant=True), dp.LabelWordLoss(WORDS)
    trainer = Trainer(prompted, arguments(tmp_path, max_steps=40), train_dataset=data, compute_loss_func=loss)
    trainer.train()
    assert losses(trainer)[-1] < 0.7 * losses(trainer)[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in prompted.backbone.state_dict().items())


def test_trainer_uses_the_models_own_loss_too(tmp_path):
    prompted = model()
    trainer = Trainer(prompted, arguments(tmp_path, max_steps=2), train_dataset=Examples())
    trainer.train()
    batch = [Examples()[i] for i in range(8)]
    inputs = {name: torch.stack([row[name] for row in batch]) for name in batch[0]}
    output = prompted.eval()(**inputs)
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), inputs["labels"].flatten())
    torch.testing.assert_close(output.loss, expected)


def test_checkpoints_hold_the_prompt_alone_and_resume_exactly(tmp_path):
    """Twelve steps at once, or six, a stop, and six more: the same losses to the last bit."""
    schedule = Linear(2.0, 0.5, steps=12)

    def run(folder, stop, resume=None):
        prompted = model()
        callbacks = [dp.Annealing(schedule)]
        options = {"save_strategy": "steps", "save_steps": 6, "max_steps": 12}
        trainer = Trainer(
            prompted,
            arguments(folder, **options),
            train_dataset=Examples(),
            callbacks=callbacks,
            compute_loss_func=dp.LabelWordLoss(WORDS),
        )
        if stop:
            trainer.add_callback(Stop())
        trainer.train(resume_from_checkpoint=resume)
        return prompted, losses(trainer)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= 6

    whole, expected = run(tmp_path / "whole", stop=False)
    run(tmp_path / "parts", stop=True)
    folder = tmp_path / "parts" / "checkpoint-6"
    assert set(load_file(folder / "model.safetensors")) == set(whole.state_dict())
    resumed, found = run(tmp_path / "parts", stop=False, resume=str(folder))
    assert found == expected and len(found) == 12
    assert all(torch.equal(p, resumed.state_dict()[name]) for name, p in whole.state_dict().items())


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    prompted = model("prefix")
    options = {
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "learning_rate": 3.0,
        "load_best_model_at_end": True,
        "max_steps": 8,
    }
    trainer = Trainer(
        prompted,
        arguments(tmp_path, **options),
        train_dataset=Examples(),
        eval_dataset=Examples(24),
        compute_loss_func=dp.LabelWordLoss(WORDS),
    )
    trainer.train()
    scores = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    best = min(scores, key=scores.get)
    stored = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    assert len(scores) == 4 and torch.equal(stored["prompt.vectors"], prompted.prompt.vectors)


def test_what_is_no_schedule_and_what_is_no_prompted_model_is_named():
    with pytest.raises(TypeError, match="schedule is a float, expected a function of the step"):
        dp.Annealing(0.5)
    with pytest.raises(TypeError, match="model is a T5ForConditionalGeneration, expected a prompted model"):
        dp.parameter_groups(tiny.t5(), 0.1, 0.01)


def test_annealing_sets_the_temperature_before_each_step(tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append(model.prompt.position.chooser.temperature.item())

    trainer = Trainer(
        model(),
        arguments(tmp_path, max_steps=4),
        train_dataset=Examples(),
        callbacks=[dp.Annealing(Linear(1.0, 0.5, 4)), Watch()],
    )
    trainer.train()
    assert seen == [1.0, 0.875, 0.75, 0.625]


@pytest.mark.parametrize(("position", "sizes"), [("prefix", [1]), ("task", [1, 1]), ("instance", [1, 2])])
def test_parameter_groups_hold_each_parameter_once(position, sizes):
    prompted = model(position)
    groups = dp.parameter_groups(prompted, 0.3, 0.01)
    assert [len(group["params"]) for group in groups] == sizes
    assert [group["lr"] for group in groups] == [0.3, 0.01][: len(sizes)]
    listed = {id(p) for group in groups for p in group["params"]}
    assert listed == {id(p) for p in prompted.trainable_parameters().values()}
