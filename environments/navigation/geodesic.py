"""The length of the shortest way between two points of a house, exact.

The way is that of the body's centre: doors are as wide as they leave it room. Such a way bends only at the ends of
doors, so it is found in the graph of points that see each other: the points asked for, and two ends for each door.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from agentflow.environments.navigation.house import BODY_RADIUS, DOOR_WIDTH, House, Point

Points = NDArray[np.float64]
_CLEAR = DOOR_WIDTH / 2 - BODY_RADIUS
_TOLERANCE = 1e-9


class Geodesics:
    """Shortest ways of one house.

    Args:
        house: The house.
    """

    def __init__(self, house: House) -> None:
        self._lines = _lines(house)
        self._ends = np.array([end for door in house.doors for end in _ends(door.centre, across=door.across)])
        self._between = self._all_pairs()

    def to(self, goal: Point) -> "Field":
        """Return the shortest ways to a goal."""
        targets = np.array([*self._ends, goal])
        straight = self._straight(self._ends, targets[-1:])[:, 0] if len(self._ends) else np.zeros(0)
        onward = (self._between + straight).min(1, initial=np.inf)
        return Field(self._straight, targets, np.array([*onward, 0.0]))

    def _all_pairs(self) -> Points:
        """Return the lengths [E, E] between all ends of doors (Floyd and Warshall)."""
        if not len(self._ends):
            return np.zeros((0, 0))
        lengths = self._straight(self._ends, self._ends)
        for i in range(len(lengths)):
            lengths = np.minimum(lengths, lengths[:, i, None] + lengths[None, i])
        return lengths

    def _straight(self, start: Points, end: Points) -> Points:
        """Return the straight distances [S, E]; infinite where a wall is between."""
        step = end[None] - start[:, None]
        lengths: Points = np.sqrt((step * step).sum(-1))
        for axis, at, low, high in self._lines:
            with np.errstate(divide="ignore", invalid="ignore"):
                share = (at - start[:, None, axis]) / step[..., axis]
                crossing = start[:, None, 1 - axis] + share * step[..., 1 - axis]
            crosses = (start[:, None, axis] - at) * (end[None, :, axis] - at) < -_TOLERANCE
            inside = (crossing[..., None] >= low - _TOLERANCE) & (crossing[..., None] <= high + _TOLERANCE)
            lengths = np.where(crosses & ~inside.any(-1), np.inf, lengths)
        return lengths


class Field:
    """Shortest ways to one goal.

    Args:
        straight: Returns the straight distances [S, E] between points, infinite where a wall is between.
        targets: Where a way may bend, and the goal, [E, 2].
        onward: The length of the way from each target to the goal, [E].
    """

    def __init__(self, straight: Callable[[Points, Points], Points], targets: Points, onward: Points) -> None:
        self._straight = straight
        self._targets = targets
        self._onward = onward

    def distances(self, points: Sequence[Point]) -> list[float]:
        """Return the length of the shortest way from each point."""
        lengths = self._straight(np.array(points, dtype=float).reshape(-1, 2), self._targets) + self._onward
        return [float(length) for length in lengths.min(1)]


def _lines(house: House) -> list[tuple[int, float, Points, Points]]:
    """List the inner grid lines: the axis they cut, where, and the lower and upper ends of their open parts."""
    lines = []
    for axis, count in ((0, house.columns), (1, house.rows)):
        for i in range(1, count):
            at = i * house.size
            doors = [door.centre for door in house.doors if door.across == (axis == 0) and door.centre[axis] == at]
            middle = np.array([centre[1 - axis] for centre in doors])
            lines.append((axis, at, middle - _CLEAR, middle + _CLEAR))
    return lines


def _ends(centre: Point, *, across: bool) -> tuple[Point, Point]:
    """Return the two ends of what a door leaves open for the body's centre."""
    x, y = centre
    return ((x, y - _CLEAR), (x, y + _CLEAR)) if across else ((x - _CLEAR, y), (x + _CLEAR, y))
