"""The probe: what holds is found, and what does not is named with its reason."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

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


_WITHOUT_NAMESPACES = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'


@real_process
def test_host_without_user_namespaces_is_told_the_three_ways_out(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print(1)")
    inside = ["unshare", "--user", "--map-root-user", "sh", "-c", _WITHOUT_NAMESPACES, "sh"]
    environment = {**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    command = [*inside, sys.executable, "-m", "agentflow", "sandbox", "run", str(tmp_path / "a.py")]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    for words in (
        "user.max_user_namespaces",
        "apparmor_restrict",
        "agentflow sandbox image",
        "agentflow sandbox serve",
    ):
        assert words in done.stderr
