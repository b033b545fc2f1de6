"""One execution under way: its streams, its limits, its end."""

import asyncio
import math
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from agentflow.sandbox.base import Limits, Program, Result, Status, Usage, max_files
from agentflow.sandbox.meter import GroupMeter, Sample, TreeMeter
from agentflow.sandbox.process_tree import is_alive, num_files
from agentflow.sandbox.streams import Kept
from agentflow.sandbox.system import WORK

T = TypeVar("T")
GUEST = "\n".join(
    (Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("guest_figures.py", "guest.py")
)
"""The source of what becomes the program where no interpreter is kept warm."""
_TICK_S = 0.01
_CHUNK_BYTES = 1 << 16
_DYING_S = 5.0
_ADDRESS_SPACE_MARGIN_MB = 1536  # libraries map far more than they use
_SIGNAL_BASE = 128  # how a shell, and bubblewrap, report the signal that ended a program
_TOLD_BYTES = 1 << 16
_FOLDERS = (WORK, "/dev/shm")  # noqa: S108
_WORDS: Sequence[tuple[bytes, Status]] = (
    (b"MemoryError", "memory"),
    (b"No space left on device", "disk"),
    (b"File too large", "disk"),
    (b"Resource temporarily unavailable", "pids"),
    (b"can't start new thread", "pids"),
    (b"Cannot fork", "pids"),
)
"""How programs that ran into a limit say so on their last line of stderr."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was seen of an execution.

    Attributes:
        ended_by: The limit that ended it; empty if it ended by itself.
        told: What the launcher told of its end.
        stdout: Its output.
        stderr: Its other output.
        usage: What it used.
        survivors: Whether processes of it could not be ended.
        launcher_code: How the launcher itself ended: its exit code, less than 0 for a signal; None where there is none.
    """

    ended_by: str
    told: bytes
    stdout: Kept
    stderr: Kept
    usage: Usage
    survivors: bool
    launcher_code: int | None = None

    def result(self, code: int | None, *, backend: str, enforced: tuple[str, ...]) -> Result:
        """Return the result, given the exit code that the launcher told; None where it told none."""
        stdout, stderr = self.stdout.output(), self.stderr.output()
        status, detail = self._status(code, stderr.last_line)
        if status == "infra_error" and not detail:
            detail = (stderr.tail or stderr.head).decode("utf-8", "backslashreplace")[:400]
            if self.launcher_code is not None:
                detail = f"the launcher ended with {self.launcher_code} and told of no end of the program: {detail}"
        return Result(
            status,
            exit_code=code if status in ("ok", "nonzero_exit") else None,
            signal=code - _SIGNAL_BASE if status == "signal" and code is not None else None,
            stdout=stdout,
            stderr=stderr,
            usage=self.usage,
            detail=detail,
            backend=backend,
            enforced=enforced,
        )

    def _status(self, code: int | None, last_line: bytes) -> tuple[Status, str]:
        if self.survivors:
            return "infra_error", "processes of the program could not be ended"
        if self.ended_by == "cancelled":
            return "infra_error", "nobody waits for the program any more"
        if self.ended_by:
            return self.ended_by, ""  # type: ignore[return-value]  # one of the limits' names
        if code is None:
            return "infra_error", ""
        if code == 0:
            return "ok", ""
        if code > _SIGNAL_BASE and _is_signal(code - _SIGNAL_BASE):
            return "signal", ""
        return limit_named(last_line) or "nonzero_exit", ""


class Execution:
    """Watch a launcher and everything below it.

    Args:
        process: The launcher, with pipes for all three streams.
        status_fd: Where it tells of the program's end.
        limits: What the program may use.
        stop: Set where nobody waits any more.
        meter: Measures its control group; None where it has none.
    """

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        status_fd: int,
        *,
        limits: Limits,
        stop: threading.Event,
        meter: GroupMeter | None = None,
    ) -> None:
        self._group = meter
        self._process = process
        self._limits = limits
        self._stop = stop
        self._kept = {"stdout": Kept(limits.output_kb << 10), "stderr": Kept(limits.output_kb << 10)}
        self._told = bytearray()
        self._selector = selectors.DefaultSelector()
        self._pending = memoryview(b"")
        self._meter = TreeMeter(process.pid)
        self._used = Sample(0.0, 0.0)
        assert process.stdout is not None and process.stderr is not None, "made with pipes"
        for name, stream in (("stdout", process.stdout.fileno()), ("stderr", process.stderr.fileno())):
            self._open(stream, name)
        self._open(status_fd, "status")

    def watch(self, stdin: bytes) -> Verdict:
        """Feed the program, read it, judge it, and end it; everything below the launcher is dead on return."""
        started = time.monotonic()
        ended = os.pidfd_open(self._process.pid)
        self._selector.register(ended, selectors.EVENT_READ, "ended")
        self._feed(stdin)
        ended_by = ""
        try:
            while not ended_by and not self._step():
                ended_by = self._over(time.monotonic() - started)
            if ended_by:
                # Not Popen.kill, which would bury a process that has just ended, and its usage with it.
                signal.pidfd_send_signal(ended, signal.SIGKILL)
            _, status, used = os.wait4(self._process.pid, 0)
            self._process.returncode = 0  # it is buried: nobody else may wait for its number
            survivors = self._outlive()
            self._drain()
        except BaseException:
            with suppress(ProcessLookupError):  # what nobody watches must not go on
                signal.pidfd_send_signal(ended, signal.SIGKILL)
            raise
        finally:
            self._selector.close()
            os.close(ended)
            self._close_pipes()
        usage = Usage(
            cpu_s=max(self._used.cpu_s, used.ru_utime + used.ru_stime),
            wall_s=time.monotonic() - started,
            memory_mb=max(self._used.memory_mb, used.ru_maxrss / 1024),
        )
        if not ended_by and self._sampled().out_of_memory:
            ended_by = "memory"
        if not ended_by and usage.cpu_s > self._limits.cpu_s:
            ended_by = "cpu_timeout"
        return Verdict(
            ended_by,
            bytes(self._told),
            self._kept["stdout"],
            self._kept["stderr"],
            usage,
            survivors=survivors,
            launcher_code=os.waitstatus_to_exitcode(status),
        )

    def _open(self, descriptor: int, name: str) -> None:
        os.set_blocking(descriptor, False)
        self._selector.register(descriptor, selectors.EVENT_READ, name)

    def _feed(self, stdin: bytes) -> None:
        stream: Any = self._process.stdin
        if not stdin:
            stream.close()
            return
        self._pending = memoryview(stdin)
        os.set_blocking(stream.fileno(), False)
        self._selector.register(stream.fileno(), selectors.EVENT_WRITE, "stdin")

    def _step(self) -> bool:
        """Move whatever can be moved; whether the launcher has ended."""
        over = False
        for key, _ in self._selector.select(_TICK_S):
            if key.data == "ended":
                over = True
            elif key.data == "stdin":
                self._write(key.fd)
            else:
                self._read(key.fd, key.data)
        return over

    def _write(self, descriptor: int) -> None:
        try:
            self._pending = self._pending[os.write(descriptor, self._pending[:_CHUNK_BYTES]) :]
        except BrokenPipeError:
            self._pending = memoryview(b"")  # the program has closed it
        if not self._pending:
            self._selector.unregister(descriptor)
            stream: Any = self._process.stdin
            stream.close()

    def _read(self, descriptor: int, name: str) -> bool:
        """Read once; whether there may be more."""
        try:
            data = os.read(descriptor, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(descriptor)
            return False
        if name == "status":
            self._told += data[: _TOLD_BYTES - len(self._told)]
        else:
            self._kept[name].add(data)
        return True

    def _over(self, wall_s: float) -> str:
        """Name the limit that is exceeded; empty if none is."""
        used, limits = self._sampled(), self._limits
        most_files = max_files(limits.disk_mb)
        exceeded = {
            "cancelled": self._stop.is_set(),
            "memory": used.out_of_memory or (self._group is None and used.memory_mb > limits.memory_mb),
            "cpu_timeout": used.cpu_s > limits.cpu_s,
            "disk": any(num_files(self._meter.alive, folder) > most_files for folder in _FOLDERS),
            "output_limit": any(kept.is_flood for kept in self._kept.values()),
            "wall_timeout": wall_s > limits.wall_s,
        }
        return next((name for name, is_so in exceeded.items() if is_so), "")

    def _sampled(self) -> Sample:
        """Measure; a control group also knows the memory and the time of what has ended or is mapped by nobody."""
        tree = self._meter.sample()
        group = self._group.sample() if self._group is not None else tree
        self._used = Sample(max(tree.cpu_s, group.cpu_s), tree.memory_mb, out_of_memory=group.out_of_memory)
        return self._used

    def _outlive(self) -> bool:
        """Wait for the death of what the launcher left: the kernel ends a namespace with its first process."""
        deadline = time.monotonic() + _DYING_S
        while any(map(is_alive, self._meter.pids - {self._process.pid})):
            if time.monotonic() > deadline:
                return True
            time.sleep(_TICK_S / 10)
        return False

    def _drain(self) -> None:
        for key in [key for key in self._selector.get_map().values() if key.data in ("stdout", "stderr", "status")]:
            while self._read(key.fd, key.data):
                pass

    def _close_pipes(self) -> None:
        streams: tuple[IO[bytes] | None, ...] = (self._process.stdin, self._process.stdout, self._process.stderr)
        for stream in streams:
            if stream is not None and not stream.closed:
                stream.close()


async def in_thread(run: Callable[[threading.Event], Result]) -> Result:
    """Run an execution in a thread; a caller that no longer waits sets the event, and goes once nothing is left.

    Args:
        run: The execution; it ends when the event is set.
    """
    stop = threading.Event()
    return await to_the_end(asyncio.to_thread(run, stop), give_up=stop.set)


async def to_the_end(work: Awaitable[T], *, give_up: Callable[[], object]) -> T:
    """Await work that leaves something behind if it is dropped: a caller that is cancelled goes once it has ended.

    Args:
        work: It ends soon after `give_up`.
        give_up: Called where nobody waits for the outcome any more.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        give_up()
        while not task.done():
            with suppress(asyncio.CancelledError):  # however often
                await asyncio.wait([task])
        raise


def guest_words(program: Program, limits: Limits, *, num_beside: int = 0) -> list[str]:
    """Return the arguments of `guest.py` between the path of the source and the descriptor for plots.

    Args:
        program: What is run.
        limits: What it may use.
        num_beside: Processes that count with the program's own.
    """
    numbers = (
        program.seed,
        limits.max_processes + num_beside,
        memory_bytes(limits),
        math.ceil(limits.cpu_s) + 1,
        file_bytes(limits),
    )
    return [program.language, *map(str, numbers)]


def memory_bytes(limits: Limits) -> int:
    """Return the address space that one process may have."""
    return (limits.memory_mb + _ADDRESS_SPACE_MARGIN_MB) << 20


def file_bytes(limits: Limits) -> int:
    """Return how long one file may be."""
    return limits.disk_mb << 20


def limit_named(last_line: bytes) -> Status | None:
    """Return the limit that a program's last line of stderr complains of; None if it is no such complaint."""
    return next((status for words, status in _WORDS if words in last_line), None)


def _is_signal(number: int) -> bool:
    return number in set(signal.Signals)
