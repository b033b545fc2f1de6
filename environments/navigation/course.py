"""Courses: a house, where one starts, where one shall stop, and what one is told; a task holds what rebuilds it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from agentflow.environment import Split
from agentflow.environments.navigation.body import HEADINGS, Pose, bearing
from agentflow.environments.navigation.house import Door, House, HouseConfig, Point, build_house, places, route
from agentflow.environments.navigation.instructions import Facts, Family, instruct, num_phrasings
from agentflow.environments.navigation.names import landmark_names
from agentflow.trajectory import Task

AXES = ("building", "phrasing", "landmark", "all")
"""What a held-out task has that training never had, beside its building; the last has everything."""
TASKS_PER_HOUSE = 4
RELATIVE = 1.0
"""The distance before the landmark at which the family `relative` ends."""
_FROM_START = 1.0
"""Least distance between start and goal."""
_SPLIT_NUMBERS: Mapping[Split, int] = {"train": 0, "heldout": 1}
_SIDES = ("ahead", "left", "behind", "right")
_HOUSES, _TASKS = 0, 1


@dataclass(frozen=True, slots=True)
class CourseConfig:
    """What courses are drawn by.

    Attributes:
        seed: Fixes houses and tasks.
        house: What houses are like.
        doors: Numbers of doors on the way, in turn.
        families: Families of instructions, in turn.
    """

    seed: int
    house: HouseConfig
    doors: tuple[int, ...]
    families: tuple[Family, ...]


@dataclass(frozen=True)
class Course:
    """What one episode is about.

    Attributes:
        house: Where.
        start: Where the body begins.
        landmark: The number of the landmark that the instruction names.
        goal: Where one shall stop.
        before: How far before its landmark that is, in metres.
    """

    house: House
    start: Pose
    landmark: int
    goal: Point
    before: float


def draw_tasks(config: CourseConfig, split: Split, count: int) -> list[Task]:
    """Draw the tasks of a split: houses, phrasings and landmarks of the held-out split never occur in training."""
    return [_draw_task(config, split, number) for number in range(count)]


def course_of(config: CourseConfig, task: Task) -> Course:
    """Rebuild the course of a task."""
    told: Mapping[str, Any] = task.answer
    split, number = told["house"]
    house = _house(config, split, number).renamed(told["landmark"], told["name"])
    x, y, heading = told["start"]
    before = RELATIVE if task.metadata["family"] == "relative" else 0.0
    goal = (float(told["goal"][0]), float(told["goal"][1]))
    return Course(house, Pose((x, y), heading), told["landmark"], goal, before)


@lru_cache(maxsize=256)
def _house(config: CourseConfig, split: Split, number: int) -> House:
    return build_house(config.house, np.random.default_rng([config.seed, _SPLIT_NUMBERS[split], _HOUSES, number]))


def _draw_task(config: CourseConfig, split: Split, number: int) -> Task:
    axis, turn = (AXES[number % len(AXES)], number // len(AXES)) if split == "heldout" else ("none", number)
    family = config.families[turn // len(config.doors) % len(config.families)]
    rng = np.random.default_rng([config.seed, _SPLIT_NUMBERS[split], _TASKS, number])
    house = _house(config, split, number // TASKS_PER_HOUSE)
    doors, landmark, position = _draw_way(house, config.doors[turn % len(config.doors)], family=family, rng=rng)
    phrasing = (
        num_phrasings(family) - 1 if axis in ("phrasing", "all") else int(rng.integers(num_phrasings(family) - 1))
    )
    name = house.landmarks[landmark].name
    if axis in ("landmark", "all"):
        held_out = landmark_names("heldout")
        name = held_out[int(rng.integers(len(held_out)))]
    named = house.renamed(landmark, name)
    facts = _facts(named, doors, landmark=landmark, start=house.room_at(position))
    answer = {
        "house": [split, number // TASKS_PER_HOUSE],
        "start": [*position, int(rng.integers(HEADINGS))],
        "landmark": landmark,
        "name": name,
        "goal": list(_goal(named, doors, landmark, relative=family == "relative")),
    }
    metadata = {"family": family, "doors": len(doors), "unseen": axis, "phrasing": phrasing}
    return Task(f"{split}-{number:05d}", instruct(family, phrasing, facts), answer, metadata)


def _draw_way(
    house: House, num_doors: int, *, family: Family, rng: np.random.Generator
) -> tuple[list[Door], int, Point]:
    """Draw start and landmark with a way of so many doors, or as near to that as the house has one."""
    best: tuple[int, list[Door], int, Point] | None = None
    for i in rng.permutation(len(house.rooms)):
        points = places(house, int(i))
        start = points[int(rng.integers(len(points)))]
        for landmark in rng.permutation(len(house.landmarks)):
            doors, _ = route(house, start, house.landmarks[int(landmark)].position)
            goal = _goal(house, doors, int(landmark), relative=family == "relative")
            missed = abs(len(doors) - num_doors)
            if not doors or math.dist(start, goal) < _FROM_START or (best is not None and missed >= best[0]):
                continue
            best = (missed, doors, int(landmark), start)
            if not missed:
                return best[1:]
    assert best is not None, "a house of two rooms or more has a way through a door"
    return best[1:]


def _goal(house: House, doors: Sequence[Door], landmark: int, *, relative: bool) -> Point:
    """Return where one shall stop: at the landmark, or a metre before it for whoever comes from the last door."""
    position = house.landmarks[landmark].position
    if not relative or not doors:
        return position
    share = RELATIVE / math.dist(position, doors[-1].centre)
    ahead = zip(position, doors[-1].centre, strict=True)
    x, y = (round(there + share * (door - there), 6) for there, door in ahead)
    return x, y


def _facts(house: House, doors: Sequence[Door], *, landmark: int, start: int) -> Facts:
    rooms = [start]
    for door in doors:
        rooms.append(door.other(rooms[-1]))
    passed = [next(thing.name for thing in house.landmarks if thing.room == room) for room in rooms[1:-1]]
    sides = [_side(house, *pair, room=room) for pair, room in zip(pairwise(doors), rooms[1:], strict=False)]
    names = tuple(house.rooms[room] for room in rooms)
    return Facts(names, tuple(sides), tuple(passed), house.landmarks[landmark].name)


def _side(house: House, entered: Door, left_by: Door, *, room: int) -> str:
    """Return the side of the wall with the next door, for whoever came straight through the last one."""
    size = house.size
    middle = (room % house.columns + 0.5) * size, (room // house.columns + 0.5) * size
    inward = bearing(Pose(_on_wall(house, entered, room), 0), middle)
    outward = bearing(Pose(middle, 0), _on_wall(house, left_by, room))
    return _SIDES[(outward - inward) % HEADINGS // (HEADINGS // 4)]


def _on_wall(house: House, door: Door, room: int) -> Point:
    """Return the middle of the wall that a door of a room is in."""
    middle = (room % house.columns + 0.5) * house.size, (room // house.columns + 0.5) * house.size
    return (door.centre[0], middle[1]) if door.across else (middle[0], door.centre[1])
