"""The output of a program, kept within bounds while it is read."""

from agentflow.sandbox.base import Output

FLOOD_FACTOR = 16
"""A stream this many times as long as what is kept of it ends the program."""


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
