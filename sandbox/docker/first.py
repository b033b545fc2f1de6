"""The first process of a container: read as text by the Docker backend, and never imported.

It waits, as warm as an interpreter can be, for one program on its standard input; starts it as a child; judges CPU
and wall time of the whole container; ends everything that is left; and writes the program's plots and what it saw as
the last bytes of stderr, when nobody else lives who could write there. The program runs under the same user, yet cannot
interfere: the kernel drops its signals to the first process of a namespace, and what is not dumpable can be neither
read nor written.

On standard input come 4 bytes of hash seed, 4 bytes of length, a JSON head of that length, the files and the source;
what follows is the program's own.
"""

import ctypes
import io  # noqa: F401  what guest.py imports is warm already
import json
import os
import random  # noqa: F401
import resource  # noqa: F401
import select
import signal
import struct
import sys
import time
import traceback  # noqa: F401
from typing import Any

GUEST = sys.argv[1]
SOURCE = "/program/source"
FIGURES, FIGURES_BYTES = "/program/figures", 4 + 4 * (4 + (1 << 20))  # as in figures.py
END, TRAILER_BYTES = b"\0agentflow:", 256
TICK_S = 0.01
CHUNK_BYTES = 1 << 16
IDLE_S = 900.0
DUMPABLE = 4
# Of the second version of control groups and of the first: CPU time with its unit, peak memory, deaths by memory.
ACCOUNTS = (
    ("cpu.stat", "usage_usec", 1e-6, "memory.peak", "memory.events"),
    ("cpuacct/cpuacct.usage", "", 1e-9, "memory/memory.max_usage_in_bytes", "memory/memory.oom_control"),
)


def take(size: int) -> bytes:
    """Read exactly so much; leave quietly where nobody is left who would send it."""
    taken = b""
    while len(taken) < size:
        part = os.read(0, min(size - len(taken), CHUNK_BYTES))
        if not part:
            sys.exit(0)
        taken += part
    return taken


def copy(size: int, path: str) -> None:
    """Write the next bytes of standard input to a file."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        while size:
            size -= file.write(take(min(size, CHUNK_BYTES)))


def read(name: str, key: str = "") -> int:
    """Read a number of the control group, the one after a key where the file has several; 0 where it has none."""
    try:
        with open(f"/sys/fs/cgroup/{name}", encoding="ascii") as file:
            words = file.read().split()
    except OSError:
        return 0
    return int(words[words.index(key) + 1 if key else 0]) if not key or key in words else 0


def loosen() -> None:
    """Take from this child what only the first process is."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ctypes.CDLL(None).prctl(DUMPABLE, 1, 0, 0, 0)
    os.setsid()
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # it goes before the first process does


def become(words: list[str]) -> None:
    """Turn this child into the program."""
    loosen()
    sys.argv = ["-c", SOURCE, *words]
    exec(compile(GUEST, "guest.py", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})  # noqa: S102


def main() -> None:
    """Run one program."""
    # Should the engine die, standard input stays open with nobody there.
    if len(sys.argv) <= 2 and not select.select([0], [], [], IDLE_S)[0]:
        sys.exit(0)
    seed = sys.argv[2] if len(sys.argv) > 2 else str(struct.unpack(">I", take(4))[0])
    if seed != os.environ["PYTHONHASHSEED"]:
        # The seed of an interpreter is settled when it starts.
        os.execve(sys.executable, [*sys.orig_argv, seed], {**os.environ, "PYTHONHASHSEED": seed})  # noqa: S606
    head = json.loads(take(struct.unpack(">I", take(4))[0]))
    cpu_file, cpu_key, unit, peak_file, deaths_file = next(row for row in ACCOUNTS if read(row[0], row[1]))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    ctypes.CDLL(None).prctl(DUMPABLE, 0, 0, 0, 0)
    for name, size in head["files"]:
        copy(size, f"/work/{name}")
    copy(head["source_bytes"], SOURCE)
    os.chmod(SOURCE, 0o444)
    figures = os.open(FIGURES, os.O_RDWR | os.O_CREAT)
    before, started = read(cpu_file, cpu_key), time.monotonic()
    program = os.fork()
    if not program:
        become([*head["words"], str(figures)])
        return
    told: dict[str, Any] = {"code": None, "ended_by": "", "cpu_s": 0.0, "wall_s": 0.0}
    while told["code"] is None and not told["ended_by"]:
        signal.sigtimedwait({signal.SIGCHLD}, TICK_S)
        told["code"] = buried(program)
        told["cpu_s"] = max(told["cpu_s"], (read(cpu_file, cpu_key) - before) * unit)
        told["wall_s"] = time.monotonic() - started
        over = {"cpu_timeout": told["cpu_s"] > head["cpu_s"], "wall_timeout": told["wall_s"] > head["wall_s"]}
        told["ended_by"] = next((name for name, is_so in over.items() if is_so), "")
    end_all()
    told["memory_mb"] = read(peak_file) / 2**20
    told["oom"] = bool(read(deaths_file, "oom_kill"))
    written = os.pread(figures, FIGURES_BYTES, 0)
    told["figures_bytes"] = len(written)
    os.set_blocking(2, True)
    last = memoryview(written + END + json.dumps(told).encode().ljust(TRAILER_BYTES - len(END)))
    while last:
        last = last[os.write(2, last) :]
    os._exit(0)


def buried(program: int) -> int | None:
    """Bury whoever has ended; return the program's exit code, less than 0 for a signal, if it was among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if not pid:
            return code
        if pid == program:
            code = os.waitstatus_to_exitcode(status)


def end_all() -> None:
    """Kill and bury everybody else."""
    while True:
        try:
            os.kill(-1, signal.SIGKILL)
            os.waitpid(-1, 0)
        except (ProcessLookupError, ChildProcessError):
            return


main()
