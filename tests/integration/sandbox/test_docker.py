"""The Docker backend, in an engine of the suite's own: the contract, and what is its own."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
from docker.errors import APIError

from agentflow.cli import main
from agentflow.errors import ConfigError
from agentflow.sandbox.attacks.base import Verdict
from agentflow.sandbox.attacks.suite import attack_sandbox
from agentflow.sandbox.base import Limits, Program, Result, SandboxUnavailable
from agentflow.sandbox.docker import backend
from agentflow.sandbox.docker.backend import DockerSandbox, build_image, gc, is_dead, owner_mark
from agentflow.sandbox.docker.container import ran_out_of_memory
from agentflow.sandbox.docker.engine import connect
from agentflow.sandbox.docker.image import DEFAULT_IMAGE, PYTHON
from agentflow.sandbox.probe import open_sandbox
from agentflow.sandbox.shared import SharedSandbox
from tests.attacks import ATTACKS
from tests.integration.sandbox.contract import *  # noqa: F403
from tests.integration.sandbox.contract import LIMITS, run
from tests.processes import started

pytestmark = pytest.mark.usefixtures("engine")
RUN = f"contract-{os.getpid()}"
T = TypeVar("T")


@pytest.fixture(scope="module")
def sandbox(engine: str) -> Iterator[SharedSandbox]:
    shared = SharedSandbox(lambda: DockerSandbox(run_id=RUN))
    yield shared
    asyncio.run(shared.close())
    assert not listed(RUN)


def listed(run_id: str) -> list[str]:
    """Return the containers of a run."""
    label = f"agentflow.run={run_id}"
    return [found["Id"] for found in connect().api.containers(all=True, filters={"label": label})]


def is_gone_within(run_id: str, seconds: float) -> bool:
    """Wait until nothing of a run is left."""
    deadline = time.monotonic() + seconds
    while listed(run_id):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def num_left(engine: str) -> Callable[[], int]:
    def count() -> int:
        api, total = connect().api, 0
        for container in listed(RUN):
            try:
                processes = api.top(container)["Processes"] or ()  # null while it ends
            except APIError:
                continue  # it has ended
            total += max(len(processes) - 1, 0)
        return total

    return count


def play(work: Callable[[DockerSandbox], Awaitable[T]], **options: Any) -> T:
    """Do something with a sandbox that keeps nothing warm unless told to."""

    async def played() -> T:
        sandbox = DockerSandbox(**{"concurrency": 1, "warm": 0, **options})
        try:
            return await work(sandbox)
        finally:
            await sandbox.close()

    return asyncio.run(played())


def test_program_that_speaks_like_the_first_process_is_not_believed(sandbox: SharedSandbox) -> None:
    forged = json.dumps({"code": 0, "ended_by": "", "cpu_s": 0.0, "wall_s": 0.0, "memory_mb": 0.0, "oom": False})
    code = f"import os\nos.write(2, b'\\0agentflow:' + {forged!r}.encode().ljust(244))\nos._exit(3)"
    result = run(sandbox, code)
    assert (result.status, result.exit_code, result.stderr.num_bytes) == ("nonzero_exit", 3, 255)


REACHING = (
    "import os, signal\nfor n in (2, 9, 15, 17, 19): os.kill(1, n)\n"
    "for name in ('mem', 'environ', 'fd/0', 'fd/1', 'fd/2', 'maps'):\n"
    "  try: open('/proc/1/' + name, 'r+b').read(1); print('reached', name)\n  except OSError: pass\nprint('done')"
)


def test_first_process_can_be_neither_read_nor_written_nor_signalled(sandbox: SharedSandbox) -> None:
    assert run(sandbox, REACHING).stdout.text == "done\n"


def test_no_interpreter_is_kept_for_sessions(sandbox: SharedSandbox) -> None:
    with pytest.raises(SandboxUnavailable, match=r"keeps no interpreter.*the process sandbox"):
        asyncio.run(sandbox.session())


@pytest.mark.parametrize(("size_mb", "ran_out"), [(100, True), (1, False)])
def test_engine_tells_whose_memory_ran_out(size_mb: int, ran_out: bool) -> None:
    api = connect().api
    words = [PYTHON, "-c", f"x = bytearray(b'x') * ({size_mb} << 20)"]
    host = api.create_host_config(network_mode="none", mem_limit="16m", memswap_limit="16m")
    container = api.create_container(DEFAULT_IMAGE, words, host_config=host)["Id"]
    try:
        api.start(container)
        api.wait(container)
        assert ran_out_of_memory(api, container) is ran_out
    finally:
        api.remove_container(container, force=True)


def test_work_space_counts_as_memory(sandbox: SharedSandbox) -> None:
    limits = LIMITS.model_copy(update={"memory_mb": 16, "disk_mb": 200})
    assert run(sandbox, "open('x', 'wb').write(b'x' * (150 << 20))", limits=limits).status == "memory"
    code = "import time\nfor _ in range(150): open(str(_), 'wb').write(b'x' * (1 << 20))\nprint('unreached')"
    assert run(sandbox, code, limits=limits).status == "memory"


def test_forks_that_ignore_everything_and_flood_are_ended(sandbox: SharedSandbox) -> None:
    code = (
        "import os, signal\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\nos.fork(); os.fork(); os.setsid\n"
        "while True: os.write(1, b'x' * 60000); os.write(2, b'x' * 60000)"
    )
    started = time.monotonic()
    assert run(sandbox, code).status in ("output_limit", "cpu_timeout")
    assert time.monotonic() - started < 20


def test_container_that_somebody_removes_is_no_verdict_on_the_program() -> None:
    async def work(sandbox: DockerSandbox) -> Result:
        running = asyncio.ensure_future(sandbox.run(Program("import time; time.sleep(60)"), Limits()))
        await asyncio.sleep(1.5)
        for container in sandbox.containers():
            await asyncio.to_thread(container.remove, force=True)
        return await running

    assert play(work).status == "infra_error"


def test_engine_that_cannot_make_a_container_is_no_verdict_on_the_program(engine: str) -> None:
    images = connect().images
    images.get(DEFAULT_IMAGE).tag("agentflow-short-lived", "latest")

    async def work(sandbox: DockerSandbox) -> Result:
        await asyncio.to_thread(images.remove, "agentflow-short-lived")
        return await sandbox.run(Program("pass"))

    result = play(work, image="agentflow-short-lived")
    assert result.status == "infra_error"
    assert "ImageNotFound" in result.detail


def test_waiting_container_that_died_is_replaced() -> None:
    async def work(sandbox: DockerSandbox) -> list[Result]:
        first = await sandbox.run(Program("print(1)"), LIMITS)
        await asyncio.sleep(1)
        for container in sandbox.containers():
            await asyncio.to_thread(container.remove, force=True)
        return [first, await sandbox.run(Program("print(2)"), LIMITS)]

    assert [result.stdout.text for result in play(work, warm=1)] == ["1\n", "2\n"]


def test_only_the_last_shapes_are_kept_warm() -> None:
    async def work(sandbox: DockerSandbox) -> int:
        for memory_mb in (32, 48, 64, 80):
            assert (await sandbox.run(Program("pass"), Limits(memory_mb=memory_mb))).status == "ok"
        for _ in range(100):
            if len(sandbox.containers()) == 3:
                break
            await asyncio.sleep(0.1)
        return len(sandbox.containers())

    assert play(work, warm=1) == 3


KILLED = """
import asyncio, sys
from agentflow.sandbox.base import Limits, Program
from agentflow.sandbox.docker.backend import DockerSandbox
async def main():
    sandbox = DockerSandbox(concurrency=2, run_id=sys.argv[1])
    await sandbox.run(Program("pass"), Limits(wall_s=3))
    running = asyncio.ensure_future(sandbox.run(Program("import time; time.sleep(60)"), Limits(wall_s=3)))
    await asyncio.sleep(1)
    print("running", flush=True)
    await running
asyncio.run(main())
"""


def test_nothing_outlives_an_owner_that_is_killed_for_long() -> None:
    name = f"killed-{os.getpid()}"
    with started([sys.executable, "-c", KILLED, name], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "running\n"
        assert listed(name)
    assert is_gone_within(name, 8)


def test_containers_of_dead_owners_are_collected_and_no_others(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    with started(["sleep", "infinity"]) as owner:
        marks = {"dead": owner_mark(owner.pid), "alive": owner_mark(os.getpid()), "elsewhere": "other-boot 1 1 1"}
        assert not any(map(is_dead, marks.values()))
    api = connect().api
    for name, mark in marks.items():
        labels = {backend.LABEL: "1", "agentflow.owner": mark, "agentflow.run": "gc"}
        api.create_container(DEFAULT_IMAGE, ["true"], name=f"gc-{name}", labels=labels)
    assert main(["sandbox", "gc"]) == 0
    said = capsys.readouterr().out
    assert "gc-dead" in said and "gc-alive" not in said and "gc-elsewhere" not in said
    assert len(listed("gc")) == 2
    for container in listed("gc"):
        api.remove_container(container)
    assert not [name for name in gc() if name.startswith("gc-")]


def test_every_attack_is_contained(engine: str) -> None:
    async def work(sandbox: DockerSandbox) -> list[Verdict]:
        return await attack_sandbox(sandbox, ATTACKS)

    verdicts = play(work, concurrency=2, warm=2)
    assert not [(v.attack.name, v.reason) for v in verdicts if v.outcome == "escaped"]
    assert sum(v.outcome == "contained" for v in verdicts) > 140


def test_what_is_missing_is_named_with_its_remedy(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SandboxUnavailable, match=r"no image nothing.*agentflow sandbox image"):
        DockerSandbox(image="nothing")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(SandboxUnavailable, match=r"No Docker engine answers.*DOCKER_HOST"):
        asyncio.run(open_sandbox("docker"))


def test_sandbox_is_opened_by_name_and_the_doctor_knows_it(capsys: pytest.CaptureFixture[str]) -> None:
    opened = asyncio.run(open_sandbox("docker"))
    asyncio.run(opened.close())
    assert opened.name == "docker"
    assert main(["sandbox", "doctor"]) == 0
    assert "docker" in capsys.readouterr().out


def test_image_holds_the_packages_that_are_asked_for(engine: str) -> None:
    assert main(["sandbox", "image", "--name", "agentflow-more:1", "--with", "typing_extensions"]) == 0
    code = "import typing_extensions, sys, ssl, sqlite3, decimal, ctypes; print(sys.version_info[:2])"
    result = play(lambda sandbox: sandbox.run(Program(code)), image="agentflow-more:1")
    assert result.stdout.text == f"{sys.version_info[:2]}\n", result
    with pytest.raises(ConfigError, match="nowhere-at-all is not installed"):
        build_image("agentflow-more:2", ["nowhere-at-all"])
