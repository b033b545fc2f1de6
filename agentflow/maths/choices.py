"""Which tasks are played, how often, and which attempt stands for the others: pure rules over arrays.

Axes: Q tasks, U attempts. Randomness comes from a generator that is passed in.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from agentflow.maths.advantages import mixed_group_probability
from agentflow.maths.units import Floats, Units, num_units


def information_gain(success_rates_Q: Floats) -> Floats:
    """Return p (1 - p)^2, [Q]: greatest (4/27) at p = 1/3 (VADE, 2511.18902; Knapsack RL, 2509.25849)."""
    return np.asarray(success_rates_Q * (1.0 - success_rates_Q) ** 2)


def expected_gain(alpha_Q: Floats, beta_Q: Floats) -> Floats:
    """Return the mean of p (1 - p)^2 under Beta(alpha, beta), [Q]: `a b (b + 1) / ((a+b) (a+b+1) (a+b+2))`.

    Args:
        alpha_Q: [Q] first parameters, positive: counts of successes plus the prior's 1.
        beta_Q: [Q] second parameters.
    """
    total = alpha_Q + beta_Q
    return np.asarray(alpha_Q * beta_Q * (beta_Q + 1.0) / (total * (total + 1.0) * (total + 2.0)))


def thompson(alpha_Q: Floats, beta_Q: Floats, count: int, *, generator: np.random.Generator) -> Units:
    """Choose the tasks that promise to teach most under one sample of what is believed: VADE (2511.18902).

        p_q ~ Beta(alpha_q + 1, beta_q + 1)        the `count` greatest p (1 - p)^2

    Args:
        alpha_Q: [Q] counts of successes, not negative.
        beta_Q: [Q] counts of failures.
        count: Tasks to choose, at most Q.
        generator: Draws Q numbers.

    Returns:
        [count] indices, the most promising first.
    """
    gains_Q = information_gain(generator.beta(alpha_Q + 1.0, beta_Q + 1.0))
    return np.argsort(-gains_Q, kind="stable")[:count]


def uncertainty_weights(
    success_rates_Q: Floats, sizes_Q: Floats | None = None, *, power: float = 0.0, floor: float = 0.05
) -> Floats:
    """Return the probability with which each task is drawn: SPO (2509.13232), [Q].

        w = sqrt(v (1 - v)) / N_eff^power + floor        divided by their sum

    The paper writes N_eff into it; the code has a power of 0.

    Args:
        success_rates_Q: [Q] tracked success rates; nan (unknown) counts as one half.
        sizes_Q: [Q] effective attempts; needed by a power other than 0, where less than one counts as one.
        power: How strongly what is well known is avoided.
        floor: Added to each weight, so that every task comes again.
    """
    rates_Q = np.where(np.isnan(success_rates_Q), 0.5, success_rates_Q)
    weights_Q = np.sqrt(rates_Q * (1.0 - rates_Q))
    if power:
        assert sizes_Q is not None, "a power of the effective attempts needs them"
        weights_Q = weights_Q / np.maximum(sizes_Q, 1.0) ** power
    weights_Q = weights_Q + floor
    return np.asarray(weights_Q / weights_Q.sum())


def draw(probabilities_Q: Floats, count: int, *, generator: np.random.Generator) -> Units:
    """Draw different tasks, [count] indices; each of them has a probability above 0."""
    return np.asarray(generator.choice(len(probabilities_Q), size=count, replace=False, p=probabilities_Q))


def replacements(values_Q: Floats, count: int, *, generator: np.random.Generator) -> Units:
    """Fill freed places with tasks in proportion to their value, [Q] how often each is used again ("VSPO-style").

    VSPO's own rule (2512.07478) is not published; proportional draws with replacement are a reading.

    Args:
        values_Q: [Q] values from `unit_advantages.group_values`; a task of value 0 is never drawn.
        count: Places to fill. Without any value they stay empty.
        generator: Draws once for all places.
    """
    total = float(values_Q.sum())
    if total <= 0.0:
        return np.zeros(len(values_Q), dtype=np.intp)
    return generator.multinomial(count, values_Q / total).astype(np.intp)


def knapsack(success_rates_Q: Floats, budget: int, *, low: int = 2, high: int = 128) -> Units:
    """Divide attempts among tasks so that most is learned: Knapsack RL (2509.25849), [Q] attempts of each.

        maximise sum_q V_q(N_q)        V(N) = (1 - p^N - (1 - p)^N) p (1 - p)^2        low <= N_q <= high

    One more attempt adds less the more there are (from one on), so giving each to whom it adds most is exact. The
    authors' code scores the first extra attempt with all of V; these are its increments. Ties go to the earlier task.

    Args:
        success_rates_Q: [Q] estimated success rates.
        budget: All attempts, between Q * low and Q * high.
        low: The least attempts of a task, at least 1.
        high: The most.
    """
    num_tasks = len(success_rates_Q)
    assert num_tasks * low <= budget <= num_tasks * high, "the budget must lie between Q * low and Q * high"
    sizes_Q = np.full(num_tasks, low, dtype=np.intp)
    increments_Q = np.array([_increment(rate, low) for rate in success_rates_Q])
    for _ in range(budget - num_tasks * low):
        best = int(np.argmax(np.where(sizes_Q < high, increments_Q, -np.inf)))
        sizes_Q[best] += 1
        increments_Q[best] = _increment(success_rates_Q[best], int(sizes_Q[best]))
    return sizes_Q


def _increment(rate: float, size: int) -> float:
    gain = rate * (1.0 - rate) ** 2
    return gain * (mixed_group_probability(rate, size + 1) - mixed_group_probability(rate, size))


def majority(answers: Sequence[Hashable | None], groups_U: Units) -> Floats:
    """Reward agreement with the answer that most attempts of a task gave: TTRL and SPINE (2511.17938), [U].

    Among answers that are equally frequent the first one given wins. An attempt without an answer has no vote and gets
    0; where no attempt of a group has one there is nothing to agree with: nan.

    Args:
        answers: U answers in a canonical form; None is none.
        groups_U: [U] task of each attempt; -1 gets nan.
    """
    rewards_U = np.full(len(answers), np.nan)
    for group in range(num_units(groups_U)):
        mine = np.flatnonzero(groups_U == group).tolist()
        votes = [answers[index] for index in mine if answers[index] is not None]
        if votes:
            # max() keeps the first of equals.
            winner = max(votes, key=votes.count)
            rewards_U[mine] = [float(answers[index] == winner) for index in mine]
    return rewards_U


def best_of(returns: Sequence[float | None]) -> int | None:
    """Return the index of the attempt with the highest return: iGRPO's draft (2602.09000, eq. 5).

    Among equals the first; None where no attempt has a return.
    """
    known = [index for index, value in enumerate(returns) if value is not None]
    return max(known, key=lambda index: returns[index] or 0.0) if known else None
