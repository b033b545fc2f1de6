"""Policy-gradient losses over the flat axis of sampled tokens: pure functions of tensors.

Axis S: the sampled tokens of a batch in canonical order (trajectory, turn, token); prompts, tool output and padding
are not on it. Token weights are normalised over the WHOLE batch, so the losses of its micro-batches simply add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentflow.maths.mismatch import (
    MAX_LOG_RATIO,
    Mismatch,
    MismatchUnit,
    mismatch_factor,
    segment_sums,
    unit_log_weights,
)
from agentflow.maths.ratios import bounded, clipped_objective

Floats: TypeAlias = NDArray[np.float64]
Aggregation: TypeAlias = Literal["nested", "turn", "token", "constant"]
LossName: TypeAlias = Literal["clip", "cispo", "reinforce"]
Ratio: TypeAlias = Literal["token", "sequence"]
KLEstimator: TypeAlias = Literal["k1", "k2", "k3"]


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What the loss reads, for the sampled tokens of one micro-batch.

    Attributes:
        logprobs_S: [S] natural log-probs under the policy that is being updated, with gradient.
        old_logprobs_S: [S] log-probs under the weights that the iteration started from, scored by the learner.
        advantages_S: [S] the advantage of each token's turn.
        weights_S: [S] from `token_weights`, over the whole batch.
        behaviour_logprobs_S: [S] log-probs as the sampler reported them; needed by a mismatch correction.
        ref_logprobs_S: [S] log-probs under the frozen reference; needed by a KL penalty.
        entropy_S: [S] entropy of each token's distribution in nats, with gradient if it is rewarded.
        segments_S: [S] index of each token's trajectory; needed by the sequence ratio and by a mismatch correction of
            sequences. A trajectory is never split over micro-batches.
        turns_S: [S] index of each token's turn; needed by a mismatch correction of turns.
    """

    logprobs_S: Tensor
    old_logprobs_S: Tensor
    advantages_S: Tensor
    weights_S: Tensor
    behaviour_logprobs_S: Tensor | None = None
    ref_logprobs_S: Tensor | None = None
    entropy_S: Tensor | None = None
    segments_S: Tensor | None = None
    turns_S: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over tokens that add up across micro-batches; `means` divides.

    Attributes:
        num_tokens: Sampled tokens.
        policy_loss: The surrogate's share of the loss, weighted.
        kl_loss: The KL penalty's share of the loss, weighted and multiplied by its coefficient.
        entropy_loss: The entropy bonus's share of the loss, weighted and multiplied by its coefficient.
        entropy: Entropies in nats, zero where none were given.
        kl: Estimates (k3) of the divergence from the iteration's first weights to the current ones.
        kl_reference: Estimates (k3) of the divergence from the reference, zero where there is none.
        clipped_low: Tokens whose gradient the lower bound stopped or limited.
        clipped_high: Tokens whose gradient the upper bound stopped or limited.
        ratio: Importance ratios.
        correction: Factors of the mismatch correction, one where there is none.
    """

    num_tokens: float = 0.0
    policy_loss: float = 0.0
    kl_loss: float = 0.0
    entropy_loss: float = 0.0
    entropy: float = 0.0
    kl: float = 0.0
    kl_reference: float = 0.0
    clipped_low: float = 0.0
    clipped_high: float = 0.0
    ratio: float = 0.0
    correction: float = 0.0

    def __add__(self, other: "LossSums") -> "LossSums":
        """Add the sums of another micro-batch."""
        return LossSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def loss(self) -> float:
        """The whole loss."""
        return self.policy_loss + self.kl_loss + self.entropy_loss

    def with_losses_divided(self, count: int) -> "LossSums":
        """Average the losses over a number of updates; all else stays a sum over tokens."""
        return replace(
            self,
            policy_loss=self.policy_loss / count,
            kl_loss=self.kl_loss / count,
            entropy_loss=self.entropy_loss / count,
        )

    def means(self) -> dict[str, float]:
        """Return the metrics by name: losses as they are, everything else for each token."""
        count = max(self.num_tokens, 1.0)
        return {
            "loss": self.loss,
            "loss/policy": self.policy_loss,
            "loss/kl": self.kl_loss,
            "loss/entropy": self.entropy_loss,
            "entropy": self.entropy / count,
            "kl": self.kl / count,
            "kl/reference": self.kl_reference / count,
            "clip_fraction": (self.clipped_low + self.clipped_high) / count,
            "clip_fraction/low": self.clipped_low / count,
            "clip_fraction/high": self.clipped_high / count,
            "ratio/mean": self.ratio / count,
            "mismatch/correction": self.correction / count,
        }


@dataclass(frozen=True, slots=True)
class LossTerms:
    """A micro-batch's loss and what is logged about it.

    Attributes:
        loss: Scalar with gradient; minimise the sum over micro-batches.
        sums: Detached sums over its tokens.
    """

    loss: Tensor
    sums: LossSums


def token_weights(
    turn_lengths: Sequence[Sequence[int]],
    aggregation: Aggregation,
    *,
    constant: float | None = None,
    keep_S: NDArray[np.bool_] | None = None,
) -> Floats:
    """Weigh every sampled token of a whole batch.

        nested    1 / (N * T_i * |a_i^t|)        mean over trajectories of the mean over turns of the mean over tokens
        turn      1 / (sum_i T_i * |a_i^t|)      mean over turns of the mean over tokens
        token     1 / sum_{i,t} |a_i^t|          mean over tokens (DAPO, 2503.14476)
        constant  1 / (N * constant)             sum over tokens, mean over trajectories (Dr. GRPO, 2503.20783)

    N is the number of trajectories, T_i the turns of trajectory i, |a_i^t| the sampled tokens of its turn t. `nested`
    is Flow-GRPO's objective (2510.05592, eq. 5). What holds no (kept) token counts neither as turn nor as trajectory.

    Args:
        turn_lengths: For each trajectory, the number of sampled tokens of each turn.
        aggregation: Which mean.
        constant: Tokens by which `constant` divides; fixed, so that it does not vary from batch to batch.
        keep_S: [S] false for tokens that are dropped: weight zero, and every count above shrinks.

    Returns:
        [S] weights in canonical order; they sum to 1 except under `constant`.
    """
    lengths_R = np.array([length for trajectory in turn_lengths for length in trajectory], dtype=np.intp)
    owner_R = np.repeat(np.arange(len(turn_lengths)), [len(trajectory) for trajectory in turn_lengths])
    row_S = np.repeat(np.arange(lengths_R.size), lengths_R)
    kept_S = np.ones(row_S.size) if keep_S is None else np.asarray(keep_S, dtype=np.float64)
    assert kept_S.shape == row_S.shape, "keep_S has one entry for each sampled token"
    kept_R = np.bincount(row_S, weights=kept_S, minlength=lengths_R.size).astype(np.float64)
    turns_N = np.bincount(owner_R, weights=kept_R > 0, minlength=len(turn_lengths))
    num_trajectories = np.count_nonzero(turns_N)
    divisor_R: Floats
    if aggregation == "constant":
        assert constant is not None and constant > 0, "aggregation 'constant' needs a positive constant"
        divisor_R = np.full(lengths_R.size, num_trajectories * constant, dtype=np.float64)
    elif aggregation == "token":
        divisor_R = np.full(lengths_R.size, kept_R.sum())
    elif aggregation == "turn":
        divisor_R = np.count_nonzero(kept_R) * kept_R
    else:
        divisor_R = num_trajectories * turns_N[owner_R] * kept_R
    weights: Floats = kept_S / np.maximum(divisor_R, np.finfo(np.float64).tiny)[row_S]
    return weights


def log_ratio(tokens: SampledTokens, ratio: Ratio) -> Tensor:
    """Return the log of each token's importance ratio, [S].

    token     log pi_theta - log pi_old
    sequence  mean of that over the token's trajectory; the gradient reaches each token through its own log-prob,
              `logp - sg(logp) + sg(log s)` (GSPO, 2507.18071, eq. 14)

    A token's log-ratio is bounded at 20 nats, for the exponential's sake: past them its value stays, and, for the ratio
    of a token, its gradient is zero.
    """
    difference_S = (tokens.logprobs_S - tokens.old_logprobs_S).clamp(max=MAX_LOG_RATIO)
    if ratio == "token":
        return difference_S
    assert tokens.segments_S is not None, "the sequence ratio needs the trajectory of each token"
    mean_S = segment_sums(difference_S.detach(), tokens.segments_S, mean=True)
    return mean_S + tokens.logprobs_S - tokens.logprobs_S.detach()


def surrogate(
    tokens: SampledTokens,
    ratio_S: Tensor,
    *,
    loss: LossName,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """Return the objective of each token, to be maximised, [S].

        clip       min(rho A, clip(rho, 1 - low, 1 + high) A)          (PPO, 1707.06347, eq. 7)
                   for A < 0 with a dual clip c: max(that, c A)        (1912.09729, eq. 5)
        cispo      sg(clip(rho, 1 - low, 1 + high)) A log pi           (MiniMax-M1, 2506.13585, eq. 4)
        reinforce  A log pi

    On policy (rho = 1), and with infinite bounds off policy up to the factor rho, all three have the same gradient.
    A lower bound of 1 leaves CISPO's lower side open.
    """
    advantages_S = tokens.advantages_S
    if loss == "reinforce":
        return advantages_S * tokens.logprobs_S
    if loss == "cispo":
        return bounded(ratio_S, clip_low, clip_high).detach() * advantages_S * tokens.logprobs_S
    return clipped_objective(ratio_S, advantages_S, low=clip_low, high=clip_high, dual_clip=dual_clip)


def clipped(
    ratio_S: Tensor, advantages_S: Tensor, *, loss: LossName, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Say for which tokens the lower and the upper bound bind, two [S] masks (a dual clip is not counted).

    PPO's clip binds only where moving on would pay: above for A > 0, below for A < 0. CISPO's binds for both signs.
    """
    low_S, high_S = ratio_S < 1.0 - clip_low, ratio_S > 1.0 + clip_high
    if loss == "reinforce":
        return torch.zeros_like(low_S), torch.zeros_like(high_S)
    if loss == "cispo":
        return low_S, high_S
    return low_S & (advantages_S < 0), high_S & (advantages_S > 0)


def kl_estimate(logprobs_S: Tensor, other_logprobs_S: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate KL(pi || other) from tokens that pi sampled, [S] nats (Schulman 2020, "Approximating KL divergence").

        d = log other - log pi        k1: -d        k2: d^2 / 2        k3: exp(d) - d - 1

    As a penalty, k1's gradient is zero in expectation on policy, k2's is the divergence's own, k3's is that of
    KL(other || pi). For k3, d is bounded at 20 nats, so that its exponential stays finite: a token that the other
    policy likes better by more than that is penalised by a constant (4.9e8 nats), and its gradient is zero, where the
    exact one would be enormous. k1 and k2 have no such bound.
    """
    difference_S = other_logprobs_S - logprobs_S
    if estimator == "k1":
        return -difference_S
    if estimator == "k2":
        return 0.5 * difference_S.square()
    # expm1 keeps the digits that exp(d) - 1 loses where the two policies nearly agree.
    bounded_S = difference_S.clamp(max=MAX_LOG_RATIO)
    return torch.expm1(bounded_S) - bounded_S


def policy_loss(
    tokens: SampledTokens,
    *,
    loss: LossName = "clip",
    ratio: Ratio = "token",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    mismatch: Mismatch = "none",
    mismatch_unit: MismatchUnit = "token",
    mismatch_low: float = 0.5,
    mismatch_high: float = 2.0,
    kl_coefficient: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    entropy_coefficient: float = 0.0,
) -> LossTerms:
    """Compose the slots into one loss.

        L = sum_s weight_s * (-factor_s * surrogate_s + kl_coefficient * KL_s - entropy_coefficient * H_s)

    Args:
        tokens: The micro-batch.
        loss: The surrogate.
        ratio: Granularity of the importance ratio.
        clip_low: Half-width of the trust region below 1.
        clip_high: Half-width of the trust region above 1.
        dual_clip: Bound c > 1 on the loss of negative advantages; none if left out.
        mismatch: Correction for the sampler's own probabilities.
        mismatch_unit: What shares one weight in it.
        mismatch_low: Lower bound of the correction.
        mismatch_high: Upper bound of the correction.
        kl_coefficient: Weight of the divergence from the reference.
        kl_estimator: How that divergence is estimated.
        entropy_coefficient: Weight of the entropy bonus.
    """
    shape = tokens.logprobs_S.shape
    assert len(shape) == 1, "logprobs are flat over the sampled tokens"
    assert tokens.advantages_S.shape == shape and tokens.weights_S.shape == shape, "one entry for each sampled token"
    ratio_S = log_ratio(tokens, ratio).exp()
    objective_S = surrogate(tokens, ratio_S, loss=loss, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    behaviour_S = tokens.behaviour_logprobs_S
    assert mismatch == "none" or behaviour_S is not None, f"mismatch {mismatch!r} needs the sampler's log-probs"
    log_w_S = tokens.old_logprobs_S - (tokens.old_logprobs_S if behaviour_S is None else behaviour_S)
    if mismatch != "none":
        log_w_S = unit_log_weights(log_w_S, mismatch_unit, turns_S=tokens.turns_S, segments_S=tokens.segments_S)
    factor_S = mismatch_factor(log_w_S, mismatch, low=mismatch_low, high=mismatch_high)
    policy = -(tokens.weights_S * factor_S * objective_S).sum()
    zero = policy.new_zeros(())
    kl, entropy = zero, zero
    if kl_coefficient:
        assert tokens.ref_logprobs_S is not None, "a KL penalty needs the reference's log-probs"
        estimate_S = kl_estimate(tokens.logprobs_S, tokens.ref_logprobs_S, kl_estimator)
        kl = kl_coefficient * (tokens.weights_S * estimate_S).sum()
    if entropy_coefficient:
        assert tokens.entropy_S is not None, "an entropy bonus needs the tokens' entropies"
        entropy = -entropy_coefficient * (tokens.weights_S * tokens.entropy_S).sum()
    low_S, high_S = clipped(ratio_S, tokens.advantages_S, loss=loss, clip_low=clip_low, clip_high=clip_high)
    sums = _sums(tokens, (policy, kl, entropy), (low_S, high_S, ratio_S, factor_S))
    return LossTerms(policy + kl + entropy, sums)


@torch.no_grad()
def _sums(tokens: SampledTokens, shares: tuple[Tensor, ...], per_token: tuple[Tensor, ...]) -> LossSums:
    logprobs_S = tokens.logprobs_S
    zeros_S = torch.zeros_like(logprobs_S)
    ref_S = tokens.ref_logprobs_S
    columns = (
        zeros_S if tokens.entropy_S is None else tokens.entropy_S,
        # From samples of the old policy: d = log new - log old.
        kl_estimate(tokens.old_logprobs_S, logprobs_S, "k3"),
        zeros_S if ref_S is None else kl_estimate(logprobs_S, ref_S, "k3"),
        *per_token,
    )
    totals = torch.stack([*shares, *(column.to(logprobs_S.dtype).sum() for column in columns)])
    # One transfer from the device for all sums.
    return LossSums(float(logprobs_S.numel()), *totals.tolist())
