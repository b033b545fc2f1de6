"""Notice when shaped and raw return part ways: the policy is then learning the crutch, not the task."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from agentflow.config import Config

_SURE = 3.0
"""Standard errors by which a slope must differ from zero before it counts as a trend."""


class AlarmConfig(Config):
    """When shaped and raw return count as diverging."""

    window: int = Field(default=10, ge=4, description="Iterations looked back on.")
    min_fall: float = Field(
        default=0.05, ge=0, description="Fall of the raw return over the window that matters, in its unit."
    )
    min_correlation: float = Field(
        default=-0.1, ge=-1, le=1, description="Lowest mean correlation of shaped and raw return within an iteration."
    )
    stop: bool = Field(default=False, description="Whether an alarm ends the run.")


class DivergenceAlarm:
    """Watches the two returns over the last iterations.

    It rings where, over a full window, the shaped return has a significant upward trend while the raw return has a
    significant downward one of at least `min_fall`, or where better-shaped trajectories tend to be worse ones.

    Args:
        config: Window and thresholds.
        state: What `state_dict` returned after an earlier iteration; empty before the first.
    """

    def __init__(self, config: AlarmConfig, state: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self._history: list[tuple[float, float, float | None]] = []
        if state:
            self.load_state_dict(state)

    def observe(self, shaped_returns: Sequence[float], raw_returns: Sequence[float]) -> str:
        """Take in one iteration's scored trajectories.

        Args:
            shaped_returns: The shaped return of each.
            raw_returns: The raw return of each, in the same order.

        Returns:
            What is wrong and what to do about it, or nothing.
        """
        assert len(shaped_returns) == len(raw_returns), "the returns of the same trajectories"
        if not shaped_returns:
            return ""
        entry = (float(np.mean(shaped_returns)), float(np.mean(raw_returns)), _correlation(shaped_returns, raw_returns))
        self._history = [*self._history, entry][-self.config.window :]
        if len(self._history) < self.config.window:
            return ""
        return self._trends() or self._correlations()

    def _trends(self) -> str:
        shaped, raw, _ = zip(*self._history, strict=True)
        rise, fall = _trend(shaped), -_trend(raw)
        if rise <= 0.0 or fall <= 0.0 or fall < self.config.min_fall:
            return ""
        return (
            f"Over {self.config.window} iterations the shaped return rose by {rise:.3g} while the raw return fell by "
            f"{fall:.3g}: lower the weights of the shaped terms, or gate them on the outcome."
        )

    def _correlations(self) -> str:
        defined = [correlation for _, _, correlation in self._history if correlation is not None]
        if 2 * len(defined) < self.config.window or np.mean(defined) >= self.config.min_correlation:
            return ""
        return (
            f"Over {self.config.window} iterations shaped and raw return of a trajectory correlate at "
            f"{np.mean(defined):.2f}: a term pays for failing; read the reward ledger of the best-shaped trajectories."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, as JSON values."""
        return {"history": [list(entry) for entry in self._history]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self._history = [(shaped, raw, correlation) for shaped, raw, correlation in state["history"]]


def _trend(values: Sequence[float]) -> float:
    """Return the rise of the least-squares line over all values, zero where it is within its own error."""
    time = np.arange(len(values)) - (len(values) - 1) / 2
    centred = np.asarray(values) - np.mean(values)
    slope = float(time @ centred / (time @ time))
    residual = centred - slope * time
    error = float(np.sqrt(residual @ residual / (len(values) - 2) / (time @ time)))
    return slope * (len(values) - 1) if abs(slope) > _SURE * error else 0.0


def _correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Pearson's correlation, or None where one side does not vary."""
    if len(one) < 2 or np.ptp(one) == 0.0 or np.ptp(other) == 0.0:
        return None
    return float(np.corrcoef(one, other)[0, 1])
