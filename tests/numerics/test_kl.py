"""The estimators of a divergence: their gradients in expectation, and where bounds end them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from agentflow.maths.losses import kl_estimate
from agentflow.maths.ratios import unit_log_ratio
from agentflow.trainers.slots.losses.surrogates import Clipped
from tests.numerics.terms import SampledTokens


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("estimator", "expected"), [("k1", "zero"), ("k2", "reverse"), ("k3", "forward")])
def test_expected_gradient_of_each_kl_estimator(estimator: Any, expected: str) -> None:
    logits = f64(0.3, -0.2, 0.9).requires_grad_()
    other = f64(-0.5, 0.4, 0.1).log_softmax(0)
    logprobs = logits.log_softmax(0)
    penalty = (logprobs.detach().exp() * kl_estimate(logprobs, other, estimator)).sum()
    (gradient,) = torch.autograd.grad(penalty, logits, retain_graph=True)
    divergences = {
        "zero": (0 * logits).sum(),
        "reverse": (logprobs.exp() * (logprobs - other)).sum(),
        "forward": (other.exp() * (other - logprobs)).sum(),
    }
    (wanted,) = torch.autograd.grad(divergences[expected], logits)
    assert torch.allclose(gradient, wanted, atol=1e-12)


def test_k3_and_the_ratio_of_a_token_have_no_gradient_past_20_nats() -> None:
    far = f64(-21.0, -19.0, 0.0).requires_grad_()
    (gradient,) = torch.autograd.grad(kl_estimate(far, torch.zeros_like(far), "k3").sum(), far)
    assert gradient.tolist() == pytest.approx([0.0, 1 - math.exp(19), 0.0])
    assert float(kl_estimate(f64(-21.0), f64(0.0), "k3")) == pytest.approx(4.9e8, rel=0.01)
    (gradient,) = torch.autograd.grad(kl_estimate(far, torch.zeros_like(far), "k2").sum(), far)
    assert gradient.tolist() == [-21.0, -19.0, 0.0]
    logprobs, old = f64(-1.0, -1.0).requires_grad_(), f64(-22.0, -20.0)
    units = torch.tensor([0, 1])
    batch = SampledTokens(logprobs, old, f64(-1.0, -1.0), f64(0.5, 0.5), segments_S=units).tokens
    (gradient,) = torch.autograd.grad(Clipped().log_ratio(batch).sum(), logprobs)
    assert gradient.tolist() == [0.0, 1.0]
    (gradient,) = torch.autograd.grad(unit_log_ratio(logprobs, old, units).sum(), logprobs)
    assert gradient.tolist() == [0.0, 1.0]
