"""A body in a house: where it stands, what it can do, and what comes of it.

Actions are words: `F`, `FF`, `FFF` go 25, 50, 75 cm; `L`, `LL`, `LLL` and `R`, `RR`, `RRR` turn by 15, 30, 45 degrees;
`STOP` ends the way. A step into a wall slides along it.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from agentflow.environments.navigation.house import House, Point
from agentflow.errors import ToolError

STEP = 0.25
HEADINGS = 24
MOST_ACTIONS = 3
STOP = "STOP"
_WORD = re.compile(r"F{1,3}|L{1,3}|R{1,3}|STOP")
_DIRECTIONS = [(math.cos(math.tau * i / HEADINGS), math.sin(math.tau * i / HEADINGS)) for i in range(HEADINGS)]


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a body stands.

    Attributes:
        position: In metres.
        heading: In steps of 15 degrees, from east to the left.
    """

    position: Point
    heading: int


@dataclass(frozen=True, slots=True)
class Moved:
    """What came of some actions.

    Attributes:
        pose: Where the body stands now.
        positions: Where each step ended that led anywhere, in order.
        num_blocked: Steps that a wall stopped or bent.
        num_actions: Actions that were carried out; one of 75 cm is one.
        stopped: Whether the last of them was `STOP`.
    """

    pose: Pose
    positions: tuple[Point, ...] = ()
    num_blocked: int = 0
    num_actions: int = 0
    stopped: bool = False


def parse_actions(text: str) -> tuple[str, ...]:
    """Read one to three actions, separated by blanks or commas.

    Raises:
        ToolError: The text is anything else.
    """
    words = text.replace(",", " ").upper().split()
    wrong = [word for word in words if not _WORD.fullmatch(word)]
    if wrong:
        raise ToolError(f"no action {wrong[0][:20]!r}: F FF FFF, L LL LLL, R RR RRR or STOP")
    if not 1 <= len(words) <= MOST_ACTIONS:
        raise ToolError(f"{len(words)} actions: one to {MOST_ACTIONS}, separated by blanks")
    return tuple(words)


def move(house: House, pose: Pose, actions: Sequence[str]) -> Moved:
    """Carry out actions; those behind a `STOP` are not."""
    positions: list[Point] = []
    num_blocked = 0
    for number, action in enumerate(actions, 1):
        if action == STOP:
            return Moved(pose, tuple(positions), num_blocked, number, stopped=True)
        if action[0] != "F":
            pose = turn(pose, len(action) if action[0] == "L" else -len(action))
            continue
        for _ in action:
            position, blocked = _step(house, pose)
            num_blocked += blocked
            if position != pose.position:
                positions.append(position)
            pose = Pose(position, pose.heading)
    return Moved(pose, tuple(positions), num_blocked, len(actions))


def turn(pose: Pose, steps: int) -> Pose:
    """Turn to the left by steps of 15 degrees."""
    return Pose(pose.position, (pose.heading + steps) % HEADINGS)


def bearing(pose: Pose, target: Point) -> int:
    """Return the direction of a point in steps of 15 degrees, from -11 to 12, to the left of where the body faces."""
    angle = math.atan2(target[1] - pose.position[1], target[0] - pose.position[0])
    steps = (round(angle / math.tau * HEADINGS) - pose.heading) % HEADINGS
    return steps if steps <= HEADINGS // 2 else steps - HEADINGS


def _step(house: House, pose: Pose) -> tuple[Point, bool]:
    """Go 25 cm ahead, or as far along the walls as they allow: first in x alone, then in y alone."""
    (x, y), (dx, dy) = pose.position, _DIRECTIONS[pose.heading]
    # Rounded, so that the same steps in another order lead to the same place.
    new_x, new_y = round(x + STEP * dx, 6), round(y + STEP * dy, 6)
    if house.is_free((new_x, new_y)):
        return (new_x, new_y), False
    for position in ((new_x, y), (x, new_y)):
        if position != pose.position and house.is_free(position):
            return position, True
    return pose.position, True
