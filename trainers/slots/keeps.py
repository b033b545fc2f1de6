"""Keeps: which groups are learned from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from agentflow.batch import Judged
from agentflow.maths.units import Floats
from agentflow.trainers.slots.base import Credits, Keep, Now

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


TABLE: Mapping[str, type[Keep]] = {"has_signal": HasSignal}
