"""A calculator: arithmetic of numbers and a few functions, read as a syntax tree and never evaluated as code."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import TypeAlias

from agentflow.errors import ToolError
from agentflow.tools.tool import tool

Number: TypeAlias = int | float

MAX_CHARS = 500
"""Characters of an expression."""
MAX_BITS = 4096
"""Bits of a whole number, of results on the way too: what is shown has at most 1,234 digits."""
MAX_FACTORIAL = 500
_MAX_DIGITS = 100

_CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e, "tau": math.tau}


def _power(base: Number, exponent: Number) -> Number:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and abs(exponent) * (int(abs(base)).bit_length() - 1) > MAX_BITS:
        raise ToolError("the power is too large")
    result = base**exponent
    if isinstance(result, complex):
        raise ToolError(f"{base} to the power {exponent} is not a real number")
    return result


def _factorial(number: Number) -> int:
    if not isinstance(number, int) or not 0 <= number <= MAX_FACTORIAL:
        raise ToolError(f"factorial takes a whole number from 0 to {MAX_FACTORIAL}")
    return math.factorial(number)


def _round(number: Number, digits: Number = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > _MAX_DIGITS:
        raise ToolError(f"round takes at most {_MAX_DIGITS} digits")
    return round(number, digits) if digits else round(number)


_BINARY: Mapping[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Number], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: Mapping[str, Callable[..., Number]] = {
    "abs": abs,
    "round": _round,
    "min": min,
    "max": max,
    "sqrt": math.sqrt,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "log": math.log,
    "log10": math.log10,
    "log2": math.log2,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "asin": math.asin,
    "acos": math.acos,
    "atan": math.atan,
    "gcd": math.gcd,
    "lcm": math.lcm,
    "factorial": _factorial,
}


@tool
def calculator(expression: str) -> str:
    """Work out an arithmetic expression, for example 3 * (4 + 5) ** 2 or sqrt(2) / 2.

    Args:
        expression: Numbers, + - * / // % **, parentheses, pi, e, and functions such as sqrt, round, min and log.
    """
    return str(calculate(expression))


def calculate(expression: str) -> Number:
    """Return the value of an arithmetic expression.

    Raises:
        ToolError: It is no such expression, has no value, or one that is too large: in words for a model.
    """
    if len(expression) > MAX_CHARS:
        raise ToolError(f"the expression has more than {MAX_CHARS} characters")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except OverflowError:
        raise ToolError("the result is too large") from None
    # ValueError also for a null character, MemoryError and RecursionError for parentheses by the hundred.
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ToolError(f"cannot work that out: {reason}") from None


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            return _UNARY[type(sign)](_value(operand))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _bounded(_BINARY[type(sign)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _bounded(_FUNCTIONS[name](*map(_value, arguments)))
    raise ToolError(_refusal(node))


def _bounded(number: Number) -> Number:
    if isinstance(number, int) and number.bit_length() > MAX_BITS:
        raise ToolError("the result is too large")
    if not isinstance(number, int) and not math.isfinite(number):
        raise ToolError("the result is not a finite number")
    return number


def _refusal(node: ast.expr) -> str:
    match node:
        case ast.BinOp(op=ast.BitXor()):
            return "a power is written **, not ^"
        case ast.Name(id=name):
            return f"there is no {name!r}; known: {', '.join(_CONSTANTS)}"
        case ast.Call(func=ast.Name(id=name)):
            return f"there is no function {name!r}; known: {', '.join(_FUNCTIONS)}"
    return f"only arithmetic is worked out, and {ast.unparse(node)[:40]!r} is none"
