"""The contract of the process sandbox where AgentFlow is an ordinary user: no control groups, no user to change to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentflow.sandbox.bubblewrap import is_public
from tests.trusted_sandbox import real_process

pytestmark = [real_process, pytest.mark.skipif(os.getuid() != 0, reason="this suite runs as an ordinary user already")]

_CONTRACT = "way_to_end or out_of_reach or denied or caller or orphans or work_space or many_at_once or probe"


STRANGER = ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups"]
WITHOUT_RIGHTS = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]


def is_readable() -> bool:
    """Say whether another user can read this interpreter and these tests."""
    return all(map(is_public, (sys.base_prefix, sys.prefix, str(Path.cwd()))))


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


def test_contract_holds_for_an_ordinary_user() -> None:
    # Another user, where that is possible; else root without a right.
    words = ["-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "tests/integration/sandbox/test_process.py"]
    words += ["-k", _CONTRACT, f"--basetemp=/tmp/agentflow-ordinary-{os.getpid()}"]
    done = run_as(STRANGER if is_readable() else WITHOUT_RIGHTS, words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_every_attack_is_contained_for_an_ordinary_user() -> None:
    if not is_readable():
        pytest.skip("THE ATTACKS ARE NOT TRIED AS AN ORDINARY USER: no other user can read this interpreter")
    attack = "import sys; from agentflow.cli import main; sys.exit(main(['sandbox', 'attack', '--backend', 'process']))"
    done = run_as(STRANGER, ["-c", attack])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
