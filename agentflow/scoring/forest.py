"""The forest of distinct token prefixes: its layout in memory, and who sees whom in it.

Axis letters: T tokens of the forest, N nodes.
Tokens lie in preorder: a node's run of tokens is contiguous, and everything below a node follows it directly:

    start      end                      exit
    | node      | its whole subtree      |
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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


def depths(nodes: Sequence[Node]) -> NDArray[np.int64]:
    """Return [T] each token's depth: its position on its own path."""
    return np.concatenate([np.arange(node.depth, node.depth + node.end - node.start) for node in nodes])


@dataclass(frozen=True, slots=True)
class Part:
    """Queries of one block, and keys of one run that they attend to together.

    Attributes:
        rows: The queries, as a range of the layout.
        keys: The keys, as a range of the layout.
        opens: Whether this is the first part of its queries.
        diagonal: None where every query sees every key; else query i sees key j where `j <= i + diagonal`.
        window: None where nothing is too far; else query i sees key j only where `j > i + diagonal - window`.
    """

    rows: slice
    keys: slice
    opens: bool
    diagonal: int | None
    window: int | None = None


def whole_parts(nodes: Sequence[Node]) -> tuple[Part, ...]:
    """Cut a forest's attention into as few parts as can be: a run with itself, and all below it with the run."""
    parts: list[Part] = []
    for node in nodes:
        run, below = slice(node.start, node.end), slice(node.end, node.exit)
        parts.append(Part(run, run, opens=node.depth == 0, diagonal=0))
        if node.exit > node.end:
            parts.append(Part(below, run, opens=node.depth == 0, diagonal=None))
    return tuple(parts)


def banded_parts(nodes: Sequence[Node], window: int, block: int) -> tuple[Part, ...]:
    """Cut a forest's attention into blocks of queries, each with only those runs of its path that the window reaches.

    Args:
        nodes: [N] the forest's nodes in preorder.
        window: A query sees so many keys of its own path at most, itself included.
        block: The most queries of one part.

    Returns:
        Parts of which each query has one that opens, in which it sees itself, and sees at least one key in each.
    """
    parts: list[Part] = []
    path: list[Node] = []  # from the root to the newest node
    for node in nodes:
        while path and path[-1].exit <= node.start:
            path.pop()
        path.append(node)
        for start in range(node.start, node.end, block):
            rows = slice(start, min(start + block, node.end))
            parts += [part for run in reversed(path) if (part := _band(node, rows, run, window=window)) is not None]
    return tuple(parts)


def _band(node: Node, rows: slice, run: Node, *, window: int) -> Part | None:
    """Return what a block of a node's queries sees of a run on its path; None where that is nothing."""
    depth = node.depth - node.start  # of a query or key, added to its index in the layout
    run_depth = run.depth - run.start
    first = max(run.start, rows.start + depth - window + 1 - run_depth)
    last = min(run.end, rows.stop) - 1 if run is node else run.end - 1
    stop = min(rows.stop, last + run_depth + window - depth)  # queries from here on see nothing of the run
    if first > last or stop <= rows.start:
        return None
    diagonal = rows.start + depth - (first + run_depth)  # the key, counted from the first, at the first query's depth
    near = last - first <= diagonal
    far = stop - 1 - rows.start + diagonal - window < 0
    return Part(
        slice(rows.start, stop),
        slice(first, last + 1),
        opens=run is node,
        diagonal=None if near and far else diagonal,
        window=None if far else window,
    )
