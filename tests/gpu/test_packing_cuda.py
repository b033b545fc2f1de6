"""On a GPU the forest runs through FlexAttention, and equals the CPU's tree attention."""

from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from agentflow.messages import Message, Reply
from agentflow.scoring.attention import use_agentflow_attention
from agentflow.scoring.packing import pack, sampled_logprobs
from agentflow.trajectory import Completion, Status, Trajectory, Turn

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def branch(length: int, index: int) -> Trajectory:
    context = tuple(token % 50 for token in range(200))
    sampled = tuple((token * (index + 1)) % 50 for token in range(length))
    turn = Turn(0, context, Completion(sampled, (0.0,) * length, "stop", 0), (), Reply(Message("assistant")))
    return Trajectory(f"0/task/{index}", "task", 0, (turn,), Status("completed"), True)


def test_flex_attention_equals_tree_attention() -> None:
    # Two batches of different lengths: the kernel is compiled once for all of them.
    for lengths in ((30, 150, 77), (10, 300)):
        batch = pack([branch(length, index) for index, length in enumerate(lengths)])
        results = []
        for device in ("cpu", "cuda"):
            torch.manual_seed(0)
            config = Qwen3Config(
                vocab_size=64,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=32,
            )
            model: Any = Qwen3ForCausalLM(config)  # type: ignore[no-untyped-call]
            model.to(device)
            use_agentflow_attention(model)
            logprobs, _ = sampled_logprobs(model, batch, temperature=1.0)
            logprobs.sum().backward()  # type: ignore[no-untyped-call]
            gradient = model.model.layers[0].self_attn.q_proj.weight.grad
            results.append((logprobs.detach().cpu(), gradient.cpu()))
        torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-4)
        torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-3)
