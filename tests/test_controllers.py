"""Controllers: masked means against a loop, task and instance logits against explicit formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dplearn.controllers import InstanceController, TaskController, masked_mean


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    extra=st.integers(0, 4),
    side=st.sampled_from(["left", "right"]),
    dtype=st.sampled_from([torch.int64, torch.bool]),
)
def test_masked_mean_equals_a_loop_over_real_tokens(lengths, extra, side, dtype):
    width = max(max(lengths), 1) + extra
    states = torch.randn(len(lengths), width, 3, dtype=torch.float64)
    mask = torch.zeros(len(lengths), width, dtype=dtype)
    expected = torch.zeros(len(lengths), 3, dtype=torch.float64)
    for row, length in enumerate(lengths):
        where = slice(0, length) if side == "right" else slice(width - length, width)
        mask[row, where] = 1
        if length:
            expected[row] = sum(states[row, where]) / length
    torch.testing.assert_close(masked_mean(states, mask), expected, rtol=1e-12, atol=1e-12)


def test_masked_mean_of_half_precision_is_summed_in_float32():
    states = torch.full((1, 4096, 1), 1.001, dtype=torch.bfloat16)
    found = masked_mean(states, torch.ones(1, 4096))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, states[:, 0].float())


def test_masked_mean_refuses_another_shape():
    with pytest.raises(ValueError, match=r"mask has shape \(2, 5\), expected \(2, 4\)"):
        masked_mean(torch.zeros(2, 4, 3), torch.ones(2, 5))


def test_task_logits_are_the_same_row_for_all_and_gradients_add_up():
    controller = TaskController(4)
    logits = controller(torch.randn(3, 9))
    assert torch.equal(logits, controller.logits.detach().repeat(3, 1))
    upstream = torch.randn(3, 4)
    logits.backward(upstream)
    torch.testing.assert_close(controller.logits.grad, upstream.sum(0, keepdim=True))


def test_instance_logits_are_linear_in_the_normalised_summary():
    controller, summary = InstanceController(6, 4).double(), torch.randn(5, 6, dtype=torch.float64)
    expected = torch.empty(5, 4, dtype=torch.float64)
    for i, row in enumerate(summary):
        centred = row - row.mean()
        normal = centred / (centred.square().mean() + 1e-5).sqrt()
        expected[i] = controller.linear.weight @ normal + controller.linear.bias
    torch.testing.assert_close(controller(summary), expected, rtol=1e-12, atol=1e-12)


def test_instance_logits_do_not_depend_on_the_scale_of_the_embeddings():
    controller, summary = InstanceController(64, 4), torch.randn(5, 64)
    torch.testing.assert_close(controller(summary), controller(50 * summary), rtol=1e-4, atol=1e-4)
