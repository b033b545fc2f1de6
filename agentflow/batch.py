"""What is learned from: judged groups, and a batch of their trajectories laid out on one axis of sampled tokens.

Axes: S sampled tokens in canonical order (trajectory, turn, token), R turns, N trajectories, K turns of one of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentflow.maths.units import Floats, Units
from agentflow.rewards import ShapedTrajectory
from agentflow.trajectory import Group, Trajectory


@dataclass(frozen=True, slots=True)
class Earned:
    """A trajectory and what it earned, by name.

    Attributes:
        trajectory: What was sampled; it has at least one turn.
        shaped: What the run's `rewards` paid for it, with the ledger.
        terms: [K] for each turn, what each reward term paid, in the order in which they are added up. NaN says that
            a term does not apply here; it is left out, never 0.
        success: Whether the task was solved; None where the environment does not say.
    """

    trajectory: Trajectory
    shaped: ShapedTrajectory
    terms: tuple[Mapping[str, float], ...]
    success: bool | None = None

    @property
    def rewards_K(self) -> Floats:
        """[K] the reward of each turn: the sum of its terms."""
        return np.array([sum((v for v in turn.values() if v == v), 0.0) for turn in self.terms], dtype=np.float64)

    @property
    def lengths_K(self) -> tuple[int, ...]:
        """[K] the number of sampled tokens of each turn."""
        return tuple(len(turn.completion.token_ids) for turn in self.trajectory.turns)

    def paid(self, name: str, amount: float) -> "Earned":
        """Pay a term in the last turn."""
        *before, last = self.terms
        return replace(self, terms=(*before, {**last, name: amount}))


@dataclass(frozen=True, slots=True)
class Judged:
    """A group and what it earned.

    Attributes:
        group: What was played, failed episodes included.
        earned: What can be learned from: the scored trajectories that have a turn.
        cause: Why there is nothing to learn from the group; empty where there is.
        kept: Whether it is learned from.
        times: How often it stands for itself; its trajectories are weighted by it and never copied.
        note: What its plan says of it, for statistics: JSON values.
    """

    group: Group
    earned: tuple[Earned, ...]
    cause: str = ""
    kept: bool = True
    times: int = 1
    note: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Batch:
    """The trajectories of kept groups on one token axis, with the maps from tokens to larger units.

    Attributes:
        earned: [N] the trajectories, group by group.
        group_N: [N] the index of each one's group.
        times_N: [N] how often each counts.
    """

    earned: tuple[Earned, ...]
    group_N: Units
    times_N: Units

    @cached_property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """[N] what was sampled."""
        return tuple(each.trajectory for each in self.earned)

    @cached_property
    def lengths_R(self) -> Units:
        """[R] the number of sampled tokens of each turn."""
        return np.array([length for each in self.earned for length in each.lengths_K], dtype=np.intp)

    @cached_property
    def trajectory_R(self) -> Units:
        """[R] the index of each turn's trajectory."""
        return np.repeat(np.arange(len(self.earned)), [len(each.terms) for each in self.earned])

    @cached_property
    def turn_S(self) -> Units:
        """[S] the index of each token's turn."""
        return np.repeat(np.arange(self.lengths_R.size), self.lengths_R)

    @cached_property
    def trajectory_S(self) -> Units:
        """[S] the index of each token's trajectory."""
        return self.trajectory_R[self.turn_S]

    @cached_property
    def group_S(self) -> Units:
        """[S] the index of each token's group."""
        return self.group_N[self.trajectory_S]

    @cached_property
    def tokens_S(self) -> NDArray[np.int64]:
        """[S] the sampled tokens."""
        return np.array([i for t in self.trajectories for turn in t.turns for i in turn.completion.token_ids], np.int64)

    @cached_property
    def behaviour_S(self) -> Floats:
        """[S] natural log of the probability with which each token was sampled, as the sampler reported it."""
        return np.array([x for t in self.trajectories for turn in t.turns for x in turn.completion.logprobs])

    @cached_property
    def returns_N(self) -> Floats:
        """[N] the return of each trajectory: the sum of its rewards."""
        return np.array([float(each.rewards_K.sum()) for each in self.earned])

    def unit_S(self, name: str) -> Units:
        """Return the unit map of `token`, `turn`, `trajectory` or `group`, [S]."""
        if name == "token":
            return np.arange(self.turn_S.size)
        maps: dict[str, Units] = {"turn": self.turn_S, "trajectory": self.trajectory_S, "group": self.group_S}
        return maps[name]

    def spread(self, values_R: Floats) -> Floats:
        """Give each token the value of its turn: [R] to [S]."""
        assert values_R.shape == self.lengths_R.shape, "one value for each turn"
        return np.repeat(values_R, self.lengths_R)

    def select(self, members: Sequence[int]) -> "Batch":
        """Return the batch of some of the trajectories, in the given order."""
        index = np.asarray(members, dtype=np.intp)
        return Batch(tuple(self.earned[i] for i in index), self.group_N[index], self.times_N[index])

    def shares(self, count: int, *, whole_groups: bool = False) -> list["Share"]:
        """Cut the batch into so many parts, as even as possible; none is empty.

        Args:
            count: Most parts.
            whole_groups: Keep the trajectories of a group together, for what compares them within a part.
        """
        _, unit_N = (
            np.unique(self.group_N, return_inverse=True) if whole_groups else (None, np.arange(len(self.earned)))
        )
        units = np.array_split(np.arange(unit_N.max(initial=-1) + 1), count)
        parts = [np.flatnonzero(np.isin(unit_N, part)).tolist() for part in units if part.size]
        batches = [self] if len(parts) == 1 else [self.select(part) for part in parts]
        ends = np.cumsum([batch.turn_S.size for batch in batches]).tolist()
        return [Share(batch, slice(end - batch.turn_S.size, end)) for batch, end in zip(batches, ends, strict=True)]


@dataclass(frozen=True, slots=True)
class Share:
    """What one update learns from.

    Attributes:
        batch: Some of an iteration's trajectories.
        span: Their tokens on the axis of all of them.
    """

    batch: Batch
    span: slice


def lay_out(judged: Sequence[Judged]) -> Batch:
    """Lay the trajectories of the kept groups out on one axis."""
    kept = [each for each in judged if each.kept]
    earned = tuple(member for each in kept for member in each.earned)
    counts = [len(each.earned) for each in kept]
    return Batch(earned, np.repeat(np.arange(len(kept)), counts), np.repeat([each.times for each in kept], counts))
