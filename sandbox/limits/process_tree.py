"""What the processes below one process use, read from /proc."""

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_KILLING_S = 1.0
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20
# Fields of /proc/PID/stat after the name, counted from the state.
_USER_TICKS, _CHILD_SYSTEM_TICKS, _RESIDENT_PAGES = 11, 14, 21


@dataclass(frozen=True, slots=True)
class TreeUsage:
    """What a tree of processes uses.

    Attributes:
        cpu_s: CPU seconds of all of them, and of those that they have waited for.
        memory_mb: Their resident memory in megabytes.
        own_cpu_s: What each of them used itself.
    """

    cpu_s: float
    memory_mb: float
    own_cpu_s: Mapping[int, float]

    @property
    def pids(self) -> frozenset[int]:
        """Which they are."""
        return frozenset(self.own_cpu_s)


def tree_usage(root: int, *, with_root: bool = False) -> TreeUsage:
    """Add up what the descendants of a process use; one that ends meanwhile counts where it was waited for."""
    ticks, pages = 0, 0
    own: dict[int, float] = {}
    waiting = [root] if with_root else [*_children(root)]
    while waiting:
        pid = waiting.pop()
        fields = _stat(pid)
        if fields:
            ticks += sum(int(value) for value in fields[_USER_TICKS : _CHILD_SYSTEM_TICKS + 1])
            pages += int(fields[_RESIDENT_PAGES])
            own[pid] = (int(fields[_USER_TICKS]) + int(fields[_USER_TICKS + 1])) / _TICKS
        waiting += _children(pid)
    return TreeUsage(ticks / _TICKS, pages * _PAGE_MB, own)


def is_alive(pid: int) -> bool:
    """Say whether a process exists and is not merely unburied."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in ("Z", "X")


def kill_tree(pid: int) -> None:
    """Kill a process and all below it; it is stopped first, so that its orphans still come to it."""
    _signal(pid, signal.SIGSTOP)
    deadline = time.monotonic() + _KILLING_S
    while time.monotonic() < deadline:
        alive = [other for other in tree_usage(pid).pids if is_alive(other)]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for other in alive:
                _signal(other, number)
        if not alive:
            break
    _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    except OSError:
        return found  # it has ended
    return found


def _stat(pid: int) -> list[str]:
    try:
        # The name may be any bytes, blanks and brackets among them: what follows the last bracket has fixed places.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
