"""The engine contract: a loss is differentiated on the token axis, and only an engine sends it through a model.

known    = engine.score(batch, columns)                        no gradient
gradient = engine.differentiate(batch, terms, credit, known)   adds up; the weights are untouched
applied  = engine.apply()                                      clip, step, skip what is not finite
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import Field

from agentflow.batch import Batch
from agentflow.columns import Column, Columns
from agentflow.config import Config
from agentflow.maths.units import Floats
from agentflow.trainers.drift import Drift
from agentflow.trainers.slots.base import LossTerm


class LearnerConfig(Config):
    """The engine, its optimiser, and how a batch is cut for it."""

    learning_rate: float = Field(1e-6, gt=0, description="AdamW's peak learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="How the learning rate falls after the warm-up, over the whole run."
    )
    warmup_updates: int = Field(0, ge=0, description="Updates over which the learning rate rises from zero.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of the second moment.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this Euclidean norm.")
    updates_per_iteration: int = Field(1, ge=1, description="Updates that an iteration's trajectories are split over.")
    max_tokens: int = Field(16384, ge=1, description="Most distinct tokens of one forward and backward pass.")


@dataclass(frozen=True, slots=True)
class Credit:
    """What the tokens of an update are worth.

    Attributes:
        advantages_S: [S] float64.
        weights_S: [S] float64, over all of the update's tokens.
    """

    advantages_S: Floats
    weights_S: Floats


@dataclass(frozen=True, slots=True)
class Gradient:
    """What differentiating a batch showed; the gradient itself stays in the engine.

    Attributes:
        losses: The loss by the metric of its terms.
        sums: Sums over tokens by the name of their metric.
        num_tokens: Sampled tokens.
        num_unique_tokens: Distinct tokens that were computed.
        num_row_tokens: Tokens that a row for each trajectory would have computed.
        start_S: [S] float64 log-probs under the weights that the iteration started from.
    """

    losses: Mapping[str, float]
    sums: Mapping[str, float]
    num_tokens: int
    num_unique_tokens: int
    num_row_tokens: int
    start_S: Floats


@dataclass(frozen=True, slots=True)
class Applied:
    """What an update did.

    Attributes:
        grad_norm: The gradient's Euclidean norm before clipping; not finite if the update was left out.
        learning_rate: The learning rate it was made with.
    """

    grad_norm: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Update:
    """What an iteration's updates did, added up.

    Attributes:
        gradients: What each of them showed.
        applied: What each of them did.
        drift: How far the sampler's log-probs were from the learner's before the first of them.
        duration_s: Wall seconds.
    """

    gradients: tuple[Gradient, ...] = ()
    applied: tuple[Applied, ...] = ()
    drift: Drift | None = None
    duration_s: float = 0.0

    def plus(self, gradient: Gradient, applied: Applied, drift: Drift | None = None) -> "Update":
        """Add an update."""
        return Update((*self.gradients, gradient), (*self.applied, applied), drift, self.duration_s)


class Engine(Protocol):
    """Whatever holds the weights."""

    def score(self, batch: Batch, columns: frozenset[Column]) -> Columns:
        """Return columns of other weights than the current ones, [S] float32, without gradient."""
        ...

    def differentiate(self, batch: Batch, terms: Sequence[LossTerm], *, credit: Credit, known: Columns) -> Gradient:
        """Add the gradient of a loss; the weights stay as they are.

        Args:
            batch: The trajectories of one update.
            terms: The terms of the loss.
            credit: Advantages and weights of its tokens.
            known: Columns of `score`. Without START, the current weights are those that the iteration started from.
        """
        ...

    def apply(self) -> Applied:
        """Change the weights by the gradient that has added up, and forget it.

        Raises:
            RunAborted: Gradients are not finite, again and again.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state, tensors and numbers only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        ...
