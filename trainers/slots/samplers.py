"""Samplers: which tasks an iteration attempts."""

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

from pydantic import Field

from agentflow.trainers.slots.base import Draw, Found, Now, Sampler, Seen, State
from agentflow.trajectory import Task


class Epoch(Sampler):
    """Pose every task once before any is posed again, in an order shuffled anew for each epoch."""

    kind: Literal["epoch"] = "epoch"
    refills: int = Field(
        2, ge=0, description="Extra rounds of an iteration that may replace groups that teach nothing (DAPO)."
    )

    def initial(self) -> State:
        """Return the number of tasks drawn: with the seed, all there is to know."""
        return {"num_drawn": 0}

    def observe(self, state: State, seen: Seen) -> State:
        """Count the tasks of an iteration."""
        return {"num_drawn": state["num_drawn"] + seen.found.num_draws}

    def draw(
        self, pool: Sequence[Task], state: State, *, want: int, size: int, number: int, found: Found, now: Now
    ) -> Sequence[Draw]:
        """Return the next tasks; see `Sampler.draw`."""
        missing = want - len(found.kept)
        if number > self.refills or missing <= 0:
            return ()
        first = state["num_drawn"] + found.num_draws
        return [Draw(pool[place(first + i, len(pool), now.seed)], size) for i in range(missing)]


def place(index: int, num_tasks: int, seed: int) -> int:
    """Return which task is posed after `index` others."""
    epoch, position = divmod(index, num_tasks)
    return _order(num_tasks, seed, epoch)[position]


@lru_cache(maxsize=4)
def _order(num_tasks: int, seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(num_tasks))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311  reproducible, not secret
    return tuple(order)


TABLE: Mapping[str, type[Sampler]] = {"epoch": Epoch}
