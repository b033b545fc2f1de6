"""The policy that samples from vLLM servers, whose weights follow the learner's."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from agentflow.concurrency import BackgroundLoop
from agentflow.errors import PolicyFailure
from agentflow.policies.vllm.adapters import (
    adapted_modules,
    adapter_config,
    adapter_weights,
    base_of,
    base_weights,
    rank_of,
)
from agentflow.policies.vllm.digests import PROTOCOL, shape_of
from agentflow.policies.vllm.launch import Served, check, launches, served_lora_rank
from agentflow.policies.vllm.pool import ServerPool
from agentflow.policies.vllm.servers import ADAPTER, BASE, Server, ServerConfig
from agentflow.policies.vllm.weights import WeightBuffer
from agentflow.policy import Sampling
from agentflow.remote import checked_url
from agentflow.scoring.positions import max_positions
from agentflow.trajectory import Completion

_FOLDER = "servers"


class VllmPolicy:
    """Sample from vLLM, tokens in and tokens out.

    It samples between entering and leaving `serving`. A turn's seed goes with it, but probabilities depend in their
    last bits on what else the server computes, so that two runs agree statistically and not bit for bit.

    Args:
        model: The learner's model.
        stop_ids: Tokens that end a turn.
        config: The servers.
        max_episode_tokens: The longest transcript that will be asked for.

    Raises:
        ConfigError: No such servers can be started.
    """

    def __init__(
        self, model: PreTrainedModel, stop_ids: Sequence[int], *, config: ServerConfig, max_episode_tokens: int
    ) -> None:
        self.model = model
        self.version = 0
        text: Any = model.config.get_text_config()
        self.max_length: int = max_positions(model)
        self._stop_ids = sorted(stop_ids)
        self._config = config
        self._wanted = {
            "protocol": PROTOCOL,
            "architecture": type(base_of(model)).__name__,
            "vocabulary": text.vocab_size,
            "layers": text.num_hidden_layers,
            "hidden_size": text.hidden_size,
            **shape_of(text),
            "dtype": str(model.dtype).removeprefix("torch."),
            "logprobs": "processed_logprobs",
            "max_length": max_episode_tokens,
            "lora_rank": served_lora_rank(rank_of(model)),
        }
        self._python = "" if config.urls else check(config, gpus=torch.cuda.device_count())
        self._pool: ServerPool | None = None
        self._loop: BackgroundLoop | None = None

    @contextmanager
    def serving(self, folder: Path) -> Iterator[None]:
        """Start the servers, and stop them at the end.

        Args:
            folder: Where the servers' logs go, into a folder of their own.

        Raises:
            ConfigError: A server does not start, or serves something else than what is trained.
        """
        servers = self._servers(folder / _FOLDER)
        buffers = self._buffers()
        loop = self._loop = BackgroundLoop()
        try:
            pool = self._pool = loop.call(ServerPool, servers, buffers, config=self._config, wanted=self._wanted)
            try:
                loop.run(pool.start(self.version))
                yield
            finally:
                loop.run(pool.close())
        finally:
            self._pool = None
            loop.close()
            for buffer in buffers:
                buffer.close()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str) -> Completion:
        """Sample one turn; see `policy.Policy`."""
        assert self._pool is not None and self._loop is not None, "a policy samples while it is serving"
        body = {
            "model": ADAPTER if rank_of(self.model) else BASE,
            "token_ids": list(prompt_ids),
            "sampling_params": {
                "temperature": sampling.temperature,
                "max_tokens": sampling.max_tokens,
                "seed": sampling.seed,
                "logprobs": 0,
                "stop_token_ids": self._stop_ids,
                "ignore_eos": True,
                "detokenize": False,
            },
        }
        choice = await self._loop.wrap(self._pool.generate(body, session))
        return _completion(choice)

    def release(self, session: str) -> None:
        """Forget which server holds a session's beginning."""
        if self._pool is not None and self._loop is not None:
            self._loop.call_soon(self._pool.forget, session)

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Change the weights within; servers that are up follow before this returns, others before they sample."""
        assert self._pool is not None and self._loop is not None, "weights follow while the policy is serving"
        self._loop.run(self._pool.hold())
        try:
            yield
        except BaseException:
            # The run ends with what went wrong; servers that are being started must not wait for weights meanwhile.
            self._loop.run(self._pool.let_go())
            raise
        self.version += 1
        self._loop.run(self._pool.push(self.version))

    def forget(self) -> None:
        """Do nothing: the servers' memory is their own."""

    def metrics(self) -> dict[str, float]:
        """Return how often servers were started again so far."""
        return {"servers/restarts": self._pool.num_restarts if self._pool is not None else 0}

    def _buffers(self) -> list[WeightBuffer]:
        """Return what servers are sent: the last at each update, one before it once."""
        model, host = self.model, self._config.weights_host
        found = [WeightBuffer(lambda: base_weights(model), host=host)]
        if rank_of(model):
            found.append(WeightBuffer(lambda: adapter_weights(model), host=host, adapter=adapter_config(model)))
        return found

    def _servers(self, folder: Path) -> list[Server]:
        if self._config.urls:
            addresses = [str(checked_url(url, "policy.servers.urls")) for url in self._config.urls]
            return [Server(address, self._config, url=address) for address in addresses]
        model_folder = folder / "model"
        model_folder.mkdir(parents=True, exist_ok=True)
        config = copy.deepcopy(self.model.config)
        config.architectures = [self._wanted["architecture"]]  # a model that was never saved does not say it
        config.save_pretrained(model_folder)
        served = Served(
            folder=model_folder.absolute(),
            dtype=self._wanted["dtype"],
            max_length=self._wanted["max_length"],
            gpus=torch.cuda.device_count(),
            learner_gpu=self.model.device.index,
            lora_rank=rank_of(self.model),
            lora_modules=adapted_modules(self.model),
        )
        starts = launches(self._config, served, python=self._python, logs=folder.absolute())
        return [Server(f"server-{i}", self._config, launch=launch) for i, launch in enumerate(starts)]


def _completion(choice: Mapping[str, Any]) -> Completion:
    """Read vLLM's choice."""
    logprobs = tuple(token["logprob"] for token in choice["logprobs"]["content"])
    token_ids = tuple(choice["token_ids"])
    if len(logprobs) != len(token_ids) or not token_ids:
        raise PolicyFailure(f"a server answered {len(token_ids)} tokens with {len(logprobs)} log-probs")
    return Completion(token_ids, logprobs, choice["finish_reason"], choice["version"])
