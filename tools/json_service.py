"""Ordinary calls of JSON services over HTTP: at most 32 at once, retried, and sorted by whose fault a failure is."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ssl import SSLContext
from typing import Any

import httpx
from pydantic import Field, SecretStr

from agentflow.config import Config
from agentflow.errors import BackendFailure, ToolError
from agentflow.remote import PerLoop, Retries, TransientError, detail_of, is_transient, retry_after_s, with_retries
from agentflow.version import __version__

USER_AGENT = f"agentflow-rl/{__version__} (+https://pypi.org/project/agentflow-rl/)"
# Some engines report an empty account or a bad key as a bad request (Serper 400, Brave 422).
_ACCOUNT = re.compile(r"credit|quota|subscription|plan\b|api.?key|token|billing|unauthori[sz]ed", re.IGNORECASE)
_QUERY_STATUSES = frozenset({400, 414, 422})


class HttpLimits(Config):
    """How hard a remote service is pressed."""

    timeout_s: float = Field(20.0, gt=0, description="Seconds that one attempt may take.")
    # httpx's pool is quadratic: 1000 requests at once took it 54 s, behind 32 slots 1.9 s.
    concurrency: int = Field(16, ge=1, le=32, description="Most requests under way at once.")
    retries: Retries = Field(default=Retries(), description="When a request is repeated.")


@lru_cache(maxsize=1)
def ssl_context() -> SSLContext:
    """Return the one certificate store of this process: reading it takes longer than most requests."""
    return httpx.create_ssl_context()


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine, which no proxy helps to reach."""
    return host in ("localhost", "::1") or host.startswith("127.")


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    Attributes:
        method: GET or POST.
        url: Where to, without a query.
        params: Query parameters.
        body: What is sent as JSON; None for no body.
        headers: Further headers; a key travels here and nowhere else.
    """

    method: str
    url: str
    params: Mapping[str, str | int] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class JsonService:
    """Calls a remote service that answers in JSON.

    Args:
        name: What errors call it.
        limits: How hard it is pressed.
        secret: Its key, to be struck out of whatever it says.
        hints: What to do about an HTTP status that only the user can mend.
        refuses_queries: Whether a bad request is about the query, which the model wrote, and not about the protocol.
    """

    def __init__(
        self,
        name: str,
        limits: HttpLimits,
        *,
        secret: SecretStr | None = None,
        hints: Mapping[int, str] | None = None,
        refuses_queries: bool = True,
    ) -> None:
        self.name = name
        self._limits = limits
        self._secret = secret
        self._hints = dict(hints or {})
        self._refuses_queries = refuses_queries
        self._slots = PerLoop(lambda: asyncio.Semaphore(limits.concurrency))
        self._direct = PerLoop(lambda: self._client(trust_env=False))
        self._proxied = PerLoop(lambda: self._client(trust_env=True))

    async def call(self, call: Call) -> Any:
        """Send a request and return the JSON of its answer.

        Raises:
            ToolError: The service refuses the query itself.
            BackendFailure: It stayed away after retries, refuses us, or does not answer in JSON.
        """
        return await with_retries(lambda: self._attempt(call), self._limits.retries, service=self.name)

    async def close(self) -> None:
        """Close the running loop's connections."""
        for clients in (self._direct, self._proxied):
            client = clients.pop()
            if client is not None:
                await client.aclose()

    async def _attempt(self, call: Call) -> Any:
        address = httpx.URL(call.url)
        # httpx logs the address of each request, a password in it included.
        url, auth = address.copy_with(userinfo=b""), (address.username, address.password)
        clients = self._direct if is_loopback(url.host) else self._proxied
        async with self._slots.get():
            try:
                response = await clients.get().request(
                    call.method,
                    url,
                    params=dict(call.params) or None,
                    json=call.body,
                    headers=call.headers,
                    auth=auth if address.userinfo else None,
                )
            except httpx.HTTPError as error:
                reason = str(error) or "no connection"
                raise TransientError(f"{type(error).__name__}: {detail_of(reason, self._secret)}") from None
        return self._answer(response)

    def _answer(self, response: httpx.Response) -> Any:
        status = response.status_code
        if response.is_success:
            try:
                return response.json()
            except ValueError:
                raise BackendFailure(f"{self.name} answered HTTP {status} with something that is not JSON") from None
        detail = detail_of(response.text, self._secret)
        if is_transient(status):
            raise TransientError(f"HTTP {status} {detail}".strip(), retry_after_s(response.headers.get("retry-after")))
        if self._refuses_queries and status in _QUERY_STATUSES and not _ACCOUNT.search(detail):
            raise ToolError(f"{self.name} refused the query: {detail or f'HTTP {status}'}")
        hint = self._hints.get(status, "")
        raise BackendFailure(f"{self.name} answered HTTP {status}: {detail or 'nothing more'}. {hint}".strip())

    def _client(self, *, trust_env: bool) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=ssl_context(),
            timeout=self._limits.timeout_s,
            limits=httpx.Limits(max_connections=self._limits.concurrency),
            headers={"User-Agent": USER_AGENT},
            trust_env=trust_env,
        )
