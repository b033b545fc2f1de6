"""`agentflow train` and `agentflow config show`."""

from dataclasses import replace
from pathlib import Path

import typer

from agentflow.cli.options import print_options
from agentflow.cli.settings import Given, train_config
from agentflow.cli.words import hush_libraries, noted_run
from agentflow.config import describe, to_yaml
from agentflow.environment import Environment, load_environment, load_tasks
from agentflow.errors import ConfigError, RunAborted
from agentflow.runs import StoredRun
from agentflow.runs.storage import check_writable
from agentflow.starter_policies import STARTER, Part, is_learned, starter_for
from agentflow.trainers import start
from agentflow.trainers.settings import TrainConfig
from agentflow.view.console import open_console
from agentflow.view.plots import write_plots
from agentflow.view.report import write_report


def train(given: Given, *, resume: Path | None, dry_run: bool) -> None:
    """Train, write curves and report, and print `run: PATH` last.

    Raises:
        UserError: Something the user can mend.
        RunAborted: The run stopped itself.
    """
    hush_libraries()
    if resume is not None:
        _resume(resume, alone=not (given.anything or dry_run))
        return
    config = train_config(given)
    if dry_run:
        _describe_run(config)
        return
    with open_console(config.run.iterations) as console:
        part = Part(env=config.env.name)
        if config.model.path == STARTER and not is_learned(part):
            can_teach = load_environment(config.env.name).expert is not Environment.expert
            console.note(
                f"No starter policy has learned to play {config.env.name}: expect little of "
                f"{starter_for(STARTER, part)}. "
                + ("Teach it first (agentflow sft), or choose" if can_teach else "Choose")
                + " a larger model (--model)."
            )
        try:
            path = start.train(config, console)
        except RunAborted as error:
            write_report(StoredRun(Path(noted_run(error))))
            raise
    _finish(path)


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


def _resume(path: Path, *, alone: bool) -> None:
    if not alone:
        raise ConfigError(
            "--resume takes only the run's folder: it continues exactly as it was configured.",
            "Leave the other options out, or start a new run with --config RUN/config.yaml and your changes.",
        )
    iterations = StoredRun(path).config.get("run", {}).get("iterations")
    with open_console(iterations) as console:
        try:
            start.resume(path, console)
        except RunAborted as error:
            write_report(StoredRun(Path(noted_run(error))))
            raise
    _finish(path)


def _finish(path: Path) -> None:
    run = StoredRun(path)
    write_plots(run)
    write_report(run)
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
