"""One sandbox for all event loops of a process."""

import asyncio
import threading

import pytest

from agentflow.sandbox.base import Program, Result, SandboxFailure, SandboxUnavailable
from agentflow.sandbox.shared import SharedSandbox, shared_sandbox


class Backend:
    """Counts its openings, and tells in which loop and thread it works."""

    name = "counting"
    opened = 0

    def __init__(self):
        type(self).opened += 1
        self.closed = False
        self.cancelled = False

    async def run(self, program, limits=None):
        if program.code == "hang":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        if program.code == "block":
            return Result("ok", value=str(await asyncio.to_thread(lambda: threading.current_thread().daemon)))
        return Result("ok", value=f"{id(asyncio.get_running_loop())} {threading.current_thread().name}")

    async def session(self, limits=None):
        return self

    async def exec(self, code, *, limits=None):
        return await self.run(Program(code), limits)

    async def fork(self):
        return self

    async def close(self):
        self.closed = True


@pytest.fixture
def made():
    Backend.opened = 0
    return []


def opening(made, *, slowly=False):
    async def slow():
        await asyncio.sleep(0.05)
        made.append(Backend())
        return made[-1]

    def fast():
        made.append(Backend())
        return made[-1]

    return SharedSandbox(slow if slowly else fast)


def test_every_loop_uses_the_same_backend_in_its_own_loop(made):
    shared = opening(made)
    values = {asyncio.run(shared.run(Program("1"))).value for _ in range(3)}
    assert len(values) == Backend.opened == 1 and values.pop().endswith(" sandbox")
    assert shared.name == "counting"
    asyncio.run(shared.close())
    assert made[0].closed
    asyncio.run(shared.run(Program("1")))
    assert Backend.opened == 2, "it opens again"
    asyncio.run(shared.close())


def test_it_can_be_opened_before_anything_runs(made):
    shared = opening(made, slowly=True).ensure_open()
    assert shared.ensure_open().name == "counting" and Backend.opened == 1
    asyncio.run(shared.close())

    def fail():
        raise SandboxUnavailable("no namespaces")

    with pytest.raises(SandboxUnavailable):
        SharedSandbox(fail).ensure_open()


async def test_programs_that_come_at_once_open_one_backend(made):
    shared = opening(made, slowly=True)
    await asyncio.gather(*(shared.run(Program("1")) for _ in range(8)))
    assert Backend.opened == 1
    await shared.close()


async def test_giving_up_on_a_program_cancels_it(made):
    shared = opening(made)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(shared.run(Program("hang")), 0.1)
    await shared.run(Program("1"))
    assert made[0].cancelled
    await shared.close()


async def test_call_that_blocks_does_not_hold_up_the_exit(made):
    shared = opening(made)
    assert (await shared.run(Program("block"))).value == "True", "it is a daemon's"
    await shared.close()


async def test_closing_tells_whoever_waits(made):
    shared = opening(made)
    session = await shared.session()
    waiting = [asyncio.ensure_future(work) for work in (shared.run(Program("hang")), session.exec("hang"))]
    await asyncio.sleep(0.1)
    await asyncio.wait_for(shared.close(), 10)
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    assert [type(outcome) for outcome in outcomes] == [SandboxFailure] * 2
    with pytest.raises(SandboxFailure, match="close it last"):
        await session.exec("1")
    await asyncio.wait_for(session.close(), 10)
    assert Backend.opened == 1, "nothing of it opens another"


async def test_sessions_work_from_any_loop(made):
    shared = opening(made)
    async with await shared.session() as session:
        here = (await session.exec("1")).value
        branch = await session.fork()
        assert (await branch.exec("1")).value == here
    assert made[0].closed
    await shared.close()


async def test_what_does_not_open_raises_each_time_and_is_tried_again(made):
    reasons = [SandboxUnavailable("no namespaces"), SandboxUnavailable("still none")]

    def fail():
        if reasons:
            raise reasons.pop(0)
        return Backend()

    shared = SharedSandbox(fail)
    for reason in ("no namespaces", "still none"):
        with pytest.raises(SandboxUnavailable, match=reason):
            await shared.run(Program("1"))
    assert (await shared.run(Program("1"))).status == "ok"
    await shared.close()


def test_a_name_stands_for_one_sandbox():
    assert shared_sandbox("nothing-opened-yet") is shared_sandbox("nothing-opened-yet")
