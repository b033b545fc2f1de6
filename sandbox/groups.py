"""Control groups, of either version, where this process may make some: limits over all processes of an execution."""

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
_DYING_S = 5.0
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
            while folder.is_dir() and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.01)

    def _is_made(self) -> bool:
        try:
            for folder in dict.fromkeys(self.folders.values()):
                folder.mkdir()
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
