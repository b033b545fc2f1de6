"""A scripted walker to imitate: it says the entry of the view that it goes for, walks to it, and errs if it is told."""

import random
from dataclasses import dataclass

from agentflow.environment import Observation
from agentflow.environments.navigation.body import MOST_ACTIONS, STEP, STOP, Moved, Pose, bearing, move
from agentflow.environments.navigation.course import Course
from agentflow.environments.navigation.house import Point, route
from agentflow.environments.navigation.views import BEYOND, Entry, describe, entries, num_steps
from agentflow.messages import Message, ToolCall

_NEAR_STEPS = 1
"""It stops at so many steps of 25 cm, as the view rounds them."""
_MOST_TURNS = 60
# At full noise: the shares of episodes that go wrong in each way, and the chance of a random move at each turn.
_STOPS_EARLY, _WRONG_DOOR = 0.4, 0.8
_RANDOM_MOVE = 0.15
_EARLY_A_TURN, _EARLY_NEAR = 0.15, 0.5
_STOPS_AT_WRONG_ROOM = 0.5
_FAR_STEPS = (4, 8)
_WORDS = ("F", "FF", "FFF", "L", "LL", "LLL", "R", "RR", "RRR")


@dataclass(frozen=True, slots=True)
class Walked:
    """What the expert would do.

    Attributes:
        positions: Where each of its steps ended, the start first.
        num_actions: Its actions, `STOP` included.
    """

    positions: tuple[Point, ...]
    num_actions: int


def aim(course: Course, pose: Pose) -> Entry:
    """Return the entry of the view to go for: the next door of the shortest way, or the landmark."""
    house, position = course.house, pose.position
    landmark = house.landmarks[course.landmark]
    if house.room_at(position) == landmark.room:
        return Entry(landmark.name, landmark.position)
    doors, _ = route(house, position, landmark.position)
    room = house.room_at(position)
    behind = doors[0].other(room)
    return Entry(house.rooms[behind], doors[0].beyond(room, BEYOND), behind)


def is_there(course: Course, pose: Pose, entry: Entry, *, near_steps: int = _NEAR_STEPS) -> bool:
    """Say whether the walker stops here."""
    wanted = round(course.before / STEP)
    return entry.room is None and num_steps(pose, entry.point) <= wanted + near_steps


def plan(pose: Pose, target: Point, *, before: int = 0) -> tuple[str, ...]:
    """Return one to three actions towards a point in view: what its entry says, first the turn and then the way.

    Args:
        pose: Where the walker stands.
        target: The point.
        before: Steps of 25 cm to leave.
    """
    turns = bearing(pose, target)
    actions = _words("L" if turns > 0 else "R", abs(turns))[:MOST_ACTIONS]
    steps = max(num_steps(pose, target) - before, 0 if actions else 1)
    return (*actions, *_words("F", steps)[: MOST_ACTIONS - len(actions)])


def _words(letter: str, steps: int) -> tuple[str, ...]:
    """Return the merged actions of so many steps: `FFF FFF F` for seven."""
    return tuple(letter * min(3, steps - done) for done in range(0, steps, 3))


def plan_for(course: Course, pose: Pose, entry: Entry) -> tuple[str, ...]:
    """Return the actions towards an entry, which end as far before a landmark as is asked for."""
    return plan(pose, entry.point, before=round(course.before / STEP) if entry.room is None else 0)


def walk(course: Course) -> Walked:
    """Let the expert walk a course without an error."""
    pose = course.start
    positions, num_actions = [pose.position], 0
    for _ in range(_MOST_TURNS):
        moved = _act(course, pose)
        positions += moved.positions
        num_actions += moved.num_actions
        pose = moved.pose
        if moved.stopped:
            break
    return Walked(tuple(positions), num_actions)


def _act(course: Course, pose: Pose) -> Moved:
    entry = aim(course, pose)
    return move(course.house, pose, (STOP,) if is_there(course, pose, entry) else plan_for(course, pose, entry))


class Walker:
    """Play one course.

    Args:
        course: The course, which tells the expert what is right.
        noise: 0 never errs. Else the share of episodes in which it stops early, takes a wrong door or stops too far
            off, and how often it makes a random move.
        seed: Fixes the errors.
    """

    def __init__(self, course: Course, *, noise: float, seed: int) -> None:
        self._course = course
        self._pose = course.start
        self._rng = random.Random(seed)  # noqa: S311  reproducible, not secret
        self._random_move = noise * _RANDOM_MOVE
        kind = self._rng.random() if self._rng.random() < noise else None
        self._stops_early = kind is not None and kind < _STOPS_EARLY
        self._wrong_door = kind is not None and _STOPS_EARLY <= kind < _WRONG_DOOR
        self._near_steps = self._rng.randint(*_FAR_STEPS) if kind is not None and kind >= _WRONG_DOOR else _NEAR_STEPS
        self._lost = False

    def act(self, observation: Observation) -> Message:
        """Return what the expert says and does, whatever was observed: it knows where it is."""
        entry = self._aim()
        actions = self._actions(entry)
        said = describe(self._pose, entry)
        self._pose = move(self._course.house, self._pose, actions).pose
        return Message("assistant", said, tool_calls=(ToolCall("move", {"actions": " ".join(actions)}),))

    def _aim(self) -> Entry:
        """Return the right entry, or once a wrong one."""
        right = aim(self._course, self._pose)
        others = [entry for entry in self._doors() if entry.room != right.room]
        if not self._wrong_door or right.room is None or not others:
            return right
        if self._rng.random() < 0.5:
            return right
        self._wrong_door, self._lost = False, self._rng.random() < _STOPS_AT_WRONG_ROOM
        return self._rng.choice(others)

    def _doors(self) -> list[Entry]:
        return [entry for entry in entries(self._course.house, self._pose) if entry.room is not None]

    def _actions(self, entry: Entry) -> tuple[str, ...]:
        if self._gives_up(entry):
            return (STOP,)
        if self._rng.random() < self._random_move:
            return (self._rng.choice(_WORDS),)
        if is_there(self._course, self._pose, entry, near_steps=self._near_steps):
            return (STOP,)
        return plan_for(self._course, self._pose, entry)

    def _gives_up(self, entry: Entry) -> bool:
        if self._stops_early:
            return self._rng.random() < (_EARLY_NEAR if entry.room is None else _EARLY_A_TURN)
        # Lost: it takes a landmark of the wrong room for the goal, a few moves later.
        return self._lost and self._rng.random() < _EARLY_NEAR
