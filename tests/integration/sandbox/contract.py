"""What every backend keeps: each way to end has its name, and what none of the programs can reach.

A module of a backend imports all of this and defines the fixtures `sandbox`, which may be used from any event loop,
and `num_left`, which counts the processes that programs have left behind.
"""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from agentflow.sandbox.base import Limits, Program, Result, Sandbox
from agentflow.sandbox.probe import probe

LIMITS = Limits(cpu_s=1.0, wall_s=20.0, memory_mb=160, disk_mb=8, max_processes=8, output_kb=4)


def run(sandbox: Sandbox, code: str, *, stdin: bytes = b"", limits: Limits = LIMITS, **program: object) -> Result:
    """Run one program."""
    return asyncio.run(sandbox.run(Program(code, stdin=stdin, **program), limits))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "status", "detail"),
    [
        ("print(6 * 7)", "ok", {"exit_code": 0}),
        ("import sys; sys.exit(3)", "nonzero_exit", {"exit_code": 3}),
        ("import sys; sys.exit(11)", "nonzero_exit", {"exit_code": 11}),
        ("1 / 0", "nonzero_exit", {"exit_code": 1}),
        ("import os; os.kill(os.getpid(), 11)", "signal", {"signal": 11}),
        ("while True: pass", "cpu_timeout", {}),
        ("import os\nfor _ in range(2): os.fork()\nwhile True: pass", "cpu_timeout", {}),
        ("import os, signal, time\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True:\n  if not os.fork():\n"
         "    while time.process_time() < 0.1: pass\n    os._exit(0)\n  try: os.wait()\n  except OSError: pass",
         "cpu_timeout", {}),
        ("import time; time.sleep(60)", "wall_timeout", {}),
        ("import signal, time\nfor n in range(1, 32):\n  try: signal.signal(n, signal.SIG_IGN)\n"
         "  except OSError: pass\ntime.sleep(60)", "wall_timeout", {}),
        ("x = bytearray(400 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\nwhile True: pass", "memory", {}),
        ("x = bytearray(10 ** 12)", "memory", {}),
        ("while True: print('x' * 1000)", "output_limit", {}),
        ("for i in range(9):\n  with open(str(i), 'wb') as f: f.write(b'x' * (2 << 20))", "disk", {}),
        ("import os, time\nfor _ in range(30): os.fork() or time.sleep(2)", "pids", {}),
        ("import time, threading as t\nfor _ in range(30): t.Thread(target=time.sleep, args=(2,)).start()", "pids", {}),
        ("x" * (2 << 20), "refused", {}),
    ],
)  # fmt: skip
def test_every_way_to_end_has_its_name(sandbox: Sandbox, code: str, status: str, detail: dict[str, int]) -> None:
    limits = LIMITS.model_copy(update={"wall_s": 1.0 if status == "wall_timeout" else 30.0, "cpu_s": 0.7})
    result = run(sandbox, code, limits=limits)
    assert result.status == status, result
    assert {name: getattr(result, name) for name in detail} == detail


def test_streams_input_files_and_traceback(sandbox: Sandbox) -> None:
    result = run(
        sandbox, "import sys; print(input(), open('d/f').read()); 1 / 0", stdin=b"hello\n", files={"d/f": b"data"}
    )
    assert result.stdout.text == "hello data\n"
    assert [line for line in result.stderr.text.splitlines()[1:] if "~" not in line] == [
        '  File "program.py", line 1, in <module>',
        "    import sys; print(input(), open('d/f').read()); 1 / 0",
        "ZeroDivisionError: division by zero",
    ]
    assert run(sandbox, "cat; echo $HOME", stdin=b"x", language="shell").stdout.text == "x/work\n"


# Stands in for matplotlib, which not every interpreter inside has: its plots are what the program says, forged or not.
FORGER = """
import struct, sys, types, zlib
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
def png(width, height=1, padding=0):
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"tEXt", b"x" * padding) + chunk(b"IDAT", zlib.compress(bytes((1 + width) * height)))
    return b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")
class Figure:
    def __init__(self, data):
        self.savefig = lambda file, format: file.write(data)
pyplot = types.ModuleType("matplotlib.pyplot")
pyplot.figures = []
pyplot.get_fignums = lambda: list(range(len(pyplot.figures)))
pyplot.figure = lambda number: Figure(pyplot.figures[number])
pyplot.close = lambda what: pyplot.figures.clear()
sys.modules["matplotlib.pyplot"] = pyplot
"""


@pytest.mark.parametrize(
    ("code", "status", "widths", "num_lost"),
    [
        ("", "ok", [], 0),
        ("pyplot.figures += [png(3), png(5)]; print('drawn')", "ok", [3, 5], 0),
        ("pyplot.figures += [png(3)]; 1 / 0", "nonzero_exit", [3], 0),
        ("pyplot.figures += [png(3)]; sys.exit(4)", "nonzero_exit", [3], 0),
        ("pyplot.figures += [png(n) for n in range(1, 7)]", "ok", [1, 2, 3, 4], 2),
        ("pyplot.figures += [png(3), b'x' * 99, png(3)[:-1], png(0)]", "ok", [3], 3),
        ("pyplot.figures += [png(1, padding=1 << 20), png(2, padding=1040000)]", "ok", [2], 1),
        ("import os\npyplot.figures += [png(3)]\nos._exit(0)", "ok", [], 0),
    ],
)
def test_plots_come_back_bounded_and_checked(
    sandbox: Sandbox, code: str, status: str, widths: list[int], num_lost: int
) -> None:
    result = run(sandbox, FORGER + code)
    assert result.status == status, result.stderr.text
    assert [image.size for image in result.images] == [(width, 1) for width in widths]
    assert result.num_lost_images == num_lost
    assert ("drawn" in result.stdout.text) == ("drawn" in code)
    assert not run(sandbox, "pass").images


def test_a_program_that_writes_its_plots_itself_gets_no_further(sandbox: Sandbox) -> None:
    flood = (
        "import os\nfor fd in range(3, 64):\n  try:\n    while os.write(fd, b'\\xff' * 65536): pass\n"
        "  except OSError: pass\nprint('done')"
    )
    result = run(sandbox, flood)
    assert (result.images, result.stdout.text) == ((), "done\n"), result


def test_input_that_nobody_reads_and_many_bytes_of_files(sandbox: Sandbox) -> None:
    assert run(sandbox, "print('done')", stdin=b"x" * (4 << 20)).stdout.text == "done\n"
    files = {f"{name}/data": bytes([name]) * (1 << 20) for name in range(6)}
    code = (
        "import sys\nprint(len(sys.stdin.buffer.read()), end='')\n"
        "for n in range(6): print('', open(f'{n}/data', 'rb').read() == bytes([n]) * 2**20, end='')"
    )
    assert run(sandbox, code, stdin=b"x" * (4 << 20), files=files).stdout.text == "4194304" + " True" * 6


def test_long_output_keeps_its_ends(sandbox: Sandbox) -> None:
    output = run(sandbox, "print('a' * 9000 + 'z')").stdout
    assert output.num_bytes == 9002
    assert output.text.startswith("a" * 2048 + "\n[... 4906 bytes left out")
    assert output.text.endswith("z\n")


def test_same_seed_gives_the_same_bytes(sandbox: Sandbox) -> None:
    code = "import random; print(random.random(), hash('a'), {'x', 'y', 'z'})"
    first = {run(sandbox, code, seed=1).stdout.text for _ in range(5)}
    assert len(first) == 1
    assert first != {run(sandbox, code, seed=2).stdout.text}


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/../../b", ""])
def test_files_outside_the_work_space_are_refused(sandbox: Sandbox, name: str) -> None:
    assert run(sandbox, "pass", files={name: b""}).status == "refused"


READS = {
    "passwords": "open('/etc/shadow').read()",
    "accounts": "open('/etc/passwd').read()",
    "home": "open('/root/.profile').read()",
    "hosts root by way of pid 1": "__import__('os').listdir('/proc/1/root/root')",
    "core pattern": "open('/proc/sys/kernel/core_pattern', 'w')",
    "system files": "open('/usr/bin/x', 'w')",
    "root folder": "open('/x', 'w')",
    "the program itself": "open('/program', 'w')",
    "vsock": "__import__('socket').socket(40, 1)",
    "alg": "__import__('socket').socket(38, 5)",
    "raw socket": "__import__('socket').socket(2, 3, 1)",
    "setuid": "__import__('os').setuid(0)",
    "chroot": "__import__('os').chroot('/work')",
    "device": "__import__('os').mknod('/work/d', 0o20666, 259)",
    "signal to pid 1 does nothing": "__import__('os').kill(1, 9); __import__('time').sleep(0.05); raise OSError",
    "more open files": "__import__('resource').setrlimit(7, (4096, 4096))",
    "more processes": "__import__('resource').setrlimit(6, (4096, 4096))",
    "limits of the first process": "__import__('resource').prlimit(1, 0, (0, 0))",
    "limits of its own process by number": "__import__('resource').prlimit(__import__('os').getpid(), 0, (9, 9))",
    "turns of the first process": "__import__('os').sched_setscheduler(1, 5, __import__('os').sched_param(0))",
    "turns of all of its user": "__import__('os').setpriority(2, 0, 19)",
    "shared memory beyond its size": "open('/dev/shm/x', 'wb').write(b'x' * (16 << 20))",
    "descriptors of the host": "[__import__('os').fstat(fd) for fd in range(3, 40)]",
    "internet": "__import__('socket').create_connection(('1.1.1.1', 53), timeout=1)",
}


@pytest.mark.parametrize("what", READS)
def test_what_is_out_of_reach_raises(sandbox: Sandbox, what: str) -> None:
    result = run(sandbox, f"try:\n  {READS[what]}\nexcept (OSError, ValueError): print('contained')")
    assert result.stdout.text == "contained\n", result


CALLS = {
    "unshare user": (272, 0x10000000), "clone newuser": (56, 0x10000000 | 17), "ptrace": (101, 0), "keyctl": (250, 0),
    "bpf": (321, 0), "userfaultfd": (323, 0), "io_uring": (425, 1), "perf": (298, 0), "mount": (165, 0),
    "setns": (308, 0), "open_by_handle": (304, 0), "memfd": (319, 0), "process_vm_readv": (310, 1), "reboot": (169, 0),
    "add_key": (248, 0), "personality": (135, 0xFFFFFFFF), "new mount": (430, 0), "pidfd_getfd": (438, 0),
    "flock": (73, 0), "inotify": (294, 0), "fanotify": (300, 0), "modify_ldt": (154, 0),
}  # fmt: skip


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")
@pytest.mark.parametrize("what", CALLS)
def test_denied_system_calls_fail_without_reaching_the_kernels_code(sandbox: Sandbox, what: str) -> None:
    number, argument = CALLS[what]
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"print(libc.syscall({number}, ctypes.c_ulong({argument}), 0, 0, 0, 0, 0), ctypes.get_errno())"
    )
    # An engine before version 23 refuses arguments with EPERM.
    assert run(sandbox, code).stdout.text in (["-1 38\n", "-1 1\n"] if what == "clone newuser" else ["-1 38\n"])


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_loopback_and_abstract_sockets_of_the_host_are_out_of_reach(sandbox: Sandbox, listener: socket.socket) -> None:
    name = f"agentflow-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{name}")
        abstract.listen()
        code = (
            "import socket\nfor family, to in ((2, ('127.0.0.1', %d)), (1, '\\0%s')):\n"
            "  try: socket.socket(family).connect(to); print('reached', to)\n  except OSError: print('contained')"
        )
        assert run(sandbox, code % (listener.getsockname()[1], name)).stdout.text == "contained\ncontained\n"


def test_environment_and_processes_of_the_caller_are_not_seen(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTFLOW_TEST_KEY", "hidden-value")
    code = (
        "import glob\nfor path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):\n"
        "  try: print(open(path, 'rb').read())\n  except OSError: pass\n"
        "print('processes', len(glob.glob('/proc/[0-9]*')))"
    )
    shown = run(sandbox, code, limits=LIMITS.model_copy(update={"output_kb": 256})).stdout.text
    assert "PYTHONHASHSEED" in shown
    assert "hidden-value" not in shown
    assert int(shown.split()[-1]) <= 3  # those that wait for the program, and itself


def test_orphans_and_stopped_processes_are_dead_on_return(sandbox: Sandbox, num_left: Callable[[], int]) -> None:
    code = (
        "import os, signal, time\nif not os.fork():\n  os.setsid()\n  if not os.fork():\n"
        "    signal.signal(15, signal.SIG_IGN)\n    time.sleep(300)\n  os.kill(os.getpid(), signal.SIGSTOP)\n"
        "time.sleep(0.3)\nprint('parent done')"
    )
    result = run(sandbox, code)
    assert (result.status, result.stdout.text) == ("ok", "parent done\n")
    assert not num_left()


def test_work_space_of_one_program_is_gone_before_the_next(sandbox: Sandbox) -> None:
    async def play() -> list[str]:
        first = await sandbox.run(
            Program("open('/work/x', 'w').write('1'); open('/dev/shm/x', 'w').write('1')"), LIMITS
        )
        code = "import os; print(os.listdir('/work'), os.listdir('/dev/shm'), os.listdir('/tmp'))"
        second = await sandbox.run(Program(code), LIMITS)
        return [first.status, second.stdout.text]

    assert asyncio.run(play()) == ["ok", "[] [] []\n"]


def test_many_at_once_are_judged_as_one_alone(sandbox: Sandbox) -> None:
    async def play() -> list[Result]:
        code = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nprint('done')"
        return list(await asyncio.gather(*(sandbox.run(Program(code), LIMITS) for _ in range(16))))

    assert {(result.status, result.stdout.text) for result in asyncio.run(play())} == {("ok", "done\n")}


def test_caller_that_gives_up_leaves_nothing_behind(sandbox: Sandbox, num_left: Callable[[], int]) -> None:
    async def play() -> Result:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await sandbox.run(Program("import time; time.sleep(60)"), Limits())
        deadline = time.monotonic() + 3
        while num_left() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert not num_left()
        return await sandbox.run(Program("print('next')"), LIMITS)

    started = time.monotonic()
    assert asyncio.run(play()).stdout.text == "next\n"
    assert time.monotonic() - started < 30


def test_backend_keeps_to_the_protocol_and_its_probe(sandbox: Sandbox) -> None:
    assert isinstance(sandbox, Sandbox)
    assert asyncio.run(probe(sandbox)) == ""
    assert {"net", "pid", "seccomp"} <= set(run(sandbox, "pass").enforced)
