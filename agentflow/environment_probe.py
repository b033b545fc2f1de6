"""Play episodes for the environment checker: by the environment's expert, by a prober, and with garbage."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from agentflow.environment import Environment, Expert, Observation, StepResult
from agentflow.errors import ConfigError
from agentflow.messages import Message, ToolCall, ToolSchema, to_chat
from agentflow.trajectory import Task

SEED = 7
SUCCESS = "success"
WRONG_ANSWERS = ("", "certainly not the answer 7f3a9c")
_SAMPLE_ARGUMENTS = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}, "null": None}
_MAX_ERROR_CHARS = 200
_NUM_OPENINGS = 20

Player: TypeAlias = Callable[[Environment, Task], Expert]
"""Makes whoever plays an episode."""


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
        environment.expert(task, SEED)
    except ConfigError:
        return [Prober]
    return [Prober, lambda environment, task: environment.expert(task, SEED)]


def exchanges(environment: Environment, player: Player, task: Task) -> Iterator[StepResult]:
    """Play an episode; what `reset` said comes first, as a step without reward."""
    observation, info = environment.reset(seed=SEED, options={"task": task})
    yield observation, 0.0, False, False, info
    expert = player(environment, task)
    for _ in range(environment.max_turns):
        result = environment.step(expert.act(observation))
        yield result
        observation = result[0]
        if result[2] or result[3]:
            return


def lines_of(environment: Environment, player: Player, task: Task) -> Iterator[str]:
    """Play an episode into text, one line an exchange; an exception is its last line."""
    try:
        yield from map(_line, exchanges(environment, player, task))
    except Exception as error:  # noqa: BLE001  only the comparison counts here
        yield named(error)


async def async_lines_of(environment: Environment, player: Player, task: Task) -> list[str]:
    """Play an episode into the lines of `lines_of`, through `areset` and `astep`."""
    lines = []
    try:
        observation, info = await environment.areset(seed=SEED, options={"task": task})
        lines.append(_line((observation, 0.0, False, False, info)))
        expert = player(environment, task)
        for _ in range(environment.max_turns):
            result = await environment.astep(expert.act(observation))
            lines.append(_line(result))
            observation = result[0]
            if result[2] or result[3]:
                break
    except Exception as error:  # noqa: BLE001  only the comparison counts here
        lines.append(named(error))
    return lines


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
        *_, (_, reward, terminated, _, info) = exchanges(environment, player, task)
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
    for call in calls:
        yield Message("assistant", tool_calls=(call,))
    yield Message("assistant", "text beside calls", tool_calls=tuple(calls))


def named(error: Exception) -> str:
    """Return an exception's type and the start of its text."""
    return f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]
