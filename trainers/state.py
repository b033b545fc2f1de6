"""What a run remembers from one iteration to the next: a value, and how it is written into a checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from agentflow.errors import DataError
from agentflow.trainers.slots.base import StateTree
from agentflow.trainers.slots.records import State

FORMAT = 2


@dataclass(frozen=True, slots=True)
class RunState:
    """All that a run remembers beside the weights and the optimiser.

    Attributes:
        iteration: Iterations that are done.
        slots: What the algorithm's slots remember, by their path.
        shaping: The smoothed success rates that unlock stages of the rewards.
        alarm: The returns that the alarm looks back on.
        source: The groups that a stream has begun; empty where nothing is under way between two iterations.
    """

    iteration: int = 0
    slots: StateTree = field(default_factory=dict)
    shaping: State = field(default_factory=dict)
    alarm: State = field(default_factory=dict)
    source: State = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values that `from_json` reads."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunState":
        """Read what `to_json` wrote.

        Raises:
            DataError: It was written by another version.
        """
        check_format(values)
        return cls(**{name: value for name, value in values.items() if name != "format"})


def check_format(values: Mapping[str, Any]) -> None:
    """Refuse a state that another version wrote.

    Raises:
        DataError: It has another format.
    """
    if values.get("format") != FORMAT:
        raise DataError(
            f"The checkpoint's state has format {values.get('format', 1)}, and this version reads {FORMAT}.",
            "Start a new run from its weights: --config RUN/config.yaml --model RUN.",
        )
