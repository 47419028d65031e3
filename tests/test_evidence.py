"""Evidence and headroom: numbers against scikit-learn, scipy and loops over the inputs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.metrics import mutual_info_score
from torch.testing import assert_close

from dplearn import evidence as ev


def rows(count, options, seed=0):
    return torch.rand(count, options, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def test_entropy_and_total_variation_are_those_of_scipy():
    first, last = rows(6, 4), rows(6, 4, seed=1)
    assert_close(ev.entropy(last), torch.tensor(stats.entropy(last, axis=1)))
    assert ev.entropy(torch.eye(4)).abs().max() == 0
    differences = [max(sum(a[list(s)]) - sum(b[list(s)]) for s in subsets(4)) for a, b in zip(first, last)]
    assert_close(ev.total_variation(first, last), torch.stack(differences))


def subsets(n):
    """Every event over n options: the total variation is the largest difference of their probabilities."""
    return [[i for i in range(n) if code >> i & 1] or [0] for code in range(1, 2**n)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40))
def test_mutual_information_is_that_of_scikit_learn(pairs):
    options, labels = torch.tensor(pairs).T
    expected = mutual_info_score(options.numpy(), labels.numpy())
    assert ev.mutual_information(options, labels) == pytest.approx(expected, abs=1e-12)


def test_evidence_of_a_decision_that_follows_the_label():
    labels = torch.tensor([0, 1] * 40)
    last = torch.eye(3)[labels] * 0.8 + 0.2 / 3
    own = torch.zeros(80)
    dealt = own + torch.linspace(0, 1, 80)
    even = torch.full((80, 3), 1 / 3)
    found = ev.evidence(last, labels, even, torch.full((80,), 2), labels, own, dealt)
    assert found.counts == (40, 40, 0) and found.used == 2 and found.share == 0.5 and found.per_input
    assert found.changed == 1.0 and found.learned
    assert found.moved == pytest.approx(0.8 * 2 / 3) and found.entropy_first == pytest.approx(math.log(3))
    assert found.information == pytest.approx(math.log(2)) and found.chance == pytest.approx(1 / 201)
    assert 0 < found.expected < 0.05
    mean, half = found.cost
    assert mean == pytest.approx(0.5) and half == pytest.approx(1.96 * stats.sem(dealt.numpy()))


def test_a_decision_that_did_not_move_is_not_learned_and_an_unknown_start_is_not_judged():
    even, chosen = torch.full((10, 4), 0.25), torch.full((10,), 3)
    still = ev.evidence(even, chosen, even, chosen)
    assert still.learned is False and still.moved == 0 and still.changed == 0 and not still.per_input
    unknown = ev.evidence(even, chosen)
    assert unknown.learned is None and unknown.moved is None and unknown.entropy_first is None
    assert ev.evidence(even, chosen, labels=torch.arange(10) % 2).information == 0


@pytest.mark.parametrize(
    "first, cost, learned",
    [("even", 0.5, True), ("even", 0.0, False), ("even", -0.5, False), ("uneven", 0.5, False)],
)
def test_a_mixture_that_moved_little_was_learned_where_dealing_it_out_costs(first, cost, learned):
    """Only from the same start for all inputs: else its differences may be those of the first random weights."""
    even = torch.full((80, 2), 0.5)
    tilt = torch.tensor([[0.05, -0.05], [-0.05, 0.05]]).repeat(40, 1)
    start = even if first == "even" else even + torch.tensor([0.1, -0.1])
    own = torch.zeros(80)
    found = ev.evidence(start + tilt, torch.arange(80) % 2, start, own=own, dealt=own + cost + tilt[:, 0])
    assert found.moved == pytest.approx(0.05) and found.learned is learned
    assert ev.evidence(start + tilt, torch.arange(80) % 2, start).learned is False


def crossed(losses, half, groups, group_of_row):
    """Mean loss of the option that is best for the row's group on the other half, by loops."""
    total = 0.0
    for i in range(len(losses)):
        others = [j for j in range(len(losses)) if half[j] != half[i] and groups[j] == group_of_row[i]]
        others = others or [j for j in range(len(losses)) if half[j] != half[i]]
        means = [sum(losses[j][k] for j in others) / len(others) for k in range(len(losses[0]))]
        total += losses[i][means.index(min(means))]
    return total / len(losses)


@given(count=st.integers(4, 25), options=st.integers(2, 5), seed=st.integers(0, 99))
def test_headroom_equals_loops(count, options, seed):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(count, options, generator=generator, dtype=torch.float64)
    groups = torch.randint(0, 3, (count,), generator=generator)
    chosen = torch.randint(0, options, (count,), generator=generator)
    found = ev.headroom(losses, None, chosen, groups, seed=seed)
    table = losses.tolist()
    means = [sum(row[k] for row in table) / count for k in range(options)]
    assert found.means == pytest.approx(means) and found.best == means.index(min(means))
    assert found.fixed == pytest.approx(min(means)) and found.random == pytest.approx(sum(means) / options)
    assert found.oracle == pytest.approx(sum(map(min, table)) / count)
    assert found.learned == pytest.approx(sum(row[k] for row, k in zip(table, chosen.tolist())) / count)
    assert found.deviation == pytest.approx(np.mean([np.std(row) for row in table]))
    half = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).argsort() % 2
    assert abs(int(half.sum()) * 2 - count) <= 1
    assert found.per_group == pytest.approx(crossed(table, half, groups, groups))
    assert found.fixed_elsewhere == pytest.approx(crossed(table, half, [0] * count, [0] * count))
    assert found.gain[0] == pytest.approx(found.fixed - found.per_group)
    assert found.oracle <= min(found.fixed, found.per_group, found.learned) + 1e-12


def test_the_linear_policy_is_that_of_ridge_regression_fitted_on_other_inputs():
    generator = torch.Generator().manual_seed(0)
    summaries = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    losses = torch.randn(60, 3, generator=generator, dtype=torch.float64) * 0.1
    losses += summaries @ torch.randn(5, 3, generator=generator, dtype=torch.float64)
    train, fresh, targets = summaries[:40], summaries[40:], losses[:40]
    scale = train.std(0, correction=0)
    errors = []
    for strength in ev.STRENGTHS:
        left_out = []
        for i in range(40):
            kept = [j for j in range(40) if j != i]
            # The exact leave-one-out formula holds for the centre and scale of all rows.
            model = Ridge(alpha=strength * 40).fit((train[kept] / scale).numpy(), targets[kept].numpy())
            left_out.append(model.predict((train[i : i + 1] / scale).numpy())[0] - targets[i].numpy())
        errors.append(np.square(left_out).mean())
    best = ev.STRENGTHS[int(np.argmin(errors))]
    model = Ridge(alpha=best * 40).fit((train / scale).numpy(), targets.numpy())
    expected = torch.tensor(model.predict((fresh / scale).numpy()))
    assert_close(ev._ridge(train, targets, fresh), expected, rtol=1e-8, atol=1e-10)


def test_the_linear_policy_finds_what_the_summary_tells_and_nothing_where_it_tells_nothing():
    generator = torch.Generator().manual_seed(1)
    kind = torch.randint(0, 2, (300,), generator=generator)
    losses = torch.stack([kind, 1 - kind], 1).double()
    told = torch.randn(300, 8, generator=generator) + 3 * kind[:, None]
    silent = torch.randn(300, 8, generator=generator)
    seen, blind = (ev.headroom(losses, summaries=summaries) for summaries in (told, silent))
    assert seen.by_summary < 0.02 and seen.gain[0] > 0.4
    assert abs(blind.by_summary - 0.5) < 0.08
    assert "Nothing to win could be shown" in blind.verdict
    right = ev.headroom(losses, chosen=kind, groups=kind)
    assert right.closed == pytest.approx(1.0) and "closes 100%" in right.verdict
    wrong = ev.headroom(losses, chosen=1 - kind, groups=kind)
    assert "worse than this fixed option" in wrong.verdict


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="losses has 3 rows, expected at least 4"):
        ev.headroom(torch.rand(3, 2))
    with pytest.raises(
        ValueError, match=r"chosen holds options that were not tried, expected some of \[0, 2\]"
    ):
        ev.headroom(torch.rand(5, 2), (0, 2), torch.tensor([0, 2, 1, 0, 0]))
