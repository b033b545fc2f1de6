"""A policy from nothing: its tokenizer loses no text, and its first weights look where they should."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentflow.config import validate_options
from agentflow.errors import ConfigError
from agentflow.trainers.scratch import ScratchConfig, new_model, new_tokenizer

TOKENIZER = new_tokenizer([" the harbour of Kelby was built in 1812", " Kelby, in 1812"], max_words=50)


@given(st.text(max_size=40).filter(lambda text: "▁" not in text and text.isprintable()))
def test_no_text_is_lost(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids) == text


def test_words_and_numbers_of_the_texts_are_single_tokens() -> None:
    def pieces(text: str) -> list[str]:
        return [str(TOKENIZER.decode([token])) for token in TOKENIZER.encode(text, add_special_tokens=False)]

    assert pieces(" Kelby in 1812") == [" Kelby", " in", " 1812"]
    assert pieces(" in 1763") == [" in", " 17", "63"]


@pytest.mark.parametrize("num_key_value_heads", [1, 2, 4])
def test_first_heads_look_back_and_the_others_at_equal_tokens(num_key_value_heads: int) -> None:
    shape = ScratchConfig(num_layers=2, num_key_value_heads=num_key_value_heads)
    model = new_model(TOKENIZER, shape, seed=0)
    model.config._attn_implementation = "eager"
    ids = torch.randint(12, len(TOKENIZER), (1, 60), generator=torch.Generator().manual_seed(1))
    ids[0, 50:] = ids[0, 20:30]
    first = model(ids, output_attentions=True).attentions[0][0]
    places = torch.arange(10, 50)
    groups = 4 // num_key_value_heads
    for head, offset in enumerate((1, 1, 2)[:num_key_value_heads]):
        for query in range(head * groups, (head + 1) * groups):
            back = first[query, places, places - offset]
            assert back.mean() > 0.5
    if num_key_value_heads == 4:
        repeated = torch.arange(50, 60)
        seen = first[3, repeated, repeated - 30] + first[3, repeated, repeated]
        assert seen.mean() > 0.7


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"hidden_size": 100, "num_heads": 8}, "is no multiple of twice num_heads = 8"),
        ({"num_heads": 4, "num_key_value_heads": 3}, "is no multiple of num_key_value_heads = 3"),
        ({"num_layers": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_shapes_are_refused(shape: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate_options(ScratchConfig, shape, "scratch")
