"""The packed forest equals the plain row-by-row forward of transformers, in values and in gradients.

The oracle knows nothing of packing: each turn is its own call of the model as transformers ships it, with eager
attention.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoConfig, AutoModelForCausalLM

from agentflow.messages import Message, Reply
from agentflow.scoring.attention import use_agentflow_attention
from agentflow.scoring.forest import Node, depths, lay_out, subtree_exits
from agentflow.scoring.packing import PackedBatch, pack, pack_rows, sampled_logprobs
from agentflow.scoring.rules import AttentionRule, dense_attention
from agentflow.scoring.tree_attention import ForestAttention, tree_mask
from agentflow.trajectory import Completion, Status, Trajectory, Turn, full_sequences

VOCABULARY = 11
TEMPERATURE = 0.7
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SPECIAL: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
ALTERNATING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
CAPS: dict[str, Any] = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "qwen3": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "tie_word_embeddings": True},
    "qwen3-gqa": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
    "llama": {"num_attention_heads": 2},
    # Windows shorter than the longest paths; soft caps of scores and logits; sinks; one layer without positions.
    "mistral": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 3},
    "gemma2": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4} | CAPS,
    "gemma3_text": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 2}
    | ALTERNATING,
    "smollm3": {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 3, "no_rope_layers": [0, 1]}
    | {"use_sliding_window": True}
    | ALTERNATING,
    "gpt_oss": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 3}
    | {"num_local_experts": 2, "num_experts_per_tok": 2}
    | ALTERNATING,
    "granite": {"num_attention_heads": 4, "num_key_value_heads": 2, "logits_scaling": 8.0},
    "cohere": {"num_attention_heads": 4, "num_key_value_heads": 2, "logit_scale": 0.0625},
    "gpt2": {"num_attention_heads": 2, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
}


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Build a tiny model by name, weights drawn by seed 0, scaled up so that attention is far from uniform."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split("-")[0], **SIZES, **SPECIAL, **OPTIONS[name])
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    model.set_attn_implementation("eager")
    return model.to(dtype)


def make(exchanges: Sequence[tuple[float, Sequence[int], Sequence[int]]]) -> Trajectory:
    """Build a trajectory from (share of the last sequence that is kept, context, sampled) for each turn."""
    turns: list[Turn] = []
    length = 0
    for share, context, sampled in exchanges:
        kept = round(share * length)
        completion = Completion(tuple(sampled), (0.0,) * len(sampled), "stop", 0)
        turns.append(Turn(kept, tuple(context), completion, (), Reply(Message("assistant"))))
        length = kept + len(context) + len(sampled)
    return Trajectory("0/task/0", "task", 0, tuple(turns), Status("completed"), True)


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=5)
TRAJECTORY = st.lists(st.tuples(st.sampled_from([1.0, 1.0, 0.6, 0.0]), TOKENS, TOKENS), min_size=1, max_size=4).map(
    make
)
FORESTS = st.lists(TRAJECTORY, min_size=1, max_size=6)
EXAMPLE = [
    make([(1, [1, 2, 0], [1, 1]), (1, [2], [0, 2])]),
    make([(1, [1, 2, 0], [1, 2]), (0.6, [2, 2], [0])]),
    make([(1, [1, 2], [1, 2, 0, 0])]),
    make([(1, [0], [1, 2])]),
    make([(1, [1, 2, 0], [1, 1]), (1, [2], [0, 2])]),
]


def plain(model: Any, trajectories: Sequence[Trajectory]) -> tuple[Tensor, Tensor]:
    """Return [S] log-probabilities and [S] entropies, one call of the model for each turn."""
    logprobs, entropies = [], []
    for full, num_sampled in (turn for trajectory in trajectories for turn in full_sequences(trajectory)):
        logits = model(input_ids=torch.tensor([full], device=model.device)).logits[0, -num_sampled - 1 : -1]
        table = torch.log_softmax(logits / TEMPERATURE, dim=-1)
        targets = torch.tensor(full[-num_sampled:], device=model.device)
        logprobs.append(table[torch.arange(num_sampled), targets])
        entropies.append(-(table.exp() * table).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def forest(model: Any, batch: PackedBatch, *, chunk_tokens: int | None = None) -> tuple[Tensor, Tensor]:
    """Score a batch at the temperature of these tests."""
    return sampled_logprobs(model, batch, temperature=TEMPERATURE, chunk_tokens=chunk_tokens)


def gradients(model: Any, scores: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Differentiate a loss that weighs every token's log-probability and entropy differently."""
    weights = torch.linspace(-1, 2, len(scores[0]), dtype=scores[0].dtype)
    model.zero_grad(set_to_none=True)
    loss = (weights * scores[0] + weights.flip(0) * scores[1]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare gradients relative to the largest entry of each parameter's gradient, and at least to 1."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((actual[name] - gradient).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    # Only GPT-2 is float64 throughout: the others' norms, rotary embeddings and softmax are float32 inside.
    [(name, torch.float32, 1e-5) for name in OPTIONS] + [("gpt2", torch.float64, 1e-10)],
)
def test_random_forests_equal_the_plain_forward(name: str, dtype: torch.dtype, tolerance: float) -> None:
    reference, model = build(name, dtype), build(name, dtype)
    use_agentflow_attention(model)

    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(trajectories=FORESTS)
    def check(trajectories: list[Trajectory]) -> None:
        expected = plain(reference, trajectories)
        expected_gradients = gradients(reference, expected)
        for batch in (pack(trajectories), pack_rows(trajectories)):
            actual = forest(model, batch, chunk_tokens=3)
            for ours, theirs in zip(actual, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
            assert_close(gradients(model, actual), expected_gradients, tolerance)

    check()


def test_gradients_equal_finite_differences() -> None:
    model = build("gpt2", torch.float64)
    use_agentflow_attention(model)
    batch = pack(EXAMPLE)
    analytic = gradients(model, forest(model, batch))
    weights = torch.linspace(-1, 2, len(batch.gather), dtype=torch.float64)

    @torch.no_grad()
    def loss() -> float:
        logprobs, entropies = forest(model, batch)
        return float((weights * logprobs + weights.flip(0) * entropies).sum())

    for name, parameter in model.named_parameters():
        index = parameter.numel() // 3
        flat = parameter.data.view(-1)
        before, step = flat[index].clone(), 1e-6
        flat[index] = before + step
        above = loss()
        flat[index] = before - step
        below = loss()
        flat[index] = before
        assert (above - below) / (2 * step) == pytest.approx(float(analytic[name].view(-1)[index]), abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 7])
def test_chunks_of_the_head_change_nothing(chunk_tokens: int) -> None:
    model = build("gpt2", torch.float64)
    use_agentflow_attention(model)
    batch = pack(EXAMPLE)
    whole, parts = forest(model, batch), forest(model, batch, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    assert_close(gradients(model, parts), gradients(model, whole), 1e-12)


def test_the_order_of_trajectories_permutes_the_scores() -> None:
    model = build("qwen3")
    use_agentflow_attention(model)
    sizes = [trajectory.num_sampled_tokens for trajectory in EXAMPLE]
    straight = torch.split(forest(model, pack(EXAMPLE))[0], sizes)
    backward = torch.split(forest(model, pack(EXAMPLE[::-1]))[0], sizes[::-1])
    assert all(torch.equal(a, b) for a, b in zip(straight, backward[::-1], strict=True))


def test_gradient_checkpointing_changes_nothing() -> None:
    model = build("qwen3-gqa").train()
    use_agentflow_attention(model)
    batch = pack(EXAMPLE)
    expected = gradients(model, forest(model, batch))
    model.gradient_checkpointing_enable()
    assert_close(gradients(model, forest(model, batch)), expected, 0.0)


def test_adapters_are_scored_and_trained() -> None:
    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    models = []
    for implementation in ("eager", "agentflow"):
        base = build("qwen3")
        if implementation == "agentflow":
            use_agentflow_attention(base)
        torch.manual_seed(1)
        models.append(get_peft_model(base, adapters))
    expected, actual = plain(models[0], EXAMPLE), forest(models[1], pack(EXAMPLE))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    gradients_expected = gradients(models[0], expected)
    assert gradients_expected and all("lora" in name for name in gradients_expected)
    assert_close(gradients(models[1], actual), gradients_expected, 1e-5)


def test_half_precision_stays_near_and_returns_float32() -> None:
    reference, model = build("qwen3-gqa"), build("qwen3-gqa", torch.bfloat16)
    use_agentflow_attention(model)
    logprobs, _ = forest(model, pack(EXAMPLE))
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, plain(reference, EXAMPLE)[0], rtol=0.05, atol=0.3)


def test_autocast_computes_in_half_precision() -> None:
    reference, model = build("qwen3-gqa"), build("qwen3-gqa")
    use_agentflow_attention(model)
    with torch.autocast("cpu", torch.bfloat16):
        actual = forest(model, pack(EXAMPLE))
    assert gradients(model, actual)
    torch.testing.assert_close(actual[0], plain(reference, EXAMPLE)[0], rtol=0.05, atol=0.3)


def test_no_tensor_of_all_logits_survives_for_the_backward() -> None:
    model = build("qwen3")
    use_agentflow_attention(model)
    batch = pack(EXAMPLE)
    saved: list[torch.Size] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forest(model, batch, chunk_tokens=4)
    assert saved
    assert not [shape for shape in saved if shape[-1:] == (VOCABULARY,)]


def test_scoring_needs_the_layouts_attention_and_a_temperature() -> None:
    model = build("qwen3")
    with pytest.raises(AssertionError, match="use_agentflow_attention"):
        forest(model, pack(EXAMPLE))
    use_agentflow_attention(model)
    with pytest.raises(AssertionError, match="temperature"):
        sampled_logprobs(model, pack(EXAMPLE), temperature=0.0)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(trajectories=FORESTS, seed=st.integers(0, 9), window=st.sampled_from([None, 1, 2, 3, 7]))
def test_tree_attention_equals_dense_masked_attention(
    trajectories: list[Trajectory], seed: int, window: int | None
) -> None:
    nodes = pack(trajectories).nodes
    mask = mask_of(nodes, window)
    tokens = len(mask)
    torch.manual_seed(seed)
    shapes = [(1, 4, tokens, 8), (1, 2, tokens, 8), (1, 2, tokens, 8)]
    query, key, value = ((3 * torch.randn(s, dtype=torch.float64)).requires_grad_() for s in shapes)
    upstream = torch.randn(1, tokens, 4, 8, dtype=torch.float64)
    ours = ForestAttention(nodes, torch.device("cpu")).attend(
        query, key, value, layer=0, rule=AttentionRule(0.3, window)
    )
    dense = functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(ours, dense, rtol=0, atol=1e-12)
    actual, expected = (torch.autograd.grad((out * upstream).sum(), (query, key, value)) for out in (ours, dense))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 90, 200])
def test_windows_across_many_blocks_equal_dense_masked_attention(window: int | None, softcap: float | None) -> None:
    """A root of 300 tokens, two branches of it, and a branch of a branch: blocks, runs and windows cross anyhow."""
    nodes = lay_out([300, 500, 420, 450, 130], [0, 170, 400, 30, 0])
    mask = mask_of(nodes, window)
    torch.manual_seed(0)
    shapes = [(1, 4, len(mask), 8), (1, 2, len(mask), 8), (1, 2, len(mask), 8)]
    query, key, value = (torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes)
    sinks = torch.randn(4, dtype=torch.float64).requires_grad_()
    upstream = torch.randn(1, len(mask), 4, 8, dtype=torch.float64)
    rule = AttentionRule(0.3, window, softcap, sinks)
    ours = ForestAttention(nodes, torch.device("cpu")).attend(query, key, value, layer=0, rule=rule)
    dense = dense_attention(query, key, value, sees=mask, rule=rule).transpose(1, 2)
    torch.testing.assert_close(ours, dense, rtol=0, atol=1e-12)
    inputs = (query, key, value, sinks)
    actual, expected = (torch.autograd.grad((out * upstream).sum(), inputs) for out in (ours, dense))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 90])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_flex_attention_equals_tree_attention(window: int | None, softcap: float | None, with_sinks: bool) -> None:
    """What a GPU runs compiled, run uncompiled here: several blocks of 128, one window within a block."""
    nodes = lay_out([300, 420, 130], [0, 170, 0])
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 680, 16) for heads in (4, 2, 2))
    rule = AttentionRule(0.3, window, softcap, torch.randn(4) if with_sinks else None)
    cpu = torch.device("cpu")
    with torch.no_grad():
        flex = ForestAttention(nodes, cpu, flex=flex_attention).attend(query, key, value, layer=0, rule=rule)
        tree = ForestAttention(nodes, cpu).attend(query, key, value, layer=0, rule=rule)
    torch.testing.assert_close(flex, tree, rtol=0, atol=1e-5)


def mask_of(nodes: Sequence[Node], window: int | None) -> Tensor:
    """Return the [T, T] mask of a forest by FlexAttention's predicate."""
    exits = torch.from_numpy(subtree_exits(nodes))
    sees = tree_mask(exits, torch.from_numpy(depths(nodes)), window=window)
    rows, none = torch.arange(len(exits)), torch.tensor(0)
    return sees(none, none, rows[:, None], rows[None, :])


@pytest.mark.parametrize("window", [None, 1, 3])
def test_the_mask_of_flex_attention_is_the_paths_of_the_forest(window: int | None) -> None:
    nodes = lay_out([4, 5, 4, 3], [0, 2, 3, 0])
    # Paths by hand: 0 1 2 3 | 0 1 4 5 6 | 0 1 4 7 | 8 9 10.
    paths = [[0, 1, 2, 3], [0, 1, 4, 5, 6], [0, 1, 4, 7], [8, 9, 10]]
    expected = torch.zeros(11, 11, dtype=torch.bool)
    for path in paths:
        for index, query in enumerate(path):
            expected[query, path[: index + 1][-(window or 99) :]] = True
    assert torch.equal(mask_of(nodes, window), expected)
