"""Between synchronous and asynchronous code, so that neither can hold up the other."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


async def call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call code of someone else: an async function here, a plain one in a thread, where it can block nobody.

    A plain function may return an awaitable, which is awaited here.
    """
    if inspect.iscoroutinefunction(function):
        return await function(*args, **kwargs)
    result = await asyncio.to_thread(_plainly, function, *args, **kwargs)
    return await result if inspect.isawaitable(result) else result


def _plainly(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        # No future takes it: whoever waits would wait for ever.
        raise RuntimeError(f"StopIteration: {error}") from error


def is_cancelled() -> bool:
    """Say whether the running task is being cancelled from outside, and not by what it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine from synchronous code, even where that code was itself called from an event loop.

    Each call has an event loop of its own: nothing that belongs to a loop outlives it. A plain function that was given
    up, because it took too long, is left behind in its thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(coroutine)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_run, coroutine).result()


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    try:
        with asyncio.Runner() as runner:
            runner.get_loop().set_default_executor(DaemonThreads())
            return runner.run(coroutine)
    finally:
        coroutine.close()  # one that an interrupt kept from its start would be complained of


class DaemonThreads(ThreadPoolExecutor):
    """One daemon thread a call: an environment that hangs for ever blocks neither the others nor the exit."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call in a new thread."""
        future: Future[Any] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  the future carries it to whoever waits
                future.set_exception(error)

        Thread(target=work, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave daemon threads to the exit of the process."""


class BackgroundLoop:
    """An event loop in a thread of its own, for what outlives the loops of single calls: connections, servers.

    Args:
        name: What its thread is called.
    """

    def __init__(self, name: str = "background") -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(DaemonThreads())
        self._thread = Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine there, and return its future; one that `close` overtakes is cancelled."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there, and wait for it in synchronous code."""
        future = self.submit(coroutine)
        try:
            return future.result()
        finally:
            future.cancel()

    def wrap(self, coroutine: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Run a coroutine there, and return what another loop may await."""
        return asyncio.wrap_future(self.submit(coroutine))

    def call(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call a plain function there, and wait for it."""

        async def called() -> T:
            return function(*args, **kwargs)

        return self.run(called())

    def call_soon(self, function: Callable[..., Any], /, *args: Any) -> None:
        """Call a plain function there, and do not wait."""
        self._loop.call_soon_threadsafe(function, *args)

    def close(self) -> None:
        """End what still runs there, and the thread."""
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
