"""How many threads compute, and how those wait that have nothing to do.

Threads of OpenMP hand each other thousands of short pieces of work a second, and spin meanwhile. Where other programs
want the same cores, a thread spins for one that has none, and most of the time goes into waiting: so threads soon sleep
instead, and there are no more of them than cores that this process is given. Nothing here imports torch: how threads
wait is read once, when OpenMP is loaded with it.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

NUMBER = "OMP_NUM_THREADS"
WAITING = {"GOMP_SPINCOUNT": "1000", "OMP_WAIT_POLICY": "PASSIVE"}
"""Variables by which threads sleep soon: of torch's own builds for Linux, and of every other OpenMP."""
_OF_THE_USER = (*WAITING, "KMP_BLOCKTIME")
_PARAMETERS_OF_A_THREAD = 250_000
_CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Cores:
    """What a process is given of a machine's cores.

    Attributes:
        allowed: Logical cores that it may run on.
        physical: Physical cores among them: two threads on one of them compute no faster.
        quota: Cores' worth of time that its control groups grant; infinite without a limit.
    """

    allowed: int
    physical: int
    quota: float = math.inf

    @property
    def usable(self) -> int:
        """The most threads that all get on: one more than a quota holds would make the others wait for it."""
        return max(1, int(min(self.physical, self.quota)))


def available_cores(root: Path = Path("/"), *, allowed: frozenset[int] | None = None) -> Cores:
    """Return what this process is given of the machine's cores.

    Args:
        root: The folder that holds `proc` and `sys`.
        allowed: Numbers of the cores that it may run on; None asks the system.
    """
    numbers = _allowed() if allowed is None else allowed
    return Cores(len(numbers), _num_physical(root, numbers), min(_quotas(root), default=math.inf))


def num_threads(
    wanted: int | Literal["auto"], num_parameters: int, *, cores: Cores, environ: Mapping[str, str] = os.environ
) -> int:
    """Return how many threads compute with a model.

    Args:
        wanted: A number, or `auto` for what the user has set for OpenMP, else for what cores and model have use for.
        num_parameters: The model's size: pieces of work of a small one are not worth handing out to many.
        cores: What this process is given.
        environ: The environment variables.
    """
    if wanted != "auto":
        return wanted
    given = environ.get(NUMBER, "").partition(",")[0].strip()  # one number for each level of nesting
    if given.isdecimal() and int(given):
        return int(given)
    return min(cores.usable, 1 + num_parameters // _PARAMETERS_OF_A_THREAD)


def waiting_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that let threads sleep soon; none where the user has said how they wait."""
    return {} if any(name in environ for name in _OF_THE_USER) else dict(WAITING)


def sleep_soon(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait sleep soon, unless the user has said how they wait; it takes effect before torch is loaded.

    A script that imports torch calls it first: `from agentflow.threads import sleep_soon`.
    """
    environ.update(waiting_variables(environ))


def waiting(environ: Mapping[str, str] = os.environ) -> str:
    """Say what is set about the waiting of threads; empty for nothing."""
    return ", ".join(f"{name}={environ[name]}" for name in _OF_THE_USER if name in environ)


def _allowed() -> frozenset[int]:
    # Only Linux knows which cores a process may run on.
    ask = getattr(os, "sched_getaffinity", None)
    return frozenset(ask(0)) if ask is not None else frozenset(range(os.cpu_count() or 1))


def _num_physical(root: Path, numbers: frozenset[int]) -> int:
    """Count the physical cores that some logical ones belong to."""
    cores = root / "sys/devices/system/cpu"
    # Unknown siblings: each core counts as its own.
    return len({_text(cores / f"cpu{number}/topology/thread_siblings_list") or number for number in numbers})


def _quotas(root: Path) -> Iterator[float]:
    """Yield the limit of each control group that this process is in, and of those around it."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts, quota = (mount, mount / "unified"), _second_version
        elif _CPU in controllers.split(","):
            mounts, quota = (mount / controllers, mount / _CPU), _first_version
        else:
            continue
        # In a container the path may be the host's: then only the mount itself is there.
        own = PurePosixPath(path.lstrip("/"))
        folders = dict.fromkeys(place / group for place in mounts for group in (own, *own.parents))
        yield from filter(None, map(quota, folders))


def _second_version(group: Path) -> float | None:
    found = re.fullmatch(r"(\d+) (\d+)", _text(group / "cpu.max"))
    return int(found[1]) / int(found[2]) if found else None


def _first_version(group: Path) -> float | None:
    quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
