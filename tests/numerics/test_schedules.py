"""Schedules and controllers against the worked numbers of the dossiers and at their corners."""

import math

import pytest

from agentflow.maths.schedules import controlled, cosine, decay, ramp, stairs, steps


def test_ramp_holds_moves_and_holds() -> None:
    values = [ramp(t, start=2.0, end=0.0, begin=0.2, over=0.5) for t in (0.0, 0.2, 0.45, 0.7, 1.0)]
    assert values == pytest.approx([2, 2, 1, 0, 0])
    assert [ramp(t, start=1.0, end=3.0) for t in (0.0, 0.25, 1.0)] == [1.0, 1.5, 3.0]
    assert [ramp(t, start=1.0, end=3.0, begin=0.5, over=0.0) for t in (0.49, 0.5)] == [1.0, 3.0]


def test_cosine_shares_the_ends_and_the_middle_of_a_ramp() -> None:
    assert [cosine(t, start=1.0, end=0.0, begin=0.2, over=0.4) for t in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx(
        [1, 1, 0.5, 0, 0]
    )
    assert cosine(0.25, start=1.0, end=0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_steps_begin_at_their_time() -> None:
    assert [steps(t, [1, 5, 9], [0.3, 0.6]) for t in (0, 0.29, 0.3, 0.59, 0.6, 1)] == [1, 1, 5, 5, 9, 9]
    assert steps(0.5, [4], []) == 4
    with pytest.raises(AssertionError, match="stage"):
        steps(0.0, [1, 2], [])


def test_train_long_budget() -> None:
    budgets = [decay(t, start=256, factor=0.5, every=100, floor=1) for t in (0, 99, 100, 250, 5000)]
    assert budgets == [256, 256, 128, 64, 1]
    assert decay(3, start=8.0, factor=0.5) == 1.0
    assert decay(9, start=8.0, factor=0.5) == 8 / 512


def test_faker_horizons() -> None:
    assert [stairs(epoch, start=3, rise=1, most=12) for epoch in (0, 1, 2, 30)] == [3, 4, 5, 12]
    assert [stairs(t, start=1, rise=2, every=3) for t in (0, 2, 3, 8)] == [1, 1, 3, 5]


def test_faker_kl_weight_after_one_step() -> None:
    value, total = controlled(5e-4, 0.0, 12 - 10, proportional=0.08, integral_gain=0.02)
    assert value == pytest.approx(6.10701e-4, abs=1e-9) and total == 2.0
    value, total = controlled(value, total, -1.0, proportional=0.08, integral_gain=0.02)
    assert total == pytest.approx(0.9)
    assert value == pytest.approx(6.10701e-4 * math.exp(-0.08 + 0.018), rel=1e-6)


def test_a_controller_stays_within_its_bounds_and_finds_a_target() -> None:
    assert controlled(1.0, 0.0, -100.0, proportional=1, integral_gain=0)[0] < 1e-40
    assert controlled(1.0, 0.0, 100.0, proportional=1, integral_gain=0, high=3.0)[0] == 3.0
    assert controlled(1.0, 0.0, -100.0, proportional=1, integral_gain=0, low=0.2)[0] == 0.2
    value, total = 5e-4, 0.0
    for _ in range(400):
        # A plant whose divergence falls as the weight rises.
        value, total = controlled(value, total, 0.01 / value - 10, proportional=0.02, integral_gain=0.005)
    assert 0.01 / value == pytest.approx(10, rel=1e-3)
