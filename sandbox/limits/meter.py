"""What an execution uses, seen from outside: by its control group, or where there is none by its tree of processes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from agentflow.sandbox.limits.process_tree import tree_usage

_TREE_INTERVAL_S = 0.005
FILES = ("cpu", "peak", "memory_events", "process_events")
"""What a meter reads of a control group."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was used so far.

    Attributes:
        cpu_s: CPU seconds of all processes.
        memory_mb: Peak memory of all of them together, in megabytes.
        out_of_memory: Whether a process was killed for want of memory.
        out_of_processes: Whether the kernel refused a further process.
        num_processes: How many there are, where that is not the kernel's to bound.
    """

    cpu_s: float
    memory_mb: float
    out_of_memory: bool = False
    out_of_processes: bool = False
    num_processes: int = 0


class Meter(Protocol):
    """Measures one execution, again and again."""

    interval_s: float
    """How long one may wait between samples without missing anything."""

    def sample(self) -> Sample:
        """Measure."""
        ...

    def close(self) -> None:
        """Let go of what measures."""
        ...


class GroupMeter:
    """Measure a control group through open files of it.

    Args:
        files: Descriptors by name: `cpu`, `peak`, `memory_events`, `process_events`.
    """

    interval_s = 0.25

    def __init__(self, files: Mapping[str, int]) -> None:
        self._files = {name: files[name] for name in FILES if name in files}
        self._cpu_s = self._cpu()
        self._counts = self._events()

    def sample(self) -> Sample:
        """Measure."""
        killed, refused = (now > before for now, before in zip(self._events(), self._counts, strict=True))
        return Sample(self._cpu() - self._cpu_s, self._peak_mb(), killed, refused)

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._files.values():
            os.close(descriptor)

    def _cpu(self) -> float:
        text = _read(self._files["cpu"])
        return _count(text, "usage_usec") / 1e6 if "usage_usec" in text else int(text) / 1e9

    def _events(self) -> tuple[int, int]:
        memory, processes = (_read(self._files[name]) for name in ("memory_events", "process_events"))
        return _count(memory, "oom_kill"), _count(processes, "max")

    def _peak_mb(self) -> float:
        return int(_read(self._files["peak"])) / 2**20 if "peak" in self._files else 0.0


class TreeMeter:
    """Measure a process and all below it.

    Pages that a fork shares with its parent count once for each, less what the interpreter itself takes.

    Args:
        pid: The root of the tree; it counts too.
        shared_mb: What every process shares with the interpreter that it was forked from.
    """

    interval_s = _TREE_INTERVAL_S

    def __init__(self, pid: int, shared_mb: float = 0.0) -> None:
        self._pid = pid
        self._shared_mb = shared_mb
        self._cpu_s = 0.0
        self._peak_mb = 0.0
        self._own_cpu_s: dict[int, float] = {}

    def sample(self) -> Sample:
        """Measure."""
        usage = tree_usage(self._pid, with_root=True)
        num_below = len(usage.own_cpu_s) - 1
        self._peak_mb = max(self._peak_mb, usage.memory_mb - self._shared_mb * max(0, num_below))
        # A process that nobody waits for takes what it used out of the tree with it; what was seen of it counts.
        self._own_cpu_s |= usage.own_cpu_s
        self._cpu_s = max(self._cpu_s, usage.cpu_s, sum(self._own_cpu_s.values()))
        return Sample(self._cpu_s, self._peak_mb, num_processes=num_below)

    def close(self) -> None:
        """Do nothing: /proc is no file of ours."""


def _read(descriptor: int) -> str:
    return os.pread(descriptor, 4096, 0).decode()


def _count(text: str, name: str) -> int:
    return next((int(line.split()[1]) for line in text.splitlines() if line.split()[:1] == [name]), 0)
