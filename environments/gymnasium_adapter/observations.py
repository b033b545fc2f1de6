"""Observations as text: by what the environment says, by its `ansi` render, as numbers, or by a user's function."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces

from agentflow.environments.gymnasium_adapter.grids import describe_grid, is_grid
from agentflow.errors import ConfigError

Observe: TypeAlias = Callable[[Any, Mapping[str, Any], gymnasium.Env[Any, Any]], str]
"""Writes an observation, given `info` and the environment."""

_WORDS = ("mission", "utterance", "instruction", "text", "observation")
"""Keys of a Dict observation whose text is shown as it is."""
_MOST_NUMBERS = 64
_HIGHLIGHT = re.compile(r"\x1b\[4[0-9]m(.*?)\x1b\[0m", re.DOTALL)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_REMEDY = "Write a function `observe(observation, info, env) -> str` and set env.observe=FILE.py:observe."


def observer_for(space: spaces.Space[Any], render_modes: list[str]) -> tuple[Observe, str | None]:
    """Return how observations are written, and the render mode that this takes.

    Raises:
        ConfigError: They are pictures, or too many numbers.
    """
    if is_grid(space):
        return _grid, None
    if isinstance(space, spaces.Text):
        return _text, None
    if isinstance(space, spaces.Dict) and any(isinstance(space.get(key), spaces.Text) for key in _WORDS):
        return _said, None
    if "ansi" in render_modes:
        return _rendered, "ansi"
    size = spaces.flatdim(space) if space.is_np_flattenable else None
    if isinstance(space, spaces.Box) and len(space.shape) >= 2:
        raise ConfigError(f"Observations are arrays of shape {space.shape}, and policies read text.", _REMEDY)
    if size is None or _num_numbers(space) > _MOST_NUMBERS:
        raise ConfigError(f"Observations of the space {space} cannot be written in {_MOST_NUMBERS} numbers.", _REMEDY)
    return _numbers, None


def _grid(observation: Any, info: Mapping[str, Any], env: gymnasium.Env[Any, Any]) -> str:
    return f"{observation['mission']}\n{describe_grid(observation['image'])}"


def _text(observation: Any, info: Mapping[str, Any], env: gymnasium.Env[Any, Any]) -> str:
    return str(observation)


def _said(observation: Any, info: Mapping[str, Any], env: gymnasium.Env[Any, Any]) -> str:
    return "\n".join(str(observation[key]) for key in _WORDS if isinstance(observation.get(key), str))


def _rendered(observation: Any, info: Mapping[str, Any], env: gymnasium.Env[Any, Any]) -> str:
    """Return the render without colours; what has a coloured background (the agent) is in brackets."""
    return _ANSI.sub("", _HIGHLIGHT.sub(r"[\1]", str(env.render()))).strip("\n")


def _numbers(observation: Any, info: Mapping[str, Any], env: gymnasium.Env[Any, Any]) -> str:
    return json.dumps(_plain(observation))


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; floats with three digits behind the point."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float | np.floating):
        return round(float(value), 3)
    return value.item() if isinstance(value, np.generic) else value


def _num_numbers(space: spaces.Space[Any]) -> int:
    if isinstance(space, spaces.Discrete):
        return 1
    if isinstance(space, spaces.Tuple):
        return sum(map(_num_numbers, space.spaces))
    if isinstance(space, spaces.Dict):
        return sum(map(_num_numbers, space.spaces.values()))
    return int(np.prod(space.shape or (1,)))
