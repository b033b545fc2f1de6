"""Columns: numbers that a model gives each sampled token. They are all that a loss ever sees of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Column:
    """One number for each sampled token, [S] float32, on the axis of a batch.

    Attributes:
        what: The natural log of the token's probability, or the entropy in nats of the distribution it was drawn from.
        weights: Whose: `current` are those being updated, with gradient; `start` those that the iteration started from;
            `reference` those that the run started from; `sampler` is what the policy reported when it sampled.
    """

    what: Literal["logprob", "entropy"] = "logprob"
    weights: Literal["current", "start", "reference", "sampler"] = "current"


Columns: TypeAlias = Mapping[Column, Tensor]

CURRENT = Column()
ENTROPY = Column("entropy")
START = Column(weights="start")
START_ENTROPY = Column("entropy", "start")
REFERENCE = Column(weights="reference")
SAMPLER = Column(weights="sampler")


def part(columns: Columns, span: slice) -> Columns:
    """Return the columns of a part of the tokens."""
    return {column: values_S[span] for column, values_S in columns.items()}
