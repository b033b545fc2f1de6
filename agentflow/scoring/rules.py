"""What a model does to its scores and logits beyond a plain transformer: values that the layouts and the head follow.

Axis letters: H query heads, H_kv key-value heads, Q queries, K keys, D features of a head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """How one layer turns the products of queries and keys into weights.

    Attributes:
        scaling: Multiplies the products.
        window: A query sees at most so many keys, the last of its own path, itself included; None for all.
        softcap: The scaled products s become `softcap * tanh(s / softcap)`; None leaves them.
        sinks: [H] scores of one more key for each head, whose value is zero; None for none.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Return scores within (-softcap, softcap): `softcap * tanh(scores / softcap)`; None leaves them."""
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def dense_attention(query: Tensor, key: Tensor, value: Tensor, *, sees: Tensor, rule: AttentionRule) -> Tensor:
    """Compute attention the plain way, every score at once: for few tokens, and for what fast kernels lack.

    Args:
        query: [1, H, Q, D].
        key: [1, H_kv, K, D], H a multiple of H_kv.
        value: [1, H_kv, K, D].
        sees: [Q, K] bool, the keys of each query; the rule's window is not applied again.
        rule: Scaling, soft cap and sinks.

    Returns:
        [1, H, Q, D] in the dtype of `query`.
    """
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    scores = capped((query @ key.transpose(-1, -2)) * rule.scaling, rule.softcap)
    scores = scores.masked_fill(~sees, -torch.inf)
    if rule.sinks is not None:
        sinks = rule.sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, sinks), dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights[..., : key.shape[2]].to(value.dtype) @ value


@dataclass(frozen=True, slots=True)
class LogitRule:
    """What a model does to the output of its head before it calls it logits.

    Attributes:
        kind: `plain` nothing; `multiply` or `divide` by `value`; `cap` to within (-value, value) by a scaled tanh.
        value: The number of the kind, in the model's own config.
    """

    kind: Literal["plain", "multiply", "divide", "cap"] = "plain"
    value: float = 1.0

    def __call__(self, outputs: Tensor) -> Tensor:
        """Turn the head's outputs into logits, with the very operations of transformers."""
        match self.kind:
            case "multiply":
                return outputs * self.value
            case "divide":
                return outputs / self.value
            case "cap":
                return torch.tanh(outputs / self.value) * self.value
            case _:
                return outputs


_LOGIT_OPTIONS: tuple[tuple[str, Literal["multiply", "divide", "cap"]], ...] = (
    ("final_logit_softcapping", "cap"),
    ("logit_scale", "multiply"),
    ("logits_scaling", "divide"),
    ("logits_scaling", "multiply"),
    ("lm_head_multiplier", "multiply"),
)


def logit_rules(config: Any) -> Iterator[LogitRule]:
    """Yield what a model of this config may do to its head's outputs; which of them it does, a probe decides."""
    yield LogitRule()
    for name, kind in _LOGIT_OPTIONS:
        value = getattr(config, name, None)
        if value is not None:
            yield LogitRule(kind, float(value))
