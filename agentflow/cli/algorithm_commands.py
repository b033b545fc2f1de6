"""The commands of `agentflow algos`; each one imports what it needs when it runs."""

# ruff: noqa: PLC0415  `agentflow --help` must not import torch
from pathlib import Path
from typing import Annotated

import typer

algos = typer.Typer(rich_markup_mode=None, help="Algorithms: list, show, check, start one of your own.")


@algos.command("list")
def list_algorithms() -> None:
    """List the recipes, and the kinds that fill each slot."""
    from agentflow.cli import algorithms

    algorithms.list_all()


@algos.command("show")
def show_algorithm(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A recipe, or a kind such as losses/clipped.")],
) -> None:
    """Show a recipe with every option written out, or the options of one kind."""
    from agentflow.cli import algorithms

    algorithms.show(name)


@algos.command("check")
def check_algorithm(
    name: Annotated[str, typer.Argument(metavar="FILE", help="A recipe's file or name.")],
) -> None:
    """Check a recipe and its classes on a small made-up batch."""
    from agentflow.cli import algorithms

    algorithms.check(name)


@algos.command("new")
def new_algorithm(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name such as my_loss.")],
    slot: Annotated[
        str, typer.Option(metavar="SLOT", help="What to start from: losses, advantages, rewards or keeps.")
    ] = "losses",
    folder: Annotated[Path, typer.Option("--in", metavar="DIR", help="Where the files are written.")] = Path(),
) -> None:
    """Write a slot of your own that works, and a recipe with it."""
    from agentflow.cli import algorithms

    algorithms.new(name, slot, folder)
