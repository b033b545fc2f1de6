"""The engine that the Docker backend talks to, which may be stopped, started again or out of disk at any time."""

import os
import threading
import time
from typing import Any

from agentflow.sandbox.base import SandboxUnavailable

START = "Start it (systemctl start docker), name it in DOCKER_HOST, or install it: apt-get install docker.io."
_LOCAL = "unix:///var/run/docker.sock"
_TIMEOUT_S = 60
_TICK_S = 0.2
_FULL = "no space left on device"


class Engine:
    """An engine, and how long to wait for it should it go away.

    Args:
        patience_s: Seconds that it may be away, for example to be started again, before programs fail at once.

    Raises:
        SandboxUnavailable: The `docker` package is not installed, or no engine answers.
    """

    def __init__(self, patience_s: float) -> None:
        self.client = connect()
        self._patience_s = patience_s
        told = self.client.info()
        self.architecture: str = told["Architecture"]
        self._folder: str = told["DockerRootDir"]
        self._lost_at: float | None = None
        self._lock = threading.Lock()

    @property
    def answers(self) -> bool:
        """Whether it answers right now."""
        try:
            self.client.ping()
        except Exception:  # noqa: BLE001  the SDK passes on whatever its transport raises
            return False
        self._lost_at = None
        return True

    def explain(self, error: Exception, stop: threading.Event) -> str:
        """Say for people what an error of the engine means; if it has gone away, wait for its return first.

        Args:
            error: What was raised.
            stop: Set where nobody waits any more.
        """
        said = f"{type(error).__name__}: {error}"[:400]
        if not self.answers:
            away = f"the Docker engine at {os.environ.get('DOCKER_HOST') or _LOCAL} went away"
            if self._is_back(stop):
                return f"{away} and is back ({said})"
            return f"{away} and was not back within {self._patience_s:g} s. {START} ({said})"
        if _FULL in said:
            return (
                f"the disk of the Docker engine is full ({said}). Free some where its data lies, {self._folder} "
                "(df; docker system prune), or move that: dockerd --data-root."
            )
        return said

    def _is_back(self, stop: threading.Event) -> bool:
        """Wait until it answers again; all who wait do so from the moment when the first of them missed it."""
        with self._lock:
            self._lost_at = lost_at = self._lost_at or time.monotonic()
        while time.monotonic() < lost_at + self._patience_s and not stop.wait(_TICK_S):
            if self.answers:
                return True
        return False


def connect() -> Any:
    """Return a client of the engine that `DOCKER_HOST` names, or of the local one.

    Raises:
        SandboxUnavailable: The `docker` package is not installed, or no engine answers.
    """
    try:
        import docker  # noqa: PLC0415  optional
        from docker.errors import DockerException  # noqa: PLC0415
    except ImportError:
        raise SandboxUnavailable("The docker package is not installed.", "pip install 'agentflow-rl[docker]'") from None
    try:
        client = docker.from_env(timeout=_TIMEOUT_S)
        client.ping()
    except (DockerException, OSError) as error:
        raise SandboxUnavailable(f"No Docker engine answers: {str(error)[:200]}.", START) from None
    return client
