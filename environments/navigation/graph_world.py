"""The world of connectivity graphs: one walks from viewpoint to viewpoint, seen in words; no simulator is needed."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from pydantic import Field

from agentflow.config import Config
from agentflow.environment import Expert, Observation, Split
from agentflow.environments.navigation.episodes import Episode, read_episodes
from agentflow.environments.navigation.graph import Graph, Position, heading_to, load_graph
from agentflow.environments.navigation.picture import draw_graph
from agentflow.environments.navigation.world import Leg
from agentflow.errors import DataError, ToolError
from agentflow.messages import Message, ToolCall
from agentflow.questions import is_held_out
from agentflow.trajectory import Task

STOP = "stop"
INSTRUCTIONS = (
    "Follow the instruction through the building. You stand at a viewpoint; the ways on are numbered, with the "
    "direction in degrees and the distance in metres. Go from viewpoint to viewpoint, and stop where the instruction "
    "ends."
)
_FARTHEST_SNAP = 3.0
"""Metres from a position of VLN-CE to the viewpoint that stands for it, at most."""
_DIRECTION = 15


class GraphConfig(Config):
    """Where graphs and episodes come from."""

    connectivity: str = Field(description="Folder of `<scan>_connectivity.json` files of Matterport3DSimulator.")
    episodes: str = Field(description="Training episodes: a file of R2R, RxR or VLN-CE; may be packed with gzip.")
    heldout_episodes: str | None = Field(
        None, description="Held-out episodes; null holds out a tenth of the buildings of the only file."
    )
    languages: tuple[str, ...] = Field((), description="Languages of RxR to keep, as `en-US`; empty for all.")
    descriptions: str | None = Field(
        None, description="JSON file {scan: {viewpoint: text}} that says what is seen at viewpoints; null for nothing."
    )


class GraphWorld:
    """Matterport's buildings as graphs.

    Args:
        config: Where they come from.
    """

    instructions = INSTRUCTIONS
    tool_names = ("go", STOP)
    max_turns = 30
    radius = 3.0
    waits_outside = False

    def __init__(self, config: GraphConfig) -> None:
        self._config = config

    def tasks(self, split: Split) -> Sequence[Task]:
        """Return the episodes of a split as tasks.

        Raises:
            DataError: A file is missing or broken.
        """
        return _tasks(self._config, split)

    async def begin(self, task: Task) -> "GraphWalk":
        """Begin an episode."""
        return self._walk(task)

    def expert(self, task: Task, seed: int) -> Expert:
        """Return a walker who follows the reference path."""
        return _Follower(self._walk(task), task.answer["path"])

    def replay(self, task: Task, calls: Sequence[str]) -> str:
        """Draw the way that calls led to beside the reference path."""
        walk = self._walk(task)
        path = [walk.viewpoint]
        for words in calls:
            path += [walk.viewpoint] if walk.try_to_go(words) else []
        graph = walk.graph
        edges = [
            (graph.positions[a][:2], graph.positions[b][:2]) for a in graph.neighbours for b in graph.neighbours[a]
        ]
        return draw_graph(
            [place[:2] for place in graph.positions.values()],
            edges,
            path=[graph.positions[viewpoint][:2] for viewpoint in path],
            reference=[graph.positions[viewpoint][:2] for viewpoint in task.answer["path"]],
        )

    def _walk(self, task: Task) -> "GraphWalk":
        told = task.answer
        graph = load_graph(self._config.connectivity, told["scan"])
        seen = _descriptions(self._config.descriptions).get(graph.scan, {}) if self._config.descriptions else {}
        return GraphWalk(graph, told["path"], heading=told["heading"], seen=seen)


class GraphWalk:
    """One episode on a graph; see `world.Walk`.

    Args:
        graph: The building.
        path: The reference path, from the start to the goal.
        heading: Where one looks at the start, in radians.
        seen: What is seen at viewpoints, in words.
    """

    def __init__(self, graph: Graph, path: Sequence[str], *, heading: float, seen: Mapping[str, str]) -> None:
        self.graph = graph
        self.viewpoint = path[0]
        self._heading = heading
        self._seen = seen
        self._to_goal = graph.distances_to(path[-1])
        self.reference: tuple[Position, ...] = tuple(graph.positions[viewpoint] for viewpoint in path)
        self.num_expert_actions = len(path)
        self.shortest = self._to_goal[path[0]]
        self.first = self._leg(0.0)

    async def take(self, words: str) -> Leg:
        """Go to a viewpoint by its number, or stop."""
        if words == STOP:
            return Leg(self.view(), num_actions=1, stopped=True)
        before = self.viewpoint
        if not self.try_to_go(words):
            raise ToolError(f"no way {words[:20]!r}: 1 to {len(self.ways())}")
        return self._leg(self.graph.length(before, self.viewpoint), num_actions=1)

    async def close(self) -> None:
        """Hold nothing."""

    def try_to_go(self, words: str) -> bool:
        """Go a way by its number, and look along it; say whether there is such a way."""
        ways = self.ways()
        if not words.isdigit() or not 1 <= int(words) <= len(ways):
            return False
        chosen = ways[int(words) - 1]
        start, end = self.graph.positions[self.viewpoint], self.graph.positions[chosen]
        self._heading, self.viewpoint = heading_to(start, end), chosen
        return True

    def ways(self) -> list[str]:
        """List the viewpoints that one can go to, from the one behind on the left to the one behind on the right."""
        names = self.graph.neighbours[self.viewpoint]
        return sorted(names, key=lambda name: (self._turn(name), name))

    def view(self) -> str:
        """Say what is seen, and the ways on."""
        ways = "; ".join(f"{i} {self.describe(name)}" for i, name in enumerate(self.ways(), 1))
        seen = self._seen.get(self.viewpoint, "")
        return f"{seen}\n{ways}" if seen else ways

    def describe(self, viewpoint: str) -> str:
        """Say where a viewpoint is: `left 45 2.1`, with `up` or `down` where it leads over stairs."""
        degrees = round(math.degrees(self._turn(viewpoint)) / _DIRECTION) * _DIRECTION
        side = "ahead" if degrees == 0 else "behind" if abs(degrees) == 180 else ""
        words = side or f"{'left' if degrees < 0 else 'right'} {abs(degrees)}"
        rise = self.graph.positions[viewpoint][2] - self.graph.positions[self.viewpoint][2]
        level = "" if abs(rise) < 0.5 else " up" if rise > 0 else " down"
        return f"{words} {self.graph.length(self.viewpoint, viewpoint):.1f}{level}"

    def _turn(self, viewpoint: str) -> float:
        """Return the turn to a viewpoint in radians, from -pi to pi, to the right."""
        there = heading_to(self.graph.positions[self.viewpoint], self.graph.positions[viewpoint])
        return (there - self._heading + math.pi) % math.tau - math.pi

    def _leg(self, length: float, *, num_actions: int = 0) -> Leg:
        position = self.graph.positions[self.viewpoint]
        distance = self._to_goal.get(self.viewpoint, math.inf)
        return Leg(self.view(), places=(position,), distances=(distance,), length=length, num_actions=num_actions)


class _Follower:
    """Follows a path from viewpoint to viewpoint, and says what it goes for."""

    def __init__(self, walk: GraphWalk, path: Sequence[str]) -> None:
        self._walk = walk
        self._rest = list(path[1:])

    def act(self, observation: Observation) -> Message:
        """Return the next call, whatever was observed."""
        if not self._rest:
            return Message("assistant", "there", tool_calls=(ToolCall(STOP),))
        goal = self._rest.pop(0)
        number = self._walk.ways().index(goal) + 1
        said = f"{number} {self._walk.describe(goal)}"
        self._walk.try_to_go(str(number))
        return Message("assistant", said, tool_calls=(ToolCall("go", {"to": number}),))


@lru_cache(maxsize=4)
def _tasks(config: GraphConfig, split: Split) -> tuple[Task, ...]:
    source = config.heldout_episodes if split == "heldout" and config.heldout_episodes else config.episodes
    episodes = read_episodes(Path(source))
    if config.heldout_episodes is None:
        episodes = [episode for episode in episodes if is_held_out(episode.scan, 0.1) == (split == "heldout")]
        if not episodes:
            raise DataError(f"{source} has too few buildings to hold out a tenth.", "Set graph.heldout_episodes.")
    kept = [episode for episode in episodes if not config.languages or episode.language in config.languages]
    if not kept:
        spoken = ", ".join(sorted({episode.language for episode in episodes}))
        raise DataError(
            f"{source} has no episode in {', '.join(config.languages)}, only {spoken}.", "Set graph.languages."
        )
    return tuple(_task(episode, config, split) for episode in kept)


def _task(episode: Episode, config: GraphConfig, split: Split) -> Task:
    path = _path_of(episode, load_graph(config.connectivity, episode.scan))
    answer = {"scan": episode.scan, "path": path, "heading": episode.heading}
    metadata = {"steps": len(path) - 1, "language": episode.language}
    return Task(f"{split}-{episode.id}", episode.instruction, answer, metadata)


def _path_of(episode: Episode, graph: Graph) -> list[str]:
    """Return the viewpoints of an episode's way, each joined to the next.

    Raises:
        DataError: The building lacks one, or two of them are not joined.
    """
    where = f"Episode {episode.id!r} in {graph.scan}"
    if episode.positions:
        return _snapped(episode, graph, where)
    path = list(episode.viewpoints)
    for viewpoint in path:
        if viewpoint not in graph.positions:
            raise DataError(f"{where}: there is no viewpoint {viewpoint!r}.", "Do graphs and episodes belong together?")
    for one, two in pairwise(path):
        if two not in graph.neighbours[one]:
            raise DataError(f"{where}: no way from {one!r} to {two!r}.", "Do graphs and episodes belong together?")
    return path


def _snapped(episode: Episode, graph: Graph, where: str) -> list[str]:
    """Put positions on the nearest viewpoints, and join these by shortest ways."""
    stations: list[str] = []
    for position in episode.positions:
        viewpoint, distance = graph.nearest(position)
        if distance > _FARTHEST_SNAP:
            raise DataError(
                f"{where}: the nearest viewpoint to {position} is {distance:.1f} m away.",
                "Do graphs and episodes belong together?",
            )
        stations += [viewpoint] if stations[-1:] != [viewpoint] else []
    path = stations[:1]
    for station in stations[1:]:
        onward = graph.distances_to(station)
        if path[-1] not in onward:
            raise DataError(f"{where}: no way from {path[-1]!r} to {station!r}.", "Is the graph whole?")
        while path[-1] != station:
            here = path[-1]
            ways = {name: graph.length(here, name) + onward[name] for name in graph.neighbours[here]}
            path.append(min(ways, key=ways.__getitem__))
    return path


@lru_cache(maxsize=2)
def _descriptions(file: str) -> Mapping[str, Mapping[str, str]]:
    try:
        found: Mapping[str, Mapping[str, str]] = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {file}: {error}.", "It must be JSON: {scan: {viewpoint: text}}.") from error
    return found
