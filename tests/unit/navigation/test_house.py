"""Houses, ways through them, bodies in them, and what is seen."""

import math

import numpy as np
import pytest

from agentflow.environments.navigation.body import Pose, bearing, move, parse_actions
from agentflow.environments.navigation.geodesic import Geodesics
from agentflow.environments.navigation.house import (
    BODY_RADIUS,
    Door,
    House,
    HouseConfig,
    Landmark,
    build_house,
    places,
    route,
)
from agentflow.environments.navigation.names import COLOURS, ROOMS, THINGS, landmark_names
from agentflow.environments.navigation.views import view
from agentflow.errors import ToolError

HOUSES = [
    build_house(HouseConfig(columns=columns, rows=rows, landmarks=landmarks), np.random.default_rng(seed))
    for seed, (columns, rows, landmarks) in enumerate([(3, 2, 1), (1, 4, 2), (5, 4, 3), (2, 1, 1), (3, 3, 2)] * 4)
]
TWO = House(
    2,
    1,
    3.0,
    ("kitchen", "hall"),
    (Door((0, 1), (3.0, 1.5), across=True),),
    (Landmark("red lamp", 0, (1.0, 1.5)), Landmark("blue chair", 1, (5.0, 2.5))),
)


def test_the_words_are_told_apart() -> None:
    train, heldout = landmark_names("train"), landmark_names("heldout")
    assert len(train) + len(heldout) == len(COLOURS) * len(THINGS) == len({*train, *heldout})
    assert {name.split()[0] for name in train} == set(COLOURS)
    assert {name.split()[1] for name in train} == set(THINGS)
    assert not set(ROOMS) & set(THINGS)


@pytest.mark.parametrize("house", HOUSES, ids=range(len(HOUSES)))
def test_a_house_is_whole(house: House) -> None:
    assert len(set(house.rooms)) == len(house.rooms)
    names = [thing.name for thing in house.landmarks]
    assert len(set(names)) == len(names) and set(names) <= set(landmark_names("train"))
    for thing in house.landmarks:
        assert house.room_at(thing.position) == thing.room and house.is_free(thing.position)
        for room in range(len(house.rooms)):
            doors, length = route(house, places(house, room)[0], thing.position)
            assert length < math.inf
            rooms = [room]
            for door in doors:
                rooms.append(door.other(rooms[-1]))
            assert rooms[-1] == thing.room and len(set(rooms)) == len(rooms)


def test_seeds_fix_houses() -> None:
    config = HouseConfig()
    one, same, other = (build_house(config, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("seed", range(4))
def test_geodesics_equal_the_shortest_of_many_ways(seed: int) -> None:
    """Brute force: the shortest way over all chains of points spread densely over the doors."""
    house = build_house(HouseConfig(columns=3, rows=2, loops=0.4), np.random.default_rng([seed, 5]))
    rng = np.random.default_rng(seed)
    start, goal = (tuple(rng.uniform(0.3, 2.7, 2) + offset) for offset in ((0, 0), (6, 3)))
    spread = np.linspace(-0.3, 0.3, 61)
    # Ways through doors in turn: a point on each door, straight between neighbours, which share a room.
    shortest = math.inf
    queue = [(0, [(start, 0.0)], {0})]
    while queue:
        room, ways, seen = queue.pop()
        if room == house.room_at(goal):
            shortest = min(shortest, *(length + math.dist(point, goal) for point, length in ways))
            continue
        for door in house.doors_of(room):
            behind = door.other(room)
            if behind in seen:
                continue
            x, y = door.centre
            points = [(x, y + s) if door.across else (x + s, y) for s in spread]
            onward = [(p, min(length + math.dist(q, p) for q, length in ways)) for p in points]
            queue.append((behind, onward, seen | {behind}))
    found = Geodesics(house).to(goal).distances([start])[0]
    assert shortest - 0.005 <= found <= shortest + 1e-9


def test_a_geodesic_within_a_room_is_straight() -> None:
    field = Geodesics(TWO).to((1.0, 1.5))
    assert field.distances([(1.0, 2.5), (2.0, 1.5), (1.0, 1.5)]) == [1.0, 1.0, 0.0]


def test_a_geodesic_bends_at_the_ends_of_doors() -> None:
    (found,) = Geodesics(TWO).to((5.0, 0.5)).distances([(1.0, 0.5)])
    assert found == pytest.approx(2 * math.hypot(2.0, 0.7))
    (through,) = Geodesics(TWO).to((5.0, 1.5)).distances([(1.0, 1.5)])
    assert through == 4.0


@pytest.mark.parametrize("seed", range(3))
def test_bodies_keep_off_the_walls(seed: int) -> None:
    house = HOUSES[seed]
    rng = np.random.default_rng(seed)
    pose = Pose(places(house, 0)[0], 0)
    rooms = set()
    for _ in range(400):
        moved = move(house, pose, ["FFF" if rng.random() < 0.7 else "LLL" if rng.random() < 0.5 else "R"])
        for position in moved.positions:
            gaps = np.clip(position, house.walls[:, 0], house.walls[:, 1]) - np.array(position)
            assert np.sqrt((gaps**2).sum(1)).min() >= BODY_RADIUS - 1e-6
        pose = moved.pose
        rooms.add(house.room_at(pose.position))
    assert len(rooms) > 1


def test_actions_turn_and_go() -> None:
    moved = move(TWO, Pose((1.0, 1.5), 0), ["LLL", "L", "RR"])
    assert moved.pose == Pose((1.0, 1.5), 2) and moved.positions == () and moved.num_actions == 3
    moved = move(TWO, Pose((1.0, 1.5), 0), ["FFF", "STOP", "F"])
    assert moved.positions == ((1.25, 1.5), (1.5, 1.5), (1.75, 1.5))
    assert moved.stopped and moved.num_actions == 2 and moved.num_blocked == 0


def test_a_step_into_a_wall_slides_along_it() -> None:
    # 30 degrees to the left of east, with the wall at x = 3 before it: the step is taken in y alone.
    moved = move(TWO, Pose((2.75, 0.5), 2), ["F"])
    assert moved.num_blocked == 1
    assert moved.pose.position == pytest.approx((2.75, 0.5 + 0.25 * math.sin(math.pi / 6)))
    stuck = move(TWO, Pose((2.75, 0.5), 0), ["FFF"])
    assert stuck.pose.position == (2.75, 0.5) and stuck.positions == () and stuck.num_blocked == 3


def test_bearings_are_to_the_left() -> None:
    pose = Pose((1.0, 1.0), 6)
    assert [bearing(pose, point) for point in ((1.0, 2.0), (0.0, 1.0), (2.0, 1.0), (1.0, 0.0))] == [0, 6, -6, 12]


def test_a_view_tells_things_and_doors_nearest_first() -> None:
    assert view(TWO, Pose((1.5, 1.5), 0)) == "kitchen: red lamp behind 2, hall ahead 8"
    assert view(TWO, Pose((4.0, 1.5), 6), bumped=True) == "hall: kitchen left 90 6, blue chair right 45 6, bump"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("G", "no action 'G'"),
        ("", "0 actions"),
        ("F F F F", "4 actions"),
        ("FFFF", "no action 'FFFF'"),
        ("x" * 99, "no action 'XXXXXXXXXXXXXXXXXXXX'"),
    ],
)
def test_other_actions_are_refused(text: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        parse_actions(text)


def test_actions_are_read_with_commas_and_in_small_letters() -> None:
    assert parse_actions("ll, fff  stop") == ("LL", "FFF", "STOP")
