"""Where a trainer's groups come from: rolled out when they are asked for, or while the learner learns."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from agentflow.rollout import Collected, Rollout
from agentflow.stream import GroupStream, StreamLimits
from agentflow.trainers.samplers import EpochSampler
from agentflow.trainers.settings import TrainConfig

Progress: TypeAlias = Callable[[int, int], None]


class GroupSource(Protocol):
    """What a trainer draws groups from."""

    def draw(self, count: int, *, label: str, progress: Progress) -> Collected:
        """Return groups; the label names this round of an iteration.

        Raises:
            RunAborted: More episodes failed than the configuration bears.
        """
        ...

    def start(self, version: int) -> None:
        """Begin with the weights of a version."""
        ...

    def updated(self, version: int) -> None:
        """Note that the weights have changed."""
        ...

    def close(self) -> None:
        """Collect nothing any more."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to continue, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        ...


def group_source(config: TrainConfig, rollout: Rollout, sampler: EpochSampler) -> GroupSource:
    """Return the source that a run is configured for."""
    source = SynchronousSource if config.run.max_staleness == 0 else StreamSource
    return source(config, rollout, sampler)


class SynchronousSource:
    """Rolls groups out when they are asked for, with the newest weights: exactly on-policy, and repeatable.

    Args:
        config: The run.
        rollout: Plays the episodes.
        sampler: Chooses the tasks.
    """

    def __init__(self, config: TrainConfig, rollout: Rollout, sampler: EpochSampler) -> None:
        self._config = config.run
        self._rollout = rollout
        self._sampler = sampler

    def draw(self, count: int, *, label: str, progress: Progress) -> Collected:
        """Roll groups out; see `GroupSource`."""
        return self._rollout.run(
            self._sampler.draw(count),
            group_size=self._config.group_size,
            seed=self._config.seed,
            label=label,
            progress=progress,
        )

    def start(self, version: int) -> None:
        """Do nothing: nothing happens between two draws."""

    def updated(self, version: int) -> None:
        """Do nothing: the next draw samples with the new weights."""

    def close(self) -> None:
        """Do nothing: nothing is under way."""

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler's state."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._sampler.load_state_dict(state)


class StreamSource:
    """Takes groups from a stream that goes on while the learner learns.

    Args:
        config: The run.
        rollout: Plays the episodes.
        sampler: Chooses the tasks.
    """

    def __init__(self, config: TrainConfig, rollout: Rollout, sampler: EpochSampler) -> None:
        run = config.run
        self._rollout = rollout
        self._stream = GroupStream(
            rollout,
            sampler.task,
            group_size=run.group_size,
            seed=run.seed,
            limits=StreamLimits(
                capacity=(run.max_staleness + 1) * run.tasks_per_iteration,
                concurrency=config.rollout.concurrency,
                max_staleness=run.max_staleness,
                keeps_stale=run.stale == "keep",
            ),
        )

    def draw(self, count: int, *, label: str, progress: Progress) -> Collected:
        """Take groups that are complete; see `GroupSource`. Their labels are their own."""
        collected = self._stream.take(count, progress=progress)
        if not collected.spent:
            self._rollout.check_failures(collected.trajectories)
        return collected

    def start(self, version: int) -> None:
        """Begin to collect."""
        self._stream.start(version)

    def updated(self, version: int) -> None:
        """Give up what has become too old."""
        self._stream.updated(version)

    def close(self) -> None:
        """Give up what is under way."""
        self._stream.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the stream's state."""
        return self._stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._stream.load_state_dict(state)
