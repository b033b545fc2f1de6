"""The code environment: write, repair and run small programs, graded on hidden tests outside their process."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from agentflow.config import Config
from agentflow.environment import Expert, Split
from agentflow.environments.coding.claims import Answer, shown
from agentflow.environments.coding.expert import CodeExpert
from agentflow.environments.coding.grading import Verdict, grade, same_text
from agentflow.environments.coding.problems import Case, Problem, parsed, program_of, size
from agentflow.environments.coding.sets import ProgramsConfig, load_programs
from agentflow.environments.coding.tasks import Kind, tasks
from agentflow.environments.tool_environment import ToolEnvironment, ToolResult
from agentflow.errors import ConfigError
from agentflow.sandbox.base import Limits, Program, Sandbox, run_reliably
from agentflow.sandbox.shared import shared_sandbox
from agentflow.tools.python import bounded, echoing_last, ending, observed
from agentflow.tools.tool import ToolOutput, tool
from agentflow.trajectory import Task


class CodeOptions(Config):
    """The options of the code environment."""

    seed: int = Field(0, ge=0, description="Fixes the generated tasks.")
    kinds: tuple[Kind, ...] = Field(
        ("function", "repair", "compute"), min_length=1, description="Kinds of tasks, taken in turn."
    )
    difficulties: tuple[Annotated[int, Field(ge=1, le=4)], ...] = Field(
        (1, 2, 3, 4), min_length=1, description="Levels, taken in turn: one step, two, a list, a list with choices."
    )
    train_tasks: int = Field(2048, ge=1, le=1_000_000, description="Tasks of the training split.")
    heldout_tasks: int = Field(400, ge=1, description="Tasks of the held-out split.")
    expert_noise: float = Field(
        0.0, ge=0, le=1, description="How often the scripted expert errs: 0 never, 1 in about six tasks of ten."
    )
    sandbox: str = Field("auto", description="The sandbox that programs run in; `auto` is the first that works here.")
    packages: tuple[str, ...] = Field(
        (), description="Installed distributions that programs may import, beside numpy, sympy and matplotlib."
    )
    limits: Limits = Field(
        default=Limits(cpu_s=2.0, wall_s=10.0, memory_mb=256, disk_mb=16, max_processes=8),
        description="What one execution may use.",
    )
    programs: ProgramsConfig | None = Field(
        None, description="A set of coding tasks of your own, in place of the generated ones."
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("a kind is named twice")
        return self


class Code(ToolEnvironment):
    """Write a function, repair a program, or work a value out, with a sandbox to try programs in.

    The final answer is the program (for a value: the value), and hidden tests grade it. Their expected outputs stay
    in this process; see `grading`.

    Raises:
        ConfigError: An option is wrong.
        SandboxUnavailable: The sandbox does not work here.
    """

    options_model = CodeOptions
    instructions = "Try a program with run, then give the program alone, or the value that is asked for."
    outcome = "solved"
    max_turns = 6
    reward_terms: ClassVar[Mapping[str, str]] = {
        "solved": "Whether every hidden test passes, or the value is right.",
        "parses": "Whether the answer is Python; absent where a value is asked for.",
        "runs": "Whether the program answers every hidden test without an error; absent where a value is asked for.",
        "tests": "Share of the hidden tests that pass.",
        "efficiency": "Size of the reference beside that of a program that solves the task, at most 1; else 0.",
        "examples": "Share of the visible examples that this turn's programs pass for the first time.",
    }

    options: CodeOptions
    _problem: Problem
    _shown: set[int]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._sandbox = self.make_sandbox()

    def make_sandbox(self) -> Sandbox:
        """Return the sandbox that programs run in; override it to bring one of your own."""
        return shared_sandbox(self.options.sandbox, self.options.packages).ensure_open()

    def tasks(self, split: Split) -> Sequence[Task]:
        """Return the tasks of a split."""
        options = self.options
        if options.programs is not None:
            return _own_set(options.programs, split)
        count = options.train_tasks if split == "train" else options.heldout_tasks
        return tasks(options.seed, split, kinds=options.kinds, difficulties=options.difficulties, count=count)

    async def on_reset(self, task: Task, rng: np.random.Generator) -> None:
        """Read the problem, and forget which examples have passed."""
        self._problem = Problem.of(task)
        self._shown = set()
        self._passing: set[int] = set()

    @tool
    async def run(self, code: str) -> str | ToolOutput:
        """Run a program: on the examples if the task has some, else as it is.

        Args:
            code: The program.
        """
        bounded(code)
        limits, examples = self.options.limits, self._problem.examples
        if not examples:
            return observed(await run_reliably(self._sandbox, Program(echoing_last(code)), limits), limits)
        verdict = await grade(self._sandbox, code, examples, limits=limits)
        self._passing |= {index for index, passed in enumerate(verdict.passed) if passed}
        return _told(verdict, examples, limits)

    async def turn_terms(self, results: Sequence[ToolResult]) -> Mapping[str, float]:
        """Pay each visible example the first time that a program passes it."""
        examples = self._problem.examples
        new = self._passing - self._shown
        self._shown |= new
        return {"examples": len(new) / len(examples)} if examples else {}

    async def score(self, task: Task, answer: str) -> Mapping[str, float]:
        """Run the answer on the hidden tests; a value is compared as text."""
        problem = self._problem
        if problem.value:
            right = float(same_text(answer, problem.value))
            return {"solved": right, "tests": right}
        program = program_of(answer)
        if parsed(program) is None:
            return {"solved": 0.0, "parses": 0.0, "runs": 0.0, "tests": 0.0, "efficiency": 0.0}
        verdict = await grade(self._sandbox, program, problem.tests, limits=self.options.limits)
        solved = all(verdict.passed)
        terms = {"solved": solved, "parses": 1.0, "runs": verdict.runs, "tests": verdict.share}
        return {**terms, "efficiency": min(1.0, size(problem.reference) / size(program)) if solved else 0.0}

    def gold_answer(self, task: Task) -> str | None:
        """Return the reference, or the value; None for a task of a set that has no solutions."""
        problem = Problem.of(task)
        return problem.value or problem.reference or None

    def expert(self, task: Task, seed: int) -> Expert:
        """Return a scripted programmer that knows the reference and, with `expert_noise`, makes mistakes.

        Raises:
            ConfigError: The task has no reference.
        """
        problem = Problem.of(task)
        if not problem.reference:
            raise ConfigError(
                f"The expert cannot play {task.id!r}: the task has no reference solution.",
                "Name its column in env.programs.solution, or imitate a run's successes: agentflow sft --from-run RUN.",
            )
        return CodeExpert(problem, noise=self.options.expert_noise, seed=seed)


def _told(verdict: Verdict, examples: Sequence[Case], limits: Limits) -> str:
    """Return what the policy reads of its program on the examples."""
    if verdict.loaded.kind == "error" and verdict.loaded.value:
        return f"Error: {verdict.loaded.value}"
    if verdict.loaded.kind == "none" and verdict.result.status == "ok":
        return "Error: the program ended before it was called."
    pairs = zip(verdict.answers, examples, verdict.passed, strict=True)
    lines = [_line(answer, case) for answer, case, passed in pairs if not passed]
    if not lines:
        return "All examples pass."
    return "\n".join([*lines, *filter(None, [ending(verdict.result, limits)])])


def _line(answer: Answer, case: Case) -> str:
    what = case.call or f"With the input {case.stdin!r}"
    if answer.kind == "value":
        return f"{what} gives {shown(answer.value)}, not {case.expected if case.call else repr(case.expected)}."
    said = (answer.value or "").strip().splitlines()
    return f"{what} fails: {said[-1] if said else 'it does not say why' if answer.kind == 'error' else 'no answer'}"


@lru_cache(maxsize=8)
def _own_set(config: ProgramsConfig, split: Split) -> tuple[Task, ...]:
    return tuple(load_programs(config, split))
