"""Token weights: the worked numbers of the reference, and what holds for any batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.maths.losses import Aggregation, token_weights

LENGTHS = [[2, 4, 2], [4], [2, 2], [4, 4]]


@pytest.mark.parametrize(("aggregation", "expected"), [("nested", 1 / 48), ("turn", 1 / 32), ("token", 1 / 24)])
def test_we1_weight_of_a_token_of_the_second_turn(aggregation: Aggregation, expected: float) -> None:
    weights = token_weights(LENGTHS, aggregation)
    assert weights[2:6] == pytest.approx([expected] * 4)
    assert weights.sum() == pytest.approx(1.0)


def test_constant_aggregation_divides_by_trajectories_and_the_constant() -> None:
    assert token_weights(LENGTHS, "constant", constant=10) == pytest.approx([1 / 40] * 24)


@given(
    lengths=st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=5),
    aggregation=st.sampled_from(["nested", "turn", "token"]),
    seed=st.integers(0, 99),
)
def test_weights_sum_to_one_over_what_is_kept(lengths: list[list[int]], aggregation: Aggregation, seed: int) -> None:
    size = sum(map(sum, lengths))
    keep = np.random.default_rng(seed).random(size) < 0.7
    weights = token_weights(lengths, aggregation, keep_S=keep)
    assert weights.shape == (size,)
    assert not weights[~keep].any()
    assert weights.sum() == pytest.approx(1.0 if keep.any() else 0.0)
    remaining = iter(keep)
    kept = [[sum(int(next(remaining)) for _ in range(length)) for length in turns] for turns in lengths]
    assert weights[keep] == pytest.approx(token_weights(kept, aggregation))
