"""Unit maps against the worked numbers of the reference and slow oracles."""

from itertools import groupby

import numpy as np
import pytest

from agentflow.maths import units
from agentflow.maths.units import NO_UNIT


def whole(*values: int) -> units.Units:
    return np.array(values, dtype=np.intp)


@pytest.fixture
def case() -> tuple[units.Floats, units.Units]:
    rng = np.random.default_rng(0)
    return rng.normal(size=60), rng.integers(-1, 7, size=60)


def test_dense_numbers_by_first_appearance_and_leaves_out_what_is_outside() -> None:
    labels = np.array([9, 4, 9, -3, 4])
    assert units.dense(labels).tolist() == [0, 1, 0, 2, 1]
    outside = np.array([True, False, False, False, True])
    assert units.dense(labels, outside).tolist() == [-1, 0, 1, 2, -1]
    assert units.dense(whole()).tolist() == []


def test_sums_means_maxima_and_sizes_are_those_of_each_unit(case: tuple[units.Floats, units.Units]) -> None:
    values, of = case
    for unit in range(units.num_units(of)):
        mine = values[of == unit]
        assert units.unit_sizes(of)[unit] == len(mine)
        assert units.unit_sums(values, of)[unit] == pytest.approx(mine.sum())
        assert units.unit_means(values, of)[unit] == pytest.approx(mine.mean())
        assert units.unit_maxima(values, of)[unit] == mine.max()


def test_a_unit_without_an_entry_has_no_mean() -> None:
    of = whole(0, -1, 2)
    values = np.array([1.0, 5.0, -3.0])
    np.testing.assert_equal(units.unit_sums(values, of, 4), [1, 0, -3, 0])
    with np.errstate(all="raise"):
        np.testing.assert_equal(units.unit_means(values, of, 4), [1, np.nan, -3, np.nan])
    np.testing.assert_equal(units.unit_maxima(values, of, 4), [1, np.nan, -3, np.nan])
    assert units.num_units(whole()) == 0 and units.unit_means(np.zeros(0), whole()).size == 0


def test_a_token_in_no_unit_gets_nan_and_never_zero() -> None:
    np.testing.assert_equal(units.spread(np.array([3.0, 4.0]), whole(1, -1, 0)), [4.0, np.nan, 3.0])
    np.testing.assert_equal(units.spread(np.zeros(0), whole(-1)), [np.nan])


def test_owners_are_refused_where_a_unit_straddles_two() -> None:
    turns, trajectories = whole(0, 0, 1, -1, 2), whole(0, 0, 0, 1, 1)
    assert units.owners(turns, trajectories).tolist() == [0, 0, 1]
    with pytest.raises(AssertionError, match="straddles"):
        units.owners(trajectories, turns)


def test_positions_count_within_a_unit_wherever_its_entries_stand(case: tuple[units.Floats, units.Units]) -> None:
    _, of = case
    seen: dict[int, int] = {}
    expected = []
    for unit in of.tolist():
        expected.append(seen.get(unit, 0) if unit >= 0 else NO_UNIT)
        seen[unit] = seen.get(unit, 0) + 1
    assert units.positions(of).tolist() == expected


def test_aligned_compares_the_same_place_within_a_group_only() -> None:
    groups, places = whole(0, 0, 0, 0, 1, 1, -1), whole(0, 1, 0, 1, 0, 1, 0)
    assert units.aligned(groups, places).tolist() == [0, 1, 0, 1, 2, 3, -1]
    assert units.aligned(whole(0, 1, 2, 0), whole(1, 0, 0, -1)).tolist() == [0, 1, 2, -1]


def test_segments_of_the_worked_example_and_of_a_second_trajectory() -> None:
    probs = np.array([0.99, 0.4, 0.95, 0.85, 0.97, 0.7, 0.99, 0.6])
    # Cut tokens are 1, 3, 5, 7: every second one begins a segment.
    one = units.segments(probs, np.zeros(8, dtype=np.intp), below=0.9, every=2)
    assert one.tolist() == [0, 1, 1, 1, 1, 2, 2, 2]
    two = units.segments(np.tile(probs, 2), np.repeat(whole(0, 1), 8), below=0.9, every=2)
    assert two.tolist() == [*one, *(one + 3)]
    each = units.segments(probs, np.zeros(8, dtype=np.intp), below=0.9, every=1)
    assert [len(list(run)) for _, run in groupby(each.tolist())] == [1, 2, 2, 2, 1]
    # The count starts anew in each trajectory: an odd number of cuts in the first does not shift the second.
    odd = units.segments(np.array([0.1, 0.1, 0.1, 0.1, 0.1]), whole(0, 1, 1, 1, 1), below=0.9, every=2)
    assert odd.tolist() == [0, 1, 1, 2, 2]
    # What is exactly as likely as the bound is no cut.
    assert units.segments(np.array([0.5, 0.9, 0.5]), whole(0, 0, 0), below=0.9, every=1).tolist() == [0, 0, 1]


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_segments_against_a_loop(every: int) -> None:
    rng = np.random.default_rng(every)
    lengths = [7, 1, 23, 12]
    probs, trajectories = rng.random(43), np.repeat(np.arange(4), lengths)
    expected, segment, cuts = [], -1, 0
    for index, (prob, owner) in enumerate(zip(probs.tolist(), trajectories.tolist(), strict=True)):
        first = index == 0 or owner != trajectories[index - 1]
        cuts = 0 if first else cuts
        segment += first or (prob < 0.6 and cuts % every == 0)
        cuts += prob < 0.6
        expected.append(segment)
    assert units.segments(probs, trajectories, below=0.6, every=every).tolist() == expected


def test_anchors_join_equal_observations_of_one_task() -> None:
    steps = ["s0", "s1", "s0", "s2", "s0", "s0"]
    assert units.anchors(steps, whole(0, 0, 0, 0, 0, 1)).tolist() == [0, 1, 0, 2, 0, 3]
    assert units.anchors(steps, whole(0, 0, -1, 0, 0, 1)).tolist() == [0, 1, -1, 2, 0, 3]


def test_anchors_by_similarity_compare_with_a_units_first_member() -> None:
    texts = ["abcdefghij", "abcdefghix", "abcdefghxx", "zzzz", "abcdefghix"]
    # 2 * 9 / 20 = 0.9 joins; 2 * 8 / 20 = 0.8 to the first member does not, although it is 0.9 from the second.
    assert units.anchors(texts, whole(0, 0, 0, 0, 0), similarity=0.9).tolist() == [0, 0, 1, 2, 0]
    assert units.anchors(texts, whole(0, 1, 0, 0, 0), similarity=0.9).tolist() == [0, 1, 2, 3, 0]


def test_items_take_the_first_span_that_a_token_reaches_into() -> None:
    spans = [(2, 5), (5, 9)]
    offsets = [(0, 2), (1, 1), (2, 4), (4, 6), (6, 6), (5, 5), (9, 9), (8, 12), (9, 10)]
    assert units.items(spans, offsets).tolist() == [-1, -1, 0, 0, 1, 1, -1, 1, -1]
