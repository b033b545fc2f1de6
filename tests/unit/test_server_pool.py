"""A pool of servers, played by fakes that break on command: nobody waits for ever, and no weights are mistaken."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from agentflow.errors import ConfigError, PolicyFailure, RunAborted
from agentflow.policies.vllm.pool import ServerPool
from agentflow.policies.vllm.servers import ServerConfig, ServerTrouble

WANTED = {"vocabulary": 9, "max_length": 64}
TOLD = {**WANTED, "adapter_folder": "/tmp", "gpus": ["GPU-0"]}


class FakeBuffer:
    """Weights whose checksum is their number."""

    num_bytes = 8

    def __init__(self, number: int = 0, *, is_adapter: bool = False) -> None:
        self.number, self.is_adapter = number, is_adapter
        self.trouble: Exception | None = None

    def publish(self) -> None:
        """Be up to date always."""

    def update_info(self, gpus: Sequence[str]) -> dict[str, Any]:
        assert list(gpus) == TOLD["gpus"]
        if self.trouble is not None:
            raise self.trouble
        return {"number": self.number}

    def digests(self) -> dict[str, str]:
        return {"others": str(self.number)}


class FakeServer:
    """A server that answers as told; each start takes a moment."""

    def __init__(self, name: str = "server-0") -> None:
        self.name, self.weights, self.adapter_folder = name, "", ""
        self.gpus: Sequence[str] = ()
        self.is_ready = False
        self.num_starts = 0
        self.under_way: set[asyncio.Task[Any]] = set()
        self.changing = asyncio.Lock()
        self.held, self.version = -1, "default"
        self.is_dead = False
        self.failures: list[Any] = []
        self.loses_updates = self.talks_nonsense = False
        self.paths: list[str] = []
        self.turn_s = 0.0
        self.start_s = 0.02
        self.reset_s = 0.0
        self.updates: list[int] = []

    async def start(self) -> None:
        self.num_starts += 1
        await asyncio.sleep(self.start_s)
        if self.failures:
            raise self.failures.pop(0)
        self.is_dead = False

    async def stop(self) -> None:
        self.is_ready = False

    def break_off(self) -> None:
        for task in self.under_way:
            task.cancel()

    def last_words(self) -> str:
        return "its log"

    async def is_sound(self) -> bool:
        return not self.is_dead and self.version == self.weights

    async def call(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        wants_json: bool = True,
    ) -> Any:
        await asyncio.sleep(0.001)
        self.paths.append(path)
        if self.is_dead:
            raise ServerTrouble(f"{self.name} is dead")
        body = body or {}
        if path == "/update_weights" and not self.loses_updates:
            self.held = body["update_info"]["number"]
            self.updates.append(self.held)
        if path == "/finish_weight_update":
            self.version = body["weight_version"]
        if path.endswith("/generate"):
            await asyncio.sleep(self.turn_s)
        if path.startswith("/reset_prefix_cache"):
            await asyncio.sleep(self.reset_s)
        span = {"version": self.version, "start": 0, "end": 1}
        choice = {"finish_reason": "stop", "token_ids": [1], "logprobs": {}, "weight_versions": [span]}
        return {"choices": [choice] if not self.talks_nonsense else []}

    async def ask_workers(self, method: str, *, timeout_s: float | None = None) -> list[Any]:
        await self.call("/collective_rpc", {"method": method})
        return [TOLD if method.endswith("describe") else {"others": str(self.held)}]


def play(
    work: Callable[[ServerPool, FakeBuffer], Awaitable[Any]],
    *servers: FakeServer,
    restarts: int = 2,
    base: FakeBuffer | None = None,
) -> Any:
    """Await something with a started pool; whatever hangs fails."""

    async def played() -> Any:
        buffer = FakeBuffer(is_adapter=base is not None)
        buffers = [base, buffer] if base is not None else [buffer]
        config = ServerConfig(restarts=restarts, hang_s=0.3)
        pool = ServerPool(servers, buffers, config=config, wanted=WANTED)  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            await pool.start(0)
            try:
                return await work(pool, buffer)
            finally:
                await pool.close()

    return asyncio.run(played())


async def turns(pool: ServerPool, count: int) -> list[int]:
    return [choice["version"] for choice in await asyncio.gather(*(pool.generate({}, str(i)) for i in range(count)))]


def test_a_dead_server_is_brought_back_with_the_weights_of_the_day() -> None:
    server = FakeServer()

    async def work(pool: ServerPool, buffer: FakeBuffer) -> list[int]:
        await pool.hold()
        buffer.number = 7
        await pool.push(1)
        server.is_dead = True
        return await turns(pool, 8)

    assert play(work, server) == [1] * 8
    assert (server.num_starts, server.held) == (2, 7)


@pytest.mark.parametrize("failure", [OSError("no space left"), ConfigError("it does not start"), ServerTrouble("mute")])
def test_a_server_that_never_comes_back_fails_its_turns_and_nobody_waits(failure: Exception) -> None:
    server = FakeServer()

    async def work(pool: ServerPool, buffer: FakeBuffer) -> list[Any]:
        server.is_dead, server.failures = True, [failure] * 9
        return await asyncio.gather(*(pool.generate({}, str(i)) for i in range(4)), return_exceptions=True)

    for outcome in play(work, server):
        assert isinstance(outcome, PolicyFailure)
        assert "given up" in str(outcome)


def test_without_any_server_an_update_ends_the_run() -> None:
    server = FakeServer()

    async def work(pool: ServerPool, buffer: FakeBuffer) -> None:
        server.is_dead, server.failures = True, [ConfigError("it does not start")] * 9
        await pool.hold()
        await pool.push(1)

    with pytest.raises(RunAborted, match="given up"):
        play(work, server)


def test_an_answer_that_makes_no_sense_is_no_turn() -> None:
    server = FakeServer()

    async def work(pool: ServerPool, buffer: FakeBuffer) -> None:
        server.talks_nonsense = True
        await pool.generate({}, "a")

    with pytest.raises(PolicyFailure, match=r"answers a turn with .*choices"):
        play(work, server)


def test_weights_that_cannot_be_shared_end_the_run_and_no_turn_waits() -> None:
    server = FakeServer()

    async def work(pool: ServerPool, buffer: FakeBuffer) -> None:
        buffer.trouble = ConfigError("the GPU's memory cannot be shared")
        with pytest.raises(ConfigError, match="cannot be shared"):
            await pool.push(1)
        with pytest.raises(PolicyFailure, match="cannot be shared"):
            await pool.generate({}, "a")

    play(work, server)


def test_a_turn_that_is_given_up_leaves_no_server_half_way() -> None:
    server = FakeServer()

    async def work(pool: ServerPool, buffer: FakeBuffer) -> int:
        server.is_dead = True
        impatient = asyncio.ensure_future(pool.generate({}, "impatient"))
        patient = asyncio.ensure_future(pool.generate({}, "patient"))
        await asyncio.sleep(0.01)
        impatient.cancel()
        return int((await patient)["version"])

    assert play(work, server) == 0


def test_the_other_server_goes_on() -> None:
    first, second = FakeServer("a"), FakeServer("b")

    async def work(pool: ServerPool, buffer: FakeBuffer) -> list[int]:
        first.is_dead, first.failures = True, [OSError("gone")] * 9
        return await turns(pool, 6)

    assert play(work, first, second) == [0] * 6


def test_nobody_waits_for_a_server_that_starts_while_another_one_may_sample() -> None:
    first, second = FakeServer("a"), FakeServer("b")

    async def work(pool: ServerPool, buffer: FakeBuffer) -> float:
        first.is_dead, first.start_s = True, 2.0
        started = time.monotonic()
        assert await turns(pool, 6) == [0] * 6
        for version in (1, 2):
            await pool.hold()
            buffer.number = version
            await pool.push(version)
            assert await turns(pool, 6) == [version] * 6
        waited_s = time.monotonic() - started
        assert not first.is_ready
        while not first.is_ready:
            await asyncio.sleep(0.01)
        assert first.held == 2
        return waited_s

    assert play(work, first, second) < 1.5


def test_a_server_that_starts_during_an_update_samples_with_the_newer_weights() -> None:
    first, second = FakeServer("a"), FakeServer("b")

    async def work(pool: ServerPool, buffer: FakeBuffer) -> None:
        first.is_dead, first.reset_s = True, 0.3
        await turns(pool, 2)
        while first.is_dead:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)  # it has the older weights by now, and does not yet sample
        assert not first.is_ready
        await pool.hold()
        buffer.number = 1
        await pool.push(1)
        assert not first.is_ready
        while not first.is_ready:
            await asyncio.sleep(0.01)
        assert first.held == 1

    play(work, first, second)


def test_a_server_that_hangs_is_noticed_while_another_one_starts() -> None:
    servers = [FakeServer("a"), FakeServer("b")]

    async def work(pool: ServerPool, buffer: FakeBuffer) -> float:
        for server in servers:
            server.turn_s = 60.0  # it hangs: turns do not end by themselves
        sampling = asyncio.ensure_future(turns(pool, 4))
        await asyncio.sleep(0.01)
        for server, start_s in zip(servers, (2.0, 0.02), strict=True):
            server.turn_s, server.start_s, server.is_dead = 0.0, start_s, True
        started = time.monotonic()
        assert await sampling == [0] * 4
        return time.monotonic() - started

    assert play(work, *servers) < 1.5


def test_weights_that_another_run_sent_are_not_taken_for_ours() -> None:
    server = FakeServer()

    async def work(pool: ServerPool, buffer: FakeBuffer) -> list[int]:
        server.version, server.held = "other:0", 99
        return await turns(pool, 2)

    assert play(work, server) == [0, 0]
    assert server.held == 0


@pytest.mark.parametrize("has_adapter", [False, True])
def test_a_server_that_holds_other_weights_ends_the_run(has_adapter: bool) -> None:
    server = FakeServer()

    async def work(pool: ServerPool, buffer: FakeBuffer) -> None:
        server.loses_updates = True
        await pool.hold()
        buffer.number = 5
        with pytest.raises(RunAborted, match="holds other weights than the learner after version 1"):
            await pool.push(1)
        with pytest.raises(PolicyFailure, match="holds other weights"):
            await pool.generate({}, "later")

    play(work, server, base=FakeBuffer(9) if has_adapter else None)


def test_nobody_reads_weights_while_they_change() -> None:
    server = FakeServer()

    async def work(pool: ServerPool, buffer: FakeBuffer) -> list[str]:
        await pool.hold()
        server.is_dead = True
        turn = asyncio.ensure_future(pool.generate({}, "turn"))
        await asyncio.sleep(0.1)
        before = [path for path in server.paths if path == "/update_weights"]
        buffer.number = 3
        await pool.push(1)
        assert (await turn)["version"] == 1
        return before

    assert play(work, server) == ["/update_weights"]  # that of the start alone
    assert server.held == 3


@pytest.mark.parametrize("num_turns", [0, 1])
def test_turns_under_way_are_held_up_during_an_update_and_let_go_after_it(num_turns: int) -> None:
    server = FakeServer()

    async def work(pool: ServerPool, buffer: FakeBuffer) -> None:
        server.turn_s = 0.2
        sampling = [asyncio.ensure_future(pool.generate({}, str(number))) for number in range(num_turns)]
        await asyncio.sleep(0.01)
        server.paths.clear()
        await pool.hold()
        await pool.push(1)
        await asyncio.gather(*sampling)

    play(work, server)
    update = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/collective_rpc"]
    expected = [*update, "/reset_prefix_cache"]
    paths = [path.split("?")[0] for path in server.paths]
    assert paths == (["/pause", *expected, "/resume"] if num_turns else expected)


def test_the_base_is_sent_when_a_server_starts_and_the_adapter_alone_at_each_update() -> None:
    server = FakeServer()

    async def work(pool: ServerPool, buffer: FakeBuffer) -> list[str]:
        server.paths.clear()
        for version in (1, 2):
            await pool.hold()
            buffer.number = version
            await pool.push(version)
        paths = server.paths.copy()
        server.is_dead = True
        assert await turns(pool, 1) == [2]
        return paths

    paths = play(work, server, base=FakeBuffer(9))
    assert server.updates == [9, 0, 1, 2, 9, 2]
    assert paths.count("/v1/load_lora_adapter") == 2
    # vLLM drops adapters when an update is finished.
    assert paths.index("/finish_weight_update") < paths.index("/v1/load_lora_adapter") < paths.index("/collective_rpc")
