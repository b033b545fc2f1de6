"""What every call of a remote service shares: keys, retries, and clients that belong to one event loop."""

import asyncio
import os
import re
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Generic, TypeVar

from pydantic import Field, SecretStr
from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential
from yarl import URL

from agentflow.config import Config
from agentflow.errors import BackendFailure, ConfigError, CredentialError

T = TypeVar("T")

_TRANSIENT_STATUSES = frozenset({408, 409, 425, 429})
_MAX_DETAIL_CHARS = 200


class Retries(Config):
    """How often a remote service is asked again, and how long is waited in between."""

    attempts: int = Field(5, ge=1, le=20, description="Most attempts of one call, the first one included.")
    first_wait_s: float = Field(0.5, ge=0, description="Seconds before the second attempt; they double each time.")
    max_wait_s: float = Field(30.0, ge=0, description="Most seconds between attempts; a longer Retry-After gives up.")


class TransientError(Exception):
    """One attempt failed in a way that may pass: ask again.

    Args:
        reason: What happened, without any key.
        retry_after_s: Seconds that the service asked to wait; None where it did not say.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


async def with_retries(call: Callable[[], Awaitable[T]], retries: Retries, *, service: str) -> T:
    """Call a service, and again after each transient error, with random exponential waits that honour Retry-After.

    Args:
        call: One attempt; raises `TransientError` if another one may help.
        retries: How often and how long.
        service: Its name, for the error.

    Raises:
        BackendFailure: Every attempt failed, or the service asks for a longer pause than `max_wait_s`.
    """
    backoff = wait_random_exponential(multiplier=retries.first_wait_s, max=retries.max_wait_s)

    def wait(state: RetryCallState) -> float:
        asked = _transient(state).retry_after_s
        return backoff(state) if asked is None else asked

    def stop(state: RetryCallState) -> bool:
        asked = _transient(state).retry_after_s or 0.0
        return asked > retries.max_wait_s or stop_after_attempt(retries.attempts)(state)

    # tenacity recognises an async function, but not a lambda that returns an awaitable.
    async def attempt() -> T:
        return await call()

    attempts = AsyncRetrying(
        sleep=asyncio.sleep, wait=wait, stop=stop, retry=retry_if_exception_type(TransientError), reraise=False
    )
    try:
        return await attempts(attempt)
    except RetryError as error:
        last = error.last_attempt
        raise BackendFailure(f"{service} gave up at attempt {last.attempt_number}: {last.exception()}") from None


def _transient(state: RetryCallState) -> TransientError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, TransientError), "only transient errors are waited for"
    return error


def is_transient(status: int) -> bool:
    """Say whether an HTTP status means that the same request may succeed later."""
    return status >= 500 or status in _TRANSIENT_STATUSES


def retry_after_s(header: str | None) -> float | None:
    """Read a Retry-After header, seconds or an HTTP date; None where there is none or it is neither."""
    if not header:
        return None
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", header):
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def read_key(variable: str, *, service: str, environ: Mapping[str, str] = os.environ, hint: str = "") -> SecretStr:
    """Return a key from the environment, in a form that no log or error shows.

    Args:
        variable: The environment variable.
        service: Who asks for the key.
        environ: The environment variables.
        hint: A further sentence for whoever has no key.

    Raises:
        CredentialError: The variable is not set, is empty, or holds what no HTTP header can carry.
    """
    value = environ.get(variable, "").strip()
    if not value:
        raise CredentialError(
            f"{service} needs a key, and the environment variable {variable} is not set.",
            f"Set it: export {variable}=... {hint}".strip(),
        )
    if not value.isascii() or not value.isprintable():
        raise CredentialError(f"{variable} holds characters that no key has.", f"Set it again: export {variable}=...")
    return SecretStr(value)


def detail_of(text: str, secret: SecretStr | None = None) -> str:
    """Return the beginning of a service's error text in one line, with the key struck out should it be quoted."""
    if secret is not None:
        text = text.replace(secret.get_secret_value(), "***")
    line = " ".join(text.split())
    return line if len(line) <= _MAX_DETAIL_CHARS else line[:_MAX_DETAIL_CHARS] + "..."


def without_password(url: str) -> str:
    """Return an address as it is: a validator of options, which are written into the folders of runs.

    Raises:
        ValueError: It has a user or a password in it.
    """
    parsed = _parsed(url)
    if parsed.user is not None or parsed.password is not None:
        raise ValueError("an address must not hold a user or a password, as options are written into the run's folder")
    return url


def checked_url(url: str, option: str) -> URL:
    """Return the address of a service without a trailing slash.

    Raises:
        ConfigError: It is no http(s) address with a host.
    """
    parsed = _parsed(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        # The value itself may hold a password.
        raise ConfigError(f"{option} is not an http(s) address with a host.", "Write it as http://host:port.")
    return URL(str(parsed).rstrip("/"))


def _parsed(url: str) -> URL:
    try:
        return URL(url.strip())
    except ValueError:
        return URL()


class PerLoop(Generic[T]):
    """Keeps one object for each event loop: clients and locks belong to the loop that first used them.

    Args:
        make: Makes one, called inside the loop.
        discard: Called on an object whose loop is closed, and on what is left when this goes or the process ends.
    """

    def __init__(self, make: Callable[[], T], discard: Callable[[T], object] = lambda _: None) -> None:
        self._make = make
        self._discard = discard
        self._kept: dict[asyncio.AbstractEventLoop, T] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _discard_all, self._kept, discard)

    def get(self) -> T:
        """Return the running loop's object."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._kept:
                for closed in [known for known in self._kept if known.is_closed()]:
                    self._discard(self._kept.pop(closed))
                self._kept[loop] = self._make()
            return self._kept[loop]

    def pop(self) -> T | None:
        """Forget and return the running loop's object; None where it has none."""
        with self._lock:
            return self._kept.pop(asyncio.get_running_loop(), None)


def _discard_all(kept: Mapping[asyncio.AbstractEventLoop, T], discard: Callable[[T], object]) -> None:
    for item in kept.values():
        discard(item)
