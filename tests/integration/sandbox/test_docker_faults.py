"""The Docker backend while its engine is stopped, started again or out of disk: no verdict and no reward is made up."""

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from docker import APIClient
from requests.exceptions import Timeout

from agentflow.cli import main
from agentflow.concurrency import DaemonThreads
from agentflow.errors import RunAborted
from agentflow.sandbox.base import Program, Result
from agentflow.sandbox.docker.backend import DockerSandbox
from agentflow.sandbox.docker.container import ran_out_of_memory
from agentflow.sandbox.shared import SharedSandbox
from tests.integration.brittle import Watched, invented, play
from tests.integration.sandbox.engine import Engine, own_engine


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with own_engine(tmp_path_factory.mktemp("engine")) as engine, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine.address)
        assert main(["sandbox", "image"]) == 0
        yield engine


@pytest.fixture
def engine(own: Engine) -> Engine:
    own.start()
    return own


def shared(patience_s: float) -> SharedSandbox:
    """Return a sandbox of two programs at once."""
    return SharedSandbox(lambda: DockerSandbox(2, patience_s=patience_s), name="docker")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_run_goes_on_once_an_engine_is_back(engine: Engine, number: int) -> None:
    def restart() -> None:
        engine.stop(number)
        engine.start()

    sandbox = Watched(shared(60.0), after=10, then=restart)
    collected = play(sandbox, max_failed=0.0, num_tasks=6)
    asyncio.run(sandbox.close())
    assert sandbox.ended["infra_error"]
    assert {trajectory.status.kind for trajectory in collected.trajectories} == {"completed"}
    assert not invented(collected)


def test_no_reward_is_invented_once_an_engine_is_gone(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    sandbox = Watched(shared(0.5), after=10, then=lambda: engine.stop(signal.SIGKILL))
    collected = play(sandbox, max_failed=1.0, num_tasks=6)
    asyncio.run(sandbox.close())
    kinds = [trajectory.status.kind for trajectory in collected.trajectories]
    assert min(kinds.count("completed"), kinds.count("failed")) > 0
    assert not invented(collected)
    assert "may be left" in caplog.text


def test_engine_that_stays_away_stops_the_run_with_its_name_and_the_remedy(engine: Engine) -> None:
    sandbox = Watched(shared(0.5), after=10, then=engine.stop)
    with pytest.raises(RunAborted, match=f"{engine.address} went away and was not back within 0.5 s. Start it"):
        play(sandbox, max_failed=0.2, num_tasks=6)
    asyncio.run(sandbox.close())


def test_engine_without_disk_is_no_verdict_and_named(engine: Engine) -> None:
    async def work() -> list[Result]:
        sandbox = DockerSandbox(1, warm=0)
        results = []
        for is_full in (False, True, False):
            if is_full:
                fill(engine.data / "filled")
            results.append(await sandbox.run(Program("print(1)")))
            (engine.data / "filled").unlink(missing_ok=True)
        await sandbox.close()
        return results

    before, full, after = asyncio.run(work())
    assert (before.status, full.status, after.status) == ("ok", "infra_error", "ok")
    assert "the disk of the Docker engine is full" in full.detail and str(engine.data) in full.detail


def test_engine_whose_disk_fills_up_stops_the_run_and_invents_nothing(engine: Engine) -> None:
    over = threading.Event()

    def keep_full() -> None:
        while not over.wait(0.01):
            fill(engine.data / "filled")  # what ends makes room again

    sandbox = Watched(shared(0.5), after=10, then=keep_full)
    try:
        with pytest.raises(RunAborted, match=r"the disk of the Docker engine is full.*Free some"):
            play(sandbox, max_failed=0.2, num_tasks=6)
    finally:
        over.set()
        asyncio.run(sandbox.close())
        (engine.data / "filled").unlink(missing_ok=True)
    assert set(sandbox.ended) == {"ok", "infra_error"}


def test_engine_that_hangs_when_asked_for_memory_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = APIClient(f"tcp://127.0.0.1:{silent.getsockname()[1]}", version="1.41", timeout=1)
        asking = DaemonThreads().submit(ran_out_of_memory, api, "0" * 64)
        with pytest.raises(Timeout):
            asking.result(20)


def fill(path: Path) -> None:
    """Lengthen a file until there is no room for another byte."""
    for size in (1 << 20, 1 << 12, 1):
        with path.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * size)
