"""The bubblewrap backend and the probe of all backends."""

import asyncio
import os
import time

import pytest

from agentflow.sandbox.base import Limits, Program, Result, Sandbox, SandboxUnavailable
from agentflow.sandbox.bubblewrap import BubblewrapSandbox
from agentflow.sandbox.probe import open_sandbox, probe
from agentflow.sandbox.process_tree import tree_usage
from tests.trusted_sandbox import TrustedSubprocess, real

pytestmark = real
LIMITS = Limits(cpu_s=1.0, wall_s=4.0, memory_mb=160, disk_mb=8, max_processes=8, output_kb=4)


def test_caller_that_gives_up_leaves_nothing_behind() -> None:
    async def play() -> Result:
        sandbox = BubblewrapSandbox(concurrency=1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await sandbox.run(Program("import time; time.sleep(60)"), Limits())
        assert not tree_usage(os.getpid()).pids
        return await sandbox.run(Program("print('next')"), LIMITS)

    started = time.monotonic()
    assert asyncio.run(play()).stdout.text == "next\n"
    assert time.monotonic() - started < 30


def test_launcher_that_fails_is_no_verdict_on_the_program() -> None:
    async def play() -> Result:
        return await BubblewrapSandbox(python="/nowhere/python").run(Program("print(1)"), LIMITS)

    result = asyncio.run(play())
    assert result.status in ("infra_error", "nonzero_exit")
    assert result.status == "infra_error", result


def test_probe_finds_what_holds_and_what_does_not() -> None:
    async def chosen() -> str:
        sandbox = await open_sandbox()
        await sandbox.close()
        return sandbox.name

    assert asyncio.run(probe(BubblewrapSandbox())) == ""
    assert "reached the host's loopback, a file of the host" in asyncio.run(probe(Rootless()))
    assert asyncio.run(chosen()) == "process"
    with pytest.raises(SandboxUnavailable, match=r"no sandbox 'nothing'.*Known: auto, process, bubblewrap"):
        asyncio.run(open_sandbox("nothing"))


class Rootless(TrustedSubprocess):
    """The stand-in, which contains nobody, with a user's number that does not give it away."""

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        code = program.code.replace("os.getuid()", "1000")
        return await super().run(Program(code, stdin=program.stdin), limits)


def test_backend_keeps_to_the_protocol() -> None:
    assert isinstance(BubblewrapSandbox(), Sandbox)
    with pytest.raises(SandboxUnavailable, match="keeps no interpreter"):
        asyncio.run(BubblewrapSandbox().session())
