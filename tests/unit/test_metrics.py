from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.metrics import Sums, bootstrap_interval, mean, means_by_key, pass_at_k, success_interval


def test_means_do_not_depend_on_how_the_batch_was_cut() -> None:
    whole = Sums({"loss": (6.0, 4.0)})
    cut = Sums({"loss": (1.0, 1.0)}) + Sums({"loss": (5.0, 3.0), "kl": (0.0, 0.0)}) + Sums()
    assert cut.means() == {"loss": 1.5, "kl": None}
    assert whole.means() == {"loss": 1.5}


def test_the_mean_of_nothing_is_missing() -> None:
    assert mean([]) is None
    assert mean([1.0, 2.0]) == 1.5


@given(st.integers(1, 6), st.data())
def test_pass_at_k_equals_the_share_of_subsets_with_a_success(num_samples: int, data: st.DataObject) -> None:
    num_correct = data.draw(st.integers(0, num_samples))
    k = data.draw(st.integers(1, num_samples))
    outcomes = [True] * num_correct + [False] * (num_samples - num_correct)
    subsets = list(combinations(outcomes, k))
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("counts", [(0, 0, 1), (4, 5, 1), (4, 2, 5), (4, 2, 0), (4, -1, 1)])
def test_pass_at_k_refuses_counts_that_do_not_fit(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(*counts)


def test_the_interval_of_a_coin_is_the_binomial_one() -> None:
    low, high = bootstrap_interval([0.0, 1.0] * 50, seed=1)
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.011)  # the standard error is 0.5 / sqrt(100)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.011)


def test_the_interval_of_all_or_nothing_is_the_exact_one() -> None:
    # 0.025 ** (1 / 7) = 0.5904, and the other tail is its mirror image.
    assert success_interval([0.0] * 7) == pytest.approx((0.0, 0.4096), abs=1e-4)
    assert success_interval([1.0] * 7) == pytest.approx((0.5904, 1.0), abs=1e-4)
    assert success_interval([0.0, 1.0] * 50) == bootstrap_interval([0.0, 1.0] * 50)


def test_the_interval_is_fixed_by_its_seed_and_exact_for_constants() -> None:
    values = [0.1 * i for i in range(37)]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    assert bootstrap_interval([1.0]) == (1.0, 1.0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])


def test_a_table_averages_what_each_row_has() -> None:
    rows = [(2, {"success": 1.0, "f1": 0.5}), (1, {"success": 0.0}), (2, {"success": 0.0})]
    assert means_by_key(rows) == {2: {"count": 2, "success": 0.5, "f1": 0.5}, 1: {"count": 1, "success": 0.0}}
