"""The process backend: what a program does to whoever watches it, to its neighbours, its successors and the host."""

import asyncio
from pathlib import Path

import pytest

from agentflow.errors import ConfigError
from agentflow.sandbox.base import Program, Result
from agentflow.sandbox.process.backend import ProcessSandbox
from tests.integration.sandbox.contract import LIMITS
from tests.integration.sandbox.test_process import metering, play
from tests.trusted_sandbox import real_process

pytestmark = real_process
__all__ = ["metering"]

_NO_TEXT = """
import ctypes, os, time
libc = ctypes.CDLL(None)
libc.prctl(15, b"\\xff\\xfe) \\n", 0, 0, 0)
if os.fork() == 0:
    time.sleep(60)
time.sleep(0.3)
print("mine", flush=True)
"""


def test_process_with_a_name_that_is_no_text_disturbs_nobody(metering: str) -> None:
    async def work(sandbox: ProcessSandbox) -> tuple[Result, Result, Result, Result]:
        async with await sandbox.session(LIMITS) as neighbour, await sandbox.session(LIMITS) as session:
            await neighbour.exec("x = 6")
            program = await sandbox.run(Program(_NO_TEXT + "# numpy"), LIMITS)
            cell = await session.exec(_NO_TEXT)
            # The branch is looked for by the numbers of all processes.
            late = await session.exec("time.sleep(60)", limits=LIMITS.model_copy(update={"wall_s": 0.5}))
            return program, cell, late, await neighbour.exec("x")

    program, cell, late, neighbour = play(work, concurrency=1)
    assert (program.status, program.stdout.text) == ("ok", "mine\n"), program
    assert (cell.status, cell.stdout.text) == ("ok", "mine\n"), cell
    assert late.status == "wall_timeout", late
    assert neighbour.value == "6"


_FILLS_BUFFERS = """
import socket
server, held, total = socket.create_server(("127.0.0.1", 0)), [], 0
for _ in range(60):
    stream = socket.create_connection(server.getsockname())
    held += [stream, server.accept()[0]]
    stream.setblocking(False)
    try:
        while True:
            total += stream.send(bytes(1 << 16))
    except BlockingIOError:
        pass
print(total >> 20)
"""


def test_buffers_of_tcp_count_as_memory() -> None:
    limits = LIMITS.model_copy(update={"memory_mb": 64})
    result = play(lambda sandbox: sandbox.run(Program(_FILLS_BUFFERS), limits), concurrency=1)
    if not any(layer.startswith("memory:cgroup") for layer in result.enforced):
        pytest.skip("there are no control groups here")
    assert result.status in ("ok", "memory", "wall_timeout"), result
    assert int(result.stdout.text or 0) <= 64


_HOLDS = """
import fcntl, os
for path, command, value in (("lease", fcntl.F_SETLEASE, fcntl.F_RDLCK), ("/usr", fcntl.F_NOTIFY, fcntl.DN_ACCESS)):
    open("lease", "w").close()
    try:
        fcntl.fcntl(os.open(path, os.O_RDONLY), command, value)
        print("held", path)
    except OSError:
        print("denied")
"""


def test_program_leases_and_watches_no_file() -> None:
    result = play(lambda sandbox: sandbox.run(Program(_HOLDS), LIMITS))
    assert result.stdout.text == "denied\ndenied\n", result


_LABELS = """
import socket, struct
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as stream:
    request = socket.inet_pton(socket.AF_INET6, "::1") + struct.pack("!IBB", 0x12345, 0, 255)
    stream.setsockopt(socket.IPPROTO_IPV6, 32, request + struct.pack("=HHHI", 1, 6, 6, 0))
print("labelled")
"""


@pytest.mark.skipif(not Path("/proc/net/ip6_flowlabel").exists(), reason="this kernel has no flow labels")
def test_flow_labels_of_one_program_are_not_seen_by_the_next() -> None:
    async def work(sandbox: ProcessSandbox) -> list[str]:
        codes = (_LABELS, "print(open('/proc/net/ip6_flowlabel').read().count('12345'))")
        return [(await sandbox.run(Program(code), LIMITS)).stdout.text for code in codes]

    assert play(work, concurrency=1) == ["labelled\n", "0\n"]


_IMPORTS = """
import glob, importlib, os, sys
for name in "numpy.linalg sympy matplotlib.pyplot PIL.Image dateutil.parser pydantic torch httpx".split():
    try:
        importlib.import_module(name)
        print(name)
    except ModuleNotFoundError:
        pass
from importlib.metadata import version
print(version("numpy") == __import__("numpy").__version__)
places = [path for folder in sys.path + ["/usr/lib", "/usr/local/lib"] for pattern in ("", "/*", "/*/*")
          for path in glob.glob(f"{folder}{pattern}") if path.endswith(("site-packages", "dist-packages"))]
print(*sorted({name.split(".")[0].split("-")[0] for path in places for name in os.listdir(path)}))
"""


def test_program_imports_named_packages_and_sees_no_others() -> None:
    roomy = LIMITS.model_copy(update={"cpu_s": 10.0, "wall_s": 60.0})
    result = play(lambda sandbox: sandbox.run(Program(_IMPORTS), roomy))
    *imported, told, seen = result.stdout.text.splitlines()
    assert imported == ["numpy.linalg", "sympy", "matplotlib.pyplot", "PIL.Image", "dateutil.parser"], result
    assert told == "True"
    assert {"numpy", "sympy", "matplotlib", "PIL"} <= set(seen.split())
    assert not {"pydantic", "torch", "httpx", "pytest", "agentflow", "agentflow_rl", "pip"} & set(seen.split())


def test_option_adds_packages_with_what_they_need() -> None:
    async def work() -> str:
        sandbox = ProcessSandbox(1, packages=("httpx",))
        try:
            return (await sandbox.run(Program("import httpx; print(httpx.codes.OK.value)"))).stdout.text
        finally:
            await sandbox.close()

    assert asyncio.run(work()) == "200\n"
    with pytest.raises(ConfigError, match="no_such is not installed here"):
        ProcessSandbox(1, packages=("no_such",))
    with pytest.raises(ConfigError, match="agentflow-rl has no files that can be shown"):
        ProcessSandbox(1, packages=("agentflow-rl",))
