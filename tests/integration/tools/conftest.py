"""Loopback servers that tests talk to: any web site, and an OpenAI-compatible model."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer


@dataclass
class Answer:
    """What a site answers."""

    body: Any = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


@dataclass
class Asked:
    """What a site was asked."""

    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: Any


class Site:
    """Answers each path by its list of answers in order, the last one for ever, and remembers what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self.answers: dict[str, list[Answer]] = {}

    def on(self, path: str, *answers: Answer) -> None:
        """Set the answers of a path."""
        self.answers[path] = list(answers)

    async def handle(self, request: web.Request) -> web.Response:
        text = await request.text()
        body = json.loads(text) if text else None
        self.asked.append(Asked(request.path, dict(request.query), request.headers, body))
        answers = self.answers.get(request.path, [Answer("nothing here", status=404)])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        await asyncio.sleep(answer.delay_s)
        if isinstance(answer.body, bytes):
            return web.Response(body=answer.body, status=answer.status, headers=answer.headers)
        if isinstance(answer.body, str):
            headers = {"Content-Type": "text/html; charset=utf-8", **answer.headers}
            return web.Response(body=answer.body.encode(), status=answer.status, headers=headers)
        return web.json_response(answer.body, status=answer.status, headers=answer.headers)


class ModelServer:
    """An OpenAI-compatible server: checks each request, answers by `reply`, counts words as tokens."""

    key = "sk-secret-of-the-test"

    def __init__(self) -> None:
        self.url = ""
        self.reply: Callable[[list[dict[str, Any]]], Any] = lambda messages: "ok"
        self.failures: list[Answer] = []
        self.delay_s = 0.0
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._now = 0

    async def complete(self, request: web.Request) -> web.Response:
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(self.delay_s)
            return self._answer(request, await request.json())
        finally:
            self._now -= 1

    def _answer(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        self.bodies.append(body)
        if self.failures:
            failure = self.failures.pop(0)
            return web.Response(text=failure.body, status=failure.status, headers=failure.headers)
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            given = request.headers.get("Authorization", "no key")
            return web.json_response({"error": {"message": f"Incorrect API key provided: {given}"}}, status=401)
        messages = body["messages"]
        if not body.get("model") or not all(set(m) >= {"role", "content"} for m in messages):
            return web.json_response({"error": {"message": "malformed request"}}, status=400)
        text = self.reply(messages)
        usage = {
            "prompt_tokens": sum(len(str(m["content"]).split()) for m in messages),
            "completion_tokens": len(str(text).split()),
        }
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return web.json_response({"object": "chat.completion", "choices": [choice], "usage": usage})


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A web site on this machine."""
    served = Site()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", served.handle)
    async with TestServer(app) as server:
        served.url = str(server.make_url("/")).rstrip("/")
        yield served


@asynccontextmanager
async def _serving() -> AsyncIterator[ModelServer]:
    served = ModelServer()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", served.complete)
    async with TestServer(app) as server:
        served.url = str(server.make_url("/v1"))
        yield served


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    """A model's server on this machine."""
    async with _serving() as served:
        yield served


@pytest.fixture
def threaded_model() -> Iterator[ModelServer]:
    """A model's server with a thread and an event loop of its own, for whoever runs loops of theirs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    serving = _serving()
    try:
        yield asyncio.run_coroutine_threadsafe(serving.__aenter__(), loop).result(60)
        asyncio.run_coroutine_threadsafe(serving.__aexit__(None, None, None), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
    loop.close()


@pytest.fixture
def answer() -> type[Answer]:
    """What the site is told to answer."""
    return Answer
