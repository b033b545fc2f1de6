"""What runs inside the namespaces of one execution: process 1, which waits, and the worker, which runs the code."""

import errno
import json
import os
import resource
import select
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from agentflow.sandbox import namespaces
from agentflow.sandbox.guest_python import run_program, serve_cells
from agentflow.sandbox.system import INSIDE, WORK

MAX_OPEN_FILES = 256
READY, REFUSED = "ready", "refused: "
_MESSAGE_BYTES = 1 << 16
_HINT_CHARS, _MAX_HINTS = 400, 8
_MEEKNESS = 5
_STACKS_BYTES = 128 << 20
"""Room for the stacks of threads, which are mapped whole and hardly used."""
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
    """What process 1 needs.

    Attributes:
        spec: What the host sent: kind and limits.
        files: Descriptors by name.
        report: Where process 1 tells the zygote what happened, a line of JSON each.
        steps: The system-call filter.
        own_bytes: What the interpreter itself has of memory, on top of what the program may have.
    """

    spec: Mapping[str, Any]
    files: Mapping[str, int]
    report: int
    steps: bytes
    own_bytes: OwnBytes


def become_first(start: Start) -> NoReturn:
    """Be process 1: build the place, fork the worker, tell how it ended. Never returns."""
    try:
        namespaces.die_with_parent()
        _keep_only([start.report, *start.files.values()])
        _build_place(start)
        hints, hinting = _hint_channel()
        namespaces.set_inspectable(False)
        worker = os.fork()
    except Exception as error:  # noqa: BLE001  whatever it is, the host must hear of it
        _tell(start.report, {"broken": f"{type(error).__name__}: {error}"})
        os._exit(1)
    if worker == 0:
        os.close(hints)
        os.close(start.report)
        _become_worker(start, hinting)
    os.close(hinting)
    _keep_only([start.report, hints])
    _wait(worker, start, hints)
    os._exit(0)


def _wait(worker: int, start: Start, hints: int) -> None:
    is_session = start.spec["kind"] == "session"
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return
        if pid == worker:
            _tell(start.report, {"hints": _read_now(hints), "is_full": _is_full(), "status": status})
            if not is_session:
                return


def _build_place(start: Start) -> None:
    spec, files = start.spec, start.files
    for name, descriptor in files.items():
        if name.startswith("join"):
            os.write(descriptor, b"0")
    namespaces.map_user(INSIDE, user=os.getuid() if spec["user"] is None else spec["user"], group=spec["group"])
    namespaces.mount("proc", "/proc", flags=namespaces.READ_ONLY | namespaces.NO_PROGRAMS | _HARMLESS)
    options = f"size={spec['disk_mb']}m,nr_inodes={spec['max_files']},mode=0700"
    namespaces.mount("tmpfs", WORK, flags=_HARMLESS, options=options)
    os.chdir(WORK)
    socket.sethostname("sandbox")
    if spec["has_network"]:
        namespaces.loopback_up()
    os.setsid()
    namespaces.drop_capabilities()
    namespaces.install_filter(start.steps)


def _become_worker(start: Start, hinting: int) -> NoReturn:
    spec = start.spec
    hint: Callable[[str], None] = lambda word: _hint(hinting, word)  # noqa: E731
    try:
        namespaces.set_inspectable(True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name, target in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
            if name in start.files:
                os.dup2(start.files[name], target)
        program = _load(start.files["program"]) if "program" in start.files else {}
        channel = os.dup(start.files["channel"]) if "channel" in start.files else -1
        figures = start.files["figures"]
        os.set_inheritable(figures, False)
        _keep_only([0, 1, 2, hinting, channel, figures])
        try:
            _write_files(program.get("files", {}))
        except OSError as error:
            hint(f"{REFUSED}{error}")
            os._exit(1)
        _lower_limits(spec, start.own_bytes)
        hint(READY)
    except Exception as error:  # noqa: BLE001  whatever it is, the host must hear of it
        hint(f"{type(error).__name__}: {error}")
        os._exit(1)
    if channel >= 0:
        serve_cells(socket.socket(fileno=channel), figures=figures)
    if program["language"] == "shell":
        _become_shell(program["code"])
    run_program(program["code"], program["seed"], hint, figures=figures)


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


def _load(descriptor: int) -> dict[str, Any]:
    size, content = os.fstat(descriptor).st_size, b""
    while len(content) < size:  # one read returns 2 GB at most
        content += os.pread(descriptor, size - len(content), len(content))
    found: dict[str, Any] = json.loads(content)
    return found


def _write_files(files: Mapping[str, str]) -> None:
    for name, text in files.items():
        os.makedirs(os.path.dirname(f"{WORK}/{name}"), exist_ok=True)
        with open(f"{WORK}/{name}", "wb") as file:
            file.write(bytes.fromhex(text))


def _lower_limits(spec: Mapping[str, Any], own: OwnBytes) -> None:
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
        # The zygote's looks at memory must not wait for the program's turn. Pages that were written by a process which
        # has ended are in no process's resident memory: only the address space bounds them.
        os.nice(_MEEKNESS)
        limits[resource.RLIMIT_DATA] = own.data + (spec["memory_mb"] << 20)
        limits[resource.RLIMIT_AS] = own.mapped + 2 * (spec["memory_mb"] << 20) + _STACKS_BYTES
    if spec["kind"] == "session":
        del limits[resource.RLIMIT_CPU]  # it counts over all cells
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _keep_only(kept: list[int]) -> None:
    after = 0
    for descriptor in sorted({0, 1, 2, *kept} - {-1}):
        if after < descriptor:  # an empty range at 0 would be taken for all
            os.closerange(after, descriptor)
        after = descriptor + 1
    os.closerange(after, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _is_full() -> bool:
    place = os.statvfs(WORK)
    return place.f_bavail == 0 or place.f_favail == 0


def _tell(descriptor: int, what: Mapping[str, Any]) -> None:
    os.write(descriptor, json.dumps(what).encode() + b"\n")


def _hint_channel() -> tuple[int, int]:
    """Return the ends of a one-way channel which, unlike a pipe, nobody can open again through /proc and read."""
    reading, writing = socket.socketpair()
    reading.shutdown(socket.SHUT_WR)
    writing.shutdown(socket.SHUT_RD)
    writing.setblocking(False)
    return reading.detach(), writing.detach()


def _hint(descriptor: int, word: str) -> None:
    try:
        os.write(descriptor, word[:_HINT_CHARS].encode("utf-8", "replace") + b"\n")
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EPIPE, errno.EAGAIN):
            raise


def _read_now(descriptor: int) -> list[str]:
    """Read the lines that are there; the code may have kept the other end open, or written what it liked."""
    if not select.select([descriptor], [], [], 0)[0]:
        return []
    lines = os.read(descriptor, _MESSAGE_BYTES).decode("utf-8", "replace").splitlines()
    return [line[:_HINT_CHARS] for line in lines[:_MAX_HINTS]]
