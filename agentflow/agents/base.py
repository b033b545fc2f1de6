"""What an agent is: options, and one async function over a `Play`. Which one a run plays is `agent.kind`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import Field, SerializeAsAny, ValidatorFunctionWrapHandler, WrapValidator

from agentflow.config import validate_options
from agentflow.errors import ConfigError
from agentflow.play import AgentConfig, Play
from agentflow.plugins import Family, absolute
from agentflow.roles import PLANNER


class Agent(AgentConfig):
    """How episodes are played; subclass it, give `kind` a default and define `__call__`."""

    kind: str = Field("react", description="Which agent: a name of ours, of a package, or path/to/file.py:Class.")
    roles: ClassVar[tuple[str, ...]] = (PLANNER,)
    """The roles that speak in it: a run must say who speaks for each of them."""

    async def __call__(self, play: Play) -> None:
        """Play one episode to its end."""
        raise NotImplementedError


AGENTS: Family[Agent] = Family(
    "agent",
    base=Agent,
    group="agentflow.agents",
    own="agentflow.agents.base.Agent",
    usage="agent.kind=path/to/file.py:Class",
    tables=("agentflow.agents.react",),
)


def read_agent(given: Any) -> Agent:
    """Make the agent that options describe; without a kind it is `react`.

    Raises:
        ConfigError: There is no such agent, or it has no such option.
    """
    if isinstance(given, Agent):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(f"agent = {given!r} is one value where a section belongs.", "Write agent.kind=KIND.")
    kind = absolute(str(given.get("kind", "react")))
    found = AGENTS.find(kind)
    return validate_options(found, {**given, "kind": kind}, owner="agent")


def _by_kind(given: Any, _handler: ValidatorFunctionWrapHandler) -> Agent:
    return read_agent(given)


AgentOptions: TypeAlias = Annotated[SerializeAsAny[Agent], WrapValidator(_by_kind)]
"""The `agent` section of a run's configuration."""


def check_cast(agent: Agent, roles: Mapping[str, Any]) -> None:
    """Refuse a run that does not say who speaks for each role of its agent.

    Raises:
        ConfigError: It does not.
    """
    missing = [role for role in agent.roles if role not in roles]
    if missing:
        raise ConfigError(
            f"The agent {agent.kind!r} asks the role {missing[0]!r}, and nobody speaks for it.",
            f"Set roles.{missing[0]}.speaks=policy, openai or expert.",
        )
