"""SIGKILL at any moment leaves a run that resumes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentflow.runs import Run
from tests.processes import started

_WRITER = """
import sys
from pathlib import Path
from agentflow.config import Config
from agentflow.runs import Run
from agentflow.trajectory import Group, Task
run = Run.create(Path(sys.argv[1]), config=Config(), env="e", model="m", seed=0, tensorboard=False)
print(run.path, flush=True)
for i in range(10_000):
    run.log({"iteration": i, "x": "y" * 2000})
    run.write_groups(i, [Group(Task(str(i), "?" * 2000), ())])
    with run.checkpoint(i, keep=2) as folder:
        for name in "abcd":
            (folder / name).write_text(f"{i}" * 2000)
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.013, 0.031, 0.057])
def test_a_killed_writer_leaves_a_resumable_run(tmp_path: Path, delay_s: float) -> None:
    with started([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        path = Path(writer.stdout.readline().strip())
        time.sleep(delay_s)
        writer.kill()
    assert writer.returncode == -signal.SIGKILL
    with Run.resume(path, tensorboard=False) as run:
        latest = run.latest_checkpoint()
        kept = list(range(latest.iteration + 1)) if latest else []
        assert [row["iteration"] for row in run.metrics()] == kept
        assert run.rollout_iterations() == kept
        assert all(next(run.groups(i)).task.id == str(i) for i in kept)
        for checkpoint in run.checkpoints():
            assert {(checkpoint.path / name).read_text() for name in "abcd"} == {f"{checkpoint.iteration}" * 2000}
        assert not list(path.rglob(".tmp-*"))
