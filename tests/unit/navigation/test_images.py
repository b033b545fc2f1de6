"""Pictures of what a body sees."""

import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from agentflow.environments.navigation import Navigation, protocol
from agentflow.environments.navigation.body import Pose
from agentflow.environments.navigation.house import Door, House, Landmark
from agentflow.environments.navigation.images import HEIGHT, WIDTH, encode_png, render

TWO = House(
    2,
    1,
    3.0,
    ("kitchen", "hall"),
    (Door((0, 1), (3.0, 1.5), across=True),),
    (Landmark("red lamp", 0, (2.5, 2.5)), Landmark("blue chair", 1, (5.0, 1.5))),
)
RED, BLUE = (200, 30, 30), (30, 60, 200)


def pixels(data: bytes) -> NDArray[np.uint8]:
    """Decode what `encode_png` writes."""
    at, packed = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += length + 12
    rows = np.frombuffer(zlib.decompress(packed), dtype=np.uint8).reshape(HEIGHT, 1 + WIDTH * 3)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(HEIGHT, WIDTH, 3)


def columns(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> list[int]:
    return sorted({int(x) for x in np.where((picture == colour).all(-1).any(0))[0]})


def test_a_picture_survives_its_file() -> None:
    drawn = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    assert (pixels(encode_png(drawn)) == drawn).all() and encode_png(drawn) == encode_png(drawn)


def test_things_stand_where_they_are_seen() -> None:
    east = pixels(render(TWO, Pose((1.5, 1.5), 0)).data)
    # The chair is straight ahead, through the door; the lamp 45 degrees to the left, at the edge of the view.
    assert columns(east, BLUE) and all(abs(x - 31.5) < 4 for x in columns(east, BLUE))
    assert columns(east, RED) and max(columns(east, RED)) < 6
    left = pixels(render(TWO, Pose((1.5, 1.5), 3)).data)
    assert all(abs(x - 31.5) < 5 for x in columns(left, RED)) and columns(left, RED)
    assert not columns(pixels(render(TWO, Pose((1.5, 1.5), 12)).data), BLUE)


def test_walls_hide_what_is_behind_them() -> None:
    assert not columns(pixels(render(TWO, Pose((2.5, 0.5), 2)).data), BLUE)


def test_near_things_are_larger() -> None:
    sizes = [len(columns(pixels(render(TWO, Pose((x, 1.5), 0)).data), BLUE)) for x in (1.0, 3.0, 4.3)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]


def test_pictures_stand_beside_the_views_where_they_are_asked_for() -> None:
    environment = Navigation(train_tasks=4, heldout_tasks=4, images=True)
    (_, asked), _ = environment.reset(seed=0, options={"task": environment.tasks("train")[0]})
    again, _ = environment.reset(seed=0, options={"task": environment.tasks("train")[0]})
    assert asked.images[0].size == (64, 48) and asked.images == again[-1].images
    plain = Navigation(train_tasks=4, heldout_tasks=4)
    assert plain.reset(seed=0, options={"task": plain.tasks("train")[0]})[0][-1].images == ()


@pytest.mark.parametrize("space", ["r2r", "rxr"])
def test_actions_are_said_and_understood_in_the_words_of_the_protocol(space: protocol.ActionSpace) -> None:
    for action in ("F", "FF", "FFF", "L", "LL", "LLL", "R", "RR", "RRR", "STOP"):
        assert protocol.understand(protocol.say(action, space), space) == action
    assert protocol.say("LL", space) == f"turn left {30 if space == 'r2r' else 60} degrees"
    assert protocol.say("FFF", space) == "move forward 75cm" and protocol.say("STOP", space) == "stop"
    for text in ("move forward 30cm", "turn left 20 degrees", "turn left 0 degrees", "STOP", "turn up 30 degrees"):
        assert protocol.understand(text, space) is None
