"""Masks: which tokens are learned from."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from agentflow.batch import Batch
from agentflow.columns import SAMPLER, START, START_ENTROPY, Column, Columns
from agentflow.config import Config
from agentflow.maths.entropies import above_otsu, top_share
from agentflow.maths.mismatch import MismatchUnit, mismatch_factor, unit_log_weights
from agentflow.maths.units import Floats, Units
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


class ForkRule(Config):
    """Which tokens of a trajectory are forks, by the entropies they were drawn with."""

    by: Literal["otsu", "share"] = Field(
        "otsu", description="Those above the trajectory's Otsu threshold, or the share of highest entropy."
    )
    share: float = Field(
        0.2, gt=0, le=1, description="That share of a trajectory's tokens, rounded up, under by=share."
    )

    def forks(self, entropies_S: Floats, trajectories_S: Units) -> NDArray[np.bool_]:
        """Return [S] whether a token is a fork; none are where all entropies are equal."""
        if self.by == "share":
            return top_share(entropies_S, trajectories_S, share=self.share)
        return above_otsu(entropies_S, trajectories_S)


class Forks(Mask, ForkRule):
    """Learn from the tokens at which the policy was undecided: SPINE (2511.17938)."""

    kind: Literal["forks"] = "forks"
    needs: ClassVar[frozenset[Column]] = frozenset({START_ENTROPY})

    def __call__(self, batch: Batch, columns: Columns) -> Floats:
        """Return 1 at forks; see `Mask`."""
        entropies_S = columns[START_ENTROPY].double().cpu().numpy()
        return self.forks(entropies_S, batch.trajectory_S).astype(np.float64)


TABLE: Mapping[str, type[Mask]] = {"mismatched": Mismatched, "forks": Forks}
