"""`agentflow train` and `agentflow config show`."""

from dataclasses import replace
from pathlib import Path

import typer

from agentflow.cli.options import print_options
from agentflow.cli.reporting import PublishingConsole, publish, published_at_the_end
from agentflow.cli.settings import Given, train_config
from agentflow.cli.words import hush_libraries
from agentflow.config import describe, is_changed, to_yaml
from agentflow.environment import Environment, load_environment, load_tasks
from agentflow.errors import ConfigError
from agentflow.models import folder_of
from agentflow.runs import StoredRun
from agentflow.runs.storage import check_writable
from agentflow.starter_policies import RECOMMENDED, STARTER, Part, is_learned, recommended, starter_for
from agentflow.trainers import start
from agentflow.trainers.algorithm import recipe_files
from agentflow.trainers.settings import TrainConfig
from agentflow.view.console import open_console

_TINY_MB = 100
"""Weights of fewer megabytes than this need the learning rate of a starter policy."""


def train(given: Given, *, resume: Path | None, dry_run: bool, accept_changes: bool = False) -> None:
    """Train, write curves and report, and print `run: PATH` last.

    Raises:
        UserError: Something the user can mend.
        RunAborted: The run stopped itself.
    """
    hush_libraries()
    if resume is not None:
        _resume(resume, alone=not (given.anything or dry_run), accept_changes=accept_changes)
        return
    if accept_changes:
        raise ConfigError("--accept-changes does nothing without --resume.", "Leave it out.")
    config = train_config(given)
    if dry_run:
        _describe_run(config)
        return
    with open_console(config.run.iterations) as console:
        for note in (_unlearned(config), _slow_for_its_size(config)):
            if note:
                console.note(note)
        with published_at_the_end():
            shown = PublishingConsole(console, config.run.iterations)
            path = start.train(config, shown, recipes=recipe_files(given.algorithm))
    _finish(path)


def _unlearned(config: TrainConfig) -> str:
    """Say that no starter policy knows the environment, and what to do instead; empty where one does."""
    env, part = config.env.name, Part(env=config.env.name, agent=config.agent.kind)
    if config.model.path != STARTER or is_learned(part):
        return ""
    can_teach = load_environment(env).expert is not Environment.expert
    teach = f"Make one of its own first (agentflow sft --env {env}), or choose" if can_teach else "Choose"
    return (
        f"No starter policy has learned to play {env}: expect little of {starter_for(STARTER, part)}. "
        f"{teach} a larger model (--model)."
    )


def _slow_for_its_size(config: TrainConfig) -> str:
    """Say that a tiny model is about to be trained with the learning rate of a large one; empty where it is not."""
    folder = folder_of(config.model.path, Part(env=config.env.name, agent=config.agent.kind))
    size_mb = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    is_adapter = (folder / "adapter_config.json").is_file()  # of a model that need not be small
    advised = recommended(folder) or is_changed(config.learner, "learning_rate")
    if not 0 < size_mb < _TINY_MB or is_adapter or advised:
        return ""
    return (
        f"{folder} holds a tiny model ({size_mb:.1f} MB) and no {RECOMMENDED}: learner.learning_rate="
        f"{config.learner.learning_rate:g} is for large models and will hardly move it. Try learner.learning_rate=5e-4."
    )


def show_options(given: Given) -> None:
    """Print every option with its type, value and meaning; words without `=` choose sections, such as `learner`.

    Raises:
        ConfigError: An option is unknown or wrong, or there is no such section.
    """
    sections = [word for word in given.words if "=" not in word and not word.startswith("-")]
    given = replace(given, words=[word for word in given.words if word not in sections])
    if (
        given.flags.get("env.name") is None
        and not given.files
        and not any(word.startswith("env.name=") for word in given.words)
    ):
        given = replace(given, flags={"env.name": "websearch"})
    config = train_config(given)
    environment = load_environment(config.env.name)
    rows = [*describe(TrainConfig)]
    rows += [replace(option, name=f"env.{option.name}") for option in describe(environment.options_model)]
    print_options(rows, sections, config.model_dump(mode="json"))


def _resume(path: Path, *, alone: bool, accept_changes: bool) -> None:
    if not alone:
        raise ConfigError(
            "--resume takes only the run's folder: it continues exactly as it was configured.",
            "Leave the other options out, or start a new run with --config RUN/config.yaml and your changes.",
        )
    iterations = StoredRun(path).config.get("run", {}).get("iterations")
    with open_console(iterations) as console, published_at_the_end():
        start.resume(path, PublishingConsole(console, iterations), accept_changes=accept_changes)
    _finish(path)


def _finish(path: Path) -> None:
    publish(StoredRun(path))
    typer.echo(f"run: {path}")


def _describe_run(config: TrainConfig) -> None:
    parts = start.assembled(config)
    check_writable(Path(config.run.out))
    num_tasks = len(load_tasks(parts.make_environment(), "train"))
    num_parameters = sum(parameter.numel() for parameter in parts.loaded.model.parameters())
    typer.echo(to_yaml(config))
    typer.echo(f"environment: {config.env.name}, {num_tasks:,} training tasks")
    typer.echo(f"model: {parts.loaded.name}, {num_parameters / 1e6:,.1f} M parameters, {parts.loaded.model.device}")
    typer.echo(
        f"each of {config.run.iterations} iterations: {config.run.tasks_per_iteration} tasks, "
        f"{config.run.group_size} trajectories each"
    )
    typer.echo("dry run: nothing was trained, nothing was written")
