"""How a server repeats the copies that loaded its weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from agentflow.policies.vllm.copies import RecordedCopies


def _sources(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    flat = torch.randn(3 * 8 * 4 + 10).to(dtype)
    return {"q": flat[:32].view(8, 4), "k": flat[32:64].view(8, 4), "v": flat[64:96].view(8, 4), "norm": flat[96:]}


def _load(model: nn.ParameterDict, sources: dict[str, Tensor]) -> None:
    """Load as vLLM does: three tensors into parts of one."""
    for i, name in enumerate("qkv"):
        model["qkv"].data.narrow(0, 8 * i, 8).copy_(sources[name])
    model["norm"].data.copy_(sources["norm"])


def _model(dtype: torch.dtype = torch.bfloat16) -> nn.ParameterDict:
    return nn.ParameterDict({"qkv": torch.zeros(24, 4, dtype=dtype), "norm": torch.zeros(10, dtype=dtype)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_repeating_loads_what_the_sources_hold_by_then(dtype: torch.dtype) -> None:
    model, sources = _model(dtype), _sources(dtype)
    with RecordedCopies() as copies:
        _load(model, sources)
    assert copies.are_all(sources.values(), model.parameters())
    for _ in range(2):
        for source in sources.values():
            source.copy_(torch.randn(source.shape))
        copies.repeat()
        assert torch.equal(model["qkv"], torch.cat([sources[name] for name in "qkv"]))
        assert torch.equal(model["norm"], sources["norm"])


def _of_another_dtype(model: nn.ParameterDict, sources: dict[str, Tensor]) -> None:
    model["norm"] = torch.zeros(10)
    _load(model, sources)


def _without_one(model: nn.ParameterDict, sources: dict[str, Tensor]) -> None:
    for name in "kv":
        model["qkv"].data[:8].copy_(sources[name])
    model["norm"].data.copy_(sources["norm"])


def _in_part(model: nn.ParameterDict, sources: dict[str, Tensor]) -> None:
    """Load as the first of several ranks does: from the same address on, but fewer bytes."""
    _without_one(model, sources)
    model["qkv"].data[:4].copy_(sources["q"][:4])


def _turned_over(model: nn.ParameterDict, sources: dict[str, Tensor]) -> None:
    _without_one(model, sources)
    model["qkv"].data[:8].view(4, 8).copy_(sources["q"].t())


def _into_what_is_turned_over(model: nn.ParameterDict, sources: dict[str, Tensor]) -> None:
    _without_one(model, sources)
    model["qkv"].data[:8].view(4, 8).t().copy_(sources["q"])


def _spread_out(model: nn.ParameterDict, sources: dict[str, Tensor]) -> None:
    _without_one(model, sources)
    model["wide"] = torch.zeros(2, 8, 4, dtype=torch.bfloat16)
    model["wide"].data.copy_(sources["q"])


def _of_a_derived_tensor(model: nn.ParameterDict, sources: dict[str, Tensor]) -> None:
    _load(model, {**sources, "q": sources["q"] * 2})


def _beside_the_model(model: nn.ParameterDict, sources: dict[str, Tensor]) -> None:
    _load(nn.ParameterDict({name: parameter.clone() for name, parameter in model.items()}), sources)


@pytest.mark.parametrize(
    "load",
    [
        _of_another_dtype,
        _without_one,
        _in_part,
        _turned_over,
        _into_what_is_turned_over,
        _spread_out,
        _of_a_derived_tensor,
        _beside_the_model,
    ],
)
def test_a_load_that_is_more_or_less_than_plain_copies_is_told(load: Callable[..., None]) -> None:
    model, sources = _model(), _sources()
    with RecordedCopies() as copies:
        load(model, sources)
    assert not copies.are_all(sources.values(), model.parameters())
