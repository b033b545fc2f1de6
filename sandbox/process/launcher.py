"""The host's side of a zygote: start it, ask it for executions, hear how they ended."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from agentflow import version
from agentflow.sandbox.base import ENVIRONMENT, Limits, Usage, max_files

_PACKET_BYTES = 1 << 17
_BOOT_S = 60.0
_DYING_S = 2.0  # the event loop waits meanwhile; what was killed takes milliseconds
# Where this package lies is said over the socket, because programs can read the command line.
_CODE = """
import json, socket, sys
control = socket.socket(fileno=int(sys.argv.pop()))
asked = json.loads(control.recv(1 << 16))
is_foreign = asked["source"] not in sys.path
if is_foreign: sys.path.insert(0, asked["source"])
from agentflow.sandbox.process.zygote import main
if is_foreign: sys.path.remove(asked["source"])
main(control, user=asked["user"], packages=asked["packages"], preload=asked["preload"])
"""
_SOURCE = str(Path(version.__file__).parent.parent)
Event = dict[str, Any]


def spec_of(kind: str, limits: Limits) -> Event:
    """Return what a zygote must know to begin an execution: a `run` or a `session`."""
    return {"kind": kind, "max_files": max_files(limits.disk_mb), **limits.model_dump()}


def usage_of(event: Mapping[str, Any]) -> Usage:
    """Return what an execution used, as its zygote told."""
    return Usage(*(float(event.get(name, 0.0)) for name in ("cpu_s", "wall_s", "memory_mb")))


class LauncherBroken(Exception):
    """The zygote did not start, or died."""


@dataclass(frozen=True, slots=True)
class _Packet:
    """What the zygote has not taken yet.

    Attributes:
        data: The packet.
        files: Descriptors that go with it; where it waits, copies of its own.
        starts: The execution that it begins; None if it begins none.
    """

    data: bytes
    files: Sequence[int]
    starts: int | None


class Launcher:
    """One zygote; it belongs to the event loop that started it.

    Args:
        user: Whom it becomes, where this process is root; None where it is not.
        preload: Modules that it imports once.
        packages: What programs may see of the installed packages, see `packages.shown_paths`.
    """

    def __init__(self, user: int | None, preload: Sequence[str], packages: Sequence[str]) -> None:
        self._told = {"source": _SOURCE, "user": user, "packages": list(packages), "preload": list(preload)}
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._numbers = count()
        self._ready: asyncio.Future[None] | None = None
        self._listeners: dict[int, Callable[[Event], None]] = {}
        self._waiting: deque[_Packet] = deque()

    @property
    def pid(self) -> int:
        """Its process; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    async def start(self, spec: Mapping[str, Any], files: Mapping[str, int], listen: Callable[[Event], None]) -> int:
        """Begin an execution, starting the zygote if need be; its events go to `listen`, `died` being the last.

        Raises:
            LauncherBroken: It does not start.
            OSError: The host cannot pass the files on; other executions of the zygote do not mind.
        """
        await self._ensure_ready()
        number = next(self._numbers)
        self._listeners[number] = listen
        words = {"op": "start", "number": number, "names": list(files), "spec": dict(spec)}
        try:
            self._send(words, list(files.values()), starts=number)
        except OSError:
            del self._listeners[number]
            raise
        return number

    def ask(self, number: int, op: str, **words: Any) -> None:
        """Ask something of an execution under way; one that has ended does not mind."""
        if number in self._listeners:
            self._send({"op": op, "number": number, **words})

    def close(self) -> None:
        """End the zygote, and with it everything that it started."""
        self._lose("the sandbox was closed")

    async def _ensure_ready(self) -> None:
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
            try:
                self._spawn()
            except OSError as error:
                self._lose(f"the zygote cannot be started: {error}")
                raise LauncherBroken(str(error)) from None
        ready = self._ready
        if ready.done():  # spare it the turns of the loop that waiting takes
            return ready.result()
        try:
            await asyncio.wait_for(asyncio.shield(ready), _BOOT_S)
        except TimeoutError:
            self._lose(f"the zygote was not ready within {_BOOT_S:.0f} s")
            raise LauncherBroken("the zygote does not start in time") from None

    def _spawn(self) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = here
        here.setblocking(False)
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-P", "-B", "-c", _CODE, str(there.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[there.fileno()],
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        self._send(self._told)
        asyncio.get_running_loop().add_reader(here, self._hear)

    def _send(self, what: Mapping[str, Any], files: Sequence[int] = (), *, starts: int | None = None) -> None:
        if self._control is None:
            raise LauncherBroken("the zygote has ended")
        packet = _Packet(json.dumps(what).encode(), files, starts)
        if not self._waiting and self._is_sent(packet):
            return
        self._waiting.append(_Packet(packet.data, _copies(files), starts))
        asyncio.get_running_loop().add_writer(self._control, self._send_waiting)

    def _send_waiting(self) -> None:
        while self._waiting:
            packet = self._waiting.popleft()
            if not self._is_sent(packet):
                self._waiting.appendleft(packet)
                return
            _close_all(packet.files)
        if self._control is not None:
            asyncio.get_running_loop().remove_writer(self._control)

    def _is_sent(self, packet: _Packet) -> bool:
        """Send a packet, whatever comes of it; False if the zygote must first take what it was sent before."""
        if self._control is None:
            return True
        try:
            socket.send_fds(self._control, [packet.data], packet.files)
        except BlockingIOError:  # very many sessions speak at once
            return False
        except OSError as error:
            if packet.starts is None or isinstance(error, ConnectionError):
                self._lose(f"the zygote does not listen: {error}")
            else:
                self._take({"event": "died", "number": packet.starts, "broken": f"it cannot be started: {error}"})
        return True

    def _hear(self) -> None:
        while self._control is not None:
            try:
                packet = self._control.recv(_PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._lose("")
                return
            self._take(json.loads(packet))

    def _take(self, event: Event) -> None:
        kind = event["event"]
        if kind == "ready" and self._ready is not None:
            self._ready.set_result(None)
        elif kind == "failed":
            self._lose(event["detail"])
        elif kind == "died":
            self._listeners.pop(event["number"])(event)
        elif event["number"] in self._listeners:
            self._listeners[event["number"]](event)

    def _lose(self, reason: str) -> None:
        """Forget a zygote that is gone or must go; the next execution starts another."""
        control, self._control = self._control, None
        process, self._process = self._process, None
        ready, self._ready = self._ready, None
        if control is not None:
            asyncio.get_running_loop().remove_reader(control)
            asyncio.get_running_loop().remove_writer(control)
            control.close()
        while self._waiting:
            _close_all(self._waiting.popleft().files)
        said = _end(process) if process is not None else ""
        detail = reason or f"the zygote died. {said}".strip()
        if ready is not None and not ready.done():
            ready.set_exception(LauncherBroken(detail))
            ready.exception()  # whoever waits has it; without this, asyncio complains where nobody does
        listeners, self._listeners = self._listeners, {}
        for listen in listeners.values():
            listen({"event": "died", "broken": detail})


def _copies(files: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        for descriptor in files:
            copies.append(os.dup(descriptor))
    except OSError:
        _close_all(copies)
        raise
    return copies


def _close_all(files: Sequence[int]) -> None:
    for descriptor in files:
        os.close(descriptor)


def _end(process: "subprocess.Popen[bytes]") -> str:
    """Kill a zygote, whose executions die with it, and return its last words."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel holds on to it: it is buried later
        process.wait(_DYING_S)
    assert process.stderr is not None
    with process.stderr as stream:
        os.set_blocking(stream.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            return os.read(stream.fileno(), 1 << 16).decode("utf-8", "replace")[-400:]
    return ""
