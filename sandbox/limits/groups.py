"""Control groups, of either version, where this process may make some: limits over all processes of an execution."""

import atexit
import contextlib
import errno
import fcntl
import os
import re
import secrets
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Self

from agentflow.sandbox.base import Limits

_MOUNT = Path("/sys/fs/cgroup")
_PREFIX = "agentflow"
_CONTROLLERS = ("memory", "pids", "cpuacct")
_NUMBERS = count()
_WORD = secrets.token_hex(4)  # containers that share a tree of groups may share process numbers too
_SHORT_OF = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_NAME = re.compile(rf"{_PREFIX}-(\d+)-[0-9a-f]{{8}}-\d+")
_DYING_S, _TICK_S = 5.0, 0.01
_TCP_SHARE = 4
_LAYERS = ("user", "pid", "mount", "net", "ipc", "uts", "seccomp")


@dataclass(frozen=True, slots=True)
class Group:
    """A control group that one execution after the other lives in.

    Attributes:
        folders: Its folder for each controller; the same one for all in version 2.
        version: 1 or 2.
    """

    folders: Mapping[str, Path]
    version: int

    @classmethod
    def create(cls) -> Self | None:
        """Make one; None where that is not allowed or a controller is missing.

        Raises:
            OSError: The host is short of descriptors or memory, which says nothing of what is allowed.
        """
        _sweep_once(os.getpid())
        name = f"{_own_prefix()}{next(_NUMBERS)}"
        for places, version in ((_first_version(), 1), (_second_version(), 2)):
            for parents in places:
                group = cls({key: parent / name for key, parent in parents.items()}, version)
                if group._is_made():
                    return group
        return None

    def limit(self, limits: Limits) -> None:
        """Set what the next executions may use."""
        memory, processes = limits.memory_mb << 20, limits.max_processes + 1
        names = ("memory.limit_in_bytes", "memory.max")
        self._write("memory", names[self.version - 1], memory)
        self._write("pids", "pids.max", processes)
        if self.version == 1:
            with contextlib.suppress(OSError):  # buffers of TCP have an account of their own, on kernels that keep it
                self._write("memory", "memory.kmem.tcp.limit_in_bytes", memory // _TCP_SHARE)
            return
        with contextlib.suppress(OSError):  # without swap there is no such file
            self._write("memory", "memory.swap.max", 0)

    def forget_peak(self, files: Mapping[str, int]) -> None:
        """Measure the peak of memory from here on, where the kernel lets one say so.

        Args:
            files: Its open files.
        """
        if self.version == 1:
            os.pwrite(files["peak"], b"0", 0)

    def open_files(self) -> dict[str, int]:
        """Open what joins and measures it; the caller closes."""
        memory, pids, cpu = (self.folders[name] for name in _CONTROLLERS)
        first = self.version == 1
        wanted = {
            "cpu": cpu / ("cpuacct.usage" if first else "cpu.stat"),
            "peak": memory / ("memory.max_usage_in_bytes" if first else "memory.peak"),
            "memory_events": memory / ("memory.oom_control" if first else "memory.events"),
            "process_events": pids / "pids.events",
        }
        # That of version 1 is written, to forget what was.
        modes = {"peak": os.O_RDWR} if first else {}
        found = [(name, path, modes.get(name, os.O_RDONLY)) for name, path in wanted.items() if path.exists()]
        # A process that moves its only thread need not wait, some 10 ms, until no other process forks or ends.
        joined = "tasks" if first else "cgroup.procs"
        for number, folder in enumerate(dict.fromkeys(self.folders.values())):
            found.append((f"join{number}", folder / joined, os.O_WRONLY))
        descriptors: dict[str, int] = {}
        try:
            for name, path, flags in found:
                descriptors[name] = os.open(path, flags)
        except OSError:
            for descriptor in descriptors.values():
                os.close(descriptor)
            raise
        return descriptors

    def close(self) -> None:
        """Remove it, once its last process is dead: a zygote that was killed takes a moment to take them along."""
        deadline = time.monotonic() + _DYING_S
        for folder in dict.fromkeys(self.folders.values()):
            while not _is_removed(folder) and time.monotonic() < deadline:
                time.sleep(_TICK_S)
        _, lock = _OWN.pop(self.name, (self, -1))
        if lock >= 0:
            os.close(lock)

    def end(self) -> None:
        """End its processes, and remove it."""
        deadline = time.monotonic() + _DYING_S
        for folder in dict.fromkeys(self.folders.values()):
            while not _is_removed(folder) and time.monotonic() < deadline:
                _kill_all(folder)
                time.sleep(_TICK_S)
        self.close()

    @property
    def name(self) -> str:
        """What its folders are called."""
        return self.folders["memory"].name

    def _is_made(self) -> bool:
        try:
            for folder in dict.fromkeys(self.folders.values()):
                folder.mkdir()
                if self.name not in _OWN:
                    _OWN[self.name] = self, _held(folder)
            self.limit(Limits())
            for descriptor in self.open_files().values():
                os.close(descriptor)
        except OSError as error:
            self.close()
            if error.errno in _SHORT_OF:
                raise
            return False
        return True

    def _write(self, controller: str, name: str, value: int) -> None:
        (self.folders[controller] / name).write_text(str(value))


_OWN: dict[str, tuple[Group, int]] = {}
"""The groups of this process, each with a lock that others cannot take while it lives."""


@atexit.register
def _leave() -> None:
    """End what this process has left open, a shared sandbox above all; a fork of it has made no group."""
    for name, (group, _) in list(_OWN.items()):
        if name.startswith(_own_prefix()):
            group.end()


@lru_cache(maxsize=1)
def _sweep_once(pid: int) -> None:
    """Remove the groups that processes left which were killed."""
    places = [parents.values() for parents in (*_first_version(), *_second_version())]
    folders = [folder for parent in {parent for place in places for parent in place} for folder in _all_in(parent)]
    alive = {folder.name for folder in folders if _has_owner(folder)}
    for folder in folders:
        if folder.name not in alive:
            _is_removed(folder)


def _all_in(parent: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [parent / name for name in os.listdir(parent) if _NAME.fullmatch(name)]
    return []


def _has_owner(folder: Path) -> bool:
    """Say whether a group's owner lives, in this container or in another."""
    found = _NAME.fullmatch(folder.name)
    if found is not None and os.path.exists(f"/proc/{found[1]}"):
        return True
    try:
        os.close(_held(folder))
    except OSError as error:
        return error.errno != errno.ENOENT
    return False


def _held(folder: Path) -> int:
    """Take the lock of a folder, and return its descriptor."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_removed(folder: Path) -> bool:
    """Remove a group that has no processes; whether it is gone."""
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.is_dir()


def _kill_all(folder: Path) -> None:
    try:
        pids = [int(word) for word in (folder / "cgroup.procs").read_text().split()]
    except OSError:  # it is gone
        return
    for pid in filter(None, pids):  # 0 is one whose number cannot be told from here
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def existing() -> list[Path]:
    """List the groups that this process has made and not removed."""
    # Others' groups come and go while this looks around, which os.walk does not mind.
    walk, own = os.walk(_MOUNT), _own_prefix()
    return [Path(folder, name) for folder, names, _ in walk for name in names if name.startswith(own)]


def _own_prefix() -> str:
    return f"{_PREFIX}-{os.getpid()}-{_WORD}-"


def enforced(group: Group | None) -> tuple[str, ...]:
    """Name what holds for an execution in a control group, or in none."""
    how = f"cgroup{group.version}" if group is not None else "poll"
    processes = f"pids:cgroup{group.version}" if group is not None else "pids:rlimit"
    return (f"cpu:{how}", f"memory:{how}", "wall", "output", "disk:tmpfs", processes, *_LAYERS)


def _own_places() -> dict[str, str]:
    """Return this process's own place in each hierarchy; that of version 2 under the empty name."""
    places: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        places |= dict.fromkeys(controllers.split(","), path)
    return places


def _first_version() -> Iterator[dict[str, Path]]:
    own = _own_places()
    if all((_MOUNT / name).is_dir() for name in _CONTROLLERS):
        yield {name: _MOUNT / name / own.get(name, "/").lstrip("/") for name in _CONTROLLERS}
        yield {name: _MOUNT / name for name in _CONTROLLERS}


def _second_version() -> Iterator[dict[str, Path]]:
    if not (_MOUNT / "cgroup.controllers").is_file():
        return
    own = _MOUNT / _own_places().get("", "/").lstrip("/")
    for parent in dict.fromkeys((own, own.parent, _MOUNT)):
        try:
            (parent / "cgroup.subtree_control").write_text("+memory +pids")
        except OSError:
            continue
        yield dict.fromkeys(_CONTROLLERS, parent)
