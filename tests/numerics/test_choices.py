"""Rules of choice against the worked numbers of VADE, SPO, Knapsack RL, SPINE and iGRPO, and slow oracles."""

from collections.abc import Sequence

import numpy as np
import pytest

from agentflow.maths.advantages import Floats, mixed_group_probability
from agentflow.maths.choices import (
    best_of,
    draw,
    expected_gain,
    information_gain,
    knapsack,
    majority,
    replacements,
    thompson,
    uncertainty_weights,
)


def real(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


def test_vade_worked_gains() -> None:
    np.testing.assert_allclose(information_gain(real(0.13, 0.32, 0.90)), [0.0984, 0.1480, 0.0090], atol=1e-4)
    grid = np.linspace(0, 1, 3001)
    assert grid[information_gain(grid).argmax()] == pytest.approx(1 / 3)
    got = expected_gain(real(1.1, 3.7, 10), real(9.4, 6.3, 1.2))
    np.testing.assert_allclose(got, [0.071245, 0.128911, 0.014637], atol=1e-6)


def test_expected_gain_against_samples() -> None:
    samples = np.random.default_rng(0).beta(2.5, 4.0, size=200_000)
    assert expected_gain(real(2.5), real(4.0))[0] == pytest.approx(information_gain(samples).mean(), abs=5e-4)


def test_thompson_takes_what_promises_most_and_repeats_with_its_seed() -> None:
    # Beliefs so firm that a sample is their mean.
    rates = real(0.9, 0.34, 0.02, 0.5, 0.1)
    got = thompson(1e7 * rates, 1e7 * (1 - rates), 3, generator=np.random.default_rng(0))
    assert got.tolist() == [1, 3, 4]
    flat = np.zeros(100)
    first, again, other = (thompson(flat, flat, 10, generator=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()
    # The sample is of Beta(alpha + 1, beta + 1).
    alpha, beta = np.random.default_rng(5).random((2, 40))
    expected = np.argsort(-information_gain(np.random.default_rng(6).beta(alpha + 1, beta + 1)), kind="stable")
    assert thompson(alpha, beta, 40, generator=np.random.default_rng(6)).tolist() == expected.tolist()
    # What is unknown is explored: a flat prior beats a task that is known to be solved.
    firm = thompson(np.append(flat, 1e6), np.append(flat, 1.0), 50, generator=np.random.default_rng(3))
    assert 100 not in firm


def test_spo_worked_probabilities() -> None:
    rates = real(0.25, 0.5, 0.9, 0.05)
    np.testing.assert_allclose(uncertainty_weights(rates), [0.292565, 0.333140, 0.211998, 0.162297], atol=1e-6)
    np.testing.assert_allclose(uncertainty_weights(real(np.nan, 0.5)), 0.5)
    sized = uncertainty_weights(real(0.5, 0.5, 0.5), real(0.2, 1, 4), power=0.5, floor=0.0)
    np.testing.assert_allclose(sized, [0.4, 0.4, 0.2])
    with pytest.raises(AssertionError, match="needs them"):
        uncertainty_weights(rates, power=1.0)


def test_draws_are_different_tasks_in_proportion() -> None:
    rng = np.random.default_rng(0)
    probabilities = real(0.5, 0.3, 0.2, 0.0)
    firsts = np.array([draw(probabilities, 2, generator=rng) for _ in range(4000)])
    assert (firsts[:, 0] != firsts[:, 1]).all() and firsts.max() == 2
    np.testing.assert_allclose(np.bincount(firsts[:, 0], minlength=4) / 4000, probabilities, atol=0.03)


def test_replacements_follow_the_values_and_leave_places_empty_without_any() -> None:
    values = real(0.0, 0.3, 0.1)
    times = replacements(values, 4000, generator=np.random.default_rng(0))
    assert times.sum() == 4000 and times[0] == 0
    np.testing.assert_allclose(times / 4000, values / 0.4, atol=0.02)
    assert replacements(np.zeros(3), 5, generator=np.random.default_rng(0)).tolist() == [0, 0, 0]


RATES = real(0.1, 0.5, 0.9)


def knapsack_value(rates: Floats, sizes: Sequence[int]) -> float:
    gates = [mixed_group_probability(rate, size) for rate, size in zip(rates.tolist(), sizes, strict=True)]
    return float((np.array(gates) * information_gain(rates)).sum())


def test_knapsack_worked_optimum() -> None:
    sizes = knapsack(RATES, 24, low=2, high=16)
    assert sizes.tolist() == [15, 7, 2]
    assert knapsack_value(RATES, sizes.tolist()) == pytest.approx(0.188989693, abs=1e-9)
    assert knapsack_value(RATES, [8, 8, 8]) == pytest.approx(0.175281388, abs=1e-9)
    assert knapsack_value(RATES, [14, 7, 3]) == pytest.approx(0.187946673, abs=1e-9)


def best_by_dynamic_programming(rates: Floats, budget: int, low: int, high: int) -> float:
    best = {0: 0.0}
    for rate in rates:
        longer: dict[int, float] = {}
        for spent, value in best.items():
            for size in range(low, high + 1):
                more = value + knapsack_value(real(rate), [size])
                longer[spent + size] = max(longer.get(spent + size, 0.0), more)
        best = longer
    return best[budget]


@pytest.mark.parametrize("seed", range(4))
def test_greedy_knapsack_is_exact(seed: int) -> None:
    rates = np.random.default_rng(seed).random(4)
    sizes = knapsack(rates, 22, low=2, high=9)
    assert sizes.sum() == 22 and sizes.min() >= 2 and sizes.max() <= 9
    assert knapsack_value(rates, sizes.tolist()) == pytest.approx(best_by_dynamic_programming(rates, 22, 2, 9))


def test_knapsack_fills_its_bounds_and_refuses_what_does_not_fit() -> None:
    assert knapsack(RATES, 9, low=3, high=9).tolist() == [3, 3, 3]
    assert knapsack(RATES, 27, low=3, high=9).tolist() == [9, 9, 9]
    assert knapsack(RATES, 6).tolist() == [2, 2, 2] and knapsack(RATES, 384).tolist() == [128, 128, 128]
    for budget in (8, 28):
        with pytest.raises(AssertionError, match="between"):
            knapsack(RATES, budget, low=3, high=9)


def test_spine_votes() -> None:
    groups = np.zeros(4, dtype=np.intp)
    assert majority(["7", "7", "7", "9"], groups).tolist() == [1, 1, 1, 0]
    # Of equally frequent answers the first; no answer is no vote, not even where most give none.
    assert majority(["9", "7", "7", "9"], groups).tolist() == [1, 0, 0, 1]
    assert majority([None, None, None, "7"], groups).tolist() == [0, 0, 0, 1]
    mixed = majority(["a", None, "b", "b", "a", None], np.array([0, 1, 0, -1, 0, 1]))
    np.testing.assert_equal(mixed, [1, np.nan, 0, np.nan, 1, np.nan])


def test_igrpo_takes_the_first_of_the_best_drafts() -> None:
    assert best_of([0.0, None, 1.0, 1.0]) == 2
    assert best_of([None, -2.0, -1.0]) == 2
    assert best_of([None]) is None and best_of([]) is None
    # The chance that the best of n drafts is right: 1 - (1 - p)^n.
    rng = np.random.default_rng(0)
    drafts = rng.random((4000, 8)) < 0.2
    solved = [bool(row[best_of(row.astype(float).tolist()) or 0]) for row in drafts]
    assert np.mean(solved) == pytest.approx(0.8322, abs=0.02)
