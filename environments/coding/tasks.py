"""The tasks that a seed gives: functions to write, programs to repair, values to work out.

The programs of the two splits differ: a program belongs to one of them by a hash of its source, whatever the words,
the examples and the kind of the task that asks for it.
"""

import hashlib
import random
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal, TypeAlias

from agentflow.environment import Split
from agentflow.environments.coding.problems import Case, Problem
from agentflow.environments.coding.programs import Pipeline, Value, draw, draw_input, slip
from agentflow.errors import ConfigError
from agentflow.trajectory import Task

Kind: TypeAlias = Literal["function", "repair", "compute"]

NUM_EXAMPLES = 2
NUM_TESTS = 10
_NUM_SLIPS = 3
_HELDOUT_ONE_IN = 5
"""Of so many programs, one is held out."""
_MAX_MISSES = 5000
"""Draws in a row without a new task after which there are taken to be no more."""
_MAX_DRAWS = 6
_LONG_NUMBER = re.compile(r"\d{3}")
"""Values to work out have numbers of up to two digits, which a small vocabulary holds whole."""


@lru_cache(maxsize=16)
def tasks(
    seed: int, split: Split, *, kinds: tuple[Kind, ...], difficulties: tuple[int, ...], count: int
) -> tuple[Task, ...]:
    """Write tasks of a split, no two alike.

    Args:
        seed: Fixes them.
        split: Whose programs.
        kinds: Taken in turn.
        difficulties: Levels from 1 to 4, taken in turn once all kinds have had their turn.
        count: The number of tasks.

    Raises:
        ConfigError: There are no so many.
    """
    rng = random.Random(f"coding/{seed}/{split}")  # noqa: S311  reproducible, not secret
    found: dict[str, Task] = {}
    misses = 0
    while len(found) < count:
        if misses == _MAX_MISSES:
            raise ConfigError(
                f"There are no more than {len(found)} {split} tasks of {kinds} at {difficulties}, not {count}.",
                f"Ask for fewer `{split}_tasks`, or for more kinds or difficulties.",
            )
        number = len(found)
        kind = kinds[number % len(kinds)]
        level = difficulties[number // len(kinds) % len(difficulties)]
        prompt, problem = _WRITERS[kind](rng, split, level)
        if problem is None or prompt in found:
            misses += 1
            continue
        misses = 0
        facts = {"kind": kind, "level": level}
        found[prompt] = Task(f"{split}-{number:05d}", prompt, problem.to_json(), facts)
    return tuple(found.values())


def split_of(source: str) -> Split:
    """Return the split that a program belongs to."""
    digest = hashlib.blake2b(source.encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") % _HELDOUT_ONE_IN == 0 else "train"


def _drawn(rng: random.Random, split: Split, level: int) -> Pipeline:
    while True:
        program = draw(rng, level)
        if split_of(program.source) == split:
            return program


def _write_function(rng: random.Random, split: Split, level: int) -> tuple[str, Problem | None]:
    program = _drawn(rng, split, level)
    problem, _ = _problem(rng, program)
    if problem is None:
        return "", None
    return f"Write f(x): {program.words}. {_shown(problem)}", problem


def _write_repair(rng: random.Random, split: Split, level: int) -> tuple[str, Problem | None]:
    program = _drawn(rng, split, level)
    problem, wrong = _problem(rng, program)
    if problem is None or not wrong:
        return "", None
    broken = wrong[0].source
    # Who errs leaves the program as it is, or makes another mistake.
    problem = problem.model_copy(update={"slips": (broken, *problem.slips[1:])})
    return f"Repair f(x): {program.words}. {_shown(problem)} Now it is: {broken}", problem


def _write_value(rng: random.Random, split: Split, level: int) -> tuple[str, Problem | None]:
    program = _drawn(rng, split, level)
    x = draw_input(rng, program)
    value = repr(program(x))
    if x == [] or _LONG_NUMBER.search(value):
        return "", None
    slips = [slip(rng, program) for _ in range(_NUM_SLIPS)]
    wrong = tuple(other.printing(x) for other in slips if other(x) != program(x))
    problem = Problem(value=value, reference=program.printing(x), slips=wrong)
    return f"With x = {x!r}: {program.words}. What comes out?", problem


_WRITERS: Mapping[Kind, Callable[[random.Random, Split, int], tuple[str, Problem | None]]] = {
    "function": _write_function,
    "repair": _write_repair,
    "compute": _write_value,
}


def _problem(rng: random.Random, program: Pipeline) -> tuple[Problem | None, list[Pipeline]]:
    """Return a problem whose tests tell mistakes from the program, with mistakes that its examples show.

    There is none where no inputs tell them apart: `min(x ** 2, 3)` is nearly a constant.
    """
    slips = _slips(rng, program)
    for _ in range(_MAX_DRAWS):
        inputs = _inputs(rng, program)
        if _tells(program, inputs[NUM_EXAMPLES:], slips):
            break
    else:
        return None, []
    shown = inputs[:NUM_EXAMPLES]
    wrong = [other for other in slips if any(other(x) != program(x) for x in shown)]
    cases = tuple(Case(call=f"f({x!r})", expected=repr(program(x))) for x in inputs)
    problem = Problem(
        entry="f",
        examples=cases[:NUM_EXAMPLES],
        tests=cases[NUM_EXAMPLES:],
        reference=program.source,
        slips=tuple(other.source for other in wrong),
    )
    return problem, wrong


def _slips(rng: random.Random, program: Pipeline) -> list[Pipeline]:
    found = [slip(rng, program) for _ in range(3 * _NUM_SLIPS)]
    apart = {other.source: other for other in found if other.source != program.source}
    return list(apart.values())[:_NUM_SLIPS]


def _inputs(rng: random.Random, program: Pipeline) -> list[Value]:
    found: dict[str, Value] = {}
    while len(found) < NUM_EXAMPLES + NUM_TESTS:
        x = draw_input(rng, program)
        found[repr(x)] = x
    return list(found.values())


def _tells(program: Pipeline, inputs: list[Value], slips: list[Pipeline]) -> bool:
    """Say whether neither a constant, nor the input itself, nor a mistake passes for the program."""
    outputs = [program(x) for x in inputs]
    others = [inputs, *([other(x) for x in inputs] for other in slips)]
    return len(set(map(repr, outputs))) > 2 and outputs not in others


def _shown(problem: Problem) -> str:
    return " ".join(f"{case.call} is {case.expected}." for case in problem.examples)
