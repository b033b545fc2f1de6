"""The environment's side of an episode: made, reset, stepped and closed under a time limit, its answers checked.

Whatever code of an environment's author raises, or a hang of it, fails one episode only, and by the name of its cause.
"""

import asyncio
import logging
import math
import reprlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from numbers import Real
from typing import Any

import gymnasium
import numpy as np

from agentflow.concurrency import call, is_cancelled
from agentflow.environment import Environment, Observation, StepResult
from agentflow.errors import EnvironmentFailure, EpisodeFailure
from agentflow.messages import Message
from agentflow.trajectory import Task

_log = logging.getLogger(__name__)


class Boundary:
    """The environment of one episode.

    Args:
        make: Makes it.
        max_call_s: Most wall seconds of one call; one that takes longer has hung.
        away: Entered while a call waits for the world outside, so that nobody in this process waits for it.
    """

    def __init__(
        self, make: Callable[[], Environment], *, max_call_s: float, away: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.seconds = 0.0
        """Wall seconds that the environment has taken so far."""
        self._make = make
        self._max_call_s = max_call_s
        self._away = away
        self._environment: Environment | None = None

    @property
    def environment(self) -> Environment:
        """The environment, once `reset` has made it."""
        assert self._environment is not None, "an episode is reset before anything else"
        return self._environment

    async def reset(self, task: Task, seed: int) -> Observation:
        """Make the environment and pose a task.

        Raises:
            EpisodeFailure: It raised, hung or broke the contract.
        """
        environment = await self.call("make", self._make)
        self._environment = environment
        reset = partial(environment.areset, seed=seed, options={"task": task})
        observation, _ = _checked_reset(await self.call("reset", reset))
        return observation

    async def step(self, action: Message) -> StepResult:
        """Let the environment answer.

        Raises:
            EpisodeFailure: It raised, hung or broke the contract.
        """
        return _checked_step(await self.call("step", partial(self.environment.astep, action)))

    async def call(self, what: str, function: Callable[[], Any]) -> Any:
        """Call code of the environment's author.

        Raises:
            EpisodeFailure: It raised or hung; `what` names it in the failure.
        """
        outside = self._environment is not None and self._environment.waits_outside
        started = time.monotonic()
        try:
            with self._away() if outside else nullcontext():
                async with asyncio.timeout(self._max_call_s) as limit:
                    return await call(function)
        except EpisodeFailure:
            raise
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            raise EnvironmentFailure(f"{what} was cancelled by its own doing") from error
        except (Exception, SystemExit) as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise EnvironmentFailure(f"{what} had not returned after {self._max_call_s:g} s") from None
            raise EnvironmentFailure(f"{what} raised {type(error).__name__}: {error}") from error
        finally:
            self.seconds += time.monotonic() - started

    async def close(self, episode: str) -> None:
        """Close the environment, if it was made and has anything to close; the episode is over, its result stands."""
        environment = self._environment
        if environment is None or type(environment).close is gymnasium.Env.close:
            return
        try:
            with self._away() if environment.waits_outside else nullcontext():
                async with asyncio.timeout(self._max_call_s):
                    await call(environment.close)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            _log.warning("episode %s: close was cancelled by its own doing", episode)
        except (Exception, SystemExit) as error:  # noqa: BLE001  the episode is over, whatever its environment does
            _log.warning("episode %s: close raised %s: %s", episode, type(error).__name__, error)


def _checked_reset(result: Any) -> tuple[Observation, Mapping[str, Any]]:
    """Refuse an answer that breaks the contract, before it reaches a record."""
    if not isinstance(result, tuple) or len(result) != len(("observation", "info")):
        raise EnvironmentFailure(f"reset returned {reprlib.repr(result)}, not (observation, info)")
    observation, info = result
    return _checked_parts("reset", observation, info)


def _checked_step(result: Any) -> StepResult:
    """Refuse an answer that breaks the contract, before it reaches a record."""
    names = "(observation, reward, terminated, truncated, info)"
    if not isinstance(result, tuple) or len(result) != len(names.split()):
        raise EnvironmentFailure(f"step returned {reprlib.repr(result)}, not {names}")
    observation, reward, terminated, truncated, info = result
    observation, info = _checked_parts("step", observation, info)
    terms = info.get("reward_terms", {})
    if not isinstance(terms, Mapping):
        raise EnvironmentFailure(f"step returned reward_terms of type {type(terms).__name__}, not a mapping")
    terms = {str(name): _number(f"the reward term {name!r}", value) for name, value in terms.items()}
    return observation, _number("a reward", reward), bool(terminated), bool(truncated), {**info, "reward_terms": terms}


def _checked_parts(what: str, observation: Any, info: Any) -> tuple[Observation, Mapping[str, Any]]:
    if not isinstance(observation, tuple) or not all(isinstance(message, Message) for message in observation):
        raise EnvironmentFailure(f"{what} returned {type(observation).__name__}, not a tuple of Message")
    if not isinstance(info, Mapping):
        raise EnvironmentFailure(f"{what} returned an info of type {type(info).__name__}, not a mapping")
    return observation, info


def _number(what: str, value: Any) -> float:
    if not isinstance(value, Real | np.bool_) or not math.isfinite(value):
        raise EnvironmentFailure(f"step returned {what} of {value!r}, not a finite number")
    return float(value)
