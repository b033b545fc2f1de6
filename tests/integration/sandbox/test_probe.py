"""The probe: what holds is found, and what does not is named with its reason."""

import asyncio

import pytest

from agentflow.sandbox.base import Limits, Program, Result, SandboxUnavailable
from agentflow.sandbox.probe import open_sandbox, probe
from tests.trusted_sandbox import TrustedSubprocess, real_process


class Rootless(TrustedSubprocess):
    """The stand-in, which contains nobody, with a user's number that does not give it away."""

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        code = program.code.replace("os.getuid()", "1000")
        return await super().run(Program(code, stdin=program.stdin), limits)


@real_process
def test_probe_finds_what_holds_and_what_does_not() -> None:
    async def chosen() -> str:
        sandbox = await open_sandbox()
        await sandbox.close()
        return sandbox.name

    assert "reached the host's loopback, a file of the host" in asyncio.run(probe(Rootless()))
    assert asyncio.run(chosen()) == "process"


def test_unknown_sandbox_is_named_beside_those_there_are() -> None:
    with pytest.raises(SandboxUnavailable, match=r"no sandbox 'nothing'.*Known: auto, process, docker, http"):
        asyncio.run(open_sandbox("nothing"))
