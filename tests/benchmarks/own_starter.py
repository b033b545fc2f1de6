"""A starter policy for an environment of one's own: `envs new --expert`, `sft` and `train`, as a new user types them.

    python -m tests.benchmarks.own_starter [--seeds 0 1 2]

For each seed: the minutes of the three commands, held-out success after imitation and after reinforcement learning. It
fails where reinforcement learning adds less than 0.15 or, on a quiet machine, the three take longer than 12 minutes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agentflow.runs import StoredRun

MIN_LIFT = 0.15
MAX_MINUTES = 12.0


def agentflow(folder: Path, *words: str) -> list[str]:
    """Run a command in a folder and return the lines that it printed."""
    command = [sys.executable, "-m", "agentflow", *words]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()


def success_of(run: Path) -> list[tuple[int, float]]:
    """Return the held-out success of a run by iteration."""
    rows = StoredRun(run).metrics()
    return [(row["iteration"], row["heldout/success"]) for row in rows if row.get("heldout/success") is not None]


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """Play the new user once."""
    started = time.monotonic()
    agentflow(folder, "envs", "new", "my_maze", "--expert")
    common = ("--env", "my_maze.py:MyMaze", "--seed", str(seed))
    taught = agentflow(folder, "sft", *common)[-1].removeprefix("run: ")
    after_sft = time.monotonic()
    trained = agentflow(folder, "train", *common, "--model", taught)[-1].removeprefix("run: ")
    seconds = after_sft - started, time.monotonic() - after_sft
    return {"seed": seed, "seconds": seconds, "sft": success_of(folder / taught), "train": success_of(folder / trained)}


def main() -> None:
    """Measure each seed, print a line for it, and exit with 1 where a claim fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    failed = False
    for seed in parser.parse_args().seeds:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), seed)
        minutes = [seconds / 60 for seconds in found["seconds"]]
        lift = found["train"][-1][1] - found["train"][0][1]
        busy = os.getloadavg()[1] > (os.cpu_count() or 1)
        print(
            f"seed {seed}: sft {minutes[0]:.1f} min {found['sft']}, train {minutes[1]:.1f} min {found['train']}, "
            f"lift {lift:+.3f}, load {os.getloadavg()[1]:.1f}",
            flush=True,
        )
        failed |= lift < MIN_LIFT or (not busy and sum(minutes) > MAX_MINUTES)
    sys.exit(failed)


if __name__ == "__main__":
    main()
