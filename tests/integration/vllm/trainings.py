"""Whole trainings over servers, in processes of their own: started, watched and killed."""

import json
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from agentflow.cli import main
from agentflow.runs import read_groups
from agentflow.sandbox.limits.process_tree import is_alive, tree_usage
from tests.processes import started

PROGRAM = "import sys; from agentflow.cli import main; sys.exit(main())"
SMALL = (
    "train --env websearch --policy vllm "
    "run.iterations=5 run.tasks_per_iteration=4 run.group_size=4 run.checkpoint_every=1 evaluation.num_tasks=0"
).split()
ASYNCHRONOUS = ["run.max_staleness=1", "algorithm.loss.clipped.correction.kind=tis"]


def rows(out: Path) -> list[dict[str, Any]]:
    """Read the metrics of the only run there is."""
    found = list(out.glob("*/metrics.jsonl"))
    return [json.loads(line) for line in found[0].read_text().splitlines()] if found else []


def start(out: Path, *words: str) -> AbstractContextManager["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", PROGRAM, *SMALL, f"run.out={out}", *words]
    return started(command, patience_s=550, start_new_session=True)


def until_iteration(number: int, out: Path, run: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 240
    while not any(row["iteration"] >= number for row in rows(out)):
        assert run.poll() is None, "the run has ended"
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.05)


def check_whole(run: Path) -> None:
    """See that every iteration is there once, with no trajectory twice and no reward that nobody gave."""
    assert [row["iteration"] for row in rows(run.parent)] == [0, 1, 2, 3, 4, 5]
    groups = [group for file in sorted((run / "rollouts").iterdir()) for group in read_groups(file)]
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    assert len({trajectory.id for trajectory in trajectories}) == len(trajectories), "none is counted twice"
    assert all(t.raw_return is None for t in trajectories if t.status.kind == "failed")
    differences = [row["mismatch/mean_abs_logprob"] for row in rows(run.parent)[1:]]
    found = [difference for difference in differences if difference is not None]
    assert found
    assert max(found) < 1e-4


def kill_and_resume(out: Path, *words: str) -> list[int]:
    """Kill a trainer in mid-run, resume it and see that the run is whole; the processes that the killed one had."""
    with start(out, *words) as run:
        until_iteration(2, out, run)
        children = [pid for pid in tree_usage(run.pid).pids if pid != run.pid]
        run.kill()
        deadline = time.monotonic() + 30
        while any(is_alive(pid) for pid in children):
            assert time.monotonic() < deadline, "a server has outlived its trainer"
            time.sleep(0.1)
    (folder,) = out.iterdir()
    assert main(["train", "--resume", str(folder)]) == 0
    check_whole(folder)
    return children
