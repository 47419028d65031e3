"""Summaries: masked means against a loop, standardizing against the statistics of all values at once."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dplearn.summaries import Standardizer, masked_mean


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


@given(
    batches=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    shift=st.sampled_from([0.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_statistics_are_those_of_all_values_at_once(batches, shift, seed):
    values = torch.randn(sum(batches), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = values * torch.tensor([1.0, 10.0, 0.0], dtype=torch.float64) + shift
    standardizer = Standardizer(3).double()
    for batch in values.split(batches):
        standardizer.observe(batch)
    assert standardizer.count == len(values)
    torch.testing.assert_close(standardizer.mean, values.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        standardizer.variance, values.var(0, unbiased=False), rtol=1e-9, atol=1e-9 * max(shift, 1)
    )


def test_it_equals_batch_norm_with_these_statistics():
    values, fresh = torch.randn(2, 50, 4).double() * torch.tensor([1.0, 5.0, 0.1, 2.0]).double() + 7
    norm = torch.nn.BatchNorm1d(4, eps=1e-30, affine=False, momentum=None).double()
    norm(values)  # cumulative averages of one batch
    norm.running_var *= 49 / 50  # torch keeps the unbiased variance
    standardizer = Standardizer(4).double()
    standardizer.observe(values)
    torch.testing.assert_close(standardizer(fresh), norm.eval()(fresh))


def test_before_anything_was_observed_nothing_changes_and_a_reset_goes_back():
    standardizer, values = Standardizer(4), torch.randn(5, 4)
    assert torch.equal(standardizer(values), values)
    untouched = copy.deepcopy(standardizer.state_dict())
    standardizer.observe(values + 3)
    standardizer.reset()
    assert all(torch.equal(value, untouched[name]) for name, value in standardizer.state_dict().items())


def test_a_single_first_value_is_the_mean():
    standardizer = Standardizer(3)
    standardizer.observe(torch.ones(1, 3))
    assert torch.equal(standardizer(torch.ones(1, 3)), torch.zeros(1, 3))


def test_no_gradient_passes_into_the_statistics_and_a_second_batch_may_follow_before_the_backward_pass():
    standardizer = Standardizer(3)
    values = torch.randn(6, 3, requires_grad=True)
    standardizer.observe(values)
    out = standardizer(values)
    deviation = values.detach().var(0, unbiased=False).sqrt()
    standardizer.observe(torch.randn(6, 3))
    out.sum().backward()
    torch.testing.assert_close(values.grad, (1 / deviation).expand(6, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    values = (torch.randn(4000, 2) + 20).to(dtype)
    standardizer = Standardizer(2)
    standardizer.observe(values)
    torch.testing.assert_close(standardizer.mean, values.float().mean(0))
