"""From what the user typed to a validated configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentflow.cli.words import flag_overrides, overrides, section
from agentflow.config import gather, merge, validate_options
from agentflow.environment import load_environment
from agentflow.errors import ConfigError
from agentflow.models import training_defaults
from agentflow.roles import PLANNER
from agentflow.runs.upgrades import upgraded
from agentflow.starter_policies import REACT, STARTER
from agentflow.trainers.algorithm import Algorithm, algorithm_values
from agentflow.trainers.settings import DEFAULT_ALGORITHM, TrainConfig

_OPTIONS = "--env --algo --agent --model --policy --config --out --seed --iterations --resume --dry-run".split()


@dataclass(frozen=True, slots=True)
class Given:
    """What the user typed.

    Attributes:
        words: The words that the command did not take itself.
        files: Configuration files, in order.
        flags: The dotted name that each flag stands for, and its value; None if it was not given.
        algorithm: The recipe; None for the default one.
    """

    words: Sequence[str]
    files: Sequence[Path]
    flags: Mapping[str, Any]
    algorithm: str | None

    @property
    def anything(self) -> bool:
        """Whether the user typed anything at all."""
        flags = [value for value in self.flags.values() if value is not None]
        return bool(self.words or self.files or flags or self.algorithm)


def train_config(given: Given) -> TrainConfig:
    """Build and validate the configuration of a run, the environment's own options included.

    Raises:
        ConfigError: An option is unknown, inert, set twice or wrong.
    """
    typed = overrides(given.words, known=_OPTIONS)
    chosen = merge(gather(overrides=typed), flag_overrides(given.flags, typed))
    return training_config(chosen, stored=upgraded(gather(given.files)), algorithm=given.algorithm)


def training_config(
    chosen: Mapping[str, Any], *, stored: Mapping[str, Any] | None = None, algorithm: str | None = None
) -> TrainConfig:
    """Build and validate the configuration of a run from its sections.

    Args:
        chosen: What somebody asked for, section by section.
        stored: What files say, which gives way to it.
        algorithm: The recipe; None for the default one.

    Raises:
        ConfigError: An option is unknown, inert or wrong.
    """
    stored = stored or {}
    model = merge(section(stored, "model"), section(chosen, "model")).get("path", STARTER)
    env = merge(section(stored, "env"), section(chosen, "env")).get("name")
    agent = merge(section(stored, "agent"), section(chosen, "agent")).get("kind", REACT)
    stored = merge(training_defaults(str(model), env=str(env), agent=str(agent)), stored)
    if not env:
        raise ConfigError("No environment was chosen.", "Say --env websearch, or --env path/to/file.py:Class.")
    values = {
        **merge(stored, chosen),
        "algorithm": _algorithm(algorithm, section(stored, "algorithm"), section(chosen, "algorithm")),
        "rewards": merge_rewards(section(stored, "rewards"), section(chosen, "rewards")),
    }
    config = validate_options(TrainConfig, values, "The configuration")
    environment = load_environment(config.env.name)
    options = validate_options(environment.options_model, config.env.options, owner=f"env ({environment.__name__})")
    config.rewards.validate_terms(environment.terms_with(options))
    if config.roles[PLANNER].speaks == "expert" and "temperature" in section(chosen, "policy"):
        raise ConfigError("policy.temperature does nothing: the scripted expert samples nothing.", "Leave it out.")
    return config


def merge_rewards(stored: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Change a stored `rewards` section; another preset brings its own terms in place of the stored ones."""
    kept = {key: value for key, value in stored.items() if key != "terms"} if "preset" in typed else stored
    return merge(kept, typed)


def _algorithm(name: str | None, stored: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Start from the recipe that was chosen, or from what the files say, and change what was typed."""
    # A run's resolved configuration has every key: an algorithm of its own, which another recipe replaces whole.
    whole = set(Algorithm.model_fields) <= set(stored)
    base = algorithm_values({"extends": name or stored.get("extends", DEFAULT_ALGORITHM)})
    base = base if whole and name else merge(base, {k: v for k, v in stored.items() if k != "extends"})
    return merge(base, typed)
