"""The CPU time of a short training on an idle machine beside that of the same training on a busy one.

    python -m tests.benchmarks.busy                        # idle and beside four busy loops, alternating
    python -m tests.benchmarks.busy --base ../older        # idle: this tree and another checkout, alternating

Each training is a process of its own with nothing set about threads. Two loads are compared by the CPU time of the
whole process, which must not grow to more than 1.3 times, and by its numbers, which must be the same; two checkouts by
the median time that they take, of which this one may need a twentieth more. The exit code says whether it is so.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import started

ROOT = Path(__file__).parents[2]
MOST_CPU, MOST_TIME = 1.3, 1.05
_OPENMP = ("OMP_", "GOMP_", "KMP_")
_PROGRAM = """
import sys
from pathlib import Path
import agentflow
assert Path(agentflow.__file__).is_relative_to(Path.cwd()), f"{agentflow.__file__} is of another checkout"
from agentflow.cli import main
sys.exit(main())
"""
_PATIENCE_S = 1800.0


@dataclass(frozen=True, slots=True)
class Run:
    """One training.

    Attributes:
        wall_s: Seconds from its start to its end.
        cpu_s: CPU seconds of the process and of all that it waited for.
        load: Load of the machine at its end, over a minute.
        numbers: Its metrics, without the clock's.
    """

    wall_s: float
    cpu_s: float
    load: float
    numbers: list[dict[str, Any]]


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep so many processes computing."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(started([sys.executable, "-c", "while True: pass"], patience_s=_PATIENCE_S))
        yield


def train(tree: Path, iterations: int) -> Run:
    """Train for some iterations with the code of a checkout."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_OPENMP)}
    with tempfile.TemporaryDirectory(prefix="agentflow-busy-") as out:
        words = ["train", "--env", "websearch", "--iterations", str(iterations), "evaluation.num_tasks=0"]
        begun = time.perf_counter()
        with started(
            [sys.executable, "-c", _PROGRAM, *words, "--out", out],
            patience_s=_PATIENCE_S,
            cwd=tree,
            env={**clean, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
        ) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.perf_counter() - begun
        if process.returncode:
            sys.exit(f"a training of {tree} ended with code {process.returncode}")
        (metrics,) = Path(out).glob("*/metrics.jsonl")
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    numbers = [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]
    return Run(wall_s, usage.ru_utime + usage.ru_stime, os.getloadavg()[0], numbers)


def measure(name: str, tree: Path, *, loops: int, iterations: int) -> Run:
    """Train once beside busy loops, and print what it took."""
    with busy_loops(loops):
        run = train(tree, iterations)
    print(f"{name:>10}: {run.wall_s:6.1f} s, {run.cpu_s:6.1f} CPU-s, load {run.load:.1f}", flush=True)
    return run


def compare_loads(options: argparse.Namespace) -> bool:
    """Say whether a busy machine costs no more than `MOST_CPU` times the CPU time, and changes no number."""
    idle, busy = [], []
    for _ in range(options.repeats):
        idle.append(measure("idle", ROOT, loops=0, iterations=options.iterations))
        busy.append(measure("busy", ROOT, loops=options.loops, iterations=options.iterations))
    ratio = _median_cpu(busy) / _median_cpu(idle)
    same = all(run.numbers == idle[0].numbers for run in (*idle, *busy))
    print(f"CPU time, busy over idle: {ratio:.2f} (at most {MOST_CPU}); numbers {'the same' if same else 'DIFFER'}")
    return ratio <= MOST_CPU and same


def compare_trees(options: argparse.Namespace) -> bool:
    """Say whether this tree is as fast as another one where nothing else runs."""
    base, this = [], []
    for _ in range(options.repeats):
        base.append(measure("base", options.base.resolve(), loops=0, iterations=options.iterations))
        this.append(measure("this", ROOT, loops=0, iterations=options.iterations))
    ratio = statistics.median(run.wall_s for run in this) / statistics.median(run.wall_s for run in base)
    cpu = _median_cpu(this) / _median_cpu(base)
    print(f"this tree over base: time {ratio:.2f} (at most {MOST_TIME}), CPU time {cpu:.2f}")
    return ratio <= MOST_TIME


def _median_cpu(runs: Sequence[Run]) -> float:
    return statistics.median(run.cpu_s for run in runs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--loops", type=int, default=4, help="busy loops beside a training")
    parser.add_argument("--base", type=Path, help="root of another checkout, compared with this one on an idle machine")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start", flush=True)
    holds = compare_trees(options) if options.base else compare_loads(options)
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
