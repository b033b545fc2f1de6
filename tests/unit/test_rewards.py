"""The shaper: presets, gates, schedules by success, ledger, state; and what it refuses."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agentflow.config import read_yaml, to_yaml
from agentflow.errors import ConfigError
from agentflow.messages import Message, Reply
from agentflow.rewards import (
    LedgerEntry,
    ShapedTrajectory,
    Shaper,
    ShapingConfig,
    TermConfig,
    list_presets,
    load_shaping,
    reward_metrics,
)
from agentflow.trajectory import Completion, Status, Trajectory, Turn

PROGRESSIVE = ("well_formed", "valid_call", "retrieval", "answer_format", "answer_f1")
FORM = {"well_formed": 1.0, "valid_call": 1.0}
SOLVED = {"well_formed": 1.0, "answer_format": 1.0, "answer_f1": 1.0}


def trajectory(*turns: tuple[float, Mapping[str, float]], failed: bool = False) -> Trajectory:
    completion, reply = Completion((2,), (0.0,), "stop", 0), Reply(Message("assistant"))
    played = tuple(Turn(0, (1,), completion, (), reply, reward, terms) for reward, terms in turns)
    return Trajectory("0/t/0", "t", 0, played, Status("failed", "tool") if failed else Status("completed"), None)


def shape(options: Mapping[str, Any], *turns: tuple[float, Mapping[str, float]], progress: float = 0.0) -> Any:
    shaped = Shaper(load_shaping(options)).shape(trajectory(*turns), progress)
    assert shaped is not None
    return shaped


def test_by_default_the_reward_is_the_environments_own() -> None:
    shaped = shape({}, (0.25, {"hint": 3.0}), (0.5, {}))
    assert shaped.rewards_K == (0.25, 0.5)
    assert shaped.shaped_return == shaped.raw_return == 0.75
    assert load_shaping() == ShapingConfig() == load_shaping({"preset": "outcome"})


def test_a_failed_trajectory_has_no_reward() -> None:
    failed = trajectory((1.0, {}), failed=True)
    assert Shaper(ShapingConfig()).shape(failed, 0.0) is None


def test_the_ledger_holds_every_reported_term_paid_or_not() -> None:
    options = {"terms": {"hint": {"weight": 0.5}, "turn_cost": {"weight": 0.25}}}
    shaped = shape(options, (0.0, {"hint": 3.0, "other": 7.0}), (1.0, {}))
    assert shaped.ledger[0] == {
        "outcome": LedgerEntry(0.0, 1.0, 0.0),
        "hint": LedgerEntry(3.0, 0.5, 1.5),
        "other": LedgerEntry(7.0, 0.0, 0.0),
        "turn_cost": LedgerEntry(-1.0, 0.25, -0.25),
    }
    assert shaped.rewards_K == (1.25, 0.75)
    assert (shaped.shaped_return, shaped.raw_return) == (2.0, 1.0)


def test_a_mean_term_pays_the_same_however_many_turns_report_it() -> None:
    options = {"terms": {"form": {"weight": 1.0, "over_turns": "mean"}}}
    short = shape(options, (0.0, {"form": 1.0}))
    long = shape(options, *[(0.0, {"form": 1.0})] * 4, (0.0, {}))
    assert short.shaped_return == long.shaped_return == 1.0
    assert long.rewards_K == (0.25, 0.25, 0.25, 0.25, 0.0)


@pytest.mark.parametrize(
    ("turns", "values", "paid"),
    [
        ("any", [1.0, 0.0], True),
        ("any", [0.0, 0.9], False),
        ("any", [], False),
        ("every", [1.0, 1.0], True),
        ("every", [1.0, 0.0], False),
        ("every", [], False),
    ],
)
def test_a_gate_pays_only_where_the_other_term_reaches_it(turns: str, values: list[float], paid: bool) -> None:
    gated = {"weight": 2.0, "gate": {"term": "form", "turns": turns}}
    played = [(0.0, {"form": value}) for value in values]
    shaped = shape({"terms": {"bonus": gated}}, *played, (0.0, {"bonus": 1.0}))
    assert shaped.shaped_return == (2.0 if paid else 0.0)
    assert shaped.ledger[-1]["bonus"] == LedgerEntry(1.0, 2.0, 2.0 if paid else 0.0)


def test_weights_follow_progress() -> None:
    options = {"terms": {"hint": {"weight": 1.0, "unlock_at": 0.5, "retire_at": 0.8}}}
    paid = [shape(options, (0.0, {"hint": 1.0}), progress=p).shaped_return for p in (0.0, 0.5, 0.9)]
    assert paid == [0.0, 1.0, 0.0]


def test_stages_unlock_by_smoothed_success_and_never_lock_again() -> None:
    config = load_shaping(
        {"success_smoothing": 0.5, "terms": {"hint": {"weight": 1.0, "by": "success", "unlock_at": 0.3}}}
    )
    shaper = Shaper(config)
    weights = []
    for rate in (0.0, 0.6, 0.6, 0.0, 0.0):
        shaper.observe(rate)
        weights.append(shaper.weights(0.0)["hint"])
    # smoothed with the bias taken out: 0, .4, .514, .24, .116
    assert weights == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert shaper.reached == pytest.approx(0.45 / 0.875)


def test_one_lucky_iteration_after_bad_ones_does_not_unlock() -> None:
    shaper = Shaper(load_shaping({"preset": "progressive", "success_smoothing": 0.9}))
    for rate in (0.0, 0.0, 0.0, 1.0):
        shaper.observe(rate)
    assert shaper.reached == pytest.approx(0.1 / (1 - 0.9**4))


def test_state_survives_json() -> None:
    config = load_shaping({"preset": "progressive"})
    one, other = Shaper(config), Shaper(config)
    for rate in (0.1, 0.55, 0.3):
        one.observe(rate)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for shaper in (one, other):
        shaper.observe(0.7)
    assert one.state_dict() == other.state_dict()
    assert one.weights(0.5) == other.weights(0.5)


def test_progressive_pays_form_then_retrieval_then_the_answer() -> None:
    options = {"preset": "progressive"}
    broken = shape(options, (0.0, {"well_formed": 0.0, "retrieval": 1.0}))
    formed = shape(options, (0.0, FORM))
    found = shape(options, (0.0, FORM | {"retrieval": 1.0}))
    answered = shape(options, (0.0, FORM | {"retrieval": 1.0}), (0.0, SOLVED | {"answer_f1": 0.5}))
    solved = shape(options, (0.0, FORM), (1.0, SOLVED))
    returns = [s.shaped_return for s in (broken, formed, found, answered, solved)]
    assert returns == pytest.approx([0.0, 0.2, 0.5, 0.75, 1.6])


def test_progressive_leaves_only_the_outcome_and_brevity_once_the_task_is_mastered() -> None:
    shaper = Shaper(load_shaping({"preset": "progressive"}))
    shaper.observe(1.0)
    paid = {name for name, weight in shaper.weights(0.0).items() if abs(weight) > 1e-12}
    assert paid == {"outcome", "turn_cost"}


def test_turn_cost_of_progressive_spares_those_who_fail() -> None:
    shaper = Shaper(load_shaping({"preset": "progressive"}))
    shaper.observe(1.0)
    lost, won = shaper.shape(trajectory((0.0, {})), 0.0), shaper.shape(trajectory((0.0, {}), (1.0, {})), 0.0)
    assert lost is not None and won is not None
    assert lost.shaped_return == 0.0
    assert won.shaped_return == pytest.approx(0.96)


def test_a_change_merges_with_its_preset_and_null_removes_a_term() -> None:
    config = load_shaping(
        {"preset": "progressive", "terms": {"retrieval": {"weight": 0.5, "gate": None}, "answer_f1": None}}
    )
    retrieval = config.active_terms["retrieval"]
    assert (retrieval.weight, retrieval.by, retrieval.retire_at, retrieval.gate) == (0.5, "success", 0.6, None)
    assert "answer_f1" not in config.active_terms


def test_a_term_given_as_a_model_changes_only_what_was_set() -> None:
    config = ShapingConfig(preset="progressive", terms={"retrieval": TermConfig(weight=0.5)})
    assert config == load_shaping({"preset": "progressive", "terms": {"retrieval": {"weight": 0.5}}})
    assert config.active_terms["retrieval"].retire_at == 0.6


@pytest.mark.parametrize("preset", list_presets())
def test_a_stored_configuration_reads_back_as_itself(preset: str, tmp_path: Path) -> None:
    changes = {"well_formed": None} if preset == "progressive" else {"hint": {"weight": 1}}
    config = load_shaping({"preset": preset, "terms": changes})
    (tmp_path / "rewards.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_shaping(read_yaml(tmp_path / "rewards.yaml")) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "progresive"}, "no preset 'progresive', only outcome and progressive"),
        ({"terms": [1]}, "valid dictionary"),
        ({"terms": {"hint": {"weight": 1, "wieght": 2}}}, "wieght"),
        ({"terms": {"hint": {}}}, "terms.hint.weight"),
        ({"terms": {"outcome": None}}, "at least one term must pay"),
        ({"terms": {"hint": {"weight": 1, "unlock_at": 0.5, "retire_at": 0.4}}}, "must not exceed retire_at"),
        ({"terms": {"hint": {"weight": 1, "fade": 0.4}}}, "need retire_at"),
        ({"terms": {"hint": {"weight": 1, "rise": 0.4, "start_weight": float("nan")}}}, "finite"),
        ({"terms": {"hint": {"weight": 1, "potential": True, "over_turns": "mean"}}}, "optimal policy"),
        ({"success_smoothing": 1.0}, "success_smoothing"),
    ],
)
def test_what_cannot_work_is_refused(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_shaping(options)


def test_a_term_that_the_environment_does_not_report_is_refused() -> None:
    progressive = load_shaping({"preset": "progressive"})
    progressive.validate_terms(PROGRESSIVE)
    with pytest.raises(ConfigError, match=r"no term 'well_formed'.*mean 'wellformed'.*well_formed=null"):
        progressive.validate_terms(("wellformed", *PROGRESSIVE[1:]))
    gated = load_shaping({"terms": {"outcome": {"gate": {"term": "formm"}}}})
    with pytest.raises(ConfigError, match=r"outcome.gate: .*mean 'form'"):
        gated.validate_terms(["form"])


def test_metrics_average_over_trajectories() -> None:
    options = {"terms": {"hint": {"weight": 0.5}}}
    one = shape(options, (0.0, {"hint": 1.0}), (1.0, {"hint": 2.0}))
    other = shape(options, (0.0, {}))
    assert reward_metrics([one, other]) == {
        "reward/raw": 0.5,
        "reward/shaped": 1.25,
        "reward/outcome": 0.5,
        "shaping/outcome": 0.5,
        "reward/hint": 3.0,  # over the one that reports it
        "shaping/hint": 0.75,
    }
    assert reward_metrics([]) == {"reward/raw": None, "reward/shaped": None}


def test_a_trajectory_without_turns_has_an_empty_ledger() -> None:
    assert shape({}) == ShapedTrajectory("0/t/0", (), 0.0, 0.0, ())
