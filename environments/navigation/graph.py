"""Connectivity graphs of Matterport3D buildings: `<scan>_connectivity.json` of Matterport3DSimulator.

Positions in metres, z upwards; headings in radians from the y axis to the right, as in that simulator.
"""

import heapq
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from agentflow.config import suggest
from agentflow.errors import DataError

Position: TypeAlias = tuple[float, float, float]
SUFFIX = "_connectivity.json"
_POSE = 16
_X, _Y, _Z = 3, 7, 11
"""Where the position stands in the row-major pose."""


@dataclass(frozen=True)
class Graph:
    """The viewpoints of a building.

    Attributes:
        scan: The building's name.
        positions: Where the camera stood at each viewpoint.
        floors: The height of the floor below each viewpoint.
        neighbours: For each viewpoint those that one can go to.
    """

    scan: str
    positions: Mapping[str, Position]
    floors: Mapping[str, float]
    neighbours: Mapping[str, Sequence[str]]

    def length(self, start: str, end: str) -> float:
        """Return the straight distance of two viewpoints."""
        return math.dist(self.positions[start], self.positions[end])

    def distances_to(self, goal: str) -> dict[str, float]:
        """Return the length of the shortest way to the goal from each viewpoint that has one."""
        lengths = {goal: 0.0}
        queue = [(0.0, goal)]
        while queue:
            length, viewpoint = heapq.heappop(queue)
            if length > lengths[viewpoint]:
                continue
            for neighbour in self.neighbours[viewpoint]:
                onward = length + self.length(viewpoint, neighbour)
                if onward < lengths.get(neighbour, math.inf):
                    lengths[neighbour] = onward
                    heapq.heappush(queue, (onward, neighbour))
        return lengths

    def nearest(self, position: Sequence[float]) -> tuple[str, float]:
        """Return the viewpoint whose place on the floor is nearest, and its distance."""
        places = {name: (x, y, self.floors[name]) for name, (x, y, _) in self.positions.items()}
        best = min(places, key=lambda name: math.dist(places[name], position))
        return best, math.dist(places[best], position)


def heading_to(start: Position, end: Position) -> float:
    """Return the heading from one place to another, in radians from the y axis to the right."""
    return math.atan2(end[0] - start[0], end[1] - start[1])


@lru_cache(maxsize=128)
def load_graph(folder: str, scan: str) -> Graph:
    """Read the graph of a building.

    Raises:
        DataError: There is no such file, or it is none of that format.
    """
    path = Path(folder).expanduser() / f"{scan}{SUFFIX}"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(file.name.removesuffix(SUFFIX) for file in path.parent.glob(f"*{SUFFIX}"))
        raise DataError(
            f"There is no {path}.", suggest(scan, known) if known else "Check graph.connectivity."
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {path}: {error}.", "It must be a connectivity file.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is not a list of viewpoints.", "It must be a connectivity file.")
    checked = [_checked(row, f"{path}, viewpoint {i}", count=len(rows)) for i, row in enumerate(rows)]
    included = {row["image_id"]: row for row in checked if row["included"]}
    if not included:
        raise DataError(f"{path} includes no viewpoint.", "It must be a connectivity file.")
    positions = {name: (row["pose"][_X], row["pose"][_Y], row["pose"][_Z]) for name, row in included.items()}
    neighbours: dict[str, list[str]] = {name: [] for name in included}
    for row in included.values():
        for other, is_open in zip(checked, row["unobstructed"], strict=True):
            one, two = row["image_id"], other["image_id"]
            if is_open and other["included"] and one != two:
                neighbours[one] += [two] if two not in neighbours[one] else []
                neighbours[two] += [one] if one not in neighbours[two] else []
    floors = {name: row["pose"][_Z] - row["height"] for name, row in included.items()}
    return Graph(scan, positions, floors, neighbours)


def _checked(row: Mapping[str, Any], where: str, *, count: int) -> Mapping[str, Any]:
    """Refuse a viewpoint that is not of the format, by name."""
    wanted = {"image_id": str, "pose": list, "included": bool, "unobstructed": list, "height": int | float}
    for key, kind in wanted.items():
        if key not in row:
            raise DataError(f"{where} has no {key!r}.", "It must be a connectivity file.")
        if not isinstance(row[key], kind):
            raise DataError(f"{where}: {key!r} is {str(row[key])[:40]!r}.", "It must be a connectivity file.")
    if len(row["pose"]) != _POSE or not all(isinstance(value, int | float) for value in row["pose"]):
        raise DataError(f"{where}: the pose has {len(row['pose'])} entries, not {_POSE} numbers.", "Is the file whole?")
    if len(row["unobstructed"]) != count:
        raise DataError(
            f"{where}: 'unobstructed' has {len(row['unobstructed'])} entries for {count} viewpoints.",
            "Is the file whole?",
        )
    return row
