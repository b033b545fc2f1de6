"""Pack trajectories into a forest, and score the sampled tokens with it.

Axis letters: T tokens of the forest, S sampled tokens, U distinct predictions, V vocabulary.

    pack([a b c|d e], [a b|f])   ->   a b c d e f     position_ids 0 1 2 3 4 2     T = 6 of 8 tokens
                                      (| starts what was sampled; d is read off c's row, e off d's, f off b's)
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from agentflow.scoring.forest import Node, lay_out
from agentflow.scoring.interface import IMPLEMENTATION, logit_rule
from agentflow.scoring.rules import LogitRule
from agentflow.scoring.tree_attention import ForestAttention
from agentflow.trajectory import Trajectory, full_sequences

_MAX_LOGITS = 1 << 24  # 64 MB of float32
_TOKEN = np.dtype(">u4")  # big-endian: the order of the bytes is the order of the tokens


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Trajectories as one sequence of tokens in which each distinct prefix occurs once.

    Sampled tokens are ordered by trajectory, then turn, then token.

    Attributes:
        input_ids: [1, T] int64, the forest's tokens in preorder.
        position_ids: [1, T] int64, each token's depth: its position on its own path.
        nodes: The forest's runs of tokens, which the attention layout follows.
        prediction_rows: [U] int64, the token whose hidden state makes each distinct prediction.
        target_ids: [U] int64, the token that is predicted there.
        gather: [S] int64, the distinct prediction of each sampled token; `values_U[gather]` is one value for each.
        num_row_tokens: Tokens that the trajectories have when nothing is shared but each one's own growing transcript.
    """

    input_ids: Tensor
    position_ids: Tensor
    nodes: tuple[Node, ...]
    prediction_rows: Tensor
    target_ids: Tensor
    gather: Tensor
    num_row_tokens: int

    @property
    def num_unique_tokens(self) -> int:
        """T, the tokens that one forward computes."""
        return self.input_ids.shape[1]


@dataclass(frozen=True, slots=True)
class _Row:
    """A sequence of tokens that holds one or more turns of a trajectory, each a prefix of the next.

    Attributes:
        tokens: Every token, as the bytes of big-endian integers: they compare, sort and hash fast.
        sampled: For each turn, the first and one past the last position that the policy sampled.
    """

    tokens: bytes
    sampled: tuple[tuple[int, int], ...]


def pack(trajectories: Sequence[Trajectory]) -> PackedBatch:
    """Pack trajectories so that each distinct token prefix is computed once, whoever shares it.

    Args:
        trajectories: In any order: the forest does not depend on it. At least one turn must have sampled something,
            and each turn must have been sampled after at least one token.
    """
    rows = [row for trajectory in trajectories for row in _rows(trajectory)]
    order = sorted(range(len(rows)), key=lambda i: rows[i].tokens)
    shared = [_num_common(rows[a].tokens, rows[b].tokens) for a, b in pairwise(order)]
    return _pack(rows, order, [0, *shared])


def pack_rows(trajectories: Sequence[Trajectory]) -> PackedBatch:
    """Pack trajectories with nothing shared between rows: what an ordinary trainer computes, for comparison.

    Args:
        trajectories: As in `pack`. A growing transcript is one row, a rebuilt context starts another.
    """
    rows = [row for trajectory in trajectories for row in _rows(trajectory)]
    return _pack(rows, range(len(rows)), [0] * len(rows))


def _rows(trajectory: Trajectory) -> list[_Row]:
    """Return the maximal sequences of a trajectory's turns, in the order of the turns."""
    turns = list(full_sequences(trajectory))
    rows: list[_Row] = []
    spans: list[tuple[int, int]] = []
    for index, (tokens, num_sampled) in enumerate(turns):
        assert num_sampled < len(tokens), "a turn is sampled after at least one token, which predicts its first"
        spans.append((len(tokens) - num_sampled, len(tokens)))
        grows = index + 1 < len(turns) and trajectory.turns[index + 1].prefix_length == len(tokens)
        if not grows:
            rows.append(_Row(np.array(tokens, dtype=_TOKEN).tobytes(), tuple(spans)))
            spans = []
    return rows


def _num_common(first: bytes, second: bytes) -> int:
    """Return the number of tokens in the longest common prefix."""
    num_tokens = min(len(first), len(second)) // _TOKEN.itemsize
    differ = np.frombuffer(first, _TOKEN, num_tokens) != np.frombuffer(second, _TOKEN, num_tokens)
    return int(differ.argmax()) if differ.any() else num_tokens


def _pack(rows: Sequence[_Row], order: Sequence[int], shared: Sequence[int]) -> PackedBatch:
    """Lay rows out in the given order, each without the tokens that it shares with the one before it.

    Args:
        rows: [R] rows in the canonical order of their sampled tokens.
        order: [R] a permutation of the rows; rows with a common prefix are neighbours, and the shorter is first.
        shared: [R] in that order, the leading tokens that each row takes over from the one before it.
    """
    assert rows, "a batch needs at least one turn"
    tokens = [np.frombuffer(row.tokens, _TOKEN).astype(np.int64) for row in rows]
    path = np.zeros(max(map(len, tokens)), dtype=np.int64)  # where each token of the newest row lies in the layout
    predictors = [np.zeros(0, dtype=np.int64)] * len(rows)
    cursor = 0
    for index, kept in zip(order, shared, strict=True):
        length = len(tokens[index])
        path[kept:length] = np.arange(cursor, cursor + length - kept)
        cursor += length - kept
        predictors[index] = np.concatenate([path[first - 1 : last - 1] for first, last in rows[index].sampled])
    targets = [tokens[i][first:last] for i, row in enumerate(rows) for first, last in row.sampled]
    # Row and target as one number: sorting it also puts the rows in the order of memory.
    distinct, gather = np.unique((np.concatenate(predictors) << 32) | np.concatenate(targets), return_inverse=True)
    new = list(zip(order, shared, strict=True))
    return PackedBatch(
        input_ids=torch.from_numpy(np.concatenate([tokens[i][kept:] for i, kept in new]))[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(kept, len(tokens[i])) for i, kept in new]))[None],
        nodes=lay_out([len(tokens[i]) for i in order], shared),
        prediction_rows=torch.from_numpy(distinct >> 32),
        target_ids=torch.from_numpy(distinct & 0xFFFFFFFF),
        gather=torch.from_numpy(gather),
        num_row_tokens=sum(map(len, tokens)),
    )


def split(trajectories: Sequence[Trajectory], max_tokens: int) -> list[tuple[int, ...]]:
    """Cut a batch into micro-batches of at most `max_tokens` distinct tokens, in order.

    Neighbours with the same task stay together where they fit. A single trajectory above the budget gets its own
    micro-batch: nothing is dropped and nothing is repeated.

    Args:
        trajectories: The batch.
        max_tokens: The most tokens T of one packed micro-batch.

    Returns:
        For each micro-batch, the indices of its trajectories; together they are 0, 1, 2, ... in order.
    """
    rows = [[row.tokens for row in _rows(trajectory)] for trajectory in trajectories]
    units: list[list[int]] = []
    for _, members in groupby(range(len(trajectories)), key=lambda i: trajectories[i].task_id):
        group = list(members)
        fits = _insert([], (row for i in group for row in rows[i]))[1] <= max_tokens
        units += [group] if fits else [[i] for i in group]
    batches: list[list[int]] = []
    packed: list[bytes] = []
    size = 0
    for unit in units:
        new = [row for i in unit for row in rows[i]]
        merged, added = _insert(packed, new)
        if not batches or size + added > max_tokens:
            batches.append([])
            size = 0
            merged, added = _insert([], new)
        batches[-1] += unit
        packed, size = merged, size + added
    return [tuple(batch) for batch in batches]


def _insert(packed: Sequence[bytes], rows: Iterable[bytes]) -> tuple[list[bytes], int]:
    """Return sorted rows with more rows among them, and the distinct tokens that these add."""
    merged = list(packed)
    added = 0
    for row in rows:
        at = bisect_left(merged, row)
        known = max((_num_common(row, neighbour) for neighbour in merged[max(0, at - 1) : at + 1]), default=0)
        added += len(row) // _TOKEN.itemsize - known
        merged.insert(at, row)
    return merged, added


def sampled_logprobs(
    model: PreTrainedModel, batch: PackedBatch, *, temperature: float, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Score every sampled token of a batch by the model, with gradients where they are enabled.

    Hidden states exist for the T tokens of the forest, logits only for `chunk_tokens` predictions at a time: the
    backward computes them again.

    Args:
        model: A causal language model after `use_agentflow_attention`; adapters of peft may surround it.
        batch: A packed batch; it may lie on another device.
        temperature: Divides the logits, as it did at sampling time; above 0.
        chunk_tokens: Predictions whose logits exist at one time; by default as many as make 16 million logits.

    Returns:
        logprobs [S] and entropies [S] of the distributions they were drawn from: natural log, float32 at least.
    """
    assert temperature > 0, "log-probabilities need a temperature above 0"
    assert model.config._attn_implementation == IMPLEMENTATION, "call use_agentflow_attention(model) first"
    device = model.device
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    hidden = decoder(
        input_ids=batch.input_ids.to(device),
        position_ids=batch.position_ids.to(device),
        attention_layout=ForestAttention(batch.nodes, device),
        use_cache=False,
    ).last_hidden_state[0]
    hidden_UD = hidden.index_select(0, batch.prediction_rows.to(device))
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    size = chunk_tokens or max(1, _MAX_LOGITS // model.config.get_text_config().vocab_size)
    targets_U = batch.target_ids.to(device)
    score = partial(_score, head, rule=logit_rule(model), temperature=temperature)
    scores = [
        checkpoint(score, chunk, targets, use_reentrant=False, preserve_rng_state=False)
        for chunk, targets in zip(torch.split(hidden_UD, size), torch.split(targets_U, size), strict=True)
    ]
    logprobs, entropies = (torch.cat(parts) for parts in zip(*scores, strict=True))
    gather = batch.gather.to(device)
    return logprobs[gather], entropies[gather]


def _score(
    head: nn.Module, hidden: Tensor, targets: Tensor, *, rule: LogitRule, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the [C] log-probabilities of targets and the [C] entropies, from [C, D] hidden states."""
    logits = rule(head(hidden))
    logprobs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1)
    entropies = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), entropies
