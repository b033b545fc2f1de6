"""The task table against the worked numbers of VADE, SPO and SAGE, and a loop that decays every row each iteration."""

import json

import numpy as np
import pytest

from agentflow.maths.trackers import (
    Row,
    first_counts,
    forgetting,
    next_level,
    observed,
    read_counts,
    with_level,
)


def table(alpha: float, beta: float, *, played: int = 0) -> dict[str, Row]:
    return {"t": Row(alpha=alpha, beta=beta, played=played, attempts=5, level=2, rewards=[1.0], last="a")}


@pytest.mark.parametrize(
    ("alpha", "beta", "successes", "after"), [(0.1, 8.4, 1, (1.02, 8.68)), (2.7, 5.3, 4, (4.54, 5.06))]
)
def test_vade_worked_updates_of_selected_tasks(
    alpha: float, beta: float, successes: int, after: tuple[float, float]
) -> None:
    rewards = [1.0] * successes + [0.0] * (8 - successes)
    row = observed(table(alpha, beta), "t", rewards, iteration=1, keep=0.2, idle=0.999)["t"]
    assert (row["alpha"], row["beta"]) == pytest.approx(after)
    assert row["played"] == 1 and row["attempts"] == 13 and row["level"] == 2 and row["last"] == "a"


def test_vade_worked_decay_of_what_was_not_selected() -> None:
    counts = read_counts(table(9.0, 0.2), ["t", "unknown"], iteration=2, idle=0.999)
    np.testing.assert_allclose(counts.alpha_Q, [8.991, 0])
    np.testing.assert_allclose(counts.beta_Q, [0.1998, 0])
    np.testing.assert_equal(np.isnan(counts.means_Q), [False, True])
    with np.errstate(all="raise"):
        np.testing.assert_equal(read_counts(table(0.125, 0.125), ["t", "u"], iteration=9).means_Q, [0.5, np.nan])
    # Half of it is left after ln 0.5 / ln 0.999 iterations.
    half = read_counts(table(1.0, 3.0), ["t"], iteration=694, idle=0.999)
    assert half.alpha_Q[0] == pytest.approx(0.5, abs=5e-4) and half.means_Q[0] == pytest.approx(0.25)
    assert half.sizes_Q[0] == pytest.approx(2.0, abs=2e-3)


def test_decay_on_reading_equals_decay_of_every_row_in_every_iteration() -> None:
    rng = np.random.default_rng(0)
    rows: dict[str, Row] = {}
    eager = dict.fromkeys("abc", (0.0, 0.0))
    for iteration in range(1, 30):
        got = read_counts(rows, list("abc"), iteration=iteration, idle=0.9)
        np.testing.assert_allclose(np.stack([got.alpha_Q, got.beta_Q], 1), np.array(list(eager.values())), atol=1e-12)
        played = "abc"[rng.integers(3)]
        reward = float(rng.random())
        rows = observed(rows, played, [reward, 1.0], iteration=iteration, keep=0.5, idle=0.9)
        for task, (alpha, beta) in eager.items():
            kept = 0.5 if task == played else 0.9
            more = (reward + 1, 1 - reward) if task == played else (0, 0)
            eager[task] = (kept * alpha + more[0], kept * beta + more[1])


def test_an_always_selected_task_tends_to_its_group_over_one_minus_keep() -> None:
    rows: dict[str, Row] = {}
    for iteration in range(60):
        rows = observed(rows, "t", [1.0] * 8, iteration=iteration, keep=0.2)
    assert rows["t"]["alpha"] == pytest.approx(10)


def test_spo_tracker_worked_numbers() -> None:
    alpha, beta = first_counts(2, 8)
    assert (alpha, beta) == pytest.approx((2.222222, 5.777778), abs=1e-6)
    assert alpha / (alpha + beta) == pytest.approx(0.277778, abs=1e-6)
    assert forgetting(0.012, half=0.06, low=0.0) == pytest.approx(0.870551, abs=1e-6)
    keep = forgetting(0.012, half=0.06)
    assert keep == 0.875
    row = observed(table(alpha, beta), "t", [1.0], iteration=7, keep=keep)["t"]
    assert (row["alpha"], row["beta"]) == pytest.approx((2.944444, 5.055556), abs=1e-6)
    assert row["alpha"] / (row["alpha"] + row["beta"]) == pytest.approx(0.277778 + 0.722222 / 8, abs=1e-6)
    assert forgetting(0.0, half=0.06) == 0.96 and forgetting(0.06, half=0.06, low=0.1) == 0.5


def test_observing_leaves_the_old_table_and_goes_through_json() -> None:
    before = table(1.0, 1.0)
    after = observed(before, "u", [0.25, 1.0], iteration=3, ring=3, last="x")
    again = observed(json.loads(json.dumps(after)), "u", [0.0, 0.5], iteration=4, ring=3)
    assert list(before) == ["t"] and before["t"] == table(1.0, 1.0)["t"]
    assert again["u"] == Row(alpha=1.75, beta=2.25, played=4, attempts=4, level=0, rewards=[1.0, 0.0, 0.5], last="x")
    assert observed(after, "u", [], iteration=9) == after
    assert len(observed(after, "u", [0.5] * 30, iteration=9)["u"]["rewards"]) == 16
    with pytest.raises(AssertionError, match="in \\[0, 1\\]"):
        observed(after, "u", [2.0], iteration=9)


def test_sage_light_worked_transitions() -> None:
    cases = [((0, 0), 1), ((1, 0.05), 2), ((3, 0), 3), ((2, 0.2), 2), ((2, 0.5), 1), ((0, 0.9), 0)]
    for (level, rate), expected in cases:
        assert next_level(level, rate, raise_at=0.1, lower_above=0.35, levels=3) == expected
    assert next_level(1, 0.1, raise_at=0.1, lower_above=0.35, levels=3) == 2
    assert next_level(1, 0.35, raise_at=0.1, lower_above=0.35, levels=3) == 1
    # The paper never lowers.
    assert next_level(1, 1.0, raise_at=0.1, lower_above=1.0, levels=3) == 1


def test_a_level_is_kept_with_the_task() -> None:
    before = table(1.0, 1.0)
    after = with_level(before, "t", 3)
    assert after["t"]["level"] == 3 and before["t"]["level"] == 2
    assert observed(after, "t", [1.0], iteration=1)["t"]["level"] == 3
