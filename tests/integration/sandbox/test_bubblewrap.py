"""The bubblewrap backend: the contract, and what is its own."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentflow.sandbox.base import Limits, Program, Result, SandboxUnavailable
from agentflow.sandbox.bubblewrap import BubblewrapSandbox
from agentflow.sandbox.probe import open_sandbox, probe
from agentflow.sandbox.process_tree import tree_usage
from agentflow.sandbox.shared import SharedSandbox
from tests.integration.sandbox.contract import *  # noqa: F403
from tests.integration.sandbox.contract import LIMITS
from tests.trusted_sandbox import TrustedSubprocess, real

pytestmark = real


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SharedSandbox]:
    shared = SharedSandbox(BubblewrapSandbox)
    yield shared
    asyncio.run(shared.close())


@pytest.fixture
def num_left() -> Callable[[], int]:
    before = tree_usage(os.getpid()).pids
    return lambda: len(tree_usage(os.getpid()).pids - before)


def test_launcher_that_fails_is_no_verdict_on_the_program() -> None:
    async def play() -> Result:
        return await BubblewrapSandbox(python="/nowhere/python").run(Program("print(1)"), LIMITS)

    assert asyncio.run(play()).status == "infra_error"


def test_launcher_that_is_killed_is_no_verdict_on_the_program_and_says_so() -> None:
    async def play() -> Result:
        sandbox, others = BubblewrapSandbox(1), tree_usage(os.getpid()).pids
        running = asyncio.ensure_future(sandbox.run(Program("import time; time.sleep(60)"), Limits(wall_s=60)))
        while not (begun := tree_usage(os.getpid()).pids - others) and not running.done():
            await asyncio.sleep(0.01)
        os.kill(min(begun), signal.SIGKILL)
        result = await running
        await sandbox.close()
        return result

    result = asyncio.run(play())
    assert result.status == "infra_error"
    assert "the launcher ended with -9" in result.detail


def test_probe_finds_what_holds_and_what_does_not() -> None:
    async def chosen() -> str:
        sandbox = await open_sandbox()
        await sandbox.close()
        return sandbox.name

    assert "reached the host's loopback, a file of the host" in asyncio.run(probe(Rootless()))
    assert asyncio.run(chosen()) == "process"
    with pytest.raises(SandboxUnavailable, match=r"no sandbox 'nothing'.*Known: auto, process, bubblewrap, docker"):
        asyncio.run(open_sandbox("nothing"))


class Rootless(TrustedSubprocess):
    """The stand-in, which contains nobody, with a user's number that does not give it away."""

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        code = program.code.replace("os.getuid()", "1000")
        return await super().run(Program(code, stdin=program.stdin), limits)


def test_no_interpreter_is_kept_for_sessions() -> None:
    with pytest.raises(SandboxUnavailable, match="keeps no interpreter"):
        asyncio.run(BubblewrapSandbox().session())


def test_missing_bubblewrap_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match=r"There is no bwrap on the PATH.*apt-get install bubblewrap"):
        BubblewrapSandbox()
    with pytest.raises(SandboxUnavailable, match=r"bubblewrap: There is no bwrap on the PATH"):
        asyncio.run(open_sandbox("bubblewrap"))
