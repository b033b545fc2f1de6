"""Each recipe trains for two iterations in small packs: it learns something, and every number is finite."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from agentflow.trainers import start
from agentflow.trainers.algorithm import list_recipes, load_recipe
from agentflow.trainers.settings import TrainConfig
from agentflow.view.console import QuietConsole
from tests.integration.words import save_tiny_model

COIN = f"{Path(__file__).parent / 'words.py'}:Coin"
# Single-stream: as many attempts, one at each task.
RUN = {"spo": {"tasks_per_iteration": 16, "group_size": 1}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), brief=True)


def trained(name: str, model: Path, out: Path) -> Path:
    config = TrainConfig(
        env={"name": COIN},
        model={"path": str(model)},
        agent={"max_turn_tokens": 12},
        # Packs of a few trajectories: groups are torn.
        learner={"learning_rate": 1e-3, "max_tokens": 64},
        algorithm=load_recipe(name),
        evaluation={"num_tasks": 1},
        run={
            "iterations": 2,
            "checkpoint_every": 1,
            "out": str(out),
            **RUN.get(name, {"tasks_per_iteration": 4, "group_size": 4}),
        },
    )
    return Path(start.train(config, QuietConsole()))


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", list_recipes())
def test_two_iterations_of_each_recipe(name: str, model: Path, tmp_path: Path) -> None:
    run = trained(name, model, tmp_path)
    told = rows(run)[1:]
    assert [row["iteration"] for row in told] == [1, 2]
    for row in told:
        numbers = {key: value for key, value in row.items() if isinstance(value, float)}
        assert all(map(math.isfinite, numbers.values())), numbers
        assert row["grad_norm"] and row["updates/skipped"] == 0, row
    state = json.loads((run / "checkpoints" / "iteration_000002" / "state.json").read_text())
    remembered = [part["rows"] for path, part in state["slots"].items() if path.startswith("statistics.")]
    assert bool(remembered) == (name in {"vade", "spo"})
    for table in remembered:
        assert len(table) >= 4 and all(row["played"] in (1, 2) for row in table.values())
