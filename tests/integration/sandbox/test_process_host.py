"""The process backend where its host is short of something, or its callers come and go."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agentflow.sandbox.base import Limits, Program, Result
from agentflow.sandbox.limits import groups
from agentflow.sandbox.limits.process_tree import tree_usage
from agentflow.sandbox.process.backend import ProcessSandbox
from agentflow.sandbox.streams import Kept, Pipe
from tests.integration.sandbox.contract import LIMITS
from tests.integration.sandbox.test_process import play
from tests.processes import started
from tests.trusted_sandbox import real_process

pytestmark = real_process

_IN_A_GROUP = """
from agentflow.sandbox.limits.groups import Group
import os
group = Group.create()
if group is not None:
    print(os.getpid(), group.folders["memory"].name, flush=True)
    input()
    group.close()
"""
_MANY_SESSIONS = """
import asyncio, resource
from contextlib import AsyncExitStack
from agentflow.sandbox.base import Limits, SandboxFailure
from agentflow.sandbox.process.backend import ProcessSandbox

async def main():
    sandbox, opened = ProcessSandbox(1), []
    async with AsyncExitStack() as closing:
        closing.push_async_callback(sandbox.close)
        try:
            for _ in range(20):
                opened.append(await closing.enter_async_context(await sandbox.session(Limits())))
        except SandboxFailure as refusal:
            print(refusal)
        await opened.pop(0).close()
        opened.append(await closing.enter_async_context(await sandbox.session(Limits())))
        for session in opened:
            print((await session.exec("6 * 7")).value)

resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
asyncio.run(main())
"""
_TALKS = """
import socket
with socket.create_server(("127.0.0.1", 4242)) as server, socket.create_connection(("127.0.0.1", 4242)) as client:
    accepted, _ = server.accept()
    accepted.close()
    client.recv(1)
counters = [line.split() for line in open("/proc/net/snmp") if line.startswith("Tcp:")]
print(dict(zip(*counters))["PassiveOpens"])
"""


def children(*besides: int) -> frozenset[int]:
    return tree_usage(os.getpid()).pids - frozenset(besides)


@contextmanager
def without_descriptors(but: int) -> Iterator[None]:
    """Leave this process a few descriptors and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + but + 8, hard))
    try:
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        for _ in range(but):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


def test_network_of_one_program_is_not_that_of_the_next() -> None:
    async def work(sandbox: ProcessSandbox) -> list[str]:
        return [(await sandbox.run(Program(_TALKS), LIMITS)).stdout.text for _ in range(3)]

    # A port that the one before has left waiting could not be bound again, and its connections would be counted.
    assert play(work, concurrency=1) == ["1\n"] * 3


def test_zygote_without_descriptors_refuses_sessions_and_keeps_those_it_has() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MANY_SESSIONS], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    refusal, *values = done.stdout.splitlines()
    assert "80 files" in refusal
    assert "ulimit -Hn" in refusal
    assert len(values) > 3
    assert set(values) == {"42"}


def test_session_that_nobody_waits_for_leaves_no_control_group() -> None:
    async def work(sandbox: ProcessSandbox) -> None:
        await (await sandbox.session(LIMITS)).close()
        before = len(groups.existing())
        for turns in range(40):
            opening = asyncio.ensure_future(sandbox.session(LIMITS))
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            (outcome,) = await asyncio.gather(opening, return_exceptions=True)
            if not isinstance(outcome, BaseException):
                await outcome.close()
            assert len(groups.existing()) == before

    play(work, concurrency=1)


def test_program_that_is_cancelled_twice_keeps_its_slot_until_it_has_ended() -> None:
    async def work(sandbox: ProcessSandbox) -> Result:
        others = children()
        await sandbox.run(Program("pass"), LIMITS)
        (zygote,) = children(*others)
        running = asyncio.ensure_future(sandbox.run(Program("import time; time.sleep(60)"), Limits()))
        await asyncio.sleep(0.3)
        os.kill(zygote, signal.SIGSTOP)
        try:
            for _ in range(3):
                running.cancel()
                await asyncio.sleep(0.1)
            assert not running.done()
        finally:
            os.kill(zygote, signal.SIGCONT)
        with pytest.raises(asyncio.CancelledError):
            await running
        assert children(*others) == {zygote}
        return await sandbox.run(Program("print('next')"), LIMITS)

    assert play(work, concurrency=1).stdout.text == "next\n"


def test_host_without_descriptors_starts_nothing_and_loses_nothing() -> None:
    code = "print(1)  # numpy"  # of the same zygote as the session

    async def work(sandbox: ProcessSandbox) -> list[Result]:
        async with await sandbox.session(LIMITS) as session:
            await session.exec("x = 6")
            before = len(os.listdir("/proc/self/fd"))
            short, cells = [], []
            for but in range(7):
                with without_descriptors(but):
                    short.append(await sandbox.run(Program(code), LIMITS))
                with without_descriptors(min(but, 3)):
                    cells.append(await session.exec("x = 7"))
            assert {result.status for result in (*short, *cells)} == {"infra_error"}
            assert all("Too many open files" in result.detail for result in (*short, *cells))
            assert len(os.listdir("/proc/self/fd")) == before
            return [await session.exec("x"), await sandbox.run(Program(code), LIMITS)]

    cell, program = play(work, concurrency=1)
    assert (cell.value, program.stdout.text) == ("6", "1\n")
    assert program.enforced == cell.enforced  # a host that is short of descriptors has control groups all the same


def test_zygote_that_does_not_listen_holds_nobody_up() -> None:
    async def work(sandbox: ProcessSandbox) -> tuple[float, Result]:
        others = children()
        async with await sandbox.session(LIMITS) as session:
            zygote = min(children(*others))
            os.kill(zygote, signal.SIGSTOP)
            started = time.monotonic()
            try:
                for _ in range(2000):
                    session._family.watch(LIMITS, 2)  # type: ignore[attr-defined]
                waited_s = time.monotonic() - started
                late = asyncio.ensure_future(sandbox.run(Program("print(1)  # numpy"), LIMITS))
                await asyncio.sleep(0.1)
            finally:
                os.kill(zygote, signal.SIGCONT)
            assert (await session.exec("6 * 7")).value == "42"
            return waited_s, await late

    waited_s, late = play(work, concurrency=2)
    assert waited_s < 2
    assert late.stdout.text == "1\n"


@pytest.mark.skipif(os.getuid() != 0, reason="a new namespace of processes takes root")
def test_groups_of_two_containers_that_number_their_processes_alike_are_two() -> None:
    words = ["unshare", "--pid", "--fork", sys.executable, "-c", _IN_A_GROUP]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with started(words, **pipes) as one, started(words, **pipes) as other:
        assert one.stdout is not None and other.stdout is not None
        said = [stream.readline().split() for stream in (one.stdout, other.stdout)]
        for process in (one, other):
            process.communicate("\n", timeout=60)
    if not all(said):
        pytest.skip("there are no control groups here")
    (first_pid, first), (second_pid, second) = said
    assert first_pid == second_pid
    assert first != second


_LEAVES_A_SANDBOX = """
import asyncio, os, sys
from agentflow.sandbox.limits import groups
from agentflow.sandbox.base import Program
from agentflow.sandbox.shared import shared_sandbox
sandbox = shared_sandbox("process")
asyncio.run(sandbox.run(Program("pass")))
session = asyncio.run(sandbox.session())
asyncio.run(session.exec("import os\\nif not os.fork():\\n  while True: os.getppid()"))
print(*{folder.name for folder in groups.existing()}, flush=True)
input()
"""


def leftover(names: set[str]) -> set[str]:
    return {name for _, folders, _ in os.walk("/sys/fs/cgroup") for name in folders if name in names}


@pytest.mark.parametrize("number", [0, signal.SIGKILL])
def test_groups_of_an_ended_process_do_not_stay(number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _LEAVES_A_SANDBOX], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        names = set(process.stdout.readline().split())
        if not names:
            pytest.skip("there are no control groups here")
        again = subprocess.run([sys.executable, "-c", _IN_A_GROUP], input="\n", text=True, check=True, timeout=60)
        assert leftover(names) == names, "groups of a living process were removed"
        process.send_signal(number) if number else process.communicate("\n", timeout=60)
        process.wait(60)
    if number:
        # Its zygotes notice, and end their programs, within a moment; the next process removes the groups.
        deadline = time.monotonic() + 30
        while leftover(names) and time.monotonic() < deadline:
            again = subprocess.run([sys.executable, "-c", _IN_A_GROUP], input="\n", text=True, check=True, timeout=60)
    assert again.returncode == 0
    assert leftover(names) == set()


@pytest.mark.skipif(os.getuid() != 0, reason="a new namespace of processes takes root")
def test_groups_of_another_container_stay() -> None:
    # A process number that is nobody's here.
    numbered = 'echo 4190000 > /proc/sys/kernel/ns_last_pid; "$@"; :'
    words = ["unshare", "--pid", "--fork", "sh", "-c", numbered, "sh", sys.executable, "-c", _IN_A_GROUP]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with started(words, **pipes) as other:
        assert other.stdout is not None
        said = other.stdout.readline().split()
        if not said or os.path.exists(f"/proc/{said[0]}"):
            pytest.skip("there are no control groups here, or processes cannot be numbered")
        name = said[1]
        subprocess.run([sys.executable, "-c", _IN_A_GROUP], input="\n", text=True, check=True, timeout=60)
        assert leftover({name}) == {name}
        other.communicate("\n", timeout=60)


_TRACES = """
import ctypes, sys
SEIZE = 0x4206
print(ctypes.CDLL(None).ptrace(SEIZE, int(sys.argv[1]), None, None), flush=True)
input()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="tracing a process of another user takes root")
def test_zygote_that_the_kernel_holds_on_to_does_not_hold_up_the_loop() -> None:
    async def work(sandbox: ProcessSandbox) -> float:
        others = children()
        await sandbox.run(Program("pass"), LIMITS)
        (zygote,) = children(*others)
        # Until its tracer has buried it, its parent cannot.
        words = [sys.executable, "-c", _TRACES, str(zygote)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tracer:
            assert tracer.stdout is not None
            try:
                if tracer.stdout.readline() != "0\n":
                    pytest.skip("tracing is not allowed here")
                ended = threading.Timer(20, tracer.kill)
                ended.start()
                started = time.monotonic()
                await sandbox.close()
                seconds = time.monotonic() - started
                ended.cancel()
            finally:
                tracer.kill()
        await asyncio.sleep(0.1)
        subprocess.Popen(["true"]).wait()  # which buries others too
        return seconds

    assert play(work, concurrency=1) < 15


def test_control_group_that_is_slow_to_empty_does_not_hold_up_the_loop() -> None:
    group = groups.Group.create()
    if group is None:
        pytest.skip("there are no control groups here")
    group.close()
    with subprocess.Popen(["sleep", "60"]) as stays:

        async def work(sandbox: ProcessSandbox) -> float:
            before = groups.existing()
            await sandbox.run(Program("pass"), LIMITS)
            for folder in set(groups.existing()) - set(before):
                (folder / "cgroup.procs").write_text(str(stays.pid))
            closing, longest_s = asyncio.ensure_future(sandbox.close()), 0.0
            for _ in range(20):
                started = time.monotonic()
                await asyncio.sleep(0.05)
                longest_s = max(longest_s, time.monotonic() - started)
            assert not closing.done()
            stays.kill()
            await closing
            return longest_s

        assert play(work, concurrency=1) < 3


class _Answered(Kept):
    """Each read is answered by a write, as by a program that has survived: 64 MB of them, so that this can fail."""

    writing = -1
    num_left = 1 << 10

    def add(self, data: bytes) -> None:
        super().add(data)
        self.num_left -= 1
        if self.num_left:
            os.write(self.writing, b"x" * (1 << 16))


def test_pipe_that_is_written_without_end_can_be_closed() -> None:
    async def close() -> int:
        kept = _Answered(1 << 10)
        pipe = Pipe(kept, lambda: None)
        kept.writing = os.dup(pipe.writing)
        os.write(kept.writing, b"x")
        pipe.close()
        os.close(kept.writing)
        return kept.num_left

    assert asyncio.run(close()) > 1000
