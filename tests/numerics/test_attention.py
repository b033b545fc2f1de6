"""Which models the agentflow attention accepts, and what it hands to a layout."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from agentflow.errors import ModelError
from agentflow.scoring.attention import use_agentflow_attention

SIZES: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
SPECIAL: dict[str, Any] = {"num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def build(architecture: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(SIZES | SPECIAL | options))
    return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]


class Recorder:
    """A layout that notes the shapes it was given and returns the queries."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, float, torch.Size, torch.Size, torch.Size]] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scaling: float) -> Tensor:
        self.calls.append((layer, scaling, query.shape, key.shape, value.shape))
        return query.transpose(1, 2)


def test_a_layout_is_called_once_a_layer_with_unrepeated_heads() -> None:
    model = build("qwen3", num_key_value_heads=2, head_dim=16)
    use_agentflow_attention(model)
    layout = Recorder()
    model(input_ids=torch.zeros(1, 3, dtype=torch.long), attention_layout=layout, use_cache=False)
    shapes = (torch.Size([1, 4, 3, 16]), torch.Size([1, 2, 3, 16]), torch.Size([1, 2, 3, 16]))
    assert layout.calls == [(0, 0.25, *shapes), (1, 0.25, *shapes)]


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


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"num_key_value_heads": 2}),
        ("qwen2", {"num_key_value_heads": 4}),
        ("gpt2", {}),
        ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 32}),
        ("phi3", {"sliding_window": None}),
        ("olmo2", {}),
        ("gpt_neox", {}),
    ],
)
def test_plain_causal_models_are_accepted(architecture: str, options: dict[str, Any]) -> None:
    use_agentflow_attention(build(architecture, **options))


@pytest.mark.parametrize(
    ("architecture", "options", "reason"),
    [
        ("mistral", {"sliding_window": 16, "num_key_value_heads": 4}, "sliding_window"),
        ("gemma2", {"num_key_value_heads": 4, "head_dim": 8, "layer_types": ["full_attention"] * 2}, "softcap"),
        ("gpt_oss", {"num_key_value_heads": 4, "head_dim": 8, "num_local_experts": 4}, "sliding_window|s_aux"),
        ("bloom", {"n_head": 4, "n_layer": 2}, "BloomForCausalLM does not pass attention arguments"),
        ("mamba", {}, "MambaForCausalLM does not pass attention arguments"),
        ("cohere", {"num_key_value_heads": 4, "logit_scale": 0.5}, "logits"),
        ("granite", {"num_key_value_heads": 4, "logits_scaling": 8.0}, "logits"),
    ],
)
def test_what_layouts_do_not_compute_is_refused(architecture: str, options: dict[str, Any], reason: str) -> None:
    model = build(architecture, **options)
    with pytest.raises(ModelError, match=reason):
        use_agentflow_attention(model)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ModelError, match="AutoModelForCausalLM"):
        use_agentflow_attention(build("llama").model)


def test_attention_dropout_is_refused_in_training() -> None:
    model = build("llama", attention_dropout=0.1)
    use_agentflow_attention(model)
    with pytest.raises(ModelError, match="attention_dropout"):
        model.train()(input_ids=torch.zeros(1, 3, dtype=torch.long), attention_layout=Recorder(), use_cache=False)
