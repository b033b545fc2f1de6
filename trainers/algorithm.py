"""An algorithm as a value: eight keys, each a small frozen object; a recipe is a YAML file of them.

    algorithm = load_recipe("dapo", {"loss": {"clipped": {"high": 0.4}}})
    now = algorithm.at(Now(progress=0.5), state)            every schedule replaced by its number of now

Nothing else knows what a method is: the training loop calls the slots, the engine differentiates the loss terms.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from agentflow.columns import START, Column
from agentflow.config import Config, Option, describe, merge, read_yaml, suggest, validate_options
from agentflow.errors import ConfigError
from agentflow.rewards import ShapingConfig
from agentflow.trainers.slots.advantages import GroupRelative
from agentflow.trainers.slots.base import (
    FAMILIES,
    AdvantageSlot,
    KeepSlot,
    LossSlot,
    PlanSlot,
    RewardSlot,
    SamplerSlot,
    Schedule,
    Slot,
    StateTree,
    StatisticSlot,
    WeightsSlot,
)
from agentflow.trainers.slots.keeps import HasSignal
from agentflow.trainers.slots.losses.surrogates import Clipped
from agentflow.trainers.slots.plans import Independent
from agentflow.trainers.slots.records import Now, Seen
from agentflow.trainers.slots.samplers import Epoch
from agentflow.trainers.slots.weights import Nested

RECIPES = Path(__file__).parent / "recipes"


class Algorithm(Config):
    """A method of reinforcement learning; the defaults are Flow-GRPO's."""

    sampler: SamplerSlot = Field(Epoch(), description="Which tasks an iteration attempts, in rounds.")
    plan: PlanSlot = Field(Independent(), description="How the attempts at a task are made.")
    rewards: tuple[RewardSlot, ...] = Field(
        (), description="What groups earn beside what the run's `rewards` pay, or in its place."
    )
    keep: tuple[KeepSlot, ...] = Field((HasSignal(),), description="Which groups are learned from.")
    advantage: AdvantageSlot = Field(GroupRelative(), description="How much better than expected each token was.")
    weights: WeightsSlot = Field(Nested(), description="What each token counts: the denominator, and masks.")
    loss: tuple[LossSlot, ...] = Field((Clipped(),), description="The terms of the loss; they add up.")
    statistics: tuple[StatisticSlot, ...] = Field((), description="What the run remembers for the others.")

    @model_validator(mode="before")
    @classmethod
    def _extend(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "extends" in values:
            return recipe_values(values)
        return values

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if not self.loss:
            raise ValueError("loss needs at least one term")
        known = {statistic.kind for statistic in self.statistics}
        for path, slot in self.slots():
            if missing := sorted(slot.reads - known):
                raise ValueError(f"{path} reads what is remembered: add statistics: [{{kind: {missing[0]}}}]")
        return self

    def slots(self) -> Iterator[tuple[str, Slot]]:
        """Yield every slot by its path: `sampler`, `keep.0`, `advantage.of`."""
        yield from _walk(self, "")

    @property
    def needs(self) -> frozenset[Column]:
        """The columns that the loss terms read beside those that every engine gives."""
        return frozenset[Column]().union(*(term.needs for term in self.loss))

    @property
    def needs_before(self) -> frozenset[Column]:
        """The columns that advantages and weights read: they are scored before the loss, in a forward of their own."""
        found = [slot.needs for _, slot in self.slots() if hasattr(slot, "needs") and slot not in self.loss]
        return frozenset[Column]().union(*found)

    @property
    def compares_in_loss(self) -> bool:
        """Whether a term of the loss reads whole groups, so that no update may see a part of one."""
        return any(term.scope == "batch" for term in self.loss)

    @property
    def needs_reference(self) -> bool:
        """Whether something reads columns of the weights that the run started from."""
        return any(column.weights == "reference" for column in self.needs | self.needs_before)

    def needs_in(self, number: int) -> frozenset[Column]:
        """Return the columns that the loss and the weights of an update read.

        Args:
            number: The update within its iteration; the first one meets START when it is differentiated.
        """
        return self.needs | self.needs_before | (frozenset({START}) if number else frozenset())

    def at(self, now: Now, state: StateTree) -> Self:
        """Return the algorithm of now: every schedule in it replaced by its number."""
        resolved: Self = _resolved(self, now, state=state, path="")
        return resolved

    def initial(self) -> StateTree:
        """Return what the slots remember before the first iteration, by path."""
        return {path: remembered for path, slot in self.slots() if (remembered := slot.initial())}

    def observe(self, state: StateTree, seen: Seen) -> StateTree:
        """Return what they remember after an iteration."""
        slots = dict(self.slots())
        return {path: slots[path].observe(remembered, seen) for path, remembered in state.items()}


def _walk(value: Config, prefix: str) -> Iterator[tuple[str, Slot]]:
    for name in type(value).model_fields:
        found = getattr(value, name)
        members = [(f"{prefix}{name}.{i}", each) for i, each in enumerate(found)] if isinstance(found, tuple) else []
        for path, each in members or [(f"{prefix}{name}", found)]:
            if isinstance(each, Slot):
                yield path, each
            if isinstance(each, Config):
                yield from _walk(each, f"{path}.")


def _resolved(value: Any, now: Now, *, state: StateTree, path: str) -> Any:
    if isinstance(value, Schedule):
        return value.at(now, state.get(path, {}))
    if isinstance(value, tuple):
        members = tuple(_resolved(each, now, state=state, path=f"{path}.{i}") for i, each in enumerate(value))
        return value if all(new is old for new, old in zip(members, value, strict=True)) else members
    if not isinstance(value, Config):
        return value
    fields = {name: getattr(value, name) for name in type(value).model_fields}
    resolved = {
        name: _resolved(each, now, state=state, path=f"{path}.{name}".lstrip(".")) for name, each in fields.items()
    }
    changes = {name: each for name, each in resolved.items() if each is not fields[name]}
    # Validated anew: what a schedule arrives at must be within the option's bounds too.
    return type(value).model_validate({**fields, **changes}) if changes else value


def list_recipes() -> list[str]:
    """Return the names of the recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what a recipe leaves to the one that it `extends`.

    Raises:
        ConfigError: There is no such recipe, or a recipe extends itself.
    """
    chain: list[Mapping[str, Any]] = [values]
    while (name := chain[-1].get("extends")) is not None:
        if len(chain) > _MAX_EXTENDS:
            raise ConfigError(f"The recipe {name!r} extends itself.", "End the chain at a recipe that extends none.")
        chain.append(read_recipe(str(name)))
    found: dict[str, Any] = {}
    for each in reversed(chain):
        found = merge(found, {key: value for key, value in each.items() if key != "extends"})
    return found


_MAX_EXTENDS = 8


def read_recipe(name: str) -> dict[str, Any]:
    """Read a recipe as it is written: a name of `list_recipes()`, or the path of a YAML file.

    Raises:
        ConfigError: There is no such recipe.
    """
    if name.endswith((".yaml", ".yml")):
        return read_yaml(Path(name))
    known = list_recipes()
    if name not in known:
        raise ConfigError(f"There is no algorithm {name!r}.", f"{suggest(name, known)} Your own: --algo FILE.yaml.")
    return read_yaml(RECIPES / f"{name}.yaml")


def recipe_files(name: str | None) -> list[Path]:
    """List the files of the user's own that a recipe is made of: itself, and those that it extends.

    Raises:
        ConfigError: One of them does not exist, or is no YAML.
    """
    found: list[Path] = []
    while name is not None and name.endswith((".yaml", ".yml")) and Path(name) not in found:
        found.append(Path(name))
        name = read_recipe(name).get("extends")
    return found


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Algorithm:
    """Read a recipe and change some of it.

    Args:
        name: A name of `list_recipes()`, or the path of a YAML file.
        overrides: Nested changes; entries of lists are named by their kind: `{"loss": {"kl": {"coefficient": 0.1}}}`.

    Raises:
        ConfigError: The recipe, a kind or an option is unknown, or a value is out of bounds.
    """
    values = merge(algorithm_values({"extends": name}), overrides or {})
    return validate_options(Algorithm, values, "algorithm")


def algorithm_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section `algorithm` with every key written out, so that single options can be merged into it.

    Raises:
        ConfigError: What it extends is unknown, or something in it is wrong.
    """
    filled = merge(Algorithm().model_dump(mode="json"), recipe_values(values))
    return validate_options(Algorithm, filled, "algorithm").model_dump(mode="json")


def slot_options() -> tuple[Option, ...]:
    """List the options of every kind that ships with AgentFlow, as `losses/clipped.low`."""
    return tuple(
        replace(option, name=f"{name}/{kind}.{option.name}")
        for name, family in FAMILIES.items()
        for kind, found in sorted(family.table.items())
        for option in describe(found)
        if option.name != "kind"
    )


def _check_schedules(algorithm: Algorithm) -> None:
    """Refuse a schedule that leaves the bounds of its option on the way, before the run has begun."""
    for clock in (0.0, 0.25, 0.5, 0.75, 1.0):
        try:
            algorithm.at(Now(progress=clock, success=clock), algorithm.initial())
        except ValueError as error:
            reason = str(error).replace("\n", " ")
            raise ConfigError(
                f"A schedule of the algorithm leaves the bounds of its option at {clock:g} of the run: {reason}",
                "Change its start or end.",
            ) from None


def check_fit(algorithm: Algorithm, shaping: ShapingConfig, *, group_size: int) -> None:
    """Check that algorithm, rewards and groups fit each other.

    Raises:
        ConfigError: Potential terms would cancel (trajectory credit) or be discounted otherwise than the returns, or
            groups are too small to be compared in.
    """
    _check_schedules(algorithm)
    advantages = {path: slot for path, slot in algorithm.slots() if isinstance(slot, GroupRelative)}
    potentials = [name for name, term in shaping.active_terms.items() if term.potential]
    for path, advantage in advantages.items():
        if potentials and advantage.credit == "trajectory":
            raise ConfigError(
                f"The potential {potentials[0]!r} cancels when every turn is credited with the whole return.",
                f"Set algorithm.{path}.credit=return_to_go, or rewards.terms.{potentials[0]}.potential=false.",
            )
        if potentials and shaping.gamma != advantage.gamma:
            raise ConfigError(
                f"Potentials are discounted by rewards.gamma={shaping.gamma}, returns by "
                f"algorithm.{path}.gamma={advantage.gamma}.",
                "Set both to the same value: otherwise the potentials change the optimal policy.",
            )
    compares = [each for each in advantages.values() if each.baseline != "none"] or algorithm.keep
    if group_size < 2 and compares:
        raise ConfigError(
            f"run.group_size = {group_size} leaves nothing to compare a trajectory with.",
            "Groups are compared by algorithm.advantage or algorithm.keep, which need at least 2; "
            "reinforce++ needs none.",
        )
