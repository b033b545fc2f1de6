"""Numbers that change while a run goes on: pure functions of a clock or of what was last measured.

A clock is the share of iterations done, in [0, 1], or a count of iterations.
"""

import math
from collections.abc import Sequence


def ramp(clock: float, *, start: float, end: float, begin: float = 0.0, over: float = 1.0) -> float:
    """Go from one value to another in a straight line: `start` until `begin`, `end` from `begin + over` on.

    Args:
        clock: Time, in the unit of `begin` and `over`.
        start: Value before.
        end: Value after.
        begin: Time at which it begins to move.
        over: Time that it takes; 0 is a step, which is done at `begin`.
    """
    return start + (end - start) * _progress(clock, begin, over)


def cosine(clock: float, *, start: float, end: float, begin: float = 0.0, over: float = 1.0) -> float:
    """Go from one value to another along half a cosine. Arguments as in `ramp`."""
    return start + (end - start) * 0.5 * (1.0 - math.cos(math.pi * _progress(clock, begin, over)))


def _progress(clock: float, begin: float, over: float) -> float:
    if over == 0.0:
        return float(clock >= begin)
    return min(1.0, max(0.0, (clock - begin) / over))


def steps(clock: float, values: Sequence[float], at: Sequence[float]) -> float:
    """Return the value of the stage that a clock is in: `values[k]` from `at[k - 1]` on.

    Args:
        clock: Time.
        values: One value more than there are times.
        at: Rising times at which the next stage begins.
    """
    assert len(values) == len(at) + 1, "a stage begins at each time, and one before the first"
    return values[sum(clock >= time for time in at)]


def decay(count: int, *, start: float, factor: float, every: int = 1, floor: float = 0.0) -> float:
    """Multiply by a factor again and again: `max(floor, start * factor^(count // every))`.

    The budget of Train Long, Think Short (2508.08940) is this with a floor of one token.
    """
    return max(floor, start * factor ** (count // every))


def stairs(count: int, *, start: float, rise: float, every: int = 1, most: float = math.inf) -> float:
    """Add the same again and again: `min(most, start + rise * (count // every))`.

    FAKER-Air's horizon (2511.22169) and curricula of turns are this.
    """
    return min(most, start + rise * (count // every))


def controlled(
    value: float,
    integral: float,
    error: float,
    *,
    proportional: float,
    integral_gain: float,
    leak: float = 0.95,
    low: float = 0.0,
    high: float = math.inf,
) -> tuple[float, float]:
    """Move a positive coefficient against an error: the PI law of FAKER-Air (2511.22169).

        I <- leak I + e        lambda <- clip(lambda exp(k_p e + k_i I), low, high)

    A coefficient of 0 stays 0. The error is what was measured minus its target where more of the coefficient lowers
    what is measured (a KL weight), and the target minus it where more raises it (the weight of a success).

    Args:
        value: The coefficient now.
        integral: The leaky sum of errors so far, 0 at first.
        error: The last error.
        proportional: k_p, for each unit of the error.
        integral_gain: k_i, for each unit of the sum.
        leak: What is kept of the sum.
        low: Least value.
        high: Greatest value.

    Returns:
        The next coefficient and the next sum.
    """
    total = leak * integral + error
    return min(max(value * math.exp(proportional * error + integral_gain * total), low), high), total
