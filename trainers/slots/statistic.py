"""Statistics: what a run remembers for its slots."""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

from pydantic import Field

from agentflow.batch import Judged
from agentflow.maths.trackers import Counts, Table, forgetting, observed, read_counts
from agentflow.maths.units import Floats
from agentflow.trainers.slots.base import StateTree, Statistic
from agentflow.trainers.slots.records import Seen, State


class Tasks(Statistic):
    """A table of what each task has yielded: pseudo-counts of success, the last rewards, the last attempt.

    VADE and SPO read it, as every rule will that chooses by what is known of a task.
    """

    kind: Literal["tasks"] = "tasks"
    keep: float = Field(1.0, ge=0, le=1, description="What is kept of a task's counts when it is played again.")
    half: float | None = Field(
        None, gt=0, description="Iterations since a task was last played after which half is kept, in place of `keep`."
    )
    half_low: float = Field(0.875, ge=0, le=1, description="The least that is kept by `half`.")
    half_high: float = Field(0.96, ge=0, le=1, description="The most that is kept by `half`.")
    idle: float = Field(1.0, gt=0, le=1, description="What is kept in each iteration that does not play the task.")
    rewards: int = Field(16, ge=1, description="Rewards of each task that are remembered.")

    def initial(self) -> State:
        """Return an empty table."""
        return {"rows": {}, "idle": self.idle, "iteration": 1}

    def observe(self, state: State, seen: Seen) -> State:
        """Enter what the iteration's groups yielded; failed attempts are missing, never 0."""
        rows: Table = state["rows"]
        for judged in seen.found.judged:
            rows = self._entered(rows, judged, seen.now.iteration)
        return {**state, "rows": rows, "iteration": seen.now.iteration + 1}

    def _entered(self, rows: Table, judged: Judged, iteration: int) -> Table:
        task = judged.group.task.id
        rewards = [yielded(member.success, float(member.rewards_K.sum())) for member in judged.earned]
        keep = self.keep
        if self.half is not None and task in rows:
            age = iteration - rows[task]["played"]
            keep = forgetting(age, half=self.half, low=self.half_low, high=self.half_high)
        last = judged.earned[-1].trajectory.id if judged.earned else None
        return observed(
            rows, task, rewards, iteration=iteration, keep=keep, idle=self.idle, ring=self.rewards, last=last
        )


def yielded(success: bool | None, reward: float) -> float:
    """Return what an attempt yielded in [0, 1]: its success where the environment says so, else its return, bounded."""
    return min(1.0, max(0.0, reward)) if success is None else float(success)


def rows_in(state: StateTree) -> State:
    """Return the part of the state that holds the task table."""
    return next(part for path, part in state.items() if path.startswith("statistics.") and "rows" in part)


def counts_in(part: State, tasks: Sequence[str]) -> Counts:
    """Read the pseudo-counts of tasks as the iteration under way finds them."""
    return read_counts(cast(Table, part["rows"]), tasks, iteration=part["iteration"], idle=part["idle"])


def tracked_means(part: State, tasks: Sequence[str]) -> Floats:
    """Read the success rates of tasks; nan where nothing is known."""
    return counts_in(part, tasks).means_Q


TABLE: Mapping[str, type[Statistic]] = {"tasks": Tasks}
