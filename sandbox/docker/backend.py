"""The Docker backend: each program in a fresh container that was started ahead, without network and capabilities.

Nothing of a container is used twice. Its first process waits for the program, judges CPU and wall time over the
control group, and ends what the program left; should AgentFlow die, it ends by itself, and the engine removes it.
"""

import asyncio
import json
import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from agentflow.sandbox.base import Limits, Program, Result, SandboxUnavailable, Session, refusal
from agentflow.sandbox.docker.container import Build, Container, Shape
from agentflow.sandbox.docker.engine import Engine, connect
from agentflow.sandbox.docker.image import DEFAULT_IMAGE, write_image
from agentflow.sandbox.limits.seccomp import docker_profile
from agentflow.sandbox.verdict import result_of
from agentflow.sandbox.waiting import in_thread

_log = logging.getLogger(__name__)

ENFORCED = (
    "cpu:cgroup",
    "memory:cgroup",
    "wall",
    "output",
    "disk:tmpfs",
    "pids:cgroup",
    "net",
    "pid",
    "seccomp",
    "uid",
)
LABEL = "agentflow.sandbox"
_RUN_LABEL, OWNER_LABEL = "agentflow.run", "agentflow.owner"
_FIRST_UID, _NUM_UIDS = 20_000, 40_000
_MAX_SHAPES = 3
_PATIENCE_S = 30.0
_GONE_S, _GONE_TICK_S = 10.0, 0.02
_START_TIME = 19  # the field of /proc/PID/stat after the name, counted from the state


class DockerSandbox:
    """Run programs in containers.

    Args:
        concurrency: Programs at once; None for one a core.
        image: The image; it needs Python 3.11 or newer at /usr/local/bin/python3, and no entry point.
        run_id: What its containers are labelled with, unlike those of any other sandbox; None for a random name.
        warm: Containers that wait ahead for each shape of limits; None for as many as programs at once.
        patience_s: Seconds that the engine may be away, for example to be started again, before programs fail at once.

    Raises:
        SandboxUnavailable: The `docker` package is not installed, no engine answers, or the image is not there.
    """

    name = "docker"

    def __init__(
        self,
        concurrency: int | None = None,
        *,
        image: str = DEFAULT_IMAGE,
        run_id: str | None = None,
        warm: int | None = None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._engine = Engine(patience_s)
        self._client = self._engine.client
        _ensure_image(self._client, image)
        num_slots = concurrency or os.cpu_count() or 1
        self.run_id = run_id or secrets.token_hex(4)
        labels = {LABEL: "1", _RUN_LABEL: self.run_id, OWNER_LABEL: owner_mark(os.getpid())}
        self._slots = asyncio.Semaphore(num_slots)
        build = Build(image, labels, json.dumps(docker_profile(self._engine.architecture)))
        self._pool = _Pool(self._client.api, build, warm=num_slots if warm is None else warm)

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        """Run a program in a fresh container; see `Sandbox`."""
        used = limits or Limits()
        problem = refusal(program, used)
        if problem:
            return Result("refused", detail=problem, backend=self.name)
        async with self._slots:
            return await in_thread(lambda stop: self._run(program, used, stop=stop))

    async def session(self, limits: Limits | None = None) -> Session:
        """Refuse: a container runs one program.

        Raises:
            SandboxUnavailable: Always.
        """
        raise SandboxUnavailable(
            "The docker sandbox keeps no interpreter between programs.", "Use `run`, or the process sandbox."
        )

    async def close(self) -> None:
        """End the containers that wait, and see all gone; an engine that is away ends them once it is back."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        try:
            self._pool.close()
            deadline = time.monotonic() + _GONE_S
            while self.containers() and time.monotonic() < deadline:
                time.sleep(_GONE_TICK_S)
        except Exception as error:
            if self._engine.answers:
                raise
            _log.warning("containers of run %s may be left, as no engine answers: %s", self.run_id, error)
        finally:
            self._client.close()

    def containers(self) -> list[Any]:
        """Return the containers of this sandbox, those that wait and those that are being removed included."""
        return _labelled(self._client, f"{_RUN_LABEL}={self.run_id}")

    def _run(self, program: Program, limits: Limits, *, stop: threading.Event) -> Result:
        try:
            container = self._pool.take(_shape(limits))
            try:
                ending, figures = container.run(program, limits, stop=stop)
            finally:
                container.hang_up()
        except Exception as error:  # noqa: BLE001  the SDK passes on whatever its transport raises
            return Result("infra_error", detail=self._engine.explain(error, stop), backend=self.name)
        return result_of(ending, limits, backend=self.name, enforced=ENFORCED, figures=figures)


class _Pool:
    """Containers that wait for a program, by the shape of their limits.

    Args:
        api: Docker's low-level client.
        build: What they share.
        warm: How many wait ahead for each of the last shapes that were asked for.
    """

    def __init__(self, api: Any, build: Build, *, warm: int) -> None:
        self._api, self._build, self._warm = api, build, warm
        self._waiting: OrderedDict[Shape, deque[Future[Container]]] = OrderedDict()
        self._users: list[int] = []
        self._lock = threading.Lock()
        self._makers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="containers")

    def take(self, shape: Shape) -> Container:
        """Return a container that waits, and have the next one made."""
        while True:
            container = self._next(shape).result()
            if container.is_waiting:
                return container
            container.hang_up()

    def close(self) -> None:
        """End all that wait, and make no more."""
        with self._lock:
            waiting = [future for futures in self._waiting.values() for future in futures]
            self._waiting.clear()
        self._makers.shutdown(wait=True, cancel_futures=True)
        for future in waiting:
            _discard(future)

    def _next(self, shape: Shape) -> "Future[Container]":
        with self._lock:
            futures = self._waiting.setdefault(shape, deque())
            self._waiting.move_to_end(shape)
            old = self._waiting.popitem(last=False)[1] if len(self._waiting) > _MAX_SHAPES else ()
            while futures and _has_failed(futures[0]):
                futures.popleft()  # when it was made ahead; that says nothing of now
            future = futures.popleft() if futures else self._makers.submit(self._make, shape)
            while len(futures) < self._warm:
                futures.append(self._makers.submit(self._make, shape))
        for unused in old:
            unused.add_done_callback(_discard)
        return future

    def _make(self, shape: Shape) -> Container:
        # A user of its own, so that one program's processes are never another's.
        with self._lock:
            if not self._users:
                first = secrets.randbelow(_NUM_UIDS)
                self._users = [_FIRST_UID + (first + step) % _NUM_UIDS for step in range(_NUM_UIDS)]
            user = self._users.pop()
        return Container(self._api, self._build, shape=shape, user=user)


def _shape(limits: Limits) -> Shape:
    return Shape(limits.memory_mb, limits.disk_mb, limits.max_processes)


def _has_failed(future: "Future[Container]") -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)


def _discard(future: "Future[Container]") -> None:
    if not _has_failed(future):
        future.result().end()


def build_image(name: str = DEFAULT_IMAGE, packages: Sequence[str] = ()) -> str:
    """Make an image of this machine's own Python and give it to the engine; return its id.

    Args:
        name: Its name.
        packages: Installed distributions to put in.

    Raises:
        ConfigError: A distribution is not installed.
        SandboxUnavailable: No engine answers.
    """
    client = connect()
    repository, _, tag = name.partition(":")
    with tempfile.TemporaryFile() as file:
        write_image(file, packages)
        file.seek(0)
        client.api.import_image_from_data(file, repository=repository, tag=tag or "latest")
    identity = client.images.get(name).id
    client.close()
    return str(identity)


def gc() -> list[str]:
    """Remove the containers whose owners on this machine are dead, and return their names.

    Raises:
        SandboxUnavailable: No engine answers.
    """
    client = connect()
    dead = [container for container in _labelled(client, LABEL) if is_dead(container.labels.get(OWNER_LABEL, ""))]
    for container in dead:
        container.remove(force=True)
    client.close()
    return [container.name for container in dead]


def owner_mark(pid: int) -> str:
    """Say which process owns a container so that no other, elsewhere or later, is taken for it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    where = boot.read_text().strip() if boot.exists() else socket.gethostname()
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_START_TIME]
        return f"{where} {os.stat('/proc/self/ns/pid').st_ino} {pid} {started}"
    except OSError:
        return f"{where} 0 {pid} 0"


def is_dead(mark: str) -> bool:
    """Say whether the owner of a mark lived here and lives no more; an owner elsewhere is never called dead."""
    words, own = mark.split(), owner_mark(os.getpid()).split()
    return len(words) == len(own) and words[:2] == own[:2] and owner_mark(int(words[2])) != mark


def _labelled(client: Any, label: str) -> list[Any]:
    return list(client.containers.list(all=True, filters={"label": label}, ignore_removed=True))


def _ensure_image(client: Any, image: str) -> None:
    from docker.errors import ImageNotFound  # noqa: PLC0415  optional

    try:
        client.images.get(image)
    except ImageNotFound:
        raise SandboxUnavailable(
            f"The engine has no image {image}.", "Make it of this Python: agentflow sandbox image."
        ) from None
