"""The process backend: the contract; sessions and branches, zygotes that die or hang, the same bytes every time."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

from agentflow.sandbox.base import ENVIRONMENT, Limits, Program, Result, Sandbox, SandboxFailure, run_reliably
from agentflow.sandbox.limits import groups
from agentflow.sandbox.limits.process_tree import tree_usage
from agentflow.sandbox.probe import open_sandbox, probe
from agentflow.sandbox.process import backend as process
from agentflow.sandbox.process import launcher, sessions
from agentflow.sandbox.process.backend import ProcessSandbox
from agentflow.sandbox.shared import SharedSandbox
from agentflow.tools.python import Interpreter, python_tool
from agentflow.tools.tool import ToolOutput
from tests.integration.sandbox.contract import *  # noqa: F403
from tests.integration.sandbox.contract import LIMITS
from tests.integration.sandbox.session_contract import *  # noqa: F403
from tests.trusted_sandbox import real_process

pytestmark = real_process
T = TypeVar("T")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SharedSandbox]:
    shared = SharedSandbox(lambda: ProcessSandbox(1))
    yield shared
    asyncio.run(shared.close())


@pytest.fixture
def num_left(sandbox: SharedSandbox) -> Callable[[], int]:
    asyncio.run(sandbox.run(Program("pass")))
    before = tree_usage(os.getpid()).pids  # the zygotes
    return lambda: len(tree_usage(os.getpid()).pids - before)


def play(work: Callable[[ProcessSandbox], Awaitable[T]], *, concurrency: int | None = None) -> T:
    """Await something with a sandbox of its own; nothing may be left of it."""

    async def played() -> T:
        sandbox = ProcessSandbox(concurrency)
        try:
            return await work(sandbox)
        finally:
            await sandbox.close()

    before, groups_before = tree_usage(os.getpid()).pids, groups.existing()
    try:
        return asyncio.run(played())
    finally:
        assert tree_usage(os.getpid()).pids == before
        assert sorted(groups_before) == sorted(groups.existing())


@pytest.fixture(params=["control group", "polling"])
def metering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Once with control groups where they can be had, once without."""
    if request.param == "polling":
        monkeypatch.setattr(groups.Group, "create", lambda: None)
    return str(request.param)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_zygote_that_dies_or_hangs_is_no_verdict(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_LOST_S", 0.5)

    async def work(sandbox: ProcessSandbox) -> tuple[Result, Result]:
        others = tree_usage(os.getpid()).pids
        await sandbox.run(Program("pass"), LIMITS)
        (zygote,) = tree_usage(os.getpid()).pids - others
        short = LIMITS.model_copy(update={"wall_s": 1.0})
        running = asyncio.ensure_future(sandbox.run(Program("import time; time.sleep(0.8)"), short))
        await asyncio.sleep(0.2)
        os.kill(zygote, number)
        return await running, await run_reliably(sandbox, Program("print('next')"), LIMITS)

    first, second = play(work, concurrency=1)
    assert first.status == "infra_error"
    assert "zygote" in first.detail
    assert second.stdout.text == "next\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_zygote_that_dies_or_hangs_under_a_session_is_no_verdict(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_LOST_S", 0.5)

    async def work(sandbox: ProcessSandbox) -> tuple[Result, Result]:
        others = tree_usage(os.getpid()).pids
        async with await sandbox.session(LIMITS) as session:
            zygote = min(tree_usage(os.getpid()).pids - others)
            running = asyncio.ensure_future(session.exec("import time; time.sleep(60)", limits=Limits(wall_s=1.0)))
            await asyncio.sleep(0.2)
            os.kill(zygote, number)
            return await running, await session.exec("1")

    first, second = play(work)
    assert (first.status, second.status) == ("infra_error", "refused")


def test_sandbox_that_breaks_twice_is_a_failure_of_the_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_COMMON", ("no_such_module",))

    async def work(sandbox: ProcessSandbox) -> None:
        await run_reliably(sandbox, Program("print(1)"), LIMITS)

    with pytest.raises(SandboxFailure, match=r"process sandbox failed twice: .*no_such_module"):
        play(work)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="numpy starts no threads on one core")
def test_zygote_with_threads_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "ENVIRONMENT", {**ENVIRONMENT, "OPENBLAS_NUM_THREADS": "2"})
    result = play(lambda sandbox: sandbox.run(Program("import numpy"), LIMITS))
    assert result.status == "infra_error"
    assert "importing numpy leaves 2 threads" in result.detail


def test_two_hundred_at_once_are_judged_as_one_alone(metering: str) -> None:
    codes = ("print(6 * 7)", "while True: pass", "1 / 0", "import os; os.kill(os.getpid(), 9)", "print('x' * 9000)")
    limits = LIMITS.model_copy(update={"cpu_s": 0.1, "wall_s": 30.0})

    async def work(sandbox: ProcessSandbox) -> tuple[list[Result], list[Result]]:
        alone = [await sandbox.run(Program(code), limits) for code in codes]
        return alone, await asyncio.gather(*(sandbox.run(Program(code), limits) for code in codes * 40))

    alone, together = play(work)
    shown = [(result.status, result.stdout, result.stderr) for result in together]
    assert shown == [(result.status, result.stdout, result.stderr) for result in alone] * 40


def test_same_program_gives_the_same_bytes_in_every_zygote() -> None:
    code = (
        "import random, numpy\nprint(random.random(), hash('a'), {'x', 'y', 'z'}, numpy.random.random())\n"
        "print(numpy.linalg.det(numpy.random.random((20, 20))))"
    )

    async def work(sandbox: ProcessSandbox) -> list[str]:
        runs = [sandbox.run(Program(code, seed=seed), Limits()) for seed in [1] * 150 + [2]]
        return [result.stdout.text for result in await asyncio.gather(*runs)]

    *first, other = play(work, concurrency=3)
    assert len(set(first)) == 1
    assert other not in first


def test_program_has_threads_and_forks_as_a_process_of_its_own() -> None:
    code = (
        "import os, random, threading\nseen, state = [], random.getstate()\n"
        "thread = threading.Thread(target=lambda: seen.append(threading.get_native_id()))\n"
        "thread.start()\nthread.join()\n"
        "print(threading.main_thread().native_id == os.getpid() != seen[0], flush=True)\n"
        "if os.fork() == 0:\n  print(random.getstate() != state, flush=True)\n  os._exit(0)\nos.wait()"
    )

    result = play(lambda sandbox: sandbox.run(Program(code), LIMITS))
    assert (result.status, result.stdout.text) == ("ok", "True\nTrue\n"), result


def test_process_sandbox_keeps_to_the_protocol_and_is_taken_first() -> None:
    async def work(sandbox: ProcessSandbox) -> tuple[bool, str]:
        chosen = await open_sandbox()
        await chosen.close()
        return isinstance(sandbox, Sandbox), await probe(sandbox) + chosen.name

    assert play(work) == (True, "process")


PLOT = """
import matplotlib.pyplot as plt
fig, axes = plt.subplots(figsize=(4, 3), dpi=50)
axes.plot([1, 4, 9])
plt.show()
"""


def test_open_plots_of_matplotlib_come_back_once_the_same_each_time() -> None:
    async def work(sandbox: ProcessSandbox) -> list[Result]:
        return [await sandbox.run(Program(code)) for code in (PLOT, PLOT, PLOT + "plt.close()")]

    first, again, closed = play(work)
    assert [image.size for image in first.images] == [(200, 150)], first.stderr.text
    assert first.images == again.images
    assert closed.images == ()


def test_a_session_shows_each_plot_in_the_cell_that_drew_it() -> None:
    async def work(sandbox: ProcessSandbox) -> list[tuple[str, int, str]]:
        async with await sandbox.session() as session:
            seen = [
                await session.exec(cell)
                for cell in (PLOT, "1", "axes.plot([2]); plt.figure(2)", r"plt.title('$\frac$')")
            ]
            seen.append(await session.exec("len(plt.get_fignums())"))
            async with await session.fork() as branch:
                seen += [await branch.exec("plt.figure()"), await session.exec("1")]
            return [(result.status, len(result.images), result.value) for result in seen]

    figure = "<Figure size 640x480 with 0 Axes>"
    plotted, one, second, broken, left, forked, last = play(work)
    assert (plotted, one, second) == (("ok", 1, ""), ("ok", 0, "1"), ("ok", 1, figure))
    assert broken[:2] == ("nonzero_exit", 0)
    assert (left, forked, last) == (("ok", 0, "0"), ("ok", 1, figure), ("ok", 0, "1"))


def test_the_python_tool_returns_plots_with_its_text() -> None:
    async def work(sandbox: ProcessSandbox) -> list[ToolOutput]:
        tool = python_tool(sandbox)
        async with Interpreter(sandbox) as interpreter:
            return [await tool.run({"code": PLOT + "len(axes.lines)"}), await interpreter.run(PLOT)]

    stateless, cell = play(work)
    assert (stateless.text, [image.size for image in stateless.images]) == ("1", [(200, 150)])
    assert (cell.text, cell.images) == ("", stateless.images)


def test_script_that_does_not_fit_on_the_disk_shows_nothing_of_the_host() -> None:
    full = Program("echo hi", language="shell", files={"x": b"x" * (1 << 20)})
    result = play(lambda sandbox: sandbox.run(full, LIMITS.model_copy(update={"disk_mb": 1})))
    assert (result.status, result.stdout.text, result.stderr.text) == ("disk", "", "")


def test_closed_sandbox_starts_nothing() -> None:
    async def work(sandbox: ProcessSandbox) -> list[Result]:
        others = tree_usage(os.getpid()).pids
        first = asyncio.ensure_future(sandbox.run(Program("import time; time.sleep(60)"), LIMITS))
        waits = asyncio.ensure_future(sandbox.run(Program("print(1)"), LIMITS))
        await asyncio.sleep(0.2)
        await sandbox.close()
        results = [await first, await waits, await sandbox.run(Program("import numpy"), LIMITS)]
        with pytest.raises(SandboxFailure, match="the sandbox was closed: open another"):
            await sandbox.session(LIMITS)
        assert tree_usage(os.getpid()).pids == others
        return results

    results = play(work, concurrency=1)
    assert [result.status for result in results] == ["infra_error"] * 3
    assert all(result.detail.startswith("the sandbox was closed") for result in results)


def test_closing_a_shared_sandbox_ends_every_wait() -> None:
    async def work() -> list[Result | BaseException]:
        shared = SharedSandbox(lambda: ProcessSandbox(1))
        session = await shared.session(LIMITS)
        cell = asyncio.ensure_future(session.exec("import time; time.sleep(60)"))
        await asyncio.sleep(0.2)
        runs = [asyncio.ensure_future(shared.run(Program("import time; time.sleep(60)"), LIMITS)) for _ in range(3)]
        await asyncio.sleep(0.2)
        await shared.close()
        await session.close()
        return list(await asyncio.gather(cell, *runs, return_exceptions=True))

    async def limited() -> list[Result | BaseException]:
        return await asyncio.wait_for(work(), 30)

    before, groups_before = tree_usage(os.getpid()).pids, groups.existing()
    for outcome in asyncio.run(limited()):
        assert isinstance(outcome, SandboxFailure) or (
            isinstance(outcome, Result) and outcome.status in ("infra_error", "refused")
        )
    assert tree_usage(os.getpid()).pids == before
    assert sorted(groups_before) == sorted(groups.existing())
