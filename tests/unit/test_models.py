"""The starter policies: which one an environment takes, what is in their folders, how they write numbers and code."""

import shutil
from pathlib import Path

import pytest

from agentflow.environments.coding.tasks import tasks
from agentflow.errors import ModelError
from agentflow.messages import Message, ToolCall
from agentflow.models import ModelConfig, load_model, training_defaults
from agentflow.renderer import Renderer
from agentflow.runs import Run
from agentflow.starter_policies import Part, is_learned, parts_of, starter_folders, starter_for
from agentflow.trainers.settings import RunConfig
from agentflow.trajectory import Completion

RUN = {
    "type": "function",
    "function": {"name": "run", "parameters": {"type": "object", "properties": {"code": {"type": "string"}}}},
}


@pytest.mark.parametrize(
    ("path", "env", "expected"),
    [
        ("starter", "websearch", "starter-websearch"),
        ("starter", "reading", "starter-websearch"),
        ("starter", "code", "starter-code"),
        ("starter", "navigation", "starter-navigation"),
        ("starter", "my_shop.py:MyShop", "starter-websearch"),
        ("starter-websearch", "code", "starter-websearch"),
        ("runs/mine", "code", "runs/mine"),
    ],
)
def test_the_environment_chooses_among_the_starters_and_nothing_else(path: str, env: str, expected: str) -> None:
    assert starter_for(path, Part(env=env)) == expected


def test_a_starter_says_what_it_has_learned_to_play() -> None:
    assert is_learned(Part(env="reading")) and not is_learned(Part(env="my_shop.py:MyShop"))
    assert not is_learned(Part(env="websearch", agent="flow", role="verifier"))
    assert set(parts_of(starter_folders()["starter-code"])) == {Part(env="code")}
    assert "plays" not in training_defaults("starter-code")


@pytest.mark.parametrize("name", sorted(starter_folders()))
def test_a_starter_is_small_and_recommends_its_own_training(name: str) -> None:
    loaded = load_model(ModelConfig(path="starter"), env=parts_of(starter_folders()[name])[0].env)
    assert loaded.name == name
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) < 1_000_000
    assert sum(file.stat().st_size for file in starter_folders()[name].iterdir()) < 4_000_000
    assert {"agent", "learner", "evaluation", "run"} <= set(training_defaults(name))


def test_a_run_stands_for_its_latest_checkpoint_and_one_without_any_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "code--tiny--1"
    with Run.create(tmp_path, config=RunConfig(), env="code", model="tiny", seed=0) as made:
        made.path.rename(run)
    with pytest.raises(ModelError, match=r"has no checkpoint yet. Continue it: agentflow train --resume"):
        ModelConfig(path=str(run))
    loaded = load_model(ModelConfig(path="starter-code"))
    with Run.resume(run) as resumed, resumed.checkpoint(3, keep=1) as folder:
        shutil.copytree(starter_folders()["starter-code"], folder, dirs_exist_ok=True)
    config = ModelConfig(path=str(run))
    assert config.path == str(run / "checkpoints" / "iteration_000003")
    assert ModelConfig(path=config.path) == config
    again = load_model(config)
    assert (again.name, again.recommended) == ("code--tiny--1", loaded.recommended)
    assert training_defaults(str(run)) == training_defaults("starter-code")


def test_the_code_starter_writes_programs_and_small_numbers_without_loss() -> None:
    tokenizer = load_model(ModelConfig(path="starter-code")).tokenizer
    renderer = Renderer(tokenizer, (RUN,))
    for number in range(100):
        for text in (f" {number}", f"{number}"):
            assert len(tokenizer.encode(text, add_special_tokens=False)) == 1, text
    for task in tasks(0, "heldout", kinds=("function",), difficulties=(1, 2, 3, 4), count=80):
        source = task.answer["reference"]
        for said in (Message("assistant", source), Message("assistant", "", (ToolCall("run", {"code": source}),))):
            tokens = tuple(renderer.reply(said))
            heard = renderer.parse(Completion(tokens, (0.0,) * len(tokens), "stop", 0))
            assert (heard.error, heard.message.content, heard.message.tool_calls) == ("", said.content, said.tool_calls)
            assert len(tokens) <= training_defaults("starter-code")["agent"]["max_turn_tokens"]
