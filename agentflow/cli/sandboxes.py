"""`agentflow sandbox doctor`, `run`, `serve`, `image` and `gc`."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import typer

from agentflow.cli.tables import print_table
from agentflow.errors import DataError, UserError
from agentflow.sandbox.base import Limits, Program, Result
from agentflow.sandbox.docker import build_image
from agentflow.sandbox.docker import gc as docker_gc
from agentflow.sandbox.probe import AUTO, BACKENDS, open_sandbox, probe


def doctor() -> bool:
    """Try every backend, print what came of it, and say whether one works."""
    rows = [(name, *asyncio.run(_tried(name))) for name in BACKENDS]
    print_table(("sandbox", "works", "found"), rows)
    return any(works == "yes" for _, works, _ in rows)


def run(file: Path, *, backend: str, limits: dict[str, Any]) -> int:
    """Run a file and pass on what it writes; the exit code of the program, or 1 with the reason on stderr.

    Raises:
        DataError: The file cannot be read.
        SandboxUnavailable: No sandbox works here.
    """
    try:
        code = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"Cannot read {file}: {error.strerror}.", "Check the path.") from None
    language: Literal["python", "shell"] = "shell" if file.suffix == ".sh" else "python"
    stdin = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    result = asyncio.run(_run(Program(code, language=language, stdin=stdin), Limits(**limits), backend=backend))
    typer.echo(result.stdout.text, nl=False)
    typer.echo(result.stderr.text, nl=False, err=True)
    used = f"{result.usage.cpu_s:.2f} CPU s, {result.usage.wall_s:.2f} s, {result.usage.memory_mb:.0f} MB"
    typer.echo(f"{result.status} ({result.backend}; {used}) {result.detail}".rstrip(), err=True)
    return 0 if result.status == "ok" else result.exit_code or 1


def image(name: str, packages: Sequence[str]) -> None:
    """Make the image of the Docker backend.

    Raises:
        ConfigError: A package is not installed.
        SandboxUnavailable: No engine answers.
    """
    typer.echo(f"{name} {build_image(name, packages)}")


def gc() -> None:
    """Remove what dead processes left in the Docker engine.

    Raises:
        SandboxUnavailable: No engine answers.
    """
    names = docker_gc()
    typer.echo(f"{len(names)} containers removed{': ' if names else ''}{', '.join(names)}")


async def _tried(name: str) -> tuple[str, str]:
    try:
        sandbox = BACKENDS[name]()
    except UserError as error:
        return "no", str(error)
    problem = await probe(sandbox)
    result = await sandbox.run(Program("pass"))
    await sandbox.close()
    return ("no", problem) if problem else ("yes", ", ".join(result.enforced))


async def _run(program: Program, limits: Limits, *, backend: str) -> Result:
    sandbox = await open_sandbox(backend or AUTO)
    try:
        return await sandbox.run(program, limits)
    finally:
        await sandbox.close()
