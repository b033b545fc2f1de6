"""A house by seed: named rooms on a grid, doors of one metre, landmarks. Lengths in metres, y grows upwards.

Room r is the square in column r % columns and row r // columns. Walls have no thickness; a body keeps its radius away.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from agentflow.config import Config
from agentflow.environments.navigation.names import ROOMS, landmark_names

DOOR_WIDTH = 1.0
BODY_RADIUS = 0.2
_MARGIN = 0.5
"""Between a landmark, or where an episode starts, and the walls."""
_SPACING = 0.25
_FROM_DOORS = 1.1
_BETWEEN_LANDMARKS = 0.6

Point: TypeAlias = tuple[float, float]


class HouseConfig(Config):
    """What houses are like."""

    columns: int = Field(3, ge=1, le=5, description="Rooms from west to east.")
    rows: int = Field(2, ge=1, le=4, description="Rooms from south to north.")
    room_size: float = Field(3.0, ge=3.0, le=8.0, description="Side of a room in metres.")
    loops: float = Field(0.3, ge=0, le=1, description="Chance of a door where neighbours could do without one.")
    landmarks: int = Field(1, ge=1, le=3, description="Landmarks of a room: all but the goal distract.")


@dataclass(frozen=True, slots=True)
class Landmark:
    """A thing in a room.

    Attributes:
        name: Its colour and kind, once in a house.
        room: The room's number.
        position: Where it stands; it can be walked through.
    """

    name: str
    room: int
    position: Point


@dataclass(frozen=True, slots=True)
class Door:
    """A gap in the wall between two rooms.

    Attributes:
        rooms: The rooms' numbers, the smaller one first.
        centre: The middle of the gap.
        across: Whether one walks east or west through it; else north or south.
    """

    rooms: tuple[int, int]
    centre: Point
    across: bool

    def other(self, room: int) -> int:
        """Return the room behind it."""
        return self.rooms[1] if room == self.rooms[0] else self.rooms[0]

    def beyond(self, room: int, distance: float) -> Point:
        """Return the point so far behind its centre, seen from a room."""
        signed = distance if room == self.rooms[0] else -distance
        return (self.centre[0] + signed, self.centre[1]) if self.across else (self.centre[0], self.centre[1] + signed)


@dataclass(frozen=True)
class House:
    """A house.

    Attributes:
        columns: Rooms from west to east.
        rows: Rooms from south to north.
        size: Side of a room.
        rooms: The rooms' names by number.
        doors: All doors.
        landmarks: All landmarks.
    """

    columns: int
    rows: int
    size: float
    rooms: tuple[str, ...]
    doors: tuple[Door, ...]
    landmarks: tuple[Landmark, ...]

    def room_at(self, position: Point) -> int:
        """Return the number of the room at a position."""
        column = min(max(int(position[0] / self.size), 0), self.columns - 1)
        row = min(max(int(position[1] / self.size), 0), self.rows - 1)
        return row * self.columns + column

    def doors_of(self, room: int) -> list[Door]:
        """Return the doors of a room."""
        return self._doors_by_room[room]

    @cached_property
    def _doors_by_room(self) -> list[list[Door]]:
        return [[door for door in self.doors if room in door.rooms] for room in range(len(self.rooms))]

    @cached_property
    def walls(self) -> NDArray[np.float64]:
        """The solid walls [N, 2, 2]: axis-parallel segments, each its lower left and upper right end."""
        return np.array(_walls(self))

    def is_free(self, position: Point) -> bool:
        """Say whether a body can stand at a position."""
        x, y = position
        if all(BODY_RADIUS <= along % self.size <= self.size - BODY_RADIUS for along in position):
            return True
        # Doors are half a metre from corners and more: only the walls of the room itself can be near.
        for left, low, right, high in self._walls_by_room[self.room_at(position)]:
            dx, dy = x - min(max(x, left), right), y - min(max(y, low), high)
            if dx * dx + dy * dy < BODY_RADIUS**2 - 1e-9:
                return False
        return True

    @cached_property
    def _walls_by_room(self) -> list[list[tuple[float, float, float, float]]]:
        found: list[list[tuple[float, float, float, float]]] = []
        for room in range(len(self.rooms)):
            left, low = room % self.columns * self.size, room // self.columns * self.size
            touches = (self.walls[:, 1] >= (left, low)).all(1) & (
                self.walls[:, 0] <= (left + self.size, low + self.size)
            ).all(1)
            found.append([(float(x), float(y), float(u), float(v)) for (x, y), (u, v) in self.walls[touches]])
        return found

    def renamed(self, landmark: int, name: str) -> "House":
        """Return the house with another name for one landmark."""
        named = replace(self.landmarks[landmark], name=name)
        return replace(self, landmarks=(*self.landmarks[:landmark], named, *self.landmarks[landmark + 1 :]))


def build_house(config: HouseConfig, rng: np.random.Generator) -> House:
    """Draw a house; it is connected, and its names and landmarks are those of the training split."""
    count = config.columns * config.rows
    rooms = tuple(ROOMS[int(i)] for i in rng.permutation(len(ROOMS))[:count])
    doors = _draw_doors(config, rng)
    bare = House(config.columns, config.rows, config.room_size, rooms, doors, ())
    pool = landmark_names("train")
    names = iter(rng.permutation(len(pool))[: count * config.landmarks])
    landmarks = tuple(
        Landmark(pool[int(next(names))], room, position)
        for room in range(count)
        for position in _draw_places(bare, room, count=config.landmarks, rng=rng)
    )
    return replace(bare, landmarks=landmarks)


def route(house: House, start: Point, goal: Point) -> tuple[list[Door], float]:
    """Return the doors on the shortest way through door centres, and its length."""
    goal_room = house.room_at(goal)
    queue: list[tuple[float, int, Point, int, list[Door]]] = [(0.0, 0, start, house.room_at(start), [])]
    done: set[Point] = set()
    pushed = 0
    while queue:
        length, _, position, room, doors = heapq.heappop(queue)
        if position == goal:
            return doors, length
        if position in done and doors:
            continue
        done.add(position)
        onward = [(door.centre, door.other(room), [*doors, door]) for door in house.doors_of(room)]
        if room == goal_room:
            onward.append((goal, room, doors))
        for point, behind, passed in onward:
            pushed += 1
            heapq.heappush(queue, (length + math.dist(position, point), pushed, point, behind, passed))
    raise AssertionError("a house is connected")


def places(house: House, room: int) -> list[Point]:
    """List the points of a room on a grid of 25 cm, at least half a metre from its walls."""
    left, low = room % house.columns * house.size, room // house.columns * house.size
    steps = int((house.size - 2 * _MARGIN) / _SPACING) + 1
    offsets = [_MARGIN + _SPACING * i for i in range(steps)]
    return [(left + x, low + y) for x in offsets for y in offsets]


def _draw_doors(config: HouseConfig, rng: np.random.Generator) -> tuple[Door, ...]:
    """Draw a spanning tree over neighbouring rooms, and further doors by chance."""
    neighbours = [
        (room, room + step)
        for room in range(config.columns * config.rows)
        for step, exists in (
            (1, room % config.columns < config.columns - 1),
            (config.columns, room // config.columns < config.rows - 1),
        )
        if exists
    ]
    parts = list(range(config.columns * config.rows))
    doors = []
    for i in rng.permutation(len(neighbours)):
        one, other = neighbours[int(i)]
        joins = parts[one] != parts[other]
        if (rng.random() < config.loops) or joins:
            doors.append(_draw_door(config, (one, other), rng))
            parts = [parts[one] if part == parts[other] else part for part in parts]
    return tuple(sorted(doors, key=lambda door: door.rooms))


def _draw_door(config: HouseConfig, rooms: tuple[int, int], rng: np.random.Generator) -> Door:
    size = config.room_size
    along = float(rng.uniform(DOOR_WIDTH, size - DOOR_WIDTH))
    column, row = rooms[0] % config.columns, rooms[0] // config.columns
    if rooms[1] == rooms[0] + 1 and config.columns > 1:
        return Door(rooms, ((column + 1) * size, row * size + along), across=True)
    return Door(rooms, (column * size + along, (row + 1) * size), across=False)


def _draw_places(house: House, room: int, *, count: int, rng: np.random.Generator) -> list[Point]:
    """Draw places for landmarks: off the walls, the doors and each other."""
    doors = [door.centre for door in house.doors_of(room)]
    grid = places(house, room)
    far = [point for point in grid if all(math.dist(point, door) >= _FROM_DOORS for door in doors)]
    chosen: list[Point] = []
    for i in rng.permutation(len(far)):
        if len(chosen) < count and all(math.dist(far[int(i)], other) >= _BETWEEN_LANDMARKS for other in chosen):
            chosen.append(far[int(i)])
    assert len(chosen) == count, "a room of three metres has places enough for three landmarks"
    return chosen


def _walls(house: House) -> list[tuple[Point, Point]]:
    """List the solid walls: the outer ones, and those between neighbours with their gaps."""
    width, height, size = house.columns * house.size, house.rows * house.size, house.size
    walls = [((0.0, 0.0), (width, 0.0)), ((0.0, height), (width, height))]
    walls += [((0.0, 0.0), (0.0, height)), ((width, 0.0), (width, height))]
    gaps = {(door.across, *door.rooms): door.centre for door in house.doors}
    for room in range(len(house.rooms)):
        left, low = room % house.columns * size, room // house.columns * size
        if room % house.columns < house.columns - 1:
            centre = gaps.get((True, room, room + 1))
            walls += [((left + size, a), (left + size, b)) for a, b in _solid(low, size, centre and centre[1])]
        if room // house.columns < house.rows - 1:
            centre = gaps.get((False, room, room + house.columns))
            walls += [((a, low + size), (b, low + size)) for a, b in _solid(left, size, centre and centre[0])]
    return walls


def _solid(start: float, size: float, gap: float | None) -> Sequence[tuple[float, float]]:
    """Return the solid parts of a wall from `start` on, with a gap centred at `gap` or none."""
    if gap is None:
        return [(start, start + size)]
    return [(start, gap - DOOR_WIDTH / 2), (gap + DOOR_WIDTH / 2, start + size)]
