"""What the tests of served policies share: the starter's model, prompts, and the processes of a server."""

import asyncio
import copy
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from agentflow.models import LoadedModel, ModelConfig, load_model
from agentflow.policies.vllm.policy import VllmPolicy
from agentflow.policies.vllm.servers import ServerConfig
from agentflow.policy import Sampling
from agentflow.sandbox.limits.process_tree import tree_usage
from agentflow.starter_policies import starter_folders
from agentflow.trajectory import Completion

STOP = 1
LENGTH = 512
RANK = 4  # vLLM keeps room for 8: the padding beside an adapter counts nothing


def starter() -> LoadedModel:
    return load_model(ModelConfig(device="cpu"), env="websearch")


def adapted() -> Any:
    """Return the starter with an adapter that changes what it says."""
    model: Any = load_model(ModelConfig(device="cpu", lora_rank=RANK), env="websearch").model
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def update(policy: VllmPolicy, factor: float) -> None:
    """Change the adapter, as an update does."""
    with policy.updating(), torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.mul_(factor)


@contextmanager
def serving(
    folder: Path, *, model: Any = None, stop_ids: Sequence[int] = (), length: int = LENGTH, **options: Any
) -> Iterator[VllmPolicy]:
    """Serve the starter, or another model."""
    policy = VllmPolicy(model or starter().model, stop_ids, config=ServerConfig(**options), max_episode_tokens=length)
    with policy.serving(folder):
        yield policy


def prompt(number: int, length: int = 40) -> list[int]:
    return [5 + (number * 31 + i * 7) % 1000 for i in range(length)]


async def sample_all(
    policy: VllmPolicy, count: int, *, max_tokens: int = 32, temperature: float = 1.0, first: int = 0
) -> list[Completion]:
    """Sample one turn of each of several sessions."""
    return await asyncio.gather(
        *(
            policy.generate(
                prompt(number),
                Sampling(temperature=temperature, max_tokens=max_tokens, seed=number),
                session=f"session {number}",
            )
            for number in range(first, first + count)
        )
    )


@torch.no_grad()
def plain_logprobs(model: Any, number: int, completion: Completion, *, temperature: float) -> torch.Tensor:
    """Score a completion with the forward pass of transformers."""
    ids = torch.tensor([[*prompt(number), *completion.token_ids]])
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    logprobs = torch.log_softmax(logits / temperature, -1)[len(prompt(number)) - 1 : -1]
    return logprobs.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]


def worst_difference(policy: VllmPolicy, completions: Sequence[Completion], *, temperature: float = 1.0) -> float:
    """Return the largest difference between the servers' log-probs and those of the learner's weights."""
    found = differences(plain_weights(policy.model), completions, temperature=temperature)
    return max(float(difference.max()) for difference in found)


def plain_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a model without adapters that computes the same."""
    whole: Any = copy.deepcopy(model)
    weights: dict[str, torch.Tensor] = (
        whole.merge_and_unload() if hasattr(whole, "peft_config") else whole
    ).state_dict()
    return weights


def differences(
    weights: Mapping[str, torch.Tensor], completions: Sequence[Completion], *, temperature: float = 1.0
) -> list[torch.Tensor]:
    """Return how far each token's log-prob is from that of the starter with other weights."""
    plain = AutoModelForCausalLM.from_pretrained(starter_folders()["starter-websearch"], attn_implementation="eager")
    plain.load_state_dict(weights)
    return [
        (plain_logprobs(plain, i, c, temperature=temperature) - torch.tensor(c.logprobs)).abs()
        for i, c in enumerate(completions)
    ]


async def sample_during(
    policy: VllmPolicy, change: Callable[[], None], count: int, *, after_s: float
) -> tuple[list[Completion], list[torch.Tensor], list[torch.Tensor]]:
    """Change the weights while turns are sampled; return those, and their differences under the old and new weights."""
    older = plain_weights(policy.model)
    work = asyncio.ensure_future(sample_all(policy, count, max_tokens=400))
    await asyncio.sleep(after_s)
    await asyncio.to_thread(change)
    completions = await work
    newer = plain_weights(policy.model)
    return completions, differences(older, completions), differences(newer, completions)


def server_pids() -> list[int]:
    """Return the processes of the servers that this process has started, the listening ones first."""
    found = []
    for pid in sorted(tree_usage(os.getpid()).pids):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"vllm" in command.lower() or b"multiprocessing" in command:
            found.append(pid)
    return found


def api_server_pids() -> list[int]:
    return [pid for pid in server_pids() if b"api_server" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)
