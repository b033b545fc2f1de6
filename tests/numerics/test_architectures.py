"""A dozen of transformers' architectures, exact or refused; all of them are judged by tests/benchmarks/models.py."""

import pytest

from tests.architectures import TOLERANCE, judge

EXACT = {
    "deepseek_v3": "latent attention, experts",
    "gemma2": "windows in some layers, soft cap of scores, soft cap of logits",
    "gemma3_text": "windows in some layers",
    "gpt_oss": "windows in some layers, sinks, experts",
    "granite": "scaled logits",
    "mistral": "windows",
    "qwen3": "",
    "qwen3_moe": "experts",
}
REFUSED = {
    "bloom": "does not pass attention arguments",
    "falcon_h1": "lets tokens influence each other",
    "lfm2": "does not pass attention arguments",
    "llama4_text": "does not tell its decoder from its head",
    "stablelm": "is not handed the attention arguments",
}


@pytest.mark.parametrize("name", EXACT)
def test_an_architecture_is_computed_exactly(name: str) -> None:
    verdict = judge(name)
    assert verdict.refusal == ""
    assert verdict.error is not None and verdict.error <= TOLERANCE
    assert verdict.features == EXACT[name]


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_is_refused_by_name(name: str) -> None:
    assert REFUSED[name] in judge(name).refusal
