"""One container for one program: made ahead, waiting, then fed, read and ended."""

import json
import math
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentflow.sandbox.base import ENVIRONMENT, Limits, Program, Usage, max_files
from agentflow.sandbox.docker.image import PYTHON
from agentflow.sandbox.figures import MAX_WRITTEN_BYTES
from agentflow.sandbox.streams import Kept
from agentflow.sandbox.verdict import CANCELLED, Ending

_FOLDER = Path(__file__).parent
_GUEST = "\n".join(
    path.read_text(encoding="utf-8") for path in (_FOLDER.parent / "guest_figures.py", _FOLDER / "guest.py")
)
_COMMAND = (PYTHON, "-s", "-P", "-c", (_FOLDER / "first.py").read_text(encoding="utf-8"), _GUEST)
_OVERHEAD_MB = 16  # of the first process
_ADDRESS_SPACE_MARGIN_MB = 1536  # libraries map far more than they use
_PROGRAM_SPACE_BYTES = 10 << 20  # its source and its plots
_SHARED_MEMORY_BYTES = 1 << 20
_MAX_OPEN_FILES = 256
_END, _TRAILER_BYTES = b"\0agentflow:", 256  # as in first.py
_HELD_BYTES = MAX_WRITTEN_BYTES + _TRAILER_BYTES
_TICK_S = 0.05
_CHUNK_BYTES = 1 << 16
_LATE_S = 5.0  # the first process judges wall time; this much later it has failed to
_STDERR = 2


@dataclass(frozen=True, slots=True)
class Shape:
    """The limits that are settled when a container is made.

    Attributes:
        memory_mb: Megabytes of memory.
        disk_mb: Megabytes of the work space.
        max_processes: Processes and threads at once.
    """

    memory_mb: int
    disk_mb: int
    max_processes: int


@dataclass(frozen=True, slots=True)
class Build:
    """What all containers of a sandbox share.

    Attributes:
        image: Their image.
        labels: Their labels.
        profile: Their system-call filter, as JSON.
    """

    image: str
    labels: Mapping[str, str]
    profile: str


class ContainerLost(Exception):
    """A container was ended from outside: by its engine, which is stopped, or by a person."""


class Container:
    """A container whose first process waits for its program.

    Args:
        api: Docker's low-level client.
        build: What it shares with others.
        shape: Its limits.
        user: The number of its user, which should be no other container's.
    """

    def __init__(self, api: Any, build: Build, *, shape: Shape, user: int) -> None:
        self._api = api
        self.id: str = api.create_container(
            build.image,
            list(_COMMAND),
            user=f"{user}:{user}",
            environment=dict(ENVIRONMENT),
            working_dir="/work",
            hostname="sandbox",
            network_disabled=True,
            stdin_open=True,
            stop_signal="SIGKILL",  # its first process hears no other, and an engine that stops waits 10 s for each
            labels=dict(build.labels),
            host_config=_host_config(api, build, shape=shape, user=user),
        )["Id"]
        try:
            attached = api.attach_socket(self.id, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
            self._attached = attached  # it closes the connection when it is collected
            self._socket: socket.socket = getattr(attached, "_sock", attached)
            api.start(self.id)
        except Exception:
            api.remove_container(self.id, force=True)
            raise

    @property
    def is_waiting(self) -> bool:
        """Whether it still waits for its program: a container that is fine says nothing."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            return not selector.select(0)

    def run(self, program: Program, limits: Limits, *, stop: threading.Event) -> tuple[Ending, bytes]:
        """Run the program to its end, whichever that is; afterwards nothing of the container lives.

        Returns:
            What was seen of its end, and what it wrote of its plots.

        Raises:
            ContainerLost: Somebody else ended the container.
        """
        seen = _Seen(limits)
        started = time.monotonic()
        try:
            self._exchange(_payload(program, limits), seen, lambda: _over(seen, limits, started=started, stop=stop))
        except BaseException:
            self.end()
            raise
        seen.wall_s = time.monotonic() - started
        seen.end()
        if seen.ended_by:
            self.end()
        elif not seen.trailer:
            if not ran_out_of_memory(self._api, self.id):
                raise ContainerLost("its container ended before it said what became of the program")
            seen.ended_by = "memory"
        return seen.ending(), seen.figures

    def end(self) -> None:
        """Kill it, whatever it does; it removes itself."""
        # An engine that waits for somebody to read cannot kill: hang up first.
        self.hang_up()
        try:
            self._api.kill(self.id)
        except Exception as error:
            if getattr(error, "status_code", None) not in (404, 409):
                raise

    def hang_up(self) -> None:
        """Close the connection; a container that waits for its program then ends by itself."""
        self._socket.close()
        self._attached.close()

    def _exchange(self, payload: bytes, seen: "_Seen", over: Callable[[], str]) -> None:
        """Feed and read at once until the container has said its last, or `over` names a limit."""
        pending = memoryview(payload)
        self._socket.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            while not seen.ended_by:
                events = next((events for _, events in selector.select(_TICK_S)), 0)
                if events & selectors.EVENT_WRITE:
                    pending = self._send(pending, selector)
                if events & selectors.EVENT_READ and not self._receive(seen):
                    return
                seen.ended_by = over()

    def _send(self, pending: memoryview, selector: selectors.BaseSelector) -> memoryview:
        try:
            pending = pending[self._socket.send(pending[:_CHUNK_BYTES]) :]
        except BlockingIOError:
            return pending
        except OSError:
            pending = memoryview(b"")  # it is gone: what it said last is still to be read
        if not pending:
            selector.modify(self._socket, selectors.EVENT_READ)
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                return pending
        return pending

    def _receive(self, seen: "_Seen") -> bool:
        """Read once; whether there may be more."""
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        seen.add(data)
        return bool(data)


def ran_out_of_memory(api: Any, container: str) -> bool:
    """Ask the engine about a container whose first process was killed, and which is gone by now.

    Args:
        api: Docker's low-level client; its own `events` waits without limit for an engine that hangs.
        container: Its identity.
    """
    now = int(time.time())
    filters = json.dumps({"container": [container], "event": ["oom"]})
    asked = {"since": now - 3600, "until": now + 1, "filters": filters}
    answer = api.get(f"{api.base_url}/v{api.api_version}/events", params=asked, timeout=api.timeout)
    answer.raise_for_status()
    return bool(answer.content.strip())


class Frames:
    """What a container says: frames of 8 bytes of head, of which the first is the stream and the last four a length."""

    def __init__(self) -> None:
        self._raw = bytearray()

    def add(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Take what was read, and yield what is complete: the stream and its bytes."""
        self._raw += data
        while len(self._raw) >= 8:
            stream, size = struct.unpack(">B3xI", self._raw[:8])
            if len(self._raw) < 8 + size:
                return
            content = bytes(self._raw[8 : 8 + size])
            del self._raw[: 8 + size]
            yield stream, content


class _Seen:
    """What was seen of one program."""

    def __init__(self, limits: Limits) -> None:
        self.ended_by = ""
        self.wall_s = 0.0
        self.stdout, self.stderr = Kept(limits.output_kb << 10), Kept(limits.output_kb << 10)
        self.trailer: dict[str, Any] = {}
        self.figures = b""
        self._frames = Frames()
        self._held = bytearray()  # the end of stderr, which may be the first process's own word

    def add(self, data: bytes) -> None:
        """Take what was read."""
        for stream, content in self._frames.add(data):
            self._add(stream, content)

    def end(self) -> None:
        """Tell the first process's last word, what it saw and the plots, from the program's; it may not have lived."""
        program = bytes(self._held)
        if not self.ended_by and program[-_TRAILER_BYTES:].startswith(_END):
            program, told = program[:-_TRAILER_BYTES], program[-_TRAILER_BYTES:]
            self.trailer = json.loads(told[len(_END) :])
            ended = len(program) - self.trailer["figures_bytes"]
            program, self.figures = program[:ended], program[ended:]
        self.stderr.add(program)

    def ending(self) -> Ending:
        """Return what was seen of the program's end."""
        told = {} if self.ended_by else self.trailer
        ended_by = self.ended_by or told.get("ended_by", "")
        if not ended_by and told.get("oom") and told.get("code"):
            ended_by = "memory"
        if not ended_by and self.stderr.is_flood:
            ended_by = "output_limit"
        return Ending(
            ended_by=ended_by,
            code=told.get("code"),
            stdout=self.stdout.output(),
            stderr=self.stderr.output(),
            usage=Usage(told.get("cpu_s", 0.0), told.get("wall_s", self.wall_s), told.get("memory_mb", 0.0)),
        )

    def _add(self, stream: int, data: bytes) -> None:
        if stream != _STDERR:
            self.stdout.add(data)
            return
        self._held += data
        known = max(0, len(self._held) - _HELD_BYTES)
        self.stderr.add(bytes(self._held[:known]))
        del self._held[:known]


def _over(seen: _Seen, limits: Limits, *, started: float, stop: threading.Event) -> str:
    if stop.is_set():
        return CANCELLED
    if seen.stdout.is_flood or seen.stderr.is_flood:
        return "output_limit"
    return "wall_timeout" if time.monotonic() - started > limits.wall_s + _LATE_S else ""


def _guest_words(program: Program, limits: Limits) -> list[str]:
    """Return the arguments of `guest.py` between the path of the source and the descriptor for plots."""
    numbers = (
        program.seed,
        limits.max_processes + 1,  # the first process counts with the program's own
        (limits.memory_mb + _ADDRESS_SPACE_MARGIN_MB) << 20,
        math.ceil(limits.cpu_s) + 1,
        limits.disk_mb << 20,
    )
    return [program.language, *map(str, numbers)]


def _payload(program: Program, limits: Limits) -> bytes:
    source = program.code.encode("utf-8", "replace")
    head = json.dumps(
        {
            "files": [(name, len(content)) for name, content in program.files.items()],
            "source_bytes": len(source),
            "words": _guest_words(program, limits),
            "cpu_s": limits.cpu_s,
            "wall_s": limits.wall_s,
        }
    ).encode()
    parts = (struct.pack(">II", program.seed % 2**32, len(head)), head, *program.files.values(), source, program.stdin)
    return b"".join(parts)


def _host_config(api: Any, build: Build, *, shape: Shape, user: int) -> Any:
    own = f"rw,nosuid,nodev,uid={user},gid={user},mode=700"
    memory = f"{shape.memory_mb + _OVERHEAD_MB}m"
    return api.create_host_config(
        auto_remove=True,
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges", f"seccomp={build.profile}"],
        pids_limit=shape.max_processes + 1,
        mem_limit=memory,
        memswap_limit=memory,
        shm_size=_SHARED_MEMORY_BYTES,
        ipc_mode="private",
        log_config={"type": "none", "config": {}},
        ulimits=[
            {"name": "nofile", "soft": _MAX_OPEN_FILES, "hard": _MAX_OPEN_FILES},
            {"name": "core", "soft": 0, "hard": 0},
        ],
        tmpfs={
            "/work": f"{own},exec,size={shape.disk_mb}m,nr_inodes={max_files(shape.disk_mb)}",
            "/program": f"{own},noexec,size={_PROGRAM_SPACE_BYTES},nr_inodes=4",
        },
    )
