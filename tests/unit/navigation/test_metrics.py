"""The measures of navigation against hand-worked numbers."""

import pytest

from agentflow.environments.navigation import metrics

LINE = [(float(x), 0.0) for x in range(5)]


@pytest.mark.parametrize(
    ("path", "distance", "likeness"),
    [
        (LINE, 0.0, 1.0),
        ([(x, 0.5) for x, _ in LINE], 2.5, 0.8465),
        (LINE[:3], 3.0, 0.8187),
        ([*LINE, (5.0, 0.0), (6.0, 0.0)], 3.0, 0.8187),
        ([(x / 4, 0.0) for x in range(17)], 4.0, 0.7659),
    ],
    ids=["same", "half a metre off", "stops half way", "two too far", "sampled densely"],
)
def test_warping_of_a_line(path: list[tuple[float, float]], distance: float, likeness: float) -> None:
    found = metrics.dtw(path, LINE)
    assert found == pytest.approx(distance)
    assert metrics.ndtw(found, num_reference=5, radius=3.0) == pytest.approx(likeness, abs=5e-5)


def test_warping_goes_on_position_by_position() -> None:
    path = [(0.0, 1.0), (1.5, 0.5), (1.0, -1.0), (3.0, 0.0)]
    row = metrics.first_row(len(LINE))
    for length in range(1, len(path) + 1):
        row = metrics.next_row(row, path[length - 1], LINE)
        assert row[-1] == metrics.dtw(path[:length], LINE)


def test_warping_works_in_three_dimensions() -> None:
    assert metrics.dtw([(0.0, 0.0, 2.0)], [(0.0, 0.0, 0.0)]) == 2.0


@pytest.mark.parametrize(
    ("succeeded", "walked", "expected"), [(1.0, 12.0, 0.75), (1.0, 8.8, 1.0), (0.0, 9.0, 0.0)], ids=str
)
def test_success_weighted_by_path_length(succeeded: float, walked: float, expected: float) -> None:
    assert metrics.spl(succeeded, shortest=9.0, walked=walked) == expected


def test_success_takes_a_stop_within_the_radius_its_border_included() -> None:
    assert metrics.success(3.0, stopped=True, radius=3.0) == 1.0
    assert metrics.success(3.1, stopped=True, radius=3.0) == 0.0
    assert metrics.success(0.0, stopped=False, radius=3.0) == 0.0


def test_oracle_success_looks_at_the_whole_path() -> None:
    assert metrics.oracle_success([9.0, 2.0, 8.0], radius=3.0) == 1.0
    assert metrics.oracle_success([9.0, 3.1, 8.0], radius=3.0) == 0.0
    assert metrics.oracle_success([], radius=3.0) == 0.0


@pytest.mark.parametrize(
    ("distance", "reward"), [(0.0, 15.0), (0.75, 11.25), (1.5, 7.5), (2.9, 0.5), (3.0, 0.0), (3.1, 0.0)]
)
def test_soft_success_is_the_reward_of_activevln_by_its_fifteen(distance: float, reward: float) -> None:
    assert 15 * metrics.soft_success(distance, stopped=True, radius=3.0) == pytest.approx(reward)
    assert metrics.soft_success(distance, stopped=False, radius=3.0) == 0.0


def test_the_step_budget_is_that_of_activevln() -> None:
    assert [metrics.step_budget(n) for n in (17, 59, 60, 70)] == [34, 118, 120, 120]
