"""Start a run, or continue one: from a configuration or a folder to a training loop that ends."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from agentflow.config import validate_options
from agentflow.environment import Environment, load_tasks
from agentflow.errors import ConfigError
from agentflow.runs import Run, StoredRun
from agentflow.trainers import loop
from agentflow.trainers.agent_card import agent_card
from agentflow.trainers.console import Console
from agentflow.trainers.kept_sources import changed_sources, keep_sources, source_files
from agentflow.trainers.parts import Assembly, assemble
from agentflow.trainers.session import Session
from agentflow.trainers.settings import TrainConfig
from agentflow.trainers.state import check_format


def train(config: TrainConfig, console: Console, *, recipes: Sequence[Path] = ()) -> Path:
    """Start a run and train it to its end.

    Args:
        config: The run.
        console: Where progress is shown.
        recipes: The user's own recipes that the configuration was made of; their texts are kept with the run.

    Returns:
        The run's folder.
    """
    # Whatever is wrong with the model or the environment is said before a folder is made.
    assembly = assembled(config)
    config = _with_threads(config, assembly.num_threads)
    name = assembly.loaded.name
    with Run.create(Path(config.run.out), config=config, env=config.env.name, model=name, seed=config.run.seed) as run:
        console.started(run.path)
        keep_sources(run, [*source_files(config), *recipes])
        run.write_file("agent.yaml", agent_card(config, assembly))
        assembly.frozen.continue_from(run.path / "usage.jsonl")
        with assembly.policy.serving(run.path):
            loop.train(Session(config, assembly, run=run, console=console))
        return run.path


def _with_threads(config: TrainConfig, number: int) -> TrainConfig:
    """Store the number of threads that a run starts with, on which its numbers may depend."""
    return config.model_copy(update={"run": config.run.model_copy(update={"threads": number})})


def assembled(config: TrainConfig) -> Assembly:
    """Build the sampling side of a run, and refuse tasks and terms that could not be trained on.

    Raises:
        UserError: The environment, its tasks, the paid terms or the model cannot be used.
    """
    torch.manual_seed(config.run.seed)
    assembly = assemble(config)
    environment = assembly.make_environment()
    config.rewards.validate_terms([*environment.reward_terms, "well_formed"])
    plan = config.algorithm.plan
    if plan.needs_hints and type(environment).hint is Environment.hint:
        raise ConfigError(
            f"algorithm.plan.kind={plan.kind} asks for hints, and {type(environment).__name__} gives none.",
            "Define `hint(self, task, level)` in the environment, or choose another plan.",
        )
    load_tasks(environment, "train")
    if config.evaluation.num_tasks:
        load_tasks(environment, "heldout")
    return assembly


def resume(path: Path, console: Console, *, accept_changes: bool = False) -> Path:
    """Continue a run that stopped, from its folder alone, exactly as if it had not stopped.

    Args:
        path: The run's folder.
        console: Where progress is shown.
        accept_changes: Whether files of the user's own may have changed since; both texts are kept.

    Raises:
        DataError: The folder holds no run, or its checkpoint does not fit.
        ConfigError: Another process is writing it, or a file has changed.
    """
    stored = StoredRun(path)
    _check_resumable(stored)
    changed = changed_sources(stored, console.note, accept=accept_changes)
    with Run.resume(path) as run:
        checkpoint = run.latest_checkpoint()
        keep_sources(run, changed, iteration=checkpoint.iteration if checkpoint else 0)
        console.started(run.path)
        config = validate_options(TrainConfig, run.config, "config.yaml")
        assembly = assembled(config)
        assembly.frozen.continue_from(run.path / "usage.jsonl")
        with assembly.policy.serving(run.path):
            loop.train(Session(config, assembly, run=run, console=console))
        return run.path


def _check_resumable(run: StoredRun) -> None:
    """Refuse a run of another version before anything of it is rewound."""
    if "stages" in run.config:
        raise ConfigError(
            f"{run.path} is a run of imitation, which starts over.", f"Train from it: --model {run.path}."
        )
    checkpoint = run.latest_checkpoint()
    if checkpoint is not None:
        check_format(json.loads((checkpoint.path / "state.json").read_text(encoding="utf-8")))
