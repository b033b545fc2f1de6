"""The contract of the process sandbox where AgentFlow is an ordinary user: no control groups, no user to change to."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from stat import S_IROTH, S_IXOTH

import pytest

from tests.trusted_sandbox import real_process

pytestmark = [real_process, pytest.mark.skipif(os.getuid() != 0, reason="this suite runs as an ordinary user already")]

_CONTRACT = "way_to_end or out_of_reach or denied or caller or orphans or work_space or many_at_once or probe"
_NEEDED = (sys.base_prefix, sys.prefix, str(Path.cwd()))

STRANGER = ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups"]
WITHOUT_RIGHTS = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]


def is_public(folder: str) -> bool:
    """Say whether every user can reach and list a folder; an ordinary user keeps its own rights inside."""
    if os.getuid():
        return True
    steps = [Path(folder), *Path(folder).parents]
    return all(step.stat().st_mode & S_IXOTH for step in steps) and bool(steps[0].stat().st_mode & S_IROTH)


def is_closed(folder: Path) -> bool:
    return not folder.stat().st_mode & S_IXOTH


def opened() -> list[str]:
    """Return a command that shows what is needed to everybody, though it may lie in a folder of root's own."""
    hidden = [path for path in _NEEDED if not is_public(path)]
    steps = [next((step for step in reversed(Path(path).parents) if is_closed(step)), path) for path in hidden]
    needed, closed = (" ".join(map(shlex.quote, map(str, dict.fromkeys(paths)))) for paths in (hidden, steps))
    # Each closed folder is replaced by an empty one with the needed paths in their places, for this command only.
    script = f"""
        kept=$(mktemp -d) && mount -t tmpfs kept $kept
        for path in {needed}; do mkdir -p $kept/$path; mount --bind $path $kept/$path; done
        for folder in {closed}; do mount -t tmpfs -o mode=755 opened $folder; done
        for path in {needed}; do mkdir -p $path; mount --bind $kept/$path $path; done
        exec "$@"
    """
    return ["unshare", "--mount", "sh", "-ec", script, "sh"]


def run_as(become: list[str], words: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run this interpreter as somebody else."""
    return subprocess.run(
        [*become, sys.executable, *words],
        env={**os.environ, "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def stranger() -> list[str]:
    """What makes a command run as another user; empty where that user cannot read this interpreter."""
    if all(map(is_public, _NEEDED)):
        return STRANGER
    become = [*opened(), *STRANGER]
    return become if run_as(become, ["-c", "import agentflow.cli, tests, pytest"]).returncode == 0 else []


def test_contract_holds_for_an_ordinary_user(stranger: list[str]) -> None:
    # Another user, where that is possible; else root without a right.
    words = ["-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "tests/integration/sandbox/test_process.py"]
    words += ["-k", _CONTRACT, f"--basetemp=/tmp/agentflow-ordinary-{os.getpid()}"]
    done = run_as(stranger or WITHOUT_RIGHTS, words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_every_attack_is_contained_for_an_ordinary_user(stranger: list[str]) -> None:
    if not stranger:
        pytest.skip("THE ATTACKS ARE NOT TRIED AS AN ORDINARY USER: no other user can read this interpreter")
    done = run_as(stranger, ["-m", "tests.attacks", "process"])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
