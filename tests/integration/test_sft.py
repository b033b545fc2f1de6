"""Imitation, from an expert and from a run's own successes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from agentflow.config import validate_options
from agentflow.errors import ConfigError, DataError
from agentflow.messages import Message, Reply, ToolCall
from agentflow.models import ModelConfig, load_model
from agentflow.renderer import Renderer
from agentflow.runs import Run, StoredRun
from agentflow.trainers.scratch import ScratchConfig, new_model, new_tokenizer
from agentflow.trainers.sft import Dialogue, SftConfig, render, train_sft
from agentflow.trajectory import Completion, Episode, Group, Status, Task, Trajectory, Turn
from agentflow.view.console import QuietConsole

WORDS = f"{Path(__file__).parent / 'words.py'}:Words"
CALL = Message("assistant", "", (ToolCall("look", {"at": "red"}),))
ANSWER = Message("assistant", "red red")


def config(out: Path, **values: Any) -> SftConfig:
    return validate_options(SftConfig, {"run": {"out": str(out), "log_every": 5}, **values}, "test")


def save_tiny_model(folder: Path) -> Path:
    tokenizer = new_tokenizer([" look at red is grey say Say the colour."], max_words=64)
    shape = ScratchConfig(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_key_value_heads=1)
    for part in (new_model(tokenizer, shape, seed=0), tokenizer):
        part.save_pretrained(folder)
    return folder


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def echo(**values: Any) -> dict[str, Any]:
    env = {"name": "reading", "style": "echo", "sizes": [1], "num_tasks": 200}
    return {"env": env, "num_episodes": 200, "episodes_per_update": 8, **values}


def stored_run(folder: Path, *turns: tuple[Message, str], success: bool = True) -> Path:
    """A run with one trajectory, whose tokens are those of a model that is long gone."""
    task = Task("t", "say red", "red")
    observations = [(Message("user", "say red"),), (Message("tool", "red is grey", name="look"),)]
    gone = Completion((999_999,), (-0.5,), "stop", 0)
    played = tuple(
        Turn(i, (999_998,), gone, observations[min(i, 1)], Reply(message, error))
        for i, (message, error) in enumerate(turns)
    )
    trajectory = Trajectory("e", "t", 0, played, Status("completed"), success=success)
    with Run.create(folder, config=config(folder, stages=[echo(updates=1)]), env="words", model="gone", seed=0) as run:
        run.write_groups(1, [Group(task, (Episode((trajectory,)),))])
        return run.path


def test_stages_learn_end_when_learned_and_leave_a_checkpoint(tmp_path: Path) -> None:
    small = {"hidden_size": 64, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "num_key_value_heads": 2}
    run = train_sft(
        config(
            tmp_path,
            scratch=small,
            learner={"learning_rate": 3e-3},
            stages=[echo(updates=60), echo(updates=500, until_loss=100.0, learning_rate=1e-4)],
        ),
        QuietConsole(),
    )
    told = rows(run)
    assert told[11]["loss"] < 0.6 * told[0]["loss"]
    assert told[-1]["iteration"] == 60 + 20, "the second stage ends after its window of 20 updates"
    assert told[-1]["learning_rate"] == 1e-4
    assert not {name for name in told[0] if name.startswith(("kl", "clip", "ratio", "mismatch"))}
    loaded = load_model(ModelConfig(path=str(run / "checkpoints" / "iteration_000080")))
    assert loaded.model.config.num_hidden_layers == 2


def test_successes_of_another_model_are_imitated_in_the_words_of_this_one(tmp_path: Path) -> None:
    path = stored_run(tmp_path / "runs", (CALL, ""), (ANSWER, ""))
    model = save_tiny_model(tmp_path / "model")
    stage = {"env": {"name": WORDS}, "from_run": str(path), "updates": 2, "episodes_per_update": 1}
    run = train_sft(config(tmp_path, model={"path": str(model)}, stages=[stage]), QuietConsole())
    tokenizer = load_model(ModelConfig(path=str(model))).tokenizer
    said = Renderer(tokenizer, [{"type": "function", "function": {"name": "look", "parameters": {"properties": {}}}}])
    assert rows(run)[-1]["tokens/trained"] == len(said.reply(CALL)) + len(said.reply(ANSWER))


@pytest.mark.parametrize(("error", "success"), [("unclosed", True), ("", False)])
def test_malformed_and_failed_trajectories_are_not_imitated(tmp_path: Path, error: str, success: bool) -> None:
    path = stored_run(tmp_path / "runs", (CALL, error), (ANSWER, ""), success=success)
    stage = {"env": {"name": WORDS}, "from_run": str(path), "updates": 1}
    with pytest.raises(DataError, match="no successful trajectory without a malformed turn"):
        train_sft(config(tmp_path, stages=[stage]), QuietConsole())


def test_rendered_dialogue_is_what_a_policy_would_have_left(tmp_path: Path) -> None:
    tokenizer = load_model(ModelConfig(path=str(save_tiny_model(tmp_path)))).tokenizer
    renderer = Renderer(
        tokenizer, [{"type": "function", "function": {"name": "look", "parameters": {"properties": {}}}}]
    )
    asked, told = (Message("user", "say red"),), (Message("tool", "red is grey", name="look"),)
    trajectory = render(Dialogue(Task("t", "say red"), 0, ((asked, CALL), (told, ANSWER))), renderer)
    first, second = trajectory.turns
    assert list(first.context_ids) == renderer.start(asked)
    assert second.prefix_length == len(first.context_ids) + len(first.completion.token_ids)
    assert (first.reply.message, second.reply.message) == (CALL, ANSWER)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"scratch": {}, "model": {"path": "x"}}, "`model` does nothing beside `scratch`"),
        ({"learner": {"updates_per_iteration": 2}}, r"learner\.updates_per_iteration does nothing"),
        ({"agent": {"max_turn_tokens": 7}}, r"agent\.max_turn_tokens does nothing"),
        ({"stages": [echo(updates=1, from_run="x", num_episodes=5)]}, "num_episodes does nothing"),
    ],
)
def test_options_without_effect_are_refused(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, **{"stages": [echo(updates=1)], **values})


def test_environment_without_an_expert_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Words has no expert to imitate"):
        train_sft(config(tmp_path, stages=[{"env": {"name": WORDS}, "updates": 1}]), QuietConsole())
    assert not list(tmp_path.iterdir())


def test_imitation_stores_the_threads_that_it_computes_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"path": str(save_tiny_model(tmp_path / "model"))}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    try:
        run = train_sft(config(tmp_path / "runs", stages=[echo(updates=1)], model=model), QuietConsole())
        assert StoredRun(run).config["run"]["threads"] == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
