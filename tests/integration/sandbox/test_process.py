"""The process backend: the contract; sessions and branches, zygotes that die or hang, the same bytes every time."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

from agentflow.sandbox import groups, process, sessions
from agentflow.sandbox.base import Limits, Program, Result, Sandbox, SandboxFailure, Session, run_reliably
from agentflow.sandbox.probe import open_sandbox, probe
from agentflow.sandbox.process import ProcessSandbox
from agentflow.sandbox.process_tree import tree_usage
from agentflow.sandbox.shared import SharedSandbox
from agentflow.tools.python import Interpreter, python_tool
from agentflow.tools.tool import ToolOutput
from tests.integration.sandbox.contract import *  # noqa: F403
from tests.integration.sandbox.contract import LIMITS
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


def in_session(work: Callable[[Session], Awaitable[T]]) -> T:
    """Await something with a session."""

    async def opened(sandbox: ProcessSandbox) -> T:
        async with await sandbox.session(LIMITS) as session:
            return await work(session)

    return play(opened)


@pytest.fixture(params=["control group", "polling"])
def metering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Once with control groups where they can be had, once without."""
    if request.param == "polling":
        monkeypatch.setattr(groups.Group, "create", lambda: None)
    return str(request.param)


def test_variables_survive_and_the_last_expression_is_the_value() -> None:
    async def work(session: Session) -> list[Result]:
        cells = ("x = 6", "print('hi'); x * 7", "_ + 1", "def f():\n  1 / 0\nf()", "x", "raise SystemExit(3)", "x")
        return [await session.exec(cell) for cell in cells]

    first, second, third, fourth, fifth, sixth, last = in_session(work)
    assert (first.status, first.value) == ("ok", "")
    assert (second.stdout.text, second.value, third.value, fifth.value) == ("hi\n", "42", "43", "6")
    assert fourth.status == "nonzero_exit"
    assert fourth.stderr.text.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert 'File "cell 4", line 2, in f' in fourth.stderr.text
    assert (sixth.status, sixth.exit_code, last.value) == ("nonzero_exit", 3, "6")


def test_branches_go_their_own_ways() -> None:
    async def work(session: Session) -> list[str]:
        await session.exec("x = [1]")
        async with await session.fork() as branch, await branch.fork() as twig:
            for number, each in enumerate((session, branch, twig)):
                await each.exec(f"x.append({number})")
            killed = await branch.exec("while True: pass", limits=Limits(cpu_s=0.2))
            return [(await each.exec("x")).value for each in (session, twig)] + [killed.status]

    assert in_session(work) == ["[1, 0]", "[1, 2]", "cpu_timeout"]


@pytest.mark.parametrize(
    ("cell", "status"),
    [
        ("while True: pass", "cpu_timeout"),
        ("import time; time.sleep(60)", "wall_timeout"),
        ("while True: print('x' * 1000)", "output_limit"),
        ("import os; os.kill(os.getpid(), 9)", "signal"),
        ("import os; os._exit(0)", "signal"),
        ("for fd in range(3, 30):\n  try: __import__('os').close(fd)\n  except OSError: pass", "signal"),
    ],
)
def test_cell_that_ends_its_interpreter_ends_the_session(cell: str, status: str, metering: str) -> None:
    async def work(session: Session) -> list[Result]:
        limits = LIMITS.model_copy(update={"cpu_s": 0.3, "wall_s": 1.0 if status == "wall_timeout" else 20.0})
        return [await session.exec(cell, limits=limits), await session.exec("1")]

    first, second = in_session(work)
    assert (first.status, second.status) == (status, "refused")
    assert status in second.detail


@pytest.mark.parametrize(
    ("cell", "status"),
    [
        ("import os\nif os.fork(): os._exit(0)\nimport time; time.sleep(60)", "wall_timeout"),
        ("import os\nif os.fork(): os._exit(0)\nwhile True: pass", "cpu_timeout"),
        ("import os, time\nfor _ in range(2):\n  if not os.fork():\n    while True:\n      pid = os.fork()\n"
         "      if not pid: os._exit(0)\n      os.waitpid(pid, 0)\ntime.sleep(60)", "wall_timeout"),
    ],
)  # fmt: skip
def test_cell_that_hides_behind_its_children_hurts_nobody_else(cell: str, status: str) -> None:
    async def work(sandbox: ProcessSandbox) -> tuple[Result, Result, float]:
        async with await sandbox.session(LIMITS) as neighbour, await sandbox.session(LIMITS) as session:
            started = time.monotonic()
            cpu_s = 0.3 if status == "cpu_timeout" else 30.0
            ended = await session.exec(cell, limits=LIMITS.model_copy(update={"cpu_s": cpu_s, "wall_s": 1.5}))
            return ended, await neighbour.exec("1"), time.monotonic() - started

    ended, after, seconds = play(work, concurrency=1)
    assert (ended.status, after.value) == (status, "1")
    assert seconds < 8


def test_memory_of_all_cells_together_is_bounded(metering: str) -> None:
    async def work(session: Session) -> list[str]:
        cells = [f"x{number} = bytearray(b'x') * (30 << 20)" for number in range(9)]
        return [(await session.exec(cell)).status for cell in cells]

    assert "memory" in in_session(work)


def test_process_that_works_on_between_cells_is_bounded() -> None:
    async def work(session: Session) -> Result:
        await session.exec("import threading\ndef burn():\n  while True: pass\nthreading.Thread(target=burn).start()")
        deadline = time.monotonic() + 30
        while tree_usage(os.getpid()).cpu_s < LIMITS.cpu_s and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        await asyncio.sleep(3.0)
        return await session.exec("1")

    result = in_session(work)
    assert (result.status, result.detail) == ("refused", "the session is over: it used too much between its cells")


@pytest.mark.parametrize(
    "packet",
    [
        "[" * 60000,
        '{"cell": 1, "exit_code": 70000, "value": "", "words": []}',
        '{"cell": 1, "exit_code": 0, "value": "%s", "words": []}' % ("x" * 60000),
        '{"cell": 1, "exit_code": 0, "value": "", "words": [%s"disk"]}' % ('"disk",' * 100),
        '{"cell": 99, "exit_code": 0, "value": "forged", "words": []}',
    ],
)
def test_forged_report_of_a_cell_ends_the_session_and_nothing_else(packet: str) -> None:
    forge = (
        f"import os, socket\npacket = {packet!r}.encode()\nfor fd in range(3, 30):\n"
        "  try: socket.socket(fileno=os.dup(fd)).send(packet)\n  except OSError: pass"
    )

    async def work(session: Session) -> list[Result]:
        return [await session.exec(forge), await session.exec("1")]

    first, second = in_session(work)
    assert (first.status, first.value, first.exit_code) == ("signal", "", None)
    assert second.status == "refused"


def test_caller_that_gives_up_a_cell_ends_the_session() -> None:
    async def work(session: Session) -> Result:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await session.exec("import time; time.sleep(60)")
        assert time.monotonic() - started < 3
        return await session.exec("1")

    assert in_session(work).status == "refused"


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


def test_process_sandbox_keeps_to_the_protocol_and_is_taken_first() -> None:
    async def work(sandbox: ProcessSandbox) -> tuple[bool, str]:
        chosen = await open_sandbox()
        await chosen.close()
        return isinstance(sandbox, Sandbox), await probe(sandbox) + chosen.name

    assert play(work) == (True, "process")


def test_interpreter_tool_keeps_its_variables_until_a_cell_kills_it() -> None:
    async def work(sandbox: ProcessSandbox) -> list[str]:
        async with Interpreter(sandbox, LIMITS) as interpreter:
            cells = ("x = 6", "x * 7", "import os; os._exit(1)", "x")
            return [(await interpreter.run(cell)).text for cell in cells]

    _, second, third, fourth = play(work)
    assert second == "42"
    assert third.endswith("The interpreter was started again: its variables are gone.")
    assert fourth.endswith("NameError: name 'x' is not defined")


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


def test_closed_sandbox_starts_again() -> None:
    async def work(sandbox: ProcessSandbox) -> str:
        await sandbox.run(Program("pass"), LIMITS)
        await sandbox.close()
        started = time.monotonic()
        result = await sandbox.run(Program("print(1)"), LIMITS)
        assert time.monotonic() - started < 30
        return result.stdout.text

    assert play(work) == "1\n"
