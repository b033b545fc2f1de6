"""Options of runs that were stored under other names."""

from pathlib import Path
from typing import Any

import pytest

from agentflow.config import read_yaml, validate_options
from agentflow.runs.upgrades import upgraded
from agentflow.trainers.algorithm import Algorithm, load_recipe
from agentflow.trainers.settings import TrainConfig

STORED = Path(__file__).resolve().parents[2] / "stored" / "format_1" / "config.yaml"
FLAT = read_yaml(STORED.parents[1] / "flat_algorithms.yaml")


def algorithm_of(**changes: Any) -> Algorithm:
    """The algorithm of a run with flat options: Flow-GRPO's but for the changes."""
    upgrade = upgraded({"algorithm": {**FLAT["flow-grpo"], **changes}})
    return Algorithm.model_validate(upgrade["algorithm"])


@pytest.mark.parametrize("name", FLAT)
def test_the_options_of_each_old_recipe_are_the_slots_of_todays(name: str) -> None:
    upgrade = upgraded({"algorithm": FLAT[name]})
    assert Algorithm.model_validate(upgrade["algorithm"]) == load_recipe(name)
    assert upgraded(upgrade) == upgrade


@pytest.mark.parametrize(
    ("flat", "slots"),
    [
        ({"loss": "cispo", "clip_high": None}, {"loss": {"kind": "cispo", "low": 0.2, "high": None}}),
        ({"ratio": "sequence"}, {"loss": {"clipped": {"unit": "trajectory"}}}),
        ({"dual_clip": 3.0}, {"loss": {"clipped": {"dual": 3.0}}}),
        (
            {"mismatch": "tis", "mismatch_high": 5.0},
            {"loss": {"clipped": {"correction": {"kind": "tis", "high": 5.0}}}},
        ),
        (
            {"mismatch": "mis", "mismatch_unit": "turn", "mismatch_low": 0.25},
            {"weights": {"masks": {"mismatched": {"unit": "turn", "low": 0.25}}}},
        ),
        ({"entropy_coefficient": 0.01}, {"loss": {"entropy": {"coefficient": 0.01}}}),
        ({"overlong_max_tokens": 512}, {"rewards": {"overlong": {"max_tokens": 512}}}),
        ({"degenerate": "keep"}, {"keep": {"has_signal": {"drop": False}}, "sampler": {"refills": 0}}),
        ({"aggregation": "constant", "constant": 256.0}, {"weights": {"kind": "constant", "tokens": 256.0}}),
        ({"unit": "row", "epsilon": 0.0}, {"advantage": {"unit": "row", "epsilon": 0.0}}),
    ],
)
def test_flat_options_become_options_of_slots(flat: dict[str, Any], slots: dict[str, Any]) -> None:
    assert algorithm_of(**flat) == load_recipe("flow-grpo", slots)


def test_whitening_wraps_what_was_compared() -> None:
    changes = {"kind": "whiten", "unit": "turn", "of": {"kind": "group_relative", "scale": "none"}}
    assert algorithm_of(whiten="turn", scale="none") == load_recipe("flow-grpo", {"advantage": changes})


def test_a_whole_stored_configuration_validates_today() -> None:
    config = validate_options(TrainConfig, upgraded(read_yaml(STORED)), "config.yaml")
    assert config.algorithm == load_recipe("flow-grpo")


def test_servers_move_into_their_section_and_speakers_into_their_roles() -> None:
    old = {
        "policy": {"servers": 2, "urls": [], "server_args": ["--x"], "backend": "scripted", "temperature": 0.5},
        "roles": {"judge": {"backend": "openai", "model": "m"}},
    }
    assert upgraded(old) == {
        "policy": {"temperature": 0.5, "servers": {"count": 2, "urls": [], "args": ["--x"]}},
        "roles": {"planner": {"speaks": "expert", "trained": True}, "judge": {"speaks": "openai", "model": "m"}},
    }


def test_what_is_of_today_stays_as_it_is() -> None:
    for config in (
        {},
        {"policy": {"backend": "vllm", "servers": {"count": 2}}},
        {"roles": {"judge": {"model": "m"}}, "policy": {"temperature": 1.0}},
        {"policy": 3, "roles": "x"},
    ):
        assert upgraded(config) == config


def test_a_stored_run_has_nothing_under_an_old_name() -> None:
    stored = read_yaml(STORED)
    assert "server_args" in stored["policy"]
    policy = upgraded(stored)["policy"]
    assert set(policy) == {"backend", "temperature", "servers"}
    assert len(policy["servers"]) == len(stored["policy"]) - 2
