"""Training on a real vLLM server, in turn and asynchronously: killed at any moment, the run resumes or goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from agentflow.cli import main
from agentflow.cli.evaluation import evaluation_config
from agentflow.runs import read_groups
from agentflow.sandbox.process_tree import is_alive, tree_usage
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


def listening(owner: int) -> int:
    """Return the process of the server that listens."""
    pids = [pid for pid in tree_usage(owner).pids if b"--uds=" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return min(pids)


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


@pytest.mark.parametrize("words", [[], ASYNCHRONOUS, ["model.lora_rank=8"]], ids=["in turn", "asynchronous", "adapter"])
def test_a_trainer_that_is_killed_resumes(words: list[str], tmp_path: Path) -> None:
    with start(tmp_path, *words) as run:
        until_iteration(2, tmp_path, run)
        servers = [pid for pid in tree_usage(run.pid).pids if pid != run.pid]
        run.kill()
        deadline = time.monotonic() + 30
        while any(is_alive(pid) for pid in servers):
            assert time.monotonic() < deadline, "a server has outlived its trainer"
            time.sleep(0.1)
    (folder,) = tmp_path.iterdir()
    assert main(["train", "--resume", str(folder)]) == 0
    check_whole(folder)
    config = evaluation_config(str(folder), env=None, words=["policy.backend=transformers"])
    assert config.policy.backend == "transformers"


def test_a_server_that_is_killed_again_and_again_leaves_no_trace_in_the_results(tmp_path: Path) -> None:
    with start(tmp_path, *ASYNCHRONOUS) as run:
        for number in (1, 3):
            until_iteration(number, tmp_path, run)
            os.killpg(listening(run.pid), signal.SIGKILL)
        assert run.wait(timeout=400) == 0
    (folder,) = tmp_path.iterdir()
    check_whole(folder)
    last = rows(tmp_path)[1:]
    assert last[-1]["servers/restarts"] == 2
    assert sum(row["episodes"] for row in last) == sum(row["groups/num"] for row in last) * 4
    assert all(row[name] == 0 for row in last for name in row if name.startswith("failed/"))
    assert max(row["staleness/max"] for row in last) <= 1
