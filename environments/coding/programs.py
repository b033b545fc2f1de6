"""Small programs in a small vocabulary: how each is asked for, how it is written, what it returns.

A pipeline is a list of steps on a number (levels 1 and 2) or on a list of numbers (3 and 4). Level 1 is one step, so
that a policy which has just learnt to copy can begin: `take x, add 7` is `def f(x): return x + 7`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

Value: TypeAlias = int | list[int]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a pipeline.

    Attributes:
        name: Which one.
        phrases: How it is asked for; `{k}` is its constant.
        source: Its expression; `{a}` is the value before, `{k}` the constant.
        function: What it does, given the value before and the constant.
    """

    name: str
    phrases: tuple[str, ...]
    source: str
    function: Callable[[Any, int], Any]

    @property
    def has_constant(self) -> bool:
        """Whether the step takes a constant."""
        return "{k}" in self.source


SCALAR = (
    Step("add", ("add {k}", "increase by {k}"), "{a} + {k}", lambda a, k: a + k),
    Step("subtract", ("subtract {k}", "decrease by {k}"), "{a} - {k}", lambda a, k: a - k),
    Step("multiply", ("multiply by {k}", "take {k} times that"), "{a} * {k}", lambda a, k: a * k),
    Step("remainder", ("take the remainder by {k}",), "{a} % {k}", lambda a, k: a % k),
    Step("divide", ("divide by {k} and round down",), "{a} // {k}", lambda a, k: a // k),
    Step("at_least", ("take the larger of that and {k}",), "max({a}, {k})", max),
    Step("at_most", ("take the smaller of that and {k}",), "min({a}, {k})", min),
    Step("square", ("square that",), "{a} ** 2", lambda a, _: a**2),
    Step("absolute", ("drop the sign",), "abs({a})", lambda a, _: abs(a)),
)
FILTER = (
    Step("above", ("keep those above {k}", "drop those up to {k}"), "{a} > {k}", lambda a, k: a > k),
    Step("below", ("keep those below {k}", "drop those from {k}"), "{a} < {k}", lambda a, k: a < k),
    Step("even", ("keep the even ones",), "{a} % 2 == 0", lambda a, _: a % 2 == 0),
    Step("odd", ("keep the odd ones",), "{a} % 2 == 1", lambda a, _: a % 2 == 1),
)
REDUCE = (
    Step("list", ("give the list",), "{a}", lambda a, _: a),
    Step("sum", ("give the sum",), "sum({a})", lambda a, _: sum(a)),
    Step("count", ("give their number",), "len({a})", lambda a, _: len(a)),
    Step("sorted", ("sort them",), "sorted({a})", lambda a, _: sorted(a)),
)
MAX_CONSTANT = {1: 60, 2: 20, 3: 12, 4: 12}
"""By level; more constants where there are fewer steps, so that there are programs enough."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A step with its constant and the phrase that asks for it."""

    step: Step
    constant: int
    phrase: int

    @property
    def words(self) -> str:
        """How it is asked for."""
        return self.step.phrases[self.phrase].format(k=self.constant)

    def source(self, before: str) -> str:
        """Return its expression on an expression."""
        return self.step.source.format(a=before, k=self.constant)

    def __call__(self, value: Any) -> Any:
        """Return what it makes of a value."""
        return self.step.function(value, self.constant)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A program: steps on each number, and for lists a choice of the numbers before and a reduction after.

    Attributes:
        level: From 1 to 4.
        keep: For lists, which items are kept; None for all.
        steps: What happens to the number, or to each item.
        reduce: For lists, what is made of them; None for a single number.
    """

    level: int
    keep: Applied | None
    steps: tuple[Applied, ...]
    reduce: Applied | None

    @property
    def words(self) -> str:
        """How the program is asked for."""
        if self.reduce is None:
            return ", ".join(["take x", *(step.words for step in self.steps)])
        each = [f"{step.words} for each" for step in self.steps]
        kept = [] if self.keep is None else [self.keep.words]
        return ", ".join(["take the items of x", *kept, *each, self.reduce.words])

    @property
    def source(self) -> str:
        """The function, on one line."""
        return f"def f(x): return {self.expression}"

    def printing(self, x: Value) -> str:
        """Return a program, on one line, that prints what comes of a value."""
        return f"x = {x!r}; print({self.expression})"

    @property
    def expression(self) -> str:
        """What is returned, as an expression of `x`."""
        expression = "x" if self.reduce is None else "v"
        for step in self.steps:
            grouped = expression if expression in "xv" or step.source("a").endswith(")") else f"({expression})"
            expression = step.source(grouped)
        if self.reduce is not None:
            chosen = "" if self.keep is None else f" if {self.keep.source('v')}"
            expression = self.reduce.source(f"[{expression} for v in x{chosen}]")
        return expression

    def __call__(self, x: Value) -> Value:
        """Return what the program returns."""
        if isinstance(x, int):
            return self._each(x)
        assert self.reduce is not None, "a pipeline on lists ends in a reduction"
        reduced: Value = self.reduce([self._each(v) for v in x if self.keep is None or self.keep(v)])
        return reduced

    def _each(self, value: int) -> int:
        for step in self.steps:
            value = step(value)
        return value

    @property
    def constants(self) -> tuple[int, ...]:
        """The constants of the program."""
        parts = [part for part in (self.keep, *self.steps, self.reduce) if part is not None]
        return tuple(part.constant for part in parts if part.step.has_constant)


def draw(rng: random.Random, level: int) -> Pipeline:
    """Draw a program of a level."""
    if level <= 2:
        return Pipeline(level, None, tuple(_apply(rng, SCALAR, level) for _ in range(level)), None)
    both = level == 4
    filtered = both or rng.random() < 0.5
    steps = tuple(_apply(rng, SCALAR, level) for _ in range(rng.choice((1, 2)) if both else 1 - filtered))
    keep = _apply(rng, FILTER, level) if filtered else None
    return Pipeline(level, keep, steps, _apply(rng, REDUCE, level))


def slip(rng: random.Random, program: Pipeline) -> Pipeline:
    """Return a program with one mistake: another step of its kind, or a constant that is one off."""
    places = [*range(len(program.steps)), *(["keep"] if program.keep else []), *(["reduce"] if program.reduce else [])]
    where = rng.choice(places)
    if where == "keep" and program.keep is not None:
        return replace(program, keep=_mistaken(rng, program.keep, FILTER))
    if where == "reduce" and program.reduce is not None:
        return replace(program, reduce=_mistaken(rng, program.reduce, REDUCE))
    steps = tuple(_mistaken(rng, step, SCALAR) if index == where else step for index, step in enumerate(program.steps))
    return replace(program, steps=steps)


def draw_input(rng: random.Random, program: Pipeline) -> Value:
    """Draw an input, near the constants of the program now and then: there mistakes show."""
    if program.reduce is None:
        return _number(rng, program, low=-20, high=60)
    return [_number(rng, program, low=-9, high=20) for _ in range(rng.choice((0, 2, 3, 4, 5)))]


def _number(rng: random.Random, program: Pipeline, *, low: int, high: int) -> int:
    near = [constant + off for constant in program.constants for off in (-1, 0, 1)]
    return rng.choice(near) if near and rng.random() < 0.3 else rng.randint(low, high)


def _apply(rng: random.Random, steps: tuple[Step, ...], level: int) -> Applied:
    step = rng.choice(steps)
    constant = rng.randint(2, MAX_CONSTANT[level]) if step.has_constant else 0
    return Applied(step, constant, rng.randrange(len(step.phrases)))


def _mistaken(rng: random.Random, applied: Applied, steps: tuple[Step, ...]) -> Applied:
    if applied.step.has_constant and rng.random() < 0.5:
        return Applied(applied.step, max(2, applied.constant + rng.choice((-1, 1))), applied.phrase)
    other = rng.choice([step for step in steps if step.name != applied.step.name])
    return Applied(other, applied.constant or 2, 0)
