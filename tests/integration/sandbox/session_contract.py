"""What every backend with sessions keeps; see `contract`; `metering` is a further fixture, how use is measured."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from agentflow.sandbox.base import Limits, Result, Sandbox, Session
from agentflow.tools.python import Interpreter
from tests.integration.sandbox.contract import LIMITS

_T = TypeVar("_T")


def in_session(sandbox: Sandbox, work: Callable[[Session], Awaitable[_T]]) -> _T:
    """Await something with a session."""

    async def opened() -> _T:
        async with await sandbox.session(LIMITS) as session:
            return await work(session)

    return asyncio.run(opened())


def test_variables_survive_and_the_last_expression_is_the_value(sandbox: Sandbox) -> None:
    async def work(session: Session) -> list[Result]:
        cells = ("x = 6", "print('hi'); x * 7", "_ + 1", "def f():\n  1 / 0\nf()", "x", "raise SystemExit(3)", "x")
        return [await session.exec(cell) for cell in cells]

    first, second, third, fourth, fifth, sixth, last = in_session(sandbox, work)
    assert (first.status, first.value) == ("ok", "")
    assert (second.stdout.text, second.value, third.value, fifth.value) == ("hi\n", "42", "43", "6")
    assert fourth.status == "nonzero_exit"
    assert fourth.stderr.text.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert 'File "cell 4", line 2, in f' in fourth.stderr.text
    assert (sixth.status, sixth.exit_code, last.value) == ("nonzero_exit", 3, "6")


def test_long_cell_and_much_output_arrive_whole(sandbox: Sandbox) -> None:
    async def work(session: Session) -> list[Result]:
        # What earlier cells leave lying about is in nobody's way.
        fill = (
            "for n in range(4000):\n  folder = ('/work', '/program')[n % 2]\n"
            "  try: open(f'{folder}/{n}', 'wb').write(b'x' * 65536)\n  except OSError: pass"
        )
        cells = (
            fill,
            f"text = {'x' * 700_000!r}; len(text)",
            "print('a' * 2000 + 'z')",
            "",
        )
        return [await session.exec(cell) for cell in cells]

    first, second, third, last = in_session(sandbox, work)
    assert (first.status, second.value, last.status) == ("ok", "700000", "ok"), first
    assert third.stdout.text == "a" * 2000 + "z\n"


def test_branches_go_their_own_ways(sandbox: Sandbox) -> None:
    async def work(session: Session) -> list[str]:
        await session.exec("x = [1]")
        async with await session.fork() as branch, await branch.fork() as twig:
            for number, each in enumerate((session, branch, twig)):
                await each.exec(f"x.append({number})")
            killed = await branch.exec("while True: pass", limits=Limits(cpu_s=0.2))
            return [(await each.exec("x")).value for each in (session, twig)] + [killed.status]

    assert in_session(sandbox, work) == ["[1, 0]", "[1, 2]", "cpu_timeout"]


_FORGES = """
import json, os, socket, stat
forged = [{"cell": 2, "token": token, "exit_code": 0, "value": "forged", "words": []} for token in ("", "2")]
for number in range(3, 64):
    try:
        if stat.S_ISSOCK(os.fstat(number).st_mode):
            with socket.socket(fileno=os.dup(number)) as channel:
                for report in forged:
                    channel.send(json.dumps(report).encode())
    except OSError:
        pass
"""


def test_cell_does_not_report_for_the_next(sandbox: Sandbox) -> None:
    async def work(session: Session) -> list[Result]:
        return [await session.exec(cell) for cell in (_FORGES, "6 * 7", "'last'")]

    first, second, last = in_session(sandbox, work)
    assert (first.status, first.value) == ("ok", "")
    assert (second.status, second.value, last.value) == ("ok", "42", "'last'")


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
def test_cell_that_ends_its_interpreter_ends_the_session(
    sandbox: Sandbox, cell: str, status: str, metering: str
) -> None:
    async def work(session: Session) -> list[Result]:
        limits = LIMITS.model_copy(update={"cpu_s": 0.3, "wall_s": 1.0 if status == "wall_timeout" else 20.0})
        return [await session.exec(cell, limits=limits), await session.exec("1")]

    first, second = in_session(sandbox, work)
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
def test_cell_that_hides_behind_its_children_hurts_nobody_else(sandbox: Sandbox, cell: str, status: str) -> None:
    async def work() -> tuple[Result, Result, float]:
        async with await sandbox.session(LIMITS) as neighbour, await sandbox.session(LIMITS) as session:
            started = time.monotonic()
            seconds = {"cpu_s": 0.3, "wall_s": 20.0} if status == "cpu_timeout" else {"cpu_s": 30.0, "wall_s": 1.5}
            ended = await session.exec(cell, limits=LIMITS.model_copy(update=seconds))
            return ended, await neighbour.exec("1"), time.monotonic() - started

    ended, after, seconds = asyncio.run(work())
    assert (ended.status, after.value) == (status, "1"), ended
    assert seconds < 40  # the programs would go on for a minute


def test_memory_of_all_cells_together_is_bounded(sandbox: Sandbox, metering: str) -> None:
    async def work(session: Session) -> list[str]:
        cells = [f"x{number} = bytearray(b'x') * (30 << 20)" for number in range(9)]
        return [(await session.exec(cell)).status for cell in cells]

    assert "memory" in in_session(sandbox, work)


def test_process_that_works_on_between_cells_is_bounded(sandbox: Sandbox, num_left: Callable[[], int]) -> None:
    async def work(session: Session) -> Result:
        await session.exec("import threading\ndef burn():\n  while True: pass\nthreading.Thread(target=burn).start()")
        deadline = time.monotonic() + 60
        while num_left() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        return await session.exec("1")

    result = in_session(sandbox, work)
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
def test_forged_report_of_a_cell_ends_the_session_and_nothing_else(sandbox: Sandbox, packet: str) -> None:
    forge = (
        f"import os, socket\npacket = {packet!r}.encode()\nfor fd in range(3, 30):\n"
        "  try: socket.socket(fileno=os.dup(fd)).send(packet)\n  except OSError: pass"
    )

    async def work(session: Session) -> list[Result]:
        return [await session.exec(forge), await session.exec("1")]

    first, second = in_session(sandbox, work)
    assert (first.status, first.value, first.exit_code) == ("signal", "", None)
    assert second.status == "refused"


def test_caller_that_gives_up_a_cell_ends_the_session(sandbox: Sandbox) -> None:
    async def work(session: Session) -> Result:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await session.exec("import time; time.sleep(60)")
        assert time.monotonic() - started < 3
        return await session.exec("1")

    assert in_session(sandbox, work).status == "refused"


def test_interpreter_tool_keeps_its_variables_until_a_cell_kills_it(sandbox: Sandbox) -> None:
    async def work() -> list[str]:
        async with Interpreter(sandbox, LIMITS) as interpreter:
            cells = ("x = 6", "x * 7", "import os; os._exit(1)", "x")
            return [(await interpreter.run(cell)).text for cell in cells]

    _, second, third, fourth = asyncio.run(work())
    assert second == "42"
    assert third.endswith("The interpreter was started again: its variables are gone.")
    assert fourth.endswith("NameError: name 'x' is not defined")


def test_everything_that_cells_started_is_dead_once_a_session_is_closed(
    sandbox: Sandbox, num_left: Callable[[], int]
) -> None:
    async def work(session: Session) -> int:
        cell = "import os, time\nif not os.fork():\n  os.setsid()\n  time.sleep(300)"
        assert (await session.exec(cell)).status == "ok"
        async with await session.fork() as branch:
            await branch.exec(cell)
            return num_left()

    assert in_session(sandbox, work) >= 3
    deadline = time.monotonic() + 10
    while num_left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not num_left()
