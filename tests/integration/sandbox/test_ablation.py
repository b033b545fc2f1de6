"""Each layer of the process sandbox taken away in turn: the attacks named for it must then be judged as escapes."""

import pytest

from agentflow.sandbox import launcher
from agentflow.sandbox.process import ProcessSandbox
from tests.integration.sandbox.ablation import held
from tests.trusted_sandbox import real_process

pytestmark = real_process
MOUNTS_BUT = (
    "from agentflow.sandbox import namespaces\nmount = namespaces.mount\n"
    "namespaces.mount = lambda kind, target, **options: None if target == '{}' else mount(kind, target, **options)"
)
LAYERS = {
    "system-call filter": (
        "from agentflow.sandbox import namespaces; namespaces.install_filter = lambda steps: None",
        "processes/tracing; network/the hypervisor; kernel/a new user namespace; kernel/a new mnt namespace; "
        "kernel/a new net namespace; kernel/a new ipc namespace; kernel/a new uts namespace; "
        "kernel/a new user namespace by clone; kernel/a mount in a new user namespace; kernel/performance counters; "
        "kernel/faults handled by itself; kernel/a ring of requests; kernel/files without a place; "
        "kernel/secret memory; kernel/another execution domain; kernel/calls of 32 bits; kernel/keys; "
        "kernel/comparison of processes; identity/without a filter; identity/a map of users",
    ),
    "network": (
        "from agentflow.sandbox import namespaces\nnamespaces.OF_A_ZYGOTE &= ~namespaces.NEW_NETWORK\n"
        "namespaces.NEW_NETWORK = 0\n"
        "namespaces.loopback_up = lambda: None",
        "network/the host's loopback; network/the host's own address; network/datagrams to the host; "
        "network/an abstract socket of the host; network/datagrams to an abstract socket; "
        "network/a port that the host sees; network/the host's interfaces",
    ),
    "capabilities": (
        "from agentflow.sandbox import namespaces; namespaces.drop_capabilities = lambda: None",
        "identity/capabilities; identity/set-user programs; identity/a map of users",
    ),
    "IPC": (
        "from agentflow.sandbox import namespaces; namespaces.OF_A_ZYGOTE &= ~namespaces.NEW_IPC",
        "identity/the host's messages",
    ),
    "host name": (
        "import socket; socket.sethostname = lambda name: None\n"
        "from agentflow.sandbox import namespaces; namespaces.OF_A_PROGRAM &= ~namespaces.NEW_HOST_NAME",
        "identity/the host's name",
    ),
    "users": (
        "import os; os.setresuid = os.setresgid = lambda *numbers: None\n"
        "from agentflow.sandbox import namespaces; namespaces.OF_A_PROGRAM &= ~namespaces.NEW_USER\n"
        "namespaces.map_user = lambda inside, **outside: None; namespaces.drop_capabilities = lambda: None",
        "identity/the host's users",
    ),
    "a channel that nobody can open again": (
        "import os; from agentflow.sandbox import zygote\ndef channel():\n  ends = os.pipe()\n"
        "  os.set_blocking(ends[0], False)\n  os.set_blocking(ends[1], False)\n  return ends\n"
        "zygote.hint_channel = channel",
        "protocol/channels read empty",
    ),
    "processes": (MOUNTS_BUT.format("/proc"), "processes/command lines of the host"),
    "files of the system": (
        "from agentflow.sandbox import system; system._FOLDERS += ('/etc',)",
        "files/the passwords and the machine's name",
    ),
    "resource limits": (
        "from agentflow.sandbox import worker; worker._lower_limits = lambda spec, own: None",
        "resources/a sparse file; resources/descriptors; resources/raised limits",
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_without_its_layer_an_attack_escapes(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, names = LAYERS[layer]
    # In the zygote, before it begins: what ships has no switch for it.
    last = "if is_foreign: sys.path.remove"
    assert last in launcher._CODE
    monkeypatch.setattr(launcher, "_CODE", launcher._CODE.replace(last, f"{patch}\n{last}"))

    assert not held(ProcessSandbox, names)
