"""Forks, bands and the exact divergence against SPINE's worked numbers, a slow Otsu and finite differences."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from agentflow.maths.entropies import (
    above_otsu,
    band_hinges,
    bands,
    exact_kl,
    median_band,
    otsu_threshold,
    quantile_band,
    top_share,
)
from agentflow.maths.units import Floats, Units

ENTROPIES = np.array([0.10, 0.20, 0.05, 2.00, 0.30, 1.20, 0.15, 0.80, 0.02, 0.40])
ONE = np.zeros(10, dtype=np.intp)


def whole(*values: int) -> Units:
    return np.array(values, dtype=np.intp)


def hinges(low: Floats, high: Floats) -> tuple[list[float], list[float]]:
    below, above = band_hinges(*(torch.from_numpy(array) for array in (ENTROPIES, low, high)))
    return below.tolist(), above.tolist()


def test_spine_first_version() -> None:
    forks = top_share(ENTROPIES, ONE, share=0.2)
    assert np.flatnonzero(forks).tolist() == [3, 5]
    low, high = bands(ENTROPIES, forks, ONE, by="quantiles")
    np.testing.assert_allclose(low[forks], 1.28)
    np.testing.assert_allclose(high[forks], 1.60)
    assert np.isnan(low[~forks]).all() and np.isnan(high[~forks]).all()
    below, above = hinges(low, high)
    assert [below[3], below[5]] == pytest.approx([0, 0.08])
    assert [above[3], above[5]] == pytest.approx([0.40, 0])
    assert sum(below) + sum(above) == pytest.approx(0.48)


def test_spine_second_version() -> None:
    assert otsu_threshold(ENTROPIES) == pytest.approx(0.8021, abs=1e-4)
    forks = above_otsu(ENTROPIES, ONE)
    assert np.flatnonzero(forks).tolist() == [3, 5]
    low, high = bands(ENTROPIES, forks, ONE, by="median")
    np.testing.assert_allclose(low[forks], 1.0070, atol=1e-4)
    np.testing.assert_allclose(high[forks], 1.6)
    below, above = hinges(low, high)
    assert sum(below) == 0 and sum(above) == pytest.approx(0.4)


def slow_otsu(values: Floats) -> float:
    """Return the lowest centre at which the variance between the classes is greatest."""
    low, high = values.min(), values.max()
    centres = [low + (high - low) * (k + 0.5) / 100 for k in range(100)]
    scores = []
    for centre in centres:
        below, above = values[values <= centre], values[values > centre]
        scores.append(len(below) * len(above) * (below.mean() - above.mean()) ** 2)
    return next(centre for centre, score in zip(centres, scores, strict=True) if score > max(scores) * (1 - 1e-9))


@pytest.mark.parametrize("seed", range(5))
def test_otsu_against_a_slow_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.exponential(0.2, size=40), rng.normal(2, 0.5, size=10)])
    assert otsu_threshold(values) == pytest.approx(slow_otsu(values))


def test_equal_entropies_have_no_threshold_and_what_is_marked_is_said() -> None:
    assert math.isnan(otsu_threshold(np.full(4, 0.3))) and math.isnan(otsu_threshold(np.zeros(0)))
    values, units = np.array([0.3, 0.3, 0.1, 2.0, 7.0]), whole(0, 0, 1, 1, -1)
    assert above_otsu(values, units).tolist() == [False, False, False, True, False]
    assert above_otsu(values, units, equal="all").tolist() == [True, True, False, True, False]


def test_top_share_is_rounded_up_within_each_unit_and_prefers_the_earlier_of_equals() -> None:
    values, units = np.array([1, 3, 3, 3, 2, 9, 5, 4.0]), whole(0, 0, 0, 0, 0, -1, 1, 1)
    assert np.flatnonzero(top_share(values, units, share=0.4)).tolist() == [1, 2, 6]
    assert np.flatnonzero(top_share(values, units, share=0.41)).tolist() == [1, 2, 3, 6]
    assert np.flatnonzero(top_share(values, units, share=1.0)).tolist() == [0, 1, 2, 3, 4, 6, 7]
    # 0.3 * 10 is 3.0000000000000004 of nothing more than 3.
    assert top_share(np.arange(10.0), ONE, share=0.3).sum() == 3


def test_bands_are_taken_unit_by_unit_over_forks_alone() -> None:
    values, units = np.array([1.0, 3.0, 0.1, 5.0, 5.0]), whole(0, 0, 0, 1, 1)
    forks = np.array([True, True, False, True, False])
    low, high = bands(values, forks, units, by="median")
    np.testing.assert_allclose(low, [2 - 1.4826, 2 - 1.4826, np.nan, 5, np.nan])
    np.testing.assert_allclose(high, [2, 2, np.nan, 5, np.nan])
    assert median_band(np.array([0.1, 4.0, 9.0]))[0] == 0.0
    assert np.isnan(median_band(np.zeros(0))).all() and np.isnan(quantile_band(np.zeros(0))).all()
    assert quantile_band(np.arange(11.0), low=0.25, high=0.9) == (2.5, 9.0)


def test_hinges_have_finite_gradients_where_there_is_no_band() -> None:
    entropy = torch.tensor([0.5, 2.0, 0.1, 0.3], dtype=torch.float64, requires_grad=True)
    low = torch.tensor([1.0, 1.0, math.nan, 0.2], dtype=torch.float64)
    high = torch.tensor([1.5, 1.5, math.nan, 0.4], dtype=torch.float64)
    below, above = band_hinges(entropy, low, high)
    torch.testing.assert_close(below.detach(), torch.tensor([0.5, 0, 0, 0]).double())
    torch.testing.assert_close(above.detach(), torch.tensor([0, 0.5, 0, 0]).double())
    (3 * below + 7 * above).sum().backward()
    assert entropy.grad is not None and entropy.grad.tolist() == [-3, 7, 0, 0]
    assert torch.autograd.gradcheck(lambda x: band_hinges(x, low, high), entropy)


def test_exact_kl_of_two_coins_and_against_torch() -> None:
    coins = torch.tensor([[0.6, 0.4], [0.5, 0.5]], dtype=torch.float64).log()
    got = exact_kl(coins[:1], coins[1:])
    assert got.item() == pytest.approx(0.6 * math.log(1.2) + 0.4 * math.log(0.8))
    torch.manual_seed(0)
    logits, other = torch.randn(2, 6, 9, dtype=torch.float64)
    expected = torch.nn.functional.kl_div(
        other.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(exact_kl(logits, other), expected)
    assert (exact_kl(logits, logits + 3.0).abs() < 1e-12).all()


def test_exact_kl_gradient_against_finite_differences_and_at_impossible_tokens() -> None:
    torch.manual_seed(1)
    logits = torch.randn(3, 5, dtype=torch.float64).requires_grad_()
    other = torch.randn(3, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(exact_kl, (logits, other))
    blocked: Tensor = torch.tensor([[0.0, -math.inf, 1.0]], dtype=torch.float64, requires_grad=True)
    value = exact_kl(blocked, torch.zeros(1, 3).double())
    value.sum().backward()
    assert torch.isfinite(value).all() and blocked.grad is not None and torch.isfinite(blocked.grad).all()
