"""How a learner and a server see that they compute with the same weights, and alike."""

from typing import Any

import pytest
import torch
from transformers import Qwen3Config

from agentflow.policies.vllm.digests import digests, shape_of
from agentflow.policies.vllm.weights import WeightBuffer
from tests.integration.vllm.served import starter


def test_parts_have_the_digest_of_what_they_are_fused_into() -> None:
    q, k = torch.randn(4, 6), torch.randn(2, 6)
    parts = digests({"model.layers.3.q.weight": q, "model.layers.3.k.weight": k, "norm.weight": torch.ones(6)})
    padded = torch.cat([torch.ones(6), torch.zeros(10)])
    assert parts == digests({"model.layers.3.qk.weight": torch.cat([q, k]), "norm.weight": padded})
    assert set(parts) == {"layer 3", "others"}


def test_one_changed_bit_changes_the_digest_of_its_layer_only() -> None:
    weights = {f"model.layers.{i}.weight": torch.randn(5, 8) for i in range(3)}
    before = digests(weights)
    weights["model.layers.1.weight"].view(torch.int32)[4, 7] ^= 1
    after = digests(weights)
    assert [before[name] == after[name] for name in sorted(before)] == [True, False, True]


@pytest.mark.parametrize("change", [{"rope_theta": 5.0}, {"num_attention_heads": 4}, {"rms_norm_eps": 1e-3}])
def test_models_that_only_compute_otherwise_have_another_shape(change: dict[str, Any]) -> None:
    same: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4}
    assert shape_of(Qwen3Config(**same)) == shape_of(Qwen3Config(**same))
    assert shape_of(Qwen3Config(**{**same, **change})) != shape_of(Qwen3Config(**same))


def test_a_buffer_has_the_digests_of_what_was_published() -> None:
    model = starter().model
    buffer = WeightBuffer(lambda: dict(model.named_parameters()))
    before = buffer.digests()
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    buffer.publish()
    assert buffer.digests() != before
    buffer.close()
