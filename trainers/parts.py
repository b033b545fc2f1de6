"""Put a run together from its configuration: environment, model, renderer, policy, agent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from agentflow.casting import Casting, text_roles
from agentflow.environment import Environment, load_environment, load_tasks, require_expert
from agentflow.errors import ConfigError
from agentflow.models import LoadedModel, load_model
from agentflow.play import EpisodePlayer, Scene
from agentflow.policies.frozen import FrozenModels
from agentflow.policies.in_process import TransformersPolicy
from agentflow.policies.vllm.policy import VllmPolicy
from agentflow.policy import TrainablePolicy
from agentflow.renderer import Renderer
from agentflow.roles import NO_ROLES, Roles
from agentflow.rollout import Rollout
from agentflow.starter_policies import Part
from agentflow.threads import available_cores, num_threads
from agentflow.trainers.settings import EnvironmentConfig, Threads, TrainConfig


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of a run that sample.

    Attributes:
        make_environment: Makes a fresh environment.
        loaded: The model and its tokenizer.
        renderer: Messages to tokens and back.
        policy: Samples from the model.
        rollout: Collects episodes.
        frozen: The models that other roles than the planner have.
        num_threads: Threads that compute.
    """

    make_environment: Callable[[], Environment]
    loaded: LoadedModel
    renderer: Renderer
    policy: TrainablePolicy
    rollout: Rollout
    frozen: FrozenModels
    num_threads: int


def environment_factory(config: EnvironmentConfig, *, roles: Roles = NO_ROLES) -> Callable[[], Environment]:
    """Return what makes the configured environment; its options are validated when it is called.

    Raises:
        ConfigError: There is no such environment.
    """
    environment_class = load_environment(config.name)
    # Environments with a constructor of their own need not know of roles unless a run names some.
    options = {**config.options, "roles": roles} if roles else config.options
    return lambda: environment_class(**options)


def assemble(config: TrainConfig, *, loaded: LoadedModel | None = None) -> Assembly:
    """Build the sampling side of a run.

    Args:
        config: The run.
        loaded: A model that is already in memory; None loads the configured one.

    Raises:
        UserError: The environment, its options or the model cannot be used.
    """
    frozen = FrozenModels(text_roles(config.roles))
    make_environment = environment_factory(config.env, roles=frozen.roles)
    environment = make_environment()
    loaded = loaded or load_model(config.model, env=config.env.name, agent=config.agent.kind)
    threads = use_threads(config.run.threads, loaded.model)
    renderer = Renderer(loaded.tokenizer, environment.tool_schemas)
    policy = sampling_policy(config, loaded, stop_ids=sorted(renderer.stop_ids))
    if config.agent.max_episode_tokens > policy.max_length:
        raise ConfigError(
            f"agent.max_episode_tokens = {config.agent.max_episode_tokens} is more than the {policy.max_length} tokens "
            "that the model has positions for.",
            f"Set agent.max_episode_tokens={policy.max_length} or less.",
        )
    if any(role.speaks == "expert" for role in config.roles.values()):
        # An environment without an expert says so here.
        require_expert(environment, load_tasks(environment, "train")[0])
    casting = Casting(
        policy,
        renderer,
        texts=frozen,
        limits=config.agent,
        temperature=config.policy.temperature,
        part=Part(env=config.env.name, agent=config.agent.kind),
    )
    agent = EpisodePlayer(config.agent, Scene(make_environment, casting.speakers(config.roles), config.agent))
    return Assembly(make_environment, loaded, renderer, policy, Rollout(agent, config.rollout), frozen, threads)


def use_threads(wanted: Threads, model: Any) -> int:
    """Let torch compute with so many threads, also where it was loaded before anybody asked; return their number."""
    number = num_threads(wanted, sum(parameter.numel() for parameter in model.parameters()), cores=available_cores())
    torch.set_num_threads(number)
    return number


def sampling_policy(config: TrainConfig, loaded: LoadedModel, *, stop_ids: Sequence[int]) -> TrainablePolicy:
    """Return the configured policy over a model; its turns end at the stop tokens."""
    if config.policy.backend != "vllm":
        return TransformersPolicy(loaded.model, stop_ids)
    return VllmPolicy(
        loaded.model, stop_ids, config=config.policy.servers, max_episode_tokens=config.agent.max_episode_tokens
    )
