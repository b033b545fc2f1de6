"""Which tokens are forks, and between which bounds their entropy is kept: SPINE (2511.17938). Pure functions.

Axes: S sampled tokens of a batch, V vocabulary. Thresholds and bounds are statistics (numpy, no gradient); the hinges
and the divergence are tensors and carry one.
"""

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentflow.maths.units import Floats, Units, num_units

MAD_TO_STD = 1.4826
"""Makes the median absolute deviation of a normal distribution its standard deviation."""


def top_share(entropies_S: Floats, units_S: Units, *, share: float) -> NDArray[np.bool_]:
    """Mark the tokens of highest entropy in each unit, [S]: SPINE's first version.

    The number of them is rounded up, so a unit always has one; among equals the earlier ones are taken.

    Args:
        entropies_S: [S] entropy of each token's distribution.
        units_S: [S] what the share is taken of; a token in no unit is no fork.
        share: Share of a unit's tokens in (0, 1].
    """
    forks_S = np.zeros(len(entropies_S), dtype=bool)
    for unit in range(num_units(units_S)):
        mine = np.flatnonzero(units_S == unit)
        # A share of 0.2 of 10 tokens is 2: the product may lie a rounding error above.
        count = math.ceil(share * len(mine) - 1e-9)
        forks_S[mine[np.argsort(-entropies_S[mine], kind="stable")[:count]]] = True
    return forks_S


def otsu_threshold(values_N: Floats, *, bins: int = 100) -> float:
    """Return the value that best parts the low from the high ones (Otsu 1979): SPINE's second version.

    Of the centres of `bins` equal intervals, the one that maximises the variance between what is at most it and what is
    above. In a gap between two modes many centres are equally good; the lowest is taken.

    Args:
        values_N: [N] values.
        bins: Intervals between the least and the greatest value.

    Returns:
        The threshold; nan where there is none, because all values are equal or there are none.
    """
    if values_N.size == 0 or values_N.min() == values_N.max():
        return math.nan
    ordered = np.sort(values_N)
    edges = np.linspace(ordered[0], ordered[-1], bins + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.searchsorted(ordered, centres, side="right")
    above = len(ordered) - below
    sums = np.concatenate([[0.0], np.cumsum(ordered)])[below]
    # The least value is below every centre and the greatest above: neither side is ever empty.
    between = below * above * (sums / below - (ordered.sum() - sums) / above) ** 2
    return float(centres[between.argmax()])


def above_otsu(
    entropies_S: Floats, units_S: Units, *, bins: int = 100, equal: Literal["all", "none"] = "none"
) -> NDArray[np.bool_]:
    """Mark the tokens above each unit's Otsu threshold, [S].

    Args:
        entropies_S: [S] entropy of each token's distribution.
        units_S: [S] what a threshold is taken for; a token in no unit is no fork.
        bins: As in `otsu_threshold`.
        equal: What is marked in a unit whose entropies are all equal.
    """
    forks_S = np.zeros(len(entropies_S), dtype=bool)
    for unit in range(num_units(units_S)):
        mine_S = units_S == unit
        threshold = otsu_threshold(entropies_S[mine_S], bins=bins)
        forks_S[mine_S] = equal == "all" if math.isnan(threshold) else entropies_S[mine_S] > threshold
    return forks_S


def quantile_band(forks_N: Floats, *, low: float = 0.1, high: float = 0.5) -> tuple[float, float]:
    """Return two quantiles of the forks' entropies, linearly interpolated: the band of SPINE's first version."""
    if forks_N.size == 0:
        return math.nan, math.nan
    return float(np.quantile(forks_N, low)), float(np.quantile(forks_N, high))


def median_band(forks_N: Floats) -> tuple[float, float]:
    """Return [max(0, median - 1.4826 MAD), median] of the forks' entropies: the band of SPINE's second version.

    Half of the forks lie above the median, so the upper hinge always pushes on about half of them.
    """
    if forks_N.size == 0:
        return math.nan, math.nan
    median = float(np.median(forks_N))
    deviation = float(np.median(np.abs(forks_N - median)))
    return max(0.0, median - MAD_TO_STD * deviation), median


def bands(
    entropies_S: Floats, forks_S: NDArray[np.bool_], units_S: Units, *, by: Literal["quantiles", "median"]
) -> tuple[Floats, Floats]:
    """Return the lower and the upper bound of each fork, two [S] arrays; nan for what is no fork.

    Args:
        entropies_S: [S] entropy of each token's distribution.
        forks_S: [S] which tokens are forks.
        units_S: [S] what a band is taken over.
        by: `quantile_band` with its defaults, or `median_band`.
    """
    low_S, high_S = np.full(len(entropies_S), np.nan), np.full(len(entropies_S), np.nan)
    band = quantile_band if by == "quantiles" else median_band
    for unit in range(num_units(units_S)):
        mine_S = forks_S & (units_S == unit)
        low_S[mine_S], high_S[mine_S] = band(entropies_S[mine_S])
    return low_S, high_S


def band_hinges(entropy_S: Tensor, low_S: Tensor, high_S: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far each fork's entropy is below and above its band, two [S] tensors in nats (SPINE, 2511.17938).

        [low - H]_+      [H - high]_+       0 where the bound is nan

    Args:
        entropy_S: [S] entropy of each token's distribution, with gradient.
        low_S: [S] lower bounds, nan for what is no fork.
        high_S: [S] upper bounds.
    """
    below_S = (low_S.nan_to_num(nan=-math.inf, neginf=-math.inf) - entropy_S).clamp(min=0.0)
    above_S = (entropy_S - high_S.nan_to_num(nan=math.inf, posinf=math.inf)).clamp(min=0.0)
    return below_S, above_S


def exact_kl(logits_SV: Tensor, other_logits_SV: Tensor) -> Tensor:
    """Return KL(pi || other) over the whole vocabulary, [S] nats, with the gradient of both.

        sum_v pi(v) (log pi(v) - log other(v))

    Args:
        logits_SV: [S, V] logits of the policy; -inf is a token that cannot be sampled.
        other_logits_SV: [S, V] logits of the other one, finite where the policy's are.
    """
    assert logits_SV.shape == other_logits_SV.shape, "both policies have the same tokens and the same vocabulary"
    log_pi_SV, log_other_SV = logits_SV.log_softmax(-1), other_logits_SV.log_softmax(-1)
    probs_SV = log_pi_SV.exp()
    difference_SV = torch.where(probs_SV > 0, log_pi_SV - log_other_SV, 0.0)
    return (probs_SV * difference_SV).sum(-1)
