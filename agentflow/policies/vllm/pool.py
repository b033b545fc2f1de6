"""Several servers that behave as one: the least loaded one samples, a broken one is brought back, all hold one version.

A server samples only after it was seen to hold the current weights. One that dies, or gives no sign of life, is started
again and sent the weights before its share of the work returns to it; the turns that it was sampling are sampled anew.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from agentflow.errors import ConfigError, PolicyFailure, RunAborted
from agentflow.policies.vllm.servers import ADAPTER, Server, ServerConfig, ServerTrouble
from agentflow.policies.vllm.weights import WeightBuffer

_log = logging.getLogger(__name__)

_BYTES_PER_S = 50e6  # slower than any network that weights are sent over
_PROBES_PER_HANG = 3
_LEAD_S = 0.007  # from asking a server on this host to take weights until it does
_GENERATE = "/inference/v1/generate"
_FIRST_TURN = {"token_ids": [0], "sampling_params": {"max_tokens": 1, "logprobs": 0, "seed": 0, "detokenize": False}}
_NOTHING = f"{0:016x}"  # the digest of zeros, and of what is not there


class ServerPool:
    """The servers of one policy; all methods belong to one event loop.

    Args:
        servers: The servers, not yet started.
        buffers: The learner's weights: the last is sent at each update, one before it when a server starts.
        config: Patience, and the restarts that a run bears.
        wanted: What each server must say of itself (`WorkerExtension.agentflow_describe`).
    """

    def __init__(
        self,
        servers: Sequence[Server],
        buffers: Sequence[WeightBuffer],
        *,
        config: ServerConfig,
        wanted: Mapping[str, Any],
    ) -> None:
        self._servers = servers
        self._buffers = buffers
        self._config = config
        self._wanted = wanted
        self._version = 0
        self._homes: dict[str, Server] = {}
        self._changed = asyncio.Condition()
        self._num_reading = 0
        self._is_held = False
        self._lost: dict[str, str] = {}
        self._fatal: Exception | None = None
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._restarts: dict[str, asyncio.Task[None]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._token = secrets.token_hex(4)  # another run's weights may have the same number
        self.num_restarts = 0

    async def start(self, version: int) -> None:
        """Start every server and send it the weights.

        Raises:
            ConfigError: One does not start, or serves something else.
            RunAborted: One holds other weights than it was sent.
        """
        self._version = version
        outcomes = await asyncio.gather(*map(self._bring_up, self._servers), return_exceptions=True)
        first = next((outcome for outcome in outcomes if isinstance(outcome, BaseException)), None)
        if isinstance(first, ServerTrouble | PolicyFailure):
            raise ConfigError(f"{first}. {self._last_words()}".strip(), "Read the server's log.") from first
        if first is not None:
            raise first
        self._watch = asyncio.create_task(self._watch_over())

    async def close(self) -> None:
        """Stop every server."""
        tasks = (self._watch, *self._checks.values(), *self._restarts.values())
        working = [task for task in tasks if task is not None]
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        await asyncio.gather(*(server.stop() for server in self._servers))

    async def generate(self, body: Mapping[str, Any], session: str) -> Mapping[str, Any]:
        """Sample one turn, on another server or a restarted one if need be.

        Returns:
            vLLM's choice: token ids, log-probs, finish reason, weight versions.

        Raises:
            PolicyFailure: No server could sample it.
        """
        trouble = "no server was asked"
        for _ in range(self._config.restarts + 2):
            server = await self._choose(session)
            try:
                return await self._ask(server, body)
            except ServerTrouble as error:
                trouble = str(error)
            await self._look_after(server, trouble)
        raise PolicyFailure(f"a turn was given up after {self._config.restarts + 2} attempts: {trouble}")

    def forget(self, session: str) -> None:
        """Forget which server holds the beginning of a session."""
        self._homes.pop(session, None)

    async def hold(self) -> None:
        """Let no server read the weights until `push`: they are about to change."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._num_reading)
            self._is_held = True

    async def push(self, version: int) -> None:
        """Bring the servers to the learner's weights; turns under way are held up, and go on with the new ones.

        A server that is being started gets them before it samples, and is not waited for while another one may.

        Raises:
            RunAborted: No server is left, or one holds other weights than it was sent.
        """
        self._version = version
        self._homes.clear()
        await asyncio.to_thread(self._buffers[-1].publish)
        await self.let_go()
        await asyncio.gather(*(self._bring_up_to_date(server) for server in self._servers))
        await self._until_ready()
        if self._fatal is not None:
            raise self._fatal
        if not self._ready():
            raise RunAborted("; ".join(self._lost.values()))

    async def let_go(self) -> None:
        """Let servers read the weights again, whatever became of them."""
        async with self._changed:
            self._is_held = False
            self._changed.notify_all()

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_held)
            self._num_reading += 1
        try:
            yield
        finally:
            async with self._changed:
                self._num_reading -= 1
                self._changed.notify_all()

    async def _choose(self, session: str) -> Server:
        """Return the server that holds a session's beginning, or else the least loaded one that may sample."""
        await self._until_ready()
        if self._fatal is not None:
            raise PolicyFailure(str(self._fatal))
        ready = self._ready()
        if not ready:
            raise PolicyFailure("; ".join(self._lost.values()))
        home = self._homes.get(session)
        if home not in ready:
            home = min(ready, key=lambda server: len(server.under_way))
            self._homes[session] = home
        return home

    def _ready(self) -> list[Server]:
        return [server for server in self._servers if server.is_ready]

    async def _until_ready(self) -> None:
        """Wait until a server may sample, or none ever will."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ready() or self._fatal or len(self._lost) == len(self._servers))

    async def _ask(self, server: Server, body: Mapping[str, Any]) -> Mapping[str, Any]:
        request = asyncio.ensure_future(server.call(_GENERATE, body, timeout_s=self._config.turn_s))
        server.under_way.add(request)
        try:
            await asyncio.wait([request])
        finally:
            server.under_way.discard(request)
            request.cancel()
        if request.cancelled():
            raise ServerTrouble(f"{server.name} gave no sign of life for {self._config.hang_s:g} s")
        choice = _choice_of(server.name, request.result())
        if choice["finish_reason"] not in ("stop", "length"):
            raise ServerTrouble(f"{server.name} ended a turn with {choice['finish_reason']!r}")
        versions = [span["version"].rpartition(":") for span in choice["weight_versions"] or ()]
        if not versions or any(run != self._token or not version.isdigit() for run, _, version in versions):
            raise ServerTrouble(f"{server.name} sampled with weights that this run did not send")
        # The version of a turn is that of the oldest weights in it.
        return {**choice, "version": min(int(version) for _, _, version in versions)}

    async def _watch_over(self) -> None:
        """Look after servers that are at work: one that hangs would otherwise hold its turns for ever."""
        while True:
            await asyncio.sleep(self._config.hang_s / _PROBES_PER_HANG)
            busy = [server for server in self._ready() if server.under_way]
            await asyncio.gather(*(self._look_after(server, "it gave no sign of life") for server in busy))

    async def _look_after(self, server: Server, trouble: str) -> None:
        """See whether a server is sound; one that is not is started again, and nobody waits for it here."""
        task = self._checks.get(server.name)
        if task is None or task.done():
            task = self._checks[server.name] = asyncio.create_task(self._check(server, trouble))
        await asyncio.shield(task)  # it is done for others as well: a turn that is given up must not end it

    async def _check(self, server: Server, trouble: str) -> None:
        async with server.changing:
            if server.is_ready and not await server.is_sound():
                self._begin_restart(server, trouble)

    async def _bring_up_to_date(self, server: Server) -> None:
        async with server.changing:
            if not server.is_ready:
                return  # whoever brings it back sends it the newest weights
            try:
                await self._send(server, self._buffers[-1:])
            except (ServerTrouble, PolicyFailure) as error:
                self._begin_restart(server, str(error))
            except Exception as error:  # noqa: BLE001  whatever it is, turns must not wait for this server for ever
                await self._end_with(error)

    def _begin_restart(self, server: Server, trouble: str) -> None:
        server.is_ready = False
        self._restarts[server.name] = asyncio.create_task(self._restart(server, trouble))

    async def _restart(self, server: Server, trouble: str) -> None:
        """Start a server again, or wait for one that is not ours; give it up where that does not help."""
        while server.num_starts <= self._config.restarts:
            _log.warning("%s is started again: %s. %s", server.name, trouble, server.last_words())
            server.break_off()
            self.num_restarts += 1
            try:
                await server.stop()
                await self._bring_up(server)
            except RunAborted as error:
                await self._end_with(error)
                return
            except Exception as error:  # noqa: BLE001  whatever it is, those who wait for the server must not wait for ever
                trouble = f"{type(error).__name__}: {error}"
            else:
                return
        await server.stop()
        async with self._changed:
            self._lost[server.name] = f"{server.name} was given up (policy.servers.restarts): {trouble}"
            self._changed.notify_all()
        server.break_off()

    async def _end_with(self, error: Exception) -> None:
        """Let everybody know that this run cannot go on."""
        async with self._changed:
            self._fatal = error
            self._changed.notify_all()

    async def _bring_up(self, server: Server) -> None:
        """Start a server, see that it serves our model, and send it the weights."""
        await server.start()
        try:
            described = (await server.ask_workers("agentflow_describe"))[0]
        except (ServerTrouble, PolicyFailure) as error:
            raise ConfigError(
                f"{server.name} does not know AgentFlow's plugin ({error}).", "Start it as docs/vllm.md says."
            ) from error
        _check_served(server.name, described, self._wanted)
        server.adapter_folder, server.gpus = described["adapter_folder"], described["gpus"]
        await server.call("/init_weight_transfer_engine", {"init_info": {}})
        await server.ask_workers("agentflow_reset")
        await server.call("/resume", {})
        # What a server compiles for its first turn must not look like a hang.
        await server.call(_GENERATE, _FIRST_TURN, timeout_s=self._config.startup_s)
        await self._send(server, self._buffers)

    async def _send(self, server: Server, buffers: Sequence[WeightBuffer]) -> None:
        """Send the newest weights, see that the server computes with them, and let it sample."""
        server.is_ready = False  # no turn begins here meanwhile
        version = -1
        while version != self._version:  # they may change again before a server that was started anew has them
            async with self._reading():
                version = self._version
                server.weights = f"{self._token}:{version}"
                is_at_work = bool(server.under_way)
                if is_at_work:  # turns keep what is sampled, and go on once their keys and values are computed anew
                    await server.call("/pause?mode=keep", {})
                for buffer in buffers:
                    await self._transfer(server, buffer, version=version)
            await server.call("/reset_prefix_cache?reset_running_requests=true", {})
            if is_at_work:
                await server.call("/resume", {})
        server.is_ready = True
        async with self._changed:
            self._changed.notify_all()

    async def _transfer(self, server: Server, buffer: WeightBuffer, *, version: int) -> None:
        patience_s = self._config.hang_s + buffer.num_bytes / _BYTES_PER_S
        await server.call("/start_weight_update", {}, timeout_s=patience_s)
        expected = asyncio.create_task(_digests_behind(buffer))
        try:
            info = await asyncio.to_thread(buffer.update_info, server.gpus)
            await server.call("/update_weights", {"update_info": info}, timeout_s=patience_s)
            # vLLM drops the adapters that it has loaded here: they belong to other weights.
            await server.call("/finish_weight_update", {"weight_version": server.weights}, timeout_s=patience_s)
            method = "agentflow_digests"
            if buffer.is_adapter:
                method = "agentflow_adapter_digests"
                adapter = {"lora_name": ADAPTER, "lora_path": server.adapter_folder, "load_inplace": True}
                await server.call("/v1/load_lora_adapter", adapter, timeout_s=patience_s, wants_json=False)
            told = await server.ask_workers(method, timeout_s=patience_s)
        finally:
            await asyncio.wait([expected])  # it reads the weights, which may change once this one no longer does
        for held in told:
            _check_digests(server.name, held, expected.result(), version=version)

    def _last_words(self) -> str:
        return " ".join(filter(None, (server.last_words() for server in self._servers)))


async def _digests_behind(buffer: WeightBuffer) -> Mapping[str, str]:
    # The server copies first: a checksum that starts a little later finds in the cache what the server has just read.
    # One that starts with the request is ahead by more than a cache, and slows the copy (docs/benchmarks.md).
    await asyncio.sleep(_LEAD_S)
    return await asyncio.to_thread(buffer.digests)


def _choice_of(name: str, told: Any) -> Mapping[str, Any]:
    """Return the only choice of vLLM's answer.

    Raises:
        ServerTrouble: There is none.
    """
    try:
        choice: Mapping[str, Any] = told["choices"][0]
        return {key: choice[key] for key in ("token_ids", "logprobs", "finish_reason", "weight_versions")}
    except (TypeError, KeyError, IndexError) as error:
        raise ServerTrouble(f"{name} answers a turn with {str(told)[:200]}") from error


def _check_served(name: str, told: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a server that serves something else than what is trained.

    Raises:
        ConfigError: With what differs.
    """
    longest = told.get("max_length", 0)
    different = [
        f"{key} {told.get(key)!r} instead of {value!r}"
        for key, value in wanted.items()
        if key != "max_length" and told.get(key) != value
    ]
    if longest < wanted["max_length"]:
        different.append(f"max_length {longest} below agent.max_episode_tokens = {wanted['max_length']}")
    if different:
        raise ConfigError(
            f"{name} serves something else than what is trained: {', '.join(different)}.",
            "Start it with the model that is trained, as docs/vllm.md says.",
        )


def _check_digests(name: str, held: Mapping[str, str], wanted: Mapping[str, str], *, version: int) -> None:
    """See that a server computes with the learner's weights.

    Raises:
        RunAborted: It does not.
    """
    different = sorted(
        key for key in wanted.keys() | held.keys() if wanted.get(key, _NOTHING) != held.get(key, _NOTHING)
    )
    if different:
        raise RunAborted(
            f"{name} holds other weights than the learner after version {version}: {different[:3]} differ, of "
            f"{len(wanted)} parts. Is the model quantised, or its vLLM class unlike transformers'?"
        )
