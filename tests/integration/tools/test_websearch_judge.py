"""The judge as an option of the websearch environment."""

import json
from pathlib import Path
from typing import Any

import pytest

from agentflow.environments.judging import JudgeOptions, make_judge
from agentflow.environments.websearch.websearch import WebSearch
from agentflow.errors import CredentialError, DataError, ScoreFailure
from agentflow.messages import Message
from agentflow.policies.openai import ChatConfig

SMALL: dict[str, Any] = {"seed": 5, "pages": 300, "train_tasks": 20, "heldout_tasks": 8}


def judged(model: Any, path: Path, **options: Any) -> WebSearch:
    chat = {"model": "m", "base_url": model.url, "key_variable": "KEY_OF_THE_TEST"}
    return WebSearch(**SMALL, judge={"model": chat, "cache_path": str(path), **options})


@pytest.fixture
def key(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_THE_TEST", model.key)


@pytest.mark.usefixtures("key")
async def test_a_grade_is_a_reward_term_and_is_replayed_without_the_model(model: Any, tmp_path: Path) -> None:
    model.reply = lambda messages: json.dumps({"reason": "half right", "score": 0.5})
    environment = judged(model, tmp_path / "j.sqlite")
    assert "judge" in environment.reward_terms and "judge" not in WebSearch.reward_terms and environment.waits_outside
    for played in (environment, judged(model, tmp_path / "j.sqlite", cache="only")):
        await played.areset(options={"task": played.tasks("train")[0]})
        _, reward, _, _, info = await played.astep(Message("assistant", "no idea"))
        assert info["reward_terms"]["judge"] == 0.5 and reward == 0.0
    assert len(model.bodies) == 1


@pytest.mark.usefixtures("key")
async def test_a_judge_without_a_grade_fails_the_episode(model: Any, tmp_path: Path) -> None:
    environment = judged(model, tmp_path / "j.sqlite")
    await environment.areset(options={"task": environment.tasks("train")[0]})
    with pytest.raises(ScoreFailure, match="the judge gave no grade"):
        await environment.astep(Message("assistant", "no idea"))


def test_a_missing_key_or_recording_fails_at_once(tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": {"model": "m"}, "cache_path": str(tmp_path / "j.sqlite")}
    with pytest.raises(CredentialError, match="export OPENAI_API_KEY"):
        make_judge(JudgeOptions(**options), environ={})
    with pytest.raises(DataError, match="no replay cache"):
        make_judge(JudgeOptions(**{**options, "cache_path": str(tmp_path / "none.sqlite")}, cache="only"), environ={})


def test_the_identity_tells_models_apart() -> None:
    models = [{"model": "a"}, {"model": "b"}, {"model": "a", "base_url": "http://host/v1"}]
    identities = {ChatConfig.model_validate(model).identity for model in models}
    assert len(identities) == 3
