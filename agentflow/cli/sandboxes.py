"""The commands of `agentflow sandbox`."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

import typer

from agentflow.cli.tables import print_table
from agentflow.errors import DataError, UserError
from agentflow.sandbox.attacks.base import GROUPS, Attack, Verdict
from agentflow.sandbox.attacks.decisive import DECISIVE
from agentflow.sandbox.attacks.suite import attack_sandbox
from agentflow.sandbox.base import Limits, Program, Result, Sandbox
from agentflow.sandbox.docker.backend import build_image
from agentflow.sandbox.docker.backend import gc as docker_gc
from agentflow.sandbox.probe import AUTO, BACKENDS, open_sandbox, probe

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")


def doctor(*, thorough: bool = False) -> bool:
    """Try every backend, print what came of it, and say whether one works.

    Args:
        thorough: Whether those that work are attacked as well, and must contain every attack.
    """
    rows = [(name, *asyncio.run(_tried(name))) for name in BACKENDS]
    print_table(("sandbox", "works", "found"), rows)
    working = [name for name, works, _ in rows if works == "yes"]
    if not thorough:
        return bool(working)
    held = []
    for name in working:
        typer.echo(f"\n{len(DECISIVE)} programs try to get out of {name}:")
        held.append(asyncio.run(attack(name, DECISIVE)))
    return bool(working) and all(held)


def run(file: Path, *, backend: str, limits: dict[str, Any], packages: Sequence[str] = ()) -> int:
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
    program = Program(code, language=language, stdin=stdin)
    result = asyncio.run(_run(program, Limits(**limits), backend=backend, packages=packages))
    typer.echo(_fit_for(sys.stdout, result.stdout.text), nl=False)
    typer.echo(_fit_for(sys.stderr, result.stderr.text), nl=False, err=True)
    used = f"{result.usage.cpu_s:.2f} CPU s, {result.usage.wall_s:.2f} s, {result.usage.memory_mb:.0f} MB"
    typer.echo(_fit_for(sys.stderr, f"{result.status} ({result.backend}; {used}) {result.detail}".rstrip()), err=True)
    return 0 if result.status == "ok" else result.exit_code or 1


def _fit_for(stream: TextIO, text: str) -> str:
    """Return what a program wrote so that it commands no terminal: control characters are spelled out there."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text) if stream.isatty() else text


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


async def attack(backend: str, attacks: Sequence[Attack]) -> bool:
    """Attack a sandbox, print what became of it by group, and say whether it held.

    Raises:
        SandboxUnavailable: No sandbox works here.
    """
    async with _opened(backend) as sandbox:
        verdicts = await attack_sandbox(sandbox, attacks)
    groups = [group for group in GROUPS if any(verdict.attack.group == group for verdict in verdicts)]
    rows = [(group, *_counted([v for v in verdicts if v.attack.group == group])) for group in groups]
    print_table(("group", "tried", "contained", "escaped", "which"), [*rows, ("all", *_counted(verdicts))])
    for verdict in verdicts:
        if verdict.outcome != "contained":
            typer.echo(f"{verdict.outcome}: {verdict.attack.name}: {verdict.reason}", err=True)
    return all(verdict.outcome != "escaped" for verdict in verdicts)


def _counted(verdicts: Sequence[Verdict]) -> tuple[int, int, int, str]:
    escaped = [verdict.attack.name for verdict in verdicts if verdict.outcome == "escaped"]
    tried = [verdict for verdict in verdicts if verdict.outcome != "not applicable"]
    return len(tried), len(tried) - len(escaped), len(escaped), ", ".join(escaped)


async def _tried(name: str) -> tuple[str, str]:
    try:
        sandbox = BACKENDS[name]()
    except UserError as error:
        return "no", str(error)
    problem = await probe(sandbox)
    result = await sandbox.run(Program("pass"))
    await sandbox.close()
    return ("no", problem) if problem else ("yes", ", ".join(result.enforced))


async def _run(program: Program, limits: Limits, *, backend: str, packages: Sequence[str]) -> Result:
    async with _opened(backend, packages) as sandbox:
        return await sandbox.run(program, limits)


@asynccontextmanager
async def _opened(backend: str, packages: Sequence[str] = ()) -> AsyncIterator[Sandbox]:
    sandbox = await open_sandbox(backend or AUTO, packages)
    try:
        yield sandbox
    finally:
        await sandbox.close()
