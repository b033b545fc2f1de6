"""What a program claims of its results: read strictly, compared and shown, and trusted in nothing.

Whoever wrote a report chose every number in it. So none becomes the key of a dictionary or an item of a set here,
where numbers that collide would take time without end; the work is bounded by the length of the report; and a claim
of any content can be shown.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

_MAX_DEPTH = 60
_MAX_SCALAR_CHARS = 20_000
_MAX_SHOWN_CHARS = 2_000
_SCALARS: Mapping[str, Callable[[str], Any]] = {"int": lambda digits: int(digits, 16), "float": float, "str": str}
_SEQUENCES: Mapping[str, Callable[[Iterable[Any]], Any]] = {"list": list, "tuple": tuple}
_BRACKETS = {list: ("[", "]"), tuple: ("(", ")")}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a candidate claims of one case.

    Attributes:
        kind: `value`, `error` (it raised), or `none`: there is no report, or more than one.
        value: The claimed value, see `decode`, or the text of the error.
    """

    kind: str = "none"
    value: Any = None


@dataclass(frozen=True, slots=True)
class ClaimedSet:
    """The items of a set, as they were claimed: they may repeat, and may be nothing that a set can hold."""

    items: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class ClaimedDict:
    """The pairs of a dictionary, as they were claimed: keys may repeat, and may be nothing that can be a key."""

    pairs: tuple[tuple[Any, Any], ...]


def read_reports(text: bytes, nonce: bytes, *, num_cases: int) -> dict[int, Answer]:
    """Read the report of each case, and of the load as -1; one that is not well formed, or made twice, is no report.

    Args:
        text: What was written to stdout.
        nonce: What each report starts with, so that stray output is not taken for one.
        num_cases: How many cases there are; reports of others are left out.
    """
    claims: dict[int, Answer] = {}
    for line in text.split(b"\n"):
        if not line.startswith(nonce):
            continue
        index, answer = _read(line[len(nonce) :])
        if -1 <= index < num_cases:
            claims[index] = Answer() if index in claims else answer  # two answers would be two guesses
    return claims


def _read(line: bytes) -> tuple[int, Answer]:
    """Return the case that a report speaks of, -2 if it names none, and what it claims."""
    try:
        index, kind, payload = json.loads(line, object_pairs_hook=_refuse)
        if type(index) is not int or kind not in ("value", "error"):
            raise ValueError
        if kind == "value":
            return index, Answer("value", decode(payload))
        return index, Answer("error", payload.encode("utf-8", "backslashreplace").decode())
    except (ValueError, TypeError, AttributeError, RecursionError):
        return _index_of(line), Answer()


def _index_of(line: bytes) -> int:
    digits = line.strip().removeprefix(b"[").partition(b",")[0].strip()
    try:
        return int(digits) if len(digits) < 10 else -2
    except ValueError:
        return -2


def _refuse(pairs: object) -> None:
    raise ValueError("a report has no objects")


def decode(payload: Any, depth: int = 0) -> Any:
    """Return the claimed value: scalars, lists and tuples as such, sets and dictionaries as what was claimed of them.

    Raises:
        ValueError: It is not of the form that `harness.encode` writes.
        TypeError: Likewise.
    """
    if depth > _MAX_DEPTH:
        raise ValueError
    if payload is None or isinstance(payload, bool):
        return payload
    kind, content = payload
    if isinstance(content, str) and kind in _SCALARS and len(content) <= _MAX_SCALAR_CHARS:
        return _SCALARS[kind](content)
    if not isinstance(content, list):
        raise ValueError
    if kind == "dict":
        return ClaimedDict(tuple((decode(key, depth + 1), decode(item, depth + 1)) for key, item in content))
    if kind == "set":
        return ClaimedSet(tuple(decode(item, depth + 1) for item in content))
    if kind not in _SEQUENCES:
        raise ValueError
    return _SEQUENCES[kind](decode(item, depth + 1) for item in content)


def same(claimed: Any, expected: Any, *, tolerance: float = 0.0) -> bool:
    """Say whether a claimed value is the expected one as Python has it.

    Args:
        claimed: What `decode` returned.
        expected: A plain value; only its keys and items are looked up by hash.
        tolerance: How far numbers may be off that are neither keys nor items of sets; NaN equals itself.
    """
    if _is_number(claimed) and _is_number(expected):
        return close(claimed, expected, tolerance)
    if isinstance(expected, list | tuple):
        return (
            type(claimed) is type(expected)
            and len(claimed) == len(expected)
            and all(same(one, other, tolerance=tolerance) for one, other in zip(claimed, expected, strict=True))
        )
    if isinstance(expected, dict):
        return isinstance(claimed, ClaimedDict) and _same_pairs(claimed, dict(expected), tolerance)
    if isinstance(expected, set | frozenset):
        pairs = ((item, None) for item in claimed.items) if isinstance(claimed, ClaimedSet) else ()
        return isinstance(claimed, ClaimedSet) and _same_pairs(ClaimedDict(tuple(pairs)), dict.fromkeys(expected), 0.0)
    return bool(claimed == expected)


def _same_pairs(claimed: ClaimedDict, left: dict[Any, Any], tolerance: float) -> bool:
    if len(claimed.pairs) != len(left):
        return False
    for key, item in claimed.pairs:
        if not _can_be_key(key) or key not in left or not same(item, left.pop(key), tolerance=tolerance):
            return False
    return True


def _can_be_key(claimed: Any) -> bool:
    if isinstance(claimed, tuple):
        return all(map(_can_be_key, claimed))
    return not isinstance(claimed, list | ClaimedDict | ClaimedSet)


def shown(claimed: Any) -> str:
    """Return a claimed value as Python writes it, cut where it is long; whole numbers too long for that in hexadecimal.

    This never raises: what a program returned is its own affair.
    """
    text = ""
    for part in _parts(claimed):
        text += part
        if len(text) > _MAX_SHOWN_CHARS:
            return f"{text[:_MAX_SHOWN_CHARS]}..."
    return text


def _parts(claimed: Any) -> Iterator[str]:
    match claimed:
        case ClaimedSet(items=items):
            yield from _joined("{", map(_parts, items), "}") if items else ("set()",)
        case ClaimedDict(pairs=pairs):
            yield from _joined("{", (_pair(key, item) for key, item in pairs), "}")
        case list() | tuple():
            opening, closing = _BRACKETS[type(claimed)]
            alone = "," if isinstance(claimed, tuple) and len(claimed) == 1 else ""
            yield from _joined(opening, map(_parts, claimed), alone + closing)
        case _:
            yield _scalar(claimed)


def _pair(key: Any, item: Any) -> Iterator[str]:
    yield from _parts(key)
    yield ": "
    yield from _parts(item)


def _joined(opening: str, items: Iterable[Iterator[str]], closing: str) -> Iterator[str]:
    items = iter(items)
    yield opening
    for first in islice(items, 1):
        yield from first
    for item in items:
        yield ", "
        yield from item
    yield closing


def _scalar(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # more digits than Python converts
        return hex(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def close(value: float, expected: float, tolerance: float) -> bool:
    """Say whether two numbers are equal within a tolerance, NaN being equal to itself."""
    if value == expected:
        return True
    try:
        return (math.isnan(expected) and math.isnan(value)) or (tolerance > 0 and abs(value - expected) <= tolerance)
    # A whole number that no float can hold.
    except OverflowError:
        return False
