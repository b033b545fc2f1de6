"""Losses over whole groups: right completions against wrong ones, under a bound on the divergence (DisCO)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from agentflow.columns import CURRENT, START
from agentflow.maths.discriminative import completion_scores, discriminative, hinge_kl
from agentflow.maths.losses import KLEstimator
from agentflow.trainers.slots.base import LossTerm, Number, Tokens, Value, number


class Disco(LossTerm):
    """Score right completions above wrong ones of the same task: DisCO (2505.12366, eq. 8).

    It reads returns and no advantage. Groups that are all right or all wrong add nothing and are divided by, so `keep`
    should leave them in.
    """

    kind: Literal["disco"] = "disco"
    scope: ClassVar[Literal["token", "batch"]] = "batch"
    tau: Annotated[Number | None, number(gt=0)] = Field(
        10.0, description="Temperature of the wrong ones: the smaller, the more the hardest count; null takes the mean."
    )
    score: Literal["mean_logprob", "mean_ratio"] = Field(
        "mean_logprob", description="A completion's score: the mean of its log-probs or of its ratios (tau 1)."
    )
    positive_from: Annotated[Number, number()] = Field(0.5, description="Return from which a completion is right.")

    def __call__(self, tokens: Tokens) -> Value:
        """Return minus the mean gap between right and wrong; see `LossTerm`."""
        completions_S = tokens.units["trajectory"]
        count = int(completions_S.max()) + 1 if len(completions_S) else 0
        start_S = tokens[START] if self.score == "mean_ratio" else None
        scores_U = completion_scores(tokens[CURRENT], completions_S, count, start_logprobs_S=start_S)
        # A trajectory without a token stays in no group.
        groups_U = completions_S.new_full((count,), -1).index_put((completions_S,), tokens.units["group"])
        returns_U = tokens.returns_S.new_zeros(count).index_put((completions_S,), tokens.returns_S)
        gap = discriminative(
            scores_U,
            groups_U,
            returns_U >= float(self.positive_from),
            num_groups=max(1, len(set(groups_U[groups_U >= 0].tolist()))),
            tau=None if self.tau is None else float(self.tau),
        )
        return Value(-gap.to(tokens.weights_S.dtype), {})


class HingeKL(LossTerm):
    """Bound the divergence from the weights that the iteration started from, by a squared hinge (DisCO, eq. 10)."""

    kind: Literal["hinge_kl"] = "hinge_kl"
    scope: ClassVar[Literal["token", "batch"]] = "batch"
    metric: ClassVar[str] = "hinge_kl"
    delta: Annotated[Number, number(ge=0)] = Field(1e-4, description="Divergence in nats that is free.")
    beta: Annotated[Number, number(ge=0)] = Field(1000.0, description="Price of the square of what is beyond.")
    estimator: KLEstimator = Field("k1", description="How it is estimated; k1's gradient is unbiased here.")
    half: bool = Field(False, description="Take half of the square, as the authors' code does.")

    def __call__(self, tokens: Tokens) -> Value:
        """Return the price; see `LossTerm`."""
        price = hinge_kl(
            tokens[CURRENT],
            tokens[START],
            tokens.weights_S,
            delta=float(self.delta),
            beta=float(self.beta),
            estimator=self.estimator,
            half=self.half,
        )
        return Value(price, {})


TABLE: Mapping[str, type[LossTerm]] = {"disco": Disco, "hinge_kl": HingeKL}
