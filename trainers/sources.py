"""Where a trainer's groups come from: rolled out when they are asked for, or while the learner learns."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from agentflow.attempts import Attempts
from agentflow.rollout import Collected, Rollout
from agentflow.stream import GroupStream, StreamLimits
from agentflow.trainers.settings import TrainConfig
from agentflow.trainers.slots.records import Draw, Found, Now, State
from agentflow.trajectory import Task

Progress: TypeAlias = Callable[[int, int], None]


class GroupSource(Protocol):
    """What plays the plans of the tasks that a sampler has drawn."""

    def play(self, plans: Sequence[tuple[Task, Attempts]], *, label: str, progress: Progress) -> Collected:
        """Return a group for each plan; the label names this round of an iteration.

        Raises:
            RunAborted: More episodes failed than the configuration bears.
        """
        ...

    def open(self, state: State, version: int) -> None:
        """Begin from what `state` returned, with the weights of a version."""
        ...

    def updated(self, version: int) -> None:
        """Note that the weights have changed."""
        ...

    def close(self) -> None:
        """Collect nothing any more."""
        ...

    def state(self) -> State:
        """Return what is needed to continue, as JSON values."""
        ...


def group_source(config: TrainConfig, rollout: Rollout, pool: Sequence[Task]) -> GroupSource:
    """Return the source that a run is configured for."""
    if config.run.max_staleness == 0:
        return SynchronousSource(config, rollout)
    return StreamSource(config, rollout, pool)


class SynchronousSource:
    """Rolls groups out when they are asked for, with the newest weights: exactly on-policy, and repeatable.

    Args:
        config: The run.
        rollout: Plays the episodes.
    """

    def __init__(self, config: TrainConfig, rollout: Rollout) -> None:
        self._seed = config.run.seed
        self._rollout = rollout

    def play(self, plans: Sequence[tuple[Task, Attempts]], *, label: str, progress: Progress) -> Collected:
        """Roll groups out; see `GroupSource`."""
        return self._rollout.run_plans(plans, seed=self._seed, label=label, progress=progress)

    def open(self, state: State, version: int) -> None:
        """Do nothing: nothing happens between two rounds."""

    def updated(self, version: int) -> None:
        """Do nothing: the next round samples with the new weights."""

    def close(self) -> None:
        """Do nothing: nothing is under way."""

    def state(self) -> State:
        """Return nothing: the sampler remembers all there is."""
        return {}


class StreamSource:
    """Takes groups from a stream that goes on while the learner learns.

    Its groups are numbered in the order in which they are begun, and the sampler chooses the task of each number ahead
    of the iteration that learns from it: of an iteration's own plans only their number counts.

    Args:
        config: The run.
        rollout: Plays the episodes.
        pool: The training tasks.
    """

    def __init__(self, config: TrainConfig, rollout: Rollout, pool: Sequence[Task]) -> None:
        run = config.run
        self._rollout = rollout

        def task(number: int) -> Task:
            now = Now(seed=run.seed)
            state = {"sampler": {**config.algorithm.sampler.initial(), "num_drawn": number}}
            draws = config.algorithm.sampler.draw(
                pool, state, want=1, size=run.group_size, number=0, found=Found(), now=now
            )
            return draws[0].task

        self._stream = GroupStream(
            rollout,
            task,
            lambda posed: config.algorithm.plan.attempts(Draw(posed, run.group_size), {}, Now(seed=run.seed)),
            seed=run.seed,
            limits=StreamLimits(
                capacity=(run.max_staleness + 1) * run.tasks_per_iteration,
                concurrency=config.rollout.concurrency,
                max_staleness=run.max_staleness,
                keeps_stale=run.stale == "keep",
            ),
        )

    def play(self, plans: Sequence[tuple[Task, Attempts]], *, label: str, progress: Progress) -> Collected:
        """Take groups that are complete; see `GroupSource`. Their labels are their own."""
        collected = self._stream.take(len(plans), progress=progress)
        if not collected.spent:
            self._rollout.check_failures(collected.trajectories)
        return collected

    def open(self, state: State, version: int) -> None:
        """Begin to collect."""
        if state:
            self._stream.load_state_dict(state)
        self._stream.start(version)

    def updated(self, version: int) -> None:
        """Give up what has become too old."""
        self._stream.updated(version)

    def close(self) -> None:
        """Give up what is under way."""
        self._stream.close()

    def state(self) -> State:
        """Return the stream's state."""
        return self._stream.state_dict()
