"""The processes of a server end, all of them and at once or after some patience, whatever they think of it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentflow.policies.vllm.server_process import ServerProcess
from agentflow.sandbox.limits.process_tree import is_alive

# A server whose child ignores SIGTERM; both numbers go into a file.
STUBBORN = """
import os, signal, sys, time
if child := os.fork():
    open(sys.argv[1], "w").write(f"{os.getpid()} {child}\\n")
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(600)
"""
OWNER = """
import sys, time
from pathlib import Path
from agentflow.policies.vllm.server_process import ServerProcess
code, folder, told = sys.argv[1:]
server = ServerProcess([sys.executable, "-c", code, told], Path(folder), environment={})
time.sleep(600)
"""


def processes(told: Path) -> list[int]:
    """Wait until a server has told its processes."""
    deadline = time.monotonic() + 60
    while not told.exists() or not told.read_text().endswith("\n"):
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.02)
    return [int(word) for word in told.read_text().split()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "server"
    folder.mkdir()
    return folder


def test_every_process_is_ended(folder: Path, tmp_path: Path) -> None:
    server = ServerProcess([sys.executable, "-c", STUBBORN, str(tmp_path / "told")], folder, environment={})
    pids = processes(tmp_path / "told")
    assert server.exit_code is None
    server.end()
    assert not any(map(is_alive, pids))
    assert not folder.exists()


def test_every_process_ends_with_an_owner_that_is_killed(folder: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", OWNER, STUBBORN, str(folder), str(tmp_path / "told")]
    with subprocess.Popen(words) as owner:
        try:
            pids = processes(tmp_path / "told")
        finally:
            owner.kill()
    deadline = time.monotonic() + 30
    while any(map(is_alive, pids)) or folder.exists():
        assert time.monotonic() < deadline, "something has outlived the owner"
        time.sleep(0.05)


def test_a_server_that_ends_tells_its_exit_code(folder: Path) -> None:
    server = ServerProcess([sys.executable, "-c", "raise SystemExit(7)"], folder, environment={})
    assert server.wait() == server.exit_code == 7
    server.end()
    server.end()  # as often as one likes


def test_secrets_are_not_passed_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "hush")
    monkeypatch.setenv("HF_TOKEN", "hush")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    with (tmp_path / "log").open("wb") as log:
        server = ServerProcess(["env"], folder, environment={"OURS": "1"}, log=log)
    assert server.wait() == 0
    server.end()
    said = (tmp_path / "log").read_text()
    assert "hush" not in said
    assert {"VLLM_LOGGING_LEVEL=INFO", "OURS=1", f"PYTHONPATH={folder}"} <= set(said.splitlines())
