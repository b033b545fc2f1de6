"""How a learner and a server see that they compute with the same weights, and alike."""

import re
from collections.abc import Mapping
from typing import Any

import torch

PROTOCOL = 5
"""Counts the changes of what learner and server say to each other."""


def shape_of(config: Any) -> dict[str, Any]:
    """Return what two models may differ in though each tensor of one fits into the other.

    Args:
        config: The configuration of the text model, as transformers reads it.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    return {
        "heads": config.num_attention_heads,
        "key_value_heads": getattr(config, "num_key_value_heads", None),
        "rope_theta": rope.get("rope_theta", getattr(config, "rope_theta", None)),
        "norm_epsilon": getattr(config, "rms_norm_eps", None),
    }


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return a checksum of each layer's weights, and one of all others: the sum of their 8-byte words modulo 2**64.

    A sum does not depend on the order, so that a learner's `q_proj`, `k_proj` and `v_proj` have the digest of a
    server's `qkv_proj`, and zeros that pad a vocabulary count nothing. It reads memory once, at full speed.
    """
    sums: dict[str, int] = {}
    for name, tensor in tensors.items():
        layer = re.search(r"\.(\d+)\.", name)
        key = f"layer {layer[1]}" if layer else "others"
        words = tensor.detach().contiguous().view(-1).view(torch.uint8)
        whole = words.numel() // 8 * 8
        rest = int.from_bytes(bytes(words[whole:].tolist()), "little")
        sums[key] = sums.get(key, 0) + _sum(words[:whole].view(torch.int64)) + rest
    return {key: f"{value % (1 << 64):016x}" for key, value in sums.items()}


def _sum(words: torch.Tensor) -> int:
    # On a CPU numpy takes one thread, and not longer: the other cores are at work for the other side.
    return int(words.numpy().sum() if words.is_cpu else words.sum())
