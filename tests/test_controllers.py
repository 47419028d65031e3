"""Controllers: task and instance logits against explicit formulas, and what they start from."""

import pytest
import torch

from dplearn.controllers import InstanceController, TaskController, logits_of


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
    assert torch.equal(controller.logits[:1], first)
    assert bool(controller.logits[1].any()) is (init == "uniform")
    assert controller.logits[1].abs().max() <= 0.5
