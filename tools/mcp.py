"""The tools of an MCP server (Model Context Protocol), as tools of an environment.

    CLOCK = McpTools(McpServer(command=("uvx", "mcp-server-time")))           # one server for all episodes

    class Shop(ToolEnvironment):
        @cached_property
        def tools(self):
            return join_tools(tools_of(self), CLOCK.tools)

A server over stdio is a child of this process, started at first use and started again after it died; its environment
holds `PATH` and what the user names, nothing else. What a tool says, errors too, is text for the model. A server that
is gone, or that breaks the protocol, fails the episode.
"""

import asyncio
import json
import os
import shutil
import tempfile
import threading
from base64 import b64decode
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import Field, model_validator

from agentflow.config import Config
from agentflow.errors import ConfigError, ToolError, ToolFailure, UserError
from agentflow.messages import Image
from agentflow.remote import checked_url, read_key
from agentflow.tools.throttle import Throttle
from agentflow.tools.tool import Tool, ToolOutput

if TYPE_CHECKING:
    from mcp import Client

T = TypeVar("T")

_LOG_LINES = 20
_CLOSING_S = 10.0
_INVALID_PARAMS = -32602  # JSON-RPC: the server refuses the arguments, which are the model's
_MAX_PAGES = 100
_MAX_IMAGES = 4


class McpServer(Config):
    """Where an MCP server is, and which of its tools are taken, on what terms."""

    command: tuple[str, ...] = Field((), description="Program and arguments of a server over stdio.")
    url: str = Field("", description="Address of a server over streamable HTTP.")
    env: tuple[str, ...] = Field((), description="Environment variables that a server over stdio gets besides PATH.")
    token_env: str = Field("", description="Environment variable with the bearer token of a server over HTTP.")
    tools: tuple[str, ...] = Field((), description="Names of the tools that are taken; all if empty.")
    prefix: str = Field("", description="What is put before the tools' names.")
    idempotent: tuple[str, ...] = Field((), description="Tools whose call is repeated once if the server broke.")
    parallel: bool = Field(False, description="Let the calls of one turn overlap.")
    timeout_s: float = Field(60.0, gt=0, description="Seconds after which a call is given up.")
    start_timeout_s: float = Field(30.0, gt=0, description="Seconds that a server may take to start.")
    max_concurrency: int | None = Field(None, ge=1, description="Most calls of one tool at once; any number if null.")
    rate_per_s: float | None = Field(None, gt=0, description="Most calls of one tool a second; any number if null.")

    @model_validator(mode="after")
    def _one_transport(self) -> Self:
        if bool(self.command) == bool(self.url):
            raise ValueError("give either a command or a url")
        return self

    @property
    def shown(self) -> str:
        """The server as errors name it; an address may hold a password."""
        return f"the MCP server {self.command[0]!r}" if self.command else f"the MCP server at {_host(self.url)}"


@dataclass(slots=True, eq=False)
class _Connection:
    """A server that answers; it ends when it is stale and nobody waits for it any more."""

    client: "Client"
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    is_stale: bool = False
    num_calls: int = 0

    def retire(self) -> None:
        self.is_stale = True
        if not self.num_calls:
            self.stop.set()


class McpTools:
    """The tools of one server, from any thread and any event loop: the connection lives in a loop of its own.

    Args:
        server: Where it is.
    """

    def __init__(self, server: McpServer) -> None:
        self.server = server
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Task[_Connection] | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._tools: dict[str, Tool] | None = None

    @property
    def tools(self) -> Mapping[str, Tool]:
        """The tools by name; the first time, the server is started and asked.

        Raises:
            CredentialError: The token that is named is not set.
            ConfigError: The `mcp` package is not installed, or the server does not start or lacks a tool that is named.
        """
        with self._lock:
            tools = self._tools or self._on_loop(self._listed()).result()
            self._tools = tools
            return tools

    def close(self) -> None:
        """End the connection and, over stdio, the server; the next use starts it again."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is None:
            return

        async def work() -> None:
            self._retire()
            if self._serving:
                await asyncio.wait(self._serving, timeout=_CLOSING_S)

        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(work(), loop).result(2 * _CLOSING_S)
        loop.call_soon_threadsafe(loop.stop)

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="mcp", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _call(self, remote: str, **arguments: Any) -> ToolOutput:
        """Call a tool from any loop; cancelling the wait cancels the call."""
        with self._lock:
            work = self._on_loop(self._called(remote, arguments))
        return await asyncio.wrap_future(work)

    async def _called(self, remote: str, arguments: dict[str, Any]) -> ToolOutput:
        import mcp  # noqa: PLC0415  optional, and slow to import

        try:
            connection = await self._connected()
        except UserError as error:
            raise ToolFailure(str(error)) from error
        connection.num_calls += 1
        try:
            result = await connection.client.call_tool(remote, arguments)
        except mcp.MCPError as error:
            if error.code == _INVALID_PARAMS:
                raise ToolError(str(error)) from None
            self._retire(connection)
            raise ToolFailure(f"{self.server.shown} did not answer {remote}: {error}") from error
        except Exception as error:
            self._retire(connection)
            raise ToolFailure(f"{self.server.shown} failed in {remote}: {type(error).__name__}: {error}") from error
        finally:
            connection.num_calls -= 1
            if connection.is_stale:
                connection.retire()
        output = output_of(result.content, result.structured_content)
        if result.is_error:
            raise ToolError(output.text)
        return output

    async def _connected(self) -> _Connection:
        # Kept as a task, so that calls that come at once start one server; a failure is tried again.
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.ensure_future(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> _Connection:
        opened: asyncio.Future[_Connection] = asyncio.get_running_loop().create_future()
        # One task enters and leaves the connection, as anyio wants it.
        serving = asyncio.ensure_future(self._serve(opened))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        try:
            async with asyncio.timeout(self.server.start_timeout_s):
                return await opened
        except TimeoutError:
            serving.cancel()
            problem = f"{self.server.shown} did not start within {self.server.start_timeout_s:g} s."
            raise ConfigError(problem, "Raise start_timeout_s.") from None

    async def _serve(self, opened: "asyncio.Future[_Connection]") -> None:
        log: deque[str] = deque(maxlen=_LOG_LINES)
        try:
            async with _client(self.server, log) as client:
                connection = _Connection(client)
                opened.set_result(connection)
                await connection.stop.wait()
        except UserError as error:
            opened.set_exception(error)
        # Whatever a transport raises while it opens is the user's to mend; while it closes, nobody's.
        except Exception as error:  # noqa: BLE001
            if not opened.done():
                said = f" It wrote: {' | '.join(log)}" if log else ""
                problem = f"{self.server.shown} does not start: {_root(error)}.{said}"
                opened.set_exception(ConfigError(problem, "Try the command or the address by hand."))

    def _retire(self, connection: _Connection | None = None) -> None:
        """Let the next call connect anew; calls under way on the old connection are left to end."""
        if connection is not None:
            connection.retire()
        opening = self._opening
        if opening is None or not opening.done() or opening.cancelled() or opening.exception() is not None:
            return
        current = opening.result()
        if connection in (None, current):
            self._opening = None
            current.retire()

    async def _listed(self) -> dict[str, Tool]:
        client = (await self._connected()).client
        try:
            async with asyncio.timeout(self.server.start_timeout_s):
                found = await _all_tools(client)
        except TimeoutError:
            problem = f"{self.server.shown} did not list its tools within {self.server.start_timeout_s:g} s."
            raise ConfigError(problem, "Raise start_timeout_s.") from None
        remote = {tool.name: tool for tool in found}
        unknown = [name for name in (*self.server.tools, *self.server.idempotent) if name not in remote]
        if unknown:
            raise ConfigError(f"{self.server.shown} has no tool {unknown[0]!r}.", f"It has {', '.join(remote)}.")
        tools = [self._tool(remote[name]) for name in self.server.tools or remote]
        return {tool.name: tool for tool in tools}

    def _tool(self, remote: Any) -> Tool:
        server = self.server
        return Tool(
            name=server.prefix + remote.name,
            description=remote.description or "",
            parameters=remote.input_schema,
            function=partial(self._call, remote.name),
            timeout_s=server.timeout_s,
            parallel=server.parallel,
            idempotent=remote.name in server.idempotent,
            throttle=Throttle(server.max_concurrency, server.rate_per_s),
            check=_checker(remote.name, remote.input_schema),
        )


async def _all_tools(client: "Client") -> list[Any]:
    found: list[Any] = []
    cursor: str | None = None
    for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


def output_of(content: list[Any], structured: Any = None) -> ToolOutput:
    """Return the blocks of a result as text and images; what is neither, or one image too many, is named."""
    parts = []
    images: list[Image] = []
    for block in content:
        if block.type == "text":
            parts.append(block.text)
        elif block.type == "resource" and hasattr(block.resource, "text"):
            parts.append(block.resource.text)
        elif block.type == "resource_link":
            parts.append(f"[resource: {block.uri}]")
        elif block.type == "image" and len(images) < _MAX_IMAGES and (image := _image(block)) is not None:
            images.append(image)
        else:
            parts.append(f"[{block.type}: {getattr(block, 'mime_type', None) or 'not shown'}]")
    if not parts and not images and structured is not None:
        parts.append(json.dumps(structured, ensure_ascii=False))
    return ToolOutput("\n".join(parts), tuple(images))


def _image(block: Any) -> Image | None:
    """Return the image of a block; None for a type that models do not take, or one that is too large."""
    try:
        return Image(block.mime_type, b64decode(block.data, validate=True))
    except ValueError:
        return None


def _checker(name: str, schema: dict[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return what checks arguments against a server's JSON schema; a reference leads nowhere outside of it."""
    from jsonschema import SchemaError  # noqa: PLC0415  comes with the optional mcp
    from jsonschema.validators import validator_for  # noqa: PLC0415
    from referencing import Registry  # noqa: PLC0415

    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ConfigError(
            f"MCP tool {name!r} has no valid schema: {error.message}.", "Leave it out: tools=..."
        ) from None
    validator = kind(schema, registry=Registry())

    def check(arguments: Mapping[str, Any]) -> dict[str, Any]:
        problems = [(".".join(map(str, error.path)), error.message) for error in validator.iter_errors(arguments)]
        if problems:
            raise ToolError("; ".join(f"{path}: {message}" if path else message for path, message in problems[:5]))
        return dict(arguments)

    return check


@asynccontextmanager
async def _client(server: McpServer, log: deque[str]) -> AsyncIterator["Client"]:
    """Connect to a server; `log` takes the last lines of what it writes to stderr."""
    try:
        from mcp import Client, StdioServerParameters, stdio_client  # noqa: PLC0415  optional, and slow to import
        from mcp.client.stdio import DEFAULT_INHERITED_ENV_VARS  # noqa: PLC0415
    except ImportError:
        raise ConfigError("MCP servers need the mcp package.", "pip install 'agentflow-rl[mcp]'") from None
    async with AsyncExitStack() as stack:
        if server.url:
            transport = await _over_http(server, stack)
        else:
            command, *arguments = _scrubbed(server, DEFAULT_INHERITED_ENV_VARS)
            given = {name: os.environ[name] for name in server.env if name in os.environ}
            parameters = StdioServerParameters(
                command=command, args=arguments, env=given, cwd=tempfile.gettempdir(), encoding_error_handler="replace"
            )
            transport = stdio_client(parameters, errlog=stack.enter_context(os.fdopen(_drain(log), "w")))
        yield await stack.enter_async_context(Client(transport))


async def _over_http(server: McpServer, stack: AsyncExitStack) -> Any:
    import httpx2  # noqa: PLC0415  comes with the optional mcp
    from mcp.client.streamable_http import streamable_http_client  # noqa: PLC0415

    headers = {}
    if server.token_env:
        token = read_key(server.token_env, service=server.shown).get_secret_value()
        headers["Authorization"] = f"Bearer {token}"
    timeout = httpx2.Timeout(server.start_timeout_s, read=server.timeout_s + 60)
    http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=timeout, trust_env=False))
    return streamable_http_client(str(checked_url(server.url, "url")), http_client=http)


def _scrubbed(server: McpServer, inherited: list[str]) -> list[str]:
    """Return the command behind `env`, which takes away what the mcp package always passes on, save PATH."""
    found = shutil.which(server.command[0])
    if found is None:
        raise ConfigError(f"There is no program {server.command[0]!r}.", "Install it, or give its whole path.")
    unwanted = [name for name in inherited if name != "PATH" and name not in server.env]
    return [
        "/usr/bin/env",
        *(word for name in unwanted for word in ("-u", name)),
        os.path.abspath(found),
        *server.command[1:],
    ]


def _drain(log: deque[str]) -> int:
    """Return a descriptor whose last lines are kept in `log`, however much is written."""
    reading, writing = os.pipe()

    def read() -> None:
        with os.fdopen(reading, "rb") as stream:
            while line := stream.readline(1 << 16):
                log.append(line.decode("utf-8", "replace").strip()[:200])

    threading.Thread(target=read, name="mcp-log", daemon=True).start()
    return writing


def _root(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".rstrip(":. ")


def _host(url: str) -> str:
    return url.partition("://")[2].rpartition("@")[2].partition("?")[0]
