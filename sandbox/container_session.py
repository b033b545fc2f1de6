"""A session in a container: read as text by the Docker backend, run by container_guest.py, and never imported.

The first process forks the interpreter, passes the host's packets on to it and to its copies, each over a channel of
its own, and watches cells for the host. A message is 4 bytes of length, a JSON head of that length and `size` bytes.
"""

import json
import math
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

CHUNK_BYTES, PACKET_BYTES = 1 << 16, 1 << 17
FIGURES, FIGURES_BYTES = "/program/figures", 4 + 4 * (4 + (1 << 20))  # as in container_guest.py
TICK_MS, RESTING_MS = 10, 500
Account = tuple[float, float, int]
"""CPU seconds, megabytes at the peak, and deaths by memory, of the whole container."""


class Served:
    """One session and all its branches.

    Args:
        take: Reads so many bytes of what the host says.
        account: Tells what the container has used.
        tree: The names of process_tree.py.
        first: The channel of the first branch.
        figures: The file into which cells write their plots.
    """

    def __init__(
        self,
        take: Callable[[int], bytes],
        account: Callable[[], Account],
        *,
        tree: Mapping[str, Any],
        first: socket.socket,
        figures: int,
    ) -> None:
        self.take, self.account, self.tree, self.figures = take, account, tree, figures
        self.channels = {0: first}
        self.streams: dict[int, int] = {}
        self.feeding, self.source = -1, memoryview(b"")
        self.cell_from, self.cell_at = account(), time.monotonic()
        self.allowance_s, self.cpu_s, self.ends_at = math.inf, math.inf, math.inf
        self.pid: int | None = None
        self.poll = select.poll()
        for descriptor in (0, first.fileno()):
            self.poll.register(descriptor, select.POLLIN)

    def serve(self) -> NoReturn:
        """Work until the host hangs up or wants no more."""
        while True:
            for descriptor, _ in self.poll.poll(RESTING_MS if self.ends_at == math.inf else TICK_MS):
                if descriptor == 0:
                    self.hear()
                elif descriptor == self.feeding:
                    self.feed()
                elif descriptor in self.streams:
                    self.pass_output(descriptor)
                for number in [n for n, channel in self.channels.items() if channel.fileno() == descriptor]:
                    self.pass_packet(number)
            self.bury()
            self.judge()

    def hear(self) -> None:
        """Do what the host asks."""
        asked = json.loads(self.take(struct.unpack(">I", self.take(4))[0]))
        data = self.take(asked.get("size", 0))
        if asked["op"] == "cell":
            self.begin_cell(asked, data)
        else:
            getattr(self, asked["op"])(asked)

    def begin_cell(self, asked: Mapping[str, Any], source: bytes) -> None:
        """Hand a cell to its branch."""
        # A pipe: a file would lie where earlier cells may have been before.
        code, self.feeding = os.pipe()
        os.set_blocking(self.feeding, False)
        self.poll.register(self.feeding, select.POLLOUT)
        self.source = memoryview(source)
        given = [code]
        for number in (1, 2):
            reading, writing = os.pipe()
            os.set_blocking(reading, False)
            self.streams[reading] = number
            self.poll.register(reading, select.POLLIN)
            given.append(writing)
        self.send(asked, given)

    def fork(self, asked: Mapping[str, Any]) -> None:
        """Have a branch copy itself."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channels[asked["new"]] = here
        self.poll.register(here, select.POLLIN)
        self.send(asked, [there.detach()])

    def send(self, asked: Mapping[str, Any], given: list[int]) -> None:
        """Pass a packet on with its descriptors; a branch that is gone has told so already."""
        try:
            socket.send_fds(self.channels[asked["channel"]], [asked["text"].encode()], given)
        except (OSError, KeyError):
            self.close_streams()
        for descriptor in given:
            os.close(descriptor)

    def hang_up(self, asked: Mapping[str, Any]) -> None:
        """Close the channel of a branch, which then ends."""
        channel = self.channels.pop(asked["channel"], None)
        if channel is not None:
            self.poll.unregister(channel)
            channel.close()

    def watch(self, asked: Mapping[str, Any]) -> None:
        """Begin to judge a cell."""
        self.cell_from, self.cell_at = self.account(), time.monotonic()
        self.cpu_s = self.cell_from[0] + asked["cpu_s"]
        self.ends_at = self.cell_at + asked["wall_s"]
        self.pid = asked["pid"]

    def rest(self, asked: Mapping[str, Any]) -> None:
        """End a cell; what goes on in the background until the next one has its own allowance."""
        cpu_s, memory_mb, deaths = self.account()
        used = {"cpu_s": cpu_s - self.cell_from[0], "wall_s": time.monotonic() - self.cell_at, "memory_mb": memory_mb}
        self.allowance_s = asked["cpu_s"]
        self.relax(cpu_s)
        tell({"event": "rests", "out_of_memory": deaths > self.cell_from[2], **used})

    def relax(self, cpu_s: float) -> None:
        """Judge only what goes on in the background, from what has been used."""
        self.cpu_s, self.ends_at, self.pid = cpu_s + self.allowance_s, math.inf, None

    def end(self, asked: Mapping[str, Any]) -> None:
        """End a branch and all below it; everything, where it cannot be found."""
        pid, reason = asked["pid"], asked["reason"]
        if pid is not None and (self.tree["is_alive"](pid) or reason == "closed"):
            self.tree["kill_tree"](pid)
            self.relax(self.account()[0])
            tell({"event": "stopped", "pid": pid, "reason": reason})
            return
        while True:
            try:
                os.kill(-1, signal.SIGKILL)
                os.waitpid(-1, 0)
            except (ProcessLookupError, ChildProcessError):
                break
        tell({"event": "died", "reason": reason, "out_of_memory": self.account()[2] > self.cell_from[2]})
        os._exit(0)

    def judge(self) -> None:
        """End what has used too much."""
        cpu_s, _, deaths = self.account()
        over = {
            "cpu_timeout": cpu_s > self.cpu_s,
            "memory": deaths > self.cell_from[2],
            "wall_timeout": time.monotonic() > self.ends_at,
        }
        reason = next((name for name, is_so in over.items() if is_so), "")
        if reason:
            self.end({"pid": self.pid, "reason": reason})

    def pass_packet(self, number: int) -> None:
        """Pass on what a branch says, after all that it has printed."""
        packet = self.channels[number].recv(PACKET_BYTES)
        self.close_streams()
        if packet:
            plots = os.pread(self.figures, FIGURES_BYTES, 0)
            if plots:
                os.ftruncate(self.figures, 0)
                tell({"event": "figures"}, plots)
            tell({"event": "packet", "channel": number, "text": packet.decode("utf-8", "replace")})
        else:
            self.hang_up({"channel": number})
            tell({"event": "closed", "channel": number})

    def pass_output(self, descriptor: int) -> None:
        """Pass on what a cell prints; a pipe holds no more than this reads."""
        try:
            data = os.read(descriptor, CHUNK_BYTES)
        except BlockingIOError:
            return
        if data:
            tell({"event": "output", "stream": self.streams[descriptor]}, data)
        else:
            self.close_stream(descriptor)

    def feed(self) -> None:
        """Write what the pipe takes of a cell's source."""
        try:
            self.source = self.source[os.write(self.feeding, self.source[:CHUNK_BYTES]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.source = memoryview(b"")
        if not self.source:
            self.stop_feeding()

    def stop_feeding(self) -> None:
        """Let the cell see the end of its source."""
        if self.feeding >= 0:
            self.poll.unregister(self.feeding)
            os.close(self.feeding)
            self.feeding = -1

    def close_streams(self) -> None:
        """Read what lies in the pipes of a cell, and let go of them."""
        self.stop_feeding()
        for descriptor in list(self.streams):
            self.pass_output(descriptor)
            self.close_stream(descriptor)

    def close_stream(self, descriptor: int) -> None:
        """Let go of one pipe, unless that is done."""
        if self.streams.pop(descriptor, None) is not None:
            self.poll.unregister(descriptor)
            os.close(descriptor)

    def bury(self) -> None:
        """Bury whoever has ended."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


def tell(head: Mapping[str, Any], data: bytes = b"") -> None:
    """Say something to the host."""
    text = json.dumps({**head, "size": len(data)}).encode()
    message = struct.pack(">I", len(text)) + text + data
    while message:
        message = message[os.write(1, message) :]


def serve(
    asked: Mapping[str, int],
    take: Callable[[int], bytes],
    *,
    account: Callable[[], Account],
    load: Callable[[str], Mapping[str, Any]],
    loosen: Callable[[], None],
) -> NoReturn:
    """Fork the interpreter, and serve the host.

    Args:
        asked: The limits that hold for each process.
        take: Reads so many bytes of what the host says.
        account: Tells what the container has used.
        load: Runs a module of the backend and returns its names.
        loosen: Takes from a child what only the first process is.
    """
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    figures = os.open(FIGURES, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    tree, interpreter = load("process_tree"), load("guest_python")
    if os.fork():
        there.close()
        Served(take, account, tree=tree, first=here, figures=figures).serve()
    loosen()
    here.close()
    silent = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(silent, target)
    os.close(silent)
    for kind, key in ((resource.RLIMIT_FSIZE, "file_bytes"), (resource.RLIMIT_AS, "memory_bytes")):
        resource.setrlimit(kind, (asked[key], asked[key]))
    interpreter["serve_cells"](there, figures=figures)
    raise AssertionError("serves until the process ends")
