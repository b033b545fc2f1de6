"""An execution as its zygote knows it: process 1 and what is allowed and known of it."""

import math
import os
import signal
from dataclasses import dataclass

from agentflow.sandbox.limits.meter import Meter, Sample

_NOTHING = Sample(0.0, 0.0)


@dataclass(slots=True)
class Watch:
    """What is allowed from now on.

    Attributes:
        cpu_s: What the meter may show.
        ends_at: When wall time is over.
        pid: The number inside of the process whose tree is ended; None for the whole execution.
        interval_s: How long to wait between looks at it; infinite for as long as its meter allows.
    """

    cpu_s: float
    ends_at: float
    pid: int | None
    interval_s: float = math.inf


@dataclass(slots=True)
class Child:
    """An execution: its process 1, and what is known of it."""

    number: int
    pid: int
    handle: int
    report: int
    hints: int
    meter: Meter
    memory_mb: float
    max_processes: int
    cpu_s: float
    has_group: bool
    started_at: float
    watch: Watch | None
    reason: str = ""
    broken: str = ""
    last: Sample = _NOTHING
    cell_from: Sample = _NOTHING
    cell_at: float = 0.0
    due_at: float = 0.0


def handle_of(pid: int) -> int:
    """Return a descriptor that tells of a child's end; without one the child is ended."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def number_inside(pid: int) -> int | None:
    """Return the number of a process in its own namespace; None if it has ended."""
    try:
        with open(f"/proc/{pid}/status", errors="replace") as file:
            return next((int(line.split()[-1]) for line in file if line.startswith("NSpid:")), None)
    except OSError:
        return None
