"""The view of minigrid and BabyAI in words: what is in sight, and where, seen from the agent."""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

_OBJECTS = "unseen empty wall floor door key ball box goal lava agent".split()
_COLOURS = "red green blue purple yellow grey".split()
_DOORS = ("open", "closed", "locked")
_SILENT = ("unseen", "empty", "wall", "floor", "agent")
_COLOURLESS = ("goal", "lava")


def is_grid(space: spaces.Space[Any]) -> bool:
    """Say whether observations are minigrid's: a square of (object, colour, state), and a mission."""
    if not isinstance(space, spaces.Dict) or not {"image", "mission"} <= set(space):
        return False
    shape = space["image"].shape or ()
    return len(shape) == 3 and shape[0] == shape[1] and shape[2] == 3 and shape[0] % 2 == 1 and shape[0] <= 15


def describe_grid(image: NDArray[np.uint8]) -> str:
    """List what is in sight, nearest first: `red ball ahead 2 left 1`; then where the way ahead ends.

    Args:
        image: [N, N, 3]: the agent stands at (N // 2, N - 1) and looks towards smaller second indices.
    """
    size = len(image)
    column, row = size // 2, size - 1
    seen: list[str] = []
    for i in range(size):
        for j in range(size):
            kind, colour, state = (int(value) for value in image[i, j])
            if (i, j) == (column, row) and _OBJECTS[kind] not in _SILENT:
                seen.insert(0, f"carrying {_named(kind, colour, state)}")
            elif _OBJECTS[kind] not in _SILENT:
                seen.append(f"{_named(kind, colour, state)}{_place(row - j, i - column)}")
    free = next((k for k in range(1, size) if _OBJECTS[int(image[column, row - k, 0])] != "empty"), size) - 1
    nearest = sorted(seen, key=lambda words: sum(int(word) for word in words.split() if word.isdigit()))
    return "; ".join([*nearest, f"free ahead {free}"])


def _named(kind: int, colour: int, state: int) -> str:
    name = _OBJECTS[kind]
    if name in _COLOURLESS:
        return name
    return f"{_DOORS[state]} {_COLOURS[colour]} door" if name == "door" else f"{_COLOURS[colour]} {name}"


def _place(ahead: int, right: int) -> str:
    words = f" ahead {ahead}" if ahead else ""
    if right:
        words += f" {'right' if right > 0 else 'left'} {abs(right)}"
    return words
