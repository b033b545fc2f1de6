"""Rollouts of the code environment while its sandbox is being broken: no reward is made up for what the sandbox did."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from agentflow.errors import RunAborted
from agentflow.sandbox import base
from agentflow.sandbox.limits.process_tree import tree_usage
from agentflow.sandbox.process.backend import ProcessSandbox
from agentflow.sandbox.shared import SharedSandbox
from tests.integration.brittle import invented, play
from tests.trusted_sandbox import real_process

pytestmark = real_process


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

    thread = threading.Thread(target=kill, daemon=True)
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
    assert kinds.count("completed") > 0
    assert not invented(collected)


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
