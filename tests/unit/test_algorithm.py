"""Algorithms as values: recipes, what they compute on worked groups, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from agentflow.config import describe, to_yaml
from agentflow.errors import ConfigError
from agentflow.maths.losses import SampledTokens, policy_loss
from agentflow.rewards import load_shaping
from agentflow.trainers.algorithm import (
    AlgorithmConfig,
    ScoredTrajectory,
    advantages,
    check_shaping,
    degenerate_cause,
    list_recipes,
    load_recipe,
    loss,
    weights,
)

TOKENS = [(2, 4, 2), (4,), (2, 2), (4, 4)]


def group(*returns: float, success: bool | None = None) -> list[ScoredTrajectory]:
    """A group with the turns of WE-1, each return paid in the last turn."""
    return [
        ScoredTrajectory((0.0,) * (len(counts) - 1) + (value,), counts, success)
        for value, counts in zip(returns, TOKENS, strict=False)
    ]


def firsts(groups: list[list[ScoredTrajectory]], config: AlgorithmConfig) -> list[float]:
    return [float(advantage_K[0]) for advantage_K in advantages(groups, config)]


def test_the_recipes() -> None:
    assert list_recipes() == ["dapo", "dr-grpo", "flow-grpo", "grpo", "reinforce++", "rloo"]
    assert load_recipe("flow-grpo") == AlgorithmConfig()


def test_every_option_says_what_it_means() -> None:
    assert all(option.description.endswith(".") for option in describe(AlgorithmConfig))


@pytest.mark.parametrize("name", list_recipes())
def test_a_stored_algorithm_reads_back_as_itself(name: str) -> None:
    config = load_recipe(name)
    assert AlgorithmConfig.model_validate(config.model_dump(mode="json")) == config
    assert "credit" in to_yaml(config)


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
    assert [len(advantage_K) for advantage_K in result] == [3, 1, 2, 2]
    for advantage_K, value in zip(result, expected, strict=True):
        assert advantage_K == pytest.approx([value] * len(advantage_K), abs=2e-6)


def test_rows_differ_from_trajectories() -> None:
    config = load_recipe("flow-grpo", {"unit": "row"})
    assert firsts([group(1, 0, 0, 1)], config) == pytest.approx([0.724569, -1.207615, -1.207615, 0.724569], abs=1e-5)


def test_reinforce_plus_plus_whitens_over_tokens_of_the_whole_batch() -> None:
    result = advantages([group(1, 0), group(0, 1)], load_recipe("reinforce++"))
    values = np.repeat([1, 0, 0, 1], [8, 4, 8, 4])
    expected = (np.array([1, 0, 0, 1]) - values.mean()) / values.std(ddof=1)
    assert [len(advantage_K) for advantage_K in result] == [3, 1, 3, 1]
    for advantage_K, value in zip(result, expected, strict=True):
        assert advantage_K == pytest.approx([value] * len(advantage_K), abs=1e-6)


def test_we13_reinforce_plus_plus_with_baseline() -> None:
    config = load_recipe("reinforce++", {"baseline": "mean", "credit": "trajectory", "whiten": "trajectory"})
    groups = [group(1, 0, 0, 1), group(1, 1, 1, 0)]
    assert firsts(groups, config) == pytest.approx([1, -1, -1, 1, 0.5, 0.5, 0.5, -1.5], abs=1e-6)


def test_returns_to_go_credit_each_turn_with_what_follows() -> None:
    config = load_recipe("flow-grpo", {"credit": "return_to_go", "gamma": 0.5, "baseline": "none", "scale": "none"})
    (result,) = advantages([[ScoredTrajectory((1.0, 0.0, 4.0), (1, 1, 1))]], config)
    assert result.tolist() == [2.0, 2.0, 4.0]


def test_the_return_is_the_sum_of_shaped_turn_rewards() -> None:
    config = load_recipe("dr-grpo")
    spread, lump = ScoredTrajectory((0.25, 0.5, 0.25), (1, 1, 1)), ScoredTrajectory((1.0,), (1,))
    assert firsts([[spread, lump]], config) == [0.0, 0.0]


def test_groups_do_not_see_each_other_and_order_does_not_matter() -> None:
    config = load_recipe("flow-grpo")
    one, other = group(1, 0, 0, 1), group(3, 1)
    assert firsts([one, other], config) == firsts([one], config) + firsts([other], config)
    assert firsts([one[::-1]], config) == firsts([one], config)[::-1]


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
    assert degenerate_cause(group(*returns, success=success), load_recipe("flow-grpo")) == expected


def test_without_a_group_baseline_no_group_is_degenerate() -> None:
    assert degenerate_cause(group(1), load_recipe("reinforce++")) == ""


def test_a_singleton_is_zero_by_default_and_raw_on_request() -> None:
    assert firsts([group(1)], load_recipe("flow-grpo")) == [0.0]
    assert firsts([group(1)], load_recipe("flow-grpo", {"singleton": "raw"})) == [1.0]


def test_the_overlong_penalty_lowers_the_return_but_rescues_no_group() -> None:
    config = load_recipe("dapo", {"overlong_max_tokens": 8, "overlong_buffer_tokens": 4, "scale": "none"})
    # 8, 4, 4 and 8 tokens: penalties -1, 0, 0, -1
    assert firsts([group(1, 1, 1, 1)], config) == [-0.5, 0.5, 0.5, -0.5]
    assert degenerate_cause(group(1, 1, 1, 1, success=True), config) == "all_solved"


def test_weights_and_loss_use_the_aggregation_of_the_recipe() -> None:
    flow, dapo = load_recipe("flow-grpo"), load_recipe("dapo")
    assert weights(TOKENS, flow)[2] == pytest.approx(1 / 48)
    assert weights(TOKENS, dapo)[2] == pytest.approx(1 / 24)
    assert weights(TOKENS, load_recipe("rloo"))[2] == pytest.approx(1 / (4 * 512))
    for config, expected in ((flow, 0.0), (dapo, 1 / 3)):
        values = np.repeat([1.0, -1.0, -1.0, 1.0], [8, 4, 4, 8])
        logprobs = torch.zeros(24, dtype=torch.float64)
        tokens = SampledTokens(logprobs, logprobs, torch.from_numpy(values), torch.from_numpy(weights(TOKENS, config)))
        assert float(loss(tokens, config).loss) == pytest.approx(-expected)


@pytest.mark.parametrize(("high", "expected"), [(0.3, 1.3), (None, 1.5)])
def test_the_upper_bound_reaches_the_loss(high: float | None, expected: float) -> None:
    config = load_recipe("flow-grpo", {"clip_high": high})
    one = torch.ones(1, dtype=torch.float64)
    assert float(loss(SampledTokens(np.log(1.5) * one, 0 * one, one, one), config).loss) == pytest.approx(-expected)


@pytest.mark.parametrize(
    "slots",
    [
        {"loss": "cispo"},
        {"ratio": "sequence"},
        {"clip_low": 0.1},
        {"clip_high": 0.2},
        {"dual_clip": 1.5},
        {"mismatch": "tis"},
        {"mismatch": "tis", "mismatch_high": 1.5},
        {"mismatch": "icepop", "mismatch_low": 0.2},
        {"kl_coefficient": 0.1},
        {"kl_coefficient": 0.1, "kl_estimator": "k1"},
        {"entropy_coefficient": 0.1},
    ],
    ids=str,
)
def test_every_slot_reaches_the_loss(slots: dict[str, Any]) -> None:
    old, change = torch.full((4,), -1.0, dtype=torch.float64), torch.tensor([0.6, -0.5, 0.7, -0.3]).double()
    tokens = SampledTokens(
        old + change,
        old,
        torch.tensor([1.0, -1.0, -1.0, 1.0]).double(),
        torch.full_like(old, 0.25),
        behaviour_logprobs_S=old - torch.tensor([1.0, 0.5, -0.2, -1.2]).double(),
        ref_logprobs_S=old + 0.3,
        entropy_S=torch.ones_like(old),
        segments_S=torch.tensor([0, 0, 1, 1]),
    )
    before = {**slots}
    last = before.popitem()[0]
    value = float(loss(tokens, load_recipe("flow-grpo", slots)).loss)
    assert value == float(policy_loss(tokens, **{"clip_high": 0.3, **slots}).loss)
    assert value != float(loss(tokens, load_recipe("flow-grpo", before)).loss), f"{last} changes nothing"


def test_masked_importance_sampling_shrinks_the_denominator() -> None:
    config = load_recipe("dapo", {"mismatch": "mis"})
    log_w = np.log([0.3, 0.8, 1, 3, 6])
    assert weights([[5]], config, log_mismatch_S=log_w).tolist() == [0, 0.5, 0.5, 0, 0]
    with pytest.raises(AssertionError, match="before their weights are known"):
        weights([[5]], config)


def test_what_the_learner_must_provide() -> None:
    assert load_recipe("grpo").needs_reference
    plain = load_recipe("flow-grpo")
    assert not (plain.needs_reference or plain.needs_entropy_gradient)
    rich = load_recipe("flow-grpo", {"mismatch": "tis", "entropy_coefficient": 0.01})
    assert rich.needs_entropy_gradient


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("flowgrpo", {}, "no algorithm 'flowgrpo'.*Did you mean 'flow-grpo'"),
        ("dapo", {"clip_hgh": 0.3}, "Did you mean 'clip_high'"),
        ("dapo", {"clip_low": 1.5}, "clip_low"),
        ("dapo", {"aggregation": "constant"}, "needs `constant`"),
        ("dapo", {"overlong_max_tokens": 100}, "must not exceed"),
        ("dapo", {"constant": 3}, "needs algorithm.aggregation=constant"),
        ("dapo", {"gamma": 0.9}, "needs algorithm.credit=return_to_go"),
        ("dapo", {"overlong_buffer_tokens": 100}, "needs algorithm.overlong_max_tokens"),
        ("dapo", {"kl_estimator": "k1"}, "needs algorithm.kl_coefficient"),
        ("reinforce++", {"unit": "row"}, "needs algorithm.baseline or algorithm.scale"),
        ("rloo", {"clip_high": 0.3}, "needs algorithm.loss=clip or cispo"),
        ("dapo", {"loss": "cispo", "dual_clip": 3}, "needs algorithm.loss=clip"),
        ("dr-grpo", {"epsilon": 1e-4}, "needs algorithm.scale=std_sample or std_population"),
        ("flow-grpo", {"mismatch": "tis", "mismatch_low": 0.1}, "needs algorithm.mismatch=icepop or mis"),
    ],
)
def test_what_is_unknown_or_inert_is_refused(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(name, overrides)


def test_potentials_must_fit_the_algorithm() -> None:
    shaping = load_shaping({"gamma": 0.9, "terms": {"phi": {"weight": 1.0, "potential": True}}})
    with pytest.raises(ConfigError, match=r"'phi' cancels.*credit=return_to_go"):
        check_shaping(shaping, load_recipe("flow-grpo"))
    with pytest.raises(ConfigError, match=r"gamma=0\.9.*gamma=1\.0"):
        check_shaping(shaping, load_recipe("reinforce++"))
    check_shaping(shaping, load_recipe("reinforce++", {"gamma": 0.9}))
    check_shaping(load_shaping({"preset": "progressive"}), load_recipe("flow-grpo"))
