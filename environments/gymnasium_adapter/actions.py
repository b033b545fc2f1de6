"""Action spaces as the arguments of a typed tool, and back."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from gymnasium import spaces
from pydantic import Field

from agentflow.errors import ConfigError, ToolError
from agentflow.tools.tool import Tool, tool

TOOL = "act"
_MOST_NUMBERS = 32
_KNOWN = "Discrete, MultiDiscrete, MultiBinary, Box of at most 32 numbers, Text, and Dict of these"


class Argument(ABC):
    """How one space is written by a policy.

    Args:
        space: The space.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = space

    @property
    @abstractmethod
    def annotation(self) -> Any:
        """The type of the tool's argument, with its description."""

    @abstractmethod
    def read(self, value: Any) -> Any:
        """Return the space's own value.

        Raises:
            ToolError: It is none, in words for the policy.
        """


class _Choice(Argument):
    """One of some names, or one of some numbers."""

    def __init__(self, space: spaces.Discrete, names: Sequence[str]) -> None:
        super().__init__(space)
        self._start, self._count, self._names = int(space.start), int(space.n), tuple(names)

    @property
    def annotation(self) -> Any:
        if self._names:
            return Annotated[Literal[self._names], Field(description=f"One of: {', '.join(self._names)}.")]
        last = self._start + self._count - 1
        return Annotated[int, Field(ge=self._start, le=last, description=f"A number from {self._start} to {last}.")]

    def read(self, value: Any) -> Any:
        return np.int64(self._start + self._names.index(value) if self._names else value)


class _Numbers(Argument):
    """A list of numbers; those of a Box are clipped to its bounds."""

    space: spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__(space)
        self._shape = space.shape or ()
        self._size = int(np.prod(self._shape))

    @property
    def annotation(self) -> Any:
        item = float if isinstance(self.space, spaces.Box) else int
        bounds = Field(
            min_length=self._size, max_length=self._size, description=f"{self._size} numbers, {self._range}."
        )
        return Annotated[list[item], bounds]  # type: ignore[valid-type]

    @property
    def _range(self) -> str:
        low, high = (bound.flatten().tolist() for bound in _bounds(self.space))
        return "; ".join(f"{a:g} to {b:g}" for a, b in zip(low, high, strict=True))

    def read(self, value: Any) -> Any:
        found = np.array(value, dtype=self.space.dtype).reshape(self._shape)
        if isinstance(self.space, spaces.Box):
            return np.clip(found, self.space.low, self.space.high)
        if not self.space.contains(found):
            raise ToolError(f"{value} is out of range: {self._range}")
        return found


def _bounds(space: spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box) -> tuple[Any, Any]:
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape), np.ones(space.shape)
    return space.start, space.start + space.nvec - 1


class _Words(Argument):
    """A text."""

    space: spaces.Text

    @property
    def annotation(self) -> Any:
        return Annotated[
            str, Field(description=f"A text of {self.space.min_length} to {self.space.max_length} letters.")
        ]

    def read(self, value: Any) -> Any:
        if not self.space.contains(value):
            odd = sorted(set(value) - set(self.space.character_set))
            why = f"it may not hold {''.join(odd)[:20]!r}" if odd else f"it has {len(value)} letters"
            raise ToolError(f"{value[:40]!r} is no such text: {why}")
        return value


def argument_for(space: spaces.Space[Any], names: Sequence[str] = ()) -> Argument:
    """Return how a space is written.

    Raises:
        ConfigError: The space cannot be written, or has another number of values than there are names.
    """
    if isinstance(space, spaces.Discrete):
        if names and len(names) != space.n:
            raise ConfigError(
                f"{len(names)} action names for {space.n} actions.", "Set env.action_names to all of them."
            )
        return _Choice(space, names)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box):
        if np.prod(space.shape) > _MOST_NUMBERS:
            raise ConfigError(f"An action of {int(np.prod(space.shape))} numbers is too long to write.", _REMEDY)
        return _Numbers(space)
    if isinstance(space, spaces.Text):
        return _Words(space)
    raise ConfigError(f"The action space {space} cannot be written in a call; known are {_KNOWN}.", _REMEDY)


_REMEDY = "Wrap the environment so that its actions are one of these, register it, and name that id."


def make_tool(
    space: spaces.Space[Any], names: Sequence[str], *, most: int, act: Callable[[list[Any]], Awaitable[Any]]
) -> Tool:
    """Return the tool `act` of an action space.

    Args:
        space: The action space.
        names: Names of the actions of a Discrete space; empty for numbers.
        most: Most actions of one call; more than one takes a Discrete space.
        act: Carries out a list of the space's own actions.

    Raises:
        ConfigError: The space cannot be written in a call.
    """
    if most > 1 and not isinstance(space, spaces.Discrete):
        raise ConfigError(
            f"Several actions a turn of the space {space} cannot be written.", "Set env.actions_per_turn=1."
        )
    if isinstance(space, spaces.Dict):
        parts = {name: argument_for(part) for name, part in space.items()}
        return _tool({name: part.annotation for name, part in parts.items()}, _dict_reader(parts), act)
    argument = argument_for(space, names)
    if most == 1:
        return _tool({"action": argument.annotation}, lambda given: [argument.read(given["action"])], act)
    item: Any = argument.annotation
    several = Annotated[list[item], Field(min_length=1, max_length=most, description="In order.")]
    return _tool({"actions": several}, lambda given: [argument.read(value) for value in given["actions"]], act)


def _dict_reader(parts: Mapping[str, Argument]) -> Callable[[Mapping[str, Any]], list[Any]]:
    return lambda given: [{name: part.read(given[name]) for name, part in parts.items()}]


def _tool(
    annotations: Mapping[str, Any],
    read: Callable[[Mapping[str, Any]], list[Any]],
    act: Callable[[list[Any]], Awaitable[Any]],
) -> Tool:
    async def function(**given: Any) -> Any:
        """Act on the environment."""
        return await act(read(given))

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
        for name, annotation in annotations.items()
    ]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = dict(annotations)
    return tool(name=TOOL)(function)
