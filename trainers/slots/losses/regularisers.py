"""Loss terms beside the surrogate: divergence from the reference, entropy, likelihood."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from agentflow.columns import CURRENT, ENTROPY, REFERENCE, Column
from agentflow.maths.losses import KLEstimator, kl_estimate
from agentflow.trainers.slots.base import LossTerm, Number, Tokens, Value, number


class KL(LossTerm):
    """Penalise the divergence from the weights that the run started from, estimated from the sampled tokens."""

    kind: Literal["kl"] = "kl"
    metric: ClassVar[str] = "kl"
    coefficient: Annotated[Number, number(ge=0)] = Field(0.001, description="Weight of the divergence.")
    estimator: KLEstimator = Field("k3", description="How it is estimated; k2 has the divergence's own gradient.")

    @property
    def needs(self) -> frozenset[Column]:
        """The reference's log-probs."""
        return frozenset({REFERENCE})

    def __call__(self, tokens: Tokens) -> Value:
        """Return the penalty; see `LossTerm`."""
        estimate_S = kl_estimate(tokens[CURRENT], tokens[REFERENCE], self.estimator)
        loss = float(self.coefficient) * (tokens.weights_S * estimate_S).sum()
        return Value(loss, {"kl/reference": kl_estimate(tokens[CURRENT].detach(), tokens[REFERENCE], "k3").sum()})


class Entropy(LossTerm):
    """Reward entropy."""

    kind: Literal["entropy"] = "entropy"
    metric: ClassVar[str] = "entropy"
    coefficient: Annotated[Number, number(ge=0)] = Field(0.001, description="Weight of the entropy in nats.")

    def __call__(self, tokens: Tokens) -> Value:
        """Return the bonus, negative; see `LossTerm`."""
        return Value(-float(self.coefficient) * (tokens.weights_S * tokens[ENTROPY]).sum(), {})


class Likelihood(LossTerm):
    """Raise the likelihood of the tokens, whatever they earned: imitation."""

    kind: Literal["likelihood"] = "likelihood"
    metric: ClassVar[str] = "likelihood"
    coefficient: Annotated[Number, number(ge=0)] = Field(1.0, description="Weight of the mean negative log-prob.")

    def __call__(self, tokens: Tokens) -> Value:
        """Return the weighted negative log-likelihood; see `LossTerm`."""
        return Value(-float(self.coefficient) * (tokens.weights_S * tokens[CURRENT]).sum(), {})


TABLE: Mapping[str, type[LossTerm]] = {"kl": KL, "entropy": Entropy, "likelihood": Likelihood}
