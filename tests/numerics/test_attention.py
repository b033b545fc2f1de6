"""Which models the agentflow attention accepts, and what it hands to a layout."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from agentflow.errors import ModelError
from agentflow.scoring.attention import use_agentflow_attention
from agentflow.scoring.interface import logit_rule
from agentflow.scoring.positions import max_positions
from agentflow.scoring.rules import AttentionRule, LogitRule

SIZES: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
SPECIAL: dict[str, Any] = {"num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def build(architecture: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(SIZES | SPECIAL | options))
    return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]


class Recorder:
    """A layout that notes the rules and shapes it was given and returns the queries."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, AttentionRule, torch.Size, torch.Size, torch.Size]] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, rule: AttentionRule) -> Tensor:
        self.calls.append((layer, rule, query.shape, key.shape, value.shape))
        return query.transpose(1, 2)


def test_a_layout_is_called_once_a_layer_with_unrepeated_heads() -> None:
    model = build("qwen3", num_key_value_heads=2, head_dim=16)
    use_agentflow_attention(model)
    layout = Recorder()
    model(input_ids=torch.zeros(1, 3, dtype=torch.long), attention_layout=layout, use_cache=False)
    shapes = (torch.Size([1, 4, 3, 16]), torch.Size([1, 2, 3, 16]), torch.Size([1, 2, 3, 16]))
    assert layout.calls == [(0, AttentionRule(0.25), *shapes), (1, AttentionRule(0.25), *shapes)]


def test_a_call_without_a_layout_says_so() -> None:
    model = build("qwen3", num_key_value_heads=4, head_dim=8)
    use_agentflow_attention(model)
    with pytest.raises(AssertionError, match="attention_layout="):
        model(input_ids=torch.zeros(1, 3, dtype=torch.long), use_cache=False)


def test_switching_keeps_the_mode_and_may_be_repeated() -> None:
    model = build("llama").train()
    use_agentflow_attention(model)
    use_agentflow_attention(model)
    assert model.training
    assert model.config._attn_implementation == "agentflow"


GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
EXPERTS: dict[str, Any] = {"num_local_experts": 2, "num_experts_per_tok": 1}
ALTERNATING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
MIXER: dict[str, Any] = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}


@pytest.mark.parametrize(
    ("architecture", "options", "rule"),
    [
        ("llama", GROUPED, LogitRule()),
        ("qwen2", {"num_key_value_heads": 4}, LogitRule()),
        ("gpt2", {}, LogitRule()),
        ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 32}, LogitRule()),
        ("phi3", {}, LogitRule()),
        ("olmo2", {}, LogitRule()),
        ("gpt_neox", {}, LogitRule()),
        ("jetmoe", EXPERTS | GROUPED | {"kv_channels": 8}, LogitRule()),
        ("gemma2", GROUPED | {"head_dim": 8}, LogitRule("cap", 30.0)),
        ("nanochat", {}, LogitRule("cap", 15.0)),
        ("cohere", {"logit_scale": 0.25}, LogitRule("multiply", 0.25)),
        ("granite", {"logits_scaling": 1.05}, LogitRule("divide", 1.05)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_follows_the_head_is_known_exactly(
    architecture: str, options: dict[str, Any], rule: LogitRule, dtype: torch.dtype
) -> None:
    model = build(architecture, **options).to(dtype)
    use_agentflow_attention(model)
    assert logit_rule(model) == rule


@pytest.mark.parametrize(
    ("architecture", "options", "windows"),
    [
        ("mistral", GROUPED | {"head_dim": 8, "sliding_window": 4096}, [4096, 4096]),
        ("mistral", GROUPED | {"head_dim": 8, "sliding_window": None}, [None, None]),
        ("gemma3_text", GROUPED | ALTERNATING | {"head_dim": 8, "sliding_window": 512}, [512, None]),
        ("smollm3", GROUPED | ALTERNATING | {"use_sliding_window": True, "sliding_window": 64}, [64, None]),
        ("qwen2", GROUPED | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, [None, 64]),
        ("qwen2", GROUPED | {"use_sliding_window": False, "sliding_window": 64}, [None, None]),
        ("qwen2_moe", GROUPED | {"num_experts": 2, "num_experts_per_tok": 1}, [None, None]),
        ("gpt_oss", GROUPED | EXPERTS | {"head_dim": 8}, [128, None]),
    ],
)
def test_each_layer_has_the_window_of_its_mask(
    architecture: str, options: dict[str, Any], windows: list[int | None]
) -> None:
    model = build(architecture, **options)
    use_agentflow_attention(model)
    layout = Recorder()
    model(input_ids=torch.zeros(1, 3, dtype=torch.long), attention_layout=layout, use_cache=False)
    assert [rule.window for _, rule, *_ in layout.calls] == windows


@pytest.mark.parametrize(
    ("architecture", "options", "reason"),
    [
        ("bloom", {"n_head": 4, "n_layer": 2}, "BloomForCausalLM does not pass attention arguments"),
        ("mamba", {}, "MambaForCausalLM does not pass attention arguments"),
        ("falcon_h1", GROUPED | MIXER, "FalconH1ForCausalLM lets tokens influence each other"),
        ("llama4_text", GROUPED | {"head_dim": 8, "num_local_experts": 2}, "Llama4ForCausalLM does not tell"),
        ("stablelm", GROUPED, "StableLmAttention is not handed"),
        ("nemotron", GROUPED, "NemotronAttention is not handed"),
        ("doge", {}, "DogeAttention builds its own attention mask"),
        ("minicpm3", {"num_key_value_heads": 4}, "MiniCPM3ForCausalLM changes its decoder's last hidden states"),
    ],
)
def test_what_layouts_do_not_compute_is_refused(architecture: str, options: dict[str, Any], reason: str) -> None:
    model = build(architecture, **options).train()
    with pytest.raises(ModelError, match=reason):
        use_agentflow_attention(model)
    assert model.training
    assert model.config._attn_implementation != "agentflow"


class Peeking(torch.nn.Module):
    """Let each token see a little of the one before it in the call, whatever sequence that belongs to."""

    def __init__(self, inner: torch.nn.Module, strength: float) -> None:
        super().__init__()
        self.inner = inner
        self.strength = strength

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden) + self.strength * hidden.roll(1, 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("strength", [1e-2, 1e-7])
def test_tokens_that_influence_each_other_however_little_are_refused(strength: float) -> None:
    model = build("llama")
    model.model.layers[0].mlp = Peeking(model.model.layers[0].mlp, strength)
    with pytest.raises(ModelError, match="influence each other"):
        use_agentflow_attention(model)


ROPES: list[tuple[str, dict[str, Any], int]] = [
    (
        "phi3",
        {
            "original_max_position_embeddings": 16,
            "max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [3.0] * 4,
                "rope_theta": 10000.0,
            },
        },
        16,
    ),
    (
        "llama",
        {
            "max_position_embeddings": 24,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        },
        24,
    ),
    (
        "llama",
        {
            "max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "rope_theta": 10000.0,
            },
        },
        64,
    ),
]


@pytest.mark.parametrize(("architecture", "options", "limit"), ROPES)
def test_positions_that_would_turn_other_tokens_are_refused(
    architecture: str, options: dict[str, Any], limit: int
) -> None:
    model = build(architecture, **options)
    use_agentflow_attention(model)
    assert max_positions(model) == limit
    positions = torch.arange(limit)[None]
    model(input_ids=positions % 32, position_ids=positions, attention_layout=Recorder(), use_cache=False)
    if limit < 64:
        with pytest.raises(ModelError, match=f"longer than the {limit}"):
            model(input_ids=positions % 32, position_ids=positions + 1, attention_layout=Recorder(), use_cache=False)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ModelError, match="AutoModelForCausalLM"):
        use_agentflow_attention(build("llama").model)


def test_attention_dropout_is_refused_in_training() -> None:
    model = build("llama", attention_dropout=0.1)
    use_agentflow_attention(model)
    with pytest.raises(ModelError, match="attention_dropout"):
        model.train()(input_ids=torch.zeros(1, 3, dtype=torch.long), attention_layout=Recorder(), use_cache=False)
