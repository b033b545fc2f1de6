"""The consoles that people see (`agentflow.trainers.console.Console`): live on a terminal, plain lines elsewhere.

Colours follow `NO_COLOR`; text that comes from a model or a tool is never read as markup.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Numbers = Mapping[str, Any]
_HEADER_EVERY = 20
_COLUMN_WIDTH = 9
_MIN_COLUMNS = 3
"""Shown however narrow the terminal says it is."""
_QUIET_S = 30.0


class QuietConsole:
    """Shows nothing: for tests and for callers who only want the result."""

    def started(self, path: Path) -> None:
        """Show nothing."""

    def iteration(self, metrics: Numbers) -> None:
        """Show nothing."""

    def progress(self, done: int, total: int, phase: str) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""


class PlainConsole:
    """One line an iteration, for logs and pipes.

    Args:
        output: Where to write.
        num_iterations: The iterations of the whole run, for the time that is left.
        clock: Returns seconds.
    """

    def __init__(
        self, output: RichConsole, *, num_iterations: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._output = output
        self._clock = clock
        self._pace = Pace(num_iterations, clock)
        self._last_said = clock()

    def started(self, path: Path) -> None:
        """Print where the run is kept."""
        self._say(f"folder: {path}")

    def iteration(self, metrics: Numbers) -> None:
        """Print `iteration 3/40 · success 0.41 · ...`."""
        left = self._pace.left(metrics)
        shown = {"iteration": self._pace.position(metrics), **columns(metrics), "left": left or "-"}
        self._say(" · ".join(f"{name} {text}" for name, text in shown.items() if text != "-"))

    def progress(self, done: int, total: int, phase: str) -> None:
        """Print a line only where nothing was said for half a minute."""
        if self._clock() - self._last_said >= _QUIET_S:
            self._say(f"{phase} {done}/{total}")

    def note(self, text: str) -> None:
        """Print the text."""
        self._say(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing to close."""

    def _say(self, text: str) -> None:
        self._output.print(text, markup=False, highlight=False, soft_wrap=True)
        self._last_said = self._clock()


class LiveConsole:
    """Bars for the run and for the phase of its iteration, below one row of numbers an iteration.

    Args:
        output: A terminal.
        num_iterations: The iterations of the whole run, for the time that is left.
        clock: Returns seconds.
    """

    def __init__(
        self, output: RichConsole, *, num_iterations: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pace = Pace(num_iterations, clock)
        self._num_rows = 0
        bars = (
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        output.width = max(output.width, _MIN_COLUMNS * (_COLUMN_WIDTH + 1))
        self._bars = Progress(*bars, TimeElapsedColumn(), console=output, transient=True)
        self._run = self._bars.add_task("run", total=num_iterations, left="")
        self._phase = self._bars.add_task("", total=None, left="", visible=False)
        self._phase_name = ""

    def started(self, path: Path) -> None:
        """Print where the run is kept."""
        self.note(f"folder: {path}")

    def iteration(self, metrics: Numbers) -> None:
        """Print a row of numbers and advance the bar of the run."""
        shown = {"iteration": self._pace.position(metrics), **columns(metrics)}
        fitting = list(shown)[: max(_MIN_COLUMNS, self._bars.console.width // (_COLUMN_WIDTH + 1))]
        if self._num_rows % _HEADER_EVERY == 0:
            self._print(" ".join(f"{name:>{_COLUMN_WIDTH}}" for name in fitting), style="bold")
        self._print(" ".join(f"{shown[name]:>{_COLUMN_WIDTH}}" for name in fitting))
        self._num_rows += 1
        left = self._pace.left(metrics)
        self._bars.update(self._run, completed=int(metrics["iteration"]), left=f"{left} left" if left else "")
        self._bars.update(self._phase, visible=False)

    def progress(self, done: int, total: int, phase: str) -> None:
        """Move the bar of the phase."""
        if phase != self._phase_name:
            self._bars.reset(self._phase, total=total)
            self._phase_name = phase
        self._bars.update(self._phase, description=phase, completed=done, total=total, visible=True)

    def note(self, text: str) -> None:
        """Print the text above the bars."""
        self._print(text, soft_wrap=True)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def _print(self, text: str, *, style: str | None = None, soft_wrap: bool = False) -> None:
        self._bars.console.print(text, style=style, markup=False, highlight=False, soft_wrap=soft_wrap, no_wrap=True)


def open_console(num_iterations: int | None = None, *, output: RichConsole | None = None) -> LiveConsole | PlainConsole:
    """Return a console for standard output: live on a terminal, plain lines elsewhere. Use it in a `with` block."""
    output = output or RichConsole()
    if output.is_terminal and not output.is_dumb_terminal:
        return LiveConsole(output, num_iterations=num_iterations)
    return PlainConsole(output, num_iterations=num_iterations)


def columns(metrics: Numbers) -> dict[str, str]:
    """Return the numbers that matter of one iteration as text, the most telling first; `-` where there is none."""
    rollout_s, update_s = metrics.get("time/rollout_s"), metrics.get("time/update_s")
    failed = sum(value for name, value in metrics.items() if name.startswith("failed/") and value)
    sampled = metrics.get("tokens/sampled")
    return {
        "success": _number(metrics.get("success/mean"), ".3f"),
        "heldout": _number(metrics.get("heldout/success"), ".3f"),
        "unsolved": _number(metrics.get("groups/unsolved_fraction"), ".0%"),
        "raw": _number(metrics.get("reward/raw"), ".3f"),
        "shaped": _number(metrics.get("reward/shaped"), ".3f"),
        "loss": _number(metrics.get("loss"), ".4f"),
        "kl": _number(metrics.get("kl"), ".4f"),
        "entropy": _number(metrics.get("entropy"), ".3f"),
        "tokens/s": _number(sampled / rollout_s if sampled and rollout_s else None, ",.0f"),
        "seconds": _number((rollout_s or 0) + (update_s or 0) or None, ".1f"),
        "turns": _number(metrics.get("turns/mean"), ".2f"),
        "failed": _number(failed or None, ".1%"),
    }


class Pace:
    """Estimates the time that is left from the iterations seen so far.

    Args:
        num_iterations: The iterations of the whole run; None if it has no end.
        clock: Returns seconds.
    """

    def __init__(self, num_iterations: int | None, clock: Callable[[], float]) -> None:
        self._num_iterations = num_iterations
        self._clock = clock
        self._last_s = clock()
        self._last_iteration: int | None = None
        self._mean_s: float | None = None

    def left(self, metrics: Numbers) -> str:
        """Count what has ended since the last row and return the time that is left, like `3m20s`; empty if unknown."""
        now_s, iteration = self._clock(), int(metrics["iteration"])
        elapsed_s, self._last_s = now_s - self._last_s, now_s
        # The first row may stand for one iteration, for many, or for an evaluation: only the first iteration is clear.
        num_new = int(iteration == 1) if self._last_iteration is None else iteration - self._last_iteration
        self._last_iteration = iteration
        if num_new < 1:
            return ""
        each_s = elapsed_s / num_new
        self._mean_s = each_s if self._mean_s is None else 0.8 * self._mean_s + 0.2 * each_s
        remaining = (self._num_iterations or 0) - iteration
        return duration(remaining * self._mean_s) if remaining > 0 else ""

    def position(self, metrics: Numbers) -> str:
        """Return `3/40`, or `3` where the end is unknown."""
        return f"{metrics['iteration']}/{self._num_iterations}" if self._num_iterations else str(metrics["iteration"])


def duration(seconds: float) -> str:
    """Return a duration for people: `42s`, `3m20s`, `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _number(value: Any, form: str) -> str:
    return "-" if value is None else format(value, form)
