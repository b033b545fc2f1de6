"""Trust regions beyond two numbers: bounds for each token, and mixtures of ratios."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from agentflow.columns import CURRENT, START, START_ENTROPY, Column
from agentflow.config import Config
from agentflow.maths.losses import binding
from agentflow.maths.mismatch import MAX_LOG_RATIO
from agentflow.maths.ratios import (
    Bound,
    Branch,
    clipped_objective,
    elastic_bounds,
    entropy_weights,
    mixed_objective,
    unit_log_ratio,
)
from agentflow.maths.unit_advantages import outcome_spread
from agentflow.maths.units import dense
from agentflow.trainers.slots.base import LossTerm, Number, Tokens, number
from agentflow.trainers.slots.losses.surrogates import Bounded, Surrogate


class Elastic(Bounded):
    """Widen the trust region with a token's advantage and with the spread of its group's returns.

    A reading of ETR (2601.03723), whose formula was not found: "ETR-style". It reads whole groups, so it is a term of
    the batch.
    """

    kind: Literal["elastic"] = "elastic"
    scope: ClassVar[Literal["token", "batch"]] = "batch"
    micro: Annotated[Number, number(ge=0)] = Field(0.5, description="How much the largest advantage widens the region.")
    macro: Annotated[Number, number(ge=0)] = Field(
        0.5, description="How much the largest spread within a group widens it."
    )
    width: Annotated[Number, number(gt=0)] = Field(1.0, description="Greatest possible return minus the least.")
    rescale: bool = Field(False, description="Whether `low` and `high` are to stay the widest bounds.")

    def objective(self, tokens: Tokens, ratio_S: Tensor) -> Tensor:
        """Return [S] PPO's objective within bounds of each token's own."""
        low, high = self.bounds(tokens)
        return clipped_objective(ratio_S, tokens.advantages_S, low=low, high=high)

    def bounds(self, tokens: Tokens) -> tuple[Bound, Bound]:
        """Return [S] half-widths; an open side stays open."""
        low, high = (self._widened(each, tokens) for each in super().bounds(tokens))
        return low, high

    def _widened(self, bound: Bound, tokens: Tokens) -> Tensor:
        assert isinstance(bound, float), "the configured bounds are numbers"
        return elastic_bounds(
            tokens.advantages_S,
            spread_of(tokens, width=float(self.width)),
            bound=bound,
            micro=float(self.micro),
            macro=float(self.macro),
            rescale=self.rescale,
        )


def spread_of(tokens: Tokens, *, width: float) -> Tensor:
    """Return [S] the spread of the returns of each token's group, each trajectory counted once."""
    groups_S = dense(tokens.units["group"].cpu().numpy())
    _, first = np.unique(tokens.units["trajectory"].cpu().numpy(), return_index=True)
    returns = tokens.returns_S.double().cpu().numpy()[first]
    return torch.from_numpy(outcome_spread(returns, groups_S[first], width=width)[groups_S]).to(tokens.returns_S)


class Ratio(Config):
    """One ratio of a mixture."""

    unit: Literal["token", "turn", "trajectory"] = Field(description="What shares the ratio, by its geometric mean.")
    low: Annotated[Number, number(ge=0, le=1)] = Field(description="Half-width of its trust region below 1.")
    high: Annotated[Number, number(ge=0)] = Field(description="Half-width of its trust region above 1.")

    def value(self, tokens: Tokens) -> Tensor:
        """Return [S] the ratio of each token."""
        if self.unit == "token":
            return (tokens[CURRENT] - tokens[START]).clamp(max=MAX_LOG_RATIO).exp()
        # Tokens of a unit differ in their share of it, so each must reach all of them.
        units_S = tokens.units[self.unit]
        return unit_log_ratio(tokens[CURRENT], tokens[START], units_S, gradient="shared").exp()


class Mixed(Surrogate):
    """Mix the clipped objectives of ratios of several units: DHPO (2601.05607) has a token's and a trajectory's."""

    kind: Literal["mixed"] = "mixed"
    ratios: tuple[Ratio, ...] = Field(
        (Ratio(unit="token", low=0.2, high=0.2), Ratio(unit="trajectory", low=3e-4, high=4e-4)),
        min_length=2,
        description="The ratios.",
    )
    share: Literal["even", "entropy"] = Field(
        "even",
        description="All weigh the same; or the first weighs a token's entropy, brought to [0, 1] within its "
        "trajectory, and the others share the rest.",
    )
    pessimistic: bool = Field(
        True, description="Whether each ratio takes PPO's minimum; otherwise each is clipped on both sides."
    )

    @property
    def needs(self) -> frozenset[Column]:
        """The entropies of the iteration's first weights, where they share."""
        return super().needs | (frozenset({START_ENTROPY}) if self.share == "entropy" else frozenset())

    def objective(self, tokens: Tokens, ratio_S: Tensor) -> Tensor:
        """Return [S] the mixture."""
        first = 1.0 / len(self.ratios) if self.share == "even" else self._by_entropy(tokens)
        rest = (1.0 - first) / (len(self.ratios) - 1)
        branches = [
            Branch(each.value(tokens), float(each.low), float(each.high), first if number == 0 else rest)
            for number, each in enumerate(self.ratios)
        ]
        return mixed_objective(branches, tokens.advantages_S, pessimistic=self.pessimistic)

    def _by_entropy(self, tokens: Tokens) -> Tensor:
        return entropy_weights(tokens[START_ENTROPY], tokens.units["trajectory"])

    def binds(self, tokens: Tokens, ratio_S: Tensor) -> tuple[Tensor, Tensor]:
        """Count the tokens that every ratio stops."""
        found = [
            binding(each.value(tokens), tokens.advantages_S, low=float(each.low), high=float(each.high))
            for each in self.ratios
        ]
        low_S, high_S = (torch.stack(side).all(0) for side in zip(*found, strict=True))
        return low_S, high_S

    @model_validator(mode="after")
    def _differ(self) -> Self:
        units = [each.unit for each in self.ratios]
        if len(set(units)) < len(units):
            raise ValueError(f"each ratio needs a unit of its own, not {', '.join(units)}")
        return self


TABLE: Mapping[str, type[LossTerm]] = {"elastic": Elastic, "mixed": Mixed}
