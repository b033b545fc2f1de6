"""How fast a sandbox is, beside the same programs without one, and whether it leaves anything behind.

    python -m tests.benchmarks.sandbox [--backend process] [--executions 10000]

Rounds alternate between what is compared, so that a busy machine slows all of it alike.
"""

import argparse
import asyncio
import gc
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import truediv
from pathlib import Path
from statistics import median, quantiles

from agentflow.cli.tables import print_table
from agentflow.sandbox.base import Limits, Program, Sandbox, SandboxUnavailable
from agentflow.sandbox.docker.backend import LABEL, OWNER_LABEL, owner_mark
from agentflow.sandbox.docker.engine import connect
from agentflow.sandbox.docker.image import DEFAULT_IMAGE
from agentflow.sandbox.limits.groups import existing
from agentflow.sandbox.limits.process_tree import tree_usage
from agentflow.sandbox.probe import AUTO, open_sandbox

_BARE = "print(6 * 7)"
_HEAVY = "import numpy, sympy; print(6 * 7)"
_CELLS = 500
_ROUNDS = 5
_LIMITS = Limits(cpu_s=10.0, wall_s=60.0)
_MIXED: Sequence[tuple[str, str, bytes]] = (
    ("print(6 * 7)", "ok", b"42\n"),
    ("import sys; sys.stdout.write('x' * 30000)", "ok", b"x" * 30000),
    ("import os\nif os.fork() == 0:\n  os.setsid()\n  import time; time.sleep(60)\nprint('left')", "ok", b"left\n"),
    ("open('f', 'wb').write(b'x' * (1 << 20)); print('written')", "ok", b"written\n"),
    ("import os; os.kill(os.getpid(), 9)", "signal", b""),
    ("import sys; sys.exit(7)", "nonzero_exit", b""),
    ("1 / 0", "nonzero_exit", b""),
)
_ODD_ONE_IN = 3
_MOST_LOOKS = 20
Run = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast something ran.

    Attributes:
        name: What.
        per_s: Executions a second, as many at once as there are cores; the median of the rounds.
        of_plain: The same as a multiple of a plain interpreter's, the median of the rounds; None for that itself.
        p50_ms: Median milliseconds of one.
        p99_ms: The 99th percentile.
    """

    name: str
    per_s: float
    of_plain: float | None
    p50_ms: float
    p99_ms: float


async def measure(sandbox: Sandbox) -> list[Speed]:
    """Compare a sandbox with the plain interpreter, with and without imports, and time the cells of a session.

    Where Docker, its command and AgentFlow's image are at hand, `docker exec` in a running container is compared too.
    """
    plain = (sys.executable, "-I", "-c")
    with _container() as run_there:
        kinds: dict[str, tuple[Run, int]] = {
            "plain python": (partial(_started, *plain, _BARE), 60),
            sandbox.name: (partial(_run, sandbox, _BARE), 120),
        }
        if run_there is not None:
            kinds["docker exec"] = (partial(run_there, _BARE), 8)
        speeds = await _compared(kinds)
    # The interpreter of a sandbox need not be this one.
    if (await sandbox.run(Program(_HEAVY), _LIMITS)).status == "ok":
        speeds += await _compared(
            {
                "plain python, numpy and sympy": (partial(_started, *plain, _HEAVY), 4),
                f"{sandbox.name}, numpy and sympy": (partial(_run, sandbox, _HEAVY), 60),
            }
        )
    return [*speeds, *await _cells(sandbox)]


async def _compared(kinds: Mapping[str, tuple[Run, int]]) -> list[Speed]:
    """Run each kind as often as it says, in alternating rounds; the first is the yardstick."""
    for run, _ in kinds.values():
        await _at_once(run, 2 * (os.cpu_count() or 1))
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(_ROUNDS):
        for name, (run, number) in kinds.items():
            started = time.perf_counter()
            times[name] += await _at_once(run, number)
            rates[name].append(number / (time.perf_counter() - started))
    plain, *_ = rates
    ratios = {name: median(map(truediv, rates[name], rates[plain])) for name in kinds if name != plain}
    return [_speed(name, median(rates[name]), times[name], of_plain=ratios.get(name)) for name in kinds]


@contextmanager
def _container() -> Iterator[Callable[[str], Awaitable[None]] | None]:
    """Yield what runs a program by `docker exec` in a container of AgentFlow's image; None without engine or image."""
    command = shutil.which("docker")
    if command is None:
        yield None
        return
    try:
        client = connect()
        image = client.images.get(DEFAULT_IMAGE)
    except Exception:  # noqa: BLE001  whatever keeps Docker from being compared, the rest is measured
        yield None
        return
    idle = ["/usr/local/bin/python3", "-c", "import time; time.sleep(3600)"]
    labels = {LABEL: "1", OWNER_LABEL: owner_mark(os.getpid())}
    container = client.containers.run(image, idle, detach=True, network_mode="none", labels=labels)

    try:
        yield partial(_started, command, "exec", container.id, "/usr/local/bin/python3", "-I", "-c")
    finally:
        container.remove(force=True)


async def leaves_behind(sandbox: Sandbox, executions: int) -> Mapping[str, int]:
    """Run programs of many kinds, and count what is wrong or left afterwards.

    Returns:
        Wrong results; processes, mounts, control groups and descriptors more than before; kilobytes more of memory,
        of this process and of what it keeps warm.
    """

    async def one(number: int) -> bool:
        code, status, stdout = _MIXED[number // _ODD_ONE_IN % len(_MIXED) if number % _ODD_ONE_IN == 0 else 0]
        result = await sandbox.run(Program(code), Limits(cpu_s=5.0, wall_s=30.0))
        return (result.status, result.stdout.head + result.stdout.tail) == (status, stdout)

    async def batch(start: int, end: int) -> int:
        rights = await asyncio.gather(*(one(number) for number in range(start, end)))
        return rights.count(False)

    # What is allocated once, whatever the number of executions, is no growth.
    wrong = await batch(0, min(300, executions))
    before, step = await _settled(), 100
    for start in range(0, executions, step):
        wrong += await batch(start, min(executions, start + step))
    after = await _settled()
    return {"wrong": wrong, **{name: value - before[name] for name, value in after.items()}}


async def _settled() -> Counter[str]:
    """Return the state once nothing comes or goes any more: what ran last is told of before its files are closed."""
    gc.collect()  # else what was left before would count as given back
    state = _state()
    for _ in range(_MOST_LOOKS):
        await asyncio.sleep(0.5)
        last, state = state, _state()
        if all(state[name] == last[name] for name in state if name != "kilobytes"):
            break
    return state


def _state() -> Counter[str]:
    kept = tree_usage(os.getpid()).pids
    pids = kept | {os.getpid()}
    return Counter(
        processes=len(pids),
        # Of what is kept warm: the host's own come and go with other programs.
        mounts=sum(len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()) for pid in kept),
        cgroups=len(existing()),
        descriptors=sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
        kilobytes=sum(_own_kb(pid) for pid in pids),
    )


def _own_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty:", "Swap:")))


async def _started(*words: str) -> None:
    process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE)
    stdout, _ = await process.communicate()
    assert stdout == b"42\n", stdout


async def _run(sandbox: Sandbox, code: str) -> None:
    result = await sandbox.run(Program(code), _LIMITS)
    assert result.stdout.head == b"42\n", result


async def _at_once(run: Run, number: int) -> list[float]:
    free = asyncio.Semaphore(os.cpu_count() or 1)
    times = []

    async def timed() -> None:
        async with free:
            started = time.perf_counter()
            await run()
            times.append(time.perf_counter() - started)

    await asyncio.gather(*(timed() for _ in range(number)))
    return times


async def _cells(sandbox: Sandbox) -> list[Speed]:
    try:
        session = await sandbox.session(_LIMITS)
    except SandboxUnavailable:
        return []
    times = []
    async with session:
        started = time.perf_counter()
        for number in range(_CELLS):
            begun = time.perf_counter()
            result = await session.exec(f"x = {number}; x + 1")
            times.append(time.perf_counter() - begun)
            assert result.value == str(number + 1), result
        return [_speed("cell of a session", _CELLS / (time.perf_counter() - started), times)]


def _speed(name: str, per_s: float, times: Sequence[float], *, of_plain: float | None = None) -> Speed:
    return Speed(name, per_s, of_plain, median(times) * 1000, quantiles(times, n=100)[98] * 1000)


async def _compare(backend: str, executions: int) -> int:
    """Print how fast a sandbox is and what it leaves behind; 0 if nothing went wrong and nothing is left."""
    sandbox = await open_sandbox(backend)
    try:
        rows = [
            (speed.name, speed.per_s, speed.of_plain, speed.p50_ms, speed.p99_ms) for speed in await measure(sandbox)
        ]
        print_table(("what", "executions/s", "of plain python", "p50 ms", "p99 ms"), rows)
        left = await leaves_behind(sandbox, executions) if executions else {}
    finally:
        await sandbox.close()
    counts = ", ".join(f"{name} {value:+d}" for name, value in left.items())
    print(f"after {executions} mixed executions: {counts}")
    return int(any(value > 0 for name, value in left.items() if name != "kilobytes"))


def main() -> int:
    """Read the options, measure, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default=AUTO)
    parser.add_argument("--executions", type=int, default=1000)
    options = parser.parse_args()
    return asyncio.run(_compare(options.backend, options.executions))


if __name__ == "__main__":
    sys.exit(main())
