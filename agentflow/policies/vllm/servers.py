"""One vLLM server: a process that we start, or an address that we are given."""

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import aiohttp
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from agentflow.config import Config, is_changed
from agentflow.errors import ConfigError, PolicyFailure
from agentflow.policies.vllm.server_process import ServerProcess
from agentflow.remote import detail_of, without_password

PYTHON_VARIABLE = "AGENTFLOW_VLLM_PYTHON"
API_SERVER = "vllm.entrypoints.openai.api_server"
BASE, ADAPTER = "policy", "adapter"
"""What a server calls the model that it serves, and the adapter on top of it."""
_OF_OUR_OWN = ("count", "python", "gpus", "cache_gb", "max_sequences", "args")
_POLL_S, _SOON_S = 0.2, 60.0
_KEEP_ALIVE_S = 2.0  # vLLM closes an idle connection after five
_LOG_LINES, _LOG_BYTES = 5, 1 << 16
_log = logging.getLogger(__name__)


def _addresses(urls: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(urls)) < len(urls):
        raise ValueError("an address is given twice")
    return tuple(map(without_password, urls))


def _several(urls: Any) -> Any:
    return (urls,) if isinstance(urls, str) else urls


class ServerConfig(Config):
    """The vLLM servers that a policy samples from (`policy.backend=vllm`)."""

    count: int = Field(1, ge=1, description="vLLM servers to start on this host.")
    urls: Annotated[tuple[str, ...], BeforeValidator(_several), AfterValidator(_addresses)] = Field(
        (), description="Addresses of running vLLM servers to use instead; docs/vllm.md says how they are started."
    )
    python: str = Field(
        "auto", description=f"Python with vLLM that runs the servers; `auto` is ${PYTHON_VARIABLE}, or this one."
    )
    gpus: int = Field(0, ge=0, description="GPUs of each server, taken in order; 0 shares all that are visible.")
    cache_gb: int = Field(1, ge=1, description="Memory of a server's key-value cache where it runs on a CPU, in GiB.")
    max_sequences: int = Field(128, ge=1, description="Most turns that a server decodes at once.")
    args: tuple[str, ...] = Field(
        (), description="Further words of vLLM's command line, such as `--tensor-parallel-size=2`."
    )
    weights_host: str | None = Field(
        None,
        description="Address of this host on which servers of other hosts fetch weights; null shares memory, that of a "
        "GPU with servers that see it.",
    )
    startup_s: float = Field(600.0, gt=0, description="Seconds that a server may take to start.")
    turn_s: float = Field(600.0, gt=0, description="Seconds after which a turn that is still sampled has failed.")
    hang_s: float = Field(30.0, gt=0, description="Seconds without a sign of life after which a server has hung.")
    restarts: int = Field(3, ge=0, description="Times that each server is restarted in a run.")

    @model_validator(mode="after")
    def _consistent(self) -> "ServerConfig":
        inert = [name for name in _OF_OUR_OWN if is_changed(self, name)]
        if self.urls and inert:
            raise ConfigError(
                f"policy.servers.{inert[0]} does nothing to the servers of policy.servers.urls.",
                "Leave one of them out.",
            )
        return self


class ServerTrouble(Exception):
    """A server did not answer, or not sensibly: it may have to be restarted."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server of our own is started.

    Attributes:
        python: The interpreter with vLLM.
        log: Where its output goes.
        args: vLLM's command line.
        environment: Environment variables besides those that are passed on.
    """

    python: str
    log: Path
    args: Sequence[str]
    environment: Mapping[str, str]


class Server:
    """A connection to one server, and its process if we started it.

    All methods belong to one event loop.

    Args:
        name: What messages call it.
        config: Patience.
        url: Its address; empty if `launch` starts it.
        launch: How it is started; None for one that somebody else runs.
    """

    def __init__(self, name: str, config: ServerConfig, *, url: str = "", launch: Launch | None = None) -> None:
        self.name = name
        self.is_ready = False
        """Whether it holds the current weights and may sample."""
        self.weights = ""
        """What it was last sent, as its tokens name it."""
        self.adapter_folder = ""
        """Where it keeps the adapter that it was last sent."""
        self.gpus: Sequence[str] = ()
        """Names of the GPUs that it sees."""
        self.num_starts = 0
        self.under_way: set[asyncio.Task[Any]] = set()
        self.changing = asyncio.Lock()
        self._config = config
        self._launch = launch
        self._url = url or "http://localhost"
        self._process: ServerProcess | None = None
        self._session: aiohttp.ClientSession | None = None
        self._log_start = 0

    async def start(self) -> None:
        """Start it, or find it where it is said to be.

        Raises:
            ConfigError: It does not come up.
        """
        self.num_starts += 1
        if self._launch is not None and self._launch.log.exists():
            self._log_start = self._launch.log.stat().st_size
        connector: aiohttp.BaseConnector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
        if self._launch is not None:
            try:
                self._process, path = _started(self._launch)
            except OSError as error:
                raise ConfigError(f"{self.name} cannot be started: {error}.", "Mend it, and start again.") from error
            connector = aiohttp.UnixConnector(path, limit=0, keepalive_timeout=_KEEP_ALIVE_S)
        self._session = aiohttp.ClientSession(connector=connector)
        try:
            await self._wait_until_healthy()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Close the connection, and end the process if it is ours."""
        self.is_ready = False
        session, self._session = self._session, None
        try:
            # Known until it has ended: whoever stops it meanwhile waits as well, also if this wait is given up.
            if self._process is not None:
                await asyncio.to_thread(self._process.end)
            self._process = None
        finally:
            if session is not None:
                await session.close()

    def break_off(self) -> None:
        """End whatever is under way here: the server no longer answers."""
        for task in self.under_way:
            task.cancel()

    async def call(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        wants_json: bool = True,
    ) -> Any:
        """Post to the server, or get where there is no body, and return the JSON, or else the text, that it answers.

        Raises:
            ServerTrouble: It did not answer, or answered with a server's error.
            PolicyFailure: It refuses the request.
        """
        if self._session is None:
            raise ServerTrouble(f"{self.name} is not running")
        method = "GET" if body is None else "POST"
        timeout = aiohttp.ClientTimeout(total=timeout_s or self._config.hang_s)
        try:
            async with self._session.request(method, self._url + path, json=body, timeout=timeout) as response:
                if response.status == 200 and not wants_json:
                    return await response.text()
                if response.status == 200:
                    return await response.json(content_type=None)
                text = detail_of(await response.text())
                response.close()  # after an error a server hangs up: the next request would find nobody
        # aiohttp raises a RuntimeError where the session is closed while a request waits for a connection.
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RuntimeError) as error:
            raise ServerTrouble(f"{self.name} {path}: {type(error).__name__} {error}".strip()) from None
        if response.status < 500:
            raise PolicyFailure(f"{self.name} {path}: HTTP {response.status} {text}")
        raise ServerTrouble(f"{self.name} {path}: HTTP {response.status} {text}")

    async def ask_workers(self, method: str, *, timeout_s: float | None = None) -> list[Any]:
        """Call a method of our plugin in each worker, and return what they answer.

        Raises:
            ServerTrouble: It did not answer, or not sensibly.
            PolicyFailure: It refuses the request.
        """
        told = await self.call("/collective_rpc", {"method": method}, timeout_s=timeout_s)
        if not isinstance(told, dict) or not isinstance(told.get("results"), list) or not told["results"]:
            raise ServerTrouble(f"{self.name} answers {method} with {str(told)[:200]}")
        return list(told["results"])

    async def is_sound(self) -> bool:
        """Say whether the server, and the engine behind it, answer in time, and hold what they were sent."""
        try:
            told = await self.call("/weight_info")
        except (ServerTrouble, PolicyFailure):
            return False
        return isinstance(told, dict) and told.get("weight_version") == self.weights

    def last_words(self) -> str:
        """Return the end of the log of a server of ours; empty for another one."""
        if self._launch is None:
            return ""
        try:
            with self._launch.log.open("rb") as log:
                log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - _LOG_BYTES))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        told = [line for line in lines if "rror" in line and "WARNING" not in line] or lines
        return f"{self._launch.log} ends: " + " | ".join(line.strip()[-200:] for line in told[-_LOG_LINES:])

    def _patience(self, trouble: str) -> str:
        """Say what is waited for, as somebody may wait for the wrong thing."""
        told = f"its log is {self._launch.log}" if self._launch is not None else trouble
        waited = f"{self.name} does not answer yet and is given {self._config.startup_s:g} s (policy.servers.startup_s)"
        return f"{waited}: {told}"

    async def _wait_until_healthy(self) -> None:
        loop = asyncio.get_running_loop()
        soon, deadline = loop.time() + _SOON_S, loop.time() + self._config.startup_s
        trouble = "it was not asked"
        while loop.time() < deadline:
            code = self._process.exit_code if self._process is not None else None
            if code is not None:
                raise ConfigError(
                    f"{self.name} ended with exit code {code} before it answered. {self.last_words()}",
                    "Read its log; policy.servers.args adds words to its command line.",
                )
            try:
                await self.call("/weight_info")
            except PolicyFailure as failure:
                raise ConfigError(
                    f"{self.name} is no vLLM server whose weights can be updated ({failure}).",
                    "Start it as docs/vllm.md says.",
                ) from failure
            except ServerTrouble as error:
                trouble = str(error)
                if loop.time() > soon:
                    soon = deadline
                    _log.warning("%s", self._patience(trouble))
                await asyncio.sleep(_POLL_S)
            else:
                return
        raise ConfigError(
            f"{self.name} did not answer within {self._config.startup_s:g} s ({trouble}). {self.last_words()}".strip(),
            "Check its address, or raise policy.servers.startup_s.",
        )


def _started(launch: Launch) -> tuple[ServerProcess, str]:
    """Start a server; it listens on a socket in a folder of our own, which needs no port and nobody else can reach.

    Returns:
        The process, and the path of the socket.
    """
    folder = Path(tempfile.mkdtemp(prefix="agentflow-vllm-"))
    path = str(folder / "socket")
    try:
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        with launch.log.open("ab") as log:
            words = [launch.python, "-m", API_SERVER, f"--uds={path}", *launch.args]
            return ServerProcess(words, folder, environment=launch.environment, log=log), path
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
