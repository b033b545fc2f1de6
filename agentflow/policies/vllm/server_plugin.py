"""What a vLLM server is taught: to take its weights from a learner and to say which it holds.

vLLM finds this module through the entry-point group `vllm.general_plugins` and calls `register` in each of its
processes. Of AgentFlow only `copies`, `digests` and `gpu_memory` are imported here: a server may live in an environment
of its own, which is given these four modules alone. Written against vLLM 0.32.
"""

import json
import mmap
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from vllm import _custom_ops
from vllm.distributed.device_communicators import shm_broadcast
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from agentflow.policies.vllm.copies import RecordedCopies
from agentflow.policies.vllm.digests import PROTOCOL, digests, shape_of
from agentflow.policies.vllm.gpu_memory import opened, visible_gpus

ENGINE = "agentflow"
_OURS = "AGENTFLOW_SERVER"
_TIMEOUT_S = 60.0
_SPIN_S, _LOOK_AGAIN_MS = 0.0015, 5


def register() -> None:
    """Make the engine known, in each process of a server."""
    if ENGINE not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(ENGINE, __name__, "BufferEngine")
    if os.environ.get(_OURS) and LRUCacheWorkerLoRAManager._apply_adapters is _apply_adapters:
        LRUCacheWorkerLoRAManager._apply_adapters = _apply_adapters_loaded
    if os.environ.get(_OURS) and current_platform.is_cpu():
        # oneDNN would replace the weights by packed copies, which can be neither rewritten in place nor read again;
        # sampling is as fast without it (docs/log.md).
        _custom_ops._supports_onednn = False
        # Whoever waits for another process spins for 1 s, on a core that others could use, and then sleeps until it is
        # told; a message that is lost costs 5 s. Here it sleeps soon, and looks again by itself soon.
        shm_broadcast.SpinCondition.__init__.__defaults__ = (_SPIN_S,)
        shm_broadcast.SHM_READER_RECHECK_INTERVAL_MS = _LOOK_AGAIN_MS


_apply_adapters = LRUCacheWorkerLoRAManager._apply_adapters


def _apply_adapters_loaded(manager: Any, requests: set[Any]) -> None:
    """Use adapters as they were loaded.

    vLLM 0.32 hands `load_inplace` on to every request that names the adapter, and would read its files anew before each
    step.
    """
    for request in requests:
        request.load_inplace = False
    _apply_adapters(manager, requests)


@dataclass
class BufferInitInfo(WeightTransferInitInfo):
    """Nothing is agreed beforehand: an update says where its weights are."""


@dataclass
class BufferUpdateInfo(WeightTransferUpdateInfo):
    """Where a flat buffer of weights is, and what lies in it.

    Attributes:
        names: The tensors' names in a checkpoint.
        dtypes: Their dtypes, as torch names them.
        shapes: Their shapes.
        offsets: Bytes from the buffer's start.
        num_bytes: The buffer's size.
        gpu: The name of the GPU that holds it; empty where none does.
        gpu_memory: What that GPU's memory is opened with.
        path: A file that both processes can map; empty where the buffer is on a GPU or comes over TCP.
        host: The learner's host.
        port: Its port.
        adapter: The configuration of the adapter that the weights are, as peft writes it; empty for a model's own.
        token: What the learner wants to hear before it sends.
    """

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    offsets: list[int]
    num_bytes: int
    gpu: str = ""
    gpu_memory: list[Any] = field(default_factory=list)
    path: str = ""
    host: str = ""
    port: int = 0
    adapter: dict[str, Any] = field(default_factory=dict)
    token: str = field(default="", repr=False)


class BufferEngine(WeightTransferEngine[BufferInitInfo, BufferUpdateInfo]):
    """Load weights from a learner's buffer: shared memory of its host or of its GPU, TCP between hosts."""

    init_info_cls = BufferInitInfo
    update_info_cls = BufferUpdateInfo
    received: dict[str, str]
    """The digests of what came with the last update."""

    def init_transfer_engine(self, init_info: BufferInitInfo) -> None:
        """Begin with nothing received."""
        self.received = {}
        self._opened: tuple[tuple[Any, ...], torch.Tensor] | None = None
        self._copies: RecordedCopies | None = None  # that load what was opened
        self._is_reloading = False

    def start_weight_update(self) -> None:
        """Do nothing yet: what must be prepared depends on what comes."""

    def receive_weights(self, update_info: BufferUpdateInfo) -> None:
        """Write the learner's weights over the model's, or its adapter into the folder that vLLM is to load."""
        tensors = dict(_tensors(update_info, self._buffer(update_info)))
        if self.parallel_config.tensor_parallel_size > 1:
            self.received = digests(tensors)
        if not update_info.adapter:
            self._load(tensors, is_kept=bool(update_info.path))
        elif self.parallel_config.rank == 0:
            _write_adapter(update_info.adapter, tensors)

    def _load(self, tensors: dict[str, torch.Tensor], *, is_kept: bool) -> None:
        if not current_platform.is_cpu():
            # Layers may keep their weights in another form than a checkpoint; on a CPU none does.
            initialize_layerwise_reload(self.model)
            self._is_reloading = True
            self.model.load_weights(tensors.items())
        elif not is_kept:
            self.model.load_weights(tensors.items())
        elif self._copies is None:
            self._copies = self._recorded(tensors)
        else:
            self._copies.repeat()

    def _recorded(self, tensors: dict[str, torch.Tensor]) -> RecordedCopies | None:
        """Load, and return the copies that do so again; None where a load is more than these."""
        with RecordedCopies() as copies:
            self.model.load_weights(tensors.items())
        # What a model computes of its weights beside its parameters would be left as it is, and no checksum see it.
        does_more = any(hasattr(module, "post_weight_load") for module in self.model.modules())
        return copies if not does_more and copies.are_all(tensors.values(), self.model.parameters()) else None

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take an update; on a CPU there is no device to wait for."""
        self.receive_weights(self.parse_update_info(update_info))
        if not current_platform.is_cpu():
            torch.accelerator.synchronize()

    def finish_weight_update(self) -> None:
        """Bring the layers back into the form that they compute in."""
        if self._is_reloading:
            self._is_reloading = False
            finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Let the learner's buffer go."""
        self._opened = self._copies = None

    def _buffer(self, info: BufferUpdateInfo) -> torch.Tensor:
        if not info.gpu and not info.path:
            return torch.frombuffer(_fetched(info), dtype=torch.uint8)
        # What was opened is kept: a mapping's page faults cost as much as the copy.
        place = (info.gpu, *info.gpu_memory, info.path)
        if self._opened is None or self._opened[0] != place:
            self._opened, self._copies = (place, _opened(info)), None
        return self._opened[1]


def _opened(info: BufferUpdateInfo) -> torch.Tensor:
    """Return a buffer of the learner on this host."""
    if info.gpu:
        return opened(info.gpu_memory, torch.device("cuda", visible_gpus().index(info.gpu)))
    with open(info.path, "rb") as file:
        return torch.frombuffer(mmap.mmap(file.fileno(), info.num_bytes, prot=mmap.PROT_READ), dtype=torch.uint8)


def _fetched(info: BufferUpdateInfo) -> bytearray:
    """Fetch the buffer over TCP."""
    buffer = bytearray(info.num_bytes)
    view = memoryview(buffer)
    with socket.create_connection((info.host, info.port), timeout=_TIMEOUT_S) as connection:
        connection.sendall(info.token.encode() + b"\n")
        while view:
            count = connection.recv_into(view)
            if not count:
                raise ConnectionError(f"the learner closed the connection {len(view)} bytes before the end")
            view = view[count:]
    return buffer


def _adapter_folder() -> Path:
    """Return the folder of the current adapter, in the server's own place for files that pass."""
    return Path(tempfile.gettempdir()) / "agentflow-adapter"


def _write_adapter(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    folder = _adapter_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")


def _tensors(info: BufferUpdateInfo, buffer: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    for name, dtype, shape, offset in zip(info.names, info.dtypes, info.shapes, info.offsets, strict=True):
        kind = getattr(torch, dtype)
        size = kind.itemsize * torch.Size(shape).numel()
        yield name, buffer[offset : offset + size].view(kind).view(shape)


class WorkerExtension:
    """Methods that vLLM's worker gains (`--worker-extension-cls`)."""

    def agentflow_digests(self) -> dict[str, str]:
        """Return the digests of the weights that this worker computes with."""
        worker: Any = self
        return _digests_of(worker, lambda: worker.model_runner.get_model().named_parameters())

    def agentflow_adapter_digests(self) -> dict[str, str]:
        """Return the digests of the adapter that this worker computes with."""
        worker: Any = self
        return _digests_of(worker, lambda: _adapters_in_use(worker.model_runner.lora_manager._adapter_manager))

    def agentflow_reset(self) -> None:
        """End an update that a learner, which is gone, has left open."""
        worker: Any = self
        if worker._weight_update_active:
            worker.finish_weight_update()

    def agentflow_describe(self) -> dict[str, Any]:
        """Return what a learner must agree with before it samples here."""
        worker: Any = self
        config, lora = worker.vllm_config.model_config, worker.vllm_config.lora_config
        return {
            "protocol": PROTOCOL,
            "architecture": config.architectures[0],
            "vocabulary": config.get_vocab_size(),
            "layers": config.hf_text_config.num_hidden_layers,
            "hidden_size": config.hf_text_config.hidden_size,
            **shape_of(config.hf_text_config),
            "dtype": str(config.dtype).removeprefix("torch."),
            "max_length": config.max_model_len,
            "logprobs": str(getattr(config.logprobs_mode, "value", config.logprobs_mode)),
            "lora_rank": lora.max_lora_rank if lora is not None else 0,
            "adapter_folder": str(_adapter_folder()),
            "gpus": visible_gpus(),
        }


def _digests_of(worker: Any, held: Callable[[], Iterable[tuple[str, torch.Tensor]]]) -> dict[str, str]:
    """Return the digests of what a worker holds; one that holds a slice of each tensor, of what it received."""
    if worker.parallel_config.tensor_parallel_size > 1:
        received: dict[str, str] = worker.weight_transfer_engine.received
        return received
    return digests(dict(held()))


def _adapters_in_use(manager: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Find the matrices of adapters that layers compute with, and the padding beside them, which should be zero."""
    for slot, adapter in enumerate(manager.lora_index_to_id):
        if adapter is None:
            continue
        rank = manager.get_adapter(adapter).rank
        for name, module in manager.modules.items():
            # Embeddings and the head have no tuples, and no adapter either.
            if not isinstance(module.lora_a_stacked, tuple):
                continue
            stacks = [(stack[slot], -2) for stack in module.lora_a_stacked]
            stacks += [(stack[slot], -1) for stack in module.lora_b_stacked]
            for i, (stack, axis) in enumerate(stacks):
                yield f"{name}.adapter-{i}", stack.narrow(axis, 0, rank)
                yield f"{name}.padding-{i}", stack.narrow(axis, rank, stack.shape[axis] - rank)
