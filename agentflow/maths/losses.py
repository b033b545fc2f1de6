"""Policy-gradient losses over the flat axis of sampled tokens: pure functions of tensors.

Axis S: the sampled tokens of a batch in canonical order (trajectory, turn, token); prompts, tool output and padding
are not on it. Token weights are normalised over the WHOLE batch, so the losses of its micro-batches simply add up.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentflow.maths.mismatch import MAX_LOG_RATIO
from agentflow.maths.ratios import Bound

Floats: TypeAlias = NDArray[np.float64]
Aggregation: TypeAlias = Literal["nested", "turn", "token", "constant"]
KLEstimator: TypeAlias = Literal["k1", "k2", "k3"]


def token_weights(
    turn_lengths: Sequence[Sequence[int]],
    aggregation: Aggregation,
    *,
    constant: float | None = None,
    keep_S: NDArray[np.bool_] | Floats | None = None,
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
        keep_S: [S] false (or 0) for tokens that are dropped: weight zero, and every count above shrinks; a factor
            between 0 and 1 counts in part.

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


def binding(ratio_S: Tensor, advantages_S: Tensor, *, low: Bound, high: Bound) -> tuple[Tensor, Tensor]:
    """Say for which tokens the lower and the upper bound of PPO's clip bind, two [S] masks.

    It binds only where moving on would pay: above for A > 0, below for A < 0. A dual clip is not counted.
    """
    return (ratio_S < 1.0 - low) & (advantages_S < 0), (ratio_S > 1.0 + high) & (advantages_S > 0)


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
