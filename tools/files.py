"""Tools that look at and change the files of an episode; see `agentflow.tools.workspace`.

    workspace = Workspace({"main.py": "print(6 * 7)"})
    tools = join_tools(tools_of(environment), file_tools(workspace))

They never touch the host's disk. What a model asks for in vain (no such file, a text that occurs twice) is text for it.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from agentflow.errors import ToolError
from agentflow.tools.tool import Tool, tool
from agentflow.tools.workspace import Workspace

_NEIGHBOURS = 3


def file_tools(workspace: Workspace) -> Mapping[str, Tool]:
    """Return `view`, `create`, `str_replace`, `insert` and `list` over a work space."""

    @tool
    async def view(path: str, start: Annotated[int, Field(ge=1)] = 1, end: int | None = None) -> str:
        """Show the lines of a file with their numbers.

        Args:
            path: The file.
            start: The first line.
            end: The last line; to the end of the file by default.
        """
        lines = lines_of(workspace.read(path))
        if start > max(1, len(lines)):
            raise ToolError(f"the file has {len(lines)} lines")
        return numbered(lines, start, end) or "The file is empty."

    @tool
    async def create(path: str, content: str) -> str:
        """Make a file, or replace it by a new one.

        Args:
            path: The file; folders are made.
            content: The whole text.
        """
        workspace.write(path, content)
        return f"Wrote {path}: {len(lines_of(content))} lines."

    @tool
    async def str_replace(path: str, old: Annotated[str, Field(min_length=1)], new: str) -> str:
        """Replace a text that occurs exactly once in a file.

        Args:
            path: The file.
            old: The text as it stands there, with its blanks and line breaks.
            new: What takes its place.
        """
        text = workspace.read(path)
        found = text.count(old)
        if found != 1:
            raise ToolError(
                f"the text occurs {found} times in {path}, not once" if found else f"no such text in {path}"
            )
        first = text[: text.index(old)].count("\n") + 1
        changed = text.replace(old, new)
        workspace.write(path, changed)
        return _shown(changed, first, new)

    @tool
    async def insert(path: str, line: Annotated[int, Field(ge=0)], text: str) -> str:
        """Insert whole lines into a file.

        Args:
            path: The file.
            line: The number of the line after which the text comes; 0 for the start of the file.
            text: The lines.
        """
        lines = lines_of(workspace.read(path))
        if line > len(lines):
            raise ToolError(f"the file has {len(lines)} lines")
        changed = "\n".join([*lines[:line], *lines_of(text), *lines[line:]]) + "\n"
        workspace.write(path, changed)
        return _shown(changed, line + 1, text)

    @tool(name="list")
    async def list_files(folder: str = ".") -> str:
        """List the files with their sizes.

        Args:
            folder: Only those below this folder.
        """
        above = "" if folder.strip("/") in ("", ".") else folder.removeprefix("./").strip("/") + "/"
        found = {name: file for name, file in workspace.files.items() if name.startswith(above)}
        return "\n".join(f"{name} ({len(file.content)} bytes)" for name, file in found.items()) or "No files."

    return {tool.name: tool for tool in (view, create, str_replace, insert, list_files)}


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, as editors count them; the break at its end begins no further one."""
    return text.removesuffix("\n").split("\n") if text else []


def numbered(lines: list[str], start: int, end: int | None = None) -> str:
    """Return lines from `start` to `end`, both included and counted from 1, with their numbers."""
    return "\n".join(f"{number:>5}  {line}" for number, line in enumerate(lines[start - 1 : end], start))


def _shown(text: str, first: int, changed: str) -> str:
    """Return the place of a change with its neighbours."""
    last = first + max(0, len(lines_of(changed)) - 1) + _NEIGHBOURS
    return numbered(lines_of(text), max(1, first - _NEIGHBOURS), last) or "The file is empty."
