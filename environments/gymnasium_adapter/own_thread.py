"""A thread of its own for what must be made, used and closed in one: GL contexts, sqlite connections, simulators."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class OwnThread:
    """Runs calls one after the other in one daemon thread, which begins with the first call.

    A daemon, so that a call that hangs for ever does not hold up the exit of the process.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread: Thread | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """Run a call there, and wait for it without blocking the event loop."""
        return await asyncio.wrap_future(self._submit(function))

    def end(self, last: Callable[[], Any]) -> None:
        """Run a last call there, wait for it, and end the thread; nothing if it never began."""
        if self._thread is None:
            return
        future = self._submit(last)
        self._calls.put(None)
        self._thread = None
        future.result()

    def _submit(self, function: Callable[[], T]) -> Future[T]:
        if self._thread is None:
            self._thread = Thread(target=self._work, args=(self._calls,), daemon=True)
            self._thread.start()
        future: Future[T] = Future()
        self._calls.put((future, function))
        return future

    @staticmethod
    def _work(calls: "SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]") -> None:
        while (item := calls.get()) is not None:
            future, function = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  the future carries it to whoever waits
                future.set_exception(error)


class SharedThread(OwnThread):
    """One thread for all environments of the process; it never ends."""

    def end(self, last: Callable[[], Any]) -> None:
        """Run a last call there, and wait for it."""
        self._submit(last).result()


@lru_cache(maxsize=1)
def shared_thread() -> SharedThread:
    """Return the thread that all environments with `thread=shared` live in."""
    return SharedThread()
