"""Losses against the worked numbers of the reference, a slow oracle, finite differences and invariances."""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agentflow.maths.losses import Aggregation, binding, kl_estimate, token_weights
from agentflow.maths.mismatch import Mismatch, mismatch_factor
from agentflow.maths.ratios import clipped_objective, unit_log_ratio
from agentflow.trainers.slots.losses.surrogates import Cispo
from tests.numerics.terms import SampledTokens, policy_loss

LENGTHS = [[2, 4, 2], [4], [2, 2], [4, 4]]
ADVANTAGES = [1.0, -1.0, -1.0, 1.0]


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def tokens(log_ratios: list[float], advantages: list[float], **more: Any) -> SampledTokens:
    old = torch.linspace(-2.0, -0.5, len(log_ratios), dtype=torch.float64)
    return SampledTokens(
        logprobs_S=(old + f64(*log_ratios)).requires_grad_(),
        old_logprobs_S=old,
        advantages_S=f64(*advantages),
        weights_S=more.pop("weights_S", torch.full_like(old, 1 / len(log_ratios))),
        **more,
    )


def objective(ratio: float, advantage: float, *, low: float = 0.2, high: float = 0.2) -> float:
    return float(clipped_objective(f64(ratio), f64(advantage), low=low, high=high))


def log_ratio(sample: SampledTokens) -> Tensor:
    """The log of the ratio that each trajectory shares."""
    assert sample.segments_S is not None
    return unit_log_ratio(sample.logprobs_S, sample.old_logprobs_S, sample.segments_S)


@pytest.mark.parametrize(("aggregation", "expected"), [("nested", 0.0), ("turn", 0.25), ("token", 0.333333)])
def test_we1_surrogate_by_aggregation(aggregation: Aggregation, expected: float) -> None:
    advantages = [a for a, turns in zip(ADVANTAGES, LENGTHS, strict=True) for _ in range(sum(turns))]
    weights = torch.from_numpy(token_weights(LENGTHS, aggregation))
    terms = policy_loss(tokens([0.0] * 24, advantages, weights_S=weights))
    assert -float(terms.loss.detach()) == pytest.approx(expected, abs=1e-6)


def test_we1_clip() -> None:
    assert objective(1.5, 1.0) == pytest.approx(1.2)
    assert objective(1.5, 1.0, high=0.3) == pytest.approx(1.3)
    assert objective(0.7, -1.0) == pytest.approx(-0.8)
    assert objective(1.5, -1.0) == pytest.approx(-1.5)


@pytest.mark.parametrize(("d", "expected"), [(-0.1, 0.0048374), (0.1, 0.0051709), (1.0, 0.7182818)])
def test_we1_k3(d: float, expected: float) -> None:
    assert float(kl_estimate(f64(0.0), f64(d), "k3")) == pytest.approx(expected, abs=1e-7)


def test_we16_sequence_ratio() -> None:
    sample = tokens([0.01, -0.02, 0.03], [1.0, 1.0, 1.0], segments_S=torch.zeros(3, dtype=torch.long))
    ratio = log_ratio(sample).exp()
    assert float((sample.logprobs_S - sample.old_logprobs_S).detach().sum().exp()) == pytest.approx(1.020201, abs=1e-6)
    assert ratio.tolist() == pytest.approx([1.006689] * 3, abs=1e-6)
    bounded = clipped_objective(ratio, sample.advantages_S, low=3e-4, high=4e-4)
    assert bounded.tolist() == pytest.approx([1.0004] * 3)


@pytest.mark.parametrize(("high", "expected"), [(0.28, 1.28), (4.0, 3.0)])
def test_we16_cispo_coefficient(high: float, expected: float) -> None:
    sample = tokens([math.log(3.0)], [1.0])
    loss = policy_loss(sample, loss="cispo", clip_low=1.0, clip_high=high).loss
    (gradient,) = torch.autograd.grad(loss, sample.logprobs_S)
    assert -float(gradient) == pytest.approx(expected)


def test_we16_dual_clip() -> None:
    sample = tokens([math.log(5.0)], [-1.0])
    assert float(policy_loss(sample).loss.detach()) == pytest.approx(5.0)
    assert float(policy_loss(sample, dual_clip=3.0).loss.detach()) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("mismatch", "low", "expected", "mean"),
    [
        ("tis", 0.5, [0.3, 0.8, 1, 2, 2], 1.22),
        ("icepop", 0.5, [0, 0.8, 1, 3, 0], 0.96),
        ("mis", 0.5, [0, 1, 1, 0, 0], 0.4),
        ("none", 0.5, [1, 1, 1, 1, 1], 1.0),
    ],
)
def test_we18_mismatch(mismatch: Mismatch, low: float, expected: list[float], mean: float) -> None:
    high = 5.0 if mismatch == "icepop" else 2.0
    factor = mismatch_factor(f64(0.3, 0.8, 1, 3, 6).log(), mismatch, low=low, high=high)
    assert factor.tolist() == pytest.approx(expected)
    assert float(factor.mean()) == pytest.approx(mean)


def test_we18_mis_drops_tokens_from_the_denominator() -> None:
    w = np.array([0.3, 0.8, 1, 3, 6])
    keep = (w >= 0.5) & (w <= 2.0)
    assert keep.sum() == 2
    weights = token_weights([[5]], "token", keep_S=keep)
    assert weights.tolist() == [0, 0.5, 0.5, 0, 0]
    behaviour = torch.linspace(-2.0, -0.5, 5, dtype=torch.float64) - torch.from_numpy(np.log(w))
    sample = tokens([0.0] * 5, [1.0] * 5, weights_S=torch.from_numpy(weights), behaviour_logprobs_S=behaviour)
    assert -float(policy_loss(sample).loss.detach()) == pytest.approx(1.0)


def test_we18_sequence_ratio_is_the_geometric_mean() -> None:
    sample = tokens(np.log([0.3, 0.8, 1, 3, 6]).tolist(), [1.0] * 5, segments_S=torch.zeros(5, dtype=torch.long))
    assert float((sample.logprobs_S - sample.old_logprobs_S).detach().sum().exp()) == pytest.approx(4.32)
    assert float(log_ratio(sample).detach().exp()[0]) == pytest.approx(1.339975, abs=1e-6)


UNITS = ("turn", "turn_mean", "sequence", "sequence_mean")
SLOTS: list[dict[str, Any]] = [
    {"clip_high": 0.3},
    {"dual_clip": 3.0},
    {"loss": "cispo"},
    {"loss": "reinforce"},
    {"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.05},
    {"mismatch": "tis"},
    {"mismatch": "icepop"},
    *({"mismatch": mismatch, "mismatch_unit": unit} for mismatch in ("tis", "icepop") for unit in UNITS),
    {"kl_coefficient": 0.1, "kl_estimator": "k1"},
    {"kl_coefficient": 0.1, "kl_estimator": "k2"},
    {"kl_coefficient": 0.1},
    {"entropy_coefficient": 0.2},
    {"kl_coefficient": 0.1, "entropy_coefficient": 0.2, "mismatch": "tis", "dual_clip": 2.0},
]


def random_batch(seed: int = 0, lengths: list[list[int]] = LENGTHS) -> SampledTokens:
    generator = torch.Generator().manual_seed(seed)
    size = sum(map(sum, lengths))

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(size, generator=generator, dtype=torch.float64)

    old = -noise(1.0).abs() - 0.1
    turns = [length for turns in lengths for length in turns]
    return SampledTokens(
        logprobs_S=(old + noise(0.5)).requires_grad_(),
        old_logprobs_S=old,
        advantages_S=torch.repeat_interleave(noise(1.0)[: len(turns)], torch.tensor(turns)),
        weights_S=torch.from_numpy(token_weights(lengths, "nested")),
        behaviour_logprobs_S=old + noise(0.5),
        ref_logprobs_S=old + noise(0.3),
        entropy_S=noise(1.0).abs().requires_grad_(),
        segments_S=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor([sum(t) for t in lengths])),
        turns_S=torch.repeat_interleave(torch.arange(len(turns)), torch.tensor(turns)),
    )


def slow_loss(b: SampledTokens, **slots: Any) -> float:
    """A loop over scalars that shares no code with the module."""
    low, high = slots.get("clip_low", 0.2), slots.get("clip_high", 0.2)
    behaviour, ref, entropy, segments = b.behaviour_logprobs_S, b.ref_logprobs_S, b.entropy_S, b.segments_S
    assert behaviour is not None and ref is not None and entropy is not None and segments is not None
    total = 0.0
    for s in range(len(b.weights_S)):
        logp, old, a = (float(x[s].detach()) for x in (b.logprobs_S, b.old_logprobs_S, b.advantages_S))
        ratio = math.exp(logp - old)
        if slots.get("ratio") == "sequence":
            peers = [j for j in range(len(b.weights_S)) if segments[j] == segments[s]]
            ratio = math.exp(sum(float((b.logprobs_S[j] - b.old_logprobs_S[j]).detach()) for j in peers) / len(peers))
        bounded = min(max(ratio, 1 - low), 1 + high)
        value = min(ratio * a, bounded * a)
        if slots.get("dual_clip") and a < 0:
            value = max(value, slots["dual_clip"] * a)
        value = {"clip": value, "cispo": bounded * a * logp, "reinforce": a * logp}[slots.get("loss", "clip")]
        unit = slots.get("mismatch_unit", "token")
        owner = {"token": torch.arange(len(b.weights_S)), "turn": b.turns_S, "sequence": segments}[unit.split("_")[0]]
        assert owner is not None
        members = [j for j in range(len(b.weights_S)) if owner[j] == owner[s]]
        w = math.prod(math.exp(float(b.old_logprobs_S[j]) - float(behaviour[j])) for j in members)
        w = w ** (1 / len(members)) if unit.endswith("_mean") else w
        inside = 0.5 <= w <= 2.0
        value *= {"none": 1.0, "tis": min(w, 2.0), "icepop": w * inside}[slots.get("mismatch", "none")]
        d = float(ref[s]) - logp
        kl = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[slots.get("kl_estimator", "k3")]
        total += float(b.weights_S[s]) * (
            -value
            + slots.get("kl_coefficient", 0) * kl
            - slots.get("entropy_coefficient", 0) * float(entropy[s].detach())
        )
    return total


@pytest.mark.parametrize("slots", SLOTS, ids=str)
def test_equals_a_loop_over_scalars(slots: dict[str, Any]) -> None:
    for seed in range(3):
        batch = random_batch(seed)
        assert float(policy_loss(batch, **slots).loss.detach()) == pytest.approx(slow_loss(batch, **slots), abs=1e-12)


def _frozen_parts(logprobs: Tensor, batch: SampledTokens, slots: dict[str, Any]) -> Tensor:
    """The loss as a function of log-probs whose ordinary derivative is the gradient that is meant.

    CISPO holds its coefficient fixed at the batch's log-probs; the sequence ratio lets each token act through its own.
    """
    at = replace(batch, logprobs_S=logprobs)
    if slots.get("loss") == "cispo":
        coefficient = (batch.logprobs_S - batch.old_logprobs_S).exp().clamp(0.8, 1.2).detach()
        return -(batch.weights_S * coefficient * batch.advantages_S * logprobs).sum()
    if slots.get("ratio") == "sequence":
        here = log_ratio(batch).detach()
        log_s = here + logprobs - batch.logprobs_S.detach()
        value = clipped_objective(log_s.exp(), at.advantages_S, low=0.05, high=0.05)
        return -(batch.weights_S * value).sum()
    return policy_loss(at, **slots).loss


@pytest.mark.parametrize("slots", SLOTS, ids=str)
def test_gradient_equals_finite_differences(slots: dict[str, Any]) -> None:
    batch, step = random_batch(), 1e-6
    (gradient,) = torch.autograd.grad(policy_loss(batch, **slots).loss, batch.logprobs_S)
    centre = batch.logprobs_S.detach()
    for s in range(len(centre)):
        offset = torch.zeros_like(centre)
        offset[s] = step
        rise = _frozen_parts(centre + offset, batch, slots) - _frozen_parts(centre - offset, batch, slots)
        assert float(gradient[s]) == pytest.approx(float(rise.detach()) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("slots", SLOTS, ids=str)
@pytest.mark.parametrize("distance", [-1e4, 1e4])
def test_a_token_that_drifted_far_leaves_the_gradient_finite(slots: dict[str, Any], distance: float) -> None:
    batch = random_batch()
    far = batch.logprobs_S.detach().clone()
    far[::3] += distance
    batch = replace(batch, logprobs_S=far.requires_grad_())
    assert batch.behaviour_logprobs_S is not None
    batch.behaviour_logprobs_S[1::3] += distance
    terms = policy_loss(batch, **slots)
    (gradient,) = torch.autograd.grad(terms.loss, batch.logprobs_S)
    assert torch.isfinite(gradient).all()
    assert all(math.isfinite(value) for value in terms.sums.values())


def test_entropy_gradient_reaches_the_entropies() -> None:
    batch = random_batch()
    assert batch.entropy_S is not None
    (gradient,) = torch.autograd.grad(policy_loss(batch, entropy_coefficient=0.2).loss, batch.entropy_S)
    assert torch.equal(gradient, -0.2 * batch.weights_S)


@pytest.mark.parametrize("slots", SLOTS, ids=str)
def test_micro_batches_add_up(slots: dict[str, Any]) -> None:
    batch = random_batch()
    assert batch.segments_S is not None
    whole = policy_loss(batch, **slots)
    parts = [policy_loss(batch[batch.segments_S == i], **slots) for i in range(len(LENGTHS))]
    assert sum(float(part.loss.detach()) for part in parts) == pytest.approx(float(whole.loss.detach()), abs=1e-14)
    for name, value in whole.sums.items():
        assert sum(part.sums[name] for part in parts) == pytest.approx(value, abs=1e-12), name
    (one,) = torch.autograd.grad(whole.loss, batch.logprobs_S)
    (other,) = torch.autograd.grad(torch.stack([part.loss for part in parts]).sum(), batch.logprobs_S)
    assert torch.allclose(one, other, atol=1e-15, rtol=0)


@pytest.mark.parametrize("slots", SLOTS, ids=str)
def test_order_of_tokens_does_not_matter(slots: dict[str, Any]) -> None:
    batch = random_batch()
    order = torch.randperm(len(batch.weights_S), generator=torch.Generator().manual_seed(1))
    shuffled = policy_loss(batch[order], **slots)
    assert float(shuffled.loss.detach()) == pytest.approx(float(policy_loss(batch, **slots).loss.detach()), abs=1e-14)


@pytest.mark.parametrize("slots", SLOTS, ids=str)
def test_padding_of_weight_zero_changes_nothing(slots: dict[str, Any]) -> None:
    batch = random_batch()
    # Padding belongs to no trajectory: its segment is its own, as a separate one is for the packer.
    padding = SampledTokens(
        **{f.name: f64(-7.0, -3.0) for f in fields(batch) if f.name not in ("weights_S", "segments_S", "turns_S")},
        weights_S=f64(0.0, 0.0),
        segments_S=torch.tensor([99, 99]),
        turns_S=torch.tensor([99, 99]),
    )
    padded = SampledTokens(*(torch.cat([getattr(batch, f.name), getattr(padding, f.name)]) for f in fields(batch)))
    assert float(policy_loss(padded, **slots).loss.detach()) == pytest.approx(
        float(policy_loss(batch, **slots).loss.detach()), abs=1e-14
    )


def test_a_sequence_of_one_token_has_the_token_ratio() -> None:
    batch = random_batch(lengths=[[1], [1], [1]])
    token, sequence = (policy_loss(batch, ratio=ratio) for ratio in ("token", "sequence"))
    assert torch.equal(token.loss, sequence.loss)
    gradients = [torch.autograd.grad(terms.loss, batch.logprobs_S)[0] for terms in (token, sequence)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("loss", ["clip", "cispo"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_on_policy_without_bounds_the_gradient_is_reinforce(loss: str, ratio: str) -> None:
    batch = random_batch()
    batch = replace(batch, logprobs_S=batch.old_logprobs_S.clone().requires_grad_())
    open_loss = policy_loss(batch, loss=loss, ratio=ratio, clip_low=1.0, clip_high=None).loss
    (gradient,) = torch.autograd.grad(open_loss, batch.logprobs_S)
    (reinforce,) = torch.autograd.grad(policy_loss(batch, loss="reinforce").loss, batch.logprobs_S)
    assert torch.allclose(gradient, reinforce, atol=1e-15, rtol=0)
    assert torch.allclose(reinforce, -batch.weights_S * batch.advantages_S, atol=1e-15, rtol=0)


def test_ppo_counts_as_clipped_only_where_the_bound_stops_a_gain() -> None:
    ratio, advantages = f64(1.5, 1.5, 0.5, 0.5, 1.0), f64(1, -1, 1, -1, 1)
    low, high = binding(ratio, advantages, low=0.2, high=0.2)
    assert low.tolist() == [False, False, False, True, False]
    assert high.tolist() == [True, False, False, False, False]
    low, high = Cispo(low=0.2, high=0.2).binds(tokens([0.0] * 5, [1.0] * 5).tokens, ratio)
    assert low.tolist() == [False, False, True, True, False]
    assert high.tolist() == [True, True, False, False, False]


def test_metrics_count_what_they_say() -> None:
    sample = tokens(
        np.log([1.5, 1.5, 0.5, 0.5]).tolist(),
        [1.0, -1.0, 1.0, -1.0],
        behaviour_logprobs_S=torch.linspace(-2.0, -0.5, 4, dtype=torch.float64) + f64(0.1, -0.1, 0.3, -0.3),
        entropy_S=f64(1.0, 2.0, 3.0, 4.0),
    )
    means = policy_loss(sample).means
    assert means["clip_fraction/low"] == means["clip_fraction/high"] == 0.25
    assert means["clip_fraction"] == 0.5
    assert means["ratio/mean"] == pytest.approx(1.0)
    assert policy_loss(sample, mismatch="tis").means["mismatch/correction"] == pytest.approx(
        np.exp([-0.1, 0.1, -0.3, 0.3]).mean()
    )
    assert means["entropy"] == 2.5
    assert means["kl"] == pytest.approx(sum(r - 1 - math.log(r) for r in (1.5, 1.5, 0.5, 0.5)) / 4)
    assert policy_loss(sample, loss="cispo").means["clip_fraction"] == 1.0
    assert policy_loss(sample, loss="reinforce").means["clip_fraction"] == 0.0


@pytest.mark.parametrize(
    ("slots", "missing"),
    [
        ({"ratio": "sequence"}, "segments_S"),
        ({"mismatch": "tis", "mismatch_unit": "sequence"}, "segments_S"),
        ({"mismatch": "tis", "mismatch_unit": "turn_mean"}, "turns_S"),
        ({"mismatch": "tis"}, "behaviour_logprobs_S"),
        ({"kl_coefficient": 0.1}, "ref_logprobs_S"),
    ],
)
def test_a_term_without_its_column_is_refused(slots: dict[str, Any], missing: str) -> None:
    nothing: dict[str, Any] = {missing: None}
    with pytest.raises((KeyError, AssertionError)):
        policy_loss(replace(random_batch(), **nothing), **slots)
