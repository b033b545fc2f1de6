"""What is remembered of each task: a table of plain rows that a checkpoint can hold, and pure steps over it.

Axis Q: tasks. Decay is applied on reading: a task that is not played costs nothing, however many there are. One table
serves every rule that reads it: Beta counts, forgetting by age, hint levels, the last rewards and the last attempt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import numpy as np

from agentflow.maths.units import Floats


class Row(TypedDict):
    """What is known of one task; JSON-able.

    Attributes:
        alpha: Discounted sum of rewards in [0, 1], as it was when last played.
        beta: Discounted sum of one minus them.
        played: Iteration in which the task was last played.
        attempts: All attempts ever.
        level: Level of hints that the task has reached.
        rewards: The last rewards, oldest first.
        last: Id of the last attempt, by which it is found among the stored ones; empty if there is none.
    """

    alpha: float
    beta: float
    played: int
    attempts: int
    level: int
    rewards: list[float]
    last: str


Table: TypeAlias = Mapping[str, Row]


@dataclass(frozen=True, slots=True)
class Counts:
    """Pseudo-counts of several tasks at one time.

    Attributes:
        alpha_Q: [Q] of successes.
        beta_Q: [Q] of failures.
    """

    alpha_Q: Floats
    beta_Q: Floats

    @property
    def sizes_Q(self) -> Floats:
        """How much is known of each task, [Q] effective attempts."""
        return self.alpha_Q + self.beta_Q

    @property
    def means_Q(self) -> Floats:
        """The success rate of each task, [Q]; nan where nothing is known."""
        sizes_Q = self.sizes_Q
        unknown_Q: Floats = np.full(len(sizes_Q), np.nan)
        return np.divide(self.alpha_Q, sizes_Q, out=unknown_Q, where=sizes_Q > 0)


def read_counts(table: Table, tasks: Sequence[str], *, iteration: int, idle: float = 1.0) -> Counts:
    """Return the counts of tasks as an iteration finds them, before it plays.

        alpha * idle^n      n iterations since the last one that played the task, itself not counted

    That is VADE's slow decay of what was not selected (2511.18902, lambda_2), applied at once. An unknown task has 0.

    Args:
        table: The rows so far.
        tasks: Q task ids.
        iteration: The iteration that reads.
        idle: What is kept in each iteration without the task.
    """
    rows = [table.get(task) for task in tasks]
    kept = [0.0 if row is None else idle ** max(0, iteration - row["played"] - 1) for row in rows]
    alpha_Q = [0.0 if row is None else row["alpha"] * keep for row, keep in zip(rows, kept, strict=True)]
    beta_Q = [0.0 if row is None else row["beta"] * keep for row, keep in zip(rows, kept, strict=True)]
    return Counts(np.array(alpha_Q, dtype=np.float64), np.array(beta_Q, dtype=np.float64))


def observed(
    table: Table,
    task: str,
    rewards: Sequence[float],
    *,
    iteration: int,
    keep: float = 1.0,
    idle: float = 1.0,
    ring: int = 16,
    last: str | None = None,
) -> dict[str, Row]:
    """Return the table after a task was played; the one that was passed stays as it is.

        alpha <- keep * alpha + sum(r)          beta <- keep * beta + sum(1 - r)

    With `keep` and `idle` it is VADE (2511.18902, lambda_1 and lambda_2); with a keep from `forgetting` and one reward
    it is SPO's tracker (2509.13232), whose mean moves by (r - v) / (keep * (alpha + beta) + 1).

    Args:
        table: The rows so far.
        task: The task's id.
        rewards: Rewards in [0, 1] of its attempts in this iteration; failed ones left out. None changes nothing.
        iteration: The iteration that played it.
        keep: What is kept of the counts when the task is played.
        idle: As in `read_counts`.
        ring: Rewards that are remembered.
        last: Id of its last attempt; the old one stays if left out.
    """
    if not rewards:
        return dict(table)
    assert min(rewards) >= 0.0 and max(rewards) <= 1.0, "pseudo-counts need rewards in [0, 1]"
    counts = read_counts(table, [task], iteration=iteration, idle=idle)
    before = table.get(task)
    total = float(sum(rewards))
    row = Row(
        alpha=keep * float(counts.alpha_Q[0]) + total,
        beta=keep * float(counts.beta_Q[0]) + len(rewards) - total,
        played=iteration,
        attempts=(0 if before is None else before["attempts"]) + len(rewards),
        level=0 if before is None else before["level"],
        rewards=[*([] if before is None else before["rewards"]), *map(float, rewards)][-ring:],
        last=last if last is not None else ("" if before is None else before["last"]),
    )
    return {**table, task: row}


def with_level(table: Table, task: str, level: int) -> dict[str, Row]:
    """Return the table with another level of hints for a task that was played before."""
    row = table[task].copy()
    row["level"] = level
    return {**table, task: row}


def forgetting(drift: float, *, half: float, low: float = 0.875, high: float = 0.96) -> float:
    """Return how much of a task's counts is kept after the policy has moved (SPO, 2509.13232).

        2^(-drift / half)      bounded by low and high

    Args:
        drift: How far the policy has moved since the task was last played: the paper takes the mean change of its last
            response's log-probs, the number of weight updates since then is the cheaper measure.
        half: Drift after which half is kept, in the same unit.
        low: The least that is kept.
        high: The most.
    """
    return float(min(max(2.0 ** (-drift / half), low), high))


def first_counts(successes: float, attempts: int, *, low: float = 0.875) -> tuple[float, float]:
    """Return a task's first counts from rewards gathered before training (SPO, 2509.13232, as coded).

        n = 1 / (1 - low)      alpha = n (successes + 1/2) / (attempts + 1)      beta = n - alpha

    n is what the counts of a task that is always kept by `low` tend to.
    """
    size = 1.0 / (1.0 - low)
    alpha = size * (successes + 0.5) / (attempts + 1)
    return alpha, size - alpha


def next_level(level: int, success_rate: float, *, raise_at: float, lower_above: float, levels: int) -> int:
    """Return the level of hints of a task's next group: SAGE-light (2602.03143).

        one more    where the rate is at most `raise_at` (the code's rule; the paper's is "below alpha")
        one less    where it is above `lower_above`; 1 never lowers, as the paper has it

    Args:
        level: The level of the group that was played, 0 for none.
        success_rate: Its share of successes.
        raise_at: Rate up to which the next group gets more help.
        lower_above: Rate above which it gets less.
        levels: The highest level.
    """
    if success_rate <= raise_at:
        return min(level + 1, levels)
    return max(level - 1, 0) if success_rate > lower_above else level
