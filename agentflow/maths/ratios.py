"""Importance ratios of units of any size, their bounds and their mixtures: pure functions of tensors.

Axis S: the sampled tokens of a batch. Bounds are half-widths around 1, one number or one for each token, so that a
trust region may depend on a token's advantage, its group or its branch.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from agentflow.maths.mismatch import MAX_LOG_RATIO, segment_sums

Bound: TypeAlias = float | Tensor


class Branch(NamedTuple):
    """One ratio among several that are mixed.

    Attributes:
        ratio_S: [S] the branch's ratio of each token.
        low: Half-width of its trust region below 1, a number or [S].
        high: Half-width of its trust region above 1, a number or [S].
        weight: Its share in the mixture, a number or [S].
    """

    ratio_S: Tensor
    low: Bound
    high: Bound
    weight: Bound = 1.0


def unit_log_ratio(
    logprobs_S: Tensor,
    start_logprobs_S: Tensor,
    units_S: Tensor,
    *,
    mean: Literal["geometric", "product"] = "geometric",
    gradient: Literal["own", "shared"] = "own",
) -> Tensor:
    """Return the log of the ratio that each token's unit shares, [S].

        geometric  mean of log pi_theta - log pi_start over the unit (GSPO, 2507.18071, eq. 7)
        product    sum of it (M-GRPO, 2511.13288): it grows with the unit's length

    Args:
        logprobs_S: [S] log-probs under the policy that is being updated, with gradient.
        start_logprobs_S: [S] log-probs under the weights that the iteration started from.
        units_S: [S] unit of each token; one in no unit (-1) keeps its own ratio.
        mean: What the unit shares.
        gradient: `shared` is the derivative of the value, each token reaching all of its unit; with `own` (GSPO-token,
            eq. 14) each token reaches itself alone, which is the same where a unit shares weight and advantage.
            `own` under `product` needs a unit's tokens to share those two, or its gradient means nothing.
    """
    difference_S = (logprobs_S - start_logprobs_S).clamp(max=MAX_LOG_RATIO)
    alone_S = units_S < 0
    shared_S = segment_sums(difference_S, units_S, mean=mean == "geometric").clamp(max=MAX_LOG_RATIO)
    if gradient == "own":
        shared_S = shared_S.detach() + difference_S - difference_S.detach()
    return torch.where(alone_S, difference_S, shared_S)


def clipped_objective(
    ratio_S: Tensor, advantages_S: Tensor, *, low: Bound, high: Bound, dual_clip: float | None = None
) -> Tensor:
    """Return PPO's objective of each token, to be maximised, [S].

        min(rho A, clip(rho, 1 - low, 1 + high) A)              (PPO, 1707.06347, eq. 7)
        for A < 0 with a dual clip c: max(that, c A)            (1912.09729, eq. 5)

    The minimum binds below for A < 0 and above for A > 0 only, so bounds by the sign of the advantage, as NGRPO
    (2509.18851) writes them, are `low` and `high`.

    Args:
        ratio_S: [S] importance ratios.
        advantages_S: [S] advantages.
        low: Half-width below 1.
        high: Half-width above 1.
        dual_clip: Bound c > 1 on the loss of negative advantages; none if left out.
    """
    objective_S = torch.minimum(ratio_S * advantages_S, bounded(ratio_S, low, high) * advantages_S)
    if dual_clip is None:
        return objective_S
    return torch.where(advantages_S < 0, torch.maximum(objective_S, dual_clip * advantages_S), objective_S)


def bounded(ratio_S: Tensor, low: Bound, high: Bound) -> Tensor:
    """Return the ratios kept within [1 - low, 1 + high], [S]; a ratio on a bound still passes its gradient."""
    least, most = (
        torch.as_tensor(edge, dtype=ratio_S.dtype, device=ratio_S.device) for edge in (1.0 - low, 1.0 + high)
    )
    return ratio_S.clamp(least, most)


def mixed_objective(branches: Sequence[Branch], advantages_S: Tensor, *, pessimistic: bool = True) -> Tensor:
    """Mix ratios of several granularities, each limited in its own trust region first: DHPO (2601.05607), [S].

        pessimistic    sum_b w_b min(rho_b A, clip_b(rho_b) A)      the minimum taken branch by branch
        otherwise      sum_b w_b clip_b(rho_b) A                    both sides clipped, whatever the sign of A

    A token outside one branch's region still moves through the others. Where the paper takes the minimum was not found:
    the pessimistic form is a reading, safe as PPO's. One branch of weight 1 is GRPO (token) or GSPO (trajectory).

    Args:
        branches: The ratios with their regions and weights.
        advantages_S: [S] advantages.
        pessimistic: Whether each branch takes PPO's minimum.
    """
    assert branches, "a mixture needs a branch"
    total_S = torch.zeros_like(advantages_S)
    for ratio_S, low, high, weight in branches:
        if pessimistic:
            total_S = total_S + weight * clipped_objective(ratio_S, advantages_S, low=low, high=high)
        else:
            total_S = total_S + weight * bounded(ratio_S, low, high) * advantages_S
    return total_S


def entropy_weights(entropy_S: Tensor, units_S: Tensor | None = None) -> Tensor:
    """Bring entropies to [0, 1], without gradient: the weight of DHPO's token branch (2601.05607), [S].

        w = (H - min H) / (max H - min H)        1/2 where all are equal

    That high entropy favours the token branch is a reading; `1 - w` is the other one.

    Args:
        entropy_S: [S] entropy of each token's distribution.
        units_S: [S] what minimum and maximum are taken over; the whole batch if left out.
    """
    values_S = entropy_S.detach()
    owner_S = torch.zeros_like(values_S, dtype=torch.long) if units_S is None else units_S
    _, index_S = torch.unique(owner_S, return_inverse=True)
    size = int(index_S.max()) + 1 if index_S.numel() else 0
    lowest = values_S.new_full((size,), torch.inf).scatter_reduce(0, index_S, values_S, "amin")[index_S]
    highest = values_S.new_full((size,), -torch.inf).scatter_reduce(0, index_S, values_S, "amax")[index_S]
    width_S = highest - lowest
    return torch.where(width_S > 0, (values_S - lowest) / width_S, 0.5)


def elastic_bounds(
    advantages_S: Tensor,
    spread_S: Tensor,
    *,
    bound: float,
    micro: float,
    macro: float,
    rescale: bool = False,
) -> Tensor:
    """Widen a trust region with the advantage and with the spread of the group: a reading of ETR (2601.03723), [S].

        eps = bound * (1 + micro tanh|A|) * (1 + macro spread)        / ((1 + micro)(1 + macro)) if rescaled

    The paper's own formula and coefficients were not found: what uses this is "ETR-style". With rewards of 0 and 1 the
    two factors are not independent: a lone success has a large advantage in a group of little spread.

    Args:
        advantages_S: [S] advantages.
        spread_S: [S] spread of the raw returns of each token's group in [0, 1], from `unit_advantages.outcome_spread`;
            the spread of normalised advantages would be a constant.
        bound: Half-width of the ordinary region.
        micro: How much the largest advantage widens it.
        macro: How much the largest spread widens it.
        rescale: Whether `bound` is to stay the widest one.
    """
    widened_S = bound * (1.0 + micro * advantages_S.detach().abs().tanh()) * (1.0 + macro * spread_S)
    return widened_S / ((1.0 + micro) * (1.0 + macro)) if rescale else widened_S
