"""What every world offers: tasks, and a walk for each episode."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from agentflow.environment import Expert, Split
from agentflow.messages import Image
from agentflow.trajectory import Task

Place: TypeAlias = tuple[float, ...]
"""A position in metres, in two or three dimensions."""


@dataclass(frozen=True, slots=True)
class Leg:
    """What came of one call.

    Attributes:
        text: What the walker sees now, in words.
        images: What it sees now, in pictures.
        places: Where each step ended that led anywhere, in order; empty where the world does not say.
        distances: From each of these places to the goal, by the shortest way; or the last one alone.
        length: Metres walked.
        num_actions: Actions that were carried out.
        num_collisions: Steps that a wall stopped or bent.
        stopped: Whether the walker said that it is there.
        over: Whether the world ended the episode without that.
    """

    text: str
    images: tuple[Image, ...] = ()
    places: tuple[Place, ...] = ()
    distances: tuple[float, ...] = ()
    length: float = 0.0
    num_actions: int = 0
    num_collisions: int = 0
    stopped: bool = False
    over: bool = False


class Walk(Protocol):
    """One episode under way."""

    @property
    def first(self) -> Leg:
        """What the walker sees at the start; its place and distance, where the world says them."""
        ...

    @property
    def shortest(self) -> float | None:
        """The length of the shortest way, in metres; None where it is not known."""
        ...

    @property
    def reference(self) -> Sequence[Place]:
        """The expert's path, step by step; empty where it is not known."""
        ...

    @property
    def num_expert_actions(self) -> int | None:
        """The expert's actions, the last one included; None where they are not known."""
        ...

    async def take(self, words: str) -> Leg:
        """Carry out what a call asks for.

        Raises:
            ToolError: It cannot be read or done.
            EpisodeFailure: The world broke.
        """
        ...

    async def close(self) -> None:
        """Give back what the episode holds."""
        ...


class World(Protocol):
    """Where episodes take place."""

    @property
    def instructions(self) -> str:
        """The system message."""
        ...

    @property
    def tool_names(self) -> tuple[str, ...]:
        """The environment's tools that make sense here."""
        ...

    @property
    def max_turns(self) -> int:
        """The default limit of turns."""
        ...

    @property
    def radius(self) -> float:
        """The default distance in metres at which a stop succeeds."""
        ...

    @property
    def waits_outside(self) -> bool:
        """Whether a call waits on another process."""
        ...

    def tasks(self, split: Split) -> Sequence[Task]:
        """Return the tasks of a split."""
        ...

    async def begin(self, task: Task) -> Walk:
        """Begin an episode."""
        ...

    def expert(self, task: Task, seed: int) -> Expert:
        """Return a scripted walker.

        Raises:
            ConfigError: There is none.
        """
        ...

    def replay(self, task: Task, calls: Sequence[str]) -> str | None:
        """Draw the way that calls led to, as SVG; None where the world cannot say where they led."""
        ...
