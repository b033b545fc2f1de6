"""What servers are sent of a model with adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from agentflow.errors import ConfigError
from agentflow.models import ModelConfig, load_model
from agentflow.policies.vllm.adapters import adapted_modules, adapter_config, adapter_weights, base_weights, rank_of
from agentflow.policies.vllm.launch import served_lora_rank

RANK, ALPHA = 3, 5


def adapted() -> Any:
    config = ModelConfig(device="cpu", lora_rank=RANK, lora_alpha=ALPHA)
    model: Any = load_model(config, env="websearch").model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model


def plain() -> dict[str, torch.Tensor]:
    return dict(load_model(ModelConfig(device="cpu"), env="websearch").model.named_parameters())


def test_the_base_has_the_names_and_weights_of_its_checkpoint() -> None:
    sent, expected = base_weights(adapted()), plain()
    assert list(sent) == list(expected)
    assert all(torch.equal(sent[name], expected[name]) for name in expected)


def test_a_model_without_adapters_is_sent_whole() -> None:
    model = load_model(ModelConfig(device="cpu"), env="websearch").model
    assert (rank_of(model), adapted_modules(model)) == (0, [])
    assert list(base_weights(model)) == list(plain())


def test_the_base_plus_the_product_of_the_adapter_is_the_merged_model() -> None:
    model = adapted()
    base, adapter = base_weights(model), adapter_weights(model)
    assert len(adapter) == 2 * 7 * 3, "two matrices of seven layers in each of three blocks"
    name = "model.layers.1.mlp.down_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{kind}.weight"] for kind in "AB")
    expected = base[f"{name}.weight"] + b @ a
    merged = model.merge_and_unload().get_parameter(f"{name}.weight")
    torch.testing.assert_close(expected, merged)
    assert b.norm() > 0


def test_the_configuration_that_vllm_reads_has_no_scale_left() -> None:
    config = adapter_config(adapted())
    assert config["r"] == config["lora_alpha"] == RANK
    modules = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["target_modules"] == modules


def test_a_checkpoint_that_transformers_loads_is_understood_alike(tmp_path: Path) -> None:
    trained = adapted()
    trained.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert rank_of(loaded) == RANK
    assert list(base_weights(loaded)) == list(plain())
    for name, weight in adapter_weights(trained).items():
        assert torch.equal(adapter_weights(loaded)[name], weight)


def test_servers_keep_room_for_the_next_rank_that_vllm_knows() -> None:
    assert [served_lora_rank(rank) for rank in (0, 1, 2, 8, 9, 512)] == [0, 1, 8, 8, 16, 512]
    with pytest.raises(ConfigError, match=r"model.lora_rank = 513 is above 512"):
        served_lora_rank(513)
