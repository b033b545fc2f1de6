"""What a coding task asks for: a problem, its visible examples and its hidden tests, as data and never as code."""

import ast
from typing import Any, Self

from pydantic import Field, model_validator

from agentflow.config import Config
from agentflow.trajectory import Task

MAX_PROGRAM_CHARS = 20_000
"""Characters of an answer's program; a longer one does not count as a program."""


class Case(Config):
    """One input with what is expected of it; only the input ever enters a sandbox."""

    call: str = Field("", description="A call of the function as an expression, `f(3)`; empty for a whole program.")
    stdin: str = Field("", description="What a whole program reads.")
    expected: str = Field(description="A Python literal for a call, the text written to stdout for a whole program.")
    tolerance: float = Field(0.0, ge=0, description="How far a number may be off.")


class Problem(Config):
    """The answer side of a task, kept from the policy: `Task.answer` is its JSON form."""

    entry: str = Field("", description="The function that is called; empty for whole programs and for values.")
    examples: tuple[Case, ...] = Field((), description="Cases that the policy may try its program on.")
    tests: tuple[Case, ...] = Field((), description="Hidden cases; a value has none.")
    value: str = Field("", description="The answer of a task that asks for a value and not for a program.")
    reference: str = Field("", description="A program that solves the task, or works the value out.")
    slips: tuple[str, ...] = Field((), description="Programs that a player who errs would write.")

    @model_validator(mode="after")
    def _gradable(self) -> Self:
        if bool(self.value) == bool(self.tests):
            raise ValueError("a problem has either hidden tests or a value")
        return self

    @classmethod
    def of(cls, task: Task) -> Self:
        """Read the problem of a task."""
        return cls.model_validate(task.answer)

    def to_json(self) -> dict[str, Any]:
        """Return what a task carries."""
        return self.model_dump(mode="json", exclude_defaults=True)


def program_of(answer: str) -> str:
    """Return the program that an answer holds: its last fenced block if there is one, else all of it."""
    parts = answer.split("```")
    if len(parts) < 3:
        return answer.strip()
    block = parts[-2] if len(parts) % 2 else parts[-1]
    language, newline, rest = block.partition("\n")
    return (rest if newline and language.strip().lower() in ("", "py", "python", "python3") else block).strip()


def parsed(program: str) -> ast.Module | None:
    """Return the syntax tree of a program, None if it has none."""
    if not program.strip() or len(program) > MAX_PROGRAM_CHARS:
        return None
    try:
        return ast.parse(program)
    # ValueError for a null character, the others for nesting that the parser gives up on.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def size(program: str) -> int:
    """Count the nodes of a program's syntax tree, names of contexts left out; 0 if it does not parse."""
    tree = parsed(program)
    return 0 if tree is None else sum(not isinstance(node, ast.expr_context) for node in ast.walk(tree))
