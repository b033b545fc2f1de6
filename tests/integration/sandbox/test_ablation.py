"""Each layer of the process sandbox taken away in turn: the attacks named for it must then be judged as escapes."""

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from agentflow.sandbox.base import Limits, Program, Result
from agentflow.sandbox.process import launcher
from agentflow.sandbox.process.backend import ProcessSandbox
from tests.integration.sandbox.ablation import ROOM, held
from tests.trusted_sandbox import real_process

pytestmark = real_process
MOUNTS_BUT = (
    "from agentflow.sandbox.process import namespaces\nmount = namespaces.mount\n"
    "namespaces.mount = lambda kind, target, **options: None if target == '{}' else mount(kind, target, **options)\n"
)
NO_FILTER = "from agentflow.sandbox.process import namespaces; namespaces.install_filter = lambda steps: None\n"
NO_PROCESSES = (
    MOUNTS_BUT.format("/proc") + "namespaces.OF_A_PROGRAM &= ~namespaces.NEW_PROCESSES\n"
    "from agentflow.sandbox.process import worker\n"
)
NO_USERS = (
    "import os; os.setresuid = os.setresgid = lambda *numbers: None\n"
    "from agentflow.sandbox.process import namespaces; namespaces.OF_A_PROGRAM &= ~namespaces.NEW_USER\n"
    "namespaces.map_user = lambda inside, **outside: None; namespaces.drop_capabilities = lambda: None\n"
)
INSPECTABLE = (
    "from agentflow.sandbox.process import namespaces; namespaces.set_inspectable = lambda inspectable: None\n"
)
WRITABLE = "from agentflow.sandbox.process import namespaces, system; namespaces.seal = lambda root: None\n"
BESIDE_ANOTHER = """
import os
from agentflow.sandbox.process import worker
become = worker._become_worker
def beside(start):
    pid = os.fork()
    if pid:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    become(start)
worker._become_worker = beside
"""


def started_by(start: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Start zygotes otherwise than they are."""
    changed = SimpleNamespace(**{**vars(subprocess), "Popen": start})
    return lambda monkeypatch: monkeypatch.setattr(launcher, "subprocess", changed)


def in_the_same_session(words: list[str], **options: Any) -> "subprocess.Popen[Any]":
    """Start a zygote in the session of the host."""
    return subprocess.Popen(words, **{**options, "start_new_session": False})


def careless(words: list[str], **options: Any) -> "subprocess.Popen[Any]":
    """Pass on every inheritable descriptor."""
    for descriptor in options.pop("pass_fds"):
        os.set_inheritable(descriptor, True)
    return subprocess.Popen(words, close_fds=False, **options)


@dataclass(frozen=True)
class Layer:
    """What is taken away.

    Attributes:
        names: The attacks that must escape then, with semicolons between them.
        code: What a zygote runs before it begins.
        host: What is changed on the host's side.
        limits: Limits that are raised out of reach.
    """

    names: str
    code: str = ""
    host: Callable[[pytest.MonkeyPatch], None] = lambda monkeypatch: None
    limits: Mapping[str, Any] = field(default_factory=dict)


class Raised(ProcessSandbox):
    """The process sandbox with limits that are raised.

    Args:
        limits: Which, and to what.
    """

    def __init__(self, limits: Mapping[str, Any]) -> None:
        super().__init__()
        self._raised = limits

    async def run(self, program: Program, limits: Limits | None = None) -> Result:
        """Run a program."""
        return await super().run(program, (limits or Limits()).model_copy(update=dict(self._raised)))


LAYERS = {
    "system-call filter": Layer(
        "processes/tracing; network/the hypervisor; kernel/a new user namespace; kernel/a new mnt namespace; "
        "kernel/a new net namespace; kernel/a new ipc namespace; kernel/a new uts namespace; "
        "kernel/a new user namespace by clone; kernel/a mount in a new user namespace; kernel/performance counters; "
        "kernel/faults handled by itself; kernel/a ring of requests; kernel/files without a place; "
        "kernel/secret memory; kernel/another execution domain; kernel/calls of 32 bits; kernel/keys; "
        "kernel/comparison of processes; identity/without a filter; identity/a map of users",
        code=NO_FILTER,
    ),
    "network": Layer(
        "network/the host's loopback; network/the host's loopback of version 6; network/the host's own address; "
        "network/datagrams to the host; network/an abstract socket of the host; "
        "network/datagrams to an abstract socket; network/a port that the host sees; network/the host's interfaces",
        code="from agentflow.sandbox.process import namespaces\nnamespaces.OF_A_ZYGOTE &= ~namespaces.NEW_NETWORK\n"
        "namespaces.NEW_NETWORK = 0\n"
        "namespaces.loopback_up = lambda: None",
    ),
    "capabilities": Layer(
        "identity/capabilities; identity/set-user programs; identity/a map of users",
        code="from agentflow.sandbox.process import namespaces; namespaces.drop_capabilities = lambda: None",
    ),
    "IPC": Layer(
        "identity/the host's messages",
        code="from agentflow.sandbox.process import namespaces; namespaces.OF_A_ZYGOTE &= ~namespaces.NEW_IPC",
    ),
    "host name": Layer(
        "identity/the host's name",
        code="import socket; socket.sethostname = lambda name: None\n"
        "from agentflow.sandbox.process import namespaces; namespaces.OF_A_PROGRAM &= ~namespaces.NEW_HOST_NAME",
    ),
    "users": Layer("identity/the host's users", code=NO_USERS),
    "a channel that nobody can open again": Layer(
        "protocol/channels read empty",
        code="import os; from agentflow.sandbox.process import zygote\ndef channel():\n  ends = os.pipe()\n"
        "  os.set_blocking(ends[0], False)\n  os.set_blocking(ends[1], False)\n  return ends\n"
        "zygote.hint_channel = channel",
    ),
    "own view of processes": Layer("processes/command lines of the host", code=MOUNTS_BUT.format("/proc")),
    "processes": Layer(
        "identity/the host's process numbers; processes/a daemon; processes/a daemon of a shell", code=NO_PROCESSES
    ),
    "processes and users": Layer(
        "processes/a signal to the host; processes/a handle on the host's process", code=NO_PROCESSES + NO_USERS
    ),
    "session of its own": Layer(
        "processes/the host's process group",
        code="import os; os.setsid = lambda: None",
        host=started_by(in_the_same_session),
    ),
    "clean environment": Layer(
        "processes/environments of the host; processes/the environment of its parent",
        code=INSPECTABLE,
        host=lambda monkeypatch: monkeypatch.setattr(launcher, "ENVIRONMENT", os.environ),
    ),
    "closed descriptors": Layer(
        "files/inherited descriptors",
        code="from agentflow.sandbox.process import worker; worker._close = lambda gaps: None",
        host=started_by(careless),
    ),
    "nobody beside the program but process 1": Layer(
        "protocol/process 1 killed; protocol/its parent stopped", code=BESIDE_ANOTHER
    ),
    "files of the system": Layer(
        "files/the passwords and the machine's name",
        code="from agentflow.sandbox.process import system; system._FOLDERS += ('/etc',)",
    ),
    "files of its own": Layer(
        "files/a secret of the host; files/the host's root through process 1; "
        "files/the host's root through other processes; files/a symbolic link of its own",
        code=f"{INSPECTABLE}from agentflow.sandbox.process import system\nsystem._FOLDERS += ('/tmp',)\n"
        "system._OWN = tuple(place for place in system._OWN if place != '/tmp')\n"
        "system._LINKS = tuple(link for link in system._LINKS if link[0] != '/tmp')\n",
    ),
    "nothing that can be written beside the work space": Layer(
        "persistence/temporary files that stay; files/a place beside the work space",
        code=f"{WRITABLE}system._FOLDERS += ('/var/tmp',)",
    ),
    "private shared memory": Layer(
        "files/shared memory of the host; persistence/shared memory",
        code=f"{WRITABLE}system._DEVICES += ('shm',)\n"
        "system._LINKS = tuple(link for link in system._LINKS if link[0] != '/dev/shm')\n",
    ),
    "resource limits": Layer(
        "resources/a sparse file; resources/descriptors; resources/raised limits",
        code="from agentflow.sandbox.process import worker; worker._lower_limits = lambda spec: None",
    ),
    "memory limit": Layer(
        "resources/memory of a decompression bomb; resources/memory in pages that no process maps",
        limits={"memory_mb": 2048, **ROOM},
    ),
    "memory limit and filter": Layer(
        "resources/memory in detached segments", code=NO_FILTER, limits={"memory_mb": 2048, **ROOM}
    ),
    "CPU limit": Layer(
        "resources/spin; resources/spin in several processes; resources/spin within one instruction; "
        "resources/spin in children that nobody waits for",
        limits={"cpu_s": 3.0, "max_processes": 64, **ROOM},
    ),
    "wall limit": Layer(
        "resources/sleep; resources/stop; protocol/streams closed early", limits={"wall_s": 4.5}
    ),
    "process limit": Layer(
        "resources/processes; resources/processes that orphan each other",
        limits={"max_processes": 1000, "memory_mb": 2048, **ROOM},
    ),
    "output limit": Layer("resources/output", limits={"output_kb": 1 << 20}),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_without_its_layer_an_attack_escapes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LAYERS[name]
    # In the zygote, before it begins: what ships has no switch for it.
    last = "if is_foreign: sys.path.remove"
    assert last in launcher._CODE
    monkeypatch.setattr(launcher, "_CODE", launcher._CODE.replace(last, f"{layer.code}\n{last}"))
    layer.host(monkeypatch)
    assert not held(partial(Raised, layer.limits), layer.names)
