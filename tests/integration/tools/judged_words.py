"""An environment whose score is what the role `judge` says."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentflow.messages import Message
from agentflow.trajectory import Task

_SPEC = importlib.util.spec_from_file_location("words", Path(__file__).parent.parent / "words.py")
assert _SPEC is not None and _SPEC.loader is not None
_WORDS: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_WORDS)
save_tiny_model = _WORDS.save_tiny_model


class Speaker:
    """Says the task's colour; an untrained model would hardly ever end its turn."""

    def __init__(self, colour: str) -> None:
        self._colour = colour

    def act(self, observation: Any) -> Message:
        """Say it."""
        return Message("assistant", self._colour)


class JudgedWords(_WORDS.Words):  # type: ignore[misc]  # a file beside, loaded by its path
    """Words, graded by a frozen model."""

    waits_outside = True
    asked = "judge"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.judge = self.roles[self.asked]

    def expert(self, task: Task, seed: int) -> Speaker:
        """Return who says the colour."""
        return Speaker(str(task.answer))

    async def score(self, task: Task, answer: str) -> Mapping[str, float]:
        """Return the judge's grade."""
        verdict = await self.judge.complete([Message("user", f"{task.answer}: {answer}")])
        return {"success": float(verdict.removeprefix("VERDICT "))}


class Mistyped(JudgedWords):
    """Asks for a role whose name is mistyped."""

    asked = "jugde"
