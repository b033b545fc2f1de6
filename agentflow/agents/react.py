"""The ReAct agent: one growing transcript, in which a policy calls tools until it answers."""

from collections.abc import Mapping

from agentflow.agents.base import Agent
from agentflow.play import Play


async def react(play: Play) -> None:
    """Let the policy and the environment speak in turn."""
    thread, said = play.thread(), await play.reset()
    while not play.over:
        said = await play.act(await play.ask(thread, said))


class ReAct(Agent):
    """One role, one transcript."""

    kind: str = "react"

    async def __call__(self, play: Play) -> None:
        """Play one episode to its end."""
        await react(play)


TABLE: Mapping[str, type[Agent]] = {"react": ReAct}
