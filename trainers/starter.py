"""A starter policy for an environment of one's own: the stages that teach it, and what it recommends for training."""

from collections.abc import Mapping, Sequence
from typing import Any

from agentflow.config import is_changed
from agentflow.environment import load_environment
from agentflow.models import LoadedModel
from agentflow.play import AgentConfig
from agentflow.trajectory import Trajectory

NOISE_OPTION = "expert_noise"
"""The option, from 0 to 1, by which an environment says how careless its expert is."""
_CLEAN_UPDATES, _CARELESS_UPDATES = 350, 70
_CARELESS_RATE = 5e-4
_LEARNER = {"learning_rate": 2e-3, "schedule": "cosine", "warmup_updates": 20, "beta2": 0.98, "max_tokens": 8192}
_MAX_EPISODES = 4096

_SMALL_PARAMETERS = 20_000_000
"""Below this size, a model is trained with the settings that the shipped starters recommend."""
_SMALL = {
    "learner": {"learning_rate": 5e-4, "updates_per_iteration": 2},
    "evaluation": {"every": 10},
    "run": {"iterations": 40},
}


def starter_values(env: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of `agentflow sft` that makes a new small model for an environment.

    Where the environment has an option `expert_noise` that nobody has set, and nothing but the updates is said of the
    stage, a careless expert is imitated last and briefly: from an expert without a fault, nothing is left to
    reinforce.

    Args:
        env: The environment's name and options.
        stage: What is said of the one stage of a command line.

    Raises:
        ConfigError: There is no such environment.
    """
    options = load_environment(str(env["name"])).options_model.model_fields
    updates = stage.get("updates", _CLEAN_UPDATES + _CARELESS_UPDATES)
    if NOISE_OPTION not in options or NOISE_OPTION in env or set(stage) - {"updates"} or not _is_divisible(updates):
        stages = [_stage(env, {"updates": updates, **stage})]
    else:
        careless = max(1, updates * _CARELESS_UPDATES // (_CLEAN_UPDATES + _CARELESS_UPDATES))
        stages = [
            _stage(env, {"updates": updates - careless}),
            _stage({**env, NOISE_OPTION: 1.0}, {"updates": careless, "learning_rate": _CARELESS_RATE}),
        ]
    return {"scratch": {"num_layers": 3}, "learner": _LEARNER, "stages": stages}


def _is_divisible(updates: Any) -> bool:
    return isinstance(updates, int) and updates > 1


def _stage(env: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    wanted = stage["updates"] * stage.get("episodes_per_update", 32) if isinstance(stage["updates"], int) else 1
    episodes = {} if stage.get("from_run") else {"num_episodes": max(1, min(_MAX_EPISODES, wanted))}
    return {"env": dict(env), **episodes, **stage}


def recommended(
    loaded: LoadedModel, taught: Sequence[Trajectory], *, limits: AgentConfig, max_turns: int
) -> dict[str, Any]:
    """Return what a model that was taught recommends for its training, in the shape of a run's configuration.

    Args:
        loaded: The model.
        taught: What it has imitated: the limits leave room for turns twice as long.
        limits: The limits that were given, which stand.
        max_turns: The environment's limit of turns.
    """
    max_turns = limits.max_turns or max_turns
    turns = [turn for trajectory in taught for turn in trajectory.turns]
    said = 2 * max(len(turn.completion.token_ids) for turn in turns)
    first = max(len(trajectory.turns[0].context_ids) for trajectory in taught)
    heard = max((len(turn.context_ids) for turn in turns if turn.prefix_length), default=0)
    longest = first + max_turns * said + (max_turns - 1) * heard
    positions = getattr(loaded.model.config, "max_position_embeddings", longest)
    num_parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    measured = {"max_turn_tokens": said, "max_episode_tokens": min(_rounded(longest), positions)}
    given = {name: getattr(limits, name) for name in AgentConfig.model_fields if is_changed(limits, name)}
    small = _SMALL if num_parameters < _SMALL_PARAMETERS else {}
    return {**small, **loaded.recommended, "agent": {**measured, **given}}


def _rounded(tokens: int) -> int:
    return -(-tokens // 64) * 64
