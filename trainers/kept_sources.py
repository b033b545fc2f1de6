"""The user's own files in a run's folder: what a run computed stays readable, and a change is not taken up unseen.

sources/sources.json            each file's path, its SHA-256, its copy, and the iteration after which it counts
sources/1f3c5a7e9b2d_mine.py    a copy; a file that was changed and accepted has several
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agentflow.errors import ConfigError, DataError
from agentflow.runs import Run, StoredRun

_CLASS = re.compile(r"(/.*\.py):\w+")
_RECORD = "sources/sources.json"
_MAX_DIFF_LINES = 40


@dataclass(frozen=True, slots=True)
class KeptSource:
    """A file of the user's own as a run read it.

    Attributes:
        path: Where it is read from.
        sha256: Of its text.
        copy: Its copy's name in `sources/`.
        iteration: The iterations that were done when it began to count.
    """

    path: str
    sha256: str
    copy: str
    iteration: int


def source_files(config: BaseModel) -> list[Path]:
    """List the files of every `path/to/file.py:Class` in a configuration, each once."""
    specs = [_CLASS.fullmatch(text) for text in _texts(config.model_dump(mode="json"))]
    return [Path(path) for path in dict.fromkeys(spec[1] for spec in specs if spec) if Path(path).is_file()]


def keep_sources(run: Run, paths: Sequence[Path], *, iteration: int = 0) -> None:
    """Copy files into a run's folder.

    Args:
        run: The run.
        paths: The files.
        iteration: The iterations that are done.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    if not paths:
        return
    (run.path / "sources").mkdir(exist_ok=True)
    kept = kept_sources(run)
    for path in paths:
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        copy = f"{sha256[:12]}_{path.name}"
        run.write_file(f"sources/{copy}", content)
        kept.append(KeptSource(str(path.absolute()), sha256, copy, iteration))
    run.write_file(_RECORD, json.dumps([asdict(each) for each in kept], indent=2) + "\n")


def kept_sources(run: StoredRun) -> list[KeptSource]:
    """List what a run kept, in the order in which it was kept.

    Raises:
        DataError: The list is damaged.
    """
    record = run.path / _RECORD
    if not record.is_file():
        return []
    try:
        return [KeptSource(**each) for each in json.loads(record.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{record} is damaged: {error}.", "Restore it, or delete it to go on without the check."
        ) from None


def changed_sources(run: StoredRun, tell: Callable[[str], None], *, accept: bool) -> list[Path]:
    """List the classes' files that are other ones than those that the run read last.

    Args:
        run: The run.
        tell: Is told the difference, line by line.
        accept: Whether it may go on with them.

    Raises:
        ConfigError: A file has changed, and that is not accepted; or it is gone.
    """
    newest = {each.path: each for each in kept_sources(run) if each.path.endswith(".py")}
    changed = []
    for each in newest.values():
        path, copy = Path(each.path), run.path / "sources" / each.copy
        if not path.is_file():
            raise ConfigError(f"{path} is gone, and the run was made with it.", f"Put it back: its copy is {copy}.")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == each.sha256:
            continue
        for line in _difference(copy, path):
            tell(line)
        if not accept:
            raise ConfigError(
                f"{path} has changed since the run read it.",
                f"Put it back (its copy is {copy}), or continue with the new text: --accept-changes.",
            )
        changed.append(path)
    return changed


def _difference(old: Path, new: Path) -> list[str]:
    before, after = (file.read_text(encoding="utf-8", errors="replace").splitlines() for file in (old, new))
    lines = list(difflib.unified_diff(before, after, "as the run read it", "as it is", lineterm="", n=1))
    left = len(lines) - _MAX_DIFF_LINES
    return lines[:_MAX_DIFF_LINES] + ([f"... and {left} more lines"] if left > 0 else [])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
