"""Play episodes for the environment checker: by the environment's expert, by a prober, and with garbage."""

import asyncio
import json
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import gymnasium

from agentflow.agents.react import react
from agentflow.attempts import Ask
from agentflow.concurrency import call, run_blocking
from agentflow.environment import Environment, Expert, Observation, StepResult, require_expert
from agentflow.errors import ConfigError, EpisodeFailure
from agentflow.messages import Message, ToolCall, ToolSchema, to_chat
from agentflow.play import AgentConfig, Play, Scene
from agentflow.roles import PLANNER
from agentflow.speakers import ExpertSpeaker
from agentflow.trajectory import Task

SEED = 7
SUCCESS = "success"
WRONG_ANSWERS = ("", "certainly not the answer 7f3a9c")
_SAMPLE_ARGUMENTS = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}, "null": None}
_MAX_ERROR_CHARS = 200
_NUM_OPENINGS = 20

Player: TypeAlias = Callable[[Environment, Task], Expert]
"""Makes whoever plays an episode."""
Turn: TypeAlias = Callable[[], AbstractAsyncContextManager[None]]
"""Makes what is entered for each call of an environment."""


class Prober:
    """Calls every tool with plausible arguments, twice, and then gives the gold answer."""

    def __init__(self, environment: Environment, task: Task) -> None:
        calls = tuple(plausible_call(schema, task) for schema in environment.tool_schemas)
        self._calls = [Message("assistant", tool_calls=calls)] * 2 if calls else []
        self._answer = Message("assistant", environment.gold_answer(task) or WRONG_ANSWERS[-1])

    def act(self, observation: Observation) -> Message:
        """Return the next message, whatever was observed."""
        return self._calls.pop() if self._calls else self._answer


class _Answerer:
    def __init__(self, answer: str) -> None:
        self._message = Message("assistant", answer)

    def act(self, observation: Observation) -> Message:
        return self._message


def players_of(environment: Environment, task: Task) -> list[Player]:
    """Return who can play the task: the prober, and the environment's expert if it has one."""
    try:
        require_expert(environment, task, seed=SEED)
    except ConfigError:
        return [Prober]
    return [Prober, lambda environment, task: environment.expert(task, SEED)]


@dataclass(frozen=True, slots=True)
class Played:
    """An episode that was played for the check.

    Attributes:
        answers: What the environment said, as it said it; what `reset` said comes first, as a step without reward.
        error: What ended the episode before its time; None if nothing did.
    """

    answers: tuple[StepResult, ...]
    error: BaseException | None

    def checked(self) -> tuple[StepResult, ...]:
        """Return the answers, or raise what ended the episode."""
        if self.error is not None:
            raise self.error
        return self.answers

    def lines(self) -> list[str]:
        """Return the episode as text, one line an answer; an exception is its last line."""
        lines = [_line(answer) for answer in self.answers]
        return lines if self.error is None else [*lines, named(self.error)]


class _Watched:
    """An environment that is not closed, and whose answers are kept.

    Args:
        environment: The environment.
        asynchronous: Whether it is called by `areset` and `astep`, or by `reset` and `step`.
        turn: Entered for each call.
    """

    close = gymnasium.Env.close  # it is the same as nothing to close

    def __init__(self, environment: Environment, *, asynchronous: bool, turn: Turn) -> None:
        self.answers: list[StepResult] = []
        self.max_turns = environment.max_turns
        self.waits_outside = environment.waits_outside
        self._environment = environment
        self._asynchronous = asynchronous
        self._turn = turn

    async def areset(self, *, seed: int, options: dict[str, Any]) -> Any:
        """Reset it, and keep what it says."""
        reset = self._environment.areset if self._asynchronous else self._environment.reset
        async with self._turn():
            observation, info = await call(reset, seed=seed, options=options)
        self.answers.append((observation, 0.0, False, False, info))
        return observation, info

    async def astep(self, action: Message) -> StepResult:
        """Step it, and keep what it says."""
        step = self._environment.astep if self._asynchronous else self._environment.step
        async with self._turn():
            answer: StepResult = await call(step, action)
        self.answers.append(answer)
        return answer


class _Table:
    """Lets episodes act in turn, one call each, so that they interleave in the same way every time.

    Args:
        num_players: The number of episodes.
    """

    def __init__(self, num_players: int) -> None:
        self._order = deque(range(num_players))
        self._moved = asyncio.Condition()

    @asynccontextmanager
    async def turn(self, place: int) -> AsyncIterator[None]:
        """Wait for a place's turn, and pass it on after the block."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._order[0] == place)
            yield
            self._order.rotate(-1)
            self._moved.notify_all()

    async def leave(self, place: int) -> None:
        """Give up a place."""
        async with self._moved:
            self._order.remove(place)
            self._moved.notify_all()


def played(environment: Environment, player: Player, task: Task, *, asynchronous: bool = False) -> Played:
    """Play an episode with `reset` and `step`, or with `areset` and `astep`; nothing that goes wrong is raised."""
    return run_blocking(_play(environment, player, task, asynchronous=asynchronous))


def interleaved(episodes: Sequence[tuple[Environment, Player, Task]]) -> list[Played]:
    """Play episodes at once, in turn, one call of each environment after the other."""

    async def play_all() -> list[Played]:
        table = _Table(len(episodes))

        async def play(place: int) -> Played:
            try:
                return await _play(*episodes[place], turn=partial(table.turn, place))
            finally:
                await table.leave(place)

        return await asyncio.gather(*map(play, range(len(episodes))))

    return run_blocking(play_all())


async def _play(
    environment: Environment, player: Player, task: Task, *, asynchronous: bool = False, turn: Turn = nullcontext
) -> Played:
    watched: Any = _Watched(environment, asynchronous=asynchronous, turn=turn)
    speaker = ExpertSpeaker(make_expert=lambda _environment, posed, _seed: player(environment, posed))
    scene = Scene(lambda: watched, {PLANNER: speaker}, AgentConfig())
    error: BaseException | None = None
    try:
        await Play(Ask("check", task, SEED), scene).perform(react)
    except EpisodeFailure as failure:
        error = failure.__cause__ or failure
    return Played(tuple(watched.answers), error)


def _line(result: StepResult) -> str:
    observation, *rest = result
    return json.dumps([[to_chat(message) for message in observation], *rest], default=repr)


def asked_again(environment: Environment, train: Sequence[Task], heldout: Sequence[Task]) -> tuple[list[Task], int]:
    """Find the held-out tasks that pose what a training task poses, and begin as it does.

    What an episode is about may stand in the metadata alone: a maze's prompt says nothing of its walls.

    Returns:
        These tasks, of the first twenty that may be such, and how many that are; all of them where all twenty are.
    """
    same: dict[str, list[Task]] = {}
    for task in train:
        same.setdefault(_posed(task), []).append(task)
    suspects = [task for task in heldout if _posed(task) in same]
    looked_at = suspects[:_NUM_OPENINGS]
    seen = {
        posed: {opening(environment, other) for other in same[posed][:_NUM_OPENINGS]}
        for posed in dict.fromkeys(map(_posed, looked_at))
    }
    again = [task for task in looked_at if opening(environment, task) in seen[_posed(task)]]
    return (suspects, len(suspects)) if len(again) == len(looked_at) else (again, len(looked_at))


def _posed(task: Task) -> str:
    return json.dumps([task.prompt, dict(task.metadata)], sort_keys=True)


def begin_alike(environment: Environment, tasks: Sequence[Task]) -> bool:
    """Say whether the first tasks all begin with the same words."""
    return len({opening(environment, task) for task in tasks[:_NUM_OPENINGS]}) == 1


def opening(environment: Environment, task: Task) -> str:
    """Return what an environment says first."""
    observation, _ = environment.reset(seed=SEED, options={"task": task})
    return json.dumps([to_chat(message) for message in observation])


def faults(environment: Environment, result: StepResult, *, first: bool) -> Iterator[str]:
    """Name everything in an answer that breaks the contract."""
    observation, reward, terminated, truncated, info = result
    if not isinstance(observation, tuple) or not all(isinstance(message, Message) for message in observation):
        yield f"The observation {observation!r:.80} is not a tuple of Message."
    elif first and not observation:
        yield "reset says nothing: the policy needs at least one message."
    if not math.isfinite(reward):
        yield f"The reward is {reward!r}, not a finite number."
    if not isinstance(terminated, bool) or not isinstance(truncated, bool):
        yield f"terminated and truncated are {terminated!r} and {truncated!r}, not true or false."
    try:
        json.dumps(info, allow_nan=False)
    except (TypeError, ValueError) as error:
        yield f"info is not JSON ({error}): a run stores it."
    for name, value in info.get("reward_terms", {}).items():
        if name not in environment.reward_terms:
            known = ", ".join(environment.reward_terms) or "none"
            yield f"The term {name!r} is not declared in reward_terms: {known}. Add it there, with a sentence."
        if not math.isfinite(value):
            yield f"The term {name!r} is {value!r}, not a finite number."
    if terminated and not isinstance(info.get("success"), bool):
        yield f"info['success'] is {info.get('success')!r} at the end of an episode, not true or false."


def outcome_of(environment: Environment, task: Task, answer: str) -> str:
    """Give an answer until the episode ends; return `SUCCESS`, or in words what came of it instead."""
    return _last_words(environment, lambda _environment, _task: _Answerer(answer), task)


def outcome_of_solution(environment: Environment, task: Task) -> str:
    """Solve a task by its gold answer, or by the expert where there is none; return as `outcome_of` does.

    The result is empty where the environment has neither.
    """
    answer = environment.gold_answer(task)
    if answer is not None:
        return outcome_of(environment, task, answer)
    *_, player = players_of(environment, task)
    return "" if player is Prober else _last_words(environment, player, task)


def _last_words(environment: Environment, player: Player, task: Task) -> str:
    try:
        *_, (_, reward, terminated, _, info) = played(environment, player, task).checked()
    except Exception as error:  # noqa: BLE001  whatever the author's code raises is a finding
        return f"it raised {named(error)}"
    if not terminated:
        return "the episode went on"
    return SUCCESS if info.get("success") else f"reward {reward:g}, {info.get('reward_terms')}"


def plausible_call(schema: ToolSchema, task: Task) -> ToolCall:
    """Return a call with an argument of the right type for each parameter that needs one; texts are the prompt."""
    function = schema["function"]
    arguments = {
        name: described["enum"][0] if "enum" in described else _SAMPLE_ARGUMENTS.get(described.get("type"), task.prompt)
        for name, described in function["parameters"].get("properties", {}).items()
        if "default" not in described
    }
    return ToolCall(function["name"], arguments)


def garbage(schemas: tuple[ToolSchema, ...], task: Task) -> Iterator[Message]:
    """Yield what a policy may say before it has learnt anything: odd texts, and calls wrong in every way."""
    for text in (*WRONG_ANSWERS, " \n\t", "\x00\u202e{'", "word " * 20_000):
        yield Message("assistant", text)
    calls = [ToolCall(""), ToolCall("no_such_tool", {"query": "x"})]
    for schema in schemas:
        name, arguments = schema["function"]["name"], schema["function"]["parameters"].get("properties", {})
        calls += [plausible_call(schema, task), ToolCall(name), ToolCall(name, {"no_such_argument": 1})]
        calls += [
            ToolCall(name, dict.fromkeys(arguments, value)) for value in ({"a": [1]}, None, "", -1, 10**30, "x" * 5000)
        ]
    for one in calls:
        yield Message("assistant", tool_calls=(one,))
    yield Message("assistant", "text beside calls", tool_calls=tuple(calls))


def named(error: BaseException) -> str:
    """Return an exception's type and the start of its text."""
    return f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]
