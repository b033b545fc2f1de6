"""One judge for all backends: what was seen of an execution goes in, how it ended comes out."""

import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from agentflow.sandbox.base import Limits, Output, Result, Status, Usage
from agentflow.sandbox.figures import with_figures

CANCELLED = "cancelled"
"""What ended a program that nobody waits for any more."""
_WORDS: Sequence[tuple[bytes, Status]] = (
    (b"MemoryError", "memory"),
    (b"No space left on device", "disk"),
    (b"File too large", "disk"),
    (b"Resource temporarily unavailable", "pids"),
    (b"can't start new thread", "pids"),
    (b"Cannot fork", "pids"),
)
"""How programs that ran into a limit say so on their last line of stderr."""
_NO_OUTPUT, _NO_USAGE = Output(), Usage()


@dataclass(frozen=True, slots=True)
class Ending:
    """What was seen of the end of an execution.

    Attributes:
        broken: What broke under the program, launcher or host; empty if nothing did.
        refused: Why it was not started; empty if it was.
        ended_by: The limit by which it was ended, or `CANCELLED`; empty if it ended by itself.
        code: Its exit code, less than 0 for a signal; None where nobody was told.
        met: Limits that it ran into without being ended by them; they count only where it failed.
        stdout: Its output.
        stderr: Its other output.
        usage: What it used.
    """

    broken: str = ""
    refused: str = ""
    ended_by: Status | str = ""
    code: int | None = None
    met: Collection[Status | str] = ()
    stdout: Output = _NO_OUTPUT
    stderr: Output = _NO_OUTPUT
    usage: Usage = _NO_USAGE


def result_of(
    ending: Ending,
    limits: Limits,
    *,
    backend: str,
    enforced: tuple[str, ...] = (),
    value: str = "",
    figures: bytes = b"",
) -> Result:
    """Return the result of an execution.

    Args:
        ending: What was seen of its end.
        limits: What it was allowed.
        backend: Who ran it.
        enforced: What held.
        value: The `repr` of a cell's last expression.
        figures: What was written of its plots, see `with_figures`.
    """
    status, detail = judge(ending, limits)
    code = ending.code
    result = Result(
        status,
        exit_code=code if status in ("ok", "nonzero_exit") else None,
        signal=-code if status == "signal" and code is not None else None,
        stdout=ending.stdout,
        stderr=ending.stderr,
        value=value,
        usage=ending.usage,
        detail=detail,
        backend=backend,
        enforced=enforced,
    )
    return with_figures(result, figures)


def judge(ending: Ending, limits: Limits) -> tuple[Status, str]:
    """Return how an execution ended and, where the sandbox is to blame or did not start it, what happened."""
    if ending.broken or ending.ended_by == CANCELLED:
        return "infra_error", ending.broken or "nobody waits for the program any more"
    if ending.refused:
        return "refused", ending.refused
    if ending.ended_by:
        return ending.ended_by, ""  # type: ignore[return-value]  # one of the limits' names
    if ending.code is None:
        said = (ending.stderr.tail or ending.stderr.head).decode("utf-8", "backslashreplace")[:400]
        return "infra_error", f"nothing was told of the program's end. {said}".strip()
    if ending.usage.cpu_s > limits.cpu_s or ending.code == -signal.SIGXCPU:
        return "cpu_timeout", ""
    return ("ok" if ending.code == 0 else _cause(ending, ending.code)), ""


def _cause(ending: Ending, code: int) -> Status:
    """Name the limit that a program which failed ran into, or the way in which it failed."""
    if "disk" in ending.met or code == -signal.SIGXFSZ:
        return "disk"
    for status in ("memory", "pids"):
        if status in ending.met:
            return status
    if code < 0:
        return "signal"
    return next((status for words, status in _WORDS if words in ending.stderr.last_line), "nonzero_exit")
