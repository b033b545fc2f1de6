"""An agent of one's own: before it acts, the planner hears what a verifier says of its plan.

agentflow train --env websearch --agent docs/examples/two_opinions.py:TwoOpinions roles.verifier.speaks=policy
"""

from agentflow.agents.base import Agent
from agentflow.messages import Message
from agentflow.play import Play


class TwoOpinions(Agent):
    """Ask the planner, show its words to two verifiers at once, and act by its second thought."""

    roles = ("planner", "verifier")

    async def __call__(self, play: Play) -> None:
        """Play one episode."""
        heard = await play.reset()
        while not play.over:
            first = await play.ask(play.thread(), heard)
            question = (Message("user", f"{play.task.prompt} {first.message.content}"),)
            opinions = await play.together(
                *(play.ask(play.thread("verifier", name=str(n), grows=False), question) for n in range(2))
            )
            said = " ".join(opinion.message.content for opinion in opinions)
            heard = await play.act(await play.ask(play.thread(), (Message("user", said),)))
