"""Correct for a sampler whose probabilities differ from the learner's: pure functions over the sampled tokens.

    w = pi_old / pi_behaviour       the learner's over the sampler's probability of a token, without gradient

The weight of a token is exact only together with those of the tokens before it: a correction for each token alone is
biased (its error grows with the square of the length), the product over the sequence is not, and its variance
explodes; the geometric mean is the compromise that does not depend on the length.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Mismatch: TypeAlias = Literal["none", "tis", "icepop", "mis"]
MismatchUnit: TypeAlias = Literal["token", "turn", "turn_mean", "sequence", "sequence_mean"]

MAX_LOG_RATIO = 20.0
"""Bound before an exponential: past it, an overflow to infinity would turn the gradient of a clipped token into NaN."""


def owners(turn_lengths: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return [S] the index of each sampled token's turn, and [S] that of its trajectory, over a whole batch.

    Args:
        turn_lengths: For each trajectory, the number of sampled tokens of each turn.
    """
    lengths_R = torch.tensor([length for trajectory in turn_lengths for length in trajectory], dtype=torch.long)
    turns_N = torch.tensor([len(trajectory) for trajectory in turn_lengths], dtype=torch.long)
    turns_S = torch.repeat_interleave(torch.arange(len(lengths_R)), lengths_R)
    trajectories_R = torch.repeat_interleave(torch.arange(len(turns_N)), turns_N)
    return turns_S, trajectories_R[turns_S]


def segment_sums(values_S: Tensor, segments_S: Tensor, *, mean: bool = False) -> Tensor:
    """Return [S] the sum, or the mean, of the values that share a token's segment.

    The sums are taken in float64, so that they do not depend on how the batch is cut or ordered.
    """
    _, index_S, counts = torch.unique(segments_S, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=torch.float64, device=values_S.device)
    sums.index_add_(0, index_S, values_S.double())
    return (sums / counts if mean else sums)[index_S].to(values_S.dtype)


def unit_log_weights(
    log_w_S: Tensor, unit: MismatchUnit, *, turns_S: Tensor | None = None, segments_S: Tensor | None = None
) -> Tensor:
    """Return the log of the weight that stands for each token, [S].

        token  log w_s      turn, sequence  sum of log w over it      turn_mean, sequence_mean  mean of log w over it

    The sums are products of w (sequence importance sampling, unbiased), the means geometric means of w.

    Args:
        log_w_S: [S] log of each token's own w.
        unit: What shares one weight.
        turns_S: [S] index of each token's turn; needed by the units of turns.
        segments_S: [S] index of each token's trajectory; needed by the units of sequences.
    """
    if unit == "token":
        return log_w_S
    owner_S = turns_S if unit in ("turn", "turn_mean") else segments_S
    assert owner_S is not None, f"mismatch_unit {unit!r} needs the turn or the trajectory of each token"
    return segment_sums(log_w_S, owner_S, mean=unit in ("turn_mean", "sequence_mean"))


def mismatch_factor(log_w_S: Tensor, mismatch: Mismatch, *, low: float, high: float) -> Tensor:
    """Return the factor of each token's objective, [S].

        none 1      tis min(w, high)      icepop w if low <= w <= high else 0      mis 1 if low <= w <= high else 0

    Sources: TIS (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"), IcePop
    (2510.18855), masked importance sampling. `mis` drops tokens, so its `token_weights` take them as not kept.

    Args:
        log_w_S: [S] log of the weight that stands for each token, from `unit_log_weights`.
        mismatch: Which correction.
        low: Lower bound of w; TIS has none.
        high: Upper bound of w.
    """
    w_S = log_w_S.detach().clamp(max=MAX_LOG_RATIO).exp()
    if mismatch == "none":
        return torch.ones_like(w_S)
    if mismatch == "tis":
        return w_S.clamp(max=high)
    inside_S = ((w_S >= low) & (w_S <= high)).to(w_S.dtype)
    return w_S * inside_S if mismatch == "icepop" else inside_S
