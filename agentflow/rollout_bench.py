"""How much of an engine's speed a rollout keeps while its tools are slow (`agentflow bench rollout`).

Three ways to have the same policy sample the same prompts to the same lengths, in one run and alternating:

    rollout   episodes of several turns, each followed by a tool call that takes `tool_s`, as training plays them
    engine    the turns that the rollout sampled, asked for all at once: what the engine gives when nothing waits
    lockstep  waves of episodes that all sample, then all wait for the slowest tool call, then all sample again
"""

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from agentflow.agents.react import react
from agentflow.concurrency import run_blocking
from agentflow.environment import Environment, Split, StepResult
from agentflow.messages import Message
from agentflow.play import AgentConfig, EpisodePlayer, Scene
from agentflow.policy import Policy, Sampling, TrainablePolicy
from agentflow.renderer import Renderer
from agentflow.roles import PLANNER
from agentflow.rollout import Rollout, RolloutConfig
from agentflow.speakers import TokenSpeaker
from agentflow.trajectory import Task, full_sequences


@dataclass(frozen=True, slots=True)
class Load:
    """What is played.

    Attributes:
        episodes: Episodes in all.
        concurrency: Episodes that run at once.
        turns: Turns of each.
        turn_tokens: Tokens sampled in each turn.
        tool_s: Seconds of a tool call.
        slow_share: Share of tool calls that take ten times as long.
    """

    episodes: int = 256
    concurrency: int = 256
    turns: int = 4
    turn_tokens: int = 32
    tool_s: float = 0.5
    slow_share: float = 0.0

    def wait_s(self, episode: str, turn: int) -> float:
        """Return the seconds of one tool call: a function of its place, the same in every way of playing."""
        drawn = int.from_bytes(hashlib.blake2b(f"{episode}/{turn}".encode(), digest_size=4).digest(), "big") / 2**32
        return self.tool_s * (10 if drawn < self.slow_share else 1)


@dataclass(frozen=True, slots=True)
class Speed:
    """What one way of playing achieved.

    Attributes:
        name: `rollout`, `engine` or `lockstep`.
        num_tokens: Sampled tokens.
        duration_s: Wall seconds.
    """

    name: str
    num_tokens: int
    duration_s: float

    @property
    def tokens_per_s(self) -> float:
        """Sampled tokens a second."""
        return self.num_tokens / self.duration_s


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn that was sampled."""

    session: str
    number: int
    prompt_ids: Sequence[int]


class Waiting(Environment):
    """An environment whose every answer takes its time.

    Args:
        load: How long.
    """

    reward_terms: ClassVar[Mapping[str, str]] = {}
    waits_outside = True

    def __init__(self, load: Load) -> None:
        super().__init__()
        self._load = load
        self.max_turns = load.turns

    def tasks(self, split: Split) -> list[Task]:
        """Return one task an episode."""
        return [Task(f"{i:05d}", f"question {i}") for i in range(self._load.episodes)]

    async def areset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> object:
        """Ask the question."""
        task = (options or {})["task"]
        assert isinstance(task, Task), "an episode has a task"
        self._task = task
        self._turn = 0
        return (Message("user", task.prompt),), {}

    def step(self, action: Message) -> StepResult:
        """Be asked asynchronously only."""
        raise NotImplementedError("this environment waits, and is stepped with astep")

    async def astep(self, action: Message) -> StepResult:
        """Answer after a while."""
        await asyncio.sleep(self._load.wait_s(self._task.id, self._turn))
        self._turn += 1
        return (Message("user", "go on"),), 0.0, False, False, {}


def compare(policy: TrainablePolicy, renderer: Renderer, *, load: Load, repeats: int = 3) -> list[Speed]:
    """Play the load in each way, alternating.

    Args:
        policy: Who samples; it must stop at no token, so that all turns are of one length.
        renderer: Turns messages into tokens.
        load: What is played.
        repeats: How often each way is measured.

    Returns:
        The speeds, in the order in which they were measured.
    """
    speeds = []
    for number in range(repeats):
        _forget(policy)
        turns, speed = _played(policy, renderer, load=load, label=f"{number}")
        speeds.append(speed)
        for name, play in (("engine", _at_once), ("lockstep", _in_lockstep)):
            _forget(policy)
            started = time.monotonic()
            num_tokens = run_blocking(play(policy, turns, load))
            speeds.append(Speed(name, num_tokens, time.monotonic() - started))
    return speeds


def _forget(policy: TrainablePolicy) -> None:
    """Let no way of playing find what another one has computed."""
    with policy.updating():
        pass


def _played(policy: Policy, renderer: Renderer, *, load: Load, label: str) -> tuple[list[_Turn], Speed]:
    config = AgentConfig(max_turns=load.turns, max_turn_tokens=load.turn_tokens, max_episode_tokens=1 << 20)
    speakers = {PLANNER: TokenSpeaker(policy, renderer, config=config)}
    agent = EpisodePlayer(react, Scene(lambda: Waiting(load), speakers, config))
    rollout = Rollout(agent, RolloutConfig(concurrency=load.concurrency, max_failed_fraction=0))
    collected = rollout.run(Waiting(load).tasks("train"), group_size=1, seed=0, label=label)
    turns = [
        _Turn(trajectory.task_id, number, full[: len(full) - num_sampled])
        for trajectory in collected.trajectories
        for number, (full, num_sampled) in enumerate(full_sequences(trajectory))
    ]
    num_tokens = sum(trajectory.num_sampled_tokens for trajectory in collected.trajectories)
    return turns, Speed("rollout", num_tokens, collected.duration_s)


async def _at_once(policy: Policy, turns: Sequence[_Turn], load: Load) -> int:
    """Ask for every turn at once, first turns first."""
    ordered = sorted(turns, key=lambda turn: turn.number)
    return sum(await asyncio.gather(*(_sample(policy, turn, load) for turn in ordered)))


async def _in_lockstep(policy: Policy, turns: Sequence[_Turn], load: Load) -> int:
    """Play waves of episodes, turn by turn, each waiting for its slowest tool call."""
    sessions = sorted({turn.session for turn in turns})
    num_tokens = 0
    for start in range(0, len(sessions), load.concurrency):
        wave = set(sessions[start : start + load.concurrency])
        for number in range(load.turns):
            step = [turn for turn in turns if turn.session in wave and turn.number == number]
            num_tokens += sum(await asyncio.gather(*(_sample(policy, turn, load) for turn in step)))
            await asyncio.sleep(max(load.wait_s(turn.session, number) for turn in step))
    return num_tokens


async def _sample(policy: Policy, turn: _Turn, load: Load) -> int:
    sampling = Sampling(max_tokens=load.turn_tokens, seed=turn.number)
    completion = await policy.generate(turn.prompt_ids, sampling, session=turn.session)
    if turn.number == load.turns - 1:
        policy.release(turn.session)
    return len(completion.token_ids)
