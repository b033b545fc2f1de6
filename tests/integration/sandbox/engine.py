"""A Docker engine of the suite's own: on its own socket, in its own folder, ended afterwards."""

import fcntl
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import docker
import pytest
from docker.errors import DockerException

# At the top of the control groups a container has a share of the CPU like any other; below "docker" all have one.
_WORDS = """
--storage-driver overlay2 --bridge none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false
--userland-proxy=false --log-driver none --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent /
""".split()
_START_S = 60.0


def _why_not() -> str:
    """Install an engine where that may be done, and say why none can be started; empty if one can."""
    if os.getuid():
        return "starting a Docker engine takes root"
    if shutil.which("dockerd") is None and shutil.which("apt-get"):
        words = ["install", "--yes", "--no-install-recommends", "docker.io"]
        for step in (["update"], words):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(
                ["apt-get", "--quiet", *step], check=False, stdout=subprocess.DEVNULL, timeout=300, env=environment
            )
    return "" if shutil.which("dockerd") else "there is no dockerd, and apt-get cannot install docker.io"


@contextmanager
def shared_engine() -> Iterator[str]:
    """Yield the address of an engine that all workers of a test run share: the first starts it, the last ends it."""
    folder = Path(tempfile.gettempdir(), f"agentflow-{os.environ.get('PYTEST_XDIST_TESTRUNUID', secrets.token_hex(8))}")
    with _joined(folder) as users:
        reason = _why_not()
        if reason:
            shutil.rmtree(folder, ignore_errors=True)
            pytest.skip(f"THE DOCKER BACKEND IS NOT TESTED: {reason}")
        address = _start(folder)
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield address
        finally:
            _end_if_last(folder, users.fileno())


def _joined(folder: Path) -> IO[str]:
    """Open and lock the file whose locks are the engine's users; again if the last user removed it meanwhile."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            users = (folder / "users").open("w")
            fcntl.flock(users, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(users.fileno()), os.stat(folder / "users")):
                return users
            users.close()
        except FileNotFoundError:
            continue


def _start(folder: Path) -> str:
    """Start the engine unless it runs already, and wait until it answers."""
    address = f"unix://{folder}/docker.sock"
    if not (folder / "pid").exists():
        places = ["--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "pid"]
        with (folder / "log").open("wb") as log:
            words = ["dockerd", *map(str, places), "--host", address, *_WORDS]
            subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + _START_S
    while True:
        try:
            docker.DockerClient(address).ping()
            return address
        except DockerException as error:
            if time.monotonic() > deadline:
                pytest.fail(f"dockerd does not start: {error}\n{(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)


def _end_if_last(folder: Path, users: int) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    pid = int((folder / "pid").read_text())
    os.kill(pid, 15)
    deadline = time.monotonic() + _START_S
    while (folder / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for mounted in ("data", "exec/netns/default"):  # the second is made for a container in the host's network
        words = ["umount", "--quiet", "--recursive", str(folder / mounted)]
        subprocess.run(words, check=False, stderr=subprocess.DEVNULL)
    shutil.rmtree(folder, ignore_errors=True)
