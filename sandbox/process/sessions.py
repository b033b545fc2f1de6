"""Sessions: a forked interpreter that keeps its variables, and branches of it.

All branches of a session live in one set of namespaces, and one cell runs at a time. The host speaks with each branch
over a socket of its own, packet by packet; code and streams travel as descriptors. What comes back was written by a
process that nobody trusts, and is read as such.
"""

import asyncio
import contextlib
import json
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Annotated, Self

from pydantic import BaseModel, Field, ValidationError

from agentflow.sandbox.base import Limits, Result, SandboxFailure, Session, Status, Usage
from agentflow.sandbox.figures import FigureFile
from agentflow.sandbox.limits.groups import Group, enforced
from agentflow.sandbox.process.guest_python import VALUE_BYTES
from agentflow.sandbox.process.launcher import Event, Launcher, LauncherBroken, spec_of, usage_of
from agentflow.sandbox.streams import Kept, Pipe, memory_file
from agentflow.sandbox.verdict import Ending, judge, result_of
from agentflow.sandbox.waiting import to_the_end

_PACKET_BYTES = 1 << 17
_START_S = 30.0
_LOST_S = 10.0
_FIRST_PID = 2  # process 1 is nobody's branch
_MAX_WORDS = 400
_MAX_HINTS = 64
_MAX_STRAY = 1000
_ENDS = frozenset({"cpu_timeout", "wall_timeout", "memory", "pids", "output_limit", "signal"})
Turn = Callable[[], AbstractAsyncContextManager[object]]


class _Greeting(BaseModel, strict=True):
    """What a branch says first."""

    pid: int = Field(0, ge=0, le=1 << 22)
    refused: str = ""


class _Report(BaseModel, strict=True):
    """What a branch says of a cell."""

    token: str = Field(max_length=64)
    exit_code: int = Field(ge=0, le=255)
    value: str = Field(max_length=VALUE_BYTES)
    words: list[Annotated[str, Field(max_length=_MAX_WORDS)]] = Field(max_length=_MAX_HINTS)


async def open_session(launcher: Launcher, limits: Limits, *, turn: Turn, backend: str) -> Session:
    """Fork an interpreter and wait until it is ready.

    Args:
        launcher: Of the zygote that it is forked from.
        limits: For all cells together, except CPU time, wall time and output.
        turn: Waits until a cell may run.
        backend: Who runs it.

    Raises:
        SandboxFailure: It did not start.
    """
    try:
        family = _Family(launcher, limits, backend=backend)
    except OSError as error:
        raise SandboxFailure(f"a session of the {backend} sandbox did not start: {error}") from None
    try:
        channel = await family.start()
        return await _Branch.greeted(family, channel, turn=turn)
    except BaseException as error:
        await to_the_end(family.end(), give_up=lambda: None)
        if not isinstance(error, LauncherBroken | OSError):
            raise
        raise SandboxFailure(
            f"a session of the {backend} sandbox did not start: {family.what_broke or error}"
        ) from None


class _Family:
    """The processes of one session: its first branch and all copies of it."""

    def __init__(self, launcher: Launcher, limits: Limits, *, backend: str) -> None:
        self.limits = limits
        self.backend = backend
        self.lock = asyncio.Lock()
        self.branches = 0
        self.figures = FigureFile()
        self._launcher = launcher
        self._number = -1
        self._group: Group | None = None
        self._died: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._rested: asyncio.Future[Event] | None = None
        self._stopped: dict[int, Status] = {}
        self._out_of_memory = False

    @property
    def enforced(self) -> tuple[str, ...]:
        return enforced(self._group)

    @property
    def what_broke(self) -> str:
        """What the zygote told of an execution that it could not begin or keep; empty if nothing."""
        return str(self._died.result().get("broken", "")) if self._died.done() else ""

    @property
    def is_over(self) -> bool:
        """Whether no process of it is left."""
        return self._died.done()

    async def start(self) -> socket.socket:
        """Start the first branch and return the host's end of its channel."""
        here, there = _channel()
        with ExitStack() as opened:
            opened.callback(there.close)
            silent = os.open(os.devnull, os.O_RDWR)
            opened.callback(os.close, silent)
            files = {"channel": there.fileno(), "stdout": silent, "stderr": silent, "stdin": silent}
            files["figures"] = self.figures.descriptor
            self._group = Group.create()
            if self._group is not None:
                self._group.limit(self.limits)
                group_files = self._group.open_files()
                for descriptor in group_files.values():
                    opened.callback(os.close, descriptor)
                files |= group_files
            try:
                self._number = await self._launcher.start(spec_of("session", self.limits), files, self._hear)
            except BaseException:
                here.close()
                raise
        return here

    def watch(self, limits: Limits, pid: int) -> None:
        """Begin a cell."""
        self._launcher.ask(self._number, "watch", cpu_s=limits.cpu_s, wall_s=limits.wall_s, pid=pid)

    async def rest(self) -> Usage:
        """End a cell, and return what it used."""
        self._rested = asyncio.get_running_loop().create_future()
        self._launcher.ask(self._number, "rest", cpu_s=self.limits.cpu_s)
        event = await self._first(self._rested)
        self._out_of_memory |= event.get("out_of_memory", False)
        return usage_of(event)

    def stop(self, pid: int, reason: str) -> None:
        """End one branch."""
        self._launcher.ask(self._number, "end", reason=reason, pid=pid)

    def fate(self, pid: int) -> Ending:
        """Say how a branch ended whose channel is closed."""
        if self._died.done():
            event = self._died.result()
            if "broken" in event:
                return Ending(broken=event["broken"])
            self._out_of_memory |= event["out_of_memory"]
            self._stopped.setdefault(pid, event["reason"])
        reason = self._stopped.get(pid) or ("memory" if self._out_of_memory else "signal")
        return Ending(ended_by=reason) if reason in _ENDS else Ending(refused="it was closed")

    def abandon(self, pid: int) -> None:
        """End a branch whose cell nobody waits for; its channel tells when it is over."""
        self._launcher.ask(self._number, "end", reason="abandoned", pid=pid if self.branches > 1 else None)

    def give_up(self) -> None:
        """End the zygote, which no longer answers."""
        self._launcher.close()

    async def end(self) -> None:
        """End every branch, and wait for their death."""
        if self._number >= 0 and not self._died.done():
            self._launcher.ask(self._number, "end", reason="closed", pid=None)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._died), _LOST_S)
        self.figures.close()
        if self._group is not None:
            await asyncio.to_thread(self._group.close)  # it waits for the last process

    async def _first(self, wanted: asyncio.Future[Event]) -> Event:
        await asyncio.wait({wanted, self._died}, timeout=_LOST_S, return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            return wanted.result()
        return self._died.result() if self._died.done() else {}

    def _hear(self, event: Event) -> None:
        kind = event["event"]
        if kind == "died" and not self._died.done():
            self._died.set_result(event)
        elif kind == "rests" and self._rested is not None and not self._rested.done():
            self._rested.set_result(event)
        elif kind == "stopped":
            self._stopped[event["pid"]] = event["reason"]


class _Branch:
    """One interpreter of a family."""

    def __init__(self, family: _Family, channel: socket.socket, *, turn: Turn) -> None:
        self._family = family
        self._channel = channel
        self._turn = turn
        self._pid = 0
        self._why_over = ""
        self._work: asyncio.Future[Result] | None = None
        family.branches += 1

    @classmethod
    async def greeted(cls, family: _Family, channel: socket.socket, *, turn: Turn) -> Self:
        """Wait for its first word.

        Raises:
            OSError: There was none.
        """
        branch = cls(family, channel, turn=turn)
        try:
            packet = await asyncio.wait_for(branch._receive(), _START_S)
            word = _Greeting.model_validate_json(packet or b"{}")
            if word.pid < _FIRST_PID:
                raise OSError(word.refused[:_MAX_WORDS] or "the interpreter ended before it began")
        except ValidationError:
            branch._leave("it did not begin")
            raise OSError("the interpreter does not say who it is") from None
        except BaseException:
            branch._leave("it did not begin")
            raise
        branch._pid = word.pid
        return branch

    async def exec(self, code: str, *, limits: Limits | None = None) -> Result:
        """Run a cell; see `Session`."""
        used = limits or self._family.limits
        async with self._family.lock, self._turn():
            if self._family.is_over and not self._why_over:
                ending = self._family.fate(self._pid)
                self._leave(ending.broken or ending.refused or "it used too much between its cells")
                if ending.broken:
                    return Result("infra_error", detail=ending.broken, backend=self._family.backend)
            if self._why_over:
                return Result("refused", detail=f"the session is over: {self._why_over}", backend=self._family.backend)
            self._work = asyncio.ensure_future(self._exec(code, used))
            try:
                return await to_the_end(self._work, give_up=lambda: self._family.abandon(self._pid))
            finally:
                self._work = None

    async def fork(self) -> "_Branch":
        """Return a copy; see `Session`.

        Raises:
            SandboxFailure: The session is over, or may have no further process.
        """
        async with self._family.lock:
            if self._why_over:
                raise SandboxFailure(f"a session that is over cannot be copied: {self._why_over}")
            here, there = _channel()
            try:
                with there:
                    socket.send_fds(self._channel, [b'{"op": "fork"}'], [there.fileno()])
                return await _Branch.greeted(self._family, here, turn=self._turn)
            except OSError as error:
                here.close()
                raise SandboxFailure(f"a session cannot be copied: {error}") from None

    async def close(self) -> None:
        """End it; with the last branch everything ends."""
        if self._work is not None:
            self._family.abandon(self._pid)
            await asyncio.wait([self._work])
        self._leave("it was closed")
        if not self._family.branches:
            await self._family.end()

    async def __aenter__(self) -> Self:
        """Return the session."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()

    async def _exec(self, code: str, limits: Limits) -> Result:
        family = self._family
        kept, usage = [Kept(limits.output_kb << 10) for _ in range(2)], Usage()
        with ExitStack() as opened:
            stop: Callable[[], None] = lambda: family.stop(self._pid, "output_limit")  # noqa: E731
            try:
                streams = [opened.enter_context(Pipe(each, stop)) for each in kept]
                source = opened.enter_context(memory_file(code.encode("utf-8", "surrogatepass")))
            except OSError as error:  # the session does not mind
                return Result("infra_error", detail=f"the cell was not begun: {error}", backend=self._family.backend)
            try:
                report = await self._exchange(source, limits, streams=streams)
            except TimeoutError:  # the zygote, which ends a cell in time, hangs
                report = None
                family.give_up()
            except (LauncherBroken, OSError):  # its end of the channel is closed
                report = None
            with contextlib.suppress(LauncherBroken):
                usage = await family.rest()
        if report is None:
            ending = family.fate(self._pid)
            self._leave(f"its last cell ended with {judge(ending, limits)[0]}")
        else:
            ending = Ending(code=report.exit_code, met=report.words)
        stdout, stderr = (each.output() for each in kept)
        result = result_of(
            replace(ending, stdout=stdout, stderr=stderr),
            limits,
            backend=family.backend,
            enforced=family.enforced,
            value=report.value if report is not None else "",
            figures=family.figures.take(),
        )
        return replace(result, usage=usage)  # a cell that came to its end is judged by no clock

    async def _exchange(self, source: int, limits: Limits, *, streams: list[Pipe]) -> _Report | None:
        """Send a cell and return its report; None if the branch ended, or speaks nonsense."""
        self._family.watch(limits, self._pid)
        token = secrets.token_hex(8)
        told = json.dumps({"op": "exec", "token": token}).encode()
        socket.send_fds(self._channel, [told], [source, *(stream.writing for stream in streams)])
        for stream in streams:
            stream.close_writing()
        async with asyncio.timeout(limits.wall_s + _LOST_S):
            return await self._report(token)

    async def _report(self, token: str) -> _Report | None:
        """Read until the report of the cell that was given a token; earlier cells may have written for later ones."""
        for _ in range(_MAX_STRAY):
            packet = await self._receive()
            try:
                report = _Report.model_validate_json(packet) if packet else None
            except ValidationError:
                report = None
            if report is None or report.token == token:
                return report
        return None

    async def _receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._channel, _PACKET_BYTES)

    def _leave(self, why: str) -> None:
        """Be over."""
        if not self._why_over:
            self._why_over = why
            self._family.branches -= 1
            self._channel.close()
            if self._pid and self._family.branches:
                self._family.stop(self._pid, "closed")


def _channel() -> tuple[socket.socket, socket.socket]:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setblocking(False)
    return here, there
