"""`agentflow train` and `agentflow config show`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from agentflow.cli.settings import Given, train_config
from agentflow.cli.tables import print_table
from agentflow.cli.words import hush_libraries, noted_run
from agentflow.config import Option, describe, suggest, to_yaml
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

_MAX_SHOWN_CHARACTERS = 40


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
    _print_options(chosen_options(rows, sections), config.model_dump(mode="json"))


def chosen_options(options: Sequence[Option], sections: Sequence[str]) -> list[Option]:
    """Return the options of the sections, or all if none is given.

    Raises:
        ConfigError: There is no such section.
    """
    names = [option.name for option in options]
    for section in sections:
        if not any(_is_in(option, section) for option in options):
            raise ConfigError(f"There is no section {section!r}.", suggest(section, names))
    return [option for option in options if not sections or any(_is_in(option, section) for section in sections)]


def _is_in(option: Option, section: str) -> bool:
    return f"{option.name}.".startswith(f"{section}.")


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


def _print_options(options: Sequence[Option], values: Mapping[str, Any]) -> None:
    rows = [(option.name, option.type, _current(option, values), option.description) for option in options]
    print_table(("option", "type", "value", "meaning"), rows)


def _current(option: Option, values: Mapping[str, Any]) -> str:
    value: Any = values
    for part in option.name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return option.default
        value = value[part]
    text = "null" if value is None else str(value)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[: _MAX_SHOWN_CHARACTERS - 3]}..."
