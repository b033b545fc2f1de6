"""Rollouts of the code environment while its sandbox is being broken: no reward is made up for what the sandbox did."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from agentflow.agents.react import AgentConfig
from agentflow.agents.scripted import Scripted
from agentflow.environments.coding import Code
from agentflow.errors import RunAborted
from agentflow.policy import ScriptedPolicy
from agentflow.renderer import Renderer
from agentflow.rollout import Collected, Rollout, RolloutConfig
from agentflow.sandbox import base
from agentflow.sandbox.base import Sandbox
from agentflow.sandbox.process import ProcessSandbox
from agentflow.sandbox.process_tree import tree_usage
from agentflow.sandbox.shared import SharedSandbox
from agentflow.trainers.scratch import new_tokenizer
from tests.trusted_sandbox import real_process

pytestmark = real_process
SMALL = {"kinds": ("function", "repair", "compute"), "train_tasks": 24, "heldout_tasks": 6}


class Brittle(Code):
    """The code environment over a sandbox that these tests may break."""

    sandbox: Sandbox

    def make_sandbox(self) -> Sandbox:
        """Return the sandbox of the test."""
        return self.sandbox


def play(sandbox: Sandbox, *, max_failed: float) -> Collected:
    """Let the expert, which makes no mistake, play each task twice."""
    Brittle.sandbox = sandbox
    environment = Brittle(**SMALL)
    tasks = environment.tasks("train")
    tokenizer = new_tokenizer([task.prompt for task in tasks], max_words=200)
    renderer = Renderer(tokenizer, environment.tool_schemas)
    config = AgentConfig(max_call_s=60, max_turn_tokens=2000, max_episode_tokens=20_000)
    agent = Scripted(partial(Brittle, **SMALL), renderer, policy=ScriptedPolicy(lambda prompt: []), config=config)
    return Rollout(agent, RolloutConfig(max_failed_fraction=max_failed)).run(
        tasks, group_size=2, seed=0, label="faults"
    )


@contextmanager
def zygotes_killed(every_s: float) -> Iterator[list[int]]:
    """Kill whatever this process keeps warm, again and again."""
    stop, killed = threading.Event(), []

    def kill() -> None:
        while not stop.wait(every_s):
            for pid in tree_usage(os.getpid()).pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                except ProcessLookupError:
                    continue

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def sandbox() -> Iterator[SharedSandbox]:
    shared = SharedSandbox(ProcessSandbox)
    yield shared
    asyncio.run(shared.close())


def test_no_reward_is_invented_while_zygotes_are_killed(sandbox: SharedSandbox) -> None:
    with zygotes_killed(0.5) as killed:
        collected = play(sandbox, max_failed=1.0)
    assert killed
    kinds = [trajectory.status.kind for trajectory in collected.trajectories]
    assert set(kinds) <= {"completed", "failed"}
    assert kinds.count("completed") > 0
    for trajectory in collected.trajectories:
        if trajectory.status.kind == "completed":
            assert (trajectory.raw_return, trajectory.success) == (1.0, True)
        else:
            assert trajectory.success is None


def test_rollout_without_faults_solves_everything(sandbox: SharedSandbox) -> None:
    played = play(sandbox, max_failed=0.0).trajectories
    found = [(trajectory.status.kind, trajectory.success) for trajectory in played]
    assert found == [("completed", True)] * 48


def test_sandbox_that_never_works_stops_the_run() -> None:
    class Broken:
        name = "broken"

        async def run(self, program: base.Program, limits: base.Limits | None = None) -> base.Result:
            return base.Result("infra_error", detail="no space left on the host")

        async def session(self, limits: base.Limits | None = None) -> base.Session:
            raise NotImplementedError

        async def close(self) -> None:
            return

    with pytest.raises(RunAborted, match="the broken sandbox failed twice: no space left on the host"):
        play(Broken(), max_failed=0.2)
