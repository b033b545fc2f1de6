"""How much better than expected each turn was: pure float64 functions of returns.

Axes: G trajectories of one group, K turns of one trajectory, S sampled tokens, N entries of a whole batch.
A trajectory without a return (a failed one) never enters; whoever calls leaves it out beforehand.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Baseline: TypeAlias = Literal["none", "mean", "leave_one_out"]
Scale: TypeAlias = Literal["none", "std_sample", "std_population"]
Singleton: TypeAlias = Literal["zero", "raw"]
Unit: TypeAlias = Literal["trajectory", "row"]


def group_advantages(
    returns_G: Floats, *, baseline: Baseline, scale: Scale, epsilon: float = 1e-6, singleton: Singleton = "zero"
) -> Floats:
    """Compare each return of a group with the others.

        A_i = (R_i - b_i) / s
        b_i = 0 | mean(R) | (sum(R) - R_i) / (G - 1)        s = 1 | std(R) + epsilon, and 1 where that is 0

    Differences that rounding explains are none: equal returns have a std of 0 and, with a baseline, advantages of 0.

    Special cases: `mean` with a std is GRPO (DeepSeekMath, 2402.03300, eq. 3); `mean` without is Dr. GRPO (2503.20783);
    `leave_one_out` without is RLOO (2402.14740), equal to (R_i - mean) * G / (G - 1).

    Args:
        returns_G: [G] one return for each trajectory, finite.
        baseline: What is subtracted.
        scale: What divides: nothing, the sample std (divides by G - 1) or the population std (divides by G).
        epsilon: Added to the std; may be 0.
        singleton: What a group of one gets where a statistic of the group is asked for: zero, or its raw return.

    Returns:
        [G] advantages.
    """
    return normalise(returns_G, returns_G, baseline=baseline, scale=scale, epsilon=epsilon, singleton=singleton)


def normalise(
    values_N: Floats,
    units_G: Floats,
    *,
    owner_N: NDArray[np.intp] | None = None,
    baseline: Baseline,
    scale: Scale,
    epsilon: float = 1e-6,
    singleton: Singleton = "zero",
) -> Floats:
    """Subtract and divide by statistics of a group's units: `(values[n] - b[owner[n]]) / s`.

    Args:
        values_N: [N] what is normalised.
        units_G: [G] what counts once each in the statistics.
        owner_N: [N] the unit that each value belongs to; value n belongs to unit n if left out.
        baseline: As in `group_advantages`.
        scale: As in `group_advantages`.
        epsilon: As in `group_advantages`.
        singleton: As in `group_advantages`.
    """
    assert values_N.ndim == 1 and units_G.ndim == 1, "values and units are flat"
    assert np.isfinite(values_N).all(), "a missing return must be left out, not passed as NaN"
    if baseline == "none" and scale == "none":
        return values_N.astype(np.float64)
    if units_G.size < 2:
        return np.zeros_like(values_N) if singleton == "zero" else values_N.astype(np.float64)
    baseline_G = _baseline(units_G, baseline)
    difference_N = values_N - (baseline_G if owner_N is None else baseline_G[owner_N])
    rounding = _ROUNDING * float(np.abs(values_N).max(initial=0.0))
    difference_N[np.abs(difference_N) <= rounding] = 0.0
    return difference_N / _spread(units_G, scale, epsilon=epsilon, rounding=rounding)


_ROUNDING = 1e-12
"""Share of the largest value below which a difference is the rounding of sums: the mean of three 0.1 is no 0.1."""


def _spread(units_G: Floats, scale: Scale, *, epsilon: float, rounding: float) -> float:
    if scale == "none":
        return 1.0
    std = float(units_G.std(ddof=1 if scale == "std_sample" else 0))
    return (std if std > rounding else 0.0) + epsilon or 1.0


def _baseline(units_G: Floats, baseline: Baseline) -> Floats:
    if baseline == "none":
        return np.zeros_like(units_G)
    if baseline == "mean":
        return np.full_like(units_G, units_G.mean())
    others_G: Floats = (units_G.sum() - units_G) / (units_G.size - 1)
    return others_G


def turn_advantages(
    turn_credits: Sequence[Floats],
    *,
    unit: Unit = "trajectory",
    baseline: Baseline,
    scale: Scale,
    epsilon: float = 1e-6,
    singleton: Singleton = "zero",
) -> list[Floats]:
    """Normalise the turns of one group.

    The unit decides what counts once in the group's mean and std. `trajectory` is what the papers write: a
    trajectory enters with the mean over its turns, which is its return where every turn has the same credit. `row` is
    what code that stores one row for each turn does: long trajectories pull the statistics towards themselves.

    Args:
        turn_credits: G arrays [K_i] of what each turn is credited with before normalisation.
        unit: What counts once.
        baseline: As in `group_advantages`.
        scale: As in `group_advantages`.
        epsilon: As in `group_advantages`.
        singleton: As in `group_advantages`; a group of one trajectory is a singleton under both units.

    Returns:
        G arrays [K_i] of advantages.
    """
    if not turn_credits:
        return []
    lengths = np.array([len(credit_K) for credit_K in turn_credits])
    assert (lengths > 0).all(), "a trajectory without turns has nothing to be credited with"
    values_N = np.concatenate(turn_credits).astype(np.float64)
    if unit == "trajectory" or len(turn_credits) == 1:
        units = np.array([credit_K.mean() for credit_K in turn_credits])
        owner_N = np.repeat(np.arange(len(turn_credits)), lengths)
    else:
        units, owner_N = values_N, np.arange(values_N.size)
    normalised_N = normalise(
        values_N, units, owner_N=owner_N, baseline=baseline, scale=scale, epsilon=epsilon, singleton=singleton
    )
    return np.split(normalised_N, np.cumsum(lengths)[:-1])


def broadcast_return(rewards_K: Floats) -> Floats:
    """Credit every turn with the trajectory's return: Flow-GRPO (2510.05592, eq. 4), `[K] -> [K]`."""
    return np.full(len(rewards_K), float(np.sum(rewards_K)))


def returns_to_go(rewards: Floats, *, gamma: float = 1.0, mask: NDArray[np.bool_] | None = None) -> Floats:
    """Sum the discounted rewards from each entry on, entries being turns or tokens.

        G_n = r_n + gamma * G_{n+1}      where mask_n;      G_n = G_{n+1} elsewhere (carried through, never reset)

    Resetting at a masked token, as some implementations of REINFORCE++ (2501.03262) do, keeps a final reward from ever
    reaching the turns before the last tool output.

    Args:
        rewards: [N] rewards; a reward at a masked entry would be lost, so it must be zero there.
        gamma: Discount for each unmasked entry.
        mask: [N] true where the policy acted; everywhere if left out.

    Returns:
        [N] returns, zero at masked entries.
    """
    acted = np.ones(len(rewards), dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    assert not np.any(np.asarray(rewards)[~acted]), "a reward must sit on an entry where the policy acted"
    backwards = np.asarray(rewards, dtype=np.float64)[acted][::-1].tolist()
    returns = np.zeros(len(rewards))
    returns[acted] = list(accumulate(backwards, lambda running, reward: reward + gamma * running))[::-1]
    return returns


def whiten(
    values_N: Floats,
    weights_N: Floats | None = None,
    *,
    epsilon: float = 1e-8,
    epsilon_on: Literal["variance", "std"] = "variance",
) -> Floats:
    """Give a batch zero mean and unit sample variance, each value counting `weights` times.

        m = sum(w x) / sum(w)      v = sum(w (x - m)^2) / (sum(w) - 1)
        (x - m) / sqrt(v + epsilon)      or, with epsilon on the std,      (x - m) / (sqrt(v) + epsilon)

    This is the batch normalisation of REINFORCE++ (2501.03262), whose baseline variant subtracts the group's mean
    first, and the last step of GDPO (2601.05242). Weights of one count turns, the turns' token counts count tokens,
    1/K counts trajectories.

    Args:
        values_N: [N] values of the whole batch; nan is "not applicable": it counts nowhere and stays nan.
        weights_N: [N] how often each value counts; once if left out.
        epsilon: Keeps equal values from a division by zero.
        epsilon_on: What it is added to.
    """
    known_N = ~np.isnan(values_N)
    values = values_N[known_N]
    weights = np.ones_like(values) if weights_N is None else weights_N[known_N]
    whitened_N: Floats = np.full(len(values_N), np.nan)
    total = float(weights.sum())
    if total <= 1.0:
        whitened_N[known_N] = 0.0
        return whitened_N
    centred = values - float((weights * values).sum()) / total
    variance = float((weights * centred**2).sum()) / (total - 1.0)
    whitened_N[known_N] = centred / (
        np.sqrt(variance + epsilon) if epsilon_on == "variance" else np.sqrt(variance) + epsilon
    )
    return whitened_N


def mixed_group_probability(success_rate: float, group_size: int) -> float:
    """Return the chance that a group holds both outcomes: `1 - p^G - (1 - p)^G`; its inverse is the groups to draw."""
    return float(1.0 - success_rate**group_size - (1.0 - success_rate) ** group_size)
