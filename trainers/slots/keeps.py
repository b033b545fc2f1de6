"""Keeps: which groups are learned from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from agentflow.batch import Judged
from agentflow.maths.choices import replacements
from agentflow.maths.unit_advantages import group_values
from agentflow.maths.units import Floats, Units
from agentflow.rollout import derive_seed
from agentflow.trainers.slots.base import Credits, Keep, Number, number
from agentflow.trainers.slots.records import Now

_EQUAL_RETURNS = 1e-9


class HasSignal(Keep):
    """Name the groups without a learning signal: fewer than two trajectories, or all with the same credit."""

    kind: Literal["has_signal"] = "has_signal"
    drop: bool = Field(
        True, description="Whether they are left out, and refilled by the sampler; otherwise they are only counted."
    )

    def __call__(self, judged: Sequence[Judged], credits: Credits, now: Now) -> Sequence[Judged]:
        """Mark them with `too_few`, `all_solved`, `none_solved` or `equal_returns`."""
        return [self._marked(each, no_signal(each, credits(each))) for each in judged]

    def _marked(self, judged: Judged, cause: str) -> Judged:
        if not cause or judged.cause:
            return judged
        return replace(judged, cause=cause, kept=judged.kept and not self.drop)


def no_signal(judged: Judged, credits_NK: Sequence[Floats]) -> str:
    """Say why a group's trajectories cannot be told apart; empty where they can.

    Args:
        judged: The group.
        credits_NK: For each trajectory, [K] what its turns are credited with.
    """
    if len(judged.earned) < 2:
        return "too_few"
    credits = np.concatenate(credits_NK)
    if np.ptp(credits) > _EQUAL_RETURNS * max(1.0, float(np.abs(credits).max())):
        return ""
    solved = {member.success for member in judged.earned}
    if solved == {True}:
        return "all_solved"
    return "none_solved" if solved == {False} else "equal_returns"


class NotMastered(Keep):
    """Leave out groups all of whose trajectories reached the highest return, and no other: NGRPO (2509.18851)."""

    kind: Literal["not_mastered"] = "not_mastered"
    highest: Annotated[Number, number()] = Field(1.0, description="The highest return that can be had.")

    def __call__(self, judged: Sequence[Judged], credits: Credits, now: Now) -> Sequence[Judged]:
        """Mark them with `all_solved`, and those without a trajectory with `too_few`."""
        return [self._marked(each) for each in judged]

    def _marked(self, judged: Judged) -> Judged:
        returns = [float(member.rewards_K.sum()) for member in judged.earned]
        if not returns:
            return replace(judged, cause=judged.cause or "too_few", kept=False)
        if min(returns) < float(self.highest):
            return judged
        return replace(judged, cause=judged.cause or "all_solved", kept=False)


class ReplacedByValue(Keep):
    """Give the places of groups that are left out to the most valuable others: "VSPO-style" (2512.07478).

    A group that takes a place counts once more; nothing is copied. The paper's own rule is not published: here places
    go to groups at random, in proportion to (R_max - mean) * std of their returns.
    """

    kind: Literal["replaced_by_value"] = "replaced_by_value"
    highest: float | None = Field(
        1.0, description="The highest return that can be had; null takes each group's own highest."
    )
    spread: Literal["std", "variance"] = Field(
        "std", description="What the distance from the highest return is multiplied by; both of the population."
    )

    def __call__(self, judged: Sequence[Judged], credits: Credits, now: Now) -> Sequence[Judged]:
        """Raise `times` of the groups that take a place."""
        kept = [each for each in judged if each.kept]
        owners = np.repeat(np.arange(len(kept)), [len(each.earned) for each in kept])
        times_Q = self._places(returns_of(kept), owners, count=len(judged) - len(kept), now=now)
        more = iter(times_Q.tolist())
        return [replace(each, times=each.times + next(more, 0)) if each.kept else each for each in judged]

    def _places(self, returns: Floats, owners: Units, *, count: int, now: Now) -> Units:
        values_Q = group_values(returns, owners, highest=self.highest, spread=self.spread)
        generator = np.random.default_rng(derive_seed(now.seed, self.kind, now.iteration))
        return replacements(values_Q, count, generator=generator)


def returns_of(judged: Sequence[Judged]) -> Floats:
    """Return the returns of all trajectories, group by group."""
    return np.array([float(member.rewards_K.sum()) for each in judged for member in each.earned], dtype=np.float64)


TABLE: Mapping[str, type[Keep]] = {
    "has_signal": HasSignal,
    "not_mastered": NotMastered,
    "replaced_by_value": ReplacedByValue,
}
