"""`agentflow algos list | show | check | new`."""

from pathlib import Path

import typer

from agentflow.cli.tables import print_table
from agentflow.config import describe, suggest, to_yaml
from agentflow.errors import ConfigError
from agentflow.trainers.algorithm import RECIPES, list_recipes, load_recipe
from agentflow.trainers.algorithm_check import check_algorithm
from agentflow.trainers.algorithm_scaffold import scaffold_slot
from agentflow.trainers.slots.base import FAMILIES


def list_all() -> None:
    """Print every recipe with the first line of its file, and every kind of slot."""
    print_table(("recipe", "what it is"), [(name, _summary(RECIPES / f"{name}.yaml")) for name in list_recipes()])
    kinds = [(family, ", ".join(found.names())) for family, found in FAMILIES.items() if found.names()]
    print_table(("slot", "kinds"), kinds)
    typer.echo("Your own: agentflow algos new NAME, then --algo NAME.yaml")


def show(name: str) -> None:
    """Print a recipe with every key and option written out, or the options of a kind such as `losses/clipped`.

    Raises:
        ConfigError: There is no such recipe or kind.
    """
    family, slash, kind = name.partition("/")
    if not slash or family not in FAMILIES:
        if slash and not name.endswith((".yaml", ".yml")):
            raise ConfigError(f"There is no slot {family!r}.", suggest(family, list(FAMILIES)))
        typer.echo(to_yaml(load_recipe(name)).rstrip())
        return
    found = FAMILIES[family].find(kind)
    typer.echo(f"{name}: {_first_paragraph(found)}")
    rows = [(option.name, option.type, option.default, option.description) for option in describe(found)]
    print_table(("option", "type", "default", "meaning"), [row for row in rows if row[0] != "kind"])


def check(name: str) -> None:
    """Print what is wrong with a recipe and its classes; exit code 1 if anything would spoil a run.

    Raises:
        ConfigError: There is no such recipe, or it does not read.
    """
    findings = check_algorithm(load_recipe(name))
    for finding in findings:
        typer.echo(f"{finding.level}: {finding.message}")
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)
    typer.echo(f"{name} keeps the contract. Next: agentflow train --env websearch --algo {name}")


def new(name: str, slot: str, folder: Path) -> None:
    """Write a slot and a recipe with it, and say what to do with them.

    Raises:
        ConfigError: The name or the slot cannot be used, or a file exists.
        StorageError: The folder cannot be written.
    """
    python, recipe = scaffold_slot(name, slot, folder)
    typer.echo(f"wrote {python} and {recipe}")
    typer.echo(f"next: agentflow algos check {recipe}")
    typer.echo(f"then: agentflow train --env websearch --algo {recipe}")


def _summary(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def _first_paragraph(found: type) -> str:
    return " ".join((found.__doc__ or "").partition("\n\n")[0].split())
