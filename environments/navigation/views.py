"""What a body sees, in words: the room, and its things and doors, nearest first.

    cellar: red chair left 150 4, office left 90 8, bedroom behind 9

Directions in degrees to the left or right of where the body faces, distances in steps of 25 cm. A door is named by the
room behind it, and its point is the one a little beyond: whoever walks straight to it is through.
"""

import math
from dataclasses import dataclass

from agentflow.environments.navigation.body import HEADINGS, STEP, Pose, bearing
from agentflow.environments.navigation.house import House, Point

BEYOND = 0.4
"""How far behind a door its point is."""
_DEGREES = 360 // HEADINGS


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing or door in view.

    Attributes:
        name: The thing, or the room behind the door.
        point: Where it is.
        room: For a door, the number of the room behind it; None for a thing.
    """

    name: str
    point: Point
    room: int | None = None


def entries(house: House, pose: Pose) -> list[Entry]:
    """List what is in the room, nearest first."""
    room = house.room_at(pose.position)
    seen = [Entry(thing.name, thing.position) for thing in house.landmarks if thing.room == room]
    for door in house.doors_of(room):
        behind = door.other(room)
        seen.append(Entry(house.rooms[behind], door.beyond(room, BEYOND), behind))
    return sorted(seen, key=lambda entry: math.dist(entry.point, pose.position))


def num_steps(pose: Pose, point: Point) -> int:
    """Return the distance of a point in steps of 25 cm, rounded."""
    return round(math.dist(pose.position, point) / STEP)


def describe(pose: Pose, entry: Entry) -> str:
    """Say where an entry is: `red chair left 150 4`."""
    steps = bearing(pose, entry.point)
    if steps in (0, HEADINGS // 2):
        side = "ahead" if steps == 0 else "behind"
    else:
        side = f"{'left' if steps > 0 else 'right'} {abs(steps) * _DEGREES}"
    return f"{entry.name} {side} {num_steps(pose, entry.point)}"


def view(house: House, pose: Pose, *, bumped: bool = False) -> str:
    """Say what a body sees, and whether its last steps met a wall."""
    room = house.rooms[house.room_at(pose.position)]
    seen = ", ".join(describe(pose, entry) for entry in entries(house, pose))
    return f"{room}: {seen}{', bump' if bumped else ''}"
