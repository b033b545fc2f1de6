"""A server that runs programs in this machine's sandbox: `POST /run_code`, as SandboxFusion speaks it.

Whoever reaches it may run programs, so it listens on this machine alone; anywhere else it asks for a token. It takes
JSON that calls itself so, from who calls this machine by its own name, which a page in a browser cannot send unasked.
"""

import hmac
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from agentflow.errors import ConfigError
from agentflow.sandbox.base import Limits, Sandbox
from agentflow.sandbox.over_http.client import TOKEN_VARIABLE, is_loopback
from agentflow.sandbox.over_http.format import LANGUAGES, MOST, RunRequest, answer_json
from agentflow.sandbox.probe import open_sandbox

_MAX_BODY_BYTES = 96 << 20
_MIN_TOKEN_CHARS = 16


def make_app(sandbox: Sandbox, *, token: str = "") -> web.Application:
    """Return the server as an application, with `GET /health` for whoever waits; it closes the sandbox at its end.

    Args:
        sandbox: Where programs run.
        token: What clients must show as `Authorization: Bearer`; empty for nothing.
    """

    async def run_code(request: web.Request) -> web.Response:
        if not token and not is_loopback(request.url.host or ""):
            # A page of a foreign name whose address has become this machine's: its own server, to a browser.
            raise web.HTTPForbidden(text="the Host header names another machine")
        if token and not _is_shown(request, token):
            raise web.HTTPUnauthorized(text="the token is missing or wrong")
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="the body must be application/json")
        asked = _parse(await request.read())
        result = await sandbox.run(asked.program(), asked.limits())
        return web.Response(text=answer_json(result), content_type="application/json")

    async def health(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "sandbox": sandbox.name})

    async def closing(app: web.Application) -> AsyncIterator[None]:
        yield
        await sandbox.close()

    app = web.Application(middlewares=[_errors_as_json], client_max_size=_MAX_BODY_BYTES)
    app.add_routes([web.post("/run_code", run_code), web.get("/health", health)])
    app.cleanup_ctx.append(closing)
    return app


def serve(
    backend: str,
    host: str = "127.0.0.1",
    *,
    port: int = 8080,
    packages: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Serve until the process is told to stop.

    Args:
        backend: The sandbox; see `open_sandbox`.
        host: The address to listen on.
        port: The port to listen on.
        packages: Installed distributions that programs may import, beside numpy, sympy and matplotlib.
        environ: Where the token stands, under `AGENTFLOW_SANDBOX_TOKEN`.

    Raises:
        ConfigError: The address cannot be listened on, or others reach it and there is no token.
        SandboxUnavailable: No sandbox works here.
    """
    token = environ.get(TOKEN_VARIABLE, "").strip()
    if not is_loopback(host) and len(token) < _MIN_TOKEN_CHARS:
        raise ConfigError(
            f"Others reach {host}, and may run programs only with a token of {_MIN_TOKEN_CHARS} characters or more.",
            f"Set it here and for the clients: export {TOKEN_VARIABLE}=$(openssl rand -hex 16).",
        )

    async def app() -> web.Application:
        return make_app(await open_sandbox(backend, packages), token=token)

    try:
        # A client that hangs up takes its program along.
        web.run_app(app(), host=host, port=port, handler_cancellation=True, print=lambda _: _say(host, port))
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.", "Choose another --port."
        ) from None


def _say(host: str, port: int) -> None:
    print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)


def _is_shown(request: web.Request, token: str) -> bool:
    shown = request.headers.get("Authorization", "")
    return hmac.compare_digest(shown.encode("utf-8", "replace"), f"Bearer {token}".encode())


def _parse(body: bytes) -> RunRequest:
    try:
        asked = RunRequest.model_validate_json(body)
        limits = asked.limits()
    except ValidationError as error:
        first = error.errors()[0]
        raise web.HTTPBadRequest(text=f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if asked.language not in LANGUAGES:
        raise web.HTTPBadRequest(text=f"language: {asked.language!r} is not one of {', '.join(LANGUAGES)}")
    if asked.fetch_files:
        raise web.HTTPBadRequest(text="fetch_files: files do not come back from here")
    over = [name for name in Limits.model_fields if getattr(limits, name) > getattr(MOST, name)]
    if over:
        most = ", ".join(f"{name} {getattr(MOST, name)}" for name in over)
        raise web.HTTPBadRequest(text=f"limits: more than this server grants; at most {most}")
    return asked


@web.middleware
async def _errors_as_json(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
    except web.HTTPException as error:
        return web.json_response({"error": error.text or error.reason}, status=error.status)
    return answer
