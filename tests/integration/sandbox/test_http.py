"""Programs by HTTP: our client and server over a real socket, and servers of others, those that break included."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from aiohttp import web

from agentflow.cli import main
from agentflow.errors import ConfigError
from agentflow.sandbox.base import Limits, Program, Result, SandboxFailure, SandboxUnavailable, run_reliably
from agentflow.sandbox.limits.process_tree import tree_usage
from agentflow.sandbox.over_http import client as http_client
from agentflow.sandbox.over_http.client import TOKEN_VARIABLE, HttpSandbox
from agentflow.sandbox.over_http.format import MOST
from agentflow.sandbox.over_http.server import make_app
from agentflow.sandbox.probe import open_sandbox
from agentflow.sandbox.process.backend import ProcessSandbox
from agentflow.sandbox.shared import SharedSandbox
from tests.integration.sandbox.contract import (  # noqa: F401
    LIMITS,
    run,
    test_caller_that_gives_up_leaves_nothing_behind,
    test_every_way_to_end_has_its_name,
    test_files_outside_the_work_space_are_refused,
    test_input_that_nobody_reads_and_many_bytes_of_files,
    test_long_output_keeps_its_ends,
    test_same_seed_gives_the_same_bytes,
    test_streams_input_files_and_traceback,
)
from tests.processes import started
from tests.trusted_sandbox import TrustedSubprocess, real_process

pytestmark = real_process


@contextmanager
def serving(make: Callable[[], web.Application]) -> Iterator[str]:
    """Serve an application from a thread of its own."""
    loop, ready, addresses = asyncio.new_event_loop(), threading.Event(), []
    stopping = asyncio.Event()

    async def serve() -> None:
        runner = web.AppRunner(make(), handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        addresses.append(runner.addresses[0])
        ready.set()
        await stopping.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield f"http://127.0.0.1:{addresses[0][1]}"
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(60)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(lambda: make_app(ProcessSandbox(1))) as url:
        yield url


@pytest.fixture(scope="module")
def sandbox(server: str) -> Iterator[SharedSandbox]:
    shared = SharedSandbox(lambda: HttpSandbox(server))
    yield shared
    asyncio.run(shared.close())


@pytest.fixture
def num_left(sandbox: SharedSandbox) -> Callable[[], int]:
    asyncio.run(sandbox.run(Program("pass")))
    before = tree_usage(os.getpid()).pids  # the zygotes
    return lambda: len(tree_usage(os.getpid()).pids - before)


def play(url: str, program: Program, limits: Limits = LIMITS, *, token: str = "") -> Result:
    """Run one program."""

    async def played() -> Result:
        client = HttpSandbox(url, environ={TOKEN_VARIABLE: token})
        try:
            return await client.run(program, limits)
        finally:
            await client.close()

    return asyncio.run(played())


def test_whole_result_comes_back(sandbox: SharedSandbox) -> None:
    result = run(
        sandbox, "import sys; sys.stdout.buffer.write(bytes(range(256)) + sys.stdin.buffer.read())", stdin=b"\xff"
    )
    assert result.stdout.head == bytes(range(256)) + b"\xff"
    assert (result.backend, result.exit_code) == ("http:process", 0)
    assert "seccomp" in result.enforced
    assert result.usage.cpu_s > 0


def test_clients_of_sandbox_fusion_are_understood(server: str) -> None:
    files = {"a": "aGVsbG8="}
    asked = {"code": "print(input() + open('a').read())", "language": "python", "stdin": "x\n", "files": files}
    said = httpx.post(f"{server}/run_code", json={**asked, "compile_timeout": 10, "args": []}, timeout=60).json()
    assert (said["status"], said["run_result"]["status"], said["run_result"]["return_code"]) == (
        "Success",
        "Finished",
        0,
    )
    assert said["run_result"]["stdout"] == "xhello\n"
    said = httpx.post(f"{server}/run_code", json={"code": "exit 3", "language": "bash"}, timeout=60).json()
    assert (said["status"], said["run_result"]["return_code"]) == ("Failed", 3)
    late = {"code": "while True: pass", "language": "python", "run_timeout": 0.3}
    said = httpx.post(f"{server}/run_code", json=late, timeout=60).json()
    assert (said["status"], said["run_result"]["status"]) == ("Failed", "TimeLimitExceeded")


@pytest.mark.parametrize(
    ("asked", "status", "reason"),
    [
        ({"language": "python"}, 400, "code"),
        ({"code": "1", "language": "cobol"}, 400, "'cobol' is not one of python"),
        ({"code": "1", "language": "python", "files": {"a": "%"}}, 400, "files"),
        ({"code": "1", "language": "python", "fetch_files": ["a"]}, 400, "fetch_files"),
        ({"code": "1", "language": "python", "run_timeout": 10**6}, 400, f"cpu_s {MOST.cpu_s}"),
        ({"code": "1", "language": "python", "memory_limit_MB": 10**6}, 400, "memory_mb"),
        ({"code": "1", "language": "python", "memory_limit_MB": 1}, 400, "memory_mb"),
        ([], 400, "object"),
    ],
)
def test_bad_requests_say_what_is_bad(server: str, asked: Any, status: int, reason: str) -> None:
    answer = httpx.post(f"{server}/run_code", json=asked)
    assert answer.status_code == status
    assert reason in answer.json()["error"]


def test_what_a_browser_can_send_unasked_is_refused(server: str) -> None:
    body = json.dumps({"code": "1", "language": "python"})
    assert httpx.post(f"{server}/run_code", content=body, headers={"Content-Type": "text/plain"}).status_code == 415
    # The page's own name may have become this machine's address.
    for host in ("attacker.example", "attacker.example:80", "10.0.0.1", "localhost.attacker.example"):
        asked = httpx.post(f"{server}/run_code", json={"code": "1", "language": "python"}, headers={"Host": host})
        assert (asked.status_code, asked.json()) == (403, {"error": "the Host header names another machine"})
    named = {"Host": "localhost:8080"}
    asked = httpx.post(f"{server}/run_code", json={"code": "1", "language": "python"}, headers=named)
    assert asked.status_code == 200


def test_token_is_asked_for_and_never_quoted() -> None:
    token = "a-token-of-some-length"
    with serving(lambda: make_app(TrustedSubprocess(), token=token)) as url:
        assert play(url, Program("print(1)"), token=token).stdout.text == "1\n"
        for wrong in ("", "another-token-of-length"):
            result = play(url, Program("print(1)"), token=wrong)
            assert result.status == "infra_error"
            assert "HTTP 401" in result.detail and TOKEN_VARIABLE in result.detail
            assert token not in result.detail


def other(answer: Any, status: int = 200) -> web.Application:
    """Return a server that always says the same."""

    async def run_code(request: web.Request) -> web.Response:
        assert (await request.json())["run_timeout"] == LIMITS.wall_s
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return web.Response(text=text, status=status, content_type="application/json")

    app = web.Application()
    app.add_routes([web.post("/run_code", run_code)])
    return app


def fusion(status: str, run_status: str = "Finished", **run_result: Any) -> dict[str, Any]:
    """Return what SandboxFusion answers."""
    run_result = {"status": run_status, "execution_time": 0.1, "stdout": "", "stderr": "", **run_result}
    return {"status": status, "message": "", "compile_result": None, "run_result": run_result, "files": {}}


@pytest.mark.parametrize(
    ("answer", "code", "expected"),
    [
        (fusion("Success", return_code=0, stdout="hi\n"), 200, ("ok", 0, None)),
        (fusion("Failed", return_code=2), 200, ("nonzero_exit", 2, None)),
        (fusion("Failed", return_code=-11), 200, ("signal", None, 11)),
        (fusion("Failed", return_code=1, stderr="Traceback\nMemoryError"), 200, ("memory", None, None)),
        (fusion("Failed", "TimeLimitExceeded", return_code=None), 200, ("wall_timeout", None, None)),
        (fusion("SandboxError", "Error"), 200, ("infra_error", None, None)),
        (fusion("Success"), 200, ("infra_error", None, None)),
        ({"status": "Failed", "message": "lost"}, 200, ("infra_error", None, None)),
        ({"status": "Fine"}, 200, ("infra_error", None, None)),
        ("not json", 200, ("infra_error", None, None)),
        ("[" * 100_000, 200, ("infra_error", None, None)),
        ({"error": "busy"}, 503, ("infra_error", None, None)),
        ({"detail": "no such language"}, 422, ("infra_error", None, None)),
    ],
)
def test_answers_of_other_servers(answer: Any, code: int, expected: tuple[str, int | None, int | None]) -> None:
    with serving(lambda: other(answer, code)) as url:
        result = play(url, Program("x"))
    assert (result.status, result.exit_code, result.signal) == expected
    assert result.enforced == ()


def test_server_that_is_away_or_hangs_up_is_no_verdict() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def hang_up() -> None:
            for _ in range(2):
                listener.accept()[0].close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        assert play(url, Program("x")).status == "infra_error"
        assert play(url, Program("x")).status == "infra_error"
        thread.join(10)
    assert "ConnectError" in play(url, Program("x")).detail
    with pytest.raises(SandboxFailure, match="http sandbox failed twice"):
        asyncio.run(run_reliably(HttpSandbox(url), Program("x"), LIMITS))
    with pytest.raises(SandboxUnavailable, match=r"runs no programs.*agentflow sandbox serve"):
        asyncio.run(open_sandbox(url))


def test_server_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_PATIENCE_S", 1.0)

    async def trickle(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(100):
            await answer.write(b" ")
            await asyncio.sleep(0.2)
        return answer

    def app() -> web.Application:
        made = web.Application()
        made.add_routes([web.post("/run_code", trickle)])
        return made

    with serving(app) as url:
        started = time.monotonic()
        result = play(url, Program("x"), LIMITS.model_copy(update={"wall_s": 1.0}))
    assert (result.status, result.detail) == ("infra_error", "no whole answer within 2 s")
    assert time.monotonic() - started < 15


def test_bad_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="not an http"):
        HttpSandbox("http://")
    with pytest.raises(SandboxUnavailable, match="keeps no interpreter"):
        asyncio.run(HttpSandbox("http://x").session())


def test_server_of_the_command_line_runs_programs_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    (tmp_path / "a.py").write_text("print(6 * 7)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "import sys; from agentflow.cli import main; sys.exit(main())"
    words = ["sandbox", "serve", "--port", str(port), "--backend", "process"]
    with started([sys.executable, "-uc", program, *words], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        assert httpx.get(f"{address}/health", timeout=60).json() == {"status": "ok", "sandbox": "process"}
        assert main(["sandbox", "run", str(tmp_path / "a.py"), "--backend", address]) == 0
        server.terminate()
        server.wait(60)
    said = capsys.readouterr()
    assert said.out == "42\n"
    assert "ok (http:process;" in said.err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org", "10.0.0.1"])
def test_other_addresses_take_a_token(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for token in ("", "short"):
        monkeypatch.setenv(TOKEN_VARIABLE, token)
        assert main(["sandbox", "serve", "--host", host]) == 2
        assert f"Others reach {host}" in capsys.readouterr().err
