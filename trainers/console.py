"""Where a run tells its user how it goes; `agentflow.view.console` is the one that people see."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Console(Protocol):
    """Takes the numbers and notes of a run as they come."""

    def started(self, path: Path) -> None:
        """Say where the run is kept, once its folder is made."""
        ...

    def iteration(self, metrics: Mapping[str, Any]) -> None:
        """Show the numbers of a finished iteration."""
        ...

    def progress(self, done: int, total: int, phase: str) -> None:
        """Show how far a phase has come."""
        ...

    def note(self, text: str) -> None:
        """Say something that is no number."""
        ...
