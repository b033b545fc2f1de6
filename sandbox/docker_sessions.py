"""The host's side of a session in a container: what a zygote is to the sessions of the process backend.

A session speaks with its branches over local sockets and pipes, wherever they run. A thread of this module stands in
for the branches there, and carries what both sides say through the one connection that a container has.
"""

import asyncio
import json
import os
import select
import selectors
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from threading import Thread
from typing import Any

from agentflow.sandbox.base import Limits
from agentflow.sandbox.container import Container, Frames
from agentflow.sandbox.execution import file_bytes, memory_bytes
from agentflow.sandbox.figures import MAX_WRITTEN_BYTES
from agentflow.sandbox.launcher import Event

_CHUNK_BYTES, _PACKET_BYTES = 1 << 16, 1 << 16
_MAX_FILES = 3
_STDOUT = 1
_LAST_WORDS = 400
_TICK_MS = 50
Listener = Callable[[Event], None]


class ContainerLauncher:
    """Start and watch one session in a container of its own; see `Launcher`, whose verbs it has.

    Args:
        limits: What all its cells may use together.
        take: Returns a container that waits, or raises LauncherBroken.
    """

    def __init__(self, limits: Limits, take: Callable[[], Container]) -> None:
        self._limits = limits
        self._take = take
        self._relay: _Relay | None = None

    async def start(self, spec: Mapping[str, Any], files: Mapping[str, int], listen: Listener) -> int:
        """Start the interpreter.

        Raises:
            LauncherBroken: There is no container for it.
        """
        channel = socket.socket(fileno=os.dup(files["channel"]))
        try:
            container = await asyncio.to_thread(self._take)
        except BaseException:
            channel.close()
            raise
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(listen, event)

        figures = os.dup(files["figures"])
        self._relay = _Relay(container, channel, limits=self._limits, figures=figures, tell=tell)
        return 0

    def ask(self, number: int, op: str, **words: Any) -> None:
        """Ask something; a session that has ended does not mind."""
        if self._relay is not None:
            self._relay.ask({"op": op, **words})

    def close(self) -> None:
        """Have the container ended, and wait for nothing: the event loop may be the one that asks."""
        if self._relay is not None:
            self._relay.close()

    def wait(self, limit_s: float) -> None:
        """Wait until the container has been ended; it may take longer where the engine hangs."""
        if self._relay is not None:
            self._relay.wait(limit_s)


class _Relay:
    """The thread between a session and its container."""

    def __init__(
        self, container: Container, first: socket.socket, *, limits: Limits, figures: int, tell: Listener
    ) -> None:
        self._figures = figures
        self._container, self._tell = container, tell
        self._channels: dict[int, socket.socket] = {}
        self._numbers = count(1)
        self._streams: dict[int, int] = {}
        self._frames, self._said, self._last_words = Frames(), bytearray(), b""
        self._pending = bytearray()
        self._asked: deque[dict[str, Any]] = deque()
        self._is_closed = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._container.stream.setblocking(False)
        self._selector.register(self._container.stream, selectors.EVENT_READ, self._hear)
        self._selector.register(self._wake, selectors.EVENT_READ, self._take_asked)
        self._listen(first, 0)
        self._died: Event = {}
        asked = {"session": {"file_bytes": file_bytes(limits), "memory_bytes": memory_bytes(limits)}}
        self._pending += struct.pack(">I", 0)  # the hash seed
        self._send(asked)
        self._thread = Thread(target=self._serve, name="session", daemon=True)
        self._thread.start()

    def ask(self, what: dict[str, Any]) -> None:
        """Have something said to the container."""
        self._asked.append(what)
        self._rouse()

    def close(self) -> None:
        """Have the container ended."""
        self._is_closed = True
        self._rouse()

    def wait(self, limit_s: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(limit_s)

    def _rouse(self) -> None:
        if self._thread.is_alive():
            with suppress(OSError):  # it ended meanwhile
                os.eventfd_write(self._wake, 1)

    def _serve(self) -> None:
        try:
            while self._step():
                pass
        except OSError as error:
            self._last_words = str(error).encode()
        finally:
            self._end()

    def _step(self) -> bool:
        """Move what can be moved; whether to go on."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._pending else 0)
        self._selector.modify(self._container.stream, events, self._hear)
        for key, mask in self._selector.select():
            if mask & selectors.EVENT_WRITE:
                del self._pending[: self._container.stream.send(self._pending[:_CHUNK_BYTES])]
            if not mask & selectors.EVENT_READ:
                continue
            if isinstance(key.data, int):
                self._pass_packet(key.data)
            elif not key.data():
                return False
        return True

    def _end(self) -> None:
        with suppress(Exception):  # an engine that is away ends it once it is back
            self._container.end()
        last_words = self._last_words.decode("utf-8", "replace")[-_LAST_WORDS:]
        detail = f"its container ended: the engine was stopped, or somebody removed it. {last_words}".strip()
        self._tell(self._died or {"event": "died", "broken": detail})
        self._close_streams()
        for channel in self._channels.values():
            channel.close()
        self._selector.close()
        os.close(self._wake)
        os.close(self._figures)

    def _take_asked(self) -> bool:
        os.eventfd_read(self._wake)
        while self._asked:
            self._send(self._asked.popleft())
        if self._is_closed:
            self._died = {"event": "died", "broken": "the sandbox was closed"}
        return not self._is_closed

    def _listen(self, channel: socket.socket, number: int) -> None:
        channel.setblocking(False)
        self._channels[number] = channel
        self._selector.register(channel, selectors.EVENT_READ, number)

    def _send(self, what: Mapping[str, Any], data: bytes = b"") -> None:
        text = json.dumps({**what, "size": len(data)} if data else what).encode()
        self._pending += struct.pack(">I", len(text)) + text + data

    def _pass_packet(self, number: int) -> None:
        """Carry what the session says to a branch."""
        if number not in self._channels:  # what came with it has closed it
            return
        channel = self._channels[number]
        packet, files, _, _ = socket.recv_fds(channel, _PACKET_BYTES, _MAX_FILES)
        if not packet:
            self._hang_up(number)
            return
        head = {"channel": number, "text": packet.decode()}
        if json.loads(packet)["op"] == "fork":
            new = next(self._numbers)
            self._listen(socket.socket(fileno=files[0]), new)
            self._send({"op": "fork", "new": new, **head})
            return
        source, *streams = files
        with os.fdopen(source, "rb") as file:
            self._send({"op": "cell", **head}, file.read())
        for stream in streams:
            os.set_blocking(stream, False)
        self._streams = dict(enumerate(streams, _STDOUT))

    def _hear(self) -> bool:
        """Take what the container says; whether there may be more."""
        data = self._container.stream.recv(_CHUNK_BYTES)
        for stream, content in self._frames.add(data):
            if stream == _STDOUT:
                self._said += content
            else:
                self._last_words = (self._last_words + content)[-_LAST_WORDS:]
        while (message := self._next_message()) is not None:
            self._take(*message)
        return bool(data)

    def _next_message(self) -> tuple[Event, bytes] | None:
        start = 4 + struct.unpack(">I", self._said[:4])[0] if len(self._said) >= 4 else 0
        if not start or len(self._said) < start:
            return None
        event = json.loads(self._said[4:start])
        end = start + event["size"]
        if len(self._said) < end:
            return None
        data = bytes(self._said[start:end])
        del self._said[:end]
        return event, data

    def _take(self, event: Event, data: bytes) -> None:
        kind = event["event"]
        if kind == "output":
            self._print(event["stream"], data)
        elif kind == "figures":
            os.pwrite(self._figures, data[:MAX_WRITTEN_BYTES], 0)
        elif kind == "packet":
            self._close_streams()
            self._answer(event["channel"], event["text"].encode())
        elif kind == "closed":
            self._close_streams()
            self._drop(event["channel"])
        elif kind == "died":
            self._died = event
        else:
            self._tell(event)

    def _answer(self, number: int, packet: bytes) -> None:
        if number not in self._channels:
            return
        try:
            self._channels[number].send(packet)
        except BlockingIOError:  # only a branch that says what nobody asked fills its channel
            self._hang_up(number)
        except OSError:  # the session has just left it
            return

    def _print(self, number: int, data: bytes) -> None:
        """Write what a cell prints; the event loop may be slow to read it, and may have the session closed instead."""
        with suppress(BrokenPipeError):  # the session reads no more
            while data and number in self._streams and not self._is_closed:
                try:
                    data = data[os.write(self._streams[number], data) :]
                except BlockingIOError:
                    poll = select.poll()
                    poll.register(self._streams[number], select.POLLOUT)
                    poll.poll(_TICK_MS)

    def _close_streams(self) -> None:
        while self._streams:
            os.close(self._streams.popitem()[1])

    def _hang_up(self, number: int) -> None:
        self._drop(number)
        self._send({"op": "hang_up", "channel": number})

    def _drop(self, number: int) -> None:
        channel = self._channels.pop(number, None)
        if channel is not None:
            self._selector.unregister(channel)
            channel.close()
