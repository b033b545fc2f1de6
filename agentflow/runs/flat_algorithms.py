"""The section `algorithm` of runs from before it had slots: 26 flat options, as the slots of today."""

from collections.abc import Mapping
from typing import Any, TypeAlias

Flat: TypeAlias = Mapping[str, Any]
"""Such a section; the configuration of a run has every option of its version."""

_MISMATCH = {"mismatch_unit": "unit", "mismatch_low": "low", "mismatch_high": "high"}
_GROUPS = "credit gamma unit baseline scale epsilon singleton".split()


def with_slots(flat: Flat) -> dict[str, Any]:
    """Return what the flat options of a whole section said, as slots."""
    refills = flat["max_refills"] if flat["degenerate"] == "drop" else 0
    return {
        "sampler": {"kind": "epoch", "refills": refills},
        "plan": {"kind": "independent"},
        "rewards": _rewards(flat),
        "keep": _keep(flat),
        "advantage": _advantage(flat),
        "weights": _weights(flat),
        "loss": _loss(flat),
        "statistics": [],
    }


def _rewards(flat: Flat) -> list[dict[str, Any]]:
    if flat.get("overlong_max_tokens") is None:
        return []
    limits = {"max_tokens": flat["overlong_max_tokens"], "buffer_tokens": flat["overlong_buffer_tokens"]}
    return [{"kind": "overlong", **limits}]


def _keep(flat: Flat) -> list[dict[str, Any]]:
    # Without a baseline nothing is compared, and every group had a signal.
    if flat["baseline"] == "none":
        return []
    return [{"kind": "has_signal", "drop": flat["degenerate"] == "drop"}]


def _advantage(flat: Flat) -> dict[str, Any]:
    inner = {"kind": "group_relative", **{name: flat[name] for name in _GROUPS}}
    return inner if flat["whiten"] == "none" else {"kind": "whiten", "unit": flat["whiten"], "of": inner}


def _weights(flat: Flat) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": flat["aggregation"]}
    if flat["aggregation"] == "constant":
        found["tokens"] = flat["constant"]
    if flat.get("mismatch") == "mis":
        found["masks"] = [{"kind": "mismatched", **_mismatch(flat)}]
    return found


def _loss(flat: Flat) -> list[dict[str, Any]]:
    terms = [_surrogate(flat)]
    if flat["kl_coefficient"]:
        terms.append({"kind": "kl", "coefficient": flat["kl_coefficient"], "estimator": flat["kl_estimator"]})
    if flat["entropy_coefficient"]:
        terms.append({"kind": "entropy", "coefficient": flat["entropy_coefficient"]})
    return terms


def _surrogate(flat: Flat) -> dict[str, Any]:
    corrected = flat.get("mismatch") in ("tis", "icepop")
    correction = {"correction": {"kind": flat["mismatch"], **_mismatch(flat)}} if corrected else {}
    if flat["loss"] == "reinforce":
        return {"kind": "reinforce", **correction}
    unit = {"token": "token", "sequence": "trajectory"}[flat["ratio"]]
    bounds = {"unit": unit, "mean": "geometric", "low": flat["clip_low"], "high": flat["clip_high"]}
    if flat["loss"] == "cispo":
        return {"kind": "cispo", **bounds, **correction}
    return {"kind": "clipped", **bounds, "dual": flat.get("dual_clip"), **correction}


def _mismatch(flat: Flat) -> dict[str, Any]:
    return {new: flat[old] for old, new in _MISMATCH.items() if old in flat}
