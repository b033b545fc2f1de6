"""The contract of the process sandbox where AgentFlow is an ordinary user: no control groups, no user to change to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentflow.sandbox.bubblewrap import is_public
from tests.trusted_sandbox import real_process

pytestmark = [real_process, pytest.mark.skipif(os.getuid() != 0, reason="this suite runs as an ordinary user already")]


def test_contract_holds_for_an_ordinary_user(tmp_path: Path) -> None:
    # Another user, where it can read this interpreter and these tests; else root without a right.
    is_readable = all(map(is_public, (sys.base_prefix, sys.prefix, str(Path.cwd()))))
    stranger = ["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups"]
    become = stranger if is_readable else ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    words = ["-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "tests/integration/sandbox/test_contract.py"]
    done = subprocess.run(
        [*become, sys.executable, *words, "-k", "process", f"--basetemp=/tmp/agentflow-ordinary-{os.getpid()}"],
        env={**os.environ, "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
