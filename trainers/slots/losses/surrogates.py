"""Surrogates: the policy-gradient terms, with their importance ratio, trust region and mismatch correction."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from agentflow.columns import CURRENT, SAMPLER, START, Column
from agentflow.config import Config
from agentflow.maths.losses import binding
from agentflow.maths.mismatch import MAX_LOG_RATIO, Mismatch, MismatchUnit, mismatch_factor, unit_log_weights
from agentflow.maths.ratios import Bound, bounded, clipped_objective, unit_log_ratio
from agentflow.trainers.slots.base import LossTerm, Number, Tokens, Value, number


class Correction(Config):
    """A factor for a sampler whose probabilities differ from the learner's."""

    kind: Literal["tis", "icepop"] = Field(
        description="tis: min(w, high); icepop: w within [low, high], else 0; both keep the denominators."
    )
    unit: MismatchUnit = Field(
        "token",
        description="What shares one ratio: a token; a turn or a trajectory, by the product of its tokens' ratios or, "
        "with _mean, by their geometric mean.",
    )
    low: Annotated[Number, number(ge=0, le=1)] = Field(0.5, description="Smallest trusted ratio of icepop.")
    high: Annotated[Number, number(ge=1)] = Field(2.0, description="Largest trusted ratio.")

    def factor(self, tokens: Tokens) -> Tensor:
        """Return [S] what multiplies each token's objective, without gradient."""
        log_w_S = unit_log_weights(
            tokens[START] - tokens[SAMPLER],
            self.unit,
            turns_S=tokens.units.get("turn"),
            segments_S=tokens.units.get("trajectory"),
        )
        kind: Mismatch = self.kind
        return mismatch_factor(log_w_S, kind, low=float(self.low), high=float(self.high))


class Surrogate(LossTerm):
    """Minus the weighted mean of an objective of each token."""

    correction: Correction | None = Field(
        None, description="Correction for a sampler whose probabilities differ from ours; null is off."
    )

    @property
    def needs(self) -> frozenset[Column]:
        """The sampler's log-probs, where there is a correction."""
        return frozenset({SAMPLER}) if self.correction else frozenset()

    def objective(self, tokens: Tokens, ratio_S: Tensor) -> Tensor:
        """Return [S] what is maximised."""
        raise NotImplementedError

    def log_ratio(self, tokens: Tokens) -> Tensor:
        """Return [S] the log of each token's importance ratio."""
        return (tokens[CURRENT] - tokens[START]).clamp(max=MAX_LOG_RATIO)

    def bounds(self, tokens: Tokens) -> tuple[Bound, Bound]:
        """Return the half-widths of the trust region below and above 1, numbers or [S]."""
        return math.inf, math.inf

    def binds(self, tokens: Tokens, ratio_S: Tensor) -> tuple[Tensor, Tensor]:
        """Return [S] twice: whether the lower and the upper bound stop or limit a token's gradient."""
        low, high = self.bounds(tokens)
        return binding(ratio_S, tokens.advantages_S, low=low, high=high)

    def __call__(self, tokens: Tokens) -> Value:
        """Return the loss; see `LossTerm`."""
        ratio_S = self.log_ratio(tokens).exp()
        objective_S = self.objective(tokens, ratio_S)
        factor_S = self.correction.factor(tokens) if self.correction else torch.ones_like(ratio_S)
        loss = -(tokens.weights_S * factor_S * objective_S).sum()
        with torch.no_grad():
            low_S, high_S = self.binds(tokens, ratio_S)
            sums = {
                "clip_fraction": (low_S | high_S).to(ratio_S.dtype).sum(),
                "clip_fraction/low": low_S.to(ratio_S.dtype).sum(),
                "clip_fraction/high": high_S.to(ratio_S.dtype).sum(),
                "ratio/mean": ratio_S.detach().sum(),
                "mismatch/correction": factor_S.sum(),
            }
        return Value(loss, sums)


class Bounded(Surrogate):
    """A surrogate with an importance ratio of its own unit and a trust region."""

    unit: Literal["token", "turn", "trajectory"] = Field(
        "token", description="What shares one importance ratio; larger units are GSPO's."
    )
    mean: Literal["geometric", "product"] = Field(
        "geometric", description="How a unit larger than a token shares its ratio."
    )
    low: Annotated[Number, number(ge=0, le=1)] = Field(
        0.2, description="Half-width of the trust region below a ratio of 1."
    )
    high: Annotated[Number | None, number(ge=0)] = Field(0.3, description="Half-width above 1; null leaves it open.")

    def log_ratio(self, tokens: Tokens) -> Tensor:
        """Return [S] the log of each token's ratio, shared within its unit."""
        if self.unit == "token":
            return super().log_ratio(tokens)
        return unit_log_ratio(tokens[CURRENT], tokens[START], tokens.units[self.unit], mean=self.mean)

    def bounds(self, tokens: Tokens) -> tuple[Bound, Bound]:
        """Return the configured half-widths."""
        return float(self.low), math.inf if self.high is None else float(self.high)


class Clipped(Bounded):
    """PPO's clipped objective (1707.06347, eq. 7), with a dual clip (1912.09729, eq. 5) where asked for."""

    kind: Literal["clipped"] = "clipped"
    dual: Annotated[Number | None, number(gt=1)] = Field(
        None, description="Bound c on the loss of a negative advantage; null is off."
    )

    def objective(self, tokens: Tokens, ratio_S: Tensor) -> Tensor:
        """Return [S] `min(rho A, clip(rho) A)`."""
        low, high = self.bounds(tokens)
        dual = None if self.dual is None else float(self.dual)
        return clipped_objective(ratio_S, tokens.advantages_S, low=low, high=high, dual_clip=dual)


class Cispo(Bounded):
    """CISPO: the clipped ratio weighs the gradient of the log-prob (MiniMax-M1, 2506.13585, eq. 4)."""

    kind: Literal["cispo"] = "cispo"

    def objective(self, tokens: Tokens, ratio_S: Tensor) -> Tensor:
        """Return [S] `sg(clip(rho)) A log pi`."""
        return bounded(ratio_S, *self.bounds(tokens)).detach() * tokens.advantages_S * tokens[CURRENT]

    def binds(self, tokens: Tokens, ratio_S: Tensor) -> tuple[Tensor, Tensor]:
        """Count both signs of the advantage: the bound limits them alike."""
        low, high = self.bounds(tokens)
        return ratio_S < 1.0 - low, ratio_S > 1.0 + high


class Reinforce(Surrogate):
    """REINFORCE: `A log pi`, without ratio or trust region."""

    kind: Literal["reinforce"] = "reinforce"

    def objective(self, tokens: Tokens, ratio_S: Tensor) -> Tensor:
        """Return [S] `A log pi`."""
        return tokens.advantages_S * tokens[CURRENT]


TABLE: Mapping[str, type[LossTerm]] = {"clipped": Clipped, "cispo": Cispo, "reinforce": Reinforce}
