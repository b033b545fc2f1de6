"""Run a candidate on inputs, inside the sandbox: read by `grading` as text, and never imported.

It knows inputs only. What it reports is what the candidate claims, and a candidate may forge all of it: the comparison
with what is expected happens elsewhere, so that a forged answer is worth what an answer of its content is worth.

stdin:  {"nonce", "source", "calls": [an expression, ...]}
stdout: lines of nonce + JSON [index, "value" | "error", payload]; index -1 is the load of the source
"""

import contextlib
import json
import os
import sys
import types
from typing import Any

MAX_NODES = 20_000
MAX_CHARS = 20_000
MAX_ERROR_CHARS = 200
MAX_DEPTH = 50
SCALARS: dict[Any, Any] = {
    int: lambda value: hex(int.__index__(value)),
    float: lambda value: repr(float.__add__(value, 0.0)),
    str: lambda value: str.__str__(value),
}
CONTAINERS: dict[Any, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "set"}


class Unfit(Exception):
    """A result that has no plain form, or is too large."""


def encode(value: Any, room: list[int], depth: int = 0) -> Any:
    """Return a value as JSON: lists stand for containers, their first item names which; `room` is a one-item budget."""
    room[0] -= 1
    if room[0] < 0 or depth > MAX_DEPTH:
        raise Unfit("the result is too large")
    kinds = type(value).__mro__
    if value is None or bool in kinds:
        return value
    for kind, written in SCALARS.items():
        if kind in kinds:
            return [kind.__name__, fitting(written(value))]
    if dict in kinds:
        items = dict.items(value)
        return ["dict", [[encode(key, room, depth + 1), encode(item, room, depth + 1)] for key, item in items]]
    for kind, name in CONTAINERS.items():
        if kind in kinds:
            return [name, [encode(item, room, depth + 1) for item in kind.__iter__(value)]]
    raise Unfit("the result is a " + str(kinds[0].__name__)[:60])


def fitting(text: str) -> str:
    """Return a text that is not too long."""
    if len(text) > MAX_CHARS:
        raise Unfit("the result is too large")
    return text


def described(error: BaseException) -> str:
    """Return an exception as one line."""
    try:
        return (type(error).__name__ + ": " + str(error))[:MAX_ERROR_CHARS]
    except BaseException:  # noqa: BLE001  the candidate wrote its __str__
        return "an error that cannot be shown"


def main() -> None:
    """Load the candidate and evaluate each call, reporting as soon as each is known."""
    write, dumps, leave = os.write, json.dumps, os._exit
    given = json.loads(sys.stdin.buffer.read())
    nonce, calls = given["nonce"], given["calls"]
    channel = os.dup(1)
    # What the candidate prints goes to stderr: stdout holds reports.
    os.dup2(2, 1)

    def report(index: int, kind: str, payload: Any) -> None:
        line = memoryview((nonce + dumps([index, kind, payload]) + "\n").encode())
        while line:
            line = line[write(channel, line) :]

    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    try:
        exec(compile(given["source"], "candidate.py", "exec"), module.__dict__)  # noqa: S102  this is the sandbox
    except BaseException as error:  # noqa: BLE001  SystemExit too is the candidate's word
        report(-1, "error", described(error))
        leave(0)
    report(-1, "value", None)
    for index, call in enumerate(calls):
        try:
            value = eval(call, module.__dict__)  # noqa: S307  as above
            kind, payload = "value", encode(value, [MAX_NODES])
        except BaseException as error:  # noqa: BLE001  as above
            kind, payload = "error", described(error)
        report(index, kind, payload)
    with contextlib.suppress(BaseException):  # the candidate may have closed or replaced it
        sys.stdout.flush()
    leave(0)


main()
