"""Options of runs that were stored under other names."""

from pathlib import Path

from agentflow.config import read_yaml
from agentflow.runs.upgrades import upgraded

STORED = Path(__file__).resolve().parents[2] / "stored" / "format_1" / "config.yaml"


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
