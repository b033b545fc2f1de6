"""`agentflow envs list | info | check | validate | new`."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import typer

from agentflow.cli.tables import print_table
from agentflow.cli.words import overrides, section
from agentflow.config import describe, gather
from agentflow.environment import ENTRY_POINT_GROUP, Environment, Split, load_environment
from agentflow.environment_check import AnswerReport, check_environment, validate_answers
from agentflow.environments.scaffold import class_name, scaffold
from agentflow.errors import ConfigError, UserError

_MAX_PROMPT_CHARACTERS = 500


def list_installed() -> None:
    """Print the name, the place and the first sentence of every installed environment."""
    points = sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)
    print_table(("name", "class", "what it is"), [(point.name, point.value, _summary(point.name)) for point in points])
    typer.echo("Your own: agentflow envs new NAME, then --env NAME.py:Class")


def show(spec: str) -> None:
    """Print an environment's options, tools, reward terms and one of its tasks.

    Raises:
        ConfigError: There is no such environment, or it needs an option.
    """
    found = load_environment(spec)
    typer.echo(f"{found.__name__}: {_first_sentence(found)}")
    options = [(row.name, row.type, row.default, row.description) for row in describe(found.options_model)]
    if options:
        print_table(("option", "type", "default", "meaning"), options)
    print_table(("reward term", "what it measures"), found.reward_terms.items())
    typer.echo(f"success is the term {found.outcome!r}; at most {found.max_turns} turns")
    environment = found()
    try:
        _show_instance(environment)
    finally:
        environment.close()


def check(spec: str, words: Sequence[str]) -> None:
    """Print what is wrong with an environment; exit code 1 if anything would spoil a training run.

    Raises:
        ConfigError: There is no such environment, or its options are wrong.
    """
    findings = check_environment(load_environment(spec), **environment_options(words))
    for finding in findings:
        typer.echo(f"{finding.level}: {finding.message}")
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)
    typer.echo(f"{spec} keeps the contract. Next: agentflow train --env {spec}")


def validate(spec: str, words: Sequence[str], *, num_tasks: int | None) -> None:
    """Score gold answers, or let the expert play, and print what misses full marks; exit code 1 if anything does.

    Raises:
        ConfigError: There is no such environment, or its options are wrong.
        DataError: A split has no tasks.
    """
    found, options = load_environment(spec), environment_options(words)
    num_failing = 0
    for split in get_args(Split):
        report = validate_answers(found, split, limit=num_tasks, **options)
        typer.echo(f"{split}: {_counted(report)}")
        for task, outcome in report.failing.items():
            typer.echo(f"  {task}: {outcome}")
        num_failing += len(report.failing)
    if num_failing:
        raise typer.Exit(1)


def new(name: str, folder: Path, *, expert: bool) -> None:
    """Write a small environment with its test, perhaps one with an expert, and say what to do with it.

    Raises:
        ConfigError: The name cannot be used, or a file exists.
        StorageError: The folder cannot be written.
    """
    module, test = scaffold(name, folder, expert=expert)
    spec = f"{module}:{class_name(name)}"
    typer.echo(f"wrote {module} and {test}")
    typer.echo(f"next: agentflow envs check {spec}")
    if expert:
        typer.echo(f"then: agentflow sft --env {spec}")
        typer.echo(f"then: agentflow train --env {spec} --model RUN, the folder that sft prints last")
    else:
        typer.echo(f"then: agentflow train --env {spec}")


def environment_options(words: Sequence[str]) -> dict[str, Any]:
    """Read words `env.key=value` as the options of an environment."""
    values = gather(overrides=overrides(words))
    if set(values) - {"env"}:
        raise ConfigError(f"Only options of the environment fit here, not {', '.join(values)}.", "Write env.key=value.")
    return section(values, "env")


def _counted(report: AnswerReport) -> str:
    counts = {
        "gold answers scored": report.num_answers,
        "tasks played by the expert": report.num_played,
        "tasks with neither": report.num_unknown,
    }
    return ", ".join(f"{number} {what}" for what, number in counts.items() if number)


def _show_instance(environment: Environment) -> None:
    tools = [schema["function"] for schema in environment.tool_schemas]
    rows = [(tool["name"], ", ".join(tool["parameters"].get("properties", {})), tool["description"]) for tool in tools]
    if rows:
        print_table(("tool", "arguments", "what it does"), rows)
    train, heldout = environment.tasks("train"), environment.tasks("heldout")
    typer.echo(f"{len(train):,} training tasks, {len(heldout):,} held-out tasks")
    if train:
        typer.echo(f"for example {train[0].id}: {train[0].prompt[:_MAX_PROMPT_CHARACTERS]}")


def _summary(name: str) -> str:
    try:
        return _first_sentence(load_environment(name))
    except UserError as error:
        return f"does not load: {error}"
    except Exception as error:  # noqa: BLE001  one broken package must not hide the others
        return f"does not load: {type(error).__name__}: {error}"


def _first_sentence(found: type[Environment]) -> str:
    return (found.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
