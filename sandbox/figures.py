"""Plots, as they come out of a sandbox: a file of fixed size that the program's side writes and nobody trusts.

The file holds the number of figures, then each as a length and a PNG; numbers are 4 bytes, the most significant first,
and a length of 0 ends it. See `guest_figures.py`, which writes it.
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Self

from agentflow.messages import Image
from agentflow.sandbox.base import Result
from agentflow.sandbox.guest_figures import MAX_FIGURE_BYTES, MAX_FIGURES

_NUMBER = struct.Struct(">I")
MAX_WRITTEN_BYTES = _NUMBER.size + MAX_FIGURES * (_NUMBER.size + MAX_FIGURE_BYTES)
_MOST_COUNTED = 99
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class FigureFile:
    """An anonymous file of fixed size, so that whoever has it can fill no more of the host's memory.

    Attributes:
        descriptor: For the program's side.
    """

    def __init__(self) -> None:
        self._own = os.memfd_create("figures", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._own, MAX_WRITTEN_BYTES)
        fcntl.fcntl(self._own, fcntl.F_ADD_SEALS, _SEALS)
        try:
            # Opened anew: flags that the program's side sets (O_APPEND) must not hold for this side.
            self.descriptor = os.open(f"/proc/self/fd/{self._own}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            os.close(self._own)
            raise

    def take(self) -> bytes:
        """Return what was written, nothing for no figure, and be empty again."""
        if os.pread(self._own, _NUMBER.size, 0) == bytes(_NUMBER.size):
            return b""
        written = os.pread(self._own, MAX_WRITTEN_BYTES, 0)
        os.pwrite(self._own, bytes(_NUMBER.size), 0)
        return written

    def close(self) -> None:
        """Let go of it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            os.close(self._own)
            self.descriptor = self._own = -1

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


def with_figures(result: Result, written: bytes) -> Result:
    """Return a result with the figures that its program left; what is no PNG of a decent size is counted, not kept."""
    if len(written) < _NUMBER.size:
        return result
    images = tuple(_images(written))
    claimed = min(_NUMBER.unpack_from(written)[0], _MOST_COUNTED)
    return replace(result, images=images, num_lost_images=max(0, claimed - len(images)))


def _images(written: bytes) -> Iterator[Image]:
    place = _NUMBER.size
    for _ in range(MAX_FIGURES):
        if place + _NUMBER.size > len(written):
            return
        (size,) = _NUMBER.unpack_from(written, place)
        place += _NUMBER.size
        data = written[place : place + size]
        place += size
        if 0 < size <= MAX_FIGURE_BYTES:
            try:
                yield Image("image/png", data)
            except ValueError:  # it was forged, or cut
                continue
