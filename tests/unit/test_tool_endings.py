"""Tools that end the episode."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import pytest

from agentflow.environment import Split
from agentflow.environments import ToolEnvironment
from agentflow.environments.tool_environment import ToolResult
from agentflow.errors import EnvironmentFailure
from agentflow.messages import Message, ToolCall
from agentflow.tools.tool import ToolOutput, tool
from agentflow.trajectory import Task


class Corridor(ToolEnvironment):
    """Its tools end the episode: a door that is the goal, and a trap that is a limit."""

    reward_terms: ClassVar[Mapping[str, str]] = {"steps": "Steps of this turn."}

    def tasks(self, split: Split) -> list[Task]:
        return [Task(f"{split}-1", "Find the door.")]

    def on_reset(self, task: Task, rng: np.random.Generator) -> None:
        self.left = 2

    @tool
    def advance(self) -> ToolOutput:
        """Go on."""
        self.left -= 1
        return ToolOutput(f"{self.left} left", ends="" if self.left else "over")

    @tool
    def fall(self) -> ToolOutput:
        """Fall."""
        return ToolOutput("you fell", ends="limit")

    def turn_terms(self, results: Sequence[ToolResult]) -> dict[str, float]:
        return {"steps": float(sum(result.ok for result in results)), "success": 0.25 if self.left else 0.0}

    def score(self, task: Task, answer: str) -> dict[str, float]:
        return {"success": float(not self.left and not answer)}


def calls(*names: str) -> Message:
    return Message("assistant", tool_calls=tuple(ToolCall(name) for name in names))


def test_a_tool_can_end_the_episode_which_is_then_scored() -> None:
    environment = Corridor()
    environment.reset(seed=0)
    observation, reward, terminated, truncated, info = environment.step(calls("advance"))
    assert (reward, terminated, truncated) == (0.25, False, False), "the outcome of a turn is its reward"
    observation, reward, terminated, truncated, info = environment.step(calls("advance", "fall", "advance"))
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    assert [message.content for message in observation] == ["0 left", *["Error: the episode is over"] * 2]
    assert info["reward_terms"] == {"valid_call": 1.0, "steps": 1.0, "success": 1.0}
    with pytest.raises(EnvironmentFailure):
        environment.step(calls("advance"))


def test_a_tool_can_cut_the_episode_off() -> None:
    environment = Corridor()
    environment.reset(seed=0)
    _, _, terminated, truncated, info = environment.step(calls("fall"))
    assert (terminated, truncated) == (False, True) and "success" not in info
    with pytest.raises(EnvironmentFailure):
        environment.step(calls("advance"))
