"""Groups collected while the learner learns: nobody waits for the slowest episode, and nothing grows too old.

    stream.take(16)  ->  the first 16 groups to be complete whose weights are at most `max_staleness` old

Groups are numbered in the order in which they are begun. At most `capacity` of them are under way or waiting to be
taken, which keeps sampling from running away from learning. A group's staleness is the number of versions, one for each
iteration, between the weights that it was begun with and those that it would train.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agentflow.attempts import Attempts
from agentflow.concurrency import BackgroundLoop, is_cancelled
from agentflow.rollout import Collected, Rollout, is_spent
from agentflow.trajectory import Task


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How far sampling may run ahead.

    Attributes:
        capacity: Most groups that are begun and not yet taken.
        concurrency: Most episodes that run at once.
        max_staleness: Versions after which a group is too old.
        keeps_stale: Whether groups that are too old are taken all the same.
    """

    capacity: int
    concurrency: int
    max_staleness: int
    keeps_stale: bool = False


@dataclass(frozen=True, slots=True)
class _Done:
    """A group that is complete."""

    number: int
    version: int
    collected: Collected


class GroupStream:
    """Collects groups in the background, from `start` to `close`.

    Args:
        rollout: Plays the episodes.
        task: The task of the group with a number.
        plan: Makes the attempts at a task.
        seed: Fixes the randomness of each group together with its number.
        limits: How far it may run ahead.
    """

    def __init__(
        self,
        rollout: Rollout,
        task: Callable[[int], Task],
        plan: Callable[[Task], Attempts],
        *,
        seed: int,
        limits: StreamLimits,
    ) -> None:
        self._rollout = rollout
        self._task = task
        self._plan = plan
        self._seed = seed
        self._limits = limits
        self._next = 0
        self._again: list[int] = []
        self._under_way: dict[int, tuple[int, asyncio.Task[None]]] = {}
        self._done: list[_Done] = []
        self._version = 0
        self._num_stale = 0
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._loop: BackgroundLoop | None = None

    def start(self, version: int) -> None:
        """Begin to collect with the weights of a version."""
        self._version = version
        self._loop = BackgroundLoop()
        self._slots = self._loop.call(asyncio.Semaphore, self._limits.concurrency)
        self._loop.call(self._begin)

    def close(self) -> None:
        """Stop collecting; what is under way is given up."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def take(self, count: int, *, progress: Callable[[int, int], None] | None = None) -> Collected:
        """Return complete groups, in the order of their completion.

        Args:
            count: How many, at most the capacity.
            progress: Called with groups there and wanted, after each one.

        Raises:
            Exception: Whatever broke the collection.
        """
        assert self._loop is not None, "a stream is taken from while it runs"
        assert count <= self._limits.capacity, "no more groups are ever complete at once"
        started = time.monotonic()
        with self._changed:
            while (num_ready := len(self._done)) < count and self._failure is None:
                if progress:
                    progress(num_ready, count)
                self._changed.wait()
            if self._failure is not None:
                raise self._failure
            taken, self._done = self._done[:count], self._done[count:]
            num_stale, self._num_stale = self._num_stale, 0
        self._loop.call(self._begin)
        groups = tuple(group for done in taken for group in done.collected.groups)
        trajectories = (trajectory for group in groups for trajectory in group.trajectories)
        return Collected(
            groups=groups,
            num_retried=sum(done.collected.num_retried for done in taken),
            num_unpunctual=0,
            duration_s=time.monotonic() - started,
            num_stale=num_stale,
            notes=tuple(note for done in taken for note in done.collected.notes),
            spent=next((t.status.detail for t in trajectories if is_spent(t)), ""),
        )

    def updated(self, version: int) -> None:
        """Note that the weights have changed; groups that are too old by now are given up and counted."""
        assert self._loop is not None, "a stream hears of updates while it runs"
        self._loop.call(self._drop_stale, version)
        self._loop.call(self._begin)

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of the groups that are not yet taken, and of the next one."""
        with self._changed:
            open_numbers = {*self._under_way, *self._again, *(done.number for done in self._done)}
            return {"next": self._next, "open": sorted(open_numbers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned: groups that were not taken are collected anew."""
        self._next = int(state["next"])
        self._again = [int(number) for number in state["open"]]

    def _begin(self) -> None:
        """Begin as many groups as there is room for."""
        with self._changed:
            while len(self._under_way) + len(self._done) < self._limits.capacity and self._failure is None:
                if self._again:
                    number = self._again.pop(0)
                else:
                    number, self._next = self._next, self._next + 1
                work = asyncio.get_running_loop().create_task(self._collect(number, self._version))
                self._under_way[number] = (self._version, work)

    async def _collect(self, number: int, version: int) -> None:
        try:
            task = self._task(number)
            collected = await self._rollout.play_plans(
                [(task, self._plan(task))], seed=self._seed, label=f"{number:06d}", slots=self._slots
            )
        except BaseException as error:
            if is_cancelled():
                raise
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            return
        with self._changed:
            self._under_way.pop(number, None)
            self._done.append(_Done(number, version, collected))
            self._changed.notify_all()

    def _drop_stale(self, version: int) -> None:
        self._version = version
        if self._limits.keeps_stale:
            return
        oldest = version - self._limits.max_staleness
        with self._changed:
            stale = [number for number, (begun, _) in self._under_way.items() if begun < oldest]
            for number in stale:
                self._under_way.pop(number)[1].cancel()
            fresh = [done for done in self._done if done.version >= oldest]
            self._num_stale += len(stale) + len(self._done) - len(fresh)
            self._done = fresh
