"""Sending a learner's weights to a vLLM server beside a plain copy of their bytes.

    python -m tests.benchmarks.weight_sync --repeats 7
    python -m tests.benchmarks.weight_sync --lora-rank 8                    # the adapter, beside the whole model

Both write every byte once: the copy from one tensor to another in this process, the server from the learner's memory
into its model, with the requests around it and the checksums of both sides. They alternate; medians are printed.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from agentflow.policies.vllm.policy import VllmPolicy
from agentflow.policies.vllm.servers import ServerConfig


def model_of_100m() -> Qwen3ForCausalLM:
    """Make a Qwen3 of 101 M parameters with random weights."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=32_000,
            hidden_size=768,
            intermediate_size=2304,
            num_hidden_layers=10,
            num_attention_heads=12,
            num_key_value_heads=12,
            head_dim=64,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        )
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--lora-rank", type=int, default=0)
    words = parser.parse_args()
    repeats = words.repeats
    model: Any = model_of_100m()
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    if words.lora_rank:
        model = get_peft_model(model, LoraConfig(r=words.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"))
        sent = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
        print(f"the adapter has {sent / 1e6:.1f} MB")
    source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8)
    target = torch.zeros_like(source)
    policy = VllmPolicy(model, [], config=ServerConfig(), max_episode_tokens=512)
    copies, pushes = [], []
    with tempfile.TemporaryDirectory() as folder, policy.serving(Path(folder)):
        for _ in range(repeats):
            started = time.perf_counter()
            target.copy_(source)
            copies.append(time.perf_counter() - started)
            with policy.updating():
                started = time.perf_counter()
            pushes.append(time.perf_counter() - started)
    ratio = statistics.median(push / copy for push, copy in zip(pushes, copies, strict=True))
    print(
        f"{num_bytes / 1e6:.0f} MB: copy {1e3 * statistics.median(copies):.1f} ms, "
        f"weight update {1e3 * statistics.median(pushes):.1f} ms, {ratio:.2f} times the copy (median of {repeats})"
    )


if __name__ == "__main__":
    main()
