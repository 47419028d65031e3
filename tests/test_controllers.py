"""Controllers: task and instance logits against explicit formulas, and what they start from."""

from types import SimpleNamespace

import pytest
import torch

from dplearn.choice import Choice, Chooser
from dplearn.controllers import (
    FixedDecision,
    InstanceController,
    LearnedDecision,
    TaskController,
    as_choice,
    learned_in_words,
    logits_of,
    make_controller,
    make_decision,
)


def test_task_logits_are_the_same_row_for_all_and_gradients_add_up():
    controller = TaskController(4, init="uniform")
    logits = controller(torch.randn(3, 9))
    assert torch.equal(logits, controller.logits.detach().repeat(3, 1))
    upstream = torch.randn(3, 4)
    logits.backward(upstream)
    torch.testing.assert_close(controller.logits.grad, upstream.sum(0, keepdim=True))


def test_instance_logits_are_linear_in_the_normalised_summary():
    controller = InstanceController(6, 4, standardize=False, init="uniform").double()
    summary = torch.randn(5, 6, dtype=torch.float64)
    expected = torch.empty(5, 4, dtype=torch.float64)
    for i, row in enumerate(summary):
        centred = row - row.mean()
        normal = centred / (centred.square().mean() + 1e-5).sqrt()
        expected[i] = controller.linear.weight @ normal + controller.linear.bias
    torch.testing.assert_close(controller(summary), expected, rtol=1e-12, atol=1e-12)


def test_instance_logits_do_not_depend_on_the_scale_of_the_embeddings():
    controller, summary = InstanceController(64, 4, init="uniform"), torch.randn(5, 64)
    torch.testing.assert_close(controller(summary), controller(50 * summary), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("standardize", [False, True])
def test_summaries_of_half_precision_are_read_in_the_precision_of_the_controller(standardize):
    controller, summary = InstanceController(6, 4, standardize, init="uniform"), torch.randn(5, 6).bfloat16()
    logits = controller(summary)
    assert logits.dtype == torch.float32 and torch.equal(logits, controller(summary.float()))


def test_instance_logits_see_what_differs_between_the_training_inputs():
    controller = InstanceController(6, 4, init="uniform").double()
    training, summary = torch.randn(2, 40, 6, dtype=torch.float64) * torch.arange(1, 7) + 3
    logits_of(controller, training[:15], None, None, training=True)
    logits_of(controller, training[15:], None, True, training=False)
    rows = torch.nn.functional.layer_norm(training, (6,))
    mean, deviation = rows.mean(0), rows.var(0, unbiased=False).sqrt()
    seen = (torch.nn.functional.layer_norm(summary, (6,)) - mean) / deviation
    expected = seen @ controller.linear.weight.T + controller.linear.bias
    for sampling, training_mode in ((False, True), (None, False)):  # nothing is learned from these
        found = logits_of(controller, summary, None, sampling, training_mode)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_decision_learns_what_inputs_look_like_in_training_until_it_forgets():
    controller = InstanceController(6, 4)
    decision, steps = LearnedDecision(controller, Chooser()), []
    for training, sampling in ((True, None), (False, None), (False, True), (True, False)):
        decision.train(training)(torch.randn(5, 6), None, sampling)
        steps.append(int(controller.standardizer.count))
    assert steps == [5, 5, 10, 10]
    controller.forget()
    assert controller.standardizer.count == 0
    plain = InstanceController(6, 4, standardize=False)
    plain.observe(torch.randn(5, 6))
    plain.forget()  # there is nothing to forget
    assert plain.standardizer is None


@pytest.mark.parametrize(
    "make", [lambda **o: TaskController(5, 2, **o), lambda **o: InstanceController(3, 5, **o)]
)
def test_a_controller_starts_without_a_preference_or_at_random(make):
    summary, task = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    assert torch.equal(make()(summary, task), torch.zeros(4, 5))
    assert make(init="uniform")(summary, task).std() > 0.1
    with pytest.raises(ValueError, match="init='ones' is unknown, expected 'zero', 'uniform'"):
        make(init="ones")


@pytest.mark.parametrize("init", ["zero", "uniform"])
def test_a_new_task_starts_as_the_others_did(init):
    controller = TaskController(300, init=init)
    first = controller.logits.detach().clone()
    controller.add_task()
    assert torch.equal(controller.logits[:1], first) and controller.tasks == 2
    assert bool(controller.logits[1].any()) is (init == "uniform")
    assert controller.logits[1].abs().max() <= 0.5


def options(**changes):
    usual = dict(
        length=3, tasks=None, controller_init="uniform", standardize=True, summary="embeddings", towers=None
    )
    return SimpleNamespace(**usual | changes)


def test_a_controller_is_made_by_its_level():
    alone, several = (
        make_controller("task", 9, 4, options(tasks=tasks)) for tasks in (None, ("a", "b", "c"))
    )
    assert alone.logits.shape == (1, 4) and several.logits.shape == (3, 4)
    assert several.tasks == 3 and several.options == 4 and several.init == "uniform"
    assert torch.equal(
        several(torch.zeros(5, 9)), several.logits[[0] * 5]
    )  # where nobody says, the first task
    plain, seeing = (make_controller("instance", 9, 4, options(standardize=known)) for known in (False, True))
    assert plain.linear.weight.shape == (4, 9) and plain.options == 4
    assert plain.standardizer is None and seeing.standardizer is not None
    assert not alone.looks_at_input and plain.looks_at_input
    for level in ("task", "instance"):
        started = make_controller(level, 9, 4, options(controller_init="zero"))
        assert not any(parameter.any() for parameter in started.parameters())
        started = make_controller(level, 9, 4, options(controller_init="uniform"))
        assert all(parameter.any() for name, parameter in started.named_parameters() if "bias" not in name)
        assert isinstance(make_decision(None, level, 9, options(), Chooser).controller, type(started))


def test_a_decision_is_fixed_or_learned_among_one_more_than_there_are_vectors():
    fixed = make_decision(2, 2, 9, options(), Chooser)
    assert fixed(torch.zeros(4, 9)).index.tolist() == [2] * 4 and fixed.entries_in_use() == {}
    assert not fixed.looks_at_input
    learned = make_decision(None, "instance", 9, options(), Chooser).eval()
    assert isinstance(learned, LearnedDecision) and learned.looks_at_input
    summary = torch.randn(5, 9)
    choice = learned(summary)
    assert torch.equal(choice.logits, learned.controller(summary)) and choice.logits.shape == (5, 4)
    assert learned.entries_in_use() == {"controller.linear.weight": 36, "controller.linear.bias": 4}
    tried = learned.tried(choice, torch.tensor([1, 0]))
    assert tried.index.tolist() == [1, 0] and tried.weights is None and tried.logits is None
    assert isinstance(make_decision(0, "task", 9, options(), Chooser), FixedDecision)


def test_a_learned_decision_follows_its_mode_unless_it_is_told():
    decision = LearnedDecision(TaskController(6, 2), Chooser("straight-through")).eval()
    with torch.no_grad():
        decision.controller.logits[1, 0] = 50.0
    summary, task = torch.zeros(200, 3), torch.tensor([0, 1] * 100)
    said = decision(summary, task)
    assert said.index.tolist() == [5, 0] * 100  # the last of equals, and the one that learned something
    assert decision(summary, task, True).index[::2].unique().numel() == 6
    assert decision.train()(summary, task).index[::2].unique().numel() == 6
    assert torch.equal(decision(summary, task, False).index, said.index)


@pytest.mark.parametrize(
    ("level", "changes", "words"),
    [
        ("instance", {}, "decided for each input from the mean of its embeddings"),
        ("instance", {"summary": "encoder"}, "decided for each input from the encoder's view"),
        ("instance", {"summary": "image"}, "decided for each image from the model's view of it"),
        ("instance", {"towers": "vision"}, "decided for each image from the mean of its embeddings"),
        ("instance", {"towers": "text"}, "decided for each input from the mean of its embeddings"),
        ("task", {}, "learned for the task"),
        ("task", {"tasks": ("a",)}, "learned for the task"),
        ("task", {"tasks": ("a", "b")}, "learned for each task"),
    ],
)
def test_how_a_decision_is_learned_in_words(level, changes, words):
    assert learned_in_words(level, options(**changes)) == words


@pytest.mark.parametrize("value", [2, torch.tensor([2, 2, 2]), torch.tensor([2, 2, 2], dtype=torch.int32)])
def test_a_choice_made_elsewhere_is_an_option_for_each(value):
    choice = as_choice("position", value, 3, 4, "cpu")
    assert choice.index.tolist() == [2, 2, 2] and choice.index.dtype == torch.int64 and choice.weights is None


def test_a_choice_made_elsewhere_keeps_its_weights():
    given = Choice(torch.tensor([0, 3]), torch.eye(4)[[0, 3]], torch.ones(2, 4))
    choice = as_choice("size", given, 2, 4, torch.device("cpu"))
    assert choice.weights is given.weights and choice.logits is given.logits
    assert choice.index.tolist() == [0, 3]
    empty = as_choice("size", torch.zeros(0, dtype=torch.long), 0, 4, "cpu")
    assert empty.index.shape == (0,)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (4, "holds 4..4"),
        (-1, "holds -1..-1"),
        (torch.tensor([0, 1, 4]), "holds 0..4"),
        (torch.tensor([0, -2, 3]), "holds -2..3"),
        (torch.tensor([0, 1]), r"has shape \(2,\)"),
        (torch.tensor([[0, 1, 2]]), r"has shape \(1, 3\)"),
        (torch.tensor([0.0, 1.0, 2.0]), r"has shape \(3,\)"),
        (Choice(torch.tensor([0, 1])), r"has shape \(2,\)"),
        (1.5, "has 1.5"),
        (None, "has None"),
        (True, "has True"),
    ],
)
def test_what_is_no_choice_is_refused(value, what):
    expected = r", expected a number in 0..3, one for each of the 3 instances, or a Choice"
    with pytest.raises(ValueError, match=r"decisions\['size'\] " + what + expected):
        as_choice("size", value, 3, 4, "cpu")


def test_choices_are_made_where_the_inputs_are():
    """The meta device stands for any other than the CPU: mixing them up is an error there."""
    elsewhere = torch.zeros(4, 9, device="meta")
    assert FixedDecision(2)(elsewhere).index.device.type == "meta"
    for value in (1, torch.tensor([0, 1, 2, 3])):
        assert as_choice("size", value, 4, 4, "meta").index.device.type == "meta"
    assert as_choice("size", torch.zeros(4, device="meta").long(), 4, 4, "meta").index.shape == (4,)
    moved = TaskController(3, 1).to(device="meta", dtype=torch.float64)
    moved.add_task()
    assert moved.logits.device.type == "meta" and moved.logits.dtype == torch.float64
