"""What every kind of slot keeps.

It reads back from YAML, is frozen and deterministic, finite whatever happened, and blind to the order of groups; the
coefficients of a loss term are its derivatives.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from agentflow.batch import Batch, Judged, lay_out
from agentflow.columns import CURRENT, ENTROPY, REFERENCE, SAMPLER, START, START_ENTROPY, Columns
from agentflow.trainers.algorithm import Algorithm
from agentflow.trainers.slots.base import FAMILIES, Advantage, LossTerm, Slot, StateTree, Tokens
from agentflow.trainers.slots.records import Now
from agentflow.trainers.slots.statistic import Tasks
from tests.numerics.batches import earned_of, judged_of

NEEDED: dict[str, dict[str, Any]] = {
    "rewards/overlong": {"max_tokens": 20, "buffer_tokens": 10},
    "schedules/ramp": {"start": 1.0, "end": 0.0},
    "advantages/decoupled": {"weights": {"outcome": 1.0}},
    "advantages/restricted": {"to": {"kind": "forks"}},
}
"""Options without a default."""
OWN_TOKEN_ONLY = {"cispo", "mixed"}
"""Their gradient is defined, not derived: a coefficient held fixed, a shared ratio through a token's own log-prob."""

KINDS = [f"{name}/{kind}" for name, family in FAMILIES.items() for kind in sorted(family.table)]


def slot_of(name: str) -> Any:
    family, _, kind = name.partition("/")
    return FAMILIES[family].find(kind).model_validate({"kind": kind, **NEEDED.get(name, {})})


def of(family: str) -> list[str]:
    return [name for name in KINDS if name.startswith(f"{family}/")]


@pytest.mark.parametrize("name", KINDS)
def test_it_reads_back_from_yaml_is_frozen_and_documented(name: str) -> None:
    slot = slot_of(name)
    stored = yaml.safe_load(yaml.safe_dump(slot.model_dump(mode="json")))
    assert type(slot).model_validate(stored) == slot
    assert type(slot).__doc__
    assert all(field.description for option, field in type(slot).model_fields.items() if option != "kind")
    with pytest.raises(ValidationError):
        slot.kind = "other"


def attempts(*returns: float, lengths: Sequence[Sequence[int]] = ((2, 3), (4,), (1, 2), (3,)), seed: int = 0) -> Judged:
    return judged_of(
        *(
            earned_of(turns, [0.0] * (len(turns) - 1) + [value], success=value > 0.5, name=f"{seed}.{k}", seed=seed + k)
            for k, (turns, value) in enumerate(zip(lengths, returns, strict=False))
        )
    )


CASES: dict[str, list[Judged]] = {
    "mixed": [attempts(1, 0, 0, 1), attempts(0, 1, 0, 0, seed=7), attempts(0.2, 0.9, 0.4, 0.1, seed=9)],
    "singleton": [attempts(1.0)],
    "all equal": [attempts(1, 1, 1, 1)],
    "all failed": [attempts(0, 0, 0, 0)],
    "empty": [],
}


def columns_of(batch: Batch, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Columns:
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return (scale * torch.randn(batch.turn_S.size, generator=generator, dtype=torch.float64)).to(dtype)

    start = -noise(1.0).abs() - 0.2
    return {
        START: start,
        CURRENT: (start + noise(0.3)).requires_grad_(),
        SAMPLER: start + noise(0.2),
        REFERENCE: start + noise(0.2),
        ENTROPY: (noise(1.0).abs() + 0.1).requires_grad_(),
        START_ENTROPY: noise(1.0).abs() + 0.1,
    }


def state() -> StateTree:
    return {"statistics.0": Tasks().initial()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", of("advantages"))
def test_advantages_are_finite_and_repeat(name: str, case: str) -> None:
    advantage: Advantage = slot_of(name)
    batch = lay_out(CASES[case])
    found = [advantage(batch, columns_of(batch), state()) for _ in range(2)]
    assert found[0].shape == (batch.turn_S.size,) and found[0].dtype == np.float64
    assert np.isfinite(found[0]).all()
    assert np.array_equal(found[0], found[1])
    assert all(len(advantage.credits(member)) == len(member.terms) for member in batch.earned)


@pytest.mark.parametrize("name", of("advantages"))
def test_advantages_do_not_depend_on_the_order_of_groups(name: str) -> None:
    advantage: Advantage = slot_of(name)
    batch, turned = lay_out(CASES["mixed"]), lay_out(CASES["mixed"][::-1])
    by_id = [by_trajectory(b, advantage(b, columns_of(b), state())) for b in (batch, turned)]
    if any(slot.needs for slot in (advantage, *(part for _, part in advantage.parts())) if hasattr(slot, "needs")):
        return  # what it reads of a model is drawn anew for another order
    for name_, values in by_id[0].items():
        assert values == pytest.approx(by_id[1][name_], abs=1e-9), name_


def by_trajectory(batch: Batch, values_S: np.ndarray[Any, Any]) -> dict[str, list[float]]:
    return {t.id: values_S[batch.trajectory_S == n].tolist() for n, t in enumerate(batch.trajectories)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", of("weights"))
def test_weights_are_finite_and_not_negative(name: str, case: str) -> None:
    batch = lay_out(CASES[case])
    found = slot_of(name)(batch, columns_of(batch))
    assert found.shape == (batch.turn_S.size,)
    assert np.isfinite(found).all() and (found >= 0).all()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", of("masks"))
def test_masks_are_factors(name: str, case: str) -> None:
    batch = lay_out(CASES[case])
    found = slot_of(name)(batch, columns_of(batch))
    assert found.shape == (batch.turn_S.size,)
    assert np.isfinite(found).all() and (found >= 0).all()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", of("rewards"))
def test_rewards_change_terms_and_nothing_else(name: str, case: str) -> None:
    judged = CASES[case]
    found = [list(slot_of(name)(judged, Now())) for _ in range(2)]
    assert found[0] == found[1]
    assert [each.group for each in found[0]] == [each.group for each in judged]
    assert all(np.isfinite(member.rewards_K).all() for each in found[0] for member in each.earned)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", of("keeps"))
def test_keeps_mark_and_drop_nothing(name: str, case: str) -> None:
    judged, advantage = CASES[case], Algorithm().advantage
    found = list(slot_of(name)(judged, lambda each: [advantage.credits(m) for m in each.earned], Now()))
    assert [each.group for each in found] == [each.group for each in judged]
    assert all(each.kept or each.cause for each in found)
    assert all(each.times >= 0 for each in found)


def tokens_of(batch: Batch, columns: Columns) -> Tokens:
    advantages_S = torch.from_numpy(Algorithm().advantage(batch, {}, {}))
    return Tokens(
        columns=columns,
        advantages_S=advantages_S,
        weights_S=torch.from_numpy(Algorithm().weights(batch, {})),
        returns_S=torch.from_numpy(batch.returns_N[batch.trajectory_S]),
        units={name: torch.from_numpy(batch.unit_S(name)) for name in ("turn", "trajectory", "group")},
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", of("losses"))
def test_losses_are_finite_with_finite_gradients(name: str, case: str) -> None:
    term: LossTerm = slot_of(name)
    batch = lay_out(CASES[case])
    tokens = tokens_of(batch, columns_of(batch))
    value = term(tokens)
    assert torch.isfinite(value.loss)
    assert all(torch.isfinite(total) for total in value.sums.values())
    if value.loss.requires_grad:
        found = torch.autograd.grad(value.loss, [tokens[CURRENT], tokens[ENTROPY]], allow_unused=True)
        assert all(torch.isfinite(gradient).all() for gradient in found if gradient is not None)


@pytest.mark.parametrize("name", [name for name in of("losses") if name.partition("/")[2] not in OWN_TOKEN_ONLY])
def test_the_coefficients_of_a_loss_are_its_derivatives(name: str) -> None:
    term: LossTerm = slot_of(name)
    batch = lay_out(CASES["mixed"])
    tokens, step = tokens_of(batch, columns_of(batch, seed=3)), 1e-6
    leaves = (CURRENT, ENTROPY)
    found = torch.autograd.grad(term(tokens).loss, [tokens[leaf] for leaf in leaves], allow_unused=True)
    for leaf, gradient in zip(leaves, found, strict=True):
        for s in range(0, batch.turn_S.size, 3):
            offset = torch.zeros(batch.turn_S.size, dtype=torch.float64)
            offset[s] = step
            moved = [
                float(term(replace(tokens, columns={**tokens.columns, leaf: tokens[leaf].detach() + o})).loss.detach())
                for o in (offset, -offset)
            ]
            derivative = (moved[0] - moved[1]) / (2 * step)
            expected = 0.0 if gradient is None else float(gradient[s])
            assert expected == pytest.approx(derivative, abs=1e-6), (leaf, s)


def test_every_family_has_a_kind_and_every_kind_is_a_slot() -> None:
    assert all(of(family) for family in FAMILIES)
    assert all(isinstance(slot_of(name), Slot) for name in KINDS)
