"""A real MCP server for the tests: `mcp_server.py` speaks stdio, `mcp_server.py PORT` streamable HTTP."""

import asyncio
import json
import os
import sys

from mcp.server import MCPServer
from mcp.server.mcpserver import Image
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("shop", log_level="WARNING")


@server.tool()
async def price(item: str, count: int = 1) -> str:
    """Look up a price."""
    if item != "tea":
        raise ToolError(f"we do not sell {item}")
    return f"{item} {3 * count}"


@server.tool()
async def environment() -> str:
    """Tell the environment."""
    return json.dumps(dict(os.environ))


@server.tool()
async def number() -> int:
    """Tell the process."""
    return os.getpid()


@server.tool()
async def wait(seconds: float) -> str:
    """Wait."""
    await asyncio.sleep(seconds)
    return "done"


@server.tool()
async def picture(data: str, kind: str = "png", count: int = 1) -> list[str | Image]:
    """Show a picture."""
    return ["before", *[Image(data=bytes.fromhex(data), format=kind)] * count, "after"]


@server.tool()
async def die() -> str:
    """End the server."""
    os._exit(3)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        print("ready", file=sys.stderr)
        server.run("stdio")
