"""A host without disk space under the code environment: no program is blamed, and a run stops with a clear error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trusted_sandbox import real_process

ROOT = Path(__file__).parents[2]
BACKENDS = pytest.mark.parametrize("backend", [pytest.param("process", marks=real_process)])
# A disk of so many bytes is mounted where nobody else sees it. What it covers and the program's own Python is made of,
# wherever the clone lies, is shown again in its place.
COVER_TMP = """
import os, subprocess, sys
kept = {path: os.open(path, os.O_RDONLY) for path in sys.argv[1:]}
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/tmp"], check=True)
for path, descriptor in kept.items():
    os.makedirs(path)
    words = ["mount", "--no-canonicalize", "--rbind", f"/proc/self/fd/{descriptor}", path]
    subprocess.run(words, check=True, pass_fds=[descriptor])
"""
RUN_WITH_FULL_TMP = """
backend="$2"; python="$1"; cover="$3"; shift 3
"$python" -c "$cover" "$@" && echo 'open("/tmp/x", "w").write("x" * 9999); print(6 * 7)' > /tmp/program.py || exit 98
cat /dev/zero > /tmp/filled; [ "$(df --output=avail /tmp | tail -1)" -eq 0 ] || exit 99
exec "$python" -c 'import sys; from agentflow.cli import main; sys.exit(main(sys.argv[1:]))' \
    sandbox run /tmp/program.py --backend "$backend"
"""
TRAIN_ON_SMALL_DISK = """
mount -t tmpfs -o size=128k tmpfs "$3" && exec "$1" -c '
import json, sys
from pathlib import Path
from agentflow.cli import main
from agentflow.runs import StoredRun
backend, folder = sys.argv[1:]
words = (
    "run.tasks_per_iteration=2 run.group_size=2 evaluation.num_tasks=2 env.train_tasks=8 env.heldout_tasks=2 "
    f"env.sandbox={backend} --env code roles.planner.speaks=expert --iterations 400 --out {folder}"
)
code = main(["train", *words.split()])
run = StoredRun(next(Path(folder).glob("code--*")))
found = [[t.raw_return for group in run.groups(i) for t in group.trajectories] for i in run.rollout_iterations()]
print(json.dumps([code, found, len(run.metrics())]))
' "$2" "$3"
"""


def run_apart(script: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a shell script in a mount namespace of its own."""
    namespaces = ["--mount"] if os.getuid() == 0 else ["--mount", "--user", "--map-root-user"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = ["unshare", *namespaces, "sh", "-c", script, "sh", sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environment, timeout=300)


def in_tmp(*paths: str) -> list[str]:
    """Return the folders that a disk mounted on /tmp would cover, without those inside another one."""
    covered = {Path(path).resolve() for path in paths if Path(path).is_dir()}
    covered = {path for path in covered if path.is_relative_to("/tmp")}
    return sorted(str(path) for path in covered if not covered.intersection(path.parents))


@BACKENDS
def test_program_runs_though_the_hosts_tmp_is_full(backend: str) -> None:
    done = run_apart(RUN_WITH_FULL_TMP, backend, COVER_TMP, *in_tmp(sys.prefix, sys.base_prefix, *sys.path, str(ROOT)))
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
    assert f"ok ({backend};" in done.stderr


@BACKENDS
def test_run_whose_folder_is_full_stops_and_what_it_wrote_is_read(backend: str, tmp_path: Path) -> None:
    done = run_apart(TRAIN_ON_SMALL_DISK, backend, str(tmp_path))
    code, returns, num_metrics = json.loads(done.stdout.splitlines()[-1])
    assert code == 2
    assert "is full. Free some space there. What was complete before is intact. Then: agentflow train" in done.stderr
    assert len(returns) >= num_metrics - 1 > 1  # the first is of the evaluation at the start
    assert {reward for iteration in returns for reward in iteration} == {1.0}
