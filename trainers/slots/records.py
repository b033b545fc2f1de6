"""What slots are shown of a run: where it stands, what it drew and found, what an iteration was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from agentflow.batch import Earned, Judged
from agentflow.rollout import Collected
from agentflow.trajectory import Task

State: TypeAlias = Mapping[str, Any]
"""A slot's part of the run's state: JSON values."""


@dataclass(frozen=True, slots=True)
class Now:
    """Where a run stands.

    Attributes:
        iteration: The iteration under way, counted from 1.
        progress: The share of the run's iterations that are done, in [0, 1].
        success: The highest smoothed success rate so far, in [0, 1].
        seed: The run's seed; what is random is a function of it, the iteration and a name.
    """

    iteration: int = 1
    progress: float = 0.0
    success: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Draw:
    """A task to attempt.

    Attributes:
        task: The task.
        count: Attempts to make at it.
    """

    task: Task
    count: int


@dataclass(frozen=True, slots=True)
class Found:
    """What an iteration has collected so far.

    Attributes:
        judged: Every group, in the order of the draws.
        num_draws: Tasks that were drawn.
        num_retried: Episodes that failed at first.
        num_unpunctual: Decoding steps that went ahead without an episode still at work.
        num_stale: Groups that were given up because the weights had moved on.
        duration_s: Wall seconds of the rollouts.
        spent: Why no episode can be played any more; empty while they can.
    """

    judged: tuple[Judged, ...] = ()
    num_draws: int = 0
    num_retried: int = 0
    num_unpunctual: int = 0
    num_stale: int = 0
    duration_s: float = 0.0
    spent: str = ""

    @property
    def kept(self) -> tuple[Judged, ...]:
        """The groups that are learned from."""
        return tuple(each for each in self.judged if each.kept)

    def plus(self, judged: Sequence[Judged], collected: Collected) -> "Found":
        """Add what a round brought."""
        return Found(
            judged=(*self.judged, *judged),
            num_draws=self.num_draws + len(judged),
            num_retried=self.num_retried + collected.num_retried,
            num_unpunctual=self.num_unpunctual + collected.num_unpunctual,
            num_stale=self.num_stale + collected.num_stale,
            duration_s=self.duration_s + collected.duration_s,
            spent=collected.spent,
        )

    @property
    def earned(self) -> tuple[Earned, ...]:
        """Every trajectory that earned something, of groups that are kept or not."""
        return tuple(member for each in self.judged for member in each.earned)


@dataclass(frozen=True, slots=True)
class Seen:
    """An iteration that is over, for those that remember.

    Attributes:
        now: Where the run stood.
        found: What was collected.
        metrics: What was logged about it, by name; nothing in an algorithm may depend on a time.
    """

    now: Now
    found: Found
    metrics: Mapping[str, Any]
