"""Task samplers: which tasks an iteration poses."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from agentflow.errors import DataError
from agentflow.trajectory import Task


class EpochSampler:
    """Pose every task once before any is posed again, in an order shuffled anew for each epoch.

    Args:
        tasks: The training tasks.
        seed: Fixes the orders.

    Raises:
        DataError: There are no tasks.
    """

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        if not tasks:
            raise DataError("The environment has no training tasks.", "Check its `tasks('train')` or its question set.")
        self._tasks = tasks
        self._seed = seed
        self._num_drawn = 0
        self._epoch = -1
        self._order: list[int] = []

    def draw(self, count: int) -> list[Task]:
        """Return the next `count` tasks."""
        drawn = [self.task(self._num_drawn + i) for i in range(count)]
        self._num_drawn += count
        return drawn

    def state_dict(self) -> dict[str, Any]:
        """Return the number of tasks drawn: with the seed, all there is to know."""
        return {"num_drawn": self._num_drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._num_drawn = int(state["num_drawn"])

    def task(self, index: int) -> Task:
        """Return the task that is posed after `index` others."""
        epoch, position = divmod(index, len(self._tasks))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = list(range(len(self._tasks)))
            random.Random(f"{self._seed}/{epoch}").shuffle(self._order)  # noqa: S311  reproducible, not secret
        return self._tasks[self._order[position]]
