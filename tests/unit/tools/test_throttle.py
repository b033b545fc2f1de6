"""Bounds of a tool that hold over threads and event loops, and the repetition of what broke."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentflow.errors import BackendFailure, ConfigError, ToolError, ToolFailure
from agentflow.tools.throttle import Throttle
from agentflow.tools.tool import retry_wait_s, tool


class Gauge:
    """Counts who is inside at once."""

    def __init__(self):
        self.inside = self.peak = 0
        self.lock = threading.Lock()

    async def visit(self, seconds=0.01):
        with self.lock:
            self.inside += 1
            self.peak = max(self.peak, self.inside)
        await asyncio.sleep(seconds)
        with self.lock:
            self.inside -= 1


def test_places_are_bounded_over_event_loops():
    gauge = Gauge()

    @tool(max_concurrency=2)
    async def visit() -> None:
        """Visit."""
        await gauge.visit()

    async def several():
        await asyncio.gather(*(visit.call({}) for _ in range(5)))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: asyncio.run(several()), range(4)))
    assert gauge.peak == 2


async def test_without_bounds_all_are_let_in():
    gauge = Gauge()

    @tool
    async def visit() -> None:
        """Visit."""
        await gauge.visit(0.05)

    await asyncio.gather(*(visit.call({}) for _ in range(8)))
    assert gauge.peak == 8


async def test_starts_are_spaced():
    starts = []

    @tool(rate_per_s=50)
    async def begin() -> None:
        """Tell the time."""
        starts.append(time.monotonic())

    await asyncio.gather(*(begin.call({}) for _ in range(6)))
    starts.sort()
    assert starts[-1] - starts[0] >= 5 / 50 - 0.005


async def test_who_gives_up_waiting_takes_no_place_along():
    throttle = Throttle(max_concurrency=1)
    async with throttle.place():
        waiting = [asyncio.ensure_future(throttle._enter()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
    # The second one's turn has come, and it gives up before it notices.
    waiting[1].cancel()
    await asyncio.wait(waiting, timeout=60)
    assert waiting[2].done() and not waiting[2].cancelled()
    throttle._leave()
    async with asyncio.timeout(60), throttle.place():
        pass


async def test_waiting_is_no_part_of_a_calls_time():
    @tool(max_concurrency=1, timeout_s=1.0)
    async def work() -> str:
        """Work."""
        await asyncio.sleep(0.4)
        return "done"

    assert await asyncio.gather(*(work.call({}) for _ in range(4))) == ["done"] * 4


async def test_a_call_that_is_given_up_leaves_its_place():
    @tool(max_concurrency=1, timeout_s=0.5)
    async def hang(forever: bool) -> str:
        """Hang."""
        await asyncio.sleep(60 if forever else 0)
        return "done"

    with pytest.raises(ToolError, match="timed out"):
        await hang.call({"forever": True})
    assert await hang.call({"forever": False}) == "done"


@pytest.mark.parametrize("bounds", [{"max_concurrency": 0}, {"rate_per_s": 0.0}, {"rate_per_s": float("nan")}])
def test_bounds_that_let_nothing_through_are_refused(bounds):
    with pytest.raises(ConfigError, match="lets no call through"):
        tool(**bounds)


class Flaky:
    """Fails as often as it is told."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.num_calls = 0

    def __call__(self):
        self.num_calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def of(flaky, **options):
    def work() -> str:
        """Work."""
        return flaky()

    return tool(**options)(work)


async def test_only_an_idempotent_tool_is_repeated_and_only_once():
    once = Flaky(OSError("reset"))
    assert await of(once, idempotent=True).call({}) == "done" and once.num_calls == 2
    with pytest.raises(ToolFailure, match="again"):
        await of(Flaky(OSError("reset"), OSError("again")), idempotent=True).call({})
    never = Flaky(OSError("reset"))
    with pytest.raises(ToolFailure, match="reset"):
        await of(never).call({})
    assert never.num_calls == 1


@pytest.mark.parametrize("error", [ToolError("no"), BackendFailure("away")])
async def test_what_a_tool_says_and_what_was_retried_below_it_is_not_repeated(error):
    flaky = Flaky(error)
    with pytest.raises(type(error)):
        await of(flaky, idempotent=True).call({})
    assert flaky.num_calls == 1


def test_the_pause_is_the_same_for_the_same_call():
    waits = {retry_wait_s("search", {"query": query}) for query in ("a", "b", "a", object())}
    assert len(waits) == 3 and all(0.25 <= wait <= 0.75 for wait in waits)
