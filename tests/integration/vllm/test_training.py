"""Whole trainings over servers of their own: killed trainers resume, killed servers leave no trace."""

import os
import signal
from pathlib import Path

from agentflow.cli.evaluation import evaluation_config
from agentflow.sandbox.limits.process_tree import tree_usage
from tests.integration.vllm.trainings import ASYNCHRONOUS, check_whole, kill_and_resume, rows, start, until_iteration


def listening(owner: int) -> int:
    """Return the process of the server that listens."""
    pids = [pid for pid in tree_usage(owner).pids if b"--uds=" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return min(pids)


def test_a_trainer_that_is_killed_takes_its_servers_along_and_resumes(tmp_path: Path) -> None:
    assert len(kill_and_resume(tmp_path)) > 1
    (folder,) = tmp_path.iterdir()
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
