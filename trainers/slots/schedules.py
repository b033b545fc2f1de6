"""Schedules: numbers that change over a run, in place of any number of an algorithm."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from agentflow.maths.schedules import ramp
from agentflow.trainers.slots.base import Schedule
from agentflow.trainers.slots.records import Now, State


class Ramp(Schedule):
    """Go from one number to another in a straight line, and stay."""

    kind: Literal["ramp"] = "ramp"
    start: float = Field(description="The number before the ramp.")
    end: float = Field(description="The number after it.")
    begin: float = Field(0.0, ge=0, le=1, description="Clock time at which it begins.")
    over: float = Field(1.0, ge=0, le=1, description="Clock time that it takes; 0 is a step.")
    by: Literal["progress", "success"] = Field(
        "progress", description="The clock: the share of iterations done, or the highest smoothed success rate."
    )

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.begin + self.over > 1:
            raise ValueError("begin + over must not exceed 1, the end of the clock")
        return self

    def at(self, now: Now, state: State) -> float:
        """Return the number of now."""
        clock = now.progress if self.by == "progress" else now.success
        return ramp(clock, start=self.start, end=self.end, begin=self.begin, over=self.over)


TABLE: Mapping[str, type[Schedule]] = {"ramp": Ramp}
