"""What a packed batch contains: layout, order, counts, and micro-batches that lose nothing."""

import random
from collections.abc import Sequence

import pytest
import torch

from agentflow.messages import Message, Reply
from agentflow.scoring.forest import Node, lay_out, subtree_exits
from agentflow.scoring.packing import PackedBatch, pack, pack_rows, split
from agentflow.trajectory import Completion, Status, Trajectory, Turn, full_sequences

Exchange = tuple[int, Sequence[int], Sequence[int]]


def make(*exchanges: Exchange, task: str = "task") -> Trajectory:
    """Build a trajectory from (prefix length, context, sampled) for each turn."""
    turns = tuple(
        Turn(kept, tuple(context), Completion(tuple(sampled), (0.0,) * len(sampled), "stop", 0), (), REPLY)
        for kept, context, sampled in exchanges
    )
    return Trajectory("0/task/0", task, 0, turns, Status("completed"), True)


REPLY = Reply(Message("assistant"))


def random_trajectory(rng: random.Random, *, task: str = "task") -> Trajectory:
    """Draw one to four turns over three tokens, so that prefixes are often shared, some contexts rebuilt."""
    exchanges: list[Exchange] = []
    length = 0
    for _ in range(rng.randint(1, 4)):
        kept = length if rng.random() < 0.7 else rng.randint(0, length)
        context = [rng.randint(0, 2) for _ in range(rng.randint(1, 5))]
        sampled = [rng.randint(0, 2) for _ in range(rng.randint(1, 4))]
        exchanges.append((kept, context, sampled))
        length = kept + len(context) + len(sampled)
    return make(*exchanges, task=task)


def path(batch: PackedBatch, row: int) -> list[int]:
    """Read the tokens from the root to a row, by the rule that the attention follows."""
    exits = subtree_exits(batch.nodes)
    return [int(batch.input_ids[0, k]) for k in range(row + 1) if row < exits[k]]


def test_two_branches_share_their_prefix() -> None:
    batch = pack([make((0, [10, 11, 12], [13, 14])), make((0, [10, 11], [15]))])
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 14, 15]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2]]
    assert batch.nodes == (Node(0, 2, 6, 0), Node(2, 5, 5, 2), Node(5, 6, 6, 2))
    assert (batch.num_unique_tokens, batch.num_row_tokens) == (6, 8)
    assert batch.prediction_rows[batch.gather].tolist() == [2, 3, 1]
    assert batch.target_ids[batch.gather].tolist() == [13, 14, 15]


def test_a_growing_transcript_is_one_run() -> None:
    batch = pack([make((0, [1, 2], [3]), (3, [4], [5]), (5, [6], [7, 8]))])
    assert batch.nodes == (Node(0, 8, 8, 0),)
    assert batch.num_row_tokens == 8
    assert batch.prediction_rows[batch.gather].tolist() == [1, 3, 5, 6]


def test_a_rebuilt_context_branches_where_it_differs() -> None:
    batch = pack([make((0, [1, 2, 3], [4]), (2, [5], [6]))])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch.nodes == (Node(0, 2, 6, 0), Node(2, 4, 4, 2), Node(4, 6, 6, 2))
    assert batch.num_row_tokens == 8


def test_identical_trajectories_are_computed_once_and_counted_twice() -> None:
    once = make((0, [1, 2], [3, 4]))
    batch = pack([once, once])
    assert batch.num_unique_tokens == 4
    assert batch.num_row_tokens == 8
    assert batch.gather.tolist() == [0, 1, 0, 1]
    assert len(batch.target_ids) == 2


def test_a_row_that_is_a_prefix_of_another_adds_nothing() -> None:
    batch = pack([make((0, [1], [2, 3, 4])), make((0, [1], [2]))])
    assert batch.nodes == (Node(0, 4, 4, 0),)
    assert batch.gather.tolist() == [0, 1, 2, 0]


def test_different_tokens_may_be_predicted_by_one_row() -> None:
    batch = pack([make((0, [1], [2])), make((0, [1], [3]))])
    assert batch.prediction_rows.tolist() == [0, 0]
    assert batch.target_ids.tolist() == [2, 3]


def test_rows_share_nothing() -> None:
    batch = pack_rows([make((0, [1, 2], [3])), make((0, [1, 2], [3]))])
    assert batch.input_ids.tolist() == [[1, 2, 3, 1, 2, 3]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert batch.nodes == (Node(0, 3, 3, 0), Node(3, 6, 6, 0))


def test_token_ids_sort_as_numbers_beyond_a_byte() -> None:
    batch = pack([make((0, [300, 1], [2])), make((0, [5, 1], [2])), make((0, [300, 2], [2]))])
    assert batch.input_ids.tolist() == [[5, 1, 2, 300, 1, 2, 2, 2]]


@pytest.mark.parametrize("seed", range(30))
def test_every_sampled_token_is_predicted_by_its_own_path(seed: int) -> None:
    rng = random.Random(seed)
    trajectories = [random_trajectory(rng) for _ in range(rng.randint(1, 12))]
    for batch in (pack(trajectories), pack_rows(trajectories)):
        expected = [
            (list(full[:at]), full[at])
            for trajectory in trajectories
            for full, num_sampled in full_sequences(trajectory)
            for at in range(len(full) - num_sampled, len(full))
        ]
        rows, targets = batch.prediction_rows[batch.gather], batch.target_ids[batch.gather]
        assert [(path(batch, int(r)), int(t)) for r, t in zip(rows, targets, strict=True)] == expected
        assert [len(path(batch, r)) - 1 for r in range(batch.num_unique_tokens)] == batch.position_ids[0].tolist()
    prefixes = {full[:n] for t in trajectories for full, _ in full_sequences(t) for n in range(1, len(full) + 1)}
    assert pack(trajectories).num_unique_tokens == len(prefixes)


def test_the_forest_does_not_depend_on_the_order_of_trajectories() -> None:
    rng = random.Random(3)
    trajectories = [random_trajectory(rng) for _ in range(9)]
    batch, other = pack(trajectories), pack(trajectories[::-1])
    assert torch.equal(batch.input_ids, other.input_ids)
    assert batch.nodes == other.nodes
    assert torch.equal(batch.prediction_rows, other.prediction_rows)


def test_a_second_fork_at_the_same_place_cuts_once() -> None:
    assert lay_out([4, 4, 4], [0, 2, 2]) == (Node(0, 2, 8, 0), Node(2, 4, 4, 2), Node(4, 6, 6, 2), Node(6, 8, 8, 2))


def test_nothing_to_pack_and_nothing_to_predict_from_are_broken_invariants() -> None:
    with pytest.raises(AssertionError, match="at least one turn"):
        pack([])
    with pytest.raises(AssertionError, match="after at least one token"):
        pack([make((0, [], [1]))])


@pytest.mark.parametrize("max_tokens", [1, 8, 20, 60, 10_000])
def test_split_keeps_everything_once_within_the_budget(max_tokens: int) -> None:
    rng = random.Random(max_tokens)
    trajectories = [random_trajectory(rng, task=str(index // 4)) for index in range(24)]
    batches = split(trajectories, max_tokens)
    assert [index for batch in batches for index in batch] == list(range(24))
    for batch in batches:
        assert len(batch) == 1 or pack([trajectories[i] for i in batch]).num_unique_tokens <= max_tokens
    assert batches == split(trajectories, max_tokens)


def test_split_counts_shared_tokens_once() -> None:
    group = [make((0, range(100), [100 + index])) for index in range(8)]
    assert split(group, 108) == [tuple(range(8))]
    assert split(group, 107) == [tuple(range(7)), (7,)]


def test_split_keeps_a_group_together_where_it_fits() -> None:
    groups = [make((0, [task], [10 + index]), task=str(task)) for task in range(2) for index in range(3)]
    assert split(groups, 6) == [(0, 1, 2), (3, 4, 5)]
    assert split(groups, 8) == [(0, 1, 2, 3, 4, 5)]
