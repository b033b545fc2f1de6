"""Regularisers of entropy at the tokens where the policy is undecided (SPINE)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from agentflow.columns import ENTROPY, START_ENTROPY, Column
from agentflow.maths.entropies import band_hinges, bands
from agentflow.maths.units import dense
from agentflow.trainers.slots.base import LossTerm, Number, Tokens, Value, number
from agentflow.trainers.slots.masks import ForkRule


class EntropyBand(LossTerm):
    """Keep the entropy of forks within a band of their own trajectory: SPINE (2511.17938).

    Forks and bands are those of the weights that the iteration started from. A band is taken over a trajectory, and the
    authors' coefficients are not known.
    """

    kind: Literal["entropy_band"] = "entropy_band"
    metric: ClassVar[str] = "entropy_band"
    forks: ForkRule = Field(ForkRule(), description="Which tokens are forks.")
    band: Literal["median", "quantiles"] = Field(
        "median",
        description="From 1.4826 median deviations below the median of the forks' entropies to it, or from their 10 % "
        "to their 50 % quantile.",
    )
    below: Annotated[Number, number(ge=0)] = Field(0.01, description="Price of each nat below the band.")
    above: Annotated[Number, number(ge=0)] = Field(0.01, description="Price of each nat above it.")

    @property
    def needs(self) -> frozenset[Column]:
        """The entropies that forks and bands are taken from."""
        return frozenset({START_ENTROPY})

    def __call__(self, tokens: Tokens) -> Value:
        """Return the weighted price; see `LossTerm`."""
        before_S = tokens[START_ENTROPY].double().cpu().numpy()
        trajectories_S = dense(tokens.units["trajectory"].cpu().numpy())
        forks_S = self.forks.forks(before_S, trajectories_S)
        edges = bands(before_S, forks_S, trajectories_S, by=self.band)
        low_S, high_S = (torch.from_numpy(edge).to(tokens[ENTROPY]) for edge in edges)
        below_S, above_S = band_hinges(tokens[ENTROPY], low_S, high_S)
        price_S = float(self.below) * below_S + float(self.above) * above_S
        sums = {
            "forks/share": torch.from_numpy(forks_S).to(price_S).sum(),
            "forks/below": (below_S > 0).to(price_S.dtype).sum(),
            "forks/above": (above_S > 0).to(price_S.dtype).sum(),
        }
        return Value((tokens.weights_S * price_S).sum(), sums)


TABLE: Mapping[str, type[LossTerm]] = {"entropy_band": EntropyBand}
