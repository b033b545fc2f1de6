"""Progressive reward shaping: named terms, weighted by a schedule, gated, and written to a ledger turn by turn.

    shaper = Shaper(load_shaping({"preset": "progressive"}))
    shaped = shaper.shape(trajectory, progress)        # rewards per turn, return, ledger; None for a failed one
    shaper.observe(success_rate)                       # once an iteration: unlocks and retires stages

Terms are what the environment reports in `Turn.terms`, and two reserved names: `outcome`, the environment's own reward,
and `turn_cost`, -1 for every turn. The raw return is never altered; it travels beside the shaped one.

Axis K: the turns of one trajectory.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from agentflow.alarm import AlarmConfig
from agentflow.config import Config, is_changed, merge, read_yaml, suggest, validate_options
from agentflow.errors import ConfigError
from agentflow.trajectory import Group, Trajectory, Turn

OUTCOME = "outcome"
TURN_COST = "turn_cost"
RESERVED_TERMS: Mapping[str, str] = {
    OUTCOME: "The environment's own reward of the turn.",
    TURN_COST: "Minus one for every turn.",
}

_PRESETS = Path(__file__).parent / "reward_presets"


def list_presets() -> list[str]:
    """Return the names of the presets, sorted; each is a YAML file of terms beside this module."""
    return sorted(path.stem for path in _PRESETS.glob("*.yaml"))


class GateConfig(Config):
    """A condition on another term of the same trajectory."""

    term: str = Field(description="The term that must reach the threshold.")
    at_least: float = Field(default=1.0, description="The threshold, in the unit of that term.")
    turns: Literal["any", "every"] = Field(
        default="any",
        description="Whether one turn that reports the term is enough, or all that report it must reach it.",
    )


class TermConfig(Config):
    """How one term is paid: start_weight, then weight from unlock_at on, then end_weight from retire_at on."""

    weight: float = Field(description="Reward for each unit of the term while its stage is on.")
    start_weight: float = Field(default=0.0, description="Reward for each unit before the stage unlocks.")
    end_weight: float = Field(default=0.0, description="Reward for each unit after the stage has retired.")
    by: Literal["progress", "success"] = Field(
        default="progress",
        description="The clock: the share of iterations done, or the highest smoothed success rate reached.",
    )
    unlock_at: float = Field(default=0.0, ge=0, le=1, description="Clock time at which the stage unlocks.")
    rise: float = Field(
        default=0.0, ge=0, le=1, description="Clock time over which the weight rises from start_weight."
    )
    retire_at: float | None = Field(
        default=None, ge=0, le=1, description="Clock time at which the stage retires; null is never."
    )
    fade: float = Field(
        default=0.0, ge=0, le=1, description="Clock time over which the weight then goes to end_weight."
    )
    over_turns: Literal["sum", "mean"] = Field(
        default="sum",
        description="Whether each turn is paid in full, or its share of the mean over turns that report the term.",
    )
    potential: bool = Field(
        default=False, description="Pay gamma*phi(next) - phi(now) with the term as phi, not the term."
    )
    gate: GateConfig | None = Field(
        default=None, description="Condition without which the term pays nothing in a trajectory."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.retire_at is not None and self.unlock_at + self.rise > self.retire_at:
            raise ValueError("unlock_at + rise must not exceed retire_at")
        if self.retire_at is None and (self.fade or self.end_weight):
            raise ValueError("fade and end_weight need retire_at")
        if self.potential and (self.gate is not None or self.over_turns == "mean"):
            raise ValueError("a potential takes no gate and no mean: either would change the optimal policy")
        return self


class ShapingConfig(Config):
    """The rewards of a run: a preset and changes to it."""

    preset: str = Field(default="outcome", description="The set of terms to start from: outcome or progressive.")
    terms: dict[str, TermConfig | None] = Field(
        default_factory=dict,
        description="Terms that are added to the preset or change it; null removes one.",
    )
    gamma: float = Field(default=1.0, ge=0, le=1, description="Discount of potentials; the algorithm's own gamma.")
    success_smoothing: float = Field(
        default=0.7, ge=0, lt=1, description="Share of the past in the smoothed success rate that unlocks stages."
    )
    alarm: AlarmConfig = Field(default=AlarmConfig(), description="When shaped and raw return diverge.")

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        name, changes = values.get("preset", "outcome"), values.get("terms", {})
        if name not in list_presets():
            raise ValueError(f"there is no preset {name!r}, only {' and '.join(list_presets())}")
        if not isinstance(changes, Mapping):
            return values
        return {**values, "terms": merge(read_yaml(_PRESETS / f"{name}.yaml"), _plain(changes))}

    @field_validator("terms")
    @classmethod
    def _pays_something(cls, terms: dict[str, TermConfig | None]) -> dict[str, TermConfig | None]:
        if all(term is None for term in terms.values()):
            raise ValueError("at least one term must pay")
        return terms

    @model_validator(mode="after")
    def _effective(self) -> Self:
        terms = self.active_terms.values()
        if is_changed(self, "gamma") and not any(term.potential for term in terms):
            raise ValueError("gamma does nothing: no term is a potential (terms.NAME.potential=true)")
        if is_changed(self, "success_smoothing") and not any(term.by == "success" for term in terms):
            raise ValueError("success_smoothing does nothing: no term goes by success (terms.NAME.by=success)")
        return self

    @property
    def active_terms(self) -> dict[str, TermConfig]:
        """The terms that were not removed, by name."""
        return {name: term for name, term in self.terms.items() if term is not None}

    def validate_terms(self, known_names: Iterable[str]) -> None:
        """Check that the environment reports every term that is paid or gated on.

        Args:
            known_names: The environment's terms; the reserved ones are known anyway.

        Raises:
            ConfigError: A term is unknown.
        """
        known = [*RESERVED_TERMS, *(name for name in known_names if name not in RESERVED_TERMS)]
        for name, term in self.active_terms.items():
            if name not in known:
                raise ConfigError(
                    f"rewards.terms: the environment reports no term {name!r}.",
                    f"{suggest(name, known)} An environment of your own declares it in its `reward_terms`; "
                    f"rewards.terms.{name}=null leaves it out.",
                )
            if term.gate is not None and term.gate.term not in known:
                raise ConfigError(
                    f"rewards.terms.{name}.gate: the environment reports no term {term.gate.term!r}.",
                    f"{suggest(term.gate.term, known)} rewards.terms.{name}.gate=null removes the gate.",
                )


def _plain(terms: Mapping[str, Any]) -> dict[str, Any]:
    """Turn models among the terms into mappings, as far as they were set, so that they merge with a preset."""
    return {
        name: term.model_dump(exclude_unset=True) if isinstance(term, TermConfig) else term
        for name, term in terms.items()
    }


def load_shaping(options: Mapping[str, Any] | None = None) -> ShapingConfig:
    """Validate the `rewards` section of a configuration.

    Raises:
        ConfigError: A preset, an option or a value is wrong.
    """
    return validate_options(ShapingConfig, options or {}, "rewards")


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What one term did to one turn's reward.

    Attributes:
        raw: The term as it was reported.
        weight: Its weight at this point of the schedule.
        contribution: What it added to the reward: zero where its gate was shut.
    """

    raw: float
    weight: float
    contribution: float


@dataclass(frozen=True, slots=True)
class ShapedTrajectory:
    """The rewards of one trajectory after shaping.

    Attributes:
        trajectory_id: Which trajectory.
        rewards_K: [K] shaped reward of each turn: the sum of its contributions.
        shaped_return: The sum of the shaped rewards.
        raw_return: The sum of the environment's own rewards.
        ledger: [K] for each turn, what each term contributed: all that were reported, paid or not.
    """

    trajectory_id: str
    rewards_K: tuple[float, ...]
    shaped_return: float
    raw_return: float
    ledger: tuple[Mapping[str, LedgerEntry], ...]


def term_weight(term: TermConfig, clock: float) -> float:
    """Return a term's weight at a time of its clock, both in [0, 1]: two ramps, each a step if its width is zero."""
    weight = term.start_weight + (term.weight - term.start_weight) * _ramp(clock, term.unlock_at, term.rise)
    if term.retire_at is None:
        return weight
    return weight + (term.end_weight - term.weight) * _ramp(clock, term.retire_at, term.fade)


def _ramp(clock: float, begin: float, width: float) -> float:
    if width == 0.0:
        return float(clock >= begin)
    return min(1.0, max(0.0, (clock - begin) / width))


def shape_trajectory(
    trajectory: Trajectory, terms: Mapping[str, TermConfig], *, weights: Mapping[str, float], gamma: float = 1.0
) -> ShapedTrajectory | None:
    """Pay the terms of one trajectory.

        r_k = sum_j w_j x_jk            x_jk the term, its share of the mean, or, for a potential,
        x_jk = gamma phi_j(s_{k+1}) - phi_j(s_k)        with phi_j(s_0) = phi_j(end) = 0

    A turn reports phi of the state it leads to; where it reports none, phi stays. The potential of the end is zero
    however the episode ended, so the discounted sum of x_j is zero for every trajectory and the optimal policy stays
    the same (Ng, Harada and Russell 1999; Grzes 2017 for the end). It moves credit between turns, so it needs an
    algorithm with returns-to-go: where every turn is credited with the whole return, it cancels.

    Args:
        trajectory: Any trajectory.
        terms: How each term is paid.
        weights: The weight of each of them now.
        gamma: Discount of potentials.

    Returns:
        The shaped rewards, or None for a failed trajectory: missing is never 0.
    """
    raw_return = trajectory.raw_return
    if raw_return is None:
        return None
    reported = [_reported(turn) for turn in trajectory.turns]
    ledger = [
        {name: LedgerEntry(value, 0.0, 0.0) for name, value in values.items() if name != TURN_COST}
        for values in reported
    ]
    for name, term in terms.items():
        units_K = _potential_differences(name, reported, gamma) if term.potential else _units(name, term, reported)
        for entries, unit, values in zip(ledger, units_K, reported, strict=True):
            if name in values or unit:
                entries[name] = LedgerEntry(values.get(name, 0.0), weights[name], weights[name] * unit)
    rewards_K = tuple(sum((entry.contribution for entry in entries.values()), 0.0) for entries in ledger)
    return ShapedTrajectory(trajectory.id, rewards_K, sum(rewards_K, 0.0), raw_return, tuple(ledger))


def _reported(turn: Turn) -> Mapping[str, float]:
    return {**turn.terms, OUTCOME: turn.reward, TURN_COST: -1.0}


def _units(name: str, term: TermConfig, reported: Sequence[Mapping[str, float]]) -> list[float]:
    if term.gate is not None and not _is_open(term.gate, reported):
        return [0.0] * len(reported)
    count = sum(name in values for values in reported) if term.over_turns == "mean" else 1
    return [values.get(name, 0.0) / max(count, 1) for values in reported]


def _is_open(gate: GateConfig, reported: Sequence[Mapping[str, float]]) -> bool:
    reached = [values[gate.term] >= gate.at_least for values in reported if gate.term in values]
    return any(reached) if gate.turns == "any" else bool(reached) and all(reached)


def _potential_differences(name: str, reported: Sequence[Mapping[str, float]], gamma: float) -> list[float]:
    differences, before = [], 0.0
    for turn, values in enumerate(reported):
        after = 0.0 if turn == len(reported) - 1 else values.get(name, before)
        differences.append(gamma * after - before)
        before = after
    return differences


class Shaper:
    """Shapes trajectories by the progress of a run and remembers the success it has reached.

    The clock of `by: success` is the highest smoothed success rate so far: a stage that has unlocked never locks again,
    so a bad iteration cannot make the rewards flicker.

    Args:
        config: The terms and their schedule.
        state: What `state_dict` returned after an earlier iteration; empty before the first.
    """

    def __init__(self, config: ShapingConfig, state: Mapping[str, float] | None = None) -> None:
        self.config = config
        self._smoothed = 0.0
        self._mass = 0.0
        self.reached = 0.0
        """The highest smoothed success rate so far."""
        if state:
            self.load_state_dict(state)

    def observe(self, success_rate: float) -> None:
        """Take in the success rate of an iteration's scored trajectories, in [0, 1]."""
        assert 0.0 <= success_rate <= 1.0, "a success rate is in [0, 1]"
        past = self.config.success_smoothing
        self._smoothed = past * self._smoothed + (1.0 - past) * success_rate
        self._mass = past * self._mass + (1.0 - past)
        # Divided by the mass of the observations: otherwise the zero it starts from would count as failures.
        self.reached = max(self.reached, self._smoothed / self._mass)

    def observe_groups(self, groups: Sequence[Group]) -> None:
        """Take in the groups of an iteration, if any of their trajectories was scored."""
        scored = [trajectory for group in groups for trajectory in group.scored]
        if scored:
            self.observe(sum(bool(trajectory.success) for trajectory in scored) / len(scored))

    def weights(self, progress: float) -> dict[str, float]:
        """Return the weight of each term now.

        Args:
            progress: The share of the run's iterations that are done, in [0, 1].
        """
        clocks = {"progress": progress, "success": self.reached}
        return {name: term_weight(term, clocks[term.by]) for name, term in self.config.active_terms.items()}

    def shape(self, trajectory: Trajectory, progress: float) -> ShapedTrajectory | None:
        """Shape one trajectory with the weights of now; None for a failed one."""
        terms = self.config.active_terms
        return shape_trajectory(trajectory, terms, weights=self.weights(progress), gamma=self.config.gamma)

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint must hold, as JSON values."""
        return {"smoothed": self._smoothed, "mass": self._mass, "reached": self.reached}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take up the state of a checkpoint."""
        self._smoothed, self._mass, self.reached = state["smoothed"], state["mass"], state["reached"]


def reward_metrics(shaped: Sequence[ShapedTrajectory]) -> Mapping[str, float | None]:
    """Average over trajectories: both returns, and each term's sum over turns as reported and as paid.

    What a trajectory does not report is missing, not 0: a term as reported is averaged over those that report it. As
    paid, it is averaged over all, so that payments add up to the shaped return.

    Returns:
        `reward/raw`, `reward/shaped`, and for each term `reward/<term>` and `shaping/<term>`; for no trajectory, None
        for the two returns.
    """
    if not shaped:
        return {"reward/raw": None, "reward/shaped": None}
    means = {
        "reward/raw": sum(trajectory.raw_return for trajectory in shaped) / len(shaped),
        "reward/shaped": sum(trajectory.shaped_return for trajectory in shaped) / len(shaped),
    }
    for name in dict.fromkeys(name for trajectory in shaped for turn in trajectory.ledger for name in turn):
        entries = [[turn[name] for turn in trajectory.ledger if name in turn] for trajectory in shaped]
        reporting = sum(map(bool, entries))
        means[f"reward/{name}"] = sum(entry.raw for turns in entries for entry in turns) / reporting
        means[f"shaping/{name}"] = sum(entry.contribution for turns in entries for entry in turns) / len(shaped)
    return means


def overlong_penalty(num_tokens: int, *, max_tokens: int, buffer_tokens: int) -> float:
    """Penalise a long trajectory softly (DAPO, 2503.14476, eq. 13).

        0                                   L <= L_max - buffer
        -(L - (L_max - buffer)) / buffer    between
        -1                                  L >= L_max

    Args:
        num_tokens: Sampled tokens L.
        max_tokens: L_max, where the penalty is full.
        buffer_tokens: Tokens below L_max over which it grows.
    """
    return -min(1.0, max(0.0, (num_tokens - (max_tokens - buffer_tokens)) / buffer_tokens))
