"""The command line: `agentflow train`, `eval`, `envs`, ...; only this layer turns errors into exit codes.

    0 done · 1 a defect of AgentFlow, or a closed pipe · 2 something the user can mend · 3 the run stopped itself ·
    130 interrupted · 143 terminated

Nothing but typer is imported before a command runs, so that `--help` stays instant.
"""

import errno
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer import BadParameter, Exit
from typer.main import get_command

from agentflow.cli.app import app
from agentflow.cli.words import noted_run
from agentflow.errors import RunAborted, StorageError, UserError
from agentflow.threads import sleep_soon

# Typer keeps click's base of all usage errors private, and moved it between releases.
_UsageError: Any = next(kind for kind in BadParameter.__mro__ if kind.__name__ == "ClickException")


class _Terminated(KeyboardInterrupt):
    """Somebody has sent SIGTERM."""


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends at once
    raise _Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: The words after `agentflow`; None takes those of the process.
    """
    if arguments is None:
        # Whoever ends a process with SIGTERM, as schedulers do, finds as little left as after an interrupt.
        signal.signal(signal.SIGTERM, _terminate)
        sleep_soon()  # torch is not loaded before a command runs
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    try:
        code = _run(words)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the one place where errors become exit codes
        return _exit_code(error, debug=debug)
    return code


def _run(words: list[str]) -> int:
    try:
        with get_command(app).make_context("agentflow", words) as context:
            context.command.invoke(context)
    except Exit as done:
        return done.exit_code
    return 0


def _exit_code(error: BaseException, *, debug: bool) -> int:
    if isinstance(error, BrokenPipeError):
        # Whatever Python still wants to flush at exit must not meet the closed pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if debug:
        traceback.print_exception(error)
    code, text = _explain(error)
    print(text, file=sys.stderr)
    return code


def _explain(error: BaseException) -> tuple[int, str]:
    run = noted_run(error)
    resume = f"agentflow train --resume {shlex.quote(str(run))}"
    if isinstance(error, KeyboardInterrupt):
        code, what = (143, "terminated") if isinstance(error, _Terminated) else (130, "interrupted")
        return code, f"{what}{_kept(run)}; resume with: {resume}" if run else what
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        error = StorageError(f"The disk is full: {error}.", "Free some space and try again.")
    if isinstance(error, _UsageError):
        return 2, f"error: {_usage(error)}"
    if isinstance(error, UserError):
        then = f" Then: {resume}" if run and isinstance(error, StorageError) else ""
        return 2, f"error: {_one_line(str(error))}{then}"
    if isinstance(error, RunAborted):
        return 3, f"aborted: {_one_line(str(error))}" + (f" Its folder: {run}" if run else "")
    detail = _one_line(f"{type(error).__name__}: {error}")
    return 1, f"error: this is a defect of AgentFlow: {detail} (add --debug for the traceback)"


def _kept(run: str) -> str:
    """Say what a run that is continued starts from."""
    from agentflow.runs import StoredRun  # noqa: PLC0415  not before a command has run, for the sake of --help

    checkpoint = StoredRun(Path(run)).latest_checkpoint()
    return f" (kept: up to iteration {checkpoint.iteration})" if checkpoint else " (before the first checkpoint)"


def _usage(error: Any) -> str:
    said = _one_line(error.format_message()).rstrip(".")
    usage = f" See: {error.ctx.command_path} --help" if getattr(error, "ctx", None) else ""
    return f"{said}.{usage}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
