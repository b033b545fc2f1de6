"""Imitation, from an expert and from a run's own successes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agentflow.config import Config, validate_options
from agentflow.errors import ConfigError, DataError
from agentflow.messages import Message, Reply, ToolCall
from agentflow.models import ModelConfig, load_model, training_defaults
from agentflow.renderer import Renderer
from agentflow.runs import Run, StoredRun
from agentflow.trainers.scratch import ScratchConfig, new_model, new_tokenizer
from agentflow.trainers.sft import Dialogue, SftConfig, render, train_sft
from agentflow.trainers.starter import starter_values
from agentflow.trajectory import Completion, Episode, Group, Status, Task, Trajectory, Turn
from agentflow.view.console import QuietConsole
from tests.integration.words import Words

WORDS = f"{Path(__file__).parent / 'words.py'}:Words"
CALL = Message("assistant", "", (ToolCall("look", {"at": "red"}),))
ANSWER = Message("assistant", "red red")


def config(out: Path, **values: Any) -> SftConfig:
    quick = {"run": {"out": str(out), "log_every": 5}, "evaluation": {"num_tasks": 0}}
    return validate_options(SftConfig, {**quick, **values}, "test")


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


def test_what_is_not_to_be_imitated_is_read_by_the_next_turn(tmp_path: Path) -> None:
    tokenizer = load_model(ModelConfig(path=str(save_tiny_model(tmp_path)))).tokenizer
    renderer = Renderer(
        tokenizer, [{"type": "function", "function": {"name": "look", "parameters": {"properties": {}}}}]
    )
    asked, told = (Message("user", "say red"),), (Message("tool", "red is grey", name="look"),)
    slip, last = replace(CALL, imitate=False), replace(ANSWER, imitate=False)
    said = ((asked, slip), (told, CALL), (told, ANSWER), (told, last))
    all_taught = tuple((heard, replace(message, imitate=True)) for heard, message in said)
    whole = render(Dialogue(Task("t", "say red"), 0, all_taught), renderer)
    taught = render(Dialogue(Task("t", "say red"), 0, said), renderer)
    assert [turn.reply.message for turn in taught.turns] == [CALL, ANSWER]
    assert tokens_of(taught) == tokens_of(whole)[: len(tokens_of(taught))]
    assert taught.turns[0].context_ids[-len(renderer.extend(told)) :] == tuple(renderer.extend(told))
    assert render(Dialogue(Task("t", "say red"), 0, said[:1]), renderer).turns == ()


def tokens_of(trajectory: Trajectory) -> list[int]:
    return [token for turn in trajectory.turns for token in (*turn.context_ids, *turn.completion.token_ids)]


def test_teaching_is_measured_and_its_checkpoints_stay(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "num_key_value_heads": 2}
    run = train_sft(
        config(
            tmp_path,
            run={"out": str(tmp_path), "keep_checkpoints": 2},
            scratch=small,
            stages=[echo(updates=5)],
            evaluation={"every": 2, "num_tasks": 3},
        ),
        QuietConsole(),
    )
    assert [row["iteration"] for row in rows(run) if "heldout/success" in row] == [2, 4, 5]
    assert [checkpoint.iteration for checkpoint in StoredRun(run).checkpoints()] == [4, 5]
    advice = training_defaults(str(run))
    assert set(advice) == {"learner", "evaluation", "run", "agent"}
    assert 0 < advice["agent"]["max_turn_tokens"] < advice["agent"]["max_episode_tokens"] <= 2048


def test_a_model_keeps_what_it_recommends_and_limits_that_were_given(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    (model / "agentflow.yaml").write_text("learner: {learning_rate: 0.25}\nagent: {max_turn_tokens: 5}\n")
    agent = {"max_turn_tokens": 7, "max_turns": 3}
    stages = [echo(updates=1)]
    run = train_sft(
        config(tmp_path / "runs", model={"path": str(model)}, agent=agent, stages=stages, evaluation={"num_tasks": 0}),
        QuietConsole(),
    )
    advice = training_defaults(str(run))
    assert advice["learner"] == {"learning_rate": 0.25}
    assert {"max_turn_tokens": 7, "max_turns": 3}.items() <= advice["agent"].items()


class Silent(Words):
    """Its expert shows only what is not to be imitated."""

    def expert(self, task: Task, seed: int) -> "Silent":
        return self

    def act(self, observation: Sequence[Message]) -> Message:
        return replace(ANSWER, imitate=False)


def test_an_expert_of_whom_nothing_is_to_be_imitated_is_refused(tmp_path: Path) -> None:
    stage = {"env": {"name": f"{__file__}:Silent"}, "updates": 1, "num_episodes": 2}
    with pytest.raises(DataError, match="says nothing that is to be imitated"):
        train_sft(config(tmp_path, stages=[stage]), QuietConsole())
    assert not list(tmp_path.iterdir())


class Errant(Words):
    """Has an option that says how careless its expert is."""

    class Options(Config):
        expert_noise: float = 0.0

    options_model = Options


def test_a_careless_expert_is_imitated_last_where_there_is_one_and_nothing_else_is_said() -> None:
    plain, errant = {"name": WORDS}, {"name": f"{__file__}:Errant"}
    assert [stage["updates"] for stage in starter_values(plain, {})["stages"]] == [420]
    clean, careless = starter_values(errant, {"updates": 60})["stages"]
    assert (clean["updates"], "expert_noise" in clean["env"]) == (50, False)
    assert (careless["updates"], careless["env"]["expert_noise"]) == (10, 1.0)
    for env, stage in (({**errant, "expert_noise": 0.5}, {}), (errant, {"until_loss": 0.5})):
        (only,) = starter_values(env, stage)["stages"]
        assert only["env"] == env and {**stage, "updates": 420}.items() <= only.items()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"scratch": {}, "model": {"path": "x"}}, "`model` does nothing beside `scratch`"),
        ({"learner": {"updates_per_iteration": 2}}, r"learner\.updates_per_iteration does nothing"),
        ({"evaluation": {"every": 5, "num_tasks": 0}}, r"evaluation\.every does nothing"),
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
