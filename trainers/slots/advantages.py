"""Advantages: how much better than expected each sampled token was."""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from agentflow.batch import Batch, Earned
from agentflow.columns import Columns
from agentflow.maths.advantages import broadcast_return, returns_to_go, turn_advantages, whiten
from agentflow.maths.units import Floats, unit_sizes
from agentflow.trainers.slots.base import Advantage, AdvantageSlot, Number, StateTree, number


class GroupRelative(Advantage):
    """Compare trajectories with the others at the same task: GRPO, RLOO, Dr. GRPO, Flow-GRPO by their options."""

    kind: Literal["group_relative"] = "group_relative"
    credit: Literal["trajectory", "return_to_go"] = Field(
        "trajectory", description="What a turn is credited with: its trajectory's return, or the rewards from it on."
    )
    gamma: Annotated[Number, number(ge=0, le=1)] = Field(
        1.0, description="Discount for each turn under credit=return_to_go."
    )
    unit: Literal["trajectory", "row"] = Field(
        "trajectory", description="What counts once in a group's statistics: a trajectory or a turn row."
    )
    baseline: Literal["none", "mean", "leave_one_out"] = Field("mean", description="What is subtracted within a group.")
    scale: Literal["none", "std_sample", "std_population"] = Field(
        "std_sample", description="What divides within a group: nothing, sample or population std."
    )
    epsilon: Annotated[Number, number(ge=0)] = Field(1e-6, description="Added to the group's std.")
    singleton: Literal["zero", "raw"] = Field(
        "zero", description="Advantage of a trajectory without peers: zero, or its raw return."
    )

    def credits(self, earned: Earned) -> Floats:
        """Return [K] what each turn is credited with."""
        if self.credit == "trajectory":
            return broadcast_return(earned.rewards_K)
        return returns_to_go(earned.rewards_K, gamma=float(self.gamma))

    def __call__(self, batch: Batch, columns: Columns, state: StateTree) -> Floats:
        """Normalise the turns of each group; see `Advantage`."""
        credits = [self.credits(member) for member in batch.earned]
        turns: list[Floats] = [np.zeros(0)] * len(credits)
        for group in np.unique(batch.group_N):
            members = np.flatnonzero(batch.group_N == group)
            found = turn_advantages(
                [credits[n] for n in members],
                unit=self.unit,
                baseline=self.baseline,
                scale=self.scale,
                epsilon=float(self.epsilon),
                singleton=self.singleton,
            )
            for n, advantage_K in zip(members, found, strict=True):
                turns[n] = advantage_K
        return batch.spread(np.concatenate([np.zeros(0), *turns]))


class Whiten(Advantage):
    """Normalise the advantages of the whole batch."""

    kind: Literal["whiten"] = "whiten"
    of: AdvantageSlot = Field(GroupRelative(), description="The advantage that is normalised.")
    unit: Literal["trajectory", "turn", "token"] = Field(
        "token", description="What counts once: each trajectory, turn or sampled token."
    )

    def credits(self, earned: Earned) -> Floats:
        """Return what the inner advantage credits."""
        return self.of.credits(earned)

    def __call__(self, batch: Batch, columns: Columns, state: StateTree) -> Floats:
        """Give the batch zero mean and unit variance; see `Advantage`."""
        values_S = self.of(batch, columns, state)
        if not values_S.size:
            return values_S
        sizes_S = unit_sizes(batch.unit_S(self.unit))[batch.unit_S(self.unit)]
        first_R = np.cumsum(batch.lengths_R) - batch.lengths_R
        values_R = values_S[first_R]
        if not np.array_equal(batch.spread(values_R), values_S):
            return whiten(values_S, 1.0 / sizes_S)
        # Tokens of a turn with one value are counted together.
        return batch.spread(whiten(values_R, _counts(batch, self.unit)))


def _counts(batch: Batch, unit: str) -> Floats:
    """Return [R] how often each turn counts."""
    if unit == "token":
        return batch.lengths_R.astype(np.float64)
    num_turns = unit_sizes(batch.trajectory_R)[batch.trajectory_R]
    return 1.0 / num_turns if unit == "trajectory" else np.ones(num_turns.size)


TABLE: Mapping[str, type[Advantage]] = {"group_relative": GroupRelative, "whiten": Whiten}
