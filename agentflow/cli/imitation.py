"""`agentflow sft`."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from agentflow.cli.options import print_options
from agentflow.cli.reporting import PublishingConsole, publish, published_at_the_end
from agentflow.cli.words import flag_overrides, hush_libraries, overrides, section
from agentflow.config import describe, gather, merge, validate_options
from agentflow.environment import load_environment
from agentflow.errors import ConfigError
from agentflow.runs import StoredRun
from agentflow.starter_policies import Part, is_learned
from agentflow.trainers.sft import SftConfig, StageConfig, train_sft
from agentflow.trainers.starter import starter_values
from agentflow.view.console import open_console

_DEFAULT_UPDATES = 500
_SHOWN = "websearch"
"""The environment whose options are shown where none is named."""
_OPTIONS = ("--env", "--updates", "--from-run", "--model", "--config", "--out", "--seed")


def sft(words: Sequence[str], files: Sequence[Path], *, flags: Mapping[str, Any], stage: Mapping[str, Any]) -> None:
    """Imitate, and print `run: PATH` last.

    Args:
        words: The words that the command did not take itself.
        files: Configuration files, in order.
        flags: The dotted name that each flag stands for, and its value; None if it was not given.
        stage: The same for the one stage that the command line can describe.

    Raises:
        UserError: Something the user can mend.
    """
    config = sft_config(words, files, flags=flags, stage=stage)
    hush_libraries()
    with open_console(sum(each.updates for each in config.stages)) as console:
        if config.scratch is not None and not files and not is_learned(Part(env=config.stages[0].env.name)):
            console.note(
                f"No starter policy knows {config.stages[0].env.name}, and no model was chosen (--model): a new one is "
                "taught from nothing."
            )
        try:
            with published_at_the_end():
                path = train_sft(config, PublishingConsole(console, sum(each.updates for each in config.stages)))
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None  # without the run's note: imitation starts over
    publish(StoredRun(path))
    env = config.stages[-1].env.name
    typer.echo(f"next: agentflow train --env {shlex.quote(env)} --model {shlex.quote(str(path))}")
    typer.echo(f"run: {path}")


def sft_config(
    words: Sequence[str], files: Sequence[Path], *, flags: Mapping[str, Any], stage: Mapping[str, Any]
) -> SftConfig:
    """Build and validate the configuration of a run of imitation.

    On the command line a run has one stage: `env.key=value` are its environment's options, `stage.key=value` its
    own. Several stages come from a file.

    Raises:
        ConfigError: An option is unknown, set twice or wrong, or there is no stage.
    """
    typed = overrides(words, known=_OPTIONS)
    chosen = merge(gather(overrides=typed), flag_overrides({**flags, **stage}, typed))
    options = {"env": section(chosen, "env"), **section(chosen, "stage")}
    values = merge(gather(files), {key: value for key, value in chosen.items() if key not in ("env", "stage")})
    if options["env"].get("name"):
        values = _one_command(values, options)
    elif options != {"env": {}}:
        raise ConfigError("Options of a stage need its environment.", "Say --env ENV, or write `stages:` in a file.")
    elif not values.get("stages"):
        raise ConfigError("Nothing to imitate was chosen.", "Say --env ENV, or give a file with `stages:`.")
    return validate_options(SftConfig, values, "The configuration")


def show_options(words: Sequence[str], files: Sequence[Path], *, env: str | None) -> None:
    """Print the options of imitation as the command line takes them: `stage.key` for those of its one stage.

    Raises:
        ConfigError: An option is unknown or wrong, or there is no such section.
    """
    sections = [word for word in words if "=" not in word and not word.startswith("-")]
    typed = [word for word in words if word not in sections]
    config = sft_config(typed, files, flags={}, stage={"env.name": env or _SHOWN})
    stage, environment = config.stages[0], load_environment(config.stages[0].env.name)
    rows = [option for option in describe(SftConfig) if option.name != "stages"]
    rows += [replace(row, name=f"stage.{row.name}") for row in describe(StageConfig) if not row.name.startswith("env.")]
    rows += [replace(option, name=f"env.{option.name}") for option in describe(environment.options_model)]
    values = {**config.model_dump(mode="json"), "stage": stage.model_dump(mode="json"), "env": stage.env.options}
    print_options(rows, sections, values)


def _one_command(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of the one stage that a command line describes; a new model may take two."""
    env, stage = options["env"], {key: value for key, value in options.items() if key != "env"}
    anew = "model" not in values and not is_learned(Part(env=str(env["name"]))) and not stage.get("from_run")
    if not anew or (values.get("scratch") is None and "scratch" in values):
        return {**values, "stages": [{"updates": _DEFAULT_UPDATES, **options}]}
    defaults = starter_values(env, stage)
    return {**merge(defaults, values), "stages": defaults["stages"]}
