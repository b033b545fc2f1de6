"""A Docker engine of the suite's own: on its own socket, in its own folder, ended afterwards."""

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import docker
import pytest
from docker.errors import DockerException

from agentflow.sandbox.limits.process_tree import is_alive

# At the top of the control groups a container has a share of the CPU like any other; below "docker" all have one.
_WORDS = """
--storage-driver overlay2 --bridge none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false
--userland-proxy=false --log-driver none --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent /
""".split()
_START_S = 60.0


def _why_not() -> str:
    """Say why no engine can be started; empty if one can."""
    if os.getuid():
        return "starting a Docker engine takes root"
    tried = os.environ.get("AGENTFLOW_NOT_INSTALLED", "")
    return "" if shutil.which("dockerd") else f"there is no dockerd, and apt-get has not installed docker.io. {tried}"


class Engine:
    """An engine of its own.

    Args:
        folder: Where all that it writes lies.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.data = folder / "data"
        self.address = f"unix://{folder}/docker.sock"

    @property
    def pid(self) -> int:
        """Its process; 0 while there is none."""
        return _number(self._folder / "pid")

    def start(self) -> None:
        """Start it unless it runs already, and wait until it answers."""
        if not is_alive(self.pid):
            places = ["--data-root", self.data, "--exec-root", self._folder / "exec", "--pidfile", self._folder / "pid"]
            with (self._folder / "log").open("ab") as log:
                words = ["dockerd", *map(str, places), "--host", self.address, *_WORDS]
                subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if time.monotonic() > deadline:
                pytest.fail(f"dockerd does not start:\n{(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, if it runs, and wait until it is gone."""
        pid, helper = self.pid, self._folder / "exec/containerd/containerd.pid"
        if not is_alive(pid):
            return
        os.kill(pid, number)
        deadline = time.monotonic() + _START_S
        while (is_alive(pid) or is_alive(_number(helper))) and time.monotonic() < deadline:
            time.sleep(0.05)
        # Until somebody has buried them, a successor would take them for alive.
        for path in (self._folder / "pid", helper):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """End it, and what an engine that was killed left running, and unmount its data."""
        self.stop()
        own = f"{self._folder}/exec".encode()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if own in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)
        words = ["umount", "--quiet", "--recursive", "--lazy", str(self.data)]
        subprocess.run(words, check=False, stderr=subprocess.DEVNULL, timeout=60)

    def _answers(self) -> bool:
        try:
            docker.DockerClient(self.address).ping()
        except DockerException:
            return False
        return True


def _number(path: Path) -> int:
    """Return the process that a file names; 0 where there is no such file."""
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0


@contextmanager
def shared_engine() -> Iterator[str]:
    """Yield the address of an engine that all workers of a test run share: the first starts it, the last ends it."""
    folder = Path(tempfile.gettempdir(), f"agentflow-{os.environ.get('PYTEST_XDIST_TESTRUNUID', secrets.token_hex(8))}")
    with ExitStack() as using:
        with _door(folder):
            reason = _why_not()
            if reason:
                shutil.rmtree(folder, ignore_errors=True)
                pytest.skip(f"THE DOCKER BACKEND IS NOT TESTED: {reason}")
            engine = Engine(folder)
            engine.start()
            users = using.enter_context((folder / "users").open("w"))
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield engine.address
        finally:
            with _door(folder):
                _end_if_last(folder, users.fileno())


def _door(folder: Path) -> IO[str]:
    """Open and lock what lets one worker at a time start or end the engine, in a folder that is there meanwhile."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            door = (folder / "door").open("w")
            fcntl.flock(door, fcntl.LOCK_EX)
            # The last user may have removed the folder meanwhile.
            if os.path.samestat(os.fstat(door.fileno()), os.stat(folder / "door")):
                return door
            door.close()
        except FileNotFoundError:
            continue


@contextmanager
def own_engine(folder: Path) -> Iterator[Engine]:
    """Yield an engine that a test may break; it is started already, and its data lies on a small disk of its own."""
    reason = _why_not()
    if reason:
        pytest.skip(f"FAULTS OF THE DOCKER ENGINE ARE NOT TESTED: {reason}")
    engine = Engine(folder)
    engine.data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(engine.data)], check=True, timeout=60)
    try:
        engine.start()
        yield engine
    finally:
        engine.clear()


def _end_if_last(folder: Path, users: int) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    Engine(folder).clear()
    shutil.rmtree(folder, ignore_errors=True)
