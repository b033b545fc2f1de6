"""One sandbox for the whole process: its own thread and event loop, so that code of any other loop may use it.

A backend belongs to one event loop, and keeps interpreters warm that are worth sharing. Environments live in many:
every synchronous `step` and every rollout runs a loop of its own.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache
from threading import Lock
from types import TracebackType
from typing import Any, Self, TypeVar

from agentflow.concurrency import BackgroundLoop, is_cancelled
from agentflow.sandbox.base import Limits, Program, Result, Sandbox, SandboxFailure, Session
from agentflow.sandbox.probe import open_sandbox

T = TypeVar("T")


class SharedSandbox:
    """A sandbox that is opened at first use and may then be used from any thread and any event loop.

    Args:
        open_backend: Makes the backend; it is called in this sandbox's own loop, where the backend stays.
        name: Its name until it is open.
    """

    def __init__(self, open_backend: Callable[[], Sandbox | Awaitable[Sandbox]], *, name: str = "shared") -> None:
        self.name = name
        self._open_backend = open_backend
        self._home: _Home | None = None
        self._starting = Lock()

    def ensure_open(self) -> Self:
        """Open the backend now, so that one which does not work here is known before anything runs.

        Raises:
            SandboxUnavailable: It does not work here.
        """
        home = self._at_home()
        home.submit(home.opened).result()
        return self

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        """Run a program in a fresh place; see `Sandbox`.

        Raises:
            SandboxFailure: The sandbox is closed meanwhile.
        """
        home = self._at_home()

        async def work() -> Result:
            return await (await home.opened()).run(program, limits)

        return await home.wait_for(work)

    async def session(self, limits: Limits | None = None) -> Session:
        """Start an interpreter that keeps its state; see `Sandbox`.

        Raises:
            SandboxFailure: The sandbox is closed meanwhile.
        """
        home = self._at_home()

        async def work() -> Session:
            return home.keep(await (await home.opened()).session(limits))

        return _SharedSession(home, await home.wait_for(work))

    async def close(self) -> None:
        """End the backend, its sessions, what else is under way, and the thread; the next use opens them again."""
        with self._starting:
            home, self._home = self._home, None
        if home is not None:
            await home.close()

    async def _open(self) -> Sandbox:
        found = self._open_backend()
        backend = await found if inspect.isawaitable(found) else found
        self.name = backend.name
        return backend

    def _at_home(self) -> "_Home":
        with self._starting:
            self._home = self._home or _Home(self._open)
            return self._home


class _Home:
    """The loop in which a backend and its sessions live, until it is closed."""

    def __init__(self, open_backend: Callable[[], Coroutine[Any, Any, Sandbox]]) -> None:
        self._open_backend = open_backend
        self._backend: asyncio.Task[Sandbox] | None = None
        self._sessions: set[Session] = set()
        self._loop = BackgroundLoop("sandbox")
        self._door, self._is_closed = Lock(), False

    async def opened(self) -> Sandbox:
        """Return the backend; called in its loop."""
        # Kept as a task, so that programs that come at once open one backend; a failure is tried again.
        if self._backend is None or (self._backend.done() and self._backend.exception() is not None):
            self._backend = asyncio.ensure_future(self._open_backend())
        return await asyncio.shield(self._backend)

    def keep(self, session: Session) -> Session:
        """Have a session closed with the backend, unless it is closed before."""
        self._sessions.add(session)
        return session

    async def leave(self, session: Session) -> None:
        """Close a session."""
        self._sessions.discard(session)
        await session.close()

    def submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Begin something in this loop."""
        with self._door:  # what comes in before it is closed is also ended then
            if self._is_closed:
                raise _closed()
            return self._loop.submit(work())

    async def wait_for(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await something in this loop; cancelling the wait cancels the work."""
        try:
            return await asyncio.wrap_future(self.submit(work))
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise _closed() from None

    async def close(self) -> None:
        """End all that lives here: whoever waits for it is told."""
        with self._door:
            self._is_closed = True
        try:
            await self._loop.wrap(self._end())
        finally:
            await asyncio.to_thread(self._loop.close)

    async def _end(self) -> None:
        if self._backend is not None:
            await (await self._backend).close()
        await asyncio.gather(*map(self.leave, tuple(self._sessions)))


class _SharedSession:
    def __init__(self, home: _Home, session: Session) -> None:
        self._home = home
        self._session = session

    async def exec(self, code: str, *, limits: Limits | None = None) -> Result:
        return await self._home.wait_for(lambda: self._session.exec(code, limits=limits))

    async def fork(self) -> Session:
        async def work() -> Session:
            return self._home.keep(await self._session.fork())

        return _SharedSession(self._home, await self._home.wait_for(work))

    async def close(self) -> None:
        with suppress(SandboxFailure):  # the sandbox was closed, and its sessions with it
            await self._home.wait_for(lambda: self._home.leave(self._session))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _closed() -> SandboxFailure:
    return SandboxFailure("the sandbox was closed while something of it was in use: close it last")


@lru_cache(maxsize=8)
def shared_sandbox(name: str, packages: tuple[str, ...] = ()) -> SharedSandbox:
    """Return this process's sandbox of a name; nothing is started before `ensure_open` or its first use.

    Args:
        name: See `open_sandbox`.
        packages: Installed distributions that programs may import, beside numpy, sympy and matplotlib.
    """
    return SharedSandbox(lambda: open_sandbox(name, packages), name=name)
