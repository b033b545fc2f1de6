"""Plans: how the attempts at a task are made."""

from collections.abc import Mapping
from typing import Literal

from agentflow.attempts import Attempts, independent
from agentflow.trainers.slots.base import Plan
from agentflow.trainers.slots.records import Draw, Now, State


class Independent(Plan):
    """Attempts that know nothing of each other."""

    kind: Literal["independent"] = "independent"

    def attempts(self, draw: Draw, state: State, now: Now) -> Attempts:
        """Make all of them at once."""
        return independent(draw.count)


TABLE: Mapping[str, type[Plan]] = {"independent": Independent}
