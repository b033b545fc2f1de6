"""What Gymnasium does not say of its environments: the names of actions, and who registers an id."""

import importlib
import logging
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from agentflow.config import suggest
from agentflow.errors import ConfigError

_log = logging.getLogger(__name__)

_ACTIONS: Mapping[str, str] = {
    "FrozenLake": "left down right up",
    "FrozenLake8x8": "left down right up",
    "CliffWalking": "up right down left",
    "CliffWalkingSlippery": "up right down left",
    "Taxi": "south north east west pickup dropoff",
    "Blackjack": "stick hit",
    "CartPole": "left right",
    "MountainCar": "left none right",
    "Acrobot": "left none right",
}
SOLVED_BY_ENDING = ("Taxi", "CliffWalking", "CliffWalkingSlippery", "MountainCar", "MountainCarContinuous", "Acrobot")
"""Environments that end by themselves only when they are solved, whatever the return is."""
_PACKAGES: Mapping[str, str] = {
    "MiniGrid-": "minigrid",
    "BabyAI-": "minigrid",
    "miniwob/": "miniwob",
    "ALE/": "ale_py",
    "Vizdoom": "vizdoom.gymnasium_wrapper",
    "MiniWorld-": "miniworld",
}
"""The package to import for ids that begin so; any other: `gymnasium:PACKAGE:ID`."""


def find_spec(env_id: str) -> EnvSpec:
    """Return the registration of an id, importing the package that makes it.

    Raises:
        ConfigError: Nothing goes by that id, or its package is not installed.
    """
    module, _, name = env_id.rpartition(":")
    package = module or next((package for start, package in _PACKAGES.items() if name.startswith(start)), "")
    if package:
        try:
            importlib.import_module(package)
            _silence(package)
        except ImportError as error:
            raise ConfigError(
                f"{env_id!r} needs the package {package!r}: {error}.", f"pip install {package.split('.')[0]}"
            ) from error
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        if name in gymnasium.registry:
            raise ConfigError(f"Gymnasium refuses {name!r}: {error}") from error
        raise ConfigError(
            f"Gymnasium knows no environment {name!r}.",
            f"{suggest(name, sorted(gymnasium.registry))} If a package registers it: gymnasium:PACKAGE:ID.",
        ) from None


def _silence(package: str) -> None:
    """Send to the log what minigrid prints at each reset: a level's own `print` stands before the built-in one."""
    if package == "minigrid":
        level: Any = importlib.import_module("minigrid.envs.babyai.core.roomgrid_level")
        level.print = lambda *words: _log.debug(" ".join(map(str, words)))


def action_names(env: gymnasium.Env[Any, Any], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a Discrete space's actions: the wanted ones, else those that are known, else none."""
    if wanted or not isinstance(env.action_space, spaces.Discrete):
        return tuple(wanted)
    listed = getattr(env.unwrapped, "actions", None)
    if isinstance(listed, type) and issubclass(listed, Enum) and len(listed) == env.action_space.n:
        return tuple(member.name for member in listed)
    spec = env.spec
    known = tuple(_ACTIONS.get(spec.name if spec else "", "").split())
    return known if len(known) == env.action_space.n else ()
