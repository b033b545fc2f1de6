"""What runs inside the namespaces of one execution: process 1, which waits, and the worker, which runs the code."""

import errno
import json
import marshal
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from agentflow.sandbox.process import namespaces
from agentflow.sandbox.process.guest_python import run_program, serve_cells, word_of
from agentflow.sandbox.process.system import INSIDE, WORK

MAX_OPEN_FILES = 256
READY, REFUSED = "ready", "refused: "
_MESSAGE_BYTES = 1 << 16
_HINT_CHARS, _MAX_HINTS = 400, 8
_STACKS_BYTES = 128 << 20
"""Room for the stacks of threads, which are mapped whole and hardly used."""
Gaps = Sequence[tuple[int, int]]
"""Ranges of descriptors, their ends not included."""
_HARMLESS = namespaces.NO_SETUID | namespaces.NO_DEVICES


@dataclass(frozen=True, slots=True)
class OwnBytes:
    """What an interpreter has before the program begins.

    Attributes:
        data: Bytes of private memory.
        mapped: Bytes of its whole address space.
    """

    data: int
    mapped: int


@dataclass(frozen=True, slots=True)
class Start:
    """What process 1 needs, worked out before it is forked: what a fork writes to is copied first.

    Attributes:
        is_session: Whether it serves cells, not one program.
        user: Its user outside.
        group: Its group outside.
        files: Descriptors by name.
        report: Where process 1 tells the zygote what happened, in JSON.
        closing: What process 1 closes.
        closing_in_worker: What the worker closes once its streams are in their places.
        closing_in_first: What process 1 closes once the worker has it.
        work_options: The options of its work space's mount.
        has_network: Whether it has a network of its own.
        limits: Resource limits by number.
        meekness: How much it is nicer than the zygote.
        steps: The system-call filter.
    """

    is_session: bool
    user: int
    group: int
    files: Mapping[str, int]
    report: int
    closing: Gaps
    closing_in_worker: Gaps
    closing_in_first: Gaps
    work_options: str
    has_network: bool
    limits: Sequence[tuple[int, int]]
    meekness: int
    steps: namespaces.Filter


def become_first(start: Start) -> NoReturn:
    """Be process 1: build the place, fork the worker, tell how it ended. Never returns."""
    try:
        namespaces.die_with_parent()
        _close(start.closing)
        _build_place(start)
        namespaces.set_inspectable(False)
        worker = namespaces.fork()
    except Exception as error:  # noqa: BLE001  whatever it is, the host must hear of it
        os.write(start.report, json.dumps({"broken": f"{type(error).__name__}: {error}"}).encode())
        os._exit(1)
    if worker == 0:
        _become_worker(start)
    _close(start.closing_in_first)
    _wait(worker, start)
    os._exit(0)


def _wait(worker: int, start: Start) -> None:
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return
        if pid == worker:
            os.write(start.report, b'{"status": %d, "is_full": %d}' % (status, _is_full()))
            if not start.is_session:
                return


def _build_place(start: Start) -> None:
    for name, descriptor in start.files.items():
        if name.startswith("join"):
            os.write(descriptor, b"0")
    namespaces.map_user(INSIDE, user=start.user, group=start.group)
    namespaces.mount("proc", "/proc", flags=namespaces.READ_ONLY | namespaces.NO_PROGRAMS | _HARMLESS)
    namespaces.mount("tmpfs", WORK, flags=_HARMLESS, options=start.work_options)
    os.chdir(WORK)
    socket.sethostname("sandbox")
    if start.has_network:
        namespaces.loopback_up()
    os.setsid()
    namespaces.drop_capabilities()
    namespaces.install_filter(start.steps)


def _become_worker(start: Start) -> NoReturn:
    """Be the worker; whatever breaks is hinted at, because a traceback from here would show the model the host."""
    hinting = start.files["hints"]
    hint: Callable[[str], None] = lambda word: _hint(hinting, word)  # noqa: E731
    try:
        _work(start, hint)
    except BaseException as error:  # noqa: BLE001  beyond stand the handlers of the zygote, which this is a fork of
        hint(word_of(error) or f"{type(error).__name__}: {error}")
    finally:
        os._exit(1)


def _work(start: Start, hint: Callable[[str], None]) -> NoReturn:
    try:
        threading.main_thread()._set_native_id()  # type: ignore[attr-defined]
        namespaces.set_inspectable(True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name, target in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
            if name in start.files:
                os.dup2(start.files[name], target)
        language, code, seed, files = ("", "", 0, {}) if start.is_session else _load(start.files["program"])
        figures = start.files["figures"]
        for descriptor in (figures, start.files.get("channel", figures)):
            os.set_inheritable(descriptor, False)
        _close(start.closing_in_worker)
        try:
            _write_files(files)
        except OSError as error:
            hint(f"{REFUSED}{error}")
            os._exit(1)
        _lower_limits(start)
        hint(READY)
    except Exception as error:  # noqa: BLE001  whatever it is, the host must hear of it
        hint(f"{type(error).__name__}: {error}")
        os._exit(1)
    if start.is_session:
        serve_cells(socket.socket(fileno=start.files["channel"]), figures=figures)
    if language == "shell":
        _become_shell(code)
    run_program(code, seed, hint, figures=figures)


def _become_shell(code: str) -> NoReturn:
    name = f"{WORK}/.script"
    with open(name, "w", encoding="utf-8", errors="replace") as file:
        file.write(code)
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, a shell must not
        signal.signal(number, signal.SIG_DFL)
    script = os.open(name, os.O_RDONLY)
    os.unlink(name)
    os.set_inheritable(script, True)
    os.execv("/bin/sh", ["sh", f"/proc/self/fd/{script}"])  # noqa: S606


def _load(descriptor: int) -> tuple[str, str, int, dict[str, bytes]]:
    size, content = os.fstat(descriptor).st_size, b""
    while len(content) < size:  # one read returns 2 GB at most
        content += os.pread(descriptor, size - len(content), len(content))
    found: tuple[str, str, int, dict[str, bytes]] = marshal.loads(content)  # noqa: S302  the host has written it
    return found


def _write_files(files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        os.makedirs(os.path.dirname(f"{WORK}/{name}"), exist_ok=True)
        with open(f"{WORK}/{name}", "wb") as file:
            file.write(content)


def limits_of(spec: Mapping[str, Any], own: OwnBytes) -> Sequence[tuple[int, int]]:
    """Return the resource limits of an execution, by number.

    Args:
        spec: What the host sent.
        own: What the interpreter itself has of memory, on top of what the program may have.
    """
    limits = {
        resource.RLIMIT_CORE: 1,  # 0 would not keep the kernel from piping a core dump to a helper; 1 does
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_FSIZE: spec["disk_mb"] << 20,
        resource.RLIMIT_CPU: int(spec["cpu_s"]) + 2,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_MEMLOCK: 1 << 16,
        # Within the user namespace only its own processes count, process 1 among them.
        resource.RLIMIT_NPROC: spec["max_processes"] + 1,
    }
    if not spec["has_group"]:
        # Pages that were written by a process which has ended are in no process's resident memory: only the address
        # space bounds them.
        limits[resource.RLIMIT_DATA] = own.data + (spec["memory_mb"] << 20)
        limits[resource.RLIMIT_AS] = own.mapped + 2 * (spec["memory_mb"] << 20) + _STACKS_BYTES
    if spec["kind"] == "session":
        del limits[resource.RLIMIT_CPU]  # it counts over all cells
    most = {kind: resource.getrlimit(kind)[1] for kind in limits}
    infinite = resource.RLIM_INFINITY
    return [(kind, value if most[kind] == infinite else min(value, most[kind])) for kind, value in limits.items()]


def _lower_limits(start: Start) -> None:
    if start.meekness:
        os.nice(start.meekness)
    for kind, value in start.limits:
        resource.setrlimit(kind, (value, value))


def gaps_between(*kept: int) -> Gaps:
    """Return the ranges of all descriptors but the standard ones and those given."""
    edges = sorted({0, 1, 2, *kept})
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return [(low + 1, high) for low, high in zip(edges, [*edges[1:], most], strict=True) if low + 1 < high]


def _close(gaps: Gaps) -> None:
    for low, high in gaps:
        os.closerange(low, high)


def _is_full() -> bool:
    place = os.statvfs(WORK)
    return place.f_bavail == 0 or place.f_favail == 0


def hint_channel() -> tuple[int, int]:
    """Return the ends of a one-way channel which, unlike a pipe, nobody can open again through /proc and read."""
    reading, writing = socket.socketpair()
    reading.shutdown(socket.SHUT_WR)
    writing.shutdown(socket.SHUT_RD)
    reading.setblocking(False)
    writing.setblocking(False)
    return reading.detach(), writing.detach()


def _hint(descriptor: int, word: str) -> None:
    try:
        os.write(descriptor, word[:_HINT_CHARS].encode("utf-8", "replace") + b"\n")
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EPIPE, errno.EAGAIN):
            raise


def read_hints(descriptor: int) -> list[str]:
    """Read what the worker told; the code may have written there what it liked."""
    try:
        lines = os.read(descriptor, _MESSAGE_BYTES).decode("utf-8", "replace").splitlines()
    except BlockingIOError:
        return []
    return [line[:_HINT_CHARS] for line in lines[:_MAX_HINTS]]
