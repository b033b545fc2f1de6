"""Weights: what each token counts in the loss. One class for each denominator; masks drop tokens from all of them."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from agentflow.batch import Batch
from agentflow.columns import Column, Columns
from agentflow.maths.losses import Aggregation, token_weights
from agentflow.maths.units import Floats
from agentflow.trainers.slots.base import MaskSlot, Number, Weights, number


class Means(Weights):
    """A mean over the tokens of a batch, in one of the orders in which means can be nested."""

    order: ClassVar[Aggregation] = "nested"
    masks: tuple[MaskSlot, ...] = Field((), description="What drops tokens, from the denominator too.")

    @property
    def needs(self) -> frozenset[Column]:
        """The columns that the masks read."""
        return frozenset[Column]().union(*(mask.needs for mask in self.masks))

    def __call__(self, batch: Batch, columns: Columns) -> Floats:
        """Weigh the tokens; see `Weights`."""
        keep_S = np.ones(batch.turn_S.size)
        for mask in self.masks:
            keep_S = keep_S * mask(batch, columns)
        lengths = [each.lengths_K for each in batch.earned]
        weights_S = token_weights(lengths, self.order, constant=self._constant, keep_S=keep_S if self.masks else None)
        return weights_S if (batch.times_N == 1).all() else self._repeated(weights_S, batch)

    @property
    def _constant(self) -> float | None:
        return None

    def _repeated(self, weights_S: Floats, batch: Batch) -> Floats:
        """Count each trajectory `times_N` times, the sum of all weights as it was."""
        repeated_S: Floats = weights_S * batch.times_N[batch.trajectory_S]
        if not repeated_S.any():
            return repeated_S
        scale = float(weights_S.sum() / repeated_S.sum())
        return np.asarray(repeated_S * scale)


class Nested(Means):
    """Mean over trajectories of the mean over turns of the mean over tokens: Flow-GRPO (2510.05592, eq. 5)."""

    kind: Literal["nested"] = "nested"


class PerTurn(Means):
    """Mean over turns of the mean over tokens."""

    kind: Literal["turn"] = "turn"
    order: ClassVar[Aggregation] = "turn"


class PerToken(Means):
    """Mean over tokens: DAPO (2503.14476)."""

    kind: Literal["token"] = "token"
    order: ClassVar[Aggregation] = "token"


class Constant(Means):
    """Sum over tokens, mean over trajectories, and a constant that does not vary from batch to batch: Dr. GRPO."""

    kind: Literal["constant"] = "constant"
    order: ClassVar[Aggregation] = "constant"
    tokens: Annotated[Number, number(gt=0)] = Field(512.0, description="Tokens that the sum is divided by.")

    @property
    def _constant(self) -> float | None:
        return float(self.tokens)


TABLE: Mapping[str, type[Weights]] = {
    "nested": Nested,
    "turn": PerTurn,
    "token": PerToken,
    "constant": Constant,
}
