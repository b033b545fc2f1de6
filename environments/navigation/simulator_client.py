"""A client of a simulator behind HTTP, as ActiveVLN's: calls of many episodes go in one request."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import aiohttp

from agentflow.concurrency import BackgroundLoop
from agentflow.errors import BackendFailure

_log = logging.getLogger(__name__)

_GATHER_S = 0.02
_ROUTES = {
    "create": ("environments", "ids2configs"),
    "reset": ("batch/reset", "ids2seeds"),
    "step": ("batch/step", "ids2actions"),
}


class SimulatorClient:
    """One connection for all episodes of the process.

    A service is one actor that waits while a simulator is missing, and then nothing can give one back: so no more
    environments are asked for than there are simulators.

    Args:
        url: Where the server is.
        simulators: Most environments at once.
        timeout_s: Seconds that one request may take.
    """

    def __init__(self, url: str, *, simulators: int, timeout_s: float) -> None:
        self._url = url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._loop = BackgroundLoop("simulator client")
        self._places = self._loop.call(asyncio.Semaphore, simulators)
        self._waiting: dict[str, dict[str, tuple[Any, asyncio.Future[Any]]]] = {}
        self._session: aiohttp.ClientSession | None = None

    async def begin(self, env_id: str, config: Mapping[str, Any]) -> Any:
        """Create an environment once a simulator is free, and reset it; the server's answer.

        Raises:
            BackendFailure: The server cannot be reached, or refuses.
        """
        return await self._loop.wrap(self._begin(env_id, config))

    async def step(self, env_id: str, action: str) -> Any:
        """Take a step; the server's answer. It is never repeated: it would be taken twice.

        Raises:
            BackendFailure: The server cannot be reached, or refuses.
        """
        return await self._loop.wrap(self._gathered("step", env_id, action))

    async def end(self, env_id: str) -> None:
        """Give an environment's simulator back; a server that is gone has none to give back to."""
        await self._loop.wrap(self._end(env_id))

    async def warm_up(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Let the server load the scenes of episodes that will be played soon.

        Raises:
            BackendFailure: The server cannot be reached, or refuses.
        """
        await self._loop.wrap(self._post("batch/warmup", {"cfgs": list(configs)}))

    async def _begin(self, env_id: str, config: Mapping[str, Any]) -> Any:
        await self._places.acquire()
        try:
            await self._gathered("create", env_id, {"env_name": "vlnce", "env_config": dict(config)})
            return await self._gathered("reset", env_id, 0)
        except BaseException:
            self._places.release()
            raise

    async def _end(self, env_id: str) -> None:
        try:
            await self._post("batch/close", {"env_ids": [env_id]})
        except BackendFailure as failure:
            _log.warning("%s: %s", env_id, failure)
        finally:
            self._places.release()

    async def _gathered(self, what: str, env_id: str, value: Any) -> Any:
        """Send a call with those of other episodes that come within 20 ms."""
        waiting = self._waiting.setdefault(what, {})
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting[env_id] = (value, future)
        if len(waiting) == 1:
            await asyncio.sleep(_GATHER_S)
            await self._send(what, self._waiting.pop(what))
        return await future

    async def _send(self, what: str, calls: Mapping[str, tuple[Any, asyncio.Future[Any]]]) -> None:
        route, key = _ROUTES[what]
        try:
            answer = await self._post(route, {key: {env_id: value for env_id, (value, _) in calls.items()}})
        except BackendFailure as failure:
            for _, future in calls.values():
                if not future.done():
                    future.set_exception(BackendFailure(str(failure)))
            return
        for _, future in calls.values():
            if not future.done():
                future.set_result(answer)

    async def _post(self, route: str, body: Any) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        try:
            async with self._session.post(f"{self._url}/{route}", json=body) as response:
                if response.status != 200:
                    detail = (await response.text())[:200]
                    raise BackendFailure(
                        f"the simulator at {self._url} answers {response.status} to /{route}: {detail}"
                    )
                return await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise BackendFailure(f"the simulator at {self._url} does not answer: {error!r}") from error


@lru_cache(maxsize=8)
def shared_client(url: str, simulators: int, timeout_s: float) -> SimulatorClient:
    """Return the client that all episodes with these options share."""
    return SimulatorClient(url, simulators=simulators, timeout_s=timeout_s)
