"""How a server on a CPU writes weights that come again and again: as copies of bytes, found out once.

A core that stores into memory reads it first, unless it streams. torch's copies never do, and so move half as many
bytes again as they have to; the C library's do from a size on, which `launch` sets.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode


class RecordedCopies(TorchFunctionMode):
    """Takes note of each `Tensor.copy_` within, to do all of them again."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._bytes: list[tuple[Any, Any]] = []

    def __torch_function__(self, function: Any, types: Any, *given: Any) -> Any:
        """Do what is asked for, and take note of a copy; see torch for the arguments."""
        args, kwargs, *_ = (*given, None)  # the latter may be left out
        if function is torch.Tensor.copy_:
            self._copies.append((args[0], args[1]))
        return function(*args, **(kwargs or {}))

    def are_all(self, sources: Iterable[torch.Tensor], targets: Iterable[torch.Tensor]) -> bool:
        """Say whether these copies, and no others, brought each byte of the sources, as it is, into the targets.

        What else was done to the targets, by other means than a copy, is not seen.
        """
        wanted = {tensor.data_ptr(): tensor.nbytes for tensor in sources}
        memory = {tensor.untyped_storage().data_ptr() for tensor in targets}
        are_plain = all(
            target.dtype == source.dtype
            and target.shape == source.shape
            and target.is_contiguous()
            and source.is_contiguous()
            and target.untyped_storage().data_ptr() in memory
            for target, source in self._copies
        )
        return are_plain and {source.data_ptr(): source.nbytes for _, source in self._copies} == wanted

    def repeat(self) -> None:
        """Copy what the sources hold now."""
        if not self._bytes:
            self._bytes = [(_bytes_of(target), _bytes_of(source)) for target, source in self._copies]
        for target, source in self._bytes:
            np.copyto(target, source)


def _bytes_of(tensor: torch.Tensor) -> Any:
    return tensor.detach().view(-1).view(torch.uint8).numpy()
