"""Shaping arithmetic: worked numbers, and potentials that leave the optimal policy of a small MDP unchanged."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.maths.advantages import returns_to_go
from agentflow.messages import Message, Reply
from agentflow.rewards import TermConfig, load_shaping, overlong_penalty, shape_trajectory, term_weight
from agentflow.trajectory import Completion, Status, Trajectory, Turn


def trajectory(rewards: list[float], potentials: list[float]) -> Trajectory:
    turns = tuple(
        Turn(0, (1,), Completion((2,), (0.0,), "stop", 0), (), Reply(Message("assistant")), reward, {"phi": phi})
        for reward, phi in zip(rewards, potentials, strict=True)
    )
    return Trajectory("0/t/0", "t", 0, turns, Status("completed"), None)


@pytest.mark.parametrize(
    ("length", "expected"), [(100, 0.0), (16384, 0.0), (18432, -0.5), (20480, -1.0), (30000, -1.0)]
)
def test_we17_overlong_penalty(length: int, expected: float) -> None:
    assert overlong_penalty(length, max_tokens=20480, buffer_tokens=4096) == expected


@pytest.mark.parametrize(
    ("clock", "expected"),
    [(0.0, 0.1), (0.19, 0.1), (0.2, 0.1), (0.3, 0.55), (0.4, 1.0), (0.6, 1.0), (0.7, 0.75), (0.8, 0.5), (1.0, 0.5)],
)
def test_weight_ramps_up_and_down(clock: float, expected: float) -> None:
    term = TermConfig(weight=1.0, start_weight=0.1, end_weight=0.5, unlock_at=0.2, rise=0.2, retire_at=0.6, fade=0.2)
    assert term_weight(term, clock) == pytest.approx(expected)


def test_ramps_of_no_width_are_steps() -> None:
    term = TermConfig(weight=2.0, unlock_at=0.25, retire_at=0.75)
    assert [term_weight(term, clock) for clock in (0.0, 0.24, 0.25, 0.74, 0.75, 1.0)] == [0, 0, 2, 2, 0, 0]


def test_a_term_without_schedule_always_has_its_weight() -> None:
    assert [term_weight(TermConfig(weight=-3.0), clock) for clock in (0.0, 0.5, 1.0)] == [-3.0, -3.0, -3.0]


@given(
    steps=st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=6),
    gamma=st.sampled_from([0.5, 0.9, 1.0]),
    weight=st.floats(-3, 3),
)
def test_potentials_never_change_the_discounted_return(
    steps: list[tuple[float, float]], gamma: float, weight: float
) -> None:
    played = trajectory([r for r, _ in steps], [phi for _, phi in steps])
    terms = {"outcome": TermConfig(weight=1.0), "phi": TermConfig(weight=weight, potential=True)}
    shaped = shape_trajectory(played, terms, weights={"outcome": 1.0, "phi": weight}, gamma=gamma)
    assert shaped is not None
    discounts = gamma ** np.arange(len(steps))
    assert discounts @ shaped.rewards_K == pytest.approx(float(discounts @ [r for r, _ in steps]), abs=1e-9)


def test_potentials_move_credit_between_turns() -> None:
    # phi of the states reached: .5 after the first turn, 1 after the second; the end counts as 0.
    config = load_shaping({"gamma": 0.5, "terms": {"phi": {"weight": 2.0, "potential": True}}})
    played = trajectory([0.0, 0.0, 1.0], [0.5, 1.0, 7.0])
    shaped = shape_trajectory(played, config.active_terms, weights={"outcome": 1.0, "phi": 2.0}, gamma=0.5)
    assert shaped is not None
    # .5*.5-0 = .25, .5*1-.5 = 0, .5*0-1 = -1, each times 2; plus the outcome at the end
    assert shaped.rewards_K == (0.5, 0.0, -1.0)
    assert returns_to_go(np.array(shaped.rewards_K), gamma=0.5) == pytest.approx([0.25, -0.5, -1.0])


def test_a_turn_that_reports_no_potential_stays_where_it_was() -> None:
    silent, phi = trajectory([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]), TermConfig(weight=1.0, potential=True)
    reported: list[dict[str, float]] = [{"phi": 0.5}, {}, {"phi": 0.75}, {}]
    turns = tuple(replace(turn, terms=terms) for turn, terms in zip(silent.turns, reported, strict=True))
    shaped = shape_trajectory(replace(silent, turns=turns), {"phi": phi}, weights={"phi": 1.0})
    assert shaped is not None
    assert shaped.rewards_K == (0.5, 0.0, 0.25, -0.75)


# A deterministic MDP: action 0 stops with the reward of the state, action 1 moves on; two moves at most. Stopping in
# the last state is best, but state 1 has the highest phi.
STOP_REWARD = (0.1, 0.0, 1.0)
PHI = (0.0, 5.0, 1.0)


def _play(policy: tuple[int, ...]) -> Trajectory:
    rewards: list[float] = []
    potentials: list[float] = []
    state = 0
    while True:
        if state == 2 or policy[state] == 0:
            return trajectory([*rewards, STOP_REWARD[state]], [*potentials, PHI[state]])
        state += 1
        rewards.append(0.0)
        potentials.append(PHI[state])


def _best_policy(*, potential: bool, weight: float, gamma: float) -> tuple[int, ...]:
    terms = {"outcome": TermConfig(weight=1.0), "phi": TermConfig(weight=weight, potential=potential)}

    def value(policy: tuple[int, ...]) -> float:
        shaped = shape_trajectory(_play(policy), terms, weights={"outcome": 1.0, "phi": weight}, gamma=gamma)
        assert shaped is not None
        return float(returns_to_go(np.array(shaped.rewards_K), gamma=gamma)[0])

    return max(product((0, 1), repeat=2), key=value)


@pytest.mark.parametrize("gamma", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("weight", [-4.0, 1.0, 10.0])
def test_potentials_leave_the_optimal_policy_and_plain_terms_do_not(weight: float, gamma: float) -> None:
    optimal = _best_policy(potential=False, weight=0.0, gamma=gamma)
    assert optimal == (1, 1)
    assert _best_policy(potential=True, weight=weight, gamma=gamma) == optimal
    assert _best_policy(potential=False, weight=weight, gamma=gamma) != optimal
