"""Check an algorithm on a small made-up batch: `agentflow algos check FILE`.

findings = check_algorithm(load_recipe("my.yaml"))        what would spoil a run, and what may be meant
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from agentflow.batch import Batch, Earned, Judged, lay_out
from agentflow.columns import CURRENT, ENTROPY, START, Column
from agentflow.errors import AgentFlowError
from agentflow.maths.units import Floats
from agentflow.messages import Message, Reply
from agentflow.rewards import ShapedTrajectory
from agentflow.trainers.algorithm import Algorithm
from agentflow.trainers.slots.base import LossTerm, Tokens
from agentflow.trainers.slots.records import Found, Now, Seen
from agentflow.trajectory import Completion, Episode, Group, Status, Task, Trajectory, Turn

_STEP = 1e-6
_SHAPES = (((2, 3), 1.0), ((4,), 0.0), ((1, 2, 2), 0.5), ((3,), 0.0))
_TASKS = tuple(Task(f"task-{i}", "") for i in range(8))
_MAX_ROUNDS = 100
_UNITS = ("turn", "trajectory", "group")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to mend, or to know.

    Attributes:
        level: `error` would spoil a run; `note` may be meant.
        message: One sentence that begins with the slot's place.
    """

    level: Literal["error", "note"]
    message: str


class _Broken(Exception):
    """A slot does not keep its contract; the message says how."""


def check_algorithm(algorithm: Algorithm) -> list[Finding]:
    """Call every slot at the beginning, in the middle and at the end of a run that nobody plays.

    Results must be finite, the same twice, and of the right shape; losses must be sums over packs whose gradients are
    those of float64 finite differences.
    """
    found: list[Finding] = []
    for progress in (0.0, 0.5, 1.0):
        now = Now(iteration=1 + round(10 * progress), progress=progress, success=progress)
        try:
            found += _checked(algorithm.at(now, algorithm.initial()), now)
        except (_Broken, AgentFlowError, ValueError) as error:
            found.append(Finding("error", " ".join(str(error).split())))
    return list(dict.fromkeys(found))


def _checked(algorithm: Algorithm, now: Now) -> Iterator[Finding]:
    state = algorithm.initial()
    _check_draws(algorithm, now)
    judged = _judged(algorithm, now)
    batch = lay_out(judged)
    seen = Seen(now, Found(judged=tuple(judged), num_draws=len(judged)), {"success/mean": 0.5})
    remembered = _called("observe", lambda: algorithm.observe(state, seen))
    if json.loads(json.dumps(remembered)) != remembered:
        raise _Broken("observe: what a slot remembers must be JSON values")
    columns = _columns(batch, algorithm.needs_before)
    advantages_S = _numbers("advantage", lambda: algorithm.advantage(batch, columns, state), batch)
    weights_S = _numbers("weights", lambda: algorithm.weights(batch, columns), batch)
    if (weights_S < 0).any():
        raise _Broken("weights: a weight is negative")
    for i, term in enumerate(algorithm.loss):
        name = f"loss.{i} ({term.kind})"
        tokens = Tokens(
            _columns(batch, term.needs | {CURRENT, ENTROPY, START}),
            torch.from_numpy(advantages_S),
            torch.from_numpy(weights_S),
            torch.from_numpy(batch.returns_N[batch.trajectory_S]),
            {unit: torch.from_numpy(batch.unit_S(unit)) for unit in _UNITS},
        )
        yield from _check_loss(name, term, tokens)


def _check_draws(algorithm: Algorithm, now: Now) -> None:
    state, found = algorithm.initial(), Found()

    def draw(number: int) -> list[Any]:
        rounds = algorithm.sampler.draw(_TASKS, state, want=4, size=4, number=number, found=found, now=now)
        return [(each.task.id, each.count) for each in rounds]

    first = _called("sampler", lambda: draw(0))
    if not first or {task for task, _ in first} - {task.id for task in _TASKS}:
        raise _Broken("sampler: its first round must draw tasks, and of the pool")
    if draw(0) != first:
        raise _Broken("sampler: the same seed draws other tasks the second time")
    if all(draw(number) for number in range(1, _MAX_ROUNDS)):
        raise _Broken(f"sampler: it still draws after {_MAX_ROUNDS} rounds that brought nothing")


def _judged(algorithm: Algorithm, now: Now) -> list[Judged]:
    """Judge three made-up groups: two that teach something, one of equal returns."""

    def credits(judged: Judged) -> list[Floats]:
        return [algorithm.advantage.credits(member) for member in judged.earned]

    judged: Sequence[Judged] = [_group(number) for number in range(3)]
    for i, reward in enumerate(algorithm.rewards):
        judged = _as_many(f"rewards.{i}", partial(reward, judged, now), judged)
    for i, keep in enumerate(algorithm.keep):
        judged = _as_many(f"keep.{i}", partial(keep, judged, credits, now), judged)
    if not any(each.kept for each in judged):
        raise _Broken("keep: it leaves out groups whose members earned differently, and so learns from nothing")
    return list(judged)


def _as_many(name: str, call: Callable[[], Sequence[Judged]], before: Sequence[Judged]) -> Sequence[Judged]:
    found: Sequence[Judged] = _called(name, call)
    if len(found) != len(before):
        raise _Broken(f"{name}: it returned {len(found)} groups of {len(before)}")
    if _earned(call()) != _earned(found):
        raise _Broken(f"{name}: the same groups are judged otherwise the second time")
    return found


def _earned(judged: Sequence[Judged]) -> list[Any]:
    return [(each.cause, each.kept, each.times, [m.rewards_K.tolist() for m in each.earned]) for each in judged]


def _called(name: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, KeyError) and error.args and isinstance(error.args[0], Column):
            what = f"it reads {error.args[0]}, which its `needs` does not name"
        raise _Broken(f"{name}: {what}") from error


def _numbers(name: str, call: Callable[[], Any], batch: Batch) -> Any:
    found = _called(name, call)
    shape = batch.turn_S.shape
    if not isinstance(found, np.ndarray) or found.shape != shape:
        raise _Broken(f"{name}: it must return an array [S] = {list(shape)}, not {getattr(found, 'shape', found)}")
    if not np.isfinite(found).all():
        raise _Broken(f"{name}: it returned numbers that are not finite")
    if not np.array_equal(found, call()):
        raise _Broken(f"{name}: the same batch gives other numbers the second time")
    return found.astype(np.float64)


def _check_loss(name: str, term: LossTerm, tokens: Tokens) -> Iterator[Finding]:
    value = _called(name, lambda: term(tokens))
    if value.loss.shape != () or not torch.isfinite(value.loss):
        raise _Broken(f"{name}: its loss must be one finite number, not {value.loss}")
    if not torch.equal(term(tokens).loss, value.loss):
        raise _Broken(f"{name}: the same tokens give another loss the second time")
    if term.scope == "token":
        halves = [_part(tokens, tokens.units["group"] % 2 == half) for half in (0, 1)]
        total = sum(float(_called(name, partial(term, half)).loss.detach()) for half in halves)
        if abs(total - float(value.loss.detach())) > 1e-9 * max(1.0, abs(total)):
            raise _Broken(f'{name}: it is no sum over packs; multiply by weights_S and sum, or say scope = "batch"')
    for column in (CURRENT, ENTROPY):
        (gradient_S,) = torch.autograd.grad(value.loss, tokens[column], retain_graph=True, allow_unused=True)
        gradient_S = torch.zeros_like(tokens[column]) if gradient_S is None else gradient_S
        if not torch.isfinite(gradient_S).all():
            raise _Broken(f"{name}: its gradient is not finite")
        differs = (gradient_S - _differences(term, tokens, column)).abs() > 1e-6
        if differs.any():
            yield Finding(
                "note",
                f"{name}: by float64 finite differences its gradient with respect to {column.what} is another one at "
                f"{int(differs.sum())} of {differs.numel()} tokens. That is right only for a stop-gradient that is "
                "meant, as CISPO's, or a surrogate without one for REINFORCE.",
            )


def _differences(term: LossTerm, tokens: Tokens, column: Column) -> Tensor:
    found = torch.zeros_like(tokens[column])
    for i in range(found.numel()):
        ends = []
        for step in (_STEP, -_STEP):
            moved = tokens[column].detach().clone()
            moved[i] += step
            columns = {**tokens.columns, column: moved}
            ends.append(float(term(replace(tokens, columns=columns)).loss.detach()))
        found[i] = (ends[0] - ends[1]) / (2 * _STEP)
    return found


def _part(tokens: Tokens, chosen_S: Tensor) -> Tokens:
    index = chosen_S.nonzero().flatten()
    columns: Mapping[Column, Tensor] = {column: values_S[index] for column, values_S in tokens.columns.items()}
    units = {name: torch.unique(unit_S[index], return_inverse=True)[1] for name, unit_S in tokens.units.items()}
    return Tokens(columns, tokens.advantages_S[index], tokens.weights_S[index], tokens.returns_S[index], units)


def _columns(batch: Batch, needs: frozenset[Column] | set[Column]) -> dict[Column, Tensor]:
    """Make every column up, with ratios on both sides of 1 and gradients where there are some."""
    found = {}
    for column in sorted(needs | {CURRENT, ENTROPY, START}, key=str):
        rng = np.random.default_rng([len(column.what), len(column.weights)])
        values_S = torch.from_numpy(rng.uniform(0.1, 1.1, batch.turn_S.size))
        values_S = values_S if column.what == "entropy" else -values_S
        found[column] = values_S.requires_grad_(column.weights == "current")
    return found


def _group(number: int) -> Judged:
    members = [
        _member(lengths, earned * (number < 2), seed=10 * number + i) for i, (lengths, earned) in enumerate(_SHAPES)
    ]
    task = _TASKS[number]
    return Judged(Group(task, tuple(Episode((member.trajectory,)) for member in members)), tuple(members))


def _member(lengths: tuple[int, ...], earned: float, *, seed: int) -> Earned:
    rng = np.random.default_rng(seed)
    turns, prefix = [], 0
    for length in lengths:
        ids = tuple(int(token) for token in rng.integers(2, 40, length))
        logprobs = tuple(float(x) for x in -rng.uniform(0.1, 1.1, length))
        turns.append(Turn(prefix, (1,), Completion(ids, logprobs, "stop", 0), (), Reply(Message("assistant", "x"))))
        prefix += 1 + length
    success = earned == 1.0
    trajectory = Trajectory(f"made-up-{seed}", "task", 0, tuple(turns), Status("completed"), success=success)
    rewards = (*(0.0 for _ in lengths[1:]), earned)
    terms = tuple({"outcome": reward} for reward in rewards)
    shaped = ShapedTrajectory(trajectory.id, rewards, earned, earned, ({},) * len(terms))
    return Earned(trajectory, shaped, terms, success)
