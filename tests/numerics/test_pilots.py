"""Methods as recipes: the worked numbers of their papers through the slots that carry them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agentflow.batch import Batch, Earned, Judged, lay_out
from agentflow.columns import CURRENT, ENTROPY, SAMPLER, START, START_ENTROPY, Columns
from agentflow.errors import ConfigError
from agentflow.maths.units import Floats
from agentflow.messages import Message, Reply, ToolCall
from agentflow.trainers.algorithm import Algorithm, load_recipe
from agentflow.trainers.slots.base import StateTree, Tokens, Value
from agentflow.trainers.slots.records import Found, Now, Seen
from agentflow.trainers.slots.rewards import Majority
from agentflow.trainers.slots.statistic import counts_in, rows_in
from agentflow.trajectory import Group, Task, Turn
from tests.numerics.batches import earned_of, judged_of


def attempt(*rewards: float, success: bool | None = None, tokens: int = 1, seed: int = 0) -> Earned:
    """A trajectory whose turns sampled so many tokens each and earned these rewards."""
    return earned_of([tokens] * len(rewards), rewards, success=success, seed=seed)


def group(*returns: float, task: str = "task", tokens: int = 1) -> Judged:
    """A group of trajectories of one turn."""
    made = judged_of(*(attempt(value, success=value > 0.5, tokens=tokens, seed=i) for i, value in enumerate(returns)))
    return of_task(made, task)


def of_task(judged: Judged, task: str) -> Judged:
    """The same group at another task."""
    earned = tuple(replace(e, trajectory=replace(e.trajectory, task_id=task)) for e in judged.earned)
    return replace(judged, group=Group(Task(task, ""), judged.group.episodes), earned=earned)


def by_trajectory(algorithm: Algorithm, judged: Sequence[Judged], *, state: StateTree | None = None) -> list[float]:
    """The advantage of each trajectory's first token."""
    batch = lay_out(judged)
    values_S = algorithm.advantage(batch, {}, state or {})
    return [float(values_S[batch.trajectory_S == n][0]) for n in range(len(batch.earned))]


def kept(algorithm: Algorithm, judged: Sequence[Judged], *, now: Now | None = None) -> Sequence[Judged]:
    """What an algorithm's `keep` makes of groups."""
    for keep in algorithm.keep:
        judged = keep(judged, lambda each: [algorithm.advantage.credits(m) for m in each.earned], now or Now())
    return judged


def tokens_of(batch: Batch, log_ratios: Floats | float = 0.0, *, entropy: Floats | None = None, **more: Any) -> Tokens:
    """What a loss reads of a batch, in float64, at log-probs that have moved by so much."""
    start = torch.linspace(-2.0, -0.5, batch.turn_S.size, dtype=torch.float64)
    entropies = torch.from_numpy(np.ones(batch.turn_S.size) if entropy is None else np.asarray(entropy))
    columns: Columns = {
        CURRENT: (start + torch.as_tensor(log_ratios, dtype=torch.float64)).requires_grad_(),
        START: start,
        SAMPLER: start,
        START_ENTROPY: entropies,
        ENTROPY: entropies.clone().requires_grad_(),
    }
    return Tokens(
        columns=columns,
        advantages_S=more.get("advantages_S", torch.ones(batch.turn_S.size).double()),
        weights_S=torch.full_like(start, 1 / len(start)),
        returns_S=torch.from_numpy(batch.returns_N[batch.trajectory_S]),
        units={name: torch.from_numpy(batch.unit_S(name)) for name in ("turn", "trajectory", "group")},
    )


def term(algorithm: Algorithm, number: int = 0, **changes: Any) -> Any:
    """One of an algorithm's loss terms, with some options changed."""
    return type(algorithm.loss[number]).model_validate({**algorithm.loss[number].model_dump(), **changes})


def gradient(value: Value, tokens: Tokens) -> Tensor:
    """The coefficient of each token's log-prob."""
    (found,) = torch.autograd.grad(value.loss, tokens[CURRENT], retain_graph=True)
    return found


def test_gdpo_keeps_names_apart() -> None:
    def named(correctness: float, form: float) -> Earned:
        return replace(attempt(0.0, 0.0), terms=({"correctness": correctness}, {"format": form, "unread": math.nan}))

    groups = [judged_of(named(0, 0), named(1, 0)), judged_of(named(0, 0), named(1, 1))]
    recipe = load_recipe("gdpo", {"advantage": {"of": {"epsilon": 0.0}}})
    assert by_trajectory(recipe, groups) == pytest.approx([-0.5477, 0.5477, -1.0954, 1.0954], abs=1e-4)
    weighed = load_recipe("gdpo", {"advantage": {"kind": "decoupled", "weights": {"format": 0.0}, "epsilon": 0.0}})
    assert by_trajectory(weighed, groups) == pytest.approx([-0.7071, 0.7071, -0.7071, 0.7071], abs=1e-4)
    summed = by_trajectory(load_recipe("flow-grpo"), groups)
    assert summed == pytest.approx([-0.7071, 0.7071, -0.7071, 0.7071], abs=1e-4)


def test_gdpo_leaves_groups_whose_sums_are_equal() -> None:
    first, second = (replace(attempt(0.0), terms=({"a": a, "b": b},)) for a, b in ((1.0, 0.0), (0.0, 1.0)))
    (judged,) = kept(load_recipe("gdpo"), [judged_of(first, second)])
    assert judged.kept and judged.cause == "equal_returns"
    tilted = load_recipe("gdpo", {"advantage": {"kind": "decoupled", "weights": {"a": 3.0}}})
    assert by_trajectory(tilted, [judged_of(first, second)]) == pytest.approx([1.4142, -1.4142], abs=1e-3)


def saw(earned: Earned, *observations: str) -> Earned:
    """The same trajectory after these observations."""
    turns: list[Turn] = [
        replace(turn, messages=(Message("tool", text),))
        for turn, text in zip(earned.trajectory.turns, observations, strict=True)
    ]
    return replace(earned, trajectory=replace(earned.trajectory, turns=tuple(turns)))


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("row", [12.333333, 6, -7.166667, -4, -7.166667]),
        ("trajectory", [11.333333, 5, -8.166667, -5, -8.166667]),
    ],
)
def test_we6_gigpo(unit: str, expected: list[float]) -> None:
    first, second = saw(attempt(0, 10), "s0", "s1"), saw(attempt(0, 0, 0), "s0", "s2", "s0")
    recipe = load_recipe(
        "gigpo",
        {"advantage": {"of": {"group_relative": {"unit": unit, "scale": "none"}, "anchored": {"scale": "none"}}}},
    )
    batch = lay_out([judged_of(first, second)])
    np.testing.assert_allclose(recipe.advantage(batch, {}, {}), expected, atol=1e-6)
    # The same observation of another task is another anchor.
    apart = recipe.advantage(lay_out([judged_of(first), judged_of(second)]), {}, {})
    np.testing.assert_allclose(apart[:2], 0)


def test_sums_need_a_weight_for_each() -> None:
    with pytest.raises(ConfigError, match="2 advantages need as many weights, not 1"):
        load_recipe("gigpo", {"advantage": {"weights": [1.0]}})


def test_ngrpo_teaches_failures_and_leaves_out_what_is_mastered() -> None:
    recipe = load_recipe("ngrpo")
    one = by_trajectory(recipe, [group(1, *[0] * 7)])
    assert one == pytest.approx([1.7638, *[-0.5040] * 7], abs=1e-4)
    assert by_trajectory(recipe, [group(*[0] * 8)]) == pytest.approx([-0.3333] * 8, abs=1e-4)
    found = kept(recipe, [group(0, 0), group(1, 1), group(1, 0), judged_of()])
    assert [(each.kept, each.cause) for each in found] == [
        (True, ""),
        (False, "all_solved"),
        (True, ""),
        (False, "too_few"),
    ]


def test_spo_compares_with_what_a_task_used_to_yield() -> None:
    recipe = load_recipe("spo", {"statistics": {"tasks": {"half": 0.01}}})
    rates = {"a": 0.25, "b": 0.5, "c": 0.9, "d": 0.05}
    rows = {
        task: {"alpha": 8 * v, "beta": 8 * (1 - v), "played": 3, "attempts": 8, "level": 0, "rewards": [], "last": ""}
        for task, v in rates.items()
    }
    state: StateTree = {"statistics.0": {"rows": rows, "idle": 1.0, "iteration": 4}}
    groups = [group(value, task=task) for task, value in zip("abcd", [1, 0, 1, 0], strict=True)]
    expected = [1.305094, -1.111747, 0.048337, -0.241684]
    assert by_trajectory(recipe, groups, state=state) == pytest.approx(expected, abs=1e-6)
    plain = load_recipe("spo", {"advantage": {"whiten": False}})
    assert by_trajectory(plain, [*groups, group(1, task="new")], state=state) == pytest.approx(
        [0.75, -0.5, 0.1, -0.05, 0.5]
    )
    # The table learns afterwards, and forgets as little as it may: 0.875.
    after = recipe.observe(state, Seen(Now(iteration=4), Found(tuple(groups)), {}))
    counts = counts_in(rows_in(after), ["a", "new"])
    np.testing.assert_allclose(counts.alpha_Q, [0.875 * 2 + 1, 0])
    np.testing.assert_allclose(counts.beta_Q, [0.875 * 6, 0])


def test_what_reads_the_table_is_refused_without_one() -> None:
    for name in ("spo", "vade"):
        with pytest.raises(ConfigError, match=r"reads what is remembered: add statistics: \[{kind: tasks}\]"):
            load_recipe(name, {"statistics": []})


def test_vade_poses_what_promises_most_and_decays_what_it_knows() -> None:
    recipe = load_recipe("vade")
    state = recipe.initial()
    pool = [Task(f"t{i}", "") for i in range(6)]
    groups = [group(*[1.0] * 3, *[0.0] * 5, task="t1"), *(group(*[1.0] * 8, task=f"t{i}") for i in (0, 2, 3, 4, 5))]
    for iteration in range(1, 60):
        state = recipe.observe(state, Seen(Now(iteration=iteration), Found(tuple(groups)), {}))
    counts = counts_in(rows_in(state), ["t1", "t0"])
    # An always selected task holds G / (1 - keep) attempts.
    np.testing.assert_allclose(counts.sizes_Q, 10)
    np.testing.assert_allclose(counts.means_Q, [3 / 8, 1])
    options: dict[str, Any] = {"want": 3, "size": 8, "found": Found()}
    draws = [recipe.sampler.draw(pool, state, number=0, now=Now(iteration=i, seed=1), **options) for i in range(200)]
    first = [each[0].task.id for each in draws]
    assert first.count("t1") > 120 and all(len({d.task.id for d in each}) == 3 for each in draws)
    assert draws[5] == recipe.sampler.draw(pool, state, number=0, now=Now(iteration=5, seed=1), **options)
    assert recipe.sampler.draw(pool, state, number=1, now=Now(), **options) == ()
    more = recipe.sampler.draw(pool, state, number=0, now=Now(), want=8, size=2, found=Found())
    assert len(more) == 8 and {d.task.id for d in more[:6]} == {t.id for t in pool} and more[0].count == 2


def test_spo_draws_what_is_uncertain_more_often() -> None:
    recipe = load_recipe("spo")
    rates = {"a": 0.25, "b": 0.5, "c": 0.9, "d": 0.05}
    rows = {
        task: {"alpha": 8 * v, "beta": 8 * (1 - v), "played": 1, "attempts": 8, "level": 0, "rewards": [], "last": ""}
        for task, v in rates.items()
    }
    state: StateTree = {"statistics.0": {"rows": rows, "idle": 1.0, "iteration": 2}}
    pool = [Task(task, "") for task in rates]
    drawn = [
        recipe.sampler.draw(pool, state, want=1, size=1, number=0, found=Found(), now=Now(iteration=i))[0].task.id
        for i in range(4000)
    ]
    shares = [drawn.count(task) / 4000 for task in rates]
    assert shares == pytest.approx([0.292565, 0.333140, 0.211998, 0.162297], abs=0.03)


def test_vspo_style_gives_freed_places_to_the_most_valuable() -> None:
    recipe = load_recipe("vspo-style")
    dull = [group(*[0.0] * 5, task=f"dull{i}") for i in range(300)]
    judged = [group(1, 0, 0, 0, 0, task="x"), *dull, group(1, 1, 1, 1, 0, task="y")]
    found = kept(recipe, judged, now=Now(seed=3))
    assert [each.kept for each in found] == [True, *[False] * 300, True]
    assert sum(each.times for each in found if each.kept) == 302
    # Values of 0.32 and 0.08.
    assert found[0].times / 302 == pytest.approx(0.8, abs=0.06)
    assert kept(recipe, judged, now=Now(seed=3)) == found
    nothing = kept(recipe, dull[:3])
    assert not any(each.kept for each in nothing) and {each.times for each in nothing} == {1}
    # A group that stands for three is damped to the weight of one, and counts three times.
    twice = [replace(group(1, 0), times=3), group(1, 0)]
    assert by_trajectory(recipe, twice) == pytest.approx([0.2357, -0.2357, 0.7071, -0.7071], abs=1e-4)
    weights_S = recipe.weights(lay_out(twice), {})
    np.testing.assert_allclose(weights_S, [3 / 8, 3 / 8, 1 / 8, 1 / 8])


@pytest.mark.parametrize(("advantage", "solved", "expected"), [(0.5, 4, 0.36932), (-2, 4, 0.44460), (2, 1, 0.36124)])
def test_etr_style_bounds_depend_on_advantage_and_group(advantage: float, solved: int, expected: float) -> None:
    batch = lay_out([group(*[1.0] * 8), group(*[1.0] * solved, *[0.0] * (8 - solved), tokens=3)])
    elastic = term(load_recipe("etr-style"))
    tokens = tokens_of(batch, advantages_S=torch.full((32,), advantage, dtype=torch.float64))
    low_S, high_S = elastic.bounds(tokens)
    torch.testing.assert_close(low_S, high_S)
    assert low_S[8:].tolist() == pytest.approx([expected] * 24, abs=1e-5)
    # The other group has no spread: the advantage alone widens.
    assert low_S[:8].tolist() == pytest.approx([0.2 * (1 + 0.5 * math.tanh(abs(advantage)))] * 8)
    narrow = term(load_recipe("etr-style"), rescale=True).bounds(tokens)[0]
    torch.testing.assert_close(narrow, low_S / 2.25)


def test_etr_style_without_elasticity_is_the_clipped_loss() -> None:
    batch = lay_out([group(1, 0, 1, 0, tokens=2)])
    ratios = np.linspace(-0.5, 0.5, 8)
    advantages = torch.tensor([1, -1, 1, -1, -1, 1, -1, 1]).double()
    tokens = tokens_of(batch, ratios, advantages_S=advantages)
    plain = term(load_recipe("dapo"), low=0.2, high=0.2)(tokens)
    elastic = term(load_recipe("etr-style"), micro=0.0, macro=0.0)(tokens)
    torch.testing.assert_close(elastic.loss, plain.loss)
    torch.testing.assert_close(gradient(elastic, tokens), gradient(plain, tokens))
    assert {name: float(x) for name, x in elastic.sums.items()} == {name: float(x) for name, x in plain.sums.items()}


RATIOS = np.log([1.5, 0.9, 1.0])


@pytest.mark.parametrize(("share", "expected"), [("even", [1.125, 0.975, 1.025]), ("entropy", [1.05, 0.90, 1.025])])
def test_dhpo_mixes_ratios(share: str, expected: list[float]) -> None:
    regions = [{"unit": "token", "low": 0.2, "high": 0.2}, {"unit": "trajectory", "low": 0.05, "high": 0.05}]
    mixed = term(load_recipe("dhpo"), ratios=regions, share=share)
    batch = lay_out([judged_of(earned_of([3], [1.0]))])
    tokens = tokens_of(batch, RATIOS, entropy=np.array([0.2, 1.2, 0.7]))
    assert -3 * mixed(tokens).loss.item() == pytest.approx(sum(expected))
    assert mixed.needs == (frozenset({START_ENTROPY}) if share == "entropy" else frozenset())
    # The first token is past both bounds, the others only past the trajectory's.
    assert float(mixed(tokens).sums["clip_fraction/high"]) == 1


def test_dhpo_refuses_two_ratios_of_one_unit() -> None:
    with pytest.raises(ConfigError, match="a unit of its own"):
        load_recipe("dhpo", {"loss": [{"kind": "mixed", "ratios": [{"unit": "token", "low": 0.1, "high": 0.1}] * 2}]})


@pytest.mark.parametrize(
    ("tau", "value", "weights"),
    [(10.0, 0.099500, [0.5050, 0.4950]), (1.0, 0.095008, [0.5498, 0.4502]), (None, 0.1, [0.5, 0.5])],
)
def test_disco_worked_example(tau: float | None, value: float, weights: list[float]) -> None:
    batch = lay_out([group(1, 1, 0, 0, tokens=2), group(1, 1)])
    means = torch.tensor([-0.2, -0.4, -0.3, -0.5, -9, -9]).double()
    tokens = tokens_of(batch)
    tokens.columns[CURRENT].data.copy_(means[tokens.units["trajectory"]])
    found = term(load_recipe("disco"), tau=tau)(tokens)
    # The group of one outcome is divided by and adds nothing; each score is shared by two tokens.
    assert -found.loss.item() == pytest.approx(value / 2, abs=1e-6)
    expected = [-0.5, -0.5, *weights, 0, 0]
    shared = torch.tensor(expected).double()[tokens.units["trajectory"]] / 4
    torch.testing.assert_close(gradient(found, tokens)[:8], shared[:8], rtol=0, atol=2e-5)
    assert not gradient(found, tokens)[8:].any()


def test_disco_by_ratios_and_its_hinge() -> None:
    batch = lay_out([group(1, 0)])
    tokens = tokens_of(batch, np.log([1.2, 0.9]))
    assert -term(load_recipe("disco"), score="mean_ratio", tau=1.0)(tokens).loss.item() == pytest.approx(0.3)
    away = tokens_of(batch, -3e-4)
    hinge = load_recipe("disco").loss[1]
    assert hinge(away).loss.item() == pytest.approx(4e-5)
    assert gradient(hinge(away), away).tolist() == pytest.approx([-0.2, -0.2])
    half = term(load_recipe("disco"), 1, half=True)
    assert gradient(half(away), away).tolist() == pytest.approx([-0.1, -0.1])


ENTROPIES = np.array([0.10, 0.20, 0.05, 2.00, 0.30, 1.20, 0.15, 0.80, 0.02, 0.40])


def test_spine_credits_forks_and_keeps_their_entropy_in_a_band() -> None:
    recipe = load_recipe("spine")
    batch = lay_out([judged_of(*(earned_of([10], [value], seed=i) for i, value in enumerate((1, 1, 1, 0))))])
    columns = {START_ENTROPY: torch.from_numpy(np.tile(ENTROPIES, 4))}
    advantages = recipe.advantage(batch, columns, {}).reshape(4, 10)
    forks = [3, 5]
    np.testing.assert_allclose(advantages[:, forks], np.outer([0.5774, 0.5774, 0.5774, -1.7321], [1, 1]), atol=1e-4)
    assert not np.delete(advantages, forks, axis=1).any()
    np.testing.assert_allclose(recipe.weights(batch, columns), 1 / 40)
    tokens = tokens_of(batch, entropy=np.tile(ENTROPIES, 4))
    band = term(recipe, 1, below=3.0, above=7.0)(tokens)
    # Four times one fork 0.4 above the band, over all forty tokens.
    assert band.loss.item() == pytest.approx(4 * 7 * 0.4 / 40)
    assert {name: float(total) for name, total in band.sums.items()} == {
        "forks/share": 8,
        "forks/below": 0,
        "forks/above": 4,
    }
    first = term(recipe, 1, below=3.0, above=7.0, band="quantiles", forks={"by": "share", "share": 0.2})(tokens)
    assert first.loss.item() == pytest.approx(4 * (3 * 0.08 + 7 * 0.40) / 40)
    (slope,) = torch.autograd.grad(first.loss, tokens[ENTROPY])
    assert slope[:10].nonzero().flatten().tolist() == forks and slope[3] > 0 > slope[5]


def said(text: str, error: str = "", *calls: ToolCall) -> Earned:
    """An attempt that ended with these words."""
    earned = attempt(0.0, 5.0)
    last = replace(earned.trajectory.turns[-1], reply=Reply(Message("assistant", text, tool_calls=calls), error))
    return replace(earned, trajectory=replace(earned.trajectory, turns=(earned.trajectory.turns[0], last)))


def test_spine_votes_over_last_replies() -> None:
    call = ToolCall("answer", {"text": "Paris", "sure": True})
    same = ToolCall("answer", {"sure": True, "text": "Paris"})
    other = ToolCall("answer", {"text": "Rome", "sure": True})
    (words,) = Majority()(
        [judged_of(said("The Paris."), said("paris"), said("Rome"), said("paris", "unclosed"))], Now()
    )
    assert [member.rewards_K.tolist() for member in words.earned] == [[0, 1], [0, 1], [0, 0], [0, 0]]
    (calls,) = Majority()([judged_of(said("so", "", call), said("", "", same), said("", "", other))], Now())
    assert [dict(member.terms[-1]) for member in calls.earned] == [{"majority": 1}, {"majority": 1}, {"majority": 0}]
    (mute,) = Majority()([judged_of(said("", "unclosed"), said("!", "unclosed"))], Now())
    assert [member.rewards_K.sum() for member in mute.earned] == [0, 0]


@pytest.mark.parametrize(("name", "number"), [("etr-style", 0), ("dhpo", 0), ("disco", 0), ("disco", 1), ("spine", 1)])
def test_coefficients_equal_finite_differences(name: str, number: int) -> None:
    recipe = load_recipe(name)
    loss = recipe.loss[number]
    if name == "dhpo":
        regions = [{"unit": "token", "low": 0.2, "high": 0.2}, {"unit": "trajectory", "low": 0.5, "high": 0.5}]
        loss = term(recipe, ratios=regions, share="entropy")
    rng = np.random.default_rng(0)
    batch = lay_out([group(1, 0, 1, tokens=3), group(0, 1, tokens=2)])
    each = rng.normal(size=5)
    tokens = tokens_of(
        batch,
        rng.normal(scale=0.1, size=13) - 0.1,
        entropy=rng.random(13) * 2,
        advantages_S=torch.from_numpy(each[batch.trajectory_S]),
    )

    def at(current: Tensor, entropy: Tensor) -> Tensor:
        moved = {**tokens.columns, CURRENT: current, ENTROPY: entropy}
        return loss(replace(tokens, columns=moved)).loss

    inputs = (tokens[CURRENT], tokens[ENTROPY])
    found = torch.autograd.grad(at(*inputs), inputs, allow_unused=True)
    for which, slope in enumerate(found):
        for index in range(13):
            step = torch.zeros(13, dtype=torch.float64)
            step[index] = 1e-6
            up, down = ([x.detach() + sign * step * (i == which) for i, x in enumerate(inputs)] for sign in (1, -1))
            numeric = float(at(*up) - at(*down)) / 2e-6
            assert (0.0 if slope is None else float(slope[index])) == pytest.approx(numeric, abs=1e-7)
