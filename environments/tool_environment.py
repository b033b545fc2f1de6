"""The base of environments with tools: write tasks, typed tools and a score; episodes come out of them.

    class Shop(ToolEnvironment):
        instructions = "Answer with the number only."

        def tasks(self, split): return [Task("1", "What does tea cost?", answer="3"), ...]

        @tool
        def price(self, item: str) -> int: ...

        def score(self, task, answer): return {"success": float(answer.strip() == task.answer)}

A turn with tool calls is answered by their results; a message without any is the final answer, which is scored. A tool
that returns `ToolOutput(text, ends="over")` ends the episode too: the score gets an empty answer.
"""

import asyncio
import math
from abc import abstractmethod
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import groupby
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from agentflow.concurrency import call, run_blocking
from agentflow.environment import Environment, Observation, StepResult, load_tasks, read_tasks
from agentflow.errors import ConfigError, DataError, EnvironmentFailure, EpisodeFailure, ScoreFailure, ToolError
from agentflow.messages import Image, Message, ToolCall, ToolSchema
from agentflow.tools.tool import Tool, ToolOutput, tools_of
from agentflow.trajectory import Task


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came of one tool call.

    Attributes:
        call: The call as the policy wrote it.
        text: What the policy reads, not yet cut to the observation limit.
        valid: Whether the tool exists and the arguments fit.
        ok: Whether the tool answered; False for invalid calls and for errors that the tool told the policy of.
        value: What the tool returned, before it became text; None unless `ok`.
    """

    call: ToolCall
    text: str
    valid: bool = True
    ok: bool = True
    value: Any = None

    @property
    def images(self) -> tuple[Image, ...]:
        """What the policy sees after the text."""
        return self.value.images if isinstance(self.value, ToolOutput) else ()

    @property
    def ends(self) -> str:
        """Whether and how it ends the episode; see `ToolOutput.ends`."""
        return self.value.ends if isinstance(self.value, ToolOutput) else ""


class ToolEnvironment(Environment):
    """An environment made of tasks, tools and a score.

    Subclasses define `tasks`, `score` and methods marked with `@tool`; state of an episode is set up in `on_reset`.
    `reset(options={"task": task})` takes a `Task`, its fields as a mapping, or its id; without one a training task is
    drawn by the seed.

    Each plain function of a subclass (tool, score, `on_reset`, `turn_terms`) runs in a thread, so that one which waits
    or hangs holds up its own episode only, and the next one may run in another thread: what belongs to one thread (an
    sqlite3 connection) is opened within the call. An `async def` runs in the event loop and must not block it. Every
    synchronous `reset` or `step` runs an event loop of its own, and so does every rollout: a client that belongs to one
    loop (an aiohttp session) must be opened within the call, not kept on the instance or class.
    """

    reward_terms: ClassVar[Mapping[str, str]] = {
        "valid_call": "Share of a turn's tool calls that name a tool and fit its arguments; absent without calls.",
    }
    """Reward terms; a subclass adds its own to those it inherits, and need not describe its outcome."""
    instructions: ClassVar[str] = ""
    """The system message; none if empty."""
    success_threshold: ClassVar[float] = 1.0
    """The task counts as solved from this value of the outcome term."""
    max_observation_chars: ClassVar[int] = 8000
    """Characters shown of one tool result; a longer one loses its middle."""

    _task: Task | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        inherited = {name: text for base in reversed(cls.__mro__[1:]) for name, text in _terms_of(base).items()}
        cls.reward_terms = {cls.outcome: "Whether the task is solved.", **inherited, **_terms_of(cls)}

    @abstractmethod
    def score(self, task: Task, answer: str) -> Mapping[str, float] | Awaitable[Mapping[str, float]]:
        """Return the named terms of a final answer, among them `outcome`; may be async."""

    def on_reset(self, task: Task, rng: np.random.Generator) -> Awaitable[None] | None:
        """Set up the state of one episode, drawing all randomness from `rng`; may be async."""

    def turn_terms(self, results: Sequence[ToolResult]) -> Mapping[str, float] | Awaitable[Mapping[str, float]]:
        """Return further reward terms for a turn with tool calls; may be async."""
        return {}

    def is_success(self, terms: Mapping[str, float]) -> bool:
        """Say whether the final terms mean that the task is solved: by the outcome and its threshold."""
        return terms[self.outcome] >= self.success_threshold

    @cached_property
    def tools(self) -> Mapping[str, Tool]:
        """The tools by name; add to them here if some are not methods."""
        return tools_of(self)

    @property
    def tool_schemas(self) -> tuple[ToolSchema, ...]:
        """The tools that the policy is told of."""
        return tuple(tool.schema for tool in self.tools.values())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; see `areset`."""
        return run_blocking(self.areset(seed=seed, options=options))

    def step(self, action: Message) -> StepResult:
        """Play one turn; see `astep`."""
        return run_blocking(self.astep(action))

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Fixes the choice of the task, if none is given, and the generator that `on_reset` gets.
            options: `task`: a `Task`, a mapping of its fields, or its id.

        Raises:
            ConfigError: An option other than `task` is given.
            DataError: There is no such task, or no task at all.
        """
        self._task = None
        super().reset(seed=seed)
        # Two streams: the episode of a task is the same whether the task was drawn or given.
        choice, episode = self.np_random.spawn(2)
        task = self._find_task(options or {}, choice)
        await call(self.on_reset, task, episode)
        self._task = task
        system = (Message("system", self.instructions),) if self.instructions else ()
        return (*system, Message("user", task.prompt)), {"task_id": task.id}

    async def astep(self, action: Message) -> StepResult:
        """Answer tool calls by their results, or score a final answer.

        Raises:
            EnvironmentFailure: No episode is under way.
            ToolFailure: A tool broke.
            ScoreFailure: The score raised or is no mapping of finite numbers.
        """
        # Nothing is under way until the turn is complete: an episode that failed in a step cannot be continued.
        task, self._task = self._task, None
        if task is None:
            raise EnvironmentFailure("step was called on an episode that is over or not begun: call reset first")
        if not action.tool_calls:
            return await self._finish(task, action.content)
        results = await self._call_all(action.tool_calls)
        try:
            extra = await call(self.turn_terms, results)
        except EpisodeFailure:
            raise
        except (Exception, SystemExit) as error:
            raise ScoreFailure(f"turn_terms raised {type(error).__name__}: {error}") from error
        valid = sum(result.valid for result in results) / len(results)
        terms = {"valid_call": valid, **_finite("turn_terms", extra)}
        observation = tuple(
            Message("tool", self._cut(result.text), name=result.call.name, images=result.images) for result in results
        )
        ends = next((result.ends for result in results if result.ends), "")
        if ends == "over":
            _, reward, _, _, info = await self._finish(task, "")
            return observation, reward, True, False, {**info, "reward_terms": {**terms, **info["reward_terms"]}}
        self._task = None if ends else task
        return observation, terms.get(self.outcome, 0.0), False, bool(ends), {"reward_terms": terms}

    async def _finish(self, task: Task, answer: str) -> StepResult:
        try:
            scored = await call(self.score, task, answer)
        except EpisodeFailure:
            raise
        except (Exception, SystemExit) as error:
            raise ScoreFailure(f"score raised {type(error).__name__}: {error}") from error
        terms = _finite("score", scored)
        if self.outcome not in terms:
            raise ScoreFailure(f"score returned no {self.outcome!r}, which is the outcome, but {sorted(terms)}")
        return (), terms[self.outcome], True, False, {"reward_terms": terms, "success": self.is_success(terms)}

    async def _call_all(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Run the calls of a turn in order, up to one that ends the episode; those that may overlap run at once."""
        results: list[ToolResult] = []
        for overlap, neighbours in groupby(calls, lambda wanted: self._may_overlap(wanted.name)):
            if overlap and not _ended(results):
                results += await self._call_at_once(neighbours)
                continue
            for wanted in neighbours:
                results.append(_too_late(wanted) if _ended(results) else await self._call(wanted))
        return results

    def _may_overlap(self, name: str) -> bool:
        return name in self.tools and self.tools[name].parallel

    async def _call_at_once(self, calls: Iterable[ToolCall]) -> list[ToolResult]:
        # All of them end before the first failure counts, so that which one it is does not depend on timing.
        outcomes = await asyncio.gather(*map(self._call, calls), return_exceptions=True)
        broken = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if broken:
            raise broken[0]
        return [outcome for outcome in outcomes if isinstance(outcome, ToolResult)]

    async def _call(self, call: ToolCall) -> ToolResult:
        tool = self.tools.get(call.name)
        if tool is None:
            near = get_close_matches(call.name, self.tools, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            return ToolResult(call, f"Error: no tool {call.name!r}{hint}. {self._usage()}", valid=False, ok=False)
        try:
            arguments = tool.validate(call.arguments)
        except ToolError as error:
            return ToolResult(call, f"Error: {error}. {self._usage()}", valid=False, ok=False)
        try:
            value = await tool.run(arguments)
        except ToolError as error:
            return ToolResult(call, f"Error: {error}", ok=False)
        return ToolResult(call, tool.to_text(value), value=value)

    def _usage(self) -> str:
        return f"Tools: {', '.join(tool.usage for tool in self.tools.values()) or 'none, answer in plain text'}."

    def _cut(self, text: str) -> str:
        text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair has no tokens
        excess = len(text) - self.max_observation_chars
        if excess <= 0:
            return text
        head = (self.max_observation_chars + 1) // 2
        return f"{text[:head]}\n[... {excess} characters left out ...]\n{text[head + excess :]}"

    def _find_task(self, options: Mapping[str, Any], rng: np.random.Generator) -> Task:
        unknown = sorted(set(options) - {"task"})
        if unknown:
            raise ConfigError(f"reset has no option {unknown[0]!r}.", "The only option is `task`.")
        wanted = options.get("task")
        if wanted is None:
            tasks = load_tasks(self, "train")
            return tasks[int(rng.integers(len(tasks)))]
        if isinstance(wanted, Task):
            return wanted
        if isinstance(wanted, Mapping):
            try:
                return Task(**wanted)
            except TypeError as error:
                raise DataError(
                    f"{dict(wanted)!r} is not a task: {error}.", "Its fields: id, prompt, answer, metadata."
                ) from None
        known = {task.id: task for split in ("heldout", "train") for task in read_tasks(self, split)}
        if wanted not in known:
            near = get_close_matches(str(wanted), known, n=1)
            raise DataError(f"There is no task {wanted!r}.", f"Did you mean {near[0]!r}?" if near else "")
        return known[wanted]


def _ended(results: Sequence[ToolResult]) -> bool:
    return any(result.ends for result in results)


def _too_late(call: ToolCall) -> ToolResult:
    return ToolResult(call, "Error: the episode is over", ok=False)


def _terms_of(cls: type) -> Mapping[str, str]:
    own: Mapping[str, str] = vars(cls).get("reward_terms", {})
    return own


def _finite(source: str, terms: Any) -> dict[str, float]:
    """Return named terms as floats, or raise ScoreFailure."""
    if not isinstance(terms, Mapping):
        raise ScoreFailure(f"{source} returned {type(terms).__name__}, not a mapping of names to numbers")
    for name, value in terms.items():
        if not isinstance(name, str) or not isinstance(value, Real | np.bool_) or not math.isfinite(value):
            raise ScoreFailure(f"{source} returned {name!r}: {value!r}, not a name with a finite number")
    return {name: float(value) for name, value in terms.items()}
