"""Key-value memory of the in-process policy, and the attention that reads it.

Axes: B rows of a batch, H query heads, J key-value heads, T fed tokens, L remembered tokens, D head width.

Each session (one trajectory) owns one row of a slab `[rows, J, L, D]` per layer, and keeps it between its turns, so
that a turn costs its new tokens only. Rows in use are kept dense, so a decoding step reads the slab in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from agentflow.scoring.rules import AttentionRule, capped, dense_attention

_GROWTH_TOKENS = 256
_KEPT_BYTES = 1 << 28  # what may lie idle in host memory while the learner works


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens that one row is fed in one step.

    Attributes:
        row: The session's row in the slab.
        past: Tokens that the row already remembers.
        token_ids: [n] the new tokens, n >= 1.
    """

    row: int
    past: int
    token_ids: Sequence[int]


class KeyValueCache:
    """Slabs of keys and values, one row a session; grows in rows and in length as needed.

    A layer's slabs are made at its first call, in the shape of the keys that it has: layers may differ.

    Args:
        num_layers: Layers of the model.
        device: Where the slabs live.
        dtype: The model's dtype.
    """

    def __init__(self, *, num_layers: int, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self._dtype = dtype
        self._rows = self._length = 0
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        """Make room for `num_rows` rows of `num_tokens` tokens, keeping what is remembered."""
        if num_rows <= self._rows and num_tokens <= self._length:
            return
        self._rows = max(self._rows, num_rows)
        self._length = max(self._length, -(-num_tokens // _GROWTH_TOKENS) * _GROWTH_TOKENS)
        for slabs in (self._keys, self._values):
            slabs[:] = [None if old is None else self._grown(old) for old in slabs]

    def _grown(self, old: Tensor) -> Tensor:
        rows, heads, length, width = old.shape
        slab = self._slab(heads, width)
        slab[:rows, :, :length] = old
        return slab

    def _slab(self, heads: int, width: int) -> Tensor:
        # Zeros, not garbage: masked-out positions are multiplied by zero, and 0 * NaN is NaN.
        return torch.zeros(self._rows, heads, self._length, width, device=self.device, dtype=self._dtype)

    @torch.inference_mode()
    def forget(self) -> None:
        """Remember nothing. Small slabs on a CPU stay, as zeros: to grow them anew costs more than to wipe them."""
        slabs = [slab for slab in (*self._keys, *self._values) if slab is not None]
        if self.device.type == "cpu" and sum(slab.nbytes for slab in slabs) <= _KEPT_BYTES:
            for slab in slabs:
                slab.zero_()
            return
        self._rows = self._length = 0
        self._keys = [None] * len(self._keys)
        self._values = [None] * len(self._values)

    def slabs(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values [rows, J, L, D], for [1, J, T, D] keys."""
        keys, values = self._keys[layer], self._values[layer]
        if keys is None or values is None:
            keys, values = (self._slab(like.shape[1], like.shape[3]) for _ in range(2))
            self._keys[layer], self._values[layer] = keys, values
        return keys, values

    def move(self, source: int, target: int, num_tokens: int) -> None:
        """Copy one row's memory to another row, so that the rows in use stay dense."""
        for slab in (*self._keys, *self._values):
            if slab is not None:
                slab[target, :, :num_tokens] = slab[source, :, :num_tokens]


class CacheLayout:
    """The attention of one step: each fed token attends to its own session's memory and to itself.

    Args:
        cache: Where the keys and values are remembered.
        feeds: What each row is fed, rows distinct; the fed tokens lie one after another on the token axis T.
        num_rows: Rows in use.
    """

    def __init__(self, cache: KeyValueCache, feeds: Sequence[Feed], num_rows: int) -> None:
        self._cache = cache
        device = cache.device
        rows = [feed.row for feed in feeds for _ in feed.token_ids]
        positions = [feed.past + i for feed in feeds for i in range(len(feed.token_ids))]
        self.rows_T = torch.tensor(rows, device=device)
        self.positions_T = torch.tensor(positions, device=device)
        self.token_ids_T = torch.tensor([token for feed in feeds for token in feed.token_ids], device=device)
        ends = torch.tensor([len(feed.token_ids) for feed in feeds], device=device).cumsum(0)
        self.last_B = ends - 1
        starts = (ends - torch.tensor([len(feed.token_ids) for feed in feeds], device=device)).tolist()
        self._spans = [(start, feed) for start, feed in zip(starts, feeds, strict=True) if len(feed.token_ids) > 1]
        self._masks: dict[int | None, list[Tensor]] = {}
        singles = [(start, feed) for start, feed in zip(starts, feeds, strict=True) if len(feed.token_ids) == 1]
        self._plan_singles(singles, num_rows, device)

    def _plan_singles(self, singles: Sequence[tuple[int, Feed]], num_rows: int, device: torch.device) -> None:
        """Decide how the rows that decode one token are read: the slab in place, or gathered rows of it.

        In place costs the rows in use, gathered costs a copy of the decoding ones; half is where they meet.
        """
        self._singles_T = torch.tensor([start for start, _ in singles], device=device, dtype=torch.long)
        if not singles:
            return
        self._length = max(feed.past for _, feed in singles) + 1
        rows = torch.tensor([feed.row for _, feed in singles], device=device)
        lengths = torch.tensor([feed.past + 1 for _, feed in singles], device=device)
        self._in_place = 2 * len(singles) >= num_rows
        self._single_rows = rows
        if self._in_place:
            # Rows that do not decode now read one position, so that no softmax is over an empty set.
            all_lengths = torch.ones(num_rows, device=device, dtype=torch.long)
            all_lengths[rows] = lengths
            lengths = all_lengths
        self._lengths = lengths
        self._biases: dict[int | None, Tensor] = {}

    def _bias(self, window: int | None) -> Tensor:
        """Return [B, 1, 1, L] what is added to the scores of the rows that decode, once for all layers of a window."""
        if window not in self._biases:
            keys = torch.arange(self._length, device=self._lengths.device)[None, :]
            allowed = keys < self._lengths[:, None]
            if window is not None:
                allowed &= keys >= self._lengths[:, None] - window
            bias = torch.zeros(allowed.shape, device=keys.device).masked_fill_(~allowed, float("-inf"))
            self._biases[window] = bias[:, None, None, :]
        return self._biases[window]

    def _sees(self, window: int | None) -> list[Tensor]:
        """Return for each span [n, past + n] bool: which keys each of its queries sees."""
        if window not in self._masks:
            self._masks[window] = [_span_mask(feed, window, self._cache.device) for _, feed in self._spans]
        return self._masks[window]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, rule: AttentionRule) -> Tensor:
        """Remember the fed tokens' keys and values, then attend.

        Args:
            query: [1, H, T, D].
            key: [1, J, T, D], H a multiple of J.
            value: [1, J, T, D].
            layer: Index of the layer.
            rule: The layer's window and scores.

        Returns:
            [1, T, H, D].
        """
        keys, values = self._cache.slabs(layer, key)
        keys[self.rows_T, :, self.positions_T] = key[0].transpose(0, 1)
        values[self.rows_T, :, self.positions_T] = value[0].transpose(0, 1)
        out = torch.empty_like(query[0].transpose(0, 1))
        if len(self._singles_T):
            out[self._singles_T] = self._attend_singles(query[0][:, self._singles_T], keys, values, rule=rule)
        for (start, feed), sees in zip(self._spans, self._sees(rule.window), strict=True):
            stop, length = start + len(feed.token_ids), feed.past + len(feed.token_ids)
            memory = (slab[feed.row : feed.row + 1, :, :length] for slab in (keys, values))
            out[start:stop] = _attend_span(query[:, :, start:stop], *memory, sees=sees, rule=rule)[0].transpose(0, 1)
        return out[None]

    def _attend_singles(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: AttentionRule) -> Tensor:
        """Attend one query a row: [H, B, D] against the slab, [B, H, D] out."""
        num_heads, batch, width = query.shape
        groups = keys.shape[1]
        grouped = (query * rule.scaling).transpose(0, 1).reshape(batch, groups, num_heads // groups, width)
        if self._in_place:
            placed = grouped.new_zeros(len(self._lengths), *grouped.shape[1:])
            placed[self._single_rows] = grouped
            read_keys = keys[: len(self._lengths), :, : self._length]
            read_values = values[: len(self._lengths), :, : self._length]
        else:
            placed = grouped
            read_keys = keys[self._single_rows, :, : self._length]
            read_values = values[self._single_rows, :, : self._length]
        scores = capped(torch.matmul(placed, read_keys.transpose(-1, -2)), rule.softcap)
        scores = scores + self._bias(rule.window).to(placed.dtype)
        if rule.sinks is not None:
            sinks = rule.sinks.to(scores.dtype).reshape(1, groups, num_heads // groups, 1)
            scores = torch.cat((scores, sinks.expand(len(scores), -1, -1, -1)), dim=-1)
        weights = scores.float().softmax(-1).to(placed.dtype)
        attended = torch.matmul(weights[..., : self._length], read_values)
        if self._in_place:
            attended = attended[self._single_rows]
        return attended.reshape(batch, num_heads, width)


def _span_mask(feed: Feed, window: int | None, device: torch.device) -> Tensor:
    count = len(feed.token_ids)
    keys = torch.arange(feed.past + count, device=device)
    queries = torch.arange(feed.past, feed.past + count, device=device)
    sees = keys[None, :] <= queries[:, None]
    return sees if window is None else sees & (keys[None, :] > queries[:, None] - window)


def _attend_span(query: Tensor, key: Tensor, value: Tensor, *, sees: Tensor, rule: AttentionRule) -> Tensor:
    """Attend several queries of one row: [1, H, n, D] against [1, J, L, D], [1, H, n, D] out."""
    if rule.softcap is not None or rule.sinks is not None:
        return dense_attention(query, key, value, sees=sees, rule=rule)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=sees, scale=rule.scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
