"""Advantages of units of any size, compared within groups of units: pure float64 functions.

Axes: U units (trajectories, turns, segments, items, ...), C named terms of the reward. `groups_U` is the group that
each unit is compared in, -1 for none. A value of nan is "not applicable": it enters no statistic and its advantage is
nan, never 0. `units.spread` brings advantages to the tokens.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from agentflow.maths.advantages import Baseline, Floats, Scale, Singleton, normalise, returns_to_go, whiten
from agentflow.maths.units import Units, num_units, unit_means


def relative(
    values_U: Floats,
    groups_U: Units,
    *,
    baseline: Baseline,
    scale: Scale,
    epsilon: float = 1e-6,
    singleton: Singleton = "zero",
    virtual: Sequence[float] = (),
) -> Floats:
    """Compare each unit with the units of its group: `advantages.normalise`, group by group.

    With virtual values it is NGRPO (2509.18851): one more sample of the highest reward counts in each group's mean and
    std and is learned from nowhere, so that a group of G failures gets -1/sqrt(G + 1) each in place of nothing. On
    anchors (`units.anchors`) it is the step level of GiGPO (2505.10978, eq. 7), on ranks Rank-GRPO (2510.20150).

    Args:
        values_U: [U] what is compared, nan where not applicable.
        groups_U: [U] group of each unit.
        baseline: As in `advantages.group_advantages`.
        scale: As in `advantages.group_advantages`.
        epsilon: As in `advantages.group_advantages`.
        singleton: As in `advantages.group_advantages`; virtual values count as company.
        virtual: Values that count once each in the statistics of every group.

    Returns:
        [U] advantages.
    """
    advantages_U: Floats = np.full(len(values_U), np.nan)
    known_U = np.where(np.isnan(values_U), -1, groups_U)
    for group in range(num_units(known_U)):
        mine = np.flatnonzero(known_U == group)
        counted = np.concatenate([values_U[mine], np.asarray(virtual, dtype=np.float64)])
        advantages_U[mine] = normalise(
            values_U[mine],
            counted,
            owner_N=np.arange(len(mine)),
            baseline=baseline,
            scale=scale,
            epsilon=epsilon,
            singleton=singleton,
        )
    return advantages_U


def combined(parts_CU: Sequence[Floats], weights_C: Sequence[float]) -> Floats:
    """Add up advantages with weights; a part that is not applicable to a unit adds nothing to it.

    GiGPO (2505.10978, eq. 8) is the episode's advantage plus omega times the step's; Tree-GRPO adds those within and
    between trees.

    Args:
        parts_CU: C arrays [U].
        weights_C: The weight of each.

    Returns:
        [U] weighted sums; nan where no part applies.
    """
    parts = np.stack([np.asarray(part_U, dtype=np.float64) for part_U in parts_CU])
    missing = np.isnan(parts)
    sums_U = np.asarray(weights_C, dtype=np.float64) @ np.where(missing, 0.0, parts)
    return np.where(missing.all(axis=0), np.nan, sums_U)


def decoupled(
    terms_CU: Sequence[Floats],
    groups_U: Units,
    weights_C: Sequence[float],
    *,
    baseline: Baseline = "mean",
    scale: Scale = "std_sample",
    epsilon: float = 1e-4,
) -> Floats:
    """Normalise each term of the reward within its group before they are added up: GDPO (2601.05242).

        A_i = sum_c w_c (r_i^c - mean(r^c)) / (std(r^c) + epsilon)

    Added first and normalised once, as GRPO does, rewards (0, 1) and (0, 2) of a pair are the same thing. A term that
    is equal in the whole group adds 0, one that is nan adds nothing. The paper then whitens over the batch
    (`advantages.whiten`): over units or, as the fork of verl does, over tokens, by its weights.

    Args:
        terms_CU: C arrays [U] of named terms.
        groups_U: [U] group of each unit.
        weights_C: The weight of each term.
        baseline: As in `advantages.group_advantages`.
        scale: As in `advantages.group_advantages`.
        epsilon: Added to each std; 1e-4 in TRL, 1e-6 elsewhere.
    """
    parts = [relative(term_U, groups_U, baseline=baseline, scale=scale, epsilon=epsilon) for term_U in terms_CU]
    return combined(parts, weights_C)


def step_returns(rewards_K: Floats, trajectories_K: Units, *, gamma: float) -> Floats:
    """Return each turn's discounted reward from there on, trajectory by trajectory, [K] (GiGPO, 2505.10978, eq. 5).

    Args:
        rewards_K: [K] rewards of the turns of a whole batch.
        trajectories_K: [K] trajectory of each turn, in order of time.
        gamma: Discount for each turn.
    """
    returns_K: Floats = np.full(len(rewards_K), np.nan)
    for trajectory in range(num_units(trajectories_K)):
        mine_K = trajectories_K == trajectory
        returns_K[mine_K] = returns_to_go(rewards_K[mine_K], gamma=gamma)
    return returns_K


def tracked(returns_U: Floats, baselines_U: Floats, *, epsilon: float | None = 1e-8) -> Floats:
    """Compare each return with what its task used to yield, then whiten the batch: SPO (2509.13232).

        A_i = r_i - v_i      then (A_i - mean(A)) / sqrt(var(A) + epsilon)

    The baseline must not know the return itself: it is read from the tracker before the tracker observes.

    Args:
        returns_U: [U] one return for each attempt; groups of one are enough.
        baselines_U: [U] tracked value of each attempt's task; nan where nothing is known yet.
        epsilon: Of the whitening; None leaves the differences as they are.
    """
    differences_U = np.asarray(returns_U - baselines_U, dtype=np.float64)
    return differences_U if epsilon is None else whiten(differences_U, epsilon=epsilon)


def group_values(
    returns_U: Floats, groups_U: Units, *, highest: float | None, spread: Literal["std", "variance"] = "std"
) -> Floats:
    """Say how much each group has to teach: VSPO's task value (2512.07478, from a summary of the paper).

        V = (R_max - mean(R)) * std(R)      or      * var(R), both of the population

    With rewards of 0 and 1 the first is greatest at a success rate of 1/4, the second at 1/3; both are 0 for a group
    without spread.

    Args:
        returns_U: [U] returns; nan is left out.
        groups_U: [U] group of each unit.
        highest: The greatest return that can be had; None takes the greatest of the group.
        spread: Whether the std or the variance multiplies.

    Returns:
        [G] one value for each group; 0 for one without a return.
    """
    values = np.zeros(num_units(groups_U))
    for group in range(len(values)):
        returns = returns_U[(groups_U == group) & ~np.isnan(returns_U)]
        if returns.size:
            top = float(returns.max()) if highest is None else highest
            values[group] = (top - returns.mean()) * (returns.std() if spread == "std" else returns.var())
    return values


def outcome_spread(returns_U: Floats, groups_U: Units, *, width: float = 1.0) -> Floats:
    """Return how far apart the returns of each group are, in [0, 1]: `4 var(R) / width^2`, [G].

    For returns of 0 and 1 it is 4 p (1 - p): 1 at a success rate of one half, 0 where all are equal.

    Args:
        returns_U: [U] raw returns; nan is left out.
        groups_U: [U] group of each unit.
        width: Greatest possible return minus the least.
    """
    known_U = np.where(np.isnan(returns_U), -1, groups_U)
    count = num_units(groups_U)
    means_G = np.nan_to_num(unit_means(returns_U, known_U, count))
    squares_G = np.nan_to_num(unit_means((returns_U - means_G[groups_U]) ** 2, known_U, count))
    return np.asarray(4.0 * squares_G / width**2)


def smoothing(times: Floats, *, power: float = 1.0) -> Floats:
    """Return the factor of an advantage that stands for itself n times in a batch: `n^-power`.

    A power of 1 gives n uses the weight of one, 0 leaves them all; VSPO's own formula ("value-smoothing clipping",
    2512.07478) is not published.

    Args:
        times: How often each group is used, at least once.
        power: How strongly repeated use is damped.
    """
    assert (np.asarray(times) >= 1).all(), "what is learned from is used at least once"
    return np.asarray(np.asarray(times, dtype=np.float64) ** -power)
