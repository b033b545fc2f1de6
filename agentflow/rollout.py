"""Rollout: many episodes at once, turn by turn, no barrier between them, and nothing lost when one breaks.

    groups = await Rollout(agent, config).collect(tasks, group_size=8, seed=7, label="000012")

An episode that fails for reasons of infrastructure is retried once with the same seed, so that a passing fault
leaves no trace in the result; one that fails again stays in its group as a failed episode without a return.
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import Field

from agentflow.concurrency import run_blocking
from agentflow.config import Config
from agentflow.errors import BudgetFailure, RunAborted
from agentflow.gate import Gate
from agentflow.trajectory import Episode, Group, Status, Task, Trajectory

_log = logging.getLogger(__name__)


class RolloutConfig(Config):
    """How episodes are collected."""

    concurrency: int = Field(128, ge=1, description="Most episodes that run at once.")
    retries: int = Field(1, ge=0, description="Times that a failed episode is tried again, with the same seed.")
    patience_s: float = Field(
        2.0,
        ge=0,
        description="Seconds that a decoding step waits for episodes whose environment is working in this process. "
        "While it is never exceeded, batches, and so the whole run, are a function of the seed.",
    )
    max_failed_fraction: float = Field(
        0.5, ge=0, le=1, description="Share of failed episodes in one iteration beyond which the run stops."
    )


@dataclass(frozen=True, slots=True)
class Ask:
    """One attempt to be played.

    Attributes:
        id: The id of the episode's main trajectory.
        task: What is posed.
        seed: Fixes the environment's randomness, the same for all of a group; with the id, the sampler's.
    """

    id: str
    task: Task
    seed: int


class Player(Protocol):
    """Whoever plays episodes: `play.EpisodePlayer`."""

    async def play(self, ask: Ask, gate: Gate) -> Episode:
        """Play one episode; broken infrastructure is a failed episode, never an exception."""
        ...

    def begin(self, gate: Gate) -> None:
        """Prepare for a round of episodes that share a gate."""
        ...


@dataclass(frozen=True, slots=True)
class Collected:
    """What one rollout brought.

    Attributes:
        groups: One group a task, in the order of the tasks.
        num_retried: Episodes that failed at first.
        num_unpunctual: Decoding steps that went ahead without an episode still at work.
        duration_s: Wall seconds.
        num_stale: Groups that were given up because the weights had moved on.
        spent: Why no episode can be played any more, where a frozen model has used up its tokens; empty otherwise.
    """

    groups: tuple[Group, ...]
    num_retried: int
    num_unpunctual: int
    duration_s: float
    num_stale: int = 0
    spent: str = ""

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """The main trajectory of every episode, group by group."""
        return tuple(trajectory for group in self.groups for trajectory in group.trajectories)


class Rollout:
    """Collect groups of episodes.

    Args:
        player: Plays the episodes.
        config: Concurrency, retries, patience and the failures that a run bears.
    """

    def __init__(self, player: Player, config: RolloutConfig) -> None:
        self._player = player
        self._config = config

    def run(
        self,
        tasks: Sequence[Task],
        *,
        group_size: int,
        seed: int,
        label: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> Collected:
        """Collect from synchronous code; see `collect`."""
        return run_blocking(self.collect(tasks, group_size=group_size, seed=seed, label=label, progress=progress))

    async def collect(
        self,
        tasks: Sequence[Task],
        *,
        group_size: int,
        seed: int,
        label: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> Collected:
        """Play `group_size` episodes of each task.

        Args:
            tasks: What is posed; one group each.
            group_size: Episodes of a group.
            seed: Fixes all randomness together with the label.
            label: Names this rollout within the run; it starts every trajectory's id.
            progress: Called with the number of episodes done and in all, after each one.

        Raises:
            RunAborted: More episodes failed than the configuration bears.
        """
        started = time.monotonic()
        asks = [
            Ask(f"{label}/{i:03d}-{task.id}/{k}", task, derive_seed(seed, label, i))
            for i, task in enumerate(tasks)
            for k in range(group_size)
        ]
        gate = Gate(self._config.patience_s)
        self._player.begin(gate)
        queue = deque(enumerate(asks))
        played: list[Episode | None] = [None] * len(asks)
        num_retried = 0
        num_done = 0
        spent = ""

        async def work() -> None:
            nonlocal num_retried, num_done, spent
            # No await between one episode's end and the next one's start: the gate must not see a gap.
            while queue:
                index, ask = queue.popleft()
                episode, attempts = (_unplayed(ask, spent), 1) if spent else await self._play(ask, gate)
                spent = spent or (episode.main.status.detail if is_spent(episode.main) else "")
                played[index] = episode
                num_retried += attempts > 1
                num_done += 1
                if progress:
                    progress(num_done, len(asks))

        await asyncio.gather(*(work() for _ in range(min(self._config.concurrency, len(asks)))))
        episodes = [episode for episode in played if episode is not None]
        assert len(episodes) == len(asks), "everything that is asked for is played"
        if not spent:
            self.check_failures([episode.main for episode in episodes])
        groups = tuple(
            Group(task, tuple(episodes[i * group_size : (i + 1) * group_size])) for i, task in enumerate(tasks)
        )
        return Collected(groups, num_retried, gate.num_expired, time.monotonic() - started, spent=spent)

    async def play_group(
        self, task: Task, *, group_size: int, seed: int, label: str, slots: asyncio.Semaphore
    ) -> tuple[Group, int]:
        """Play one group on its own, for a policy that needs no gate.

        Args:
            task: What is posed.
            group_size: Episodes of the group.
            seed: Fixes all randomness together with the label.
            label: Starts every trajectory's id.
            slots: Hold the number of episodes that run at once, over all groups.

        Returns:
            The group, and the number of its episodes that failed at first.
        """
        gate = Gate(self._config.patience_s)

        async def play(ask: Ask) -> tuple[Episode, int]:
            async with slots:
                return await self._play(ask, gate)

        environment_seed = derive_seed(seed, label, 0)
        asks = [Ask(f"{label}-{task.id}/{k}", task, environment_seed) for k in range(group_size)]
        played = await asyncio.gather(*map(play, asks))
        group = Group(task, tuple(episode for episode, _ in played))
        return group, sum(attempts > 1 for _, attempts in played)

    async def _play(self, ask: Ask, gate: Gate) -> tuple[Episode, int]:
        """Play an attempt with its retries; the episode and the number of times that it was played."""
        for attempt in range(1, self._config.retries + 2):
            gate.acting(ask.id)
            episode = await self._player.play(ask, gate)
            gate.away(ask.id)
            status = episode.main.status
            if status.kind != "failed" or is_spent(episode.main):
                break
            _log.warning("episode %s, attempt %d: %s", ask.id, attempt, status)
        return episode, attempt

    def check_failures(self, trajectories: Sequence[Trajectory]) -> None:
        """Stop a run that has lost too many episodes.

        Raises:
            RunAborted: More of these failed than the configuration bears.
        """
        failed = [trajectory.status for trajectory in trajectories if trajectory.status.kind == "failed"]
        if len(failed) <= self._config.max_failed_fraction * len(trajectories):
            return
        causes = ", ".join(f"{count} x {cause}" for cause, count in Counter(s.reason for s in failed).most_common())
        raise RunAborted(
            f"{len(failed)} of {len(trajectories)} episodes failed ({causes}); the first: {failed[0].detail}. "
            f"The run bears {self._config.max_failed_fraction:.0%} (rollout.max_failed_fraction)."
        )


def is_spent(trajectory: Trajectory) -> bool:
    """Say whether an episode failed because a frozen model has used up its tokens."""
    return (trajectory.status.kind, trajectory.status.reason) == ("failed", BudgetFailure.cause)


def _unplayed(ask: Ask, spent: str) -> Episode:
    status = Status("failed", BudgetFailure.cause, f"not played: {spent}")
    return Episode((Trajectory(ask.id, ask.task.id, ask.seed, turns=(), status=status, success=None),))


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends on every part and on nothing else, the same on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
