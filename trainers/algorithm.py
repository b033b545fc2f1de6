"""An algorithm is a value: the slots of a group-relative policy-gradient method, and the named recipes that fill them.

config = load_recipe("flow-grpo", {"clip_high": 0.28})
cause = degenerate_cause(group, config)                 # "" or why the group teaches nothing
turns = advantages(groups, config)                      # one [K] array for each trajectory
weights_S = weights(turn_lengths, config)               # one number for each sampled token, over the whole batch
terms = loss(tokens, config)                            # for each micro-batch; the losses add up
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from agentflow.config import Config, read_yaml, suggest, validate_options
from agentflow.errors import ConfigError
from agentflow.maths.advantages import (
    Baseline,
    Floats,
    Scale,
    Singleton,
    Unit,
    broadcast_return,
    returns_to_go,
    turn_advantages,
    whiten,
)
from agentflow.maths.losses import (
    Aggregation,
    KLEstimator,
    LossName,
    LossTerms,
    Ratio,
    SampledTokens,
    policy_loss,
    token_weights,
)
from agentflow.maths.mismatch import Mismatch, MismatchUnit, mismatch_factor, owners, unit_log_weights
from agentflow.rewards import ShapingConfig, overlong_penalty

RECIPES = Path(__file__).parent / "recipes"
_EQUAL_RETURNS = 1e-9


class AlgorithmConfig(Config):
    """The slots of a group-relative policy-gradient method."""

    credit: Literal["trajectory", "return_to_go"] = Field(
        default="trajectory",
        description="What a turn is credited with: its trajectory's return, or the rewards from it on.",
    )
    gamma: float = Field(default=1.0, ge=0, le=1, description="Discount for each turn under credit=return_to_go.")
    unit: Unit = Field(
        default="trajectory", description="What counts once in a group's statistics: a trajectory or a turn row."
    )
    baseline: Baseline = Field(default="mean", description="What is subtracted within a group.")
    scale: Scale = Field(
        default="std_sample", description="What divides within a group: nothing, sample or population std."
    )
    epsilon: float = Field(default=1e-6, ge=0, description="Added to the group's std.")
    singleton: Singleton = Field(
        default="zero", description="Advantage of a trajectory without peers: zero, or its raw return."
    )
    whiten: Literal["none", "trajectory", "turn", "token"] = Field(
        default="none",
        description="Normalise the whole batch, with each trajectory, turn or sampled token counting once.",
    )
    degenerate: Literal["drop", "keep"] = Field(
        default="drop",
        description="What happens to a group whose returns are all equal: dropped and refilled, or kept.",
    )
    max_refills: int = Field(default=2, ge=0, description="Extra rounds of rollouts that may replace dropped groups.")
    overlong_max_tokens: int | None = Field(
        default=None,
        gt=0,
        description="Sampled tokens of a trajectory at which the overlong penalty reaches -1; null is off.",
    )
    overlong_buffer_tokens: int = Field(
        default=256, gt=0, description="Tokens before that limit over which the penalty grows."
    )
    aggregation: Aggregation = Field(
        default="nested",
        description="Mean over trajectories of turns of tokens, over turns, over tokens, or a constant divisor.",
    )
    constant: float | None = Field(default=None, gt=0, description="Tokens that aggregation=constant divides by.")
    loss: LossName = Field(default="clip", description="Surrogate: PPO's clip, CISPO, or plain REINFORCE.")
    ratio: Ratio = Field(
        default="token", description="Importance ratio of each token, or the trajectory's geometric mean."
    )
    clip_low: float = Field(default=0.2, ge=0, le=1, description="Half-width of the trust region below a ratio of 1.")
    clip_high: float | None = Field(
        default=0.3, ge=0, description="Half-width above a ratio of 1; null leaves it open."
    )
    dual_clip: float | None = Field(
        default=None, gt=1, description="Bound c on the loss of a negative advantage; null is off."
    )
    mismatch: Mismatch = Field(
        default="none", description="Correction for a sampler whose probabilities differ from ours."
    )
    mismatch_unit: MismatchUnit = Field(
        default="token",
        description="What shares one ratio: a token; a turn or a trajectory, by the product of its tokens' ratios or, "
        "with _mean, by their geometric mean.",
    )
    mismatch_low: float = Field(default=0.5, ge=0, le=1, description="Smallest trusted ratio for icepop and mis.")
    mismatch_high: float = Field(default=2.0, ge=1, description="Largest trusted ratio for tis, icepop and mis.")
    kl_coefficient: float = Field(
        default=0.0, ge=0, description="Weight of the divergence from the frozen reference; 0 is off."
    )
    kl_estimator: KLEstimator = Field(
        default="k3", description="How that divergence is estimated from the sampled tokens."
    )
    entropy_coefficient: float = Field(default=0.0, ge=0, description="Weight of the entropy bonus; 0 is off.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.aggregation == "constant" and self.constant is None:
            raise ValueError("aggregation=constant needs `constant`, a number of tokens (e.g. constant=512)")
        if self.overlong_max_tokens is not None and self.overlong_buffer_tokens > self.overlong_max_tokens:
            raise ValueError("overlong_buffer_tokens must not exceed overlong_max_tokens")
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether the learner must score the tokens under a frozen reference."""
        return self.kl_coefficient > 0

    @property
    def needs_entropy_gradient(self) -> bool:
        """Whether the entropies must carry a gradient."""
        return self.entropy_coefficient > 0


_INERT_UNLESS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "gamma": ("credit", ("return_to_go",)),
    "epsilon": ("scale", ("std_sample", "std_population")),
    "max_refills": ("degenerate", ("drop",)),
    "constant": ("aggregation", ("constant",)),
    "clip_low": ("loss", ("clip", "cispo")),
    "clip_high": ("loss", ("clip", "cispo")),
    "ratio": ("loss", ("clip", "cispo")),
    "dual_clip": ("loss", ("clip",)),
    "mismatch_unit": ("mismatch", ("tis", "icepop", "mis")),
    "mismatch_low": ("mismatch", ("icepop", "mis")),
    "mismatch_high": ("mismatch", ("tis", "icepop", "mis")),
}
"""Options that do nothing unless another has one of these values."""
_INERT_WHILE_OFF = {"kl_estimator": "kl_coefficient", "overlong_buffer_tokens": "overlong_max_tokens"}
"""Options that do nothing while another is off (0 or null)."""


def list_recipes() -> list[str]:
    """Return the names of the recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> AlgorithmConfig:
    """Read a recipe and change some of its slots.

    Args:
        name: A name of `list_recipes()`.
        overrides: Slots to change, by field name.

    Raises:
        ConfigError: The recipe or a slot is unknown, a value is out of bounds, or an override would change nothing.
    """
    known = list_recipes()
    if name not in known:
        raise ConfigError(f"There is no algorithm {name!r}.", suggest(name, known))
    changes = dict(overrides or {})
    config = validate_options(AlgorithmConfig, {**read_yaml(RECIPES / f"{name}.yaml"), **changes}, "algorithm")
    refuse_inert(changes, config)
    return config


def refuse_inert(changes: Mapping[str, Any], config: AlgorithmConfig) -> None:
    """Check that every option that was chosen counts.

    Args:
        changes: What was chosen, by field name; null never counts and is always allowed.
        config: The algorithm that results.

    Raises:
        ConfigError: An option does nothing.
    """
    for name, value in changes.items():
        needed = _needed_for(name, config)
        if needed and value is not None:
            raise ConfigError(f"algorithm.{name} does nothing here.", f"It needs {needed}.")


def _needed_for(name: str, config: AlgorithmConfig) -> str:
    """Say what would make an option count; empty if it counts already."""
    if name in _INERT_UNLESS:
        other, wanted = _INERT_UNLESS[name]
        if getattr(config, other) not in wanted:
            return f"algorithm.{other}={' or '.join(wanted)}"
    if name in _INERT_WHILE_OFF and not getattr(config, _INERT_WHILE_OFF[name]):
        return f"algorithm.{_INERT_WHILE_OFF[name]}"
    if name in ("unit", "singleton") and config.baseline == config.scale == "none":
        return "algorithm.baseline or algorithm.scale"
    return ""


def check_shaping(shaping: ShapingConfig, config: AlgorithmConfig) -> None:
    """Check that the rewards and the algorithm fit each other.

    Raises:
        ConfigError: Potential terms would cancel (trajectory credit), or be discounted otherwise than the returns.
    """
    potentials = [name for name, term in shaping.active_terms.items() if term.potential]
    if potentials and config.credit == "trajectory":
        raise ConfigError(
            f"The potential {potentials[0]!r} cancels when every turn is credited with the whole return.",
            "Set algorithm.credit=return_to_go, or rewards.terms." + potentials[0] + ".potential=false.",
        )
    if potentials and shaping.gamma != config.gamma:
        raise ConfigError(
            f"Potentials are discounted by rewards.gamma={shaping.gamma}, returns by algorithm.gamma={config.gamma}.",
            "Set both to the same value: otherwise the potentials change the optimal policy.",
        )


@dataclass(frozen=True, slots=True)
class ScoredTrajectory:
    """A trajectory as the algorithm sees it: one that failed, or that never acted, does not become one.

    Attributes:
        rewards_K: The (shaped) reward of each turn.
        sampled_tokens_K: The number of sampled tokens of each turn.
        success: Whether the task was solved; None where the environment does not say.
    """

    rewards_K: tuple[float, ...]
    sampled_tokens_K: tuple[int, ...]
    success: bool | None = None

    def __post_init__(self) -> None:
        """Check that both tuples have one entry for each turn."""
        assert len(self.rewards_K) == len(self.sampled_tokens_K) > 0, "one reward and one count for each of its turns"


def degenerate_cause(group: Sequence[ScoredTrajectory], config: AlgorithmConfig) -> str:
    """Say why a group has no learning signal under this algorithm.

    The overlong penalty does not count: it would rescue a group without any difference in outcome (DAPO, section 3.2).

    Returns:
        Empty if it has one; `too_few` (fewer than two trajectories), `all_solved`, `none_solved` or `equal_returns`.
    """
    if config.baseline == "none":
        return ""
    if len(group) < 2:
        return "too_few"
    credits_N = np.concatenate([_credit(trajectory, config) for trajectory in group])
    if np.ptp(credits_N) > _EQUAL_RETURNS * max(1.0, float(np.abs(credits_N).max())):
        return ""
    solved = {trajectory.success for trajectory in group}
    if solved == {True}:
        return "all_solved"
    return "none_solved" if solved == {False} else "equal_returns"


def advantages(groups: Sequence[Sequence[ScoredTrajectory]], config: AlgorithmConfig) -> list[Floats]:
    """Turn the scored trajectories of a whole batch into an advantage for each turn.

    Args:
        groups: The kept groups; a group may have any number of trajectories.
        config: The algorithm.

    Returns:
        One [K] array for each trajectory, in the order of the groups and of the trajectories within.
    """
    turns = [
        advantage_K
        for group in groups
        for advantage_K in turn_advantages(
            [_credit(_penalise(trajectory, config), config) for trajectory in group],
            unit=config.unit,
            baseline=config.baseline,
            scale=config.scale,
            epsilon=config.epsilon,
            singleton=config.singleton,
        )
    ]
    if config.whiten == "none" or not turns:
        return turns
    counts = [_count(trajectory, config) for group in groups for trajectory in group]
    whitened = whiten(np.concatenate(turns), np.concatenate(counts))
    return np.split(whitened, np.cumsum([len(advantage_K) for advantage_K in turns])[:-1])


def _credit(trajectory: ScoredTrajectory, config: AlgorithmConfig) -> Floats:
    rewards_K = np.asarray(trajectory.rewards_K, dtype=np.float64)
    if config.credit == "trajectory":
        return broadcast_return(rewards_K)
    return returns_to_go(rewards_K, gamma=config.gamma)


def _penalise(trajectory: ScoredTrajectory, config: AlgorithmConfig) -> ScoredTrajectory:
    if config.overlong_max_tokens is None:
        return trajectory
    penalty = overlong_penalty(
        sum(trajectory.sampled_tokens_K),
        max_tokens=config.overlong_max_tokens,
        buffer_tokens=config.overlong_buffer_tokens,
    )
    rewards_K = (*trajectory.rewards_K[:-1], trajectory.rewards_K[-1] + penalty)
    return ScoredTrajectory(rewards_K, trajectory.sampled_tokens_K, trajectory.success)


def _count(trajectory: ScoredTrajectory, config: AlgorithmConfig) -> Floats:
    """Return how often each turn counts in the batch's statistics."""
    num_turns = len(trajectory.rewards_K)
    if config.whiten == "token":
        return np.asarray(trajectory.sampled_tokens_K, dtype=np.float64)
    return np.full(num_turns, 1.0 / num_turns if config.whiten == "trajectory" else 1.0)


def weights(
    turn_lengths: Sequence[Sequence[int]], config: AlgorithmConfig, *, log_mismatch_S: Floats | None = None
) -> NDArray[np.float64]:
    """Weigh every sampled token of a whole batch: `losses.token_weights` with this algorithm's aggregation.

    Args:
        turn_lengths: For each kept trajectory, the number of sampled tokens of each turn.
        config: The algorithm.
        log_mismatch_S: [S] learner's minus sampler's log-probs. Needed by mismatch=mis, whose dropped tokens leave the
            denominators; ignored by the other corrections, which keep them.

    Returns:
        [S] weights in canonical order.
    """
    keep_S = None
    if config.mismatch == "mis":
        assert log_mismatch_S is not None, "mismatch=mis drops tokens before their weights are known"
        turns_S, segments_S = owners(turn_lengths)
        log_w_S = unit_log_weights(
            torch.from_numpy(log_mismatch_S), config.mismatch_unit, turns_S=turns_S, segments_S=segments_S
        )
        factor_S = mismatch_factor(log_w_S, "mis", low=config.mismatch_low, high=config.mismatch_high)
        keep_S = factor_S.numpy() > 0
    return token_weights(turn_lengths, config.aggregation, constant=config.constant, keep_S=keep_S)


def loss(tokens: SampledTokens, config: AlgorithmConfig) -> LossTerms:
    """Compute one micro-batch's loss: `losses.policy_loss` with this algorithm's slots.

    Args:
        tokens: The micro-batch; `weights_S` are over the whole batch, so the losses of its micro-batches add up.
        config: The algorithm.
    """
    return policy_loss(
        tokens,
        loss=config.loss,
        ratio=config.ratio,
        clip_low=config.clip_low,
        clip_high=math.inf if config.clip_high is None else config.clip_high,
        dual_clip=config.dual_clip,
        mismatch=config.mismatch,
        mismatch_unit=config.mismatch_unit,
        mismatch_low=config.mismatch_low,
        mismatch_high=config.mismatch_high,
        kl_coefficient=config.kl_coefficient,
        kl_estimator=config.kl_estimator,
        entropy_coefficient=config.entropy_coefficient,
    )
