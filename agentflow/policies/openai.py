"""Frozen models by text: a client of any OpenAI-compatible `/chat/completions`, limited in rate and in tokens."""

import asyncio
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
from pydantic import Field, SecretStr

from agentflow.config import Config
from agentflow.errors import BackendFailure
from agentflow.messages import Message, to_chats
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
)

OPENAI_URL = "https://api.openai.com/v1"
_REFUSAL = "refusal"
_IMAGE_TOKENS = 1 << 16  # no model that is known counts more for one


class ChatConfig(Config):
    """A frozen model behind an OpenAI-compatible server."""

    model: str = Field(description="Name of the model, as the server knows it.")
    base_url: str = Field(OPENAI_URL, description="Address of the server, `/v1` included.")
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
    token_budget: int | None = Field(
        None, ge=1, description="Most tokens of prompts and replies together, after which no request is sent."
    )
    retries: Retries = Field(default=Retries(), description="When a request is repeated.")


@dataclass(frozen=True, slots=True)
class ChatReply:
    """One reply.

    Attributes:
        text: What the model said.
        finish_reason: `stop`, `length`, or what else the server says.
        prompt_tokens: Tokens of the prompt, by the server's count; estimated where it gives none.
        completion_tokens: Tokens of the reply, likewise.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a client has used so far.

    Attributes:
        num_replies: Replies received.
        prompt_tokens: Tokens of their prompts.
        completion_tokens: Tokens of the replies.
    """

    num_replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens of prompts and replies together."""
        return self.prompt_tokens + self.completion_tokens

    def plus(self, reply: ChatReply) -> "Usage":
        """Return the usage after one more reply."""
        return Usage(
            self.num_replies + 1,
            self.prompt_tokens + reply.prompt_tokens,
            self.completion_tokens + reply.completion_tokens,
        )


class OpenAIChat:
    """Asks a frozen model for text.

    One client may be used from several event loops and threads: rate and budget hold for all of them together.

    Args:
        config: Which model, and its limits.
        environ: The environment variables, where the key is.

    Raises:
        CredentialError: The key is not set.
        ConfigError: The address is none.
    """

    def __init__(self, config: ChatConfig, *, environ: Mapping[str, str] = os.environ) -> None:
        self.config = config
        self.usage = Usage()
        self._url = f"{checked_url(config.base_url, 'base_url')}/chat/completions"
        self._key = _key(config, environ)
        self._lock = threading.Lock()
        self._reserved_tokens = 0
        self._next_start_s = 0.0
        self._slots = PerLoop(lambda: asyncio.Semaphore(config.concurrency))
        self._sessions = PerLoop(self._session, _abandon)

    async def chat(
        self, messages: Sequence[Message], *, max_tokens: int | None = None, temperature: float | None = None
    ) -> ChatReply:
        """Return the model's reply to a conversation.

        Args:
            messages: The conversation so far.
            max_tokens: Most tokens of the reply; the configured number if None.
            temperature: Divides the logits; the configured one if None.

        Raises:
            BackendFailure: The server stayed away after retries or refuses us, or the token budget is used up.
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
        reserved = prompt_bound + limit
        self._reserve(reserved)
        try:
            answer = await with_retries(lambda: self._attempt(body), self.config.retries, service=self.config.model)
            reply = _parse(answer, prompt_bound)
            with self._lock:
                self.usage = self.usage.plus(reply)
        finally:
            with self._lock:
                self._reserved_tokens -= reserved
        if reply.finish_reason == _REFUSAL:
            raise BackendFailure(f"{self.config.model} refused, or answered without text")
        return reply

    async def complete(self, messages: Sequence[Message]) -> str:
        """Return the text of the model's reply; see `chat`."""
        return (await self.chat(messages)).text

    async def close(self) -> None:
        """Close the running loop's connections."""
        session = self._sessions.pop()
        if session is not None:
            await session.close()

    def _reserve(self, tokens: int) -> None:
        budget = self.config.token_budget
        with self._lock:
            if budget is not None and self.usage.total_tokens + self._reserved_tokens + tokens > budget:
                raise BackendFailure(
                    f"the budget of {budget} tokens for {self.config.model} is used up: {self.usage.total_tokens} were "
                    f"spent and up to {self._reserved_tokens + tokens} are needed; raise token_budget"
                )
            self._reserved_tokens += tokens

    async def _attempt(self, body: Mapping[str, Any]) -> Any:
        await self._turn()
        headers = {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {}
        try:
            async with self._slots.get(), self._sessions.get().post(self._url, json=body, headers=headers) as response:
                text = await response.text()
                status, wait_s = response.status, retry_after_s(response.headers.get("Retry-After"))
                if status == 200:
                    return await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError) as error:
            raise TransientError(f"{type(error).__name__}: {detail_of(str(error), self._key)}") from None
        except ValueError:
            raise BackendFailure(f"{self.config.model} answered with something that is not JSON") from None
        detail = f"HTTP {status} {detail_of(text, self._key)}".strip()
        if is_transient(status):
            raise TransientError(detail, wait_s)
        hint = f" Check {self.config.key_variable}." if status in (401, 403) and self._key else ""
        raise BackendFailure(f"{self.config.model} refused the request: {detail}.{hint}")

    async def _turn(self) -> None:
        """Wait until the rate allows another request."""
        rate = self.config.requests_per_minute
        if rate is None:
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next_start_s)
            self._next_start_s = start + 60.0 / rate
        await asyncio.sleep(start - now)

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
        usage = answer.get("usage") or {}
        prompt_tokens, completion_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise BackendFailure("the model's server did not answer with a chat completion") from None
    said = text if isinstance(text, str) else ""
    return ChatReply(
        said,
        str(choice.get("finish_reason") or "stop") if isinstance(text, str) else _REFUSAL,
        prompt_tokens=prompt_bound if prompt_tokens is None else int(prompt_tokens),
        completion_tokens=len(said.encode(errors="replace")) if completion_tokens is None else int(completion_tokens),
    )
