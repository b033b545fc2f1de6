"""The writer of a run's folder."""

import fcntl
import json
import math
import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel

from agentflow.config import to_yaml
from agentflow.errors import ConfigError, DataError
from agentflow.runs.facts import machine_facts
from agentflow.runs.records import write_groups
from agentflow.runs.storage import (
    is_complete,
    new_folder,
    remove_folder,
    remove_leftovers,
    storing,
    write_file,
)
from agentflow.runs.stored import Metrics, StoredRun, iteration_name, numbered
from agentflow.trajectory import Group

RUN_NOTE = "run: "
"""Starts the note with the run's folder on every exception that leaves a run's `with` block."""


class Run(StoredRun):
    """Writes a run's folder; holds its lock until `close` or until the process dies, however it dies.

    Use `Run.create` for a new run and `Run.resume` for one that stopped.
    """

    def __init__(self, path: Path, *, lock: int, tensorboard: bool) -> None:
        super().__init__(path)
        self._lock = lock
        self._tensorboard = tensorboard
        self._board: Any = None
        self._first_iteration: int | None = None

    @classmethod
    def create(
        cls, out: Path, *, config: BaseModel, env: str, model: str, seed: int, tensorboard: bool = True
    ) -> "Run":
        """Make the folder of a new run; no other run shares it, even if both start in the same second.

        Args:
            out: The folder of all runs.
            config: The resolved configuration.
            env: The environment as the user named it.
            model: The model as the user named it.
            seed: The seed of the run.
            tensorboard: Whether metrics also go to TensorBoard.

        Raises:
            StorageError: The folder cannot be written.
        """
        name = f"{_slug(env)}--{_slug(model)}--{time.strftime('%Y%m%d-%H%M%S')}"
        building = out / f".tmp-{os.getpid()}-{name}"
        with storing(out):
            for folder in ("rollouts", "checkpoints"):
                (building / folder).mkdir(parents=True)
            lock = _take_lock(building)
            write_file(building / "config.yaml", to_yaml(config))
            write_file(building / "env.json", json.dumps(machine_facts(seed), indent=2) + "\n")
            return cls(_rename_unique(building, out / name), lock=lock, tensorboard=tensorboard)

    @classmethod
    def resume(cls, path: Path, *, tensorboard: bool = True) -> "Run":
        """Open a run that stopped, and rewind it to its latest complete checkpoint, or to its beginning.

        Raises:
            DataError: The folder is missing, holds no run, or none of its checkpoints is whole any more.
            ConfigError: Another process is writing it.
            StorageError: The folder cannot be written.
        """
        StoredRun(path)
        run = cls(path, lock=_take_lock(path), tensorboard=tensorboard)
        for folder in (path, path / "rollouts", path / "checkpoints", path / "mismatch"):
            remove_leftovers(folder)
        checkpoint = run.latest_checkpoint()
        damaged = numbered(path / "checkpoints")
        if checkpoint is None and damaged:
            # A checkpoint gets its name once it is whole, so these were damaged later: nothing is thrown away for them.
            run.close()
            raise DataError(
                f"No checkpoint of {path} is whole any more: {', '.join(p.name for p in damaged.values())}.",
                f"Restore one, or start a new run with --config {path / 'config.yaml'}.",
            )
        run.rewind(checkpoint.iteration if checkpoint else -1)
        return run

    def log(self, metrics: Metrics) -> None:
        """Append the metrics of one iteration, on disk when this returns; NaN and infinity are stored as null.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        row = {name: _json_value(value) for name, value in metrics.items()}
        with storing(self.metrics_path):
            with self.metrics_path.open("ab") as file:
                file.write(f"{json.dumps(row)}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            if self._tensorboard:
                self._log_to_tensorboard(row)

    def write_groups(self, iteration: int, groups: Sequence[Group]) -> None:
        """Store the trajectories of one iteration, failed ones included.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        write_groups(self.rollout_path(iteration), groups)

    def write_mismatch(self, iteration: int, content: str, *, keep: Collection[int]) -> None:
        """Store the trajectory on which sampler and learner differed most, and remove those of other iterations.

        Args:
            iteration: The iteration.
            content: JSON.
            keep: The iterations whose files stay.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        path = self.mismatch_path(iteration)
        with storing(path):
            path.parent.mkdir(exist_ok=True)
            write_file(path, content)
            for number, other in numbered(path.parent).items():
                if number not in {iteration, *keep}:
                    other.unlink()

    @contextmanager
    def checkpoint(self, iteration: int, *, keep: int) -> Iterator[Path]:
        """Yield an empty folder to write a checkpoint into; it counts once the block has ended.

        Args:
            iteration: The iteration after which the state is taken.
            keep: The number of newest checkpoints to keep, this one included; at least 1.

        Raises:
            StorageError: The disk is full or the folder cannot be written; earlier checkpoints are untouched.
        """
        assert keep >= 1, "the checkpoint that was just written is never removed"
        with new_folder(self.path / "checkpoints" / iteration_name(iteration)) as folder:
            yield folder
        for old in self.checkpoints()[:-keep]:
            remove_folder(old.path)

    def write_file(self, name: str, content: bytes | str) -> None:
        """Write a file of the run, such as `agent.yaml`, all or nothing.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        write_file(self.path / name, content)

    def rewind(self, iteration: int) -> None:
        """Drop the metrics, rollouts, mismatches and checkpoints of every iteration after `iteration`.

        Raises:
            StorageError: The folder cannot be written.
        """
        lines = zip(self.metric_lines(), self.metrics(), strict=True)
        kept = b"".join(line for line, row in lines if row["iteration"] <= iteration)
        write_file(self.metrics_path, kept)
        with storing(self.path):
            files = [numbered(self.path / folder).items() for folder in ("rollouts", "mismatch")]
            for number, path in chain.from_iterable(files):
                if number > iteration:
                    path.unlink()
            for number, path in numbered(self.path / "checkpoints").items():
                if number > iteration or not is_complete(path):
                    remove_folder(path)
        self._first_iteration = iteration + 1

    def close(self) -> None:
        """Flush TensorBoard and give the lock back; closing twice is allowed."""
        if self._board is not None:
            self._board.close()
            self._board = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            error.add_note(f"{RUN_NOTE}{self.path}")
        self.close()

    def _log_to_tensorboard(self, metrics: Metrics) -> None:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  takes a second to import

            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=self._first_iteration)
        for name, value in metrics.items():
            if name != "iteration" and isinstance(value, int | float):
                self._board.add_scalar(name, value, metrics["iteration"])
        self._board.flush()


def _take_lock(path: Path) -> int:
    # flock dies with the process, so a killed run never blocks its successor; the number in it is for people.
    with storing(path):
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 32).decode(errors="replace").strip()
            os.close(lock)
            raise ConfigError(f"Process {owner} is writing the run {path}.", "Wait for it, or stop it first.") from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def _rename_unique(building: Path, path: Path) -> Path:
    for attempt in range(1, 1000):
        target = path if attempt == 1 else path.with_name(f"{path.name}-{attempt}")
        try:
            return building.rename(target)
        except OSError:
            if not target.exists():
                raise
    raise AssertionError("a thousand runs started in the same second")


def _slug(name: str) -> str:
    """Return the last part of a path or hub name, in letters that every file system takes."""
    last = name.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.")[:60] or "unnamed"


def _json_value(value: Any) -> float | int | str | None:
    if value is None or isinstance(value, str | int):
        return value
    number = float(value)  # numpy and torch scalars too
    return number if math.isfinite(number) else None
