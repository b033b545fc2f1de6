"""The files of one episode: a mapping of paths to contents on the host, which shell commands see and change.

Nothing is written to the host's disk. A command's work space is filled from the mapping, and what is in it after the
command becomes the mapping; both travel as a pack: one line of JSON, then the contents one after the other. Packs come
from where untrusted code ran: they can claim any names and contents, and nothing else.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from agentflow.config import Config
from agentflow.errors import ToolError

MAX_PATH_CHARS = 200


class WorkspaceLimits(Config):
    """How much a work space may hold."""

    max_files: int = Field(500, ge=1, le=10_000, description="Most files.")
    max_kb: int = Field(4096, ge=1, le=65_536, description="Most kilobytes of all files together.")


class PackError(ValueError):
    """What came back is no pack, or breaks its limits."""


@dataclass(frozen=True, slots=True)
class File:
    """One file.

    Attributes:
        content: Its bytes.
        executable: Whether a command may start it by its name.
    """

    content: bytes = b""
    executable: bool = False


class Workspace:
    """Files by relative path; folders are what paths say, and empty ones are not kept.

    Args:
        files: The files at the start of the episode.
        limits: How much may be held.

    Raises:
        ToolError: A path leaves the work space, or there is too much.
    """

    def __init__(self, files: Mapping[str, str | bytes] | None = None, limits: WorkspaceLimits | None = None) -> None:
        self.limits = limits or WorkspaceLimits()
        self._files: dict[str, File] = {}
        self.reset(files or {})

    def reset(self, files: Mapping[str, str | bytes]) -> None:
        """Begin an episode: hold these files and no others.

        Raises:
            ToolError: A path leaves the work space, or there is too much.
        """
        self._hold({normal(path): File(_bytes(content)) for path, content in files.items()})

    @property
    def files(self) -> Mapping[str, File]:
        """The files, sorted by path."""
        return dict(sorted(self._files.items()))

    def read(self, path: str) -> str:
        """Return a file as text.

        Raises:
            ToolError: There is no such file, or it is no UTF-8 text.
        """
        name = normal(path)
        if name not in self._files:
            known = ", ".join(list(self.files)[:20]) or "none"
            raise ToolError(f"there is no file {name!r}; files: {known}")
        try:
            return self._files[name].content.decode()
        except UnicodeDecodeError:
            raise ToolError(f"{name!r} is no text") from None

    def write(self, path: str, content: str | bytes) -> None:
        """Make or replace a file; it stays executable if it was.

        Raises:
            ToolError: The path leaves the work space, is a folder or lies below a file, or there would be too much.
        """
        name = normal(path)
        old = self._files.get(name, File())
        self._hold({**self._files, name: File(_bytes(content), old.executable)})

    def _hold(self, files: dict[str, File]) -> None:
        problem = problem_of(files, self.limits)
        if problem:
            raise ToolError(problem)
        self._files = files

    def pack(self) -> bytes:
        """Return all files as a pack."""
        files = self.files
        entries = [[name, len(file.content), file.executable] for name, file in files.items()]
        return b"".join([json.dumps(entries).encode(), b"\n", *(file.content for file in files.values())])

    def take(self, pack: bytes) -> None:
        """Hold what is in a pack, and nothing else.

        Raises:
            PackError: It is none, or there is too much; the files stay as they were.
        """
        files = unpack(pack)
        problem = problem_of(files, self.limits)
        if problem:
            raise PackError(problem)
        self._files = files


def normal(path: str) -> str:
    """Return a path as the work space keeps it: relative, `/` between its parts.

    Raises:
        ToolError: It leaves the work space or is no path of a file.
    """
    parts = PurePosixPath(path).parts
    if len(path) > MAX_PATH_CHARS or not path.isprintable():
        raise ToolError(f"a path has at most {MAX_PATH_CHARS} characters, all of them printable")
    if not parts or ".." in parts or parts[0].startswith("/"):
        raise ToolError(f"{path!r} is no path of a file inside the work space: write it as folder/file")
    return "/".join(parts)


def problem_of(files: Mapping[str, File], limits: WorkspaceLimits) -> str:
    """Say why files cannot be a work space; empty if they can."""
    if len(files) > limits.max_files:
        return f"the work space holds at most {limits.max_files} files"
    if sum(len(file.content) for file in files.values()) > limits.max_kb << 10:
        return f"the work space holds at most {limits.max_kb} kB"
    for name in files:
        inside = next((str(above) for above in PurePosixPath(name).parents if str(above) in files), "")
        if inside:
            return f"{name!r} lies below {inside!r}, which is a file"
    return ""


def _bytes(content: str | bytes) -> bytes:
    return content.encode("utf-8", "replace") if isinstance(content, str) else content


def unpack(pack: bytes) -> dict[str, File]:
    """Read a pack strictly.

    Raises:
        PackError: A byte of it is out of place.
    """
    line, _, contents = pack.partition(b"\n")
    try:
        entries = json.loads(line)
    except (ValueError, RecursionError):
        raise PackError("the list of files cannot be read") from None
    files: dict[str, File] = {}
    position = 0
    for name, size, executable in _checked(entries):
        files[name] = File(contents[position : position + size], executable)
        position += size
    if position != len(contents) or len(files) != len(entries):
        raise PackError("the contents are not those of the list")
    return files


def _checked(entries: Any) -> list[tuple[str, int, bool]]:
    if not isinstance(entries, list):
        raise PackError("the list of files is none")
    for entry in entries:
        match entry:
            case [str(name), int(size), bool()] if not isinstance(size, bool) and size >= 0 and _is_normal(name):
                continue
        raise PackError("an entry of the list is no file")
    return [(name, size, executable) for name, size, executable in entries]


def _is_normal(name: str) -> bool:
    try:
        return normal(name) == name
    except ToolError:
        return False
