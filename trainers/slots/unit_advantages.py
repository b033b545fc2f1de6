"""Advantages of other units than the trajectory, of named terms, of what is remembered, and sums of advantages."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from agentflow.batch import Batch, Earned
from agentflow.columns import Columns
from agentflow.maths.unit_advantages import combined, decoupled, relative, smoothing, step_returns, tracked
from agentflow.maths.units import Floats, anchors, spread
from agentflow.messages import in_words
from agentflow.trainers.slots.advantages import GroupRelative
from agentflow.trainers.slots.base import Advantage, AdvantageSlot, MaskSlot, Number, StateTree, number
from agentflow.trainers.slots.statistic import rows_in, tracked_means

Baseline = Literal["none", "mean", "leave_one_out"]
Scale = Literal["none", "std_sample", "std_population"]
_BASELINE = "What is subtracted within a group."
_SCALE = "What divides within a group: nothing, sample or population std."


def to_tokens(values_N: Floats, batch: Batch) -> Floats:
    """Give each token the value of its trajectory; what does not apply (nan) moves nothing: 0."""
    return np.nan_to_num(spread(values_N, batch.trajectory_S), nan=0.0)


class Decoupled(Advantage):
    """Normalise each named term of the reward within its group, then add them up: GDPO (2601.05242)."""

    kind: Literal["decoupled"] = "decoupled"
    weights: dict[str, float] = Field(
        {}, description="Weight of each term's advantage, by its name; terms that are not named weigh 1."
    )
    baseline: Baseline = Field("mean", description=_BASELINE)
    scale: Scale = Field("std_sample", description=_SCALE)
    epsilon: Annotated[Number, number(ge=0)] = Field(1e-4, description="Added to the std of each term.")

    def __call__(self, batch: Batch, columns: Columns, state: StateTree) -> Floats:
        """Compare trajectories term by term; see `Advantage`."""
        names = sorted({name for each in batch.earned for turn in each.terms for name in turn})
        if not names:
            return np.zeros(batch.turn_S.size)
        terms_CN = [np.array([term_of(each, name) for each in batch.earned]) for name in names]
        weights_C = [self.weights.get(name, 1.0) for name in names]
        found_N = decoupled(
            terms_CN,
            batch.group_N,
            weights_C,
            baseline=self.baseline,
            scale=self.scale,
            epsilon=float(self.epsilon),
        )
        return to_tokens(found_N, batch)


def term_of(earned: Earned, name: str) -> float:
    """Return what a term paid over a trajectory; nan where no turn reports it."""
    paid = [turn[name] for turn in earned.terms if name in turn and not np.isnan(turn[name])]
    return float(sum(paid)) if paid else float("nan")


class Anchored(Advantage):
    """Compare what followed the same observation of a task: the step level of GiGPO (2505.10978)."""

    kind: Literal["anchored"] = "anchored"
    gamma: Annotated[Number, number(ge=0, le=1)] = Field(0.95, description="Discount for each turn.")
    similarity: float = Field(
        1.0, gt=0, le=1, description="Likeness from which on two observations are the same; 1 asks for equality."
    )
    baseline: Baseline = Field("mean", description=_BASELINE)
    scale: Scale = Field("std_sample", description=_SCALE)
    epsilon: Annotated[Number, number(ge=0)] = Field(1e-6, description="Added to the std.")

    def __call__(self, batch: Batch, columns: Columns, state: StateTree) -> Floats:
        """Compare the turns that saw the same; see `Advantage`."""
        if not batch.earned:
            return np.zeros(0)
        rewards_R = np.concatenate([each.rewards_K for each in batch.earned])
        seen = ["\n".join(in_words(m).content for m in turn.messages) for t in batch.trajectories for turn in t.turns]
        found_R = relative(
            step_returns(rewards_R, batch.trajectory_R, gamma=float(self.gamma)),
            anchors(seen, batch.group_N[batch.trajectory_R], similarity=self.similarity),
            baseline=self.baseline,
            scale=self.scale,
            epsilon=float(self.epsilon),
        )
        return batch.spread(found_R)


class Sum(Advantage):
    """Add advantages up, each with a weight: GiGPO is the episode's and the step's."""

    kind: Literal["sum"] = "sum"
    of: tuple[AdvantageSlot, ...] = Field((GroupRelative(),), min_length=1, description="The advantages.")
    weights: tuple[Annotated[Number, number()], ...] = Field((1.0,), description="The weight of each, in their order.")

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.of) != len(self.weights):
            raise ValueError(f"{len(self.of)} advantages need as many weights, not {len(self.weights)}")
        return self

    def credits(self, earned: Earned) -> Floats:
        """Return what the first of them credits."""
        return self.of[0].credits(earned)

    def __call__(self, batch: Batch, columns: Columns, state: StateTree) -> Floats:
        """Add them up on the tokens; see `Advantage`."""
        parts = [each(batch, columns, state) for each in self.of]
        return combined(parts, [float(weight) for weight in self.weights])


class Calibrated(Advantage):
    """Compare trajectories as if the group held some more returns: NGRPO (2509.18851) adds one of the highest."""

    kind: Literal["calibrated"] = "calibrated"
    virtual: tuple[float, ...] = Field(
        (1.0,), description="Returns that count in the mean and the std of every group and are learned from nowhere."
    )
    baseline: Baseline = Field("mean", description=_BASELINE)
    scale: Scale = Field("std_sample", description=_SCALE)
    epsilon: Annotated[Number, number(ge=0)] = Field(1e-6, description="Added to the std.")

    def __call__(self, batch: Batch, columns: Columns, state: StateTree) -> Floats:
        """Compare trajectories with the others and with what was added; see `Advantage`."""
        found_N = relative(
            batch.returns_N,
            batch.group_N,
            baseline=self.baseline,
            scale=self.scale,
            epsilon=float(self.epsilon),
            virtual=self.virtual,
        )
        return to_tokens(found_N, batch)


class Tracked(Advantage):
    """Compare each return with what its task used to yield, then whiten: SPO, single-stream (2509.13232)."""

    kind: Literal["tracked"] = "tracked"
    reads: ClassVar[frozenset[str]] = frozenset({"tasks"})
    unknown: float = Field(0.5, ge=0, le=1, description="What a task is taken to yield that was never played.")
    whiten: bool = Field(True, description="Whether the batch is then given zero mean and unit variance.")

    def __call__(self, batch: Batch, columns: Columns, state: StateTree) -> Floats:
        """Compare trajectories with the tracked mean of their task, as it was before them; see `Advantage`."""
        tasks = [trajectory.task_id for trajectory in batch.trajectories]
        means_N = np.nan_to_num(tracked_means(rows_in(state), tasks), nan=self.unknown)
        return to_tokens(tracked(batch.returns_N, means_N, epsilon=1e-8 if self.whiten else None), batch)


class Smoothed(Advantage):
    """Damp the advantages of groups that stand for themselves several times ("VSPO-style", 2512.07478)."""

    kind: Literal["smoothed"] = "smoothed"
    of: AdvantageSlot = Field(GroupRelative(), description="The advantage that is damped.")
    power: Annotated[Number, number(ge=0)] = Field(
        1.0, description="A group that is used n times is damped by n^-power: 1 gives it the weight of one, 0 of all n."
    )

    def credits(self, earned: Earned) -> Floats:
        """Return what the inner advantage credits."""
        return self.of.credits(earned)

    def __call__(self, batch: Batch, columns: Columns, state: StateTree) -> Floats:
        """Multiply by the factor of each group; see `Advantage`."""
        times_S = batch.times_N.astype(np.float64)[batch.trajectory_S]
        return self.of(batch, columns, state) * smoothing(times_S, power=float(self.power))


class Restricted(Advantage):
    """Credit some tokens only, and leave the denominators as they are: SPINE's forks (2511.17938)."""

    kind: Literal["restricted"] = "restricted"
    of: AdvantageSlot = Field(GroupRelative(), description="The advantage.")
    to: MaskSlot = Field(
        description="The tokens that keep it; all others get 0. As a mask of the weights it would "
        "shrink the denominators too."
    )

    def credits(self, earned: Earned) -> Floats:
        """Return what the inner advantage credits."""
        return self.of.credits(earned)

    def __call__(self, batch: Batch, columns: Columns, state: StateTree) -> Floats:
        """Multiply by the mask; see `Advantage`."""
        return self.of(batch, columns, state) * self.to(batch, columns)


TABLE: Mapping[str, type[Advantage]] = {
    "decoupled": Decoupled,
    "anchored": Anchored,
    "sum": Sum,
    "calibrated": Calibrated,
    "tracked": Tracked,
    "smoothed": Smoothed,
    "restricted": Restricted,
}
