"""Executions in threads: a caller goes once nothing is left, however often it is cancelled."""

import asyncio
import threading
import time

import pytest

from agentflow.sandbox.base import Result
from agentflow.sandbox.waiting import in_thread


def test_caller_that_is_cancelled_again_and_again_goes_when_the_execution_has_ended() -> None:
    has_ended = threading.Event()

    def run(stop: threading.Event) -> Result:
        stop.wait(10)
        time.sleep(0.3)
        has_ended.set()
        return Result("ok")

    async def play() -> None:
        task = asyncio.ensure_future(in_thread(run))
        for _ in range(3):
            await asyncio.sleep(0.05)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert has_ended.is_set()

    asyncio.run(play())
