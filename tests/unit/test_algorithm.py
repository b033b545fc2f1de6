"""Algorithms as values: recipes, what they compute on worked groups, and what is refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentflow.batch import Judged, lay_out
from agentflow.columns import CURRENT, ENTROPY, REFERENCE, SAMPLER, START
from agentflow.config import to_yaml
from agentflow.errors import ConfigError
from agentflow.maths.units import Floats
from agentflow.rewards import load_shaping
from agentflow.trainers.algorithm import Algorithm, check_fit, list_recipes, load_recipe
from agentflow.trainers.judging import pay_kept
from agentflow.trainers.settings import TrainConfig
from agentflow.trainers.slots.base import Tokens
from agentflow.trainers.slots.records import Now
from tests.numerics.batches import batch_of, earned_of, judged_of

TOKENS = [(2, 4, 2), (4,), (2, 2), (4, 4)]


def group(*returns: float, success: bool | None = None) -> Judged:
    """A group with the turns of WE-1, each return paid in the last turn."""
    return judged_of(
        *(
            earned_of(counts, [0.0] * (len(counts) - 1) + [value], success=success)
            for value, counts in zip(returns, TOKENS, strict=False)
        )
    )


def advantages(groups: Sequence[Judged], algorithm: Algorithm) -> Floats:
    return algorithm.advantage(lay_out(pay_kept(groups, algorithm, now=Now())), {}, {})


def firsts(groups: Sequence[Judged], algorithm: Algorithm) -> list[float]:
    """The advantage of each trajectory's first token."""
    values_S, trajectory_S = advantages(groups, algorithm), lay_out(groups).trajectory_S
    return [float(values_S[trajectory_S == n][0]) for n in range(int(trajectory_S.max()) + 1)]


def cause(judged: Judged, algorithm: Algorithm) -> str:
    """Why a group teaches nothing."""
    marked = judged
    for keep in algorithm.keep:
        (marked,) = keep([marked], lambda each: [algorithm.advantage.credits(m) for m in each.earned], Now())
    assert marked.kept == (not marked.cause)
    return marked.cause


def test_the_recipes() -> None:
    assert {"dapo", "dr-grpo", "flow-grpo", "grpo", "reinforce++", "rloo"} <= set(list_recipes())
    assert load_recipe("flow-grpo") == Algorithm()


@pytest.mark.parametrize("name", list_recipes())
def test_a_stored_algorithm_reads_back_as_itself(name: str) -> None:
    algorithm = load_recipe(name)
    assert Algorithm.model_validate(algorithm.model_dump(mode="json")) == algorithm
    assert "advantage" in to_yaml(algorithm)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("flow-grpo", [0.866025, -0.866025, -0.866025, 0.866025]),
        ("grpo", [0.866025, -0.866025, -0.866025, 0.866025]),
        ("dapo", [0.866025, -0.866025, -0.866025, 0.866025]),
        ("dr-grpo", [0.5, -0.5, -0.5, 0.5]),
        ("rloo", [0.666667, -0.666667, -0.666667, 0.666667]),
    ],
)
def test_advantages_of_each_group_recipe(name: str, expected: list[float]) -> None:
    result = advantages([group(1, 0, 0, 1)], load_recipe(name))
    assert result == pytest.approx(np.repeat(expected, [8, 4, 4, 8]), abs=2e-6)


def test_rows_differ_from_trajectories() -> None:
    algorithm = load_recipe("flow-grpo", {"advantage": {"unit": "row"}})
    assert firsts([group(1, 0, 0, 1)], algorithm) == pytest.approx([0.724569, -1.207615, -1.207615, 0.724569], abs=1e-5)


def test_reinforce_plus_plus_whitens_over_tokens_of_the_whole_batch() -> None:
    result = advantages([group(1, 0), group(0, 1)], load_recipe("reinforce++"))
    values = np.repeat([1, 0, 0, 1], [8, 4, 8, 4])
    assert result == pytest.approx((values - values.mean()) / values.std(ddof=1), abs=1e-6)


def test_we13_reinforce_plus_plus_with_baseline() -> None:
    changes = {"advantage": {"unit": "trajectory", "of": {"baseline": "mean", "credit": "trajectory"}}}
    groups = [group(1, 0, 0, 1), group(1, 1, 1, 0)]
    assert firsts(groups, load_recipe("reinforce++", changes)) == pytest.approx(
        [1, -1, -1, 1, 0.5, 0.5, 0.5, -1.5], abs=1e-6
    )


def test_returns_to_go_credit_each_turn_with_what_follows() -> None:
    changes = {"advantage": {"credit": "return_to_go", "gamma": 0.5, "baseline": "none", "scale": "none"}}
    result = advantages([judged_of(earned_of([1, 1, 1], [1.0, 0.0, 4.0]))], load_recipe("flow-grpo", changes))
    assert result.tolist() == [2.0, 2.0, 4.0]


def test_the_return_is_the_sum_of_shaped_turn_rewards() -> None:
    spread, lump = earned_of([1, 1, 1], [0.25, 0.5, 0.25]), earned_of([1], [1.0])
    assert firsts([judged_of(spread, lump)], load_recipe("dr-grpo")) == [0.0, 0.0]


def test_groups_do_not_see_each_other_and_order_does_not_matter() -> None:
    algorithm = load_recipe("flow-grpo")
    one, other = group(1, 0, 0, 1), group(3, 1)
    assert firsts([one, other], algorithm) == firsts([one], algorithm) + firsts([other], algorithm)
    turned = judged_of(*one.earned[::-1])
    assert firsts([turned], algorithm) == firsts([one], algorithm)[::-1]


@pytest.mark.parametrize(
    ("returns", "success", "expected"),
    [
        ((1, 0, 0, 1), None, ""),
        ((1, 1, 1, 1), True, "all_solved"),
        ((0, 0, 0, 0), False, "none_solved"),
        ((2, 2), None, "equal_returns"),
        ((0.3, 0.1 + 0.2), False, "none_solved"),
        ((0.0, 0.1), False, ""),
        ((1,), True, "too_few"),
        ((), None, "too_few"),
    ],
)
def test_degenerate_causes(returns: tuple[float, ...], success: bool | None, expected: str) -> None:
    assert cause(group(*returns, success=success), load_recipe("flow-grpo")) == expected


def test_without_a_comparison_no_group_is_degenerate() -> None:
    assert cause(group(1), load_recipe("reinforce++")) == ""


def test_groups_that_are_only_counted_are_kept() -> None:
    (keep,) = load_recipe("grpo").keep
    (marked,) = keep([group(1, 1)], lambda each: [np.ones(1), np.ones(1)], Now())
    assert (marked.cause, marked.kept) == ("equal_returns", True)


def test_a_singleton_is_zero_by_default_and_raw_on_request() -> None:
    assert firsts([group(1)], load_recipe("flow-grpo")) == [0.0]
    assert firsts([group(1)], load_recipe("flow-grpo", {"advantage": {"singleton": "raw"}})) == [1.0]


def test_the_overlong_penalty_lowers_the_return_but_rescues_no_group() -> None:
    changes = {"rewards": {"overlong": {"max_tokens": 8, "buffer_tokens": 4}}, "advantage": {"scale": "none"}}
    algorithm = load_recipe("dapo", changes)
    # 8, 4, 4 and 8 tokens: penalties -1, 0, 0, -1
    assert firsts([group(1, 1, 1, 1)], algorithm) == [-0.5, 0.5, 0.5, -0.5]
    assert cause(group(1, 1, 1, 1, success=True), algorithm) == "all_solved"


def test_weights_use_the_denominator_of_the_recipe() -> None:
    batch = batch_of(*TOKENS)
    expected = {"flow-grpo": 1 / 48, "dapo": 1 / 24, "rloo": 1 / (4 * 512)}
    for name, weight in expected.items():
        assert load_recipe(name).weights(batch, {})[2] == pytest.approx(weight)


def test_a_group_that_counts_twice_weighs_twice_and_the_sum_stays() -> None:
    batch = lay_out([group(1, 0), replace(group(0, 1), times=3)])
    weights = load_recipe("flow-grpo").weights(batch, {})
    by_group = [weights[batch.group_S == g].sum() for g in (0, 1)]
    assert by_group == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(("high", "expected"), [(0.3, 1.3), (None, 1.5)])
def test_the_upper_bound_reaches_the_loss(high: float | None, expected: float) -> None:
    (term,) = load_recipe("flow-grpo", {"loss": {"clipped": {"high": high}}}).loss
    one = torch.ones(1, dtype=torch.float64)
    tokens = Tokens({CURRENT: np.log(1.5) * one, START: 0 * one, SAMPLER: 0 * one}, one, one, one, {})
    assert float(term(tokens).loss) == pytest.approx(-expected)


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({"clipped": {"unit": "trajectory"}}, {}),
        ({"clipped": {"low": 0.1}}, {}),
        ({"clipped": {"high": 0.2}}, {}),
        ({"clipped": {"dual": 1.5}}, {}),
        ({"clipped": {"correction": {"kind": "tis"}}}, {}),
        ({"clipped": {"correction": {"kind": "tis", "high": 1.5}}}, {"clipped": {"correction": {"kind": "tis"}}}),
        ({"clipped": {"correction": {"kind": "icepop", "low": 0.2}}}, {"clipped": {"correction": {"kind": "icepop"}}}),
        (
            {"clipped": {"correction": {"kind": "icepop", "unit": "turn"}}},
            {"clipped": {"correction": {"kind": "icepop"}}},
        ),
        ({"kl": {"coefficient": 0.1}}, {}),
        ({"kl": {"coefficient": 0.1, "estimator": "k1"}}, {"kl": {"coefficient": 0.1}}),
        ({"entropy": {"coefficient": 0.1}}, {}),
        ({"likelihood": {"coefficient": 0.1}}, {}),
        ([{"kind": "cispo"}], {}),
    ],
    ids=str,
)
def test_every_option_reaches_the_loss(changes: Any, without: Any) -> None:
    start, change = torch.full((4,), -1.0, dtype=torch.float64), torch.tensor([0.6, -0.5, 0.7, -0.3]).double()
    tokens = Tokens(
        {
            CURRENT: start + change,
            START: start,
            SAMPLER: start - torch.tensor([1.0, 0.5, -0.2, -1.2]).double(),
            REFERENCE: start + 0.3,
            ENTROPY: torch.ones_like(start),
        },
        torch.tensor([1.0, -1.0, -1.0, 1.0]).double(),
        torch.full_like(start, 0.25),
        torch.zeros_like(start),
        {"turn": torch.tensor([0, 0, 1, 2]), "trajectory": torch.tensor([0, 0, 1, 1])},
    )

    def loss(overrides: Any) -> float:
        return sum(float(term(tokens).loss) for term in load_recipe("flow-grpo", {"loss": overrides}).loss)

    assert loss(changes) != loss(without), f"{changes} changes nothing"


def test_what_the_engine_must_provide() -> None:
    assert REFERENCE in load_recipe("grpo").needs
    assert not load_recipe("flow-grpo").needs | load_recipe("flow-grpo").needs_before
    masked = load_recipe("flow-grpo", {"weights": {"masks": {"mismatched": {}}}})
    assert masked.needs_before == {START, SAMPLER}
    assert load_recipe("flow-grpo").needs_in(0) == set() and load_recipe("flow-grpo").needs_in(1) == {START}


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("flowgrpo", {}, "no algorithm 'flowgrpo'.*Did you mean 'flow-grpo'"),
        ("dapo", {"loss": {"clipped": {"hgh": 0.3}}}, "clipped has no option 'hgh'.*Did you mean 'high'"),
        ("dapo", {"loss": {"clipped": {"low": 1.5}}}, "low.*<= 1"),
        ("dapo", {"loss": {"clippd": {}}}, "no loss 'clippd'. Did you mean 'clipped'"),
        ("dapo", {"loss": []}, "at least one term"),
        ("dapo", {"weights": {"tokens": 3}}, "token has no option 'tokens'"),
        ("dapo", {"rewards": {"overlong": {"max_tokens": 100}}}, "must not exceed"),
        ("dapo", {"rewards": {"overlong": {"buffer_tokens": 100}}}, "needs a value for 'rewards.0.max_tokens'"),
        ("rloo", {"loss": {"reinforce": {"high": 0.3}}}, "reinforce has no option 'high'"),
        ("dapo", {"loss": [{"kind": "cispo", "dual": 3}]}, "cispo has no option 'dual'"),
        ("flow-grpo", {"advantage": {"kind": "whiten", "epsilon": 1e-4}}, "whiten has no option 'epsilon'"),
        ("dapo", {"sampler": {"refills": True}}, "number"),
        ("dapo", {"loss": {"clipped": {"low": "much"}}}, "low.*number"),
    ],
)
def test_what_is_unknown_or_wrong_is_refused(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(name, overrides)


def test_another_kind_replaces_the_old_one_whole() -> None:
    changed = load_recipe("dr-grpo", {"advantage": {"kind": "whiten"}, "weights": {"kind": "token"}})
    assert changed.advantage == load_recipe("flow-grpo", {"advantage": {"kind": "whiten"}}).advantage
    assert changed.weights == load_recipe("dapo").weights


def test_a_schedule_stands_for_a_number() -> None:
    ramp = {"kind": "ramp", "start": 0.1, "end": 0.0, "over": 0.5}
    algorithm = load_recipe("flow-grpo", {"loss": {"kl": {"coefficient": ramp}}})
    seen = [algorithm.at(Now(progress=p), {}).loss[1].model_dump()["coefficient"] for p in (0.0, 0.25, 0.5, 1.0)]
    assert seen == pytest.approx([0.1, 0.05, 0.0, 0.0])
    assert Algorithm.model_validate(algorithm.model_dump(mode="json")) == algorithm
    late = load_recipe("flow-grpo", {"loss": {"kl": {"coefficient": {"kind": "ramp", "start": 0.1, "end": -1.0}}}})
    with pytest.raises(ValueError, match=">= 0"):
        late.at(Now(progress=1.0), {})


def test_a_recipe_and_a_slot_from_files(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from agentflow.trainers.slots.base import Advantage\n"
        "class Mine(Advantage):\n"
        "    times: float = 2.0\n"
        "    def __call__(self, batch, columns, state):\n"
        "        return self.times * batch.spread(batch.lengths_R.astype(float))\n"
    )
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: dapo\nadvantage: {{kind: '{tmp_path}/mine.py:Mine', times: 3.0}}\n")
    algorithm = load_recipe(str(recipe))
    assert algorithm.loss == load_recipe("dapo").loss
    assert algorithm.advantage(batch_of([1, 2]), {}, {}).tolist() == [3.0, 6.0, 6.0]
    assert Algorithm.model_validate(algorithm.model_dump(mode="json")) == algorithm
    with pytest.raises(ConfigError, match=r"has no 'Mind'.*Did you mean 'Mine'"):
        load_recipe(str(recipe), {"advantage": {"kind": f"{tmp_path}/mine.py:Mind"}})


def test_potentials_must_fit_the_algorithm() -> None:
    shaping = load_shaping({"gamma": 0.9, "terms": {"phi": {"weight": 1.0, "potential": True}}})
    with pytest.raises(ConfigError, match=r"'phi' cancels.*credit=return_to_go"):
        check_fit(load_recipe("flow-grpo"), shaping, group_size=4)
    with pytest.raises(ConfigError, match=r"gamma=0\.9.*gamma=1\.0"):
        check_fit(load_recipe("reinforce++"), shaping, group_size=4)
    fitting = load_recipe("reinforce++", {"advantage": {"of": {"gamma": 0.9}}})
    check_fit(fitting, shaping, group_size=1)
    check_fit(load_recipe("flow-grpo"), load_shaping({"preset": "progressive"}), group_size=2)
    with pytest.raises(ConfigError, match="group_size = 1 leaves nothing to compare"):
        check_fit(load_recipe("flow-grpo"), load_shaping({}), group_size=1)


def test_tasks_are_drawn_ahead_only_by_samplers_that_remember_nothing_else() -> None:
    corrected = {"loss": {"clipped": {"correction": {"kind": "tis"}}}}
    options: dict[str, Any] = {
        "env": {"name": "websearch"},
        "policy": {"backend": "vllm"},
        "run": {"max_staleness": 1},
    }
    assert TrainConfig(**options, algorithm=load_recipe("flow-grpo", corrected)).algorithm.sampler.draws_ahead
    with pytest.raises(ConfigError, match=r"max_staleness = 1 draws tasks ahead.*thompson"):
        TrainConfig(**options, algorithm=load_recipe("vade", corrected))


def test_updates_keep_groups_whole_where_the_loss_compares_within_them() -> None:
    batch = lay_out([group(1, 0, 0), group(0, 1, 1), group(1, 1, 0)])
    torn = [share.batch.group_N.tolist() for share in batch.shares(2)]
    whole = [share.batch.group_N.tolist() for share in batch.shares(2, whole_groups=True)]
    assert torn == [[0, 0, 0, 1, 1], [1, 2, 2, 2]]
    assert whole == [[0, 0, 0, 1, 1, 1], [2, 2, 2]]
    assert load_recipe("disco").compares_in_loss and not load_recipe("flow-grpo").compares_in_loss
    spans = [share.span for share in batch.shares(5, whole_groups=True)]
    assert [span.stop - span.start for span in spans] == [16, 16, 16] and spans[-1].stop == batch.turn_S.size


def test_a_schedule_that_leaves_its_bounds_is_refused_before_the_run() -> None:
    ramp = {"kind": "ramp", "start": 0.2, "end": 1.5}
    with pytest.raises(ConfigError, match=r"leaves the bounds of its option at 0\.75"):
        check_fit(load_recipe("flow-grpo", {"loss": {"clipped": {"low": ramp}}}), load_shaping({}), group_size=4)
