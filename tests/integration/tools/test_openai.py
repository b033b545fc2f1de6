"""The client of OpenAI-compatible servers, and the judge, against a server of that kind on this machine."""

import asyncio
import gc
import json
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from agentflow.config import validate_options
from agentflow.errors import BackendFailure, BudgetFailure, ConfigError, CredentialError, ScoreFailure
from agentflow.messages import Message
from agentflow.policies.openai import OPENAI_URL, ChatConfig, OpenAIChat
from agentflow.policies.usage import Prices, Usage
from agentflow.remote import Retries
from agentflow.tools.cache import ReplayCache
from agentflow.tools.judge import Judge, JudgeConfig
from agentflow.trajectory import Task
from tests.pictures import PICTURE

FAST = Retries(attempts=3, first_wait_s=0.001, max_wait_s=0.5)
HELLO = [Message("system", "be brief"), Message("user", "say hello now")]


def client(model: Any, **options: Any) -> OpenAIChat:
    config = ChatConfig(**{"model": "m", "base_url": model.url, "retries": FAST, **options})
    return OpenAIChat(config, environ={"OPENAI_API_KEY": model.key})


async def test_a_reply_with_its_usage(model: Any) -> None:
    model.reply = lambda messages: f"hello to {messages[-1]['content']}"
    chat = client(model)
    reply = await chat.chat(HELLO, max_tokens=7, temperature=0.5)
    assert (reply.text, reply.finish_reason) == ("hello to say hello now", "stop")
    assert chat.usage == Usage(num_replies=1, prompt_tokens=5, completion_tokens=5)
    assert model.bodies == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "say hello now"}],
            "max_tokens": 7,
            "temperature": 0.5,
        }
    ]
    await chat.close()


async def test_a_temperature_can_be_left_to_the_server(model: Any) -> None:
    await client(model, temperature=None).complete(HELLO)
    await client(model).complete(HELLO)
    assert "temperature" not in model.bodies[0] and model.bodies[1]["temperature"] == 0.0


async def test_images_are_sent_and_count_for_the_budget(model: Any) -> None:
    drawn = [HELLO[1], Message("tool", "done", name="python", images=(PICTURE,))]
    await client(model).complete(drawn)
    assert [message["role"] for message in model.bodies[0]["messages"]] == ["user", "tool", "user"]
    shown = model.bodies[0]["messages"][2]["content"][1]
    assert shown == {"type": "image_url", "image_url": {"url": PICTURE.url}}
    with pytest.raises(BudgetFailure, match="budget of 60000 tokens"):
        await client(model, token_budget=60_000).complete(drawn)


async def test_transient_errors_are_repeated(model: Any, answer: Any) -> None:
    model.failures = [answer("overloaded", status=529), answer("slow", status=429, headers={"Retry-After": "0.1"})]
    started = time.monotonic()
    assert await client(model).complete(HELLO) == "ok"
    assert len(model.bodies) == 3 and time.monotonic() - started >= 0.1


async def test_a_server_that_stays_away_is_a_failure(model: Any, answer: Any) -> None:
    model.failures = [answer("down", status=500)] * 9
    chat = client(model)
    with pytest.raises(BackendFailure, match="m gave up at attempt 3: HTTP 500 down"):
        await chat.complete(HELLO)
    with pytest.raises(BackendFailure, match="ClientConnectorError"):
        await client(model, base_url="http://127.0.0.1:9/v1").complete(HELLO)
    assert chat.usage == Usage()


async def test_a_hanging_server_is_a_failure(model: Any) -> None:
    model.delay_s = 5
    with pytest.raises(BackendFailure, match="TimeoutError"):
        await client(model, timeout_s=0.05).complete(HELLO)


async def test_a_refused_key_names_the_variable_and_not_the_key(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    wrong = OpenAIChat(ChatConfig(model="m", base_url=model.url), environ={"OPENAI_API_KEY": "sk-wrong-secret"})
    with pytest.raises(BackendFailure, match=r"HTTP 401 .*\*\*\*.*Check OPENAI_API_KEY") as caught:
        await wrong.complete(HELLO)
    shown = str(caught.value) + repr(wrong) + repr(vars(wrong)) + caplog.text
    assert "sk-wrong-secret" not in shown and len(model.bodies) == 1


def test_a_missing_key_fails_at_once() -> None:
    with pytest.raises(CredentialError, match="export OPENAI_API_KEY"):
        OpenAIChat(ChatConfig(model="m"), environ={})
    with pytest.raises(CredentialError, match="A server without keys: key_variable=''"):
        OpenAIChat(ChatConfig(model="m", base_url="http://127.0.0.1:8000/v1"), environ={})
    OpenAIChat(ChatConfig(model="m", base_url="http://127.0.0.1:8000/v1", key_variable=""), environ={})
    with pytest.raises(ConfigError, match="base_url is not an http"):
        OpenAIChat(ChatConfig(model="m", base_url="127.0.0.1:8000", key_variable=""), environ={})
    assert ChatConfig(model="m").base_url == OPENAI_URL


@pytest.mark.parametrize("body", ["not json", "[]", "{}", '{"choices": []}', '{"choices": [{"message": {}}]}'])
async def test_a_reply_that_is_no_completion_is_a_failure(site: Any, answer: Any, body: str) -> None:
    site.on("/v1/chat/completions", answer(body))
    chat = OpenAIChat(ChatConfig(model="m", base_url=f"{site.url}/v1", key_variable="", retries=FAST), environ={})
    with pytest.raises(BackendFailure):
        await chat.complete(HELLO)
    assert "Authorization" not in site.asked[0].headers


@pytest.mark.parametrize(("reason", "said"), [("length", "spent 512 tokens"), ("content_filter", "content_filter")])
async def test_a_reply_that_was_cut_to_nothing_is_a_failure(site: Any, answer: Any, reason: str, said: str) -> None:
    site.on("/v1/chat/completions", answer({"choices": [{"message": {"content": ""}, "finish_reason": reason}]}))
    chat = OpenAIChat(ChatConfig(model="m", base_url=f"{site.url}/v1", key_variable=""), environ={})
    with pytest.raises(BackendFailure, match=said):
        await chat.complete(HELLO)


def test_an_address_with_a_password_is_refused_and_the_password_not_shown() -> None:
    options = {"model": "m", "base_url": "http://me:hidden@127.0.0.1/v1"}
    with pytest.raises(ConfigError, match="must not hold a user or a password") as caught:
        validate_options(ChatConfig, options, "The judge")
    assert "hidden" not in str(caught.value)


async def test_a_refusal_without_text_is_a_failure(model: Any) -> None:
    model.reply = lambda messages: None
    chat = client(model)
    with pytest.raises(BackendFailure, match="without text"):
        await chat.complete(HELLO)
    assert chat.usage.total_tokens > 0


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens": None}])
async def test_a_server_that_counts_no_tokens_is_counted_by_bytes(site: Any, answer: Any, usage: Any) -> None:
    site.on("/v1/chat/completions", answer({"choices": [{"message": {"content": "four"}}], "usage": usage}))
    chat = OpenAIChat(ChatConfig(model="m", base_url=f"{site.url}/v1", key_variable=""), environ={})
    await chat.complete(HELLO)
    assert chat.usage == Usage(1, prompt_tokens=len("be briefsay hello now"), completion_tokens=4)


async def test_so_many_requests_are_under_way_at_once(model: Any) -> None:
    model.delay_s = 0.02
    chat = client(model, concurrency=3)
    await asyncio.gather(*(chat.complete(HELLO) for _ in range(9)))
    assert model.most_at_once == 3


async def test_so_many_requests_start_in_a_minute(model: Any) -> None:
    chat = client(model, requests_per_minute=1200)
    started = time.monotonic()
    await asyncio.gather(*(chat.complete(HELLO) for _ in range(5)))
    assert time.monotonic() - started >= 4 * 60 / 1200


@pytest.mark.parametrize("pace", [{"requests_per_minute": 60}, {"tokens_per_minute": 600, "max_tokens": 500}])
async def test_who_gives_up_waiting_for_a_place_leaves_it_to_the_next(model: Any, pace: dict[str, int]) -> None:
    chat = client(model, **pace)
    await chat.complete(HELLO)
    for _ in range(20):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(chat.complete(HELLO), 0.005)
    await asyncio.wait_for(chat.complete(HELLO), 10)
    assert len(model.bodies) == 2


async def test_the_token_budget_is_never_exceeded(model: Any) -> None:
    model.reply = lambda messages: "word " * 50
    chat = client(model, token_budget=300, max_tokens=50)
    found = await asyncio.gather(*(chat.complete(HELLO) for _ in range(20)), return_exceptions=True)
    refused = [str(error) for error in found if isinstance(error, BudgetFailure)]
    assert 0 < len(refused) < 20 and "budget of 300 tokens for m is used up" in refused[0]
    while not isinstance((await asyncio.gather(chat.complete(HELLO), return_exceptions=True))[0], BudgetFailure):
        assert chat.usage.total_tokens <= 300
    assert 200 < chat.usage.total_tokens <= 300
    assert len(model.bodies) == chat.usage.num_replies


async def test_requests_under_way_are_waited_for_before_a_budget_counts_as_spent(model: Any) -> None:
    model.delay_s = 0.02
    chat = client(model, token_budget=300, max_tokens=200)
    assert await asyncio.gather(*(chat.complete(HELLO) for _ in range(8))) == ["ok"] * 8
    assert model.most_at_once == 1 and chat.usage.total_tokens == 8 * 6


async def test_so_many_tokens_are_used_in_a_minute(model: Any) -> None:
    model.reply = lambda messages: "word " * 45
    chat = client(model, tokens_per_minute=12_000, max_tokens=50)
    started = time.monotonic()
    for _ in range(5):
        await chat.complete(HELLO)
    # 50 tokens each, of which the last ones are paid for by whoever comes next.
    assert 4 * 50 / 200 <= time.monotonic() - started < 4 * 87 / 200 + 1


async def test_a_pause_that_is_asked_for_holds_everybody_back(model: Any, answer: Any) -> None:
    model.failures = [answer("slow", status=429, headers={"Retry-After": "0.3"})]
    chat = client(model)
    first = asyncio.ensure_future(chat.complete(HELLO))
    while not model.bodies:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    started = time.monotonic()
    assert await chat.complete(HELLO) == "ok" and time.monotonic() - started >= 0.2
    assert await first == "ok"


async def test_a_longer_pause_than_one_waits_for_is_a_failure_at_once(model: Any, answer: Any) -> None:
    model.failures = [answer("tomorrow", status=429, headers={"Retry-After": "86400"})]
    started = time.monotonic()
    with pytest.raises(BackendFailure, match="gave up at attempt 1: HTTP 429 tomorrow"):
        await client(model).complete(HELLO)
    assert time.monotonic() - started < 1 and len(model.bodies) == 1


WHOLE = json.dumps({"choices": [{"message": {"content": "whole"}}]})


async def test_a_body_that_was_cut_short_is_asked_for_again(site: Any, answer: Any) -> None:
    broken = answer(WHOLE, headers={"Content-Length": "500"})
    site.on("/v1/chat/completions", answer(WHOLE[:20]), broken, answer(WHOLE))
    chat = OpenAIChat(
        ChatConfig(model="m", base_url=f"{site.url}/v1", key_variable="", retries=FAST, timeout_s=1), environ={}
    )
    assert await chat.complete(HELLO) == "whole"
    assert len(site.asked) == 3 and chat.usage.num_replies == 1


LIES: list[Any] = [-5, "many", 1.5, True, float("inf"), 0, [7]]


@pytest.mark.parametrize("lie", LIES, ids=str)
async def test_a_count_that_cannot_be_true_is_replaced_by_the_bytes(site: Any, answer: Any, lie: Any) -> None:
    told = {"prompt_tokens": lie, "completion_tokens": lie, "prompt_tokens_details": {"cached_tokens": 99}}
    site.on("/v1/chat/completions", answer({"choices": [{"message": {"content": "four"}}], "usage": told}))
    chat = OpenAIChat(ChatConfig(model="m", base_url=f"{site.url}/v1", key_variable=""), environ={})
    await chat.complete(HELLO)
    assert chat.usage == Usage(1, prompt_tokens=len("be briefsay hello now"), completion_tokens=4)


async def test_cached_tokens_have_their_own_price(site: Any, answer: Any) -> None:
    told = {"prompt_tokens": 1000, "completion_tokens": 100, "prompt_tokens_details": {"cached_tokens": 600}}
    site.on("/v1/chat/completions", answer({"choices": [{"message": {"content": "four"}}], "usage": told}))
    chat = OpenAIChat(ChatConfig(model="m", base_url=f"{site.url}/v1", key_variable=""), environ={})
    await chat.complete(HELLO)
    assert chat.usage.cost(Prices(input=2, output=8, cached=0.5)) == pytest.approx((400 * 2 + 600 * 0.5 + 800) / 1e6)
    assert chat.usage.cost(Prices(input=2, output=8)) == pytest.approx((1000 * 2 + 800) / 1e6)


async def test_a_failed_request_gives_its_reserved_tokens_back(model: Any, answer: Any) -> None:
    chat = client(model, token_budget=100, max_tokens=50)
    for _ in range(3):
        model.failures = [answer("no", status=400)]
        with pytest.raises(BackendFailure, match="refused the request"):
            await chat.complete(HELLO)
    assert await chat.complete(HELLO) == "ok"


def test_one_client_serves_one_loop_after_the_other_and_leaves_nothing_open(caplog: pytest.LogCaptureFixture) -> None:
    async def complete(request: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": "ok"}}]})

    async def once(chat: OpenAIChat, port: int) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        async with TestServer(app, port=port):
            return await chat.complete(HELLO)

    port = unused_port()
    chat = OpenAIChat(ChatConfig(model="m", base_url=f"http://127.0.0.1:{port}/v1", key_variable=""), environ={})
    assert [asyncio.run(once(chat, port)), asyncio.run(once(chat, port))] == ["ok", "ok"]
    assert chat.usage.num_replies == 2
    del chat
    gc.collect()
    assert "Unclosed" not in caplog.text


TASK = Task("1", "Who built it?", answer=("Ada",))


async def test_a_judge_over_the_wire(model: Any, tmp_path: Path) -> None:
    def grade(messages: list[dict[str, Any]]) -> str:
        material = json.loads(messages[1]["content"])
        right = material["answer"] in material["gold_answers"]
        return json.dumps({"reason": "it is, or is not, the same", "score": float(right)})

    model.reply = grade
    cache = ReplayCache(tmp_path / "j.sqlite", "read-write")
    judge = Judge(client(model), JudgeConfig(), identity="m", cache=cache)
    assert [await judge.score(TASK, answer) for answer in ("Ada", "Bo", "Ada")] == [1.0, 0.0, 1.0]
    assert len(model.bodies) == 2


async def test_a_judge_that_is_away_or_mumbles_fails_and_never_grades_zero(model: Any, answer: Any) -> None:
    judge = Judge(client(model), JudgeConfig(attempts=2), identity="m")
    model.failures = [answer("down", status=500)] * 3
    with pytest.raises(BackendFailure):
        await judge.score(TASK, "Ada")
    model.reply = lambda messages: "I would say 7 out of 10."
    with pytest.raises(ScoreFailure):
        await judge.score(TASK, "Ada")
