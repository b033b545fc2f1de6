"""A sampler that does not hold the learner's weights stops the run before it learns from it; a healthy one does not."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agentflow.errors import RunAborted
from agentflow.runs import Run, StoredRun
from agentflow.trainers import loop
from agentflow.trainers.algorithm import load_recipe
from agentflow.trainers.parts import assemble
from agentflow.trainers.session import Session
from agentflow.trainers.settings import TrainConfig
from agentflow.trainers.start import assembled, resume, train
from agentflow.view.console import QuietConsole
from agentflow.view.report import render_report
from tests.integration.words import save_tiny_model

KEPT = {"has_signal": {"drop": False}}
WORDS = f"{Path(__file__).parent / 'words.py'}:Words"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def config(model: Path, out: Path, **more: Any) -> TrainConfig:
    return TrainConfig(
        env={"name": WORDS},
        model={"path": str(model), "dtype": more.pop("dtype", "float32")},
        agent={"max_turn_tokens": 12},
        learner={"learning_rate": 1e-2, "updates_per_iteration": 2},
        rewards={"preset": "outcome", "terms": {"well_formed": {"weight": 0.5}}},
        algorithm=load_recipe("flow-grpo", {"keep": KEPT}),
        evaluation={"num_tasks": 0},
        run={"iterations": 8, "tasks_per_iteration": 4, "group_size": 4, "checkpoint_every": 20, "out": str(out)},
        **more,
    )


def train_with_a_deaf_sampler(config: TrainConfig, out: Path, *, noise: float = 0.0) -> Path:
    """Train while the sampler plays a copy of the first weights, which no update reaches."""
    assembly = assembled(config)
    deaf = replace(assembly.loaded, model=copy.deepcopy(assembly.loaded.model))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in deaf.model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    apart = replace(assemble(config, loaded=deaf), loaded=assembly.loaded)
    with Run.create(out, config=config, env="words", model="tiny", seed=0, tensorboard=False) as run:
        with pytest.raises(RunAborted, match=r"mismatch/mean_abs_logprob = .* is above mismatch\.max_mean_abs_logprob"):
            loop.train(Session(config, apart, run=run, console=QuietConsole()))
        return run.path


def rows(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")} for row in StoredRun(run).metrics()
    ]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_a_healthy_run_never_rings_and_measures_every_iteration(
    model: Path, tmp_path: Path, dtype: str, bound: float
) -> None:
    run = train(config(model, tmp_path, dtype=dtype), QuietConsole())
    found = rows(run)[1:]
    assert len(found) == 8
    for row in found:
        assert 0 < row["mismatch/mean_abs_logprob"] < bound
        assert row["mismatch/mean_abs_logprob"] <= row["mismatch/max_abs_logprob"]
        assert 0 <= row["mismatch/k3"] < bound
        assert row["mismatch/stale_mean_abs_logprob"] is None
    assert found[-1]["reward/shaped"] > found[0]["reward/shaped"] + 0.1, "it learned: the weights moved"


def test_wrong_weights_stop_the_run_before_it_learns_from_them(model: Path, tmp_path: Path) -> None:
    run = train_with_a_deaf_sampler(config(model, tmp_path), tmp_path, noise=0.1)
    stored = StoredRun(run)
    assert [row["iteration"] for row in stored.metrics()] == [0]
    assert stored.checkpoints() == [], "the first iteration starts from the configured model"
    ((iteration, record),) = stored.mismatches()
    assert iteration == 1
    (sampled,) = (
        trajectory
        for group in stored.groups(1)
        for trajectory in group.trajectories
        if trajectory.id == record["trajectory"]
    )
    told = [token["sampler"] for token in record["tokens"]]
    assert told == [x for turn in sampled.turns for x in turn.completion.logprobs]
    differences = [abs(token["sampler"] - token["learner"]) for token in record["tokens"]]
    assert record["mean_abs_logprob"] == pytest.approx(sum(differences) / len(differences))
    assert record["max_abs_logprob"] == pytest.approx(max(differences))
    assert "Where sampler and learner differed most" in render_report(stored)


def test_a_sampler_left_behind_stops_the_run_which_then_goes_on_as_if_it_had_not(model: Path, tmp_path: Path) -> None:
    settings = config(model, tmp_path / "deaf")
    run = train_with_a_deaf_sampler(settings, tmp_path / "deaf")
    found = rows(run)
    ended = found[-1]["iteration"]
    assert [c.iteration for c in StoredRun(run).checkpoints()] == [ended], "the state before the iteration that rang"
    assert ended > 0 and all(row["mismatch/mean_abs_logprob"] < 1e-5 for row in found[1:])
    # The copy was right until the first update, so what was kept is the state of a run that was never ill.
    resume(run, QuietConsole())
    healthy = train(config(model, tmp_path / "healthy"), QuietConsole())
    assert rows(run) == rows(healthy)
    assert rows(run)[-1]["iteration"] == 8


def test_what_is_meant_to_differ_can_be_trained_on(model: Path, tmp_path: Path) -> None:
    """The limit off and a correction on: a sampler of its own weights is off-policy data, not an error."""
    settings = config(model, tmp_path, mismatch={"max_mean_abs_logprob": None}).model_copy(
        update={
            "algorithm": load_recipe(
                "flow-grpo", {"keep": KEPT, "loss": {"clipped": {"correction": {"kind": "tis", "unit": "turn"}}}}
            )
        }
    )
    assembly = assembled(settings)
    deaf = replace(assembly.loaded, model=copy.deepcopy(assembly.loaded.model))
    apart = replace(assemble(settings, loaded=deaf), loaded=assembly.loaded)
    with Run.create(tmp_path, config=settings, env="words", model="tiny", seed=0, tensorboard=False) as run:
        loop.train(Session(settings, apart, run=run, console=QuietConsole()))
        found = rows(run.path)
    assert found[-1]["iteration"] == 8
    assert found[-1]["mismatch/mean_abs_logprob"] > 0.05
    assert found[-1]["mismatch/correction"] != pytest.approx(1.0, abs=1e-3)
    assert json.loads((run.path / "mismatch" / "iteration_000008.json").read_text())["tokens"]
