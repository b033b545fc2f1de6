"""Grade a program outside its own process.

The sandbox gets the program and inputs. What comes back is data, whoever wrote it: it is read strictly into plain
values here, and compared here with what is expected, which never entered the sandbox. A candidate that forges its
report, patches the interpreter or overrides comparison can therefore claim any answer, and only the right one counts.
"""

import ast
import asyncio
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentflow.environments.coding.claims import Answer, close, read_reports, same
from agentflow.environments.coding.problems import Case
from agentflow.sandbox.base import Limits, Program, Result, Sandbox, run_reliably

_HARNESS = (Path(__file__).parent / "harness.py").read_text(encoding="utf-8")
_REPORTS_KB = 1024


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
    # A report may be long: whoever else plays does not wait for it.
    return await asyncio.to_thread(_judged, result, cases, nonce)


def _judged(result: Result, cases: Sequence[Case], nonce: str) -> Verdict:
    claims = read_reports(result.stdout.head + result.stdout.tail, nonce.encode(), num_cases=len(cases))
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


def same_text(written: str, expected: str, *, tolerance: float = 0.0) -> bool:
    """Say whether a program's output is the expected one: word for word, line ends and blanks aside."""
    lines, wanted = ([line.split() for line in text.strip().splitlines()] for text in (written, expected))
    if [len(line) for line in lines] != [len(line) for line in wanted]:
        return False
    pairs = [pair for line, other in zip(lines, wanted, strict=True) for pair in zip(line, other, strict=True)]
    return all(one == two or (tolerance > 0 and _close_words(one, two, tolerance)) for one, two in pairs)


def _close_words(one: str, two: str, tolerance: float) -> bool:
    try:
        return close(float(one), float(two), tolerance)
    except ValueError:
        return False
