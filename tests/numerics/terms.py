"""Loss terms over hand-made tokens: the options of a policy-gradient loss by name, put together as a recipe does."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from agentflow.columns import CURRENT, ENTROPY, REFERENCE, SAMPLER, START
from agentflow.trainers.engines.local import total_sums
from agentflow.trainers.slots.base import LossTerm, Tokens
from agentflow.trainers.slots.losses.regularisers import KL, Entropy
from agentflow.trainers.slots.losses.surrogates import Cispo, Clipped, Correction, Reinforce


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What a loss reads, [S] each."""

    logprobs_S: Tensor
    old_logprobs_S: Tensor
    advantages_S: Tensor
    weights_S: Tensor
    behaviour_logprobs_S: Tensor | None = None
    ref_logprobs_S: Tensor | None = None
    entropy_S: Tensor | None = None
    segments_S: Tensor | None = None
    turns_S: Tensor | None = None

    @property
    def tokens(self) -> Tokens:
        """The record of the engine; what is missing has no key."""
        columns = {
            CURRENT: self.logprobs_S,
            START: self.old_logprobs_S,
            SAMPLER: self.behaviour_logprobs_S,
            REFERENCE: self.ref_logprobs_S,
            ENTROPY: torch.zeros_like(self.logprobs_S) if self.entropy_S is None else self.entropy_S,
        }
        units = {"turn": self.turns_S, "trajectory": self.segments_S}
        return Tokens(
            columns={key: value for key, value in columns.items() if value is not None},
            advantages_S=self.advantages_S,
            weights_S=self.weights_S,
            returns_S=torch.zeros_like(self.weights_S),
            units={key: value for key, value in units.items() if value is not None},
        )

    def __getitem__(self, index: Tensor) -> "SampledTokens":
        """Select tokens."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {name: None if value is None else value[index] for name, value in values.items()}
        return SampledTokens(**chosen)


@dataclass(frozen=True, slots=True)
class Terms:
    """The loss and its metrics."""

    loss: Tensor
    num_tokens: int
    sums: dict[str, float]

    @property
    def means(self) -> dict[str, float]:
        """Losses as they are, everything else for each token."""
        return {
            name: value if name.startswith("loss") else value / self.num_tokens for name, value in self.sums.items()
        }


def policy_loss(tokens: SampledTokens, **options: Any) -> Terms:
    """Put terms together; see `loss_terms` for the options."""
    values = [(f"loss/{term.metric}", term(tokens.tokens)) for term in loss_terms(**options)]
    loss = torch.stack([value.loss for _, value in values]).sum()
    return Terms(loss, len(tokens.weights_S), total_sums(values, tokens.tokens))


def loss_terms(
    *,
    loss: str = "clip",
    ratio: str = "token",
    clip_low: float = 0.2,
    clip_high: float | None = 0.2,
    dual_clip: float | None = None,
    mismatch: str = "none",
    mismatch_unit: str = "token",
    mismatch_low: float = 0.5,
    mismatch_high: float = 2.0,
    kl_coefficient: float = 0.0,
    kl_estimator: str = "k3",
    entropy_coefficient: float = 0.0,
) -> list[LossTerm]:
    """Return the terms that these options describe."""
    correction = None
    if mismatch != "none":
        correction = Correction(kind=mismatch, unit=mismatch_unit, low=mismatch_low, high=mismatch_high)
    bounds: dict[str, Any] = {
        "unit": {"token": "token", "sequence": "trajectory"}[ratio],
        "low": clip_low,
        "high": clip_high,
    }
    surrogates: dict[str, LossTerm] = {
        "clip": Clipped(**bounds, dual=dual_clip, correction=correction),
        "cispo": Cispo(**bounds, correction=correction),
        "reinforce": Reinforce(correction=correction),
    }
    terms = [surrogates[loss]]
    if kl_coefficient:
        terms.append(KL(coefficient=kl_coefficient, estimator=kl_estimator))
    return [*terms, Entropy(coefficient=entropy_coefficient)] if entropy_coefficient else terms
