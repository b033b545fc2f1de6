"""The learner: what turns a batch of trajectories into one or more updates of the weights.

A batch is packed into forests of at most `max_tokens` distinct tokens each; their losses are weighted over the whole
batch, so that their gradients add up to the batch's gradient and nothing is dropped to make numbers even.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from agentflow.config import Config
from agentflow.errors import RunAborted
from agentflow.maths.losses import LossSums, SampledTokens
from agentflow.maths.mismatch import owners
from agentflow.metrics import mean
from agentflow.models import frozen_copy
from agentflow.scoring.packing import PackedBatch, pack, sampled_logprobs, split
from agentflow.trainers.algorithm import AlgorithmConfig, loss, weights
from agentflow.trainers.drift import Drift, measure_drift
from agentflow.trajectory import Trajectory

Floats = NDArray[np.float64]


class LearnerConfig(Config):
    """The optimiser and how a batch is cut for it."""

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
class Sample:
    """One trajectory to learn from.

    Attributes:
        trajectory: What was sampled.
        advantages_K: [K] the advantage of each turn.
    """

    trajectory: Trajectory
    advantages_K: Floats

    @property
    def turn_lengths(self) -> list[int]:
        """The number of sampled tokens of each turn."""
        return [len(turn.completion.token_ids) for turn in self.trajectory.turns]


@dataclass(frozen=True, slots=True)
class _Pack:
    """One forward and backward pass: a forest and what is known of its sampled tokens."""

    batch: PackedBatch
    samples: Sequence[Sample]
    behaviour_S: Tensor
    advantages_S: Tensor
    segments_S: Tensor
    turns_S: Tensor


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """What one iteration's updates did.

    Attributes:
        grad_norm: The gradient's Euclidean norm before clipping, averaged over updates; None if none was finite.
        learning_rate: The learning rate of the last update.
        sums: Sums over sampled tokens, over all updates; the losses are averaged over updates.
        num_skipped: Updates that were left out because their gradient was not finite.
        num_unique_tokens: Distinct tokens that were computed.
        num_row_tokens: Tokens that a row for each trajectory would have computed.
        drift: How far the sampler's log-probs were from the learner's before the first update.
    """

    grad_norm: float | None
    learning_rate: float
    sums: LossSums
    num_skipped: int
    num_unique_tokens: int
    num_row_tokens: int
    drift: Drift = field(default_factory=Drift)

    @property
    def loss(self) -> float:
        """The loss, averaged over updates."""
        return self.sums.loss


class Learner:
    """Optimise a policy.

    Args:
        model: The model that the policy samples from; updated in place.
        config: The optimiser.
        num_updates: Updates of the whole run, for the schedule.
        temperature: The temperature the policy samples with: log-probs are of the distribution that was sampled.
        with_reference: Keep a frozen copy of the first weights, for a KL penalty.
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
        self.model = model
        self.config = config
        self.num_updates_done = 0
        self._num_updates = num_updates
        self._temperature = temperature
        self._reference = frozen_copy(model) if with_reference else None
        self._num_skipped_in_a_row = 0
        self._weights = _MasterWeights(model)
        self._optimizer = torch.optim.AdamW(
            self._weights.parameters,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )

    def update(
        self,
        samples: Sequence[Sample],
        algorithm: AlgorithmConfig,
        *,
        version: int | None = None,
        heed: Callable[[Drift], None] = lambda drift: None,
    ) -> UpdateStats:
        """Improve the policy on one iteration's trajectories.

        Args:
            samples: The kept trajectories with their advantages.
            algorithm: Weights, ratio, trust region, surrogate and regularisers.
            version: The version of the weights as the sampler counts them; None takes every token as theirs.
            heed: Called before the first update with the sampler's distance; what it raises leaves the weights alone.

        Raises:
            RunAborted: Gradients are not finite, again and again.
        """
        shares = [list(share) for share in np.array_split(np.arange(len(samples)), self.config.updates_per_iteration)]
        batches = [[samples[i] for i in share] for share in shares if share]
        packs = [[self._pack(part) for part in split_samples(batch, self.config.max_tokens)] for batch in batches]
        # The first update differentiates the very weights that the iteration started from.
        old = [[self._score(part, self.model) if i else None for part in parts] for i, parts in enumerate(packs)]
        total, norms, drift = LossSums(), [], None
        for parts, old_b in zip(packs, old, strict=True):
            sums, scored = self._accumulate(parts, old_b, algorithm)
            if drift is None:
                learner = [*scored, *(old_S for later in old[1:] for old_S in later if old_S is not None)]
                learner_S = torch.cat(learner).double().cpu().numpy()
                drift = measure_drift([sample.trajectory for sample in samples], learner_S, version=version)
                heed(drift)
            total = total + sums
            norms.append(self._apply())
        total = total.with_losses_divided(len(batches))
        every = [part for parts in packs for part in parts]
        return UpdateStats(
            grad_norm=mean(norm for norm in norms if math.isfinite(norm)),
            learning_rate=self._rate(self.num_updates_done - 1),
            sums=total,
            num_skipped=sum(not math.isfinite(norm) for norm in norms),
            num_unique_tokens=sum(part.batch.num_unique_tokens for part in every),
            num_row_tokens=sum(part.batch.num_row_tokens for part in every),
            drift=drift or Drift(),
        )

    def imitate(self, trajectories: Sequence[Trajectory]) -> UpdateStats:
        """Raise the likelihood of what was said in these trajectories: one update of mean token cross-entropy."""
        samples = [Sample(trajectory, np.ones(len(trajectory.turns))) for trajectory in trajectories]
        packs = [self._pack(part) for part in split_samples(samples, self.config.max_tokens)]
        num_tokens = sum(len(part.behaviour_S) for part in packs)
        total = LossSums()
        for part in packs:
            logprobs_S, entropy_S = self._logprobs(part, self.model)
            loss_sum = -logprobs_S.sum()
            (loss_sum / num_tokens).backward()  # type: ignore[no-untyped-call]
            self._weights.take_gradients()
            total = total + LossSums(
                num_tokens=len(logprobs_S),
                policy_loss=loss_sum.item() / num_tokens,
                entropy=entropy_S.detach().sum().item(),
            )
        norm = self._apply()
        return UpdateStats(
            grad_norm=norm if math.isfinite(norm) else None,
            learning_rate=self._rate(self.num_updates_done - 1),
            sums=total,
            num_skipped=int(not math.isfinite(norm)),
            num_unique_tokens=sum(part.batch.num_unique_tokens for part in packs),
            num_row_tokens=sum(part.batch.num_row_tokens for part in packs),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state and the number of updates."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "master_weights": self._weights.state(),
            "num_updates_done": self.num_updates_done,
            "num_skipped_in_a_row": self._num_skipped_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._weights.restore(state["master_weights"])
        self.num_updates_done = state["num_updates_done"]
        self._num_skipped_in_a_row = state["num_skipped_in_a_row"]

    def _accumulate(
        self, packs: Sequence[_Pack], old: Sequence[Tensor | None], algorithm: AlgorithmConfig
    ) -> tuple[LossSums, list[Tensor]]:
        """Add up the gradients of one update; sums over tokens, and each pack's log-probs under the first weights."""
        lengths = [sample.turn_lengths for part in packs for sample in part.samples]
        mismatch_S = self._log_mismatch(packs, old) if algorithm.mismatch == "mis" else None
        weights_S = weights(lengths, algorithm, log_mismatch_S=mismatch_S)
        total, start, scored = LossSums(), 0, []
        for part, old_S in zip(packs, old, strict=True):
            count = len(part.behaviour_S)
            own_S = torch.tensor(weights_S[start : start + count], dtype=torch.float32, device=self.model.device)
            sums, scored_S = self._backward(part, algorithm, old_S=old_S, weights_S=own_S)
            total = total + sums
            scored.append(scored_S)
            start += count
        return total, scored

    def _log_mismatch(self, packs: Sequence[_Pack], old: Sequence[Tensor | None]) -> Floats:
        """Return [S] the learner's minus the sampler's log-probs, over all packs."""
        parts = [
            (self._score(part, self.model) if old_S is None else old_S) - part.behaviour_S
            for part, old_S in zip(packs, old, strict=True)
        ]
        return torch.cat(parts).double().cpu().numpy()

    def _backward(
        self, part: _Pack, algorithm: AlgorithmConfig, *, old_S: Tensor | None, weights_S: Tensor
    ) -> tuple[LossSums, Tensor]:
        """Add one pack's gradients; its sums, and its log-probs under the iteration's first weights."""
        reference_S = self._score(part, self._reference) if self._reference is not None else None
        logprobs_S, entropy_S = self._logprobs(part, self.model)
        old_S = logprobs_S.detach() if old_S is None else old_S
        terms = loss(
            SampledTokens(
                logprobs_S=logprobs_S,
                old_logprobs_S=old_S,
                advantages_S=part.advantages_S,
                weights_S=weights_S,
                behaviour_logprobs_S=part.behaviour_S,
                ref_logprobs_S=reference_S,
                entropy_S=entropy_S if algorithm.needs_entropy_gradient else entropy_S.detach(),
                segments_S=part.segments_S,
                turns_S=part.turns_S,
            ),
            algorithm,
        )
        terms.loss.backward()  # type: ignore[no-untyped-call]
        self._weights.take_gradients()
        return terms.sums, old_S

    def _apply(self) -> float:
        """Clip the gradient and take one step of the optimiser; the norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self._weights.parameters, self.config.max_grad_norm).item()
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(self.num_updates_done)
        # A gradient that is not finite would destroy the weights; the update is counted and left out.
        if math.isfinite(norm):
            self._optimizer.step()
            self._weights.publish()
        self._optimizer.zero_grad(set_to_none=True)
        self.num_updates_done += 1
        self._num_skipped_in_a_row = 0 if math.isfinite(norm) else self._num_skipped_in_a_row + 1
        if self._num_skipped_in_a_row == _MAX_SKIPPED_IN_A_ROW:
            raise RunAborted(
                f"The gradient was not finite in {_MAX_SKIPPED_IN_A_ROW} updates in a row; none of them changed the "
                "weights. Lower learner.learning_rate, or use model.dtype=float32."
            )
        return norm

    def _rate(self, update: int) -> float:
        """Return the learning rate of an update, counted from 0."""
        config = self.config
        if update < config.warmup_updates:
            return config.learning_rate * (update + 1) / config.warmup_updates
        done = (update - config.warmup_updates) / max(1, self._num_updates - config.warmup_updates)
        falling: dict[str, Callable[[float], float]] = {
            "constant": lambda _: 1.0,
            "linear": lambda x: 1.0 - x,
            "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
        }
        return config.learning_rate * falling[config.schedule](min(1.0, done))

    def _logprobs(self, part: _Pack, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        return sampled_logprobs(model, part.batch, temperature=self._temperature)

    def _score(self, part: _Pack, model: PreTrainedModel) -> Tensor:
        with torch.no_grad():
            return self._logprobs(part, model)[0]

    def _pack(self, samples: Sequence[Sample]) -> _Pack:
        device = self.model.device
        counts = [length for sample in samples for length in sample.turn_lengths]
        turns_S, segments_S = owners([sample.turn_lengths for sample in samples])
        advantages = np.repeat(np.concatenate([sample.advantages_K for sample in samples]), counts)
        behaviour = [x for s in samples for turn in s.trajectory.turns for x in turn.completion.logprobs]
        return _Pack(
            batch=pack([sample.trajectory for sample in samples]),
            samples=samples,
            behaviour_S=torch.tensor(behaviour, dtype=torch.float32, device=device),
            advantages_S=torch.tensor(advantages, dtype=torch.float32, device=device),
            segments_S=segments_S.to(device),
            turns_S=turns_S.to(device),
        )


_MAX_SKIPPED_IN_A_ROW = 5


class _MasterWeights:
    """What the optimiser updates: the model's own parameters, or float32 copies of those that are coarser.

    In bfloat16 a step of 1e-6 is lost in the rounding of any weight above 1e-3.

    Args:
        model: The model; parameters that require no gradient are left alone.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._own = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.parameters = [p if p.dtype == torch.float32 else p.detach().float() for p in self._own]
        self._pairs = [(p, master) for p, master in zip(self._own, self.parameters, strict=True) if p is not master]

    def take_gradients(self) -> None:
        """Add the gradients of a backward pass to those of the copies."""
        for parameter, master in self._pairs:
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad + gradient
                parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the copies into the model."""
        for parameter, master in self._pairs:
            parameter.copy_(master)

    def state(self) -> list[Tensor]:
        """Return the copies."""
        return [master for _, master in self._pairs]

    @torch.no_grad()
    def restore(self, state: Sequence[Tensor]) -> None:
        """Put copies back that `state` returned."""
        for (_, master), stored in zip(self._pairs, state, strict=True):
            master.copy_(stored)


def split_samples(samples: Sequence[Sample], max_tokens: int) -> list[list[Sample]]:
    """Cut samples into parts of at most `max_tokens` distinct tokens each; see `packing.split`."""
    parts = split([sample.trajectory for sample in samples], max_tokens)
    return [[samples[i] for i in part] for part in parts]
