"""What Gumbel-Softmax with straight-through gradients learns, against the exact gradient of the expected loss.

One of n options is chosen with probability ``pi = softmax(logits)``. The loss ``L`` is defined for every weighting w of
the options, not only at the corners, the one-hot vectors e_k. A training step knows ``v = grad L(e_k)`` at the corner
that was drawn, and gives the logits ``J^T v`` with the Jacobian J of the softmax at temperature tau. On average that is

    the exact gradient              sum_k pi_j pi_k (f_j - f_k),  f_k = L(e_k),
    with each difference replaced by the trapezoid rule  (grad L(e_j) + grad L(e_k)) . (e_j - e_k) / 2  as tau -> 0.

The rule looks at slopes at the two ends and never at the values there. It is right for losses that are linear or
quadratic between the corners; for others, lowering the temperature does not mend it.

Everything is float64; identities that hold exactly are returned as sympy expressions. The sampling itself and the
temperature schedules are those of :mod:`dplearn.choice`.

Sources: Jang et al. (2017), Maddison et al. (2017) for the relaxation; Bengio et al. (2013) for straight-through;
Yang et al. (2023), section 3.2, for its use on prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import sympy
import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from dplearn.checks import whole
from dplearn.choice import gumbel_one_hot

# ---- one choice, its corners and the exact gradient --------------------------------------------------------------


class Corners(NamedTuple):
    """A loss at the one-hot vectors.

    values: (n,), ``f_k = L(e_k)``.  gradients: (n, n), row k is ``grad L(e_k)``.
    """

    values: Tensor
    gradients: Tensor


def corners(loss: Callable[[Tensor], Tensor], options: int) -> Corners:
    """Value and gradient of a loss at each of the ``options`` one-hot vectors.

    loss : takes weights (n,), float64, and returns a scalar that depends on them differentiably.

    >>> corners(lambda w: w[0] ** 2 + 3 * w[1], 2)
    Corners(values=tensor([1., 3.], dtype=torch.float64), gradients=tensor([[2., 3.],
            [0., 3.]], dtype=torch.float64))
    """
    whole("options", options, 2)
    values, gradients = [], []
    for corner in torch.eye(options, dtype=torch.float64):
        value = loss(corner.requires_grad_())
        gradients.append(torch.autograd.grad(value, corner)[0])
        values.append(value.detach())
    return Corners(torch.stack(values), torch.stack(gradients))


def softmax_jacobian(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Jacobian of ``y = softmax(logits / temperature)``: ``(diag y - y y^T) / temperature``; (..., n) -> (..., n, n).

    It is symmetric and its rows sum to 0: a constant added to all slopes changes nothing.
    """
    y = (logits.double() / _positive(temperature)).softmax(-1)
    return (torch.diag_embed(y) - y.unsqueeze(-1) * y.unsqueeze(-2)) / temperature


def exact_gradient(logits: Tensor, values: Tensor) -> Tensor:
    """Gradient of ``sum_k pi_k f_k`` in the logits: ``pi_j (f_j - sum_k pi_k f_k)``; (..., n) each -> (..., n).

    It takes the loss at every option: n forward passes, and no derivative of the loss.
    """
    pi, values = logits.double().softmax(-1), values.double()
    return pi * (values - (pi * values).sum(-1, keepdim=True))


# ---- the straight-through estimate and its average ---------------------------------------------------------------


def straight_through_gradient(
    logits: Tensor, noise: Tensor, gradients: Tensor, temperature: float = 1.0
) -> Tensor:
    """The estimate that Gumbel noise (..., n) leads to: ``J(y)^T grad L(e_k)`` with k the largest of logits + noise.

    Parameters
    ----------
    logits : (n,).  gradients : (n, n), of :class:`Corners`.

    Source: Yang et al. (2023), section 3.2; Bengio et al. (2013).
    """
    _square(logits, gradients)
    if noise.shape[-1:] != logits.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, expected (..., {len(logits)})")
    noisy = logits.double() + noise.double()
    slopes = gradients.double()[noisy.argmax(-1)]  # (..., n)
    return (softmax_jacobian(noisy, temperature) @ slopes.unsqueeze(-1)).squeeze(-1)


class Estimate(NamedTuple):
    """mean: (n,), of the draws.  error: (n,), standard error of that mean.  variance: (n,), of a single draw."""

    mean: Tensor
    error: Tensor
    variance: Tensor


def sampled_straight_through(
    logits: Tensor, gradients: Tensor, temperature: float = 1.0, draws: int = 10_000, generator: Any = None
) -> Estimate:
    """Mean of many estimates as training makes them, through :func:`dplearn.choice.gumbel_one_hot` and autograd.

    Arguments as for :func:`straight_through_gradient`; generator is a torch.Generator, None for torch's global one.
    """
    _square(logits, gradients)
    whole("draws", draws, 2)
    rows = logits.detach().double().expand(draws, -1).clone().requires_grad_()
    weights = gumbel_one_hot(rows, _positive(temperature), generator)
    slopes = gradients.double()[weights.argmax(-1)]
    (each,) = torch.autograd.grad(weights, rows, slopes)  # (draws, n)
    variance = each.var(0)
    return Estimate(each.mean(0), (variance / draws).sqrt(), variance)


def two_option_moments(logits: Tensor, gradients: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Exact mean (2,) and variance (2,) of the estimate for two options, by deterministic quadrature.

    The estimate depends on one number, the difference of the two noisy logits, which has a logistic distribution. Its
    two entries are opposite, so their variances are equal.
    """
    nodes, weights, density, bump, slope = _two_options(logits, gradients, temperature)
    mean = (weights * density * bump * slope).sum()
    variance = (weights * density * (bump * slope) ** 2).sum() - mean**2
    return torch.stack([mean, -mean]), torch.stack([variance, variance])


def _two_options(logits: Any, gradients: Any, temperature: Any) -> Any:
    """Nodes d, quadrature weights, density of d, ``sigma'(d / tau) / tau``, and the slope at the corner drawn at d."""
    _square(logits, gradients, 2)
    tau = _positive(temperature)
    centre = float(logits[0] - logits[1])
    # The narrower of two bumps sets the scale: of width tau around 0, of width 1 around the centre.
    scale, reach = (tau, 40.0) if tau < 1 else (1.0, 40.0 + abs(centre))
    x, w = (torch.as_tensor(part, dtype=torch.float64) for part in leggauss(16))
    panels = torch.arange(int(reach) + 1, dtype=torch.float64).unsqueeze(1)
    # The slope jumps at d = 0: each half-line has its own panels.
    half = scale * (panels + (x + 1) / 2).flatten()
    weights = (scale * w / 2).repeat(len(panels))
    nodes, weights = torch.cat([-half, half]), torch.cat([weights, weights])
    slopes = gradients.double()[:, 0] - gradients.double()[:, 1]  # D_k = grad L(e_k) . (e_1 - e_2)
    density, bump = _logistic(nodes - centre), _logistic(nodes / tau) / tau
    return nodes, weights, density, bump, torch.where(nodes > 0, slopes[0], slopes[1])


def _logistic(x: Tensor) -> Tensor:
    """Density of the standard logistic distribution, the derivative of the sigmoid."""
    return x.sigmoid() * (-x).sigmoid()


# ---- the limit, and how it is approached -------------------------------------------------------------------------


def trapezoid_gradient(logits: Tensor, gradients: Tensor) -> Tensor:
    """What the straight-through estimate is on average as the temperature goes to 0, (..., n).

    ``sum_k pi_j pi_k (grad L(e_j) + grad L(e_k)) . (e_j - e_k) / 2``: the exact gradient, with the difference of the
    losses of two options replaced by the trapezoid rule for the integral of the slope along the segment between them.

    Parameters
    ----------
    logits : (n,) or (..., n).  gradients : (..., n, n), of :class:`Corners`; leading dimensions are instances.
    """
    n = logits.shape[-1]
    if gradients.shape[-2:] != (n, n):
        raise ValueError(
            f"gradients has shape {tuple(gradients.shape)}, expected (..., {n}, {n}): a row per corner"
        )
    pi = logits.double().softmax(-1)
    return (pi.unsqueeze(-1) * pi.unsqueeze(-2) * trapezoid_differences(gradients)).sum(-1)


def trapezoid_differences(gradients: Tensor) -> Tensor:
    """The trapezoid rule for every ``f_j - f_k``: ``(grad L(e_j) + grad L(e_k)) . (e_j - e_k) / 2``, (..., n, n).

    gradients : (..., n, n), of :class:`Corners`.

    >>> square = corners(lambda w: (w * torch.tensor([1.0, 3.0])).sum() ** 2, 2)
    >>> trapezoid_differences(square.gradients)[1, 0] == square.values[1] - square.values[0]
    tensor(True)
    """
    v = gradients.double()
    own = v.diagonal(dim1=-2, dim2=-1)
    return (own.unsqueeze(-1) + v.mT - v - own.unsqueeze(-2)) / 2


def two_option_laws(logits: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """First order in the temperature for two options: slope of the mean (2,), and the limit of tau * variance (2,).

    With ``D_k = grad L(e_k) . (e_1 - e_2)``, entry 1 has mean ``trapezoid + tau (D_1 - D_2) rho'(0) ln 2 + ...`` and
    variance ``pi_1 pi_2 (D_1^2 + D_2^2) / (12 tau) + ...``, where ``rho'(0) = pi_1 pi_2 (pi_1 - pi_2)`` is the slope of
    the density of the difference of the noisy logits. So the noise grows as tau^(-1/2), while what is left of the bias
    does not vanish.
    """
    _square(logits, gradients, 2)
    first, second = logits.double().softmax(-1)
    one, two = gradients.double()[:, 0] - gradients.double()[:, 1]
    slope = (one - two) * first * second * (first - second) * torch.tensor(2.0, dtype=torch.float64).log()
    spread = first * second * (one**2 + two**2) / 12
    return torch.stack([slope, -slope]), torch.stack([spread, spread])


def logistic_integrals() -> dict[str, sympy.Expr]:
    """The three integrals over x > 0 behind the laws, exactly: of ``s``, ``x s`` and ``s^2``, s the logistic density.

    >>> logistic_integrals()
    {'s': 1/2, 'x s': log(2), 's^2': 1/12}
    """
    t = sympy.Symbol("t", positive=True)  # t = sigmoid(x), so s dx = dt and s = t (1 - t)
    half = sympy.Rational(1, 2)
    x = sympy.log(t) - sympy.log(1 - t)
    primitive = t * sympy.log(t) + (1 - t) * sympy.log(1 - t)  # of x
    assert sympy.simplify(sympy.diff(primitive, t) - x) == 0
    moment = sympy.limit(primitive, t, 1, "-") - primitive.subs(t, half)
    return {
        "s": sympy.integrate(1, (t, half, 1)),
        "x s": sympy.simplify(moment),
        "s^2": sympy.integrate(t * (1 - t), (t, half, 1)),
    }


def tie_density() -> sympy.Expr:
    """How densely two noisy logits meet above all others, in symbols: ``a b / (a + b + c)^2 = pi_j pi_k``.

    a, b and c are the exponentials of the two logits and the sum of the exponentials of the others. The noisy logit j
    has the density ``a e^-h exp(-a e^-h)`` in h, the others lie below h with probability ``exp(-c e^-h)``.

    >>> tie_density()
    a*b/(a + b + c)**2
    """
    a, b, c, u = sympy.symbols("a b c u", positive=True)  # u = e^-h, dh = du / u
    both = (a * u * sympy.exp(-a * u)) * (b * u * sympy.exp(-b * u)) * sympy.exp(-c * u)
    return sympy.factor(sympy.integrate(sympy.powsimp(both / u), (u, 0, sympy.oo)))


def trapezoid_error(loss: sympy.Expr, t: sympy.Symbol) -> sympy.Expr:
    """``L(1) - L(0)`` minus its trapezoid rule ``(L'(0) + L'(1)) / 2``, exactly, for an expression in t on [0, 1].

    >>> t = sympy.Symbol("t")
    >>> [trapezoid_error(power, t) for power in (t, t**2, t**3)]
    [0, 0, -1/2]
    """
    slope = sympy.diff(loss, t)
    difference = loss.subs(t, 1) - loss.subs(t, 0)
    return sympy.simplify(difference - (slope.subs(t, 0) + slope.subs(t, 1)) / 2)


# ---- noise at evaluation -----------------------------------------------------------------------------------------


def chance_correct(logits: Tensor, correct: Tensor) -> Tensor:
    """Chance that an instance is answered right with a sampled option, (N,): ``sum_k pi_k correct_k``.

    logits : (N, n).  correct : (N, n), whether the answer with option k is right.
    """
    if correct.shape != logits.shape:
        raise ValueError(f"correct has shape {tuple(correct.shape)}, expected {tuple(logits.shape)}")
    chances = (logits.double().softmax(-1) * correct.double()).sum(-1)
    return chances.clamp(max=1)  # a sum of probabilities can round to more


def sampled_accuracy(chances: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the accuracy of one evaluation with independent sampling; chances: (N,).

    >>> sampled_accuracy(torch.tensor([1.0, 0.0, 0.5, 0.5]))
    (0.5, 0.1767766952966...)
    """
    chances = _chances(chances)
    return chances.mean().item(), (chances * (1 - chances)).sum().sqrt().item() / len(chances)


def count_distribution(chances: Tensor) -> Tensor:
    """Probabilities of 0..N right answers, (N + 1,), where instance i is right with chance a_i, independently.

    >>> count_distribution(torch.tensor([0.5, 0.5])).tolist()
    [0.25, 0.5, 0.25]
    """
    chances = _chances(chances)
    counts = torch.zeros(len(chances) + 1, dtype=torch.float64)
    counts[0] = 1
    for chance in chances:
        counts[1:] = counts[1:] * (1 - chance) + counts[:-1] * chance
        counts[0] *= 1 - chance
    return counts


def best_of(chances: Tensor, times: int) -> float:
    """Expected accuracy of the best of ``times`` independent evaluations of one frozen model, exactly.

    With F the distribution function of the number of right answers it is ``1 - sum_(c < N) F(c)^times / N``. What it
    exceeds the mean of :func:`sampled_accuracy` by is owed to luck alone.

    >>> best_of(torch.tensor([0.5]), times=2)
    0.75
    """
    whole("times", times, 1)
    below = count_distribution(chances).cumsum(0)[:-1].clamp(max=1)
    return 1 - (below**times).mean().item()


# ---- three details of the authors' code --------------------------------------------------------------------------


def settles_at(schedule: Callable[[int], float], steps: int) -> int:
    """First step from which a temperature schedule stays what it is at the end of ``steps`` steps.

    >>> from dplearn.choice import Authors
    >>> settles_at(Authors(), 20_000)
    680
    """
    whole("steps", steps, 1)
    last, step = schedule(steps), steps
    while step > 0 and schedule(step - 1) == last:
        step -= 1
    return step


def dead_logits(pre_activations: Tensor) -> Tensor:
    """Where logits ``relu(z)`` are all 0: the choice is uniform, and no gradient passes. (..., n) -> (...), bool.

    >>> dead_logits(torch.tensor([[-1.0, -2.0], [-1.0, 2.0]]))
    tensor([ True, False])
    """
    return (pre_activations <= 0).all(-1)


def one_hot_error(soft: Tensor, difference_first: bool = True) -> Tensor:
    """How far the straight-through sum is from a one-hot vector, by row, in the dtype of ``soft``: (..., n) -> (...).

    difference_first : the sum is ``(hard - soft) + soft``, the order in which torch adds and which is exact in every
        dtype; else ``(hard + soft) - soft``, which is not.
    """
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    total = (hard - soft) + soft if difference_first else (hard + soft) - soft
    return (total - hard).abs().amax(-1)


# ---- checks ------------------------------------------------------------------------------------------------------


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} is not valid, expected a positive number")
    return temperature


def _square(logits: Tensor, gradients: Tensor, options: int | None = None) -> None:
    n = logits.shape[-1] if options is None else options
    if logits.shape != (n,):
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}, expected {'(n,)' if options is None else (n,)}"
        )
    if gradients.shape != (n, n):
        raise ValueError(
            f"gradients has shape {tuple(gradients.shape)}, expected {(n, n)}: a row for each corner"
        )


def _chances(chances: Tensor) -> Tensor:
    chances = chances.double()
    if chances.ndim != 1 or len(chances) == 0:
        raise ValueError(f"chances has shape {tuple(chances.shape)}, expected (N,)")
    outside = chances[~((chances >= 0) & (chances <= 1))]
    if len(outside):
        raise ValueError(f"chances holds {outside[0].item():g}, expected values in 0..1")
    return chances
