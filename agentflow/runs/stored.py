"""The reader of a run's folder."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from agentflow.config import read_yaml
from agentflow.errors import DataError
from agentflow.runs.records import read_groups
from agentflow.runs.storage import is_complete
from agentflow.runs.upgrades import upgraded
from agentflow.trajectory import Group

Metrics: TypeAlias = Mapping[str, float | int | str | None]
"""The numbers of one iteration by name; `iteration` is the number of the iteration, None is missing, never 0."""

_log = logging.getLogger(__name__)
_ITERATION = re.compile(r"iteration_(\d{6,})(?:\.jsonl\.zst|\.json)?")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        iteration: The iteration after which it was taken.
        path: Its folder.
    """

    iteration: int
    path: Path


class StoredRun:
    """Reads a run's folder, also while another process writes it.

    Args:
        path: The folder that `train` printed as `run: PATH`.

    Raises:
        DataError: The folder is missing or holds no run.
    """

    def __init__(self, path: Path) -> None:
        if not (path / "config.yaml").is_file():
            problem = f"{path} is not a run: it has no config.yaml." if path.exists() else f"There is no run {path}."
            raise DataError(problem, "Give the folder that `agentflow train` printed last, as `run: PATH`.")
        self.path = path

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, not yet validated, under the names of today."""
        return upgraded(read_yaml(self.path / "config.yaml"))

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics of every complete iteration, in order.

        Raises:
            DataError: A line is not JSON.
        """
        rows = []
        for number, line in enumerate(self.metric_lines(), 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{self.metrics_path} line {number} is not JSON: {error}.") from None
        return rows

    def rollout_iterations(self) -> list[int]:
        """List the iterations whose trajectories are stored, in order."""
        return sorted(numbered(self.path / "rollouts"))

    def groups(self, iteration: int) -> Iterator[Group]:
        """Yield the groups of one iteration.

        Raises:
            DataError: They are not stored, or damaged.
        """
        return read_groups(self.rollout_path(iteration))

    def mismatches(self) -> list[tuple[int, dict[str, Any]]]:
        """Read the stored trajectories on which sampler and learner differed most, with their iterations, in order.

        Raises:
            DataError: One is not JSON.
        """
        found = []
        for iteration, path in sorted(numbered(self.path / "mismatch").items()):
            try:
                found.append((iteration, json.loads(path.read_text(encoding="utf-8"))))
            except ValueError as error:
                raise DataError(f"{path} is not JSON: {error}.", "Remove it.") from None
        return found

    def checkpoints(self) -> list[Checkpoint]:
        """List the complete checkpoints, oldest first."""
        found = sorted(numbered(self.path / "checkpoints").items())
        return [Checkpoint(iteration, path) for iteration, path in found if is_complete(path)]

    def latest_checkpoint(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None before the first; damaged newer ones are warned of."""
        newest = next(reversed(self.checkpoints()), None)
        for iteration, path in sorted(numbered(self.path / "checkpoints").items()):
            if newest is not None and iteration > newest.iteration:
                _log.warning("%s is damaged: %s is used in its place.", path, newest.path.name)
        return newest

    @property
    def metrics_path(self) -> Path:
        """The file of metrics; missing before the first iteration."""
        return self.path / "metrics.jsonl"

    def metric_lines(self) -> list[bytes]:
        """Read the complete lines of the file of metrics, as they stand."""
        if not self.metrics_path.exists():
            return []
        # A line without its line break was being written when the process died.
        return [line for line in self.metrics_path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def rollout_path(self, iteration: int) -> Path:
        """The file of one iteration's trajectories."""
        return self.path / "rollouts" / f"{iteration_name(iteration)}.jsonl.zst"

    def mismatch_path(self, iteration: int) -> Path:
        """The file of the trajectory on which sampler and learner differed most in one iteration."""
        return self.path / "mismatch" / f"{iteration_name(iteration)}.json"


def iteration_name(iteration: int) -> str:
    """Return the name under which files of an iteration are stored."""
    return f"iteration_{iteration:06d}"


def numbered(folder: Path) -> dict[int, Path]:
    """Find the files or folders of a folder that are named after an iteration."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return {int(match[1]): path for path in paths if (match := _ITERATION.fullmatch(path.name))}
