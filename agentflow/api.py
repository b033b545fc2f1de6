"""AgentFlow from Python: the options of the command line, section by section, and results as values.

run = train("websearch", algo="dapo", run={"iterations": 10}, learner={"learning_rate": 5e-4})
run.metrics()[-1]["heldout/success"]
found = evaluate(run.path, num_tasks=100)
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from agentflow.cli.evaluation import configured
from agentflow.cli.settings import training_config
from agentflow.config import merge
from agentflow.environment import Split
from agentflow.runs import StoredRun
from agentflow.trainers import start
from agentflow.trainers.algorithm import load_recipe, recipe_files
from agentflow.trainers.evaluate import Evaluation
from agentflow.trainers.evaluate import evaluate as play
from agentflow.trainers.parts import assemble
from agentflow.view.console import QuietConsole, open_console

__all__ = ["evaluate", "load_recipe", "load_run", "train"]


def train(
    env: str, *, algo: str | None = None, model: str | None = None, show: bool = True, **sections: Mapping[str, Any]
) -> StoredRun:
    """Train an agent by reinforcement learning, and return its run.

    Args:
        env: A registered name, `module:Class` or `path/to/file.py:Class`.
        algo: A recipe's name or file; Flow-GRPO if not given.
        model: A folder, a run or a hub id; the environment's starter policy if not given.
        show: Whether progress is printed.
        sections: Options as in a configuration file: `run={"iterations": 10}`. The environment's own are `options`.

    Raises:
        UserError: Something that the caller can mend.
        RunAborted: The run stopped itself.
    """
    options = dict(sections)
    named = {"env": {**options.pop("options", {}), "name": env}, "model": {} if model is None else {"path": model}}
    config = training_config(merge(options, named), algorithm=algo)
    if not show:
        return load_run(start.train(config, QuietConsole(), recipes=recipe_files(algo)))
    with open_console(config.run.iterations) as console:
        return load_run(start.train(config, console, recipes=recipe_files(algo)))


def evaluate(
    target: str | Path,
    *,
    env: str | None = None,
    num_tasks: int = 200,
    num_samples: int = 1,
    split: Split = "heldout",
    seed: int = 0,
    **sections: Mapping[str, Any],
) -> Evaluation:
    """Measure how often a run, or a model, solves tasks.

    Args:
        target: A run's folder, a model folder, a hub id or `starter`.
        env: The environment; the run's own if not given.
        num_tasks: Tasks to pose.
        num_samples: Episodes of each.
        split: Which tasks: `heldout` or `train`.
        seed: Fixes the sampling.
        sections: Options that differ from the run's, as in a configuration file.

    Raises:
        UserError: Something that the caller can mend.
        RunAborted: Too many episodes failed.
    """
    chosen = merge(sections, {"env": {"name": env}} if env is not None else {})
    parts = assemble(configured(str(target), chosen, env=env))
    with TemporaryDirectory(prefix="agentflow-eval-") as folder, parts.policy.serving(Path(folder)):
        found, _ = play(parts, split=split, num_tasks=num_tasks, num_samples=num_samples, seed=seed)
    return found


def load_run(path: str | Path) -> StoredRun:
    """Open a run's folder: its configuration, metrics, trajectories and checkpoints.

    Raises:
        DataError: The folder holds no run.
    """
    return StoredRun(Path(path))
