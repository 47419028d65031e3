"""Gumbel-Softmax with straight-through gradients: each statement against an independent reference.

References: autograd, scipy's quadrature over the density of noisy logits, loops over outcomes, samples with error bars.
Where a statement has a broken neighbour (a cubic loss, the other order of a sum, a rule without the half), it is here too.
"""

import math
from itertools import product

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch.testing import assert_close

from dplearn.choice import Authors, schedule
from dplearn.theory import gumbel

EXACT = {"rtol": 1e-11, "atol": 1e-13}
COEFFICIENTS = torch.tensor(
    [[0.9, -0.4, 0.3, 0.7], [-0.2, 0.8, 0.5, -0.6], [0.1, 0.2, -0.9, 0.4]], dtype=torch.float64
)
LOSSES = {
    "linear": lambda w: (COEFFICIENTS[:, : len(w)] @ w).sum(),
    "quadratic": lambda w: ((COEFFICIENTS[:, : len(w)] @ w) ** 2).sum(),
    "cubic": lambda w: ((COEFFICIENTS[:, : len(w)] @ w) ** 3).sum() * 3,
}
LOGITS = torch.tensor([0.3, -0.5, 0.8, 0.1], dtype=torch.float64)


def logistic(x):
    return 1 / (2 + math.exp(x) + math.exp(-x)) if abs(x) < 700 else 0.0


# ---- corners, Jacobian, exact gradient ------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_corners_are_values_and_slopes_at_the_one_hot_vectors(name):
    loss, step = LOSSES[name], 1e-6
    found = gumbel.corners(loss, 4)
    for k, corner in enumerate(torch.eye(4, dtype=torch.float64)):
        assert_close(found.values[k], loss(corner), **EXACT)
        for j, direction in enumerate(torch.eye(4, dtype=torch.float64)):
            slope = (loss(corner + step * direction) - loss(corner - step * direction)) / (2 * step)
            assert_close(found.gradients[k, j], slope, rtol=1e-7, atol=1e-8)


@given(
    logits=st.lists(st.floats(-5, 5), min_size=2, max_size=6),
    temperature=st.sampled_from([0.3, 1.0, 4.0]),
)
def test_jacobian_is_autograds(logits, temperature):
    logits = torch.tensor(logits, dtype=torch.float64)
    wanted = torch.autograd.functional.jacobian(lambda a: (a / temperature).softmax(-1), logits)
    found = gumbel.softmax_jacobian(logits, temperature)
    assert_close(found, wanted, rtol=1e-9, atol=1e-13)
    assert found.sum(-1).abs().max() < 1e-14 and torch.equal(found, found.mT)


@given(logits=st.lists(st.floats(-4, 4), min_size=2, max_size=7), seed=st.integers(0, 99))
def test_exact_gradient_is_autograd_through_the_expectation(logits, seed):
    logits = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    values = torch.randn(len(logits), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    (wanted,) = torch.autograd.grad((logits.softmax(0) * values).sum(), logits)
    found = gumbel.exact_gradient(logits.detach(), values)
    assert_close(found, wanted, rtol=1e-9, atol=1e-13)
    pairs = sum(  # the form in which the trapezoid rule replaces the differences
        torch.stack(
            [
                logits.softmax(0)[j] * logits.softmax(0)[k] * (values[j] - values[k])
                for j in range(len(values))
            ]
        )
        for k in range(len(values))
    )
    assert_close(found, pairs.detach(), rtol=1e-9, atol=1e-13)


# ---- the estimate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_estimate_is_what_autograd_gives_for_the_same_noise(temperature):
    loss = LOSSES["cubic"]
    noise = (
        -torch.empty(50, 4, dtype=torch.float64)
        .exponential_(generator=torch.Generator().manual_seed(0))
        .log()
    )
    gradients = gumbel.corners(loss, 4).gradients
    found = gumbel.straight_through_gradient(LOGITS, noise, gradients, temperature)
    for g, estimate in zip(noise, found, strict=True):
        logits = LOGITS.clone().requires_grad_()
        soft = ((logits + g) / temperature).softmax(0)
        hard = torch.nn.functional.one_hot(soft.argmax(), 4).double()
        (wanted,) = torch.autograd.grad(loss(hard - soft.detach() + soft), logits)
        assert_close(estimate, wanted, rtol=1e-9, atol=1e-12)


def two_options_by_scipy(logits, gradients, temperature):
    """Mean and variance of the first entry: an adaptive quadrature over the difference of the noisy logits."""
    centre, tau = (logits[0] - logits[1]).item(), temperature
    slopes = (gradients[:, 0] - gradients[:, 1]).tolist()
    ends = sorted({0.0, *(min(factor * tau, 200.0) for factor in (2, 10, 60)), 200.0})

    def moment(power):
        def integrand(d):
            slope = slopes[0] if d > 0 else slopes[1]
            return logistic(d - centre) * (logistic(d / tau) / tau * slope) ** power

        pieces = [(low, high) for low, high in zip(ends, ends[1:])]
        pieces += [(-high, -low) for low, high in pieces]
        return sum(integrate.quad(integrand, *piece, limit=400, epsabs=1e-14)[0] for piece in pieces)

    mean = moment(1)
    return mean, moment(2) - mean**2


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.7, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("centre", [0.0, 1.3, -6.0])
def test_two_option_moments_equal_scipys_quadrature(temperature, centre):
    logits = torch.tensor([centre, 0.0], dtype=torch.float64)
    gradients = torch.tensor([[1.2, -0.3], [0.4, 0.9]], dtype=torch.float64)
    mean, variance = gumbel.two_option_moments(logits, gradients, temperature)
    wanted = two_options_by_scipy(logits, gradients, temperature)
    assert mean[0].item() == pytest.approx(wanted[0], rel=1e-8, abs=1e-11)
    assert variance[0].item() == pytest.approx(wanted[1], rel=1e-7, abs=1e-11)
    assert mean[1] == -mean[0] and variance[1] == variance[0]


def three_options_on_a_grid(logits, gradients, temperature, step=0.02, reach=14.0):
    """Mean of the estimate for three options: a sum over the density of two differences of noisy logits.

    With h the noisy logits and d_i = h_i - h_3 it is 2 prod_i e^(a_i - d_i) / (sum_i e^(a_i - d_i))^3, where d_3 = 0.
    """
    grid = torch.arange(-reach + step / 2, reach, step, dtype=torch.float64)
    one, two = torch.meshgrid(grid, grid, indexing="ij")
    d = torch.stack([one, two, torch.zeros_like(one)], -1)
    parts = (logits - d).exp()
    density = 2 * parts.prod(-1) / parts.sum(-1) ** 3
    y, slope = (d / temperature).softmax(-1), gradients[d.argmax(-1)]
    each = y * (slope - (y * slope).sum(-1, keepdim=True)) / temperature
    assert (density.sum() * step**2).item() == pytest.approx(1, abs=1e-3)
    return (density.unsqueeze(-1) * each).sum((0, 1)) * step**2


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_sampled_mean_agrees_with_the_integral_within_its_error(temperature):
    logits, gradients = LOGITS[:3], gumbel.corners(LOSSES["cubic"], 3).gradients
    found = gumbel.sampled_straight_through(
        logits, gradients, temperature, 200_000, torch.Generator().manual_seed(0)
    )
    wanted = three_options_on_a_grid(logits, gradients, temperature)
    assert ((found.mean - wanted).abs() < 4 * found.error + 1e-3).all()
    assert (4 * found.error + 1e-3 < 0.15 * wanted.norm()).all()  # small enough to see a difference
    assert_close(found.error, (found.variance / 200_000).sqrt(), **EXACT)


# ---- the limit theorem ----------------------------------------------------------------------------------------


def trapezoid_in_loops(logits, loss):
    """The theorem, spelled out: losses along each segment, their slopes at both ends by autograd."""
    n, pi = len(logits), logits.softmax(0)
    corner = torch.eye(n, dtype=torch.float64)

    def slope(j, k, at):  # of t -> L(e_k + t (e_j - e_k))
        t = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(loss(corner[k] + t * (corner[j] - corner[k])), t)[0]

    rows = []
    for j in range(n):
        ends = [pi[j] * pi[k] * (slope(j, k, 0.0) + slope(j, k, 1.0)) / 2 for k in range(n) if k != j]
        rows.append(sum(ends))
    return torch.stack(rows)


def limit_by_sampling(logits, gradients, draws=1_000_000):
    """Mean of the estimate at two small temperatures on the same noise, extrapolated to 0, and its standard error."""
    generator = torch.Generator().manual_seed(7)
    h = logits - torch.empty(draws, len(logits), dtype=torch.float64).exponential_(generator=generator).log()
    slope, each = gradients[h.argmax(-1)], []
    for tau in (0.05, 0.1):
        y = (h / tau).softmax(-1)
        each.append(y * (slope - (y * slope).sum(-1, keepdim=True)) / tau)
    line = 2 * each[0] - each[1]
    return line.mean(0), line.std(0) / draws**0.5


@pytest.mark.parametrize("name", LOSSES)
def test_as_the_temperature_falls_the_mean_becomes_the_trapezoid_rule(name):
    values, gradients = gumbel.corners(LOSSES[name], 4)
    found = gumbel.trapezoid_gradient(LOGITS, gradients)
    assert_close(found, trapezoid_in_loops(LOGITS, LOSSES[name]), **EXACT)
    mean, error = limit_by_sampling(LOGITS, gradients)
    assert ((found - mean).abs() < 4.5 * error + 2e-3).all()
    gap = (found - gumbel.exact_gradient(LOGITS, values)).abs()
    if name == "cubic":  # a gap that stays, many times what the sampling could mistake
        assert gap.max() > 0.05 and (gap - 9 * error - 4e-3).max() > 0
    else:
        assert gap.max() < 1e-13


def test_the_slope_at_one_end_is_wrong_even_for_a_quadratic():
    """The half and half of the theorem matters."""
    values, gradients = gumbel.corners(LOSSES["quadratic"], 4)
    pi, own = LOGITS.softmax(0), gradients.diagonal()
    right = own.unsqueeze(1) - gradients  # [j, k] = grad L(e_j) . (e_j - e_k)
    one_sided = (pi.unsqueeze(1) * pi * right).sum(1)
    assert (one_sided - gumbel.exact_gradient(LOGITS, values)).abs().max() > 0.05


def test_differences_are_exact_for_quadratics_and_antisymmetric():
    values, gradients = gumbel.corners(LOSSES["quadratic"], 4)
    found = gumbel.trapezoid_differences(gradients)
    assert_close(found, values.unsqueeze(1) - values, **EXACT)
    cubic = gumbel.corners(LOSSES["cubic"], 4)
    found = gumbel.trapezoid_differences(cubic.gradients)
    assert_close(found, -found.mT, **EXACT)
    assert (found - (cubic.values.unsqueeze(1) - cubic.values)).abs().max() > 0.1


def test_instances_are_a_leading_dimension():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(5, 4, 4, dtype=torch.float64, generator=generator)
    logits = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    found = gumbel.trapezoid_gradient(logits, gradients)
    for row, one, g in zip(found, logits, gradients, strict=True):
        assert_close(row, gumbel.trapezoid_gradient(one, g), **EXACT)
    shared = gumbel.trapezoid_gradient(LOGITS, gradients)
    assert_close(shared[3], gumbel.trapezoid_gradient(LOGITS, gradients[3]), **EXACT)


@given(
    logits=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    numbers=st.lists(st.floats(-2, 2), min_size=14, max_size=14),
)
def test_every_quadratic_loss_is_unbiased_in_the_limit(logits, numbers):
    logits, numbers = torch.tensor(logits, dtype=torch.float64), torch.tensor(numbers, dtype=torch.float64)
    square, line = numbers[:10], numbers[10:]
    rows, columns = torch.triu_indices(4, 4)
    values, gradients = gumbel.corners(lambda w: (square * w[rows] * w[columns]).sum() + line @ w, 4)
    found = gumbel.trapezoid_gradient(logits, gradients)
    assert_close(found, gumbel.exact_gradient(logits, values), rtol=1e-9, atol=1e-12)


def test_trapezoid_error_in_symbols():
    t, a = sympy.symbols("t a")
    assert gumbel.trapezoid_error(a * t**3, t) == -a / 2
    # minus a twelfth of the third derivative, for every cubic
    cubic = sum(c * t**i for i, c in enumerate(sympy.symbols("c0:4")))
    assert sympy.simplify(gumbel.trapezoid_error(cubic, t) + sympy.diff(cubic, t, 3) / 12) == 0
    # along a segment of a loss of three options, against its corners
    w = sympy.symbols("w0:3")
    loss = (w[0] + 2 * w[1] - w[2]) ** 3
    along = loss.subs({w[0]: t, w[1]: 1 - t, w[2]: 0}, simultaneous=True)
    at = gumbel.corners(lambda x: (x[0] + 2 * x[1] - x[2]) ** 3, 3)
    wanted = at.values[0] - at.values[1] - gumbel.trapezoid_differences(at.gradients)[0, 1]
    assert abs(wanted) > 0.4
    assert float(gumbel.trapezoid_error(along, t)) == pytest.approx(wanted.item(), abs=1e-12)


def test_tie_density_by_counting_and_by_quadrature():
    """Two noisy logits close to each other and above the third: the share of draws over the width of the window."""
    a, b, c = sympy.symbols("a b c", positive=True)
    found, numbers = gumbel.tie_density(), (1.5, 0.4, 0.9)
    value = float(found.subs(dict(zip((a, b, c), numbers))))

    def density(h):  # of the first, of the second, and the third below
        x = math.exp(-h)
        return numbers[0] * numbers[1] * x**2 * math.exp(-sum(numbers) * x)

    assert value == pytest.approx(integrate.quad(density, -5, 60, limit=200)[0], rel=1e-9)
    noise = (
        -torch.empty(1_000_000, 3, dtype=torch.float64)
        .exponential_(generator=torch.Generator().manual_seed(0))
        .log()
    )
    h = torch.tensor(numbers, dtype=torch.float64).log() + noise
    near = ((h[:, 0] - h[:, 1]).abs() < 0.05) & (h[:, :2].amax(1) > h[:, 2])
    share = near.double().mean().item()
    assert share / 0.1 == pytest.approx(value, abs=4 * (share / 1e6) ** 0.5 / 0.1 + 1e-3)


# ---- temperature: bias and variance of two options --------------------------------------------------------------


def test_logistic_integrals_by_quadrature():
    integrands = {"s": logistic, "x s": lambda x: x * logistic(x), "s^2": lambda x: logistic(x) ** 2}
    found = gumbel.logistic_integrals()
    assert set(found) == set(integrands)
    for name, integrand in integrands.items():
        assert float(found[name]) == pytest.approx(integrate.quad(integrand, 0, 80)[0], rel=1e-9)


@pytest.mark.parametrize("centre", [0.0, 0.7, -1.5])
def test_laws_are_what_the_moments_approach(centre):
    """Slope of the mean and scaled variance from two tiny temperatures; wrong constants would be seen."""
    logits, gradients = torch.tensor([centre, 0.0], dtype=torch.float64), COEFFICIENTS[:2, :2] * 3
    slope, spread = gumbel.two_option_laws(logits, gradients)
    start = gumbel.trapezoid_gradient(logits, gradients)
    near, far = ((gumbel.two_option_moments(logits, gradients, tau)[0] - start) / tau for tau in (1e-3, 2e-3))
    assert_close(2 * near - far, slope, rtol=1e-4, atol=1e-6)
    tau = 1e-4
    assert_close(tau * gumbel.two_option_moments(logits, gradients, tau)[1], spread, rtol=2e-3, atol=1e-9)
    assert spread[0] > 0.01
    if centre:
        assert (slope * (1 / math.log(2) - 1)).abs().max() > 1e-2  # without ln 2 the first check would fail
    else:
        assert slope.abs().max() == 0


def test_small_temperatures_buy_variance_and_leave_the_bias():
    logits, (values, gradients) = LOGITS[:2], gumbel.corners(LOSSES["cubic"], 2)
    exact = gumbel.exact_gradient(logits, values)
    biases, spreads = [], []
    for tau in (0.2, 0.1, 0.05, 0.025):
        mean, variance = gumbel.two_option_moments(logits, gradients, tau)
        biases.append((mean - exact).norm().item())
        spreads.append(variance[0].item())
    assert min(biases) > 0.1
    assert all(1.8 < after / before < 2.2 for before, after in zip(spreads, spreads[1:]))


# ---- evaluation -----------------------------------------------------------------------------------------------


def all_outcomes(chances):
    """(probability, number right) of each of the 2^N outcomes."""
    for outcome in product((0, 1), repeat=len(chances)):
        chance = math.prod(a if right else 1 - a for a, right in zip(chances, outcome, strict=True))
        yield chance, sum(outcome)


@given(chances=st.lists(st.floats(0, 1), min_size=1, max_size=7), times=st.integers(1, 3))
def test_evaluation_with_noise_against_every_outcome(chances, times):
    n, outcomes = len(chances), list(all_outcomes(chances))
    given_chances = torch.tensor(chances, dtype=torch.float64)
    found = gumbel.count_distribution(given_chances)
    for count in range(n + 1):
        assert found[count].item() == pytest.approx(sum(p for p, c in outcomes if c == count), abs=1e-12)
    mean, sd = gumbel.sampled_accuracy(given_chances)
    wanted = sum(p * c / n for p, c in outcomes)
    assert mean == pytest.approx(wanted, abs=1e-12)
    assert sd**2 == pytest.approx(sum(p * (c / n - wanted) ** 2 for p, c in outcomes), abs=1e-12)
    if len(outcomes) ** times < 3000:
        runs = product(outcomes, repeat=times)
        best = sum(math.prod(p for p, _ in run) * max(c for _, c in run) / n for run in runs)
        assert gumbel.best_of(given_chances, times) == pytest.approx(best, abs=1e-11)


def test_best_of_forty_by_simulation_and_without_noise():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(56, 21, generator=generator, dtype=torch.float64)
    correct = torch.rand(56, 21, generator=generator) < 0.7
    chances = gumbel.chance_correct(logits, correct)
    by_hand = [
        sum(p.item() for p, c in zip(row.softmax(0), right) if c) for row, right in zip(logits, correct)
    ]
    assert_close(chances, torch.tensor(by_hand, dtype=torch.float64), **EXACT)
    runs = (torch.rand(4000, 40, 56, generator=generator) < chances).double().mean(-1).amax(1)
    error = (runs.std() / len(runs) ** 0.5).item()
    assert gumbel.best_of(chances, 40) == pytest.approx(runs.mean().item(), abs=4 * error)
    assert gumbel.best_of(chances, 40) - gumbel.sampled_accuracy(chances)[0] > 0.05 > 20 * error
    sure = correct.gather(1, logits.argmax(1, keepdim=True)).squeeze(1).double()  # argmax: nothing is random
    assert gumbel.sampled_accuracy(sure)[1] == 0
    assert gumbel.best_of(sure, 40) == pytest.approx(gumbel.sampled_accuracy(sure)[0], abs=1e-12)


# ---- details of the authors' code -------------------------------------------------------------------------------


def test_where_schedules_settle():
    tau, first = 1.0, None
    for step in range(20_001):  # their loop
        tau = max(tau * math.exp(-3e-5 * step / 10), 0.5)
        first = step if first is None and tau == 0.5 else first
    assert gumbel.settles_at(Authors(), 20_000) == first == 680 and first / 20_000 == 0.034
    assert gumbel.settles_at(schedule("linear", steps=5000), 20_000) == 5000
    assert gumbel.settles_at(schedule("constant"), 100) == 0


def test_dead_logits_are_uniform_and_have_no_gradient():
    z = torch.randn(300, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    dead, upstream = gumbel.dead_logits(z), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert 10 < dead.sum() < 100
    assert_close(z.relu().softmax(-1)[dead], torch.full_like(z[dead], 1 / 3), **EXACT)
    noise = -torch.empty_like(z).exponential_(generator=torch.Generator().manual_seed(1)).log()
    (found,) = torch.autograd.grad(((z.relu() + noise).softmax(-1) * upstream).sum(), z)
    assert torch.equal(found[dead], torch.zeros_like(z[dead]))
    assert (found[~dead].abs().sum(-1) > 0).all()
    (free,) = torch.autograd.grad(((z + noise).softmax(-1) * upstream).sum(), z)
    assert (free[dead].abs().sum(-1) > 0).all()  # without the ReLU they learn


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_difference_comes_first_in_an_exact_straight_through_sum(dtype):
    soft = torch.randn(20_000, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    soft = soft.to(dtype)
    assert gumbel.one_hot_error(soft).max() == 0
    wrong = gumbel.one_hot_error(soft, difference_first=False)
    assert wrong.max() > 0
    top = soft.amax(-1)  # only the one can go wrong: 0 + s - s is 0
    assert torch.equal(wrong, (((1 + top) - top) - 1).abs())
    if dtype == torch.bfloat16:
        assert wrong.max() == 2**-8 and (wrong > 0).double().mean() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_half_precision_between_0_and_1(dtype):
    """All of them, as the soft value of the chosen option: (1 - s) + s is 1 in every case, (1 + s) - s is not."""
    s = torch.arange(0, 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    s = s[(s >= 0) & (s <= 1)]
    one = torch.ones_like(s)
    assert len(s) > 10_000 and s.max() == 1
    assert torch.equal((one - s) + s, one) and torch.equal((0 * one - s) + s, 0 * one)
    assert not torch.equal((one + s) - s, one)


# ---- bad input --------------------------------------------------------------------------------------------------

TWO = torch.zeros(2), torch.zeros(2, 2)
THREE = torch.zeros(3), torch.zeros(3), torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gumbel.corners(lambda w: w.sum(), 1),
            "options=1 is not valid, expected an integer of at least 2",
        ),
        (
            lambda: gumbel.softmax_jacobian(torch.zeros(3), 0.0),
            "temperature=0.0 is not valid, expected a positive",
        ),
        (lambda: gumbel.two_option_moments(*TWO, math.nan), "temperature=nan is not valid"),
        (lambda: gumbel.sampled_straight_through(*TWO, -1.0), "temperature=-1.0"),
        (
            lambda: gumbel.sampled_straight_through(*TWO, draws=1),
            "draws=1 is not valid, expected an integer of at least 2",
        ),
        (lambda: gumbel.two_option_moments(*THREE[1:]), r"logits has shape \(3,\), expected \(2,\)"),
        (
            lambda: gumbel.two_option_laws(TWO[0], torch.zeros(3, 2)),
            r"gradients has shape \(3, 2\), expected \(2, 2\)",
        ),
        (
            lambda: gumbel.straight_through_gradient(torch.zeros(1, 3), *THREE[1:]),
            r"logits has shape \(1, 3\), expected \(n,\)",
        ),
        (
            lambda: gumbel.straight_through_gradient(THREE[0], torch.zeros(4, 2), THREE[2]),
            r"noise has shape \(4, 2\), expected \(..., 3\)",
        ),
        (
            lambda: gumbel.trapezoid_gradient(torch.zeros(3), torch.zeros(2, 2)),
            r"gradients has shape \(2, 2\), expected \(..., 3, 3\)",
        ),
        (
            lambda: gumbel.best_of(torch.tensor([0.5]), 0),
            "times=0 is not valid, expected an integer of at least 1",
        ),
        (lambda: gumbel.sampled_accuracy(torch.tensor([1.5])), "chances holds 1.5, expected values in 0..1"),
        (
            lambda: gumbel.count_distribution(torch.zeros(2, 2)),
            r"chances has shape \(2, 2\), expected \(N,\)",
        ),
        (
            lambda: gumbel.chance_correct(torch.zeros(2, 3), torch.zeros(2, 4)),
            r"correct has shape \(2, 4\), expected \(2, 3\)",
        ),
        (lambda: gumbel.settles_at(Authors(), 0), "steps=0 is not valid, expected an integer of at least 1"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
