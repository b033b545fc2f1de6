"""Change one thing at a time in agentflow/maths and count how often the tests of that module notice.

    python -m tests.benchmarks.mutants [MODULE ...] [--jobs 2] [--share 0.2] [--least 0.9]

A mutant is one comparison, operator, number, truth value, condition or choice of extremum that is turned round.
Asserts, annotations and docstrings are left alone. Each mutant runs in a forked process in which the module is imported
from its changed source, with tests/numerics/test_MODULE.py (and what `ALSO` names) up to the first failure; one that
hangs counts as noticed. A mutant that lives is a missing test, or changes nothing: each is printed with its line.
"""

import argparse
import ast
import importlib.machinery
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

import numpy  # noqa: F401  loaded once and shared by all forks, as are the next two
import pytest
import torch  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent.parent
MATHS = ROOT / "agentflow" / "maths"
TESTS = ROOT / "tests" / "numerics"
ALSO = {"losses": ["test_token_weights"], "advantages": ["test_unit_advantages"]}
"""Tests of a module beside those that are named like it."""
LIMIT_S = 60

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult},
    **{ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
    **{ast.And: ast.Or, ast.Or: ast.And, ast.USub: ast.UAdd},
}
PAIRS = [("min", "max"), ("minimum", "maximum"), ("amin", "amax"), ("argmin", "argmax"), ("floor", "ceil")]
NAMES = {name: other for pair in PAIRS for name, other in (pair, pair[::-1])}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of a parsed module.

    Attributes:
        node: What is changed, for its line and its text.
        change: Changes the tree in place.
    """

    node: ast.expr | ast.stmt
    change: Callable[[], None]


def mutants(tree: ast.Module) -> list[Mutant]:
    """List every change of a module in the order of its lines."""
    return [mutant for node in _code(tree) for mutant in _changes(node)]


def _code(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Walk what is executed: no docstring, annotation, assert, import, alias of a type or `strict=` of a zip."""
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns", "decorator_list"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Assert | ast.Import | ast.ImportFrom) or _is_of_types(child):
                continue
            if isinstance(child, ast.expr | ast.stmt):
                yield child
            if isinstance(child, ast.AST):
                yield from _code(child)


def _is_of_types(node: object) -> bool:
    if isinstance(node, ast.keyword):
        return node.arg == "strict"
    return isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.unparse(node.annotation)


def _changes(node: ast.expr | ast.stmt) -> Iterator[Mutant]:
    if isinstance(node, ast.Compare):
        yield from (Mutant(node, _setter(node.ops, i, SWAPS[type(op)]())) for i, op in enumerate(node.ops))
    elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp | ast.UnaryOp) and type(node.op) in SWAPS:
        yield Mutant(node, _assigner(node, "op", SWAPS[type(node.op)]()))
    elif isinstance(node, ast.UnaryOp):
        yield Mutant(node, _assigner(node, "operand", ast.UnaryOp(op=node.op, operand=node.operand)))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        other = not node.value if isinstance(node.value, bool) else node.value + 1
        yield Mutant(node, _assigner(node, "value", other))
    elif isinstance(node, ast.If | ast.IfExp) and not isinstance(node.test, ast.Compare):
        yield Mutant(node, _assigner(node, "test", ast.UnaryOp(op=ast.Not(), operand=node.test)))
    elif isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Load):
        yield Mutant(node, _assigner(node, "id", NAMES[node.id]))
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield Mutant(node, _assigner(node, "attr", NAMES[node.attr]))


def _assigner(node: ast.AST, field: str, value: object) -> Callable[[], None]:
    return lambda: setattr(node, field, value)


def _setter(items: list[ast.cmpop], index: int, value: ast.AST) -> Callable[[], None]:
    assert isinstance(value, ast.cmpop), "a comparison is swapped for another one"
    return lambda: items.__setitem__(index, value)


def build(path: Path, index: int) -> tuple[str, CodeType]:
    """Return what a mutant changes, as text, and its compiled module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    mutant = mutants(tree)[index]
    before = _line(mutant.node)
    mutant.change()
    text = f"{path.name}:{mutant.node.lineno}  {before}  ->  {_line(mutant.node)}"
    return text, compile(ast.fix_missing_locations(tree), str(path), "exec")


def _line(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0]


class Changed(importlib.machinery.SourceFileLoader):
    """Imports one module from code that is handed to it, wherever else the package is imported from."""

    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        super().__init__(name, str(path))
        self._code = code

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> object:
        """Answer for that one module."""
        return importlib.machinery.ModuleSpec(name, self, origin=self.path) if name == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed code as the module's own."""
        exec(self._code, module.__dict__)


def run(module: str, code: CodeType | None) -> int:
    """Start the module's tests in a forked process, on changed code if there is some; return its id."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(LIMIT_S)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    if code is not None:
        loader = Changed(f"agentflow.maths.{module}", MATHS / f"{module}.py", code)
        sys.meta_path.insert(0, loader)  # type: ignore[arg-type]
    files = [str(TESTS / f"{name}.py") for name in (f"test_{module}", *ALSO.get(module, ()))]
    os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--noconftest", *files])))


def survivors(module: str, chosen: Sequence[int], jobs: int) -> list[str]:
    """Run mutants of a module, at most `jobs` at a time; return the text of each that no test noticed."""
    path = MATHS / f"{module}.py"
    living: dict[int, str] = {}
    running: dict[int, tuple[int, str]] = {}
    queue = list(chosen)
    while queue or running:
        while queue and len(running) < jobs:
            index = queue.pop(0)
            text, code = build(path, index)
            running[run(module, code)] = index, text
        pid, status = os.wait()
        index, text = running.pop(pid)
        if status == 0:
            living[index] = text
    return [living[index] for index in sorted(living)]


def passes(module: str) -> bool:
    """Whether the tests of a module pass on its own source: without that every mutant would seem noticed."""
    return os.waitpid(run(module, None), 0)[1] == 0


def measure(module: str, share: float, jobs: int) -> tuple[int, int]:
    """Print the mutants of one module that live; return how many there were and how many were noticed."""
    if not passes(module):
        raise SystemExit(f"The tests of {module} fail, or there are none. Write tests/numerics/test_{module}.py first.")
    count = len(mutants(ast.parse((MATHS / f"{module}.py").read_text(encoding="utf-8"))))
    chosen = sorted(random.Random(0).sample(range(count), round(share * count)))
    began = time.monotonic()
    living = survivors(module, chosen, jobs)
    noticed = len(chosen) - len(living)
    print(f"{module:16} {noticed:4d} of {len(chosen):4d} noticed  {time.monotonic() - began:6.1f} s", flush=True)
    for text in living:
        print(f"    lives  {text}", flush=True)
    return len(chosen), noticed


def main() -> None:
    """Mutate the modules that are named, or all."""
    known = sorted(path.stem for path in MATHS.glob("*.py") if path.stem != "__init__")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", choices=[[], *known], help="all of them if left out")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    parser.add_argument("--share", type=float, default=1.0, help="share of the mutants that are drawn, by seed 0")
    parser.add_argument("--least", type=float, default=0.0, help="share noticed below which the exit status is 1")
    options = parser.parse_args()
    # Pure functions need neither the suite's plugins nor its conftest, which take most of the time of a fork.
    os.environ.update(OMP_NUM_THREADS="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    counts = [measure(module, options.share, options.jobs) for module in options.modules or known]
    total, noticed = (sum(column) for column in zip(*counts, strict=True))
    print(f"{'all':16} {noticed:4d} of {total:4d} noticed: {noticed / max(1, total):.1%}")
    sys.exit(int(noticed < options.least * total))


if __name__ == "__main__":
    main()
