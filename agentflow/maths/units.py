"""Unit maps: which sampled tokens (or turns, or answers) belong together. Pure functions of numpy arrays.

Axes: S sampled tokens of a batch in canonical order, U units, N any entries. A unit map `units_S` is an [S] array of
indices 0..U-1; -1 is a token in no unit. Turns, trajectories, segments, items and anchors are all such maps.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Units: TypeAlias = NDArray[np.intp]

NO_UNIT = -1


def dense(labels_N: NDArray[np.integer], outside_N: NDArray[np.bool_] | None = None) -> Units:
    """Number labels 0, 1, ... in the order of their first appearance.

    Args:
        labels_N: [N] any integers; equal ones are one unit.
        outside_N: [N] true where an entry is in no unit; nowhere if left out.
    """
    units_N = np.full(len(labels_N), NO_UNIT, dtype=np.intp)
    inside_N = np.ones(len(labels_N), dtype=bool) if outside_N is None else ~outside_N
    _, first, inverse = np.unique(labels_N[inside_N], return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.intp)
    order[np.argsort(first)] = np.arange(len(first))
    units_N[inside_N] = order[inverse]
    return units_N


def num_units(units_N: Units) -> int:
    """Return U, one more than the largest index."""
    return int(units_N.max(initial=NO_UNIT)) + 1


def unit_sizes(units_N: Units, count: int | None = None) -> Units:
    """Count the entries of each unit, [U].

    Args:
        units_N: [N] unit map.
        count: U, where units without an entry may stand at the end; one more than the largest index if left out.
    """
    return np.bincount(units_N[units_N >= 0], minlength=num_units(units_N) if count is None else count)


def unit_sums(values_N: Floats, units_N: Units, count: int | None = None) -> Floats:
    """Add up the values of each unit, [U] float64.

    Args:
        values_N: [N] values; those in no unit are not read.
        units_N: [N] unit map.
        count: As in `unit_sizes`.
    """
    inside_N = units_N >= 0
    size = num_units(units_N) if count is None else count
    return np.bincount(units_N[inside_N], weights=values_N[inside_N], minlength=size).astype(np.float64)


def unit_means(values_N: Floats, units_N: Units, count: int | None = None) -> Floats:
    """Return the mean of each unit, [U] float64; nan for a unit without an entry. Arguments as in `unit_sums`."""
    sizes_U = unit_sizes(units_N, count)
    means_U: Floats = np.full(len(sizes_U), np.nan)
    return np.divide(unit_sums(values_N, units_N, count), sizes_U, out=means_U, where=sizes_U > 0)


def unit_maxima(values_N: Floats, units_N: Units, count: int | None = None) -> Floats:
    """Return the greatest value of each unit, [U] float64; nan without an entry. Arguments as in `unit_sums`."""
    sizes_U = unit_sizes(units_N, count)
    maxima_U = np.full(len(sizes_U), -np.inf)
    np.maximum.at(maxima_U, units_N[units_N >= 0], values_N[units_N >= 0])
    return np.where(sizes_U > 0, maxima_U, np.nan)


def spread(values_U: Floats, units_N: Units) -> Floats:
    """Give each entry its unit's value, [N] float64; nan, which is "not applicable", in no unit."""
    values = np.append(np.asarray(values_U, dtype=np.float64), np.nan)
    return np.asarray(values[np.where(units_N >= 0, units_N, len(values_U))])


def owners(units_N: Units, outer_N: Units) -> Units:
    """Return [U] the outer unit that holds each unit: a turn's trajectory, a trajectory's group.

    Args:
        units_N: [N] unit map, every unit with an entry.
        outer_N: [N] map of the units that hold them.
    """
    inside_N = units_N >= 0
    outer_U = np.full(num_units(units_N), NO_UNIT, dtype=np.intp)
    outer_U[units_N[inside_N]] = outer_N[inside_N]
    assert (outer_U[units_N[inside_N]] == outer_N[inside_N]).all(), "a unit straddles two units of the outer map"
    return outer_U


def positions(units_N: Units) -> Units:
    """Return [N] how many entries of the same unit stand before each entry; -1 in no unit."""
    order = np.argsort(units_N, kind="stable")
    starts = np.cumsum(unit_sizes(units_N)) - unit_sizes(units_N)
    ranks_N = np.full(len(units_N), NO_UNIT, dtype=np.intp)
    inside = order[np.count_nonzero(units_N < 0) :]
    ranks_N[inside] = np.arange(len(inside)) - starts[units_N[inside]]
    return ranks_N


def aligned(groups_U: Units, positions_U: Units) -> Units:
    """Group the units that stand at the same place of their trajectory within one group: [U] -> [U] groups.

    Turn 2 of a trajectory is then compared with turn 2 of the others, rank 3 with rank 3.

    Args:
        groups_U: [U] group of each unit; -1 in none.
        positions_U: [U] its place among the units of its trajectory.
    """
    width = int(positions_U.max(initial=0)) + 1
    return dense(groups_U * width + positions_U, (groups_U < 0) | (positions_U < 0))


def segments(probs_S: Floats, trajectories_S: Units, *, below: float, every: int) -> Units:
    """Cut trajectories at uncertain tokens: the segments of SPO-chain (2505.23564).

    A token is a cut where the policy gave it less than `below`; a new segment begins at the first cut of a trajectory
    and at each `every`-th one from there. What stands before the first cut is a segment of its own.

    Args:
        probs_S: [S] probability of each sampled token when it was sampled.
        trajectories_S: [S] trajectory of each token, contiguous.
        below: Probability under which a token is a cut.
        every: Cuts for each segment.
    """
    cut_S = probs_S < below
    before_S: Units = np.cumsum(cut_S) - cut_S
    first_U = np.full(num_units(trajectories_S), len(probs_S), dtype=np.intp)
    np.minimum.at(first_U, trajectories_S, before_S)
    begins_S = cut_S & ((before_S - first_U[trajectories_S]) % every == 0)
    begins_S |= np.diff(trajectories_S, prepend=NO_UNIT) != 0
    return np.cumsum(begins_S) - 1


def anchors(observations: Sequence[str], groups_N: Units, *, similarity: float = 1.0) -> Units:
    """Put the steps of a group that saw the same thing into one unit: GiGPO's step groups (2505.10978, eq. 6).

    Args:
        observations: N anchor observations, without step counters and history, which make every unit a singleton.
        groups_N: [N] group (task) of each step; -1 leaves it out.
        similarity: Ratio of `difflib.SequenceMatcher` to a unit's first member from which on a step joins it; 1 asks
            for equality.
    """
    units_N = np.full(len(observations), NO_UNIT, dtype=np.intp)
    members: dict[tuple[int, str], int] = {}
    for index, (group, text) in enumerate(zip(groups_N.tolist(), observations, strict=True)):
        if group < 0:
            continue
        key = (group, text)
        if key not in members and similarity < 1.0:
            key = next((k for k in members if k[0] == group and _alike(k[1], text, similarity)), key)
        units_N[index] = members.setdefault(key, len(members))
    return units_N


def _alike(first: str, other: str, similarity: float) -> bool:
    return SequenceMatcher(None, first, other).ratio() >= similarity


def items(spans: Sequence[tuple[int, int]], offsets_S: Sequence[tuple[int, int]]) -> Units:
    """Map tokens to the spans of text that they overlap: list items, answer spans, criteria.

    A token that reaches into two spans belongs to the first: it was sampled before the second one began.

    Args:
        spans: Half-open spans of characters of one text, ordered and disjoint.
        offsets_S: Half-open span of characters of each token; an empty one (half a character of a byte-level
            tokenizer) belongs to the span that its place is in.
    """
    units_S = np.full(len(offsets_S), NO_UNIT, dtype=np.intp)
    for index, (begin, end) in enumerate(offsets_S):
        last = max(end, begin + 1)
        units_S[index] = next((i for i, (low, high) in enumerate(spans) if begin < high and low < last), NO_UNIT)
    return units_S
