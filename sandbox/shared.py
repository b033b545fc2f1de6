"""One sandbox for the whole process: its own thread and event loop, so that code of any other loop may use it.

A backend belongs to one event loop, and keeps interpreters warm that are worth sharing. Environments live in many:
every synchronous `step` and every rollout runs a loop of its own.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from functools import lru_cache
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Self, TypeVar

from agentflow.sandbox.base import Limits, Program, Result, Sandbox, Session
from agentflow.sandbox.probe import open_sandbox

T = TypeVar("T")
_CLOSING_S = 10.0


class SharedSandbox:
    """A sandbox that is opened at first use and may then be used from any thread and any event loop.

    Args:
        open_backend: Makes the backend; it is called in this sandbox's own loop, where the backend stays.
        name: Its name until it is open.
    """

    def __init__(self, open_backend: Callable[[], Sandbox | Awaitable[Sandbox]], *, name: str = "shared") -> None:
        self.name = name
        self._open_backend = open_backend
        self._loop: asyncio.AbstractEventLoop | None = None
        self._backend: asyncio.Task[Sandbox] | None = None
        self._starting = Lock()

    def ensure_open(self) -> Self:
        """Open the backend now, so that one which does not work here is known before anything runs.

        Raises:
            SandboxUnavailable: It does not work here.
        """
        asyncio.run_coroutine_threadsafe(self._opened(), self._running_loop()).result()
        return self

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        """Run a program in a fresh place; see `Sandbox`."""

        async def work() -> Result:
            return await (await self._opened()).run(program, limits)

        return await self._there(work())

    async def session(self, limits: Limits | None = None) -> Session:
        """Start an interpreter that keeps its state; see `Sandbox`."""

        async def work() -> Session:
            return await (await self._opened()).session(limits)

        return _SharedSession(self, await self._there(work()))

    async def close(self) -> None:
        """End the backend and the thread; the next use opens them again."""
        with self._starting:
            loop, self._loop = self._loop, None
        if loop is None:
            return

        async def work() -> None:
            backend, self._backend = self._backend, None
            if backend is not None:
                await (await backend).close()

        try:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), loop))
        finally:
            loop.call_soon_threadsafe(loop.stop)

    async def _opened(self) -> Sandbox:
        # Kept as a task, so that programs that come at once open one backend; a failure is tried again.
        if self._backend is None or (self._backend.done() and self._backend.exception() is not None):
            self._backend = asyncio.ensure_future(self._open())
        return await asyncio.shield(self._backend)

    async def _open(self) -> Sandbox:
        found = self._open_backend()
        backend = await found if inspect.isawaitable(found) else found
        self.name = backend.name
        return backend

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something in this sandbox's loop; cancelling the wait cancels the work."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._running_loop()))

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                Thread(target=self._loop.run_forever, name="sandbox", daemon=True).start()
            return self._loop


class _SharedSession:
    def __init__(self, owner: SharedSandbox, session: Session) -> None:
        self._owner = owner
        self._session = session

    async def exec(self, code: str, *, limits: Limits | None = None) -> Result:
        return await self._owner._there(self._session.exec(code, limits=limits))

    async def fork(self) -> Session:
        return _SharedSession(self._owner, await self._owner._there(self._session.fork()))

    async def close(self) -> None:
        await self._owner._there(self._session.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


@lru_cache(maxsize=8)
def shared_sandbox(name: str) -> SharedSandbox:
    """Return this process's sandbox of a name; nothing is started before `ensure_open` or its first use."""
    return SharedSandbox(lambda: open_sandbox(name), name=name)
