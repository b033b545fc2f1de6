"""A map of a way through a house, seen from above, as SVG."""

from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

from agentflow.environments.navigation.course import Course
from agentflow.environments.navigation.house import Point

_SCALE = 40
_BORDER = 12
_GREY, _BLUE, _GREEN, _RED = "#999999", "#1f6fb4", "#2c8a3d", "#c43c2c"


def draw_house(course: Course, path: Sequence[Point], reference: Sequence[Point]) -> str:
    """Draw walls, names, the goal, the expert's way (dashed) and the way that was walked.

    Args:
        course: Where it was walked.
        path: Positions in metres, the start first.
        reference: The expert's positions.
    """
    house = course.house
    width, height = house.columns * house.size, house.rows * house.size
    paper = _Paper(height)
    for low, high in house.walls:
        paper.line([tuple(low), tuple(high)], colour="black", width=2)
    for room, name in enumerate(house.rooms):
        left, low = room % house.columns * house.size, room // house.columns * house.size
        paper.text((left + 0.12, low + house.size - 0.32), name, size=12, colour=_GREY)
    for number, thing in enumerate(house.landmarks):
        colour = _RED if number == course.landmark else _GREY
        paper.circle(thing.position, 3, colour=colour)
        paper.text((thing.position[0] + 0.12, thing.position[1] - 0.1), thing.name, size=9, colour=colour)
    paper.circle(course.goal, 9, colour=_RED, filled=False)
    paper.line(reference, colour=_GREY, width=2, dashes="4 4")
    paper.line(path, colour=_BLUE, width=2.5)
    paper.circle(path[0], 5, colour=_GREEN)
    paper.circle(path[-1], 5, colour=_BLUE)
    return paper.finish(width, height)


def draw_graph(
    nodes: Iterable[Point], edges: Iterable[tuple[Point, Point]], *, path: Sequence[Point], reference: Sequence[Point]
) -> str:
    """Draw a connectivity graph, the reference path (dashed) and the way that was walked."""
    nodes = list(nodes)
    left, low = min(x for x, _ in nodes), min(y for _, y in nodes)
    width, height = max(x for x, _ in nodes) - left, max(y for _, y in nodes) - low

    def moved(points: Iterable[Point]) -> list[Point]:
        return [(x - left, y - low) for x, y in points]

    paper = _Paper(height)
    for edge in edges:
        paper.line(moved(edge), colour="#dddddd", width=1)
    for node in moved(nodes):
        paper.circle(node, 2, colour=_GREY)
    paper.line(moved(reference), colour=_GREY, width=2, dashes="4 4")
    paper.line(moved(path), colour=_BLUE, width=2.5)
    paper.circle(moved(reference)[-1], 9, colour=_RED, filled=False)
    paper.circle(moved(path)[0], 5, colour=_GREEN)
    paper.circle(moved(path)[-1], 5, colour=_BLUE)
    return paper.finish(width, height)


class _Paper:
    """Shapes in metres, y upwards, for a drawing of the given height."""

    def __init__(self, height: float) -> None:
        self._height = height
        self._shapes: list[str] = []

    def _at(self, point: Sequence[float]) -> tuple[float, float]:
        return round(_BORDER + point[0] * _SCALE, 1), round(_BORDER + (self._height - point[1]) * _SCALE, 1)

    def line(self, points: Iterable[Sequence[float]], *, colour: str, width: float, dashes: str = "") -> None:
        at = " ".join(f"{x:g},{y:g}" for x, y in map(self._at, points))
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self._shapes.append(f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>')

    def circle(self, point: Sequence[float], radius: float, *, colour: str, filled: bool = True) -> None:
        x, y = self._at(point)
        paint = f'fill="{colour}"' if filled else f'fill="none" stroke="{colour}" stroke-width="2"'
        self._shapes.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius}" {paint}/>')

    def text(self, point: Sequence[float], words: str, *, size: int, colour: str) -> None:
        x, y = self._at(point)
        self._shapes.append(f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}">{escape(words)}</text>')

    def finish(self, width: float, height: float) -> str:
        """Return the drawing, as large as the given metres."""
        size = f"{width * _SCALE + 2 * _BORDER:g}", f"{height * _SCALE + 2 * _BORDER:g}"
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" font-family="sans-serif">'
        return "".join([head, *self._shapes, "</svg>"])
