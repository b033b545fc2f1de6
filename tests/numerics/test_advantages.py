"""Advantages against the worked numbers of the reference, a slow oracle, and invariances."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.maths.advantages import (
    Baseline,
    Scale,
    Unit,
    broadcast_return,
    group_advantages,
    mixed_group_probability,
    returns_to_go,
    turn_advantages,
    whiten,
)

RETURNS = np.array([1.0, 0.0, 0.0, 1.0])
TURNS = (3, 1, 2, 2)
returns_lists = st.lists(st.floats(-10, 10, allow_nan=False), min_size=2, max_size=8)
baselines = st.sampled_from(["none", "mean", "leave_one_out"])
scales = st.sampled_from(["none", "std_sample", "std_population"])


@pytest.mark.parametrize(
    ("baseline", "scale", "expected"),
    [
        ("mean", "std_population", 1.0),
        ("mean", "std_sample", 0.866025),  # WE-1
        ("leave_one_out", "none", 0.666667),  # WE-13, RLOO
        ("mean", "none", 0.5),  # WE-13, Dr. GRPO
    ],
)
def test_worked_group_advantages(baseline: Baseline, scale: Scale, expected: float) -> None:
    advantages = group_advantages(RETURNS, baseline=baseline, scale=scale, epsilon=0.0)
    assert advantages == pytest.approx([expected, -expected, -expected, expected], abs=1e-6)


def test_method_0_of_the_loss_reference() -> None:
    returns = np.array([1.0, 0.0, 0.0, 0.0])
    sample = group_advantages(returns, baseline="mean", scale="std_sample", epsilon=0.0)
    population = group_advantages(returns, baseline="mean", scale="std_population", epsilon=0.0)
    assert sample == pytest.approx([1.5, -0.5, -0.5, -0.5])
    assert population == pytest.approx([1.7321, -0.5774, -0.5774, -0.5774], abs=1e-4)


def test_we1_rows_pull_the_statistics_towards_long_trajectories() -> None:
    turn_credits = [np.full(turns, value) for turns, value in zip(TURNS, RETURNS, strict=True)]
    rows = turn_advantages(turn_credits, unit="row", baseline="mean", scale="std_sample", epsilon=0.0)
    trajectories = turn_advantages(turn_credits, unit="trajectory", baseline="mean", scale="std_sample", epsilon=0.0)
    assert np.concatenate(rows) == pytest.approx([0.724569] * 3 + [-1.207615] * 3 + [0.724569] * 2, abs=1e-6)
    assert np.concatenate(trajectories) == pytest.approx([0.866025] * 3 + [-0.866025] * 3 + [0.866025] * 2, abs=1e-6)


def test_we13_baseline_then_batch_whitening() -> None:
    groups = [np.array([1.0, 0.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0])]
    centred = np.concatenate([group_advantages(group, baseline="mean", scale="none") for group in groups])
    assert centred.std(ddof=1) == pytest.approx(0.5)
    assert whiten(centred) == pytest.approx([1, -1, -1, 1, 0.5, 0.5, 0.5, -1.5], abs=1e-6)


def test_we14_returns_are_carried_through_masked_tokens() -> None:
    mask = np.array([True, True, False, True, True])
    returns = returns_to_go(np.array([0, 0, 0, 0, 1.0]), gamma=0.5, mask=mask)
    assert returns == pytest.approx([0.125, 0.25, 0.0, 0.5, 1.0])


def test_a_reward_on_a_masked_token_is_refused_not_lost() -> None:
    with pytest.raises(AssertionError, match="where the policy acted"):
        returns_to_go(np.array([0.0, 0.7, 0.0]), mask=np.array([True, False, True]))


def test_we17_mixed_groups() -> None:
    assert mixed_group_probability(0.1, 8) == pytest.approx(0.569533, abs=1e-6)
    assert mixed_group_probability(0.5, 8) == pytest.approx(0.992188, abs=1e-6)
    assert mixed_group_probability(0.02, 8) == pytest.approx(0.149237, abs=1e-6)
    assert 1 / mixed_group_probability(0.02, 8) == pytest.approx(6.7, abs=0.01)


@pytest.mark.parametrize("unit", ["trajectory", "row"])
def test_a_singleton_is_zero_even_where_it_has_many_turns(unit: Unit) -> None:
    turn_credits = [np.array([3.0, 2.0, 2.0])]
    zero = turn_advantages(turn_credits, unit=unit, baseline="mean", scale="std_sample")
    raw = turn_advantages(turn_credits, unit=unit, baseline="mean", scale="std_sample", singleton="raw")
    plain = turn_advantages(turn_credits, unit=unit, baseline="none", scale="none")
    assert zero[0].tolist() == [0, 0, 0]
    assert raw[0].tolist() == plain[0].tolist() == [3, 2, 2]


def test_a_missing_return_is_refused() -> None:
    with pytest.raises(AssertionError, match="left out"):
        group_advantages(np.array([1.0, math.nan]), baseline="mean", scale="none")


@pytest.mark.parametrize("epsilon", [0.0, 1e-30, 1e-6])
@pytest.mark.parametrize("scale", ["none", "std_sample", "std_population"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("returns", [[0.0] * 3, [0.1] * 3, [1 / 3] * 7, [0.1 + 0.2, 0.3], [-1e9, -1e9 - 1e-7]], ids=str)
def test_equal_returns_teach_nothing_whatever_epsilon(
    returns: list[float], baseline: Baseline, scale: Scale, epsilon: float
) -> None:
    advantages = group_advantages(np.array(returns), baseline=baseline, scale=scale, epsilon=epsilon)
    assert advantages.tolist() == [0.0] * len(returns)


def test_without_a_baseline_equal_returns_are_not_divided_by_their_rounding() -> None:
    returns = np.array([0.1, 0.1, 0.1])
    assert group_advantages(returns, baseline="none", scale="std_sample", epsilon=0.0).tolist() == [0.1, 0.1, 0.1]
    assert group_advantages(returns, baseline="none", scale="std_sample", epsilon=0.1) == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(
    ("unit", "expected"), [("trajectory", [0.1, -0.1, 0.2, -0.2]), ("row", np.array([1, -1, 2, -2]) / 10**0.5 * 3**0.5)]
)
def test_turns_that_differ_in_trajectories_that_do_not_stay_finite(unit: Unit, expected: list[float]) -> None:
    turn_credits = [np.array([0.5, 0.3]), np.array([0.6, 0.2])]
    turns = turn_advantages(turn_credits, unit=unit, baseline="mean", scale="std_sample", epsilon=0.0)
    assert np.concatenate(turns) == pytest.approx(expected)


def test_smallest_difference_that_is_one_is_kept() -> None:
    advantages = group_advantages(np.array([1.0, 1.0 + 1e-11]), baseline="mean", scale="std_population", epsilon=0.0)
    assert advantages == pytest.approx([-1.0, 1.0], abs=1e-4)


def _slow(returns: list[float], baseline: str, scale: str, epsilon: float) -> list[float]:
    size, mean = len(returns), sum(returns) / len(returns)
    advantages = []
    for i, value in enumerate(returns):
        others = [r for j, r in enumerate(returns) if j != i]
        b = {"none": 0.0, "mean": mean, "leave_one_out": sum(others) / len(others)}[baseline]
        squares = sum((r - mean) ** 2 for r in returns)
        divisor = {"none": None, "std_sample": size - 1, "std_population": size}[scale]
        advantages.append((value - b) / (1.0 if divisor is None else math.sqrt(squares / divisor) + epsilon))
    return advantages


@given(returns=returns_lists, baseline=baselines, scale=scales)
def test_equals_a_loop_over_scalars(returns: list[float], baseline: Baseline, scale: Scale) -> None:
    fast = group_advantages(np.array(returns), baseline=baseline, scale=scale, epsilon=1e-3)
    assert fast == pytest.approx(_slow(returns, baseline, scale, 1e-3), abs=1e-8)


@given(returns=returns_lists, baseline=baselines, scale=scales, seed=st.integers(0, 99))
def test_order_within_a_group_does_not_matter(
    returns: list[float], baseline: Baseline, scale: Scale, seed: int
) -> None:
    values, order = np.array(returns), np.random.default_rng(seed).permutation(len(returns))
    straight = group_advantages(values, baseline=baseline, scale=scale, epsilon=1e-3)
    assert group_advantages(values[order], baseline=baseline, scale=scale, epsilon=1e-3) == pytest.approx(
        straight[order], abs=1e-8
    )


@given(
    turn_credits=st.lists(st.lists(st.floats(-5, 5, allow_nan=False), min_size=1, max_size=4), min_size=2, max_size=5),
    scale=scales,
)
def test_trajectory_unit_uses_the_statistics_of_the_trajectories(turn_credits: list[list[float]], scale: Scale) -> None:
    arrays = [np.array(credit) for credit in turn_credits]
    means = np.array([array.mean() for array in arrays])
    spread = {"none": 1.0, "std_sample": means.std(ddof=1) + 0.1, "std_population": means.std() + 0.1}[scale]
    for result, array in zip(turn_advantages(arrays, baseline="mean", scale=scale, epsilon=0.1), arrays, strict=True):
        assert result == pytest.approx((array - means.mean()) / spread, abs=1e-9)


@given(
    rewards=st.lists(st.floats(-5, 5, allow_nan=False), min_size=1, max_size=12),
    gamma=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_returns_to_go_equals_the_recursion_and_ignores_masked_entries(
    rewards: list[float], gamma: float, seed: int
) -> None:
    expected, running = [], 0.0
    for reward in reversed(rewards):
        running = reward + gamma * running
        expected.append(running)
    expected.reverse()
    assert returns_to_go(np.array(rewards), gamma=gamma) == pytest.approx(expected, abs=1e-9)
    gaps = np.random.default_rng(seed).integers(0, 3, len(rewards))
    padded = np.concatenate([np.r_[reward, np.zeros(gap)] for reward, gap in zip(rewards, gaps, strict=True)])
    mask = np.concatenate([np.r_[True, np.zeros(gap, bool)] for gap in gaps])
    returns = returns_to_go(padded, gamma=gamma, mask=mask)
    assert returns[mask] == pytest.approx(expected, abs=1e-9)
    assert not returns[~mask].any()


def test_whitening_weights_are_repetitions() -> None:
    values, counts = np.array([1.0, -2.0, 0.5]), np.array([3, 1, 2])
    repeated = whiten(np.repeat(values, counts))
    assert np.repeat(whiten(values, counts.astype(float)), counts) == pytest.approx(repeated, abs=1e-12)
    assert repeated.mean() == pytest.approx(0.0, abs=1e-12)
    assert repeated.std(ddof=1) == pytest.approx(1.0, abs=1e-6)


def test_whitening_one_value_gives_zero() -> None:
    assert whiten(np.array([5.0])).tolist() == [0.0]


def test_broadcast_return() -> None:
    assert broadcast_return(np.array([0.5, 0.0, 1.0])).tolist() == [1.5, 1.5, 1.5]
