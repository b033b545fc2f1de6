"""Check that an environment keeps its contract: Gymnasium's own checks, and what training needs beyond them.

    for finding in check_environment(MyEnvironment, level=2):
        print(finding.level, finding.message)

Episodes are played by the environment's expert, if it ships one, and by a prober that calls every tool twice with
plausible arguments and then gives the gold answer. Played twice, played interleaved with others and played through
`astep`, an episode must come out the same, to the letter.
"""

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gymnasium.utils.env_checker import check_env

from agentflow.environment import Environment, Split, load_tasks
from agentflow.environment_probe import (
    SEED,
    SUCCESS,
    WRONG_ANSWERS,
    Prober,
    asked_again,
    begin_alike,
    faults,
    garbage,
    interleaved,
    named,
    outcome_of,
    outcome_of_solution,
    played,
    players_of,
)
from agentflow.errors import DataError, UserError
from agentflow.messages import Message, ToolSchema
from agentflow.trajectory import Task

_NUM_EPISODES = 4
_NUM_ANSWERS = 20
_SPLITS: tuple[Split, ...] = ("train", "heldout")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the check found.

    Attributes:
        level: `error` for what would spoil a training run, `warning` for what may be meant.
        message: What is wrong, and what to do about it.
    """

    level: Literal["error", "warning"]
    message: str


@dataclass(frozen=True, slots=True)
class AnswerReport:
    """What the gold answers of a split scored.

    Attributes:
        num_answers: Tasks whose gold answer was scored.
        num_played: Tasks without one that the expert has played.
        num_unknown: Tasks with neither.
        failing: The ids of the tasks where that is not worth full marks, with what it scored instead.
    """

    num_answers: int
    num_played: int
    num_unknown: int
    failing: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Subject:
    """The environment under check, with the tasks of both splits."""

    make: Callable[[], Environment]
    splits: Mapping[Split, tuple[Task, ...]]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks."""
        return self.splits["train"] + self.splits["heldout"]

    @property
    def episodes(self) -> tuple[Task, ...]:
        """The tasks that whole episodes are played of."""
        return self.tasks[:_NUM_EPISODES]


def check_environment(env_class: type[Environment], **options: Any) -> list[Finding]:
    """Check an environment's contract.

    Args:
        env_class: The environment.
        **options: Its options.

    Returns:
        The findings, errors first; an empty list means that the environment is ready to train.

    Raises:
        ConfigError: The options do not fit the environment.
    """
    made: list[Environment] = []

    def make() -> Environment:
        made.append(env_class(**options))
        return made[-1]

    findings = [*_check_all(make), *_close(made)]
    return sorted(dict.fromkeys(findings), key=lambda finding: finding.level)


def validate_answers(
    env_class: type[Environment], split: Split, *, limit: int | None = None, **options: Any
) -> AnswerReport:
    """Score the gold answer of every task of a split; where there is none, let the expert play.

    Args:
        env_class: The environment.
        split: Which tasks.
        limit: The first so many tasks only.
        **options: The environment's options.

    Raises:
        ConfigError: The options do not fit the environment.
        DataError: The split has no tasks.
    """
    environment = env_class(**options)
    tasks = load_tasks(environment, split)[:limit]
    outcomes = {task.id: outcome_of_solution(environment, task) for task in tasks}
    num_answers = sum(environment.gold_answer(task) is not None for task in tasks)
    environment.close()
    known = {task_id: outcome for task_id, outcome in outcomes.items() if outcome}
    failing = {task_id: outcome for task_id, outcome in known.items() if outcome != SUCCESS}
    return AnswerReport(num_answers, len(known) - num_answers, len(outcomes) - len(known), failing)


def _check_all(make: Callable[[], Environment]) -> Iterator[Finding]:
    try:
        splits: dict[Split, tuple[Task, ...]] = {split: load_tasks(make(), split) for split in _SPLITS}
        again: dict[Split, tuple[Task, ...]] = {split: load_tasks(make(), split) for split in _SPLITS}
    except DataError as error:
        yield _error(f"{error}")
        return
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  whatever the author's code raises is a finding
        yield _error(f"Making it and its tasks raised {named(error)}.")
        return
    yield from _check_tasks(splits, again)
    subject = _Subject(make, splits)
    for check in _CHECKS:
        try:
            yield from check(subject)
        except Exception as error:  # noqa: BLE001  as above
            yield _error(f"{check.__doc__} Not so: it raised {named(error)}.")


def _close(made: Sequence[Environment]) -> Iterator[Finding]:
    for environment in made:
        try:
            environment.close()
        except Exception as error:  # noqa: BLE001  as above
            yield _error(f"close raised {named(error)}.")


def _check_tasks(
    splits: Mapping[Split, tuple[Task, ...]], again: Mapping[Split, tuple[Task, ...]]
) -> Iterator[Finding]:
    for split, tasks in splits.items():
        for task in tasks:
            try:
                _as_json(task)
            except (TypeError, ValueError) as error:
                yield _error(f"Task {task.id!r} is not JSON ({error}): a run stores its tasks.")
                return
        if [_as_json(task) for task in tasks] != [_as_json(task) for task in again[split]]:
            yield _error(f"tasks({split!r}) differs from call to call: draw them with a fixed seed.")


def _check_heldout(subject: _Subject) -> Iterator[Finding]:
    """Held-out tasks are others than those of training."""
    train, heldout = subject.splits["train"], subject.splits["heldout"]
    shared, looked_at = asked_again(subject.make(), train, heldout)
    if not shared:
        return
    if len(heldout) > 1 and len(shared) == len(heldout) and begin_alike(subject.make(), heldout):
        yield _warning("One task: held-out equals training. Success says how well this task is learnt, and no more.")
    else:
        share = "" if len(shared) == looked_at else f"of {looked_at} "
        yield _warning(
            f"{len(shared)} {share}held-out tasks are asked in training too (the first: {shared[0].id!r}): "
            "held-out success will overstate what was learnt."
        )


def _check_declarations(subject: _Subject) -> Iterator[Finding]:
    """The class declares its terms, its outcome and its limit of turns."""
    environment = subject.make()
    outcome = environment.outcome
    if outcome not in environment.reward_terms:
        yield _error(
            f"The outcome {outcome!r} is not among reward_terms: {_listed(environment.reward_terms)}. Declare it on "
            f"the class, with a sentence: reward_terms = {{{outcome!r}: 'Whether the task is solved.'}}."
        )
    if not isinstance(environment.max_turns, int) or environment.max_turns < 1:
        yield _error(f"max_turns is {environment.max_turns!r}, not a positive number.")
    names = [schema["function"]["name"] for schema in environment.tool_schemas]
    if len(set(names)) < len(names):
        yield _error(f"Two tools have the same name: {_listed(names)}.")
    for schema in environment.tool_schemas:
        yield from _check_tool(schema)


def _check_tool(schema: ToolSchema) -> Iterator[Finding]:
    function = schema["function"]
    name = function["name"]
    json.dumps(schema, allow_nan=False)
    if not _TOOL_NAME.fullmatch(name):
        yield _error(f"Tool name {name!r} is not 1 to 64 letters, digits, _ or -: model servers refuse it.")
    if not function.get("description"):
        yield _warning(f"Tool {name!r} has no docstring: the policy is not told what it does.")
    for argument, described in function["parameters"].get("properties", {}).items():
        if not described.get("description"):
            yield _warning(f"Argument {argument!r} of tool {name!r} is not described: add it under `Args:`.")


def _check_gymnasium(subject: _Subject) -> Iterator[Finding]:
    """Gymnasium's own checks pass."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Rendering is left out: without a registration Gymnasium can only warn that it could not be checked.
        check_env(subject.make(), skip_render_check=True)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            yield _warning(f"Gymnasium: {_ANSI.sub('', str(warning.message)).removeprefix('WARN: ')}")


def _check_contract(subject: _Subject) -> Iterator[Finding]:
    """Every answer of an episode keeps the contract."""
    for task in subject.episodes:
        for player in players_of(subject.make(), task):
            environment = subject.make()
            episode = played(environment, player, task)
            for index, answer in enumerate(episode.answers):
                yield from map(_error, faults(environment, answer, first=index == 0))
            episode.checked()


def _check_determinism(subject: _Subject) -> Iterator[Finding]:
    """An episode is a function of its task and seed."""
    for task in subject.episodes:
        for player in players_of(subject.make(), task):
            environment = subject.make()
            first = played(environment, player, task).lines()
            if played(subject.make(), player, task).lines() != first:
                yield _error(
                    "Played again with the same seed, an episode differs: draw only from the rng of `on_reset`."
                )
            elif played(environment, player, task).lines() != first:
                yield _error("Played again by the same instance, an episode differs: `reset` must clear all state.")
            elif played(subject.make(), player, task, asynchronous=True).lines() != first:
                yield _error("Played through areset and astep, an episode differs from reset and step.")


def _check_isolation(subject: _Subject) -> Iterator[Finding]:
    """Concurrent episodes do not share state."""
    episodes = [(player, task) for task in subject.episodes for player in players_of(subject.make(), task)]
    serial = [played(subject.make(), player, task).lines() for player, task in episodes]
    at_once = interleaved([(subject.make(), player, task) for player, task in episodes])
    if [episode.lines() for episode in at_once] != serial:
        yield _error(
            "Episodes played at the same time differ from the same episodes played one by one: they share state."
        )


def _check_single_use(subject: _Subject) -> Iterator[Finding]:
    """An episode that is over cannot be continued."""
    environment = subject.make()
    try:
        *_, (_, _, terminated, _, _) = played(environment, Prober, subject.tasks[0]).checked()
        environment.step(Message("assistant", "once more"))
    except Exception:  # noqa: BLE001  any refusal will do, and other checks see to the episode itself
        return
    if terminated:
        yield _error("A step after the end of the episode was answered: raise, so that no turn is scored twice.")


def _check_answers(subject: _Subject) -> Iterator[Finding]:
    """Gold answers score full marks, and nothing else does."""
    environment = subject.make()
    # Spread over all tasks: the first ones may all be of one kind.
    checked = subject.tasks[:: math.ceil(len(subject.tasks) / _NUM_ANSWERS)]
    outcomes = {task.id: outcome_of_solution(environment, task) for task in checked}
    if not any(outcomes.values()):
        yield _warning("Full marks cannot be checked: no task has an `answer`, and there is no expert.")
    missed = [(task_id, outcome) for task_id, outcome in outcomes.items() if outcome not in ("", SUCCESS)]
    if missed:
        task_id, outcome = missed[0]
        yield _error(
            f"{len(missed)} of {len(checked)} gold answers do not solve their task (the first: {task_id!r}: {outcome})."
            " `agentflow envs validate` lists them all."
        )
    for wrong in WRONG_ANSWERS:
        solved = [task.id for task in checked if outcome_of(environment, task, wrong) == SUCCESS]
        if solved:
            yield _error(
                f"The answer {wrong!r} solves {len(solved)} of {len(checked)} tasks (the first: {solved[0]!r})."
            )


def _check_garbage(subject: _Subject) -> Iterator[Finding]:
    """Whatever a policy says is answered."""
    task = subject.tasks[0]
    failing: dict[str, str] = {}
    for action in garbage(subject.make().tool_schemas, task):
        said = ", ".join(f"{call.name}({dict(call.arguments)})" for call in action.tool_calls) or repr(action.content)
        environment = subject.make()
        try:
            environment.reset(seed=SEED, options={"task": task})
            environment.step(action)
        except Exception as error:  # noqa: BLE001  whatever the author's code raises is a finding
            failing.setdefault(
                action.tool_calls[-1].name if action.tool_calls else "", f"{said:.80} raises {named(error)}"
            )
    for fault in failing.values():
        yield _error(
            f"{fault}. Such an episode fails and teaches nothing: a tool raises ToolError with what the policy should "
            "read, and a score returns a number for whatever was answered."
        )


_CHECKS: tuple[Callable[[_Subject], Iterator[Finding]], ...] = (
    _check_heldout,
    _check_declarations,
    _check_gymnasium,
    _check_contract,
    _check_determinism,
    _check_isolation,
    _check_single_use,
    _check_answers,
    _check_garbage,
)


def _as_json(task: Task) -> str:
    return json.dumps([task.id, task.prompt, task.answer, dict(task.metadata)], allow_nan=False)


def _listed(names: Any) -> str:
    return ", ".join(names) or "none"


def _error(message: str) -> Finding:
    return Finding("error", message)


def _warning(message: str) -> Finding:
    return Finding("warning", message)
