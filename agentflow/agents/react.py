"""The ReAct agent: one growing transcript, in which a policy calls tools until it answers."""

from agentflow.play import Play


async def react(play: Play) -> None:
    """Let the policy and the environment speak in turn; see `play.Agent`."""
    thread, said = play.thread(), await play.reset()
    while not play.over:
        said = await play.act(await play.ask(thread, said))
