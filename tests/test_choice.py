"""Choices: Gumbel-Softmax against torch and against closed forms; argmax in evaluation; temperature schedules."""

import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dplearn.choice import (
    SCHEDULES,
    Authors,
    Chooser,
    Constant,
    Exponential,
    Linear,
    gumbel_one_hot,
    schedule,
)
from dplearn.estimators import ESTIMATORS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_generator_gives_what_torch_gives_from_the_same_seed(dtype, temperature):
    logits = torch.randn(64, 7, dtype=dtype, requires_grad=True)
    upstream = torch.randn(64, 7, dtype=dtype)
    torch.manual_seed(3)
    reference = torch.nn.functional.gumbel_softmax(logits, tau=temperature, hard=True)
    ours = gumbel_one_hot(logits, temperature, torch.Generator().manual_seed(3))
    assert torch.equal(ours, reference)
    (expected,) = torch.autograd.grad(reference, logits, upstream)
    (found,) = torch.autograd.grad(ours, logits, upstream)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(1)])
def test_rows_are_exactly_one_hot(dtype, generator):
    rows = gumbel_one_hot(torch.randn(2000, 6).to(dtype), 0.5, generator)
    assert torch.equal(rows.sort(-1).values, torch.tensor([0, 0, 0, 0, 0, 1]).to(dtype).expand(2000, 6))


def test_sampling_frequencies_are_the_softmax_of_the_logits_at_any_temperature():
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    for temperature in (0.2, 5.0):
        generator = torch.Generator().manual_seed(0)
        rows = gumbel_one_hot(logits.expand(200_000, 4), temperature, generator)
        error = (rows.mean(0) - logits.softmax(-1)).abs()
        assert (error < 4 * (0.25 / 200_000) ** 0.5).all()  # four standard errors


def test_gradient_is_the_softmax_jacobian_at_the_noisy_logits():
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    upstream, tau = torch.randn(5, 4, dtype=torch.float64), 0.7
    rows = gumbel_one_hot(logits, tau, torch.Generator().manual_seed(9))
    (found,) = torch.autograd.grad(rows, logits, upstream)
    noise = -torch.empty_like(logits).exponential_(generator=torch.Generator().manual_seed(9)).log()
    for i in range(5):
        y = ((logits[i] + noise[i]) / tau).softmax(-1)
        jacobian = (torch.diag(y) - torch.outer(y, y)) / tau
        torch.testing.assert_close(found[i], jacobian @ upstream[i], rtol=1e-12, atol=1e-14)


def test_evaluation_is_argmax_without_noise_or_gradient():
    chooser, logits = Chooser().eval(), torch.randn(50, 6, requires_grad=True)
    state = torch.get_rng_state()
    choice = chooser(logits)
    assert torch.equal(torch.get_rng_state(), state)  # no random number was drawn
    assert torch.equal(choice.index, logits.argmax(-1)) and choice.weights is None
    assert torch.equal(chooser(logits).index, choice.index)


def test_sampling_in_evaluation_only_when_asked_for():
    logits = torch.zeros(500, 6)
    asked = Chooser(sample_in_evaluation=True, generator=torch.Generator().manual_seed(0)).eval()
    assert asked(logits).index.unique().numel() == 6
    assert Chooser().eval()(logits).index.unique().numel() == 1


@pytest.mark.parametrize(
    "options", [{"estimator": name} for name in ESTIMATORS] + [{"sample_in_evaluation": True}]
)
def test_a_generator_is_the_only_source_of_the_noise(options):
    """Two of the same seed agree whatever torch's global one does, which stays where it is."""
    logits, found, training = torch.zeros(50, 6), [], "estimator" in options
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        chooser = Chooser(**options, generator=torch.Generator().manual_seed(0)).train(training)
        found.append(chooser(logits).index)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*found) and found[0].unique().numel() == 6


def test_a_chooser_has_nothing_to_save_and_evaluation_keeps_the_logits():
    chooser, logits = Chooser(temperature=0.5).eval(), torch.randn(5, 3)
    assert not chooser.state_dict() and list(dict(chooser.named_buffers())) == ["temperature"]
    assert torch.equal(chooser(logits).logits, logits)


def test_training_samples_and_weights_point_at_the_index():
    chooser = Chooser(generator=torch.Generator().manual_seed(0)).train()
    choice = chooser(torch.zeros(500, 6, requires_grad=True))
    assert choice.index.unique().numel() == 6
    assert torch.equal(choice.weights.argmax(-1), choice.index) and choice.weights.requires_grad


@pytest.mark.parametrize("estimator", ["score-function", "exact"])
def test_estimators_that_compare_losses_choose_a_plain_sample(estimator):
    """The option of the largest noisy logit, row by row, without weights: the gradient comes from the losses."""
    logits = 3 * torch.randn(50, 6, requires_grad=True)
    torch.manual_seed(4)
    noise = -torch.empty_like(logits).exponential_().log()
    expected = [max(range(6), key=lambda k, row=row: row[k].item()) for row in logits + noise]
    torch.manual_seed(4)
    choice = Chooser(estimator, temperature=0.3).train()(logits)
    assert choice.index.tolist() == expected and choice.weights is None
    assert torch.equal(choice.logits, logits)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_sampling_in_evaluation_takes_the_largest_noisy_logit_of_each_row(temperature):
    logits = 3 * torch.randn(50, 6)
    torch.manual_seed(4)
    noise = -torch.empty_like(logits).exponential_().log()
    expected = [max(range(6), key=lambda k, row=row: row[k].item()) for row in logits + noise]
    torch.manual_seed(4)
    choice = Chooser(temperature=temperature, sample_in_evaluation=True).eval()(logits)
    assert choice.index.tolist() == expected and choice.weights is None


def test_the_temperature_is_one_where_nobody_says():
    logits = torch.randn(20, 5, requires_grad=True)
    upstream, found = torch.randn(20, 5), []
    for make in (
        lambda: Chooser()(logits).weights,
        lambda: torch.nn.functional.gumbel_softmax(logits, 1.0, True),
    ):
        torch.manual_seed(2)
        found += torch.autograd.grad(make(), logits, upstream)
    assert torch.equal(*found) and Chooser().temperature == 1.0


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
@pytest.mark.parametrize("training", [False, True])
def test_sampling_is_asked_for_whatever_the_mode(estimator, training):
    """None follows the mode; True and False are the choices of training and of evaluation, bit by bit."""
    chooser, logits = Chooser(estimator, temperature=0.7), torch.randn(40, 5)
    for sampling in (True, False):
        found = []
        for mode, asked in ((sampling, None), (training, sampling)):
            torch.manual_seed(6)
            found.append(chooser.train(mode)(logits, asked))
            assert chooser.training is mode
        (index, weights, _), (other, others, _) = found
        assert torch.equal(index, other) and (weights is None) is (others is None)
        assert weights is None or torch.equal(weights, others)
        assert sampling or torch.equal(index, logits.argmax(1))


def test_half_precision_logits_are_compared_in_float32():
    choice = Chooser().train()(torch.zeros(4, 3, dtype=torch.bfloat16))
    assert choice.weights.dtype == torch.float32


# --- schedules ---


def test_authors_schedule_equals_their_loop_and_meets_its_floor_at_step_680():
    for interval in (1.0, 10.0):
        tau, ours = 1.0, Authors(interval)
        for step in range(2000):
            tau = max(tau * math.exp(-3e-5 * step / interval), 0.5)
            assert ours(step) == pytest.approx(tau, rel=1e-12)
    floor = next(step for step in range(20_000) if Authors()(step) == 0.5)
    assert floor == 680
    assert next(step for step in range(20_000) if Authors(1.0)(step) == 0.5) == 215


@given(start=st.floats(0.1, 10), end=st.floats(0.1, 10), steps=st.integers(1, 500), step=st.integers(0, 1000))
def test_linear_and_exponential_are_interpolations_that_end(start, end, steps, step):
    share = min(step / steps, 1)
    assert schedule("linear", start=start, end=end, steps=steps)(step) == pytest.approx(
        (1 - share) * start + share * end
    )
    in_logs = math.exp((1 - share) * math.log(start) + share * math.log(end))
    assert schedule("exponential", start=start, end=end, steps=steps)(step) == pytest.approx(in_logs)


def test_constant_schedule():
    assert {schedule("constant", value=0.7)(step) for step in (0, 5, 10_000)} == {0.7}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedule("cosine"), "name='cosine' is not a temperature schedule"),
        (
            lambda: schedule("constant", value=0.0),
            "value=0.0 is not valid, expected a positive, finite number",
        ),
        (lambda: Exponential(start=-1.0), "start=-1.0"),
        (lambda: Exponential(end=0.0), "end=0.0"),
        (lambda: SCHEDULES["linear"](steps=0), "steps=0 is not valid, expected at least 1"),
        (lambda: Authors(interval=0), "interval=0"),
        (lambda: Authors(floor=2), "floor=2"),
        (lambda: Authors(floor=0), r"floor=0 is not valid, expected a number in (0, 1\]"),
        (lambda: Authors(floor=numpy.ones(2)), r"floor=array"),
        (lambda: Linear(steps=numpy.ones(2)), r"steps=array"),
        (lambda: Constant(numpy.ones(2)), r"value=array"),
        (
            lambda: Constant(10**400),
            "value=10000.* is not valid, expected a positive, finite number that float32 holds",
        ),
        (lambda: Chooser(["exact"]), r"estimator=\['exact'\] is unknown"),
        (lambda: Chooser(temperature=1e39), r"temperature=1e.39 is not valid, .* that float32 holds"),
        (lambda: Chooser(temperature=1e-38), "temperature=1e-38 is not valid, .* that float32 holds"),
        (lambda: Chooser(temperature=10**400), "temperature=10000.* is not valid, .* that float32 holds"),
        (lambda: Chooser(temperature=numpy.ones(2)), "temperature=array"),
        (lambda: Chooser(temperature="warm"), "temperature='warm' is not valid"),
        (lambda: Chooser().set_temperature(True), "temperature=True is not valid"),
        (
            lambda: Chooser("reinforce"),
            "estimator='reinforce' is unknown, expected 'exact', 'position-space'",
        ),
        (
            lambda: Chooser(temperature=0.0),
            "temperature=0.0 is not valid, expected a positive, finite number",
        ),
        (lambda: Chooser().set_temperature(float("nan")), "temperature=nan"),
        (lambda: Chooser().set_temperature(float("inf")), "temperature=inf"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make()


@pytest.mark.parametrize("value", [0.25, numpy.float32(0.25), torch.tensor(0.25), numpy.float64(0.25)])
def test_a_temperature_may_be_a_number_of_numpy_or_torch(value):
    chooser = Chooser()
    chooser.set_temperature(value)
    assert chooser.temperature.item() == 0.25


def test_the_floor_of_the_authors_schedule_may_be_one():
    assert [Authors(floor=1.0)(step) for step in (0, 5, 1000)] == [1.0, 1.0, 1.0]


def test_a_schedule_has_an_end():
    with pytest.raises(ValueError, match="steps=inf"):
        Linear(steps=math.inf)
