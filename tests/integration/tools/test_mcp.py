"""MCP: a real server, in a process of its own, over stdio and streamable HTTP."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import pytest

pytest.importorskip("mcp", reason="the extra `mcp` is not installed")

from agentflow.environments import ToolEnvironment
from agentflow.errors import ConfigError, CredentialError, ToolError, ToolFailure
from agentflow.messages import Message, ToolCall
from agentflow.tools.mcp import McpServer, McpTools
from agentflow.tools.tool import join_tools, tool, tools_of
from agentflow.trajectory import Task
from tests.pictures import PICTURE, png
from tests.processes import started

SCRIPT = Path(__file__).with_name("mcp_server.py")
COMMAND = (sys.executable, str(SCRIPT))


# Greets, and says nothing more.
MUTE = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("method") == "initialize":
        told = {"protocolVersion": asked["params"]["protocolVersion"], "capabilities": {"tools": {}}}
        answer = {"jsonrpc": "2.0", "id": asked["id"], "result": told | {"serverInfo": {"name": "m", "version": "1"}}}
        print(json.dumps(answer), flush=True)
    elif "id" in asked and asked["method"] != "tools/list":
        error = {"code": -32601, "message": "unknown"}
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "error": error}), flush=True)
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def serving(port):
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with started([*COMMAND, str(port)], **quiet):
        deadline = time.monotonic() + 60
        while not listens(port):
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.1)
        yield


@pytest.fixture(scope="module", params=["stdio", "http"])
def tools(request):
    if request.param == "stdio":
        over = McpTools(McpServer(command=COMMAND, timeout_s=5))
        yield over.tools
        over.close()
        return
    port = free_port()
    with serving(port):
        over = McpTools(McpServer(url=f"http://127.0.0.1:{port}/mcp", timeout_s=5))
        yield over.tools
        over.close()


async def test_a_servers_tools_are_tools(tools):
    assert list(tools) == ["price", "environment", "number", "wait", "picture", "die"]
    assert tools["price"].description == "Look up a price."
    assert tools["price"].usage == "price(item, count=1)"
    assert await tools["price"].call({"item": "tea", "count": 2}) == "tea 6"


async def test_what_a_tool_says_is_text(tools):
    with pytest.raises(ToolError, match="we do not sell salt"):
        await tools["price"].call({"item": "salt"})


@pytest.mark.parametrize(
    ("arguments", "text", "num_images"),
    [
        ({}, "before\nafter", 1),
        ({"count": 5}, "before\n[image: image/png]\nafter", 4),
        ({"kind": "svg+xml"}, "before\n[image: image/svg+xml]\nafter", 0),
        ({"data": "00"}, "before\n[image: image/png]\nafter", 0),
    ],
)
async def test_images_are_images(tools, arguments, text, num_images):
    picture = tools["picture"]
    output = await picture.run(picture.validate({"data": png().hex(), **arguments}))
    assert (output.text, output.images) == (text, (PICTURE,) * num_images)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({}, "'item' is a required property"), ({"item": 3}, "item: 3 is not of type 'string'"), ([], "JSON object")],
)
async def test_wrong_arguments_are_found_before_the_server_is_asked(tools, arguments, words):
    with pytest.raises(ToolError, match=words):
        tools["price"].validate(arguments)


def test_calls_come_from_any_event_loop(tools):
    def one(count):
        return asyncio.run(tools["price"].call({"item": "tea", "count": count}))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(one, range(8))) == [f"tea {3 * count}" for count in range(8)]


async def test_a_slow_call_times_out_in_words_and_the_server_lives(tools):
    with pytest.raises(ToolError, match="timed out after 5 s"):
        await tools["wait"].call({"seconds": 60})
    assert await tools["wait"].call({"seconds": 0}) == "done"


def test_a_server_gets_only_the_variables_that_are_named(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "xyzzy")
    monkeypatch.setenv("NAMED", "yes")
    over = McpTools(McpServer(command=COMMAND, env=("NAMED",)))
    try:
        seen = json.loads(asyncio.run(over.tools["environment"].call({})))
    finally:
        over.close()
    assert set(seen) - {"LC_CTYPE"} == {"PATH", "NAMED"} and seen["NAMED"] == "yes"


async def test_the_death_of_a_server_is_a_failure_and_the_next_call_starts_it_again():
    over = McpTools(McpServer(command=COMMAND))
    try:
        with pytest.raises(ToolFailure, match="MCP server"):
            await over.tools["die"].call({})
        assert await over.tools["price"].call({"item": "tea"}) == "tea 3"
    finally:
        over.close()


async def test_a_server_over_http_that_went_away_is_a_failure_until_it_is_back():
    port = free_port()
    over = McpTools(McpServer(url=f"http://127.0.0.1:{port}/mcp", start_timeout_s=5, idempotent=("price",)))
    try:
        with serving(port):
            price = over.tools["price"]
            assert await price.call({"item": "tea"}) == "tea 3"
        with pytest.raises(ToolFailure, match="MCP server"):
            await price.call({"item": "tea"})
        with serving(port):
            assert await price.call({"item": "tea"}) == "tea 3"
    finally:
        over.close()


def test_closing_ends_the_server_and_the_next_use_starts_it():
    over = McpTools(McpServer(command=COMMAND, tools=("number",), prefix="shop_"))
    assert list(over.tools) == ["shop_number"]
    first, same = (asyncio.run(over.tools["shop_number"].call({})) for _ in range(2))
    over.close()
    assert first == same and not Path("/proc", first).exists()
    second = asyncio.run(over.tools["shop_number"].call({}))
    over.close()
    assert second != first and not Path("/proc", second).exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"command": ("no-such-program-here",)}, "There is no program"),
        ({"command": (sys.executable, "-c", "raise SystemExit('bad luck')")}, "bad luck"),
        ({"command": (sys.executable, "-c", "import time; time.sleep(60)"), "start_timeout_s": 1}, "did not start"),
        ({"command": (sys.executable, "-c", MUTE), "start_timeout_s": 4}, "did not list its tools within 4 s"),
        ({"command": COMMAND, "tools": ("cost",)}, "has no tool 'cost'"),
        ({"url": "http://127.0.0.1:9/mcp"}, "does not start"),
    ],
)
def test_a_server_that_cannot_be_used_is_the_users_to_mend(options, words):
    over = McpTools(McpServer(**options))
    try:
        with pytest.raises(ConfigError, match=words):
            _ = over.tools
    finally:
        over.close()


def test_a_missing_token_is_named(monkeypatch):
    monkeypatch.delenv("SHOP_TOKEN", raising=False)
    over = McpTools(McpServer(url="http://user:secret@127.0.0.1:9/mcp", token_env="SHOP_TOKEN"))
    with pytest.raises(CredentialError, match="SHOP_TOKEN") as caught:
        _ = over.tools
    assert "secret" not in str(caught.value)
    over.close()


@pytest.mark.parametrize("options", [{}, {"command": ("a",), "url": "http://b"}])
def test_a_server_has_one_transport(options):
    with pytest.raises(ValueError, match="either a command or a url"):
        McpServer(**options)


def test_an_episode_with_tools_of_both_kinds(tools):
    class Shop(ToolEnvironment):
        """Ask a server."""

        def tasks(self, split):
            return [Task("tea", "Price?", answer="3")]

        @cached_property
        def tools(self):
            return join_tools(tools_of(self), tools)

        @tool
        def stock(self) -> int:
            """Count."""
            return 7

        def score(self, task, answer):
            return {"success": float(answer == task.answer)}

    shop = Shop()
    shop.reset(seed=1)
    calls = (ToolCall("stock"), ToolCall("price", {"item": "tea"}), ToolCall("price", {"item": "salt"}))
    observation, *_, info = shop.step(Message("assistant", tool_calls=calls))
    assert [message.content for message in observation][:2] == ["7", "tea 3"]
    assert "we do not sell salt" in observation[2].content and info["reward_terms"]["valid_call"] == 1.0


def test_tools_of_one_name_are_refused(tools):
    with pytest.raises(ConfigError, match="two tools named 'price'"):
        join_tools(tools, {"price": tools["price"]})
