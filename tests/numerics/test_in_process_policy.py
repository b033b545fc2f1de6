"""The in-process policy against the model's own plain forward."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agentflow.errors import PolicyFailure
from agentflow.policies.in_process import TransformersPolicy
from agentflow.policy import Sampling
from agentflow.scoring.attention import use_agentflow_attention
from agentflow.trajectory import Completion

VOCABULARY = 50
STOP = 1


ALTERNATING: dict[str, Any] = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
LATENT: dict[str, Any] = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
ROUTED: dict[str, Any] = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
OTHERS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4, "head_dim": 16},
    "gemma2": ALTERNATING | {"head_dim": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gpt_oss": ALTERNATING | {"head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 2},
    # Keys of 12 features, values of 6: neither is the config's hidden_size // num_attention_heads.
    "deepseek_v3": LATENT | ROUTED | {"num_key_value_heads": 4, "v_head_dim": 6, "num_experts_per_tok": 4},
    "granite": {"logits_scaling": 8.0},
}


def tiny(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16)).eval()
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    if kind in OTHERS:
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape | OTHERS[kind]))  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3 if parameter.ndim > 1 else 1)  # attention far from uniform
        model.set_attn_implementation("eager")
        return model.eval()  # type: ignore[no-any-return]
    dropless: dict[str, Any] = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, **dropless)
    ).eval()


def plain_logprobs(
    model: PreTrainedModel, prompt: Sequence[int], sampled: Sequence[int], temperature: float
) -> list[float]:
    """Score sampled tokens with the unchanged model, one row, no cache."""
    ids = torch.tensor([[*prompt, *sampled]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(sampled)[:, None])[:, 0].tolist()


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2", *OTHERS])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_many_turns_of_many_sessions_match_the_plain_forward(kind: str, temperature: float) -> None:
    model, oracle = tiny(kind), tiny(kind)
    use_agentflow_attention(model)
    policy = TransformersPolicy(model, [STOP])
    scored: list[tuple[list[int], Completion]] = []

    async def play(session: int) -> None:
        transcript = [2 + session, 3, 4, 5][: 2 + session % 3]
        for turn in range(3):
            sampling = Sampling(temperature, max_tokens=4 + session % 5, seed=100 * session + turn)
            completion = await policy.generate(transcript, sampling, session=str(session))
            scored.append((list(transcript), completion))
            transcript += [*completion.token_ids, *range(6, 7 + (session + turn) % 4)]
        policy.release(str(session))

    async def play_all() -> None:
        await asyncio.gather(*(play(i) for i in range(9)))

    asyncio.run(play_all())
    assert len(scored) == 27
    for prompt, completion in scored:
        expected = plain_logprobs(oracle, prompt, completion.token_ids, temperature)
        assert completion.logprobs == pytest.approx(expected, abs=2e-5)


def test_rebuilt_context_is_fed_again_from_where_it_differs() -> None:
    model, oracle = tiny("qwen3"), tiny("qwen3")
    use_agentflow_attention(model)
    policy = TransformersPolicy(model, [STOP])

    async def play() -> None:
        for prompt in ([2, 3, 4, 5, 6], [2, 3, 9, 9], [2, 3, 9, 9, 8, 7], [2]):
            completion = await policy.generate(prompt, Sampling(max_tokens=3, seed=len(prompt)), session="a")
            assert completion.logprobs == pytest.approx(
                plain_logprobs(oracle, prompt, completion.token_ids, 1.0), abs=2e-5
            )

    asyncio.run(play())


def test_draw_follows_the_distribution_and_depends_on_the_seed_alone() -> None:
    model = tiny("qwen3")
    use_agentflow_attention(model)
    policy = TransformersPolicy(model, [])
    prompt = [2, 3, 4]

    async def first_tokens(seeds: range) -> list[int]:
        async def one(seed: int) -> int:
            completion = await policy.generate(prompt, Sampling(max_tokens=1, seed=seed), session=f"s{seed}")
            policy.release(f"s{seed}")
            return completion.token_ids[0]

        return list(await asyncio.gather(*(one(seed) for seed in seeds)))

    drawn = asyncio.run(first_tokens(range(4000)))
    assert asyncio.run(first_tokens(range(100, 110))) == drawn[100:110]
    with torch.no_grad():
        expected = torch.softmax(tiny("qwen3")(input_ids=torch.tensor([prompt])).logits[0, -1], -1)
    counted = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY) / len(drawn)
    # Total variation of 4,000 draws over 50 outcomes is about 0.045; a wrong temperature or order is far beyond.
    assert 0.5 * (counted - expected).abs().sum() < 0.08


def test_temperature_zero_takes_the_most_likely_token() -> None:
    model, oracle = tiny("llama"), tiny("llama")
    use_agentflow_attention(model)
    policy = TransformersPolicy(model, [])
    completion = asyncio.run(policy.generate([5, 6, 7], Sampling(0.0, max_tokens=6), session="a"))
    ids = [5, 6, 7]
    for token in completion.token_ids:
        with torch.no_grad():
            assert token == oracle(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
        ids.append(token)


def test_turn_ends_at_a_stop_token_a_limit_or_the_models_own_length() -> None:
    model = tiny("qwen3")
    use_agentflow_attention(model)

    async def generate(policy: TransformersPolicy, prompt: list[int], limit: int) -> Completion:
        return await policy.generate(prompt, Sampling(max_tokens=limit, seed=1), session="a")

    everything_stops = TransformersPolicy(model, range(VOCABULARY))
    stopped = asyncio.run(generate(everything_stops, [2, 3], 9))
    assert (len(stopped.token_ids), stopped.finish_reason) == (1, "stop")
    nothing_stops = TransformersPolicy(model, [], max_length=12)
    cut = asyncio.run(generate(nothing_stops, [2, 3], 5))
    assert (len(cut.token_ids), cut.finish_reason) == (5, "length")
    full = asyncio.run(generate(TransformersPolicy(model, [], max_length=12), [2] * 9, 50))
    assert (len(full.token_ids), full.finish_reason) == (3, "length")
    with pytest.raises(PolicyFailure, match="12 tokens leaves no room in 12"):
        asyncio.run(generate(TransformersPolicy(model, [], max_length=12), [2] * 12, 5))


def test_a_turn_ends_where_a_longer_one_would_turn_the_others() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 10000.0}
    config = Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters={"rope_type": "longrope", **factors},
        pad_token_id=0,
    )
    model = Phi3ForCausalLM(config).eval()
    use_agentflow_attention(model)
    policy = TransformersPolicy(model, [])
    completion = asyncio.run(policy.generate([2] * 10, Sampling(max_tokens=30), session="a"))
    assert (policy.max_length, len(completion.token_ids), completion.finish_reason) == (16, 6, "length")


def test_a_broken_model_fails_every_waiting_episode_and_none_hangs() -> None:
    model = tiny("qwen3")
    use_agentflow_attention(model)
    policy = TransformersPolicy(model, [STOP])

    async def play() -> list[BaseException | Completion]:
        calls = (policy.generate([2, VOCABULARY + i], Sampling(max_tokens=2), session=str(i)) for i in range(3))
        return list(await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20))

    assert [type(result) for result in asyncio.run(play())] == [PolicyFailure] * 3


@pytest.mark.parametrize("same_turn", [False, True], ids=["a session that goes on", "a prompt that comes again"])
def test_nothing_computed_with_old_weights_outlives_an_update(same_turn: bool) -> None:
    model = tiny("qwen3")
    use_agentflow_attention(model)
    policy = TransformersPolicy(model, [STOP])

    async def generate(prompt: Sequence[int]) -> Completion:
        return await policy.generate(prompt, Sampling(max_tokens=6, seed=3), session="one")

    prompt = [2, 3, 4, 5, 6, 7]
    before = asyncio.run(generate(prompt))
    with policy.updating(), torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    prompt = prompt if same_turn else [*prompt, *before.token_ids, 8, 9]
    after = asyncio.run(generate(prompt))
    oracle = tiny("qwen3")
    oracle.load_state_dict(model.state_dict())
    assert after.logprobs == pytest.approx(plain_logprobs(oracle, prompt, after.token_ids, 1.0), abs=1e-5)
    assert (before.policy_version, after.policy_version) == (0, 1)


def test_order_of_arrival_and_of_departure_changes_no_bit() -> None:
    model = tiny("qwen3")
    use_agentflow_attention(model)
    names = [f"episode {i}" for i in range(6)]
    prompts = {name: list(range(2, 5 + 3 * i)) for i, name in enumerate(names)}

    async def play(order: Sequence[str]) -> dict[str, list[Completion]]:
        policy = TransformersPolicy(model, [STOP])
        said: dict[str, list[Completion]] = {name: [] for name in names}
        for turn in range(3):
            # Each turn two more episodes are over, in the order in which they happen to notice it.
            left = names[2 * turn :]
            arrived = asyncio.Event()

            async def settle(arrived: asyncio.Event = arrived) -> None:
                await arrived.wait()

            policy.settle = settle

            async def one(name: str, turn: int = turn, policy: TransformersPolicy = policy) -> None:
                ids = [*prompts[name], *(t for c in said[name] for t in c.token_ids)]
                sampling = Sampling(max_tokens=4, seed=turn)
                said[name].append(await policy.generate(ids, sampling, session=name))

            tasks = [asyncio.create_task(one(name)) for name in order if name in left]
            await asyncio.sleep(0)
            arrived.set()
            await asyncio.gather(*tasks)
            for name in [name for name in order if name in names[2 * turn : 2 * turn + 2]]:
                policy.release(name)
        return said

    expected = asyncio.run(play(names))
    for order in (names[::-1], names[3:] + names[:3]):
        assert asyncio.run(play(order)) == expected


def test_memory_that_is_kept_over_an_update_changes_no_bit() -> None:
    model: Any = tiny("qwen3")
    healthy = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    use_agentflow_attention(model)

    async def play(policy: TransformersPolicy, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        asked = [policy.generate(ids, Sampling(max_tokens=9, seed=7), session=f"s{i}") for i, ids in enumerate(prompts)]
        said = list(await asyncio.gather(*asked))
        for i in range(len(prompts)):
            policy.release(f"s{i}")
        return said

    few = [range(2, 5 + i) for i in range(3)]
    expected = [completion.logprobs for completion in asyncio.run(play(TransformersPolicy(model, []), few))]
    policy = TransformersPolicy(model, [])
    for left in (1.0, float("nan")):  # keys and values of many more sessions, and such as are no numbers
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(left)
        asyncio.run(play(policy, [range(2, 20 + i) for i in range(8)]))
        with policy.updating():
            model.load_state_dict(healthy)
        assert [completion.logprobs for completion in asyncio.run(play(policy, few))] == expected
        with policy.updating():
            pass
