"""The ReAct agent: one growing transcript, in which a policy calls tools until it answers."""

import asyncio
import logging
import math
import reprlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any, Literal

import gymnasium
import numpy as np
from pydantic import Field

from agentflow.concurrency import call, is_cancelled
from agentflow.config import Config
from agentflow.environment import Environment, Observation, StepResult
from agentflow.errors import EnvironmentFailure, EpisodeFailure
from agentflow.messages import Message, Reply
from agentflow.policy import BatchingPolicy, Policy, Sampling
from agentflow.renderer import Renderer
from agentflow.roles import Exchange, recorded_exchanges
from agentflow.rollout import Episode, Gate, derive_seed
from agentflow.trajectory import Completion, Status, Trajectory, Turn

_log = logging.getLogger(__name__)


class AgentConfig(Config):
    """The limits of an episode, and what happens to a reply that is not well formed."""

    max_turns: int | None = Field(None, ge=1, description="Most turns of an episode; null for the environment's own.")
    max_turn_tokens: int = Field(64, ge=1, description="Most tokens that the policy samples in one turn.")
    max_episode_tokens: int = Field(2048, ge=2, description="Most tokens of a transcript, the last turn included.")
    max_call_s: float = Field(
        120.0, gt=0, description="Most wall seconds of one reset or step; one that takes longer has hung, and fails."
    )
    max_episode_s: float = Field(
        600.0,
        gt=0,
        description="Wall seconds of the environment, over all turns, after which an episode ends, paid as it stands.",
    )
    on_parse_error: Literal["show", "end"] = Field(
        "show", description="A malformed reply: show the error to the policy and count the turn, or end the episode."
    )


@dataclass(slots=True)
class Transcript:
    """An episode under way.

    Attributes:
        episode: What is played.
        gate: Where batches wait for this episode.
        environment: Who is played with, once it is made.
        environment_s: Wall seconds that the environment has taken; the policy's are not counted.
        turns: The finished turns.
        num_tokens: Tokens so far, all turns together.
        observation: What the environment said last.
        status: How the episode ended; None while it goes on.
        success: Whether the task is solved.
    """

    episode: Episode
    gate: Gate
    environment: Environment = field(init=False)
    environment_s: float = 0.0
    turns: list[Turn] = field(default_factory=list)
    num_tokens: int = 0
    observation: Observation = ()
    status: Status | None = None
    success: bool = False


class ReAct:
    """Play episodes as one growing transcript.

    Args:
        make_environment: Makes a fresh environment for one episode.
        renderer: Turns messages into tokens and tokens into replies.
        policy: Samples the turns.
        config: Limits.
        temperature: Divides the policy's logits.
    """

    def __init__(
        self,
        make_environment: Callable[[], Environment],
        renderer: Renderer,
        *,
        policy: Policy,
        config: AgentConfig,
        temperature: float = 1.0,
    ) -> None:
        self._make_environment = make_environment
        self._renderer = renderer
        self._policy = policy
        self._config = config
        self._temperature = temperature

    def begin(self, gate: Gate) -> None:
        """Let the policy hold its batches back at the gate, if it can."""
        if isinstance(self._policy, BatchingPolicy):
            self._policy.settle = gate.settle

    async def play(self, episode: Episode, gate: Gate) -> Trajectory:
        """Play one episode; see `rollout.Agent`."""
        with recorded_exchanges() as exchanges:
            return await self._play(Transcript(episode, gate), exchanges)

    async def _play(self, transcript: Transcript, exchanges: list[Exchange]) -> Trajectory:
        episode = transcript.episode
        try:
            await self._reset(transcript)
            while transcript.status is None:
                await self._turn(transcript)
        except EpisodeFailure as failure:
            transcript.status = Status("failed", failure.cause, str(failure))
        # Whatever else goes wrong in one episode must not end the others.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            _log.warning("episode %s", episode.id, exc_info=True)
            transcript.status = Status("failed", EpisodeFailure.cause, f"{type(error).__name__}: {error}")
        finally:
            self._policy.release(episode.id)
            await self._close(transcript)
        assert transcript.status is not None, "the loop ends with a status"
        return Trajectory(
            id=episode.id,
            task_id=episode.task.id,
            seed=episode.seed,
            turns=tuple(transcript.turns),
            status=transcript.status,
            success=None if transcript.status.kind == "failed" else transcript.success,
            observation=transcript.observation,
            exchanges=tuple(exchanges),
        )

    async def _reset(self, transcript: Transcript) -> None:
        episode = transcript.episode
        transcript.environment = await self._ask(transcript, "make", self._make_environment)
        reset = partial(transcript.environment.areset, seed=episode.seed, options={"task": episode.task})
        transcript.observation, _ = _checked_reset(await self._ask(transcript, "reset", reset))

    async def _turn(self, transcript: Transcript) -> None:
        """Sample one turn, let the environment answer it, and end the episode where it is due."""
        renderer, turns = self._renderer, transcript.turns
        messages = transcript.observation
        context = tuple(renderer.extend(messages) if turns else renderer.start(messages))
        if turns and turns[-1].completion.finish_reason == "length":
            context = (renderer.closing(), *context)
        room = self._config.max_episode_tokens - transcript.num_tokens - len(context)
        if room < 1:
            transcript.status = Status("truncated", "tokens")
            return
        completion = await self._sample(transcript, context, room=room)
        reply = renderer.parse(completion)
        started = time.monotonic()
        observation, reward, terminated, truncated, info = await self._answer(transcript, reply)
        turns.append(
            Turn(
                prefix_length=transcript.num_tokens,
                context_ids=context,
                completion=completion,
                messages=messages,
                reply=reply,
                reward=reward,
                terms={"well_formed": float(not reply.error), **info.get("reward_terms", {})},
                duration_s=round(time.monotonic() - started, 6),
            )
        )
        transcript.num_tokens += len(context) + len(completion.token_ids)
        transcript.observation = observation
        if terminated:
            transcript.status = Status("completed")
            transcript.success = bool(info.get("success", reward > 0))
        else:
            limit = "environment" if truncated else self._limit_reached(transcript)
            transcript.status = Status("truncated", limit) if limit else None

    def _limit_reached(self, transcript: Transcript) -> str:
        """Name the limit at which an episode ends that its environment would let go on; empty if there is none."""
        if transcript.turns[-1].reply.error and self._config.on_parse_error == "end":
            return "malformed"
        if len(transcript.turns) >= (self._config.max_turns or transcript.environment.max_turns):
            return "turns"
        return "seconds" if transcript.environment_s > self._config.max_episode_s else ""

    async def _sample(self, transcript: Transcript, context: tuple[int, ...], *, room: int) -> Completion:
        episode, gate = transcript.episode, transcript.gate
        prompt: list[int] = []
        for turn in transcript.turns:
            prompt += [*turn.context_ids, *turn.completion.token_ids]
        sampling = Sampling(
            temperature=self._temperature,
            max_tokens=min(room, self._config.max_turn_tokens),
            # The members of a group share the environment's seed, and differ in what they sample.
            seed=derive_seed(episode.seed, episode.id, len(transcript.turns)),
        )
        gate.away(episode.id)
        try:
            return await self._policy.generate([*prompt, *context], sampling, session=episode.id)
        finally:
            gate.acting(episode.id)

    async def _answer(self, transcript: Transcript, reply: Reply) -> StepResult:
        """Let the environment answer a reply; a malformed one is answered by its error."""
        if reply.error:
            return (Message("user", reply.error),), 0.0, False, False, {}
        step = partial(transcript.environment.astep, reply.message)
        return _checked_step(await self._ask(transcript, "step", step))

    async def _ask(self, transcript: Transcript, what: str, function: Callable[[], Any]) -> Any:
        """Call code of the environment's author: whatever it raises, or a hang, fails this episode only, with a type.

        An environment that waits on the world outside is not waited for at the gate.
        """
        outside = what != "make" and transcript.environment.waits_outside
        if outside:
            transcript.gate.away(transcript.episode.id)
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._config.max_call_s) as limit:
                return await call(function)
        except EpisodeFailure:
            raise
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            raise EnvironmentFailure(f"{what} was cancelled by its own doing") from error
        except (Exception, SystemExit) as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise EnvironmentFailure(f"{what} had not returned after {self._config.max_call_s:g} s") from None
            raise EnvironmentFailure(f"{what} raised {type(error).__name__}: {error}") from error
        finally:
            transcript.environment_s += time.monotonic() - started
            if outside:
                transcript.gate.acting(transcript.episode.id)

    async def _close(self, transcript: Transcript) -> None:
        """Close the environment, if it was made and has anything to close; the episode is over, its result stands."""
        environment = getattr(transcript, "environment", None)
        if environment is None or type(environment).close is gymnasium.Env.close:
            return
        if environment.waits_outside:
            transcript.gate.away(transcript.episode.id)
        try:
            async with asyncio.timeout(self._config.max_call_s):
                await call(environment.close)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            _log.warning("episode %s: close was cancelled by its own doing", transcript.episode.id)
        except (Exception, SystemExit) as error:  # noqa: BLE001
            _log.warning("episode %s: close raised %s: %s", transcript.episode.id, type(error).__name__, error)


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
