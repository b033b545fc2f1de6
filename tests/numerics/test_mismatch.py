"""The corrections for a sampler that differs: the worked numbers of the reference, by token, turn and sequence."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agentflow.columns import SAMPLER, START
from agentflow.maths.losses import token_weights
from agentflow.maths.mismatch import Mismatch, MismatchUnit, mismatch_factor, owners, unit_log_weights
from agentflow.trainers.algorithm import load_recipe
from tests.numerics.batches import batch_of
from tests.numerics.terms import SampledTokens, policy_loss

W = [0.3, 0.8, 1.0, 3.0, 6.0]
"""WE-18, as two turns of two and of three tokens where turns matter."""
TURNS = torch.tensor([0, 0, 1, 1, 1])
SEQUENCE = torch.zeros(5, dtype=torch.long)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def factors(mismatch: Mismatch, unit: MismatchUnit, *, low: float, high: float) -> list[float]:
    log_w = unit_log_weights(f64(*W).log(), unit, turns_S=TURNS, segments_S=SEQUENCE)
    return mismatch_factor(log_w, mismatch, low=low, high=high).tolist()


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("token", W),
        ("turn", [0.24] * 2 + [18.0] * 3),
        ("turn_mean", [0.489898] * 2 + [2.620741] * 3),
        ("sequence", [4.32] * 5),
        ("sequence_mean", [1.339975] * 5),
    ],
)
def test_we18_weight_of_each_unit(unit: MismatchUnit, expected: list[float]) -> None:
    log_w = unit_log_weights(f64(*W).log(), unit, turns_S=TURNS, segments_S=SEQUENCE)
    assert log_w.exp().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("mismatch", "unit", "bounds", "expected"),
    [
        ("tis", "turn", (0.5, 2.0), [0.24, 0.24, 2, 2, 2]),
        ("tis", "turn_mean", (0.5, 2.0), [0.489898, 0.489898, 2, 2, 2]),
        ("tis", "sequence", (0.5, 2.0), [2.0] * 5),
        ("tis", "sequence_mean", (0.5, 2.0), [1.339975] * 5),
        ("icepop", "turn", (0.5, 5.0), [0.0] * 5),
        ("icepop", "turn_mean", (0.5, 5.0), [0, 0, 2.620741, 2.620741, 2.620741]),
        ("icepop", "sequence", (0.5, 5.0), [4.32] * 5),
        ("icepop", "sequence", (0.5, 4.0), [0.0] * 5),
        ("icepop", "sequence_mean", (0.5, 5.0), [1.339975] * 5),
        ("mis", "turn", (0.2, 2.0), [1, 1, 0, 0, 0]),
        ("mis", "turn_mean", (0.5, 3.0), [0, 0, 1, 1, 1]),
        ("mis", "sequence", (0.5, 2.0), [0.0] * 5),
        ("mis", "sequence_mean", (0.5, 2.0), [1.0] * 5),
    ],
)
def test_we18_factor_of_each_unit(
    mismatch: Mismatch, unit: MismatchUnit, bounds: tuple[float, float], expected: list[float]
) -> None:
    assert factors(mismatch, unit, low=bounds[0], high=bounds[1]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        # Trajectories of turns [2, 3] and [2]: the first has WE-18's ratios, the second 1 and 1.2.
        ("token", [0, 0.25, 0.25, 0, 0, 0.25, 0.25]),
        ("turn", [0, 0, 0, 0, 0, 0.5, 0.5]),
        ("turn_mean", [0, 0, 0, 0, 0, 0.5, 0.5]),
        ("sequence", [0, 0, 0, 0, 0, 0.5, 0.5]),
        ("sequence_mean", [1 / 7] * 7),
    ],
)
def test_masking_drops_whole_units_from_the_denominator(unit: str, expected: list[float]) -> None:
    weights = load_recipe("dapo", {"weights": {"masks": {"mismatched": {"unit": unit}}}}).weights
    start = torch.tensor(np.log([*W, 1.0, 1.2]))
    found = weights(batch_of([2, 3], [2]), {START: start, SAMPLER: torch.zeros(7)})
    assert found.tolist() == pytest.approx(expected)


def test_owners_count_turns_over_the_batch() -> None:
    turns, trajectories = owners([[2, 0, 1], [], [3]])
    assert turns.tolist() == [0, 0, 2, 3, 3, 3]
    assert trajectories.tolist() == [0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize("unit", ["token", "turn", "turn_mean", "sequence", "sequence_mean"])
@pytest.mark.parametrize("mismatch", ["tis", "icepop"])
def test_no_gradient_passes_through_the_factor(mismatch: Mismatch, unit: MismatchUnit) -> None:
    """The gradient is that of a factor that is a number, also where the old log-probs carry a gradient themselves."""
    logprobs = f64(-1.0, -1.5, -0.5, -2.0, -0.7).requires_grad_()
    bounds = {"mismatch_low": 0.2, "mismatch_high": 20.0}
    sample = SampledTokens(
        logprobs_S=logprobs,
        old_logprobs_S=logprobs,
        advantages_S=f64(1.0, 1.0, -0.5, -0.5, -0.5),
        weights_S=torch.from_numpy(token_weights([[2, 3]], "nested")),
        behaviour_logprobs_S=logprobs.detach() - f64(*W).log(),
        segments_S=SEQUENCE,
        turns_S=TURNS,
    )
    slots: dict[str, Any] = {"loss": "reinforce", "mismatch": mismatch, "mismatch_unit": unit, **bounds}
    (gradient,) = torch.autograd.grad(policy_loss(sample, **slots).loss, logprobs)
    factor = f64(*factors(mismatch, unit, low=0.2, high=20.0))
    assert gradient.tolist() == pytest.approx((-sample.weights_S * factor * sample.advantages_S).tolist(), abs=1e-12)
    assert factor.count_nonzero() > 0
    # Central differences of the loss with the sampler and the first weights held fixed.
    fixed = replace(sample, old_logprobs_S=logprobs.detach())
    for s in range(5):
        offset = torch.zeros(5, dtype=torch.float64)
        offset[s] = 1e-6
        up, down = (
            policy_loss(replace(fixed, logprobs_S=logprobs.detach() + o), **slots).loss for o in (offset, -offset)
        )
        assert float(gradient[s]) == pytest.approx(float(up - down) / 2e-6, abs=1e-8)
