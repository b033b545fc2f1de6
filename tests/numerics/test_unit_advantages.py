"""Advantages of units against the worked numbers of GDPO, NGRPO, GiGPO, SPO and VSPO."""

import numpy as np
import pytest

from agentflow.maths.advantages import Baseline, Floats, Scale, group_advantages, whiten
from agentflow.maths.unit_advantages import (
    combined,
    decoupled,
    group_values,
    outcome_spread,
    relative,
    smoothing,
    step_returns,
    tracked,
)
from agentflow.maths.units import Units, anchors, spread

NAN = float("nan")


def whole(*values: int) -> Units:
    return np.array(values, dtype=np.intp)


def real(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize("baseline", ["none", "mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["none", "std_sample", "std_population"])
def test_relative_is_group_advantages_in_any_order_of_the_units(baseline: Baseline, scale: Scale) -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=30), rng.integers(0, 4, size=30)
    got = relative(values, groups, baseline=baseline, scale=scale)
    for group in range(4):
        expected = group_advantages(values[groups == group], baseline=baseline, scale=scale)
        np.testing.assert_allclose(got[groups == group], expected, rtol=1e-12)


def test_what_is_not_applicable_counts_nowhere_and_stays_nan() -> None:
    got = relative(real(1, NAN, 0, 3, 5), whole(0, 0, 0, -1, 1), baseline="mean", scale="none")
    np.testing.assert_equal(got, [0.5, NAN, -0.5, NAN, 0.0])
    raw = relative(real(5), whole(0), baseline="mean", scale="none", singleton="raw")
    np.testing.assert_equal(raw, [5.0])


@pytest.mark.parametrize(("size", "expected"), [(4, -0.4472), (8, -0.3333), (16, -0.2425)])
def test_ngrpo_all_wrong_groups_are_pushed_down(size: int, expected: float) -> None:
    groups = np.zeros(size, dtype=np.intp)
    got = relative(np.zeros(size), groups, baseline="mean", scale="std_sample", virtual=(1.0,))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    plain = relative(np.zeros(size), groups, baseline="mean", scale="std_sample")
    assert not plain.any()


def test_ngrpo_worked_groups_of_eight() -> None:
    one = np.eye(8)[0]
    groups = np.repeat(whole(0, 1), 8)
    got = relative(np.concatenate([one, np.ones(8)]), groups, baseline="mean", scale="std_sample", virtual=(1.0,))
    np.testing.assert_allclose(got[:8], [1.7638, *[-0.5040] * 7], atol=1e-4)
    assert not got[8:].any()
    population = relative(np.zeros(8), groups[:8], baseline="mean", scale="std_population", virtual=(1.0,))
    np.testing.assert_allclose(population, -0.3536, atol=1e-4)
    # A single failure has the virtual sample for company.
    lone = relative(np.zeros(1), whole(0), baseline="mean", scale="std_sample", virtual=(1.0,))
    np.testing.assert_allclose(lone, -1 / np.sqrt(2), atol=1e-5)


GDPO_FIRST, GDPO_SECOND = real(0, 1, 0, 1), real(0, 0, 0, 1)
GDPO_GROUPS = whole(0, 0, 1, 1)


def test_gdpo_tells_apart_what_the_sum_confuses() -> None:
    summed = relative(GDPO_FIRST + GDPO_SECOND, GDPO_GROUPS, baseline="mean", scale="std_sample")
    np.testing.assert_allclose(summed, [-0.7071, 0.7071, -0.7071, 0.7071], atol=1e-4)
    apart = decoupled([GDPO_FIRST, GDPO_SECOND], GDPO_GROUPS, [1, 1], epsilon=1e-6)
    np.testing.assert_allclose(apart, [-0.7071, 0.7071, -1.4142, 1.4142], atol=1e-4)
    default = decoupled([GDPO_FIRST, GDPO_SECOND], GDPO_GROUPS, [1, 1])
    np.testing.assert_allclose(default[3], 2 * 0.5 / (np.sqrt(0.5) + 1e-4), rtol=1e-12)
    np.testing.assert_allclose(whiten(apart), [-0.5477, 0.5477, -1.0954, 1.0954], atol=1e-4)
    np.testing.assert_allclose(whiten(apart, epsilon=0.5, epsilon_on="std"), apart / (apart.std(ddof=1) + 0.5))


def test_gdpo_weights_and_a_term_that_applies_to_some() -> None:
    partial = real(0, NAN, 0, 1)
    got = decoupled([GDPO_FIRST, partial], GDPO_GROUPS, [2, 0.5], epsilon=0.0)
    root = np.sqrt(0.5)
    # A lone value of a term is a singleton: it adds 0.
    np.testing.assert_allclose(got, [-2 * root, 2 * root, -2.5 * root, 2.5 * root])
    np.testing.assert_equal(decoupled([real(NAN, 1), real(NAN, 1)], whole(0, 0), [1, 1]), [NAN, 0.0])


def test_whitening_leaves_out_what_is_not_applicable() -> None:
    values, weights = real(1, NAN, 4, 2), real(2, 9, 1, 3)
    known = np.array([0, 2, 3])
    got = whiten(values, weights)
    assert np.isnan(got[1])
    np.testing.assert_array_equal(got[known], whiten(values[known], weights[known]))
    np.testing.assert_equal(whiten(real(NAN, 3)), [NAN, 0.0])


def test_we6_gigpo_by_trajectory_and_by_row() -> None:
    steps, tasks = ["s0", "s1", "s0", "s2", "s0"], whole(0, 0, 0, 0, 0)
    trajectories, rewards = whole(0, 0, 1, 1, 1), real(0, 10, 0, 0, 0)
    returns = step_returns(rewards, trajectories, gamma=0.95)
    np.testing.assert_allclose(returns, [9.5, 10, 0, 0, 0])
    three = step_returns(real(1, 2, 4, 8, 16), whole(0, 1, 0, 2, 2), gamma=0.5)
    np.testing.assert_allclose(three, [3, 2, 4, 16, 16])
    anchored = anchors(steps, tasks)
    step = relative(returns, anchored, baseline="mean", scale="none")
    np.testing.assert_allclose(step, [6.333333, 0, -3.166667, 0, -3.166667], atol=1e-6)
    scaled = relative(returns, anchored, baseline="mean", scale="std_sample")
    np.testing.assert_allclose(scaled, [1.1547, 0, -0.57735, 0, -0.57735], atol=1e-5)
    episode = spread(relative(real(10, 0), whole(0, 0), baseline="mean", scale="none"), trajectories)
    np.testing.assert_allclose(combined([episode, step], [1, 1]), [11.333333, 5, -8.166667, -5, -8.166667], atol=1e-6)
    rows = relative(real(10, 10, 0, 0, 0), tasks, baseline="mean", scale="none")
    np.testing.assert_allclose(rows, [6, 6, -4, -4, -4])
    np.testing.assert_allclose(combined([rows, step], [1, 1]), [12.333333, 6, -7.166667, -4, -7.166667], atol=1e-6)


def test_parts_that_apply_nowhere_leave_nan() -> None:
    np.testing.assert_equal(combined([real(1, NAN, NAN), real(2, 4, NAN)], [1, 0.5]), [2.0, 2.0, NAN])


def test_spo_single_stream_worked_batch() -> None:
    values, rewards = real(0.25, 0.5, 0.9, 0.05), real(1, 0, 1, 0)
    np.testing.assert_allclose(tracked(rewards, values, epsilon=None), [0.75, -0.5, 0.1, -0.05])
    np.testing.assert_allclose(tracked(rewards, values), [1.305094, -1.111747, 0.048337, -0.241684], atol=1e-6)
    np.testing.assert_equal(np.isnan(tracked(rewards, real(NAN, 0, 0, 0))), [True, False, False, False])


WE3 = [([1, 0, 0, 0, 0], 0.32, 0.128), ([1, 1, 0, 0, 0], 0.293939, 0.144), ([1, 1, 1, 1, 0], 0.08, 0.032)]


@pytest.mark.parametrize(
    ("returns", "by_std", "by_variance"),
    [*WE3, ([1] * 5, 0, 0), ([0] * 5, 0, 0), ([0.9, 0.5, 0.3, 0.2, 0.1], 0.169706, 0.048)],
)
def test_we3_vspo_value_of_a_task(returns: list[float], by_std: float, by_variance: float) -> None:
    groups = whole(0, 0, 0, 0, 0)
    assert group_values(real(*returns), groups, highest=1.0)[0] == pytest.approx(by_std, abs=1e-6)
    assert group_values(real(*returns), groups, highest=1.0, spread="variance")[0] == pytest.approx(by_variance)


def test_we3_the_highest_return_may_be_the_groups_own() -> None:
    returns = real(0.9, 0.5, 0.3, 0.2, 0.1, NAN, 0, 1)
    got = group_values(returns, whole(0, 0, 0, 0, 0, 0, 2, 2), highest=None)
    np.testing.assert_allclose(got, [0.141421, 0, 0.25], atol=1e-6)


def test_outcome_spread_is_of_raw_returns_group_by_group() -> None:
    returns = np.array([1, 0, 5, 6, np.nan, 0, 2, np.nan])
    groups = np.array([0, 0, 1, 1, 0, 2, 2, 3])
    np.testing.assert_allclose(outcome_spread(returns, groups), [1, 1, 4, 0])
    np.testing.assert_allclose(outcome_spread(returns, groups, width=2), [0.25, 0.25, 1, 0])


def test_smoothing_gives_copies_the_weight_of_one_or_leaves_them() -> None:
    np.testing.assert_allclose(smoothing(real(1, 2, 4)), [1, 0.5, 0.25])
    np.testing.assert_allclose(smoothing(real(1, 2, 4), power=0.5), [1, 0.5**0.5, 0.5])
    np.testing.assert_allclose(smoothing(real(1, 2, 4), power=0.0), 1)
    with pytest.raises(AssertionError, match="at least once"):
        smoothing(real(0))
