"""Episodes of R2R, RxR and VLN-CE, as their files have them.

| format | file | path |
| --- | --- | --- |
| R2R | JSON: a list of `{scan, path_id, path, heading, instructions}` | viewpoints |
| RxR | JSON lines of `{scan, path_id, instruction_id, path, heading, language, instruction}` | viewpoints |
| VLN-CE, of R2R or RxR | JSON: `{"episodes": [{episode_id, scene_id, instruction, reference_path, ...}]}` | positions |

A path of VLN-CE is `start_position`, `reference_path` and the first of `goals`, in Habitat's axes, with y upwards.

Each may be packed with gzip.
"""

import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from agentflow.errors import DataError

Triple: TypeAlias = tuple[float, float, float]
_SCENES = "data/scene_datasets/"
_FORMATS = "It must be a file of R2R, RxR or VLN-CE."


@dataclass(frozen=True, slots=True)
class Episode:
    """One instruction and its way.

    Attributes:
        id: Unique within its file.
        scan: The building.
        instruction: What is told.
        language: Its language, `en` where the file does not say.
        heading: Where one looks at the start, in radians from the y axis to the right, z upwards.
        viewpoints: The way as viewpoints; empty where the file gives positions.
        positions: The way as positions on the floor, z upwards; empty where the file gives viewpoints.
        length: The length of the shortest way in metres, where the file says it.
    """

    id: str
    scan: str
    instruction: str
    language: str
    heading: float
    viewpoints: tuple[str, ...] = ()
    positions: tuple[Triple, ...] = ()
    length: float | None = None


def read_episodes(path: Path) -> list[Episode]:
    """Read the episodes of a file, in its order.

    Raises:
        DataError: The file is missing, of another format, or holds a broken episode, which is named.
    """
    content = _parsed(path, _text(path))
    if isinstance(content, Mapping) and isinstance(content.get("episodes"), list):
        rows, read = content["episodes"], _of_vlnce
    elif isinstance(content, list):
        rows, read = content, _of_room
    else:
        raise DataError(f"{path} holds no list of episodes.", _FORMATS)
    episodes = [episode for i, row in enumerate(rows) for episode in _read(row, f"{path}, episode {i}", read)]
    if not episodes:
        raise DataError(f"{path} has no episode.", _FORMATS)
    seen: set[str] = set()
    for episode in episodes:
        if episode.id in seen:
            raise DataError(f"{path} has two episodes {episode.id!r}.", "Ids must be unique.")
        seen.add(episode.id)
    return episodes


def read_locations(path: Path) -> dict[str, list[Triple]]:
    """Read `{split}_gt.json.gz` of VLN-CE: for each episode the expert's positions, z upwards.

    Raises:
        DataError: The file is missing or of another format.
    """
    content = _parsed(path, _text(path))
    if not isinstance(content, Mapping):
        raise DataError(f"{path} is no mapping of episodes to their locations.", "It must be a gt file of VLN-CE.")
    found = {}
    for key, row in content.items():
        where = f"{path}, episode {key}"
        if not isinstance(row, Mapping) or not isinstance(row.get("locations"), list):
            raise DataError(f"{where} has no 'locations'.", "It must be a gt file of VLN-CE.")
        found[str(key)] = [_upwards(_triple(place, where, "locations")) for place in row["locations"]]
    return found


def _text(path: Path) -> str:
    try:
        data = path.expanduser().read_bytes()
        return (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.", "Check the path.") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.", _FORMATS) from error


def _parsed(path: Path, text: str) -> Any:
    try:
        if ".jsonl" in path.name:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.", _FORMATS) from None


def _read(row: Any, where: str, read: Any) -> Iterator[Episode]:
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {str(row)[:40]!r}.", _FORMATS)
    yield from read(row, where)


def _of_room(row: Mapping[str, Any], where: str) -> Iterator[Episode]:
    """Read R2R, one episode for each of its instructions, or RxR."""
    scan, path, heading = (_get(row, key, kind, where=where) for key, kind in _ROOM.items())
    if not path or not all(isinstance(viewpoint, str) for viewpoint in path):
        raise DataError(f"{where}: 'path' is no list of viewpoints.", _FORMATS)
    told = [row["instruction"]] if "instruction" in row else _get(row, "instructions", list, where=where)
    if not told or not all(isinstance(text, str) and text.strip() for text in told):
        raise DataError(f"{where} has no instruction.", _FORMATS)
    path_id = _get(row, "path_id", (int, str), where=where)
    for i, text in enumerate(told):
        name = f"{path_id}_{row.get('instruction_id', i)}"
        language = str(row.get("language", "en"))
        yield Episode(
            name, scan, text.strip(), language, float(heading), tuple(path), length=_number(row.get("distance"))
        )


_ROOM: Mapping[str, Any] = {"scan": str, "path": list, "heading": (int, float)}


def _of_vlnce(row: Mapping[str, Any], where: str) -> Iterator[Episode]:
    scene = _get(row, "scene_id", str, where=where).removeprefix(_SCENES)
    told = _get(row, "instruction", Mapping, where=where)
    text = _get(told, "instruction_text", str, where=f"{where}, instruction")
    goals = _get(row, "goals", list, where=where)
    if not goals or not isinstance(goals[0], Mapping):
        raise DataError(f"{where} has no goal.", _FORMATS)
    goal = _triple(_get(goals[0], "position", list, where=f"{where}, goal"), where, "position")
    reference = [_triple(place, where, "reference_path") for place in row.get("reference_path") or ()]
    start = _triple(_get(row, "start_position", list, where=where), where, "start_position")
    way = [start, *reference, goal] if reference else [start, goal]
    yield Episode(
        str(_get(row, "episode_id", (int, str), where=where)),
        Path(scene).stem,
        text.strip(),
        str(told.get("language", "en")),
        _heading(_get(row, "start_rotation", list, where=where), where),
        positions=tuple(map(_upwards, way)),
        length=_number((row.get("info") or {}).get("geodesic_distance")),
    )


def _get(row: Mapping[str, Any], key: str, kind: Any, *, where: str) -> Any:
    if key not in row:
        raise DataError(f"{where} has no {key!r}.", _FORMATS)
    if not isinstance(row[key], kind) or isinstance(row[key], bool):
        raise DataError(f"{where}: {key!r} is {str(row[key])[:40]!r}.", _FORMATS)
    return row[key]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _triple(value: Any, where: str, name: str) -> Triple:
    if not isinstance(value, Sequence) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
        raise DataError(f"{where}: {name!r} holds {str(value)[:40]!r}, not three numbers.", _FORMATS)
    return float(value[0]), float(value[1]), float(value[2])


def _upwards(place: Triple) -> Triple:
    """Turn Habitat's axes (y upwards) into Matterport's (z upwards): (x, y, z) is (x, -z, y) there."""
    x, y, z = place
    return x, -z, y


def _heading(rotation: Any, where: str) -> float:
    """Return the heading of a quaternion (x, y, z, w) about the vertical axis: an unturned agent looks along y."""
    if len(rotation) != 4 or not all(isinstance(value, int | float) for value in rotation):
        raise DataError(f"{where}: 'start_rotation' holds {str(rotation)[:40]!r}, not four numbers.", _FORMATS)
    return -2.0 * math.atan2(rotation[1], rotation[3])
