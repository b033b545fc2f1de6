"""Waiting for work that must not be dropped half way: what it started would go on."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_thread(run: Callable[[threading.Event], T]) -> T:
    """Run an execution in a thread; a caller that no longer waits sets the event, and goes once nothing is left.

    Args:
        run: The execution; it ends when the event is set.
    """
    stop = threading.Event()
    return await to_the_end(asyncio.to_thread(run, stop), give_up=stop.set)


async def to_the_end(work: Awaitable[T], *, give_up: Callable[[], object]) -> T:
    """Await work that leaves something behind if it is dropped: a caller that is cancelled goes once it has ended.

    Args:
        work: It ends soon after `give_up`.
        give_up: Called where nobody waits for the outcome any more.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        give_up()
        while not task.done():
            with suppress(asyncio.CancelledError):  # however often
                await asyncio.wait([task])
        raise
