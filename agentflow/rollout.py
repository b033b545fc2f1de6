"""Rollout: many episodes at once, turn by turn, no barrier between them, and nothing lost when one breaks.

    groups = await Rollout(agent, config).collect(tasks, group_size=8, seed=7, label="000012")

An episode that fails for reasons of infrastructure is retried once with the same seed, so that a passing fault
leaves no trace in the result; one that fails again stays in its group as a failed episode without a return.
"""

import asyncio
import hashlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import Field

from agentflow.attempts import Ask, Attempts, Driver, independent
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
        notes: What the plans say of the groups, in their order; empty where none says anything.
    """

    groups: tuple[Group, ...]
    num_retried: int
    num_unpunctual: int
    duration_s: float
    num_stale: int = 0
    spent: str = ""
    notes: tuple[Mapping[str, Any], ...] = ()

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """The main trajectory of every episode, group by group."""
        return tuple(trajectory for group in self.groups for trajectory in group.trajectories)


@dataclass(slots=True)
class _Tally:
    """What has been played so far."""

    mains: list[Trajectory] = field(default_factory=list)
    num_retried: int = 0
    spent: str = ""

    def add(self, episode: Episode, attempts: int) -> None:
        """Count an episode, and the attempts that it took."""
        self.mains.append(episode.main)
        self.num_retried += attempts > 1
        self.spent = self.spent or (episode.main.status.detail if is_spent(episode.main) else "")


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
        plans = [(task, independent(group_size)) for task in tasks]
        return await self.play_plans(plans, seed=seed, label=label, progress=progress)

    def run_plans(
        self,
        plans: Sequence[tuple[Task, Attempts]],
        *,
        seed: int,
        label: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> Collected:
        """Play plans from synchronous code; see `play_plans`."""
        return run_blocking(self.play_plans(plans, seed=seed, label=label, progress=progress))

    async def play_plans(
        self,
        plans: Sequence[tuple[Task, Attempts]],
        *,
        seed: int,
        label: str,
        progress: Callable[[int, int], None] | None = None,
        slots: asyncio.Semaphore | None = None,
    ) -> Collected:
        """Play a plan for each task, all of them together.

        Args:
            plans: What is posed, and how its attempts are made; one group each.
            seed: Fixes all randomness together with the label.
            label: Names this rollout within the run; it starts every trajectory's id.
            progress: Called with the number of episodes done and asked for so far, after each one.
            slots: Hold the number of episodes that run at once over several rollouts, in place of `concurrency`.

        Raises:
            RunAborted: More episodes failed than the configuration bears; not where the caller holds `slots`.
        """
        started = time.monotonic()
        gate = Gate(self._config.patience_s)
        if slots is None:
            self._player.begin(gate)
        tally = _Tally()

        async def play(ask: Ask) -> Episode:
            async with slots or nullcontext():
                episode, attempts = (_unplayed(ask, tally.spent), 1) if tally.spent else await self._play(ask, gate)
            gate.away(ask.id)
            tally.add(episode, attempts)
            if progress:
                progress(len(tally.mains), driver.num_asked)
            return episode

        concurrency = sys.maxsize if slots else self._config.concurrency
        driver = Driver(play, announce=gate.acting, concurrency=concurrency)
        named = [
            (f"{label}/{i:03d}-{task.id}", task, derive_seed(seed, label, i), plan)
            for i, (task, plan) in enumerate(plans)
        ]
        groups, outcomes = await driver.run(named)
        if not tally.spent and slots is None:
            self.check_failures(tally.mains)
        return Collected(
            groups,
            tally.num_retried,
            gate.num_expired,
            time.monotonic() - started,
            spent=tally.spent,
            notes=tuple(outcome.note for outcome in outcomes),
        )

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
