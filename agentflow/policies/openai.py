"""Frozen models by text: a client of any OpenAI-compatible `/chat/completions`, limited in rate and in tokens."""

import asyncio
import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import aiohttp
from pydantic import AfterValidator, Field, SecretStr

from agentflow.config import Config
from agentflow.errors import BackendFailure, BudgetFailure
from agentflow.messages import Message, to_chats
from agentflow.policies.usage import Journal, Pace, Prices, Usage
from agentflow.remote import (
    PerLoop,
    Retries,
    TransientError,
    checked_url,
    detail_of,
    is_transient,
    read_key,
    retry_after_s,
    with_retries,
    without_password,
)
from agentflow.roles import Exchange, record

OPENAI_URL = "https://api.openai.com/v1"
_REFUSAL = "refusal"
_UNSAID = (_REFUSAL, "content_filter")
_IMAGE_TOKENS = 1 << 16  # no model that is known counts more for one
# What a chat template writes around a message, generously.
_TEMPLATE_TOKENS = 8
_POLL_S = 0.02


class ChatConfig(Config):
    """A frozen model behind an OpenAI-compatible server."""

    model: str = Field(description="Name of the model, as the server knows it.")
    base_url: Annotated[str, AfterValidator(without_password)] = Field(
        OPENAI_URL, description="Address of the server, `/v1` included."
    )
    key_variable: str = Field(
        "OPENAI_API_KEY", description="Environment variable that holds the key; empty for a server without keys."
    )
    temperature: float | None = Field(
        0.0, ge=0, description="Divides the logits; 0 takes the most likely token, null leaves it to the server."
    )
    max_tokens: int = Field(512, ge=1, description="Most tokens of one reply.")
    timeout_s: float = Field(60.0, gt=0, description="Seconds that one attempt may take.")
    concurrency: int = Field(32, ge=1, description="Most requests under way at once.")
    requests_per_minute: float | None = Field(None, gt=0, description="Most requests a minute; null for no limit.")
    tokens_per_minute: float | None = Field(
        None, gt=0, description="Most tokens of prompts and replies a minute; null for no limit."
    )
    token_budget: int | None = Field(
        None, ge=1, description="Most tokens of prompts and replies in a whole run; a run that needs more stops."
    )
    prices: Prices | None = Field(None, description="What the tokens cost; null if nobody counts.")
    retries: Retries = Field(default=Retries(), description="When a request is repeated.")

    @property
    def identity(self) -> str:
        """What replies depend on besides the messages: never a key."""
        address = checked_url(self.base_url, "base_url")
        return f"{self.model} at {address}, temperature {self.temperature}, {self.max_tokens} tokens"


@dataclass(frozen=True, slots=True)
class ChatReply:
    """One reply.

    Attributes:
        text: What the model said.
        finish_reason: `stop`, `length`, or what else the server says.
        usage: Its tokens by the server's count; their bytes where it gives no count, or one that cannot be true.
    """

    text: str
    finish_reason: str
    usage: Usage


class OpenAIChat:
    """Asks a frozen model for text.

    One client may be used from several event loops and threads: rate and budget hold for all of them together.

    Args:
        config: Which model, and its limits.
        role: The name that its usage and its exchanges are kept under.
        environ: The environment variables, where the key is.

    Raises:
        CredentialError: The key is not set.
        ConfigError: The address is none.
    """

    def __init__(self, config: ChatConfig, *, role: str = "", environ: Mapping[str, str] = os.environ) -> None:
        self.config = config
        self.role = role or config.model
        self.usage = Usage()
        self._url = f"{checked_url(config.base_url, 'base_url')}/chat/completions"
        self._key = _key(config, environ)
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._reserved_tokens = 0
        self._requests = Pace(config.requests_per_minute)
        self._tokens = Pace(config.tokens_per_minute)
        self._slots = PerLoop(lambda: asyncio.Semaphore(config.concurrency))
        self._sessions = PerLoop(self._session, _abandon)

    @property
    def identity(self) -> str:
        """Which model this is; see `roles.TextModel`."""
        return self.config.identity

    def continue_from(self, journal: Journal) -> None:
        """Count on from what the journal holds of this role, and keep it."""
        self.usage = journal.read().get(self.role, Usage())
        self._journal = journal

    async def chat(
        self, messages: Sequence[Message], *, max_tokens: int | None = None, temperature: float | None = None
    ) -> ChatReply:
        """Return the model's reply to a conversation.

        Args:
            messages: The conversation so far.
            max_tokens: Most tokens of the reply; the configured number if None.
            temperature: Divides the logits; the configured one if None.

        Raises:
            BackendFailure: The server stayed away after retries, or refuses us.
            BudgetFailure: What is left of the token budget may not suffice.
        """
        limit = max_tokens or self.config.max_tokens
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": to_chats(messages),
            # OpenAI has given up the name that every other server knows.
            "max_completion_tokens" if self.config.base_url == OPENAI_URL else "max_tokens": limit,
        }
        temperature = self.config.temperature if temperature is None else temperature
        if temperature is not None:
            body["temperature"] = temperature
        # A token is at least one byte, so the budget holds whatever the tokenizer is.
        prompt_bound = sum(len(message.content.encode(errors="replace")) for message in messages)
        prompt_bound += _IMAGE_TOKENS * sum(len(message.images) for message in messages)
        reserved = prompt_bound + _TEMPLATE_TOKENS * len(messages) + limit
        while not self._reserve(reserved):
            await asyncio.sleep(_POLL_S)
        try:
            reply = await with_retries(
                lambda: self._attempt(body, prompt_bound, reserved=reserved),
                self.config.retries,
                service=self.config.model,
            )
        finally:
            with self._lock:
                self._reserved_tokens -= reserved
        record(Exchange(self.role, tuple(messages), reply.text))
        if reply.finish_reason in _UNSAID:
            raise BackendFailure(f"{self.config.model} refused, or answered without text ({reply.finish_reason})")
        if not reply.text and reply.finish_reason == "length":
            raise BackendFailure(f"{self.config.model} spent {limit} tokens before it said anything; raise max_tokens")
        return reply

    async def complete(self, messages: Sequence[Message]) -> str:
        """Return the text of the model's reply; see `chat`."""
        return (await self.chat(messages)).text

    async def close(self) -> None:
        """Close the running loop's connections."""
        session = self._sessions.pop()
        if session is not None:
            await session.close()

    def _reserve(self, tokens: int) -> bool:
        """Set tokens of the budget aside; False where requests under way may still give enough of theirs back."""
        budget = self.config.token_budget
        with self._lock:
            spent = self.usage.total_tokens
            if budget is not None and spent + tokens > budget:
                raise BudgetFailure(
                    f"the budget of {budget} tokens for {self.role} is used up: {spent} were spent, and the next reply "
                    f"may take {tokens}; raise its token_budget"
                )
            if budget is not None and spent + self._reserved_tokens + tokens > budget:
                return False
            self._reserved_tokens += tokens
        return True

    async def _attempt(self, body: Mapping[str, Any], prompt_bound: int, *, reserved: int) -> ChatReply:
        wait_s = max(self._requests.book(), self._tokens.book(reserved))
        used, num_sent = 0, 0
        try:
            await asyncio.sleep(wait_s)
            num_sent = 1
            reply = _parse(await self._post(body), prompt_bound)
            used = reply.usage.total_tokens
            with self._lock:
                self.usage += reply.usage
            if self._journal is not None:
                self._journal.add(self.role, reply.usage)
            return reply
        finally:
            self._tokens.refund(reserved - used)
            self._requests.refund(1 - num_sent)

    async def _post(self, body: Mapping[str, Any]) -> Any:
        headers = {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {}
        try:
            async with self._slots.get(), self._sessions.get().post(self._url, json=body, headers=headers) as response:
                text = await response.text()
                status, wait_s = response.status, retry_after_s(response.headers.get("Retry-After"))
        except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError) as error:
            raise TransientError(f"{type(error).__name__}: {detail_of(str(error), self._key)}") from None
        if status == 200:
            return self._decoded(text)
        detail = f"HTTP {status} {detail_of(text, self._key)}".strip()
        if is_transient(status):
            # Whoever else is about to ask would be turned away as well.
            self._requests.hold(min(wait_s or 0.0, self.config.retries.max_wait_s))
            raise TransientError(detail, wait_s)
        hint = f" Check {self.config.key_variable}." if status in (401, 403) and self._key else ""
        raise BackendFailure(f"{self.config.model} refused the request: {detail}.{hint}")

    def _decoded(self, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            # A proxy that cut the body short may let the next one through.
            shown = detail_of(text, self._key)
            raise TransientError(f"answered with something that is not JSON: {shown}") from None

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.config.concurrency),
            timeout=aiohttp.ClientTimeout(total=self.config.timeout_s),
        )


def _abandon(session: aiohttp.ClientSession) -> None:
    """Close a session whose event loop is closed, so that nothing is left to wait for."""
    closing = session.close()
    with suppress(StopIteration):
        closing.send(None)
    closing.close()


def _key(config: ChatConfig, environ: Mapping[str, str]) -> SecretStr | None:
    if not config.key_variable:
        return None
    hint = "A server without keys: key_variable=''." if config.base_url != OPENAI_URL else ""
    return read_key(config.key_variable, service=f"The model {config.model}", environ=environ, hint=hint)


def _parse(answer: Any, prompt_bound: int) -> ChatReply:
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        finish_reason = choice.get("finish_reason") or "stop"
    except (KeyError, IndexError, TypeError, AttributeError):
        raise BackendFailure("the model's server did not answer with a chat completion") from None
    said = text if isinstance(text, str) else ""
    usage = _usage(answer.get("usage"), prompt_bound, len(said.encode(errors="replace")))
    return ChatReply(said, str(finish_reason) if isinstance(text, str) else _REFUSAL, usage)


def _usage(told: Any, prompt_bound: int, reply_bound: int) -> Usage:
    """Read what the server counted; what cannot be true is replaced by the most that it can be, the bytes."""
    told = told if isinstance(told, Mapping) else {}
    details = told.get("prompt_tokens_details")
    prompt = _count(told.get("prompt_tokens"), prompt_bound)
    cached = _count(details.get("cached_tokens"), 0) if isinstance(details, Mapping) else 0
    return Usage(
        num_replies=1,
        prompt_tokens=prompt,
        completion_tokens=_count(told.get("completion_tokens"), reply_bound),
        cached_tokens=cached if cached <= prompt else 0,
    )


def _count(told: Any, bound: int) -> int:
    """Return a count of tokens that may be true: nothing has none, and something has at least one."""
    return told if type(told) is int and told >= min(bound, 1) else bound
