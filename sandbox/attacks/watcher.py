"""The host's eyes: a thread that follows marked processes through /proc while they run."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

from agentflow.sandbox.attacks.base import Seen
from agentflow.sandbox.attacks.sight import call_back, look

_TICK_S = 0.01
MARK_LETTERS = 6
_TICKS = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM, _THREADS = 11, 12, 17  # of /proc/PID/stat after the name, counted from the state


class Watcher:
    """Follow processes by the marks that they put into their names; use it as a context manager."""

    def __init__(self) -> None:
        self._old = _pids()
        self._seen: dict[str, Seen] = {}
        self._ticks: dict[str, dict[int, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def __enter__(self) -> "Watcher":
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def follow(self, mark: str) -> Seen:
        """Follow the processes of one attack from now on; what is returned fills while they run."""
        self._ticks[mark] = {}
        return self._seen.setdefault(mark, Seen())

    def left(self, mark: str) -> list[int]:
        """Return the marked processes that are still there, those that only wait to be buried among them."""
        return [pid for pid in _pids() - self._old if _name(pid).startswith(mark)]

    def _run(self) -> None:
        while not self._stop.wait(_TICK_S):
            self._look_around()

    def _look_around(self) -> None:
        found: dict[str, list[int]] = {}
        for pid in _pids() - self._old:
            name = _name(pid)
            mark = name[:MARK_LETTERS]
            if mark not in self._seen:
                continue
            found.setdefault(mark, []).append(pid)
            if name.endswith("?"):
                self._visit(pid, name[MARK_LETTERS:-1], self._seen[mark])
        for mark, pids in found.items():
            self._count(mark, pids)

    def _visit(self, pid: int, part: str, seen: Seen) -> None:
        """Look at a process that asks for it, and tell it to go on; a name that is a number is a port to call."""
        with contextlib.suppress(OSError):
            seen.sightings[part] = look(pid, call_back(part) if part.isdigit() else None)
            os.kill(pid, signal.SIGUSR1)

    def _count(self, mark: str, pids: list[int]) -> None:
        threads, own_kb = 0, 0
        for pid in pids:
            with contextlib.suppress(OSError, IndexError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                threads += int(fields[_THREADS]) if fields[0] not in "ZX" else 0
                own_kb += _own_kb(pid)
                self._ticks[mark][pid] = int(fields[_USER]) + int(fields[_SYSTEM])
        seen = self._seen[mark]
        seen.num_processes = max(seen.num_processes, threads)
        seen.memory_mb = max(seen.memory_mb, own_kb / 1024)
        seen.cpu_s = sum(self._ticks[mark].values()) / _TICKS


def wait_for_death(watcher: Watcher, mark: str, *, grace_s: float) -> list[int]:
    """Return the marked processes that are still there after a moment of grace, and end them."""
    deadline = time.monotonic() + grace_s
    while (left := watcher.left(mark)) and time.monotonic() < deadline:
        time.sleep(_TICK_S)
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return left


def _own_kb(pid: int) -> int:
    """Return the resident memory of a process in kilobytes, without pages of files: libraries are everybody's."""
    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon:", "RssShmem:")))


def _pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""
