"""Samplers: which tasks an iteration attempts."""

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from agentflow.maths.choices import draw, thompson, uncertainty_weights
from agentflow.maths.trackers import Counts
from agentflow.maths.units import Units
from agentflow.rollout import derive_seed
from agentflow.trainers.slots.base import Number, Sampler, StateTree, number
from agentflow.trainers.slots.records import Draw, Found, Now, Seen, State
from agentflow.trainers.slots.statistic import counts_in, rows_in
from agentflow.trajectory import Task


class Epoch(Sampler):
    """Pose every task once before any is posed again, in an order shuffled anew for each epoch."""

    kind: Literal["epoch"] = "epoch"
    draws_ahead: ClassVar[bool] = True
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
        self, pool: Sequence[Task], state: StateTree, *, want: int, size: int, number: int, found: Found, now: Now
    ) -> Sequence[Draw]:
        """Return the next tasks; see `Sampler.draw`."""
        missing = want - sum(each.times for each in found.kept)
        if number > self.refills or missing <= 0:
            return ()
        first = state["sampler"]["num_drawn"] + found.num_draws
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


class Remembering(Sampler):
    """A sampler that chooses by what is known of each task, once an iteration."""

    reads: ClassVar[frozenset[str]] = frozenset({"tasks"})

    def draw(
        self, pool: Sequence[Task], state: StateTree, *, want: int, size: int, number: int, found: Found, now: Now
    ) -> Sequence[Draw]:
        """Return the chosen tasks, each again only once all were chosen; see `Sampler.draw`."""
        if number:
            return ()
        counts = counts_in(rows_in(state), [task.id for task in pool])
        generator = np.random.default_rng(derive_seed(now.seed, self.kind, now.iteration))
        chosen = self.choose(counts, min(want, len(pool)), generator)
        return [Draw(pool[index], size) for index in np.resize(chosen, want).tolist()]

    @abstractmethod
    def choose(self, counts: Counts, count: int, generator: np.random.Generator) -> Units:
        """Return the indices of different tasks."""


class Thompson(Remembering):
    """Pose the tasks that promise to teach most under one sample of what is believed of them: VADE (2511.18902)."""

    kind: Literal["thompson"] = "thompson"

    def choose(self, counts: Counts, count: int, generator: np.random.Generator) -> Units:
        """Return the greatest p (1 - p)^2 of a draw from each task's Beta distribution."""
        return thompson(counts.alpha_Q, counts.beta_Q, count, generator=generator)


class Uncertain(Remembering):
    """Pose the tasks whose outcome is least certain more often: SPO, single-stream (2509.13232)."""

    kind: Literal["uncertain"] = "uncertain"
    power: Annotated[Number, number(ge=0)] = Field(
        0.0,
        description="How strongly what is well known is avoided: weights are divided by the attempts to this power.",
    )
    floor: Annotated[Number, number(gt=0)] = Field(0.05, description="Added to each task's weight, so that it returns.")

    def choose(self, counts: Counts, count: int, generator: np.random.Generator) -> Units:
        """Return draws in proportion to sqrt(v (1 - v))."""
        weights_Q = uncertainty_weights(
            counts.means_Q, counts.sizes_Q, power=float(self.power), floor=float(self.floor)
        )
        return draw(weights_Q, count, generator=generator)


TABLE: Mapping[str, type[Sampler]] = {"epoch": Epoch, "thompson": Thompson, "uncertain": Uncertain}
