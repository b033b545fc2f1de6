"""`import agentflow`: cheap, and a run is trained, evaluated and read by it as by the commands."""

import subprocess
import sys
from pathlib import Path

import pytest

import agentflow
from agentflow.cli import main
from agentflow.errors import ConfigError
from agentflow.trainers.scratch import ScratchConfig, new_model, new_tokenizer


def test_importing_loads_nothing_until_a_function_is_looked_up() -> None:
    code = "import sys, agentflow; assert 'torch' not in sys.modules; agentflow.load_run; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert {"train", "evaluate", "load_run", "load_recipe"} <= set(dir(agentflow))
    assert agentflow.load_recipe("dapo").weights.kind == "token"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = agentflow.trian


def test_a_run_is_trained_evaluated_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shape = ScratchConfig(
        max_words=40, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, num_key_value_heads=1
    )
    tokenizer = new_tokenizer(["What does tea cost ? 3 price item"], shape.max_words)
    new_model(tokenizer, shape, seed=0).save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    assert main(["envs", "new", "my_shop"]) == 0
    limits = {"iterations": 1, "tasks_per_iteration": 2, "group_size": 2}
    agent = {"max_turns": 2, "max_turn_tokens": 8}
    evaluation = {"num_tasks": 2}
    run = agentflow.train(
        "my_shop.py:MyShop", algo="dapo", model="tiny", show=False, run=limits, agent=agent, evaluation=evaluation
    )
    assert run.config["algorithm"]["weights"]["kind"] == "token"
    assert [row["iteration"] for row in agentflow.load_run(run.path).metrics()] == [0, 1]
    found = agentflow.evaluate(run.path, num_tasks=2)
    assert (found.num_tasks, found.split) == (2, "heldout")
    assert found.success == run.metrics()[-1]["heldout/success"]


def test_a_mistake_is_the_error_of_the_command() -> None:
    with pytest.raises(ConfigError, match=r"no option 'run\.iteration'\. Did you mean 'run\.iterations'"):
        agentflow.train("websearch", run={"iteration": 1})
