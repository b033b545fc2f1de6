"""The client of a sandbox elsewhere: AgentFlow's own server, or any other that speaks as SandboxFusion does."""

import asyncio
import ipaddress
import os
from collections.abc import Mapping

import httpx
from pydantic import SecretStr, ValidationError

from agentflow.remote import checked_url, detail_of
from agentflow.sandbox.base import Limits, Program, Result, SandboxUnavailable, Session, refusal
from agentflow.sandbox.over_http.format import RunAnswer, request_json

TOKEN_VARIABLE = "AGENTFLOW_SANDBOX_TOKEN"
_CONNECT_S = 10.0
_PATIENCE_S = 60.0  # a busy server lets a program wait for its turn
_MAX_ANSWER_BYTES = 64 << 20


class HttpSandbox:
    """Run programs by `POST URL/run_code`.

    Args:
        url: The server's address; a path, but no name and password.
        concurrency: Programs under way at once; the server bounds how many of them run.
        environ: Where the token of the server stands, under `AGENTFLOW_SANDBOX_TOKEN`, if it wants one.

    Raises:
        ConfigError: The address is none.
    """

    name = "http"

    def __init__(self, url: str, concurrency: int = 32, *, environ: Mapping[str, str] = os.environ) -> None:
        address = checked_url(url, "The address of the sandbox")
        self._url = str(address / "run_code")
        token = environ.get(TOKEN_VARIABLE, "").strip()
        self._secret = SecretStr(token) if token else None
        self._slots = asyncio.Semaphore(concurrency)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            limits=httpx.Limits(max_connections=concurrency),
            trust_env=not is_loopback(str(address.host)),
        )

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        """Run a program there; whatever keeps its result from coming back is `infra_error`."""
        used = limits or Limits()
        problem = refusal(program, used)
        if problem:
            return Result("refused", detail=problem, backend=self.name)
        limit_s = used.wall_s + _PATIENCE_S
        timeout = httpx.Timeout(limit_s, connect=_CONNECT_S)
        headers = {"Content-Type": "application/json"}
        async with self._slots:
            try:
                request = self._client.build_request(
                    "POST", self._url, content=request_json(program, used), headers=headers, timeout=timeout
                )
                async with asyncio.timeout(limit_s):  # that of httpx is for each read
                    return await self._answer(request, used)
            except TimeoutError:
                return self._broken(f"no whole answer within {limit_s:g} s")
            except (httpx.HTTPError, ValueError) as error:
                return self._broken(f"{type(error).__name__}: {error}")

    async def session(self, limits: Limits | None = None) -> Session:
        """Refuse: the protocol has none.

        Raises:
            SandboxUnavailable: Always.
        """
        raise SandboxUnavailable("The http sandbox keeps no interpreter between programs.", "Use `run`.")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _answer(self, request: httpx.Request, limits: Limits) -> Result:
        response = await self._client.send(request, stream=True)
        try:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > _MAX_ANSWER_BYTES:
                    return self._broken(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
        finally:
            await response.aclose()
        if not response.is_success:
            hint = f" Set {TOKEN_VARIABLE}." if response.status_code in (401, 403) else ""
            return self._broken(f"HTTP {response.status_code}: {body[:400].decode('utf-8', 'replace')}.{hint}")
        try:
            return RunAnswer.model_validate_json(bytes(body)).result(limits, backend=self.name)
        except ValidationError as error:
            return self._broken(f"an answer that is not SandboxFusion's: {error.error_count()} errors in it")

    def _broken(self, what: str) -> Result:
        return Result("infra_error", detail=detail_of(what, self._secret), backend=self.name)


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine and nobody else can reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
