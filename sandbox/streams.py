"""The output of a program, kept within bounds while it is read."""

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from agentflow.sandbox.base import Output

FLOOD_FACTOR = 16
"""A stream this many times as long as what is kept of it ends the program."""
_CHUNK_BYTES = 1 << 16


class Kept:
    """The head and the tail of a stream.

    Args:
        limit_bytes: Bytes kept, half of them from the start.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._half = max(1, limit_bytes // 2)
        self._head = bytearray()
        self._tail = bytearray()
        self._num_bytes = 0

    @property
    def is_flood(self) -> bool:
        """Whether the stream is out of all proportion."""
        return self._num_bytes > FLOOD_FACTOR * self._limit

    def add(self, data: bytes) -> None:
        """Take what was written."""
        self._num_bytes += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 2 * self._half:
            del self._tail[: -self._half]

    def output(self) -> Output:
        """Return what was kept."""
        return Output(bytes(self._head), bytes(self._tail[-self._half :]), self._num_bytes)


@contextmanager
def memory_file(content: bytes) -> Iterator[int]:
    """Hold bytes in an anonymous file that is read from its start."""
    descriptor = os.memfd_create("sandbox")
    try:
        left = memoryview(content)
        while left:  # one write takes 2 GB at most
            left = left[os.write(descriptor, left) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


class Pipe:
    """A pipe that a program writes and the event loop reads.

    Args:
        kept: Takes what is read.
        on_flood: Called once the stream is out of all proportion.
    """

    def __init__(self, kept: Kept, on_flood: Callable[[], None]) -> None:
        self._kept = kept
        self._on_flood = on_flood
        self._is_told = False
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        asyncio.get_running_loop().add_reader(self._reading, self._read)

    def __enter__(self) -> Self:
        """Return the pipe."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close_writing(self) -> None:
        """Let go of this process's own writing end, once the program has its copy."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def close(self) -> None:
        """Read what is left, no more than a pipe holds: somebody may still be writing. Then close."""
        self.close_writing()
        left = fcntl.fcntl(self._reading, fcntl.F_GETPIPE_SZ)
        while left > 0 and (num_bytes := self._read()):
            left -= num_bytes
        asyncio.get_running_loop().remove_reader(self._reading)
        os.close(self._reading)

    def _read(self) -> int:
        """Read once; how many bytes, 0 where there are none now."""
        try:
            data = os.read(self._reading, _CHUNK_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            asyncio.get_running_loop().remove_reader(self._reading)
            return 0
        self._kept.add(data)
        if self._kept.is_flood and not self._is_told:
            self._is_told = True
            self._on_flood()
        return len(data)
