"""The forest of distinct token prefixes: its layout in memory, and attention whose cost follows its branches.

Axis letters: T tokens of the forest, N nodes, H query heads, D features of a head.
Tokens lie in preorder: a node's run of tokens is contiguous, and everything below a node follows it directly:

    start      end                      exit
    | node      | its whole subtree      |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

_flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class Node:
    """A run of tokens that no sequence of the batch leaves half-way.

    Attributes:
        start: The index in the layout of the run's first token.
        end: One past the run's last token; the subtree below starts here.
        exit: One past the last token of the subtree below; equal to `end` for a leaf.
        depth: The position of the first token on its path, 0 at a root.
    """

    start: int
    end: int
    exit: int
    depth: int


def lay_out(lengths: Sequence[int], shared: Sequence[int]) -> tuple[Node, ...]:
    """Cut sequences into the nodes of their prefix tree.

    Args:
        lengths: [R] the tokens of each sequence, sequences in lexicographic order.
        shared: [R] the tokens that each has in common with the one before it; 0 starts a new root.

    Returns:
        [N] nodes in preorder. Sequence r adds `lengths[r] - shared[r]` tokens to the layout, in order.
    """
    closed: list[Node] = []
    path: list[tuple[int, int, int]] = []  # (start, end, depth) of the runs from the root to the newest leaf
    cursor = 0
    for length, kept in zip(lengths, shared, strict=True):
        while path and path[-1][2] + path[-1][1] - path[-1][0] > kept:
            start, end, depth = path.pop()
            fork = start + max(0, kept - depth)
            closed.append(Node(fork, end, cursor, depth + fork - start))
            if fork > start:
                path.append((start, fork, depth))
        end = cursor + length - kept
        start, depth = cursor, kept
        if path and path[-1][1] == cursor:  # the row before is a prefix of this one: its leaf grows
            start, _, depth = path.pop()
        path.append((start, end, depth))
        cursor = end
    closed.extend(Node(start, end, cursor, depth) for start, end, depth in path)
    return tuple(sorted(closed, key=lambda node: node.start))


def subtree_exits(nodes: Sequence[Node]) -> NDArray[np.int64]:
    """Return [T] the exit of each token's node: query q sees key k if and only if `k <= q < exits[k]`."""
    return np.repeat(np.array([node.exit for node in nodes], dtype=np.int64), [node.end - node.start for node in nodes])


class ForestAttention:
    """The attention layout of a forest: each query attends to the keys of its own path, and no mask exists.

    On a CPU, the run of each node attends to itself causally, and the whole subtree below it attends to the run in
    one unmasked call; the parts of a query are merged by their log-sum-exp, which is exact. On a GPU,
    FlexAttention skips the blocks that no path crosses.

    Args:
        nodes: [N] the forest's nodes in preorder.
        device: Where the model computes.
    """

    def __init__(self, nodes: Sequence[Node], device: torch.device) -> None:
        self._nodes = tuple(nodes)
        self._block_mask = _block_mask(nodes, device) if device.type == "cuda" else None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, scaling: float) -> Tensor:
        """Compute one layer's attention; shapes as in `AttentionLayout.attend`."""
        if self._block_mask is not None:
            out: Tensor = _compiled_flex()(
                query, key, value, block_mask=self._block_mask, scale=scaling, enable_gqa=True
            )
            return out.transpose(1, 2)
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        out = _TreeAttention.apply(query, key, value, self._nodes, scaling)  # type: ignore[no-untyped-call]
        return out.transpose(1, 2)


class _TreeAttention(torch.autograd.Function):
    """Exact attention over a forest on a CPU: [1, H, T, D] queries, keys and values to [1, H, T, D].

    With parts i of a query's keys, `lse = log sum_i exp(lse_i)` and `out = sum_i exp(lse_i - lse) out_i`. The
    flash backward of a part only needs the total `out` and `lse`, so gradients of parts simply add up.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, nodes: tuple[Node, ...], scale: float) -> Tensor:
        _, heads, tokens, width = query.shape
        accumulator = torch.float64 if query.dtype == torch.float64 else torch.float32
        out = query.new_empty(1, tokens, heads, width, dtype=accumulator).transpose(1, 2)
        lse = query.new_empty(1, tokens, heads, dtype=accumulator).transpose(1, 2)
        for node in nodes:
            for first, last, causal in _calls(node):
                rows, run = slice(first, last), slice(node.start, node.end)
                part, part_lse = _flash_forward(
                    query[:, :, rows], key[:, :, run], value[:, :, run], 0.0, causal, scale=scale
                )
                if node.depth == 0:
                    out[:, :, rows], lse[:, :, rows] = part, part_lse
                else:
                    _merge(out[:, :, rows], lse[:, :, rows], part=part, part_lse=part_lse)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.nodes, ctx.scale = nodes, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.zeros_like(x, dtype=lse.dtype) for x in (query, key, value))
        for node in ctx.nodes:
            for first, last, causal in _calls(node):
                rows, run = slice(first, last), slice(node.start, node.end)
                grad_q, grad_k, grad_v = _flash_backward(
                    grads[0][:, :, rows],
                    query[:, :, rows],
                    key[:, :, run],
                    value[:, :, run],
                    out[:, :, rows],
                    lse[:, :, rows],
                    0.0,
                    causal,
                    scale=ctx.scale,
                )
                grad_query[:, :, rows] += grad_q
                grad_key[:, :, run] += grad_k
                grad_value[:, :, run] += grad_v
        return *(g.to(query.dtype) for g in (grad_query, grad_key, grad_value)), None, None


def _calls(node: Node) -> list[tuple[int, int, bool]]:
    """Return the (first, last, causal) query ranges that attend to a node's run."""
    own = (node.start, node.end, True)
    return [own] if node.exit == node.end else [own, (node.end, node.exit, False)]


def _merge(out: Tensor, lse: Tensor, *, part: Tensor, part_lse: Tensor) -> None:
    """Add a part to a running attention, in place: exp(b - log(e^a + e^b)) is the sigmoid of b - a."""
    weight = torch.sigmoid(part_lse - lse).unsqueeze(-1)
    out.lerp_(part.to(out.dtype), weight)
    torch.logaddexp(lse, part_lse, out=lse)


def tree_mask(exits: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return FlexAttention's predicate of a forest, from the [T] exits of its tokens."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < exits[key])

    return sees


@cache
def _compiled_flex() -> Any:
    """Compile FlexAttention once for every length: uncompiled, it would build the full score matrix."""
    return torch.compile(flex_attention, dynamic=True)


def _block_mask(nodes: Sequence[Node], device: torch.device) -> BlockMask:
    """Build FlexAttention's sparse mask of a forest: only blocks that some path crosses are computed."""
    exits = torch.from_numpy(subtree_exits(nodes)).to(device)
    tokens = len(exits)
    # Compiled, it reduces the predicate to blocks without a [T, T] tensor on the way.
    return create_block_mask(tree_mask(exits), None, None, tokens, tokens, device=device, _compile=True)
