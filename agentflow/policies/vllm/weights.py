"""The learner's side of a weight transfer: a flat buffer of weights, that servers read.

Parameters live in the buffer itself, on the CPU or a GPU, so that publishing them costs nothing; what is computed from
them is copied there. Servers on the same host map the buffer: one on a GPU if they see that GPU, or else a copy of it
in an anonymous file of this process, which goes with it. Servers on other hosts fetch it over TCP from an address that
the user names.
"""

import hmac
import mmap
import os
import secrets
import socket
import socketserver
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from agentflow.errors import ConfigError
from agentflow.policies.vllm.digests import digests
from agentflow.policies.vllm.gpu_memory import gpu_name, shared

_ALIGNMENT = 64
_TOKEN_BYTES = 256
_CHUNK_BYTES = 1 << 20
_PATIENCE_S = 60.0


class WeightBuffer:
    """Weights in one buffer.

    Args:
        weights: Returns what is to be sent as it is now, by the names of a checkpoint; parameters on a CPU are moved
            into the buffer.
        host: The address under which other hosts reach this one; None for servers on this host.
        adapter: The configuration of the adapter that the weights are, as peft writes it; None for a model's own.

    Raises:
        ConfigError: Nothing can listen at the address.
    """

    def __init__(
        self,
        weights: Callable[[], Mapping[str, Tensor]],
        *,
        host: str | None = None,
        adapter: Mapping[str, Any] | None = None,
    ) -> None:
        self._weights = weights
        self.is_adapter = adapter is not None
        current = weights()
        offset = 0
        offsets = []
        for weight in current.values():
            offsets.append(offset)
            offset += -(-weight.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.num_bytes = offset
        self._file = os.memfd_create("agentflow-weights")
        os.ftruncate(self._file, offset)
        self._memory = mmap.mmap(self._file, offset)
        self._in_file = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._flat = self._in_file
        first, *others = {weight.device for weight in current.values()}
        if first.type == "cuda" and not others and not self.is_adapter:
            self._flat = torch.zeros(offset, dtype=torch.uint8, device=first)
        self._views = {
            name: self._view(weight, start) for (name, weight), start in zip(current.items(), offsets, strict=True)
        }
        self._layout = {
            "names": list(current),
            "dtypes": [str(weight.dtype).removeprefix("torch.") for weight in current.values()],
            "shapes": [list(weight.shape) for weight in current.values()],
            "offsets": offsets,
            "num_bytes": offset,
            "adapter": dict(adapter or {}),
        }
        self._sender = _Sender(self._memory, host) if host else None
        self._digests: dict[str, str] | None = None
        self._is_in_file = not self._flat.is_cuda
        self._gpu_memory: Sequence[Any] = ()
        self._counting, self._placing = threading.Lock(), threading.Lock()  # several servers ask at once

    def publish(self) -> None:
        """Bring the buffer up to date."""
        self._digests = None
        self._is_in_file = not self._flat.is_cuda
        for name, weight in self._weights().items():
            if weight.data_ptr() != self._views[name].data_ptr():
                self._views[name].copy_(weight.detach())
        if not self._is_in_file:
            torch.cuda.synchronize(self._flat.device)

    def update_info(self, gpus: Collection[str] = ()) -> dict[str, Any]:
        """Return what a server must know to read the buffer; see `server_plugin.BufferUpdateInfo`.

        Args:
            gpus: Names of the GPUs that the server sees.

        Raises:
            ConfigError: The server sees our GPU, whose memory cannot be shared.
        """
        with self._placing:
            if self._sender is None and self._flat.is_cuda and gpu_name(self._flat.device) in gpus:
                return {**self._layout, "gpu": gpu_name(self._flat.device), "gpu_memory": self._shared()}
            if not self._is_in_file:
                self._in_file.copy_(self._flat)
                self._is_in_file = True
        if self._sender is not None:
            return {**self._layout, **self._sender.address}
        return {**self._layout, "path": f"/proc/{os.getpid()}/fd/{self._file}"}

    def digests(self) -> dict[str, str]:
        """Return the checksums of the published weights, as servers compute them of theirs."""
        with self._counting:
            if self._digests is None:
                self._digests = digests(self._views)
            return self._digests

    def close(self) -> None:
        """Send nothing any more; the weights stay where they are, for as long as the model uses them."""
        if self._sender is not None:
            self._sender.close()
        os.close(self._file)

    def _shared(self) -> Sequence[Any]:
        if not self._gpu_memory:
            try:
                self._gpu_memory = shared(self._flat)
            except RuntimeError as error:
                raise ConfigError(
                    f"The GPU's memory cannot be shared with servers ({error}).",
                    "Leave expandable_segments out of PYTORCH_CUDA_ALLOC_CONF, or set "
                    "policy.servers.weights_host=127.0.0.1.",
                ) from error
        return self._gpu_memory

    def _view(self, weight: Tensor, start: int) -> Tensor:
        view = self._flat[start : start + weight.nbytes].view(weight.dtype).view(weight.shape)
        view.copy_(weight.detach())
        if isinstance(weight, torch.nn.Parameter) and weight.device == self._flat.device:
            weight.data = view
        return view


class _Sender:
    """Sends the buffer to whoever connects and knows the token."""

    def __init__(self, memory: mmap.mmap, host: str) -> None:
        token = secrets.token_urlsafe(32)
        view = memoryview(memory)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(_PATIENCE_S)
                with closing(self.request.makefile("rb")) as said:
                    if hmac.compare_digest(said.readline(_TOKEN_BYTES).strip(), token.encode()):
                        for start in range(0, len(memory), _CHUNK_BYTES):  # the timeout is one for each call
                            self.request.sendall(view[start : start + _CHUNK_BYTES])

        try:
            self._server = socketserver.ThreadingTCPServer((host, 0), Handler)
        except (OSError, socket.gaierror) as error:
            raise ConfigError(
                f"policy.servers.weights_host = {host!r}: nothing can listen there ({error}).",
                "Give an address of this host that the servers reach.",
            ) from error
        self._server.daemon_threads = True
        self.address = {"host": host, "port": self._server.server_address[1], "token": token}
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
