"""A sandbox for the tests' own programs: a plain subprocess with limits, which contains nobody."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from agentflow.sandbox.base import Limits, Output, Program, Result, Sandbox, Session
from agentflow.sandbox.process.backend import ProcessSandbox


def namespaces_work() -> bool:
    """Say whether an unprivileged process may make namespaces here."""
    words = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "true"]
    return subprocess.run(words, check=False, timeout=60).returncode == 0


real_process = pytest.mark.skipif(not namespaces_work(), reason="this kernel gives no user namespaces here")
LIMITS = Limits(cpu_s=2.0, wall_s=3.0, memory_mb=400)


class TrustedSubprocess:
    """Run programs that the tests wrote, and no others, in a subprocess of this interpreter.

    Args:
        broken: How many of the first executions fail as if the sandbox had broken.
    """

    name = "trusted"

    def __init__(self, broken: int = 0) -> None:
        self.programs: list[Program] = []
        self.broken = broken

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        """Run a program."""
        self.programs.append(program)
        if self.broken:
            self.broken -= 1
            return Result("infra_error", detail="the launcher is gone")
        return await asyncio.to_thread(_run, program, limits or LIMITS)

    async def session(self, limits: Limits | None = None) -> Session:
        """Sessions are not to be had here."""
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is kept."""


def _run(program: Program, limits: Limits) -> Result:
    # Not `preexec_fn`, which may wait for ever in a process with threads.
    words = ["prlimit", f"--as={limits.memory_mb << 20}", sys.executable, "-I", "-c", program.code]
    try:
        done = subprocess.run(words, input=program.stdin, capture_output=True, timeout=limits.wall_s, check=False)
    except subprocess.TimeoutExpired as late:
        return Result("wall_timeout", stdout=_kept(late.stdout, limits), stderr=_kept(late.stderr, limits))
    out, err = _kept(done.stdout, limits), _kept(done.stderr, limits)
    if done.returncode < 0:
        return Result("signal", signal=-done.returncode, stdout=out, stderr=err)
    status: Any = "nonzero_exit" if done.returncode else "ok"
    return Result(status, exit_code=done.returncode, stdout=out, stderr=err, backend="trusted")


def _kept(text: bytes | None, limits: Limits) -> Output:
    text, half = text or b"", limits.output_kb * 512
    if len(text) <= 2 * half:
        return Output(text, b"", len(text))
    return Output(text[:half], text[-half:], len(text))


def sandboxes() -> Sequence[Any]:
    """Return what tests run over: the stand-in, and the real ones where they run."""
    return ("trusted", pytest.param("process", marks=real_process))


def make_sandbox(name: str) -> Sandbox:
    """Return a sandbox of `sandboxes()`."""
    made: dict[str, Callable[[], Sandbox]] = {
        "trusted": TrustedSubprocess,
        "process": ProcessSandbox,
    }
    return made[name]()
