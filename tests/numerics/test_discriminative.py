"""DisCO, DRPO and the hinge against the dossier's worked numbers, finite differences and a loop over scalars."""

import math

import pytest
import torch
from torch import Tensor

from agentflow.maths.discriminative import completion_scores, discriminative, hinge_kl


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


SCORES = f64(-0.20, -0.40, -0.30, -0.50)
RIGHT = torch.tensor([True, True, False, False])
ONE_TASK = torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("tau", "value", "weights"),
    [
        (10.0, 0.099500, [0.5050, 0.4950]),
        (1.0, 0.095008, [0.5498, 0.4502]),
        (0.1, 0.056622, [0.8808, 0.1192]),
        (None, 0.1, [0.5, 0.5]),
    ],
)
def test_disco_worked_example(tau: float | None, value: float, weights: list[float]) -> None:
    scores = SCORES.clone().requires_grad_()
    got = discriminative(scores, ONE_TASK, RIGHT, num_groups=1, tau=tau)
    assert got.item() == pytest.approx(value, abs=1e-6)
    (gradient,) = torch.autograd.grad(got, scores)
    torch.testing.assert_close(gradient, f64(0.5, 0.5, -weights[0], -weights[1]), rtol=0, atol=5e-5)


def test_drpo_weights_right_completions_by_length_and_never_pushes_one_down() -> None:
    lengths = f64(2048, 4096, 100, 100)
    preference = (1 - lengths / 8192) / 0.1
    scores = f64(-0.40, -0.20, -0.30, -0.50).requires_grad_()
    got = discriminative(scores, ONE_TASK, RIGHT, num_groups=1, tau=10.0, preference_U=preference)
    assert got.item() == pytest.approx(0.014672, abs=1e-6)
    (gradient,) = torch.autograd.grad(got, scores)
    torch.testing.assert_close(gradient[:2], f64(0.9241, 0.0759), rtol=0, atol=5e-5)
    flat = discriminative(scores, ONE_TASK, RIGHT, num_groups=1, tau=10.0, preference_U=torch.zeros(4))
    assert flat.item() == pytest.approx(0.0995, abs=1e-6)


def test_a_task_without_both_outcomes_adds_nothing_and_is_counted() -> None:
    scores = torch.cat([SCORES, f64(-9, -8, -7, math.nan)]).requires_grad_()
    groups = torch.tensor([0, 0, 0, 0, 3, 3, 2, -1])
    right = torch.cat([RIGHT, torch.tensor([True, True, False, False])])
    got = discriminative(scores, groups, right, num_groups=4, tau=10.0)
    assert got.item() == pytest.approx(0.0995 / 4, abs=1e-6)
    (gradient,) = torch.autograd.grad(got, scores)
    assert not gradient[4:].any()
    alone = discriminative(f64(1.0), torch.tensor([0]), torch.tensor([True]), num_groups=1, tau=1.0)
    assert alone.item() == 0.0


def test_far_negatives_do_not_overflow() -> None:
    got = discriminative(f64(0, 800, -800), ONE_TASK[:3], RIGHT[1:], num_groups=1, tau=0.5)
    assert got.item() == pytest.approx(0 - (800 - 0.5 * math.log(2)))


COMPLETIONS = torch.tensor([0, 0, 2, -1, 2, 2, 3])


def test_scores_are_means_over_the_tokens_of_a_completion() -> None:
    logprobs, start = f64(-1, -2, -0.5, -99, -1, -3, -4), f64(-1.5, -2, -0.5, 0, -1, -2, -4)
    means = completion_scores(logprobs, COMPLETIONS, 5)
    torch.testing.assert_close(means, f64(-1.5, math.nan, -1.5, -4, math.nan), equal_nan=True)
    ratios = completion_scores(logprobs, COMPLETIONS, 4, start_logprobs_S=start)
    expected = f64((math.exp(0.5) + 1) / 2, math.nan, (2 + math.exp(-1)) / 3, 1)
    torch.testing.assert_close(ratios, expected, equal_nan=True)


@pytest.mark.parametrize("ratio", [False, True])
@pytest.mark.parametrize("tau", [None, 0.3])
def test_gradient_against_finite_differences(tau: float | None, *, ratio: bool) -> None:
    torch.manual_seed(0)
    completions = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, -1, 5])
    groups, right = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([True, False, False, True, True, False])
    logprobs = torch.randn(11, dtype=torch.float64).requires_grad_()
    start = logprobs.detach() + 0.1 * torch.randn(11, dtype=torch.float64)

    def objective(values: Tensor) -> Tensor:
        scores = completion_scores(values, completions, 6, start_logprobs_S=start if ratio else None)
        return discriminative(scores, groups, right, num_groups=3, tau=tau)

    assert torch.autograd.gradcheck(objective, logprobs)


def test_the_hinge_is_free_below_delta_and_square_above() -> None:
    start, weights = f64(-1, -2), f64(0.5, 0.5)
    at = f64(-1 - 3e-4, -2 - 3e-4).requires_grad_()
    paper = hinge_kl(at, start, weights, delta=1e-4, beta=1e3)
    assert paper.item() == pytest.approx(4.0e-5)
    # The divergence's own gradient is -weights under k1.
    torch.testing.assert_close(torch.autograd.grad(paper, at)[0], -0.4 * weights)
    code = hinge_kl(at, start, weights, delta=1e-4, beta=1e3, half=True)
    assert code.item() == pytest.approx(2.0e-5)
    torch.testing.assert_close(torch.autograd.grad(code, at)[0], -0.2 * weights)
    inside = hinge_kl(start.clone().requires_grad_(), start, weights, delta=1e-4, beta=1e3)
    assert inside.item() == 0.0


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_hinge_gradient_against_finite_differences(estimator: str) -> None:
    torch.manual_seed(2)
    start, weights = torch.randn(5, dtype=torch.float64), torch.full((5,), 0.2, dtype=torch.float64)
    now = (start - 0.5 + 0.1 * torch.randn(5, dtype=torch.float64)).requires_grad_()

    def price(values: Tensor) -> Tensor:
        return hinge_kl(values, start, weights, delta=0.01, beta=10.0, estimator=estimator)  # type: ignore[arg-type]

    assert price(now).item() > 0.01
    assert torch.autograd.gradcheck(price, now)
    # Samples are the start's: k3 is exp(d) - d - 1 with d = log pi_theta - log pi_start.
    d = now.detach() - start
    estimates = {"k1": -d, "k2": d.square() / 2, "k3": d.exp() - d - 1}
    assert price(now).item() == pytest.approx(10 * (float(estimates[estimator].mean()) - 0.01) ** 2)
