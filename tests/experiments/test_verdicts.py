"""Verdicts against independent references: scipy's intervals and tests, Holm by closed testing, seeds by simulation."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from dplearn.experiments import verdicts
from dplearn.experiments.verdicts import Difference, difference, family, holm_levels, judge, seeds_needed

numbers = st.floats(-1, 1).map(lambda value: round(value, 4))
several = st.lists(numbers, min_size=2, max_size=12)


@given(several, st.sampled_from([0.05, 0.01, 0.05 / 7]))
def test_a_difference_has_scipys_interval_and_paired_p(gains, level):
    assume(statistics.stdev(gains) > 1e-6)
    found = difference(gains, level)
    low, high = stats.t.interval(1 - level, len(gains) - 1, loc=np.mean(gains), scale=stats.sem(gains))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx(
        (low, high), rel=1e-6, abs=1e-9
    )
    reference = stats.ttest_rel(gains, np.zeros(len(gains))).pvalue
    assert found.p == pytest.approx(reference, rel=1e-6, abs=1e-12)
    assert found.excludes_zero == (reference < level)


def closed_testing(ps, alpha=0.05):
    """Holm by its definition: a hypothesis falls if Bonferroni rejects every intersection that it is in."""
    every = range(len(ps))
    subsets = [s for size in every for s in itertools.combinations(every, size + 1)]
    falls = {s: min(ps[i] for i in s) <= alpha / len(s) for s in subsets}
    return [all(falls[s] for s in subsets if i in s) for i in every]


@given(st.lists(st.floats(0.001, 0.06) | st.floats(1e-6, 1), min_size=1, max_size=6))
def test_levels_are_those_of_holms_procedure(ps):
    levels = holm_levels(ps)
    assert [p <= level for p, level in zip(ps, levels)] == closed_testing(ps)
    assert all(0.05 / len(ps) <= level <= 0.05 for level in levels)
    order = sorted(range(len(ps)), key=ps.__getitem__)
    assert [levels[i] for i in order] == sorted(levels)


def test_a_family_has_the_error_that_it_promises():
    """Ten comparisons without any difference: at most 5 % of the tables claim one (a plain 5 % each would be 40 %)."""
    rng = np.random.default_rng(0)
    claims = plain = 0
    for _ in range(200):
        gains = {key: rng.normal(0, 1, 6).tolist() for key in range(10)}
        claims += any(found.excludes_zero for found in family(gains).values())
        plain += any(difference(values).excludes_zero for values in gains.values())
    assert claims / 200 < 0.09 and plain / 200 > 0.3


@given(several, st.floats(0.001, 0.5))
def test_exactly_one_sentence_is_said_and_it_is_the_right_one(gains, margin):
    found = difference(gains)
    verdict = judge(found, margin)
    assert verdict.kind in ("better", "worse", "no difference", "cannot tell")
    low, high = found.mean - found.half, found.mean + found.half
    if low > 0 or high < 0:
        assert verdict.kind == ("better" if low > 0 else "worse")
        assert verdict.sentence(1, 6) == f"{verdict.kind} by {abs(found.mean):.6f} ± {found.half:.6f}"
    elif -margin <= low and high <= margin:
        assert (
            verdict.kind == "no difference"
            and verdict.sentence(1, 3) == f"no difference larger than {margin:.3f}"
        )
    else:
        assert verdict.kind == "cannot tell" and verdict.sentence().startswith("cannot tell (would need ")


def test_no_difference_is_an_equivalence_by_two_one_sided_tests():
    """What the verdict calls equivalent, TOST at half of the level finds equivalent too, and the reverse."""
    rng, said = np.random.default_rng(1), set()
    for _ in range(300):
        gains = rng.normal(rng.normal(0, 0.01), 0.02, 10)
        below = stats.ttest_1samp(gains, -0.02, alternative="greater").pvalue
        above = stats.ttest_1samp(gains, 0.02, alternative="less").pvalue
        verdict = judge(difference(gains.tolist()), 0.02)
        said.add(verdict.kind)
        if verdict.kind in ("no difference", "cannot tell"):
            assert (verdict.kind == "no difference") == (max(below, above) <= 0.025)
    assert said == {"better", "worse", "no difference", "cannot tell"}


@given(several, st.floats(0.005, 0.2))
def test_the_seeds_that_it_would_need_are_the_fewest_that_suffice(gains, margin):
    found = difference(gains)
    needed = seeds_needed(found, margin)

    def says(seeds):
        half = float(stats.t.ppf(0.975, seeds - 1)) * found.spread / math.sqrt(seeds)
        return abs(found.mean) > half or abs(found.mean) + half <= margin

    if needed is None:
        assert not says(1000)
    else:
        assert says(needed) and (needed == 2 or not says(needed - 1))
    if judge(found, margin).kind == "cannot tell" and needed is not None:
        assert needed > len(gains)


def test_within_seed_noise_of_twenty_points_is_no_equivalence():
    """The verdict that chapter 06 once had: half-widths of 23 points were called "within seed noise"."""
    verdict = judge(difference([0.3, -0.1, 0.05, -0.2, 0.1]), 0.01)
    assert verdict.kind == "cannot tell" and verdict.difference.half > 0.2 and verdict.needed > 100


def test_equal_runs_and_single_seeds():
    assert judge(difference([0.0, 0.0, 0.0]), 0.01).kind == "no difference"
    assert judge(difference([0.25, 0.25]), 0.01).sentence() == "better by 25.0 ± 0.0"
    one = judge(difference([0.25]), 0.01)
    assert one.kind == "cannot tell" and one.difference.half == math.inf and one.needed is None
    assert "more than 1,000 seeds" in one.sentence()
    assert judge(difference([0.01, -0.01, 0.02]), 0).kind == "cannot tell"


def test_what_did_not_move_or_did_not_run_gets_no_verdict():
    gains = difference([0.2, 0.21, 0.19])
    assert judge(gains, 0.01, learned=True).kind == judge(gains, 0.01, learned=None).kind == "better"
    still = judge(gains, 0.01, learned=False, why="position moved by 0.03")
    assert still.sentence() == "not learned: position moved by 0.03" and still.difference == gains
    assert judge(None, 0.01, why="no runs of prefix").sentence() == "not run: no runs of prefix"
    assert {"better", "not learned", "not run", "not tested"} <= set(verdicts.KINDS)


def test_the_family_of_one_table_widens_the_intervals():
    gains = {"a": [0.10, 0.11, 0.12, 0.09], "b": [0.02, -0.01, 0.03, 0.01], "c": [0.0, 0.05, -0.04, 0.01]}
    found = family(gains)
    assert [round(found[key].level, 4) for key in "abc"] == [0.0167, 0.025, 0.025]
    assert found["a"].half > difference(gains["a"]).half
    assert family({}) == {} and isinstance(found["a"], Difference)


@pytest.mark.parametrize("gains", [[], [0.1, math.nan], ["x", 1.0], [True, 0.2]])
def test_gains_that_are_no_numbers_are_refused(gains):
    with pytest.raises(ValueError, match="gains=.* expected a finite number for each seed"):
        difference(gains)


def test_a_wrong_level_or_margin_is_refused():
    with pytest.raises(ValueError, match="level=1 is not valid, expected a number between 0 and 1"):
        difference([0.1, 0.2], 1)
    with pytest.raises(ValueError, match="margin=-0.1 is not valid"):
        judge(difference([0.1, 0.2]), -0.1)
