"""Exact attention over a forest, whose cost follows its branches.

Axis letters: T tokens of the forest, N nodes, H query heads, D features of a head, Q queries and K keys of a part.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from agentflow.scoring.forest import Node, Part, banded_parts, depths, subtree_exits, whole_parts
from agentflow.scoring.rules import AttentionRule, capped

_flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_MIN_BLOCK: Final = 64
_MAX_BLOCK: Final = 512


class ForestAttention:
    """The attention layout of a forest: each query attends to the keys of its own path, and no mask of all exists.

    On a CPU, the run of each node attends to itself causally, and the whole subtree below it attends to the run in
    one unmasked call; the parts of a query are merged by their log-sum-exp, which is exact. Where a layer's window is
    shorter than the longest path, blocks of queries attend to the runs in reach. On a GPU, FlexAttention skips the
    blocks that no path crosses.

    Args:
        nodes: [N] the forest's nodes in preorder.
        device: Where the model computes.
        flex: FlexAttention, where it is to compute: by default on a GPU, compiled.
    """

    def __init__(self, nodes: Sequence[Node], device: torch.device, *, flex: Callable[..., Any] | None = None) -> None:
        self._nodes = tuple(nodes)
        self._device = device
        self._flex = _compiled_flex() if flex is None and device.type == "cuda" else flex
        self._longest = max(node.depth + node.end - node.start for node in nodes)
        self._plans: dict[tuple[int | None, bool], tuple[Part, ...]] = {}
        self._masks: dict[int | None, BlockMask] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, rule: AttentionRule) -> Tensor:
        """Compute one layer's attention; shapes as in `AttentionLayout.attend`."""
        window = rule.window if rule.window is not None and rule.window < self._longest else None
        if self._flex is not None:
            return self._attend_by_flex(self._flex, query, key, value, window=window, rule=rule)
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        parts = self._parts(window, dense=rule.softcap is not None)
        out: Tensor = _TreeAttention.apply(query, key, value, rule.sinks, parts, rule)  # type: ignore[no-untyped-call]
        return out.transpose(1, 2)

    def _parts(self, window: int | None, *, dense: bool) -> tuple[Part, ...]:
        """Return how a window's layers are computed, planned once for all of them."""
        if (window, dense) not in self._plans:
            if window is None and not dense:
                parts = whole_parts(self._nodes)
            else:
                reach = window or self._longest
                parts = banded_parts(self._nodes, reach, block=min(max(reach // 2, _MIN_BLOCK), _MAX_BLOCK))
            self._plans[window, dense] = parts
        return self._plans[window, dense]

    def _attend_by_flex(
        self, flex: Callable[..., Any], *operands: Tensor, window: int | None, rule: AttentionRule
    ) -> Tensor:
        if window not in self._masks:
            self._masks[window] = _block_mask(self._nodes, self._device, window)
        options: dict[str, Any] = {} if rule.sinks is None else {"return_aux": AuxRequest(lse=True)}
        if rule.softcap is not None:
            options["score_mod"] = cap_scores(rule.softcap)
        out = flex(*operands, block_mask=self._masks[window], scale=rule.scaling, enable_gqa=True, **options)
        if rule.sinks is not None:
            out, extra = out
            out = out * torch.sigmoid(extra.lse - rule.sinks[None, :, None]).unsqueeze(-1).to(out.dtype)
        return out.transpose(1, 2)  # type: ignore[no-any-return]


class _TreeAttention(torch.autograd.Function):
    """Exact attention over a forest on a CPU: [1, H, T, D] queries, keys and values to [1, H, T, D].

    With parts i of a query's keys, `lse = log sum_i exp(lse_i)` and `out = sum_i exp(lse_i - lse) out_i`. The
    backward of a part only needs the total `out` and `lse`, so gradients of parts simply add up. A sink is one more
    part, with its score as `lse` and zero as `out`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        parts: tuple[Part, ...],
        rule: AttentionRule,
    ) -> Tensor:
        _, heads, tokens, width = query.shape
        accumulator = torch.float64 if query.dtype == torch.float64 else torch.float32
        out = query.new_empty(1, tokens, heads, width, dtype=accumulator).transpose(1, 2)
        lse = query.new_empty(1, tokens, heads, dtype=accumulator).transpose(1, 2)
        for part in parts:
            rows, run = part.rows, part.keys
            own, own_lse = _attend(query[:, :, rows], key[:, :, run], value[:, :, run], part=part, rule=rule)
            if part.opens:
                out[:, :, rows], lse[:, :, rows] = own, own_lse
            else:
                _merge(out[:, :, rows], lse[:, :, rows], part=own, part_lse=own_lse)
        if sinks is not None:
            scores = sinks.to(accumulator)[None, :, None].expand_as(lse)
            out.mul_(torch.sigmoid(lse - scores).unsqueeze(-1))
            torch.logaddexp(lse, scores, out=lse)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse, sinks)
        ctx.parts, ctx.rule = parts, rule
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, sinks = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.zeros_like(x, dtype=lse.dtype) for x in (query, key, value))
        for part in ctx.parts:
            rows, run = part.rows, part.keys
            whole = (grads[0][:, :, rows], out[:, :, rows], lse[:, :, rows])
            grad_q, grad_k, grad_v = _differentiate(
                query[:, :, rows], key[:, :, run], value[:, :, run], whole=whole, part=part, rule=ctx.rule
            )
            grad_query[:, :, rows] += grad_q
            grad_key[:, :, run] += grad_k
            grad_value[:, :, run] += grad_v
        grad_sinks = None
        if sinks is not None:
            weights = (sinks.to(lse.dtype)[None, :, None] - lse).exp()
            grad_sinks = -(weights * (grads[0].to(lse.dtype) * out).sum(-1)).sum((0, 2)).to(sinks.dtype)
        return *(g.to(query.dtype) for g in (grad_query, grad_key, grad_value)), grad_sinks, None, None


def _attend(query: Tensor, key: Tensor, value: Tensor, *, part: Part, rule: AttentionRule) -> tuple[Tensor, Tensor]:
    """Return a part's [1, H, Q, D] output and its [1, H, Q] log-sum-exp."""
    if rule.softcap is None:
        return _flash_forward(  # type: ignore[no-any-return]
            query, key, value, 0.0, _is_causal(part), attn_mask=_mask(part, query.dtype), scale=rule.scaling
        )
    scores = _masked(_scores(query, key, rule), part)
    lse = torch.logsumexp(scores, dim=-1)
    return (scores - lse.unsqueeze(-1)).exp() @ value.to(scores.dtype), lse


def _differentiate(
    query: Tensor, key: Tensor, value: Tensor, *, whole: tuple[Tensor, ...], part: Part, rule: AttentionRule
) -> tuple[Tensor, ...]:
    """Return the gradients that a part gives to its queries, keys and values.

    Args:
        query: [1, H, Q, D].
        key: [1, H, K, D].
        value: [1, H, K, D].
        whole: The gradient of the merged output, the merged output and its log-sum-exp, at these queries.
        part: Which they are.
        rule: The layer's scores.
    """
    grad, out, lse = whole
    if rule.softcap is None:
        options = {"attn_mask": _mask(part, query.dtype), "scale": rule.scaling}
        gradients = _flash_backward(grad, query, key, value, out, lse, 0.0, _is_causal(part), **options)
        return tuple(gradients)
    grad, query, key, value = (x.to(lse.dtype) for x in (grad, query, key, value))
    scores = _scores(query, key, rule)
    weights = (_masked(scores, part) - lse.unsqueeze(-1)).exp()
    of_scores = weights * (grad @ value.transpose(-1, -2) - (grad * out).sum(-1, keepdim=True))
    of_products = of_scores * (1 - (scores / rule.softcap).square()) * rule.scaling
    return of_products @ key, of_products.transpose(-1, -2) @ query, weights.transpose(-1, -2) @ grad


def _is_causal(part: Part) -> bool:
    """Return whether the kernel's own causal mask is the part's."""
    return part.diagonal == 0 and part.window is None


def _mask(part: Part, dtype: torch.dtype) -> Tensor | None:
    """Return what the kernel adds to a part's scores: [Q, K], zero or minus infinity; None where it need not.

    The kernel of torch 2.13 misreads a mask in another dtype than its queries.
    """
    if part.diagonal is None or _is_causal(part):
        return None
    return torch.zeros(_shape(part), dtype=dtype).masked_fill_(~_sees(part), -torch.inf)


def _masked(scores: Tensor, part: Part) -> Tensor:
    """Return a part's scores, those that do not count at minus infinity."""
    return scores if part.diagonal is None else scores.masked_fill(~_sees(part), -torch.inf)


def _sees(part: Part) -> Tensor:
    """Return [Q, K] bool: which keys of a part with a diagonal each of its queries sees."""
    assert part.diagonal is not None, "without a diagonal, every query sees every key"
    queries, keys = _shape(part)
    distance = torch.arange(part.diagonal, part.diagonal + queries)[:, None] - torch.arange(keys)[None, :]
    return (distance >= 0) & (distance < (part.window or part.diagonal + queries))


def _shape(part: Part) -> tuple[int, int]:
    return part.rows.stop - part.rows.start, part.keys.stop - part.keys.start


def _scores(query: Tensor, key: Tensor, rule: AttentionRule) -> Tensor:
    """Return the [1, H, Q, K] scores, float32 at least."""
    accumulator = torch.promote_types(query.dtype, torch.float32)
    return capped((query.to(accumulator) @ key.to(accumulator).transpose(-1, -2)) * rule.scaling, rule.softcap)


def _merge(out: Tensor, lse: Tensor, *, part: Tensor, part_lse: Tensor) -> None:
    """Add a part to a running attention, in place: exp(b - log(e^a + e^b)) is the sigmoid of b - a."""
    weight = torch.sigmoid(part_lse - lse).unsqueeze(-1)
    out.lerp_(part.to(out.dtype), weight)
    torch.logaddexp(lse, part_lse, out=lse)


def tree_mask(
    exits: Tensor, depths: Tensor, *, window: int | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return FlexAttention's predicate of a forest.

    Args:
        exits: [T] the exit of each token's node.
        depths: [T] each token's position on its own path.
        window: A query sees so many keys of its path at most, itself included; None for all.
    """

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < exits[key])

    if window is None:
        return sees
    reach = window

    def sees_near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(batch, head, query, key) & (depths[query] - depths[key] < reach)

    return sees_near


@cache
def cap_scores(softcap: float) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return FlexAttention's change of scores for a soft cap; one function a cap, so that it is compiled once."""

    def cap(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return capped(score, softcap)

    return cap


@cache
def _compiled_flex() -> Any:
    """Compile FlexAttention once for every length: uncompiled, it would build the full score matrix."""
    return torch.compile(flex_attention, dynamic=True)


def _block_mask(nodes: Sequence[Node], device: torch.device, window: int | None) -> BlockMask:
    """Build FlexAttention's sparse mask of a forest: only blocks that some path crosses are computed."""
    exits = torch.from_numpy(subtree_exits(nodes)).to(device)
    tokens = len(exits)
    predicate = tree_mask(exits, torch.from_numpy(depths(nodes)).to(device), window=window)
    # Compiled, as on a GPU, it reduces the predicate to blocks without a [T, T] tensor on the way.
    return create_block_mask(predicate, None, None, tokens, tokens, device=device, _compile=device.type == "cuda")
