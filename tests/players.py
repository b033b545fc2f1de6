"""Players of episodes that tests roll out."""

from collections.abc import Callable

from agentflow.agents.react import react
from agentflow.environment import Environment
from agentflow.play import AgentConfig, EpisodePlayer, Scene
from agentflow.policy import Policy
from agentflow.renderer import Renderer
from agentflow.roles import PLANNER
from agentflow.speakers import ExpertSpeaker, TokenSpeaker


def policy_player(
    make: Callable[[], Environment], renderer: Renderer, *, policy: Policy, config: AgentConfig | None = None
) -> EpisodePlayer:
    """Return who plays ReAct episodes with a policy."""
    config = config or AgentConfig()
    return EpisodePlayer(react, Scene(make, {PLANNER: TokenSpeaker(policy, renderer, config=config)}, config))


def expert_player(
    make: Callable[[], Environment], renderer: Renderer, *, config: AgentConfig | None = None
) -> EpisodePlayer:
    """Return who plays ReAct episodes with the environment's expert."""
    config = config or AgentConfig()
    return EpisodePlayer(react, Scene(make, {PLANNER: ExpertSpeaker(renderer, config=config)}, config))
