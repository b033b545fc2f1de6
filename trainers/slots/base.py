"""What fills a slot of an algorithm: small frozen objects with a `kind` and one pure function.

A `kind` is a name of the family's table, an entry point of the group `agentflow.slots` (`losses/disco`),
`package.module:Class` or `path/to/file.py:Class`. A slot holds options and nothing else: no model, no state, no clock.
What it must remember of the run it keeps in the state tree: `initial` makes its part, `observe` returns the next one.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import AllowInfNan, Field, SerializeAsAny, TypeAdapter, ValidatorFunctionWrapHandler, WrapValidator
from torch import Tensor

from agentflow.attempts import Attempts
from agentflow.batch import Batch, Earned, Judged
from agentflow.columns import Column, Columns
from agentflow.config import Config, suggest
from agentflow.maths.advantages import broadcast_return
from agentflow.maths.units import Floats
from agentflow.plugins import Family, absolute
from agentflow.trainers.slots.records import Draw, Found, Now, Seen, State
from agentflow.trajectory import Task


class Slot(Config):
    """A part of an algorithm. Options whose type is `number()` may be scheduled."""

    kind: str = Field(description="Which one: a name of ours, of a package, or path/to/file.py:Class.")
    reads: ClassVar[frozenset[str]] = frozenset()
    """The kinds of statistics that the slot reads; an algorithm without them is refused."""

    def initial(self) -> State:
        """Return what the slot remembers before the first iteration; empty if it remembers nothing."""
        return {}

    def observe(self, state: State, seen: Seen) -> State:
        """Return what it remembers after an iteration, from what it remembered before; both are JSON values."""
        return state


class Schedule(Slot):
    """A number that changes over the run."""

    def at(self, now: Now, state: State) -> float:
        """Return the number of now."""
        raise NotImplementedError

    def __float__(self) -> float:
        raise AssertionError("schedules are resolved before a slot is called: Algorithm.at")


class Sampler(Slot):
    """Which tasks an iteration attempts, in rounds.

    Attributes:
        draws_ahead: Whether its draws depend on the number of tasks drawn and nothing else, so that they can be made
            before the iteration that learns from them.
    """

    draws_ahead: ClassVar[bool] = False

    def draw(
        self, pool: Sequence[Task], state: "StateTree", *, want: int, size: int, number: int, found: Found, now: Now
    ) -> Sequence[Draw]:
        """Choose the tasks of a round; none ends the collecting.

        Args:
            pool: The training tasks.
            state: What the slots remember; its own part is at `sampler`.
            want: Kept groups that an iteration aims at.
            size: Attempts of a group.
            number: The round, from 0.
            found: What the rounds before brought.
            now: Where the run stands.
        """
        raise NotImplementedError


class Plan(Slot):
    """How a task's attempts are made.

    Attributes:
        needs_hints: Whether it asks for the environment's hints (`Environment.hint`).
    """

    needs_hints: ClassVar[bool] = False

    def attempts(self, draw: Draw, state: State, now: Now) -> Attempts:
        """Return a generator that asks for attempts; see `agentflow.attempts`.

        Args:
            draw: The task, and how many attempts its group should have.
            state: What the plan remembers.
            now: Where the run stands.
        """
        raise NotImplementedError


class Reward(Slot):
    """What groups earn beside what the run's `rewards` pay, or in its place.

    Attributes:
        after_keep: Whether it is paid to kept groups only, so that it rescues no group that teaches nothing without it.
    """

    after_keep: ClassVar[bool] = False

    def __call__(self, judged: Sequence[Judged], now: Now) -> Sequence[Judged]:
        """Return the same groups with other terms; it sees all groups of a round at once."""
        raise NotImplementedError


class Keep(Slot):
    """Which groups are learned from."""

    def __call__(self, judged: Sequence[Judged], credits: "Credits", now: Now) -> Sequence[Judged]:
        """Return the same groups, those that are left out with their cause and `kept=False`."""
        raise NotImplementedError


class Advantage(Slot):
    """How much better than expected each token was."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def credits(self, earned: Earned) -> Floats:
        """Return [K] what each turn is credited with before anything is compared: by default the whole return."""
        return broadcast_return(earned.rewards_K)

    def __call__(self, batch: Batch, columns: Columns, state: "StateTree") -> Floats:
        """Return [S] float64 advantages."""
        raise NotImplementedError


class Mask(Slot):
    """Which tokens are learned from."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def __call__(self, batch: Batch, columns: Columns) -> Floats:
        """Return [S] factors from 0 on; 0 drops a token, from the denominators too."""
        raise NotImplementedError


class Weights(Slot):
    """What each token counts in the loss: a denominator, made explicit."""

    def __call__(self, batch: Batch, columns: Columns) -> Floats:
        """Return [S] float64 weights of one update's batch."""
        raise NotImplementedError

    @property
    def needs(self) -> frozenset[Column]:
        """The columns that it reads."""
        return frozenset()


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a loss term reads, on the axis of sampled tokens.

    Attributes:
        columns: What the model gives each token; `CURRENT` and `ENTROPY` carry gradients.
        advantages_S: [S] float32.
        weights_S: [S] float32, over the whole batch of an update, so that the losses of its packs add up.
        returns_S: [S] float32 return of each token's trajectory.
        units: [S] int64 index of each token's `turn`, `trajectory` and `group`.
    """

    columns: Columns
    advantages_S: Tensor
    weights_S: Tensor
    returns_S: Tensor
    units: Mapping[str, Tensor]

    def __getitem__(self, column: Column) -> Tensor:
        return self.columns[column]


@dataclass(frozen=True, slots=True)
class Value:
    """A term's loss and what is logged about it.

    Attributes:
        loss: Scalar with gradient; minimised.
        sums: Detached scalars by the name of their metric: sums over tokens, logged as means over them.
    """

    loss: Tensor
    sums: Mapping[str, Tensor]


class LossTerm(Slot):
    """A term of the loss; terms add up.

    Attributes:
        scope: `token` if the loss of a batch is the sum over its packs; `batch` if it needs whole groups or batches,
            for which every token is scored once more, without gradient.
        metric: Its share of the loss is logged as `loss/<metric>`.
    """

    scope: ClassVar[Literal["token", "batch"]] = "token"
    metric: ClassVar[str] = "policy"

    @property
    def needs(self) -> frozenset[Column]:
        """The columns that it reads beside CURRENT, ENTROPY and START."""
        return frozenset()

    def __call__(self, tokens: Tokens) -> Value:
        """Return the loss of these tokens."""
        raise NotImplementedError


class Statistic(Slot):
    """What a run remembers for its slots."""


StateTree: TypeAlias = Mapping[str, State]
"""Each slot's part of the state by its path in the algorithm: `sampler`, `advantage.of.0`, `statistics.0`."""
Credits: TypeAlias = Callable[[Judged], list[Floats]]
"""What the turns of a group are credited with before the comparison: a [K] array for each trajectory."""
SlotT = TypeVar("SlotT", bound=Slot)


def _family(what: str, base: type[SlotT], name: str, *modules: str) -> Family[SlotT]:
    return Family(
        what=what,
        base=base,
        group="agentflow.slots",
        own=f"agentflow.trainers.slots.base.{base.__name__}",
        usage="path/to/file.py:Class",
        prefix=f"{name}/",
        tables=tuple(f"agentflow.trainers.slots.{module}" for module in modules),
    )


_LOSSES = tuple(f"losses.{name}" for name in ("surrogates", "regularisers", "regions", "discriminative", "entropies"))
FAMILIES: Mapping[str, Family[Any]] = {
    "samplers": _family("sampler", Sampler, "samplers", "samplers"),
    "plans": _family("plan", Plan, "plans", "plans"),
    "rewards": _family("reward", Reward, "rewards", "rewards"),
    "keeps": _family("keep", Keep, "keeps", "keeps"),
    "advantages": _family("advantage", Advantage, "advantages", "advantages", "unit_advantages"),
    "masks": _family("mask", Mask, "masks", "masks"),
    "weights": _family("weighting", Weights, "weights", "weights"),
    "losses": _family("loss", LossTerm, "losses", *_LOSSES),
    "statistics": _family("statistic", Statistic, "statistics", "statistic"),
    "schedules": _family("schedule", Schedule, "schedules", "schedules"),
}


def slot(name: str) -> WrapValidator:
    """Return the validator of a field that holds a slot of a family: it looks the `kind` up."""
    family = FAMILIES[name]

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, Slot):
            return value
        options = {"kind": value} if isinstance(value, str) else value
        if not isinstance(options, Mapping) or not isinstance(options.get("kind"), str):
            raise ValueError(f"a {family.what} is a mapping with a `kind`: {', '.join(family.names())}")
        spec = absolute(options["kind"])
        found = family.find(spec)
        unknown = [option for option in options if option not in found.model_fields]
        if unknown:
            known = [option for option in found.model_fields if option != "kind"]
            raise ValueError(f"{spec} has no option {unknown[0]!r}. {suggest(unknown[0], known)}")
        return found.model_validate({**options, "kind": spec})

    return WrapValidator(check)


_FINITE: TypeAdapter[float] = TypeAdapter(Annotated[float, AllowInfNan(False)])


def number(*, ge: float | None = None, gt: float | None = None, le: float | None = None) -> Any:
    """Return the type of an option that is a number within bounds, or a schedule of such numbers."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, Schedule):
            return value
        if isinstance(value, Mapping):
            spec = absolute(str(value.get("kind")))
            return FAMILIES["schedules"].find(spec).model_validate({**value, "kind": spec})
        if isinstance(value, bool):
            raise ValueError("Input should be a number, not true or false")
        if value is None:
            return handler(value)
        found = _FINITE.validate_python(value)
        checks = ((ge, operator.ge, ">="), (gt, operator.gt, ">"), (le, operator.le, "<="))
        for bound, holds, sign in checks:
            if bound is not None and not holds(found, bound):
                raise ValueError(f"Input should be {sign} {bound:g}")
        return found

    return WrapValidator(check)


SamplerSlot: TypeAlias = Annotated[SerializeAsAny[Sampler], slot("samplers")]
PlanSlot: TypeAlias = Annotated[SerializeAsAny[Plan], slot("plans")]
RewardSlot: TypeAlias = Annotated[SerializeAsAny[Reward], slot("rewards")]
KeepSlot: TypeAlias = Annotated[SerializeAsAny[Keep], slot("keeps")]
AdvantageSlot: TypeAlias = Annotated[SerializeAsAny[Advantage], slot("advantages")]
MaskSlot: TypeAlias = Annotated[SerializeAsAny[Mask], slot("masks")]
WeightsSlot: TypeAlias = Annotated[SerializeAsAny[Weights], slot("weights")]
LossSlot: TypeAlias = Annotated[SerializeAsAny[LossTerm], slot("losses")]
StatisticSlot: TypeAlias = Annotated[SerializeAsAny[Statistic], slot("statistics")]
Number: TypeAlias = float | SerializeAsAny[Schedule]
