"""Grade a program outside its own process.

The sandbox gets the program and inputs. What comes back is data, whoever wrote it: it is read strictly into plain
values here, and compared here with what is expected, which never entered the sandbox. A candidate that forges its
report, patches the interpreter or overrides comparison can therefore claim any answer, and only the right one counts.
"""

import ast
import asyncio
import json
import math
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentflow.environments.coding.problems import Case
from agentflow.sandbox.base import Limits, Program, Result, Sandbox, run_reliably

_HARNESS = (Path(__file__).parent / "harness.py").read_text(encoding="utf-8")
_MAX_DEPTH = 60
_REPORTS_KB = 1024
_SCALARS: Mapping[str, Callable[[str], Any]] = {"int": lambda digits: int(digits, 16), "float": float, "str": str}
_CONTAINERS: Mapping[str, Callable[[Iterable[Any]], Any]] = {"list": list, "tuple": tuple, "set": frozenset}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a candidate claims of one case.

    Attributes:
        kind: `value`, `error` (it raised), or `none`: there is no report, or more than one.
        value: The plain value, or the text of the error.
    """

    kind: str = "none"
    value: Any = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a program on cases.

    Attributes:
        passed: For each case, whether the answer is the expected one.
        answers: For each case, what was claimed.
        loaded: Whether the program itself ran to its end; the error otherwise.
        result: The execution, the last one where there were several.
    """

    passed: tuple[bool, ...]
    answers: tuple[Answer, ...]
    loaded: Answer
    result: Result

    @property
    def runs(self) -> bool:
        """Whether each case was answered by a value."""
        return self.loaded.kind == "value" and all(answer.kind == "value" for answer in self.answers)

    @property
    def share(self) -> float:
        """Share of the cases that pass."""
        return sum(self.passed) / len(self.passed) if self.passed else 0.0


async def grade(sandbox: Sandbox, program: str, cases: Sequence[Case], *, limits: Limits) -> Verdict:
    """Run a program on the inputs of cases and judge what it answers.

    Args:
        sandbox: Where it runs.
        program: Python source.
        cases: All of them calls, or none.
        limits: For the calls together, and for each run of a whole program.

    Raises:
        SandboxFailure: The sandbox broke, twice.
    """
    assert cases, "a program is graded on cases"
    if cases[0].call:
        return await _grade_calls(sandbox, program, cases, limits=limits)
    return await _grade_whole(sandbox, program, cases, limits=limits)


async def _grade_calls(sandbox: Sandbox, program: str, cases: Sequence[Case], *, limits: Limits) -> Verdict:
    nonce = f"<{secrets.token_hex(8)}>"
    given = json.dumps({"nonce": nonce, "source": program, "calls": [case.call for case in cases]})
    roomy = limits.model_copy(update={"output_kb": max(limits.output_kb, _REPORTS_KB)})
    result = await run_reliably(sandbox, Program(_HARNESS, stdin=given.encode()), roomy)
    claims = read_reports(result.stdout.head + result.stdout.tail, nonce.encode())
    answers = tuple(claims.get(index, Answer()) for index in range(len(cases)))
    passed = tuple(
        answer.kind == "value" and same(answer.value, ast.literal_eval(case.expected), tolerance=case.tolerance)
        for answer, case in zip(answers, cases, strict=True)
    )
    return Verdict(passed, answers, claims.get(-1, Answer()), result)


async def _grade_whole(sandbox: Sandbox, program: str, cases: Sequence[Case], *, limits: Limits) -> Verdict:
    runs = (run_reliably(sandbox, Program(program, stdin=case.stdin.encode()), limits) for case in cases)
    # All of them end before the first failure counts, so that which one it is does not depend on timing.
    results = await asyncio.gather(*runs, return_exceptions=True)
    done: list[Result] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        done.append(result)
    answers = tuple(
        Answer("value", result.stdout.text) if result.status == "ok" else Answer("error", result.stderr.text)
        for result in done
    )
    passed = tuple(
        answer.kind == "value" and same_text(answer.value, case.expected, tolerance=case.tolerance)
        for answer, case in zip(answers, cases, strict=True)
    )
    failed = next((result for result in done if result.status != "ok"), done[0])
    return Verdict(passed, answers, Answer("value" if failed.status == "ok" else "error"), failed)


def read_reports(text: bytes, nonce: bytes) -> dict[int, Answer]:
    """Read the report of each case; one that is not well formed, or made twice, is no report.

    Args:
        text: What was written to stdout.
        nonce: What each report starts with, so that stray output is not taken for one.
    """
    claims: dict[int, Answer] = {}
    for line in text.split(b"\n"):
        if not line.startswith(nonce):
            continue
        try:
            index, kind, payload = json.loads(line[len(nonce) :])
            # Two answers would be two guesses.
            if type(index) is not int or kind not in ("value", "error") or index in claims:
                raise ValueError
            claims[index] = Answer("value", decode(payload)) if kind == "value" else Answer("error", str(payload))
        except (ValueError, TypeError, RecursionError):
            index = index_of(line[len(nonce) :])
            if index is not None:
                claims[index] = Answer()
    return claims


def index_of(line: bytes) -> int | None:
    """Return the case that a malformed report speaks of, None if it names none."""
    digits = line.strip().removeprefix(b"[").partition(b",")[0].strip()
    try:
        return int(digits) if len(digits) < 10 else None
    except ValueError:
        return None


def decode(payload: Any, depth: int = 0) -> Any:
    """Return the plain value of a report: exact built-in types only, whatever the report says.

    Raises:
        ValueError: It is not of the form that `harness.encode` writes.
        TypeError: A key of a dictionary, or an item of a set, cannot be one.
    """
    if depth > _MAX_DEPTH:
        raise ValueError
    if payload is None or isinstance(payload, bool):
        return payload
    kind, content = payload
    if isinstance(content, str) and kind in _SCALARS:
        return _SCALARS[kind](content)
    if not isinstance(content, list):
        raise ValueError
    if kind == "dict":
        return {decode(key, depth + 1): decode(value, depth + 1) for key, value in content}
    if kind not in _CONTAINERS:
        raise ValueError
    return _CONTAINERS[kind](decode(item, depth + 1) for item in content)


def same(value: Any, expected: Any, *, tolerance: float = 0.0) -> bool:
    """Say whether two plain values are equal as Python has it, numbers within a tolerance and NaN equal to itself."""
    if _is_number(value) and _is_number(expected):
        return _close(value, expected, tolerance)
    if isinstance(expected, list | tuple):
        return (
            type(value) is type(expected)
            and len(value) == len(expected)
            and all(same(one, other, tolerance=tolerance) for one, other in zip(value, expected, strict=True))
        )
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and value.keys() == expected.keys()
            and all(same(value[key], other, tolerance=tolerance) for key, other in expected.items())
        )
    return bool(value == expected)


def same_text(written: str, expected: str, *, tolerance: float = 0.0) -> bool:
    """Say whether a program's output is the expected one: word for word, line ends and blanks aside."""
    lines, wanted = ([line.split() for line in text.strip().splitlines()] for text in (written, expected))
    if [len(line) for line in lines] != [len(line) for line in wanted]:
        return False
    pairs = [pair for line, other in zip(lines, wanted, strict=True) for pair in zip(line, other, strict=True)]
    return all(one == two or (tolerance > 0 and _close_words(one, two, tolerance)) for one, two in pairs)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _close(value: float, expected: float, tolerance: float) -> bool:
    if value == expected:
        return True
    try:
        return (math.isnan(expected) and math.isnan(value)) or (tolerance > 0 and abs(value - expected) <= tolerance)
    # A whole number that no float can hold.
    except OverflowError:
        return False


def _close_words(one: str, two: str, tolerance: float) -> bool:
    try:
        return _close(float(one), float(two), tolerance)
    except ValueError:
        return False
