"""A scripted programmer to imitate: it tries its program, mends what fails, answers; it errs as often as it is told."""

import random

from agentflow.environment import Observation
from agentflow.environments.coding.problems import Problem
from agentflow.messages import Message, ToolCall

# Rates at full noise, chosen so that about four tasks in ten are solved.
_SLIP = 0.75
"""Writes a program with a mistake first."""
_UNTRIED = 0.6
"""Answers without trying its program."""
_HASTY = 0.5
"""Having seen its program fail, answers with it all the same."""


class CodeExpert:
    """Play one task whose reference is known.

    Args:
        problem: The task's problem.
        noise: 0 never errs; 1 errs at the rates above.
        seed: Fixes the errors.
    """

    def __init__(self, problem: Problem, *, noise: float, seed: int) -> None:
        self._problem = problem
        self._noise = noise
        self._rng = random.Random(seed)  # noqa: S311  reproducible, not secret
        slipped = bool(problem.slips) and self._errs(_SLIP)
        self._program = self._rng.choice(problem.slips) if slipped else problem.reference
        self._tried = False

    def act(self, observation: Observation) -> Message:
        """Return the next call, or the answer."""
        if not self._tried:
            self._tried = True
            # A value can only be read from what a program prints.
            if self._problem.value or not self._errs(_UNTRIED):
                return self._run()
            return Message("assistant", self._program)
        if self._problem.value:
            return Message("assistant", observation[-1].content.strip())
        if self._program == self._problem.reference or self._errs(_HASTY):
            return Message("assistant", self._program)
        self._program = self._problem.reference
        return self._run()

    def _run(self) -> Message:
        return Message("assistant", tool_calls=(ToolCall("run", {"code": self._program}),))

    def _errs(self, rate: float) -> bool:
        return self._rng.random() < rate * self._noise
