"""Masks: which tokens are learned from."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from agentflow.batch import Batch
from agentflow.columns import SAMPLER, START, Column, Columns
from agentflow.maths.mismatch import MismatchUnit, mismatch_factor, unit_log_weights
from agentflow.maths.units import Floats
from agentflow.trainers.slots.base import Mask, Number, number


class Mismatched(Mask):
    """Drop tokens whose probability differs too much between sampler and learner (masked importance sampling)."""

    kind: Literal["mismatched"] = "mismatched"
    needs: ClassVar[frozenset[Column]] = frozenset({START, SAMPLER})
    unit: MismatchUnit = Field(
        "token",
        description="What shares one ratio: a token; a turn or a trajectory, by the product of its tokens' ratios or, "
        "with _mean, by their geometric mean.",
    )
    low: Annotated[Number, number(ge=0, le=1)] = Field(0.5, description="Smallest trusted ratio.")
    high: Annotated[Number, number(ge=1)] = Field(2.0, description="Largest trusted ratio.")

    def __call__(self, batch: Batch, columns: Columns) -> Floats:
        """Return 1 where the ratio is trusted; see `Mask`."""
        log_w_S = unit_log_weights(
            (columns[START] - columns[SAMPLER]).double().cpu(),
            self.unit,
            turns_S=torch.from_numpy(batch.turn_S),
            segments_S=torch.from_numpy(batch.trajectory_S),
        )
        return mismatch_factor(log_w_S, "mis", low=float(self.low), high=float(self.high)).numpy()


TABLE: Mapping[str, type[Mask]] = {"mismatched": Mismatched}
