"""An agent of one's own, from a file: the one of the documents, trained."""

from pathlib import Path

import pytest

from agentflow.agents.base import AGENTS, read_agent
from agentflow.agents.react import ReAct
from agentflow.cli import main
from agentflow.errors import ConfigError
from agentflow.runs import StoredRun

FILE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "two_opinions.py"
SMALL = "--iterations 1 run.tasks_per_iteration=2 run.group_size=2 evaluation.num_tasks=2 agent.max_turns=2".split()


def test_an_agent_from_a_file_is_trained_with_the_roles_that_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--env", "websearch", "--agent", f"{FILE}:TwoOpinions", *SMALL, "--out", str(tmp_path)]
    assert main(words) == 2
    assert "asks the role 'verifier', and nobody speaks for it. Set roles.verifier.speaks" in capsys.readouterr().err
    assert main([*words, "roles.verifier={speaks: policy, model: {path: starter-code}}"]) == 0
    (path,) = tmp_path.iterdir()
    run = StoredRun(path)
    assert run.config["agent"]["kind"] == f"{FILE}:TwoOpinions"
    episode = next(run.groups(1)).episodes[0]
    assert [t.role for t in episode.trajectories] == ["planner", "verifier", "verifier"]
    assert len(episode.main.turns) % 2 == 0 or episode.main.status.kind == "truncated"
    assert all(t.num_sampled_tokens > 0 and t.parent == episode.main.id for t in episode.trajectories[1:])
    assert "verifier.1" in (path / "report.html").read_text()
    assert "agent: react" not in (path / "agent.yaml").read_text()


def test_an_agent_is_found_by_name_and_its_options_are_its_own() -> None:
    assert read_agent({}) == ReAct()
    assert AGENTS.names() == ["react"]
    for given, said in (
        ({"kind": "raect"}, "There is no agent 'raect'. Did you mean 'react'"),
        ({"kind": f"{FILE}:TwoOpinion"}, "Did you mean 'TwoOpinions'"),
        ({"kind": f"{FILE}:Message"}, "is not an agentflow Agent. Subclass agentflow.agents.base.Agent"),
        ({"max_turn": 3}, "agent has no option 'max_turn'. Did you mean 'max_turns'"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_agent(given)
