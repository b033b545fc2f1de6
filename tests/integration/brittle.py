"""The code environment over a sandbox that tests may break, and rollouts of it."""

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from threading import Thread

from agentflow.environments.coding import Code
from agentflow.play import AgentConfig
from agentflow.renderer import Renderer
from agentflow.rollout import Collected, Rollout, RolloutConfig
from agentflow.sandbox.base import Limits, Program, Result, Sandbox, Session
from agentflow.trainers.scratch import new_tokenizer
from agentflow.trajectory import Trajectory
from tests.players import expert_player

SMALL = {"kinds": ("function", "repair", "compute"), "train_tasks": 24, "heldout_tasks": 6}


class Brittle(Code):
    """The code environment over a sandbox that these tests may break."""

    sandbox: Sandbox

    def make_sandbox(self) -> Sandbox:
        """Return the sandbox of the test."""
        return self.sandbox


class Watched:
    """A sandbox that counts how its executions end, and says when some have.

    Args:
        sandbox: The sandbox.
        after: Executions after which `then` is called, once.
        then: What breaks it; it runs beside the rollout.
    """

    def __init__(self, sandbox: Sandbox, *, after: int, then: Callable[[], object]) -> None:
        self.name = sandbox.name
        self.ended: Counter[str] = Counter()
        self._sandbox = sandbox
        self._after = after
        self._breaker = Thread(target=then, daemon=True)

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        """Run a program."""
        result = await self._sandbox.run(program, limits)
        self.ended[result.status] += 1
        if self.ended.total() == self._after:
            self._breaker.start()
        return result

    async def session(self, limits: Limits | None = None) -> Session:
        """Start an interpreter."""
        return await self._sandbox.session(limits)

    async def close(self) -> None:
        """Wait until it is broken, and close it."""
        await asyncio.to_thread(self._breaker.join)
        await self._sandbox.close()


def play(sandbox: Sandbox, *, max_failed: float, num_tasks: int = 24) -> Collected:
    """Let the expert, which makes no mistake, play each task twice."""
    Brittle.sandbox = sandbox
    environment = Brittle(**SMALL)
    tasks = environment.tasks("train")[:num_tasks]
    tokenizer = new_tokenizer([task.prompt for task in tasks], max_words=200)
    renderer = Renderer(tokenizer, environment.tool_schemas)
    config = AgentConfig(max_call_s=60, max_turn_tokens=2000, max_episode_tokens=20_000)
    agent = expert_player(partial(Brittle, **SMALL), renderer, config=config)
    return Rollout(agent, RolloutConfig(max_failed_fraction=max_failed)).run(
        tasks, group_size=2, seed=0, label="faults"
    )


def invented(collected: Collected) -> list[Trajectory]:
    """Return the trajectories without what the expert earns: all reward, or none where the episode failed."""
    earned = {"completed": (1.0, True), "failed": (None, None)}
    return [
        trajectory
        for trajectory in collected.trajectories
        if (trajectory.raw_return, trajectory.success) != earned[trajectory.status.kind]
    ]
