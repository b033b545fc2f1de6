"""On a GPU the forest runs through FlexAttention, and equals the CPU's tree attention; so does the sampler."""

import asyncio
import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from agentflow.messages import Message, Reply
from agentflow.policies.in_process import TransformersPolicy
from agentflow.policy import Sampling
from agentflow.scoring.attention import use_agentflow_attention
from agentflow.scoring.packing import PackedBatch, pack, pack_rows, sampled_logprobs
from agentflow.trajectory import Completion, Status, Trajectory, Turn

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
}
ALTERNATING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
OPTIONS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "mistral": {"sliding_window": 40},  # shorter than a block of FlexAttention
    "gemma3_text": ALTERNATING | {"sliding_window": 150},
    "gemma2": ALTERNATING | {"sliding_window": 100, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gpt_oss": ALTERNATING | {"sliding_window": 64, "num_local_experts": 2, "num_experts_per_tok": 2},
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **SHAPE | OPTIONS[name])
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)  # attention far from uniform
    return model.eval()


def branch(length: int, index: int) -> Trajectory:
    context = tuple(token % 50 for token in range(200))
    sampled = tuple((token * (index + 1)) % 50 for token in range(length))
    turn = Turn(0, context, Completion(sampled, (0.0,) * length, "stop", 0), (), Reply(Message("assistant")))
    return Trajectory(f"0/task/{index}", "task", 0, (turn,), Status("completed"), True)


def scored(model: Any, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of a batch, and the gradient of their sum in the first layer's queries."""
    model.zero_grad(set_to_none=True)
    logprobs, _ = sampled_logprobs(model, batch, temperature=1.0)
    logprobs.sum().backward()  # type: ignore[no-untyped-call]
    return logprobs.detach().cpu(), model.model.layers[0].self_attn.q_proj.weight.grad.cpu()


@pytest.mark.parametrize("name", OPTIONS)
def test_flex_attention_equals_tree_attention(name: str) -> None:
    on_cpu = build(name)
    on_gpu = copy.deepcopy(on_cpu).cuda()
    for model in (on_cpu, on_gpu):
        use_agentflow_attention(model)
    # Two batches of different lengths: the kernel is compiled once for all of them.
    for lengths in ((30, 150, 77), (10, 300)):
        trajectories = [branch(length, index) for index, length in enumerate(lengths)]
        for batch in (pack(trajectories), pack_rows(trajectories)):
            expected, actual = scored(on_cpu, batch), scored(on_gpu, batch)
            torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=2e-4)
            torch.testing.assert_close(actual[1], expected[1], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", OPTIONS)
def test_bfloat16_on_a_gpu_stays_near(name: str) -> None:
    on_cpu = build(name)
    on_gpu = copy.deepcopy(on_cpu).to("cuda", torch.bfloat16)
    for model in (on_cpu, on_gpu):
        use_agentflow_attention(model)
    batch = pack([branch(length, index) for index, length in enumerate((30, 150, 77))])
    expected, actual = scored(on_cpu, batch)[0], scored(on_gpu, batch)[0]
    assert actual.dtype == torch.float32
    assert float((actual - expected).abs().mean()) < 0.1


@pytest.mark.parametrize("name", OPTIONS)
def test_the_sampler_on_a_gpu_says_what_the_forest_says(name: str) -> None:
    model = build(name).cuda()
    use_agentflow_attention(model)
    policy = TransformersPolicy(model, [])
    prompts = [[3 + i, *range(4, 40 + 20 * i)] for i in range(4)]

    async def play() -> list[Completion]:
        asked = [
            policy.generate([t % 64 for t in ids], Sampling(max_tokens=30, seed=i), session=str(i))
            for i, ids in enumerate(prompts)
        ]
        return list(await asyncio.gather(*asked))

    completions = asyncio.run(play())
    trajectories = [
        Trajectory(
            f"0/task/{i}",
            "task",
            0,
            (Turn(0, tuple(t % 64 for t in ids), completion, (), Reply(Message("assistant"))),),
            Status("completed"),
            True,
        )
        for i, (ids, completion) in enumerate(zip(prompts, completions, strict=True))
    ]
    with torch.no_grad():
        expected, _ = sampled_logprobs(model, pack(trajectories), temperature=1.0)
    said = torch.tensor([logprob for completion in completions for logprob in completion.logprobs])
    torch.testing.assert_close(said, expected.cpu(), rtol=0, atol=2e-4)
