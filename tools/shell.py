"""A shell over the files of an episode: each command runs in a fresh sandbox that holds them, and may change them.

    workspace = Workspace({"main.py": "print(6 * 7)"})
    tools = {**file_tools(workspace), "shell": shell_tool(sandbox, workspace)}

Files go in through the program's stdin and come back through its stderr (the command writes both its streams to
stdout), so that any sandbox will do. A command that a limit ended leaves the files as they were.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from agentflow.errors import ToolError
from agentflow.sandbox.base import Limits, Output, Program, Result, Sandbox, run_reliably
from agentflow.tools.python import described
from agentflow.tools.tool import Tool, tool
from agentflow.tools.workspace import MAX_PATH_CHARS, PackError, Workspace

MAX_COMMAND_CHARS = 20_000
_GUEST = (Path(__file__).parent / "shell_guest.py").read_text(encoding="utf-8")
_ENTRY_BYTES = 8 * MAX_PATH_CHARS
_CODES = range(-128, 256)
_UNKEPT = "The files are as they were before the command"


def shell_tool(sandbox: Sandbox, workspace: Workspace, limits: Limits | None = None) -> Tool:
    """Return a tool that runs shell commands on the files of an episode.

    Args:
        sandbox: Where commands run.
        workspace: The files.
        limits: What one command may use.
    """
    used = limits or Limits()

    @tool
    async def shell(command: Annotated[str, Field(min_length=1, max_length=MAX_COMMAND_CHARS)]) -> str:
        """Run a shell command in the folder of the files and return what it prints.

        Files stay from call to call; variables, the current folder, empty folders and running programs do not.

        Args:
            command: The command, for example `ls -l && python3 main.py`.
        """
        return await run_command(command, sandbox, workspace=workspace, limits=used)

    return shell


async def run_command(command: str, sandbox: Sandbox, *, workspace: Workspace, limits: Limits) -> str:
    """Run a command, keep the files that it leaves, and return what the model reads.

    Raises:
        ToolError: The command cannot be carried to a shell.
        SandboxFailure: The sandbox broke, twice.
    """
    if "\0" in command:
        raise ToolError("a command has no null characters")
    most = workspace.limits
    # Both streams share one limit: the pack must pass through, and the output is cut afterwards.
    pack_kb = most.max_kb + most.max_files * _ENTRY_BYTES // 1024 + 1
    wide = limits.model_copy(update={"output_kb": max(limits.output_kb, 2 * pack_kb)})
    written = command.encode("utf-8", "replace")
    program = Program(
        f"LIMITS = {most.max_files}, {most.max_kb << 10}\n{_GUEST}",
        stdin=b"%d\n%b%b" % (len(written), written, workspace.pack()),
    )
    result = await run_reliably(sandbox, program, wide)
    stdout = _cut(result.stdout, limits.output_kb << 10)
    if result.status != "ok":
        text = described(replace(result, stdout=stdout, stderr=Output(b"")), limits)
        return f"{text}\n{_UNKEPT}."
    code, note = _keep(result, workspace)
    shown = Result("ok" if code == 0 else "nonzero_exit", exit_code=code, stdout=stdout)
    if code is not None and code < 0:
        shown = replace(shown, status="signal", signal=-code)
    return "\n".join(filter(None, (described(shown, limits), note)))


def _keep(result: Result, workspace: Workspace) -> tuple[int | None, str]:
    """Take the files; return the command's exit code and what the model is told if they were not taken."""
    told = result.stderr
    line, _, pack = (told.head + told.tail).partition(b"\n")
    try:
        header: Any = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("code") not in _CODES or type(header["code"]) is not int:
        return None, f"{_UNKEPT}: it disturbed what carries them."
    if header.get("problem"):
        most = workspace.limits
        return header["code"], f"{_UNKEPT}: it left more than {most.max_files} files or {most.max_kb} kB."
    try:
        workspace.take(pack)
    except PackError as error:
        return header["code"], f"{_UNKEPT}: {error}."
    return header["code"], ""


def _cut(stream: Output, limit_bytes: int) -> Output:
    if stream.num_bytes <= limit_bytes:
        return stream
    half = max(1, limit_bytes // 2)
    whole = stream.head + stream.tail
    return Output(whole[:half], whole[-half:], stream.num_bytes)
