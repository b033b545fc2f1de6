"""Groups of episodes on disk: one JSON object a line, compressed with zstandard, an exact round trip.

A line says in which format it is written. Format 2 has episodes of one or more trajectories; format 1, which names
itself nowhere, had one trajectory in their place, with everything that an episode has. Both are read.

JSON values in a task's `answer` and `metadata` come back equal; a tuple in them comes back as a list, and an object
that is no JSON value as its `repr`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard
from pydantic import TypeAdapter, ValidationError

from agentflow.errors import DataError
from agentflow.roles import PLANNER
from agentflow.runs.storage import write_file
from agentflow.trajectory import Group

FORMAT = 2
_BESIDE = ("observation", "exchanges")  # what format 1 wrote into the trajectory
_GROUP = TypeAdapter(Group)
_CHUNK_BYTES = 1 << 16


def encode_group(group: Group) -> str:
    """Return one line of JSON: pure ASCII, so that lone surrogates from garbage text survive."""
    written: dict[str, Any] = {"format": FORMAT, **_GROUP.dump_python(group)}
    return json.dumps(written, separators=(",", ":"), default=repr)


def decode_group(line: str) -> Group:
    """Return the group that `encode_group` wrote, or an earlier version of it.

    Raises:
        ValueError: The line is not a group (`pydantic.ValidationError` is one), or of a format that is not known here.
    """
    found = json.loads(line)
    written = found.pop("format", 1) if isinstance(found, dict) else FORMAT
    if written not in (1, FORMAT):
        raise ValueError(f"format {written!r}, written by a newer version")
    return _GROUP.validate_python(_from_format_1(found) if written == 1 else found)


def _from_format_1(group: dict[str, Any]) -> dict[str, Any]:
    """Part what an episode has from what its only trajectory has."""
    return {"task": group.get("task"), "episodes": [_episode(found) for found in group.get("trajectories", ())]}


def _episode(found: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {
        name: value for name, value in found.items() if name not in ("agent", "observation", "exchanges")
    }
    beside: dict[str, Any] = {name: found[name] for name in ("observation", "exchanges") if name in found}
    return {"trajectories": [{**kept, "role": PLANNER}], **beside}


def write_groups(path: Path, groups: Iterable[Group]) -> None:
    """Write groups to a `.jsonl.zst` file, all or nothing.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    lines = "".join(f"{encode_group(group)}\n" for group in groups)
    write_file(path, zstandard.ZstdCompressor(level=3, write_checksum=True).compress(lines.encode()))


def read_groups(path: Path) -> Iterator[Group]:
    """Yield the groups of a `.jsonl.zst` file, one at a time.

    Raises:
        DataError: The file is missing, damaged or not a file of groups.
    """
    try:
        for number, line in enumerate(_lines(path), 1):
            yield _decode_line(line, f"{path} line {number}")
    except (OSError, zstandard.ZstdError) as error:
        raise DataError(f"Cannot read the trajectories in {path}: {error}.") from error


def _lines(path: Path) -> Iterator[str]:
    decompressor, pending = zstandard.ZstdDecompressor().decompressobj(), b""
    with path.open("rb") as raw:
        while chunk := raw.read(_CHUNK_BYTES):
            *lines, pending = (pending + decompressor.decompress(chunk)).split(b"\n")
            yield from (line.decode() for line in lines)
    # A file that was cut is no error to the decompressor.
    if not decompressor.eof:
        raise DataError(f"{path} is damaged: it ends in the middle.", "Restore it, or remove it.")


def _decode_line(line: str, where: str) -> Group:
    try:
        return decode_group(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where} is not a group of episodes: {place}: {first['msg']}.") from None
    except ValueError as error:
        raise DataError(f"{where} cannot be read: {error}.") from None
