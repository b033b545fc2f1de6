"""A GPU's memory that two processes of one host use (CUDA IPC): the learner's weights, as a server reads them."""

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def gpu_name(device: torch.device) -> str:
    """Return the name that a GPU has in every process."""
    return str(torch.cuda.get_device_properties(device).uuid)


def visible_gpus() -> list[str]:
    """Return the names of the GPUs that this process sees, in its order."""
    return [gpu_name(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]


def shared(flat: Tensor) -> list[Any]:
    """Return, as JSON can hold it, what other processes need to read a buffer; ask once, as torch keeps each answer.

    Args:
        flat: Bytes in a GPU's memory, shape `(num_bytes,)`, in a storage of their own that lives as long as it is read.

    Raises:
        RuntimeError: This memory cannot be shared.
    """
    storage: Any = flat.untyped_storage()
    words = storage._share_cuda_()[1:]  # the first is the GPU, as it is numbered here
    return [base64.b64encode(word).decode() if isinstance(word, bytes) else word for word in words]


def opened(words: Sequence[Any], device: torch.device) -> Tensor:
    """Return the buffer that another process shares.

    Args:
        words: What `shared` returned there.
        device: The GPU that holds it, as it is numbered here.
    """
    known = [base64.b64decode(word) if isinstance(word, str) else word for word in words]
    storage = torch.UntypedStorage._new_shared_cuda(device.index, *known)
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
