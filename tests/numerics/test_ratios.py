"""Ratios, bounds and mixtures against the worked numbers of GSPO, NGRPO, ETR-style and DHPO, and finite differences."""

import numpy as np
import pytest
import torch
from torch import Tensor

from agentflow.maths.ratios import (
    Branch,
    bounded,
    clipped_objective,
    elastic_bounds,
    entropy_weights,
    mixed_objective,
    unit_log_ratio,
)
from agentflow.maths.unit_advantages import outcome_spread


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def whole(*values: int) -> Tensor:
    return torch.tensor(values)


DIFFERENCES = f64(0.01, -0.02, 0.03)


def test_we16_geometric_mean_and_product_of_a_sequence() -> None:
    start = f64(-1.0, -2.0, -0.5)
    one = whole(0, 0, 0)
    geometric = unit_log_ratio(start + DIFFERENCES, start, one).exp()
    torch.testing.assert_close(geometric, torch.full_like(start, 1.006689), rtol=0, atol=1e-6)
    product = unit_log_ratio(start + DIFFERENCES, start, one, mean="product").exp()
    torch.testing.assert_close(product, torch.full_like(start, 1.020201), rtol=0, atol=1e-6)
    clipped = clipped_objective(geometric, torch.ones(3), low=3e-4, high=4e-4)
    torch.testing.assert_close(clipped, torch.full_like(start, 1.0004), rtol=0, atol=1e-9)


def test_units_do_not_mix_and_a_token_in_none_keeps_its_own_ratio() -> None:
    start, now = torch.zeros(6).double(), f64(0.1, 0.3, -0.2, 0.7, 0.2, 0.5)
    got = unit_log_ratio(now, start, whole(1, 0, 1, -1, 0, -1))
    torch.testing.assert_close(got, f64(-0.05, 0.25, -0.05, 0.7, 0.25, 0.5))


@pytest.mark.parametrize("mean", ["geometric", "product"])
def test_own_and_shared_gradients_agree_where_a_unit_shares_its_advantage(mean: str) -> None:
    units, advantages = whole(0, 0, 0, 1, 1), f64(2, 2, 2, -1, -1)
    start = f64(-1, -2, -0.5, -0.1, -3)
    gradients = []
    for gradient in ("own", "shared"):
        now = (start + f64(0.01, -0.02, 0.03, 0.2, -0.1)).requires_grad_()
        ratio = unit_log_ratio(now, start, units, mean=mean, gradient=gradient).exp()  # type: ignore[arg-type]
        (ratio * advantages).sum().backward()
        gradients.append(now.grad)
    own, shared = gradients
    assert own is not None and shared is not None
    # Each token of a unit of n is reached n times through a product, once through a mean.
    times = f64(3, 3, 3, 2, 2) if mean == "product" else torch.ones(5).double()
    torch.testing.assert_close(own * times, shared)


def test_shared_gradient_against_finite_differences() -> None:
    start, units = torch.randn(6, dtype=torch.float64), whole(0, 1, 0, -1, 1, 0)
    now = (start + 0.1 * torch.randn(6, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: unit_log_ratio(x, start, units, gradient="shared").exp(), now)
    assert torch.autograd.gradcheck(
        lambda x: unit_log_ratio(x, start, units, mean="product", gradient="shared").exp(), now
    )


def test_an_exploding_ratio_stays_finite() -> None:
    now = torch.full((3,), 40.0, dtype=torch.float64, requires_grad=True)
    ratio = unit_log_ratio(now, torch.zeros(3).double(), whole(0, 0, 0), mean="product").exp()
    clipped_objective(ratio, f64(1, 1, -1), low=0.2, high=0.2).sum().backward()
    assert torch.isfinite(ratio).all() and now.grad is not None and torch.isfinite(now.grad).all()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.5, 1.0, 1.24), (0.7, 1.0, 0.7), (0.7, -1.0, -0.84), (1.5, -1.0, -1.5), (0.9, -2.0, -1.8)],
)
def test_ngrpos_bounds_by_sign_are_the_two_half_widths(ratio: float, advantage: float, expected: float) -> None:
    got = clipped_objective(f64(ratio), f64(advantage), low=0.16, high=0.24)
    assert got.item() == pytest.approx(expected)


def test_bounds_by_token_are_those_numbers_for_each_token() -> None:
    ratios, advantages = f64(1.5, 0.5, 1.5, 0.5), f64(2, -1, 1, -3)
    low, high = f64(0.1, 0.2, 0.3, 0.4), f64(0.4, 0.3, 0.2, 0.1)
    got = clipped_objective(ratios, advantages, low=low, high=high)
    torch.testing.assert_close(got, f64(2.8, -0.8, 1.2, -1.8))
    dual = clipped_objective(f64(5, 5, 2, 0.5), f64(-2, 1, -1, 0.5), low=0.2, high=0.2, dual_clip=3.0)
    torch.testing.assert_close(dual, f64(-6, 1.2, -2, 0.25))


@pytest.mark.parametrize("by_token", [False, True])
def test_a_ratio_on_a_bound_passes_its_gradient_and_one_past_it_none(by_token: bool) -> None:
    ratios = f64(1.0, 1.0, 0.5, 1.5).requires_grad_()
    low, high = (torch.zeros(4).double(), torch.zeros(4).double()) if by_token else (0.0, 0.0)
    bounded(ratios, low, high).sum().backward()
    torch.testing.assert_close(ratios.grad, f64(1, 1, 0, 0))
    # Numbers and tensors give the same bound in float32.
    single = torch.tensor([2.0, 0.1])
    assert torch.equal(bounded(single, 0.1, 0.3), single.clamp(1.0 - 0.1, 1.0 + 0.3))
    assert torch.equal(bounded(single, 0.1, 0.3), torch.tensor([1.3, 0.9]))


@pytest.mark.parametrize(
    ("advantage", "rate", "expected", "rescaled"),
    [(0.5, 0.5, 0.36932, 0.16414), (2, 0.5, 0.44460, 0.19760), (2, 0.125, 0.36124, 0.16055)],
)
def test_etr_style_worked_bounds(advantage: float, rate: float, expected: float, rescaled: float) -> None:
    returns = np.zeros(8)
    returns[: round(8 * rate)] = 1.0
    spread = torch.from_numpy(outcome_spread(returns, np.zeros(8, dtype=np.intp)))
    for sign in (1, -1):
        wide = elastic_bounds(f64(sign * advantage), spread, bound=0.2, micro=0.5, macro=0.5)
        assert wide.item() == pytest.approx(expected, abs=1e-5)
        narrow = elastic_bounds(f64(sign * advantage), spread, bound=0.2, micro=0.5, macro=0.5, rescale=True)
        assert narrow.item() == pytest.approx(rescaled, abs=1e-5)


RATIO = f64(1.5, 0.9, 1.0)
ENTROPIES = f64(0.2, 1.2, 0.7)


def branches(weight: Tensor | float) -> list[Branch]:
    sequence = torch.full_like(RATIO, float(RATIO.log().mean().exp()))
    return [Branch(RATIO, 0.2, 0.2, weight), Branch(sequence, 0.05, 0.05, 1.0 - weight)]


@pytest.mark.parametrize("pessimistic", [True, False])
def test_dhpo_worked_mixtures(pessimistic: bool) -> None:
    one = torch.ones(3).double()
    even = mixed_objective(branches(0.5), one, pessimistic=pessimistic)
    torch.testing.assert_close(even, f64(1.125, 0.975, 1.025))
    weights = entropy_weights(ENTROPIES)
    torch.testing.assert_close(weights, f64(0, 1, 0.5))
    guided = mixed_objective(branches(weights), one, pessimistic=pessimistic)
    torch.testing.assert_close(guided, f64(1.05, 0.90, 1.025))


def test_dhpo_readings_differ_where_the_advantage_is_negative() -> None:
    minus = -torch.ones(3).double()
    both = mixed_objective(branches(0.5), 2 * minus, pessimistic=False)
    torch.testing.assert_close(both, -2 * f64(1.125, 0.975, 1.025))
    sequence = float(RATIO.log().mean().exp())
    expected = -0.5 * (RATIO + sequence)
    torch.testing.assert_close(mixed_objective(branches(0.5), minus), expected)


def test_one_branch_of_weight_one_is_the_clipped_objective() -> None:
    advantages = f64(1, -1, 0.5)
    alone = mixed_objective([Branch(RATIO, 0.2, 0.3)], advantages)
    torch.testing.assert_close(alone, clipped_objective(RATIO, advantages, low=0.2, high=0.3), rtol=0, atol=0)


def test_a_token_outside_its_own_region_still_moves_through_the_other_branch() -> None:
    now = f64(0.5, 0.0).requires_grad_()
    start, units = torch.zeros(2).double(), whole(0, 0)
    token = (now - start).exp()
    sequence = unit_log_ratio(now, start, units).exp()
    mixed_objective([Branch(token, 0.2, 0.2, 0.5), Branch(sequence, 0.5, 0.5, 0.5)], f64(1, 1)).sum().backward()
    # The token branch gives nothing; the sequence branch gives half of its ratio to each token.
    assert now.grad is not None
    torch.testing.assert_close(now.grad[0], 0.5 * sequence[0].detach())


def test_mixture_gradient_against_finite_differences() -> None:
    torch.manual_seed(1)
    start, units = torch.randn(8, dtype=torch.float64), whole(0, 0, 0, 1, 1, 2, 2, 2)
    now = (start + 0.3 * torch.randn(8, dtype=torch.float64)).requires_grad_()
    advantages = torch.randn(8, dtype=torch.float64)
    weights = entropy_weights(torch.rand(8).double())

    def objective(logprobs: Tensor) -> Tensor:
        shared = unit_log_ratio(logprobs, start, units, gradient="shared").exp()
        return mixed_objective(
            [Branch((logprobs - start).exp(), 0.2, 0.3, weights), Branch(shared, 0.05, 0.05, 1 - weights)], advantages
        )

    assert torch.autograd.gradcheck(objective, now)


def test_entropy_weights_by_unit_without_gradient() -> None:
    entropy = f64(0.2, 1.2, 5.0, 7.0, 3.0).requires_grad_()
    got = entropy_weights(entropy, whole(0, 0, 1, 1, 2))
    torch.testing.assert_close(got, f64(0, 1, 0, 1, 0.5))
    assert not got.requires_grad
    assert entropy_weights(torch.zeros(0)).numel() == 0
