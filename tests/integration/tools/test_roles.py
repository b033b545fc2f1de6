"""Roles in whole runs: a policy that is trained, judged by a frozen model behind a real server on this machine."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from agentflow.cli import main
from agentflow.environments.judging import JudgeOptions, make_judge
from agentflow.errors import ConfigError
from agentflow.policies.frozen import FrozenModels
from agentflow.policies.openai import ChatConfig
from agentflow.roles import NO_ROLES
from agentflow.runs import StoredRun
from agentflow.trajectory import Task

DOCUMENT = Path(__file__).parents[3] / "docs" / "roles.md"
FILE = Path(__file__).parent / "judged_words.py"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = runpy.run_path(str(FILE))["save_tiny_model"](tmp_path_factory.mktemp("model"))
    return folder


@pytest.fixture
def words(threaded_model: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of three iterations with two tasks of two trajectories each."""
    monkeypatch.setenv("KEY_OF_THE_TEST", threaded_model.key)
    threaded_model.reply = lambda messages: f"VERDICT {len(threaded_model.bodies) % 3 / 2}"
    return [
        *("train", "--env", f"{FILE}:JudgedWords", "--model", str(tiny), "--iterations", "3", "--out", str(tmp_path)),
        *("run.tasks_per_iteration=2", "run.group_size=2", "agent.max_turn_tokens=8", "evaluation.num_tasks=2"),
        *("roles.planner.speaks=expert", "algorithm.keep=[]", "learner.learning_rate=1e-3"),
        *(
            f"roles.judge.base_url={threaded_model.url}",
            "roles.judge.model=m",
            "roles.judge.key_variable=KEY_OF_THE_TEST",
        ),
        *("roles.judge.prices.input=2", "roles.judge.prices.output=8"),
        *("roles.judge.retries.attempts=2", "roles.judge.retries.first_wait_s=0.01", "roles.judge.max_tokens=4"),
    ]


def only_run(folder: Path) -> StoredRun:
    (path,) = [entry for entry in folder.iterdir() if (entry / "config.yaml").exists()]
    return StoredRun(path)


def told(model: Any) -> int:
    """Count the words that the server was shown and said."""
    return sum(len(message["content"].split()) for body in model.bodies for message in body["messages"])


def test_a_run_says_what_its_judge_cost_and_keeps_what_it_said(
    words: list[str], threaded_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    run = only_run(tmp_path)
    last = run.metrics()[-1]
    replies = len(threaded_model.bodies)
    assert last["openai/judge/num_replies"] == replies >= 3
    assert last["openai/judge/prompt_tokens"] == told(threaded_model)
    assert last["openai/judge/cost"] == pytest.approx((2 * told(threaded_model) + 8 * 2 * replies) / 1e6)
    spent = [row["openai/judge/num_replies"] for row in run.metrics()]
    assert spent == sorted(spent) and len(spent) == 4
    assert f"judge: {replies} replies, " in capsys.readouterr().out
    exchanges = [e for i in (1, 2, 3) for g in run.groups(i) for t in g.episodes for e in t.exchanges]
    assert {exchange.role for exchange in exchanges} == {"judge"} and exchanges[0].reply.startswith("VERDICT")
    assert all(
        "VERDICT" not in m.content for g in run.groups(1) for t in g.trajectories for n in t.turns for m in n.messages
    )
    assert "asked of judge" in (run.path / "report.html").read_text()
    stored = b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())
    assert threaded_model.key.encode() not in stored and b"KEY_OF_THE_TEST" in stored


def test_a_spent_budget_stops_the_run_keeps_it_and_outlives_it(
    words: list[str], threaded_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = "roles.judge.token_budget=50"
    assert main([*words, budget]) == 3
    run = only_run(tmp_path)
    assert "the budget of 50 tokens for judge is used up" in capsys.readouterr().err
    rows = run.metrics()
    stopped = rows[-1]["iteration"] + 1
    assert 1 < stopped <= 3, "the budget is for some iterations and not for all"
    trajectories = [t for group in run.groups(stopped) for t in group.trajectories]
    failed = [t for t in trajectories if t.status.kind == "failed"]
    assert len(trajectories) == 4 and failed
    assert all(t.status.reason == "budget" and t.success is None and t.raw_return is None for t in failed)
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None and checkpoint.iteration == stopped - 1
    asked = len(threaded_model.bodies)

    assert main(["train", "--resume", str(run.path)]) == 3
    config = run.path / "config.yaml"
    assert len(threaded_model.bodies) - asked <= 3, "what was spent before counts"
    config.write_text(config.read_text().replace("token_budget: 50", "token_budget: 100000"))
    assert main(["train", "--resume", str(run.path)]) == 0
    rows = run.metrics()
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert rows[-1]["openai/judge/num_replies"] == len(threaded_model.bodies)


def test_a_judge_that_is_away_fails_episodes_and_pays_nobody_zero(
    words: list[str], threaded_model: Any, answer: Any, tmp_path: Path
) -> None:
    threaded_model.failures = [answer("down", status=500)] * 8
    assert main([*words, "evaluation.num_tasks=0", "rollout.retries=0", "rollout.max_failed_fraction=1"]) == 0
    statuses = [
        (t.status.reason, t.raw_return) for i in (1, 2, 3) for g in only_run(tmp_path).groups(i) for t in g.trajectories
    ]
    broken = [value for reason, value in statuses if reason == "backend"]
    assert broken and set(broken) == {None}


def test_evaluation_says_what_it_cost(words: list[str], tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = words[words.index("--env") + 1]
    roles = [word for word in words if word.startswith("roles.")]
    command = ["eval", str(tiny), "--env", env, "--tasks", "3", "roles.planner.speaks=expert", *roles]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["openai/judge/num_replies"] > 0 and found["openai/judge/cost"] > 0
    assert main(command) == 0
    assert "judge: " in capsys.readouterr().out


def test_a_mistyped_role_is_an_error_before_anything_starts(
    words: list[str], threaded_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words[words.index("--env") + 1] = f"{FILE}:Mistyped"
    assert main(words) == 2
    assert "There is no role 'jugde'. Did you mean 'judge'?" in capsys.readouterr().err
    assert main([*words, "roles.planner.model=m"]) == 2
    assert "roles.planner has no option 'model'" in capsys.readouterr().err
    assert list(tmp_path.glob("*--*")) == [] and threaded_model.bodies == []


def test_the_run_file_of_the_documents_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    file = tmp_path / "judged.yaml"
    file.write_text(text)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    command = ["train", "--config", str(file), "--dry-run", "env.pages=300", "env.train_tasks=9"]
    monkeypatch.chdir(tmp_path)  # the judge's cache is made here
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "gpt-5-mini" in shown and "sk-of-the-test" not in shown
    assert main([*command, "env.judge.role=jugde"]) == 2
    assert "Did you mean 'judge'" in capsys.readouterr().err
    assert main([*command, "roles.judge.modle=m"]) == 2
    assert "roles.judge has no option 'modle'. Did you mean 'model'?" in capsys.readouterr().err
    monkeypatch.delenv("OPENAI_API_KEY")
    assert main(command) == 2
    assert "export OPENAI_API_KEY" in capsys.readouterr().err


def test_an_environment_without_roles_names_the_option() -> None:
    with pytest.raises(ConfigError, match=r"no role 'judge'. Known: none. A new one: roles.judge.model="):
        NO_ROLES["judge"]


async def test_a_role_judges_in_the_place_of_a_model_of_its_own(model: Any, tmp_path: Path) -> None:
    model.reply = lambda messages: json.dumps({"reason": "half", "score": 0.5})
    config = ChatConfig(model="m", base_url=model.url, key_variable="KEY")
    frozen = FrozenModels({"grader": config}, environ={"KEY": model.key})
    options = JudgeOptions(role="grader", cache="off")
    assert await make_judge(options, roles=frozen.roles).score(Task("1", "Who?", answer=("Ada",)), "Bo") == 0.5
    assert frozen.metrics()["openai/grader/num_replies"] == 1
    with pytest.raises(ConfigError, match="Did you mean 'grader'"):
        make_judge(JudgeOptions(role="gradr", cache="off"), roles=frozen.roles)


@pytest.mark.parametrize("options", [{}, {"role": "a", "model": {"model": "m"}}])
def test_a_judge_is_named_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="one of both"):
        JudgeOptions(**options)
