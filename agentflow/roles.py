"""Named roles: frozen models that an environment or a tool asks for text, beside the planner that is trained.

    class Shop(ToolEnvironment):
        async def score(self, task, answer):
            return {"success": float("yes" in await self.roles["judge"].complete([Message("user", answer)]))}

A role is text in, text out: nothing that it says has tokens of ours, so nothing of it is ever trained on.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

from agentflow.errors import ConfigError
from agentflow.messages import Message

PLANNER = "planner"
"""The role that is trained: the run's own policy, which nobody can ask."""


class TextModel(Protocol):
    """A frozen model: `policies.openai.OpenAIChat`, or a fake."""

    @property
    def identity(self) -> str:
        """Which model this is, with everything that its replies depend on besides the messages; never a key."""
        ...

    async def complete(self, messages: Sequence[Message]) -> str:
        """Return the reply's text.

        Raises:
            EpisodeFailure: There is none.
        """
        ...


class Roles:
    """The frozen models of a run, by the names that its run file gives them.

    Args:
        models: The model of each role.
    """

    def __init__(self, models: Mapping[str, TextModel]) -> None:
        self._models = dict(models)

    def __getitem__(self, name: str) -> TextModel:
        if name in self._models:
            return self._models[name]
        if name == PLANNER:
            raise ConfigError(f"The role {PLANNER!r} is the policy that is trained: nobody can ask it.")
        near = get_close_matches(name, self._models, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(self._models) or 'none'}."
        raise ConfigError(f"There is no role {name!r}.", f"{hint} A new one: roles.{name}.model=MODEL.")

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def __bool__(self) -> bool:
        return bool(self._models)


NO_ROLES = Roles({})
"""The roles of a run that names none."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a role was asked during an episode, and what it said.

    Attributes:
        role: Who was asked.
        messages: The conversation that it was shown.
        reply: What it said.
    """

    role: str
    messages: tuple[Message, ...]
    reply: str


_EXCHANGES: ContextVar[list[Exchange] | None] = ContextVar("exchanges", default=None)


@contextmanager
def recorded_exchanges() -> Iterator[list[Exchange]]:
    """Collect what is asked of roles within the block, in tasks and threads that start in it too."""
    exchanges: list[Exchange] = []
    token = _EXCHANGES.set(exchanges)
    try:
        yield exchanges
    finally:
        _EXCHANGES.reset(token)


def record(exchange: Exchange) -> None:
    """Add an exchange to the episode under way, if there is one."""
    exchanges = _EXCHANGES.get()
    if exchanges is not None:
        exchanges.append(exchange)
