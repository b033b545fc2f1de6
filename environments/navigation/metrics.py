"""The measures of navigation, as pure functions.

Anderson et al., "On Evaluation of Embodied Navigation Agents" (1807.06757), for success and SPL; Ilharco et al.,
"General Evaluation for Instruction Conditioned Navigation using Dynamic Time Warping" (1907.05446), for nDTW and sDTW.
Distances in metres; `radius` is the distance from the goal at which a stop succeeds.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Position: TypeAlias = Sequence[float]
"""In two or three dimensions."""


def success(distance: float, *, stopped: bool, radius: float) -> float:
    """Return 1 if the agent stopped within the radius, the border included; else 0."""
    return float(stopped and distance <= radius)


def oracle_success(distances: Iterable[float], *, radius: float) -> float:
    """Return 1 if any position of the whole path is within the radius, whether or not the agent stopped there."""
    return float(any(distance <= radius for distance in distances))


def spl(succeeded: float, *, shortest: float, walked: float) -> float:
    """Return success weighted by path length: S * l / max(l, p)."""
    longest = max(shortest, walked)
    return succeeded * (shortest / longest if longest > 0 else 1.0)


def soft_success(distance: float, *, stopped: bool, radius: float) -> float:
    """Return how close to the goal a successful stop was: S * (1 - d / radius).

    ActiveVLN's reward divided by its 15. Its radius is that of success: a wider one teaches to stop early.
    """
    return success(distance, stopped=stopped, radius=radius) * (1.0 - min(distance / radius, 1.0))


def dtw(path: Sequence[Position], reference: Sequence[Position]) -> float:
    """Return the dynamic time warping distance of two paths, exact."""
    row = first_row(len(reference))
    for position in path:
        row = next_row(row, position, reference)
    return row[-1]


def first_row(num_reference: int) -> list[float]:
    """Return the row of the warping table before any position of the path: 0, then infinity."""
    return [0.0] + [math.inf] * num_reference


def next_row(row: Sequence[float], position: Position, reference: Sequence[Position]) -> list[float]:
    """Return the table's row after one more position; its last entry is the distance of the path so far."""
    new = [math.inf]
    for j, point in enumerate(reference):
        new.append(math.dist(position, point) + min(row[j], row[j + 1], new[j]))
    return new


def ndtw(distance: float, *, num_reference: int, radius: float) -> float:
    """Return the normalised warping: exp(-DTW / (|R| * radius))."""
    return math.exp(-distance / (num_reference * radius))


def step_budget(num_expert_actions: int, *, factor: float = 2.0, most: int = 120) -> int:
    """Return ActiveVLN's most actions of a training episode: int(min(factor * n, most))."""
    return int(min(factor * num_expert_actions, most))
