"""A `python` tool over a sandbox: stateless, or an interpreter that keeps its variables for an episode.

    tools = {"python": python_tool(sandbox)}                     # every call starts afresh

    interpreter = Interpreter(sandbox)                           # variables survive from call to call
    tools = {"python": interpreter.tool()}
    await interpreter.close()                                    # at the end of the episode

Whatever the program did is text for the model. What broke under it is an `EpisodeFailure`.
"""

import ast
import signal
from dataclasses import replace
from types import TracebackType
from typing import Self

from agentflow.errors import ToolError
from agentflow.sandbox.base import Limits, Program, Result, Sandbox, SandboxFailure, Session, run_reliably
from agentflow.sandbox.guest_figures import MAX_FIGURE_BYTES, MAX_FIGURES
from agentflow.tools.tool import Tool, ToolOutput, tool

MAX_CODE_CHARS = 20_000
"""Characters of one program; a longer one is refused before anything reads it."""
_TRACEBACK_LINES = 4
_OVER = frozenset({"cpu_timeout", "wall_timeout", "memory", "output_limit", "pids", "disk", "signal", "refused"})
_RESTARTED = "The interpreter was started again: its variables are gone."


def python_tool(sandbox: Sandbox, limits: Limits | None = None) -> Tool:
    """Return a tool that runs each program in a fresh place.

    Args:
        sandbox: Where programs run.
        limits: What one program may use.
    """
    used = limits or Limits()

    @tool(parallel=True)
    async def python(code: str) -> ToolOutput:
        """Run a Python program and return what it prints, the value of its last expression and its open plots.

        Args:
            code: The program; it starts afresh, without the variables of earlier ones.
        """
        return observed(await run_reliably(sandbox, Program(echoing_last(bounded(code))), used), used)

    return python


class Interpreter:
    """One interpreter for one episode, started by its first cell and started again if a cell kills it.

    Args:
        sandbox: Where it runs.
        limits: What one cell may use.
    """

    def __init__(self, sandbox: Sandbox, limits: Limits | None = None) -> None:
        self._sandbox = sandbox
        self._limits = limits or Limits()
        self._session: Session | None = None

    def tool(self) -> Tool:
        """Return the tool that runs cells here."""

        @tool
        async def python(code: str) -> ToolOutput:
            """Run Python code and return what it prints, the value of its last expression and its open plots.

            Args:
                code: The code; variables of earlier calls are still there.
            """
            return await self.run(code)

        return python

    async def run(self, code: str) -> ToolOutput:
        """Run a cell and return what the model reads and sees.

        Raises:
            ToolError: The code is too long.
            SandboxFailure: The sandbox broke; the state of the episode is lost with it.
        """
        bounded(code)
        if self._session is None:
            self._session = await self._sandbox.session(self._limits)
        result = await self._session.exec(code, limits=self._limits)
        if result.status == "infra_error":
            await self.close()
            raise SandboxFailure(f"a session of the {self._sandbox.name} sandbox failed: {result.detail}")
        output = observed(result, self._limits)
        if result.status in _OVER:
            await self.close()
            output = replace(output, text=f"{output.text}\n{_RESTARTED}")
        return output

    async def close(self) -> None:
        """End the interpreter, if there is one."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __aenter__(self) -> Self:
        """Return the interpreter."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()


def bounded(code: str) -> str:
    """Return the code as it is, or refuse it.

    Raises:
        ToolError: It is longer than `MAX_CODE_CHARS`.
    """
    if len(code) > MAX_CODE_CHARS:
        raise ToolError(f"the program has more than {MAX_CODE_CHARS} characters")
    return code


def echoing_last(code: str) -> str:
    """Return a program that also shows the value of its last expression, as an interactive interpreter does."""
    try:
        tree = ast.parse(code)
    # What does not parse is run as it is: its traceback says why, and the sandbox holds what it may break.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr) or last.end_lineno is None or last.end_col_offset is None:
        return code
    # Offsets count bytes; lines end as Python's tokenizer has it, not at every character that splitlines knows.
    lines = code.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").split(b"\n")
    before = [*lines[: last.lineno - 1], lines[last.lineno - 1][: last.col_offset]]
    after = [lines[last.end_lineno - 1][last.end_col_offset :], *lines[last.end_lineno :]]
    middle = lines[last.lineno - 1 : last.end_lineno]
    middle[-1] = middle[-1][: last.end_col_offset]
    middle[0] = middle[0][last.col_offset :]
    parts = [b"\n".join(before), b"__import__('sys').displayhook((", b"\n".join(middle), b"\n))", b"\n".join(after)]
    return b"".join(parts).decode("utf-8", "replace")


def observed(result: Result, limits: Limits) -> ToolOutput:
    """Return what a model reads and sees of an execution.

    Raises:
        SandboxFailure: The sandbox broke, which is nobody's observation.
    """
    return ToolOutput(described(result, limits), result.images)


def described(result: Result, limits: Limits) -> str:
    """Return what a model reads of an execution: its output, its last value, and how it ended if not well.

    Raises:
        SandboxFailure: The sandbox broke, which is nobody's observation.
    """
    if result.status == "infra_error":
        raise SandboxFailure(f"the {result.backend or 'sandbox'} broke: {result.detail}")
    parts = [result.stdout.text.rstrip("\n"), result.value]
    if result.status != "ok":
        parts += [traceback_end(result), ending(result, limits)]
    if result.num_lost_images:
        parts.append(
            f"[{result.num_lost_images} more plots are not shown: at most {MAX_FIGURES} are, "
            f"of at most {MAX_FIGURE_BYTES >> 10} kB each]"
        )
    return "\n".join(part for part in parts if part) or ("" if result.images else "No output.")


def traceback_end(result: Result) -> str:
    """Return the last lines of what the program wrote to stderr."""
    return "\n".join(result.stderr.text.rstrip("\n").split("\n")[-_TRACEBACK_LINES:])


def ending(result: Result, limits: Limits) -> str:
    """Say in words how an execution ended; empty where a traceback says it, or where it ended well."""
    match result.status:
        case "ok":
            return ""
        case "nonzero_exit":
            return "" if result.stderr.num_bytes else f"Error: the program ended with exit code {result.exit_code}."
        case "signal":
            return f"Error: the program was ended by signal {_signal_name(result.signal)}."
        case "refused":
            return "Error: the program was not run: it is too large, or the interpreter is gone."
    words = {
        "cpu_timeout": f"the program used more than {limits.cpu_s:g} seconds of CPU time",
        "wall_timeout": f"the program took longer than {limits.wall_s:g} seconds",
        "memory": f"the program used more than {limits.memory_mb} MB of memory",
        "output_limit": f"the program wrote more than {limits.output_kb} kB",
        "pids": f"the program started more than {limits.max_processes} processes",
        "disk": f"the program wrote more than {limits.disk_mb} MB of files",
    }
    return f"Error: {words[result.status]}."


def _signal_name(number: int | None) -> str:
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return str(number)
