"""Small pure helpers for the numbers of a run: sums over micro-batches, tables, intervals, pass@k."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from types import MappingProxyType
from typing import TypeVar

import numpy as np

KeyT = TypeVar("KeyT")


@dataclass(frozen=True, slots=True)
class Sums:
    """Weighted sums that add across micro-batches, so that their means do not depend on how a batch was cut.

    Attributes:
        totals: For each name, the sum of the values and the sum of their weights.
    """

    totals: Mapping[str, tuple[float, float]] = field(default_factory=lambda: MappingProxyType({}))

    def __add__(self, other: "Sums") -> "Sums":
        merged = dict(self.totals)
        for name, (total, weight) in other.totals.items():
            old_total, old_weight = merged.get(name, (0.0, 0.0))
            merged[name] = (old_total + total, old_weight + weight)
        return Sums(merged)

    def means(self) -> dict[str, float | None]:
        """Divide each sum by its weight; None where nothing was counted, for missing is never 0."""
        return {name: total / weight if weight else None for name, (total, weight) in self.totals.items()}


def mean(values: Iterable[float]) -> float | None:
    """Return the mean, or None of nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, num_resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval (low, high) of the mean of independent values.

    Where a task was tried several times, pass one mean per task: attempts at one task are not independent.

    Args:
        values: [N] one number per independent unit, N >= 1.
        seed: Fixes the resampling.
        num_resamples: How often the values are drawn again with replacement.
        level: The share of resampled means inside the interval.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    array = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    # One resample at a time would be slow, all at once would need N * num_resamples numbers.
    rows = max(1, 2_000_000 // len(array))
    means = [
        array[generator.integers(0, len(array), (min(rows, num_resamples - done), len(array)))].mean(axis=1)
        for done in range(0, num_resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def success_interval(rates: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a success rate over tasks.

    The bootstrap interval of the tasks' rates. Where every task was solved, or none was, resampling shows no variance,
    and the exact (Clopper-Pearson) interval stands in its place.

    Args:
        rates: [N] share of each task's attempts that succeeded, N >= 1.

    Raises:
        ValueError: There are no rates.
    """
    low, high = bootstrap_interval(rates)
    if low == high == 0.0:
        return 0.0, 1.0 - _TAIL ** (1.0 / len(rates))
    if low == high == 1.0:
        return _TAIL ** (1.0 / len(rates)), 1.0
    return low, high


_TAIL = 0.025


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the unbiased estimate of the chance that at least one of k attempts succeeds.

    `1 - C(n - c, k) / C(n, k)`: "Evaluating Large Language Models Trained on Code", equation 1. With k = 1 it is the
    success rate; with k = n it is 1 as soon as one attempt succeeded.

    Args:
        num_samples: n, the attempts that were made.
        num_correct: c, those that succeeded, at most n.
        k: The attempts that are allowed, 1 <= k <= n.

    Raises:
        ValueError: The counts do not fit together.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_correct} correct in {num_samples} samples is not defined")
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def means_by_key(rows: Iterable[tuple[KeyT, Mapping[str, float]]]) -> dict[KeyT, dict[str, float]]:
    """Group rows by key and average each named number over the rows that have it; `count` is the number of rows.

    Args:
        rows: Pairs of a key (the number of hops, a level) and named numbers.

    Returns:
        The table in the order in which keys first appear.
    """
    grouped: dict[KeyT, list[Mapping[str, float]]] = {}
    for key, numbers in rows:
        grouped.setdefault(key, []).append(numbers)
    return {key: {"count": len(group), **_column_means(group)} for key, group in grouped.items()}


def _column_means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items()}
