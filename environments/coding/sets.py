"""Coding tasks of one's own, with the columns of HumanEval, MBPP or APPS.

Tests that are code (`assert f(2) == 4`) are read here, as syntax, into calls and expected values: only the calls ever
enter a sandbox. An assertion that cannot be read so is left out, and a row that keeps none is left out and counted.
"""

import ast
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from agentflow.environment import Split
from agentflow.environments.coding.problems import Case, Problem
from agentflow.errors import DataError
from agentflow.questions import RowsConfig, cell, load_rows, of_split
from agentflow.trajectory import Task

_log = logging.getLogger(__name__)
_CLOSE = 1e-6
_WRAPPERS = ("set", "sorted", "abs", "list", "tuple", "len", "str", "round")
"""What an assertion may put around the call of the function that it is about."""


class ProgramsConfig(RowsConfig):
    """Where coding tasks come from, and what their columns are called."""

    style: Literal["humaneval", "mbpp", "apps"] = Field(
        description="How tests are written: a `check(candidate)`, a list of assertions, or inputs and outputs as JSON."
    )
    prompt: str | None = Field(None, description="Column of the specification; null for the style's own name.")
    tests: str | None = Field(None, description="Column of the tests; null for the style's own name.")
    solution: str | None = Field(None, description="Column of a reference solution; null for the style's own name.")
    entry: str | None = Field(
        None, description="Column of the function's name, where the tests do not tell it; null for the style's own."
    )
    id: str | None = Field(None, description="Column of the task's id; null for the style's own name.")
    max_tests: int = Field(20, ge=1, description="Tests of a task that are used, the first ones.")
    num_examples: int = Field(1, ge=0, description="Tests, the first ones, that are also shown to the policy.")


_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "humaneval": {
        "prompt": "prompt",
        "tests": "test",
        "solution": "canonical_solution",
        "entry": "entry_point",
        "id": "task_id",
    },
    "mbpp": {"prompt": "text", "tests": "test_list", "solution": "code", "entry": "", "id": "task_id"},
    "apps": {"prompt": "question", "tests": "input_output", "solution": "solutions", "entry": "", "id": "problem_id"},
}


def load_programs(config: ProgramsConfig, split: Split) -> list[Task]:
    """Return the coding tasks of a split, in the order of the rows.

    Raises:
        DataError: The set is missing, unreadable or empty, a column is missing, or no row has a test that can be read.
    """
    source, rows = load_rows(config, split)
    tasks: dict[str, Task] = {}
    for number, row in enumerate(rows, 1):
        where = f"{source}, row {number}"
        problem = _READERS[config.style](_Row(config, row, where))
        if problem is None:
            continue
        id_ = str(_Row(config, row, where).get("id", f"p{number:06d}"))
        if id_ in tasks:
            raise DataError(f"{where} repeats the id {id_!r}.", "Ids must be unique.")
        prompt = str(_Row(config, row, where)["prompt"]).strip()
        tasks[id_] = Task(id_, _asked(prompt, problem), problem.to_json(), {"kind": config.style})
    if not tasks:
        raise DataError(
            f"{source} has no task whose tests can be read as data, in {len(rows)} rows.",
            "Tests compare a call with a literal, or inputs with outputs; check env.programs.style and its columns.",
        )
    if len(tasks) < len(rows):
        _log.warning("%s: %d of %d rows have no test that can be read", source, len(rows) - len(tasks), len(rows))
    return of_split(list(tasks.values()), config, split)


class _Row:
    """A row whose columns go by what they hold."""

    def __init__(self, config: ProgramsConfig, row: Mapping[str, Any], where: str) -> None:
        self.config = config
        self.where = where
        self._row = row

    def __getitem__(self, option: str) -> Any:
        column = getattr(self.config, option) or _COLUMNS[self.config.style][option]
        return cell(self._row, column, option=option, where=self.where)

    def get(self, option: str, default: Any = None) -> Any:
        """Return a cell, or a default if its column was not named and the row has none of the usual name."""
        usual = _COLUMNS[self.config.style][option]
        return self[option] if getattr(self.config, option) or usual in self._row else default


def _asked(prompt: str, problem: Problem) -> str:
    told = f"\nThe function is called {problem.entry}." if problem.entry and problem.entry not in prompt else ""
    shown = "".join(f"\n{case.call} is {case.expected}." for case in problem.examples if case.call)
    return f"{prompt}{told}{shown}"


def _read_humaneval(row: _Row) -> Problem | None:
    entry = str(row["entry"])
    solution = row.get("solution")
    reference = "" if solution is None else f"{row['prompt']}{solution}"
    cases = list(_assertions(str(row["tests"]), {"candidate", entry}, entry=entry))
    return _problem(row, cases, entry=entry, reference=reference)


def _read_mbpp(row: _Row) -> Problem | None:
    written = row["tests"]
    text = written if isinstance(written, str) else "\n".join(map(str, written))
    entry = str(row.get("entry") or _called(text))
    return _problem(
        row, list(_assertions(text, {entry}, entry=entry)), entry=entry, reference=str(row.get("solution", ""))
    )


def _read_apps(row: _Row) -> Problem | None:
    pairs = row["tests"]
    try:
        pairs = json.loads(pairs) if isinstance(pairs, str) else pairs
        inputs, outputs, entry = pairs["inputs"], pairs["outputs"], pairs.get("fn_name") or row.get("entry") or ""
    except (ValueError, KeyError, TypeError):
        return None
    # Row by row of two lists that some sets do not keep equally long.
    together = list(zip(inputs, outputs, strict=False))
    if entry:
        cases = [Case(call=_call(entry, given), expected=repr(_only(wanted))) for given, wanted in together]
    else:
        cases = [Case(stdin=_text(given), expected=_text(wanted)) for given, wanted in together]
    # A program that writes nothing must not pass.
    cases = [case for case in cases if case.expected.strip()]
    solutions = row.get("solution", "")
    solutions = json.loads(solutions) if isinstance(solutions, str) and solutions.startswith("[") else solutions
    reference = str(solutions[0]) if isinstance(solutions, list) and solutions else ""
    return _problem(row, cases, entry=str(entry), reference=reference)


_READERS: Mapping[str, Callable[[_Row], Problem | None]] = {
    "humaneval": _read_humaneval,
    "mbpp": _read_mbpp,
    "apps": _read_apps,
}


def _problem(row: _Row, cases: list[Case], *, entry: str, reference: str) -> Problem | None:
    used = cases[: row.config.max_tests]
    if not used:
        return None
    return Problem(entry=entry, examples=tuple(used[: row.config.num_examples]), tests=tuple(used), reference=reference)


def _text(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)


def _only(wanted: Any) -> Any:
    """Return the output of a call: APPS wraps it in a list of one."""
    return wanted[0] if isinstance(wanted, list) and len(wanted) == 1 else wanted


def _call(entry: str, arguments: Any) -> str:
    return f"{entry}({', '.join(map(repr, arguments))})"


def _called(text: str) -> str:
    """Return the function that the first assertion calls; empty if it calls none."""
    for node in ast.walk(_tree(text)):
        if isinstance(node, ast.Assert):
            calls = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)]
            names = [called.id for called in calls if isinstance(called, ast.Name)]
            return next((name for name in names if name not in _WRAPPERS), "")
    return ""


def _tree(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


def _assertions(text: str, names: set[str], *, entry: str) -> Iterator[Case]:
    """Read the assertions that compare one call with a literal; those inside loops depend on code and are left out."""
    statements = list(_tree(text).body)
    for statement in statements:
        if isinstance(statement, ast.FunctionDef) and statement.name == "check":
            statements += statement.body
        if isinstance(statement, ast.Assert):
            case = _case(statement.test, names, entry=entry)
            if case is not None:
                yield case


def _case(test: ast.expr, names: set[str], *, entry: str) -> Case | None:
    match test:
        case ast.Compare(left=ast.Call() as call, ops=[ast.Eq() | ast.Is()], comparators=[expected]):
            return _read(call, expected, names, entry=entry)
        case ast.Compare(
            left=ast.Call(
                func=ast.Name(id="abs"), args=[ast.BinOp(left=ast.Call() as call, op=ast.Sub(), right=expected)]
            ),
            ops=[ast.Lt() | ast.LtE()],
            comparators=[ast.Constant(value=float() as tolerance)],
        ):
            return _read(call, expected, names, entry=entry, tolerance=tolerance)
        case ast.Call(func=ast.Attribute(attr="isclose"), args=[ast.Call() as call, expected]):
            return _read(call, expected, names, entry=entry, tolerance=_CLOSE)
        case ast.UnaryOp(op=ast.Not(), operand=ast.Call() as call):
            return _read(call, ast.Constant(False), names, entry=entry)
        case ast.Call():
            return _read(test, ast.Constant(True), names, entry=entry)
    return None


def _read(call: ast.Call, expected: ast.expr, names: set[str], *, entry: str, tolerance: float = 0.0) -> Case | None:
    if not isinstance(call.func, ast.Name) or call.func.id not in names:
        return None
    try:
        literal = repr(ast.literal_eval(expected))
        ast.literal_eval(literal)
    # Not a literal, or one without a written form: an infinity.
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    renamed = ast.Call(ast.Name(entry), call.args, call.keywords)
    return Case(call=ast.unparse(renamed), expected=literal, tolerance=tolerance)
