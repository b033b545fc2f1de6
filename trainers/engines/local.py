"""The engine of one process: packs of whole trajectories, forward and backward one after the other.

A batch is packed into forests of at most `max_tokens` distinct tokens each. The loss sees the columns of a pack as
leaves; what it says about them, one coefficient for each token, is sent back through the model. Terms that need the
whole batch get its columns first, from a forward without gradient, so any cut of the batch gives the same gradient.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentflow.batch import Batch
from agentflow.columns import CURRENT, ENTROPY, SAMPLER, START, Column, Columns
from agentflow.maths.losses import kl_estimate
from agentflow.models import frozen_copy
from agentflow.scoring.packing import PackedBatch, pack, split
from agentflow.scoring.text import TextScorer
from agentflow.trainers.engines.base import Applied, Credit, Gradient, LearnerConfig
from agentflow.trainers.engines.optimiser import Optimiser
from agentflow.trainers.slots.base import LossTerm, Tokens, Value


@dataclass(frozen=True, slots=True)
class _Pack:
    """One forward and backward pass.

    Attributes:
        batch: A forest.
        span: Its sampled tokens on the axis of the whole batch.
    """

    batch: PackedBatch
    span: slice


class LocalEngine:
    """Score and change a model in this process.

    Args:
        model: The model that the policy samples from; updated in place.
        config: The optimiser and how a batch is cut.
        num_updates: Updates of the whole run, for the schedule.
        temperature: The temperature the policy samples with: log-probs are of the distribution that was sampled.
        with_reference: Keep a frozen copy of the first weights, for columns of the reference.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: LearnerConfig,
        *,
        num_updates: int,
        temperature: float = 1.0,
        with_reference: bool = False,
    ) -> None:
        self.config = config
        self._device = model.device
        self._scorer = TextScorer(model, temperature=temperature)
        self._reference = TextScorer(frozen_copy(model), temperature=temperature) if with_reference else None
        self._optimiser = Optimiser(model, config, num_updates=num_updates)
        self._packed: WeakKeyDictionary[Batch, list[_Pack]] = WeakKeyDictionary()

    def score(self, batch: Batch, columns: frozenset[Column]) -> Columns:
        """Score every token under weights that do not change now; see `Engine`."""
        found: dict[Column, Tensor] = {}
        if SAMPLER in columns:
            found[SAMPLER] = self._tensor(batch.behaviour_S)
        for weights, scorer in (("start", self._scorer), ("reference", self._reference)):
            wanted = [column for column in columns if column.weights == weights]
            if wanted:
                assert scorer is not None, "the engine was made without a reference"
                scores = dict(zip(("logprob", "entropy"), self._scores(batch, scorer), strict=True))
                found |= {column: scores[column.what] for column in wanted}
        return found

    def differentiate(self, batch: Batch, terms: Sequence[LossTerm], *, credit: Credit, known: Columns) -> Gradient:
        """Add a loss's gradient, pack by pack; see `Engine`."""
        whole = [term for term in terms if term.scope == "batch"]
        values, coefficients = self._whole(batch, whole, credit=credit, known=known) if whole else ({}, {})
        totals: dict[str, float] = dict(values)
        start: list[Tensor] = []
        packs = self._packs(batch)
        for each in packs:
            logprobs_S, entropy_S = self._scorer(each.batch)
            tokens = self._tokens(batch, (logprobs_S, entropy_S), each.span, credit=credit, known=known)
            found = _values([term for term in terms if term.scope == "token"], tokens)
            add_gradients(
                {CURRENT: logprobs_S, ENTROPY: entropy_S},
                tokens.columns,
                losses=[value.loss for _, value in found],
                coefficients={column: values_S[each.span] for column, values_S in coefficients.items()},
            )
            self._optimiser.take_gradients()
            start.append(tokens[START].detach())
            for name, total in total_sums(found, tokens).items():
                totals[name] = totals.get(name, 0.0) + total
        return Gradient(
            losses={name.removeprefix(_LOSS): total for name, total in totals.items() if name.startswith(_LOSS)},
            sums={name: total for name, total in totals.items() if not name.startswith(_LOSS)},
            num_tokens=batch.turn_S.size,
            num_unique_tokens=sum(each.batch.num_unique_tokens for each in packs),
            num_row_tokens=sum(each.batch.num_row_tokens for each in packs),
            start_S=torch.cat(start).double().cpu().numpy(),
        )

    def apply(self) -> Applied:
        """Clip and step; see `Engine`."""
        return self._optimiser.apply()

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state."""
        return self._optimiser.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._optimiser.load_state_dict(state)

    def _whole(
        self, batch: Batch, terms: Sequence[LossTerm], *, credit: Credit, known: Columns
    ) -> tuple[dict[str, float], dict[Column, Tensor]]:
        """Score the whole batch, and differentiate the terms that need all of it with respect to its columns."""
        tokens = self._tokens(
            batch, self._scores(batch, self._scorer), slice(0, batch.turn_S.size), credit=credit, known=known
        )
        found = _values(terms, tokens)
        loss = torch.stack([value.loss for _, value in found]).sum()
        leaves = [tokens[CURRENT], tokens[ENTROPY]]
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        coefficients = {c: g for c, g in zip((CURRENT, ENTROPY), gradients, strict=True) if g is not None}
        return total_sums(found, None), coefficients

    def _scores(self, batch: Batch, scorer: TextScorer) -> tuple[Tensor, Tensor]:
        """Return log-probs [S] and entropies [S], without gradient."""
        with torch.no_grad():
            parts = [scorer(each.batch) for each in self._packs(batch)]
        empty = torch.zeros(0, device=self._device)
        return torch.cat([empty, *(score[0] for score in parts)]), torch.cat([empty, *(score[1] for score in parts)])

    def _tokens(
        self, batch: Batch, scores: tuple[Tensor, Tensor], span: slice, *, credit: Credit, known: Columns
    ) -> Tokens:
        """Return what the loss reads of a span of the batch; the current columns are leaves."""
        current_S, entropy_S = (score_S.detach().requires_grad_() for score_S in scores)
        columns = {START: scores[0].detach(), **{column: values_S[span] for column, values_S in known.items()}}
        if SAMPLER not in columns:
            columns[SAMPLER] = self._tensor(batch.behaviour_S[span])
        return Tokens(
            columns={**columns, CURRENT: current_S, ENTROPY: entropy_S},
            advantages_S=self._tensor(credit.advantages_S[span]),
            weights_S=self._tensor(credit.weights_S[span]),
            returns_S=self._tensor(batch.returns_N[batch.trajectory_S[span]]),
            units={
                name: torch.from_numpy(batch.unit_S(name)[span]).to(self._device)
                for name in ("turn", "trajectory", "group")
            },
        )

    def _packs(self, batch: Batch) -> list[_Pack]:
        if batch not in self._packed:
            self._packed[batch] = list(cut(batch, self.config.max_tokens))
        return self._packed[batch]

    def _tensor(self, values_S: Any) -> Tensor:
        return torch.tensor(values_S, dtype=torch.float32, device=self._device)


_LOSS = "loss/"


def cut(batch: Batch, max_tokens: int) -> Iterator[_Pack]:
    """Cut a batch into forests of at most `max_tokens` distinct tokens; see `packing.split`."""
    ends = batch.trajectory_S.searchsorted(range(len(batch.trajectories)), side="right")
    first = 0
    for members in split(batch.trajectories, max_tokens):
        last = int(ends[members[-1]])
        yield _Pack(pack([batch.trajectories[i] for i in members]), slice(first, last))
        first = last


def add_gradients(scores: Columns, leaves: Columns, *, losses: Sequence[Tensor], coefficients: Columns) -> None:
    """Send a loss back through a model.

    Args:
        scores: Columns with a graph that leads to the model.
        leaves: The same columns as the loss saw them.
        losses: Losses over the leaves; none if all that is known are coefficients.
        coefficients: Derivatives of further losses with respect to the columns, [S].
    """
    pairs: dict[Column, Tensor] = dict(coefficients)
    if losses:
        loss = losses[0]
        for other in losses[1:]:
            loss = loss + other
        found = torch.autograd.grad(loss, [leaves[column] for column in scores], allow_unused=True)
        for column, gradient_S in zip(scores, found, strict=True):
            if gradient_S is not None:
                pairs[column] = pairs[column] + gradient_S if column in pairs else gradient_S
    torch.autograd.backward([scores[column] for column in pairs], [pairs[column] for column in pairs])


def _values(terms: Sequence[LossTerm], tokens: Tokens) -> list[tuple[str, Value]]:
    return [(f"{_LOSS}{term.metric}", term(tokens)) for term in terms]


@torch.no_grad()
def total_sums(found: Sequence[tuple[str, Value]], tokens: Tokens | None) -> dict[str, float]:
    """Return losses and sums by name, in one transfer from the device."""
    named = [(name, value.loss) for name, value in found]
    named += [item for _, value in found for item in value.sums.items()]
    if tokens is not None:
        named.append(("entropy", tokens[ENTROPY].sum()))
        # From samples of the old policy: d = log new - log old.
        named.append(("kl", kl_estimate(tokens[START], tokens[CURRENT], "k3").sum()))
    totals: dict[str, float] = {}
    for (name, _), total in zip(named, torch.stack([value.detach() for _, value in named]).tolist(), strict=True):
        totals[name] = totals.get(name, 0.0) + total
    return totals
