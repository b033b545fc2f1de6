"""`agentflow report`, and the reports that a run writes of itself."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from agentflow.cli.words import noted_run
from agentflow.errors import RunAborted
from agentflow.runs import StoredRun
from agentflow.trainers.console import Console
from agentflow.view.plots import draw_panels, write_plots
from agentflow.view.report import write_report


def report(path: Path) -> None:
    """Write the learning curves and the report of a run, and print where they are.

    Raises:
        DataError: The folder holds no run, or it is damaged.
        StorageError: The folder cannot be written.
    """
    for file in publish(StoredRun(path)):
        typer.echo(str(file))


def publish(run: StoredRun) -> list[Path]:
    """Write the learning curves and the report of a run, and return the files.

    Raises:
        DataError: The metrics or the trajectories are damaged.
        StorageError: The disk is full or the folder cannot be written.
    """
    curves = draw_panels(run.metrics())
    return [*write_plots(run, curves), write_report(run, curves)]


@contextmanager
def published_at_the_end() -> Iterator[None]:
    """Publish a run that stops itself or is interrupted, as one that comes to its end is."""
    try:
        yield
    except (RunAborted, KeyboardInterrupt) as error:
        path = noted_run(error)
        if path:
            publish(StoredRun(Path(path)))
        raise


class PublishingConsole:
    """Publishes a run after each evaluation on its way, and tells another console everything.

    Args:
        console: What people see.
        num_iterations: The iterations of the whole run.
    """

    def __init__(self, console: Console, num_iterations: int | None) -> None:
        self._console = console
        self._num_iterations = num_iterations
        self._run: StoredRun | None = None

    def started(self, path: Path) -> None:
        """Remember the folder."""
        self._run = StoredRun(path)
        self._console.started(path)

    def iteration(self, metrics: Mapping[str, Any]) -> None:
        """Show the numbers; where the iteration was evaluated, publish the run."""
        self._console.iteration(metrics)
        evaluated = metrics.get("heldout/success") is not None
        on_its_way = metrics["iteration"] not in (0, self._num_iterations)
        if self._run is not None and evaluated and on_its_way:
            publish(self._run)

    def progress(self, done: int, total: int, phase: str) -> None:
        """Show how far a phase has come."""
        self._console.progress(done, total, phase)

    def note(self, text: str) -> None:
        """Show the text."""
        self._console.note(text)
