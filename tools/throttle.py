"""How much of a tool is under way at once, and how often it starts: one bound for all episodes of the process.

Every synchronous `step` and every rollout runs an event loop of its own, so that whoever waits here may live in any
loop and any thread; limiters that belong to one loop, as asyncio's and aiolimiter's do, would bound nothing.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager

from agentflow.errors import ConfigError


class Throttle:
    """A number of places, and a least distance between starts; whoever came first is let in first.

    Args:
        max_concurrency: Most calls under way at once; None for any number.
        rate_per_s: Most starts in a second, evenly spaced; None for any number.

    Raises:
        ConfigError: A bound is not positive.
    """

    def __init__(self, max_concurrency: int | None = None, rate_per_s: float | None = None) -> None:
        if max_concurrency is not None and max_concurrency < 1:
            raise ConfigError(f"max_concurrency={max_concurrency} lets no call through.", "Give at least 1, or None.")
        if rate_per_s is not None and not rate_per_s > 0:
            raise ConfigError(f"rate_per_s={rate_per_s} lets no call through.", "Give more than 0, or None.")
        self.max_concurrency = max_concurrency
        self.rate_per_s = rate_per_s
        self._lock = threading.Lock()
        self._free = max_concurrency or 0
        self._waiting: deque[Future[None]] = deque()
        self._next_start = 0.0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place; entering waits for one and for the moment to start."""
        await self._enter()
        try:
            await asyncio.sleep(self._wait_s())
            yield
        finally:
            self._leave()

    async def _enter(self) -> None:
        if self.max_concurrency is None:
            return
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn: Future[None] = Future()
            self._waiting.append(turn)
        try:
            await asyncio.wrap_future(turn)
        except asyncio.CancelledError:
            # The turn may have come while the wait was given up: it goes to the next.
            if not turn.cancel():
                self._leave()
            raise

    def _leave(self) -> None:
        if self.max_concurrency is None:
            return
        with self._lock:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    break
            else:
                self._free += 1
                return
        turn.set_result(None)

    def _wait_s(self) -> float:
        """Book the next start; return the seconds until then."""
        if self.rate_per_s is None:
            return 0.0
        with self._lock:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + 1 / self.rate_per_s
            return start - time.monotonic()
