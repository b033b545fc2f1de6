"""What a body sees, as a small picture: walls of the room's colour, landmarks as columns of theirs, cast ray by ray."""

import colorsys
import math
import struct
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from agentflow.environments.navigation.body import HEADINGS, Pose
from agentflow.environments.navigation.house import House
from agentflow.environments.navigation.names import ROOMS
from agentflow.messages import Image

WIDTH, HEIGHT = 64, 48
_FIELD = math.pi / 2
_EYE, _CEILING = 1.2, 2.4
_THING_RADIUS, _THING_HEIGHT = 0.15, 1.0
_SKY, _FLOOR = (235, 235, 235), (120, 105, 90)
_COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (200, 30, 30),
    "blue": (30, 60, 200),
    "green": (30, 150, 50),
    "yellow": (225, 200, 30),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}


def render(house: House, pose: Pose) -> Image:
    """Draw the view ahead, 90 degrees wide, as a PNG of 64 x 48."""
    pixels = np.empty((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[: HEIGHT // 2], pixels[HEIGHT // 2 :] = _SKY, _FLOOR
    offsets = np.linspace(_FIELD / 2, -_FIELD / 2, WIDTH)
    angles = math.tau * pose.heading / HEADINGS + offsets
    rays = np.stack([np.cos(angles), np.sin(angles)], -1)
    eye = np.array(pose.position)
    depths, walls = _walls_hit(house, eye, rays)
    colours = np.array([_wall_colour(house, eye, wall) for wall in walls])
    _columns(pixels, depths * np.cos(offsets), colours, top=_CEILING)
    for thing in house.landmarks:
        near = _circle_hit(np.array(thing.position) - eye, rays)
        seen = near < depths
        colour = np.array(_COLOURS[thing.name.split()[0]])
        _columns(pixels, np.where(seen, near * np.cos(offsets), np.inf), np.tile(colour, (WIDTH, 1)), top=_THING_HEIGHT)
    return Image("image/png", encode_png(pixels))


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return an RGB picture [H, W, 3] as a PNG; the same pixels give the same bytes."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 6)),
        (b"IEND", b""),
    ]
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _walls_hit(
    house: House, eye: NDArray[np.float64], rays: NDArray[np.float64]
) -> tuple[NDArray[np.float64], list[int]]:
    """Return for each ray the distance to the first wall, and its number."""
    starts, ends = house.walls[:, 0] - eye, house.walls[:, 1] - eye
    along = ends - starts
    cross = rays[:, None, 0] * along[None, :, 1] - rays[:, None, 1] * along[None, :, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (starts[None, :, 0] * along[None, :, 1] - starts[None, :, 1] * along[None, :, 0]) / cross
        share = (starts[None, :, 0] * rays[:, None, 1] - starts[None, :, 1] * rays[:, None, 0]) / cross
    hits = np.where((distance > 1e-6) & (share >= -1e-9) & (share <= 1 + 1e-9), distance, np.inf)
    first = hits.argmin(1)
    return hits[np.arange(len(rays)), first], [int(i) for i in first]


def _circle_hit(centre: NDArray[np.float64], rays: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each ray the distance to a thing; infinite where it misses."""
    ahead = rays @ centre
    squared = _THING_RADIUS**2 - (centre @ centre - ahead**2)
    hit = (squared > 0) & (ahead > _THING_RADIUS)
    return np.where(hit, ahead - np.sqrt(np.maximum(squared, 0)), np.inf)


def _wall_colour(house: House, eye: NDArray[np.float64], wall: int) -> tuple[int, int, int]:
    """Return the colour of the room that the side of the wall belongs to, darker on walls from west to east."""
    low, high = house.walls[wall]
    middle = (low + high) / 2
    side = middle + (eye - middle) * 1e-3
    axis = 0 if low[0] == high[0] else 1
    inside = np.array(middle)
    inside[axis] += 0.01 if side[axis] > middle[axis] else -0.01
    room = house.rooms[house.room_at((float(inside[0]), float(inside[1])))]
    shade = 0.85 if axis == 0 else 0.7
    red, green, blue = colorsys.hsv_to_rgb(ROOMS.index(room) / len(ROOMS), 0.35, shade)
    return int(red * 255), int(green * 255), int(blue * 255)


def _columns(pixels: NDArray[np.uint8], depths: NDArray[np.float64], colours: NDArray[np.int64], *, top: float) -> None:
    """Paint a column for each ray, from the floor to a height at the given depth."""
    scale = WIDTH / 2 / math.tan(_FIELD / 2)
    with np.errstate(divide="ignore"):
        upper = np.round(HEIGHT / 2 - (top - _EYE) * scale / depths)
        lower = np.round(HEIGHT / 2 + _EYE * scale / depths)
    rows = np.arange(HEIGHT)[:, None]
    inside = (rows >= upper[None]) & (rows < lower[None]) & np.isfinite(depths)[None]
    pixels[inside] = np.broadcast_to(colours, pixels.shape)[inside]
