"""Tools: schema, validation, failures, options."""

import asyncio
import threading
import time
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from agentflow.errors import BackendFailure, ConfigError, ToolError, ToolFailure
from agentflow.tools.tool import tool, tools_of


@tool
def search(query: str, k: Annotated[int, Field(ge=1)] = 3, mode: Literal["fast", "deep"] = "fast") -> str:
    """Search the pages.

    Results come ranked.

    Args:
        query: What to look for.
        k: How many results.
        mode: How hard to look.

    Returns:
        Not for the model.
    """
    return f"{query!r} {k!r} {mode}"


def test_schema_is_the_signature_with_the_docstrings_words():
    assert search.schema == {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Search the pages.\nResults come ranked.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "What to look for."},
                    "k": {"type": "integer", "minimum": 1, "default": 3, "description": "How many results."},
                    "mode": {
                        "type": "string",
                        "enum": ["fast", "deep"],
                        "default": "fast",
                        "description": "How hard to look.",
                    },
                },
                "required": ["query"],
                "additionalProperties": False,
            },
        },
    }
    assert search.usage == 'search(query, k=3, mode="fast")'


async def test_arguments_are_coerced_as_json_from_a_model_needs():
    assert await search.call({"query": 1987, "k": "5"}) == "'1987' 5 fast"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "query: missing"),
        ({"qurey": "x"}, "query: missing; qurey: unexpected argument (did you mean query?)"),
        ({"query": "x", "zebra": 1}, "zebra: unexpected argument"),
        ({"query": "x", "k": 0}, "k: should be greater than or equal to 1, got 0"),
        ({"query": "x", "mode": "slow"}, "mode: should be 'fast' or 'deep', got 'slow'"),
        ({"query": {"a": "b" * 200}}, "query: should be a valid string, got {'a': '" + "b" * 53 + "..."),
        (["x"], "the arguments must be a JSON object"),
    ],
)
async def test_wrong_arguments_are_named_for_the_model(arguments, message):
    with pytest.raises(ToolError) as caught:
        await search.call(arguments)
    assert str(caught.value) == message


_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4)


@given(st.dictionaries(st.text() | st.sampled_from(["query", "k", "mode"]), _JSON))
def test_whatever_the_arguments_a_tool_answers_or_explains(arguments):
    try:
        assert set(search.validate(arguments)) == {"query", "k", "mode"}
    except ToolError as error:
        assert str(error)


class Counter:
    def __init__(self) -> None:
        self.count = 0

    @tool
    def add(self, amount: int = 1) -> dict[str, int]:
        """Add."""
        self.count += amount
        return {"count": self.count}

    @tool(name="reset")
    async def set_to_zero(self) -> None:
        """Start over."""
        self.count = 0


class LateCounter(Counter):
    @tool
    def add(self, amount: int = 10) -> int:
        """Add more."""
        return amount


async def test_a_method_is_bound_to_its_instance():
    first, second = Counter(), Counter()
    assert await first.add.call({"amount": 2}) == '{"count": 2}'
    assert second.count == 0
    assert second.add(amount=3) == {"count": 3}
    assert await first.set_to_zero.call({}) == "null"
    assert "self" not in Counter.add.parameters["properties"]


def test_tools_are_found_in_order_and_overridden_in_place():
    assert list(tools_of(Counter())) == ["add", "reset"]
    assert list(tools_of(LateCounter())) == ["add", "reset"]
    assert tools_of(LateCounter())["add"].description == "Add more."


def test_two_tools_of_one_name_are_refused():
    class Twice(Counter):
        @tool(name="add")
        def more(self) -> None:
            """Add, too."""

    with pytest.raises(ConfigError, match="two tools named 'add'"):
        tools_of(Twice)


async def test_only_tool_errors_are_for_the_model():
    @tool
    def speak(how: str) -> str:
        """Raise."""
        raise {"tool": ToolError("no such page"), "bug": ValueError("oops"), "away": BackendFailure("down")}[how]

    with pytest.raises(ToolError, match=r"^no such page$"):
        await speak.call({"how": "tool"})
    with pytest.raises(ToolFailure, match="tool speak raised ValueError: oops"):
        await speak.call({"how": "bug"})
    with pytest.raises(BackendFailure, match="down"):
        await speak.call({"how": "away"})


async def test_a_validation_error_inside_a_tool_is_no_wrong_argument():
    class Row(BaseModel):
        price: int

    @tool
    def load() -> str:
        """Fail on own data."""
        return str(Row.model_validate({"price": "dear"}))

    with pytest.raises(ToolFailure, match="ValidationError"):
        await load.call({})


async def test_exit_does_not_take_the_run_along():
    @tool
    def leave() -> str:
        """Exit."""
        raise SystemExit(1)

    with pytest.raises(ToolFailure, match="SystemExit"):
        await leave.call({})


async def test_a_result_without_json_form_is_a_failure():
    @tool
    def thing() -> object:
        """Return no data."""
        return object()

    with pytest.raises(ToolFailure, match="has no JSON form"):
        await thing.call({})


@pytest.mark.parametrize("plain", [False, True])
async def test_a_hanging_tool_times_out_in_words(plain):
    async def wait() -> None:
        """Hang."""
        await asyncio.sleep(60)

    def block() -> None:
        """Hang a thread, for a while."""
        time.sleep(0.2)

    slow = tool(timeout_s=0.05)(block if plain else wait)
    with pytest.raises(ToolError, match=r"^timed out after 0\.05 s$"):
        await slow.call({})


async def test_a_timeout_of_the_tools_own_is_a_failure():
    @tool(timeout_s=5)
    async def fetch() -> None:
        """Fail as sockets do."""
        raise TimeoutError("read timed out")

    with pytest.raises(ToolFailure, match="read timed out"):
        await fetch.call({})


async def test_plain_functions_leave_the_thread_of_the_loop():
    def plain() -> bool:
        """Tell the thread."""
        return threading.current_thread() is threading.main_thread()

    async def awaits() -> bool:
        """Tell the thread."""
        return threading.current_thread() is threading.main_thread()

    assert await tool(awaits).call({}) == "true"
    assert await tool(plain).call({}) == "false"


def test_signatures_that_no_model_can_fill_are_refused():
    def untyped(query):
        """Search."""

    def variadic(*queries: str):
        """Search."""

    def opaque(query: threading.Thread):
        """Search."""

    for function, problem in ((untyped, "has no type"), (variadic, r"takes \*queries"), (opaque, "Thread")):
        with pytest.raises(ConfigError, match=problem):
            tool(function)
